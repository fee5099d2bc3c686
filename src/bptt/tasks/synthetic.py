"""What the two synthetic tasks share: new random sequences for every batch, and a fixed set of them for validation."""

from abc import abstractmethod
from collections.abc import Callable, Iterator
from typing import Any, ClassVar, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from bptt.errors import InputError
from bptt.options import AddingOptions, CopyOptions, PredictOptions
from bptt.tasks.base import Batch, Shard, Stream, Task
from bptt.typed import Json

VALIDATION_SEQUENCES = 1000
_TRAINING, _VALIDATION, _EXAMPLES = range(3)  # each draws from generators of its own


class Drawn(NamedTuple):
    """n sequences of T steps, time first; shapes as in `Batch`."""

    x: Tensor
    y: Tensor
    mask: Tensor


Draw = Callable[[int, int, np.random.Generator], Drawn]  # length, n, generator → n sequences


def _generator(purpose: int, seed: int, number: int) -> np.random.Generator:
    return np.random.default_rng([purpose, seed % 2**64, number])


def _batch(drawn: Drawn, shard: Shard) -> Batch:
    """Return the rows of this process as a batch; every process has drawn equal sequences."""
    x, y, mask = (a[:, shard.rows(a.shape[1])].contiguous() for a in drawn)
    return Batch(x, y, mask, int(drawn.mask.sum()))


class DrawnStream(Stream):
    """Training batches without end: batch s is drawn from a generator seeded by (seed, s), so s is the position."""

    def __init__(self, draw: Draw, length: int, batch: int, seed: int, shard: Shard) -> None:
        self._draw, self._length, self._batch = draw, length, batch
        self._seed, self._shard, self._step = seed, shard, 0

    def __next__(self) -> Batch:
        """Return the next batch; no sequence ever comes twice."""
        drawn = self._draw(self._length, self._batch, _generator(_TRAINING, self._seed, self._step))
        self._step += 1
        return _batch(drawn, self._shard)

    def position(self) -> Json:
        """The number of the next batch, from 0."""
        return self.position_after(self._step)

    def position_after(self, batches: int) -> Json:
        """The position after this many batches from the beginning."""
        return {"step": batches}

    def seek(self, position: Json) -> None:
        """Go to the batch of that number."""
        self._step = int(position["step"])

    @property
    def epoch(self) -> float:
        """Sequences so far, in units of the 1,000 that the validation has: the training data has no end."""
        return self._step * self._batch / VALIDATION_SEQUENCES


class Synthetic(Task):
    """A task whose sequences, all of one length, are drawn by `draw`; each batch starts from a zero state.

    Attributes:
        shortest: the least --length.
    """

    carries_state: ClassVar[bool] = False
    shortest: ClassVar[int]

    def __init__(self, options: AddingOptions | CopyOptions) -> None:
        if options.length < self.shortest:
            raise InputError(f"--length is {options.length}: the {self.name} problem needs {self.shortest} or more")
        if options.batch < 1:
            raise InputError(f"--batch is {options.batch}: 1 or more is wanted")
        self._options = options

    @staticmethod
    @abstractmethod
    def draw(length: int, n: int, generator: np.random.Generator) -> Drawn:
        """Return n random sequences, as --length says how long."""

    def stream(self, shard: Shard) -> DrawnStream:
        """Training batches: new sequences without end. Every process draws all of them, and takes its own rows."""
        o = self._options
        return DrawnStream(self.draw, o.length, o.batch, o.seed, shard)

    def validation(self, shard: Shard) -> Iterator[Batch]:
        """Batches of 1,000 sequences that training does not draw, of the training's size or more each."""
        o = self._options
        pieces = max(1, VALIDATION_SEQUENCES // o.batch)
        for i in range(pieces):
            rows = Shard(i, pieces).rows(VALIDATION_SEQUENCES)
            drawn = self.draw(o.length, rows.stop - rows.start, _generator(_VALIDATION, o.seed, i))
            yield _batch(drawn, shard)

    def score(self, loss: float) -> float:
        """Return the mean loss itself."""
        return loss

    def spec(self) -> Json:
        """What a run folder keeps: the length."""
        return {"length": self._options.length}

    def encode_as(self, spec: Json) -> None:
        """Do nothing: what is drawn needs no encoding."""

    def fingerprint(self) -> Json:
        """Return {}: there are no data but what the options describe."""
        return {}


def examples(draw: Draw, spec: Json, options: PredictOptions) -> Iterator[tuple[int, Batch]]:
    """Yield (number from 1, batch) for `options.length` new sequences, one by one."""
    for number in range(1, options.length + 1):
        drawn = draw(spec["length"], 1, _generator(_EXAMPLES, options.seed, number))
        yield number, _batch(drawn, Shard())


def check_examples(options: PredictOptions) -> None:
    """Raise InputError unless the options ask for examples, and name no data."""
    if options.length < 1:
        raise InputError(f"--length is {options.length}: at least 1 example is wanted")
    if options.data is not None:
        raise InputError(f"--data {options.data} cannot be used: examples of a synthetic task are drawn, leave it out")


def answers(model: nn.Module, batch: Batch) -> tuple[Batch, Tensor]:
    """Return the batch on the model's device, and the net outputs z_y [T, B, K] for it, from a zero state."""
    parameter: Any = next(model.parameters())
    there = batch.to(parameter.device, parameter.dtype)
    with torch.no_grad():
        z, _ = model(there.x)
    return there, z
