"""What an optimizer's step is called with: whether it updates a model, its closure, and the scale of the loss."""

import inspect
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import nn

Arguments = tuple[tuple[Any, ...], dict[str, Any]]


class Closure(NamedTuple):
    """The closure that `optimizer.step` was given, and its place among the arguments; None: it is a keyword."""

    function: Callable[[], Any]
    place: int | None

    @staticmethod
    def of(args: tuple[Any, ...], kwargs: dict[str, Any]) -> "Closure | None":
        """Find it among the arguments of `step`, of which the first is the optimizer itself; None if there is none."""
        place = next((n for n, value in enumerate(args) if n and callable(value)), None)
        function = kwargs.get("closure") if place is None else args[place]
        return Closure(function, place) if callable(function) else None

    def replaced(self, function: Callable[[], Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Arguments:
        """Return the arguments of `step` with another function in the closure's place."""
        if self.place is None:
            return args, kwargs | {"closure": function}
        return (*args[: self.place], function, *args[self.place + 1 :]), kwargs


def updates_a_weight_of(optimizer: torch.optim.Optimizer, model: nn.Module) -> bool:
    """Return whether the optimizer holds a parameter of the model."""
    own = {id(p) for p in model.parameters()}
    return any(id(p) in own for group in optimizer.param_groups for p in group["params"])


def loss_scale() -> float:
    """Return what torch.amp.GradScaler has multiplied the loss with, where one is calling `optimizer.step`; else 1."""
    file, frame = inspect.getfile(torch.amp.GradScaler), inspect.currentframe()
    while frame is not None:
        scaler = frame.f_locals.get("self") if frame.f_code.co_filename == file else None
        if isinstance(scaler, torch.amp.GradScaler):
            return scaler.get_scale()
        frame = frame.f_back
    return 1.0
