"""The charts of one layer and direction, as figure elements."""

import numpy as np

from bptt.flow.diagnosis.profile import LayerFlow
from bptt.flow.report.plot import call_marks
from bptt.flow.report.svg import Curve, Mark, bar_chart, line_chart
from bptt.flow.tracing.horizon import REACHES


def essential_charts(layer: LayerFlow) -> list[str]:
    """Gradient over time, and how far a loss step's gradient reaches."""
    return [_over_time(layer), _over_lag(layer)]


def all_charts(layer: LayerFlow) -> list[str]:
    """The essential ones, contributions for each gate, and saturation where the gates' slopes are known."""
    charts = [
        *essential_charts(layer),
        _over_gates(layer, "weight_hh", "W_hh"),
        _over_gates(layer, "weight_ih", "W_ih"),
    ]
    if layer.saturation:
        shares = {f"{gate}": share for gate, share in layer.saturation.items()}
        x = "share of (unit, step, sample) with slope below 5 %"
        charts.append(bar_chart("Saturation of each gate", x, shares))
    return charts


def _over_time(layer: LayerFlow) -> str:
    curves = [Curve(f"‖∂L/∂{s}(k)‖", layer.state_delta(s)) for s in layer.cell.states]
    curves.append(Curve("part that comes from the loss and layers above", layer.external))
    calls = [Mark(at, "next call" if n == 0 else "") for n, at in enumerate(call_marks(layer))]
    return line_chart("Gradient of the state over time", "step k", "norm over batch and units", curves, calls)


def _over_gates(layer: LayerFlow, kind: str, symbol: str) -> str:
    norms = layer.contributions(kind)
    curves = [Curve(f"gate {gate}", norms[:, g]) for g, gate in enumerate(layer.gates)]
    title = f"Contribution of each step to ∂L/∂{symbol}"
    return line_chart(title, "step k", "norm over the gate's block of weights", curves)


def _over_lag(layer: LayerFlow) -> str:
    curve = Curve("gain", np.array(layer.reach.gain, dtype=np.float64))
    horizon = Mark(layer.horizon, f"horizon {layer.horizon} step{'' if layer.horizon == 1 else 's'}")
    threshold = Mark(REACHES, f"{REACHES:.0%}: less has not arrived", upright=False)
    marks = [horizon, threshold] if layer.reach.gain else []
    return line_chart("How far a loss step's gradient reaches", "lag in steps", "share of its norm", [curve], marks)
