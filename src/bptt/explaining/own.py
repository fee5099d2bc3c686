"""The user's own network on the page: each recurrent layer's map (t, k), its Jacobian products, the losses L(t).

    model, x, y → capture (one forward, one backward) → gradient_map, products → thin → JSON in the page

Indices in the data count from 0, in time, as everywhere in Python; the page counts from 1, as the lecture does.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from bptt.explaining import show, write
from bptt.explaining.capture import Call, Loss, Sample, capture, step_losses
from bptt.explaining.downsample import cells, curve, number
from bptt.explaining.reach import singular_values
from bptt.flow import GradientMap, gradient_map
from bptt.flow.watching.along import reach_along
from bptt.flow.watching.horizon import Reach, horizon
from bptt.layers import cell_of
from bptt.network import Head

Json = dict[str, Any]

BLOCKS = 120  # a map is thinned to so many cells a side, or fewer:
MAP_CHARACTERS = 140_000  # for all maps and their curves together
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
        out: HTML file to write, anew if it is there.
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
    """What the page shows of a model, fit for JSON; arguments and errors as of `explain`."""
    if not isinstance(model, nn.Module):
        raise TypeError(f"model is a {type(model).__name__}, wanted a torch.nn.Module that holds a recurrent layer")
    calls, losses = capture(model, x, y, loss or _loss_of(model), reset)
    places = [calls[-1].default_sample()] if samples is None else list(samples)
    if not places:
        raise ValueError("samples is empty, wanted at least one place in the batch, or None")
    ways = [way for call in calls for way in _ways(call)]
    shown = ways[:MOST_LAYERS]
    blocks = _blocks([way for way in shown for _ in places])
    with torch.no_grad():
        seen = {
            id(call): [_Seen.of(call, place) for place in places]
            for call in {id(w.call): w.call for w in shown}.values()
        }
    return {
        "model": type(model).__name__,
        "batch": calls[-1].batch,
        "samples": places,
        "total": number(float(losses.sum()), 6),
        "losses": [_losses(losses, calls[-1], place, blocks) for place in places],
        "left_out": len(ways) - len(shown),
        "layers": [_layer(way, seen[id(way.call)], blocks) for way in shown],
    }


def _loss_of(model: nn.Module) -> Loss:
    head = getattr(model, "head", None)
    if not isinstance(head, Head):
        raise TypeError(
            f"{type(model).__name__} has no head that says its loss: give loss=, a function from the model's outputs and y "
            "to the losses of each step"
        )
    return head.losses


def _losses(losses: Tensor, call: Call, place: int, blocks: int) -> Json | None:
    steps = step_losses(losses, call, place)
    return None if steps is None else {"steps": len(steps), "values": curve(steps, min(blocks, len(steps)))}


# Layers ------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Way:
    """One layer of a call's stack, in one direction."""

    call: Call
    depth: int
    direction: int

    @property
    def suffix(self) -> str:
        return f"_l{self.depth}{'_reverse' if self.direction else ''}"

    @property
    def parameters(self) -> list[str]:
        return [name for name, _ in self.call.layer.named_parameters() if name.endswith(self.suffix)]


def _ways(call: Call) -> list[_Way]:
    directions = 2 if call.layer.bidirectional else 1
    return [_Way(call, depth, d) for depth in range(call.layer.num_layers) for d in range(directions)]


def _blocks(ways: list[_Way]) -> int:
    """The largest number of blocks with which all maps together stay within their share of the page."""

    def size(blocks: int) -> int:
        triangle = 8 * blocks * (blocks + 1) // 6  # two bytes a cell in base64
        curves = 9 * blocks  # a number of four digits
        return sum(len(w.parameters) * (triangle + curves * _curves(w)) for w in ways)

    return next((n for n in range(BLOCKS, 8, -1) if size(n) <= MAP_CHARACTERS), 8)


def _curves(way: _Way) -> int:
    components = len(cell_of(way.call.layer).states)  # type: ignore[union-attr]
    return 1 + (components if components > 1 else 0)


def _layer(way: _Way, seen: "list[_Seen]", blocks: int) -> Json:
    layer, cell = way.call.layer, cell_of(way.call.layer)
    assert cell is not None
    return {
        "name": f"{way.call.name}.l{way.depth}{'_reverse' if way.direction else ''}",
        "cell": type(layer).__name__ if not hasattr(layer, "cell") else type(cell).__name__,
        "units": layer.hidden_size,
        "reverse": bool(way.direction),
        "components": list(cell.states),
        "parameters": [name.removesuffix(way.suffix) for name in way.parameters],
        "samples": [_sample(way, one, blocks) for one in seen],
    }


def _sample(way: _Way, seen: "_Seen", blocks: int) -> Json:
    blocks = min(blocks, seen.steps)
    words = list(seen.words)
    found: Json = {"steps": seen.steps, "blocks": blocks, "words": words, "maps": None, "products": None}
    if seen.terms is not None:
        steps = seen.horizon(way)
        found["maps"] = {
            n.removesuffix(way.suffix): seen.map(n, blocks, bool(way.direction)) | {"horizon": steps}
            for n in way.parameters
        }
    if seen.known > 0:
        try:
            found["products"] = _products(way, seen)
        except ValueError as error:
            words.append(f"The Jacobian products cannot be shown: {error}.")
    return found


def _products(way: _Way, seen: "_Seen") -> Json:
    one = seen.finite
    lags, ranks, log10, size = singular_values(
        way.call.layer, one.x, depth=way.depth, direction=way.direction, hx=one.hx, reset=one.reset
    )
    values = [[number(v, 5) for v in row] for row in log10.T.tolist()]
    return {"t": 0 if way.direction else seen.known - 1, "lags": lags, "ranks": ranks, "size": size, "log10": values}


# One sample --------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Seen:
    """One sample of a call with its terms, and words on what is not finite or not there.

    Attributes:
        finite: its steps up to the first that is not finite, with the gradients of all others set to 0.
        bad: for each of the T steps NaN or Inf where its loss's gradient cannot be followed, 0 where it can.
        terms: of `finite`; None where there is nothing to show.
        reaches: how far each loss step's gradient reaches in `finite`, [layer][direction]; None where that is not known.
    """

    steps: int
    finite: Sample
    bad: Tensor
    terms: GradientMap | None
    words: tuple[str, ...]
    reaches: list[list[Reach]] | None

    @staticmethod
    def of(call: Call, place: int) -> "_Seen":
        one = call.sample(place)
        words = list(_not_finite(call, one))
        bad = _first_of(one.grad)
        known = _known(call, one)
        if known < len(one.x):
            after = _first_of(one.outputs)[known:]
            bad[known:] = torch.where(after == 0, torch.nan, after)
        finite = replace(
            one,
            x=one.x[:known],
            reset=None if one.reset is None else one.reset[:known],
            outputs=one.outputs[:known],
            grad=torch.where(bad[:known, None] == 0, one.grad[:known], 0),
        )
        terms = None
        if known > 0:
            try:
                terms = gradient_map(
                    call.layer, finite.x, grad_outputs=finite.grad, hx=_hidden(finite.hx), reset=finite.reset
                )
            except ValueError as error:
                words.append(f"The map cannot be shown: {error}.")
        if bool((bad != 0).any()) and terms is not None:
            words.append("What is below is of the other steps' losses.")
        words += _about(call, one)
        hx = _hidden(finite.hx)
        reaches = None if terms is None else reach_along(call.layer, finite.x, finite.grad, hx, finite.reset)
        return _Seen(len(one.x), replace(finite, hx=hx), bad, terms, tuple(words), reaches)

    @property
    def known(self) -> int:
        """Steps from the first on whose states are finite."""
        return len(self.finite.x)

    def horizon(self, way: _Way) -> int | None:
        """The memory horizon in steps (see `bptt.flow.watching.horizon`); None where no gradient is seen."""
        gain = [] if self.reaches is None else self.reaches[way.depth][way.direction].gain
        return horizon(gain) if gain else None

    def map(self, name: str, blocks: int, reverse: bool) -> Json:
        """One parameter's map, and its sums by lag."""
        assert self.terms is not None
        norms = torch.zeros(self.steps, self.steps, dtype=torch.float64)
        norms[: self.known, : self.known] = self.terms.norms(name)[0]
        rows = self.bad != 0
        norms[rows] = self.bad[rows, None]
        lags = self._lags(name)
        components = self.terms.components
        through = {c: curve(self._lags(name, c), blocks) for c in components} if len(components) > 1 else {}
        return {
            "cells": cells(norms, blocks, reverse),
            "lags": curve(lags, blocks),
            "through": through,
        }

    def _lags(self, name: str, through: str | None = None) -> Tensor:
        """[T], of the losses that can be followed; 0 for lags beyond the steps that are finite."""
        assert self.terms is not None
        found = self.terms.lags(name, through)[0].double()
        return torch.cat([found, found.new_zeros(self.steps - self.known)])


def _hidden(hx: tuple[Tensor, ...] | None) -> Any:
    return None if hx is None else hx[0] if len(hx) == 1 else hx


def _first_of(rows: Tensor) -> Tensor:
    """For each row of [T, ·]: 0 if all is finite, NaN if one is NaN, else Inf. float64 [T]."""
    state = torch.where(rows.isinf().any(1), torch.inf, 0.0).double()
    return torch.where(rows.isnan().any(1), torch.nan, state)


def _known(call: Call, one: Sample) -> int:
    """How many steps come before the first that is not finite; all or none where both directions meet."""
    start = [] if one.hx is None else list(one.hx)
    if not all(bool(w.isfinite().all()) for w in (*call.layer.parameters(), *start)):
        return 0
    fine = (_first_of(one.x) == 0) & (_first_of(one.outputs) == 0)
    if bool(fine.all()):
        return len(fine)
    return 0 if call.layer.bidirectional else int((~fine).int().argmax())


def _not_finite(call: Call, one: Sample) -> list[str]:
    """In the order of computing: a sentence for each thing that is not finite."""
    words = [f"The parameter {name} holds {_kind(w)}." for name, w in call.layer.named_parameters() if _kind(w)]
    words += [f"The initial state holds {_kind(s)}." for s in (one.hx or ()) if _kind(s)]
    for what, rows in (("input of the layer", one.x), ("output h(t)", one.outputs), ("gradient ∂L/∂h(t)", one.grad)):
        bad = (_first_of(rows) != 0).nonzero().flatten().tolist()
        if bad:
            words.append(f"The {what} is {_kind(rows[bad[0]])} at {_steps(bad, len(rows))}.")
    return words


def _kind(values: Tensor) -> str:
    return "NaN" if bool(values.isnan().any()) else "∞" if bool(values.isinf().any()) else ""


def _steps(bad: list[int], steps: int) -> str:
    """Counted from 1."""
    first, last = bad[0] + 1, bad[-1] + 1
    if len(bad) == 1:
        return f"step {first}"
    if len(bad) < last - first + 1:
        return f"{len(bad)} steps, the first of them step {first}"
    return "every step" if len(bad) == steps else f"steps {first} to {last}"


def _about(call: Call, one: Sample) -> list[str]:
    words = []
    if bool((one.grad == 0).all()):
        words.append("No gradient of this sample's losses comes to the layer's outputs: every term is 0.")
    if call.calls > 1:
        words.append(f"The model calls this layer {call.calls} times; this is the longest call, by itself.")
    if one.ends:
        words.append(
            f"The loss also reads the final state ({', '.join(one.ends)}) directly: what goes back there is not in the map."
        )
    return words


__all__ = ["explain", "own"]
