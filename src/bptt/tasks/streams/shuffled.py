"""Training batches of whole sequences, in an order that is shuffled for each pass over them."""

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from bptt.tasks.base import Batch, Stream
from bptt.typed import Json

Places = NDArray[np.int64]


class ShuffledStream(Stream):
    """Batches of shuffled sequences; each epoch has an order of its own, drawn from (seed, epoch) alone.

    A batch always has its full size: where an epoch ends in the middle of one, the next epoch fills it.
    """

    def __init__(self, total: int, batch: int, seed: int, make: Callable[[Places], Batch]) -> None:
        """Begin with the first epoch.

        Args:
            total: how many sequences there are.
            batch: how many of them are in each batch, over all processes.
            seed: of the orders.
            make: makes the batch of the sequences at these places.
        """
        self._total, self._batch, self._seed, self._make = total, batch, seed, make
        self._epoch, self._index = 0, 0

    def __next__(self) -> Batch:
        places: list[int] = []
        while len(places) < self._batch:
            order = np.random.default_rng([self._seed, self._epoch]).permutation(self._total)
            taken = order[self._index : self._index + self._batch - len(places)]
            places += taken.tolist()
            self._index += len(taken)
            if self._index == self._total:
                self._epoch, self._index = self._epoch + 1, 0
        return self._make(np.array(places))

    def position(self) -> Json:
        """The epoch, and how many of its sequences are behind."""
        return {"epoch": self._epoch, "index": self._index}

    def position_after(self, batches: int) -> Json:
        """The position after this many batches from the beginning."""
        epoch, index = divmod(batches * self._batch, self._total)
        return {"epoch": epoch, "index": index}

    def seek(self, position: Json) -> None:
        """Go to a place that `position` named."""
        self._epoch, self._index = int(position["epoch"]), int(position["index"])

    @property
    def epoch(self) -> float:
        """Passes over the training sequences."""
        return self._epoch + self._index / self._total
