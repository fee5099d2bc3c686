"""Working memory of bptt's native core, which torch's allocator does not see."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from bptt.cells import PointwiseCell
from bptt.kernels.cpu import LayerSizes, workspace_bytes
from bptt.torch_private import tree_leaves


@dataclass(frozen=True)
class NativeWork:
    """Bytes that the native core needs for a model's bptt layers, which run one after the other.

    Attributes:
        layers: the sizes of the layers, equal ones once.
        lean: the tape keeps the states only.
    """

    layers: tuple[LayerSizes, ...] = ()
    lean: bool = False

    @staticmethod
    def of(model: Callable[..., Any], state: Any, *, lean: bool = False) -> "NativeWork":
        """Return that of a model's layers of bptt's, for as many sequences as the state has."""
        modules = model.modules() if isinstance(model, torch.nn.Module) else ()
        layers: list[Any] = [module for module in modules if hasattr(module, "layer_weights")]
        found: dict[LayerSizes, None] = {}
        for layer in layers:
            batch = max(1, _rows(state, layer.hidden_size) // layer.num_layers)
            if isinstance(layer.cell, PointwiseCell):  # others the core never runs
                stack = (layer.layer_weights(index, 0) for index in range(layer.num_layers))
                found |= dict.fromkeys(LayerSizes.of(layer.cell, weights, batch) for weights in stack)
        return NativeWork(tuple(found), lean)

    def bytes(self, steps: int) -> int:
        """Return the bytes for a chunk of `steps` steps: the core's own figure for the layer that takes most."""
        return max((workspace_bytes(sizes, steps, lean=self.lean) for sizes in self.layers), default=0)


def _rows(state: Any, hidden: int) -> int:
    """L·B of a layer with `hidden` units, from the states of that width; from the largest state if there is none."""
    states = [s for s in tree_leaves(state) if isinstance(s, Tensor)]
    own = [s for s in states if s.shape[-1:] == (hidden,)]
    return max((s.numel() for s in own or states), default=0) // hidden
