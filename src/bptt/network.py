"""The lecture's network: input or embedding → recurrent layer(s) → output layer, with a head that says what is learned."""

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F


class Head(ABC):
    """σ_y and the loss that belongs to it (docs/equations.md, eqs. (7) and (8)); z is the net input of the output layer."""

    @abstractmethod
    def activation(self, z: Tensor) -> Tensor:
        """Return y = σ_y(z)."""

    @abstractmethod
    def losses(self, z: Tensor, target: Tensor) -> Tensor:
        """Return the loss of each step, one value per element that counts; their sum is L."""


@dataclass(frozen=True)
class Softmax(Head):
    """Classes: y = softmax(z) [.., K], L = −ln y[target] in nats [..]; target int64 [..]."""

    def activation(self, z: Tensor) -> Tensor:
        """Return the probabilities, [.., K]."""
        return torch.softmax(z, dim=-1)

    def losses(self, z: Tensor, target: Tensor) -> Tensor:
        """Return the cross-entropy in nats, [..]."""
        return F.cross_entropy(z.flatten(0, -2), target.flatten(), reduction="none").view(target.shape)


@dataclass(frozen=True)
class Sigmoid(Head):
    """A binary label: y = σ(z) [.., 1], L = −ln of the label's probability in nats [..]; target 0 or 1 [..]."""

    def activation(self, z: Tensor) -> Tensor:
        """Return the probability of label 1, [.., 1]."""
        return torch.sigmoid(z)

    def losses(self, z: Tensor, target: Tensor) -> Tensor:
        """Return the binary cross-entropy in nats, [..]."""
        return F.binary_cross_entropy_with_logits(z.squeeze(-1), target.to(z.dtype), reduction="none")


@dataclass(frozen=True)
class Linear(Head):
    """Regression: y = z [.., K], L = (y − target)² for each of the K outputs [.., K]."""

    def activation(self, z: Tensor) -> Tensor:
        """Return z."""
        return z

    def losses(self, z: Tensor, target: Tensor) -> Tensor:
        """Return the squared error, [.., K]."""
        return (z - target) ** 2


HEADS: dict[str, Callable[[], Head]] = {"softmax": Softmax, "sigmoid": Sigmoid, "linear": Linear}


class Network(nn.Module):
    """z_y(t) = W_yh h(t) + b_y over the hidden states of `recurrent` (eqs. (2) to (7)).

    Shapes: x [T, B, D] (or symbols int64 [T, B] with an embedding) → z_y [T, B, outputs], and the state as the recurrent
    layer's own. The outputs are net inputs: `head.activation` makes them y, `head.losses` compares them with targets.

    Args:
        recurrent: a layer `(x, state) -> (outputs, state)`, time first: bptt's or torch.nn's.
        features: width of the recurrent layer's outputs.
        outputs: K, the width of z_y.
        head: Softmax(), Sigmoid() or Linear().
        embedding: None for real inputs, else the layer that turns symbols into vectors.
    """

    def __init__(
        self, recurrent: nn.Module, features: int, outputs: int, head: Head, embedding: nn.Embedding | None = None
    ) -> None:
        super().__init__()
        self.embedding = embedding
        self.recurrent = recurrent
        self.output = nn.Linear(features, outputs)
        self.head = head

    def forward(self, x: Tensor, state: Any = None, reset: Tensor | None = None) -> tuple[Tensor, Any]:
        """Run over T steps; return z_y and the final state.

        reset: bool [T, B], rows whose state is zeroed before that step.
        """
        if self.embedding is not None:
            x = self.embedding(x)
        keywords = {} if reset is None else {"reset": reset}
        hidden, state = self.recurrent(x, state, **keywords)
        return self.output(hidden), state
