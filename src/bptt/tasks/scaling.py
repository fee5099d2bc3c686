"""Standard scores: (value − mean) / standard deviation, column by column, from the training part alone."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from bptt.tasks.base import Json

Values = NDArray[np.float64]


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
        """The scaling of these rows [N, D]."""
        varies = np.ptp(values, axis=0) > 0  # the standard deviation of a constant may round to something above 0
        return cls(values.mean(axis=0), np.where(varies, values.std(axis=0), 1.0))

    def scale(self, values: Values) -> Values:
        """From the data's units to standard scores, [.., D]."""
        return (values - self.mean) / self.std

    def unscale(self, scores: Values) -> Values:
        """From standard scores to the data's units, [.., D]."""
        return scores * self.std + self.mean

    def json(self) -> Json:
        """As lists of numbers."""
        return {"mean": self.mean.tolist(), "std": self.std.tolist()}

    @classmethod
    def from_json(cls, json: Json) -> "Scaling":
        """Read what `json` wrote."""
        return cls(np.array(json["mean"], dtype=np.float64), np.array(json["std"], dtype=np.float64))
