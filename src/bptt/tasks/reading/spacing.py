"""The step from row to row of evenly spaced times: finding it, in numbers, in time or in months, and going on with it."""

import datetime
from dataclasses import dataclass
from fractions import Fraction
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from bptt.typed import Json

Ticks = NDArray[np.int64]
Moment = int | float | Fraction
"""A number, or the microseconds since 1970 of a date (UTC)."""

SECOND = 10**6  # in microseconds
DAY = 86400 * SECOND

DIGITS = 18
LARGEST = 2**62
"""Numbers of this many digits, and of this size, fit into 64 bits, and so does the difference of any two."""


@dataclass(frozen=True)
class Spacing:
    """The step from each row to the next.

    Attributes:
        kind: "number" or "date": every step adds `size` (a number, or microseconds); "months": `size` calendar months.
        size: see `kind`.
        month_end: with "months", True where the dates are the last days of their months.
    """

    kind: Literal["number", "date", "months"]
    size: Moment
    month_end: bool = False

    def after(self, last: Moment, steps: int) -> list[Moment]:
        """Return the moments of the `steps` rows that follow a row at `last`."""
        ahead = range(1, steps + 1)
        if self.kind != "months":
            return [last + self.size * k for k in ahead]
        return [_add_months(int(last), round(self.size) * k, self.month_end) for k in ahead]

    def words(self) -> str:
        """Return the step as a message names it: "0:30:00", "3 months"."""
        if self.kind == "months":
            return f"{round(self.size)} month{'s' if self.size > 1 else ''}"
        if self.kind == "date":
            return str(datetime.timedelta(microseconds=float(self.size)))
        return str(self.size) if isinstance(self.size, int) else f"{float(self.size):.10g}"

    def json(self) -> Json:
        """Return it as JSON, for a run folder."""
        size = self.size if isinstance(self.size, int) else float(self.size)
        return {"kind": self.kind, "size": size, "month_end": self.month_end}


def as_moment(value: Fraction) -> Moment:
    """Return a fraction as it is, and a whole number as int."""
    return int(value) if value.denominator == 1 else value


def commonest(steps: Ticks) -> int:
    """Return the step that occurs most often, where steps that differ by a millionth count as equal."""
    _, first, counts = np.unique(np.round(steps / steps[0], 6), return_index=True, return_counts=True)
    return int(steps[first[counts.argmax()]])


def even_spacing(ticks: Ticks, unit: int) -> tuple[Fraction, Fraction]:
    """Return the step between numbers that are even but for rounding, and where the last of them is without rounding.

    1/24 of a day is written 0.0416666667, and 0.1 + 0.2 as 0.30000000000000004. The step is the simplest fraction that
    explains all numbers to their last place or the rounding of float64, counted from the number with the fewest digits,
    which is likely to be exact.

    Args:
        ticks: the numbers in their last decimal place.
        unit: how many ticks are 1.
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
    """Return the last place of a tick that ends in as many zeros as any does."""
    power = 1
    while power < 10**DIGITS and (ticks % (10 * power) == 0).any():
        power *= 10
    return int(np.flatnonzero(ticks % power == 0)[-1])


def as_months(ticks: Ticks) -> tuple[Ticks, bool] | None:
    """Return (months since 1970, month end) of dates that are all on one day of their months, or the last, at one hour.

    Month end is True where that day is the last. None if they are not.
    """
    if len(ticks) < 2 or np.diff(ticks).min() < 28 * DAY:
        return None
    dates = ticks.astype("datetime64[us]")
    months = dates.astype("datetime64[M]")
    within = (dates - months).astype(np.int64)  # microseconds since the month began
    if (within == within[0]).all():
        return months.astype(np.int64), False
    left = ((months + 1).astype("datetime64[us]") - dates).astype(np.int64)
    if (left == left[0]).all() and left[0] <= DAY:
        return months.astype(np.int64), True
    return None


def _add_months(moment: int, months: int, month_end: bool) -> int:
    """Return the date some months later: on its day, in a shorter month or with `month_end` on the month's last day."""
    date = np.int64(moment).astype("datetime64[us]")
    month = date.astype("datetime64[M]")
    days, clock = divmod(int((date - month.astype("datetime64[us]")).astype(np.int64)), DAY)
    begin, end = (int((month + months + n).astype("datetime64[us]").astype(np.int64)) for n in (0, 1))
    last = (end - begin) // DAY - 1
    return begin + (last if month_end else min(days, last)) * DAY + clock


def is_month_end(moment: Moment) -> bool:
    """Return whether a date is on the last day of its month."""
    date = np.int64(int(moment)).astype("datetime64[us]").astype("datetime64[D]")
    return bool((date + 1).astype("datetime64[M]") != date.astype("datetime64[M]"))
