"""The gradient's way back through one layer in one direction, from the states that the forward pass has left.

Given the state before each row (a shift of the outputs), the net inputs of all steps are two products without a loop, and
so are the diagonals D of the step's derivative. What remains is linear in δ, eq. (20) (docs/equations.md):

    δ_k       = external_k + ∂L/∂h(k) through step k+1          [B, H or P], and one [B, H] for each further component
    d_zh_k    = Σ_s δ_k[s] ∘ D.zh_k[s]                          [B, G, H]
    δ_{k-1}[r] ← Σ_s δ_k[s] ∘ D.direct_k[s][r] + [r is h] W_hhᵀ d_zh_k
    step k's contribution to ∂L/∂W_hh = d_zh_kᵀ h_{k-1},  to ∂L/∂W_ih = d_zx_kᵀ x_k,  to the biases Σ_b d_zh_k, Σ_b d_zx_k

The native core does this too, where it fits; the loops here are its specification, and serve everything else.

Rows. Padded [T, B, ·] and packed sequences are the same: N rows, step after step, of which step t has sizes[t].
Memory: the states and δ of every row, [N, H] each; the G-fold wider diagonals exist for a few steps at a time, but an
LSTM's gates for all of them while its δ is computed.
Source: P. J. Werbos 1990; partial derivatives: `bptt.cells`.
"""

from bisect import bisect_right
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import NamedTuple

import torch
from torch import Tensor

from bptt.cells import LSTM, Elman, Partials, PointwiseCell, State, Weights
from bptt.flow.watching import fast_partials as closed
from bptt.kernels import cpu
from bptt.kernels.tape import Saved
from bptt.kernels.walk import Walk

_CHUNK = 1 << 19  # numbers of one [rows, G, H] block: so small that it stays in the cache between its passes


class Joined(NamedTuple):
    """How the rows of several calls follow from each other, where a call begins with the state that another has left.

    Attributes:
        source: as `Way.source`: the row whose state a row begins with; N and up: one of the calls' initial states, in turn.
        ends: the rows that leave a call's final state, of all calls in turn.
        lineages: the rows of each sample from its first step on, [T, samples]; N where it has ended. A sample that nobody
            goes on from ends there; they are ordered by where they begin.
        begins: whether each begins with the first call, bool [samples].
    """

    source: Tensor
    ends: Tensor
    lineages: Tensor
    begins: Tensor

    @staticmethod
    def of(source: Tensor, ends: Tensor, initial: int, first: int) -> "Joined":
        """With the lineages that follow. `initial`: how many initial states all calls have, `first`: those of the first."""
        n = len(source)
        is_last = torch.ones(n + initial, dtype=torch.bool, device="cpu")
        is_last[source] = False
        rows = is_last[:n].nonzero().squeeze(1)
        earlier = torch.cat([source, torch.arange(n, n + initial, device="cpu")])
        back = []
        while bool((rows < n).any()):
            back.append(rows)
            rows = earlier[rows]
        order = rows.argsort(stable=True)
        table = torch.stack(back)[:, order]
        place = (
            (table < n).sum(0) - 1 - torch.arange(len(table), device="cpu").unsqueeze(1)
        )  # the last step comes first in `table`
        lineages = torch.where(place >= 0, table.gather(0, place.clamp_min(0)), n)
        return Joined(source, ends, lineages, rows[order] < n + first)


@dataclass(frozen=True)
class Way:
    """The rows of a batch in the order in which one direction visits them.

    Attributes:
        sizes: rows of each step, in order of time; within a call they never grow.
        reverse: from the last step to the first.
        cut: bool [N]: rows whose state is zeroed before they are computed (already shifted for the direction), or None.
        calls: the steps at which a call begins.
        joined: how several calls hand their state on; None for one call.
    """

    sizes: tuple[int, ...]
    reverse: bool
    cut: Tensor | None = None
    calls: tuple[int, ...] = (0,)
    joined: Joined | None = None

    @staticmethod
    def over(sizes: tuple[int, ...], reverse: bool, reset: Tensor | None) -> "Way":
        """The way over rows with `reset` (bool [N], by time): walking back, what starts at t+1 must not reach t."""
        way = Way(sizes, reverse)
        if reset is None or not reverse:
            return replace(way, cut=reset)
        pool = torch.cat([reset, reset.new_zeros(sizes[0])])
        return replace(way, cut=pool[way.source.to(reset.device)])

    @property
    def steps(self) -> int:
        """T."""
        return len(self.sizes)

    @property
    def batch(self) -> int:
        """B, the rows of the first step."""
        return self.sizes[0]

    @cached_property
    def widest(self) -> int:
        """The rows of the largest step."""
        return max(self.sizes)

    @cached_property
    def starts(self) -> list[int]:
        """The first row of each step, and N."""
        starts = [0]
        for size in self.sizes:
            starts.append(starts[-1] + size)
        return starts

    @cached_property
    def source(self) -> Tensor:
        """Where the state before each row lies in [outputs; initial state]: int64 [N]."""
        if self.joined is not None:
            return self.joined.source
        sizes, starts = (torch.tensor(n, device="cpu") for n in (self.sizes, self.starts))
        step = torch.repeat_interleave(torch.arange(self.steps, device="cpu"), sizes)
        row = torch.arange(self.starts[-1], device="cpu") - starts[step]
        initial = self.starts[-1] + row
        if not self.reverse:
            return torch.where(step > 0, starts[(step - 1).clamp_min(0)] + row, initial)
        later = (step + 1).clamp_max(self.steps - 1)
        follows = (step + 1 < self.steps) & (row < sizes[later])
        return torch.where(follows, starts[later] + row, initial)

    @cached_property
    def ends(self) -> Tensor:
        """The rows that leave a final state: int64 [B], of joined calls all of theirs in turn."""
        if self.joined is not None:
            return self.joined.ends
        samples = torch.arange(self.batch, device="cpu")
        if self.reverse:
            return samples
        lengths = torch.searchsorted(
            -torch.tensor(self.sizes, device="cpu"), -samples
        )  # how many steps have more rows than that
        return torch.tensor(self.starts, device="cpu")[lengths - 1] + samples

    @property
    def longest(self) -> int:
        """The steps of the longest sample: T; perhaps fewer of joined calls, of which two may go on from one."""
        return self.steps if self.joined is None else len(self.joined.lineages)

    def before(self, outputs: Tensor, start: Tensor) -> Tensor:
        """The state before each row [N, ·], from the state after each row and the initial one [B, ·]."""
        if self.joined is None and self.sizes[0] == self.sizes[-1]:
            B = self.batch
            found = torch.cat([outputs[B:], start] if self.reverse else [start, outputs[: len(outputs) - B]])
        else:
            found = torch.cat([outputs, start])[self.source.to(outputs.device)]
        return found if self.cut is None else found.masked_fill_(self.cut.unsqueeze(-1), 0)

    def walk(self) -> Walk:
        """The same for a kernel."""
        even = self.batch == self.sizes[-1]
        offsets = None if even else torch.tensor(self.starts, dtype=torch.int64, device="cpu")
        return Walk(self.steps, self.batch, offsets, self.reverse, self.cut)

    def before_some(self, outputs: Tensor, start: Tensor, rows: Tensor) -> Tensor:
        """The same of a few rows, without the cost of all."""
        source, n = self.source[rows.cpu()].to(outputs.device), len(outputs)
        initial = (source >= n).unsqueeze(-1)
        found = torch.where(initial, start[(source - n).clamp_min(0)], outputs[source.clamp_max(n - 1)])
        return found if self.cut is None else found.masked_fill_(self.cut[rows].unsqueeze(-1), 0)

    def order(self) -> range:
        """The steps in the order of walking."""
        return range(self.steps - 1, -1, -1) if self.reverse else range(self.steps)

    def chunks(self, rows: int) -> Iterator[range]:
        """Steps in the order of the gradient, against the walk, in groups of at most `rows` rows (at least one step)."""
        n = max(1, rows // max(1, self.widest))
        order = self.order()[::-1]
        for i in range(0, self.steps, n):
            yield order[i : i + n]

    def span(self, steps: range) -> slice:
        """The rows of neighbouring steps."""
        low, high = min(steps[0], steps[-1]), max(steps[0], steps[-1])
        return slice(self.starts[low], self.starts[high + 1])


@dataclass(eq=False)
class Trace:
    """One layer in one direction, over one call, or over several that hand their state on (see `bptt.flow.watching.path`).

    Attributes:
        cell, weights: what it computes; the weights are copies, so that a later update of them changes nothing here.
        x: [N, D].
        outputs: h after each row, as the model put it out, [N, H or P].
        start: the initial state, [B, ·] each; of joined calls all of theirs in turn.
        tape: where the native core has run the layer anew, what it kept of it for the way back, until `run` has used it.
        states: the state after each row, [N, ·] each, filled by `run`.
        external: gradient that arrives at the outputs from outside this layer, [N, H or P].
        d_final: gradient that arrives at the final state, in the order of `Way.ends`, [B, ·] each.
        delta: ∂L/∂state of each row, [N, ·] each, filled by `run`.
        d_start: ∂L/∂initial state, [B, ·] each, filled by `run`.
        norms: ‖δ_k‖ for each component of the state, and ‖external_k‖, [T] in order of time, filled by `run`.
        samples: for each call, the user's number of each row of the first step; None if they are in the user's order.
    """

    cell: PointwiseCell
    weights: Weights
    way: Way
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

    @cached_property
    def before(self) -> State:
        """The state before each row, [N, ·] each."""
        return tuple(self.way.before(s, first) for s, first in zip(self.states, self.start, strict=True))

    @property
    def width(self) -> int:
        """G·H."""
        return self.weights["weight_hh"].shape[0]

    def inputs(self, rows: slice | Tensor) -> tuple[Tensor, Tensor, State]:
        """zx, zh [n, G, H] and the state before, of some rows."""
        if isinstance(rows, slice):
            before = tuple(s[rows] for s in self.before)
        else:
            pairs = zip(self.states, self.start, strict=True)
            before = tuple(self.way.before_some(s, first, rows) for s, first in pairs)
        zx = self.cell.net_input(self.x[rows], self.weights["weight_ih"], self.weights.get("bias_ih"))
        zh = self.cell.net_input(before[0], self.weights["weight_hh"], self.weights.get("bias_hh"))
        return zx, zh, before

    def sample(self, step: int, row: int) -> int:
        """The user's number of a step's row."""
        numbers = self.samples[bisect_right(self.way.calls, step) - 1]
        return row if numbers is None else int(numbers[row])

    def vectors(self) -> State:
        """The cell's per-unit parameters."""
        return tuple(self.weights[name] for name in self.cell.vectors)

    def partials(self, rows: slice | Tensor) -> Partials:
        """D of some rows."""
        if type(self.cell) is Elman:
            return closed.elman(self.cell, self.states[0][rows])
        return closed.partials(self.cell, *self.inputs(rows), self.vectors())

    def recomputed(self, rows: slice | Tensor) -> Tensor:
        """The outputs of some rows, one step from the state before them: what the model must have put out."""
        h = self.cell.pointwise(*self.inputs(rows), *self.vectors())[0]
        return h @ self.weights["weight_hr"].T if "weight_hr" in self.weights else h

    def run(self, x_wanted: bool) -> Tensor | None:
        """The recursion of this module's header; the gradient of x [N, D] if wanted."""
        d_x = (
            self._run_natively(x_wanted) if cpu.serves(self.cell, self.x, self.weights) else self._run_plainly(x_wanted)
        )
        seen = (*self.delta, self.external)
        self.norms = {
            name: self.norm_by_step(rows) for name, rows in zip((*self.cell.states, "external"), seen, strict=True)
        }
        return d_x

    def _run_natively(self, x_wanted: bool) -> Tensor | None:
        cell, walk, x, start, weights = self.cell, self.way.walk(), self.x, self.start, self.weights
        tape = self.tape or cpu.replay(cell, walk, x, start, weights, self.outputs)
        self.tape = None  # wide; what is asked for later is computed anew
        found = cpu.sensitivity(cell, walk, x, start, weights, tape, self.external, self.d_final, x_wanted)
        self.states, self.delta, self.d_start, d_x = found
        return d_x

    def _run_plainly(self, x_wanted: bool) -> Tensor | None:
        way, w_ih = self.way, self.weights["weight_ih"]
        gates = self._find_states()
        self.delta = tuple(torch.empty_like(s) for s in self.states)
        carry = tuple(d.clone() for d in self.d_final)
        d_x = torch.empty_like(self.x) if x_wanted else None
        for steps in way.chunks(_CHUNK // self.width):
            rows = way.span(steps)
            if gates is not None:
                step = closed.lstm(gates[rows], self.states[1][rows], self.before[1][rows])
                d_zx = self._walk_back_lstm(steps, rows, step, carry)
            else:
                partials = self.partials(rows)
                d_zh = self._walk_back(steps, rows, partials, carry)
                d_zx = d_zh if d_x is None else self._through_zx(rows, partials, d_zh)
            if d_x is not None:
                torch.mm(d_zx.flatten(1), w_ih, out=d_x[rows])
        self.d_start = carry
        return d_x

    def _find_states(self) -> Tensor | None:
        """Fill in the components of the state that the layer does not put out; the gates [N, 4, H] of an LSTM."""
        h = self.way.before(self.outputs, self.start[0])
        if len(self.start) == 1:
            self.states = (self.outputs,)
        elif type(self.cell) is LSTM:
            c, gates = _cell_states(self.weights, self.way, self.x, h, self.start[1])
            self.states = (self.outputs, c)
            return gates
        else:
            self.states = _run_forward(self.cell, self.weights, self.way, self.x, self.start)
        return None

    def norm_by_step(self, rows: Tensor) -> Tensor:
        """Norm over each step's rows [T]; summed in float64 where float32 would underflow or overflow: that is slower."""
        steps = by_step(rows, self.way.sizes).flatten(1)
        norms = torch.linalg.vector_norm(steps, dim=1)
        if rows.dtype == torch.float64 or bool(((norms > 1e-15) & (norms < 1e15)).all()):
            return norms.double()
        return torch.linalg.vector_norm(steps, dim=1, dtype=torch.float64)

    def _walk_back_lstm(self, steps: range, rows: slice, step: closed.LstmStep, carry: State) -> Tensor:
        """As `_walk_back`, with one gradient of c: δc + q ∘ δh; two elementwise products of width H less a step."""
        w_hh, w_hr, way = self.weights["weight_hh"], self.weights.get("weight_hr"), self.way
        d_z = torch.empty_like(step.by)
        flat = d_z.flatten(1)
        for t in steps:
            here = slice(way.starts[t], way.starts[t + 1])
            local = slice(here.start - rows.start, here.stop - rows.start)
            h, c = (d[: way.sizes[t]] for d in carry)
            d_h, d_c = self.delta[0][here], self.delta[1][here]
            torch.add(h, self.external[here], out=d_h)
            d_c.copy_(c)
            raw = d_h if w_hr is None else d_h @ w_hr
            c.addcmul_(raw, step.q[local])
            by, out = step.by[local], d_z[local]
            torch.mul(c.unsqueeze(1), by[:, :3], out=out[:, :3])
            torch.mul(raw, by[:, 3], out=out[:, 3])
            c.mul_(step.f[local])
            torch.mm(flat[local], w_hh, out=h)
            if way.cut is not None:
                for d in (h, c):
                    d.masked_fill_(way.cut[here].unsqueeze(-1), 0)
        return d_z

    def _walk_back(self, steps: range, rows: slice, partials: Partials, carry: State) -> Tensor:
        """d_zh of a chunk [n, G, H]; `carry` goes from the gradient after it to the gradient before it, in place."""
        w_hh, w_hr, way = self.weights["weight_hh"], self.weights.get("weight_hr"), self.way
        d_zh = torch.empty_like(partials.zh[0])
        flat = d_zh.flatten(1)
        for t in steps:
            here = slice(way.starts[t], way.starts[t + 1])
            local = slice(here.start - rows.start, here.stop - rows.start)
            flow = tuple(c[: way.sizes[t]] for c in carry)
            delta = tuple(d[here] for d in self.delta)
            torch.add(flow[0], self.external[here], out=delta[0])
            for kept, d in zip(delta[1:], flow[1:], strict=True):
                kept.copy_(d)
            if w_hr is not None:
                delta = (delta[0] @ w_hr, *delta[1:])
            step = d_zh[local]
            torch.mul(delta[0].unsqueeze(1), partials.zh[0][local], out=step)
            for s in range(1, len(delta)):
                step.addcmul_(delta[s].unsqueeze(1), partials.zh[s][local])
            for r in range(len(delta)):
                _direct(flow[r], r, delta, partials, local)
            flow[0].addmm_(flat[local], w_hh) if _reads(partials, 0) else torch.mm(flat[local], w_hh, out=flow[0])
            if way.cut is not None:
                for d in flow:
                    d.masked_fill_(way.cut[here].unsqueeze(-1), 0)
        return d_zh

    def raw_delta(self, rows: slice | Tensor, delta: State) -> State:
        """δ with respect to h before the projection, where there is one."""
        w_hr = self.weights.get("weight_hr")
        return delta if w_hr is None else (delta[0] @ w_hr, *delta[1:])

    def _through_zx(self, rows: slice, partials: Partials, d_zh: Tensor) -> Tensor:
        if all(a is b for a, b in zip(partials.zx, partials.zh, strict=True)):
            return d_zh
        return through(partials.zx, self.raw_delta(rows, tuple(d[rows] for d in self.delta)))

    def contribution_norms(self, kind: str) -> Tensor:
        """Norm of every step's contribution to a gradient, for each gate [T, G]: "weight_hh", "weight_ih" or "bias"."""
        norms = torch.empty(self.way.steps, self.cell.gates, dtype=torch.float64, device="cpu")
        v = {"weight_hh": self.before[0], "weight_ih": self.x}.get(kind)
        for steps in self.way.chunks(_CHUNK // self.width):
            rows = self.way.span(steps)
            low, high = min(steps[0], steps[-1]), max(steps[0], steps[-1]) + 1
            partials, sizes = self.partials(rows), self.way.sizes[low:high]
            raw = self.raw_delta(rows, tuple(d[rows] for d in self.delta))
            d_z = by_step(through(partials.zh if kind == "weight_hh" else partials.zx, raw), sizes)
            scale = d_z.abs().amax((1, 2, 3)).clamp(1e-300 if d_z.dtype == torch.float64 else 1e-37)
            d_z = d_z / scale[:, None, None, None]  # squares must not underflow
            found = d_z.sum(1).norm(dim=-1) if v is None else _outer_norm(d_z, by_step(v[rows], sizes))
            norms[low:high] = (found.double() * scale.double()[:, None]).cpu()
        return norms

    def contribution(self, name: str, k: int | None = None) -> Tensor:
        """Step k's contribution to the gradient of parameter `name`; of all steps together if k is None.

        Raises IndexError if there is no step k, KeyError if there is no such parameter.
        """
        if name not in self.weights:
            raise KeyError(f"no parameter {name!r}: choose one of {', '.join(self.weights)}")
        if k is not None:
            if not 0 <= k < self.way.steps:
                raise IndexError(f"step {k} of {self.way.steps}: count from 0")
            return self._part(name, slice(self.way.starts[k], self.way.starts[k + 1]), self.delta)
        total = torch.zeros_like(self.weights[name])
        for steps in self.way.chunks(_CHUNK // self.width):
            total += self._part(name, self.way.span(steps), self.delta)
        return total

    def lost(self, name: str, delta: State) -> Tensor:
        """The part of parameter `name`'s gradient that another δ than the trace's own makes, [N, ·] each."""
        total = torch.zeros_like(self.weights[name])
        for steps in self.way.chunks(_CHUNK // self.width):
            total += self._part(name, self.way.span(steps), delta)
        return total

    def _part(self, name: str, rows: slice, delta: State) -> Tensor:
        """d_zᵀ v over the rows, for the weight `name`."""
        part = tuple(d[rows] for d in delta)
        raw = self.raw_delta(rows, part)
        if name == "weight_hr":
            return part[0].T @ self.cell.pointwise(*self.inputs(rows), *self.vectors())[0]
        partials = self.partials(rows)
        if name in self.cell.vectors:
            v = self.cell.vectors.index(name)
            terms = [d * p[v] for d, p in zip(raw, partials.vectors, strict=True)]
            return sum(terms[1:], terms[0]).sum(0)
        d_z = through(partials.zh if name in ("weight_hh", "bias_hh") else partials.zx, raw).flatten(1)
        match name:
            case "weight_hh":
                return d_z.T @ self.before[0][rows]
            case "weight_ih":
                return d_z.T @ self.x[rows]
            case _:
                return d_z.sum(0)


def through(diagonals: tuple[Tensor, ...], delta: State) -> Tensor:
    """Σ_s δ[s] ∘ D[s]  [..., G, H]."""
    total = delta[0].unsqueeze(-2) * diagonals[0]
    for d, diagonal in zip(delta[1:], diagonals[1:], strict=True):
        total = total.addcmul(d.unsqueeze(-2), diagonal)
    return total


def one_step_back(
    delta: Sequence[Tensor], diagonals: Sequence[Tensor], direct: Sequence[Sequence[Tensor | None]], w_hh: Tensor
) -> list[Tensor]:
    """A_tᵀ δ, for δ with respect to the state before a projection."""
    result = []
    for r in range(len(delta)):
        total = through(tuple(diagonals), tuple(delta)).flatten(-2) @ w_hh if r == 0 else torch.zeros_like(delta[r])
        for s, d in enumerate(delta):
            diagonal = direct[s][r]
            if diagonal is not None:
                total = total + d * diagonal
        result.append(total)
    return result


def _reads(partials: Partials, r: int) -> bool:
    return any(row[r] is not None for row in partials.direct)


def _direct(out: Tensor, r: int, delta: State, partials: Partials, local: slice) -> None:
    """Σ_s δ[s] ∘ D.direct[s][r] into `out`, which δ does not share."""
    fresh = True
    for s, d in enumerate(delta):
        diagonal = partials.direct[s][r]
        if diagonal is None:
            continue
        torch.mul(d, diagonal[local], out=out) if fresh else out.addcmul_(d, diagonal[local])
        fresh = False
    if fresh and r:
        out.zero_()


def by_step(rows: Tensor, sizes: tuple[int, ...]) -> Tensor:
    """[n, ...] → [steps, B, ...]; steps of fewer rows are filled up with zeros."""
    widest = max(sizes)
    if widest == min(sizes):
        return rows.unflatten(0, (len(sizes), widest))
    padded = rows.new_zeros(len(sizes), widest, *rows.shape[1:])
    keep = torch.arange(widest, device="cpu")[None] < torch.tensor(sizes, device="cpu")[:, None]
    padded[keep.to(rows.device)] = rows
    return padded


def _outer_norm(d: Tensor, v: Tensor) -> Tensor:
    """‖Σ_b d_b ⊗ v_b‖ for each step and gate [steps, G], from d [steps, B, G, H] and v [steps, B, V].

    ‖Σ_b d_b ⊗ v_b‖² = Σ_{b,b'} ⟨d_b, d_b'⟩ ⟨v_b, v_b'⟩: two Gram matrices, unless the products themselves are cheaper.
    """
    _, B, G, H = d.shape
    V = v.shape[-1]
    if B * (G * H + V) > G * H * V:
        outer = d.flatten(2).mT @ v  # steps, G·H, V
        return outer.unflatten(1, (G, H)).flatten(2).norm(dim=-1)
    by_gate = d.transpose(1, 2)
    return torch.einsum("tgbc,tbc->tg", by_gate @ by_gate.mT, v @ v.mT).clamp_min_(0).sqrt_()


def _cell_states(weights: Weights, way: Way, x: Tensor, h: Tensor, start: Tensor) -> tuple[Tensor, Tensor]:
    """The LSTM's c [N, H] from the state h before each row: c_t = f ∘ c_{t-1} + i ∘ g is elementwise; and its gates."""
    bias = weights["bias_ih"] + weights["bias_hh"] if "bias_ih" in weights else None
    net = _linear(x, weights["weight_ih"], bias).addmm_(h, weights["weight_hh"].T)
    H = start.shape[-1]
    gates = net.unflatten(-1, (4, H))
    c, state = x.new_empty(len(x), H), start
    for steps in list(way.chunks(_CHUNK // (4 * H)))[::-1]:
        rows = way.span(steps)
        i, f, g, _ = closed.lstm_gates_(gates[rows]).unbind(1)
        new = i * g
        for t in reversed(steps):
            here, n = slice(way.starts[t], way.starts[t + 1]), way.sizes[t]
            local = slice(here.start - rows.start, here.stop - rows.start)
            before = state[:n]
            if way.cut is not None:
                before = before.masked_fill(way.cut[here].unsqueeze(-1), 0)
            after = torch.addcmul(new[local], f[local], before, out=c[here])
            state = after if n == len(state) else torch.cat([after, state[n:]])
    return c, gates


def _run_forward(cell: PointwiseCell, weights: Weights, way: Way, x: Tensor, start: State) -> State:
    """The plain loop, for cells whose further state components nobody has seen."""
    states = tuple(s.new_empty(len(x), s.shape[-1]) for s in start)
    state = tuple(s.clone() for s in start)
    zx = cell.net_input(x, weights["weight_ih"], weights.get("bias_ih"))
    for t in way.order():
        here, n = slice(way.starts[t], way.starts[t + 1]), way.sizes[t]
        now = tuple(s[:n] for s in state)
        if way.cut is not None:
            now = tuple(s.masked_fill(way.cut[here].unsqueeze(-1), 0) for s in now)
        after = cell.advance(zx[here], now, weights)
        for kept, s, running in zip(states, after, state, strict=True):
            kept[here] = s
            running[:n] = s
    return states


def _linear(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    return x @ weight.T if bias is None else torch.addmm(bias, x, weight.T)
