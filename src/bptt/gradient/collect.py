"""The gradient of a call that runs in pieces: added up beside `.grad`, and then handed to autograd in one backward pass.

Whatever is attached to a parameter (hooks, hooks after accumulation such as an optimizer in the backward pass,
DistributedDataParallel) then sees the whole gradient, once a call, and an error on the way leaves `.grad` as it was.
"""

import math
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor
from torch.autograd.graph import get_gradient_edge

from bptt.gradient.inputs.packed import PackedSteps
from bptt.gradient.parallel import parallel_modules, run_forward_around
from bptt.torch_private import accumulate_grad, has_hooks, hooks_of, tree_map

ADDED = 1 << 14  # numbers that are added to a sum at a time: torch converts what it adds as a whole
_GROUP = 8  # float32 gradients that are added up before their sum goes on to the next sum
_HALF = (torch.float16, torch.bfloat16, torch.complex32)


class Sum:
    """The sum of many gradients of one tensor, with a rounding error that does not grow with their number.

    Up to `group` gradients are added in their own format, up to `group` of these sums likewise, and the rest in float64
    (complex128). float64 takes twice the memory and time, so a few gradients cost no more than a plain running sum.

    Args:
        group: the size of a group. 1: each gradient goes to float64 at once, and none is held in its own format.
    """

    def __init__(self, group: int = _GROUP) -> None:
        self._group: float = group
        self._levels: tuple[_Running, ...] = ()
        self._wide: Tensor | None = None
        self._dtype: torch.dtype | None = None

    def add(self, gradient: Tensor) -> None:
        """Add a gradient. It is not written into, since it may share memory with other tensors."""
        if self._dtype is None:
            self._begin(gradient)
        is_own = False
        for level in self._levels:
            if level.add(gradient, is_own) < self._group or level.is_sparse:
                return
            gradient, is_own = level.take(), True
        self._widen(gradient)

    def take(self) -> Tensor:
        """Return the sum in the gradients' format, and be empty."""
        found: Tensor | None = None
        for level in reversed(self._levels):  # the largest sums first
            if level.count:
                rest = level.take()
                if self._wide is not None:
                    self._widen(rest)
                else:
                    found = rest if found is None else _added(found, rest)
        if self._wide is not None:
            found, self._wide = self._wide, None
            found = found.to(self._dtype)
        assert found is not None
        return found

    def _begin(self, gradient: Tensor) -> None:
        self._dtype = gradient.dtype
        if gradient.dtype in _HALF:
            self._group = 1
        if self._group > 1:
            has_wider = _wide(gradient) != gradient.dtype
            self._levels = (_Running(), _Running()) if has_wider else (_Running(),)
            self._group = self._group if has_wider else math.inf

    def _widen(self, gradient: Tensor) -> None:
        gradient = gradient.to_dense() if gradient.is_sparse else gradient
        if self._wide is None:
            self._wide = torch.zeros_like(gradient, dtype=_wide(gradient), memory_format=torch.contiguous_format)
        for part, more in zip(self._wide.view(-1).split(ADDED), gradient.reshape(-1).split(ADDED), strict=True):
            part.add_(more)


class _Running:
    """A sum of `count` gradients in their own format."""

    def __init__(self) -> None:
        self.count = 0
        self._total: Any = None
        self._is_own = False  # whether it may be written into: it shares memory with nothing

    @property
    def is_sparse(self) -> bool:
        """Whether the sum is a sparse tensor, as long as all its terms are."""
        return bool(self._total.is_sparse)

    def add(self, gradient: Tensor, is_own: bool) -> int:
        """Add a gradient, which may be written into if `is_own`; return the new count."""
        if self.count == 0:
            self._total, self._is_own = gradient, is_own
        elif self._is_own and not gradient.is_sparse:
            self._total.add_(gradient)
        else:
            self._total = _added(self._total, gradient)
            self._is_own = not self._total.is_sparse
        self.count += 1
        return self.count

    def take(self) -> Tensor:
        """Return the sum, and be empty."""
        total: Tensor = self._total
        self._total, self.count = None, 0
        return total


def _added(a: Tensor, b: Tensor) -> Tensor:
    """Return a + b; torch adds a sparse tensor to a dense one, but not a dense one to a sparse one."""
    return b + a if a.is_sparse else a + b


def _wide(tensor: Tensor) -> torch.dtype:
    if tensor.device.type == "mps" or not (tensor.is_floating_point() or tensor.is_complex()):
        return tensor.dtype
    return torch.complex128 if tensor.is_complex() else torch.float64


def to_sum_format(tensor: Tensor) -> Tensor:
    """Return the tensor in the format in which sums are made: float64 (complex128) where the device has it."""
    return tensor.to(_wide(tensor))


class Collected:
    """The gradients of one call's pieces, added up for each tensor.

    Args:
        group: see `Sum`.
    """

    def __init__(self, group: int = _GROUP) -> None:
        self._group = group
        self._sums: dict[int, tuple[Tensor, Sum]] = {}
        self._stand_ins: dict[int, tuple[Tensor, Tensor]] = {}

    def stand_in(self, tree: Any) -> Any:
        """Return the tree with a new leaf of equal values in place of each tensor that wants a gradient.

        What is collected for such a leaf belongs to the tensor that it replaces, so that the graph behind that tensor is
        walked once, with the whole gradient.
        """
        return tree_map(self._stand_in, tree)

    def _stand_in(self, leaf: Any) -> Any:
        if isinstance(leaf, PackedSteps):
            return replace(leaf, data=self._stand_in(leaf.data))
        if not isinstance(leaf, Tensor) or not leaf.requires_grad:
            return leaf
        fresh = leaf.detach().requires_grad_()
        self._stand_ins[id(fresh)] = fresh, leaf
        return fresh

    def add(self, tensor: Tensor, gradient: Tensor | None) -> None:
        """Add a piece's gradient to the sum of `tensor`, or of the tensor that it replaces (`stand_in`)."""
        if gradient is None:
            return
        if id(tensor) in self._stand_ins:
            tensor = self._stand_ins[id(tensor)][1]
        found = self._sums.get(id(tensor))
        if found is None:
            found = self._sums[id(tensor)] = tensor, Sum(self._group)
        found[1].add(gradient)

    def back(self, loss: Tensor) -> None:
        """Add the gradients of one piece's loss with respect to every leaf that it depends on."""
        leaves = list(leaves_of([loss]))
        for leaf, gradient in zip(leaves, gradients([loss], leaves), strict=True):
            self.add(leaf, gradient)

    def give(self, *users: Any) -> None:
        """Run one backward pass that brings each tensor its whole gradient.

        Args:
            users: the model, the loss: where they contain DistributedDataParallel, it averages.

        If an error is raised (by a hook, say), `.grad` of the tensors is as before.
        """
        tensors = [tensor for tensor, _ in self._sums.values()]
        found = [total.take() for _, total in self._sums.values()]
        self._sums.clear()
        if not tensors:
            return
        with torch.enable_grad(), restored_on_error(tensors):
            end = _Given.apply(found, *tensors)
            for module in parallel_modules(*users):
                end = run_forward_around(module, end)
            end.backward()


class _Given(torch.autograd.Function):
    """A zero whose derivatives are the numbers that it is given."""

    @staticmethod
    def forward(ctx: Any, found: list[Tensor], *tensors: Tensor) -> Tensor:
        """found: the derivatives, one for each tensor; the list is empty after the backward pass."""
        ctx.found = found
        return torch.zeros((), device=tensors[0].device)

    @staticmethod
    def backward(ctx: Any, *_: Tensor) -> tuple[Tensor | None, ...]:
        """Keeps no reference, so that `.grad` can be the tensor itself and need not be a copy."""
        found = tuple(ctx.found)
        ctx.found.clear()
        return None, *found


def gradients(
    roots: Sequence[Tensor],
    inputs: Sequence[Tensor],
    seeds: Sequence[Tensor] | None = None,
    *,
    retain_graph: bool | None = None,
) -> list[Tensor | None]:
    """Return a piece's gradients of `roots` with respect to `inputs`, None where there is none.

    The inputs' hooks do not run: they are meant for the whole gradient.
    """
    if not inputs:
        return []
    hooked = [tensor for tensor in inputs if hooks_of(tensor)]
    with _hooks_aside(hooked) if hooked else nullcontext():
        return list(torch.autograd.grad(roots, inputs, seeds, retain_graph, allow_unused=True))


@contextmanager
def _hooks_aside(tensors: Iterable[Tensor]) -> Iterator[None]:
    """Inside, functions that `register_hook` attached to these tensors do nothing; their handles can still remove them."""
    aside = []
    for tensor in tensors:
        hooks = hooks_of(tensor)
        aside.append((hooks, dict(hooks)))
        hooks.update(dict.fromkeys(hooks, _nothing))
    try:
        yield
    finally:
        for hooks, own in reversed(aside):
            hooks.update({key: hook for key, hook in own.items() if key in hooks})


def _nothing(_: Tensor) -> None:
    pass


@contextmanager
def restored_on_error(tensors: Iterable[Tensor]) -> Iterator[None]:
    """Restore `.grad` of the tensors if an error is raised inside.

    Its values are copied only where there are hooks, which may raise an error after `.grad` has changed.
    """
    leaves = [tensor for tensor in tensors if tensor.is_leaf]
    hooked = any(map(has_hooks, leaves))
    before = [(leaf, leaf.grad, leaf.grad.clone() if hooked and leaf.grad is not None else None) for leaf in leaves]
    try:
        yield
    except BaseException:
        for leaf, grad, values in before:
            if grad is None:
                leaf.grad = None
            elif values is not None:
                leaf.grad = grad.copy_(values)
        raise


def restore_copy_bytes(tensors: Sequence[Tensor]) -> int:
    """Return the bytes of the copies that `restored_on_error` makes of these tensors' `.grad`."""
    if not any(map(has_hooks, tensors)):
        return 0
    return sum(tensor.nbytes for tensor in tensors if tensor.is_leaf and tensor.grad is not None)


def leaves_of(tensors: Iterable[Tensor]) -> Iterator[Tensor]:
    """Yield the leaves that want a gradient and on which the tensors depend."""
    nodes: list[Any] = list(dict.fromkeys(get_gradient_edge(t).node for t in tensors if t.requires_grad))
    seen, accumulates = set(nodes), accumulate_grad()
    while nodes:
        node = nodes.pop()
        edges = node.next_functions
        if not edges and isinstance(node, accumulates):
            yield node.variable
        for following, _ in edges:
            if following is not None and following not in seen:
                seen.add(following)
                nodes.append(following)
