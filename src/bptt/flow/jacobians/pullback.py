"""The terms of eq. (10) (docs/equations.md), walked: every loss step t at once goes back through the steps k.

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
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import NamedTuple

import torch
from torch import Tensor
from torch.utils._pytree import tree_map

from bptt.cells import Partials, PointwiseCell, State
from bptt.flow.jacobians.trajectory import Trajectory

FLOOR = {torch.float32: 1e-30, torch.float64: 1e-290}
FLOOR_EVERY = 4  # steps
BLOCK_BYTES = 1 << 20  # of rows that are measured together: fewer, larger operations
MEASURED = ("all", None)  # norms of all quantities, before they are named
WEIGHT_BYTES = 32 << 20  # of a general cell's immediate derivatives, held at a time


@dataclass
class Shown:
    """What a walk gathers, by the quantities of the pullback (`Pullback.quantity`).

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
    """Which terms a walk adds up: loss steps and steps in the order of walking; None means all.

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
        """0 or 1 for each row at step k; None: all are 1."""
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
        """For a parameter's short name: the quantity whose norm is kept, and what multiplies it, [T, S] or None for 1."""

    @abstractmethod
    def back(self, k: int, rows: State, which: Tensor | None, through: int | None, shown: Shown, out: State) -> None:
        """Gather at step k into `shown`, and write the rows at k-1 into `out`.

        rows, out: each component [m, S, ·]; which: bool [m], the rows that are added up (None: all).
        """

    def gather(self, k: int, rows: State, shown: Shown, sums: bool) -> None:
        """For the steps k, k+1, … the norms, if wanted, and `sums` over all rows; rows: each component [steps, m, S, ·].

        Or `back` has gathered them already.
        """
        return

    def settle(self, shown: Shown, through: int | None) -> None:
        """After the last step: bring what was gathered into its final form."""
        return

    @abstractmethod
    def gradient(self, name: str, sums: dict[str, Tensor], sample: int | None) -> Tensor:
        """Σ of the chosen terms of a parameter, over the samples or for one."""

    @abstractmethod
    def d_x(self, sums: dict[str, Tensor]) -> Tensor:
        """Σ of the chosen rows' gradients with respect to x, [T, S, D]."""


def pullback(trajectory: Trajectory) -> Pullback:
    """The closed form for a pointwise cell, autograd over single steps for any other."""
    return Pointwise(trajectory) if isinstance(trajectory.cell, PointwiseCell) else General(trajectory)


def walk(
    pull: Pullback,
    d_outputs: Tensor,
    loss_steps: Tensor,
    selection: Selection = Selection(),  # noqa: B008  # a value without state
    *,
    norms: bool = False,
    apart: bool = True,
) -> Shown:
    """All rows back through all steps.

    Args:
        pull: the linearised steps.
        d_outputs: ∂L(t)/∂h(t), [T, S, H or P], in the order of walking.
        loss_steps: int64 on the CPU, descending: the t that have a row. The others' gradients must be zero.
        selection: the terms that are added up.
        norms: whether the norms of all terms are wanted.
        apart: one row for each t; False adds all rows into one (only sums over all t can be had then).
    """
    trajectory = pull.trajectory
    capacity = len(loss_steps) if apart else min(1, len(loss_steps))
    shown = Shown(capacity, {} if norms else None)
    row_bytes = capacity * max(s[0].numel() for s in trajectory.before) * d_outputs.element_size()
    block = max(2, min(16, BLOCK_BYTES // max(1, row_bytes)))
    # The rows at step k are in place k % block of the ring, until all of a block are gathered at once.
    ring = tuple(d_outputs.new_zeros(block, capacity, *s.shape[1:]) for s in trajectory.before)
    places = [tuple(r[place] for r in ring) for place in range(block)]
    pending, floor, m = loss_steps.tolist()[::-1], FLOOR[d_outputs.dtype], 0
    first = 0 if selection.k is None else selection.k
    for k in range(trajectory.steps - 1, first - 1, -1):
        place, following = k % block, (k - 1) % block
        if pending and pending[-1] == k:
            pending.pop()
            if apart or m == 0:
                m += 1
            places[place][0][m - 1].add_(d_outputs[k])
        if m == 0:
            continue
        if place == 0 or block == 2 or k == first:  # a ring of 2 is one for want of memory: gather step by step
            stop = place + 1 if block == 2 else min(block, trajectory.steps - k + place)
            pull.gather(k, tuple(r[place:stop, :m] for r in ring), shown, sums=selection.everything)
        which = selection.coefficients(k, loss_steps[:m])
        if which is not None:
            which = which.to(d_outputs.device)
        rows, out = (tuple(r[:m] for r in places[p]) for p in (place, following))
        pull.back(k, rows, which, selection.through, shown, out)
        if k % FLOOR_EVERY == 0:
            for row in out:
                row.copy_(torch.hardshrink(row, floor))
    pull.settle(shown, selection.through)
    return shown


class Pointwise(Pullback):
    """Closed form: all partials at once, before the walk."""

    def __init__(self, trajectory: Trajectory) -> None:
        super().__init__(trajectory)
        cell, weights = trajectory.cell, trajectory.weights
        assert isinstance(cell, PointwiseCell)
        steps, samples = trajectory.x.shape[:2]
        vectors = tuple(weights[name] for name in cell.vectors)
        before = tuple(s.flatten(0, 1) for s in trajectory.before)
        with torch.no_grad():
            zx = cell.net_input(trajectory.x.flatten(0, 1), weights["weight_ih"], weights.get("bias_ih"))
            zh = cell.net_input(before[0], weights["weight_hh"], weights.get("bias_hh"))
            partials = cell.partials(zx, zh, before, *vectors)
            self.unprojected = None
            if "weight_hr" in weights:
                self.unprojected = cell.pointwise(zx, zh, before, *vectors)[0].unflatten(0, (steps, samples))
        self.cell = cell
        # Where one tensor serves both net inputs (a sum), one product does.
        self.joint = all(a is b for a, b in zip(partials.zx, partials.zh, strict=True))
        self.partials = _by_step(partials, steps, samples, trajectory.active)
        self._zh = [d.unbind() for d in self.partials.zh]
        self.w_hh, self.w_hr = weights["weight_hh"], weights.get("weight_hr")

    def quantity(self, name: str) -> tuple[str, Tensor | None]:
        """‖δz‖ and the length of its rank-one partner."""
        net = "zx" if self.joint else "zh"
        match name:
            case "weight_ih":
                return "zx", self._length(self.trajectory.x)
            case "bias_ih":
                return "zx", None
            case "weight_hh":
                return net, self._length(self.trajectory.before[0])
            case "bias_hh":
                return net, None
            case "weight_hr":
                assert self.unprojected is not None
                return "hr", self._length(self.unprojected)
        return name, None

    def back(self, k: int, rows: State, which: Tensor | None, through: int | None, shown: Shown, out: State) -> None:
        """The equations of this module's header."""
        active = self.trajectory.active
        if active is not None:  # what reaches the initial state passes through the padding before it
            rows = tuple(r.masked_fill(~active[k][:, None], 0) for r in rows)
        if which is not None:
            for total, row in zip(self._totals(rows, shown), rows, strict=True):
                torch.sum(row[which], 0, out=total[k])
        raw = rows if self.w_hr is None else (rows[0] @ self.w_hr, *rows[1:])
        net = _through(raw, [d[k] for d in self._zh])
        torch.mm(net.view(-1, net.shape[-2] * net.shape[-1]), self.w_hh, out=out[0].view(-1, out[0].shape[-1]))
        for r, before in enumerate(out):
            if r > 0:
                before.zero_()
            for s, row in enumerate(raw):
                diagonal = self.partials.direct[s][r]
                if diagonal is not None:
                    before.addcmul_(row, diagonal[k])
            if self.trajectory.cut is not None:
                before.masked_fill_(self.trajectory.cut[k][:, None], 0)

    def gradient(self, name: str, sums: dict[str, Tensor], sample: int | None) -> Tensor:
        """Σ_k of outer products: one product for each weight."""
        trajectory, net = self.trajectory, "zx" if self.joint else "zh"
        pairs = {
            "weight_ih": ("zx", trajectory.x),
            "bias_ih": ("zx", None),
            "weight_hh": (net, trajectory.before[0]),
            "bias_hh": (net, None),
            "weight_hr": ("hr", self.unprojected),
        }
        key, partner = pairs.get(name, (name, None))
        if key not in sums:
            return torch.zeros_like(trajectory.weights[name])
        samples = slice(None) if sample is None else slice(sample, sample + 1)
        delta = sums[key][:, samples].flatten(2).flatten(0, 1)
        if partner is None:
            return delta.sum(0)
        return delta.T @ partner[:, samples].flatten(0, 1)

    def d_x(self, sums: dict[str, Tensor]) -> Tensor:
        """W_ihᵀ Σ_t δz_x."""
        if "zx" not in sums:
            return torch.zeros_like(self.trajectory.x)
        return sums["zx"].flatten(2) @ self.trajectory.weights["weight_ih"]

    def _length(self, rows: Tensor) -> Tensor:
        """[T, S]."""
        return torch.linalg.vector_norm(rows, dim=-1)

    def gather(self, k: int, rows: State, shown: Shown, sums: bool) -> None:
        """As the class above says."""
        if shown.norms is not None:
            self._measure(k, rows, shown)
        if sums:
            here = slice(k, k + len(rows[0]))
            active = self.trajectory.active
            for total, row in zip(self._totals(tuple(r[0] for r in rows), shown), rows, strict=True):
                torch.sum(row, 1, out=total[here])
                if active is not None:
                    total[here].masked_fill_(~active[here][..., None], 0)

    def _totals(self, rows: State, shown: Shown) -> State:
        """Where each component's sums over the rows are gathered, [T, S, ·]."""
        steps = self.trajectory.steps
        names = [f"rows {s}" for s in range(len(rows))]
        for name, row in zip(names, rows, strict=True):
            if name not in shown.sums:
                shown.sums[name] = row.new_zeros(steps, *row.shape[1:])
        return tuple(shown.sums[name] for name in names)

    def _measure(self, k: int, rows: State, shown: Shown) -> None:
        """‖Σ_s row[s] ∘ D[s]‖² = Σ_{s,r} (row[s] row[r]) · Σ_g D[s] D[r]: all norms from one small product.

        In float64, since the square of a small float32 is 0.
        """
        assert shown.norms is not None
        steps = slice(k, k + len(rows[0]))
        raw = rows if self.w_hr is None else (rows[0] @ self.w_hr, *rows[1:])
        wide = [r.double() for r in raw]
        pairs = [wide[s] * wide[r] for s, r in self._pairs]
        features = torch.cat(pairs, dim=-1) if len(pairs) > 1 else pairs[0]  # steps,m,S,pairs·H
        lengths = (
            torch.matmul(features.transpose(1, 2), self._squares[steps]).clamp_(min=0).sqrt_()
        )  # steps,S,m,columns
        samples, m = lengths.shape[1:3]
        whole = shown.norms.get(MEASURED)
        if whole is None:
            shape = (self.trajectory.steps, samples, shown.capacity, lengths.shape[3])
            whole = shown.norms[MEASURED] = self.trajectory.x.new_zeros(shape)
        whole[steps, :, :m] = lengths
        if self.w_hr is not None:
            length = torch.linalg.vector_norm(rows[0], dim=-1, dtype=torch.float64)
            if self.trajectory.active is not None:
                length = length.masked_fill(~self.trajectory.active[steps, None], 0)
            for component in (None, 0):
                if ("hr", component) not in shown.norms:
                    unnamed = self.trajectory.x.new_zeros(self.trajectory.steps, shown.capacity, samples)
                    shown.norms["hr", component] = unnamed
                shown.norms["hr", component][steps, :m] = length

    def settle(self, shown: Shown, through: int | None) -> None:
        """Name the norms; and, what a row leaves at a step being linear in it, take the sums of the rows through at once."""
        if shown.norms is not None and MEASURED in shown.norms:
            whole = shown.norms.pop(MEASURED)
            for column, key in enumerate(self._columns):
                shown.norms[key] = whole[..., column].transpose(1, 2)
        if not shown.sums:
            return
        rows = tuple(shown.sums.pop(f"rows {s}") for s in range(len(self.trajectory.before)))
        raw = rows = rows if through is None else _only(rows, through)
        if self.w_hr is not None:
            shown.sums["hr"] = rows[0]
            raw = (rows[0] @ self.w_hr, *rows[1:])
        shown.sums["zx"] = _through(raw, self.partials.zx)
        if not self.joint:
            shown.sums["zh"] = _through(raw, self.partials.zh)
        for v, name in enumerate(self.cell.vectors):
            shown.sums[name] = _through(raw, [p[v].unsqueeze(-2) for p in self.partials.vectors]).squeeze(-2)

    @cached_property
    def _pairs(self) -> list[tuple[int, int]]:
        states = range(len(self.trajectory.before))
        return [(s, r) for s in states for r in states if s <= r]

    @cached_property
    def _columns(self) -> list[tuple[str, int | None]]:
        keys = ["zx", *([] if self.joint else ["zh"]), *self.cell.vectors]
        states = len(self.trajectory.before)
        return [(key, part) for key in keys for part in ([None, *range(states)] if states > 1 else [None])]

    @cached_property
    def _squares(self) -> Tensor:
        """Σ_g D[s] D[r] for each pair (twice where s ≠ r) and column, [T, S, pairs·H, columns], float64."""
        partials = self.partials
        diagonals = {"zx": partials.zx, "zh": partials.zh}
        diagonals |= {n: tuple(p[v].unsqueeze(-2) for p in partials.vectors) for v, n in enumerate(self.cell.vectors)}
        width = self.trajectory.before[-1].shape[-1]
        table = partials.zx[0].new_zeros(
            *self.trajectory.x.shape[:2], len(self._pairs) * width, len(self._columns), dtype=torch.float64
        )
        for column, (key, part) in enumerate(self._columns):
            for pair, (s, r) in enumerate(self._pairs):
                if part is None or (s, r) == (part, part):
                    product = torch.linalg.vecdot(diagonals[key][s].double(), diagonals[key][r].double(), dim=-2)
                    table[:, :, pair * width : (pair + 1) * width, column] = product * (1 if s == r else 2)
        return table


def _through(rows: Sequence[Tensor], diagonals: Sequence[Tensor]) -> Tensor:
    """Σ_s rows[s] ∘ D[s], [..., G, H]."""
    total = rows[0].unsqueeze(-2) * diagonals[0]
    for row, diagonal in zip(rows[1:], diagonals[1:], strict=True):
        total.addcmul_(row.unsqueeze(-2), diagonal)
    return total


def _by_step(partials: Partials, steps: int, samples: int, active: Tensor | None) -> Partials:
    """The partials of [T·S] rows as [T, S, ...], zero in padding."""
    known: dict[int, Tensor] = {}  # one tensor that serves twice stays one

    def shaped(diagonal: Tensor | None) -> Tensor | None:
        if diagonal is None:
            return None
        if id(diagonal) not in known:
            whole = diagonal.unflatten(0, (steps, samples))
            if active is not None:
                whole = whole.masked_fill(~active.view(steps, samples, *[1] * (whole.dim() - 2)), 0)
            known[id(diagonal)] = whole
        return known[id(diagonal)]

    return tree_map(shaped, partials)


class General(Pullback):
    """Any cell: autograd of one step at a time. Its terms have no closed form, so each is made, measured and dropped."""

    def __init__(self, trajectory: Trajectory) -> None:
        super().__init__(trajectory)
        self.names = tuple(trajectory.weights)

    def quantity(self, name: str) -> tuple[str, Tensor | None]:
        """The parameter itself."""
        return name, None

    def back(self, k: int, rows: State, which: Tensor | None, through: int | None, shown: Shown, out: State) -> None:
        """Sample by sample: with a batch of one, the gradient of the weights is that sample's own."""
        samples = [
            self._back(k, s, tuple(r[:, s] for r in rows), which, through, shown) for s in range(rows[0].shape[1])
        ]
        for component, place in zip(zip(*samples, strict=True), out, strict=True):
            torch.stack(component, dim=1, out=place)

    def gradient(self, name: str, sums: dict[str, Tensor], sample: int | None) -> Tensor:
        """Σ over the samples, or of one."""
        if name not in sums:
            return torch.zeros_like(self.trajectory.weights[name])
        return sums[name].sum(0) if sample is None else sums[name][sample]

    def d_x(self, sums: dict[str, Tensor]) -> Tensor:
        """As autograd gave it."""
        return sums["x"] if "x" in sums else torch.zeros_like(self.trajectory.x)

    def _back(self, k: int, sample: int, rows: State, which: Tensor | None, through: int | None, shown: Shown) -> State:
        trajectory, m = self.trajectory, len(rows[0])
        if trajectory.active is not None and not trajectory.active[k, sample]:
            return tuple(torch.zeros_like(r) for r in rows)
        leaf = trajectory.x[k, sample, None].detach().requires_grad_()
        before = tuple(s[k, sample, None].detach().requires_grad_() for s in trajectory.before)
        weights = {name: w.detach().requires_grad_() for name, w in trajectory.weights.items()}
        with torch.enable_grad():
            after = trajectory.cell.step(leaf, before, weights)
        leaves = (leaf, *before, *weights.values())
        n = 1 + len(before)
        chunk = max(1, WEIGHT_BYTES // sum(w.numel() * w.element_size() for w in weights.values()))
        back = []
        for start in range(0, m, chunk):
            piece = slice(start, start + chunk)
            part = tuple(r[piece] for r in rows)
            found = _pull(after, leaves, part)
            back.append([d.squeeze(1) for d in found[1:n]])
            seen = found if through is None else _pull(after, leaves, _only(part, through))
            chosen = None if which is None else which[piece]
            for name, d in zip(("x", *self.names), (seen[0].squeeze(1), *seen[n:]), strict=True):
                self._add(name, k, sample, d if chosen is None else d[chosen], shown)
            if shown.norms is not None:
                self._measure(k, sample, start, after, leaves, part, found, shown)
        state = tuple(torch.cat(component) for component in zip(*back, strict=True))
        if trajectory.cut is not None and trajectory.cut[k, sample]:
            return tuple(torch.zeros_like(s) for s in state)
        return state

    def _add(self, name: str, k: int, sample: int, terms: Tensor, shown: Shown) -> None:
        samples = self.trajectory.x.shape[1]
        if name not in shown.sums:
            lead = (self.trajectory.steps, samples) if name == "x" else (samples,)
            shown.sums[name] = terms.new_zeros(*lead, *terms.shape[1:])
        place = shown.sums[name][k, sample] if name == "x" else shown.sums[name][sample]
        place += terms.sum(0)

    def _measure(
        self,
        k: int,
        sample: int,
        start: int,
        after: State,
        leaves: tuple[Tensor, ...],
        rows: State,
        whole: tuple[Tensor, ...],
        shown: Shown,
    ) -> None:
        assert shown.norms is not None
        shape = (self.trajectory.steps, shown.capacity, self.trajectory.x.shape[1])
        parts: list[tuple[int | None, tuple[Tensor, ...]]] = [(None, whole)]
        if len(rows) > 1:
            parts += [(s, _pull(after, leaves, _only(rows, s))) for s in range(len(rows))]
        for component, found in parts:
            for name, d in zip(self.names, found[1 + len(rows) :], strict=True):
                if (name, component) not in shown.norms:
                    shown.norms[name, component] = self.trajectory.x.new_zeros(shape)
                length = torch.linalg.vector_norm(d.flatten(1), dim=-1, dtype=torch.float64)
                shown.norms[name, component][k, start : start + len(length), sample] = length


def _only(rows: State, component: int) -> State:
    return tuple(r if s == component else torch.zeros_like(r) for s, r in enumerate(rows))


def _pull(after: State, leaves: tuple[Tensor, ...], rows: State) -> tuple[Tensor, ...]:
    """Rows [m, ·] back through one step of one sample: [m, ...] for every leaf."""
    return torch.autograd.grad(
        after,
        leaves,
        [r.unsqueeze(1) for r in rows],
        retain_graph=True,
        allow_unused=True,
        materialize_grads=True,
        is_grads_batched=True,
    )
