"""The pullback of any cell, by autograd over single steps."""

from typing import NamedTuple

import torch
from torch import Tensor

from bptt.cells import State
from bptt.flow.jacobians.pullback import Pullback, PullbackResult, only
from bptt.flow.jacobians.trajectory import Trajectory

WEIGHT_BYTES = 32 << 20  # of the immediate derivatives, held at a time


class General(Pullback):
    """Any cell: autograd of one step at a time. Its terms have no closed form, so each is made, measured and dropped."""

    def __init__(self, trajectory: Trajectory) -> None:
        super().__init__(trajectory)
        self.names = tuple(trajectory.weights)

    def quantity(self, name: str) -> tuple[str, Tensor | None]:
        """The parameter itself."""
        return name, None

    def back(
        self, k: int, rows: State, which: Tensor | None, through: int | None, result: PullbackResult, out: State
    ) -> None:
        """Sample by sample: with a batch of one, the gradient of the weights is that sample's own."""
        samples = [
            self._sample_back(k, s, tuple(r[:, s] for r in rows), which, through, result)
            for s in range(rows[0].shape[1])
        ]
        for component, place in zip(zip(*samples, strict=True), out, strict=True):
            torch.stack(component, dim=1, out=place)

    def gradient(self, name: str, sums: dict[str, Tensor], sample: int | None) -> Tensor:
        """Σ over the samples, or of one."""
        if name not in sums:
            return torch.zeros_like(self.trajectory.weights[name])
        return sums[name].sum(0) if sample is None else sums[name][sample]

    def d_x(self, sums: dict[str, Tensor]) -> Tensor:
        """Return ∂L/∂x as autograd found it."""
        return sums["x"] if "x" in sums else torch.zeros_like(self.trajectory.x)

    def _sample_back(
        self, k: int, sample: int, rows: State, which: Tensor | None, through: int | None, result: PullbackResult
    ) -> State:
        """The rows [m, ·] of one sample at the step before k; a few of them at a time."""
        trajectory = self.trajectory
        if trajectory.active is not None and not trajectory.active[k, sample]:
            return tuple(torch.zeros_like(r) for r in rows)
        step, back = _Step(trajectory, k, sample), []
        for start in range(0, len(rows[0]), step.rows_at_a_time):
            piece = slice(start, start + step.rows_at_a_time)
            chosen = None if which is None else which[piece]
            back.append(self._rows_back(step, start, tuple(r[piece] for r in rows), chosen, through, result))
        before = tuple(torch.cat(component) for component in zip(*back, strict=True))
        if trajectory.reset is not None and trajectory.reset[k, sample]:
            return tuple(torch.zeros_like(s) for s in before)
        return before

    def _rows_back(
        self, step: "_Step", start: int, rows: State, which: Tensor | None, through: int | None, result: PullbackResult
    ) -> State:
        """The rows from `start` on, gathered, at the step before."""
        found = step.pull(rows)
        taken = found if through is None else step.pull(only(rows, through))
        self._add(step, taken, which, result)
        if result.norms is not None:
            self._measure(step, start, rows, found, result)
        return found.before

    def _add(self, step: "_Step", found: "_Pulled", which: Tensor | None, result: PullbackResult) -> None:
        """Add the rows `which` (None: all) to the sums."""
        samples = self.trajectory.x.shape[1]
        for name, terms in zip(("x", *self.names), (found.x, *found.weights), strict=True):
            if name not in result.sums:
                lead = (self.trajectory.steps, samples) if name == "x" else (samples,)
                result.sums[name] = terms.new_zeros(*lead, *terms.shape[1:])
            place = result.sums[name][step.k, step.sample] if name == "x" else result.sums[name][step.sample]
            place += (terms if which is None else terms[which]).sum(0)

    def _measure(self, step: "_Step", start: int, rows: State, whole: "_Pulled", result: PullbackResult) -> None:
        """Keep the norms of the terms of the rows from `start` on: of the whole terms, and of each component's part."""
        assert result.norms is not None
        shape = (self.trajectory.steps, result.capacity, self.trajectory.x.shape[1])
        parts: list[tuple[int | None, _Pulled]] = [(None, whole)]
        if len(rows) > 1:
            parts += [(s, step.pull(only(rows, s))) for s in range(len(rows))]
        for component, found in parts:
            for name, d in zip(self.names, found.weights, strict=True):
                if (name, component) not in result.norms:
                    result.norms[name, component] = self.trajectory.x.new_zeros(shape)
                length = torch.linalg.vector_norm(d.flatten(1), dim=-1, dtype=torch.float64)
                result.norms[name, component][step.k, start : start + len(length), step.sample] = length


class _Pulled(NamedTuple):
    """Rows [m, ·] pulled back through one step of one sample: to x [m, D], to the state before, to each weight [m, ...]."""

    x: Tensor
    before: State
    weights: tuple[Tensor, ...]


class _Step:
    """One step of one sample, with its graph."""

    def __init__(self, trajectory: Trajectory, k: int, sample: int) -> None:
        self.k, self.sample = k, sample
        self.x = trajectory.x[k, sample, None].detach().requires_grad_()
        self.before = tuple(s[k, sample, None].detach().requires_grad_() for s in trajectory.before)
        weights = {name: w.detach().requires_grad_() for name, w in trajectory.weights.items()}
        self.weights = tuple(weights.values())
        with torch.enable_grad():
            self.after = trajectory.cell.step(self.x, self.before, weights)

    @property
    def rows_at_a_time(self) -> int:
        """For how many rows the derivatives by the weights fit into `WEIGHT_BYTES`."""
        return max(1, WEIGHT_BYTES // sum(w.numel() * w.element_size() for w in self.weights))

    def pull(self, rows: State) -> _Pulled:
        """Send rows [m, ·] back through the step."""
        x, *rest = torch.autograd.grad(
            self.after,
            (self.x, *self.before, *self.weights),
            [r.unsqueeze(1) for r in rows],
            retain_graph=True,
            allow_unused=True,
            materialize_grads=True,
            is_grads_batched=True,
        )
        n = len(self.before)
        return _Pulled(x.squeeze(1), tuple(d.squeeze(1) for d in rest[:n]), tuple(rest[n:]))
