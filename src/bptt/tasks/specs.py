"""The form of each task's `spec`, which a run folder keeps for `predict`: types, bounds, and what must agree.

`check_spec` stands before all that reads a spec, so that the tasks can take its entries as they are. What a task adds to
its `spec()` is declared here as well.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Annotated, Any, Literal

from bptt.options import TrainOptions
from bptt.tasks.base import Sizes
from bptt.tasks.reading.characters import CODE_POINTS
from bptt.typed import Items, Json, Names, Positive, Scale, Unexpected, convert

_LONGEST_STEP = 3.2e18  # microseconds (100,000 years), or months: what dates can be counted in


@dataclass(frozen=True)
class Scaling:
    """Mean and deviation of each column."""

    mean: list[float]
    std: list[Scale]

    def check(self, columns: int, where: str) -> None:
        """Raises Unexpected unless there is one of each for each column."""
        _agree(f"{where}.mean", len(self.mean), "columns", columns)
        _agree(f"{where}.std", len(self.std), "columns", columns)


@dataclass(frozen=True)
class TextSpec:
    """Of `bptt.tasks.text`."""

    vocabulary: Annotated[str, Items(1, distinct=True)]

    def sizes(self) -> Sizes:
        """As `Task.sizes`."""
        if any(0xD800 <= ord(c) < 0xE000 for c in self.vocabulary) or len(self.vocabulary) > CODE_POINTS:
            raise Unexpected("spec.vocabulary holds half a character, wanted whole ones")
        symbols = len(self.vocabulary) + 2
        return Sizes(outputs=symbols, head="softmax", symbols=symbols)


@dataclass(frozen=True)
class AddingSpec:
    """Of `bptt.tasks.adding`."""

    length: Positive

    def sizes(self) -> Sizes:
        """As `Task.sizes`."""
        from bptt.tasks.adding import Adding

        _agree("spec.length", max(self.length, Adding.shortest), "steps at least", self.length)
        return Sizes(outputs=1, head="linear", inputs=2)


@dataclass(frozen=True)
class CopySpec:
    """Of `bptt.tasks.copy`."""

    length: Positive

    def sizes(self) -> Sizes:
        """As `Task.sizes`."""
        from bptt.tasks.copy import KINDS

        return Sizes(outputs=KINDS + 1, head="softmax", symbols=KINDS + 2)


@dataclass(frozen=True)
class Columns:
    """Of `bptt.tasks.reading.panel`."""

    targets: Names
    inputs: list[str]
    time: str | None
    id: str | None


@dataclass(frozen=True)
class Spacing:
    """Of `bptt.tasks.reading.times`."""

    kind: Literal["number", "date", "months"]
    size: Scale
    month_end: bool

    def check(self) -> None:
        """Raises Unexpected if it is longer than dates reach."""
        if self.kind != "number" and self.size > _LONGEST_STEP:
            raise Unexpected(f"spec.times.spacing.size is {self.size:g}, wanted {_LONGEST_STEP:g} or less")


@dataclass(frozen=True)
class Times:
    """Of `bptt.tasks.series`."""

    spacing: Spacing | None
    dates: bool


@dataclass(frozen=True)
class Encoding:
    """Of `bptt.tasks.encoding`."""

    horizon: Positive
    season: Positive
    scales: dict[str, list[Scale]]
    features: Scaling
    errors: list[list[Scale]]


@dataclass(frozen=True)
class SeriesSpec:
    """Of `bptt.tasks.series`."""

    columns: Columns
    times: Times
    encoding: Encoding

    def sizes(self) -> Sizes:
        """As `Task.sizes`."""
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
    """Of `bptt.tasks.labels`."""

    form: Literal["ts", "table"]
    id: str | None
    time: str | None
    columns: Names
    classes: Annotated[list[str], Items(2, distinct=True)]
    scaling: Scaling

    def sizes(self) -> Sizes:
        """As `Task.sizes`."""
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
    """The sizes of the network that belongs to a spec. Raises Unexpected where it is not of the task's form, or where it
    does not agree with the `sizes` that were written beside it, or with the options.
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
