"""What a run with a budget of memory prints: its plan at the start, and at the end the peak that was measured."""

import sys
from collections.abc import Callable
from pathlib import Path

from bptt.gradient import Checkpointed, Result, Strategy
from bptt.gradient.checkpointing.plan import Plan, as_text

_SELF = Path("/proc/self")


class MemoryLog:
    """Prints the plan of a `Checkpointed` strategy and measures every update; with other strategies it does nothing.

    Attributes:
        plan: the first update's, None before.
        peak: resident bytes while a gradient was made, above those before it: the most of all updates; without the pages
            of files, which are torch's code as it is first used. None where the kernel does not tell.
    """

    def __init__(self, strategy: Strategy, prints: bool) -> None:
        self._strategy = strategy if prints and isinstance(strategy, Checkpointed) else None
        self.plan: Plan | None = None
        self.peak: int | None = None

    def measured(self, run: Callable[[], Result], plan: Callable[[Checkpointed], Plan]) -> Result:
        """Return run(), and note how much memory it took.

        Before the first one the plan is made and printed: so it can be read while the update takes its time, and what
        planning loads and warms up for good is not taken for the gradient's memory.
        """
        if self._strategy is None:
            return run()
        if self.plan is None:
            self.plan = plan(self._strategy)
            _say(f"plan: {self.plan}")
        before = _resident_from_now()
        result = run()
        if before is not None:
            self.peak = max(self.peak or 0, _status("VmHWM") - _status("RssFile") - before)
        return result

    def close(self) -> None:
        """Print the peak."""
        if self.plan is not None and self.peak is not None:
            _say(f"memory: the gradient took at most {as_text(self.peak)}; planned were {as_text(self.plan.resident)}")


def _resident_from_now() -> int | None:
    """Return the process's resident bytes without files, and reset VmHWM, its peak. None where the system cannot tell."""
    try:
        (_SELF / "clear_refs").write_text("5")
        return _status("VmRSS") - _status("RssFile")
    except OSError:
        return None


def _status(key: str) -> int:
    lines = (_SELF / "status").read_text().split("\n")
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(key))


def _say(line: str) -> None:
    print(line, file=sys.stderr, flush=True)
