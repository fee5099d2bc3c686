"""The page: everything that a `Flow` saw, as one HTML file that needs no network, no script and no other file."""

from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bptt.files import write_atomically
from bptt.flow.report import words
from bptt.flow.report.charts import all_charts, essential_charts
from bptt.flow.watching.diagnosis import Finding
from bptt.flow.watching.profile import LayerFlow

if TYPE_CHECKING:
    import jinja2

    from bptt.flow.watch import Flow

_LAGS = (1, 4, 16, 64, 256, 1024)  # steps at which a cut is tried
_AFFORDABLE = 2e10  # floating-point operations for all of them: a second or two
_COMPACT = 4  # layers in a notebook


def write_report(flow: "Flow", path: Path) -> None:
    """Write the page, whole or not at all. Raises OSError that names the path and what to do."""
    if path.is_dir():
        raise IsADirectoryError(f"{path} is a folder, wanted a file for the report: give {path / 'flow.html'}")
    page = render("flow.html", **sections(flow)).encode("utf-8", "replace")
    try:
        write_atomically(path, page)
    except OSError as error:
        reason = error.strerror or str(error)
        raise type(error)(
            f"cannot write the report {path}: {reason}; give a file in a folder that exists and can be written"
        ) from error


def compact(flow: "Flow") -> str:
    """The verdict and the essential charts, as a part of a page of someone else's."""
    layers = list(flow)
    return render("compact.html", **_verdict(flow), layers=[
        {"name": layer.name, "charts": essential_charts(layer)} for layer in layers[:_COMPACT]
    ], more=[layer.name for layer in layers[_COMPACT:]])  # fmt: skip


def sections(flow: "Flow", truncations: bool = True) -> dict[str, Any]:
    """What the templates of a whole page need; without the truncations, which may take a second or two, if so wanted."""
    losses = _truncations(flow) if truncations else []
    return _verdict(flow) | {
        "layers": [_layer(layer) for layer in flow],
        "truncations": losses,
        "beyond": max((k for k, _ in losses), default=0),
        "norms": [words.with_unit(norm, "") for norm in flow.norms[-5:]],
    }


def _verdict(flow: "Flow") -> dict[str, Any]:
    findings = flow.verdict()
    clip = flow.clip_value()
    return {
        "level": words.worst(findings),
        "headline": words.headline(findings),
        "findings": [_card(f) for f in sorted(findings, key=lambda f: -words.level_of(f.verdict).rank)],
        "clip": None if clip is None else f"{clip:.3g}",
        "updates": len(flow.norms),
        "notes": flow.notes,
    }


def _card(finding: Finding) -> dict[str, Any]:
    remedies = [
        {
            "name": r.name,
            "code": r.code,
            "parameters": [(n.replace("_", " "), words.with_unit(v, "")) for n, v in r.parameters.items()],
            "measure": words.MEASURES.get(r.measure, r.measure),
        }
        for r in finding.remedies
    ]
    return {
        "level": words.level_of(finding.verdict), "layer": finding.layer, "verdict": finding.verdict,
        "text": finding.text, "evidence": words.evidence(finding), "remedies": remedies,
    }  # fmt: skip


def _layer(layer: LayerFlow) -> dict[str, Any]:
    return {
        "name": layer.name, "facts": words.facts(layer), "remarks": words.remarks(layer), "charts": all_charts(layer),
    }  # fmt: skip


def _truncations(flow: "Flow") -> list[tuple[int, dict[str, str]]]:
    """What cutting at k steps loses, for a few k, as long as that is cheap: (k, figures in words)."""
    layers = list(flow)
    if not layers or flow.first_non_finite is not None:
        return []
    # One product of all rows with W_hh for each step that the cut looks back.
    one = sum(2 * len(t.x) * t.weights["weight_hh"].numel() for layer in layers for t in layer.traces)
    longest, spent, found = max(layer.steps for layer in layers), 0.0, []
    for k in _LAGS:
        spent += (k + 1) * one
        if k >= longest - 1 or spent > _AFFORDABLE:
            break
        lost = flow.truncation(k)
        figures = {"lost": f"{lost.lost:.2g}", "share": f"{lost.share:.3g}", "cosine": f"{lost.cosine:.3f}"}
        found.append((k, figures))
    return found


@cache
def _environment(package: str) -> "jinja2.Environment":
    import jinja2

    own = jinja2.PackageLoader("bptt.flow.report")
    loaders = [own] if package == "bptt.flow.report" else [jinja2.PackageLoader(package), own]
    return jinja2.Environment(
        loader=jinja2.ChoiceLoader(loaders), autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True,
        lstrip_blocks=True,
    )  # fmt: skip


def render(template: str, package: str = "bptt.flow.report", **context: Any) -> str:
    """A template of `package`, or one of this package's, filled in. All text is escaped; charts are marked `| safe`."""
    return _environment(package).get_template(template).render(context)
