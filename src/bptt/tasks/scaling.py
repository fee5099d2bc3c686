"""Standard scores: (value − mean) / standard deviation, column by column, from the training part alone."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from bptt.typed import Json

Values = NDArray[np.float64]

FARTHEST = 1e12
"""A score beyond this is no measurement, and little more has a square that float32 cannot hold."""

NARROWEST = 1e-100
"""A range below this, but above 0, has squares that may underflow to 0."""


@dataclass(frozen=True)
class Scaling:
    """Mean and standard deviation of D columns.

    Attributes:
        mean, std: [D], in the data's units; std is 1 where a column is constant.
    """

    mean: Values
    std: Values

    @classmethod
    def of(cls, values: Values) -> "Scaling":
        """Return the scaling that rows [N, D] define."""
        varies = np.ptp(values, axis=0) > 0  # the standard deviation of a constant may round to something above 0
        return cls(values.mean(axis=0), np.where(varies, values.std(axis=0), 1.0))

    def scale(self, values: Values) -> Values:
        """Return values [.., D] in the data's units as standard scores."""
        return (values - self.mean) / self.std

    def farthest(self, values: Values) -> tuple[int, int] | None:
        """Return the first row and column of values [N, D] whose score is beyond FARTHEST; None if none is."""
        return first_far(self.scale(values))

    def unscale(self, scores: Values) -> Values:
        """Return standard scores [.., D] in the data's units."""
        return scores * self.std + self.mean

    def json(self) -> Json:
        """Return it as JSON, for a run folder."""
        return {"mean": self.mean.tolist(), "std": self.std.tolist()}

    @classmethod
    def from_json(cls, json: Json) -> "Scaling":
        """Return the scaling that `json` wrote."""
        return cls(np.array(json["mean"], dtype=np.float64), np.array(json["std"], dtype=np.float64))


def first_far(scores: Values) -> tuple[int, int] | None:
    """Return the first row and column of scores [N, D] that is beyond FARTHEST; None if none is."""
    far = np.argwhere(~(np.abs(scores) <= FARTHEST))
    return (int(far[0, 0]), int(far[0, 1])) if len(far) else None


def narrow_column(values: Values) -> int | None:
    """Return the first column of [N, D] that varies by less than can be computed with; None if none does."""
    widths = np.ptp(values, axis=0)
    narrow = np.flatnonzero((widths > 0) & (widths < NARROWEST))
    return int(narrow[0]) if len(narrow) else None


NARROW = f"varies by less than {NARROWEST:g}, too little to compute with: write it in another unit"
FAR = f"more than {FARTHEST:g} standard deviations from the training data: mend the cell, or take it out"
"""The ends of sentences about a column and a cell."""
