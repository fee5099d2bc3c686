"""The training curve as a picture."""

import io
import math
from collections.abc import Callable
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from bptt.files import write_atomically
from bptt.train.storage.metrics import read_metrics
from bptt.train.storage.run_folder import CURVE, Json

_POINTS = 400  # the training loss is drawn as means over at most so many stretches


def draw_curve(folder: Path, task: str, metric: str, score: Callable[[float], float], report: Json) -> None:
    """Draw curve.png from metrics.jsonl: training, validation, and the report's other values of the metric as yardsticks."""
    import matplotlib as mpl

    mpl.use("Agg")
    from matplotlib import pyplot as plt

    lines = read_metrics(folder)
    steps, losses = smooth([(m["step"], m["loss"]) for m in lines if "loss" in m])
    figure, axes = plt.subplots(figsize=(7.2, 4.2), dpi=120, layout="constrained")
    axes.plot(steps, [score(loss) for loss in losses], color="#9db4c8", linewidth=1.2, label="training")
    checked = [(m["step"], m["validation"]) for m in lines if "validation" in m]
    axes.plot(
        *zip(*checked, strict=True), color="#1f5f99", marker="o", markersize=3.5, linewidth=1.6, label="validation"
    )
    log = spans_decades([*map(score, losses), *(v for _, v in checked)])
    styles = ("--", ":", "-.", (0, (5, 1)), (0, (1, 1)))
    for (name, value), style in zip(yardsticks(metric, report), styles, strict=False):
        there = math.isfinite(value) and (value > 0 or not log)
        label = f"{name}: {value:.3g}" + ("" if there else " (not on this axis)")
        axes.axhline(value if there else math.nan, color="#b5542c", linestyle=style, linewidth=1.1, label=label)
    axes.set(xlabel="updates", ylabel=metric, title=f"bptt train {task}")
    if log:
        axes.set_yscale("log")
    axes.grid(alpha=0.25)
    axes.legend(fontsize=8, edgecolor="none")  # a frame, as a yardstick may lie behind it
    picture = io.BytesIO()
    figure.savefig(picture, format="png")
    plt.close(figure)
    write_atomically(folder / CURVE, picture.getvalue())


def yardsticks(metric: str, report: Json) -> list[tuple[str, float]]:
    """The report's values of the metric that are not the model's own: "bits per character, xz" → "xz"."""
    values = [(name, v) for name, v in report.items() if name.startswith(metric) and isinstance(v, int | float)]
    return [(name.removeprefix(metric).strip(" ,:"), v) for name, v in values[1:]]


def smooth(points: list[tuple[int, float]]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Means over neighbouring points, _POINTS of them at most."""
    table = np.array(points, dtype=np.float64)
    pieces = np.array_split(table, min(_POINTS, len(table)))
    steps, losses = np.array([piece.mean(axis=0) for piece in pieces]).T
    return steps, losses


def spans_decades(values: list[float]) -> bool:
    """Whether a logarithmic axis shows more."""
    return min(values) > 0 and max(values) / min(values) > 30
