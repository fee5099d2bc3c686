"""What the user sees while a run goes on: two live lines in a terminal, else a line every ten seconds."""

import contextlib
import time
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, TextIO

from bptt.terminal import visible
from bptt.train.optimizer import Budget

if TYPE_CHECKING:
    from bptt.train.loop import Update, Validation

_SMOOTHING = 0.95  # the loss that is shown is a running mean over some 20 updates


@dataclass(frozen=True)
class Wording:
    """How a task's numbers are called, and how a loss becomes the metric."""

    task: str
    metric: str
    unit: str
    score: Callable[[float], float]


@dataclass(frozen=True)
class Figures:
    """What is shown: the training loss and the validation in the task's metric, and the pace."""

    step: int
    spent: float
    score: float
    validation: float | None
    speed: float  # counted losses a second
    grad_norm: float
    seconds_left: float


class Progress(ABC):
    """Shows how training goes. Nothing is shown before the first update."""

    interval: float  # seconds between two looks

    def __init__(self, wording: Wording, budget: Budget, elapsed: float) -> None:
        self.wording, self._budget = wording, budget
        self._validation: float | None = None
        self._mean: float | None = None
        self._elapsed_before = elapsed
        self._began = self._shown = time.monotonic()
        self._steps = self._counted = self._steps_shown = 0
        self._speed = 0.0

    def update(self, update: "Update") -> None:
        """Note an update, and show it if the last look is old."""
        self._steps += 1
        self._counted += update.count
        self._mean = update.loss if self._mean is None else _SMOOTHING * self._mean + (1 - _SMOOTHING) * update.loss
        now = time.monotonic()
        if now - self._shown >= self.interval:
            self.show(self._figures(update, now))
            self._shown, self._counted = now, 0

    def validation(self, validation: "Validation") -> None:
        """Note a validation."""
        self._validation = validation.score

    def _figures(self, update: "Update", now: float) -> Figures:
        session = now - self._began
        recent = self._counted / (now - self._shown)
        self._speed = recent if self._speed == 0 else 0.7 * self._speed + 0.3 * recent
        left = self._budget.seconds_left(update.step, self._elapsed_before + session, session / self._steps)
        assert self._mean is not None
        return Figures(
            update.step,
            update.spent,
            self.wording.score(self._mean),
            self._validation,
            self._speed,
            update.grad_norm,
            left,
        )

    def describe(self, f: Figures) -> str:
        """The figures in words."""
        validation = "" if f.validation is None else f" · validation {f.validation:.4g}"
        return visible(
            f"{f.score:.4g} {self.wording.metric}{validation} · {f.speed:,.0f} {self.wording.unit}/s · "
            f"gradient {f.grad_norm:.2g}"
        )

    @abstractmethod
    def show(self, figures: Figures) -> None:
        """Show the figures."""

    @abstractmethod
    def close(self) -> None:
        """Leave the screen clean."""


class Silent(Progress):
    """For every process but the first."""

    interval = 3600.0

    def show(self, figures: Figures) -> None:
        """Nothing."""

    def close(self) -> None:
        """Nothing."""


class Lines(Progress):
    """A plain line every ten seconds, for logs."""

    interval = 10.0

    def __init__(self, wording: Wording, budget: Budget, elapsed: float, stream: TextIO) -> None:
        super().__init__(wording, budget, elapsed)
        self._stream = stream

    def show(self, figures: Figures) -> None:
        """One line."""
        left = clock(figures.seconds_left)
        with contextlib.suppress(BrokenPipeError):  # nobody reads the lines: that is no reason to stop training
            print(f"step {figures.step:,} · {self.describe(figures)} · {left} left", file=self._stream, flush=True)

    def close(self) -> None:
        """Nothing."""


class Live(Progress):
    """Two lines that are drawn anew five times a second, for terminals. Drawn by the training thread itself."""

    interval = 0.2

    def __init__(self, wording: Wording, budget: Budget, elapsed: float, stream: TextIO) -> None:
        from rich.console import Console
        from rich.live import Live as Screen

        super().__init__(wording, budget, elapsed)
        self._screen = Screen(console=Console(file=stream), auto_refresh=False, transient=True)
        self._screen.start()

    def show(self, figures: Figures) -> None:
        """A bar, and the figures below it."""
        from rich.console import Group
        from rich.progress_bar import ProgressBar
        from rich.table import Table
        from rich.text import Text

        line = Table.grid(padding=(0, 2))
        line.add_row(
            Text(self.wording.task, style="bold"),
            f"step {figures.step:,}",
            ProgressBar(total=1.0, completed=min(1.0, figures.spent), width=30),
            f"{min(1.0, figures.spent):.0%}",
            f"{clock(figures.seconds_left)} left",
        )
        self._screen.update(Group(line, Text(self.describe(figures))), refresh=True)

    def close(self) -> None:
        """Take the lines from the screen."""
        self._screen.stop()


def clock(seconds: float) -> str:
    """Seconds as h:mm:ss or m:ss."""
    whole = round(seconds)
    hours, minutes = whole // 3600, whole // 60 % 60
    return f"{hours}:{minutes:02}:{whole % 60:02}" if hours else f"{minutes}:{whole % 60:02}"


def make_progress(wording: Wording, budget: Budget, elapsed: float, stream: TextIO, first: bool) -> Progress:
    """The display that suits the process and the stream."""
    if not first:
        return Silent(wording, budget, elapsed)
    return (Live if stream.isatty() else Lines)(wording, budget, elapsed, stream)
