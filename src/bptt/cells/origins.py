"""From which unit and which row each number of a computation comes, followed operator by operator, whatever the values.

Beside each tensor goes a map of its shape: 0 where no argument has a part in the number, k + 1 where only those of unit k
have, SEVERAL where those of more than one have, UNKNOWN behind an operator that is not followed. Thus

    elementwise operators       merge the maps of their tensors (torch's tag `pointwise`), and so does writing in place
    views, copies, indexing     do to the map what they do to the tensor
    functions along an axis     (anything with an argument `dim`: sums, norms, softmax, sort, cumulative sums) merge along it
    matrix products             merge a row of one factor with a column of the other
    whatever has no origin      stays without
    everything else             (convolutions, operators of others) is UNKNOWN

SEVERAL is certain, so a sum over units is seen in a branch that `torch.where` leaves out. UNKNOWN says nothing.
"""

from typing import Any

import torch
from torch import Tensor

from bptt.torch_private import DispatchMode, argument_names, is_mutable, tree_leaves, tree_map

SEVERAL, UNKNOWN = -1, -2

# Operators that move numbers about, and compute none.
_MOVES = (
    "alias", "as_strided", "cat", "clone", "constant_pad_nd", "detach", "diagonal", "expand", "flip", "gather", "index",
    "index_select", "lift_fresh", "permute", "repeat", "roll", "select", "slice", "split", "split_with_sizes", "squeeze",
    "stack", "t", "transpose", "unbind", "unfold", "unsafe_split", "unsqueeze", "view", "_reshape_alias", "_unsafe_view",
)  # fmt: skip
_PRODUCTS = ("mm", "bmm", "addmm", "baddbmm")
_NEW = ("empty", "zeros", "ones", "full", "rand", "randn", "new_", "scalar_tensor", "arange", "linspace", "eye")


def merge(a: Tensor, b: Tensor) -> Tensor:
    """Merge two maps that are broadcast against each other."""
    several = (a == SEVERAL) | (b == SEVERAL)
    several |= (a > 0) & (b > 0) & (a != b)
    unknown = (a == UNKNOWN) | (b == UNKNOWN)
    return torch.where(several, SEVERAL, torch.where(unknown, UNKNOWN, torch.maximum(a, b)))


def merge_along(origin: Tensor, axes: tuple[int, ...], keep: bool) -> Tensor:
    """Merge a map along some axes, which stay with size 1 if `keep`."""
    highest = origin.amax(axes, keepdim=keep)
    lowest = torch.where(origin > 0, origin, torch.iinfo(origin.dtype).max).amin(axes, keepdim=keep)
    several = (origin == SEVERAL).to(origin.dtype).amax(axes, keepdim=keep).bool() | (highest > lowest)
    unknown = (origin == UNKNOWN).to(origin.dtype).amax(axes, keepdim=keep).bool()
    return torch.where(several, SEVERAL, torch.where(unknown, UNKNOWN, highest.clamp_min(0)))


class Mode(DispatchMode):  # type: ignore[misc]  # found at import
    """One of torch's dispatch modes, without its compiler."""

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        """False: torch would import its compiler, in seconds, to keep it away from here, where it is never at work."""
        return False


class Origins(Mode):
    """Inside, the origins of each tensor are followed, from those given in the beginning.

    Args:
        given: pairs of a tensor and the map of its origins, int32, of the tensor's shape.
    """

    def __init__(self, given: list[tuple[Tensor, Tensor]]) -> None:
        super().__init__()
        self._maps = {id(t): (t, origin.contiguous()) for t, origin in given}  # with the tensor, to keep its number

    def of(self, tensor: Tensor) -> Tensor:
        """Return the map of a tensor's origins; all 0 if it came from outside."""
        found = self._maps.get(id(tensor))
        return torch.zeros(tensor.shape, dtype=torch.int32, device="cpu") if found is None else found[1]

    def __torch_dispatch__(self, operator: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Call the operator, and note the origins of what it returns."""
        made = operator(*args, **(kwargs or {}))
        try:
            origins = self._follow(operator, args, kwargs or {}, made)
        except Exception:  # an operator of another form than is foreseen here
            origins = None
        tensors = [t for t in tree_leaves(made) if isinstance(t, Tensor)]
        for place, tensor in enumerate(tensors):
            origin = None if origins is None or place >= len(origins) else origins[place]
            if origin is None or origin.shape != tensor.shape:
                origin = torch.full(tensor.shape, UNKNOWN, dtype=torch.int32, device="cpu")
            self._maps[id(tensor)] = (tensor, origin)
        return made

    def _follow(self, operator: Any, args: Any, kwargs: Any, made: Any) -> list[Tensor]:
        """The origins of the tensors that the operator made, in order."""
        name = operator.name().split("::")[-1].split(".")[0]
        used = [t for t in tree_leaves((args, kwargs)) if isinstance(t, Tensor)]
        maps = [self.of(t) for t in used]
        if is_mutable(operator):
            return [self._written(operator, name, used, maps)]
        if name in _MOVES:
            return self._moved(operator, name, args, kwargs)
        shapes = [t.shape for t in tree_leaves(made) if isinstance(t, Tensor)]
        if _makes_constants(name) or not any(bool(origin.any()) for origin in maps):
            return [torch.zeros(shape, dtype=torch.int32, device="cpu") for shape in shapes]
        return _computed(operator, name, args, kwargs, maps, shapes)

    def _moved(self, operator: Any, name: str, args: Any, kwargs: Any) -> list[Tensor]:
        values, *rest = args
        if any(bool(self.of(t).any()) for t in tree_leaves((rest, kwargs)) if isinstance(t, Tensor)):
            return []  # indices that were computed from the arguments
        rest = tree_map(lambda leaf: leaf.cpu() if isinstance(leaf, Tensor) else leaf, rest)
        if name == "lift_fresh":
            return [self.of(values)]
        kwargs = {key: value for key, value in kwargs.items() if key != "memory_format"}
        moved = operator(tree_map(self.of, values), *rest, **kwargs)
        return [t for t in tree_leaves(moved) if isinstance(t, Tensor)]

    def _written(self, operator: Any, name: str, used: list[Tensor], maps: list[Tensor]) -> Tensor:
        """Into the map itself: views of the tensor share it, as they share its memory."""
        into = self._maps.setdefault(id(used[0]), (used[0], maps[0]))[1]
        if name in ("fill_", "zero_"):
            return into.zero_()
        if name == "copy_":
            return into.copy_(maps[1].expand(into.shape))
        if torch.Tag.pointwise in operator.tags:
            return into.copy_(_merged(maps))
        return into.fill_(UNKNOWN)


def _makes_constants(name: str) -> bool:
    """Whether the operator's result depends on no values of its arguments."""
    return name.startswith(_NEW) or "_like" in name


def _computed(
    operator: Any, name: str, args: Any, kwargs: Any, maps: list[Tensor], shapes: list[torch.Size]
) -> list[Tensor]:
    """The origins of tensors of these shapes that an operator computes from tensors with these maps."""
    if torch.Tag.pointwise in operator.tags or name == "_to_copy":
        return [_merged(maps)] * len(shapes)
    if name in _PRODUCTS:
        *added, left, right = maps
        product = merge(merge_along(left, (-1,), keep=True), merge_along(right, (-2,), keep=True))
        return [_merged([product, *added])]
    (origin,) = maps
    return [_along(operator, args, kwargs, origin, shape) for shape in shapes]


def _merged(maps: list[Tensor]) -> Tensor:
    total = maps[0]
    for origin in maps[1:]:
        total = merge(total, origin)
    return total.clone() if len(maps) == 1 else total


def _along(operator: Any, args: Any, kwargs: Any, origin: Tensor, shape: torch.Size) -> Tensor:
    """The origins of the result of a function along its argument `dim`, or over all axes if that is None."""
    given = dict(zip(argument_names(operator), args, strict=False)) | kwargs
    if "dim" not in given and torch.Tag.reduction not in operator.tags:
        return torch.full(shape, UNKNOWN, dtype=torch.int32, device="cpu")
    dim = given.get("dim")
    axes = tuple(range(origin.dim())) if dim is None or dim == [] else (dim,) if isinstance(dim, int) else tuple(dim)
    kept = merge_along(origin, axes, keep=True)
    if shape == origin.shape:
        return kept.expand(shape).contiguous()
    return kept if shape == kept.shape else merge_along(origin, axes, keep=False)
