"""How far back a loss step's gradient reaches.

The gradient e that arrives from outside at one loss step t is sent back alone: δ_t = e, δ_{i-1} = A_iᵀ δ_i with the step
Jacobian A_i of lecture line 11. gain(j) = rms over the chosen (loss step, sample) pairs of ‖δ_{t-j}‖ / ‖e‖, over the whole
state (h, or h and c). A reset or the sequence's beginning ends a pair: it then counts in no further lag, so that an end of
the data is not mistaken for a gradient that vanishes.

δ is sent back by stretches of steps, at norm 1 from each to the next, by the native core where it serves and float32 holds
what becomes of δ, and by the loop that is its specification else.
"""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from bptt.cells import State
from bptt.flow.trace import Trace, one_step_back
from bptt.kernels import cpu
from bptt.kernels.walk import Walk

_PAIRS, _SAMPLES = 4, 8  # loss steps for each sample, samples
_STRETCH = 32  # steps
_HELD = 1e-25, 1e25  # norms from 1 on that float32 holds with what they are made of
_RESCALED = 4  # steps between two rescalings in the loop: it holds a fall to 1e-6 at each of them


class Reach(NamedTuple):
    """gain[j] for lags j = 0, 1, …, in steps; pairs[j]: over how many (loss step, sample) pairs; to the start or not.

    at_start: the rms gain that arrives at the initial state; 0 where nothing does.
    """

    gain: list[float]
    pairs: list[int]
    at_start: float


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
    norm = torch.where(weight > 0, weight, 1.0).sqrt().unsqueeze(-1)
    units = _Units(
        (external / norm).to(trace.x.dtype), [(d / norm[last_row, columns]).to(trace.x.dtype) for d in final]
    )
    return _send_back(trace, (rows, exists), units, last_row, chosen)


class _Units(NamedTuple):
    """The loss steps' gradients e, each at norm 1 (whatever the loss is, float32 holds it).

    external: of h at every position [T, b, P]; final: of the final state's components [b, ·].
    """

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
    """Some positions of the chosen samples: their rows [n, b], and whether the sample has a row there."""

    trace: Trace
    rows: Tensor
    exists: Tensor

    @property
    def cut(self) -> Tensor | None:
        """Where the state before is zero [n, b]."""
        return None if self.trace.way.cut is None else self.trace.way.cut[self.rows]

    def before(self, n: int) -> State:
        """The state before position n [b, ·]."""
        pairs = zip(self.trace.states, self.trace.start, strict=True)
        return tuple(self.trace.way.before_some(s, first, self.rows[n]) for s, first in pairs)

    def alive(self, after: Tensor) -> tuple[Tensor, Tensor]:
        """Which of the pairs that come from behind [K, b] count at each position [n, K, b], and before the first."""
        goes_on = torch.ones_like(self.exists) if self.cut is None else ~self.cut
        behind = torch.cat([goes_on[1:], torch.ones_like(goes_on[:1])])
        at = (self.exists & behind).flip(0).cumprod(0).bool().flip(0).unsqueeze(1) & after
        return at, at[0] & goes_on[0]


def _send_back(trace: Trace, places: tuple[Tensor, Tensor], units: _Units, last_row: Tensor, chosen: Tensor) -> Reach:
    delta = [e.new_zeros(*chosen.shape, e.shape[-1]) for e in (units.external[0], *units.final[1:])]
    log_scale = torch.zeros_like(chosen, dtype=torch.float64)
    alive = torch.zeros_like(chosen, dtype=torch.bool)
    stretches: list[tuple[Tensor, Tensor, Tensor]] = []  # squares, their scale, which pairs count; the last one first
    for low, high in _borders(chosen):
        starting = chosen == high - 1
        delta = _started(delta, starting, last_row == high - 1, units, high - 1)
        here = _Places(trace, *(p[low:high] for p in places))
        counts, alive = here.alive(alive | starting)
        sent = _by_the_core(here, delta, counts) or _by_the_loop(here, delta)
        stretches.append((sent.squares, log_scale + sent.log_scale, counts))
        delta, log_scale = _rescaled(sent.delta, log_scale + sent.log_scale[0])
    arrived = _gains(_squares(delta).double(), log_scale)[alive]
    at_start = float(arrived.mean().sqrt()) if arrived.numel() else 0.0
    return _by_lag(stretches[::-1], chosen, at_start)


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
    trace, (n, K, b) = places.trace, counts.shape
    if not cpu.serves(trace.cell, trace.x, trace.weights):
        return None
    rows = places.rows.unsqueeze(1).expand(n, K, b).flatten()
    walk = Walk(n, K * b, cut=None if trace.way.cut is None else trace.way.cut[rows])
    start = tuple(s.repeat(K, 1) for s in places.before(0))
    h, *c = (s[rows] for s in trace.states)
    final = tuple(d.flatten(0, 1) for d in delta)
    saved = (h, c[0] if c else None, None, None)
    found = cpu.sensitivity(trace.cell, walk, trace.x[rows], start, trace.weights, saved, None, final, x_wanted=False)
    squares = _squares([d.double() for d in found.delta]).unflatten(0, counts.shape)
    low, high = _HELD
    if not bool(((squares > low**2) & (squares < high**2))[counts].all()):
        return None
    return _Sent(squares, torch.zeros_like(squares), [d.unflatten(0, (K, b)) for d in found.d_start])


def _by_the_loop(places: _Places, delta: list[Tensor]) -> _Sent:
    """The same for every cell and any size of δ."""
    trace, cut, weights = places.trace, places.cut, places.trace.weights
    partials = trace.partials(places.rows.flatten())
    zh = [d.unflatten(0, places.rows.shape) for d in partials.zh]
    direct = [[None if d is None else d.unflatten(0, places.rows.shape) for d in row] for row in partials.direct]
    log_scale = delta[0].new_zeros(delta[0].shape[:-1], dtype=torch.float64)
    squares, scales = [], []
    for i in reversed(range(len(places.rows))):
        if i % _RESCALED == 0:
            delta, log_scale = _rescaled(delta, log_scale)
        squares.append(_squares(delta).double())
        scales.append(log_scale)
        raw = [delta[0] @ weights["weight_hr"], *delta[1:]] if "weight_hr" in weights else delta
        here = [[None if d is None else d[i] for d in row] for row in direct]
        delta = one_step_back(raw, [d[i] for d in zh], here, weights["weight_hh"])
        if cut is not None:
            delta = [d.masked_fill(cut[i][:, None], 0) for d in delta]
    return _Sent(torch.stack(squares[::-1]), torch.stack(scales[::-1]), delta)


def _started(delta: list[Tensor], starting: Tensor, ends: Tensor, units: _Units, p: int) -> list[Tensor]:
    """With the pairs that start at position p: e of h, and of the other components where the sequence ends there."""
    first = torch.where(starting.unsqueeze(-1), units.external[p], delta[0])
    at_end = (starting & ends).unsqueeze(-1)
    return [first, *(torch.where(at_end, f, d) for f, d in zip(units.final[1:], delta[1:], strict=True))]


def _gains(squares: Tensor, log_scale: Tensor) -> Tensor:
    """Squared gains in float64, at most e^690."""
    return (squares.log() + 2 * log_scale).clamp(max=690).exp()


def _by_lag(stretches: list[tuple[Tensor, Tensor, Tensor]], chosen: Tensor, at_start: float) -> Reach:
    """Root mean squares over the pairs that count at each lag."""
    squares, scales, alives = (torch.cat(parts) for parts in zip(*stretches, strict=True))  # from position 0: [n, K, b]
    top = len(alives) - 1
    gains = _gains(squares, scales)[alives]
    lags = chosen - torch.arange(top + 1, device=chosen.device).view(-1, 1, 1)
    total, counts = gains.new_zeros(top + 1), gains.new_zeros(top + 1)
    total.index_add_(0, lags[alives], gains)
    counts.index_add_(0, lags[alives], torch.ones_like(gains))
    n = int((counts > 0).sum())
    return Reach((total[:n] / counts[:n]).sqrt().tolist(), [int(c) for c in counts[:n]], at_start)


def _squares(delta: Sequence[Tensor]) -> Tensor:
    return sum((d.square().sum(-1) for d in delta[1:]), delta[0].square().sum(-1))


def _rescaled(delta: list[Tensor], log_scale: Tensor) -> tuple[list[Tensor], Tensor]:
    """The same gradients with norm 1 and the logarithm of what was divided out: nothing underflows or overflows."""
    norm = _squares([d.double() for d in delta]).sqrt()
    norm = torch.where((norm > 0) & norm.isfinite(), norm, 1.0)
    return [d / norm.unsqueeze(-1).to(d.dtype) for d in delta], log_scale + norm.log()
