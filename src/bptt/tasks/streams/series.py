"""Series side by side: lanes that read them without end for training, and windows of them for judging."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from bptt.errors import InputError
from bptt.tasks.base import Batch, Shard, Stream
from bptt.tasks.series_encoding import Encoding, JoinedSeries
from bptt.typed import Json

Indices = NDArray[np.int64]
Flags = NDArray[np.bool_]


class SeriesStream(Stream):
    """Training batches of joined series of n steps: lane b of B begins at place b·n/B and reads on, round and round.

    All lanes advance together, so the steps that each has read are the position of all of them. A lane's state is reset
    where a series begins, and where the lane does.
    """

    def __init__(self, encoding: Encoding, joined: JoinedSeries, lanes: int, chunk: int, shard: Shard) -> None:
        self._encoding, self._joined, self._chunk, self._shard = encoding, joined, chunk, shard
        self._first = np.arange(lanes) * len(joined) // lanes  # place at which each lane begins
        self._read = 0  # steps that each lane has read

    def __next__(self) -> Batch:
        steps = self._read + np.arange(self._chunk)[:, None]
        at = (self._first + steps) % len(self._joined)  # T, lanes
        starts = (at == self._joined.begin[at]) | (steps == 0)
        self._read += self._chunk
        return make_batch(self._encoding, self._joined, Piece(at, np.ones_like(starts), starts), self._shard)

    def position(self) -> Json:
        """The number of lanes, and the steps that each of them has read."""
        return {"lanes": len(self._first), "steps": self._read}

    def position_after(self, batches: int) -> Json:
        """The position after this many batches from the beginning."""
        return {"lanes": len(self._first), "steps": batches * self._chunk}

    def seek(self, position: Json) -> None:
        """Go to a position. Raises InputError if it is one of another number of lanes, and so means other places."""
        if position["lanes"] != len(self._first):
            raise InputError(
                f"the position is one of {position['lanes']} lanes, the stream has {len(self._first)}: "
                f"use --batch {position['lanes']}"
            )
        self._read = int(position["steps"])

    @property
    def epoch(self) -> float:
        """Passes over the training parts."""
        return self._read * len(self._first) / len(self._joined)


@dataclass(frozen=True)
class Window:
    """A stretch of joined series: read from place `begin` on from a zero state, judged from `first` on, up to `stop`."""

    begin: int
    first: int
    stop: int


@dataclass(frozen=True)
class Piece:
    """A few steps of all lanes, side by side; each attribute is [T, lanes].

    Attributes:
        at: the place that is read; any, where a lane has ended.
        judged: True where what the network forecasts counts.
        starts: True where a series or window begins.
    """

    at: Indices
    judged: Flags
    starts: Flags


class Lanes:
    """Windows packed into lanes of similar length; each lane reads its windows one after the other."""

    def __init__(self, windows: Sequence[Window], lanes: int) -> None:
        rows: list[list[Window]] = [[] for _ in range(min(lanes, len(windows)))]
        lengths = [0] * len(rows)
        for w in sorted(windows, key=lambda w: w.begin - w.stop):  # the longest first
            shortest = lengths.index(min(lengths))
            rows[shortest].append(w)
            lengths[shortest] += w.stop - w.begin
        shape = (max(lengths), len(rows))
        self._all = Piece(np.zeros(shape, np.int64), np.zeros(shape, np.bool_), np.zeros(shape, np.bool_))
        for row, queue in enumerate(rows):
            step = 0
            for w in queue:
                length = w.stop - w.begin
                self._all.at[step : step + length, row] = np.arange(w.begin, w.stop)
                self._all.judged[step + w.first - w.begin : step + length, row] = True
                self._all.starts[step, row] = True
                step += length

    def pieces(self, steps: int) -> Iterator[Piece]:
        """Yield all steps of the lanes, in pieces of up to `steps` steps."""
        for k in range(0, len(self._all.at), steps):
            part = slice(k, k + steps)
            yield Piece(self._all.at[part], self._all.judged[part], self._all.starts[part])


def make_batch(encoding: Encoding, joined: JoinedSeries, piece: Piece, shard: Shard) -> Batch:
    """Return this process's batch of a piece: x [T, B, D], y and mask [T, B, N·K]. Its count is that of all processes."""
    y, known = encoding.targets(joined, piece.at)
    mask = known & piece.judged[..., None, None]
    rows = shard.rows(piece.at.shape[1])
    x, y, mine = joined.x[piece.at[:, rows]], y[:, rows], mask[:, rows]
    flat = (*y.shape[:2], encoding.outputs)
    reset = reset_of(piece.starts[:, rows])
    return Batch(
        torch.from_numpy(x),
        torch.from_numpy(y.reshape(flat)),
        torch.from_numpy(mine.reshape(flat)),
        int(mask.sum()),
        reset,
    )


def reset_of(starts: Flags) -> Tensor | None:
    """Return where states are reset, [T, lanes], as a batch holds it; None where no series or window begins."""
    return torch.from_numpy(np.ascontiguousarray(starts)) if starts.any() else None
