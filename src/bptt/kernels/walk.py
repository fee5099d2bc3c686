"""The order in which the rows of a batch are visited, and the plain loop over them.

Rows. A padded batch [T, B, ·] and a packed one are the same thing here: N rows, step after step, of which step t has
sizes[t]. So padding costs nothing and needs no mask: a sequence that has ended has no row.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from bptt.cells import State
from bptt.kernels.base import Sequences


class Links(NamedTuple):
    """Which row follows which where the steps alone do not tell: several calls that hand their state on.

    Attributes:
        source: as `Walk.source`; N and up are the calls' initial states, in turn.
        ends: as `Walk.ends`, of all calls in turn.
    """

    source: Tensor
    ends: Tensor


@dataclass(eq=False)  # not frozen: that would double the time it takes to make one, at every call
class Walk:
    """The order in which one direction visits the rows. Nobody changes it.

    Attributes:
        length: T, the number of steps.
        batch: B, the rows of the first step.
        offsets: int64 [T+1] on the CPU: the rows of step t are offsets[t] .. offsets[t+1]; None: every step has B.
        reverse: from the last step to the first.
        reset: bool [N]: rows that begin with a state of zeros, already shifted for the direction; None where none does.
        links: how rows follow each other where that is not by their place in the step; a kernel takes None only.
    """

    length: int
    batch: int
    offsets: Tensor | None = None
    reverse: bool = False
    reset: Tensor | None = None
    links: Links | None = None

    @staticmethod
    def over(sequences: Sequences, reverse: bool) -> "Walk":
        """Return the walk over `sequences`; in reverse, resets move by a step: what starts at t+1 must not reach t."""
        x, sizes, reset = sequences
        if sizes is not None:
            walk = Walk(len(sizes), int(sizes[0]), F.pad(sizes.cumsum(0), (1, 0)), reverse, reset)
        else:
            length, batch, _ = x.shape
            walk = Walk(length, batch, None, reverse, None if reset is None else reset.flatten())
        if walk.reset is None or not reverse:
            return walk
        pool = torch.cat([walk.reset, walk.reset.new_zeros(walk.batch)])
        later = pool[walk.batch :] if walk.offsets is None else pool[walk.source.to(pool.device)]
        return replace(walk, reset=later)

    @staticmethod
    def of_sizes(sizes: Sequence[int], reset: Tensor | None = None, links: Links | None = None) -> "Walk":
        """Return the walk forward in time over steps of these many rows."""
        if len(set(sizes)) == 1:
            return Walk(len(sizes), sizes[0], None, False, reset, links)
        offsets = F.pad(torch.tensor(sizes, dtype=torch.int64, device="cpu").cumsum(0), (1, 0))
        return Walk(len(sizes), sizes[0], offsets, False, reset, links)

    @property
    def spans(self) -> tuple[slice, ...]:
        """The rows of each step, in order of time."""
        ends = [self.batch * t for t in range(self.length + 1)] if self.offsets is None else self.offsets.tolist()
        return tuple(map(slice, ends[:-1], ends[1:]))

    @cached_property
    def starts(self) -> list[int]:
        """The first row of each step, and N."""
        return [0, *(rows.stop for rows in self.spans)]

    @cached_property
    def sizes(self) -> tuple[int, ...]:
        """The number of rows of each step, in order of time; within one call they never grow."""
        return tuple(rows.stop - rows.start for rows in self.spans)

    @cached_property
    def source(self) -> Tensor:
        """For each row, the index of the state before it in [states after the rows; initial states], int64 [N]."""
        if self.links is not None:
            return self.links.source
        sizes, starts = (torch.tensor(n, device="cpu") for n in (self.sizes, self.starts))
        step = torch.repeat_interleave(torch.arange(self.length, device="cpu"), sizes)
        row = torch.arange(self.starts[-1], device="cpu") - starts[step]
        initial = self.starts[-1] + row
        if not self.reverse:
            return torch.where(step > 0, starts[(step - 1).clamp_min(0)] + row, initial)
        later = (step + 1).clamp_max(self.length - 1)
        follows = (step + 1 < self.length) & (row < sizes[later])
        return torch.where(follows, starts[later] + row, initial)

    @cached_property
    def ends(self) -> Tensor:
        """The row that leaves the final state of each sequence, int64 [B]."""
        if self.links is not None:
            return self.links.ends
        sequences = torch.arange(self.batch, device="cpu")
        if self.reverse:
            return sequences
        # The length of a sequence is the number of steps that have more rows than its place.
        lengths = torch.searchsorted(-torch.tensor(self.sizes, device="cpu"), -sequences)
        return torch.tensor(self.starts, device="cpu")[lengths - 1] + sequences

    def order(self) -> range:
        """The steps in the order of the walk."""
        return range(self.length - 1, -1, -1) if self.reverse else range(self.length)

    def steps(self) -> Iterator[tuple[int, slice, int]]:
        """(t, rows of t, how many), in the order of the walk."""
        spans = self.spans
        for t in self.order():
            rows = spans[t]
            yield t, rows, rows.stop - rows.start

    def chunks(self, rows: int) -> Iterator[range]:
        """Groups of neighbouring steps with at most `rows` rows (at least one step), in the order of the gradient."""
        n = max(1, rows // max(1, *self.sizes))
        order = self.order()[::-1]
        for i in range(0, self.length, n):
            yield order[i : i + n]

    def span(self, steps: range) -> slice:
        """The rows of neighbouring steps."""
        low, high = min(steps[0], steps[-1]), max(steps[0], steps[-1])
        return slice(self.starts[low], self.starts[high + 1])

    def backwards(self) -> "Walk":
        """Return this walk from its end to its beginning: the way of the gradient."""
        return replace(self, reverse=not self.reverse)

    def reset_state(self, state: State, rows: slice) -> State:
        """Return `state` with zeros in the rows that are reset. `where`, not a product: 0 · inf would let a NaN across."""
        if self.reset is None:
            return state
        reset = self.reset[rows].unsqueeze(-1)
        return tuple(torch.where(reset, torch.zeros_like(s), s) for s in state)

    def before(self, after: Tensor, start: Tensor) -> Tensor:
        """Return the state before each row [N, ·], from the state after each row and the initial states [B, ·]."""
        if self.links is None and (self.offsets is None or self.sizes[-1] == self.batch):
            B = self.batch
            found = torch.cat([after[B:], start] if self.reverse else [start, after[: len(after) - B]])
        else:
            found = torch.cat([after, start])[self.source.to(after.device)]
        return found if self.reset is None else found.masked_fill_(self.reset.unsqueeze(-1), 0)

    def before_some(self, after: Tensor, start: Tensor, rows: Tensor) -> Tensor:
        """Like `before`, for selected rows, int64 [n], without the cost of all."""
        source, n = self.source[rows.cpu()].to(after.device), len(after)
        initial = (source >= n).unsqueeze(-1)
        found = torch.where(initial, start[(source - n).clamp_min(0)], after[source.clamp_max(n - 1)])
        return found if self.reset is None else found.masked_fill_(self.reset[rows].unsqueeze(-1), 0)


def loop(walk: Walk, state: State, advance: Callable[[int, slice, State], State]) -> tuple[Tensor, State]:
    """Run the loop over time: `advance(t, rows of step t, their state before) -> their state after`.

    Returns the outputs of all rows [N, ·], and the final state.
    """
    outputs: list[Tensor] = [state[0]] * walk.length
    for t, rows, n in walk.steps():
        before = walk.reset_state(tuple(s[:n] for s in state), rows)
        after = advance(t, rows, before)
        outputs[t] = after[0]
        state = merge(after, state, n)
    return torch.cat(outputs), state


def merge(active: State, state: State, n: int) -> State:
    """Return `state` with its first n rows replaced; the rest belongs to sequences that have no row at this step."""
    return tuple(a if n == len(s) else torch.cat([a, s[n:]]) for a, s in zip(active, state, strict=True))
