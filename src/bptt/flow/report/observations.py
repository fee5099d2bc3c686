"""`Observations`: what was seen, as values. Everything that a report shows is in it."""

from collections.abc import Sequence
from dataclasses import dataclass

from bptt.flow.diagnosis.findings import Finding
from bptt.flow.diagnosis.profile import LayerFlow
from bptt.flow.tracing.truncation import Truncation


@dataclass(frozen=True, eq=False)
class Observations:
    """What was seen of a model.

    Attributes:
        layers: the numbers of each layer and direction, in the order in which they are shown.
        findings: the verdict.
        norms: norm of the whole model's gradient at each watched update.
        clip_value: a value for torch.nn.utils.clip_grad_norm_; None if no finite norm was seen.
        notes: what could not be watched, and why.
        truncations: what some truncations would lose, shortest lookback first; empty if that was not computed.
    """

    layers: Sequence[LayerFlow]
    findings: Sequence[Finding]
    norms: Sequence[float]
    clip_value: float | None
    notes: Sequence[str]
    truncations: Sequence[Truncation] = ()
