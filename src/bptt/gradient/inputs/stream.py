"""Inputs that are not in memory: arrays that are read by slices, and streams that can be restarted.

A tree of inputs may hold, beside tensors, arrays (anything with a shape and slices: numpy's, also memory-mapped, HDF5's) and
the `Stream` objects that `open_streams` makes of iterables. `time_slice` (base.py) reads steps from any of
them.
"""

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import torch
from torch import Tensor

from bptt.torch_private import tree_leaves, tree_map


def is_array(leaf: Any) -> bool:
    """Whether it is read by slices: it has a shape, and is no tensor."""
    return not isinstance(leaf, Tensor) and hasattr(leaf, "shape") and hasattr(leaf, "__getitem__")


def to_tensor(array: Any) -> Tensor:
    """Return a copy in memory: the array may be memory-mapped, and read-only."""
    return torch.from_numpy(np.array(array))


def open_streams(tree: Any) -> Any:
    """Return the tree with a `Stream` in place of each list, iterable or function; everything else stays.

    Raises ValueError for a generator or another iterator, which can be read only once.
    """
    return tree_map(_opened, tree, is_leaf=lambda leaf: isinstance(leaf, list))


def _opened(leaf: Any) -> Any:
    if isinstance(leaf, Tensor | Stream) or is_array(leaf) or isinstance(leaf, str | bytes):
        return leaf
    if isinstance(leaf, Iterator):
        raise ValueError(
            f"a {type(leaf).__name__} can be walked only once, and the gradient needs the steps again: pass a function that "
            "makes a new one (lambda: ...), or an object whose __iter__ starts from the first step"
        )
    if callable(leaf):
        return Stream(leaf)
    return Stream(leaf.__iter__) if hasattr(leaf, "__iter__") else leaf


class Stream:
    """Chunks of any lengths, read from the start as often as needed, as one sequence of T steps.

    T is counted by a first pass. A later step is reached by reading on, an earlier one by a restart. So that going backwards
    does not restart for each chunk, the `keep` steps before the last one read are held in memory.

    Args:
        start: makes an iterator over the chunks: tensors, arrays or trees of them, time first.
        keep: steps to hold.

    Raises ValueError when a later pass ends earlier than the first one.
    """

    def __init__(self, start: Callable[[], Any], keep: int = 0) -> None:
        self._start, self.keep = start, keep
        self._iterator: Iterator[Any] = iter(())
        self._held: list[Any] = []  # the pieces of [_first, _end)
        self._first = self._end = 0
        self.longest = 0
        self.steps = sum(self._length(piece) for piece in start())
        self._end = self.steps + 1  # no pass has begun

    def _length(self, piece: Any) -> int:
        sizes = {leaf.shape[0] for leaf in tree_leaves(piece)}
        if len(sizes) != 1:
            raise ValueError(
                f"a chunk of the stream has leaves of {sorted(sizes)} steps, wanted one number: put time first"
            )
        length = int(sizes.pop())
        self.longest = max(self.longest, length)
        return length

    def read(self, start: int, stop: int) -> Any:
        """Return steps [start, stop) as tensors."""
        if start < self._first or self._end > self.steps:
            self._begin()
        hold = max(0, stop - max(self.keep, stop - start))
        while self._end < stop:
            self._drop(min(hold, start))
            self._take(stop)
        pieces, at = [], self._first
        for piece in self._held:
            length = self._length(piece)
            if at < stop and start < at + length:
                pieces.append(_slice(piece, max(0, start - at), min(length, stop - at)))
            at += length
        return pieces[0] if len(pieces) == 1 else tree_map(lambda *leaves: torch.cat(leaves), *pieces)

    def _begin(self) -> None:
        self._iterator, self._held, self._first, self._end = iter(self._start()), [], 0, 0

    def _take(self, wanted: int) -> None:
        piece = next(self._iterator, None)
        if piece is None:
            raise ValueError(
                f"the stream had {self.steps} steps at first, and ended before step {wanted} when it was restarted: "
                "it must yield the same chunks each time"
            )
        self._held.append(piece)
        self._end += self._length(piece)

    def _drop(self, first: int) -> None:
        """Release the pieces that end at or before step `first`."""
        while self._held and self._first + self._length(self._held[0]) <= first:
            self._first += self._length(self._held.pop(0))


def _slice(piece: Any, start: int, stop: int) -> Any:
    return tree_map(lambda leaf: leaf[start:stop] if isinstance(leaf, Tensor) else to_tensor(leaf[start:stop]), piece)
