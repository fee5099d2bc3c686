"""How far a gradient can reach: singular values of ∂s(t)/∂s(k) along the trajectory.

Equations: docs/equations.md, eqs. (11), (12), (33).
"""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from bptt.flow.jacobians.arguments import listed, whole
from bptt.flow.jacobians.forward import run
from bptt.flow.jacobians.inputs import Inputs, RecurrentLayer, read
from bptt.flow.jacobians.log_svd import ALONE_BELOW, GradedProduct, few_threads, log_singular_values
from bptt.flow.jacobians.trajectory import Trajectory
from bptt.forms import Hidden, Input
from bptt.parameters import directions_of

DEFAULT_LAGS = 128
LN10 = math.log(10)
JACOBIAN_BYTES = 8 << 20  # of steps' Jacobians, made at a time
TOGETHER_BYTES = 1 << 20  # of products whose singular values are found together, so that they stay in the cache


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
    layer: RecurrentLayer,
    x: Input,
    *,
    t: int | None = None,
    lags: Sequence[int] | None = None,
    sample: int = 0,
    depth: int = 0,
    direction: int = 0,
    hx: Hidden | None = None,
    reset: Input | None = None,
) -> Products:
    """Singular values of the Jacobian products ∂s(t)/∂s(k) = Π_{i=k+1..t} ∂s(i)/∂s(i-1) along the layer's trajectory.

    All N of them, in log space, so that nothing underflows or overflows at any length: each log within a rounding error
    for every factor (method and sources: `bptt.flow.jacobians.log_svd`). Measured on the data, never from W_hh alone: what
    saturated units swallow is seen, and so is a transient growth that W_hh's eigenvalues do not show.

    Costs one QR of N × N for each step of the largest lag, and a Jacobi SVD for each lag asked for: some 10 ms at N = 64,
    but a second at N = 256, where a few `lags` will do. Each step's Jacobian
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
    with few_threads(trajectory.size < ALONE_BELOW):
        logs, rows, direct = _accumulate(trajectory, anchor, wanted)
        together = max(1, TOGETHER_BYTES // (8 * trajectory.size**2))
        log10 = torch.cat(
            [
                log_singular_values(torch.stack(logs[i : i + together]), torch.stack(rows[i : i + together])) / LN10
                for i in range(0, len(logs), together)
            ]
        )
    return Products(
        t=trajectory.steps - 1 - anchor if trajectory.reverse else anchor,
        lags=torch.tensor(wanted, device="cpu"),
        log10=log10,
        direct=torch.stack(direct),
    )


def _accumulate(
    trajectory: Trajectory, anchor: int, lags: list[int]
) -> tuple[list[Tensor], list[Tensor], list[Tensor]]:
    """At each of the lags: d and T of the graded product, and the largest singular value of the plain one."""
    graded, plain = GradedProduct(trajectory.size), torch.eye(trajectory.size, dtype=trajectory.x.dtype, device="cpu")
    logs, rows, direct, places = [], [], [], set(lags)
    factors = backwards(trajectory, anchor, lags[-1])
    for lag in range(lags[-1] + 1):
        if lag > 0:
            # The transpose, so that each further factor stands on the left: (A_t A_{t-1})ᵀ = A_{t-1}ᵀ A_tᵀ.
            factor = next(factors).T
            graded.multiply(factor)
            plain = factor.to(plain.dtype) @ plain
        if lag in places:
            logs.append(graded.log)
            rows.append(graded.t)
            direct.append(_largest(plain))
    return logs, rows, direct


def forwards(trajectory: Trajectory) -> Iterator[Tensor]:
    """A_0, A_1, …, A_{T-1}, made in batches."""
    batch = _batch(trajectory)
    for start in range(0, trajectory.steps, batch):
        yield from trajectory.jacobians(slice(start, min(start + batch, trajectory.steps)))


def backwards(trajectory: Trajectory, last: int, count: int) -> Iterator[Tensor]:
    """A_last, A_{last-1}, … (`count` of them), made in batches."""
    batch = _batch(trajectory)
    for stop in range(last + 1, last + 1 - count, -batch):
        yield from trajectory.jacobians(slice(max(stop - batch, last + 1 - count), stop)).flip(0)


def _batch(trajectory: Trajectory) -> int:
    return max(1, JACOBIAN_BYTES // (8 * trajectory.size**2))


def _largest(product: Tensor) -> Tensor:
    if not product.isfinite().all():
        return torch.tensor(torch.inf, dtype=product.dtype, device="cpu")
    return torch.linalg.matrix_norm(product, 2)


def one_trajectory(layer: RecurrentLayer, inputs: Inputs, sample: int, depth: int, direction: int) -> Trajectory:
    """The trajectory of one sample in one layer and direction, without its padding."""
    limits = {
        "sample": (sample, inputs.x.shape[1]),
        "depth": (depth, layer.num_layers),
        "direction": (direction, directions_of(layer)),
    }
    places = []
    for name, (value, count) in limits.items():
        number = whole(value)
        if number is None or not 0 <= number < count:
            raise ValueError(f"{name} is {value!r}, wanted a whole number from 0 to {count - 1}")
        places.append(number)
    place, depth, direction = places
    alone = inputs.of(torch.tensor([place], device="cpu"))
    if alone.lengths is not None:
        length = int(alone.lengths)
        reset = None if alone.reset is None else alone.reset[:length]
        alone = Inputs(alone.x[:length], alone.state, None, reset, alone.samples)
    trajectories, _ = run(layer, alone)
    return trajectories[depth][direction]


def _walked(t: int, trajectory: Trajectory) -> int:
    step = whole(t)
    if step is None or not 0 <= step < trajectory.steps:
        raise ValueError(f"t is {t!r}, wanted a step of the sample, from 0 to {trajectory.steps - 1}")
    return trajectory.steps - 1 - step if trajectory.reverse else step


def _lags(lags: Sequence[int] | None, largest: int) -> list[int]:
    if lags is None:
        if largest < DEFAULT_LAGS:
            return list(range(largest + 1))
        spread = torch.logspace(0, math.log10(largest), DEFAULT_LAGS, dtype=torch.float64).round().long()
        return sorted({0, *spread.tolist(), largest})
    wanted = set()
    for lag in listed("lags", lags):
        number = whole(lag)
        if number is None or not 0 <= number <= largest:
            raise ValueError(
                f"lags has {lag!r}, wanted whole numbers of steps from 0 to {largest}: t reaches no further"
            )
        wanted.add(number)
    if not wanted:
        raise ValueError("lags is empty, wanted at least one distance, or None")
    return sorted(wanted)


__all__ = ["Products", "products"]
