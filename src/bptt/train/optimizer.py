"""The optimizer, how its learning rate goes, and how much of the budget is spent."""

import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from bptt.options import TrainOptions


def make_optimizer(options: TrainOptions, parameters: Iterable[nn.Parameter]) -> torch.optim.Optimizer:
    """The optimizer of the options; fused, one pass over all weights, where torch has it."""
    settings: dict[str, Any] = {"lr": options.lr, "weight_decay": options.weight_decay}
    if options.optimizer == "rmsprop":
        return torch.optim.RMSprop(parameters, **settings)
    kinds = {"adam": torch.optim.Adam, "adamw": torch.optim.AdamW, "sgd": torch.optim.SGD}
    return kinds[options.optimizer](parameters, **settings, fused=True)


def optimizer_tensors(optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    """Its state by "number of the parameter/key"; its settings follow from the options."""
    state = optimizer.state_dict()["state"]
    return {f"{number}/{key}": t for number, values in state.items() for key, t in values.items() if t is not None}


def restore_optimizer(optimizer: torch.optim.Optimizer, tensors: dict[str, Tensor]) -> None:
    """Put back what `optimizer_tensors` gave."""
    state: dict[int, dict[str, Tensor]] = {}
    for name, tensor in tensors.items():
        number, key = name.split("/")
        state.setdefault(int(number), {})[key] = tensor
    optimizer.load_state_dict({"state": state, "param_groups": optimizer.state_dict()["param_groups"]})


@dataclass(frozen=True)
class Budget:
    """How long to train: updates, minutes, or whichever ends first."""

    steps: int | None
    minutes: float | None

    def spent(self, step: int, elapsed: float) -> float:
        """The share that is spent after `step` updates and `elapsed` seconds; 1 or more when training is over."""
        by_steps = step / self.steps if self.steps else 0.0
        by_clock = elapsed / (60 * self.minutes) if self.minutes else 0.0
        return max(by_steps, by_clock)

    def seconds_left(self, step: int, elapsed: float, seconds_a_step: float) -> float:
        """How long it will still take."""
        by_steps = (self.steps - step) * seconds_a_step if self.steps else math.inf
        by_clock = 60 * self.minutes - elapsed if self.minutes else math.inf
        return max(0.0, min(by_steps, by_clock))


def learning_rate(options: TrainOptions, step: int, spent: float) -> float:
    """The learning rate of the update after `step` others, when the share `spent` of the budget is behind.

    warm-up: lr · (step + 1) / warmup at most;  linear: lr · (1 - spent);  cosine: lr · (1 + cos(π · spent)) / 2.
    """
    rise = min(1.0, (step + 1) / options.warmup) if options.warmup else 1.0
    spent = min(spent, 1.0)
    fall = {"constant": 1.0, "linear": 1.0 - spent, "cosine": (1.0 + math.cos(math.pi * spent)) / 2}
    return options.lr * rise * fall[options.schedule]


def clip(parameters: list[nn.Parameter], largest: float) -> Tensor:
    """Scale the gradient down to the norm `largest` (0: leave it); returns the norm it had, a scalar tensor."""
    if largest > 0:
        return nn.utils.clip_grad_norm_(parameters, largest)
    return nn.utils.get_total_norm([p.grad for p in parameters if p.grad is not None])
