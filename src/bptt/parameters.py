"""The parameters of a stack: their names in torch.nn's manner, their shapes, and which tensor stands for which."""

import functools
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from bptt.cells import Cell, Weights

# Of each parameter the cell's short name, the layer's name, and the shape: by layer and direction.
Names = tuple[tuple[str, str, tuple[int, ...]], ...]
Named = tuple[tuple[Names, ...], ...]


def _names_and_shapes(
    cell: Cell, num_layers: int, bidirectional: bool, input_size: int, hidden_size: int, bias: bool, proj_size: int
) -> Named:
    """Name and shape each parameter of a stack."""
    directions = 2 if bidirectional else 1

    def names(layer: int, direction: int) -> Names:
        width = input_size if layer == 0 else directions * (proj_size or hidden_size)
        end = f"_l{layer}{'_reverse' if direction else ''}"
        return tuple([(n, n + end, shape) for n, shape in cell.shapes(width, hidden_size, bias, proj_size).items()])

    return tuple([tuple([names(n, d) for d in range(directions)]) for n in range(num_layers)])


_names_and_shapes_kept = functools.lru_cache(maxsize=1024)(_names_and_shapes)


def named_shapes(cell: Cell, *sizes: Any) -> Named:
    """`_names_and_shapes`, from memory where that is possible: asked for at each call, it costs more than a small step."""
    if torch.compiler.is_compiling():  # which warns of such memories
        return _names_and_shapes(cell, *sizes)
    try:
        return _names_and_shapes_kept(cell, *sizes)
    except TypeError:  # a cell without hash
        return _names_and_shapes(cell, *sizes)


def fitting(names: Names, tensors: Iterator[Tensor]) -> Weights:
    """The next tensors by their short names, once their shapes are checked."""
    weights = {}
    for short, name, shape in names:
        weight = weights[short] = next(tensors)
        if weight.shape != shape:
            raise RuntimeError(
                f"{name} has shape {tuple(weight.shape)}, wanted {shape}: "
                "give it that shape, or make a layer of other sizes"
            )
    return weights
