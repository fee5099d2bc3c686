"""Whether a training can go on from a checkpoint: every part is compared with what this network would have left.

A checkpoint may be a stranger's, or belong to another run. What does not fit would end in an error deep in torch, or change
the training without a word.
"""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from bptt.gradient import RTRL, Past, Result, SnAp1, Truncated, backward
from bptt.options import TrainOptions
from bptt.train.optimizer import make_optimizer, optimizer_tensors
from bptt.train.storage.checkpoint import Checkpoint
from bptt.train.storage.tensors import Tensors, differences
from bptt.train.training import Training
from bptt.typed import Unexpected

_Form = tuple[tuple[int, ...], torch.dtype]  # shape and number format of a tensor


def check_checkpoint(training: Training, checkpoint: Checkpoint) -> None:
    """Raise Unexpected, which says why, unless `training` can go on from the checkpoint."""
    step = checkpoint.state.step
    if checkpoint.position != training.stream.position_after(step):
        raise Unexpected(f"its position in the data is not that of step {step:,}")
    _check_weights("weights", checkpoint.weights, training.model)
    if checkpoint.best:
        _check_weights("best weights", checkpoint.best, training.model)
    _check_optimizer(checkpoint.optimizer, training.options, training.parameters, step)
    for states in checkpoint.generators:
        _check_generators(states, training.device)
    if (checkpoint.carried is not None) != (training.task.carries_state and step > 0):
        raise Unexpected("its hidden state is missing, or there is one where none is carried")
    if checkpoint.carried is not None:
        _check_carried(training, checkpoint.carried)


def _check_weights(what: str, tensors: Tensors, model: nn.Module) -> None:
    reason = differences(tensors, {name: (tuple(t.shape), t.dtype) for name, t in model.state_dict().items()})
    if reason:
        raise Unexpected(f"{what}: {reason}")
    if not all(bool(torch.isfinite(t).all()) for t in tensors.values()):
        raise Unexpected(f"{what}: one is infinite or not a number")


def _check_optimizer(tensors: Tensors, options: TrainOptions, parameters: list[nn.Parameter], step: int) -> None:
    """Raise Unexpected unless these tensors are an optimizer's state after `step` updates.

    It has all that the optimizer keeps for a parameter, or nothing: then no gradient has reached that parameter yet.
    """
    kept = _kept_by_optimizer(options)
    wanted = _optimizer_forms(kept, tensors, parameters)
    if kept and step > 0 and not wanted:
        raise Unexpected("the optimizer's state is missing")
    reason = differences(tensors, wanted)
    if reason:
        raise Unexpected(f"the optimizer's state: {reason}")
    if not all(0 <= float(t) <= step for t in tensors.values() if not t.dim()):
        raise Unexpected(f"the optimizer's state is not that of step {step:,}")


def _optimizer_forms(kept: Tensors, tensors: Tensors, parameters: list[nn.Parameter]) -> Mapping[str, _Form]:
    """Return shape and number format of each tensor that is kept for the parameters of which `tensors` has anything."""
    forms: dict[str, _Form] = {}
    for n, parameter in enumerate(parameters):
        if any(f"{n}/{key}" in tensors for key in kept):
            own = (tuple(parameter.shape), parameter.dtype)
            forms |= {f"{n}/{key}": own if t.dim() else ((), t.dtype) for key, t in kept.items()}
    return forms


def _kept_by_optimizer(options: TrainOptions) -> Tensors:
    """Return what the optimizer keeps for a parameter of two numbers, found by making one step."""
    parameter = nn.Parameter(torch.zeros(2))
    parameter.grad = torch.zeros(2)
    optimizer = make_optimizer(options, [parameter])
    optimizer.step()
    return {name.removeprefix("0/"): t for name, t in optimizer_tensors(optimizer).items()}


def _check_generators(states: Tensors, device: torch.device) -> None:
    places = {"cpu": torch.device("cpu")} | ({"cuda": device} if device.type == "cuda" else {})
    if "cpu" not in states or set(states) - {"cpu", "cuda"}:
        raise Unexpected("a random generator's state is missing, or it is another device's")
    for name, place in places.items():
        try:
            generator = torch.Generator(place)
            if name in states and states[name].shape == generator.get_state().shape:
                generator.set_state(states[name])
            elif name in states:
                raise TypeError("another shape")
        except (RuntimeError, TypeError) as error:
            raise Unexpected(f"the state of the random generator of {name} is damaged") from error


# The hidden state --------------------------------------------------------------------------------------------------


def _check_carried(training: Training, carried: Result) -> None:
    x = _one_step(training)
    wanted = _after(training, x)
    _check_like("state", carried.state, wanted.state)
    strategy = training.strategy
    if isinstance(strategy, RTRL | SnAp1):
        _check_like("influence", carried.past, wanted.past)
    elif carried.past is None and isinstance(strategy, Truncated) and (strategy.k2 or 0) > strategy.k1:
        raise Unexpected(f"the steps that --strategy {training.options.strategy} looks back on are missing")
    elif carried.past is not None:
        past = carried.past
        if not (isinstance(past, Past) and isinstance(strategy, Truncated)):
            raise Unexpected(f"its past is not one of --strategy {training.options.strategy}")
        _check_past(past, x, wanted.state, training.task.sizes().symbols)


def _one_step(training: Training) -> Tensor:
    """Return zeros as an input of one step for all lanes: [1, B, D], or symbols [1, B]."""
    sizes, batch = training.task.sizes(), training.options.batch
    if sizes.symbols is not None:
        return torch.zeros(1, batch, dtype=torch.int64, device=training.device)
    return torch.zeros(1, batch, int(sizes.inputs or 0), dtype=training.dtype, device=training.device)


def _after(training: Training, x: Tensor) -> Result:
    """Return what this network carries on after the step x, from which shapes and number formats are taken."""
    if isinstance(training.strategy, RTRL | SnAp1):
        result = backward(training.model, x, x, lambda z, _: z.sum(), training.strategy)
        training.optimizer.zero_grad()
        return result
    with torch.no_grad():
        z, state = training.model(x)
    return Result(z.sum(), state)


def _check_past(past: Past, x: Tensor, state: Any, symbols: int | None) -> None:
    if not isinstance(past.x, Tensor) or past.x.dim() != x.dim() or not len(past.x):
        raise Unexpected("the inputs of its past are not those of some steps")
    steps = len(past.x)
    _check_like("inputs of the past", past.x, x.expand(steps, *x.shape[1:]))
    if symbols is not None and (int(past.x.min()) < 0 or int(past.x.max()) >= symbols):
        raise Unexpected("its past has symbols that there are not")
    if past.state is not None:
        _check_like("state before the past", past.state, state)
    if past.reset is not None:
        _check_like("resets of the past", past.reset, torch.zeros(x.shape[:2], dtype=torch.bool).expand(steps, -1))


def _check_like(what: str, found: Any, wanted: Any) -> None:
    """Raise Unexpected unless two trees of tensors agree in structure, shapes and number formats."""
    if isinstance(wanted, tuple) and isinstance(found, tuple) and len(found) == len(wanted):
        for f, w in zip(found, wanted, strict=True):
            _check_like(what, f, w)
        return
    if not (isinstance(wanted, Tensor) and isinstance(found, Tensor)):
        raise Unexpected(f"the {what} has not the structure of this network's")
    reason = differences({what: found}, {what: (tuple(wanted.shape), wanted.dtype)})
    if reason:
        raise Unexpected(reason)
