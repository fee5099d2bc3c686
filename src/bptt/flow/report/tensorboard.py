"""What was seen, for TensorBoard. Nothing of it is imported: any writer with `add_scalar` will do."""

import math
from typing import Any

import numpy as np

from bptt.flow.diagnosis.profile import LayerFlow
from bptt.flow.report.observations import Observations
from bptt.flow.report.plot import draw
from bptt.flow.report.words import worst


def write_board(seen: Observations, writer: Any, step: int | None, tag: str) -> None:
    """Write scalars, and where the writer has the method for it: histograms, the figure, the verdict as text.

    Raises TypeError if the writer has no `add_scalar`.
    """
    if not callable(getattr(writer, "add_scalar", None)):
        raise TypeError(
            f"to_tensorboard was given a {type(writer).__name__}, wanted a writer with add_scalar: "
            "pass torch.utils.tensorboard.SummaryWriter(folder)"
        )
    writer.add_scalar(f"{tag}/severity (0 healthy, 1 look here, 2 broken)", worst(seen.findings).rank, step)
    if seen.norms and math.isfinite(seen.norms[-1]):
        writer.add_scalar(f"{tag}/gradient norm", seen.norms[-1], step)
    for layer in seen.layers:
        _write_layer(layer, writer, step, f"{tag}/{layer.name}")
    if hasattr(writer, "add_text"):
        writer.add_text(f"{tag}/verdict", "\n\n".join(str(f) for f in seen.findings) or "nothing was watched", step)
    if hasattr(writer, "add_figure"):
        writer.add_figure(f"{tag}/figure", draw(seen.layers), step)


def _write_layer(layer: LayerFlow, writer: Any, step: int | None, tag: str) -> None:
    for name, value in _scalars(layer).items():
        if math.isfinite(value):
            writer.add_scalar(f"{tag}/{name}", value, step)
    logs = _logs(layer)
    if len(logs) and hasattr(writer, "add_histogram"):
        writer.add_histogram(f"{tag}/log10 of the gradient's norm over steps", logs, step)


def _scalars(layer: LayerFlow) -> dict[str, float]:
    shares = {f"saturation of {gate}": share for gate, share in layer.saturation.items()}
    return {
        "horizon (steps)": float(layer.horizon), "largest gain": layer.growth, "decades a step": layer.rate,
        "dead units": float(layer.dead), **shares,
    }  # fmt: skip


def _logs(layer: LayerFlow) -> "np.ndarray[Any, Any]":
    values = layer.delta
    return np.log10(values[np.isfinite(values) & (values > 0)])
