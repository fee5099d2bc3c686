"""How far back a loss step's gradient reaches, and what is lost where it is cut off.

Reach. The gradient e that arrives from outside at one loss step t is sent back alone: δ_t = e, δ_{i-1} = A_iᵀ δ_i with the
step Jacobian A_i of lecture line 11. gain(j) = rms over the chosen (loss step, sample) pairs of ‖δ_{t-j}‖ / ‖e‖, over the
whole state (h, or h and c). A reset or the sequence's beginning ends a pair: it then counts in no further lag, so that an
end of the data is not mistaken for a gradient that vanishes.

Truncation with lookback k keeps of each loss step what has travelled at most k steps. What it loses at step i is all that
had arrived at step i+k+1, carried k+1 steps on: V_0 = δ, V_{j+1}(i) = A_{i+1}ᵀ V_j(i+1), lost = V_{k+1}. Each V_j → V_{j+1}
is one product over all rows at once. So no [T, T] object is formed; the cost is k+1 times a backward pass's loop.
Source: R. Williams, J. Peng 1990, BPTT(h).
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from bptt.cells import State
from bptt.flow.trace import Trace, through

_PAIRS, _SAMPLES, _BLOCK = 4, 8, 64  # loss steps for each sample, samples, steps whose diagonals are held at a time
_RESCALED = 4  # steps between two rescalings: float32 then holds a fall to 1e-4 at each of them


class Reach(NamedTuple):
    """gain[j] for lags j = 0, 1, …, in steps; pairs[j]: over how many (loss step, sample) pairs; to the start or not.

    at_start: the rms gain that arrives at the initial state; 0 where nothing does.
    """

    gain: list[float]
    pairs: list[int]
    at_start: float


@dataclass(frozen=True)
class Truncation:
    """What truncated backpropagation with lookback k loses, against the exact gradient.

    Attributes:
        k: how many steps back a loss step's gradient is sent.
        share: ‖truncated gradient‖ / ‖exact gradient‖ over all recurrent parameters; 1 where the exact one is 0.
        lost: ‖exact − truncated‖ / ‖exact‖; 0 where the exact one is 0.
        cosine: between the two; 1 where the exact one is 0.
        parameters: the same three for each parameter, by its name in the model.
    """

    k: int
    share: float
    lost: float
    cosine: float
    parameters: dict[str, tuple[float, float, float]]


def reach(trace: Trace) -> Reach:
    """The reach of a trace's loss steps: up to 4 for each of up to 8 samples, the last one and others evenly before it."""
    rows, exists = _sample_rows(trace)
    external = trace.external[rows].double() * exists.unsqueeze(-1)  # T,b,P in the order of walking
    last_row = exists.sum(0) - 1 if not trace.way.reverse else torch.full_like(exists[0].long(), len(exists) - 1)
    final = [d[_samples(trace)].double() for d in trace.d_final]
    columns = torch.arange(external.shape[1], device=external.device)
    external[last_row, columns] += final[0]
    weight = external.square().sum(-1)
    for d in final[1:]:
        weight[last_row, columns] += d.square().sum(-1)
    chosen = _chosen(torch.where(weight > 0, weight, 0))
    if bool((chosen < 0).all()) or not bool(torch.isfinite(weight).all()):
        return Reach([], [], 0.0)
    chosen = chosen[(chosen >= 0).any(1)]
    norm = (
        torch.where(weight > 0, weight, 1.0).sqrt().unsqueeze(-1)
    )  # each loss step's e has norm 1: no float32 underflows
    units = _Units(
        (external / norm).to(trace.x.dtype), [(d / norm[last_row, columns]).to(trace.x.dtype) for d in final]
    )
    return _send_back(trace, (rows, exists), units, last_row, chosen)


class _Units(NamedTuple):
    """The loss steps' gradients at norm 1: of h at every position [T, b, P], and of the final state's components [b, ·]."""

    external: Tensor
    final: list[Tensor]


def _samples(trace: Trace) -> Tensor:
    B = trace.way.batch
    return torch.linspace(0, B - 1, min(B, _SAMPLES), device=trace.x.device).round().long()


def _sample_rows(trace: Trace) -> tuple[Tensor, Tensor]:
    """The rows of the samples at each position of the walk [T, b], and whether the sample has a row there."""
    samples, order = _samples(trace), list(trace.way.order())
    device = trace.x.device
    starts = torch.tensor(trace.way.starts[:-1], device=device)[order].unsqueeze(1)
    sizes = torch.tensor(trace.way.sizes, device=device)[order].unsqueeze(1)
    exists = samples < sizes
    return torch.where(exists, starts + samples, starts), exists


def _chosen(weight: Tensor) -> Tensor:
    """Positions of the chosen loss steps [K, b], -1 where there is none; each sample's last one comes first."""
    T, b = weight.shape
    counts = (weight > 0).sum(0)
    place = (weight > 0).cumsum(0)  # 1, 2, … at the loss steps
    chosen = torch.full((_PAIRS, b), -1, dtype=torch.long, device=weight.device)
    for n in range(min(_PAIRS, T)):
        wanted = torch.ceil(counts * (_PAIRS - n) / _PAIRS).long()
        found = ((place == wanted) & (weight > 0)).long()
        fresh = (wanted > 0) & (found.sum(0) > 0)
        position = found.argmax(0)
        if n:
            fresh &= (position != chosen[:n]).all(0)
        chosen[n] = torch.where(fresh, position, -1)
    return chosen


def _send_back(trace: Trace, places: tuple[Tensor, Tensor], units: _Units, last_row: Tensor, chosen: Tensor) -> Reach:
    rows, exists = places
    delta = [e.new_zeros(*chosen.shape, e.shape[-1]) for e in (units.external[0], *units.final[1:])]
    log_scale = torch.zeros_like(chosen, dtype=torch.float64)
    alive = torch.zeros_like(chosen, dtype=torch.bool)
    seen: list[tuple[Tensor, Tensor, Tensor]] = []  # squares, their scale, which pairs count; from position `top` down
    top, starts, everywhere = int(chosen.max()), set(chosen.flatten().tolist()), bool(exists.all())
    for high in range(top + 1, 0, -_BLOCK):
        low = max(0, high - _BLOCK)
        block = _Block.of(trace, rows[low:high])
        for p in range(high - 1, low - 1, -1):
            if p in starts:
                delta = _started(delta, chosen == p, last_row == p, units, p)
                alive = alive | (chosen == p)
            alive = alive if everywhere else alive & exists[p]
            seen.append((_squares(delta), log_scale, alive))
            delta, alive = block.step(p - low, delta, alive)
            if p % _RESCALED == 0:
                delta, log_scale = _rescaled(delta, log_scale)
    arrived = _gains(_squares(delta), log_scale)[alive]
    at_start = float(arrived.mean().sqrt()) if arrived.numel() else 0.0
    return _by_lag(seen, chosen, at_start)


def _started(delta: list[Tensor], starting: Tensor, ends: Tensor, units: _Units, p: int) -> list[Tensor]:
    """With the pairs that start at position p: e of h, and of the other components where the sequence ends there."""
    first = torch.where(starting.unsqueeze(-1), units.external[p], delta[0])
    at_end = (starting & ends).unsqueeze(-1)
    return [first, *(torch.where(at_end, f, d) for f, d in zip(units.final[1:], delta[1:], strict=True))]


def _gains(squares: Tensor, log_scale: Tensor) -> Tensor:
    """Squared gains in float64, at most e^690."""
    return (squares.double().log() + 2 * log_scale).clamp(max=690).exp()


def _by_lag(seen: list[tuple[Tensor, Tensor, Tensor]], chosen: Tensor, at_start: float) -> Reach:
    """Root mean squares over the pairs that count at each lag."""
    top = int(chosen.max())
    squares, scales, alives = (torch.stack(parts) for parts in zip(*seen, strict=True))  # T,K,b
    gains = _gains(squares, scales)[alives]
    lags = chosen - (top - torch.arange(top + 1, device=chosen.device)).view(-1, 1, 1)
    total, counts = gains.new_zeros(top + 1), gains.new_zeros(top + 1)
    total.index_add_(0, lags[alives], gains)
    counts.index_add_(0, lags[alives], torch.ones_like(gains))
    n = int((counts > 0).sum())
    return Reach((total[:n] / counts[:n]).sqrt().tolist(), [int(c) for c in counts[:n]], at_start)


@dataclass(frozen=True)
class _Block:
    """The step Jacobians of some positions, as diagonals [positions, b, ·] beside W_hh."""

    trace: Trace
    zh: list[Tensor]
    direct: list[list[Tensor | None]]
    cut: Tensor | None

    @staticmethod
    def of(trace: Trace, rows: Tensor) -> "_Block":
        """For the positions of `rows` [positions, b]."""
        flat = rows.flatten()
        zx, zh, before = trace.inputs(flat)
        partials = trace.cell.partials(zx, zh, before, *trace.vectors())
        cut = None if trace.way.cut is None else trace.way.cut[flat].unflatten(0, rows.shape)
        direct = [[None if d is None else d.unflatten(0, rows.shape) for d in row] for row in partials.direct]
        return _Block(trace, [d.unflatten(0, rows.shape) for d in partials.zh], direct, cut)

    def step(self, i: int, delta: list[Tensor], alive: Tensor) -> tuple[list[Tensor], Tensor]:
        """δ and which pairs go on, one position earlier."""
        weights = self.trace.weights
        raw = [delta[0] @ weights["weight_hr"], *delta[1:]] if "weight_hr" in weights else delta
        direct = [[None if d is None else d[i] for d in row] for row in self.direct]
        delta = _one_step(raw, [d[i] for d in self.zh], direct, weights["weight_hh"])
        if self.cut is None:
            return delta, alive
        return [d.masked_fill(self.cut[i][:, None], 0) for d in delta], alive & ~self.cut[i]


def _squares(delta: Sequence[Tensor]) -> Tensor:
    return sum((d.square().sum(-1) for d in delta[1:]), delta[0].square().sum(-1))


def _rescaled(delta: list[Tensor], log_scale: Tensor) -> tuple[list[Tensor], Tensor]:
    """The same gradients with norm 1 and the logarithm of what was divided out: nothing underflows or overflows."""
    norm = _squares(delta).sqrt()
    norm = torch.where((norm > 0) & norm.isfinite(), norm, 1.0)
    log_norm = norm.double().log()
    return [d / norm.unsqueeze(-1) for d in delta], log_scale + log_norm


def _one_step(
    delta: Sequence[Tensor], diagonals: Sequence[Tensor], direct: Sequence[Sequence[Tensor | None]], w_hh: Tensor
) -> list[Tensor]:
    """A_tᵀ δ, for δ with respect to the state before a projection."""
    result = []
    for r in range(len(delta)):
        total = through(tuple(diagonals), tuple(delta)).flatten(-2) @ w_hh if r == 0 else torch.zeros_like(delta[r])
        for s, d in enumerate(delta):
            diagonal = direct[s][r]
            if diagonal is not None:
                total = total + d * diagonal
        result.append(total)
    return result


@dataclass(frozen=True, eq=False)
class Link:
    """A layer's traces (one for each direction) and how its input hangs on the layer below.

    mask: the factor of the dropout between the two [N, directions·H], or None.
    """

    traces: tuple[Trace, ...]
    mask: Tensor | None = None


def lost(stack: Sequence[Link], k: int) -> list[State]:
    """V_{k+1} of every trace, layer by layer: the part of δ that has travelled more than k steps.

    In one direction the whole stack is one system: a loss step's gradient may go down a layer on its way back, and the
    steps count all the same. With two directions `later` and `earlier` mix, and each layer counts its own steps from where
    the gradient arrives at it.
    """
    chained = all(len(link.traces) == 1 for link in stack)
    lost_of: list[State] = []
    values = [[tuple(d.clone() for d in trace.delta) for trace in link.traces] for link in stack]
    steppers = [[_Stepper(trace) for trace in link.traces] for link in stack]
    for _ in range(min(k + 1, max(t.way.steps for link in stack for t in link.traces))):
        above: Tensor | None = None
        for depth in reversed(range(len(stack))):
            for n, stepper in enumerate(steppers[depth]):
                value = stepper(values[depth][n])
                if chained and above is not None:
                    value = (value[0] + above, *value[1:])
                values[depth][n] = value
                if chained and depth:
                    above = stepper.to_input(value)
                    mask = stack[depth].mask
                    above = above if mask is None else above * mask
    for layer in values:
        lost_of += layer
    return lost_of


class _Stepper:
    """V_j → V_{j+1} for all rows of a trace at once."""

    def __init__(self, trace: Trace) -> None:
        self.trace = trace
        self.partials = trace.partials(slice(None))
        # The state before row n is the state after row source[n], or the initial one (beyond the rows).
        self.source = trace.way.source.to(trace.x.device)

    def __call__(self, delta: State) -> State:
        raw = self.trace.raw_delta(slice(None), delta)
        stepped = _one_step(raw, self.partials.zh, self.partials.direct, self.trace.weights["weight_hh"])
        moved = []
        for d, kept in zip(stepped, delta, strict=True):
            if self.trace.way.cut is not None:
                d = d.masked_fill(self.trace.way.cut.unsqueeze(-1), 0)
            target = kept.new_zeros(len(kept) + self.trace.way.batch, kept.shape[-1])
            moved.append(target.index_copy_(0, self.source, d)[: len(kept)])
        return tuple(moved)

    def to_input(self, delta: State) -> Tensor:
        """The gradient of x [N, D]."""
        raw = self.trace.raw_delta(slice(None), delta)
        return through(self.partials.zx, raw).flatten(1) @ self.trace.weights["weight_ih"]


def compare(exact: dict[str, Tensor], missing: dict[str, Tensor], k: int) -> Truncation:
    """Share, loss and cosine of exact − missing against exact; over all parameters, and for each."""
    each = {}
    sums = [0.0, 0.0, 0.0, 0.0]
    for name, whole in exact.items():
        g, m = whole.double(), missing[name].double()
        kept = g - m
        parts = [float(g.square().sum()), float(kept.square().sum()), float(m.square().sum()), float((g * kept).sum())]
        each[name] = _ratios(*parts)
        sums = [a + b for a, b in zip(sums, parts, strict=True)]
    return Truncation(k, *_ratios(*sums), each)


def _ratios(exact: float, kept: float, missing: float, product: float) -> tuple[float, float, float]:
    if exact == 0:
        return 1.0, 0.0, 1.0
    cosine = product / math.sqrt(exact * kept) if kept > 0 else 0.0
    return math.sqrt(kept / exact), math.sqrt(missing / exact), cosine
