"""Working memory of bptt's native core, which torch's allocator does not see."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from bptt.cells import GRU, Elman, PointwiseCell
from bptt.torch_private import tree_leaves

_BLOCK = 1 << 20  # bytes of a block of steps in the core's backward (kernels/csrc, kCache)


@dataclass(frozen=True)
class NativeWork:
    """Bytes that the native core needs for the widest of a model's bptt layers; the layers run one after the other.

    Attributes:
        packed: the weights as the core's matrix products want them.
        step: the gradients of one step's gates.
        most: the largest block of steps whose gradients the core holds at a time.
    """

    packed: int = 0
    step: int = 0
    most: int = 0

    @staticmethod
    def of(model: Callable[..., Any], state: Any, *, lean: bool = False) -> "NativeWork":
        """Return the working memory for `model` with a state of the size of `state`; zeros if it has no layer of bptt's.

        lean: the tape keeps the states only, so the core also holds a block's gates and the weights of the forward pass.
        """
        work = NativeWork()
        for layer in _layers_of(model):
            own = _of_layer(layer, state, lean)
            work = NativeWork(*map(max, (work.packed, work.step, work.most), (own.packed, own.step, own.most)))
        return work

    def bytes(self, steps: int) -> int:
        """Return the bytes for a chunk of `steps` steps."""
        return self.packed + min(self.step * steps, self.most)


def _layers_of(model: Callable[..., Any]) -> list[Any]:
    """The layers of a model that the native core may run."""
    modules = model.modules() if isinstance(model, torch.nn.Module) else ()
    layers: list[Any] = [module for module in modules if hasattr(module, "layer_weights")]
    return [layer for layer in layers if isinstance(layer.cell, PointwiseCell)]


def _of_layer(layer: Any, state: Any, lean: bool) -> NativeWork:
    weights = layer.layer_weights(0, 0)
    is_gru = isinstance(layer.cell, GRU)
    recomputes = lean and not isinstance(layer.cell, Elman)
    widths = 2.0 if is_gru else 1.0  # in units of one step's gates; the GRU holds its candidate's zh apart
    if recomputes:
        widths += 4 / 3 if is_gru else 1
    rows = max(1, _rows(state, layer.hidden_size) // layer.num_layers)
    step = int(widths * weights["weight_hh"].shape[0] * rows * weights["weight_hh"].element_size())
    packed = (1 + recomputes) * sum(w.nbytes for w in weights.values())
    return NativeWork(packed, step, max(step, int(widths * _BLOCK)))


def _rows(state: Any, hidden: int) -> int:
    """L·B of a layer with `hidden` units, from the states of that width; from the largest state if there is none."""
    states = [s for s in tree_leaves(state) if isinstance(s, Tensor)]
    own = [s for s in states if s.shape[-1:] == (hidden,)]
    return max((s.numel() for s in own or states), default=0) // hidden
