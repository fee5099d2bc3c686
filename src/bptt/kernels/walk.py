"""The order in which the rows of a batch are visited, and the plain loop over them.

Rows. A padded batch [T, B, ·] and a packed one are the same thing here: N rows, step after step, of which step t has
sizes[t]. So padding costs nothing and needs no mask: a sequence that has ended has no row.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from itertools import pairwise

import torch
from torch import Tensor
from torch.nn import functional as F

from bptt.cells import State
from bptt.kernels.base import Sequences


@dataclass(slots=True, eq=False)  # not frozen: that would double the time it takes to make one, at every call
class Walk:
    """The order in which one direction visits the rows. Nobody changes it.

    Attributes:
        length: T, how many steps there are.
        batch: B, the rows of the first step.
        offsets: int64 [T+1] on the CPU: the rows of step t are offsets[t] .. offsets[t+1]; None: every step has B.
        reverse: from the last step to the first.
        cut: bool [N]: rows whose state is zeroed before they are computed; None where none is.
    """

    length: int
    batch: int
    offsets: Tensor | None = None
    reverse: bool = False
    cut: Tensor | None = None

    @staticmethod
    def over(sequences: Sequences, reverse: bool) -> "Walk":
        """The walk over `sequences`. Backwards in time, what starts at t+1 must not reach t: the cut moves by a step."""
        x, sizes, cut = sequences
        if sizes is not None:
            walk = Walk(len(sizes), int(sizes[0]), F.pad(sizes.cumsum(0), (1, 0)), reverse, cut)
        else:
            length, batch, _ = x.shape
            walk = Walk(length, batch, None, reverse, None if cut is None else cut.flatten())
        if walk.cut is None or not reverse:
            return walk
        spans = walk.spans
        later = [F.pad(walk.cut[b], (0, (a.stop - a.start) - (b.stop - b.start))) for a, b in pairwise(spans)]
        return replace(walk, cut=torch.cat([*later, torch.zeros_like(walk.cut[spans[-1]])]))

    @property
    def spans(self) -> tuple[slice, ...]:
        """The rows of each step, in order of time."""
        ends = [self.batch * t for t in range(self.length + 1)] if self.offsets is None else self.offsets.tolist()
        return tuple(map(slice, ends[:-1], ends[1:]))

    def steps(self) -> Iterator[tuple[int, slice, int]]:
        """(t, rows of t, how many), in the order of the walk."""
        spans = self.spans
        order = range(len(spans))
        for t in reversed(order) if self.reverse else order:
            rows = spans[t]
            yield t, rows, rows.stop - rows.start

    def backwards(self) -> "Walk":
        """The same walk from its end to its beginning: the way of the gradient."""
        return replace(self, reverse=not self.reverse)

    def zero_cut(self, state: State, rows: slice) -> State:
        """`state` with zeros in the rows that are cut. `where`, not a product: 0 · inf would let a NaN across."""
        if self.cut is None:
            return state
        cut = self.cut[rows].unsqueeze(-1)
        return tuple(torch.where(cut, torch.zeros_like(s), s) for s in state)


def loop(walk: Walk, state: State, advance: Callable[[int, slice, State], State]) -> tuple[Tensor, State]:
    """The loop over time itself: `advance(t, rows of step t, their state before) -> their state after`."""
    outputs: list[Tensor] = [state[0]] * walk.length
    for t, rows, n in walk.steps():
        before = walk.zero_cut(tuple(s[:n] for s in state), rows)
        after = advance(t, rows, before)
        outputs[t] = after[0]
        state = merge(after, state, n)
    return torch.cat(outputs), state


def merge(active: State, state: State, n: int) -> State:
    """`state` with its first n rows replaced; the rest belongs to sequences that have no row at this step."""
    return tuple(a if n == len(s) else torch.cat([a, s[n:]]) for a, s in zip(active, state, strict=True))
