"""What a task is: it turns the user's data into batches, and judges what was learned from them.

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
    """One batch, time first, with the rows of one process: B lanes or sequences.

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
        """Return the batch on `device`, with its real numbers in `dtype`."""

        def move(t: Tensor) -> Tensor:
            return t.to(device, dtype if t.is_floating_point() else t.dtype)

        reset = None if self.reset is None else self.reset.to(device)
        return Batch(move(self.x), move(self.y), self.mask.to(device), self.count, reset)


@dataclass(frozen=True)
class Sizes:
    """The sizes that the data give a network: how many symbols (embedded) or values come in, and what comes out."""

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
        """Return rows [r·total/world, (r+1)·total/world) of `total`: shares that differ by one row at most."""
        return slice(self.rank * total // self.world, (self.rank + 1) * total // self.world)


class Stream(ABC):
    """An endless source of training batches that knows its position, and can go to any other.

    `position()` describes the place of *all* lanes (every process knows it without communication), so that a run may be
    resumed with another number of processes. `seek(position())` followed by the next batch gives the same batch, bit for
    bit. One `epoch` is one pass over the training data.
    """

    @abstractmethod
    def __next__(self) -> Batch:
        """Return the next batch of this process."""

    def __iter__(self) -> Iterator[Batch]:
        return self

    @abstractmethod
    def position(self) -> Json:
        """Return where the stream stands: whole numbers by name, fit for JSON."""

    @abstractmethod
    def position_after(self, batches: int) -> Json:
        """Return the position after this many batches from the beginning."""

    @abstractmethod
    def seek(self, position: Json) -> None:
        """Go to a position that `position` returned."""

    @property
    @abstractmethod
    def epoch(self) -> float:
        """Passes over the training data so far, e.g. 1.25."""


class Task(ABC):
    """A task, with its data read and checked.

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
        """Return the sizes of the network."""

    @abstractmethod
    def stream(self, shard: Shard) -> Stream:
        """Return the training batches from the beginning; equal ones at every call."""

    @abstractmethod
    def validation(self, shard: Shard) -> Iterator[Batch]:
        """Yield the held-out part once, from a zero state; equal batches at every call.

        Each batch goes on where the last one stopped if `carries_state`.
        """

    @abstractmethod
    def score(self, loss: float) -> float:
        """Return the metric of a mean loss per counted element: bits for nats, for example."""

    @abstractmethod
    def report(self, model: nn.Module) -> Json:
        """Return how good the model is on held-out data, beside honest yardsticks: {name: number or text}.

        The model runs on its own device, and is left in eval mode. Names read as labels in a table, with units.
        """

    @abstractmethod
    def spec(self) -> Json:
        """Return what a run folder keeps to rebuild the network and to predict (vocabulary, scaling, columns), as JSON."""

    @abstractmethod
    def fingerprint(self) -> Json:
        """Return what identifies the data (sizes, rows, hashes): a resumed run compares it, and refuses other data."""

    @abstractmethod
    def encode_as(self, spec: Json) -> None:
        """Encode the data from now on as the run with this `spec` encoded its own.

        Raises InputError if the data do not have the form of the run's.
        """

    @staticmethod
    @abstractmethod
    def predict(model: nn.Module, spec: Json, options: PredictOptions) -> Iterator[str]:
        """Return what `bptt predict` writes, piece by piece: text, or CSV lines with a header, ends of lines included.

        Whatever may be wrong with the user's data raises InputError before the first piece.
        """
