"""The gated recurrent unit, in torch.nn's variant."""

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from bptt.cells.base import Partials, PointwiseCell, State


@dataclass(frozen=True)
class GRU(PointwiseCell):
    """Gates in the order r, z, n.

    r = σ(zx_r + zh_r)              reset gate       [B, H]
    z = σ(zx_z + zh_z)              update gate      [B, H]
    n = tanh(zx_n + r ∘ zh_n)       candidate        [B, H]
    h_t = (1 − z) ∘ n + z ∘ h_{t-1}

    Derivatives, with a = ∂h/∂(argument of n's tanh) = (1 − z)(1 − n²):

    | with respect to | through zx            | through zh            |
    |-----------------|-----------------------|-----------------------|
    | gate r          | a ∘ zh_n ∘ r(1 − r)   | the same              |
    | gate z          | (h_{t-1} − n) z(1 − z)| the same              |
    | candidate n     | a                     | a ∘ r                 |
    | h_{t-1}, direct | z                     |                       |

    Source: K. Cho et al. 2014; the reset gate acts after the product, as in torch.nn.GRU (and cuDNN);
    docs/equations.md, eq. (18).
    """

    gates: ClassVar[int] = 3

    def pointwise(self, zx: Tensor, zh: Tensor, state: State, *vectors: Tensor) -> State:
        """Return (h_t,) with h_t = (1 − z) ∘ n + z ∘ h_{t-1}."""
        _, z, n = self._gates(zx, zh)
        return ((1 - z) * n + z * state[0],)

    def partials(self, zx: Tensor, zh: Tensor, state: State, *vectors: Tensor) -> Partials:
        """Return the partial derivatives of the state after the step, as in the class's table."""
        r, z, n = self._gates(zx, zh)
        a = (1 - z) * (1 - n * n)
        d_r = a * zh[..., 2, :] * r * (1 - r)
        d_z = (state[0] - n) * z * (1 - z)
        return Partials(
            zx=(torch.stack([d_r, d_z, a], dim=-2),),
            zh=(torch.stack([d_r, d_z, a * r], dim=-2),),
            direct=((z,),),
        )

    @staticmethod
    def _gates(zx: Tensor, zh: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        r = torch.sigmoid(zx[..., 0, :] + zh[..., 0, :])
        z = torch.sigmoid(zx[..., 1, :] + zh[..., 1, :])
        n = torch.tanh(zx[..., 2, :] + r * zh[..., 2, :])
        return r, z, n
