"""Which findings a layer's numbers amount to: the verdict."""

from collections.abc import Iterator, Mapping, Sequence

from bptt.flow.diagnosis import statements
from bptt.flow.diagnosis.criteria import (
    DETACHED_GAIN,
    SATURATED_SHARE,
    candidate_saturation,
    explodes,
    has_died,
    is_clear,
    vanishes,
)
from bptt.flow.diagnosis.findings import Finding
from bptt.flow.diagnosis.profile import LayerFlow
from bptt.flow.diagnosis.statements import Age
from bptt.flow.watching.missing import MissingGradient


def judge(
    layers: Sequence[LayerFlow], missing: Sequence[MissingGradient], clip: float | None, age: Age
) -> list[Finding]:
    """Return the findings, layer by layer; a layer without any other is healthy, or borderline between that and another.

    missing: where gradients did not come back; clip: the usual norm of the whole model's gradient, None if not known.
    """
    findings = []
    for layer in layers:
        kinds = {one.kind: one for one in missing if one.module == layer.module}
        found = list(_of_layer(layer, kinds, clip))
        found = found or [statements.borderline(layer) or statements.healthy(layer)]
        findings += [statements.of_age(layer, finding, age) for finding in found]
    seen = {layer.module for layer in layers}
    return findings + [
        _of_missing(one.module, one) for one in missing if one.module not in seen and one.kind != "frozen"
    ]


def _of_layer(layer: LayerFlow, missing: Mapping[str, MissingGradient], clip: float | None) -> Iterator[Finding]:
    if layer.non_finite is not None:
        yield statements.non_finite(layer)
    elif layer.reach.gain:
        yield from _of_reach(layer, missing, clip)
    elif "frozen" in missing:
        yield statements.frozen(layer)
    else:
        yield _of_missing(layer.name, missing.get("outputs"))


def _of_reach(layer: LayerFlow, missing: Mapping[str, MissingGradient], clip: float | None) -> Iterator[Finding]:
    """The findings on a layer at which a gradient arrives."""
    if "state" in missing:
        yield statements.state_detached(layer)
    is_dead, is_saturated = has_died(layer), candidate_saturation(layer) > SATURATED_SHARE
    if is_dead:
        yield statements.dead_units(layer)
    if is_saturated:
        yield statements.saturated(layer)
    if explodes(layer.reach.span) and is_clear(layer, explodes):
        yield statements.exploding(layer, clip)
    elif not is_dead and vanishes(layer.reach.span) and is_clear(layer, vanishes):
        yield statements.vanishing(layer, is_saturated)
    if "truncation" in missing and layer.reach.at_start >= DETACHED_GAIN and not layer.direction:
        yield statements.truncation_too_short(layer)


def _of_missing(name: str, missing: MissingGradient | None) -> Finding:
    if missing is not None and missing.kind == "outputs":
        return statements.outputs_detached(name, missing.reader)
    return statements.no_gradient(name)
