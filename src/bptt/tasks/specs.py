"""The form of each task's `spec`, which a run folder keeps for `predict`: types, bounds, and what must agree.

`check_spec` stands before all that reads a spec, so that the tasks can take its entries as they are. What a task adds to
its `spec()` is declared here as well.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Annotated, Any, Literal

from bptt.options import TrainOptions
from bptt.tasks.adding import Adding
from bptt.tasks.base import Sizes
from bptt.tasks.copy import KINDS
from bptt.tasks.reading.vocabulary import CODE_POINTS
from bptt.typed import Items, Json, Names, Positive, Scale, Unexpected, convert

_LONGEST_STEP = 3.2e18  # microseconds (100,000 years), or months: what dates can be counted in


@dataclass(frozen=True)
class ScalingSpec:
    """The JSON of `bptt.tasks.scaling`: mean and deviation of each column."""

    mean: list[float]
    std: list[Scale]

    def check(self, columns: int, where: str) -> None:
        """Raise Unexpected unless `mean` and `std` have one entry for each column."""
        _agree(f"{where}.mean", len(self.mean), "columns", columns)
        _agree(f"{where}.std", len(self.std), "columns", columns)


@dataclass(frozen=True)
class TextSpec:
    """The spec of `bptt.tasks.text`."""

    vocabulary: Annotated[str, Items(1, distinct=True)]

    def sizes(self) -> Sizes:
        """The sizes of the network that belongs to this spec. Raises Unexpected if its entries do not agree."""
        if any(0xD800 <= ord(c) < 0xE000 for c in self.vocabulary) or len(self.vocabulary) > CODE_POINTS:
            raise Unexpected("spec.vocabulary holds half a character, wanted whole ones")
        symbols = len(self.vocabulary) + 2
        return Sizes(outputs=symbols, head="softmax", symbols=symbols)


@dataclass(frozen=True)
class AddingSpec:
    """The spec of `bptt.tasks.adding`."""

    length: Positive

    def sizes(self) -> Sizes:
        """The sizes of the network that belongs to this spec. Raises Unexpected if its entries do not agree."""
        _agree("spec.length", max(self.length, Adding.shortest), "steps at least", self.length)
        return Sizes(outputs=1, head="linear", inputs=2)


@dataclass(frozen=True)
class CopySpec:
    """The spec of `bptt.tasks.copy`."""

    length: Positive

    def sizes(self) -> Sizes:
        """The sizes of the network that belongs to this spec. Raises Unexpected if its entries do not agree."""
        return Sizes(outputs=KINDS + 1, head="softmax", symbols=KINDS + 2)


@dataclass(frozen=True)
class ColumnsSpec:
    """The JSON of `bptt.tasks.reading.panel.Columns`."""

    targets: Names
    inputs: list[str]
    time: str | None
    id: str | None


@dataclass(frozen=True)
class SpacingSpec:
    """The JSON of `bptt.tasks.reading.spacing.Spacing`."""

    kind: Literal["number", "date", "months"]
    size: Scale
    month_end: bool

    def check(self) -> None:
        """Raise Unexpected if the step is longer than dates reach."""
        if self.kind != "number" and self.size > _LONGEST_STEP:
            raise Unexpected(f"spec.times.spacing.size is {self.size:g}, wanted {_LONGEST_STEP:g} or less")


@dataclass(frozen=True)
class TimesSpec:
    """How the times of a series' rows go on: their spacing, and whether they are dates."""

    spacing: SpacingSpec | None
    dates: bool


@dataclass(frozen=True)
class EncodingSpec:
    """The JSON of `bptt.tasks.series_encoding.Encoding`."""

    horizon: Positive
    season: Positive
    scales: dict[str, list[Scale]]
    features: ScalingSpec
    errors: list[list[Scale]]


@dataclass(frozen=True)
class SeriesSpec:
    """The spec of `bptt.tasks.series`."""

    columns: ColumnsSpec
    times: TimesSpec
    encoding: EncodingSpec

    def sizes(self) -> Sizes:
        """The sizes of the network that belongs to this spec. Raises Unexpected if its entries do not agree."""
        c, e = self.columns, self.encoding
        names = [*c.targets, *c.inputs, *(n for n in (c.time, c.id) if n is not None)]
        _agree("spec.columns", len(names), "different names", len(set(names)))
        if (c.time is None) != (self.times.spacing is None):
            raise Unexpected("spec.times.spacing and spec.columns.time do not agree: wanted both or neither")
        if self.times.spacing is not None:
            self.times.spacing.check()
        targets = len(c.targets)
        width = targets * (2 if e.season > 1 else 1) + len(c.inputs)
        e.features.check(width, "spec.encoding.features")
        _agree("spec.encoding.errors", len(e.errors), "steps of the horizon", e.horizon)
        _all_of_length("spec.encoding.errors", e.errors, targets)
        _all_of_length("spec.encoding.scales", e.scales.values(), targets)
        return Sizes(outputs=e.horizon * targets, head="linear", inputs=width)


@dataclass(frozen=True)
class LabelsSpec:
    """The spec of `bptt.tasks.labels`."""

    form: Literal["ts", "table"]
    id: str | None
    time: str | None
    columns: Names
    classes: Annotated[list[str], Items(2, distinct=True)]
    scaling: ScalingSpec

    def sizes(self) -> Sizes:
        """The sizes of the network that belongs to this spec. Raises Unexpected if its entries do not agree."""
        if self.form == "table" and self.id is None:
            raise Unexpected("spec.id is null, wanted the name of a column")
        self.scaling.check(len(self.columns), "spec.scaling")
        if len(self.classes) == 2:
            return Sizes(outputs=1, head="sigmoid", inputs=len(self.columns))
        return Sizes(outputs=len(self.classes), head="softmax", inputs=len(self.columns))


SPECS: dict[str, Any] = {
    "text": TextSpec,
    "series": SeriesSpec,
    "labels": LabelsSpec,
    "adding": AddingSpec,
    "copy": CopySpec,
}


def check_spec(options: TrainOptions, spec: Json, sizes: Json) -> Sizes:
    """Return the sizes of the network that belongs to a spec.

    Raises Unexpected if the spec is not of the task's form, or does not agree with the options, or with the `sizes` that
    were written beside it.
    """
    read = convert(spec, SPECS[options.task], "spec")
    found, written = read.sizes(), convert(sizes, Sizes, "sizes")
    if found != written:
        raise Unexpected(f"its sizes do not belong to its spec, which makes them {found}")
    for name in ("length", "horizon"):
        if hasattr(options, name):
            there = spec["encoding"][name] if name == "horizon" else spec[name]
            _agree(f"options.{name}", getattr(options, name), "in its spec", there)
    return found


def _agree(where: str, came: int, what: str, wanted: int) -> None:
    if came != wanted:
        raise Unexpected(f"{where} is {came:,}, wanted {wanted:,} {what}")


def _all_of_length(where: str, rows: Iterable[list[float]], length: int) -> None:
    for row in rows:
        _agree(where, len(row), "numbers each", length)
