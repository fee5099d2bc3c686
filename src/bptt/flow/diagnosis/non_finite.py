"""Where the first number that is NaN or infinite stands in what a layer has computed."""

from typing import NamedTuple

import torch
from torch import Tensor

from bptt.flow.diagnosis.slopes import gate_names
from bptt.flow.tracing.trace import Trace


class NonFinite(NamedTuple):
    """Where the first number that is NaN or infinite stands.

    what: "input", "initial state", "weight", "gate", "state" or "gradient"; gate: its name, "" for other kinds.
    """

    layer: str
    what: str
    step: int
    sample: int
    gate: str = ""


def first_non_finite(layer: str, traces: list[Trace]) -> NonFinite | None:
    """Return the first non-finite number of a layer's traces, in the order of computing; None if there is none.

    Steps are counted over all traces, which follow each other.
    """
    offset = 0
    for trace in traces:
        found = _in_weights(layer, trace) or _in_forward(layer, trace) or _in_gradient(layer, trace)
        if found is not None:
            return found if found.step < 0 else found._replace(step=found.step + offset)
        offset += trace.walk.length
    return None


def _in_weights(layer: str, trace: Trace) -> NonFinite | None:
    bad = (name for name, w in trace.weights.items() if not bool(w.isfinite().all()))
    name = next(bad, None)
    return None if name is None else NonFinite(layer, "weight", -1, -1, name)


def _in_forward(layer: str, trace: Trace) -> NonFinite | None:
    if (place := _place(trace, trace.x)) is not None:
        return NonFinite(layer, "input", *place)
    if (place := _place(trace, *trace.states)) is None:
        return None
    row = trace.walk.starts[place[0]] + place[1]
    zx, zh, before = trace.inputs(slice(row, row + 1))
    if not all(bool(s.isfinite().all()) for s in before):
        return NonFinite(layer, "initial state", *place)
    finite = (zx + zh).isfinite().all(-1)[0]
    bad = [name for name, fine in zip(gate_names(trace.cell), finite.tolist(), strict=True) if not fine]
    return NonFinite(layer, "gate", *place, bad[0]) if bad else NonFinite(layer, "state", *place)


def _in_gradient(layer: str, trace: Trace) -> NonFinite | None:
    place = _place(trace, trace.external, *trace.delta, last=True)
    return None if place is None else NonFinite(layer, "gradient", *place)


def _place(trace: Trace, *tensors: Tensor, last: bool = False) -> tuple[int, int] | None:
    """The (step, sample) of the first row that is not finite, in the order of the walk (if `last`, of the gradient)."""
    if all(bool(t.sum().isfinite()) for t in tensors):
        return None
    bad = torch.stack([~t.isfinite().all(-1) for t in tensors]).any(0)
    if not bool(bad.any()):
        return None
    steps = trace.walk.order()
    for t in reversed(steps) if last else steps:
        rows = bad[trace.walk.starts[t] : trace.walk.starts[t + 1]]
        if bool(rows.any()):
            row = int(rows.int().argmax())
            return t, trace.sample(t, row)
    return None
