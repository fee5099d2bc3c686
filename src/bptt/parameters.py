"""The parameters of a stack: their names in torch.nn's manner, their shapes, and which tensor stands for which."""

import functools
from collections.abc import Iterator
from typing import Any

from torch import Tensor

from bptt.cells import Cell, Weights

# Of each parameter the cell's short name, the layer's name, and the shape: by layer and direction.
Names = tuple[tuple[str, str, tuple[int, ...]], ...]
Named = tuple[tuple[Names, ...], ...]


def named_shapes_anew(
    cell: Cell, num_layers: int, bidirectional: bool, input_size: int, hidden_size: int, bias: bool, proj_size: int
) -> Named:
    """Name and shape each parameter of a stack."""
    directions = 2 if bidirectional else 1

    def names(layer: int, direction: int) -> Names:
        width = input_size if layer == 0 else directions * (proj_size or hidden_size)
        end = f"_l{layer}{'_reverse' if direction else ''}"
        return tuple([(n, n + end, shape) for n, shape in cell.shapes(width, hidden_size, bias, proj_size).items()])

    return tuple([tuple([names(n, d) for d in range(directions)]) for n in range(num_layers)])


_kept = functools.lru_cache(maxsize=1024)(named_shapes_anew)


def named_shapes(cell: Cell, *sizes: Any) -> Named:
    """`named_shapes_anew`, from memory unless the cell has no hash."""
    try:
        return _kept(cell, *sizes)
    except TypeError:
        return named_shapes_anew(cell, *sizes)


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
