"""What is lost of a gradient where it is cut off after k steps.

Truncation with lookback k keeps of each loss step what has travelled at most k steps. What it loses at step i is all that
had arrived at step i+k+1, carried k+1 steps on: V_0 = δ, V_{j+1}(i) = A_{i+1}ᵀ V_j(i+1), lost = V_{k+1}, with the step
Jacobian A_i of eq. (11). Each V_j → V_{j+1} is one product over all rows at once. So no [T, T] object is formed; the
cost is k+1 times a backward pass's loop.
Source: R. Williams, J. Peng 1990, BPTT(h); docs/equations.md, eq. (23).
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor

from bptt.cells import State
from bptt.flow.watching.trace import Trace, one_step_back, through


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
        stepped = one_step_back(raw, self.partials.zh, self.partials.direct, self.trace.weights["weight_hh"])
        moved = []
        for d, kept in zip(stepped, delta, strict=True):
            if self.trace.way.cut is not None:
                d = d.masked_fill(self.trace.way.cut.unsqueeze(-1), 0)
            target = kept.new_zeros(len(kept) + len(self.trace.start[0]), kept.shape[-1])
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
