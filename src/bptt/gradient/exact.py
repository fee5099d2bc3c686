"""The exact gradient: backpropagation through every step of the call."""

from dataclasses import dataclass

from torch import nn

from bptt.gradient.base import Chunk, Result, Strategy, detach, in_memory, total
from bptt.gradient.collect import restored_on_error


@dataclass(frozen=True)
class Exact(Strategy):
    """∂L/∂θ = Σ_t Σ_{k≤t} of eq. (10) (docs/equations.md), by automatic differentiation of the unfolded network.

    Through every step of the call; what lies before the call is constant (or, if the given state is a leaf that
    requires a gradient, gets its own). Memory grows with T.
    """

    def backward(self, chunk: Chunk) -> Result:
        """Run one forward and one backward pass over all steps."""
        outputs, state = chunk.forward(in_memory(chunk.x), chunk.state, chunk.reset)
        loss = total(chunk.loss(outputs, in_memory(chunk.y)))
        with restored_on_error(chunk.model.parameters() if isinstance(chunk.model, nn.Module) else ()):
            loss.backward()
        return Result(loss.detach(), detach(state))
