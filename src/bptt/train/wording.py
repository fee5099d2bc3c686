"""The words and numbers in which a run is told to its user."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from bptt.tasks import Task


@dataclass(frozen=True)
class Wording:
    """What a task's numbers are called, and how a mean loss becomes its metric; attributes as of `Task`."""

    task: str
    metric: str
    unit: str
    score: Callable[[float], float]

    @classmethod
    def of(cls, task: Task) -> "Wording":
        """The wording of a task."""
        return cls(task.name, task.metric, task.unit, task.score)


def in_words(value: Any) -> str:
    """Return a value of a report as people read it: 12345 → "12,345", 0.123456 → "0.1235", a text as it is."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return str(value)
    return f"{value:,}" if isinstance(value, int) else f"{value:.4g}"
