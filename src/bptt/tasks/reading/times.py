"""The time column of a table: numbers or dates, checked to rise evenly, and continued beyond its end.

Times are whole numbers of ticks: microseconds for dates, and for numbers the last decimal place that is written. So no time
is rounded, however large: nanoseconds since 1970 need 61 bits, of which float64 has 53.
"""

import datetime
from dataclasses import dataclass
from decimal import Decimal
from fractions import Fraction
from typing import Any, Literal, NamedTuple

import numpy as np
import polars as pl
from numpy.typing import NDArray

from bptt.errors import InputError
from bptt.tasks.reading.csv_and_parquet import Table, short
from bptt.typed import Json

Ticks = NDArray[np.int64]
Moment = int | float | Fraction
"""A number, or the microseconds since 1970 of a date (UTC)."""

SECOND = 10**6

_DAY = 86400 * SECOND
_EPOCH = datetime.datetime(1970, 1, 1)
_DIGITS = 18
_LARGEST = 2**62
"""So many digits and such numbers fit into 64 bits, and so does the difference of any two."""


@dataclass(frozen=True)
class Spacing:
    """The step from each row to the next.

    Attributes:
        kind: "number" or "date": every step adds `size` (a number, or microseconds); "months": `size` calendar months.
        size: see there.
        month_end: with "months", True where the dates are the last days of their months.
    """

    kind: Literal["number", "date", "months"]
    size: Moment
    month_end: bool = False

    def after(self, last: Moment, steps: int) -> list[Moment]:
        """The moments of the next `steps` rows after a row at `last`."""
        ahead = range(1, steps + 1)
        if self.kind != "months":
            return [last + self.size * k for k in ahead]
        return [_add_months(int(last), round(self.size) * k, self.month_end) for k in ahead]

    def words(self) -> str:
        """For a message: "0:30:00", "3 months"."""
        if self.kind == "months":
            return f"{round(self.size)} month{'s' if self.size > 1 else ''}"
        if self.kind == "date":
            return str(datetime.timedelta(microseconds=float(self.size)))
        return str(self.size) if isinstance(self.size, int) else f"{float(self.size):.10g}"

    def json(self) -> Json:
        """As JSON."""
        size = self.size if isinstance(self.size, int) else float(self.size)
        return {"kind": self.kind, "size": size, "month_end": self.month_end}


class Notation(NamedTuple):
    """How the times of a column are written.

    Attributes:
        dates: True where they are dates.
        zone: True where the dates came with their offset from UTC.
        decimals: the most decimal places that a number has; None: as many as it needs.
        padded: True where every number has so many, zeros at its end included.
        clock: what of the clock every date has at least: 0 nothing, 1 minutes, 2 seconds, 3 microseconds.
    """

    dates: bool = False
    zone: bool = False
    decimals: int | None = None
    padded: bool = False
    clock: int = 0


@dataclass(frozen=True)
class Times:
    """The times of a table's rows.

    Attributes:
        table, column: where they come from.
        ticks: the last decimal places of numbers, or microseconds since 1970, [rows].
        moments: numbers, or microseconds since 1970, [rows], as near as float64 comes.
        notation: how they are written.
    """

    table: Table
    column: str
    ticks: Ticks
    moments: NDArray[np.float64]
    notation: Notation

    @property
    def dates(self) -> bool:
        """True where they are dates."""
        return self.notation.dates

    @property
    def zone(self) -> bool:
        """True where the dates came with their offset from UTC."""
        return self.notation.zone

    def check_rising(self, rows: NDArray[np.int64], of: str) -> None:
        """Raise InputError unless the time rises from each of these rows to the next. `of`: whose, "" if nobody's."""
        ticks = self.ticks[rows]
        stuck = np.flatnonzero(ticks[1:] <= ticks[:-1])
        if not len(stuck):
            return
        before, here = int(rows[stuck[0]]), int(rows[stuck[0] + 1])
        twice = self.ticks[before] == self.ticks[here]
        what = "comes a second time" if twice else f"comes after {self._cell(before)}"
        remedy = "keep one row for each time" if twice else "sort the rows by time"
        if not of:
            remedy += ", or if the file holds several series name the column that tells them apart with --id"
        raise InputError(f"{self._at(here, of)} is {self._cell(here)}, which {what}: {remedy}")

    def spacing(self, rows: NDArray[np.int64], of: str) -> Spacing:
        """The one step between these rows (two or more). Raises InputError where it is not the same throughout."""
        return self.course(rows, of)[0]

    def course(self, rows: NDArray[np.int64], of: str) -> tuple[Spacing, Moment]:
        """The one step between these rows (two or more), and the moment of the last. Raises InputError as `spacing`."""
        self.check_rising(rows, of)
        ticks = self.ticks[rows]
        months = _months(ticks) if self.dates else None
        if months is not None:
            places, month_end = months
            spacing = Spacing("months", _commonest(np.diff(places)), month_end)
            self._check_even(rows, np.diff(places), spacing, float(spacing.size), of)
            return spacing, int(ticks[-1])
        steps = np.diff(ticks)
        unit = 10 ** (self.notation.decimals or 0)
        size = _commonest(steps)
        kind: Literal["number", "date"] = "date" if self.dates else "number"
        self._check_even(rows, steps, Spacing(kind, _plain(Fraction(size, unit))), size, of)
        step, last = (Fraction(size, unit), Fraction(int(ticks[-1]), unit)) if self.dates else _line(ticks, unit)
        return Spacing(kind, _plain(step)), _plain(last)

    def _check_even(self, rows: NDArray[np.int64], steps: Ticks, wanted: Spacing, size: float, of: str) -> None:
        odd = np.flatnonzero(np.abs(steps - size) > 1e-4 * size)  # 0.1 + 0.1 + … is not quite even
        if len(odd):
            before, here = int(rows[odd[0]]), int(rows[odd[0] + 1])
            raise InputError(
                f"{self._at(here, of)} goes from {self._cell(before)} to {self._cell(here)}, wanted a step of "
                f"{wanted.words()} as elsewhere: fill the gap (or take the row out), or leave out --time if the rows are "
                "evenly spaced in their own way, as trading days are"
            )

    def _at(self, row: int, of: str) -> str:
        return f"{self.table.at(row)}: column {self.column!r}" + (f" of {of!r}" if of else "")

    def _cell(self, row: int) -> str:
        return short(self.table.frame[self.column][row])


def _plain(value: Fraction) -> Moment:
    """A whole number as such."""
    return int(value) if value.denominator == 1 else value


def _commonest(steps: Ticks) -> int:
    """The step that occurs most often, but for a millionth of it."""
    _, first, counts = np.unique(np.round(steps / steps[0], 6), return_index=True, return_counts=True)
    return int(steps[first[counts.argmax()]])


def _line(ticks: Ticks, unit: int) -> tuple[Fraction, Fraction]:
    """The step between numbers that are all but even, and where the last of them would be if they were even.

    1/24 of a day is written 0.0416666667, and 0.1 + 0.2 as 0.30000000000000004: the simplest fraction is sought that all
    follow but for their last place or the rounding of float64, counted from the number with the fewest digits, which is
    likely to be exact. `unit`: ticks in 1.
    """
    mean, last = Fraction(int(ticks[-1]) - int(ticks[0]), (len(ticks) - 1) * unit), Fraction(int(ticks[-1]), unit)
    if (np.diff(ticks) == ticks[1] - ticks[0]).all():
        return mean, last
    anchor = _roundest(ticks)
    place, since = np.arange(len(ticks)) - anchor, ticks - ticks[anchor]
    rounding = max(1.0, 1e-9 * unit * float(mean), 2.0**-52 * float(np.abs(ticks).max()))
    for digits in range(12):
        step = mean.limit_denominator(10**digits)
        whole, rest = divmod(step * unit, 1)
        off = (since - place * int(whole)) - place * float(rest)
        if np.abs(off).max() <= rounding:
            return step, Fraction(int(ticks[anchor]), unit) + step * int(place[-1])
    return mean, last


def _roundest(ticks: Ticks) -> int:
    """The last place of the ticks with the most zeros at their end."""
    power = 1
    while power < 10**_DIGITS and (ticks % (10 * power) == 0).any():
        power *= 10
    return int(np.flatnonzero(ticks % power == 0)[-1])


def write_moment(
    moment: Moment, dates: bool, zone: bool = False, decimals: int | None = None, padded: bool = False, clock: int = 0
) -> str:
    """A moment as text: a number, or a date in ISO 8601 without the parts that are zero at its end, beyond those that the
    others have: 2014-01-31 00:00 among hours.

    Raises InputError for a date outside the years 1 to 9999. Arguments as in `Notation`.
    """
    if not dates:
        return _write_number(moment, decimals, padded)
    try:
        when = _EPOCH + datetime.timedelta(microseconds=round(moment))
    except OverflowError:
        raise InputError(
            "a forecast would go beyond the year 9999, the last that a date can have: use a column of numbers as --time, or "
            "leave --time out"
        ) from None
    clock = max(clock, _clock_of(np.array([moment])))
    if clock == 0:
        return when.date().isoformat()
    return when.isoformat(" ", _CLOCKS[clock - 1]) + ("Z" if zone else "")


_CLOCKS = ("minutes", "seconds", "microseconds")


def _clock_of(moments: NDArray[Any]) -> int:
    """How much of the clock dates need, as in `Notation`."""
    return sum(bool((moments % unit != 0).any()) for unit in (_DAY, 60 * SECOND, SECOND))


def _write_number(moment: Moment, decimals: int | None, padded: bool) -> str:
    if isinstance(moment, int) and not (padded and decimals):
        return str(moment)
    if decimals is None:
        return f"{float(moment):.15g}"
    whole = round(Fraction(moment) * 10**decimals)
    text = f"{Decimal(whole).scaleb(-decimals):f}"
    return text if padded or "." not in text else text.rstrip("0").rstrip(".")


def read_times(table: Table, column: str) -> Times:
    """The time column of a table. Raises InputError for a cell that is neither a number nor a date."""
    cells = table.frame[column]
    if cells.dtype == pl.String:
        texts = pl.Series(table.texts(column))
        days = texts.str.contains(r"^(19|20)\d{6}$").all()  # 20140131
        if not days and texts.head(1).cast(pl.Float64, strict=False).null_count() == 0:
            return _read_numbers(table, column)
        dates, zone = _parse_dates(table, column, texts)
        return _of_dates(table, column, dates, zone)
    if cells.dtype in (pl.Date, pl.Datetime):
        if cells.null_count():
            raise InputError(
                f"{table.at(int(cells.is_null().to_numpy().argmax()))}: column {column!r} is empty: fill it in"
            )
        zone = isinstance(cells.dtype, pl.Datetime) and cells.dtype.time_zone is not None
        return _of_dates(table, column, cells, zone)
    return _read_numbers(table, column)


def _read_numbers(table: Table, column: str) -> Times:
    """Numbers to their last written place; where not all places fit into 64 bits, to the last that do."""
    moments = table.numbers(column)  # which refuses what is no number
    largest = float(np.abs(moments).max())
    cells = table.frame[column]
    if cells.dtype == pl.Boolean:
        cells = cells.cast(pl.Int8)
    numbers = [Decimal(text.strip()) for text in cells.cast(pl.String).to_list()]
    if largest >= _LARGEST:
        row = max(range(len(numbers)), key=lambda i: abs(numbers[i]))
        raise InputError(
            f"{table.at(row)}: column {column!r} is {short(cells[row])}, too large for a time: wanted one of up to "
            f"{_DIGITS} digits, count from another moment"
        )
    places = {max(0, -int(n.as_tuple().exponent)) for n in numbers}
    decimals = min(max(places), _DIGITS)
    while largest * 10**decimals >= _LARGEST:
        decimals -= 1
    ticks = np.array([_scaled(n, decimals) for n in numbers], dtype=np.int64)
    return Times(table, column, ticks, moments, Notation(decimals=decimals, padded=places == {decimals}))


def _scaled(number: Decimal, decimals: int) -> int:
    """The whole number nearest to number · 10^decimals."""
    return int(number.scaleb(decimals).to_integral_value()) if number else 0


_FORMATS = tuple(
    f"{day}{clock}{zone}"
    for day in ("%Y-%m-%d", "%Y/%m/%d", "%Y%m%d")
    for clock in ("", " %H:%M:%S%.f", "T%H:%M:%S%.f", " %H:%M", "T%H:%M")
    for zone in (("", "%#z", " %#z") if clock else ("",))
)


def _parse_dates(table: Table, column: str, texts: pl.Series) -> tuple[pl.Series, bool]:
    """Dates in one of the ISO 8601 forms, the same on every row, and whether it holds an offset from UTC."""
    if texts.str.contains(r"^\d{4}-\d{2}$").all():  # a month
        texts = texts + "-01"
    whole = texts.str.replace(r"Z$", "+00:00")
    _check_microseconds(table, column, texts.str.contains(r"\.\d{6}\d*[1-9]"))
    best: pl.Series | None = None
    for form in _FORMATS:
        if whole.head(1).str.to_datetime(form, strict=False, time_unit="us").null_count():
            continue
        parsed = whole.str.to_datetime(form, strict=False, time_unit="us")
        if parsed.null_count() == 0:
            return parsed, form.endswith("z")
        if best is None or parsed.null_count() < best.null_count():
            best = parsed
    row = 0 if best is None else int(best.is_null().to_numpy().argmax())
    also = f", written as on row {table.first}" if row else ""
    raise InputError(
        f"{table.at(row)}: column {column!r} is {short(texts[row])}, wanted a number or a date such as 2014-01-31 or "
        f"2014-01-31 23:30{also}: mend the cell"
    )


def _check_microseconds(table: Table, column: str, finer: pl.Series) -> None:
    """Raise InputError if a date is finer than a microsecond: it would be rounded silently."""
    if finer.any():
        row = int(finer.to_numpy().argmax())
        raise InputError(
            f"{table.at(row)}: column {column!r} is {short(table.frame[column][row])}, finer than a microsecond, which a "
            "date cannot hold: write the times as numbers, e.g. nanoseconds since 1970"
        )


def _of_dates(table: Table, column: str, dates: pl.Series, zone: bool) -> Times:
    if isinstance(dates.dtype, pl.Datetime) and dates.dtype.time_unit == "ns":
        _check_microseconds(table, column, dates.dt.timestamp("ns") % 1000 != 0)
    ticks = dates.dt.timestamp("us").to_numpy().astype(np.int64)
    return Times(
        table, column, ticks, ticks.astype(np.float64), Notation(dates=True, zone=zone, clock=_clock_of(ticks))
    )


def _months(ticks: Ticks) -> tuple[Ticks, bool] | None:
    """The dates as numbers of months, if each is on the same day of its month (or the last) at the same hour, else None."""
    if len(ticks) < 2 or np.diff(ticks).min() < 28 * _DAY:
        return None
    dates = ticks.astype("datetime64[us]")
    months = dates.astype("datetime64[M]")
    within = (dates - months).astype(np.int64)  # microseconds since the month began
    if (within == within[0]).all():
        return months.astype(np.int64), False
    left = ((months + 1).astype("datetime64[us]") - dates).astype(np.int64)
    if (left == left[0]).all() and left[0] <= _DAY:
        return months.astype(np.int64), True
    return None


def _add_months(moment: int, months: int, month_end: bool) -> int:
    """So many months later, on the same day (in a shorter month on its last) or, with `month_end`, on the month's last."""
    date = np.int64(moment).astype("datetime64[us]")
    month = date.astype("datetime64[M]")
    days, clock = divmod(int((date - month.astype("datetime64[us]")).astype(np.int64)), _DAY)
    begin, end = (int((month + months + n).astype("datetime64[us]").astype(np.int64)) for n in (0, 1))
    last = (end - begin) // _DAY - 1
    return begin + (last if month_end else min(days, last)) * _DAY + clock


def is_month_end(moment: Moment) -> bool:
    """Whether a date is the last day of its month."""
    date = np.int64(int(moment)).astype("datetime64[us]").astype("datetime64[D]")
    return bool((date + 1).astype("datetime64[M]") != date.astype("datetime64[M]"))
