"""What a verdict consists of: findings, the evidence they rest on, and the remedies they propose."""

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn

Evidence = dict[str, float | int | str | None]


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
