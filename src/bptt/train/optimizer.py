"""The optimizer: making it, its state for a checkpoint, and clipping the gradient before it."""

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn

from bptt.options import TrainOptions


def make_optimizer(options: TrainOptions, parameters: Iterable[nn.Parameter]) -> torch.optim.Optimizer:
    """Return the optimizer that the options name; fused, with one pass over all weights, where torch has that."""
    settings: dict[str, Any] = {"lr": options.lr, "weight_decay": options.weight_decay}
    if options.optimizer == "rmsprop":
        return torch.optim.RMSprop(parameters, **settings)
    kinds = {"adam": torch.optim.Adam, "adamw": torch.optim.AdamW, "sgd": torch.optim.SGD}
    return kinds[options.optimizer](parameters, **settings, fused=True)


def optimizer_tensors(optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    """Return the optimizer's state, tensors by "number of the parameter/key". Its settings follow from the options."""
    state = optimizer.state_dict()["state"]
    return {f"{number}/{key}": t for number, values in state.items() for key, t in values.items() if t is not None}


def restore_optimizer(optimizer: torch.optim.Optimizer, tensors: dict[str, Tensor]) -> None:
    """Restore the state that `optimizer_tensors` returned."""
    state: dict[int, dict[str, Tensor]] = {}
    for name, tensor in tensors.items():
        number, key = name.split("/")
        state.setdefault(int(number), {})[key] = tensor
    optimizer.load_state_dict({"state": state, "param_groups": optimizer.state_dict()["param_groups"]})


def clip(parameters: list[nn.Parameter], largest: float) -> Tensor:
    """Scale the gradient down to the norm `largest` (0: never), and return the norm it had before, a scalar tensor."""
    if largest > 0:
        return nn.utils.clip_grad_norm_(parameters, largest)
    return nn.utils.get_total_norm([p.grad for p in parameters if p.grad is not None])
