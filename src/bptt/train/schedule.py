"""How long to train, and how the learning rate changes meanwhile."""

import math
from dataclasses import dataclass

from bptt.options import TrainOptions


@dataclass(frozen=True)
class Budget:
    """How long to train: updates, minutes, or whichever ends first."""

    steps: int | None
    minutes: float | None

    def spent(self, step: int, elapsed: float) -> float:
        """Return the share spent after `step` updates and `elapsed` seconds; 1 or more when training is over."""
        by_steps = step / self.steps if self.steps else 0.0
        by_clock = elapsed / (60 * self.minutes) if self.minutes else 0.0
        return max(by_steps, by_clock)

    def seconds_left(self, step: int, elapsed: float, seconds_a_step: float) -> float:
        """Return how many seconds training will still take, if each further update takes `seconds_a_step`."""
        by_steps = (self.steps - step) * seconds_a_step if self.steps else math.inf
        by_clock = 60 * self.minutes - elapsed if self.minutes else math.inf
        return max(0.0, min(by_steps, by_clock))


def learning_rate(options: TrainOptions, step: int, spent: float) -> float:
    """Return the learning rate of the update that follows `step` others, when the share `spent` of the budget is spent.

    lr · min(1, (step + 1) / warmup) · s, with s = 1 (constant), 1 − spent (linear) or (1 + cos(π · spent)) / 2 (cosine).
    """
    rise = min(1.0, (step + 1) / options.warmup) if options.warmup else 1.0
    spent = min(spent, 1.0)
    fall = {"constant": 1.0, "linear": 1.0 - spent, "cosine": (1.0 + math.cos(math.pi * spent)) / 2}
    return options.lr * rise * fall[options.schedule]
