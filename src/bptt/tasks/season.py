"""The season of series: finding it, and where the seasonal-naive forecast looks back to.

naive            ŷ(t+h) = y(t)
seasonal-naive   ŷ(t+h) = y(t+h − m·⌈h/m⌉)      the latest value known at t that lies whole seasons of m steps back

Source: Hyndman & Athanasopoulos, "Forecasting: principles and practice", 3rd edition, section 5.2.
"""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

Values = NDArray[np.float64]
Indices = NDArray[np.int64]

CLEAR = 0.8
"""The least autocorrelation of a season, as a share of the highest: of a year's months it admits 12, but not 3."""


def lags(season: int, horizon: int) -> Indices:
    """Return how many steps before t the seasonal-naive forecast of t+h looks: m·⌈h/m⌉ − h for h = 1 … horizon, [N]."""
    h = np.arange(1, horizon + 1)
    return season * -(-h // season) - h


def find_season(series: Sequence[Values], horizon: int) -> int:
    """Return the steps of one season of these series, each [L, K]; 1 if there is none.

    The candidates are the clear peaks in the autocorrelation of the differences y(t) − y(t−1), averaged over series and
    columns. Among them the season is the one whose seasonal-naive forecast errs least, by mean |y(t) − y(t−m)|; where
    several err equally to within 1/√n, the uncertainty of a mean of n values, it is the shortest. A season fits three
    times into the shortest series, and leaves room for the horizon.
    """
    shortest = min(len(s) for s in series)
    longest = min(shortest // 3, shortest - horizon)
    if longest < 2:
        return 1
    scaled = [s / np.where(np.ptp(s, axis=0) > 0, s.std(axis=0), 1.0) for s in series]
    unsure = 1 / np.sqrt(sum(len(s) for s in series))
    candidates = _clear_peaks(scaled, longest, least=max(0.05, 5 * unsure))  # noise has about 1/√n at each of many lags
    if not candidates:
        return 1
    errors = [float(np.mean([np.abs(s[m:] - s[:-m]).mean() for s in scaled])) for m in candidates]
    return next(m for m, error in zip(candidates, errors, strict=True) if error <= (1 + unsure) * min(errors))


def _clear_peaks(scaled: Sequence[Values], longest: int, least: float) -> list[int]:
    """Return the lags below `longest` at which the autocorrelation of the differences peaks, at `least` or above.

    A clear peak also reaches CLEAR of the highest one.
    """
    correlation = np.mean([_autocorrelation(np.diff(s, axis=0), longest) for s in scaled], axis=0)  # lags 0 … longest
    peaks = [m for m in range(2, longest) if correlation[m - 1] < correlation[m] >= correlation[m + 1]]
    return [m for m in peaks if correlation[m] >= max(least, CLEAR * correlation[peaks].max())]


def _autocorrelation(values: Values, longest: int) -> Values:
    """Return the autocorrelation at lags 0 … longest, [longest + 1], averaged over the columns of [L, K]; by FFT."""
    centred = values - values.mean(axis=0)
    size = 2 ** int(np.ceil(np.log2(2 * len(values))))
    power = np.abs(np.fft.rfft(centred, n=size, axis=0)) ** 2
    products = np.fft.irfft(power, n=size, axis=0)[: longest + 1]
    at_zero = np.where(products[0] > 0, products[0], 1.0)
    correlation: Values = (products / at_zero).mean(axis=1)
    return correlation
