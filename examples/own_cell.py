"""A cell of your own: a leaky unit whose leak is learned. You write one function; the gradient comes with it.

    a = σ(leak)                                       one leak for each hidden unit
    h_t = (1 − a) ∘ h_{t-1} + a ∘ tanh(zx_t + zh_t)

Run: python examples/own_cell.py
"""

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

import bptt
from bptt.cells import State


@dataclass(frozen=True)
class Leaky(bptt.PointwiseCell):
    """A leaky integrator (H. Jaeger et al. 2007)."""

    gates: ClassVar[int] = 1
    vectors: ClassVar[tuple[str, ...]] = ("leak",)

    def pointwise(self, zx: Tensor, zh: Tensor, state: State, leak: Tensor) -> State:
        """The equation above."""
        a = torch.sigmoid(leak)
        return ((1 - a) * state[0] + a * torch.tanh((zx + zh).squeeze(-2)),)


def main() -> None:
    """Train it to hold a number for 30 steps: the input of the first step is the target of the last."""
    torch.manual_seed(0)
    layer = bptt.Recurrent(Leaky(), input_size=1, hidden_size=16)
    model = bptt.Network(layer, features=16, outputs=1, head=bptt.network.Linear())
    optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
    for step in range(301):
        x = torch.zeros(30, 32, 1)
        x[0] = torch.randn(32, 1)
        result = bptt.backward(model, x, x[0].expand(30, 32, 1), lambda z, y: ((z[-1] - y[-1]) ** 2).mean())
        optimizer.step()
        optimizer.zero_grad()
        if step % 100 == 0:
            print(f"step {step}: mean squared error {result.loss.item():.4f}")


if __name__ == "__main__":
    main()
