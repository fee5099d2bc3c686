"""How a budget of bytes is spent: the length of a chunk, and how many states are kept."""

import math
import re
from dataclasses import dataclass, replace

from bptt.errors import InputError
from bptt.gradient.checkpointing.measure import Measured
from bptt.gradient.checkpointing.schedule import extra_links, repetitions
from bptt.gradient.checkpointing.system_memory import WASTE, can_waste

_UNITS = {
    "": 1, "b": 1, "kb": 10**3, "mb": 10**6, "gb": 10**9, "tb": 10**12, "k": 10**3, "m": 10**6, "g": 10**9, "t": 10**12,
    "kib": 2**10, "mib": 2**20, "gib": 2**30, "tib": 2**40,
}  # fmt: skip
_SIZE = re.compile(r"\s*([0-9]+\.?[0-9]*(?:e[+-]?[0-9]+)?|\.[0-9]+)\s*([a-z]*)\s*", re.IGNORECASE)
_MOST_REPETITIONS = 32  # a budget that needs more is refused: some hundreds of bytes more save hours
_CALL = 64  # steps that take as long as a call alone; a round figure, so that plans do not change with the clock
_LEAN = 1.2  # times as long where the gates are recomputed: measured, 1.1 to 1.25
_BACKWARD = 2  # a step back takes as long as two forward
_ABOUT = 1.01  # of two plans whose times differ by less, the smaller one
_FRESH_PAGES = 1.25  # times as long where freed memory goes back to the system, and comes again as fresh pages
_MARGIN = 0.97  # of the budget: the rest is the allocator's


def parse_bytes(size: int | float | str) -> int:
    """Return the bytes of a size: 1 kB is 1000, 1 KiB is 1024. Raises ValueError for anything else.

    >>> [parse_bytes(size) for size in ("256MB", "256 mb", "1GiB", "24e6", 4096)]
    [256000000, 256000000, 1073741824, 24000000, 4096]
    """
    match = _SIZE.fullmatch(size) if isinstance(size, str) else None
    if match is not None and match[2].lower() in _UNITS:
        value = float(match[1]) * _UNITS[match[2].lower()]
    elif isinstance(size, int | float) and not isinstance(size, bool):
        value = float(size)
    else:
        raise ValueError(f'memory {size!r} is no size: give bytes, as "256MB", "1GiB", "24e6" or 24000000')
    if not 1 <= value < 2**63:
        raise ValueError(f"memory {size!r} is {value:g} bytes, wanted at least 1 and less than 2^63")
    return int(value)


def as_text(size: float) -> str:
    """Return a number of bytes as text with a unit, rounded.

    >>> as_text(23_456_789)
    '23.5 MB'
    """
    for unit, width in (("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if size >= width:
            return f"{size / width:.3g} {unit}"
    return f"{size:.0f} bytes"


@dataclass(frozen=True)
class Plan:
    """What `Checkpointed` is going to do.

    With n = ⌈T/c⌉ chunks and s snapshots, the extra forward steps are c·(r n − C(s+r, s+1)), r the smallest number with
    C(s+r, s) ≥ n (schedule.py; the last chunk, which may be shorter, is never among them).

    Attributes:
        steps: T.
        chunk: c, steps that are taped at a time.
        snapshots: s, states kept at a time, the first one included.
        repetitions: r, how often a step is run without a tape at most.
        extra_steps: forward steps beyond the T of a full tape.
        peak: predicted bytes at the highest, of tensors and the native core's working memory, above the parameters, their
            gradients of before, and the inputs.
        resident: `peak` with what the C library wastes: bytes of the process.
        budget: bytes allowed; `resident` is within it.
        least: the smallest budget that would do.
        time_factor: predicted time over that of a full tape; a backward step counted as two forward.
        state_bytes, tape_bytes: of one state, and of one step's tape.
        storage: where the snapshots are: "memory", "host" or "disk".
        held: steps of a stream that are held in memory.
        frees: whether freed memory goes back to the system at once, which costs some time (system_memory.py).
        lean: whether the tape has the states of bptt's layers only, and their gates are recomputed on the way back.
    """

    steps: int
    chunk: int
    snapshots: int
    repetitions: int
    extra_steps: int
    peak: int
    resident: int
    budget: int
    least: int
    time_factor: float
    state_bytes: int
    tape_bytes: int
    storage: str = "memory"
    held: int = 0
    frees: bool = False
    lean: bool = False

    @property
    def chunks(self) -> int:
        """n, the number of chunks."""
        return -(-self.steps // self.chunk)

    def __str__(self) -> str:
        where = {"memory": "", "host": " in host memory", "disk": " on disk"}[self.storage]
        tape = " (states only: gates are computed again)" if self.lean else ""
        return (
            f"{self.steps:,} steps in {self.chunks:,} chunks of {self.chunk:,}, {self.snapshots:,} snapshots{where}: "
            f"peak {as_text(self.peak)} ({as_text(self.resident)} of the process) of {as_text(self.budget)}, "
            f"{self.extra_steps:,} extra forward steps "
            f"(each step at most {self.repetitions} times), about {self.time_factor:.2f} x the time of a full tape; "
            f"a state takes {as_text(self.state_bytes)}, a step's tape {as_text(self.tape_bytes)}{tape}, "
            f"the least budget is {as_text(self.least)}"
        )


@dataclass(frozen=True)
class Planner:
    """Chooses a plan for a measured model.

    Attributes:
        stream_bytes: of one step of the inputs that come as streams, and so are held in part; 0 if none does.
        longest: steps of a stream's longest chunk.
        lean: whether `measured` is that of a lean tape.
    """

    measured: Measured
    steps: int
    storage: str = "memory"
    stream_bytes: float = 0.0
    longest: int = 0
    lean: bool = False

    def plan(self, budget: int) -> Plan:
        """Return, of the plans about as fast as the fastest within `budget` bytes, the one that needs least memory.

        A short chunk's tape stays in the processor's caches, and leaves the system's allocator less to waste.

        Raises InputError, a ValueError, with the least budget, if there is none.
        """
        wastes = (WASTE, 1.0) if self.measured.on_cpu and can_waste() else (1.0,)
        tried = (p._with(c, budget, waste) for p in self._alternatives() for c in self._lengths() for waste in wastes)
        plans = [plan for plan in tried if plan is not None]
        fastest = min((plan.time_factor for plan in plans), default=0.0)
        best = min((p for p in plans if p.time_factor <= _ABOUT * fastest), key=lambda p: p.peak, default=None)
        least = self.least()
        if best is None:
            raise InputError(
                f"a budget of {as_text(budget)} cannot be met: this model and batch need at least "
                f"{least:,} bytes ({as_text(least)}), of which {as_text(self.measured.fixed_bytes)} are sums "
                f"of gradients and the like, and {as_text(self.measured.peak_of_chunk(1))} one step forward and back"
            )
        return replace(best, least=least)

    def least(self) -> int:
        """Return the smallest budget in bytes: short chunks, and as few snapshots as `_MOST_REPETITIONS` allows."""
        size = self._snapshot_bytes
        return math.ceil(
            min(
                planner._without_snapshots(c, 1.0) + (self._fewest(c) - 1) * size
                for c in self._lengths()
                for planner in self._alternatives()
            )
            / _MARGIN
        )

    def _alternatives(self) -> tuple["Planner", ...]:
        """This planner, and one for a lean tape where that takes less memory."""
        lean = self.measured.lean
        return (self,) if lean is None else (self, replace(self, measured=lean, lean=True))

    @property
    def _snapshot_bytes(self) -> int:
        return self.measured.state_bytes if self.storage == "memory" else 0

    def _without_snapshots(self, chunk: int, waste: float) -> float:
        measured, streamed = self.measured, (chunk + self.longest) * self.stream_bytes
        if chunk >= self.steps:
            tensors = waste * measured.peak_alone(chunk)
        else:
            tensors = measured.fixed_bytes + waste * measured.peak_of_chunk(chunk)
        return tensors + measured.native.bytes(chunk) + streamed

    def _fewest(self, chunk: int) -> int:
        links, snapshots = -(-self.steps // chunk), 1
        while repetitions(links, snapshots) > _MOST_REPETITIONS:
            snapshots += 1
        return snapshots

    def _lengths(self) -> list[int]:
        """The chunk lengths to choose from: each a few percent longer than the one before, and T."""
        lengths, length = [], 1
        while length < self.steps:
            lengths.append(length)
            length = max(length + 1, length * 21 // 20)
        return [*lengths, self.steps]

    def _with(self, chunk: int, budget: int, waste: float) -> Plan | None:
        """The plan for a chunk length, or None if it does not fit the budget."""
        needed = self._without_snapshots(chunk, waste)
        room = budget * _MARGIN - needed
        if room < 0:
            return None
        links, size = -(-self.steps // chunk), self._snapshot_bytes
        # What the least budget has room for are the fewest snapshots: a stream's share is of what is beyond them.
        for_stream = max(0.0, room - (self._fewest(chunk) - 1) * size) / 4 if self.stream_bytes else 0.0
        snapshots = links if size == 0 else int(min(links, 1 + (room - for_stream) // size))
        r = repetitions(links, snapshots)
        if r > _MOST_REPETITIONS:
            return None
        snapshots = _enough(links, snapshots, r)
        held = int(min(self.steps, chunk + for_stream // self.stream_bytes)) if self.stream_bytes else 0
        peak = self._without_snapshots(chunk, 1.0)
        kept = (snapshots - 1) * size + max(0, held - chunk) * self.stream_bytes
        extra, frees = chunk * extra_links(links, snapshots), waste == 1.0 and self.measured.on_cpu
        slower = (_FRESH_PAGES if frees else 1.0) * (_LEAN if self.lean else 1.0)
        time_factor = self._time_factor(links, extra, chunk) * slower
        return Plan(
            self.steps, chunk, snapshots, r, extra, int(peak + kept), int(needed + kept), budget, 0, time_factor,
            self.measured.state_bytes, int(self.measured.peak.step_bytes), self.storage, held, frees, self.lean,
        )  # fmt: skip

    def _time_factor(self, links: int, extra: int, chunk: int) -> float:
        """The time of the forward steps, the backward steps and the calls, over that of a full tape."""
        full = (1 + _BACKWARD) * self.steps + _CALL
        return (full + extra + _CALL * (links - 1 + extra / chunk)) / full


def _enough(links: int, snapshots: int, r: int) -> int:
    """The snapshots that are used at most: links − 1 where all fit, since the last link needs none."""
    return max(1, min(snapshots, links - 1)) if r <= 1 else snapshots
