"""Whole numbers, and lists of them, as a user may give them."""

import operator
from collections.abc import Iterable, Sequence

import torch
from torch import Tensor


def listed(name: str, values: Sequence[int]) -> list[int]:
    """Return `values` as a list. Raises TypeError if a single number came."""
    if not isinstance(values, Iterable):
        raise TypeError(f"{name} is {values!r}, wanted a list of whole numbers, such as [{values!r}]")
    return list(values)


def whole(number: object) -> int | None:
    """Return the whole number that it is, of Python, numpy or torch; None for anything else, and for True and False."""
    if isinstance(number, bool) or (isinstance(number, Tensor) and number.dtype == torch.bool):
        return None
    try:
        return operator.index(number)  # type: ignore[arg-type]
    except TypeError:
        return None


def chosen(samples: Sequence[int] | None, batch: int) -> Tensor:
    """Return the places of the chosen samples in the batch; all if None. Raises ValueError."""
    if samples is None:
        return torch.arange(batch, device="cpu")
    wanted = []
    for index in listed("samples", samples):
        place = whole(index)
        if place is None or not 0 <= place < batch:
            raise ValueError(f"samples has {index!r}, wanted whole numbers from 0 to {batch - 1}, places in the batch")
        wanted.append(place)
    if not wanted or len(set(wanted)) != len(wanted):
        raise ValueError(f"samples is {wanted}, wanted at least one place in the batch, and each only once")
    return torch.tensor(wanted, device="cpu")
