"""The time column of a table: numbers or dates, checked to rise evenly, and continued beyond its end."""

import datetime
from dataclasses import dataclass
from typing import Literal

import numpy as np
import polars as pl
from numpy.typing import NDArray

from bptt.errors import InputError
from bptt.tasks.base import Json
from bptt.tasks.table import Table, short

Moments = NDArray[np.float64]

SECOND = 1e6
"""Dates are counted in microseconds since 1970, UTC: whole numbers, exact in float64."""

_DAY = 86400 * SECOND
_EPOCH = datetime.datetime(1970, 1, 1)


@dataclass(frozen=True)
class Spacing:
    """The step from each row to the next.

    Attributes:
        kind: "number" or "date": every step adds `size` (a number, or microseconds); "months": `size` calendar months.
        size: see there.
        month_end: with "months", True where the dates are the last days of their months.
    """

    kind: Literal["number", "date", "months"]
    size: float
    month_end: bool = False

    def after(self, last: float, steps: int) -> list[float]:
        """The moments of the next `steps` rows after a row at `last`."""
        ahead = range(1, steps + 1)
        if self.kind != "months":
            return [last + self.size * k for k in ahead]
        return [_add_months(last, round(self.size) * k, self.month_end) for k in ahead]

    def words(self) -> str:
        """For a message: "0:30:00", "3 months"."""
        if self.kind == "months":
            return f"{round(self.size)} month{'s' if self.size > 1 else ''}"
        return f"{self.size:g}" if self.kind == "number" else str(datetime.timedelta(microseconds=self.size))

    def json(self) -> Json:
        """As JSON."""
        return {"kind": self.kind, "size": self.size, "month_end": self.month_end}


@dataclass(frozen=True)
class Times:
    """The times of a table's rows.

    Attributes:
        table, column: where they come from.
        moments: numbers, or microseconds since 1970, [rows].
        dates: True where they are dates.
        zone: True where the dates came with their offset from UTC.
    """

    table: Table
    column: str
    moments: Moments
    dates: bool
    zone: bool = False

    def check_rising(self, rows: NDArray[np.int64], of: str) -> None:
        """Raise InputError unless the time rises from each of these rows to the next. `of`: whose, "" if nobody's."""
        stuck = np.flatnonzero(np.diff(self.moments[rows]) <= 0)
        if not len(stuck):
            return
        before, here = int(rows[stuck[0]]), int(rows[stuck[0] + 1])
        twice = self.moments[before] == self.moments[here]
        what = "comes a second time" if twice else f"comes after {self._cell(before)}"
        remedy = "keep one row for each time" if twice else "sort the rows by time"
        if not of:
            remedy += ", or if the file holds several series name the column that tells them apart with --id"
        raise InputError(f"{self._at(here, of)} is {self._cell(here)}, which {what}: {remedy}")

    def spacing(self, rows: NDArray[np.int64], of: str) -> Spacing:
        """The one step between these rows (two or more). Raises InputError where it is not the same throughout."""
        self.check_rising(rows, of)
        moments = self.moments[rows]
        months = _months(moments) if self.dates else None
        steps = np.diff(moments if months is None else months[0])
        _, first, counts = np.unique(np.round(steps / steps[0], 6), return_index=True, return_counts=True)
        size = float(steps[first[counts.argmax()]])  # the commonest
        kind: Literal["number", "date", "months"] = "months" if months else "date" if self.dates else "number"
        spacing = Spacing(kind, size, months is not None and months[1])
        odd = np.flatnonzero(np.abs(steps - size) > 1e-4 * size)  # 0.1 + 0.1 + … is not quite even
        if len(odd):
            before, here = int(rows[odd[0]]), int(rows[odd[0] + 1])
            raise InputError(
                f"{self._at(here, of)} goes from {self._cell(before)} to {self._cell(here)}, wanted a step of "
                f"{spacing.words()} as elsewhere: fill the gap (or take the row out), or leave out --time if the rows are "
                "evenly spaced in their own way, as trading days are"
            )
        return spacing

    def _at(self, row: int, of: str) -> str:
        return f"{self.table.at(row)}: column {self.column!r}" + (f" of {of!r}" if of else "")

    def _cell(self, row: int) -> str:
        return short(self.table.frame[self.column][row])


def write_moment(moment: float, dates: bool, zone: bool = False) -> str:
    """A moment as text: a number, or a date in ISO 8601 without the parts that are zero at its end."""
    if not dates:
        return f"{moment:.10g}"
    when = _EPOCH + datetime.timedelta(microseconds=moment)
    if moment % _DAY == 0:
        return when.date().isoformat()
    clock = "seconds" if moment % SECOND == 0 else "microseconds"
    return when.isoformat(" ", clock if moment % (60 * SECOND) else "minutes") + ("Z" if zone else "")


def read_times(table: Table, column: str) -> Times:
    """The time column of a table. Raises InputError for a cell that is neither a number nor a date."""
    cells = table.frame[column]
    if cells.dtype == pl.String:
        texts = pl.Series(table.texts(column))
        days = texts.str.contains(r"^(19|20)\d{6}$").all()  # 20140131
        if not days and texts.head(1).cast(pl.Float64, strict=False).null_count() == 0:
            return Times(table, column, table.numbers(column), dates=False)
        moments, zone = _parse_dates(table, column, texts)
        return Times(table, column, moments, dates=True, zone=zone)
    if cells.dtype in (pl.Date, pl.Datetime):
        if cells.null_count():
            raise InputError(
                f"{table.at(int(cells.is_null().to_numpy().argmax()))}: column {column!r} is empty: fill it in"
            )
        zone = isinstance(cells.dtype, pl.Datetime) and cells.dtype.time_zone is not None
        return Times(table, column, _microseconds(cells.cast(pl.Datetime("us"))), dates=True, zone=zone)
    return Times(table, column, table.numbers(column), dates=False)


_FORMATS = tuple(
    f"{day}{clock}{zone}"
    for day in ("%Y-%m-%d", "%Y/%m/%d", "%Y%m%d")
    for clock in ("", " %H:%M:%S%.f", "T%H:%M:%S%.f", " %H:%M", "T%H:%M")
    for zone in (("", "%#z", " %#z") if clock else ("",))
)


def _parse_dates(table: Table, column: str, texts: pl.Series) -> tuple[Moments, bool]:
    """Dates in one of the ISO 8601 forms, the same on every row, and whether it holds an offset from UTC."""
    if texts.str.contains(r"^\d{4}-\d{2}$").all():  # a month
        texts = texts + "-01"
    whole = texts.str.replace(r"Z$", "+00:00")
    best: pl.Series | None = None
    for form in _FORMATS:
        if whole.head(1).str.to_datetime(form, strict=False, time_unit="us").null_count():
            continue
        parsed = whole.str.to_datetime(form, strict=False, time_unit="us")
        if parsed.null_count() == 0:
            return _microseconds(parsed), form.endswith("z")
        if best is None or parsed.null_count() < best.null_count():
            best = parsed
    row = 0 if best is None else int(best.is_null().to_numpy().argmax())
    also = f", written as on row {table.first}" if row else ""
    raise InputError(
        f"{table.at(row)}: column {column!r} is {short(texts[row])}, wanted a number or a date such as 2014-01-31 or "
        f"2014-01-31 23:30{also}: mend the cell"
    )


def _microseconds(dates: pl.Series) -> Moments:
    return dates.dt.timestamp("us").to_numpy().astype(np.float64)


def _months(moments: Moments) -> tuple[Moments, bool] | None:
    """The dates as numbers of months, if each is on the same day of its month (or the last) at the same hour, else None."""
    if len(moments) < 2 or np.diff(moments).min() < 28 * _DAY:
        return None
    dates = moments.astype("datetime64[us]")
    months = dates.astype("datetime64[M]")
    within = (dates - months).astype(np.int64)  # microseconds since the month began
    if (within == within[0]).all():
        return months.astype(np.int64).astype(np.float64), False
    left = ((months + 1).astype("datetime64[us]") - dates).astype(np.int64)
    if (left == left[0]).all() and left[0] <= _DAY:
        return months.astype(np.int64).astype(np.float64), True
    return None


def _add_months(moment: float, months: int, month_end: bool) -> float:
    date = np.int64(moment).astype("datetime64[us]")
    month = date.astype("datetime64[M]")
    if month_end:
        left = (month + 1).astype("datetime64[us]") - date
        return float(((month + months + 1).astype("datetime64[us]") - left).astype(np.int64))
    within = date - month.astype("datetime64[us]")
    return float(((month + months).astype("datetime64[us]") + within).astype(np.int64))
