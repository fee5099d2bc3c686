"""One layer in one direction over the steps of one call, or of several that hand their state on: states and gradients.

A trace is made from what the hooks have kept (replay.py); backward.py fills in its states and its gradient δ; everything
that is shown of a layer (profile.py, horizon.py, truncation.py, contributions.py) is computed from it.

Memory: the states and δ of every row, [N, H] each; the G-fold wider diagonals D of the step's derivative exist for a few
steps at a time.
"""

from bisect import bisect_right
from dataclasses import dataclass, field
from functools import cached_property
from typing import NamedTuple

import torch
from torch import Tensor

from bptt.cells import Elman, Partials, PointwiseCell, State, Weights
from bptt.flow.tracing import fast_partials
from bptt.flow.tracing.step import by_step
from bptt.kernels.tape import Saved
from bptt.kernels.walk import Walk

CHUNK = 1 << 19  # numbers of one [rows, G, H] block: so small that it stays in the cache between its passes


class Lineages(NamedTuple):
    """Each sample's way through several calls that hand their state on.

    Attributes:
        rows: the rows of each sample from its first step on, int64 [T, samples]; N where it has ended. A sample that nobody
            goes on from ends there; they are ordered by where they begin.
        begins: whether each begins with the first call, bool [samples].
    """

    rows: Tensor
    begins: Tensor


@dataclass(eq=False)
class Trace:
    """One layer in one direction, over one call, or over several that hand their state on (see join.py).

    Attributes:
        cell, weights: what it computes; the weights are copies, so that a later update of them changes nothing here.
        walk: the order of the rows.
        x: [N, D].
        outputs: h after each row, as the model put it out, [N, H or P].
        start: the initial state, [B, ·] each; of joined calls all of theirs in turn.
        tape: where the native core has run the layer, what it kept of it for the way back, until backward.py has used it.
        states: the state after each row, [N, ·] each, filled in by backward.py.
        external: gradient that arrives at the outputs from outside this layer, [N, H or P].
        d_final: gradient that arrives at the final state, in the order of `Walk.ends`, [B, ·] each.
        delta: ∂L/∂state of each row, [N, ·] each, filled in by backward.py.
        d_start: ∂L/∂initial state, [B, ·] each, filled in by backward.py.
        norms: ‖δ_k‖ for each component of the state, and ‖external_k‖, [T] in order of time, filled in by backward.py.
        samples: for each call, the user's number of each row of the first step; None if they are in the user's order.
        calls: the steps at which a call begins.
        lineages: how the samples go through joined calls; None for one call.
    """

    cell: PointwiseCell
    weights: Weights
    walk: Walk
    x: Tensor
    outputs: Tensor
    start: State
    tape: Saved | None = None
    states: State = ()
    external: Tensor = field(default_factory=lambda: torch.empty(0, device="cpu"))
    d_final: State = ()
    delta: State = ()
    d_start: State = ()
    norms: dict[str, Tensor] = field(default_factory=dict)
    samples: tuple[Tensor | None, ...] = (None,)
    calls: tuple[int, ...] = (0,)
    lineages: Lineages | None = None

    @cached_property
    def before(self) -> State:
        """The state before each row, [N, ·] each."""
        return tuple(self.walk.before(s, first) for s, first in zip(self.states, self.start, strict=True))

    @property
    def width(self) -> int:
        """The number of net inputs of a step, G·H."""
        return self.weights["weight_hh"].shape[0]

    @property
    def longest(self) -> int:
        """The steps of the longest sample: T; perhaps fewer of joined calls, of which two may go on from one."""
        return self.walk.length if self.lineages is None else len(self.lineages.rows)

    def inputs(self, rows: slice | Tensor) -> tuple[Tensor, Tensor, State]:
        """Return zx, zh [n, G, H] and the state before, of some rows."""
        if isinstance(rows, slice):
            before = tuple(s[rows] for s in self.before)
        else:
            pairs = zip(self.states, self.start, strict=True)
            before = tuple(self.walk.before_some(s, first, rows) for s, first in pairs)
        zx = self.cell.net_input(self.x[rows], self.weights["weight_ih"], self.weights.get("bias_ih"))
        zh = self.cell.net_input(before[0], self.weights["weight_hh"], self.weights.get("bias_hh"))
        return zx, zh, before

    def sample(self, step: int, row: int) -> int:
        """Return the user's number of a step's row."""
        numbers = self.samples[bisect_right(self.calls, step) - 1]
        return row if numbers is None else int(numbers[row])

    def vectors(self) -> State:
        """Return the cell's per-unit parameters."""
        return tuple(self.weights[name] for name in self.cell.vectors)

    def partials(self, rows: slice | Tensor) -> Partials:
        """Return the diagonals D of some rows."""
        if type(self.cell) is Elman:
            return fast_partials.elman(self.cell, self.states[0][rows])
        return fast_partials.partials(self.cell, *self.inputs(rows), self.vectors())

    def unprojected(self, rows: slice | Tensor) -> Tensor:
        """Return h [n, H] of some rows as the step gives it, before the projection if there is one."""
        return self.cell.pointwise(*self.inputs(rows), *self.vectors())[0]

    def recomputed(self, rows: slice | Tensor) -> Tensor:
        """Return the outputs of some rows, one step from the state before them: what the model must have put out."""
        h = self.unprojected(rows)
        return h @ self.weights["weight_hr"].T if "weight_hr" in self.weights else h

    def raw_delta(self, delta: State) -> State:
        """Return δ with respect to h before the projection, where there is one."""
        w_hr = self.weights.get("weight_hr")
        return delta if w_hr is None else (delta[0] @ w_hr, *delta[1:])

    def norm_by_step(self, rows: Tensor) -> Tensor:
        """Return the norm over each step's rows [T]; summed in float64, which is slower, where float32 would not hold it."""
        steps = by_step(rows, self.walk.sizes).flatten(1)
        norms = torch.linalg.vector_norm(steps, dim=1)
        if rows.dtype == torch.float64 or bool(((norms > 1e-15) & (norms < 1e15)).all()):
            return norms.double()
        return torch.linalg.vector_norm(steps, dim=1, dtype=torch.float64)


@dataclass(frozen=True, eq=False)
class StackedTraces:
    """A layer's traces, one for each direction, and how its input hangs on the layer below.

    mask: the factor of the dropout between the two [N, directions·H], or None.
    """

    traces: tuple[Trace, ...]
    mask: Tensor | None = None
