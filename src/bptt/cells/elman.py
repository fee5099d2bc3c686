"""The lecture's own cell: one hidden layer that feeds back on itself."""

from dataclasses import dataclass
from typing import ClassVar, Literal, get_args

import torch
from torch import Tensor

from bptt.cells.base import Partials, PointwiseCell, State

Nonlinearity = Literal["tanh", "relu", "sigmoid"]


@dataclass(frozen=True)
class Elman(PointwiseCell):
    """h_t = φ(zx_t + zh_t)   [B, H],   φ = tanh, ReLU or the logistic sigmoid.

    Derivative, with the output already at hand: ∂h/∂z = 1 − h² (tanh), [h > 0] (ReLU), h(1 − h) (sigmoid); the two net
    inputs enter as a sum, so ∂h/∂zx = ∂h/∂zh, and h_{t-1} acts through zh alone.

    Raises ValueError for any other nonlinearity. Source: J. L. Elman, "Finding structure in time", 1990;
    docs/equations.md, eq. (17).
    """

    nonlinearity: Nonlinearity = "tanh"
    gates: ClassVar[int] = 1

    def __post_init__(self) -> None:
        if self.nonlinearity not in get_args(Nonlinearity):
            raise ValueError(f"Unknown nonlinearity '{self.nonlinearity}': select from 'tanh', 'relu' or 'sigmoid'")

    def pointwise(self, zx: Tensor, zh: Tensor, state: State, *vectors: Tensor) -> State:
        """Return (h_t,) with h_t = φ(zx_t + zh_t)."""
        z = (zx + zh).squeeze(-2)
        match self.nonlinearity:
            case "tanh":
                return (torch.tanh(z),)
            case "relu":
                return (torch.relu(z),)
            case "sigmoid":
                return (torch.sigmoid(z),)

    def partials(self, zx: Tensor, zh: Tensor, state: State, *vectors: Tensor) -> Partials:
        """Return φ'(z), written with h = φ(z)."""
        (h,) = self.pointwise(zx, zh, state)
        match self.nonlinearity:
            case "tanh":
                slope = 1 - h * h
            case "relu":
                slope = (~(h <= 0)).to(h.dtype)  # 1 for a NaN, as autograd has it
            case "sigmoid":
                slope = h * (1 - h)
        slope = slope.unsqueeze(-2)  # B,1,H
        return Partials(zx=(slope,), zh=(slope,), direct=((None,),))
