"""A text side by side: each row of a batch, a lane, reads a stretch of its own.

input   START  c_1  c_2 … c_{n-1}        START, and a reset of that row alone, wherever a document begins
target  c_1    c_2  c_3 … c_n            so every character is predicted exactly once
"""

from collections.abc import Iterator

import numpy as np
import torch

from bptt.errors import InputError
from bptt.tasks.base import Batch, Shard, Stream
from bptt.tasks.reading.characters import Characters, Ints
from bptt.tasks.reading.vocabulary import START, UNKNOWN, Symbols, Vocabulary
from bptt.typed import Json

WARM_UP = 256  # characters of context that a lane of the held-out part reads before the first that it is judged by


class Lane:
    """Characters [begin, end) of a text, read as if a document began at the first."""

    def __init__(self, text: Characters, vocabulary: Vocabulary, begin: int, end: int) -> None:
        self._text, self._vocabulary = text, vocabulary
        self.begin, self.end = begin, end
        self._block: Symbols = np.empty(0, dtype=np.int32)
        self._block_begin = self._block_end = 0  # numbers of the characters that the block holds

    def read(self, at: int, x: Ints, y: Ints) -> None:
        """Fill inputs x and targets y [n] with the lane's characters from its `at`-th on; its first follows its last.

        What was read before makes no difference.
        """
        length, done = self.end - self.begin, 0
        while done < len(x):
            offset = (at + done) % length
            n = self._copy(self.begin + offset, min(len(x) - done, length - offset), x[done:], y[done:])
            if offset == 0:
                x[done] = START
            done += n

    def _copy(self, character: int, most: int, x: Ints, y: Ints) -> int:
        """Copy up to `most` characters from the block that holds `character`, and return how many."""
        if not self._block_begin <= character < self._block_end:
            number = self._text.block_of(character)
            self._block = self._text.symbols(number, self._vocabulary)
            self._block_begin, self._block_end = self._text.first(number), self._text.first(number + 1)
        at = character - self._block_begin
        n = min(most, self._block_end - character)
        x[:n] = self._block[at : at + n]
        y[:n] = self._block[at + 1 : at + 1 + n]
        return n


def borders(total: int, lanes: int) -> Ints:
    """Return where lanes begin, [lanes + 1]: lane b reads [borders[b], borders[b + 1]), shares equal to one character."""
    return np.arange(lanes + 1, dtype=np.int64) * total // lanes


def _tensors(x: Ints, y: Ints) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor | None]:
    """Return inputs and targets [B, T] as tensors x, y and reset, time first."""
    x = np.ascontiguousarray(x.T)
    starts = x == START
    reset = torch.from_numpy(starts) if starts.any() else None
    return torch.from_numpy(x), torch.from_numpy(np.ascontiguousarray(y.T)), reset


class TextStream(Stream):
    """Training batches: all lanes advance by `chunk` characters in each, and a lane that has ended begins again.

    Every lane has read equally many characters, so that number is the position of all; the index of `Characters` turns it
    into a byte of a file.
    """

    def __init__(self, text: Characters, vocabulary: Vocabulary, lanes: int, chunk: int, shard: Shard) -> None:
        ends = borders(text.total, lanes)
        mine = range(lanes)[shard.rows(lanes)]
        self._lanes = [Lane(text, vocabulary, int(ends[b]), int(ends[b + 1])) for b in mine]
        self._total, self._global_lanes, self._chunk = text.total, lanes, chunk
        self._mask = torch.ones(chunk, len(self._lanes), dtype=torch.bool)
        self._read = 0  # characters that each lane has read

    def __next__(self) -> Batch:
        """Return the next batch: x, y int64 [chunk, this process's lanes]."""
        x = np.empty((len(self._lanes), self._chunk), dtype=np.int64)
        y = np.empty_like(x)
        for lane, x_row, y_row in zip(self._lanes, x, y, strict=True):
            lane.read(self._read, x_row, y_row)
        self._read += self._chunk
        inputs, targets, reset = _tensors(x, y)
        return Batch(inputs, targets, self._mask, self._chunk * self._global_lanes, reset)

    def position(self) -> Json:
        """The number of lanes, and the characters that each of them has read."""
        return {"lanes": self._global_lanes, "characters": self._read}

    def position_after(self, batches: int) -> Json:
        """The position after this many batches from the beginning."""
        return {"lanes": self._global_lanes, "characters": batches * self._chunk}

    def seek(self, position: Json) -> None:
        """Go to a position. Raises InputError if it is one of another number of lanes, and so means another place."""
        if position["lanes"] != self._global_lanes:
            raise InputError(
                f"the position is one of {position['lanes']} lanes, the stream has {self._global_lanes}: "
                f"use --batch {position['lanes']}"
            )
        self._read = int(position["characters"])

    @property
    def epoch(self) -> float:
        """Passes over the training part."""
        return self._read * self._global_lanes / self._total


def held_out_batches(text: Characters, vocabulary: Vocabulary, lanes: int, chunk: int, shard: Shard) -> Iterator[Batch]:
    """Yield batches of the whole text, in which each character counts once, after up to 256 characters of context.

    The context makes the result all but independent of the number of lanes: without it, each lane would begin blind.
    """
    ends = borders(text.total, lanes)
    begins = np.maximum(ends[:-1] - WARM_UP, 0)
    mine = [Lane(text, vocabulary, int(begins[b]), int(ends[b + 1])) for b in range(lanes)[shard.rows(lanes)]]
    longest = int((ends[1:] - begins).max())
    for at in range(0, longest, chunk):
        number = begins[:, None] + at + np.arange(min(chunk, longest - at))  # of each character, [lanes, T]
        counts = (number >= ends[:-1, None]) & (number < ends[1:, None])
        x = np.full((len(mine), number.shape[1]), UNKNOWN, dtype=np.int64)
        y = np.full_like(x, UNKNOWN)
        for lane, x_row, y_row in zip(mine, x, y, strict=True):
            n = max(0, min(x.shape[1], lane.end - lane.begin - at))
            lane.read(at, x_row[:n], y_row[:n])
        inputs, targets, reset = _tensors(x, y)
        mask = torch.from_numpy(np.ascontiguousarray(counts[shard.rows(lanes)].T))
        yield Batch(inputs, targets, mask, int(counts.sum()), reset)
