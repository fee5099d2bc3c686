"""The states that a layer went through, for chosen samples, and the step's Jacobian along them.

An independent witness: the Jacobians follow from the cells' equations and partial derivatives, or from autograd over single
steps; nothing of the kernels is used. forward.py makes trajectories.

Order. Everything here is in the order of walking: a reverse direction has its last step first (`Trajectory.in_time` turns
it round). Padding is a step that leaves the state as it is and lets no gradient through.
"""

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from bptt.cells import Cell, PointwiseCell, State, Weights


@dataclass(frozen=True)
class Trajectory:
    """One layer in one direction, over S samples and T steps.

    Attributes:
        cell, weights: the step, and its parameters by short name, without graph.
        suffix: what torch.nn appends to the short names: "_l0", "_l1_reverse".
        x: what the layer was given, [T, S, D].
        before: the state before each step, each component [T, S, H or P]; zero where it was reset.
        active: bool [T, S], False in padding; None where there is none.
        reset: bool [T, S], True where the state was reset before the step; None where it never was.
        reverse: the walk went from the last step to the first.
    """

    cell: Cell
    weights: Weights
    suffix: str
    x: Tensor
    before: State
    active: Tensor | None
    reset: Tensor | None
    reverse: bool

    @property
    def steps(self) -> int:
        """The number of steps, T."""
        return self.x.shape[0]

    @property
    def size(self) -> int:
        """The number of units of all components of the state together, N."""
        return sum(component.shape[-1] for component in self.before)

    def in_time(self, rows: Tensor, axis: int = 0) -> Tensor:
        """Bring a tensor from the order of walking into that of time, or back."""
        return rows.flip(axis) if self.reverse else rows

    def of(self, samples: slice) -> "Trajectory":
        """Return the trajectory of some of the samples."""
        return replace(
            self,
            x=self.x[:, samples],
            before=tuple(s[:, samples] for s in self.before),
            active=None if self.active is None else self.active[:, samples],
            reset=None if self.reset is None else self.reset[:, samples],
        )

    def jacobians(self, steps: slice) -> Tensor:
        """A_t = ∂state_t/∂state_{t-1} of some steps, in the order of walking, of the only sample: [steps, N, N], float64.

        N = Σ sizes of the state's components. From the partials of a pointwise cell, from autograd for any other. Zero
        where the state was reset. Raises ValueError if one is not finite.
        """
        x, *before = (rows[steps, 0].double() for rows in (self.x, *self.before))
        weights = {name: w.double() for name, w in self.weights.items()}
        if isinstance(self.cell, PointwiseCell):
            zx = self.cell.net_input(x, weights["weight_ih"], weights.get("bias_ih"))
            with torch.no_grad():
                factors = self.cell.jacobian(zx, tuple(before), weights)
        else:
            factors = _jacobian_by_autograd(self.cell, x, tuple(before), weights)
        if self.reset is not None:
            factors = factors.masked_fill(self.reset[steps, 0, None, None], 0)
        if not factors.isfinite().all():
            raise ValueError("a step's Jacobian holds NaN or Inf: the forward pass left the range of its numbers")
        return factors.cpu()


def _jacobian_by_autograd(cell: Cell, x: Tensor, before: State, weights: Weights) -> Tensor:
    leaves = tuple(s.detach().requires_grad_() for s in before)
    with torch.enable_grad():
        after = torch.cat(cell.step(x, leaves, weights), dim=-1)  # S,N
    size = after.shape[-1]
    rows = torch.eye(size, dtype=after.dtype, device=after.device).unsqueeze(1).expand(size, *after.shape)
    found = torch.autograd.grad(after, leaves, rows, is_grads_batched=True, allow_unused=True, materialize_grads=True)
    return torch.cat(found, dim=-1).transpose(0, 1)
