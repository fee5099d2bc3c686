"""The specification: plain loops over time, and the gradient as the lecture derives it.

Rows. A padded batch [T, B, ·] and a packed one are the same thing here: N rows, step after step, of which step t has
sizes[t]. So padding costs nothing and needs no mask: a sequence that has ended has no row.

Forward, for each step in the direction of walking, with zx of all steps from one product before the loop:

    before_t = state, or 0 where a reset cuts         [sizes[t], ·]
    state    = pointwise(zx_t, W_hh before_t.h + b_hh, before_t)

Backward. Given `before` of every row, the diagonals D of every step follow at once, without a loop; what remains in the
loop is linear in δ, the gradient with respect to the state after a step:

    d_zh_t     = Σ_s δ_t[s] ∘ D.zh_t[s]                                   [G, H]
    δ_{t-1}[r] = Σ_s δ_t[s] ∘ D.direct_t[s][r] + [r is h] W_hhᵀ d_zh_t + gradient of the outputs at t-1
    ∂L/∂W_hh   = Σ_t d_zh_t before_t.hᵀ                                   one product over all rows, after the loop

This is lecture line 10 with its double sum taken in the order that costs T instead of T²: δ already holds the sum over
all later loss steps.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import accumulate
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from bptt.cells import Cell, Partials, PointwiseCell, State, Weights
from bptt.kernels.base import Kernel, Sequences, Stack


class Reference(Kernel):
    """Runs every cell, everywhere, slowly. The others are measured against it."""

    name = "reference"

    def refusal(self, stack: Stack, sequences: Sequences) -> str | None:
        """None: nothing is refused."""
        return None

    def run(self, stack: Stack, sequences: Sequences, state: State) -> tuple[Tensor, State]:
        """Layer by layer, direction by direction; under autocast too in the number format of the weights."""
        with torch.autocast(sequences.x.device.type, enabled=False):
            return self._run(stack, sequences, state)

    def _run(self, stack: Stack, sequences: Sequences, state: State) -> tuple[Tensor, State]:
        rows = sequences.x if sequences.batch_sizes is not None else sequences.x.flatten(0, 1)
        walks = [Walk.over(sequences, reverse) for reverse in (False, True)]
        finals: list[State] = []
        for depth, directions in enumerate(stack.weights):
            outputs = []
            for direction, weights in enumerate(directions):
                start = tuple(component[len(finals)] for component in state)
                y, final = unroll(stack.cell, weights, rows, start, walks[direction])
                outputs.append(y)
                finals.append(final)
            rows = torch.cat(outputs, dim=-1)
            if depth < len(stack.weights) - 1:
                rows = F.dropout(rows, stack.dropout, training=stack.dropout > 0)
        y = rows if sequences.batch_sizes is not None else rows.unflatten(0, sequences.x.shape[:2])
        return y, tuple(torch.stack(component) for component in zip(*finals, strict=True))


@dataclass(frozen=True)
class Walk:
    """The order in which one direction visits the rows.

    Attributes:
        spans: the rows of each step, in order of time.
        reverse: from the last step to the first.
        cut: bool [N]: rows whose state is zeroed before they are computed; None where none is.
    """

    spans: tuple[slice, ...]
    reverse: bool = False
    cut: Tensor | None = None

    @staticmethod
    def over(sequences: Sequences, reverse: bool) -> "Walk":
        """The walk over `sequences`. Backwards in time, what starts at t+1 must not reach t: the cut moves by a step."""
        if sequences.batch_sizes is not None:
            sizes = sequences.batch_sizes.tolist()
        else:
            sizes = [sequences.x.shape[1]] * sequences.x.shape[0]
        ends = list(accumulate(sizes, initial=0))
        spans = tuple(map(slice, ends[:-1], ends[1:]))
        cut = sequences.reset
        if cut is not None:
            cut = cut if sequences.batch_sizes is not None else cut.flatten()
            if reverse:
                later = [F.pad(cut[ends[t] : ends[t] + n], (0, m - n)) for t, m, n in _neighbours(sizes)]
                cut = torch.cat([*later, torch.zeros_like(cut[spans[-1]])])
        return Walk(spans, reverse, cut)

    def steps(self) -> Iterator[tuple[int, slice, int]]:
        """(t, rows of t, how many), in the order of the walk."""
        order = range(len(self.spans))
        for t in reversed(order) if self.reverse else order:
            rows = self.spans[t]
            yield t, rows, rows.stop - rows.start

    def backwards(self) -> "Walk":
        """The same walk from its end to its beginning: the way of the gradient."""
        return Walk(self.spans, not self.reverse, self.cut)

    def zero_cut(self, state: State, rows: slice) -> State:
        """`state` with zeros in the rows that are cut. `where`, not a product: 0 · inf would let a NaN across."""
        if self.cut is None:
            return state
        cut = self.cut[rows].unsqueeze(-1)
        return tuple(torch.where(cut, torch.zeros_like(s), s) for s in state)


def _neighbours(sizes: list[int]) -> Iterator[tuple[int, int, int]]:
    """(t + 1, sizes[t], sizes[t+1]) for each step but the last."""
    for t in range(len(sizes) - 1):
        yield t + 1, sizes[t], sizes[t + 1]


def unroll(cell: Cell, weights: Weights, x: Tensor, state: State, walk: Walk) -> tuple[Tensor, State]:
    """One layer in one direction: x [N, D] and the initial state [B, ·] → outputs [N, H or P] and the final state.

    A pointwise cell gets its hand-derived gradient; any other cell, and any other kind of derivative, goes through
    autograd over the plain loop.
    """
    if not isinstance(cell, PointwiseCell):
        return loop(walk, state, lambda t, before: cell.step(x[walk.spans[t]], before, weights))
    zx = cell.net_input(x, weights["weight_ih"], weights.get("bias_ih"))  # N,G,H
    names = tuple(name for name in weights if name not in ("weight_ih", "bias_ih"))
    if torch._C._are_functorch_transforms_active():  # torch.func cannot see through the Function below
        return pointwise_loop(cell, walk, zx, weights, state)
    outputs, *final = _Unroll.apply(cell, walk, names, zx, *state, *(weights[name] for name in names))
    return outputs, tuple(final)


def loop(walk: Walk, state: State, advance: Callable[[int, State], State]) -> tuple[Tensor, State]:
    """The loop over time itself: `advance(t, state before) -> state after`, for the rows of step t."""
    outputs: list[Tensor] = [state[0]] * len(walk.spans)
    for t, rows, n in walk.steps():
        before = walk.zero_cut(tuple(s[:n] for s in state), rows)
        after = advance(t, before)
        outputs[t] = after[0]
        state = _merge(after, state, n)
    return torch.cat(outputs), state


def _merge(active: State, state: State, n: int) -> State:
    """`state` with its first n rows replaced; the rest belongs to sequences that have no row at this step."""
    return tuple(a if n == len(s) else torch.cat([a, s[n:]]) for a, s in zip(active, state, strict=True))


def pointwise_loop(cell: PointwiseCell, walk: Walk, zx: Tensor, weights: Weights, state: State) -> tuple[Tensor, State]:
    """The plain equations over time, from net inputs zx [N, G, H]."""
    return loop(walk, state, lambda t, before: cell.advance(zx[walk.spans[t]], before, weights))


class _Unroll(torch.autograd.Function):
    """The loop of a pointwise cell with the gradient of this module's header."""

    @staticmethod
    def forward(
        ctx: Any, cell: PointwiseCell, walk: Walk, names: tuple[str, ...], zx: Tensor, *tensors: Tensor
    ) -> tuple[Tensor, ...]:
        n_states = len(cell.states)
        state, weights = tensors[:n_states], dict(zip(names, tensors[n_states:], strict=True))
        visited: list[State] = [()] * len(walk.spans)

        def advance(t: int, before: State) -> State:
            visited[t] = before
            return cell.advance(zx[walk.spans[t]], before, weights)

        outputs, final = loop(walk, state, advance)
        before = tuple(torch.cat(component) for component in zip(*visited, strict=True))  # N,· each
        ctx.cell, ctx.walk, ctx.names = cell, walk, names
        ctx.save_for_backward(zx, *tensors, *before)
        return outputs, *final

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        n_states = len(ctx.cell.states)
        zx, *tensors = ctx.saved_tensors
        before = tuple(tensors[-n_states:])
        inputs = (zx, *tensors[:-n_states])
        if torch.is_grad_enabled():  # create_graph=True: the gradient must itself have a gradient
            return None, None, None, *_differentiable_backward(ctx, inputs, grads)
        weights = dict(zip(ctx.names, inputs[1 + n_states :], strict=True))
        d_zx, d_state, d_weights = unroll_backward(ctx.cell, ctx.walk, zx, weights, before, grads[0], grads[1:])
        return None, None, None, d_zx, *d_state, *(d_weights[name] for name in ctx.names)


def _differentiable_backward(
    ctx: Any, inputs: tuple[Tensor, ...], grads: tuple[Tensor, ...]
) -> tuple[Tensor | None, ...]:
    """The gradient through autograd over the plain loop, with a graph of its own for second derivatives.

    The loop runs on aliases of the inputs: one input may have been computed from another (tied weights), and only the
    direct dependence belongs to this node.
    """
    aliases = tuple(t.view_as(t) for t in inputs)
    n_states = len(ctx.cell.states)
    weights = dict(zip(ctx.names, aliases[1 + n_states :], strict=True))
    outputs, final = pointwise_loop(ctx.cell, ctx.walk, aliases[0], weights, aliases[1 : 1 + n_states])
    wanted = [a for a in aliases if a.requires_grad]
    found = iter(torch.autograd.grad((outputs, *final), wanted, grads, create_graph=True, allow_unused=True))
    return tuple(next(found) if a.requires_grad else None for a in aliases)


def unroll_backward(
    cell: PointwiseCell,
    walk: Walk,
    zx: Tensor,
    weights: Weights,
    before: State,
    d_outputs: Tensor,
    d_final: State,
) -> tuple[Tensor, State, dict[str, Tensor]]:
    """Gradients with respect to zx [N, G, H], the initial state [B, ·] each, and the weights inside the loop.

    Args:
        before: the state before each row, [N, ·] each.
        d_outputs: gradient of the outputs, [N, H or P].
        d_final: gradient of the final state, [B, ·] each.
    """
    w_hh, w_hr = weights["weight_hh"], weights.get("weight_hr")
    zh = cell.net_input(before[0], w_hh, weights.get("bias_hh"))
    vectors = tuple(weights[name] for name in cell.vectors)
    partials = cell.partials(zx, zh, before, *vectors)
    d_zh = torch.empty_like(zh)
    deltas = tuple(torch.empty_like(s) for s in before)  # δ of each row, before the projection
    d_raw = torch.empty_like(zh[:, 0])
    d_state = d_final
    for _, rows, n in walk.backwards().steps():
        delta = (d_outputs[rows] + d_state[0][:n], *(d[:n] for d in d_state[1:]))
        _store(deltas, rows, delta)
        if w_hr is not None:
            delta = (delta[0] @ w_hr, *delta[1:])
        d_raw[rows] = delta[0]
        d_zh[rows] = _through(partials.zh, rows, delta)
        d_before = _direct(partials, rows, delta, before)
        d_before = (d_before[0] + d_zh[rows].flatten(1) @ w_hh, *d_before[1:])
        d_state = _merge(walk.zero_cut(d_before, rows), d_state, n)
    raw_deltas = (d_raw, *deltas[1:])
    d_weights = {"weight_hh": d_zh.flatten(1).T @ before[0]}
    if "bias_hh" in weights:
        d_weights["bias_hh"] = d_zh.flatten(1).sum(0)
    if w_hr is not None:
        d_weights["weight_hr"] = deltas[0].T @ cell.pointwise(zx, zh, before, *vectors)[0]
    for v, name in enumerate(cell.vectors):
        d_weights[name] = sum(
            (d * p[v] for d, p in zip(raw_deltas, partials.vectors, strict=True)), zh.new_zeros(())
        ).sum(0)
    return _through(partials.zx, slice(None), raw_deltas), d_state, d_weights


def _store(deltas: State, rows: slice, delta: State) -> None:
    for all_rows, part in zip(deltas, delta, strict=True):
        all_rows[rows] = part


def _through(diagonals: tuple[Tensor, ...], rows: slice, delta: State) -> Tensor:
    """Σ_s δ[s] ∘ D[s]  [rows, G, H]."""
    terms = [d.unsqueeze(-2) * diagonal[rows] for d, diagonal in zip(delta, diagonals, strict=True)]
    return sum(terms[1:], terms[0])


def _direct(partials: Partials, rows: slice, delta: State, before: State) -> State:
    """Σ_s δ[s] ∘ D.direct[s][r] for each component r of the state before."""
    result = []
    for r, component in enumerate(before):
        total = torch.zeros_like(component[rows])
        for s, d in enumerate(delta):
            diagonal = partials.direct[s][r]
            if diagonal is not None:
                total = total + d * diagonal[rows]
        result.append(total)
    return tuple(result)
