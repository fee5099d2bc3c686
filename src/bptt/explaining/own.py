"""The user's own network on the page: each recurrent layer's map (t, k), its Jacobian products, the losses L(t).

    model, x, y → capture (one forward, one backward) → sample_view, reach → downsample → JSON in the page

Indices in the data count from 0, in time, as everywhere in Python; the page counts from 1, as the lecture does.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from bptt.explaining import show, write
from bptt.explaining.capture import CapturedCall, Loss, capture, step_losses
from bptt.explaining.downsample import curve, number
from bptt.explaining.reach import singular_values
from bptt.explaining.sample_view import Json, LayerDirection, SampleView
from bptt.layers import cell_of
from bptt.network import Head
from bptt.parameters import directions_of, name_in_stack

BLOCKS = 120  # cells a side to which a map is thinned; fewer where all maps would take more than
MAP_CHARACTERS = 140_000  # characters of the page, with their curves
MOST_LAYERS = 24  # layers and directions


def explain(
    model: nn.Module,
    x: Any,
    y: Any = None,
    *,
    loss: Loss | None = None,
    samples: Sequence[int] | None = None,
    reset: Tensor | None = None,
    out: Path | str = "bptt-explain.html",
    open: bool = True,
) -> Path:
    """Write the page of the lecture with your own network on it, and open it in the browser.

    It shows, for each recurrent layer and direction: the map of ‖∂L(t)/∂s(t) · ∂s(t)/∂s(k) · ∂⁺s(k)/∂θ‖ over the steps
    (t, k) (docs/equations.md, eq. (10); `bptt.gradient_map`), its sums by lag, the singular values of the Jacobian
    products (`bptt.products`), and the losses L(t). Large maps are thinned to blocks of steps, of which the largest value is
    shown. What is infinite or not a number is shown as such. The model is seen in eval mode, its gradients stay as they are.

    Args:
        model: holds one or more of torch.nn.RNN/GRU/LSTM, bptt.RNN/GRU/LSTM, bptt.Recurrent; called as model(x).
        x: its input, in any form that it takes.
        y: targets, handed to `loss`.
        loss: from the model's outputs (the first, if it returns a tuple) and y to the losses of each step, [T, B, ...]
            ([B, T, ...] where the layer is batch_first), or to their sum, a scalar: then L(t) is not shown.
            None: a model with a `head`, as `bptt.Network`, brings its own.
        samples: places in the batch to show; None: one, the longest, among equals the first that gets a gradient.
        reset: where the state is set to zero, for a model that takes `reset=` (`bptt.Network`).
        out: HTML file to write; one that is there is replaced.
        open: show it in the browser.

    Returns:
        The path of the file.

    Raises:
        TypeError: model is no module, or has no head and no loss is given.
        ValueError: there is no recurrent layer, no gradient comes to one, or a sample is not there.
        OSError: the file cannot be written.
    """
    path = write(out, own(model, x, y, loss=loss, samples=samples, reset=reset))
    if open:
        show(path)
    return path


def own(
    model: nn.Module,
    x: Any,
    y: Any = None,
    *,
    loss: Loss | None = None,
    samples: Sequence[int] | None = None,
    reset: Tensor | None = None,
) -> Json:
    """Return what the page shows of a model, fit for JSON; arguments and errors as of `explain`."""
    if not isinstance(model, nn.Module):
        raise TypeError(f"model is a {type(model).__name__}, wanted a torch.nn.Module that holds a recurrent layer")
    calls, losses = capture(model, x, y, loss or _loss_of(model), reset)
    places = [calls[-1].default_sample()] if samples is None else list(samples)
    if not places:
        raise ValueError("samples is empty, wanted at least one place in the batch, or None")
    layers = [at for call in calls for at in _layers_of(call)]
    shown = layers[:MOST_LAYERS]
    blocks = _blocks([at for at in shown for _ in places])
    views = _views([at.call for at in shown], places)
    return {
        "model": type(model).__name__,
        "batch": calls[-1].batch,
        "samples": places,
        "total": number(float(losses.sum()), 6),
        "losses": [_losses(losses, calls[-1], place, blocks) for place in places],
        "left_out": len(layers) - len(shown),
        "layers": [_layer(at, views[id(at.call)], blocks) for at in shown],
    }


def _views(calls: Sequence[CapturedCall], places: list[int]) -> dict[int, list[SampleView]]:
    """The samples at these places of the batch, by the id of the call; each call once."""
    with torch.no_grad():
        return {
            id(call): [SampleView.of(call, place) for place in places] for call in {id(c): c for c in calls}.values()
        }


def _loss_of(model: nn.Module) -> Loss:
    head = getattr(model, "head", None)
    if not isinstance(head, Head):
        raise TypeError(
            f"{type(model).__name__} has no head that says its loss: give loss=, a function from the model's outputs and y "
            "to the losses of each step"
        )
    return head.losses


def _losses(losses: Tensor, call: CapturedCall, place: int, blocks: int) -> Json | None:
    steps = step_losses(losses, call, place)
    return None if steps is None else {"steps": len(steps), "values": curve(steps, min(blocks, len(steps)))}


# Layers ------------------------------------------------------------------------------------------------------------


def _layers_of(call: CapturedCall) -> list[LayerDirection]:
    directions = directions_of(call.layer)
    return [LayerDirection(call, depth, d) for depth in range(call.layer.num_layers) for d in range(directions)]


def _blocks(layers: list[LayerDirection]) -> int:
    """The largest number of blocks with which all maps together stay within their share of the page."""

    def size(blocks: int) -> int:
        triangle = 8 * blocks * (blocks + 1) // 6  # two bytes a cell in base64
        curves = 9 * blocks  # a number of four digits
        return sum(len(w.parameters) * (triangle + curves * _curves(w)) for w in layers)

    return next((n for n in range(BLOCKS, 8, -1) if size(n) <= MAP_CHARACTERS), 8)


def _curves(at: LayerDirection) -> int:
    components = len(cell_of(at.call.layer).states)
    return 1 + (components if components > 1 else 0)


def _layer(at: LayerDirection, views: list[SampleView], blocks: int) -> Json:
    layer, cell = at.call.layer, cell_of(at.call.layer)
    return {
        "name": f"{at.call.name}.{name_in_stack(at.depth, at.direction)}",
        "cell": type(layer).__name__ if not hasattr(layer, "cell") else type(cell).__name__,
        "units": layer.hidden_size,
        "reverse": bool(at.direction),
        "components": list(cell.states),
        "parameters": [name.removesuffix(at.suffix) for name in at.parameters],
        "samples": [_sample(at, one, blocks) for one in views],
    }


def _sample(at: LayerDirection, view: SampleView, blocks: int) -> Json:
    blocks = min(blocks, view.steps)
    words = list(view.words)
    found: Json = {"steps": view.steps, "blocks": blocks, "words": words, "maps": None, "products": None}
    if view.terms is not None:
        steps = view.horizon(at)
        found["maps"] = {
            n.removesuffix(at.suffix): view.map(n, blocks, bool(at.direction)) | {"horizon": steps}
            for n in at.parameters
        }
    if view.known > 0:
        try:
            found["products"] = _products(at, view)
        except ValueError as error:
            words.append(f"The Jacobian products cannot be shown: {error}.")
    return found


def _products(at: LayerDirection, view: SampleView) -> Json:
    one = view.finite
    lags, ranks, log10, size = singular_values(
        at.call.layer, one.x, depth=at.depth, direction=at.direction, hx=one.hx, reset=one.reset
    )
    values = [[number(v, 5) for v in row] for row in log10.T.tolist()]
    return {"t": 0 if at.direction else view.known - 1, "lags": lags, "ranks": ranks, "size": size, "log10": values}


__all__ = ["explain", "own"]
