"""Lyapunov exponents: how fast, per step and in the long run, a small change of the state grows or fades.

Equations: docs/equations.md, eqs. (35) and (36).
"""

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from bptt.flow.jacobians.arguments import whole
from bptt.flow.jacobians.inputs import RecurrentLayer, read
from bptt.flow.jacobians.log_svd import ALONE_BELOW, few_threads
from bptt.flow.jacobians.products import forwards, one_trajectory
from bptt.flow.jacobians.trajectory import Trajectory
from bptt.forms import Hidden, Input

BLOCKS = 10


@dataclass(frozen=True, eq=False)
class Lyapunov:
    """Lyapunov exponents of a layer along one trajectory.

    Attributes:
        exponents: nats per step, descending, [n], float64. Negative: gradients vanish along that direction; positive:
            they explode. -inf where a direction is lost altogether (a dead unit). Divide by ln 10 for decades per step.
        error: standard error of each, [n], from the spread of block means; NaN with fewer than 4 steps counted.
        steps: how many steps were counted.
        discarded: how many were left out at the start.
    """

    exponents: Tensor
    error: Tensor
    steps: int
    discarded: int


def lyapunov(
    layer: RecurrentLayer,
    x: Input,
    n: int | None = None,
    *,
    discard: int | None = None,
    sample: int = 0,
    depth: int = 0,
    direction: int = 0,
    hx: Hidden | None = None,
) -> Lyapunov:
    """The n largest Lyapunov exponents λ_i = lim 1/T Σ_t ln R_t[i, i] with A_t Q_{t-1} = Q_t R_t, A_t = ∂s(t)/∂s(t-1).

    They are the rates of the Jacobian product in the long run (for its singular values at finite lags: `bptt.products`).
    The mean over the steps is weighted by a bump function, exp(−1/(u(1 − u))) over the share u of the way: where the
    ln R_t repeat themselves (a fixed point with complex eigenvalues, a cycle), it converges faster than any power of T;
    where they are random, its variance is twice that of the plain mean.

    Error. The steps are divided into 10 blocks; the standard error of their mean follows from their spread, times √2 for
    the weights. It sees chance, not bias: a transient that has not died out, or too short a sequence.

    Args:
        layer: torch.nn.RNN/GRU/LSTM, bptt.RNN/GRU/LSTM or bptt.Recurrent with any cell.
        x: its input, in any form the layer takes: the exponents are those of the driven network.
        n: how many exponents; all N if None (N = H; 2H for an LSTM).
        discard: steps to leave out at the start, until state and directions have settled; None: a tenth.
        sample: place in the batch; depth, direction: which layer of a stack, and 1 for its reverse direction.
        hx: initial state.

    Raises:
        TypeError, ValueError: as `bptt.products`, and if n or discard do not fit, or fewer than 2 steps are left.

    Sources: G. Benettin et al., Meccanica 15 (1980); J.-P. Eckmann, D. Ruelle, Rev. Mod. Phys. 57 (1985); weights:
    S. Das et al., Nonlinearity 30 (2017); for recurrent networks: R. Engelken, F. Wolf, L. F. Abbott 2023.

    >>> found = lyapunov(torch.nn.RNN(3, 5), torch.randn(200, 1, 3), n=2)
    >>> found.exponents.shape, found.steps, found.discarded
    (torch.Size([2]), 180, 20)
    """
    trajectory = one_trajectory(layer, read(layer, x, hx, None), sample, depth, direction)
    size, steps = trajectory.size, trajectory.steps
    count = size if n is None else whole(n)
    if count is None or not 1 <= count <= size:
        raise ValueError(f"n is {n!r}, wanted a whole number from 1 to {size}, the size of the state")
    left_out = steps // 10 if discard is None else whole(discard)
    if left_out is None or left_out < 0:
        raise ValueError(f"discard is {discard!r}, wanted a whole number of steps, 0 or more")
    if steps - left_out < 2:
        raise ValueError(
            f"{steps} steps with {left_out} left out leave {max(0, steps - left_out)}, wanted at least 2: "
            "pass a longer sequence, or a smaller discard="
        )
    with few_threads(size < ALONE_BELOW):
        growth = _growth(trajectory, count)[left_out:]
    exponents, error = _mean(growth), _error(growth)
    order = exponents.argsort(descending=True)
    return Lyapunov(exponents[order], error[order], len(growth), left_out)


def _growth(trajectory: Trajectory, n: int) -> Tensor:
    """ln R_t[i, i] for each step, [T, n]."""
    # A fixed random start: a coordinate axis may be an invariant direction, and would then hide the larger exponents.
    generator = torch.Generator().manual_seed(0)
    q = torch.linalg.qr(torch.randn(trajectory.size, n, generator=generator, dtype=torch.float64, device="cpu"))[0]
    growth = []
    for factor in forwards(trajectory):
        q, r = torch.linalg.qr(factor @ q)
        growth.append(r.diagonal())
    return torch.stack(growth).abs().log()


def _mean(growth: Tensor) -> Tensor:
    """Weighted Birkhoff mean over the steps, [n]."""
    u = (torch.arange(len(growth), dtype=torch.float64, device="cpu") + 1) / (len(growth) + 1)
    weight = torch.exp(4 - 1 / (u * (1 - u))).unsqueeze(-1)
    dead = growth.isneginf().any(0)
    mean = (torch.where(dead, 0.0, growth) * weight).sum(0) / weight.sum()
    return torch.where(dead, -torch.inf, mean)


def _error(growth: Tensor) -> Tensor:
    """Standard error of the mean, from the means of blocks, [n]; NaN if there are too few steps to tell."""
    blocks = min(BLOCKS, len(growth) // 2)
    if blocks < 2:
        return torch.full(growth.shape[1:], math.nan, dtype=torch.float64, device="cpu")
    dead = growth.isneginf().any(0)
    means = torch.stack([block.mean(0) for block in torch.where(dead, 0.0, growth).tensor_split(blocks)])
    return means.std(0) / math.sqrt(blocks) * math.sqrt(2)


__all__ = ["Lyapunov", "lyapunov"]
