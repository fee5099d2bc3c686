"""The reach of a layer on an input and a gradient of its outputs, outside any training step."""

from typing import Any

import torch
from torch import Tensor

from bptt.flow.tracing.horizon import Reach
from bptt.flow.tracing.reach import reach
from bptt.flow.watching.call import Unsupported
from bptt.flow.watching.observe import observe
from bptt.flow.watching.replay import replay
from bptt.layers import cell_of


def reach_along(
    layer: Any, x: Tensor, grad_outputs: Tensor, hx: Any = None, reset: Tensor | None = None
) -> list[list[Reach]] | None:
    """Return how far the gradient of each loss step reaches, [layer][direction], as `bptt.watch` would see it.

    None where it cannot be seen. The layer's own hooks are not called, its gradients stay as they are. Arguments as of the
    layer, one of torch.nn's or bptt's.
    """
    cell, more = cell_of(layer), {} if reset is None else {"reset": reset}
    with torch.enable_grad():
        x = x.detach().requires_grad_()
        result = layer.forward(x, hx, **more)
        try:
            call = observe(layer, cell, (x, hx), more, result)
            torch.autograd.grad(result[0], x, grad_outputs)
            with torch.no_grad():
                return [[reach(trace) for trace in stacked.traces] for stacked in replay(call, {})]
        except Unsupported:
            return None
