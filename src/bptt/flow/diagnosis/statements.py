"""The finding of each verdict: the sentence, the evidence and the remedies.

verdict.py decides which of them apply; the functions here state them.
"""

import math
from dataclasses import replace
from typing import NamedTuple

from bptt.cells import GRU, LSTM, Elman
from bptt.flow.diagnosis import remedies
from bptt.flow.diagnosis.criteria import (
    CANDIDATE,
    EXPLODED,
    FEW_LAGS,
    START,
    YOUNG,
    beyond,
    candidate_saturation,
    explodes,
    flow_evidence,
    is_clear,
    samples_seen,
    spread,
    vanishes,
)
from bptt.flow.diagnosis.findings import Evidence, Finding, Remedy
from bptt.flow.diagnosis.profile import LayerFlow
from bptt.flow.tracing.horizon import REACHES


class Age(NamedTuple):
    """How many updates the weights have had: `seen` while they were watched, `before` that, None if that is not known."""

    before: int | None
    seen: int


def healthy(layer: LayerFlow) -> Finding:
    """State how far the gradient reaches."""
    found = spread(layer)
    text = (
        f"A loss step's gradient reaches {layer.horizon} of {layer.lags} steps back{f' ({found})' if found else ''} with at "
        f"least {REACHES:.0%} of its norm, and grows at most {layer.growth:.2g}-fold."
    )
    if layer.lags < FEW_LAGS:
        text += f" Fewer than {FEW_LAGS} lags cannot tell a gradient that vanishes from one that does not."
        if len(layer.traces) > 1:
            text += " What travels from call to call is not in it: to measure that, give the layer whole sequences."
    return Finding(layer.name, "healthy", flow_evidence(layer), text)


def borderline(layer: LayerFlow) -> Finding | None:
    """State that the samples disagree on whether the gradient vanishes or explodes; None where they agree."""
    unclear = next((t for t in (explodes, vanishes) if not is_clear(layer, t)), None)
    if unclear is None:
        return None
    over, of = beyond(layer, unclear)
    where = f"in {over} of {of} {samples_seen(layer)}"
    if unclear is explodes:
        text = f"A loss step's gradient grows {EXPLODED:.0f}-fold or more on its way back {where}, in the others less."
    else:
        text = (
            f"A loss step's gradient reaches {layer.horizon} of {layer.lags} steps back with at least {REACHES:.0%} of its "
            f"norm ({spread(layer)}): less than a quarter of the lags {where}, more in the others."
        )
    more = Remedy(
        "watch more batches", {}, "growth" if unclear is explodes else "horizon",
        "several batches in one watched block, to see which it is, before you change the layer",
    )  # fmt: skip
    evidence = flow_evidence(layer) | {"beyond": over}
    advice = (more,) if unclear is explodes else (more, *vanishing(layer, saturated=False).remedies)
    return Finding(layer.name, "borderline", evidence, text, advice)


def of_age(layer: LayerFlow, finding: Finding, age: Age) -> Finding:
    """Add to a finding of a gradient that does not reach far what is normal in a layer that has hardly been trained."""
    updates = (age.before or 0) + age.seen
    short = finding.verdict == "vanishing" or (finding.verdict == "borderline" and not is_clear(layer, vanishes))
    if not short or updates >= YOUNG or type(layer.cell) not in CANDIDATE or layer.horizon < START[0]:
        return finding
    when = "Before any update" if updates == 0 else f"After {updates:,} update{'' if updates == 1 else 's'}"
    if age.before is None:
        when = f"In a layer that has had fewer than {YOUNG:,} updates"
    normal = (
        f"this is normal: the default start reaches {START[0]} to {START[1]} steps back. Look again after {YOUNG:,}."
    )
    return replace(finding, text=f"{finding.text} {when} {normal}")


def frozen(layer: LayerFlow) -> Finding:
    """State that no gradient is wanted."""
    text = "No gradient is wanted: the layer's weights are frozen, and what it reads needs none."
    return Finding(layer.name, "frozen", {}, text)


def no_gradient(name: str) -> Finding:
    """State that no gradient arrives, for no reason that can be seen."""
    text = "No gradient, or a gradient of exactly 0, arrives at the outputs: the loss is cut off from them."
    remedy = Remedy(
        "connect the loss", {}, "external", "look for detach, .data, argmax, no_grad between layer and loss"
    )
    return Finding(name, "no gradient", {"arrived": 0.0}, text, (remedy,))


def outputs_detached(name: str, reader: str) -> Finding:
    """State that no gradient arrives, because the module `reader` reads the outputs detached."""
    text = f"No gradient arrives, although {reader} reads the outputs: a detach or no_grad stands between."
    remedy = Remedy("pass the outputs on attached", {}, "external", "remove .detach() before the next layer")
    return Finding(name, "cut", {"arrived": 0.0, "read_by": reader}, text, (remedy,))


def state_detached(layer: LayerFlow) -> Finding:
    """State that the state is detached between calls that one loss spans."""
    at = layer.breaks[0] if layer.breaks else 0
    text = (
        f"One loss spans {len(layer.boundaries) + 1} calls, but the state is detached between them: from step {at} on, no "
        "gradient crosses to the steps before."
    )
    remedy = Remedy("keep the state attached", {}, "at_start", "detach the state after loss.backward(), not before")
    return Finding(layer.name, "cut", {"at_step": at, "arrives_there": layer.reach.at_start}, text, (remedy,))


def non_finite(layer: LayerFlow) -> Finding:
    """State where the first number that is NaN or infinite is."""
    found = layer.non_finite
    assert found is not None
    at = f"step {found.step}, sample {found.sample}" + (f", gate {found.gate}" if found.gate else "")
    at = f"parameter {found.gate}" if found.what == "weight" else at
    evidence: Evidence = dict(found._asdict())
    if found.what == "input" and layer.layer == 0:
        text = f"The first number that is NaN or infinite is in the input: {at}."
        remedy = Remedy(
            "clean the data", {"step": found.step, "sample": found.sample}, "non_finite",
            "drop or fill what is missing before the model sees it; torch.nan_to_num(x) shows whether that was all",
        )  # fmt: skip
        return Finding(layer.name, "non-finite input", evidence, text, (remedy,))
    if found.what == "gradient" and any(not bool(trace.external.isfinite().all()) for trace in layer.traces):
        text = (
            f"The first number that is NaN or infinite is in a gradient: {at}. It arrives from outside the layer, whose own "
            "states are finite."
        )
        remedy = Remedy(
            "a loss that stays finite", {"step": found.step, "sample": found.sample}, "non_finite",
            "look in the loss, or the layer above, for log(0), a division by 0, sqrt(0) or an overflow",
        )  # fmt: skip
        return Finding(layer.name, "non-finite", evidence, text, (remedy,))
    what = "what the layer below puts out" if found.what == "input" else f"a {found.what}"
    text = f"The first number that is NaN or infinite is in {what}: {at}."
    remedy = Remedy(
        "a lower learning rate",
        {"factor": 0.1},
        "non_finite",
        "start again with a tenth of the learning rate, and clip",
    )
    return Finding(layer.name, "non-finite", evidence, text, (remedy,))


def dead_units(layer: LayerFlow) -> Finding:
    """State how many units are 0 everywhere."""
    text = (
        f"{layer.dead} of {layer.units} units are 0 at every step of every sample: no gradient reaches their weights."
    )
    evidence: Evidence = {"dead": layer.dead, "units": layer.units}
    return Finding(layer.name, "dead units", evidence, text, (remedies.revive_units(layer),))


def saturated(layer: LayerFlow) -> Finding:
    """State how often the candidate gate is flat."""
    text = (
        f"In {candidate_saturation(layer):.0%} of all (unit, step, sample) the slope of '{CANDIDATE[type(layer.cell)]}' is "
        "below 5 % of its maximum: hardly any gradient passes there."
    )
    evidence: Evidence = {f"saturated_{g}": s for g, s in layer.saturation.items()}
    return Finding(layer.name, "saturated", evidence, text, (remedies.shrink_net_inputs(layer),))


def exploding(layer: LayerFlow, clip: float | None) -> Finding:
    """State how much the gradient grows. `clip`: the usual norm of the whole model's gradient, if it is known."""
    peak = max(range(len(layer.reach.gain)), key=layer.reach.gain.__getitem__)
    text = f"A loss step's gradient grows {layer.growth:.2g}-fold on its way back, most at lag {peak}."
    advice = [remedies.orthogonal_start(layer, "growth", gain=0.5 if not isinstance(layer.cell, Elman) else 1.0)]
    if clip is not None and math.isfinite(clip) and math.isfinite(layer.growth):
        advice.append(remedies.clip_gradient(clip / layer.growth))  # the norm that it would have had without the growth
    return Finding(layer.name, "exploding", flow_evidence(layer) | {"at_lag": peak}, text, tuple(advice))


def vanishing(layer: LayerFlow, saturated: bool) -> Finding:
    """State after how many steps the gradient is lost. `saturated`: whether the layer is, which must be remedied first."""
    found = spread(layer)
    text = (
        f"A loss step's gradient has fallen below {REACHES:.0%} of its norm after {layer.horizon} of the {layer.lags} steps "
        f"that the data has ({f'{found}; ' if found else ''}{layer.rate:.2g} decades a step)."
    )
    if saturated:  # as long as the slopes are 0, neither start nor gate bias helps (measured)
        advice = [remedies.shrink_net_inputs(layer)]
    elif isinstance(layer.cell, (GRU, LSTM)):
        advice = [remedies.open_gates(layer)]
    else:
        advice = [remedies.orthogonal_start(layer, "horizon"), remedies.gating(layer)]
    return Finding(layer.name, "vanishing", flow_evidence(layer), text, tuple(advice))


def truncation_too_short(layer: LayerFlow) -> Finding:
    """State how much of the gradient the truncation takes away."""
    text = (
        f"{layer.reach.at_start:.0%} of a loss step's gradient is still there where a chunk of {layer.chunk} steps begins "
        "and the detached state cuts it off."
    )
    evidence: Evidence = {"at_start": layer.reach.at_start, "chunk_steps": layer.chunk}
    advice = remedies.longer_truncation(layer, REACHES)
    return Finding(layer.name, "truncation too short", evidence, text, (advice,))
