"""The base of kernels that run one layer in one direction at a time: the stack around them, and their place in autograd."""

from abc import abstractmethod
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from bptt.cells import Cell, PointwiseCell, State, Weights
from bptt.cells.contract import check_unchanged, checked_step, state_names, versions
from bptt.kernels.autocast import in_the_weights_format
from bptt.kernels.base import Kernel, Sequences, Stack
from bptt.kernels.gate import Unreadable
from bptt.kernels.tape import Saved, note
from bptt.kernels.walk import Walk, loop
from bptt.torch_private import (
    COUNTS_CHANGES,
    is_batched_gradient,
    saved_tensors_hooks_active,
    transforms_active,
    version_of,
)


class Gradients(NamedTuple):
    """The gradients of one layer: of x and the initial state, None where not wanted, and of each weight."""

    x: Tensor | None
    state: tuple[Tensor | None, ...]
    weights: dict[str, Tensor]


class LayerKernel(Kernel):
    """A kernel that states the forward and the backward of one layer in one direction, both without autograd.

    The rows of x come as [T, B, D] or [N, D], the state as [B, ·] or [1, B, ·]; results have the form of what came.
    """

    @abstractmethod
    def forward(
        self,
        cell: PointwiseCell,
        walk: Walk,
        x: Tensor,
        state: State,
        weights: Weights,
        keep: bool,
        known: bool = False,
    ) -> tuple[Tensor, State, Saved]:
        """Return the outputs, of H or P units, the final state, and what backward needs.

        Args:
            x, state: the rows and the initial state.
            keep: whether a gradient may be asked for.
            known: whether `refusal` has already looked at the tensors.

        The outputs must be no view, so that callers can change them in place. Of what is kept, only the first tensor may be
        the outputs themselves.
        """

    @abstractmethod
    def backward(
        self,
        cell: PointwiseCell,
        walk: Walk,
        x: Tensor,
        state: State,
        weights: Weights,
        saved: Saved,
        d_outputs: Tensor | None,
        d_final: tuple[Tensor | None, ...],
        x_wanted: bool,
        state_wanted: bool = True,
        known: bool = False,
    ) -> Gradients:
        """Return the gradients of x, the initial state and the weights, from those of the outputs and the final state.

        Args:
            saved: what forward kept. Backward may be called several times with it, and must not change it.
            d_outputs, d_final: None stands for a gradient that is zero.
            known: whether x, state, weights and `saved` are the very tensors that forward had.
        """

    def run(self, stack: Stack, sequences: Sequences, state: State) -> tuple[Tensor, State]:
        """Run layer by layer, direction by direction; under autocast in the number format of the weights (autocast.py)."""
        if torch.is_autocast_enabled(sequences.x.device.type):
            return in_the_weights_format(self._run, stack, sequences, state)
        return self._run(stack, sequences, state)

    def _run(self, stack: Stack, sequences: Sequences, state: State) -> tuple[Tensor, State]:
        x = sequences.x
        walks = [Walk.over(sequences, reverse=bool(direction)) for direction in range(len(stack.weights[0]))]
        if len(walks) * len(stack.weights) == 1:
            return self.layer(stack.cell, walks[0], x, state, stack.weights[0][0])
        finals: list[State] = []
        for depth, directions in enumerate(stack.weights):
            outputs = []
            for walk, weights in zip(walks, directions, strict=True):
                start = tuple(component[len(finals) : len(finals) + 1] for component in state)
                y, final = self.layer(stack.cell, walk, x, start, weights)
                outputs.append(y)
                finals.append(final)
            x = torch.cat(outputs, dim=-1) if len(outputs) > 1 else outputs[0]
            if depth < len(stack.weights) - 1:
                x = F.dropout(x, stack.dropout, training=stack.dropout > 0)
        return x, tuple(torch.cat(component) for component in zip(*finals, strict=True))

    def layer(self, cell: Any, walk: Walk, x: Tensor, state: State, weights: Weights) -> tuple[Tensor, State]:
        """Run one layer in one direction, with the kernel's own gradient for autograd."""
        if torch.is_grad_enabled():
            tensors = (x, *state, *weights.values())
            if any([t.requires_grad for t in tensors]):
                outputs, *final = _LayerNode.apply(self, cell, walk, tuple(weights), *tensors)
                return outputs, tuple(final)
        return self.forward(cell, walk, x, state, weights, keep=False, known=True)[:2]


def plain_layer(cell: Cell, walk: Walk, x: Tensor, state: State, weights: Weights) -> tuple[Tensor, State]:
    """Run the plain equations over time, under autograd, with arguments and results as in `LayerKernel`."""
    rows, start = as_rows(x), tuple(map(as_rows, state))
    if isinstance(cell, PointwiseCell):
        zx = cell.net_input(rows, weights["weight_ih"], weights.get("bias_ih"))  # N,G,H: one product over all rows
        outputs, final = loop(walk, start, lambda t, at, before: cell.advance(zx[at], before, weights))
    else:
        written = versions((rows, *start))
        outputs, final = loop(walk, start, lambda t, at, before: checked_step(cell, rows[at], before, weights))
        check_unchanged(cell, "step", ("x", *state_names(cell)), written, versions((rows, *start)))
    return as_given(outputs, x), tuple(map(as_given, final, state))


def as_rows(tensor: Tensor) -> Tensor:
    """Flatten all axes but the last: [..., ·] → [N, ·]."""
    return tensor.flatten(0, -2)


def as_given(rows: Tensor, form: Tensor) -> Tensor:
    """Undo `as_rows`: [N, ·] → [..., ·], where `form` is [..., ·] of any width."""
    return rows.reshape(*form.shape[:-1], rows.shape[-1])


class _LayerNode(torch.autograd.Function):
    """One node of autograd's graph: the forward and backward of a kernel."""

    @staticmethod
    def forward(
        ctx: Any, kernel: LayerKernel, cell: PointwiseCell, walk: Walk, names: tuple[str, ...], *tensors: Tensor
    ) -> tuple[Tensor, ...]:
        x, state, weights = _parts(cell, names, tensors)
        outputs, final, saved = kernel.forward(cell, walk, x, state, weights, keep=True, known=True)
        note(kernel, x, state, outputs, saved)
        ctx.kernel, ctx.cell, ctx.walk, ctx.names = kernel, cell, walk, names
        ctx.set_materialize_grads(False)
        # Backward needs the outputs, which the caller may change in place: they are saved under another count of changes,
        # and backward runs the layer again if their own count has moved.
        ctx.count = None
        if saved[0] is outputs and COUNTS_CHANGES:
            saved, ctx.count = (outputs.data, *saved[1:]), _count_of_changes(outputs)
            ctx.version = version_of(ctx.count)
        every = (*tensors, *saved)
        ctx.identities = tuple(map(id, every))
        ctx.shapes = [None if t is None else t.shape for t in every] if saved_tensors_hooks_active() else None
        ctx.save_for_backward(*every)
        return outputs, *final

    @staticmethod
    def backward(ctx: Any, *grads: Tensor | None) -> tuple[Tensor | None, ...]:
        if all([grad is None for grad in grads]):
            return (None,) * (4 + 1 + len(ctx.cell.states) + len(ctx.names))
        every = ctx.saved_tensors  # asked for once: under torch.utils.checkpoint it answers no second time
        n = 1 + len(ctx.cell.states) + len(ctx.names)
        tensors, saved = every[:n], every[n:]
        others = tuple(map(id, every)) != ctx.identities  # a hook returned other tensors
        if others and ctx.shapes is not None:
            _check_shapes(every, ctx.shapes)
        if torch.is_grad_enabled() or (others and ctx.shapes is None) or _is_batched(grads):
            return None, None, None, None, *_through_autograd(ctx, tensors, grads)
        try:
            return None, None, None, None, *_through_the_kernel(ctx, tensors, saved, grads, known=not others)
        except Unreadable:  # a gradient, or what a hook gave back for a saved tensor
            return None, None, None, None, *_through_autograd(ctx, tensors, grads)


def _count_of_changes(tensor: Tensor) -> Tensor:
    """A tensor without memory that shares with `tensor` the count of in-place changes, `_version`."""
    alias = tensor.detach()
    alias.data = _NOTHING
    return alias


_NOTHING = torch.empty(0, device="cpu")


def _check_shapes(tensors: tuple[Tensor | None, ...], shapes: list[torch.Size | None]) -> None:
    for tensor, shape in zip(tensors, shapes, strict=True):
        if tensor is not None and tensor.shape != shape:
            raise RuntimeError(
                f"a hook on saved tensors gave back shape {tuple(tensor.shape)} for one of {tuple(shape or ())}: "
                "it must give back what it was given"
            )


def _is_batched(grads: tuple[Tensor | None, ...]) -> bool:
    """Whether the gradients are batched: under vmap, or in torch.autograd.grad with is_grads_batched."""
    return transforms_active() or any([g is not None and is_batched_gradient(g) for g in grads])


def _parts(cell: PointwiseCell, names: tuple[str, ...], tensors: tuple[Tensor, ...]) -> tuple[Tensor, State, Weights]:
    n = 1 + len(cell.states)
    return tensors[0], tuple(tensors[1:n]), dict(zip(names, tensors[n:], strict=True))


def _through_the_kernel(
    ctx: Any, tensors: tuple[Tensor, ...], saved: Saved, grads: tuple[Tensor | None, ...], known: bool
) -> tuple[Tensor | None, ...]:
    """The gradient of every input, by the kernel's backward."""
    x, state, weights = _parts(ctx.cell, ctx.names, tensors)
    if ctx.count is not None and version_of(ctx.count) != ctx.version:
        saved = ctx.kernel.forward(ctx.cell, ctx.walk, x, state, weights, keep=True)[2]
    x_wanted, *state_wanted = ctx.needs_input_grad[4 : 5 + len(state)]
    found = ctx.kernel.backward(
        ctx.cell, ctx.walk, x, state, weights, saved, grads[0], grads[1:], x_wanted, any(state_wanted), known
    )
    d_weights: dict[str, Any] = found.weights
    if grads[0] is None and grads[1] is None and ctx.walk.length == 1 and "weight_hr" in d_weights:
        d_weights["weight_hr"] = None  # as with torch.nn: c of a single step depends on no projection
    return found.x, *found.state, *map(d_weights.__getitem__, ctx.names)


def _through_autograd(
    ctx: Any, tensors: tuple[Tensor, ...], grads: tuple[Tensor | None, ...]
) -> tuple[Tensor | None, ...]:
    """The gradient of every input, by autograd over the plain loop: for all kinds of tensors, and second derivatives.

    The loop runs on aliases of the inputs: one input may have been computed from another (tied weights), and only the
    direct dependence belongs to this node.
    """
    twice = torch.is_grad_enabled()
    with torch.enable_grad():
        aliases = tuple(t.view_as(t) for t in tensors)
        outputs, final = plain_layer(ctx.cell, ctx.walk, *_parts(ctx.cell, ctx.names, aliases))
    wanted = [a for a in aliases if a.requires_grad]
    given = [(y, d) for y, d in zip((outputs, *final), grads, strict=True) if d is not None]
    ends, d_ends = zip(*given, strict=True)
    found = iter(torch.autograd.grad(ends, wanted, d_ends, create_graph=twice, allow_unused=True))
    return tuple(next(found) if a.requires_grad else None for a in aliases)
