"""Models that are spread over processes: what DistributedDataParallel needs when a strategy runs a model in pieces."""

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from inspect import isfunction, ismethod
from types import CellType
from typing import Any

import torch
from torch import Tensor, nn

from bptt.torch_private import tree_map

_SHARDED = (
    "the model is sharded ({kind}): its gradients exist only within the one backward pass that reduces them, and {strategy} "
    "runs several; use Exact(), or DistributedDataParallel"
)
_MIXED = (
    "DistributedDataParallel with mixed_precision converts the parameters in its own forward pass, and {strategy} runs the "
    "model in pieces; use torch.autocast instead, or Exact()"
)


_EMPTY = CellType()  # of a name that has no value yet


@contextmanager
def run_in_pieces(strategy: Any, *users: Any) -> Iterator[None]:
    """Inside, DistributedDataParallel acts as the module that it wraps, and neither sends nor awaits gradients.

    Args:
        strategy: the object whose class an error names.
        users: the model, the loss.

    Raises ValueError for a sharded model (FSDP), or DistributedDataParallel with mixed precision.
    """
    modules = [module for user in users for module in _modules_of(user)]
    _refuse_sharded(modules, strategy)
    wrapped = _parallel(modules)
    if any(module.mixed_precision is not None for module in wrapped):
        raise ValueError(_MIXED.format(strategy=type(strategy).__name__))
    before = [vars(module).get("forward") for module in wrapped]
    try:
        for module in wrapped:
            module.forward = _forward_of_wrapped(module)
        yield
    finally:
        for module, own in zip(wrapped, before, strict=True):
            if own is not None:
                module.forward = own
            elif "forward" in vars(module):
                del module.forward


def parallel_modules(*users: Any) -> list[Any]:
    """Return the DistributedDataParallel modules among those of the model and of the loss."""
    return _parallel([module for user in users for module in _modules_of(user)])


def run_forward_around(module: Any, output: Tensor) -> Tensor:
    """Run DistributedDataParallel's own forward pass around a module that returns `output`; return what it makes of it."""
    wrapped = module.module
    module.module = _Returning(wrapped)
    try:
        return nn.parallel.DistributedDataParallel.forward(module, output)
    finally:
        module.module = wrapped


class _Returning(nn.Module):
    """A module that returns its argument; its buffers and parameters are those of the module whose place it takes."""

    def __init__(self, wrapped: nn.Module) -> None:
        super().__init__()
        self.named_buffers = wrapped.named_buffers  # type: ignore[method-assign]
        self.named_parameters = wrapped.named_parameters  # type: ignore[method-assign]

    def forward(self, output: Tensor) -> Tensor:
        """Return `output`."""
        return output


def _forward_of_wrapped(parallel: Any) -> Callable[..., Any]:
    """The forward pass of the wrapped module, with its inputs moved to that module's device."""

    def to_device(leaf: Any) -> Any:
        return leaf.to(torch.device(parallel.device_type, parallel.device_ids[0])) if isinstance(leaf, Tensor) else leaf

    def forward(*args: Any, **kwargs: Any) -> Any:
        if parallel.device_ids:
            args, kwargs = tree_map(to_device, (args, kwargs))
        return parallel.module(*args, **kwargs)

    return forward


def _parallel(modules: list[nn.Module]) -> list[Any]:
    if not torch.distributed.is_available():
        return []
    return list({id(m): m for m in modules if isinstance(m, nn.parallel.DistributedDataParallel)}.values())


def _refuse_sharded(modules: list[nn.Module], strategy: Any) -> None:
    fsdp = sys.modules.get("torch.distributed.fsdp")  # who has sharded a model has imported it
    if fsdp is None:
        return
    for module in modules:
        for kind, name in (
            (fsdp.FSDPModule, "fully_shard"),
            (fsdp.FullyShardedDataParallel, "FullyShardedDataParallel"),
        ):
            if isinstance(module, kind):
                raise ValueError(_SHARDED.format(kind=name, strategy=type(strategy).__name__))


def _modules_of(user: Any) -> list[nn.Module]:
    """All modules in a module, among what a function refers to, or in a method's object."""
    found: list[nn.Module] = []
    waiting, seen = [user], set()
    while waiting:
        value = waiting.pop()
        if id(value) in seen:
            continue
        seen.add(id(value))
        if isinstance(value, nn.Module):
            found += value.modules()
            waiting += filter(callable, vars(value).values())
        elif ismethod(value):
            waiting += [value.__self__, value.__func__]
        elif isfunction(value):
            waiting += _references(value)
    return found


def _references(function: Any) -> Iterator[Any]:
    """Yield what a function closes over, and the modules among the global names that it uses."""
    for cell in function.__closure__ or ():
        if cell != _EMPTY:
            yield cell.cell_contents
    for name in function.__code__.co_names:
        value = function.__globals__.get(name)
        if isinstance(value, nn.Module):
            yield value
