"""The terms of the gradient over all pairs (t, k), of one layer in one direction."""

import torch
from torch import Tensor

from bptt.cells import PointwiseCell
from bptt.flow.jacobians.by_autograd import General
from bptt.flow.jacobians.log_svd import few_threads
from bptt.flow.jacobians.pointwise import Pointwise
from bptt.flow.jacobians.pullback import Pullback, Selection, pull_back
from bptt.flow.jacobians.trajectory import Trajectory

WORK_ALONE = 8_000_000  # multiplications a step, below which a team of threads costs more than it saves
GROUP_BYTES = 8 << 20  # of one quantity's rows, [T, samples, G·H]: more samples than fit go in turns


def pullback_of(trajectory: Trajectory) -> Pullback:
    """Return the closed form for a pointwise cell, autograd over single steps for any other."""
    return Pointwise(trajectory) if isinstance(trajectory.cell, PointwiseCell) else General(trajectory)


class LayerTerms:
    """The terms of one layer in one direction. Inside, t and k are in the order of walking."""

    def __init__(self, trajectory: Trajectory, d_outputs: Tensor, keep: bool, x_wanted: bool) -> None:
        """d_outputs: ∂L(t)/∂h(t) [T, S, H or P] in time; keep: the map is wanted; x_wanted: what goes further down."""
        rows = trajectory.in_time(d_outputs).to(trajectory.x.dtype)
        if trajectory.active is not None:
            rows = torch.where(trajectory.active[..., None], rows, torch.zeros_like(rows))
        largest = rows.abs().amax()
        self.scale = torch.where(largest > 0, largest, torch.ones_like(largest))
        self.trajectory, self.d_outputs = trajectory, rows / self.scale
        nonzero = (self.d_outputs != 0).flatten(1).any(1).nonzero().flatten().cpu()
        self.loss_steps = nonzero.flip(0)
        self.compact: dict[tuple[str, int | None], Tensor] = {}
        row = trajectory.before[0][0, 0].numel() * rows.element_size()
        gates = next(iter(trajectory.weights.values())).shape[0] // max(1, trajectory.before[-1].shape[-1])
        size = max(1, GROUP_BYTES // max(1, row * max(1, gates) * max(1, len(self.loss_steps))))
        self.groups = [slice(i, i + size) for i in range(0, rows.shape[1], size)]
        pulls, d_x, norms = [], [], []
        for group in self.groups:
            pull = pullback_of(trajectory.of(group))
            work = rows[0, group].numel() * len(self.loss_steps) * gates * trajectory.before[0].shape[-1]
            with few_threads(work < WORK_ALONE):
                result = pull_back(pull, self.d_outputs[:, group], self.loss_steps, norms=keep, apart=keep)
                if x_wanted:
                    d_x.append(pull.d_x(result.sums))
            norms.append(result.norms or {})
            pulls.append(pull if keep else None)
        self.pulls = pulls
        self.d_x = trajectory.in_time(torch.cat(d_x, dim=1)) * self.scale if x_wanted else None
        for key in norms[0]:
            self.compact[key] = torch.cat([n[key] for n in norms], dim=2) if len(norms) > 1 else norms[0][key]

    def dense(self, short: str, component: int | None) -> Tensor:
        """Return the norms of a parameter's terms, or of a component's part of them, as [S, T, T] in order of time."""
        compact = self._norms(short, component)  # T,rows,S
        steps, _, samples = compact.shape
        whole = compact.new_zeros(samples, steps, steps)
        whole[:, self.loss_steps.to(whole.device)] = compact.permute(2, 1, 0)
        return whole.flip(1, 2) if self.trajectory.reverse else whole

    def by_lag(self, short: str, component: int | None) -> Tensor:
        """Return the sums of the norms over each lag, [S, T]."""
        compact = self._norms(short, component)
        steps, rows, samples = compact.shape
        lag = self.loss_steps[None, :] - torch.arange(steps, device="cpu")[:, None]
        lag = lag.clamp(min=0).to(compact.device)  # where k is after t, all norms are 0
        sums = compact.new_zeros(steps, samples)
        return sums.index_add_(0, lag.flatten(), compact.reshape(steps * rows, samples)).T

    def total(
        self, short: str, t: int | None, k: int | None, lag: int | None, place: int | None, through: int | None
    ) -> Tensor:
        """Return the sum of the terms with this t and k in order of time, this lag and sample (None: any)."""
        last = self.trajectory.steps - 1
        if self.trajectory.reverse:
            t, k = None if t is None else last - t, None if k is None else last - k
        rows = self.loss_steps if t is None else self.loss_steps[self.loss_steps == t]
        apart = lag is not None
        whole = torch.zeros_like(self.trajectory.weights[short])
        for group, pull in zip(self.groups, self.pulls, strict=True):
            assert pull is not None
            sample = None
            if place is not None:
                if not group.start <= place < group.stop:
                    continue
                sample = place - group.start
            d_outputs = self.d_outputs[:, group]
            # Nothing but the lag tells rows apart once those of one t are chosen; so the others may travel as one.
            result = pull_back(pull, d_outputs, rows, Selection(t, k, lag, through), apart=apart or t is not None)
            whole += pull.gradient(short, result.sums, sample)
        return whole * self.scale

    def _norms(self, short: str, component: int | None) -> Tensor:
        pull = self.pulls[0]
        assert pull is not None
        key, _ = pull.quantity(short)
        shape = (self.trajectory.steps, len(self.loss_steps), self.trajectory.x.shape[1])
        found = self.compact.get((key, component))
        if found is None:  # all gradients are zero, or the quantity has no part in this component
            return self.trajectory.x.new_zeros(shape)
        factors = [p.quantity(short)[1] for p in self.pulls if p is not None]
        if factors[0] is None:
            return found * self.scale
        return found * (torch.cat(factors, dim=1) * self.scale).unsqueeze(1)  # type: ignore[arg-type]
