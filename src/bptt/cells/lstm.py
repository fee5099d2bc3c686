"""Long short-term memory, the lecture's way to mitigate vanishing gradients (docs/equations.md, eqs. (14) and (19))."""

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from bptt.cells.base import Partials, PointwiseCell, State


@dataclass(frozen=True)
class LSTM(PointwiseCell):
    """Gates in the order i, f, g, o; a = zx + zh is their net input.

    i = σ(a_i)   f = σ(a_f)   g = tanh(a_g)   o = σ(a_o)    [B, H] each
    c_t = f ∘ c_{t-1} + i ∘ g                               the cell state, which may carry a gradient far
    h_t = o ∘ tanh(c_t)                                     the output; with a projection, W_hr h_t  [B, P]

    Derivatives, with q = ∂h_t/∂c_t = o (1 − tanh² c_t):

    | of ↓ by →  | a_i          | a_f               | a_g          | a_o                 | c_{t-1} |
    |------------|--------------|-------------------|--------------|---------------------|---------|
    | c_t        | g i(1 − i)   | c_{t-1} f(1 − f)  | i (1 − g²)   | 0                   | f       |
    | h_t        | q × above    | q × above         | q × above    | tanh(c_t) o(1 − o)  | q f     |

    Source: S. Hochreiter, J. Schmidhuber 1997; forget gate F. Gers et al. 2000; projection H. Sak et al. 2014.
    """

    states: ClassVar[tuple[str, ...]] = ("h", "c")
    gates: ClassVar[int] = 4
    projectable: ClassVar[bool] = True

    def pointwise(self, zx: Tensor, zh: Tensor, state: State, *vectors: Tensor) -> State:
        """Return (h_t, c_t)."""
        i, f, g, o = self._gates(zx, zh)
        c = f * state[1] + i * g
        return o * torch.tanh(c), c

    def partials(self, zx: Tensor, zh: Tensor, state: State, *vectors: Tensor) -> Partials:
        """Return the partial derivatives of the state after the step, as in the class's table."""
        i, f, g, o = self._gates(zx, zh)
        tanh_c = torch.tanh(f * state[1] + i * g)
        q = o * (1 - tanh_c * tanh_c)
        c_by_gates = torch.stack([g * i * (1 - i), state[1] * f * (1 - f), i * (1 - g * g)], dim=-2)  # B,3,H
        c_by_a = torch.cat([c_by_gates, torch.zeros_like(o).unsqueeze(-2)], dim=-2)
        h_by_a = torch.cat([q.unsqueeze(-2) * c_by_gates, (tanh_c * o * (1 - o)).unsqueeze(-2)], dim=-2)
        return Partials(
            zx=(h_by_a, c_by_a),
            zh=(h_by_a, c_by_a),
            direct=((None, q * f), (None, f)),
        )

    @staticmethod
    def _gates(zx: Tensor, zh: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        a_i, a_f, a_g, a_o = (zx + zh).unbind(-2)
        return torch.sigmoid(a_i), torch.sigmoid(a_f), torch.tanh(a_g), torch.sigmoid(a_o)
