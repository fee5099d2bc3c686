"""What is wrong with the gradient's way through a layer, on which evidence, and what to change.

Everything is measured on data along the trajectory (`reach`, `profile`), nothing on W_hh alone: a matrix of
spectral radius < 1 may still amplify a gradient a hundredfold, and one of largest singular value > 1 may still lose it.

| threshold | value | reason |
|---|---|---|
| `FEW_LAGS` | 8 steps | a gate at 1/2 loses two decades in 7 steps: fewer lags cannot tell good from bad |
| `REACHES` (horizon.py) | 1 % | of a loss step's gradient: less than that drowns in the lags before it |
| `VANISHED` | 1/4 | the horizon covers less than a quarter of the lags in the data: the rest is not learned |
| `EXPLODED` | 10 | one decade; the healthy ones of tests/flow_cases.py stay below 5 |
| `SATURATED` (profile.py) | 5 % | of the slope's maximum: |z| > 2.2 for tanh, > 4.4 for the logistic sigmoid |
| `SATURATED_SHARE` | 4/5 | of the candidate; the labelled cases stand at 0.97, character LSTMs that predict well at 0.6 |
| `DEAD_SHARE` | 1/4 | a ReLU layer loses a few units as a matter of course; a quarter of its width it does not |
| `FEW_ROWS` | 32 | (step, sample) rows: a live ReLU is 0 in about half of them; over fewer than these, some are in all |
| `CUT_GAIN` | 10 % | of a loss step's gradient is still there at the chunk's start: truncation throws away more than noise |
| `AGREE` | 3/4 | of the samples, over all watched batches, lie on one side of a threshold, else: borderline |
| `YOUNG` | 1,000 updates | so long what a default start does may be seen: below |
| `START` | 3 to 11 steps | torch.nn's default start reaches so far back, over widths and inputs: below |

Untrained layers. torch.nn's default start reaches few steps back, however many the data has: of 99 the LSTM 5 to 7, the GRU
7 to 11, the RNN 3 to 9 (benchmarks/untrained.py, which also trains them on the adding problem). So "vanishing" is normal at
the start of a training, and says what it has to overcome. A layer that overcomes it has done so after about 1,000 updates:
the GRU after 200 (learning rate 0.005) or 500 to 700 (0.001), the LSTM after 1,500 to 2,000 (0.005). One that does not (the
RNN; the LSTM at 0.001) stays at about 10 steps for 2,000 updates: then a remedy is due.
"""

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from bptt.cells import GRU, LSTM, Elman
from bptt.flow.watching.horizon import REACHES, Span
from bptt.flow.watching.profile import LayerFlow, slopes

FEW_LAGS, VANISHED, EXPLODED, SATURATED_SHARE, DEAD_SHARE, FEW_ROWS, CUT_GAIN = 8, 0.25, 10.0, 0.8, 0.25, 32, 0.1
AGREE, YOUNG, START = 0.75, 1000, (3, 11)
_CANDIDATE = {Elman: "h", GRU: "n", LSTM: "g"}  # the gate that carries what is new; the others may saturate to remember
Evidence = dict[str, float | int | str | None]


class Cut(NamedTuple):
    """A place where a tensor went on but its gradient did not come back.

    kind: "state" (within one loss), "truncation" (between two backward passes), "outputs" (the next layer reads them
    detached), "none" (no gradient arrived, for no reason that can be seen), "frozen" (none is wanted).
    """

    module: str
    kind: str
    where: str


class Age(NamedTuple):
    """How many updates the weights have had: `seen` while they were watched, `before` that, None if that is not known."""

    before: int | None
    seen: int


@dataclass(frozen=True)
class Remedy:
    """What to change.

    Attributes:
        name: what is done, in the field's words.
        parameters: with which numbers.
        measure: the `LayerFlow` measure (horizon, growth, saturation, dead, …) that it improves.
        code: the change as a line of code or a sentence.
    """

    name: str
    parameters: dict[str, float | int]
    measure: str
    code: str
    _change: Callable[[nn.Module], None] | None = field(default=None, repr=False, compare=False)

    @property
    def applicable(self) -> bool:
        """Whether `apply` can carry it out: those that change weights; the others are for the user's own code."""
        return self._change is not None

    def apply(self, module: nn.Module) -> None:
        """Carry it out on the recurrent module (not the whole model), in place.

        Raises RuntimeError for a remedy that lies in the user's own code; `code` says what to write there.
        """
        if self._change is None:
            raise RuntimeError(f"'{self.name}' is not a change of weights: {self.code}")
        with torch.no_grad():
            self._change(module)


@dataclass(frozen=True)
class Finding:
    """One sentence about one layer.

    Attributes:
        layer: its name in `flow.layers`, or the module's.
        verdict: healthy, frozen, borderline, vanishing, exploding, saturated, dead units, cut, no gradient,
            truncation too short, non-finite input, non-finite.
        evidence: the numbers that it rests on, by name.
        text: the sentence.
        remedies: the first is the one to try first.
    """

    layer: str
    verdict: str
    evidence: Evidence
    text: str
    remedies: tuple[Remedy, ...] = ()

    def __str__(self) -> str:
        advice = "; or ".join(remedy.code for remedy in self.remedies)
        return f"{self.layer}: {self.verdict}. {self.text}" + (f" Try: {advice}." if advice else "")

    def to_json(self) -> dict[str, Any]:
        """Numbers, names and sentences."""
        remedies = [
            {"name": r.name, "parameters": r.parameters, "measure": r.measure, "code": r.code} for r in self.remedies
        ]
        evidence = {k: None if isinstance(v, float) and not math.isfinite(v) else v for k, v in self.evidence.items()}
        return {
            "layer": self.layer, "verdict": self.verdict, "evidence": evidence, "text": self.text, "remedies": remedies,
        }  # fmt: skip


def judge(layers: list[LayerFlow], cuts: list[Cut], clip: float | None, age: Age) -> list[Finding]:
    """The findings, layer by layer; a layer without any other is healthy, or borderline between that and another."""
    findings = []
    for layer in layers:
        own = [cut for cut in cuts if cut.module == layer.module]
        found = list(_of_layer(layer, own, clip))
        findings += [_of_age(layer, finding, age) for finding in found or [_borderline(layer) or _healthy(layer)]]
    seen = {layer.module for layer in layers}
    for cut in cuts:
        if cut.module not in seen and cut.kind != "frozen":
            findings.append(_no_gradient(cut.module, cut))
    return findings


def _of_layer(layer: LayerFlow, cuts: list[Cut], clip: float | None) -> Iterator[Finding]:
    if layer.non_finite is not None:
        yield _non_finite(layer)
        return
    kinds = {cut.kind: cut for cut in cuts}
    if not layer.reach.gain:
        cut = kinds.get("outputs", Cut(layer.module, "none", ""))
        yield _frozen(layer) if "frozen" in kinds else _no_gradient(layer.name, cut)
        return
    if "state" in kinds:
        yield _cut(layer)
    rows = sum(len(trace.x) for trace in layer.traces)
    enough = rows >= FEW_ROWS or layer.dead == layer.units
    dead = enough and layer.dead >= max(1, DEAD_SHARE * layer.units)
    if dead:
        yield _dead(layer)
    saturated = layer.saturation.get(_CANDIDATE.get(type(layer.cell), ""), 0.0)
    if saturated > SATURATED_SHARE:
        yield _saturated(layer, saturated)
    if explodes(layer.reach.span) and _is_clear(layer, explodes):
        yield _exploding(layer, clip)
    elif not dead and vanishes(layer.reach.span) and _is_clear(layer, vanishes):
        yield _vanishing(layer, saturated > SATURATED_SHARE)
    if "truncation" in kinds and layer.reach.at_start >= CUT_GAIN and not layer.direction:
        yield _too_short(layer)


def vanishes(span: Span) -> bool:
    """Whether the horizon covers less than a quarter of enough lags to tell."""
    return span.lags >= FEW_LAGS and span.horizon < VANISHED * span.lags


def explodes(span: Span) -> bool:
    """Whether a gradient grows by a decade or more."""
    return span.growth >= EXPLODED


def _beyond(layer: LayerFlow, threshold: Callable[[Span], bool]) -> tuple[int, int]:
    """In how many samples the gradient is beyond a threshold; of how many that can tell."""
    spans = [span for span in layer.spans if threshold is explodes or span.lags >= FEW_LAGS]
    return sum(map(threshold, spans)), len(spans)


def _is_clear(layer: LayerFlow, threshold: Callable[[Span], bool]) -> bool:
    """Whether they agree with what is found of all together."""
    beyond, of = _beyond(layer, threshold)
    return (beyond if threshold(layer.reach.span) else of - beyond) >= AGREE * of


def _flow_evidence(layer: LayerFlow) -> Evidence:
    shortest, longest = layer.horizon_range
    return {
        "horizon_steps": layer.horizon, "shortest_horizon_steps": shortest, "longest_horizon_steps": longest,
        "samples": len(layer.spans), "batches": layer.batches, "lags_steps": layer.lags, "largest_gain": layer.growth,
        "decades_per_step": layer.rate,
    }  # fmt: skip


def _samples(layer: LayerFlow) -> str:
    """As in "samples of 3 batches", or "samples" where there is only one batch."""
    return f"samples of {layer.batches} batches" if layer.batches > 1 else "samples"


def spread(layer: LayerFlow) -> str:
    """As in "41 to 63 in 24 samples of 3 batches"; empty where all agree."""
    shortest, longest = layer.horizon_range
    return "" if shortest == longest else f"{shortest} to {longest} in {len(layer.spans)} {_samples(layer)}"


def _healthy(layer: LayerFlow) -> Finding:
    found = spread(layer)
    text = (
        f"A loss step's gradient reaches {layer.horizon} of {layer.lags} steps back{f' ({found})' if found else ''} with at "
        f"least {REACHES:.0%} of its norm, and grows at most {layer.growth:.2g}-fold."
    )
    if layer.lags < FEW_LAGS:
        text += f" Fewer than {FEW_LAGS} lags cannot tell a gradient that vanishes from one that does not."
        if len(layer.traces) > 1:
            text += " What travels from call to call is not in it: to measure that, give the layer whole sequences."
    return Finding(layer.name, "healthy", _flow_evidence(layer), text)


def _borderline(layer: LayerFlow) -> Finding | None:
    """Where the samples do not agree; None where they do."""
    unclear = next((t for t in (explodes, vanishes) if not _is_clear(layer, t)), None)
    if unclear is None:
        return None
    beyond, of = _beyond(layer, unclear)
    where = f"in {beyond} of {of} {_samples(layer)}"
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
    evidence = _flow_evidence(layer) | {"beyond": beyond}
    remedies = (more,) if unclear is explodes else (more, *_vanishing(layer, saturated=False).remedies)
    return Finding(layer.name, "borderline", evidence, text, remedies)


def _of_age(layer: LayerFlow, finding: Finding, age: Age) -> Finding:
    """With what is normal for a layer that has hardly been trained, of a gradient that does not reach far."""
    updates = (age.before or 0) + age.seen
    short = finding.verdict == "vanishing" or (finding.verdict == "borderline" and not _is_clear(layer, vanishes))
    if not short or updates >= YOUNG or type(layer.cell) not in _CANDIDATE or layer.horizon < START[0]:
        return finding
    when = "Before any update" if updates == 0 else f"After {updates:,} update{'' if updates == 1 else 's'}"
    if age.before is None:
        when = f"In a layer that has had fewer than {YOUNG:,} updates"
    normal = (
        f"this is normal: the default start reaches {START[0]} to {START[1]} steps back. Look again after {YOUNG:,}."
    )
    return replace(finding, text=f"{finding.text} {when} {normal}")


def _frozen(layer: LayerFlow) -> Finding:
    text = "No gradient is wanted: the layer's weights are frozen, and what it reads needs none."
    return Finding(layer.name, "frozen", {}, text)


def _no_gradient(name: str, cut: Cut) -> Finding:
    if cut.kind == "outputs":
        text = f"No gradient arrives, although {cut.where} reads the outputs: a detach or no_grad stands between."
        remedy = Remedy("pass the outputs on attached", {}, "external", "remove .detach() before the next layer")
        return Finding(name, "cut", {"arrived": 0.0, "read_by": cut.where}, text, (remedy,))
    text = "No gradient, or a gradient of exactly 0, arrives at the outputs: the loss is cut off from them."
    remedy = Remedy(
        "connect the loss", {}, "external", "look for detach, .data, argmax, no_grad between layer and loss"
    )
    return Finding(name, "no gradient", {"arrived": 0.0}, text, (remedy,))


def _cut(layer: LayerFlow) -> Finding:
    at = layer.breaks[0] if layer.breaks else 0
    text = (
        f"One loss spans {len(layer.boundaries) + 1} calls, but the state is detached between them: from step {at} on, no "
        "gradient crosses to the steps before."
    )
    remedy = Remedy("keep the state attached", {}, "at_start", "detach the state after loss.backward(), not before")
    return Finding(layer.name, "cut", {"at_step": at, "arrives_there": layer.reach.at_start}, text, (remedy,))


def _non_finite(layer: LayerFlow) -> Finding:
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


def _dead(layer: LayerFlow) -> Finding:
    ends = _ends(layer)

    def revive(module: nn.Module) -> None:
        dead = ~torch.stack([(t.states[0] != 0).any(0) for t in layer.traces]).any(0)
        for name in ("bias_ih", "bias_hh"):
            if hasattr(module, name + ends):
                getattr(module, name + ends)[dead] = 0.1
        w_ih, w_hh = getattr(module, "weight_ih" + ends), getattr(module, "weight_hh" + ends)
        w_ih[dead] = torch.randn_like(w_ih[dead]) * w_ih.shape[1] ** -0.5
        w_hh[dead] = torch.eye(w_hh.shape[1], dtype=w_hh.dtype, device=w_hh.device)[dead[: len(w_hh)]] * 0.5

    text = (
        f"{layer.dead} of {layer.units} units are 0 at every step of every sample: no gradient reaches their weights."
    )
    redraw = Remedy(
        "draw the dead units anew", {"units": layer.dead, "bias": 0.1}, "dead",
        f"draw the rows of the {layer.dead} dead units anew with bias 0.1, and halve the learning rate", revive,
    )  # fmt: skip
    return Finding(layer.name, "dead units", {"dead": layer.dead, "units": layer.units}, text, (redraw,))


def _saturated(layer: LayerFlow, share: float) -> Finding:
    ends, gate = _ends(layer), _CANDIDATE[type(layer.cell)]
    factor = _calm(layer)

    def shrink(module: nn.Module) -> None:
        for name in ("weight_ih", "weight_hh", "bias_ih", "bias_hh"):
            if hasattr(module, name + ends):
                getattr(module, name + ends).mul_(factor)

    text = (
        f"In {share:.0%} of all (unit, step, sample) the slope of '{gate}' is below 5 % of its maximum: hardly any gradient "
        "passes there."
    )
    remedy = Remedy(
        "smaller net inputs", {"factor": factor}, "saturation",
        f"standardise the inputs, or multiply the layer's weights by {factor:.2g}", shrink,
    )  # fmt: skip
    evidence: Evidence = {f"saturated_{g}": s for g, s in layer.saturation.items()}
    return Finding(layer.name, "saturated", evidence, text, (remedy,))


def _calm(layer: LayerFlow) -> float:
    """The factor that brings the root mean square of the net inputs to 1, where tanh' is 0.42 or more."""
    zx, zh, _ = layer.traces[-1].inputs(slice(0, 2048))
    size = float((zx + zh).square().mean().sqrt())
    return min(1.0, 1.0 / size) if size > 0 else 1.0


def _exploding(layer: LayerFlow, clip: float | None) -> Finding:
    peak = max(range(len(layer.reach.gain)), key=layer.reach.gain.__getitem__)
    text = f"A loss step's gradient grows {layer.growth:.2g}-fold on its way back, most at lag {peak}."
    remedies = [_restart(layer, "growth", gain=0.5 if not isinstance(layer.cell, Elman) else 1.0)]
    if clip is not None and math.isfinite(clip) and math.isfinite(layer.growth):
        value = clip / layer.growth  # the norm that it would have had without the growth
        code = f"torch.nn.utils.clip_grad_norm_(model.parameters(), {value:.3g})"
        remedies.append(Remedy("clip the gradient", {"max_norm": value}, "loss after an update", code))
    return Finding(layer.name, "exploding", _flow_evidence(layer) | {"at_lag": peak}, text, tuple(remedies))


def _vanishing(layer: LayerFlow, saturated: bool) -> Finding:
    found = spread(layer)
    text = (
        f"A loss step's gradient has fallen below {REACHES:.0%} of its norm after {layer.horizon} of the {layer.lags} steps "
        f"that the data has ({f'{found}; ' if found else ''}{layer.rate:.2g} decades a step)."
    )
    remedies = [_remember(layer)] if isinstance(layer.cell, (GRU, LSTM)) else [_restart(layer, "horizon")]
    if not isinstance(layer.cell, (GRU, LSTM)):
        bias = math.log(max(3, layer.lags) - 1)
        code = f"an LSTM in its place, which carries a gradient through its gates, with forget-gate bias {bias:.2f}"
        remedies.append(Remedy("gating", {"bias": bias}, "horizon", code))
    evidence = _flow_evidence(layer)
    if saturated:  # as long as the slopes are 0, neither start nor gate bias helps (measured)
        remedies = list(_saturated(layer, 1.0).remedies)
    return Finding(layer.name, "vanishing", evidence, text, tuple(remedies))


def _too_short(layer: LayerFlow) -> Finding:
    span = layer.chunk
    wanted = math.ceil(math.log10(REACHES) / layer.rate) if layer.rate < 0 else 4 * span
    wanted = max(2 * span, min(wanted, 10 * span))
    text = (
        f"{layer.reach.at_start:.0%} of a loss step's gradient is still there where a chunk of {span} steps begins and "
        "the detached state cuts it off."
    )
    remedy = Remedy(
        "a longer truncation",
        {"k": wanted},
        "at_start",
        f"chunks of {wanted} steps, or bptt.Truncated(k1={span}, k2={wanted})",
    )
    return Finding(
        layer.name, "truncation too short", {"at_start": layer.reach.at_start, "chunk_steps": span}, text, (remedy,)
    )


def _restart(layer: LayerFlow, measure: str, gain: float = 1.0) -> Remedy:
    """Orthogonal recurrent weights, scaled so that with the slope seen on the data a step keeps the norm, eq. (39).

    Sources: A. Saxe et al. 2014; with ReLU the identity, Q. Le et al. 2015.
    """
    ends, cell = _ends(layer), layer.cell
    name = "orthogonal start"
    identity = isinstance(cell, Elman) and cell.nonlinearity == "relu"
    if measure == "horizon":
        gain = _keeping(layer)
    if identity:
        name = "identity start"

    def draw(module: nn.Module) -> None:
        w_hh: Tensor = getattr(module, "weight_hh" + ends)
        for block in w_hh.split(w_hh.shape[0] // cell.gates):
            nn.init.eye_(block) if identity else nn.init.orthogonal_(block)
            block.mul_(gain)

    init = "eye_" if identity else "orthogonal_"
    code = f"torch.nn.init.{init}(block) * {gain:.3g} for each gate's block of weight_hh{ends}"
    return Remedy(name, {"gain": gain}, measure, code, draw)


def _keeping(layer: LayerFlow) -> float:
    """1 / rms slope, at most 4 (the logistic sigmoid's): the gain at which a step keeps the gradient's norm."""
    found = slopes(layer.traces[-1])
    if "h" not in found:
        return 1.0
    highest = 0.25 if isinstance(layer.cell, Elman) and layer.cell.nonlinearity == "sigmoid" else 1.0
    rms = float((found["h"] * highest).square().mean().sqrt())
    return min(4.0, 1.0 / rms) if rms > 0.25 else min(4.0, 1.0 / highest)


def _remember(layer: LayerFlow) -> Remedy:
    """Gates that keep the state over the data's lags: σ(b) = 1 − 1/n  ⟺  b = ln(n − 1), eq. (37) of docs/equations.md.

    Source: C. Tallec, Y. Ollivier 2018.
    """
    ends, wanted = _ends(layer), max(3, layer.lags)
    bias = math.log(wanted - 1)
    lstm = isinstance(layer.cell, LSTM)

    def open_gate(module: nn.Module) -> None:
        H = getattr(module, "weight_hh" + ends).shape[0] // layer.cell.gates
        block = slice(H, 2 * H)
        if hasattr(module, "bias_ih" + ends):
            getattr(module, "bias_ih" + ends)[block] = bias
            getattr(module, "bias_hh" + ends)[block] = 0.0

    name = "forget-gate bias" if lstm else "update-gate bias"
    code = f"{'forget' if lstm else 'update'}-gate block of bias_ih{ends} = {bias:.2f}, of bias_hh{ends} = 0"
    return Remedy(name, {"bias": bias}, "horizon", code, open_gate)


def _ends(layer: LayerFlow) -> str:
    return f"_l{layer.layer}{'_reverse' if layer.direction else ''}"
