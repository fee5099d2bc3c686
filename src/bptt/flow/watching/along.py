"""The reach of a layer on an input and a gradient of its outputs, outside any training step."""

from typing import Any

import torch
from torch import Tensor

from bptt.flow.jacobians.trajectory import RecurrentLayer
from bptt.flow.watching.call import Call, Unseen
from bptt.flow.watching.horizon import Reach, reach
from bptt.layers import cell_of


def reach_along(
    layer: RecurrentLayer, x: Tensor, grad_outputs: Tensor, hx: Any = None, reset: Tensor | None = None
) -> list[list[Reach]] | None:
    """How far the gradient of each loss step reaches, [layer][direction], as `bptt.watch` would see it; None if it cannot.

    The layer's own hooks are not called, its gradients stay as they are. Arguments as of the layer.
    """
    cell, more = cell_of(layer), {} if reset is None else {"reset": reset}
    with torch.enable_grad():
        x = x.detach().requires_grad_()
        result = layer.forward(x, hx, **more)
        try:
            call = Call.of(layer, cell, (x, hx), more, result)
            torch.autograd.grad(result[0], x, grad_outputs)
            with torch.no_grad():
                return [[reach(trace) for trace in link.traces] for link in call.stack({})]
        except Unseen:
            return None
