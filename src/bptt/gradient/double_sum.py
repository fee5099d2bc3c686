"""The gradient as the lecture writes it down: one term for each pair (t, k), every factor a matrix (docs/equations.md).

    ∂L/∂W_hh = Σ_t Σ_{k≤t} ∂L(t)/∂s(t) · [Π_{i=k+1..t} ∂s(i)/∂s(i-1)] · ∂⁺s(k)/∂W_hh        eqs. (10) and (11)

Costs T² vector–Jacobian products of size S², for one layer in one direction: for small networks, for learning, and as a
witness that shares nothing with the fast paths but the cell's diagonals. The fast path (`bptt.kernels.reference`) takes
the same double sum in the order that costs T.
"""

import torch
from torch import Tensor

from bptt.cells import PointwiseCell, State, Weights


def double_sum(cell: PointwiseCell, weights: Weights, x: Tensor, state: State, d_outputs: Tensor) -> dict[str, Tensor]:
    """Gradients of Σ_t ⟨d_outputs[t], h(t)⟩ with respect to every parameter of the cell.

    Args:
        cell, weights: the cell and its parameters by short name (`layer.layer_weights(0, 0)`).
        x: inputs [T, B, D].
        state: initial state, each component [B, H] (or [B, P] for a projected h).
        d_outputs: ∂L(t)/∂h(t) for every step, [T, B, H or P]: the first two factors of eq. (10).
    """
    # The derivatives are in closed form: no graph is wanted, except within the immediate derivative.
    steps, before = [], state
    with torch.no_grad():
        for x_t in x:
            steps.append((x_t, before))
            before = cell.step(x_t, before, weights)
        jacobians = [cell.jacobian(cell.net_input(x_t, weights["weight_ih"], weights.get("bias_ih")), s, weights)
                     for x_t, s in steps]  # fmt: skip
    width = jacobians[0].shape[-1]
    total = {name: torch.zeros_like(w) for name, w in weights.items()}
    for t in range(len(steps)):
        row = d_outputs.new_zeros(x.shape[1], width)  # ∂L(t)/∂s(k), first at k = t
        row[:, : d_outputs.shape[-1]] = d_outputs[t]
        for k in range(t, -1, -1):
            for name, term in immediate(cell, weights, *steps[k], row).items():
                total[name] += term
            row = torch.einsum("bi,bij->bj", row, jacobians[k])  # one more factor of eq. (11)
    return total


def immediate(cell: PointwiseCell, weights: Weights, x: Tensor, before: State, row: Tensor) -> dict[str, Tensor]:
    """row · ∂⁺s(k)/∂θ for every parameter θ: one step alone, with the state before it held fixed."""
    leaves = {name: w.detach().requires_grad_() for name, w in weights.items()}
    with torch.enable_grad():
        after = torch.cat(cell.step(x.detach(), tuple(s.detach() for s in before), leaves), dim=-1)
    terms = torch.autograd.grad(after, list(leaves.values()), row, allow_unused=True, materialize_grads=True)
    return dict(zip(leaves, terms, strict=True))
