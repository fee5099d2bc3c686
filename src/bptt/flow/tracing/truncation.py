"""What a gradient loses where it is truncated after k steps.

Truncation with lookback k keeps of each loss step what has travelled at most k steps. What it drops at step i is all that
had arrived at step i+k+1, carried k+1 steps on: V_0 = δ, V_{j+1}(i) = A_{i+1}ᵀ V_j(i+1), dropped = V_{k+1}, with the step
Jacobian A_i of eq. (11). Each V_j → V_{j+1} is one product over all rows at once. So no [T, T] object is formed; the
cost is k+1 times a backward pass's loop.
Source: R. Williams, J. Peng 1990, BPTT(h); docs/equations.md, eq. (23).
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from torch import Tensor

from bptt.cells import State
from bptt.flow.tracing.contributions import contribution, parameter_gradient
from bptt.flow.tracing.step import one_step_back, through
from bptt.flow.tracing.trace import StackedTraces, Trace
from bptt.parameters import suffix

_LOOKBACKS = (1, 4, 16, 64, 256, 1024)  # steps that a report tries
_AFFORDABLE = 2e10  # floating-point operations for all of them: a second or two


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


def truncation(stacks: Mapping[str, Sequence[Sequence[StackedTraces]]], k: int) -> Truncation:
    """Compare the exact gradient of every parameter with what a lookback of k steps leaves of it.

    stacks: for each module's name the stacked traces of its calls, bottom layer first.
    """
    exact: dict[str, Tensor] = {}
    dropped: dict[str, Tensor] = {}
    for module, calls in stacks.items():
        for stack in calls:
            _add_gradients(module, stack, k, exact, dropped)
    return _compare(exact, dropped, k)


def affordable_lookbacks(layers: Sequence[Sequence[Trace]]) -> list[int]:
    """Return a few lookbacks, shorter than the data, whose `truncation` takes a second or two together.

    layers: the traces of each layer and direction.
    """
    if not layers:
        return []
    longest = max(sum(trace.walk.length for trace in traces) for traces in layers)
    # One product of all rows with W_hh for each step of the lookback.
    one = sum(2 * len(t.x) * t.weights["weight_hh"].numel() for traces in layers for t in traces)
    found: list[int] = []
    spent = 0.0
    for k in _LOOKBACKS:
        spent += (k + 1) * one
        if k >= longest - 1 or spent > _AFFORDABLE:
            break
        found.append(k)
    return found


def beyond_lookback(stack: Sequence[StackedTraces], k: int) -> list[list[State]]:
    """Return V_{k+1} of every trace, [layer][direction]: the part of δ that has travelled more than k steps.

    In one direction the whole stack is one system: a loss step's gradient may go down a layer on its way back, and its
    steps in all layers count together. With two directions `later` and `earlier` mix, and each layer counts its own steps
    from where the gradient arrives at it.
    """
    steppers = [[_Stepper(trace) for trace in layer.traces] for layer in stack]
    values = [[tuple(d.clone() for d in trace.delta) for trace in layer.traces] for layer in stack]
    advance = _step_each if any(len(layer.traces) > 1 for layer in stack) else _step_chained
    for _ in range(min(k + 1, max(t.walk.length for layer in stack for t in layer.traces))):
        values = advance(stack, steppers, values)
    return values


class _Stepper:
    """V_j → V_{j+1} for all rows of a trace at once."""

    def __init__(self, trace: Trace) -> None:
        self.trace = trace
        self.partials = trace.partials(slice(None))
        # The state before row n is the state after row source[n], or an initial one (beyond the rows).
        self.source = trace.walk.source.to(trace.x.device)

    def __call__(self, delta: State) -> State:
        raw, reset = self.trace.raw_delta(delta), self.trace.walk.reset
        stepped = one_step_back(raw, self.partials.zh, self.partials.direct, self.trace.weights["weight_hh"])
        moved = []
        for d, kept in zip(stepped, delta, strict=True):
            if reset is not None:
                d = d.masked_fill(reset.unsqueeze(-1), 0)
            target = kept.new_zeros(len(kept) + len(self.trace.start[0]), kept.shape[-1])
            moved.append(target.index_copy_(0, self.source, d)[: len(kept)])
        return tuple(moved)

    def to_input(self, delta: State) -> Tensor:
        """Return the gradient of x [N, D]."""
        raw = self.trace.raw_delta(delta)
        return through(self.partials.zx, raw).flatten(1) @ self.trace.weights["weight_ih"]


Values = list[list[State]]  # V_j, [layer][direction]


def _step_each(stack: Sequence[StackedTraces], steppers: list[list[_Stepper]], values: Values) -> Values:
    """Each layer and direction by itself."""
    pairs = zip(steppers, values, strict=True)
    return [[stepper(value) for stepper, value in zip(*layer, strict=True)] for layer in pairs]


def _step_chained(stack: Sequence[StackedTraces], steppers: list[list[_Stepper]], values: Values) -> Values:
    """The top layer first: each one adds what it sends down to the layer below."""
    stepped: Values = []
    from_above: Tensor | None = None
    for layer, (stepper,), (value,) in zip(stack[::-1], steppers[::-1], values[::-1], strict=True):
        value = stepper(value)
        if from_above is not None:
            value = (value[0] + from_above, *value[1:])
        stepped.append([value])
        if len(stepped) < len(stack):
            d_x = stepper.to_input(value)
            from_above = d_x if layer.mask is None else d_x * layer.mask
    return stepped[::-1]


def _add_gradients(
    module: str, stack: Sequence[StackedTraces], k: int, exact: dict[str, Tensor], dropped: dict[str, Tensor]
) -> None:
    """Add one call's exact gradients and what is dropped of them, by the parameters' names."""
    beyond = beyond_lookback(stack, k)
    for depth, layer in enumerate(stack):
        for direction, trace in enumerate(layer.traces):
            for short in trace.weights:
                name = f"{module}.{short}{suffix(depth, direction)}"
                whole = contribution(trace, short)
                part = parameter_gradient(trace, short, beyond[depth][direction])
                exact[name] = exact[name] + whole if name in exact else whole
                dropped[name] = dropped[name] + part if name in dropped else part


def _compare(exact: dict[str, Tensor], dropped: dict[str, Tensor], k: int) -> Truncation:
    """Share, loss and cosine of exact − dropped against exact; over all parameters, and for each."""
    each = {}
    sums = [0.0, 0.0, 0.0, 0.0]
    for name, whole in exact.items():
        g, m = whole.double(), dropped[name].double()
        kept = g - m
        parts = [float(g.square().sum()), float(kept.square().sum()), float(m.square().sum()), float((g * kept).sum())]
        each[name] = _ratios(*parts)
        sums = [a + b for a, b in zip(sums, parts, strict=True)]
    return Truncation(k, *_ratios(*sums), each)


def _ratios(exact: float, kept: float, dropped: float, product: float) -> tuple[float, float, float]:
    if exact == 0:
        return 1.0, 0.0, 1.0
    cosine = product / math.sqrt(exact * kept) if kept > 0 else 0.0
    return math.sqrt(kept / exact), math.sqrt(dropped / exact), cosine
