"""How the times of a column are written, and writing others in the same way."""

import datetime
from decimal import Decimal
from fractions import Fraction
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from bptt.errors import InputError
from bptt.tasks.reading.spacing import DAY, SECOND, Moment

_EPOCH = datetime.datetime(1970, 1, 1)
_CLOCKS = ("minutes", "seconds", "microseconds")


class Notation(NamedTuple):
    """How the times of a column are written.

    Attributes:
        dates: True where they are dates.
        zone: True where the dates came with their offset from UTC.
        decimals: the most decimal places that a number has; None: as many as it needs.
        padded: True where every number has that many, zeros at its end included.
        clock: what of the clock every date has at least: 0 nothing, 1 minutes, 2 seconds, 3 microseconds.
    """

    dates: bool = False
    zone: bool = False
    decimals: int | None = None
    padded: bool = False
    clock: int = 0


def write_moment(
    moment: Moment, dates: bool, zone: bool = False, decimals: int | None = None, padded: bool = False, clock: int = 0
) -> str:
    """Return a moment as text in a column's notation: a number, or a date in ISO 8601.

    Of a date's clock it writes what is not zero, and what the other dates of the column have: 2014-01-31 00:00 among hours.
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
    clock = max(clock, clock_of(np.array([moment])))
    if clock == 0:
        return when.date().isoformat()
    return when.isoformat(" ", _CLOCKS[clock - 1]) + ("Z" if zone else "")


def clock_of(moments: NDArray[Any]) -> int:
    """Return how much of the clock these dates (microseconds since 1970) need, as `Notation.clock`."""
    return sum(bool((moments % unit != 0).any()) for unit in (DAY, 60 * SECOND, SECOND))


def _write_number(moment: Moment, decimals: int | None, padded: bool) -> str:
    if isinstance(moment, int) and not (padded and decimals):
        return str(moment)
    if decimals is None:
        return f"{float(moment):.15g}"
    whole = round(Fraction(moment) * 10**decimals)
    text = f"{Decimal(whole).scaleb(-decimals):f}"
    return text if padded or "." not in text else text.rstrip("0").rstrip(".")
