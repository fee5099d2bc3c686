"""The loss of a batch of which some steps do not count."""

from collections.abc import Callable
from typing import Any

from torch import Tensor

from bptt.network import Head


def counted_loss(head: Head, count: int) -> Callable[[Tensor, Any], Tensor]:
    """Return the loss for `bptt.backward`: a function (z, (y, mask)) → Σ losses[mask] / count, 0 where nothing counts.

    A batch without any counted loss exists: of a series whose first season is longer than the chunk, the first one.
    """

    def loss(z: Tensor, target: tuple[Tensor, Tensor]) -> Tensor:
        return masked_losses(head, z, *target).sum() / max(1, count)

    return loss


def masked_losses(head: Head, z: Tensor, y: Tensor, mask: Tensor) -> Tensor:
    """Return the losses of the outputs z, with 0 where the mask is False.

    Both y and the losses are masked: a NaN in y whose loss alone is set to 0 would still make the gradient NaN (0 · NaN).
    """
    absent = ~mask
    return head.losses(z, y.masked_fill(absent, 0)).masked_fill(absent, 0)
