"""Errors of forecasts, beside those of the naive and the seasonal-naive forecast of the same values.

naive            ŷ(t+h) = y(t)
seasonal-naive   ŷ(t+h) = y(t+h − m·⌈h/m⌉)      the latest value known at t that lies whole seasons of m steps back

Source: Hyndman & Athanasopoulos, "Forecasting: principles and practice", 3rd edition, section 5.2.
"""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from bptt.tasks.series_encoding import Encoding, JoinedSeries
from bptt.typed import Json

Values = NDArray[np.float64]
Indices = NDArray[np.int64]


class ForecastErrors:
    """Adds up the errors of the network's forecasts and of the two yardsticks, over equal origins and horizons."""

    def __init__(self, encoding: Encoding, targets: int) -> None:
        self._encoding = encoding
        self._absolute = np.zeros((3, targets))  # Σ |error| of network, naive, seasonal-naive, in the data's units
        self._squared = np.zeros((3, targets))
        self._scaled = np.zeros(3)  # Σ (error / σ_h)²
        self._origins = 0

    def add(self, joined: JoinedSeries, at: Indices, z: Values) -> None:
        """Add the errors of the outputs z [n, N·K] at the places `at` [n], all of whose N future values are known."""
        scale = joined.scale[at][:, None]  # n, 1, K
        truth = joined.y[at[:, None] + np.arange(1, self._encoding.horizon + 1)] * scale  # n, N, K
        naive = joined.y[at][:, None] * scale
        seasonal = self._encoding.base(joined, at)[0] * scale
        for i, forecast in enumerate((self._encoding.forecasts(joined, at, z), naive, seasonal)):
            wrong = forecast - truth
            self._absolute[i] += np.abs(wrong).sum(axis=(0, 1))
            self._squared[i] += (wrong**2).sum(axis=(0, 1))
            self._scaled[i] += ((wrong / scale / self._encoding.errors) ** 2).sum()
        self._origins += len(at)

    def report(self, targets: Sequence[str], metric: str) -> Json:
        """Return mean absolute and root mean squared errors of each target, in its units, and `metric` over all of them."""
        season, horizon = self._encoding.season, self._encoding.horizon
        names = ["", ", naive (last value)"] + ([f", seasonal-naive (season {season})"] if season > 1 else [])
        count = self._origins * horizon
        out: Json = {}
        for k, target in enumerate(targets):
            for i, name in enumerate(names):
                out[f"{target}: mean absolute error{name}"] = float(self._absolute[i, k] / count)
            for i, name in enumerate(names):
                out[f"{target}: root mean squared error{name}"] = float(np.sqrt(self._squared[i, k] / count))
        for i, name in enumerate(names):
            out[f"{metric}{name or ', test'}"] = float(self._scaled[i] / (count * len(targets)))
        out["forecast horizon (steps)"] = horizon
        out["forecasts compared"] = self._origins
        return out
