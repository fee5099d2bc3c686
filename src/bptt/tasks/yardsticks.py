"""What a forecast has to beat: the last value, and the value of one season ago (Hyndman & Athanasopoulos, fpp3, 5.2).

naive            ŷ(t+h) = y(t)
seasonal-naive   ŷ(t+h) = y(t+h − m·⌈h/m⌉)      the latest value known at t that lies whole seasons of m steps back
"""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

Values = NDArray[np.float64]
Indices = NDArray[np.int64]

CLEAR = 0.8
"""A season's autocorrelation is at least so much of the highest: months 12, not 3, of a year."""


def lags(season: int, horizon: int) -> Indices:
    """How far before t the seasonal-naive forecast of t+h looks: m·⌈h/m⌉ − h for h = 1 … horizon, [N]."""
    h = np.arange(1, horizon + 1)
    return season * -(-h // season) - h


def find_season(series: Sequence[Values], horizon: int) -> int:
    """The steps of one season of these series, each [L, K]; 1 if there is none.

    The candidates are the clear peaks in the autocorrelation of the differences y(t) − y(t−1), averaged over series and
    columns; of these, the one whose seasonal-naive forecast errs least: mean |y(t) − y(t−m)|, and of several within the
    1/√n that a mean of n values is sure to, the shortest. A season must fit three times into the shortest series, and leave
    room for the horizon.
    """
    shortest = min(len(s) for s in series)
    longest = min(shortest // 3, shortest - horizon)
    if longest < 2:
        return 1
    scaled = [s / np.where(np.ptp(s, axis=0) > 0, s.std(axis=0), 1.0) for s in series]
    correlation = np.mean([_autocorrelation(np.diff(s, axis=0), longest) for s in scaled], axis=0)  # lags 0 … longest
    unsure = 1 / np.sqrt(sum(len(s) for s in series))
    enough = max(0.05, 5 * unsure)  # noise has about 1/√n at each of many lags
    peaks = [m for m in range(2, longest) if correlation[m - 1] < correlation[m] >= correlation[m + 1]]
    peaks = [m for m in peaks if correlation[m] >= max(enough, CLEAR * correlation[peaks].max())]
    if not peaks:
        return 1
    errors = [float(np.mean([np.abs(s[m:] - s[:-m]).mean() for s in scaled])) for m in peaks]
    return next(m for m, error in zip(peaks, errors, strict=True) if error <= (1 + unsure) * min(errors))


def _autocorrelation(values: Values, longest: int) -> Values:
    """Autocorrelation at lags 0 … longest of each column of [L, K], averaged over the columns, by FFT."""
    centred = values - values.mean(axis=0)
    size = 2 ** int(np.ceil(np.log2(2 * len(values))))
    power = np.abs(np.fft.rfft(centred, n=size, axis=0)) ** 2
    products = np.fft.irfft(power, n=size, axis=0)[: longest + 1]
    at_zero = np.where(products[0] > 0, products[0], 1.0)
    correlation: Values = (products / at_zero).mean(axis=1)
    return correlation
