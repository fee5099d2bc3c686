"""`fuse` makes the recurrent layers of an existing model bptt's, in place; `unfuse` makes them torch.nn's again.

A layer of torch.nn and its twin here differ in their class and one attribute, so a layer is swapped by changing these. It
stays the same object: parameters, optimizers, hooks, names and whoever else holds it notice nothing.
A fused layer is both, a `bptt.LSTM` and a `torch.nn.LSTM`. A layer made as `bptt.LSTM(...)` is no `torch.nn.LSTM`, for
torch.compile refuses those.
(The file is not called fuse.py: a module of that name would take the place of the function `bptt.fuse` once it is loaded.)
"""

import types
from collections.abc import Callable
from typing import Any, TypeVar

import torch
from torch import nn

import bptt.layers as layers
from bptt.kernels import Sequences, fallback
from bptt.layer_base import BaseLayer, TorchLayer
from bptt.layers import Recurrent
from bptt.overrides import METHODS
from bptt.torch_private import flat_weight_names, leave_to_eager, own_children, own_names
from bptt.warning import warn

Model = TypeVar("Model", bound=nn.Module)
Report = Callable[[str], object]


class _Fused(type):
    """The metaclass of fused layers: their class equals the class of torch.nn that it stands for, as a key of a dict too.

    torch.ao's quantization and many other programs (counters of operations, replacers of layers) look up `type(layer)` in
    a dict like {nn.LSTM: ...}, where no subclass is found. Subclasses of a fused class are equal to themselves alone.
    """

    def __eq__(cls, other: object) -> bool:
        return cls is other or vars(cls).get("stands_for", cls) is other

    def __hash__(cls) -> int:
        return type.__hash__(vars(cls).get("stands_for", cls))


def _run_eagerly(function: Any) -> Any:
    """Return a copy that torch.compile leaves alone, with all that it calls, as it leaves the forward of torch.nn.LSTM.

    It refuses to compile a method of such a layer, but not the functions inside, one by one. torch.compiler.disable would do
    the same, load the whole compiler at import, and cost time at each call.
    """
    own = types.FunctionType(
        function.__code__.replace(), function.__globals__, function.__name__, function.__defaults__
    )
    own.__kwdefaults__, own.__doc__, own.__qualname__ = function.__kwdefaults__, function.__doc__, function.__qualname__
    leave_to_eager(own.__code__)
    return own


_forward = _run_eagerly(BaseLayer.forward)


class RNN(layers.RNN, nn.RNN, metaclass=_Fused):
    """A torch.nn.RNN that `fuse` has made a bptt.RNN."""

    stands_for = nn.RNN
    forward = _forward


class GRU(layers.GRU, nn.GRU, metaclass=_Fused):
    """A torch.nn.GRU that `fuse` has made a bptt.GRU."""

    stands_for = nn.GRU
    forward = _forward


class LSTM(layers.LSTM, nn.LSTM, metaclass=_Fused):
    """A torch.nn.LSTM that `fuse` has made a bptt.LSTM."""

    stands_for = nn.LSTM
    forward = _forward


_TWINS: dict[type[nn.Module], type[TorchLayer]] = {nn.RNN: RNN, nn.GRU: GRU, nn.LSTM: LSTM}
# The way back, for fused layers and for those that were made as bptt's.
_TORCH: dict[type[nn.Module], type[nn.Module]] = {
    RNN: nn.RNN, layers.RNN: nn.RNN, GRU: nn.GRU, layers.GRU: nn.GRU, LSTM: nn.LSTM, layers.LSTM: nn.LSTM,
}  # fmt: skip
# What an object must not have of its own, since the class of the other side reads it.
_OURS = {"backend", "cell", *METHODS} | {name for name in vars(BaseLayer) if not name.startswith("__")}
_THEIRS = {"forward", *METHODS}


def fuse(model: Model, *, report: Report | None = None) -> Model:
    """Make every torch.nn.RNN, GRU and LSTM in `model` the bptt layer of that name, in place, and return `model`.

    Outputs and gradients stay the same up to rounding. Each layer stays the same object with the same Parameter objects
    under the same names: an optimizer made before goes on, a state_dict fits both ways, hooks and shared layers stay.
    A fused layer is a `bptt.LSTM` and a `torch.nn.LSTM` (GRU, RNN), and its class is found where torch.nn's is looked up; so
    quantization takes it, and torch.compile goes around it as it goes around torch.nn's.

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
    _check_model(model, "fuse")
    lines, fused = [], 0
    for name, module in _named_modules(model):
        if isinstance(module, BaseLayer) and type(module) in _TORCH:
            fused += 1
            lines.append(f"{name}: already bptt.{type(module).__name__}")
        elif type(module) in _TWINS:
            reason = _unlike_its_class(module, _OURS)
            lines.append(f"{name}: {_swap(module) if reason is None else f'{_class_of(module)} left: {reason}'}")
            fused += reason is None
        elif (reason := _why_left(module)) is not None:
            lines.append(f"{name}: {_class_of(module)} left: {reason}")
    if not fused:
        lines.append(f"fuse found no torch.nn.RNN, GRU or LSTM that it can swap in {type(model).__name__}")
        if report is None:
            warn("; ".join(lines[-1:] + lines[:-1]))
    _say(lines, report)
    return model


def unfuse(model: Model, *, report: Report | None = None) -> Model:
    """Make every bptt.RNN, GRU and LSTM in `model` the torch.nn layer of that name, in place, and return `model`.

    For what needs torch's own classes: torch.jit.script, `type(layer) is nn.LSTM`, and for layers made as `bptt.LSTM(...)`
    also `isinstance(layer, nn.LSTM)` and quantization. Layers that torch.nn does not have (nonlinearity='sigmoid',
    `bptt.Recurrent`) are left. A `backend` that was insisted on is forgotten, and calls with `reset=` fail: torch.nn knows
    no resets.

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
    _check_model(model, "unfuse")
    lines, left = [], []
    for name, module in _named_modules(model):
        if not isinstance(module, BaseLayer):
            continue
        reason = _why_torch_cannot(module)
        if reason is None:
            lines.append(f"{name}: {_swap_back(module)}")
        else:
            left.append(f"{name}: {_class_of(module)} left: {reason}")
    _say(lines + left, report)
    if left and report is None:
        warn("; ".join(["unfuse left what torch.nn does not have", *left]))
    return model


def _check_model(model: Any, name: str) -> None:
    if isinstance(model, nn.Module):
        return
    if isinstance(model, type) and issubclass(model, nn.Module):
        came, remedy = f"the class {model.__name__}", f"make an object of it first: {name}({model.__name__}(...))"
    else:
        came, remedy = f"a {type(model).__name__}", f"pass the model itself, as in {name}(model)"
    raise TypeError(f"{name} got {came}, wanted a torch.nn.Module object: {remedy}")


def _named_modules(model: nn.Module) -> list[tuple[str, nn.Module]]:
    """Each module once, with all its names joined by commas; the model itself is named by its class."""
    names: dict[nn.Module, list[str]] = {model: [type(model).__name__]}
    for name, parent in model.named_modules():
        for child_name, child in own_children(parent).items():
            names.setdefault(child, []).append(f"{name}.{child_name}".removeprefix("."))
    return [(", ".join(found), module) for module, found in names.items()]


def _say(lines: list[str], report: Report | None) -> None:
    if report is not None:
        for line in lines:
            report(line)


def _class_of(module: nn.Module) -> str:
    """A module's class by the name that a user knows: torch.nn.LSTM, bptt.LSTM, LSTMWithNorm."""
    kind = type(module)
    if vars(nn).get(kind.__name__) is kind:
        return f"torch.nn.{kind.__name__}"
    return f"bptt.{kind.__name__}" if kind in (*_TORCH, Recurrent) else kind.__name__


# torch.nn to bptt -----------------------------------------------------------------------------------------------------


def _swap(module: nn.Module) -> str:
    """Make a layer bptt's; return a line that says so, with the kernel that runs it unless that is the fastest."""
    kind = _TWINS[type(module)]
    module.__class__ = kind
    assert isinstance(module, TorchLayer)
    module.backend = "auto"
    served = _served_by(module)
    return f"torch.nn.{kind.__name__} -> bptt.{kind.__name__}{'' if served is None else f', which runs on {served}'}"


def _served_by(layer: TorchLayer) -> str | None:
    stack = layer._stack()
    weight = next(iter(stack.weights[0][0].values()))
    return fallback(stack, Sequences(weight.new_empty(1, 1, layer.input_size)))


def _unlike_its_class(module: Any, reserved: set[str]) -> str | None:
    """Why a layer cannot be taken for what its class says; None if it can.

    reserved: attributes that the other class would read as its own.
    """
    own = own_names(module)
    if own & reserved:
        return (
            f"the object itself has {', '.join(sorted(own & reserved))}, which the other class would take for its own"
        )
    names = flat_weight_names(module)
    missing = [name for name in names if not isinstance(getattr(module, name, None), torch.Tensor)]
    if missing:
        return f"it has no tensor {missing[0]}"
    if isinstance(module, nn.RNN) and module.mode not in ("RNN_TANH", "RNN_RELU"):
        return f"its mode is {module.mode!r}"
    return None


def _why_left(module: nn.Module) -> str | None:
    """Why a module that looks recurrent is left as it is; None if it does not look so."""
    if isinstance(module, BaseLayer):
        return None  # bptt's own: Recurrent, or a subclass
    if isinstance(module, torch.jit.ScriptModule):
        names = {twin.__name__ for twin in _TWINS}
        return "scripted: fuse the model it was made from" if module.original_name in names else None
    if isinstance(module, nn.RNNCellBase):
        return "it runs one step at a time, so there is no loop over time to fuse"
    if isinstance(module, nn.RNNBase):
        return _why_subclass_left(module)
    return "quantized: fuse serves the floating-point layers" if _is_quantized(module) else None


def _why_subclass_left(layer: nn.RNNBase) -> str:
    """Why a layer of a class derived from one of torch.nn's is left."""
    if nn.utils.parametrize.is_parametrized(layer):
        return "it is parametrized, which made it a class of its own: fuse first, then parametrize"
    base = next((b for b in type(layer).__mro__ if b in _TWINS), nn.RNNBase)
    return f"a subclass of torch.nn.{base.__name__} may have a forward of its own"


def _is_quantized(module: nn.Module) -> bool:
    """Whether it is a quantized RNN, GRU or LSTM of torch.ao's or torchao's."""
    kind = type(module)
    from_ao = kind.__module__.startswith(("torch.ao.", "torchao."))
    return from_ao and any(twin.__name__ in kind.__name__ for twin in _TWINS)


# bptt to torch.nn -----------------------------------------------------------------------------------------------------


def _why_torch_cannot(module: BaseLayer) -> str | None:
    if type(module) not in _TORCH:
        if nn.utils.parametrize.is_parametrized(module):
            return "it is parametrized, which made it a class of its own: unfuse first, then parametrize"
        return "torch.nn has no such layer"
    if getattr(module, "mode", None) == "RNN_SIGMOID" or "cell" in vars(module):
        return f"torch.nn has no layer of {module.cell}"
    return _unlike_its_class(module, _THEIRS)


def _swap_back(module: nn.Module) -> str:
    kind = _TORCH[type(module)]
    for name in ("backend", "cell"):
        vars(module).pop(name, None)
    module.__class__ = kind
    return f"bptt.{kind.__name__} -> torch.nn.{kind.__name__}"
