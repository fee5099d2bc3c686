"""The page: everything that was seen, as one HTML file that needs no network, no script and no other file."""

from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bptt.files import write_atomically
from bptt.flow.diagnosis.findings import Finding
from bptt.flow.diagnosis.profile import LayerFlow
from bptt.flow.report import words
from bptt.flow.report.charts import all_charts, essential_charts
from bptt.flow.report.observations import Observations
from bptt.flow.tracing.truncation import Truncation

if TYPE_CHECKING:
    import jinja2

_COMPACT = 4  # layers in a notebook


def write_report(seen: Observations, path: Path) -> None:
    """Write the page, whole or not at all. Raises OSError that names the path and what to do."""
    if path.is_dir():
        raise IsADirectoryError(f"{path} is a folder, wanted a file for the report: give {path / 'flow.html'}")
    page = render("flow.html", **sections(seen)).encode("utf-8", "replace")
    try:
        write_atomically(path, page)
    except OSError as error:
        reason = error.strerror or str(error)
        raise type(error)(
            f"cannot write the report {path}: {reason}; give a file in a folder that exists and can be written"
        ) from error


def compact(seen: Observations) -> str:
    """Return the verdict and the essential charts, as a part of a page of someone else's."""
    return render("compact.html", **_verdict(seen), layers=[
        {"name": layer.name, "charts": essential_charts(layer)} for layer in seen.layers[:_COMPACT]
    ], more=[layer.name for layer in seen.layers[_COMPACT:]])  # fmt: skip


def sections(seen: Observations) -> dict[str, Any]:
    """Return what the templates of a whole page need."""
    return _verdict(seen) | {
        "layers": [_layer(layer) for layer in seen.layers],
        "truncations": [(found.k, _figures(found)) for found in seen.truncations],
        "beyond": max((found.k for found in seen.truncations), default=0),
        "norms": [words.with_unit(norm, "") for norm in seen.norms[-5:]],
    }


def _verdict(seen: Observations) -> dict[str, Any]:
    return {
        "level": words.worst(seen.findings),
        "headline": words.headline(seen.findings),
        "findings": [_card(f) for f in sorted(seen.findings, key=lambda f: -words.level_of(f.verdict).rank)],
        "clip": None if seen.clip_value is None else f"{seen.clip_value:.3g}",
        "updates": len(seen.norms),
        "notes": seen.notes,
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


def _figures(found: Truncation) -> dict[str, str]:
    return {"lost": f"{found.lost:.2g}", "share": f"{found.share:.3g}", "cosine": f"{found.cosine:.3f}"}


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
    """Return a filled-in template of `package`, or of this one. All text is escaped; charts are marked `| safe`."""
    return _environment(package).get_template(template).render(context)
