"""How far a gradient can reach: singular values of ∂s(t)/∂s(k) along the trajectory (lecture lines 11 and 12)."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from bptt.flow.graded import GradedProduct, log_singular_values
from bptt.flow.trajectory import Hidden, Inputs, Rows, Trajectory, read, trace

DEFAULT_LAGS = 128
LN10 = math.log(10)


@dataclass(frozen=True, eq=False)
class Products:
    """Singular values of ∂s(t)/∂s(k) for one t, one sample, and lags t − k.

    s is the whole state: for an LSTM (h, c), so N = 2H (P + H with a projection); otherwise N = H.

    Attributes:
        t: the step that is differentiated, an index in time.
        lags: L of them, ascending, in steps; in a reverse direction k = t + lag, else t − lag.
        log10: decimal logarithms of all N singular values, descending, [L, N], float64; -inf where one is exactly 0.
        direct: largest singular value of the product as plain multiplication gives it in the layer's own number format,
            [L]: 0 where that underflows, inf where it overflows. For comparison.
    """

    t: int
    lags: Tensor
    log10: Tensor
    direct: Tensor

    @property
    def rate(self) -> Tensor:
        """log10 of each singular value per step of lag, [L, N]: negative vanishes, positive explodes; 0 at lag 0."""
        return self.log10 / self.lags.clamp(min=1).unsqueeze(-1)


def products(
    layer: nn.Module,
    x: Rows,
    *,
    t: int | None = None,
    lags: Sequence[int] | None = None,
    sample: int = 0,
    depth: int = 0,
    direction: int = 0,
    hx: Hidden | None = None,
    reset: Rows | None = None,
) -> Products:
    """Singular values of the Jacobian products ∂s(t)/∂s(k) = Π_{i=k+1..t} ∂s(i)/∂s(i-1) along the layer's trajectory.

    All N of them, in log space, so that nothing underflows or overflows at any length: each log within a rounding error
    for every factor (method and sources: `bptt.flow.graded`). Measured on the data, never from W_hh alone: what saturated
    units swallow is seen, and so is a transient growth that W_hh's eigenvalues do not show.

    Costs one QR of N × N for each step of the largest lag, and a Jacobi SVD for each lag asked for. Each step's Jacobian
    is of the float64 equations, taken at the states that the layer reaches in its own number format.

    Args:
        layer: torch.nn.RNN/GRU/LSTM, bptt.RNN/GRU/LSTM or bptt.Recurrent with any cell.
        x: its input, in any form that the layer takes.
        t: the later step, an index in time; None: the last step of the walk (in a reverse direction step 0).
        lags: which distances; None: all up to 128, beyond that 128 of them, ever wider apart.
        sample: place in the batch.
        depth, direction: which layer of a stack (0 the lowest), and 1 for its reverse direction.
        hx, reset: as the layer takes them.

    Raises:
        TypeError, ValueError: as `bptt.gradient_map`, and for a t, lag, sample, depth or direction that is not there.

    >>> lags = products(torch.nn.GRU(3, 5), torch.randn(50, 1, 3))
    >>> lags.log10.shape
    torch.Size([50, 5])
    """
    trajectory = one_trajectory(layer, read(layer, x, hx, reset), sample, depth, direction)
    steps = trajectory.steps
    anchor = steps - 1 if t is None else _walked(t, trajectory)
    wanted = _lags(lags, anchor)
    graded, plain = GradedProduct(1, _size(trajectory)), _Plain(_size(trajectory), _dtype(layer))
    logs, rows, direct = [], [], []
    places = set(wanted)
    for lag in range(wanted[-1] + 1):
        if lag > 0:
            # The transpose, so that each further factor stands on the left: (A_t A_{t-1})ᵀ = A_{t-1}ᵀ A_tᵀ.
            factor = trajectory.jacobian(anchor - lag + 1).mT.cpu()
            graded.multiply(factor)
            plain.multiply(factor[0])
        if lag in places:
            logs.append(graded.log)
            rows.append(graded.t)
            direct.append(_largest(plain.value))
    return Products(
        t=trajectory.steps - 1 - anchor if trajectory.reverse else anchor,
        lags=torch.tensor(wanted),
        log10=log_singular_values(torch.cat(logs), torch.cat(rows)) / LN10,
        direct=torch.stack(direct),
    )


class _Plain:
    """The product as one would write it first: its range is that of its numbers."""

    def __init__(self, size: int, dtype: torch.dtype) -> None:
        self.value = torch.eye(size, dtype=dtype)

    def multiply(self, factor: Tensor) -> None:
        self.value = factor.to(self.value.dtype) @ self.value


def _largest(product: Tensor) -> Tensor:
    if not product.isfinite().all():
        return torch.tensor(torch.inf, dtype=product.dtype)
    return torch.linalg.matrix_norm(product, 2)


def one_trajectory(layer: nn.Module, inputs: Inputs, sample: int, depth: int, direction: int) -> Trajectory:
    """The trajectory of one sample in one layer and direction, without its padding."""
    limits = {
        "sample": (sample, inputs.x.shape[1]),
        "depth": (depth, layer.num_layers),
        "direction": (direction, 2 if layer.bidirectional else 1),
    }
    for name, (value, count) in limits.items():
        if not isinstance(value, int) or isinstance(value, bool) or not 0 <= value < count:
            raise ValueError(f"{name} is {value!r}, wanted a whole number from 0 to {count - 1}")
    alone = inputs.of(torch.tensor([sample]))
    if alone.lengths is not None:
        length = int(alone.lengths)
        alone = Inputs(alone.x[:length], alone.state, None, None if alone.reset is None else alone.reset[:length])
    trajectories, _ = trace(layer, alone)
    return trajectories[depth][direction]


def _walked(t: int, trajectory: Trajectory) -> int:
    if not isinstance(t, int) or isinstance(t, bool) or not 0 <= t < trajectory.steps:
        raise ValueError(f"t is {t!r}, wanted a step of the sample, from 0 to {trajectory.steps - 1}")
    return trajectory.steps - 1 - t if trajectory.reverse else t


def _lags(lags: Sequence[int] | None, largest: int) -> list[int]:
    if lags is None:
        if largest < DEFAULT_LAGS:
            return list(range(largest + 1))
        spread = torch.logspace(0, math.log10(largest), DEFAULT_LAGS, dtype=torch.float64).round().long()
        return sorted({0, *spread.tolist(), largest})
    wanted = list(lags)
    for lag in wanted:
        if not isinstance(lag, int) or isinstance(lag, bool) or not 0 <= lag <= largest:
            raise ValueError(f"lags has {lag!r}, wanted whole numbers of steps from 0 to {largest}, as far as t reaches back")
    if not wanted:
        raise ValueError("lags is empty, wanted at least one distance, or None")
    return sorted(set(wanted))


def _size(trajectory: Trajectory) -> int:
    return sum(s.shape[-1] for s in trajectory.before)


def _dtype(layer: nn.Module) -> torch.dtype:
    return torch.promote_types(next(layer.parameters()).dtype, torch.float32)


__all__ = ["Products", "products"]
