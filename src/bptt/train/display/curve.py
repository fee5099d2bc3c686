"""curve.png: the training curve, with the yardsticks of the task."""

import io
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from bptt.files import write_atomically
from bptt.train.storage.metrics import read_metrics
from bptt.train.storage.run_folder import CURVE
from bptt.typed import Json

_POINTS = 400  # at most: the training loss is drawn as means over this many stretches


def draw_curve(folder: Path, task: str, metric: str, score: Callable[[float], float], report: Json) -> None:
    """Draw curve.png from metrics.jsonl. Raises OSError, InputError.

    Args:
        folder: the run folder.
        task: the task's name.
        metric: the name of its metric.
        score: the metric of a mean loss.
        report: what the task said of held-out data; its other values of the metric are drawn as yardsticks.
    """
    import matplotlib as mpl

    mpl.use("Agg")
    from matplotlib import pyplot as plt

    lines = read_metrics(folder)
    steps, losses = smooth([(m["step"], m["loss"]) for m in lines if "loss" in m])
    scores = [score(loss) for loss in losses]
    checked = [(m["step"], m["validation"]) for m in lines if "validation" in m]
    log = spans_decades([*scores, *(value for _, value in checked)])
    figure, axes = plt.subplots(figsize=(7.2, 4.2), dpi=120, layout="constrained")
    axes.plot(steps, scores, color="#9db4c8", linewidth=1.2, label="training")
    axes.plot(
        *zip(*checked, strict=True), color="#1f5f99", marker="o", markersize=3.5, linewidth=1.6, label="validation"
    )
    _draw_yardsticks(axes, yardsticks(metric, report), log)
    axes.set(xlabel="updates", ylabel=metric, title=f"bptt train {task}")
    if log:
        axes.set_yscale("log")
    axes.grid(alpha=0.25)
    axes.legend(fontsize=8, edgecolor="none")  # a frame, as a yardstick may lie behind it
    picture = io.BytesIO()
    figure.savefig(picture, format="png")
    plt.close(figure)
    write_atomically(folder / CURVE, picture.getvalue())


def _draw_yardsticks(axes: Any, values: list[tuple[str, float]], log: bool) -> None:
    """Draw a level line for each (name, value), in a style of its own; what a log axis cannot show is only in the legend."""
    styles = ("--", ":", "-.", (0, (5, 1)), (0, (1, 1)))
    for (name, value), style in zip(values, styles, strict=False):
        shown = math.isfinite(value) and (value > 0 or not log)
        label = f"{name}: {value:.3g}" + ("" if shown else " (not on this axis)")
        axes.axhline(value if shown else math.nan, color="#b5542c", linestyle=style, linewidth=1.1, label=label)


def yardsticks(metric: str, report: Json) -> list[tuple[str, float]]:
    """Return the report's values of the metric but the model's own: ("xz", 2.1) for "bits per character, xz"."""
    values = [(name, v) for name, v in report.items() if name.startswith(metric) and isinstance(v, int | float)]
    return [(name.removeprefix(metric).strip(" ,:"), v) for name, v in values[1:]]


def smooth(points: list[tuple[int, float]]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Return the steps and losses of (step, loss) points, averaged over neighbours to _POINTS of them at most."""
    table = np.array(points, dtype=np.float64)
    pieces = np.array_split(table, min(_POINTS, len(table)))
    steps, losses = np.array([piece.mean(axis=0) for piece in pieces]).T
    return steps, losses


def spans_decades(values: list[float]) -> bool:
    """Return whether a logarithmic axis shows the values better: all above 0, and the largest 30 times the smallest."""
    return min(values) > 0 and max(values) / min(values) > 30
