"""fuse: the recurrent layers of a model that exists become bptt's, in place; unfuse: the way back.

A layer of torch.nn and its twin in `bptt.layers` differ in their class and at most two attributes, so a layer is swapped by
changing these. It stays the same object: parameters, optimizers, hooks, names and whoever else holds it notice nothing.
(The file is not called fuse.py: a module of that name would take the place of the function `bptt.fuse` once it is loaded.)
"""

from collections.abc import Callable
from typing import Any, TypeVar

import torch
from torch import nn

from bptt.cells import Elman
from bptt.kernels import Sequences, fallback
from bptt.layers import GRU, LSTM, RNN, Recurrent, _Layer, _TorchLayer
from bptt.warning import warn

Model = TypeVar("Model", bound=nn.Module)
Report = Callable[[str], object]

_TWINS: dict[type[nn.Module], type[_TorchLayer]] = {nn.RNN: RNN, nn.GRU: GRU, nn.LSTM: LSTM}
_TORCH: dict[type[nn.Module], type[nn.Module]] = {ours: theirs for theirs, ours in _TWINS.items()}
# What an object must not have of its own, since the class of the other side reads it.
_OURS = {"backend", "cell"} | {name for name in vars(_Layer) if not name.startswith("__")}
_THEIRS = {"forward", "permute_hidden", "check_forward_args", "check_hidden_size"}


def fuse(model: Model, *, report: Report | None = None) -> Model:
    """Make every torch.nn.RNN, GRU and LSTM in `model` the bptt layer of that name, in place, and return `model`.

    Outputs and gradients stay the same up to rounding. Each layer stays the same object with the same Parameter objects
    under the same names: an optimizer made before goes on, a state_dict fits both ways, hooks and shared layers stay.

    Left as they are: subclasses (they may have a forward of their own; a parametrized layer is one), single-step cells,
    quantized and scripted layers. Where the fused kernel cannot serve (a GPU, float16), the swapped layer
    runs on torch's own operators, as before.

    Args:
        model: any torch.nn.Module; the layer itself too.
        report: called with one line for each layer, what became of it and why, e.g. `report=print`.

    Raises:
        TypeError: `model` is no torch.nn.Module.

    Warns:
        UserWarning: there was nothing to swap, and no `report` to say so.

    >>> model = nn.Sequential(nn.Embedding(50, 8), nn.LSTM(8, 16), nn.Identity())
    >>> fuse(model, report=print)[1]
    1: torch.nn.LSTM -> bptt.LSTM
    LSTM(8, 16)
    """
    _check(model, "fuse")
    lines, fused = [], 0
    for name, module in _named(model):
        if type(module) in _TORCH:
            fused += 1
            lines.append(f"{name}: already bptt.{type(module).__name__}")
        elif type(module) in _TWINS:
            reason = _unlike_its_class(module, _OURS)
            lines.append(f"{name}: {_swap(module) if reason is None else f'{_of(module)} left: {reason}'}")
            fused += reason is None
        elif (reason := _why_left(module)) is not None:
            lines.append(f"{name}: {_of(module)} left: {reason}")
    if not fused:
        lines.append(f"fuse found no torch.nn.RNN, GRU or LSTM that it can swap in {type(model).__name__}")
        if report is None:
            warn("; ".join(lines[-1:] + lines[:-1]))
    _say(lines, report)
    return model


def unfuse(model: Model, *, report: Report | None = None) -> Model:
    """Make every bptt.RNN, GRU and LSTM in `model` the torch.nn layer of that name, in place, and return `model`.

    For what needs torch's own classes: `isinstance(layer, nn.LSTM)`, torch.jit.script, quantization. Layers that torch.nn
    does not have (nonlinearity='sigmoid', `bptt.Recurrent`) are left. A `backend` that was insisted on is forgotten, and
    calls with `reset=` fail: torch.nn knows no resets.

    Args:
        model: any torch.nn.Module; the layer itself too.
        report: called with one line for each layer, what became of it and why, e.g. `report=print`.

    Raises:
        TypeError: `model` is no torch.nn.Module.

    Warns:
        UserWarning: a bptt layer was left, and there is no `report` to say so.

    >>> unfuse(fuse(nn.GRU(8, 16))).__class__
    <class 'torch.nn.modules.rnn.GRU'>
    """
    _check(model, "unfuse")
    lines, left = [], []
    for name, module in _named(model):
        if not isinstance(module, _Layer):
            continue
        reason = _why_torch_cannot(module)
        if reason is None:
            lines.append(f"{name}: {_swap_back(module)}")
        else:
            left.append(f"{name}: {_of(module)} left: {reason}")
    _say(lines + left, report)
    if left and report is None:
        warn("; ".join(["unfuse left what torch.nn does not have", *left]))
    return model


def _check(model: Any, name: str) -> None:
    if isinstance(model, nn.Module):
        return
    if isinstance(model, type) and issubclass(model, nn.Module):
        came, remedy = f"the class {model.__name__}", f"make an object of it first: {name}({model.__name__}(...))"
    else:
        came, remedy = f"a {type(model).__name__}", f"pass the model itself, as in {name}(model)"
    raise TypeError(f"{name} got {came}, wanted a torch.nn.Module object: {remedy}")


def _named(model: nn.Module) -> list[tuple[str, nn.Module]]:
    """Each module once, under all the names that it has; the model itself under that of its class."""
    names: dict[nn.Module, list[str]] = {model: [type(model).__name__]}
    for name, parent in model.named_modules():
        for child_name, child in parent._modules.items():
            if child is not None:
                names.setdefault(child, []).append(f"{name}.{child_name}".removeprefix("."))
    return [(", ".join(found), module) for module, found in names.items()]


def _say(lines: list[str], report: Report | None) -> None:
    if report is not None:
        for line in lines:
            report(line)


def _of(module: nn.Module) -> str:
    """Its class by the name that a user knows: torch.nn.LSTM, bptt.LSTM, LSTMWithNorm."""
    kind = type(module)
    if vars(nn).get(kind.__name__) is kind:
        return f"torch.nn.{kind.__name__}"
    return f"bptt.{kind.__name__}" if kind in (*_TORCH, Recurrent) else kind.__name__


# torch.nn to bptt -----------------------------------------------------------------------------------------------------


def _swap(module: nn.Module) -> str:
    """Make it bptt's; what was done, and which kernel serves if not the fastest."""
    kind = _TWINS[type(module)]
    module.__class__ = kind
    assert isinstance(module, _TorchLayer)
    module.backend = "auto"
    if kind is RNN:
        module.nonlinearity = _nonlinearity(module)
        module.cell = Elman(module.nonlinearity)
    served = _served_by(module)
    return f"torch.nn.{kind.__name__} -> bptt.{kind.__name__}{'' if served is None else f', which runs on {served}'}"


def _nonlinearity(module: _TorchLayer) -> Any:
    """The one that torch.nn.RNN runs: its mode decides, not its attribute `nonlinearity`."""
    return module.mode.removeprefix("RNN_").lower()


def _served_by(layer: _TorchLayer) -> str | None:
    weight = next(iter(layer.layer_weights(0, 0).values()))
    return fallback(layer._stack(), Sequences(weight.new_empty(1, 1, layer.input_size)))


def _unlike_its_class(module: Any, reserved: set[str]) -> str | None:
    """Why an object of one of the six classes is not what its class says."""
    own = {*vars(module), *module._parameters, *module._buffers, *module._modules}
    if own & reserved:
        return (
            f"the object itself has {', '.join(sorted(own & reserved))}, which the other class would take for its own"
        )
    names = module._flat_weights_names
    missing = [name for name in names if not isinstance(getattr(module, name, None), torch.Tensor)]
    if missing:
        return f"it has no tensor {missing[0]}"
    return None


def _why_left(module: nn.Module) -> str | None:
    """Why a module that looks recurrent is left, None if it does not look so."""
    kind = type(module)
    if isinstance(module, torch.jit.ScriptModule):
        names = {twin.__name__ for twin in _TWINS}
        return "scripted: fuse the model it was made from" if module.original_name in names else None
    if isinstance(module, nn.RNNCellBase):
        return "it runs one step at a time, so there is no loop over time to fuse"
    if isinstance(module, _Layer):
        return None  # bptt's own: Recurrent, or a subclass
    if nn.utils.parametrize.is_parametrized(module) and isinstance(module, nn.RNNBase):
        return "it is parametrized, which made it a class of its own: fuse first, then parametrize"
    if isinstance(module, nn.RNNBase):
        base = next((b for b in kind.__mro__ if b in _TWINS), nn.RNNBase)
        return f"a subclass of torch.nn.{base.__name__} may have a forward of its own"
    if kind.__module__.startswith(("torch.ao.", "torchao.")) and any(t.__name__ in kind.__name__ for t in _TWINS):
        return "quantized: fuse serves the floating-point layers"
    return None


# bptt to torch.nn -----------------------------------------------------------------------------------------------------


def _why_torch_cannot(module: _Layer) -> str | None:
    if type(module) not in _TORCH:
        if nn.utils.parametrize.is_parametrized(module):
            return "it is parametrized, which made it a class of its own: unfuse first, then parametrize"
        return "torch.nn has no such layer"
    wanted = Elman(_nonlinearity(module)) if isinstance(module, RNN) else type(module).cell
    if module.cell != wanted:
        return f"torch.nn has no layer of {module.cell}"
    return _unlike_its_class(module, _THEIRS)


def _swap_back(module: nn.Module) -> str:
    kind = _TORCH[type(module)]
    for name in ("backend", "cell"):
        vars(module).pop(name, None)
    module.__class__ = kind
    return f"bptt.{kind.__name__} -> torch.nn.{kind.__name__}"
