"""One chunk of steps, forward alone or forward and back, as often as wanted and with the same result each time."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import torch
from torch import Tensor

from bptt.gradient.base import Chunk, scalar, time_slice
from bptt.gradient.collect import gradients, leaves_of
from bptt.gradient.inputs.packed import PackedSteps
from bptt.kernels import lean_tape
from bptt.torch_private import tree_leaves, tree_map


class ChunkGradients(NamedTuple):
    """What `Replay.reverse` finds for one chunk.

    Attributes:
        loss: of the chunk's steps, a scalar without graph.
        after: the state after the chunk, without graph.
        d_leaves: gradients of `Replay.leaves`; None where there is none.
        d_state: gradients of the leaves of the state before the chunk; None where there is none.
        has_graph: whether the loss depended on a tensor that wants a gradient.
    """

    loss: Tensor
    after: Any
    d_leaves: list[Tensor | None]
    d_state: list[Tensor | None]
    has_graph: bool


@dataclass
class Replay:
    """Runs the chunks of a sequence.

    Attributes:
        whole: the sequence.
        length: steps of a chunk; the last one may be shorter.
        leaves: the tensors that get gradients.
        with_tape: keep a graph even where none is needed, for a module whose results depend on that to the bit.
        lean: keep only the states of bptt's own layers, and recompute their gates on the way back.
    """

    whole: Chunk
    length: int
    leaves: list[Tensor] = field(default_factory=list)
    with_tape: bool = False
    lean: bool = False

    @property
    def chunks(self) -> int:
        """The number of chunks."""
        return -(-self.whole.steps // self.length)

    def advance(self, i: int, state: Any) -> Any:
        """Return the state after chunk i, from the state before it."""
        with nullcontext() if self.with_tape else torch.no_grad():
            return detached_copy(self._forward(i, copies(state))[1])

    def reverse(self, i: int, state: Any, d_after: list[Tensor | None], state_wanted: bool = True) -> ChunkGradients:
        """Run chunk i forward and back; return the gradients of its loss plus ⟨d_after, state after it⟩."""
        state = tree_map(lambda leaf: _as_leaf(leaf) if state_wanted else leaf, state)
        outputs, after = self._forward(i, copies(state))
        loss = scalar(self.whole.loss(outputs, self._piece(self.whole.y, i)))
        del outputs
        ends = [(loss, torch.ones_like(loss)), *zip(tree_leaves(after), d_after, strict=False)]
        ends = [(end, d) for end, d in ends if d is not None and end.requires_grad]
        before = [leaf for leaf in tree_leaves(state) if wants_gradient(leaf)]
        wanted = [*self.leaves, *before]
        found: list[Tensor | None] = [None] * len(wanted)
        if ends:
            roots, seeds = zip(*ends, strict=True)
            found = gradients(roots, wanted, seeds)
        n = len(self.leaves)
        of_state = iter(found[n:])
        d_state = [next(of_state) if wants_gradient(leaf) else None for leaf in tree_leaves(state)]
        return ChunkGradients(loss.detach(), detached_copy(after), found[:n], d_state, loss.requires_grad)

    def outputs(self, i: int, state: Any) -> tuple[Any, Any]:
        """Return the model's outputs over chunk i and the state after it, without a graph."""
        with torch.no_grad():
            return self._forward(i, copies(state))

    def loss(self, outputs: Any, start: int, stop: int) -> Tensor:
        """Return the loss of outputs that belong to the steps [start, stop), without a graph."""
        with torch.no_grad():
            return scalar(self.whole.loss(outputs, self._to_device(time_slice(self.whole.y, start, stop))))

    def _forward(self, i: int, state: Any) -> tuple[Any, Any]:
        # A weight that autocast converted without a graph must not serve where one is wanted (torch 2.13 sees to it itself).
        torch.clear_autocast_cache()
        reset = self.whole.reset
        with lean_tape() if self.lean else nullcontext():
            return self.whole.forward(
                self._piece(self.whole.x, i), state, None if reset is None else self._piece(reset, i)
            )

    def _piece(self, tree: Any, i: int) -> Any:
        return self._to_device(time_slice(tree, i * self.length, min((i + 1) * self.length, self.whole.steps)))

    def _to_device(self, tree: Any) -> Any:
        device = self.device
        return tree_map(lambda leaf: leaf.to(device) if isinstance(leaf, Tensor | PackedSteps) else leaf, tree)

    @property
    def device(self) -> torch.device | None:
        """The model's device, to which inputs are brought chunk by chunk; None for a plain function: they stay."""
        parameters = _parameters(self.whole.model)
        return parameters[0].device if parameters else None

    def find_leaves(self) -> list[Tensor]:
        """Return the tensors that get a gradient: the module's parameters, then all else that the first chunk depends on."""
        found = {id(p): p for p in _parameters(self.whole.model) if p.requires_grad}
        outputs, after = self._forward(0, copies(detached_copy(self.whole.state)))
        loss = scalar(self.whole.loss(outputs, self._piece(self.whole.y, 0)))
        for leaf in leaves_of(end for end in (loss, *tree_leaves(after)) if isinstance(end, Tensor)):
            found.setdefault(id(leaf), leaf)
        return list(found.values())


def _parameters(model: Callable[..., Any]) -> list[Tensor]:
    return list(model.parameters()) if isinstance(model, torch.nn.Module) else []


def wants_gradient(leaf: Any) -> bool:
    """Whether it is a tensor that requires a gradient."""
    return isinstance(leaf, Tensor) and leaf.requires_grad


def _as_leaf(leaf: Any) -> Any:
    """A new leaf with the values of `leaf`; what has no derivative is returned as it is."""
    return leaf.detach().requires_grad_() if is_differentiable(leaf) else leaf


def is_differentiable(leaf: Any) -> bool:
    """Whether it is a tensor of real or complex numbers, which can have a derivative."""
    return isinstance(leaf, Tensor) and (leaf.is_floating_point() or leaf.is_complex())


def copies(state: Any) -> Any:
    """Return copies within the graph of the originals, so that a module may write into what it is given."""
    return tree_map(lambda leaf: leaf.clone() if isinstance(leaf, Tensor) else leaf, state)


def detached_copy(state: Any) -> Any:
    """Return the state without graph, in memory of its own: as a view it would keep all outputs alive.

    Raises TypeError for anything but a tree of tensors.
    """
    return tree_map(_detached_leaf, state)


def _detached_leaf(leaf: Any) -> Any:
    if leaf is None:
        return None
    if not isinstance(leaf, Tensor):
        raise TypeError(
            f"the model's state holds a {type(leaf).__name__} ({leaf!r}), wanted tensors (in tuples, lists, dicts): what is "
            "not in a tensor cannot be kept and brought back; make it one, e.g. torch.tensor(step)"
        )
    return leaf.detach().clone()


def equal_states(a: Any, b: Any) -> bool:
    """Whether two states are equal bit for bit (a NaN equals a NaN)."""
    left, right = tree_leaves(a), tree_leaves(b)
    return len(left) == len(right) and all(map(_equal, left, right))


def _equal(a: Any, b: Any) -> bool:
    if not isinstance(a, Tensor) or not isinstance(b, Tensor):
        return a is b
    if a.shape != b.shape or a.dtype != b.dtype:
        return False
    return torch.equal(a, b) or bool(((a == b) | ((a != a) & (b != b))).all())


class Generators:
    """torch's random generators: the CPU's, and the device's where the model computes."""

    def __init__(self, device: torch.device | None) -> None:
        self._cuda = device if device is not None and device.type == "cuda" else None

    def state(self) -> tuple[Tensor, ...]:
        """Return the states of the generators."""
        if self._cuda is None:
            return (torch.get_rng_state(),)
        return torch.get_rng_state(), torch.cuda.get_rng_state(self._cuda)

    def set(self, state: tuple[Tensor, ...]) -> None:
        """Restore the states of the generators."""
        torch.set_rng_state(state[0])
        if self._cuda is not None:
            torch.cuda.set_rng_state(state[1], self._cuda)


def copy_buffers(model: Callable[..., Any]) -> list[Tensor]:
    """Return copies of the module's buffers (running means, say)."""
    return [buffer.clone() for buffer in _buffers(model)]


def restore_buffers(model: Callable[..., Any], buffers: list[Tensor]) -> None:
    """Write `buffers`, from `copy_buffers`, back into the module's buffers."""
    with torch.no_grad():
        for buffer, value in zip(_buffers(model), buffers, strict=True):
            buffer.copy_(value)


@contextmanager
def buffers_restored(model: Callable[..., Any]) -> Iterator[None]:
    """Restore the module's buffers on leaving."""
    buffers = copy_buffers(model)
    try:
        yield
    finally:
        restore_buffers(model, buffers)


@contextmanager
def evaluation_mode(model: Callable[..., Any]) -> Iterator[None]:
    """Inside, every module is in evaluation mode; on leaving, in the mode that it was in."""
    modules = list(model.modules()) if isinstance(model, torch.nn.Module) else []
    modes = [module.training for module in modules]
    try:
        for module in modules:
            module.training = False
        yield
    finally:
        for module, mode in zip(modules, modes, strict=True):
            module.training = mode


def _buffers(model: Callable[..., Any]) -> list[Tensor]:
    return list(model.buffers()) if isinstance(model, torch.nn.Module) else []
