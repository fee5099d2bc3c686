"""Singular values of ∂s(t)/∂s(k) for the page: all for a small state, only the largest for a large one."""

import math
from typing import Any

import torch
from torch import Tensor

from bptt.flow.jacobians.inputs import read
from bptt.flow.jacobians.products import backwards, one_trajectory, products
from bptt.layers import cell_of
from bptt.parameters import state_widths

WHOLE_UP_TO = 64  # units of the state; `products` costs about N³ a step, and 20 N³ a lag
LAGS, FURTHEST = 32, 256  # the number of lags, and the largest
SHOWN = 7  # the number of singular values shown, evenly spread from the largest to the smallest


def chosen_lags(steps: int) -> list[int]:
    """Return at most 32 lags up to T − 1, ever wider apart."""
    furthest = min(steps - 1, FURTHEST)
    if furthest < LAGS:
        return list(range(furthest + 1))
    spread = torch.logspace(0, math.log10(furthest), LAGS - 1, dtype=torch.float64).round().long()
    return sorted({0, *spread.tolist()})


def singular_values(layer: Any, x: Tensor, **place: Any) -> tuple[list[int], list[int], Tensor, int]:
    """Return (lags, ranks, log10 of the singular values of those ranks [lags, ranks], N) for the last step of the walk.

    `place`: as `bptt.products` takes it. Raises ValueError as that does.
    """
    lags = chosen_lags(x.shape[0])
    size = sum(state_widths(layer, cell_of(layer)))
    if size > WHOLE_UP_TO:
        return lags, [1], largest_singular_value(layer, x, lags, **place).unsqueeze(1), size
    whole = products(layer, x, lags=lags, **place).log10
    ranks = sorted({round(i * (size - 1) / (SHOWN - 1)) for i in range(SHOWN)})
    return lags, [rank + 1 for rank in ranks], whole[:, ranks], size


def largest_singular_value(
    layer: Any, x: Tensor, lags: list[int], *, depth: int, direction: int, hx: Any, reset: Tensor | None
) -> Tensor:
    """Return log10 σ₁ of ∂s(t)/∂s(t − lag), [lags], t the last step of the walk: a float64 product, scaled at each step."""
    trajectory = one_trajectory(layer, read(layer, x, hx, reset), 0, depth, direction)
    product, log = torch.eye(trajectory.size, dtype=torch.float64), 0.0
    found = [0.0] if lags[0] == 0 else []
    for lag, factor in enumerate(backwards(trajectory, trajectory.steps - 1, lags[-1]), start=1):
        product = product @ factor
        scale = float(product.abs().max())
        if scale == 0:
            return torch.tensor(found + [-math.inf] * (len(lags) - len(found)), dtype=torch.float64)
        product, log = product / scale, log + math.log10(scale)
        if lag in lags:
            found.append(log + math.log10(float(torch.linalg.matrix_norm(product, 2))))
    return torch.tensor(found, dtype=torch.float64)


__all__ = ["chosen_lags", "largest_singular_value", "singular_values"]
