"""The loss of a batch of which some steps do not count."""

from collections.abc import Callable
from typing import Any

from torch import Tensor

from bptt.network import Head


def counted_loss(head: Head, count: int) -> Callable[[Tensor, Any], Tensor]:
    """The loss for `bptt.backward`: `(z, (y, mask)) -> Σ losses[mask] / count`; 0 where nothing counts.

    That happens: a series whose first season is longer than the chunk has no known target in its first batch.
    """

    def loss(z: Tensor, target: tuple[Tensor, Tensor]) -> Tensor:
        return masked_losses(head, z, *target).sum() / max(1, count)

    return loss


def masked_losses(head: Head, z: Tensor, y: Tensor, mask: Tensor) -> Tensor:
    """The losses, and 0 where the mask is False.

    Both y and the losses are masked: a NaN in y that met only a zeroed loss would still make the gradient NaN (0 · NaN).
    """
    absent = ~mask
    return head.losses(z, y.masked_fill(absent, 0)).masked_fill(absent, 0)
