"""The pullback of a pointwise cell in closed form, from its partial derivatives."""

from collections.abc import Sequence
from functools import cached_property

import torch
from torch import Tensor

from bptt.cells import Partials, PointwiseCell, State
from bptt.flow.jacobians.pullback import Pullback, PullbackResult, only
from bptt.flow.jacobians.trajectory import Trajectory
from bptt.torch_private import tree_map

MEASURED = ("all", None)  # norms of all quantities, before they are named


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

    def back(
        self, k: int, rows: State, which: Tensor | None, through: int | None, result: PullbackResult, out: State
    ) -> None:
        """Send the rows from step k back to step k-1, by the equations of pullback.py."""
        active = self.trajectory.active
        if active is not None:  # what reaches the initial state passes through the padding before it
            rows = tuple(r.masked_fill(~active[k][:, None], 0) for r in rows)
        if which is not None:
            for total, row in zip(self._totals(rows, result), rows, strict=True):
                torch.sum(row[which], 0, out=total[k])
        raw = rows if self.w_hr is None else (rows[0] @ self.w_hr, *rows[1:])
        net = _through(raw, [d[k] for d in self._zh])
        torch.mm(net.view(-1, net.shape[-2] * net.shape[-1]), self.w_hh, out=out[0].view(-1, out[0].shape[-1]))
        for before in out[1:]:
            before.zero_()
        self._add_direct(k, raw, out)
        if self.trajectory.reset is not None:
            for before in out:
                before.masked_fill_(self.trajectory.reset[k][:, None], 0)

    def _add_direct(self, k: int, raw: State, out: State) -> None:
        """Add Σ_s row[s] ∘ D.direct_k[s]: what reaches the state before other than through W_hh."""
        for row, diagonals in zip(raw, self.partials.direct, strict=True):
            for before, diagonal in zip(out, diagonals, strict=True):
                if diagonal is not None:
                    before.addcmul_(row, diagonal[k])

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
        """Return the length of each row, [T, S]."""
        return torch.linalg.vector_norm(rows, dim=-1)

    def gather(self, k: int, rows: State, result: PullbackResult, sums: bool) -> None:
        """Gather the norms, if wanted, and if `sums` the sums over all rows, for the steps k, k+1, …"""
        if result.norms is not None:
            self._measure(k, rows, result)
        if sums:
            here = slice(k, k + len(rows[0]))
            active = self.trajectory.active
            for total, row in zip(self._totals(tuple(r[0] for r in rows), result), rows, strict=True):
                torch.sum(row, 1, out=total[here])
                if active is not None:
                    total[here].masked_fill_(~active[here][..., None], 0)

    def _totals(self, rows: State, result: PullbackResult) -> State:
        """Where each component's sums over the rows are gathered, [T, S, ·]."""
        steps = self.trajectory.steps
        names = [f"rows {s}" for s in range(len(rows))]
        for name, row in zip(names, rows, strict=True):
            if name not in result.sums:
                result.sums[name] = row.new_zeros(steps, *row.shape[1:])
        return tuple(result.sums[name] for name in names)

    def _measure(self, k: int, rows: State, result: PullbackResult) -> None:
        """‖Σ_s row[s] ∘ D[s]‖² = Σ_{s,r} (row[s] row[r]) · Σ_g D[s] D[r]: all norms from one small product.

        In float64, since the square of a small float32 is 0.
        """
        assert result.norms is not None
        steps = slice(k, k + len(rows[0]))
        raw = rows if self.w_hr is None else (rows[0] @ self.w_hr, *rows[1:])
        wide = [r.double() for r in raw]
        pairs = [wide[s] * wide[r] for s, r in self._pairs]
        features = torch.cat(pairs, dim=-1) if len(pairs) > 1 else pairs[0]  # steps,m,S,pairs·H
        lengths = (
            torch.matmul(features.transpose(1, 2), self._squares[steps]).clamp_(min=0).sqrt_()
        )  # steps,S,m,columns
        samples, m = lengths.shape[1:3]
        whole = result.norms.get(MEASURED)
        if whole is None:
            shape = (self.trajectory.steps, samples, result.capacity, lengths.shape[3])
            whole = result.norms[MEASURED] = self.trajectory.x.new_zeros(shape)
        whole[steps, :, :m] = lengths
        if self.w_hr is not None:
            length = torch.linalg.vector_norm(rows[0], dim=-1, dtype=torch.float64)
            if self.trajectory.active is not None:
                length = length.masked_fill(~self.trajectory.active[steps, None], 0)
            for component in (None, 0):
                if ("hr", component) not in result.norms:
                    unnamed = self.trajectory.x.new_zeros(self.trajectory.steps, result.capacity, samples)
                    result.norms["hr", component] = unnamed
                result.norms["hr", component][steps, :m] = length

    def settle(self, result: PullbackResult, through: int | None) -> None:
        """Name the norms; and, what a row leaves at a step being linear in it, take the sums of the rows through at once."""
        if result.norms is not None and MEASURED in result.norms:
            whole = result.norms.pop(MEASURED)
            for column, key in enumerate(self._columns):
                result.norms[key] = whole[..., column].transpose(1, 2)
        if not result.sums:
            return
        rows = tuple(result.sums.pop(f"rows {s}") for s in range(len(self.trajectory.before)))
        raw = rows = rows if through is None else only(rows, through)
        if self.w_hr is not None:
            result.sums["hr"] = rows[0]
            raw = (rows[0] @ self.w_hr, *rows[1:])
        result.sums["zx"] = _through(raw, self.partials.zx)
        if not self.joint:
            result.sums["zh"] = _through(raw, self.partials.zh)
        for v, name in enumerate(self.cell.vectors):
            result.sums[name] = _through(raw, [p[v].unsqueeze(-2) for p in self.partials.vectors]).squeeze(-2)

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
