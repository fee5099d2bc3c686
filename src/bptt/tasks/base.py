"""What is learned: a task turns the user's data into batches and knows which numbers tell whether it was learned.

    task → Batch(x, y, mask, reset) → model → Σ L(t)

A task lives in three forms: the user's options (`bptt.options`), the `Task` made from them by reading the data, and the
`spec()` that a run folder keeps, with which `predict` works without the training data.
"""

from abc import ABC, abstractmethod
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor, nn

from bptt.options import PredictOptions
from bptt.typed import Json


@dataclass(frozen=True)
class Batch:
    """One piece of work, time first. Only this process's rows: B is the number of lanes or sequences it was given.

    Attributes:
        x: symbols int64 [T, B], or values [T, B, D].
        y: targets: classes int64 [T, B], labels 0/1 [T, B], or values [T, B, K]; any value where mask is False.
        mask: bool, the shape of the losses ([T, B], or [T, B, K] for values): True where the loss counts.
        count: how many losses count in the whole batch, over all processes: the loss is Σ losses[mask] / count.
        reset: bool [T, B], True where a new document or series starts at that step; None where nothing does.
    """

    x: Tensor
    y: Tensor
    mask: Tensor
    count: int
    reset: Tensor | None = None

    def to(self, device: torch.device, dtype: torch.dtype) -> "Batch":
        """The same batch on `device`, its real numbers in `dtype`."""

        def move(t: Tensor) -> Tensor:
            return t.to(device, dtype if t.is_floating_point() else t.dtype)

        reset = None if self.reset is None else self.reset.to(device)
        return Batch(move(self.x), move(self.y), self.mask.to(device), self.count, reset)


@dataclass(frozen=True)
class Sizes:
    """What the network must fit: symbols in (an embedding) or values in, and the width and kind of the output."""

    outputs: int
    head: Literal["softmax", "sigmoid", "linear"]
    symbols: int | None = None
    inputs: int | None = None


@dataclass(frozen=True)
class Shard:
    """The rows of a global batch that belong to this process: rank r of `world` equal shares."""

    rank: int = 0
    world: int = 1

    def rows(self, total: int) -> slice:
        """Rows [r·total/world, (r+1)·total/world) of `total`; shares differ by one row where it does not divide."""
        return slice(self.rank * total // self.world, (self.rank + 1) * total // self.world)


class Stream(ABC):
    """An endless source of training batches that can say where it stands and go back there.

    `position()` describes the place of *all* lanes (every process knows it without communication), so that a run may be
    resumed with another number of processes. `seek(position())` followed by the next batch gives the same batch, bit for
    bit. One `epoch` is one pass over the training data.
    """

    @abstractmethod
    def __next__(self) -> Batch:
        """The next batch of this process."""

    def __iter__(self) -> Iterator[Batch]:
        return self

    @abstractmethod
    def position(self) -> Json:
        """Where the stream stands: whole numbers and lists of them, fit for JSON."""

    @abstractmethod
    def position_after(self, batches: int) -> Json:
        """The position after so many batches from the beginning."""

    @abstractmethod
    def seek(self, position: Json) -> None:
        """Go to a place that `position` named."""

    @property
    @abstractmethod
    def epoch(self) -> float:
        """How many passes over the training data are behind, e.g. 1.25."""


class Task(ABC):
    """A task with its data read and checked.

    Attributes:
        name: as on the command line.
        carries_state: True where the next batch goes on where the last one stopped (text, series): the hidden state is
            carried over. False where each batch starts from zero.
        unit: what one counted loss is called, plural ("characters", "forecasts", "sequences"): for progress.
        metric: name of `score`'s value ("bits per character", "mean squared error", …), smaller is better.
    """

    name: ClassVar[str]
    carries_state: ClassVar[bool]
    unit: ClassVar[str]
    metric: ClassVar[str]

    @abstractmethod
    def __init__(self, options: Any) -> None:
        """Read and check the data that `options` (the task's own dataclass) name. Raises InputError."""

    @abstractmethod
    def sizes(self) -> Sizes:
        """The sizes of the network."""

    @abstractmethod
    def stream(self, shard: Shard) -> Stream:
        """Training batches from the beginning; the same sequence at every call."""

    @abstractmethod
    def validation(self, shard: Shard) -> Iterator[Batch]:
        """The held-out part, once through, from zero state, in batches of which each goes on where the last stopped
        if `carries_state`. The same at every call.
        """

    @abstractmethod
    def score(self, loss: float) -> float:
        """The metric from a mean loss per counted element (nats → bits, scaled → …)."""

    @abstractmethod
    def report(self, model: nn.Module) -> Json:
        """The final words on held-out data: {name: number or text} with the honest yardsticks beside the model's own.

        Runs the model on its own device; leaves it in eval mode. Keys read as labels in a table, with units.
        """

    @abstractmethod
    def spec(self) -> Json:
        """What a run folder must keep to rebuild the network and to predict: vocabulary, scaling, columns; JSON only."""

    @abstractmethod
    def fingerprint(self) -> Json:
        """What identifies the data (sizes, rows, hashes): a resumed run compares it, and refuses other data."""

    @abstractmethod
    def encode_as(self, spec: Json) -> None:
        """From now on encode the data as the run with this `spec` did: other data than it was trained on, seen its way.

        Raises InputError where the data are not of the run's form.
        """

    @staticmethod
    @abstractmethod
    def predict(model: nn.Module, spec: Json, options: PredictOptions) -> Iterator[str]:
        """What `bptt predict` writes, piece by piece: text, or CSV lines with a header. Line ends are included.

        Everything that may be wrong with the user's data is checked before the first piece (InputError).
        """
