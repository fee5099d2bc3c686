"""report.html: training curve, task result, gradient flow and verdict on one page, also while training goes on."""

import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

from bptt.files import write_atomically
from bptt.flow import Flow
from bptt.flow.report.html import render, sections
from bptt.flow.report.svg import Curve, Mark, line_chart
from bptt.flow.report.words import UNKNOWN, joined, level_of
from bptt.train.display.curve import smooth, spans_decades, yardsticks
from bptt.train.storage.config import Config, read_config
from bptt.train.storage.metrics import read_metrics
from bptt.train.storage.report import read_report
from bptt.train.storage.run_folder import METRICS, PAGE, REPORT
from bptt.train.wording import Wording, in_words
from bptt.typed import Json

# Between two writings lie at least _PAUSE seconds, and _SHARE times the seconds that the last one took.
_PAUSE, _SHARE = 5.0, 200.0


class LivePage:
    """Writes the page at watched updates while training goes on, and spends at most 0.5 % of the time on it."""

    def __init__(self, folder: Path, wording: Wording) -> None:
        self.folder, self.wording = folder, wording
        self._due = time.monotonic() + _PAUSE

    @property
    def is_due(self) -> bool:
        """True when the page is old enough to be written again."""
        return time.monotonic() >= self._due

    @property
    def path(self) -> Path:
        """The file that is written."""
        return self.folder / PAGE

    def write(self, step: int, flow: Flow, state: str = "before clipping; training goes on") -> None:
        """Replace the page by one of update `step`, whose gradient `state` describes in words. Raises OSError."""
        began = time.monotonic()
        watched = f"in update {step:,}, {state}"
        write_page(self.path, self.folder, self.wording, flow, watched, truncations=False)
        now = time.monotonic()
        self._due = now + max(_PAUSE, _SHARE * (now - began))


def write_page(
    path: Path,
    folder: Path,
    wording: Wording,
    flow: Flow,
    watched: str,
    result: Json | None = None,
    truncations: bool = True,
) -> None:
    """Write the page of the run in `folder`. Raises OSError, InputError.

    Args:
        path: where to.
        folder: config.json, metrics.jsonl and, if `result` is None and training is over, report.json are read.
        wording: the task's words, and how a loss becomes its metric.
        flow: the gradient to show.
        watched: where it was watched, in words.
        result: what the task reported, if it is not in the folder yet.
        truncations: whether to compute what some truncations would lose, which may take a second or two.
    """
    config = read_config(folder)
    lines = read_metrics(folder) if (folder / METRICS).exists() else []
    if result is None and (folder / REPORT).exists():
        result = read_report(folder)
    page = render(
        "run.html",
        "bptt.train.display",
        **sections(flow.observations(truncations)),
        task=wording.task,
        folder=str(folder),
        watched=watched,
        result=None if result is None else [(name, in_words(v)) for name, v in result.items() if name != "sample"],
        sample=(result or {}).get("sample"),
        charts=list(_charts(lines, wording, result or {}, config.options.clip)),
        history=_history(lines),
        clipping=_clipping(lines, config.options.clip),
        made=sum("loss" in line for line in lines),
        options=_options(config),
    )
    write_atomically(path, page.encode("utf-8", "replace"))


def _charts(lines: Sequence[Json], wording: Wording, result: Json, clip: float) -> list[str]:
    """Return the page's charts over the updates, as SVG: losses, gradient norms, and what the watched updates say."""
    updates = [line for line in lines if "loss" in line]
    if not updates:
        return []
    charts = [_metric_chart(updates, lines, wording, result)]
    measured = [(u["step"], u["grad_norm"]) for u in updates if "grad_norm" in u]
    if measured:
        steps, norms = smooth(measured)
        marks = [Mark(clip, f"--clip {clip:g}", upright=False)] if clip else []
        norm = [Curve("gradient norm", norms, steps)]
        charts.append(line_chart("Norm of the gradient before clipping", "updates", "norm, all weights", norm, marks))
    seen = _by_layer(lines)
    horizons = [_over_updates(name, points, "horizon_steps") for name, points in seen.items()]
    growths = [_over_updates(name, points, "largest_gain") for name, points in seen.items()]
    if horizons:
        charts.append(line_chart("Memory horizon", "updates", "steps back with ≥ 1 % of the norm", horizons, log=False))
        charts.append(line_chart("Largest gain on the way back", "updates", "times a loss step's own norm", growths))
    return charts


def _metric_chart(updates: Sequence[Json], lines: Sequence[Json], wording: Wording, result: Json) -> str:
    score: Callable[[float], float] = wording.score
    steps, losses = smooth([(u["step"], u["loss"]) for u in updates])
    curves = [Curve("training", np.array([score(float(loss)) for loss in losses]), steps)]
    checked = np.array([(m["step"], m["validation"]) for m in lines if "validation" in m], dtype=np.float64)
    if len(checked):
        curves.append(Curve("validation", checked[:, 1], checked[:, 0]))
    marks = [Mark(value, f"{name}: {value:.3g}", upright=False) for name, value in yardsticks(wording.metric, result)]
    log = spans_decades([float(v) for c in curves for v in c.y])
    return line_chart("Training curve", "updates", wording.metric, curves, marks, log)


def _by_layer(lines: Sequence[Json]) -> dict[str, list[Json]]:
    """Return the key figures of all watched updates by layer, each with its step."""
    layers: dict[str, list[Json]] = {}
    for line in lines:
        for figures in line.get("flow", ()):
            layers.setdefault(figures["layer"], []).append(figures | {"step": line["step"]})
    return layers


def _over_updates(name: str, points: Sequence[Json], key: str) -> Curve:
    values = np.array([np.nan if (v := p.get(key)) is None else v for p in points], dtype=np.float64)
    return Curve(name, values, np.array([p["step"] for p in points], dtype=np.float64))


def _history(lines: Sequence[Json]) -> list[Json]:
    """Return the table's rows: how many of the watched updates gave a layer these verdicts, and which one last.

    The most frequent verdicts of a layer come first.
    """
    rows = []
    for name, points in _by_layer(lines).items():
        counts = Counter(tuple(p["verdict"]) for p in points)
        for verdicts, count in counts.most_common():
            level = max(map(level_of, verdicts), key=lambda level: level.rank, default=UNKNOWN)
            last = max(p["step"] for p in points if tuple(p["verdict"]) == verdicts)
            word = joined(verdicts) or "not seen"
            rows.append({
                "layer": name, "symbol": level.symbol, "verdict": word, "count": count, "of": len(points),
                "last": f"update {last:,}",
            })  # fmt: skip
    return rows


def _clipping(lines: Sequence[Json], clip: float) -> Json | None:
    """Return the 90 % quantile of the gradient norms, and the share of updates that --clip shortened; None without any."""
    norms = np.array([line["grad_norm"] for line in lines if "grad_norm" in line])
    if not len(norms):
        return None
    shortened = float((norms > clip).mean()) if clip else 0.0
    return {"quantile": f"{np.quantile(norms, 0.9):.3g}", "clip": f"{clip:g}", "shortened": f"{shortened:.0%}"}


def _options(config: Config) -> list[tuple[str, str]]:
    values: dict[str, Any] = asdict(config.options)
    return [("--" + name.replace("_", "-"), str(v)) for name, v in values.items() if v not in (None, "")]
