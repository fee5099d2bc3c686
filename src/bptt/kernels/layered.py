"""Kernels that run one layer in one direction at a time; here: the stack around them, and their place in autograd."""

from abc import abstractmethod
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from bptt.cells import GRU, Cell, PointwiseCell, State, Weights
from bptt.kernels.base import Kernel, Sequences, Stack
from bptt.kernels.tape import Saved, note
from bptt.kernels.walk import Walk, loop


class Gradients(NamedTuple):
    """What the backward of one layer finds: for x (None if nobody asked), the initial state, each weight."""

    x: Tensor | None
    state: State
    weights: dict[str, Tensor]


class LayerKernel(Kernel):
    """A kernel that states the forward and the backward of one layer in one direction, both without autograd.

    The rows of x come as [T, B, D] or [N, D], the state as [B, ·] or [1, B, ·]; results have the form of what came.
    """

    @abstractmethod
    def forward(
        self, cell: PointwiseCell, walk: Walk, x: Tensor, state: State, weights: Weights, keep: bool
    ) -> tuple[Tensor, State, Saved]:
        """Rows x and the initial state → outputs, of H or P units, the final state, what backward needs.

        The outputs are no view, or nobody could change them in place. Unless `keep`, nobody will ask for a gradient.
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
    ) -> Gradients:
        """The gradients of x, the initial state and the weights from those of the outputs and the final state.

        None stands for a gradient that is zero. It may be called more than once with the same `saved`, so it leaves it as
        it is.
        """

    def run(self, stack: Stack, sequences: Sequences, state: State) -> tuple[Tensor, State]:
        """Layer by layer, direction by direction.

        Under autocast in the number format of the weights, which is the wider one; the results then have the format that
        torch.nn's have there: autocast's, but for the GRU that of the input.
        """
        x, device = sequences.x, sequences.x.device.type
        if not torch.is_autocast_enabled(device):
            return self._run(stack, sequences, state)
        inside = next(iter(stack.weights[0][0].values())).dtype
        outside = x.dtype if isinstance(stack.cell, GRU) else torch.get_autocast_dtype(device)
        with torch.autocast(device, enabled=False):
            y, final = self._run(stack, sequences._replace(x=x.to(inside)), tuple(s.to(inside) for s in state))
        if inside == torch.float64:  # which autocast leaves alone
            return y, final
        return y.to(outside), tuple(s.to(outside) for s in final)

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

    def layer(self, cell: Cell, walk: Walk, x: Tensor, state: State, weights: Weights) -> tuple[Tensor, State]:
        """One layer in one direction, for autograd.

        A pointwise cell gets the kernel's own gradient; any other cell, and any other kind of derivative, goes through
        autograd over the plain loop.
        """
        # torch.func, torch.compile and torch.jit.trace cannot see through the Function below.
        opaque = torch._C._are_functorch_transforms_active() or torch.compiler.is_compiling()
        opaque = opaque or torch._C._get_tracing_state() is not None
        if opaque or not isinstance(cell, PointwiseCell):
            return plain_layer(cell, walk, x, state, weights)
        tensors = (x, *state, *weights.values())
        if not (torch.is_grad_enabled() and any(t.requires_grad for t in tensors)):
            return self.forward(cell, walk, x, state, weights, keep=False)[:2]
        outputs, *final = _Layer.apply(self, cell, walk, tuple(weights), *tensors)
        return outputs, tuple(final)


def plain_layer(cell: Cell, walk: Walk, x: Tensor, state: State, weights: Weights) -> tuple[Tensor, State]:
    """The plain equations over time, in and out of the forms of `LayerKernel`."""
    rows, start = as_rows(x), tuple(map(as_rows, state))
    if isinstance(cell, PointwiseCell):
        zx = cell.net_input(rows, weights["weight_ih"], weights.get("bias_ih"))  # N,G,H: one product over all rows
        outputs, final = loop(walk, start, lambda t, at, before: cell.advance(zx[at], before, weights))
    else:
        outputs, final = loop(walk, start, lambda t, at, before: cell.step(rows[at], before, weights))
    return as_given(outputs, x), tuple(map(as_given, final, state))


def as_rows(tensor: Tensor) -> Tensor:
    """[..., ·] → [N, ·]."""
    return tensor.flatten(0, -2)


def as_given(rows: Tensor, form: Tensor) -> Tensor:
    """The way back: [N, ·] → [..., ·], where `form` is [..., ·] of any width."""
    return rows.view(*form.shape[:-1], rows.shape[-1])


class _Layer(torch.autograd.Function):
    """A kernel's forward and backward as one node of autograd's graph."""

    @staticmethod
    def forward(
        ctx: Any, kernel: LayerKernel, cell: PointwiseCell, walk: Walk, names: tuple[str, ...], *tensors: Tensor
    ) -> tuple[Tensor, ...]:
        x, state, weights = _parts(cell, names, tensors)
        outputs, final, saved = kernel.forward(cell, walk, x, state, weights, keep=True)
        note(kernel, x, state, outputs, saved)
        ctx.kernel, ctx.cell, ctx.walk, ctx.names = kernel, cell, walk, names
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(*tensors, *saved)
        return outputs, *final

    @staticmethod
    def backward(ctx: Any, *grads: Tensor | None) -> tuple[Tensor | None, ...]:
        if all(grad is None for grad in grads):
            return (None,) * (4 + 1 + len(ctx.cell.states) + len(ctx.names))
        n = 1 + len(ctx.cell.states) + len(ctx.names)
        every = ctx.saved_tensors  # asked for once: under torch.utils.checkpoint it answers no second time
        tensors, saved = every[:n], every[n:]
        if torch.is_grad_enabled():  # create_graph=True: the gradient must itself have a gradient
            return None, None, None, None, *_differentiable_backward(ctx, tensors, grads)
        parts = _parts(ctx.cell, ctx.names, tensors)
        found = ctx.kernel.backward(
            ctx.cell, ctx.walk, *parts, saved, grads[0], grads[1:], x_wanted=ctx.needs_input_grad[4]
        )
        return None, None, None, None, found.x, *found.state, *(found.weights[name] for name in ctx.names)


def _parts(cell: PointwiseCell, names: tuple[str, ...], tensors: tuple[Tensor, ...]) -> tuple[Tensor, State, Weights]:
    n = 1 + len(cell.states)
    return tensors[0], tuple(tensors[1:n]), dict(zip(names, tensors[n:], strict=True))


def _differentiable_backward(
    ctx: Any, tensors: tuple[Tensor, ...], grads: tuple[Tensor | None, ...]
) -> tuple[Tensor | None, ...]:
    """The gradient through autograd over the plain loop, with a graph of its own for second derivatives.

    The loop runs on aliases of the inputs: one input may have been computed from another (tied weights), and only the
    direct dependence belongs to this node.
    """
    aliases = tuple(t.view_as(t) for t in tensors)
    outputs, final = plain_layer(ctx.cell, ctx.walk, *_parts(ctx.cell, ctx.names, aliases))
    wanted = [a for a in aliases if a.requires_grad]
    given = [(y, d) for y, d in zip((outputs, *final), grads, strict=True) if d is not None]
    ends, d_ends = zip(*given, strict=True)
    found = iter(torch.autograd.grad(ends, wanted, d_ends, create_graph=True, allow_unused=True))
    return tuple(next(found) if a.requires_grad else None for a in aliases)
