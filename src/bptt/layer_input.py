"""What a layer is called with, checked before any kernel sees it: each fault is a sentence with its remedy."""

from typing import Any

import torch
from torch import Tensor

from bptt.cells import State
from bptt.forms import Form, Hidden, components
from bptt.kernels import Sequences
from bptt.parameters import state_shapes
from bptt.torch_private import is_traced

_AUTOCAST_FORMATS = {torch.float32, torch.bfloat16, torch.float16}


def check_input(layer: Any, sequences: Sequences, weight: Tensor) -> None:
    """Refuse an input that `layer`, of which `weight` is a parameter, cannot run over.

    Raises:
        ValueError: it has another dtype than the weights.
        RuntimeError: the number of features, the resets or the number of steps do not fit.
    """
    x = sequences.x
    if x.dtype is not weight.dtype and not _autocast_converts(x, weight):
        raise ValueError(
            f"input has dtype {x.dtype}, the weights have {weight.dtype}: "
            f"pass input.to({weight.dtype}), or convert the layer with .to({x.dtype})"
        )
    if x.shape[-1] != layer.input_size:
        raise RuntimeError(
            f"input has {x.shape[-1]} features, input_size is {layer.input_size}: its last axis must be the features"
        )
    reset = sequences.reset
    if reset is not None and (reset.dtype, reset.shape, reset.device) != (torch.bool, x.shape[:-1], x.device):
        raise RuntimeError(
            f"reset is {reset.dtype} of shape {tuple(reset.shape)} (time first) on {reset.device}, wanted torch.bool of "
            f"shape {tuple(x.shape[:-1])} on {x.device}: one flag for each step of each row of the input"
        )
    if x.shape[0] == 0:
        raise RuntimeError("input has 0 time steps, at least 1 is wanted: drop empty sequences before the layer")


def initial_state(layer: Any, sequences: Sequences, hx: Hidden | None, form: Form) -> State:
    """Return the initial state, each component [layers·directions, B, H or P] in the order of the rows; zeros for None.

    Raises RuntimeError if a given state does not fit the layer and the input.
    """
    sizes = sequences.batch_sizes
    shapes = state_shapes(layer, layer.cell, sequences.x.shape[1] if sizes is None else _first(sizes))
    if hx is None:
        return tuple([sequences.x.new_zeros(shape) for shape in shapes])
    given = components(hx)
    if len(given) != len(shapes):
        names = ", ".join(f"{name}_0" for name in layer.cell.states)
        raise RuntimeError(f"the initial state has {len(given)} tensors, wanted {len(shapes)}: pass ({names}) or None")
    for name, component, shape in zip(layer.cell.states, given, shapes, strict=True):
        if form.unbatched or component.shape != shape:
            _check_shape(name, component, shape, form)
        if component.dtype is not sequences.x.dtype or component.device != sequences.x.device:
            _check_format(name, component, sequences.x)
    return tuple([form.state_in(component) for component in given])


def _first(sizes: Tensor) -> Any:
    # torch.jit.trace records where the number comes from, and would keep an int as it is now.
    return sizes[0] if is_traced() else int(sizes[0])


def _check_shape(name: str, component: Tensor, shape: tuple[int, ...], form: Form) -> None:
    rows, batch, width = shape
    wanted = (rows, width) if form.unbatched else shape
    got = tuple(component.shape)
    if got == wanted:
        return
    if len(got) == 3 and not form.unbatched and (got[0], got[2]) == (rows, width):
        raise RuntimeError(
            f"hidden state {name} has batch {got[1]}, input has batch {batch}: pass state[:, :{batch}] or None"
        )
    raise RuntimeError(
        f"hidden state {name} has shape {got}, wanted {wanted} "
        f"(layers·directions, {'' if form.unbatched else 'batch, '}units): pass that shape or None"
    )


def _check_format(name: str, component: Tensor, x: Tensor) -> None:
    if component.device != x.device or (component.dtype is not x.dtype and not _autocast_converts(x, component)):
        raise RuntimeError(
            f"hidden state {name} is {component.dtype} on {component.device}, the input {x.dtype} on {x.device}: "
            f"pass state.to(input)"
        )


def _autocast_converts(x: Tensor, other: Tensor) -> bool:
    """Whether autocast brings both into one number format; float64 it leaves alone."""
    return torch.is_autocast_enabled(x.device.type) and {x.dtype, other.dtype} <= _AUTOCAST_FORMATS
