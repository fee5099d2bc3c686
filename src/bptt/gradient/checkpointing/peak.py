"""Bytes at the highest while a chunk goes forward and back, measured on short chunks and predicted for long ones.

Counted are the bytes that torch's allocator hands out, so they do not depend on what ran before.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor

from bptt.gradient.base import Chunk, first_steps
from bptt.gradient.checkpointing.replay import Replay, is_differentiable
from bptt.torch_private import recorded_allocations, tree_leaves

PROBED = 16  # steps on which a model is tried out; then twice as many
_LOOPS = 512  # steps that are tried at most where a chunk's blocks are not those of a shorter one
_SHARE = 32  # or a share 1/32 of the sequence, if that is more


@dataclass(frozen=True)
class Peak:
    """Bytes at the highest while a chunk of c steps goes forward and back: the highest of straight lines a + b c.

    Where chunks of two lengths allocate and free in the same order, each block's size is a straight line through the two
    that were seen, and so is every sum of blocks that are alive together. Else (a loop over the steps in Python, say) the
    line is that through the peaks of the two longest chunks tried, and `tried` holds (length, peak) of all of them.
    """

    lines: tuple[tuple[float, float], ...]
    tried: tuple[tuple[int, int], ...] = ()

    def at(self, steps: int) -> int:
        """Return the bytes for a chunk of `steps` steps."""
        for (m, low), (n, high) in pairwise(self.tried):
            if m <= steps <= n:
                return int(low + (high - low) * (steps - m) / (n - m))
        return int(max(a + b * steps for a, b in self.lines))

    @property
    def step_bytes(self) -> float:
        """Bytes that one more step adds to a long chunk."""
        return max(b for _, b in self.lines)

    @staticmethod
    def through(lengths: list[int], levels: list[list[int]]) -> "Peak":
        """Return the lines through bytes that were seen at two lengths: levels[0][i] and levels[1][i] belong together."""
        (m, n), (left, right) = lengths, levels
        slopes = [(v - u) / (n - m) for u, v in zip(left, right, strict=True)]
        lines = {(u - b * m, b) for u, b in zip(left, slopes, strict=True)}
        # Of lines with one slope only the highest; and only those that are the highest somewhere from 1 on.
        highest = {b: max(a for a, c in lines if c == b) for b in {b for _, b in lines}}
        kept: list[tuple[float, float]] = []
        for b in sorted(highest, reverse=True):
            if not kept or highest[b] + b > max(a + c for a, c in kept):
                kept.append((highest[b], b))
        return Peak(tuple(kept))


def measure_peak(chunk: Chunk, leaves: list[Tensor], budget: float, *, lean: bool = False) -> Peak:
    """Run short chunks forward and back, within the budget in bytes, and return the peak for chunks of any length.

    Args:
        leaves: the tensors that get gradients.
        lean: keep only the states of bptt's layers on the tape.
    """
    d_after = [torch.ones_like(s) if is_differentiable(s) else None for s in tree_leaves(chunk.state)]

    def levels(length: int) -> list[int]:
        replay = Replay(first_steps(chunk, length), length, leaves, lean=lean)
        return levels_of(partial(replay.reverse, 0, chunk.state, d_after), replay.device)

    steps = chunk.steps
    peaks = {n: max(levels(n)) for n in (1, 2) if n <= steps}
    if steps == 1:
        return Peak(((float(peaks[1]), 0.0),))
    lengths = [min(PROBED, steps // 2), min(2 * PROBED, steps)]
    if 64 * (peaks[2] - peaks[1]) < budget:
        seen = [levels(length) for length in lengths]
        if len(seen[0]) == len(seen[1]) > 1:
            return Peak.through(lengths, seen)
        peaks |= {n: max(s) for n, s in zip(lengths, seen, strict=False)}
    return _extrapolated(peaks, levels, steps, budget)


def _extrapolated(peaks: dict[int, int], levels: Callable[[int], list[int]], steps: int, budget: float) -> Peak:
    """The line through the peaks of the two longest chunks that may be tried, within the budget and some time."""
    length = 2 * max(peaks)
    while length <= min(steps, max(_LOOPS, steps // _SHARE)) and 2 * max(peaks.values()) <= budget:
        peaks[length] = max(peaks[1], *levels(length))
        length *= 2
    m, n = sorted(peaks)[-2:]
    slope = (peaks[n] - peaks[m]) / (n - m)
    if 2 * slope * n < peaks[n]:  # the tape is hidden behind the weights' gradients yet: no more than in proportion
        slope = peaks[n] / n
    return Peak(((peaks[n] - slope * n, slope),), tuple(sorted(peaks.items())))


def levels_of(run: Callable[[], Any], device: torch.device | None) -> list[int]:
    """Return the bytes in use, above those before `run`, each time torch's allocator hands out or gets back a block.

    Where that is not recorded, the highest alone.
    """
    if device is not None and device.type == "cuda":
        before = torch.cuda.memory_allocated(device)
        torch.cuda.reset_peak_memory_stats(device)
        run()
        return [int(torch.cuda.max_memory_allocated(device) - before)]
    levels = recorded_allocations(run)
    return [_saved_bytes(run)] if levels is None else levels


def _saved_bytes(run: Callable[[], Any]) -> int:
    """An estimate from what autograd saves: once for the tape, once for the gradients that go through it."""
    storages: dict[int, int] = {}

    def pack(tensor: Tensor) -> Tensor:
        storages[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        run()
    return 2 * sum(storages.values())
