"""The gate in front of the native core, which takes a pointer at its word.

A tensor need not be a block of numbers: it may be of somebody's own class, a fake without memory, on another device, with a
minus that is still to be carried out, all zeros without a place where they stand, or with its memory freed. What passes here
is plain: the numbers themselves, in the format that was asked for, row after row, in the memory of the CPU.
"""

import torch
from torch import Tensor
from torch.nn import Parameter

_PLAIN = (Tensor, Parameter)


class Unreadable(RuntimeError):
    """A tensor whose numbers the core cannot read; the message says which and why."""


def looks_readable(tensor: Tensor, dtype: torch.dtype) -> bool:
    """Whether a tensor is of a class, device and number format that the core reads. Quick, for each at every call."""
    return type(tensor) in _PLAIN and tensor.dtype is dtype and tensor.is_cpu


def readable(tensor: Tensor, dtype: torch.dtype) -> Tensor:
    """The tensor, or a copy of it, as plain contiguous memory.

    Raises:
        Unreadable: it has no numbers of this format in the memory of the CPU.
    """
    try:
        if looks_readable(tensor, dtype) and not tensor.is_neg() and tensor.data_ptr():
            return tensor.contiguous()
    except RuntimeError:  # of data_ptr: there is none
        raise Unreadable(f"{_said(tensor)} has no memory of its own: {_WANTED}") from None
    return _made_readable(tensor, dtype)


_WANTED = "the native core reads plain strided tensors on the CPU; pass backend='auto', or such a tensor"


def _made_readable(tensor: Tensor, dtype: torch.dtype) -> Tensor:
    if not looks_readable(tensor, dtype) or tensor.layout is not torch.strided:
        raise Unreadable(f"{_said(tensor)} came where {dtype} on the CPU is wanted: {_WANTED}")
    if tensor._is_zerotensor():
        return tensor.new_zeros(tensor.shape)
    made = tensor.resolve_neg().contiguous()
    if made.numel() and not made.data_ptr():
        raise Unreadable(
            f"{_said(tensor)} has no memory: its storage was freed, as sharding does between two uses. "
            "Gather it before the layer runs"
        )
    return made


def _said(tensor: Tensor) -> str:
    return f"a {type(tensor).__name__} of {tensor.dtype} and shape {tuple(tensor.shape)} on {tensor.device}"
