"""The memory horizon: the longest lag at which a loss step's gradient still has 1 % of its norm.

gain(j) is the share of its norm with which a loss step's gradient arrives j steps earlier (reach.py measures it). The memory
horizon is the longest lag j with gain(j) ≥ 1 % (`horizon`). Watch, report, `bptt inspect`, metrics.jsonl and `bptt explain`
all mean this and compute it here; of several watched batches the gains are pooled first (`pooled`), and the horizons of the
samples, each by itself, are its spread. Equation: docs/equations.md, eq. (32).
"""

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

REACHES = 0.01  # the share of its norm with which a gradient still counts as arrived


class Span(NamedTuple):
    """How far the gradient of all samples, or of one, reaches: the horizon, the longest lag there, the largest gain."""

    horizon: int
    lags: int
    growth: float


class Reach(NamedTuple):
    """How much of a loss step's gradient arrives at each earlier step.

    gain: the share of its norm at lags 0, 1, …, in steps, root mean square over (loss step, sample) pairs.
    pairs: the number of those pairs at each lag.
    at_start: the rms gain that arrives at the initial state, over `started` pairs; 0 where none gets there.
    samples: each chosen sample by itself.
    """

    gain: list[float]
    pairs: list[int]
    at_start: float
    samples: tuple[Span, ...] = ()
    started: int = 0

    @property
    def span(self) -> Span:
        """The numbers of all of it."""
        return span_of(np.array(self.gain))


def horizon(gain: Sequence[float] | NDArray[np.float64]) -> int:
    """Return the memory horizon in steps: the longest lag at which a loss step's gradient has at least 1 % of its norm."""
    arrived = np.flatnonzero(np.asarray(gain) >= REACHES)
    return int(arrived[-1]) if len(arrived) else 0


def span_of(gain: NDArray[np.float64]) -> Span:
    """Return horizon, longest lag and largest gain of one curve of gains [lags]."""
    return Span(horizon(gain), max(0, len(gain) - 1), float(gain.max(initial=0.0)))


def pooled(found: Sequence[Reach]) -> Reach:
    """Return the gains of several batches or sequences as those of one."""
    found = [r for r in found if r.gain]
    if len(found) <= 1:
        return found[0] if found else Reach([], [], 0.0)
    lags = max(len(r.gain) for r in found)
    squares, pairs = np.zeros(lags), np.zeros(lags)
    for r in found:
        with np.errstate(over="ignore"):
            squares[: len(r.gain)] += np.square(r.gain) * np.array(r.pairs)
        pairs[: len(r.pairs)] += np.array(r.pairs)
    gain = np.sqrt(squares / np.maximum(pairs, 1))
    samples = tuple(sample for r in found for sample in r.samples)
    started = sum(r.started for r in found)
    at_start = math.sqrt(sum(r.at_start**2 * r.started for r in found) / max(started, 1))
    return Reach(gain.tolist(), [int(p) for p in pairs], at_start, samples, started)
