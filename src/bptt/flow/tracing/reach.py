"""How far back a loss step's gradient reaches.

The gradient e that arrives from outside at one loss step t is sent back alone: δ_t = e, δ_{i-1} = A_iᵀ δ_i with the step
Jacobian A_i of eq. (11). gain(j) = rms over the chosen (loss step, sample) pairs of ‖δ_{t-j}‖ / ‖e‖, over the whole
state (h, or h and c). A reset or the sequence's beginning ends a pair: it then counts in no further lag, so that an end of
the data is not mistaken for a gradient that vanishes.

δ is sent back by stretches of steps, at norm 1 from each to the next, by the native core where it serves and float32 holds
what becomes of δ, and by the loop that is its specification else. Equations: docs/equations.md, eqs. (31) and (32).
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from bptt.cells import State
from bptt.flow.tracing.horizon import Reach, span_of
from bptt.flow.tracing.step import one_step_back
from bptt.flow.tracing.trace import Trace
from bptt.kernels import cpu
from bptt.kernels.walk import Walk

_PAIRS, _SAMPLES = 4, 8  # loss steps for each sample, samples
_STRETCH = 32  # steps
_HELD = 1e-25, 1e25  # norms from 1 on that float32 holds with what they are made of
_RESCALED = 4  # steps between two rescalings in the loop: it holds a fall to 1e-6 at each of them


@dataclass(frozen=True, eq=False)
class Strands:
    """A few samples of a trace, each from its first step on: T positions in the order of walking, b samples.

    Attributes:
        trace: these rows alone, b at each position; where a sample has none, any.
        exists: bool [T, b]: whether the sample has a row there.
        begins: bool [b]: whether it begins where the trace does, not with a call in its midst.
        external: the gradient that arrives at h from outside, [T, b, P].
        ending: at each position the place in `final` of the sample's final state, -1 if it leaves none there, int64 [T, b].
        final: the gradient that arrives at final states, [·, P or H] for each component of the state.
    """

    trace: Trace
    exists: Tensor
    begins: Tensor
    external: Tensor
    ending: Tensor
    final: State

    @property
    def size(self) -> int:
        """How many numbers it keeps in memory."""
        kept = (self.trace.x, *self.trace.states, self.external, *self.trace.weights.values())
        return sum(t.numel() * t.element_size() for t in kept)


def strands(trace: Trace) -> Strands:
    """Return up to 8 of a trace's samples, evenly spaced."""
    rows, exists, begins = _sample_rows(trace)
    walk, shape = trace.walk, rows.shape
    flat = rows.flatten()
    is_even = trace.lineages is None and walk.offsets is None
    is_all = is_even and not walk.reverse and walk.batch == shape[1]

    def chosen(tensor: Tensor) -> Tensor:
        return tensor if is_all else tensor[flat]

    start = tuple(walk.before_some(s, first, rows[0]) for s, first in zip(trace.states, trace.start, strict=True))
    even = Walk(shape[0], shape[1], reset=None if walk.reset is None else chosen(walk.reset))
    states = tuple(map(chosen, trace.states))
    alone = Trace(trace.cell, trace.weights, even, chosen(trace.x), states[0], start, states=states)
    ends = walk.ends.to(flat.device)
    place = torch.full((len(trace.x),), -1, device=flat.device)
    place[ends] = torch.arange(len(ends), device=flat.device)
    ending = torch.where(exists, place[rows], -1)
    return Strands(alone, exists, begins, chosen(trace.external).unflatten(0, shape), ending, trace.d_final)


def reach(trace: Trace) -> Reach:
    """Return the reach of a trace's loss steps (see `reach_of`)."""
    return reach_of(strands(trace))


def reach_of(seen: Strands) -> Reach:
    """Return the reach of up to 4 loss steps for each sample: its last one, and others evenly before it."""
    external = seen.external.double() * seen.exists.unsqueeze(-1)
    at = (seen.ending >= 0).nonzero(as_tuple=True)
    final = [d[seen.ending[at]].double() for d in seen.final]
    external[at] += final[0]
    weight = external.square().sum(-1)
    for d in final[1:]:
        weight[at] += d.square().sum(-1)
    chosen = _chosen(torch.where(weight > 0, weight, 0))
    if bool((chosen < 0).all()) or not bool(torch.isfinite(weight).all()):
        return Reach([], [], 0.0)
    chosen = chosen[(chosen >= 0).any(1)]
    norm = torch.where(weight > 0, weight, 1.0).sqrt()
    dtype = seen.trace.x.dtype
    return _send_back(
        seen, _Units((external / norm.unsqueeze(-1)).to(dtype), seen.ending, seen.final[1:], norm), chosen
    )


class _Units(NamedTuple):
    """The loss steps' gradients e, each at norm 1 (whatever the loss is, float32 holds it).

    external: of h at every position [T, b, P], the final state's among them. At a position where `ending` is not -1, that
    of the state's other components is that row of `other`, over `norm` [T, b].
    """

    external: Tensor
    ending: Tensor
    other: State
    norm: Tensor

    def others(self, p: int) -> State:
        """Return the gradient of the state's other components at position p, [b, ·] each."""
        ends = (self.ending[p] >= 0).unsqueeze(-1)
        rows = self.ending[p].clamp_min(0)
        norm = self.norm[p].unsqueeze(-1)
        return tuple(torch.where(ends, d[rows].double() / norm, 0).to(self.external.dtype) for d in self.other)


def _sample_rows(trace: Trace) -> tuple[Tensor, Tensor, Tensor]:
    """Choose samples: their rows at each position of the walk [T, b], whether there is one, whether it begins the trace."""
    walk, device = trace.walk, trace.x.device
    if trace.lineages is not None:
        lineages, begins = trace.lineages
        some = _evenly(lineages.shape[1])
        rows = lineages[:, some].to(device)
        exists = rows < len(trace.x)
        longest = int(exists.any(1).sum())
        return torch.where(exists, rows, 0)[:longest], exists[:longest], begins[some].to(device)
    samples, order = _evenly(walk.batch).to(device), list(walk.order())
    starts = torch.tensor(walk.starts[:-1], device=device)[order].unsqueeze(1)
    sizes = torch.tensor(walk.sizes, device=device)[order].unsqueeze(1)
    exists = samples < sizes
    return torch.where(exists, starts + samples, starts), exists, torch.ones_like(exists[0])


def _evenly(count: int) -> Tensor:
    return torch.linspace(0, count - 1, min(count, _SAMPLES)).round().long()


def _chosen(weight: Tensor) -> Tensor:
    """Positions of the chosen loss steps [K, b], -1 where there is none; each sample's last one comes first."""
    counts = (weight > 0).sum(0)
    place = (weight > 0).cumsum(0)  # 1, 2, … at the loss steps
    chosen = torch.full((_PAIRS, weight.shape[1]), -1, dtype=torch.long, device=weight.device)
    for n in range(_PAIRS):
        wanted = torch.ceil(counts * (_PAIRS - n) / _PAIRS).long()
        found = ((place == wanted) & (weight > 0)).long()
        fresh = (wanted > 0) & (found.sum(0) > 0)
        position = found.argmax(0)
        if n:
            fresh &= (position != chosen[:n]).all(0)
        chosen[n] = torch.where(fresh, position, -1)
    return chosen


class _Places(NamedTuple):
    """Some of the strands' positions, [low, high)."""

    strands: Strands
    low: int
    high: int

    def rows(self, tensor: Tensor) -> Tensor:
        """Return the part of a tensor [T·b, ·] that belongs to these positions, [n, b, ·]."""
        return tensor.unflatten(0, self.strands.exists.shape)[self.low : self.high]

    @property
    def reset(self) -> Tensor | None:
        """Where the state before is reset [n, b]."""
        reset = self.strands.trace.walk.reset
        return None if reset is None else self.rows(reset)

    def before(self) -> State:
        """The state before the first of them [b, ·]."""
        trace, at = self.strands.trace, self.low
        pairs = zip(trace.states, trace.start, strict=True)
        before = tuple(s.unflatten(0, self.strands.exists.shape)[at - 1] if at else first for s, first in pairs)
        reset = self.reset
        return before if reset is None else tuple(s.masked_fill(reset[0].unsqueeze(-1), 0) for s in before)

    def alive(self, after: Tensor) -> tuple[Tensor, Tensor]:
        """Which of the pairs that come from behind [K, b] count at each position [n, K, b], and before the first."""
        exists = self.strands.exists[self.low : self.high]
        goes_on = torch.ones_like(exists) if self.reset is None else ~self.reset
        behind = torch.cat([goes_on[1:], torch.ones_like(goes_on[:1])])
        at = (exists & behind).flip(0).cumprod(0).bool().flip(0).unsqueeze(1) & after
        return at, at[0] & goes_on[0]


def _send_back(seen: Strands, units: _Units, chosen: Tensor) -> Reach:
    delta = [e.new_zeros(*chosen.shape, e.shape[-1]) for e in (units.external[0], *units.others(0))]
    log_scale = torch.zeros_like(chosen, dtype=torch.float64)
    alive = torch.zeros_like(chosen, dtype=torch.bool)
    stretches: list[tuple[Tensor, Tensor, Tensor]] = []  # squares, their scale, which pairs count; the last one first
    for low, high in _borders(chosen):
        starting = chosen == high - 1
        delta = _started(delta, starting, units, high - 1)
        here = _Places(seen, low, high)
        counts, alive = here.alive(alive | starting)
        sent = _by_the_core(here, delta, counts)
        if sent is None:
            sent = _by_the_loop(here, delta)
        stretches.append((sent.squares, log_scale + sent.log_scale, counts))
        delta, log_scale = _rescaled(sent.delta, log_scale + sent.log_scale[0])
    arrived = _gains(_squares(delta).double(), log_scale)[alive & seen.begins]
    at_start = float(arrived.mean().sqrt()) if arrived.numel() else 0.0
    return _by_lag(stretches[::-1], chosen)._replace(at_start=at_start, started=arrived.numel())


def _borders(chosen: Tensor) -> list[tuple[int, int]]:
    """Stretches [low, high) from the last chosen position down, one of which ends wherever a pair starts."""
    starts = sorted({int(p) + 1 for p in chosen.unique().tolist() if p >= 0}, reverse=True)
    borders = []
    for high, after in zip(starts, [*starts[1:], 0], strict=True):
        borders += [(max(after, end - _STRETCH), end) for end in range(high, after, -_STRETCH)]
    return borders


class _Sent(NamedTuple):
    """δ sent back over some positions: ‖δ‖² at each is squares · exp(2 log_scale), both [n, K, b].

    delta: δ before the first of them, to be multiplied with exp(log_scale[0]).
    """

    squares: Tensor
    log_scale: Tensor
    delta: list[Tensor]


def _by_the_core(places: _Places, delta: list[Tensor], counts: Tensor) -> _Sent | None:
    """None where the core does not serve, or a norm that counts leaves what float32 holds."""
    trace, (n, K, b), reset = places.strands.trace, counts.shape, places.reset
    if not cpu.serves(trace.cell, trace.x, trace.weights):
        return None

    def for_each_pair(rows: Tensor) -> Tensor:
        return rows.unsqueeze(1).expand(n, K, *rows.shape[1:]).flatten(0, 2)

    walk = Walk(n, K * b, reset=None if reset is None else for_each_pair(reset))
    start = tuple(s.repeat(K, 1) for s in places.before())
    h, *c = (for_each_pair(places.rows(s)) for s in trace.states)
    final = tuple(d.flatten(0, 1) for d in delta)
    saved, x = (h, c[0] if c else None, None, None), for_each_pair(places.rows(trace.x))
    found = cpu.sensitivity(trace.cell, walk, x, start, trace.weights, saved, None, final, x_wanted=False)
    squares = _squares([d.double() for d in found.delta]).unflatten(0, counts.shape)
    low, high = _HELD
    if not bool(((squares > low**2) & (squares < high**2))[counts].all()):
        return None
    return _Sent(squares, torch.zeros_like(squares), [d.unflatten(0, (K, b)) for d in found.d_start])


def _by_the_loop(places: _Places, delta: list[Tensor]) -> _Sent:
    """Like `_by_the_core`, for every cell and any size of δ."""
    steps = _Steps(places)
    log_scale = delta[0].new_zeros(delta[0].shape[:-1], dtype=torch.float64)
    squares, scales = [], []
    for i in reversed(range(places.high - places.low)):
        if i % _RESCALED == 0:
            delta, log_scale = _rescaled(delta, log_scale)
        squares.append(_squares(delta).double())
        scales.append(log_scale)
        delta = steps.back(i, delta)
    return _Sent(torch.stack(squares[::-1]), torch.stack(scales[::-1]), delta)


class _Steps:
    """The derivatives of the steps at some positions, each of which takes δ [K, b, ·] of every pair one step back."""

    def __init__(self, places: _Places) -> None:
        trace, n, b = places.strands.trace, places.high - places.low, places.strands.exists.shape[1]
        partials = trace.partials(slice(places.low * b, places.high * b))
        self.zh = [d.unflatten(0, (n, b)) for d in partials.zh]
        self.direct = [[None if d is None else d.unflatten(0, (n, b)) for d in row] for row in partials.direct]
        self.trace, self.reset = trace, places.reset

    def back(self, i: int, delta: list[Tensor]) -> list[Tensor]:
        """A_iᵀ δ: δ before the step at the i-th position."""
        direct = [[None if d is None else d[i] for d in row] for row in self.direct]
        raw = self.trace.raw_delta(tuple(delta))
        delta = one_step_back(raw, [d[i] for d in self.zh], direct, self.trace.weights["weight_hh"])
        return delta if self.reset is None else [d.masked_fill(self.reset[i][:, None], 0) for d in delta]


def _started(delta: list[Tensor], starting: Tensor, units: _Units, p: int) -> list[Tensor]:
    """Put in δ of the pairs that start at position p: e of h, and of the other components where a sample ends there."""
    fresh = (units.external[p], *units.others(p))
    return [torch.where(starting.unsqueeze(-1), e, d) for e, d in zip(fresh, delta, strict=True)]


def _gains(squares: Tensor, log_scale: Tensor) -> Tensor:
    """Squared gains in float64, at most e^690."""
    return (squares.log() + 2 * log_scale).clamp(max=690).exp()


def _by_lag(stretches: list[tuple[Tensor, Tensor, Tensor]], chosen: Tensor) -> Reach:
    """Root mean squares over the pairs that count at each lag, of all samples and of each."""
    squares, scales, alives = (torch.cat(parts) for parts in zip(*stretches, strict=True))  # from position 0: [n, K, b]
    top, b = len(alives) - 1, chosen.shape[1]
    gains = _gains(squares, scales)[alives]
    lags = chosen - torch.arange(top + 1, device=chosen.device).view(-1, 1, 1)
    place = (lags * b + torch.arange(b, device=chosen.device))[alives]
    total, counts = gains.new_zeros((top + 1) * b), gains.new_zeros((top + 1) * b)
    total.index_add_(0, place, gains)
    counts.index_add_(0, place, torch.ones_like(gains))
    total, counts = total.unflatten(0, (-1, b)), counts.unflatten(0, (-1, b))
    n, pairs = int((counts > 0).any(1).sum()), counts.sum(1)
    each = (total / counts).sqrt().cpu().numpy().T  # NaN beyond a sample's last lag
    samples = tuple(span_of(gain[np.isfinite(gain)]) for gain in each if np.isfinite(gain[0]))
    return Reach((total.sum(1)[:n] / pairs[:n]).sqrt().tolist(), [int(c) for c in pairs[:n]], 0.0, samples)


def _squares(delta: Sequence[Tensor]) -> Tensor:
    return sum((d.square().sum(-1) for d in delta[1:]), delta[0].square().sum(-1))


def _rescaled(delta: list[Tensor], log_scale: Tensor) -> tuple[list[Tensor], Tensor]:
    """Return the gradients with norm 1 and the logarithm of what was divided out: nothing underflows or overflows."""
    norm = _squares([d.double() for d in delta]).sqrt()
    norm = torch.where((norm > 0) & norm.isfinite(), norm, 1.0)
    return [d / norm.unsqueeze(-1).to(d.dtype) for d in delta], log_scale + norm.log()
