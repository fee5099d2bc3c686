"""The progress of a run on the screen: two live lines in a terminal, else a line every ten seconds."""

import contextlib
import time
from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import TextIO

from bptt.terminal import visible
from bptt.train.events import Update, Validation
from bptt.train.schedule import Budget
from bptt.train.wording import Wording

_SMOOTHING = 0.95  # the loss that is shown is a running mean over some 20 updates


@dataclass(frozen=True)
class Status:
    """What is shown at one moment: training loss and validation in the task's metric, and the pace."""

    step: int
    spent: float
    score: float
    validation: float | None
    speed: float  # counted losses a second
    grad_norm: float
    seconds_left: float


class Progress(ABC):
    """Shows how training goes, from the first update on.

    Attributes:
        interval: seconds between two refreshes.
    """

    interval: float

    def __init__(self, wording: Wording, budget: Budget, elapsed: float) -> None:
        self.wording, self._budget = wording, budget
        self._validation: float | None = None
        self._mean: float | None = None
        self._elapsed_before = elapsed
        self._began = self._shown = time.monotonic()
        self._steps = self._counted = 0
        self._speed = 0.0

    def update(self, update: Update) -> None:
        """Take in an update, and refresh what is shown if that is older than `interval`."""
        self._steps += 1
        self._counted += update.count
        self._mean = update.loss if self._mean is None else _SMOOTHING * self._mean + (1 - _SMOOTHING) * update.loss
        now = time.monotonic()
        if now - self._shown >= self.interval:
            self.show(self._status(update, now))
            self._shown, self._counted = now, 0

    def validation(self, validation: Validation) -> None:
        """Take in a validation, which is shown from the next refresh on."""
        self._validation = validation.score

    def _status(self, update: Update, now: float) -> Status:
        session = now - self._began
        recent = self._counted / (now - self._shown)
        self._speed = recent if self._speed == 0 else 0.7 * self._speed + 0.3 * recent
        left = self._budget.seconds_left(update.step, self._elapsed_before + session, session / self._steps)
        assert self._mean is not None
        return Status(
            update.step,
            update.spent,
            self.wording.score(self._mean),
            self._validation,
            self._speed,
            update.grad_norm,
            left,
        )

    def describe(self, status: Status) -> str:
        """Return the status in one line: "0.61 bits per character · validation 0.7 · 9,000 characters/s · …"."""
        validation = "" if status.validation is None else f" · validation {status.validation:.4g}"
        return visible(
            f"{status.score:.4g} {self.wording.metric}{validation} · {status.speed:,.0f} {self.wording.unit}/s · "
            f"gradient {status.grad_norm:.2g}"
        )

    @abstractmethod
    def show(self, status: Status) -> None:
        """Show the status."""

    @abstractmethod
    def close(self) -> None:
        """Leave the screen clean."""


class Silent(Progress):
    """Shows nothing: for every process but the first."""

    interval = 3600.0

    def show(self, status: Status) -> None:
        """Do nothing."""

    def close(self) -> None:
        """Do nothing."""


class Lines(Progress):
    """Prints a plain line every ten seconds, for logs."""

    interval = 10.0

    def __init__(self, wording: Wording, budget: Budget, elapsed: float, stream: TextIO) -> None:
        super().__init__(wording, budget, elapsed)
        self._stream = stream

    def show(self, status: Status) -> None:
        """Print one line."""
        left = clock(status.seconds_left)
        with contextlib.suppress(BrokenPipeError):  # nobody reads the lines: that is no reason to stop training
            print(f"step {status.step:,} · {self.describe(status)} · {left} left", file=self._stream, flush=True)

    def close(self) -> None:
        """Do nothing."""


class Live(Progress):
    """Redraws two lines five times a second, for terminals. The training thread itself draws them."""

    interval = 0.2

    def __init__(self, wording: Wording, budget: Budget, elapsed: float, stream: TextIO) -> None:
        from rich.console import Console
        from rich.live import Live as Screen

        super().__init__(wording, budget, elapsed)
        self._screen = Screen(console=Console(file=stream), auto_refresh=False, transient=True)
        self._screen.start()

    def show(self, status: Status) -> None:
        """Draw a bar, and the status below it."""
        from rich.console import Group
        from rich.progress_bar import ProgressBar
        from rich.table import Table
        from rich.text import Text

        line = Table.grid(padding=(0, 2))
        line.add_row(
            Text(self.wording.task, style="bold"),
            f"step {status.step:,}",
            ProgressBar(total=1.0, completed=min(1.0, status.spent), width=30),
            f"{min(1.0, status.spent):.0%}",
            f"{clock(status.seconds_left)} left",
        )
        self._screen.update(Group(line, Text(self.describe(status))), refresh=True)

    def close(self) -> None:
        """Take the lines from the screen."""
        self._screen.stop()


def clock(seconds: float) -> str:
    """Return seconds as h:mm:ss or m:ss: 3725 → "1:02:05"."""
    whole = round(seconds)
    hours, minutes = whole // 3600, whole // 60 % 60
    return f"{hours}:{minutes:02}:{whole % 60:02}" if hours else f"{minutes}:{whole % 60:02}"


def make_progress(wording: Wording, budget: Budget, elapsed: float, stream: TextIO, first: bool) -> Progress:
    """Return the display that suits the process (silent in all but the first) and the stream (live in a terminal)."""
    if not first:
        return Silent(wording, budget, elapsed)
    return (Live if stream.isatty() else Lines)(wording, budget, elapsed, stream)
