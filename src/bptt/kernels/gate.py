"""Checks of the tensors whose pointers the native core is given, since it cannot check a pointer itself.

A tensor need not be a block of numbers: it may be of a user's own class, fake, on another device, lazily negated, a zero
tensor without memory, or freed. What passes here is plain: contiguous numbers of the wanted format in the CPU's memory.
"""

from collections.abc import Iterable
from typing import TypeVar

import torch
from torch import Tensor
from torch.nn import Parameter

from bptt.torch_private import is_zero_tensor, unwrap_if_dead

T = TypeVar("T", Tensor, Tensor | None)

_PLAIN = (Tensor, Parameter)
_STRIDED = torch.strided


class Unreadable(RuntimeError):
    """A tensor whose numbers torch's operators may read, but the native core cannot; the message says which and why."""


class Freed(RuntimeError):
    """A tensor whose memory was freed, so that nobody can compute with it."""


def look_readable(tensors: Iterable[Tensor], dtype: torch.dtype) -> bool:
    """Whether all tensors are of a class, device, layout and format that the core reads: a cheap look, at every call."""
    for tensor in tensors:
        if (
            type(tensor) not in _PLAIN
            or tensor.dtype is not dtype
            or not tensor.is_cpu
            or tensor.layout is not _STRIDED
        ):
            return False
    return True


def readable(tensors: Iterable[T], dtype: torch.dtype) -> list[T]:
    """Return each tensor, or a copy of it, as plain contiguous memory; None stays None.

    Raises:
        Unreadable: one is of another class, layout, device or number format.
        Freed: one has no memory.
    """
    try:
        return [
            tensor
            if tensor is None
            else tensor.contiguous()
            if type(tensor) in _PLAIN
            and tensor.dtype is dtype
            and tensor.is_cpu
            and not tensor.is_neg()
            and tensor.untyped_storage().data_ptr()  # the tensor's own is not 0 if it starts somewhere in what was freed
            else _made_readable(tensor, dtype)
            for tensor in tensors
        ]
    except (Unreadable, Freed):
        raise
    except RuntimeError:  # of data_ptr: one has no memory of its own
        return [tensor if tensor is None else _made_readable(tensor, dtype) for tensor in tensors]


def resolved(tensors: tuple[T, ...], dtype: torch.dtype) -> list[T]:
    """Like `readable`, in half of its time, for tensors that `look_readable` has already passed."""
    try:
        return [
            tensor
            if tensor is None
            else tensor.contiguous()
            if not tensor.is_neg() and tensor.untyped_storage().data_ptr()
            else _made_readable(tensor, dtype)
            for tensor in tensors
        ]
    except RuntimeError:  # of data_ptr: one has no memory of its own
        return readable(tensors, dtype)


def _made_readable(tensor: Tensor, dtype: torch.dtype) -> Tensor:
    tensor = unwrap_if_dead(tensor)  # what a finished torch.func has left around it
    said = f"a {type(tensor).__name__} of {tensor.dtype} and shape {tuple(tensor.shape)} on {tensor.device}"
    if not look_readable([tensor], dtype):
        raise Unreadable(
            f"{said}, {tensor.layout}, came where the native core wants a plain one of {dtype} on the CPU: "
            "pass such a tensor, or backend='auto'"
        )
    if is_zero_tensor(tensor):
        return tensor.new_zeros(tensor.shape)
    if tensor.numel() and not _has_memory(tensor):
        raise Freed(
            f"{said} has no memory: its storage was freed, as sharding does between two uses; "
            "gather it before the layer runs"
        )
    return tensor.resolve_neg().contiguous()


def _has_memory(tensor: Tensor) -> bool:
    try:
        return tensor.untyped_storage().data_ptr() != 0
    except RuntimeError:
        return False
