"""The parameters and the state of a stack: names as in torch.nn, shapes, and which tensor stands for which."""

import functools
from collections.abc import Iterator
from typing import Any

from torch import Tensor

from bptt.cells import Cell, Weights

# The parameters of one layer in one direction: (short name, full name, shape) of each, such as "weight_hh", "weight_hh_l0".
Names = tuple[tuple[str, str, tuple[int, ...]], ...]
# The parameters of a stack, [layer][direction].
Named = tuple[tuple[Names, ...], ...]


def name_in_stack(layer: int, direction: int) -> str:
    """Return the name of one layer in one direction: "l0", "l1_reverse"."""
    return f"l{layer}{'_reverse' if direction else ''}"


def suffix(layer: int, direction: int) -> str:
    """Return what torch.nn appends to the short names of one layer's parameters: "_l0", "_l1_reverse"."""
    return f"_{name_in_stack(layer, direction)}"


def directions_of(layer: Any) -> int:
    """Return 2 for a bidirectional layer, else 1."""
    return 2 if layer.bidirectional else 1


def compute_named_shapes(
    cell: Cell, num_layers: int, bidirectional: bool, input_size: int, hidden_size: int, bias: bool, proj_size: int
) -> Named:
    """Return the short name, full name and shape of each parameter of a stack, [layer][direction][parameter]."""
    directions = 2 if bidirectional else 1

    def names(layer: int, direction: int) -> Names:
        width = input_size if layer == 0 else directions * (proj_size or hidden_size)
        shapes = cell.shapes(width, hidden_size, bias, proj_size)
        end = suffix(layer, direction)
        return tuple([(short, short + end, shape) for short, shape in shapes.items()])

    return tuple([tuple([names(n, d) for d in range(directions)]) for n in range(num_layers)])


_cached_named_shapes = functools.lru_cache(maxsize=1024)(compute_named_shapes)


def named_shapes(cell: Cell, *sizes: Any) -> Named:
    """Like `compute_named_shapes`, from a cache unless the cell has no hash."""
    try:
        return _cached_named_shapes(cell, *sizes)
    except TypeError:
        return compute_named_shapes(cell, *sizes)


def take_weights(names: Names, tensors: Iterator[Tensor]) -> Weights:
    """Return the next tensors by short name. Raises RuntimeError if one has another shape than `names` says."""
    weights = {}
    for short, name, shape in names:
        weight = weights[short] = next(tensors)
        if weight.shape != shape:
            raise RuntimeError(
                f"{name} has shape {tuple(weight.shape)}, wanted {shape}: "
                "give it that shape, or make a layer of other sizes"
            )
    return weights


def weights_of(layer: Any, cell: Cell, depth: int, direction: int) -> dict[str, Tensor]:
    """Return the parameters of one layer and direction by short name, of torch.nn's layers or bptt's.

    layer: the module, whose attributes are "weight_ih_l0" and so on; `cell` is its time step.
    """
    names = cell.shapes(1, layer.hidden_size, bool(layer.bias), layer.proj_size)
    end = suffix(depth, direction)
    return {name: getattr(layer, name + end) for name in names}


def state_widths(layer: Any, cell: Cell) -> list[int]:
    """Return the units of each component of the state: P for a projected output, H for everything else."""
    return [layer.proj_size or layer.hidden_size, *[layer.hidden_size] * (len(cell.states) - 1)]


def state_shapes(layer: Any, cell: Cell, batch: Any) -> list[tuple[int, ...]]:
    """Return the shape of each component of the state of a whole stack: [layers·directions, B, H or P].

    batch: B; under torch.jit.trace it may be a tensor.
    """
    rows, hidden = layer.num_layers * (2 if layer.bidirectional else 1), layer.hidden_size
    first = (rows, batch, layer.proj_size or hidden)
    return [first] if len(cell.states) == 1 else [first, *[(rows, batch, hidden)] * (len(cell.states) - 1)]
