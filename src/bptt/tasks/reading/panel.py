"""The series of a table: how they lie in memory, how they are read, and how each is divided by time.

| training … | validation (a tenth, or the horizon if that is more) | test (--test) |        of each series
"""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from bptt.errors import InputError
from bptt.tasks.reading.notation import Notation
from bptt.tasks.reading.spacing import Moment, Spacing
from bptt.tasks.reading.table import Table, split_names
from bptt.tasks.reading.times import Times, read_times
from bptt.tasks.scaling import NARROW, narrow_column
from bptt.typed import Json

Values = NDArray[np.float64]

VALIDATION_SHARE = 0.1
"""Share of each series, before its test part, that is held out for validation."""


@dataclass(frozen=True)
class Columns:
    """The role of each column of a table that is used."""

    targets: tuple[str, ...]
    inputs: tuple[str, ...] = ()
    time: str | None = None
    id: str | None = None

    @classmethod
    def of(cls, target: str, inputs: str, time: str | None, id: str | None) -> "Columns":
        """Return the columns that options name, separated by commas. Raises InputError for a column with two roles."""
        columns = cls(split_names(target, "--target"), split_names(inputs, "--inputs") if inputs else (), time, id)
        roles: dict[str, str] = {}
        for option, name in columns.roles():
            if name in roles:
                raise InputError(
                    f"column {name!r} is both {roles[name]} and {option}: each column has one role, drop one"
                )
            roles[name] = option
        return columns

    def roles(self) -> list[tuple[str, str]]:
        """Return (option, column) for each column that is used."""
        roles = [("--target", c) for c in self.targets] + [("--inputs", c) for c in self.inputs]
        return roles + [(o, c) for o, c in (("--time", self.time), ("--id", self.id)) if c is not None]

    def json(self) -> Json:
        """Return it as JSON, for a run folder."""
        return {"targets": list(self.targets), "inputs": list(self.inputs), "time": self.time, "id": self.id}

    @classmethod
    def from_json(cls, json: Json) -> "Columns":
        """Return the columns that `json` wrote."""
        return cls(tuple(json["targets"]), tuple(json["inputs"]), json["time"], json["id"])


@dataclass(frozen=True)
class Member:
    """One series of a panel, of L steps.

    Attributes:
        name: its id, "" if the file holds one series.
        rows: the numbers of its rows in the table, [L], as the user counts them.
        targets: [L, K], in the data's units.
        inputs: [L, Z], in the data's units.
        last: the moment of its last row (without a time column: L).
        spacing: the step from row to row; None where time is known of a single row.
    """

    name: str
    rows: NDArray[np.int64]
    targets: Values
    inputs: Values
    last: Moment
    spacing: Spacing | None

    def __len__(self) -> int:
        return len(self.targets)

    def head(self, steps: int) -> "Member":
        """Return the series up to its first `steps` steps; `last` stays that of the whole series."""
        return replace(self, rows=self.rows[:steps], targets=self.targets[:steps], inputs=self.inputs[:steps])


@dataclass(frozen=True)
class Panel:
    """All series of a table, evenly spaced with one common step.

    Attributes:
        series: in the order in which their ids appear.
        spacing: the step, None without a time column.
        notation: how the times are written.
        sha256: of all that was read.
    """

    series: tuple[Member, ...]
    spacing: Spacing | None
    notation: Notation
    sha256: str


def read_panel(table: Table, columns: Columns, wanted_by: str = "") -> Panel:
    """Return the series of a table, checked. Raises InputError.

    Args:
        table: one row a step.
        columns: what to read.
        wanted_by: who named the columns, for messages; "" names the options.
    """
    for option, column in columns.roles():
        table.require(column, wanted_by or option)
    targets, inputs = table.matrix(columns.targets), table.matrix(columns.inputs)
    groups = table.groups(columns.id)
    digest = hashlib.sha256(repr((columns.json(), [(g, len(rows)) for g, rows in groups.items()])).encode())
    times = None if columns.time is None else read_times(table, columns.time)
    series = []
    for name, rows in groups.items():
        spacing, last = _course(times, rows, name)
        if times is not None:
            digest.update(times.moments[rows].tobytes())
        series.append(Member(name, rows + table.first, targets[rows], inputs[rows], last, spacing))
        digest.update(targets[rows].tobytes() + inputs[rows].tobytes())
    shared = None if times is None else _one_spacing(table, series)
    notation = Notation() if times is None else times.notation
    return Panel(tuple(series), shared, notation, digest.hexdigest())


def _course(times: Times | None, rows: NDArray[np.int64], name: str) -> tuple[Spacing | None, Moment]:
    """Return the step of a series and the moment of its last row; without a time column its rows are counted."""
    if times is None:
        return Spacing("number", 1), len(rows)
    return times.course(rows, name) if len(rows) > 1 else (None, 0)


def _one_spacing(table: Table, series: Sequence[Member]) -> Spacing | None:
    """Return the step that all series share, None if none has two rows. Raises InputError if they differ."""
    spaced = [(s.name, s.spacing) for s in series if s.spacing is not None]
    for name, spacing in spaced:
        if not same_spacing(spacing, spaced[0][1]):
            raise InputError(
                f"{table.path}: series {name!r} has a step of {spacing.words()}, series {spaced[0][0]!r} one of "
                f"{spaced[0][1].words()}: all need the same, put them into files of their own"
            )
    return spaced[0][1] if spaced else None


def same_spacing(one: Spacing, other: Spacing) -> bool:
    """Return whether two steps are equal but for rounding."""
    return one.kind == other.kind and abs(float(one.size) - float(other.size)) <= 1e-4 * float(other.size)


@dataclass(frozen=True)
class Division:
    """Where a series is divided: training [0, validation), validation [validation, test), test [test, end)."""

    validation: int
    test: int
    end: int


def divide(series: Member, share: float, horizon: int, season: int, path: str) -> Division:
    """Return where a series is divided. Raises InputError if a part is too short.

    The test part is `share` of the series and must hold a whole forecast, the training part a season and a forecast.
    """
    whose = f"{path}: series {series.name!r} has" if series.name else f"{path} has"
    end = len(series)
    test = end - round(share * end)
    if end - test < horizon:
        raise InputError(
            f"{whose} {end} rows, of which --test {share:g} keeps {end - test} for the test, fewer than the --horizon of "
            f"{horizon}: give more rows, a larger --test or a smaller --horizon"
        )
    validation = test - max(round(VALIDATION_SHARE * end), horizon)
    if validation < season + horizon:
        seasonal = f"a season of {season} and " if season > 1 else ""
        raise InputError(
            f"{whose} {end} rows, of which {max(validation, 0)} are left for training after test and validation, fewer than "
            f"{seasonal}the --horizon of {horizon} need together: give more rows, a smaller --horizon or a smaller --test"
            + (", or another --season" if season > 1 else "")
        )
    return Division(validation, test, end)


def check_vary(parts: Sequence[Member], columns: Columns, path: str) -> None:
    """Raise InputError for a target that is constant in a series' training part, and an input that is so in all of them."""
    for s in parts:
        for k, name in enumerate(columns.targets):
            if np.ptp(s.targets[:, k]) == 0:
                of = f" of series {s.name!r}" if s.name else ""
                raise InputError(
                    f"{path}: column {name!r}{of} is {s.targets[0, k]:g} on each of its {len(s)} training rows: a constant "
                    "cannot be learned, forecast another column" + (" or take the series out" if s.name else "")
                )
    everything = np.concatenate([s.inputs for s in parts])
    check_width(parts, columns, path)
    narrow = narrow_column(everything)
    if narrow is not None:
        raise InputError(f"{path}: input column {columns.inputs[narrow]!r} {NARROW}")
    for z, name in enumerate(columns.inputs):
        if np.ptp(everything[:, z]) == 0:
            raise InputError(
                f"{path}: input column {name!r} is {everything[0, z]:g} on every training row, which teaches nothing: "
                "drop it from --inputs"
            )


def check_width(series: Sequence[Member], columns: Columns, path: str) -> None:
    """Raise InputError for a target that varies, but by less than can be computed with."""
    for s in series:
        narrow = narrow_column(s.targets)
        if narrow is not None:
            of = f" of series {s.name!r}" if s.name else ""
            raise InputError(f"{path}: column {columns.targets[narrow]!r}{of} {NARROW}")
