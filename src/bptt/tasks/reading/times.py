"""Reading the time column of a table: numbers or dates, checked to rise evenly.

Times are whole numbers of ticks: microseconds for dates, and for numbers the last decimal place that is written. So no time
is rounded, however large: nanoseconds since 1970 need 61 bits, of which float64 has 53.
"""

from dataclasses import dataclass
from decimal import Decimal
from fractions import Fraction
from typing import Literal

import numpy as np
import polars as pl
from numpy.typing import NDArray

from bptt.errors import InputError
from bptt.tasks.reading.notation import Notation, clock_of
from bptt.tasks.reading.spacing import (
    DIGITS,
    LARGEST,
    Moment,
    Spacing,
    Ticks,
    as_moment,
    as_months,
    commonest,
    even_spacing,
)
from bptt.tasks.reading.table import Table, short


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
        """Raise InputError unless the time rises from each of these rows to the next.

        Args:
            rows: the rows of one series or sequence.
            of: its name, for the message; "" if it has none.
        """
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
        """Return the one step between these rows, two or more. Raises InputError if they are not evenly spaced."""
        return self.course(rows, of)[0]

    def course(self, rows: NDArray[np.int64], of: str) -> tuple[Spacing, Moment]:
        """Return the one step between these rows, two or more, and the moment of the last. Raises as `spacing` does."""
        self.check_rising(rows, of)
        ticks = self.ticks[rows]
        months = as_months(ticks) if self.dates else None
        if months is not None:
            places, month_end = months
            spacing = Spacing("months", commonest(np.diff(places)), month_end)
            self._check_even(rows, np.diff(places), spacing, float(spacing.size), of)
            return spacing, int(ticks[-1])
        steps = np.diff(ticks)
        unit = 10 ** (self.notation.decimals or 0)
        size = commonest(steps)
        kind: Literal["number", "date"] = "date" if self.dates else "number"
        self._check_even(rows, steps, Spacing(kind, as_moment(Fraction(size, unit))), size, of)
        step, last = (Fraction(size, unit), Fraction(int(ticks[-1]), unit)) if self.dates else even_spacing(ticks, unit)
        return Spacing(kind, as_moment(step)), as_moment(last)

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


def read_times(table: Table, column: str) -> Times:
    """Return the times of a table's rows. Raises InputError for a cell that is neither a number nor a date."""
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
    """Return times that are numbers, to their last written place, or to the last that fits into 64 bits."""
    moments = table.numbers(column)  # which refuses what is no number
    largest = float(np.abs(moments).max())
    cells = table.frame[column]
    if cells.dtype == pl.Boolean:
        cells = cells.cast(pl.Int8)
    numbers = [Decimal(text.strip()) for text in cells.cast(pl.String).to_list()]
    if largest >= LARGEST:
        row = max(range(len(numbers)), key=lambda i: abs(numbers[i]))
        raise InputError(
            f"{table.at(row)}: column {column!r} is {short(cells[row])}, too large for a time: wanted one of up to "
            f"{DIGITS} digits, count from another moment"
        )
    places = {max(0, -int(n.as_tuple().exponent)) for n in numbers}
    decimals = min(max(places), DIGITS)
    while largest * 10**decimals >= LARGEST:
        decimals -= 1
    ticks = np.array([_scaled(n, decimals) for n in numbers], dtype=np.int64)
    return Times(table, column, ticks, moments, Notation(decimals=decimals, padded=places == {decimals}))


def _scaled(number: Decimal, decimals: int) -> int:
    """Return the whole number nearest to number · 10^decimals."""
    return int(number.scaleb(decimals).to_integral_value()) if number else 0


_FORMATS = tuple(
    f"{day}{clock}{zone}"
    for day in ("%Y-%m-%d", "%Y/%m/%d", "%Y%m%d")
    for clock in ("", " %H:%M:%S%.f", "T%H:%M:%S%.f", " %H:%M", "T%H:%M")
    for zone in (("", "%#z", " %#z") if clock else ("",))
)


def _parse_dates(table: Table, column: str, texts: pl.Series) -> tuple[pl.Series, bool]:
    """Return dates that are written in one ISO 8601 form, and whether that has an offset from UTC. Raises InputError."""
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
    return Times(table, column, ticks, ticks.astype(np.float64), Notation(dates=True, zone=zone, clock=clock_of(ticks)))
