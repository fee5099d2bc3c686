"""The terms of eq. (10) (docs/equations.md): every loss step t at once is sent back through the steps k.

    row_t(k) = ∂L(t)/∂s(k) = ∂L(t)/∂s(t) · Π_{i=k+1..t} ∂s(i)/∂s(i-1)          one row per loss step t ≥ k
    term(t, k) = row_t(k) · ∂⁺s(k)/∂θ                                             eq. (29)

At step k all rows with t ≥ k go through the same step, so one product [rows, G·H] × [G·H, H] serves them all. With the
cell's partials D (diagonals), for each row:

    δz_h(k)  = Σ_s row[s] ∘ D.zh_k[s]                                      [G, H]
    row(k-1) = Σ_s row[s] ∘ D.direct_k[s] + [h] W_hhᵀ δz_h(k)
    term for W_hh = δz_h(k) ⊗ h(k-1),  W_ih: δz_x(k) ⊗ x(k),  biases: δz,  W_hr: row[h] ⊗ (h before the projection)

Rank one, so ‖term‖ = ‖δz‖ ‖h(k-1)‖, eq. (30): the map never needs a tensor of T²·H². What a row has lost below `FLOOR` of
the largest ∂L(t)/∂h(t) becomes 0: denormal numbers would slow the products a hundredfold.
"""

from abc import ABC, abstractmethod
from dataclasses import dataclass, field
from typing import NamedTuple

import torch
from torch import Tensor

from bptt.cells import State
from bptt.flow.jacobians.trajectory import Trajectory

FLOOR = {torch.float32: 1e-30, torch.float64: 1e-290}
FLOOR_EVERY = 4  # steps
BLOCK_BYTES = 1 << 20  # of rows that are measured together: fewer, larger operations


@dataclass
class PullbackResult:
    """What is gathered on the way back, by the quantities of the pullback (`Pullback.quantity`).

    Attributes:
        capacity: how many rows there are in the end.
        norms: (quantity, component) → [T, loss steps, S]; component None is the whole term, else the part of the
            gradient that reached s(k) in that component of the state. None: norms are not wanted.
        sums: Σ over the chosen rows; what the pullback turns into gradients.
    """

    capacity: int
    norms: dict[tuple[str, int | None], Tensor] | None
    sums: dict[str, Tensor] = field(default_factory=dict)


class Selection(NamedTuple):
    """Which terms are added up: loss steps and steps in the order of walking; None means all.

    `through` takes only the part that reached s(k) in that component of the state.
    """

    t: int | None = None
    k: int | None = None
    lag: int | None = None
    through: int | None = None

    @property
    def everything(self) -> bool:
        """Whether no term is left out."""
        return self.t is None and self.k is None and self.lag is None

    def coefficients(self, k: int, loss_steps: Tensor) -> Tensor | None:
        """Return whether each row at step k is wanted; None: all are."""
        if self.everything:
            return None
        wanted = torch.ones_like(loss_steps, dtype=torch.bool)
        if self.t is not None:
            wanted &= loss_steps == self.t
        if self.lag is not None:
            wanted &= loss_steps - k == self.lag
        if self.k is not None and self.k != k:
            wanted &= False
        return wanted


class Pullback(ABC):
    """Rows back through one step, and what each leaves at the weights."""

    def __init__(self, trajectory: Trajectory) -> None:
        self.trajectory = trajectory

    @abstractmethod
    def quantity(self, name: str) -> tuple[str, Tensor | None]:
        """Return the quantity whose norm is kept for a parameter, and what multiplies it, [T, S] or None for 1."""

    @abstractmethod
    def back(
        self, k: int, rows: State, which: Tensor | None, through: int | None, result: PullbackResult, out: State
    ) -> None:
        """Gather at step k into `result`, and write the rows at k-1 into `out`.

        rows, out: each component [m, S, ·]; which: bool [m], the rows that are added up (None: all).
        """

    def gather(self, k: int, rows: State, result: PullbackResult, sums: bool) -> None:
        """Gather, for the steps k, k+1, …, the norms, if wanted, and if `sums` the sums over all rows.

        rows: each component [steps, m, S, ·]. Does nothing where `back` gathers them.
        """
        return

    def settle(self, result: PullbackResult, through: int | None) -> None:
        """Bring what was gathered into its final form, after the last step."""
        return

    @abstractmethod
    def gradient(self, name: str, sums: dict[str, Tensor], sample: int | None) -> Tensor:
        """Return Σ of the chosen terms of a parameter, over the samples or for one."""

    @abstractmethod
    def d_x(self, sums: dict[str, Tensor]) -> Tensor:
        """Return Σ of the chosen rows' gradients with respect to x, [T, S, D]."""


def pull_back(
    pullback: Pullback,
    d_outputs: Tensor,
    loss_steps: Tensor,
    selection: Selection = Selection(),  # noqa: B008  # a value without state
    *,
    norms: bool = False,
    apart: bool = True,
) -> PullbackResult:
    """Send all rows back through all steps.

    Args:
        pullback: the linearised steps.
        d_outputs: ∂L(t)/∂h(t), [T, S, H or P], in the order of walking.
        loss_steps: int64 on the CPU, descending: the t that have a row. The others' gradients must be zero.
        selection: the terms that are added up.
        norms: whether the norms of all terms are wanted.
        apart: one row for each t; False adds all rows into one (only sums over all t can be had then).
    """
    rows = _Rows(pullback.trajectory, d_outputs, loss_steps, apart)
    result = PullbackResult(rows.capacity, {} if norms else None)
    first = selection.k or 0
    for k in range(pullback.trajectory.steps - 1, first - 1, -1):
        rows.enter(k)
        if rows.count == 0:
            continue
        complete = rows.complete_block(k, is_last=k == first)
        if complete is not None:
            pullback.gather(k, complete, result, sums=selection.everything)
        which = selection.coefficients(k, loss_steps[: rows.count])
        which = None if which is None else which.to(d_outputs.device)
        before = rows.at(k - 1)
        pullback.back(k, rows.at(k), which, selection.through, result, before)
        if k % FLOOR_EVERY == 0:
            for row in before:
                row.copy_(torch.hardshrink(row, FLOOR[row.dtype]))
    pullback.settle(result, selection.through)
    return result


class _Rows:
    """The rows at the latest steps, in a ring: those of step k are in place k % block, until a block is gathered at once.

    Attributes:
        capacity: how many rows there are in the end.
        count: how many there are at the present step.
    """

    def __init__(self, trajectory: Trajectory, d_outputs: Tensor, loss_steps: Tensor, apart: bool) -> None:
        self.steps, self.d_outputs, self.apart = trajectory.steps, d_outputs, apart
        self.capacity, self.count = len(loss_steps) if apart else min(1, len(loss_steps)), 0
        row_bytes = self.capacity * max(s[0].numel() for s in trajectory.before) * d_outputs.element_size()
        self._block = max(2, min(16, BLOCK_BYTES // max(1, row_bytes)))
        self._ring = tuple(d_outputs.new_zeros(self._block, self.capacity, *s.shape[1:]) for s in trajectory.before)
        self._places = [tuple(r[place] for r in self._ring) for place in range(self._block)]
        self._pending = loss_steps.tolist()[::-1]

    def enter(self, k: int) -> None:
        """Add ∂L(k)/∂h(k), if there is a loss at step k: as a row of its own, or to the only one."""
        if not self._pending or self._pending[-1] != k:
            return
        self._pending.pop()
        if self.apart or self.count == 0:
            self.count += 1
        self._places[k % self._block][0][self.count - 1].add_(self.d_outputs[k])

    def at(self, k: int) -> State:
        """The rows at step k, each component [m, S, ·]."""
        return tuple(r[: self.count] for r in self._places[k % self._block])

    def complete_block(self, k: int, is_last: bool) -> State | None:
        """The rows at the steps k, k+1, … up to the end of a block [steps, m, S, ·]; None before the block is complete."""
        place = k % self._block
        by_step = self._block == 2  # for want of memory
        if place and not by_step and not is_last:
            return None
        stop = place + 1 if by_step else min(self._block, self.steps - k + place)
        return tuple(r[place:stop, : self.count] for r in self._ring)


def only(rows: State, component: int) -> State:
    """Return the rows with zeros in every component of the state but one."""
    return tuple(r if s == component else torch.zeros_like(r) for s, r in enumerate(rows))
