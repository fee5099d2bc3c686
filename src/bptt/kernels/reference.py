"""The specification: plain loops over time, and the gradient as the lecture derives it.

Forward, for each step in the direction of walking, with zx of all steps from one product before the loop:

    before_t = state, or 0 where a reset cuts         [sizes[t], ·]
    state    = pointwise(zx_t, W_hh before_t.h + b_hh, before_t)

Backward. Given `before` of every row, the diagonals D of every step follow at once, without a loop; what remains in the
loop is linear in δ, the gradient with respect to the state after a step (docs/equations.md, eqs. (20) and (21)):

    d_zh_t     = Σ_s δ_t[s] ∘ D.zh_t[s]                                   [G, H]
    δ_{t-1}[r] = Σ_s δ_t[s] ∘ D.direct_t[s][r] + [r is h] W_hhᵀ d_zh_t + gradient of the outputs at t-1
    ∂L/∂W_hh   = Σ_t d_zh_t before_t.hᵀ                                   one product over all rows, after the loop

This is eq. (10) with its double sum taken in the order that costs T instead of T²: δ already holds the sum over
all later loss steps.
"""

import torch
from torch import Tensor

from bptt.cells import Cell, Partials, PointwiseCell, State, Weights
from bptt.kernels.base import Sequences, Stack
from bptt.kernels.layer_kernel import Gradients, LayerKernel, as_given, as_rows, plain_layer
from bptt.kernels.tape import Saved
from bptt.kernels.walk import Walk, loop, merge
from bptt.torch_private import forward_mode_active, is_traced, transforms_active


class Reference(LayerKernel):
    """The reference kernel: it runs every cell everywhere, slowly, and all others are compared with it."""

    name = "reference"

    def refusal(self, stack: Stack, sequences: Sequences, state: State = ()) -> str | None:
        """Return None: nothing is refused."""
        return None

    def layer(self, cell: Cell, walk: Walk, x: Tensor, state: State, weights: Weights) -> tuple[Tensor, State]:
        """Run a pointwise cell with the gradient below; any other cell, and other kinds of derivatives, by autograd."""
        if not isinstance(cell, PointwiseCell) or _needs_autograd():
            return plain_layer(cell, walk, x, state, weights)
        return super().layer(cell, walk, x, state, weights)

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
        """Run the plain loop; kept are zx and the state before each row."""
        zx = cell.net_input(as_rows(x), weights["weight_ih"], weights.get("bias_ih"))  # N,G,H
        visited: list[State] = [()] * walk.length

        def advance(t: int, rows: slice, before: State) -> State:
            visited[t] = before
            return cell.advance(zx[rows], before, weights)

        outputs, final = loop(walk, tuple(map(as_rows, state)), advance)
        before = (torch.cat(component) for component in zip(*visited, strict=True))  # N,· each
        last = tuple(as_given(rows, form).clone() for rows, form in zip(final, state, strict=True))
        return as_given(outputs, x).clone(), last, (zx, *before)

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
        """Run the recursion of this module's header, then one product for each weight."""
        zx, *before = (s for s in saved if s is not None)
        d_h = torch.zeros_like(before[0]) if d_outputs is None else as_rows(d_outputs)
        d_last = tuple(as_rows(torch.zeros_like(s) if d is None else d) for d, s in zip(d_final, state, strict=True))
        d_zx, d_state, d_weights = walk_back(cell, walk, zx, weights, tuple(before), d_h, d_last)
        d_rows = d_zx.flatten(1)
        d_weights["weight_ih"] = d_rows.T @ as_rows(x)
        if "bias_ih" in weights:
            d_weights["bias_ih"] = d_rows.sum(0)
        d_x = as_given(d_rows @ weights["weight_ih"], x) if x_wanted else None
        return Gradients(d_x, tuple(map(as_given, d_state, state)), d_weights)


def _needs_autograd() -> bool:
    """Whether the call is in torch.func, forward mode, torch.compile or torch.jit.trace, which need torch's operators."""
    return transforms_active() or forward_mode_active() or torch.compiler.is_compiling() or is_traced()


def walk_back(
    cell: PointwiseCell,
    walk: Walk,
    zx: Tensor,
    weights: Weights,
    before: State,
    d_outputs: Tensor,
    d_final: State,
) -> tuple[Tensor, State, dict[str, Tensor]]:
    """Return the gradients of zx [N, G, H], of the initial state, [B, ·] each, and of the weights inside the loop.

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
        d_state = merge(walk.reset_state(d_before, rows), d_state, n)
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
