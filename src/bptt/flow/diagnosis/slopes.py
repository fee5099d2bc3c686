"""The gates of the cells that we know, and how steep they are where the data has taken them."""

import torch
from torch import Tensor

from bptt.cells import GRU, LSTM, Elman, PointwiseCell
from bptt.flow.tracing.trace import Trace

SATURATED = 0.05  # of its largest value: a slope this small makes a unit learn 20 times slower than its best
_SAMPLED = 512  # rows on which gates are looked at
_GATES = {Elman: ("h",), GRU: ("r", "z", "n"), LSTM: ("i", "f", "g", "o")}


def gate_names(cell: PointwiseCell) -> tuple[str, ...]:
    """Return the names of a cell's gates in the order of its rows; numbers for a cell that is not ours."""
    return _GATES.get(type(cell), tuple(str(g) for g in range(cell.gates)))


def slopes(trace: Trace) -> dict[str, Tensor]:
    """Return each gate's derivative by its net input over the derivative's largest value, on evenly spaced rows [n, H]."""
    if type(trace.cell) not in _GATES:
        return {}
    n = len(trace.x)
    rows = torch.linspace(0, n - 1, min(n, _SAMPLED), device=trace.x.device).round().long()
    zx, zh, _ = trace.inputs(rows)

    def logistic(g: int) -> Tensor:
        s = torch.sigmoid(zx[:, g] + zh[:, g])
        return 4 * s * (1 - s)

    def tanh(z: Tensor) -> Tensor:
        return 1 - torch.tanh(z).square()

    match trace.cell:
        case Elman(nonlinearity="tanh"):
            return {"h": tanh(zx[:, 0] + zh[:, 0])}
        case Elman(nonlinearity="sigmoid"):
            return {"h": logistic(0)}
        case GRU():
            reset = torch.sigmoid(zx[:, 0] + zh[:, 0])
            return {"r": logistic(0), "z": logistic(1), "n": tanh(zx[:, 2] + reset * zh[:, 2])}
        case LSTM():
            return {"i": logistic(0), "f": logistic(1), "g": tanh(zx[:, 2] + zh[:, 2]), "o": logistic(3)}
        case _:
            return {}
