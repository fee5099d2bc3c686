"""Checks of what a cell declares and returns: each fault is a sentence with its remedy.

What can be read off a cell (names, gates, shapes, arguments) is checked when a layer is made of it; the state that a step
returns, at each step. What only running `pointwise` shows is found in `bptt.cells.probe`.
"""

import inspect
from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import Tensor

from bptt.cells.base import Cell, PointwiseCell, State, Weights
from bptt.torch_private import version_of

# What a layer takes from PointwiseCell itself: the kernels rely on these equations and derive their gradient.
_FIXED = ("step", "advance", "net_input", "joined_net_input", "jacobian")


def name_of(cell: Cell) -> str:
    """Return the name of the cell's class."""
    return type(cell).__name__


def check_declaration(cell: Cell, input_size: int, hidden_size: int, bias: bool, proj_size: int) -> None:
    """Refuse a cell whose declared names, gates, shapes or arguments cannot be right.

    Raises:
        TypeError: something is of another type than wanted, or `pointwise` or `step` takes other arguments.
        ValueError: a value is wrong, or two names clash, or a method is overridden that no layer runs.
    """
    if isinstance(cell, type):
        raise TypeError(f"cell is the class {cell.__name__}, wanted a bptt.Cell object: pass {cell.__name__}()")
    if not isinstance(cell, Cell):
        raise TypeError(f"cell is a {type(cell).__name__}, wanted a bptt.Cell object, such as bptt.cells.LSTM()")
    _check_names(cell, "states", at_least=1)
    if isinstance(cell, PointwiseCell):
        _check_names(cell, "vectors", at_least=0)
        _check_gates(cell)
        _check_overridden(cell)
        _check_arguments(cell, "pointwise", ("zx", "zh", "state", *cell.vectors))
    else:
        _check_arguments(cell, "step", ("x", "state", "weights"))
    _check_shapes(cell, input_size, hidden_size, bias, proj_size)


def checked_state(cell: Cell, method: str, after: Any, wanted: State) -> State:
    """Return `after`, the result of `method`, if it is a tuple of tensors of the shapes, dtypes and devices of `wanted`.

    Raises TypeError or ValueError otherwise.
    """
    if type(after) is tuple and len(after) == len(wanted) and all(map(_fits, after, wanted)):
        return after
    where, names = f"{name_of(cell)}.{method}", ", ".join(cell.states)
    if not isinstance(after, tuple | list):
        raise TypeError(
            f"{where} returned {_kind(after)}, wanted a tuple with one tensor for each of states ({names}): "
            f"return ({names}{',' if len(cell.states) == 1 else ''})"
        )
    if len(after) != len(wanted):
        raise ValueError(
            f"{where} returned {len(after)} tensors, wanted {len(wanted)}, one for each of states ({names}): "
            "return all of them, in that order, or change `states`"
        )
    for name, component, like in zip(cell.states, after, wanted, strict=True):
        _check_component(f"{where} returned", name, component, like)
    return tuple(after)


def _kind(value: Any) -> str:
    """What a value is, in words."""
    return f"a tensor of shape {tuple(value.shape)}" if isinstance(value, Tensor) else f"a {type(value).__name__}"


def _check_component(returned: str, name: str, component: Any, like: Tensor) -> None:
    if not isinstance(component, Tensor):
        raise TypeError(f"{returned} a {type(component).__name__} for {name}, wanted a tensor")
    if component.shape != like.shape:
        raise ValueError(
            f"{returned} {name} with shape {tuple(component.shape)}, wanted {tuple(like.shape)} (rows, units): "
            "name the axis in squeeze, sum or indexing ([..., 0, :] is the first gate)"
        )
    if component.dtype != like.dtype or component.device != like.device:
        raise ValueError(
            f"{returned} {name} as {component.dtype} on {component.device}, the layer has {like.dtype} on "
            f"{like.device}: convert the cell's own tensors where they are used, mask.to({name})"
        )


def checked_step(cell: Cell, x: Tensor, before: State, weights: Weights) -> State:
    """Run `cell.step` and return its result, checked. Errors that `step` itself raises pass through."""
    return checked_state(cell, "step", cell.step(x, before, weights), before)


def versions(tensors: Iterable[Tensor]) -> tuple[int, ...]:
    """Return how often each tensor was written to in place; () where torch does not count that."""
    every = tuple(tensors)
    if torch.compiler.is_compiling() or any(t.is_inference() for t in every):
        return ()
    return tuple(map(version_of, every))


def _fits(component: Any, like: Tensor) -> bool:
    if not isinstance(component, Tensor):
        return False
    return component.shape == like.shape and component.dtype == like.dtype and component.device == like.device


def check_unchanged(cell: Cell, method: str, names: Iterable[str], before: Iterable[int], after: Iterable[int]) -> None:
    """Raise ValueError if an argument of `method` was written to: if its version after differs from that before."""
    for name, old, new in zip(names, before, after, strict=False):
        if old != new:
            raise ValueError(
                f"{name_of(cell)}.{method} changes {name} in place, which is still used by others: compute a new tensor "
                f"({name} * a, not {name} *= a or {name}.mul_(a)), or clone it first"
            )


def state_names(cell: Cell) -> tuple[str, ...]:
    """Return the names of the state's components in `step` and `pointwise`: "state[0]", "state[1]", …"""
    return tuple(f"state[{n}]" for n in range(len(cell.states)))


def _check_names(cell: Cell, attribute: str, at_least: int) -> None:
    names: Any = getattr(cell, attribute)
    where = f"{name_of(cell)}.{attribute}"
    if isinstance(names, str):
        raise TypeError(f"{where} is the string {names!r}, wanted a tuple of names: ({names!r},)")
    if not isinstance(names, tuple | list) or not all(isinstance(name, str) for name in names):
        raise TypeError(f"{where} is {names!r}, wanted a tuple of names, such as ('h', 'c')")
    if len(names) < at_least:
        raise ValueError(f"{where} is empty, wanted at least one name, the output first: ('h',)")
    twice = [name for place, name in enumerate(names) if name in names[:place]]
    if twice:
        raise ValueError(f"{where} has {twice[0]!r} twice: give each its own name")


def _check_gates(cell: PointwiseCell) -> None:
    gates: Any = getattr(cell, "gates", None)
    if isinstance(gates, int) and not isinstance(gates, bool) and gates > 0:
        return
    came = f"is {gates!r}" if hasattr(cell, "gates") else "is missing"
    error = ValueError if isinstance(gates, int) and not isinstance(gates, bool) else TypeError
    raise error(
        f"{name_of(cell)}.gates {came}, wanted a whole number from 1: how many rows of units zx and zh have (`gates = 3`)"
    )


def _check_overridden(cell: PointwiseCell) -> None:
    """Refuse an overridden method that no kernel runs, or whose equation the kernels' gradient relies on."""
    for method in _FIXED:
        if getattr(type(cell), method) is not getattr(PointwiseCell, method):
            raise ValueError(
                f"{name_of(cell)} overrides {method}, on which the gradient of a PointwiseCell relies: write `pointwise` "
                "alone, or derive from bptt.Cell and write `shapes` and `step`"
            )


def _check_arguments(cell: Cell, method: str, wanted: tuple[str, ...]) -> None:
    try:
        signature = inspect.signature(getattr(cell, method))
    except (TypeError, ValueError):  # one that Python cannot tell
        return
    try:
        signature.bind(*wanted)
    except TypeError:
        why = ": one argument more for each name in `vectors`" if method == "pointwise" else ""
        raise TypeError(f"{name_of(cell)}.{method} takes {signature}, wanted ({', '.join(wanted)}){why}") from None


def _check_shapes(cell: Cell, input_size: int, hidden_size: int, bias: bool, proj_size: int) -> None:
    sizes = (input_size, hidden_size, bias, proj_size)
    if isinstance(cell, PointwiseCell):
        _check_vectors(cell)
    shapes: Any = cell.shapes(*sizes)
    where = f"{name_of(cell)}.shapes"
    if not isinstance(shapes, Mapping) or not shapes:
        raise TypeError(f"{where} returned {shapes!r}, wanted a dict of each parameter's name and shape")
    for name, shape in shapes.items():
        if not isinstance(name, str) or not name or "." in name:
            raise ValueError(f"{where} names a parameter {name!r}, wanted a name without dots, such as 'weight_hh'")
        if not _is_shape(shape):
            raise TypeError(
                f"{where} gives {name} the shape {shape!r}, wanted a tuple of whole numbers: ({hidden_size},)"
            )
    if isinstance(cell, PointwiseCell) and dict(shapes) != (wanted := PointwiseCell.shapes(cell, *sizes)):
        raise ValueError(
            f"{where} gives {dict(shapes)}, wanted {wanted}, which the kernels of a PointwiseCell take: leave `shapes` out "
            "and name parameters with one value per unit in `vectors`, or derive from bptt.Cell and write both it and `step`"
        )


def _check_vectors(cell: PointwiseCell) -> None:
    taken = ("weight_ih", "weight_hh", "bias_ih", "bias_hh", "weight_hr")
    for name in cell.vectors:
        if name in taken:
            raise ValueError(
                f"{name_of(cell)}.vectors has {name!r}, which is a weight of every layer: choose another name"
            )


def _is_shape(shape: Any) -> bool:
    whole = isinstance(shape, Iterable) and not isinstance(shape, str)
    return whole and all(isinstance(size, int) and size >= 0 for size in shape)
