"""The gradient of a call that runs in pieces: collected aside, and given to autograd once, as one backward pass gives it.

So whatever is attached to a parameter sees the whole gradient, once a call: hooks, hooks after accumulation (an optimizer in
the backward pass, say), DistributedDataParallel. And an error on the way leaves `.grad` as it was.
"""

import math
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor
from torch.autograd.graph import get_gradient_edge
from torch.utils._pytree import tree_map

from bptt.gradient.inputs.packed import PackedSteps
from bptt.gradient.parallel import forward_of, parallel_modules

ADDED = 1 << 14  # numbers that are added to a sum at a time: torch converts what it adds as a whole
_TOGETHER = 8  # float32 gradients that are added up before their sum goes on to the next sum
_HALF = (torch.float16, torch.bfloat16, torch.complex32)
_FUNCTIONS: Any = torch._C._functions
_ACCUMULATE = _FUNCTIONS.AccumulateGrad


class Sum:
    """Σ of gradients of one tensor, with an error that does not grow with their number.

    Groups of `together` gradients are added up in their own format, so are groups of such sums, and what these come to in
    float64 (complex128), which takes twice the memory and time: a few gradients cost no more than a running sum of them.

    Args:
        together: the size of a group. 1: each gradient goes to float64 at once, and none is held in its own format.
    """

    def __init__(self, together: int = _TOGETHER) -> None:
        self._together: float = together
        self._levels: tuple[_Running, ...] = ()
        self._wide: Tensor | None = None
        self._dtype: torch.dtype | None = None

    def add(self, gradient: Tensor) -> None:
        """One more. It may share memory with others, so it is not written into."""
        if self._dtype is None:
            self._begin(gradient)
        is_own = False
        for level in self._levels:
            if level.add(gradient, is_own) < self._together or level.is_sparse:
                return
            gradient, is_own = level.take(), True
        self._widen(gradient)

    def take(self) -> Tensor:
        """The sum, in the gradients' format; this object is empty then."""
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
            self._together = 1
        if self._together > 1:
            has_wider = _wide(gradient) != gradient.dtype
            self._levels = (_Running(), _Running()) if has_wider else (_Running(),)
            self._together = self._together if has_wider else math.inf

    def _widen(self, gradient: Tensor) -> None:
        gradient = gradient.to_dense() if gradient.is_sparse else gradient
        if self._wide is None:
            self._wide = torch.zeros_like(gradient, dtype=_wide(gradient), memory_format=torch.contiguous_format)
        for part, more in zip(self._wide.view(-1).split(ADDED), gradient.reshape(-1).split(ADDED), strict=True):
            part.add_(more)


class _Running:
    """A sum of some gradients, in their own format.

    Attributes:
        count: how many there are in it.
    """

    def __init__(self) -> None:
        self.count = 0
        self._total: Any = None
        self._is_own = False  # whether it may be written into: it shares memory with nothing

    @property
    def is_sparse(self) -> bool:
        """Whether it is a sparse tensor; a sum with one that is not is none."""
        return bool(self._total.is_sparse)

    def add(self, gradient: Tensor, is_own: bool) -> int:
        """One more, which may be written into if `is_own`. The new count."""
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
        """The sum; this object is empty then."""
        total: Tensor = self._total
        self._total, self.count = None, 0
        return total


def _added(a: Tensor, b: Tensor) -> Tensor:
    """a + b: torch adds a sparse tensor to a dense one, not the other way round."""
    return b + a if a.is_sparse else a + b


def _wide(tensor: Tensor) -> torch.dtype:
    if tensor.device.type == "mps" or not (tensor.is_floating_point() or tensor.is_complex()):
        return tensor.dtype
    return torch.complex128 if tensor.is_complex() else torch.float64


def widened(tensor: Tensor) -> Tensor:
    """In the format that sums are made in: float64 where the device has it."""
    return tensor.to(_wide(tensor))


class Collected:
    """The gradients of one call's pieces, added up for each tensor.

    Args:
        together: see `Sum`.
    """

    def __init__(self, together: int = _TOGETHER) -> None:
        self._together = together
        self._sums: dict[int, tuple[Tensor, Sum]] = {}
        self._stand_ins: dict[int, tuple[Tensor, Tensor]] = {}

    def stand_in(self, tree: Any) -> Any:
        """The tree with new leaves, of the same values, in place of tensors that want a gradient.

        What is collected for such a leaf belongs to the tensor that it stands for: the graph behind that one is gone
        through once, with the whole gradient.
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
        """A piece's gradient of a tensor, or of the one that it stands for."""
        if gradient is None:
            return
        if id(tensor) in self._stand_ins:
            tensor = self._stand_ins[id(tensor)][1]
        found = self._sums.get(id(tensor))
        if found is None:
            found = self._sums[id(tensor)] = tensor, Sum(self._together)
        found[1].add(gradient)

    def back(self, loss: Tensor) -> None:
        """Collect the gradients of one piece's loss, of every leaf that it depends on."""
        leaves = list(leaves_of([loss]))
        for leaf, gradient in zip(leaves, gradients([loss], leaves), strict=True):
            self.add(leaf, gradient)

    def give(self, *users: Any) -> None:
        """One backward pass that brings each tensor its gradient.

        Args:
            users: the model, the loss: where they contain DistributedDataParallel, it averages.

        After an error (a hook's, say) `.grad` of the tensors is as before.
        """
        tensors = [tensor for tensor, _ in self._sums.values()]
        found = [total.take() for _, total in self._sums.values()]
        self._sums.clear()
        if not tensors:
            return
        with torch.enable_grad(), restored_on_error(tensors):
            end = _Given.apply(found, *tensors)
            for module in parallel_modules(*users):
                end = forward_of(module, end)
            end.backward()


class _Given(torch.autograd.Function):
    """A zero whose derivatives are given numbers."""

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
    """A piece's gradients, None where there is none. The inputs' hooks do not run: they are for the whole gradient."""
    if not inputs:
        return []
    hooked = [tensor for tensor in inputs if tensor._backward_hooks]
    with _hooks_aside(hooked) if hooked else nullcontext():
        return list(torch.autograd.grad(roots, inputs, seeds, retain_graph, allow_unused=True))


@contextmanager
def _hooks_aside(tensors: Iterable[Tensor]) -> Iterator[None]:
    """Within, `register_hook`'s functions of these tensors do nothing. Their handles can remove them all the same."""
    aside = []
    for tensor in tensors:
        hooks: Any = tensor._backward_hooks
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
    """If an error is raised within, `.grad` is as before.

    A copy of it is kept only where there are hooks, which may raise one.
    """
    leaves = [tensor for tensor in tensors if tensor.is_leaf]
    hooked = any(map(_has_hooks, leaves))
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


def copied_bytes(tensors: Sequence[Tensor]) -> int:
    """Bytes of the copies that `restored_on_error` keeps."""
    if not any(map(_has_hooks, tensors)):
        return 0
    return sum(tensor.nbytes for tensor in tensors if tensor.is_leaf and tensor.grad is not None)


def _has_hooks(tensor: Tensor) -> bool:
    return bool(tensor._backward_hooks or getattr(tensor, "_post_accumulate_grad_hooks", None))


def leaves_of(tensors: Iterable[Tensor]) -> Iterator[Tensor]:
    """The leaves that these depend on, and that want a gradient."""
    nodes: list[Any] = list(dict.fromkeys(get_gradient_edge(t).node for t in tensors if t.requires_grad))
    seen = set(nodes)
    while nodes:
        node = nodes.pop()
        edges = node.next_functions
        if not edges and isinstance(node, _ACCUMULATE):
            yield node.variable
        for following, _ in edges:
            if following is not None and following not in seen:
                seen.add(following)
                nodes.append(following)
