"""The picture: for each layer and direction, the gradient over time, over gates, and over the lag."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from bptt.flow.diagnosis.profile import Array, LayerFlow
from bptt.flow.tracing.horizon import REACHES

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

# M. Okabe, K. Ito 2008: told apart by the colour-blind; and line styles, for print without colour.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#56B4E9", "#E69F00", "#000000")
_STYLES = ("-", "--", "-.", ":")
_FEW, _LOWEST = 40, 1e-12  # steps up to which each is marked; decades below the highest value that are shown
_MARKED = 16  # calls; the marks of more would paint the chart over


def call_marks(layer: LayerFlow) -> list[float]:
    """Where in a chart over k a further call begins; empty where there are too many calls to mark each."""
    return [at - 0.5 for at in layer.boundaries] if len(layer.boundaries) < _MARKED else []


def draw(layers: Sequence[LayerFlow]) -> "Figure":
    """A figure with three panels a row, one row for each layer and direction; no window, no global state of matplotlib.

    All vertical axes are logarithmic (base 10) and span at most 12 decades; k and lag are in steps.
    """
    from matplotlib.figure import Figure

    rows = max(1, len(layers))
    figure = Figure(figsize=(13, 3.4 * rows), layout="constrained")
    axes = figure.subplots(rows, 3, squeeze=False)
    for row, layer in zip(axes, layers, strict=False):
        _over_time(row[0], layer)
        _over_gates(row[1], layer)
        _over_lag(row[2], layer)
    if not layers:
        for axis in axes[0]:
            axis.text(0.5, 0.5, "nothing was watched", ha="center", va="center", transform=axis.transAxes)
            axis.set_axis_off()
    return figure


def _over_time(axis: "Axes", layer: LayerFlow) -> None:
    curves = {f"‖∂L/∂{s}(k)‖": layer.state_delta(s) for s in layer.cell.states}
    curves["from the loss and layers above"] = layer.external
    _curves(axis, curves)
    _label(axis, f"{layer.name}: gradient of the state", "step k", "norm over batch and units (log)")
    for boundary in call_marks(layer):
        axis.axvline(boundary, color="#999999", linewidth=0.8, linestyle=":")


def _over_gates(axis: "Axes", layer: LayerFlow) -> None:
    norms = layer.contributions("weight_hh")
    _curves(axis, {f"gate {gate}": norms[:, g] for g, gate in enumerate(layer.gates)})
    _label(axis, "contribution to ∂L/∂W_hh", "step k", "norm over the gate's block (log)")


def _over_lag(axis: "Axes", layer: LayerFlow) -> None:
    _curves(axis, {"gain": np.array(layer.reach.gain)})
    if layer.reach.gain:
        axis.axhline(REACHES, color="#555555", linewidth=0.8, linestyle="--")
        axis.axvline(layer.horizon, color="#555555", linewidth=0.8, linestyle=":")
        axis.annotate(
            f"horizon {layer.horizon} steps", (layer.horizon, 1), (3, -10), xycoords=("data", "axes fraction"),
            textcoords="offset points", fontsize=8, ha="right" if layer.horizon > 0.6 * layer.lags else "left",
        )  # fmt: skip
    _label(axis, "how far a loss step's gradient reaches", "lag (steps)", "share of its norm that arrives (log)")


def _curves(axis: "Axes", curves: dict[str, Array]) -> None:
    shown = {name: np.where(np.isfinite(v) & (v > 0), v, np.nan) for name, v in curves.items()}
    values = np.concatenate([v.ravel() for v in shown.values()]) if shown else np.array([])
    values = values[np.isfinite(values)]
    if not len(values):
        axis.text(0.5, 0.5, "nothing but zeros, or not finite", ha="center", va="center", transform=axis.transAxes)
        return
    for n, (name, v) in enumerate(shown.items()):
        style: dict[str, Any] = {"color": COLOURS[n % len(COLOURS)], "linestyle": _STYLES[n % len(_STYLES)]}
        marker = "o" if len(v) <= _FEW else None
        axis.plot(np.arange(len(v)), v, label=name, linewidth=1.4, marker=marker, markersize=3, **style)
    axis.set_yscale("log")
    top = float(values.max())
    low = max(float(values.min()), top * _LOWEST)
    if low < top:
        axis.set_ylim(low / 2, top * 2)
    if len(shown) > 1:
        axis.legend(fontsize=7, loc="best")


def _label(axis: "Axes", title: str, x: str, y: str) -> None:
    from matplotlib.ticker import MaxNLocator

    axis.set_title(title, fontsize=9)
    axis.set_xlabel(x, fontsize=8)
    axis.set_ylabel(y, fontsize=8)
    axis.tick_params(labelsize=8)
    axis.xaxis.set_major_locator(MaxNLocator(integer=True, nbins=8))
    axis.grid(True, which="major", linewidth=0.4, alpha=0.5)
