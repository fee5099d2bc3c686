"""Findings and figures in words: how serious, on which evidence, with units. For reports, notebooks and the terminal."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from bptt.flow.diagnosis.criteria import FEW_LAGS, spread
from bptt.flow.diagnosis.findings import Finding
from bptt.flow.diagnosis.profile import LayerFlow


@dataclass(frozen=True)
class Level:
    """How serious a verdict is: told by the word and the symbol, never by the colour alone."""

    rank: int
    word: str
    symbol: str
    style: str


FINE, LOOK, BROKEN = (
    Level(0, "healthy", "✓", "fine"),
    Level(1, "look here", "▲", "look"),
    Level(2, "broken", "✕", "broken"),
)
UNKNOWN = Level(0, "nothing was watched", "?", "unknown")
_BROKEN = {"cut", "no gradient", "non-finite", "non-finite input"}

# The names of diagnosis.py's evidence: how a reader calls it, and its unit.
_EVIDENCE = {
    "horizon_steps": ("memory horizon", "steps"), "shortest_horizon_steps": ("shortest of a sample", "steps"),
    "longest_horizon_steps": ("longest of a sample", "steps"), "samples": ("samples", ""),
    "batches": ("watched batches", ""),
    "beyond": ("of them beyond the threshold", ""), "lags_steps": ("longest lag in the data", "steps"),
    "largest_gain": ("largest gain on the way back", "-fold"),
    "decades_per_step": ("fall (−) or growth of the gain", "decades a step"), "at_lag": ("largest at lag", "steps"),
    "arrived": ("gradient that arrives", ""), "read_by": ("outputs read by", ""), "at_step": ("cut at step", ""),
    "arrives_there": ("gain that arrives there", ""), "at_start": ("gain that arrives at the chunk's start", ""),
    "chunk_steps": ("length of a chunk", "steps"), "dead": ("dead units", ""), "units": ("units", ""),
}  # fmt: skip

# The measures that diagnosis.py's remedies improve.
MEASURES = {
    "horizon": "the memory horizon", "growth": "the largest gain", "saturation": "the saturation",
    "dead": "the number of dead units", "external": "the gradient that arrives",
    "at_start": "the gain that arrives at the start", "non_finite": "the first number that is not finite",
}  # fmt: skip


def level_of(verdict: str) -> Level:
    """How serious a verdict is."""
    return FINE if verdict in ("healthy", "frozen") else BROKEN if verdict in _BROKEN else LOOK


def worst(findings: Sequence[Finding]) -> Level:
    """The most serious level among the findings."""
    return max((level_of(f.verdict) for f in findings), key=lambda level: level.rank, default=UNKNOWN)


def headline(findings: Sequence[Finding]) -> str:
    """All findings in one sentence: "vanishing in lstm.l0 and lstm.l1; saturated in lstm.l0"."""
    if not findings:
        return "nothing was watched"
    findings = [f for f in findings if f.verdict != "frozen"] or findings
    layers: dict[str, list[str]] = {}
    for finding in sorted(findings, key=lambda f: -level_of(f.verdict).rank):
        layers.setdefault(finding.verdict, []).append(finding.layer)
    if list(layers) == ["healthy"]:
        few = any(int(f.evidence.get("lags_steps") or 0) < FEW_LAGS for f in findings)
        well = "is not lost in the few steps of" if few else "travels well through"
        return f"the gradient {well} {joined(layers['healthy'])}"
    return "; ".join(f"{verdict} in {joined(names)}" for verdict, names in layers.items() if verdict != "healthy")


def joined(names: Sequence[str], most: int = 4) -> str:
    """Return the names as "a, b and c"; of many the first few, and how many more there are."""
    shown = list(dict.fromkeys(names))
    if len(shown) > most:
        shown = [*shown[:most], f"{len(shown) - most} more"]
    return " and ".join([", ".join(shown[:-1]), shown[-1]] if len(shown) > 1 else shown)


def evidence(finding: Finding) -> list[tuple[str, str]]:
    """The evidence as (name, value with unit)."""
    rows = []
    for name, value in finding.evidence.items():
        if value in ("", None) or name == "layer":
            continue
        if name.startswith("saturated_"):
            rows.append((f"slope below 5 %, gate {name.removeprefix('saturated_')}", f"{float(value or 0):.0%}"))
            continue
        label, unit = _EVIDENCE.get(name, (name.replace("_", " "), ""))
        rows.append((label, with_unit(value, unit)))
    return rows


def facts(layer: LayerFlow) -> list[tuple[str, str]]:
    """A layer's figures as (name, value with unit)."""
    seen, found = bool(layer.reach.gain) and layer.non_finite is None, spread(layer)
    rows = [
        ("cell", str(layer.cell)),
        ("steps T", with_unit(layer.steps, "steps") + _in_calls(layer)),
        ("memory horizon", f"{layer.horizon} of {layer.lags} steps{f' ({found})' if found else ''}" if seen else "–"),
        ("largest gain on the way back", with_unit(layer.growth, "-fold") if seen else "–"),
        ("fall (−) or growth of the gain", with_unit(layer.rate, "decades a step") if seen else "–"),
    ]
    half = half_of_the_gradient(layer)
    if half is not None:
        rows.append(("half of the gradient comes from", f"lags up to {half}"))
    rows.append(("dead units", f"{layer.dead} of {layer.units}"))
    place = layer.non_finite
    where = "none" if place is None else f"{place.what}, step {place.step}, sample {place.sample}"
    rows.append(("first number that is not finite", where + (f", {place.gate}" if place and place.gate else "")))
    return rows


def remarks(layer: LayerFlow) -> list[str]:
    """What must be known to read a layer's charts."""
    found = []
    if layer.reach.gain and layer.lags < FEW_LAGS:
        found.append(
            f"The data has {layer.lags} lags only: fewer than {FEW_LAGS} cannot tell a gradient that vanishes from one "
            "that does not."
        )
    if not layer.saturation and layer.non_finite is None:
        found.append("The slopes of this cell's gates are not bounded, or not known: its saturation is not measured.")
    return found


def half_of_the_gradient(layer: LayerFlow) -> int | None:
    """The lag up to which half of the sum of all lags' gains lies; None if there is none."""
    total = 0.0
    for lag, share in enumerate(layer.lag_share):
        total += float(share)
        if total >= 0.5:
            return lag
    return None


def with_unit(value: Any, unit: str) -> str:
    """A number as a reader writes it, and its unit; what is no number as it is."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return str(value)
    text = f"{value:,}" if isinstance(value, int) else f"{value:.3g}" if math.isfinite(value) else "not finite"
    unit = "step" if unit == "steps" and value == 1 else unit
    return text.replace("-", "−", 1) + (unit if unit.startswith("-") else f" {unit}" if unit else "")


def _in_calls(layer: LayerFlow) -> str:
    calls = len(layer.boundaries) + 1
    return f" in {calls} calls" if calls > 1 else ""
