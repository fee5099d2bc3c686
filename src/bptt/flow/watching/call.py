"""One call of a recurrent module: what the hooks keep of it.

Kept are references: the input, the initial state, the outputs, and the gradients that arrive at them from outside.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import NamedTuple

import torch
from torch import Tensor, nn

from bptt.cells import Cell, State
from bptt.forms import Form, Input
from bptt.kernels.tape import Tape
from bptt.torch_private import backward_pass_id


class Unsupported(RuntimeError):
    """A call that cannot be watched; the message says why and what to do."""


class Source(NamedTuple):
    """From which samples of an earlier call a later one goes on.

    Attributes:
        call: the earlier call.
        here: samples of the later call that go on from it, in the user's order, int64 [n].
        there: the samples of the earlier call that they go on from, [n].
        reset: whether their state was set to zero in between, bool [n].
        through_outputs: whether its outputs were handed on, not its final state.
    """

    call: "WatchedCall"
    here: Tensor
    there: Tensor
    reset: Tensor
    through_outputs: bool = False


@dataclass
class WatchedCall:
    """What is kept of one call. Gradients are added up, should several backward passes reach it.

    Attributes:
        module, cell: the recurrent module, and the time step that it repeats.
        form: the form of its input.
        x, hx, reset: what it was given; hx is () where no state was.
        outputs, final: what it returned.
        kept: (what it is, tensor, the count of its changes in place) of each of these, to see whether they are changed.
        tolerance: how far, relative in norm, the outputs may be from what one step from the states gives.
        input_attached: whether the input has a graph.
        differentiable: whether its results have a graph.
        rng: the generator's state at the call, if the module draws dropout masks.
        tapes: what bptt's kernels have kept of it, layer by layer and direction by direction.
        grads: the gradients that arrived, by place: 0 the outputs, 1 and up the components of the final state.
        passes: numbers of the backward passes that brought them.
        twice: whether a backward pass was itself recorded, to be differentiated (create_graph=True).
        sources: the earlier calls whose final state, attached, it began with (see handover.py).
        unfollowable: whether the graph leads from its initial state to an earlier call, but no sample is found again.
        began_detached: whether it began with a state that has no graph, is not 0, and may come from such a layer (one
            drawn from a normal distribution does not).
        follows: the earlier calls of the same module whose final state, detached, it began with, if they lie in this block.
    """

    module: nn.Module
    cell: Cell
    form: Form
    x: Input
    hx: State
    outputs: Input
    final: State
    reset: Input | None
    kept: tuple[tuple[str, Tensor, int], ...]
    tolerance: float = 0.1
    input_attached: bool = False
    differentiable: bool = False
    rng: Tensor | None = None
    tapes: list[Tape] = field(default_factory=list)
    grads: dict[int, Tensor] = field(default_factory=dict)
    passes: set[int] = field(default_factory=set)
    twice: bool = False
    sources: tuple[Source, ...] = ()
    unfollowable: bool = False
    began_detached: bool = False
    follows: "tuple[WatchedCall, ...]" = ()

    def catcher(self, place: int) -> Callable[[Tensor], None]:
        """Return a hook that keeps the gradient that arrives at a place."""

        def catch(grad: Tensor | None) -> None:
            if grad is None:
                return
            self.twice = self.twice or torch.is_grad_enabled()
            had = self.grads.get(place)
            self.grads[place] = grad.detach() if had is None else had + grad.detach()
            self.passes.add(backward_pass_id())

        return catch

    def unscale(self, scale: float) -> None:
        """Divide the gradients by what the loss was multiplied with."""
        self.grads = {place: grad / scale for place, grad in self.grads.items()}

    @property
    def arrived(self) -> bool:
        """Whether any gradient has arrived."""
        return bool(self.grads)

    @property
    def input_data(self) -> Tensor:
        """The tensor that holds the input's numbers."""
        return self.kept[0][1]

    @property
    def output_data(self) -> Tensor:
        """The tensor that holds the outputs' numbers."""
        return self.kept[1][1]

    def samples_of(self, state: State) -> Tensor:
        """Return a state as one row for each sample, [B, ·]."""
        return torch.cat([self.form.with_batch(s).transpose(0, 1).flatten(1) for s in state], dim=1)

    def rows_of_samples(self) -> Tensor:
        """Return the row of each sample in the traces' order, int64 [B]."""
        packed = self.form.packed
        if packed is not None and packed.unsorted_indices is not None:
            return packed.unsorted_indices.cpu()
        return torch.arange(len(self.samples_of(self.final)), device="cpu")

    @property
    def rounding(self) -> float:
        """How far, relative in norm, a gradient that autograd brought may be from what we compute for it."""
        return self.tolerance if self.tolerance >= 0.1 else self.tolerance / 10
