"""The hidden state that a stream carries from batch to batch, as a checkpoint holds it: all lanes of all processes.

It is a tree of tensors: a `Result` of a state and perhaps a `Past`. A file holds its tensors by name, and beside them JSON
that says how they are nested: {"result": [{"tuple": ["carried/state/0", "carried/state/1"]}, null]}.
"""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from bptt.gradient import Past, Result
from bptt.tasks import Shard
from bptt.train.storage.tensors import Tensors
from bptt.typed import Unexpected

_LANES = 1  # the axis of the batch: states [layers, B, H], inputs [T, B, ...], resets [T, B]
_DEEPEST = 8  # levels of a tree: a Result holds a Past, which holds the layers' states
_CHILDREN = {"result": 2, "past": 3}  # how many each has; a tuple has any number


def flatten(carried: Result | None, tensors: Tensors) -> Any:
    """Add the tensors of a carried state to `tensors`, and return as JSON how they are nested."""
    return _flatten(carried, "carried", tensors)


def _flatten(tree: Any, name: str, tensors: Tensors) -> Any:
    if tree is None:
        return None
    if isinstance(tree, Tensor):
        tensors[name] = tree
        return name
    if isinstance(tree, Result):
        parts = {"state": tree.state, "past": tree.past}
        return {"result": [_flatten(t, f"{name}/{key}", tensors) for key, t in parts.items()]}
    if isinstance(tree, Past):
        parts = {"x": tree.x, "state": tree.state, "reset": tree.reset}
        return {"past": [_flatten(t, f"{name}/{key}", tensors) for key, t in parts.items()]}
    if isinstance(tree, tuple | list):
        return {"tuple": [_flatten(t, f"{name}/{i}", tensors) for i, t in enumerate(tree)]}
    raise TypeError(
        f"a checkpoint cannot hold a {type(tree).__name__} in the state: it holds tensors and tuples of them"
    )


def unflatten(nested: Any, tensors: Tensors) -> Any:
    """Return the carried state (a `Result`, or None) that `flatten` took apart. Raises Unexpected for any other JSON."""
    return _unflatten(nested, tensors, _DEEPEST)


def _unflatten(nested: Any, tensors: Tensors, levels: int) -> Any:
    if nested is None:
        return None
    if isinstance(nested, str) and nested in tensors:
        return tensors[nested]
    kind, children = _node(nested, levels)
    parts = [_unflatten(child, tensors, levels - 1) for child in children]
    if kind == "result" and levels == _DEEPEST:
        return Result(torch.zeros((), device="cpu"), *parts)
    if kind == "past":
        return Past(*parts)
    if kind == "tuple":
        return tuple(parts)
    raise Unexpected(f"its hidden state has an unknown part {kind[:60]!r}")


def _node(nested: Any, levels: int) -> tuple[str, list[Any]]:
    """Return the kind and the children of {kind: [child, …]}. Raises Unexpected if it is no such node, or too deep."""
    if isinstance(nested, dict) and len(nested) == 1 and levels:
        kind, children = next(iter(nested.items()))
        if isinstance(children, list) and len(children) == _CHILDREN.get(kind, len(children)):
            return kind, children
    raise Unexpected("its hidden state is none that it could have written")


# Lanes -------------------------------------------------------------------------------------------------------------


def map_tensors(function: Callable[[list[Tensor]], Tensor], first: Any, *others: Any) -> Any:
    """Return a tree like `first` with function([its tensor, the others' tensors]) in the place of each tensor.

    All trees have one structure. A `Result` in the answer has the loss 0.
    """
    if first is None:
        return None
    if isinstance(first, Tensor):
        return function([first, *others])
    if isinstance(first, Result):
        columns = zip(*((r.state, r.past) for r in (first, *others)), strict=True)
        return Result(torch.zeros((), device="cpu"), *(map_tensors(function, *column) for column in columns))
    if isinstance(first, Past):
        columns = zip(*((p.x, p.state, p.reset) for p in (first, *others)), strict=True)
        return Past(*(map_tensors(function, *column) for column in columns))
    return tuple(map_tensors(function, *column) for column in zip(first, *others, strict=True))


def lanes_of_all(carried: Sequence[Result | None]) -> Any:
    """Join the carried states of all processes, which hold neighbouring lanes, to one."""
    return map_tensors(lambda tensors: torch.cat(tensors, dim=_LANES).contiguous(), *carried)


def lanes_of_one(carried: Result | None, shard: Shard) -> Any:
    """Return the lanes of one process out of a carried state of all of them: the inverse of `lanes_of_all`."""
    return map_tensors(lambda tensors: tensors[0][:, shard.rows(tensors[0].shape[_LANES])].contiguous(), carried)
