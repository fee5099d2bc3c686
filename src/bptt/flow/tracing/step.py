"""The products of one step's derivative, shared by everything that sends a gradient back through a `Trace`."""

from collections.abc import Sequence

import torch
from torch import Tensor

from bptt.cells import State


def through(diagonals: tuple[Tensor, ...], delta: State) -> Tensor:
    """Σ_s δ[s] ∘ D[s]  [..., G, H]: the gradient of the net inputs."""
    total = delta[0].unsqueeze(-2) * diagonals[0]
    for d, diagonal in zip(delta[1:], diagonals[1:], strict=True):
        total = total.addcmul(d.unsqueeze(-2), diagonal)
    return total


def one_step_back(
    delta: Sequence[Tensor], diagonals: Sequence[Tensor], direct: Sequence[Sequence[Tensor | None]], w_hh: Tensor
) -> list[Tensor]:
    """A_tᵀ δ, for δ with respect to the state before a projection: the gradient of the state one step earlier."""
    result = []
    for r in range(len(delta)):
        total = through(tuple(diagonals), tuple(delta)).flatten(-2) @ w_hh if r == 0 else torch.zeros_like(delta[r])
        for s, d in enumerate(delta):
            diagonal = direct[s][r]
            if diagonal is not None:
                total = total + d * diagonal
        result.append(total)
    return result


def by_step(rows: Tensor, sizes: tuple[int, ...]) -> Tensor:
    """[n, ...] → [steps, B, ...]; steps of fewer rows are filled up with zeros."""
    widest = max(sizes)
    if widest == min(sizes):
        return rows.unflatten(0, (len(sizes), widest))
    padded = rows.new_zeros(len(sizes), widest, *rows.shape[1:])
    keep = torch.arange(widest, device="cpu")[None] < torch.tensor(sizes, device="cpu")[:, None]
    padded[keep.to(rows.device)] = rows
    return padded
