"""One sample of a recurrent layer's call as the page shows it: its map, its horizon, and words on what cannot be shown."""

from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from bptt.explaining.capture import CapturedCall, Sample
from bptt.explaining.downsample import cells, curve
from bptt.flow import GradientMap, gradient_map
from bptt.flow.tracing.horizon import Reach, horizon
from bptt.flow.watching.along import reach_along
from bptt.forms import as_hidden
from bptt.parameters import suffix

Json = dict[str, Any]


@dataclass(frozen=True)
class LayerDirection:
    """One layer of a call's stack, in one direction."""

    call: CapturedCall
    depth: int
    direction: int

    @property
    def suffix(self) -> str:
        """What the names of its parameters end with: "_l0_reverse"."""
        return suffix(self.depth, self.direction)

    @property
    def parameters(self) -> list[str]:
        """The names of its parameters."""
        return [name for name, _ in self.call.layer.named_parameters() if name.endswith(self.suffix)]


@dataclass(frozen=True)
class SampleView:
    """One sample of a call with its terms, and words on what is not finite or not there.

    Attributes:
        steps: T.
        finite: its steps up to the first that is not finite, with the gradients of all others set to 0.
        bad: for each of the T steps NaN or Inf where its loss's gradient cannot be followed, 0 where it can.
        terms: the gradient map of `finite`; None where there is nothing to show.
        words: sentences for the page.
        reaches: how far each loss step's gradient reaches in `finite`, [layer][direction]; None where that is not known.
    """

    steps: int
    finite: Sample
    bad: Tensor
    terms: GradientMap | None
    words: tuple[str, ...]
    reaches: list[list[Reach]] | None

    @staticmethod
    def of(call: CapturedCall, place: int) -> "SampleView":
        """Look at the sample at one place of the batch. Raises ValueError where there is none."""
        one = call.sample(place)
        words = list(_non_finite_places(call, one))
        bad = _non_finite(one.grad)
        known = _known(call, one)
        if known < len(one.x):
            after = _non_finite(one.outputs)[known:]
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
        words += _remarks(call, one)
        hx = _hidden(finite.hx)
        reaches = None if terms is None else reach_along(call.layer, finite.x, finite.grad, hx, finite.reset)
        return SampleView(len(one.x), replace(finite, hx=hx), bad, terms, tuple(words), reaches)

    @property
    def known(self) -> int:
        """The number of steps from the first on whose states are finite."""
        return len(self.finite.x)

    def horizon(self, at: LayerDirection) -> int | None:
        """Return the memory horizon in steps (see `bptt.flow.tracing.horizon`); None where no gradient is seen."""
        gain = [] if self.reaches is None else self.reaches[at.depth][at.direction].gain
        return horizon(gain) if gain else None

    def map(self, name: str, blocks: int, reverse: bool) -> Json:
        """Return one parameter's map, and its sums by lag, for the page."""
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
        """The sums by lag [T], over the losses that can be followed; 0 for lags beyond the steps that are finite."""
        assert self.terms is not None
        found = self.terms.lags(name, through)[0].double()
        return torch.cat([found, found.new_zeros(self.steps - self.known)])


def _hidden(hx: tuple[Tensor, ...] | None) -> Any:
    return None if hx is None else as_hidden(hx)


def _non_finite(rows: Tensor) -> Tensor:
    """For each row of [T, ·]: 0 if all is finite, NaN if one is NaN, else Inf. float64 [T]."""
    state = torch.where(rows.isinf().any(1), torch.inf, 0.0).double()
    return torch.where(rows.isnan().any(1), torch.nan, state)


def _known(call: CapturedCall, one: Sample) -> int:
    """The number of steps before the first that is not finite; all or none in a bidirectional layer."""
    start = [] if one.hx is None else list(one.hx)
    if not all(bool(w.isfinite().all()) for w in (*call.layer.parameters(), *start)):
        return 0
    fine = (_non_finite(one.x) == 0) & (_non_finite(one.outputs) == 0)
    if bool(fine.all()):
        return len(fine)
    return 0 if call.layer.bidirectional else int((~fine).int().argmax())


def _non_finite_places(call: CapturedCall, one: Sample) -> list[str]:
    """A sentence for each thing that is not finite, in the order of computing."""
    words = [
        f"The parameter {name} holds {_infinity_or_nan(w)}."
        for name, w in call.layer.named_parameters()
        if _infinity_or_nan(w)
    ]
    words += [f"The initial state holds {_infinity_or_nan(s)}." for s in (one.hx or ()) if _infinity_or_nan(s)]
    for what, rows in (("input of the layer", one.x), ("output h(t)", one.outputs), ("gradient ∂L/∂h(t)", one.grad)):
        bad = (_non_finite(rows) != 0).nonzero().flatten().tolist()
        if bad:
            words.append(f"The {what} is {_infinity_or_nan(rows[bad[0]])} at {_steps_in_words(bad, len(rows))}.")
    return words


def _infinity_or_nan(values: Tensor) -> str:
    return "NaN" if bool(values.isnan().any()) else "∞" if bool(values.isinf().any()) else ""


def _steps_in_words(bad: list[int], steps: int) -> str:
    """Indices of steps in words, counted from 1."""
    first, last = bad[0] + 1, bad[-1] + 1
    if len(bad) == 1:
        return f"step {first}"
    if len(bad) < last - first + 1:
        return f"{len(bad)} steps, the first of them step {first}"
    return "every step" if len(bad) == steps else f"steps {first} to {last}"


def _remarks(call: CapturedCall, one: Sample) -> list[str]:
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
