"""What a run with a budget of memory tells: the plan once it is made, and at the end the peak that was measured."""

import sys
from collections.abc import Callable
from pathlib import Path

from bptt.gradient import Checkpointed, Result, Strategy
from bptt.gradient.checkpointing.plan import Plan, as_text

_SELF = Path("/proc/self")


class MemoryLog:
    """Says the plan of the first update, and measures all updates; with other strategies it does nothing.

    Attributes:
        plan: the first update's, None before.
        peak: resident bytes while a gradient was made, above those before it: the most of all updates; without the pages
            of files, which are torch's code as it is first used. None where the kernel does not tell.
    """

    def __init__(self, strategy: Strategy, speaks: bool) -> None:
        self._strategy = strategy if speaks and isinstance(strategy, Checkpointed) else None
        self.plan: Plan | None = None
        self.peak: int | None = None

    def measured(self, run: Callable[[], Result], plan: Callable[[Checkpointed], Plan]) -> Result:
        """The result of `run`.

        The plan is made and said before the first one: so it can be read while that takes its time, and what planning
        loads and warms up for good is not taken for the gradient's memory.
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
        """Say the peak."""
        if self.plan is not None and self.peak is not None:
            _say(f"memory: the gradient took at most {as_text(self.peak)}; planned were {as_text(self.plan.resident)}")


def _resident_from_now() -> int | None:
    """The process's resident bytes but for files; from now on VmHWM is the most since now. None where nothing tells."""
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
