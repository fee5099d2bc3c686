"""The forward pass as `jacobians` sees it: the state before every step, for chosen samples, layer by layer.

On the native core where the layer itself runs on it, so that its states are these to the last bit: where tanh is nearly 1,
its derivative takes most of their rounding. Else by the cells' plain equations. This is all that `jacobians` shares with the
kernels: their forward pass. How the gradient travels back is computed elsewhere, without them.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from bptt.cells import Cell, PointwiseCell, State, Weights
from bptt.cells.contract import checked_step
from bptt.cells.probe import refuse_random, uphold
from bptt.flow.jacobians.inputs import Inputs, RecurrentLayer, refuse_nonfinite
from bptt.flow.jacobians.trajectory import Trajectory
from bptt.kernels import cpu
from bptt.kernels.walk import Walk
from bptt.layers import cell_of
from bptt.parameters import directions_of, suffix, weights_of


def run(layer: RecurrentLayer, inputs: Inputs) -> tuple[tuple[tuple[Trajectory, ...], ...], Tensor]:
    """Run the layer: the trajectories [layer][direction], and the outputs of the last layer [T, B, ·].

    Raises ValueError if the input or an output is not finite.
    """
    cell, x, directions = cell_of(layer), inputs.x, directions_of(layer)
    uphold(layer, cell, _weights(layer, cell, 0, 0))
    refuse_nonfinite("x", x, inputs.samples)
    for name, component in zip(cell.states, inputs.state, strict=True):
        refuse_nonfinite(f"the initial state {name}", component, inputs.samples)
    may_use_core = getattr(layer, "backend", None) in ("auto", "cpu")
    trajectories = []
    with torch.no_grad(), torch.autocast(x.device.type, enabled=False):
        for depth in range(layer.num_layers):
            runs = []
            for direction in range(directions):
                one = _OneDirection(
                    cell, _weights(layer, cell, depth, direction), suffix(depth, direction), bool(direction)
                )
                start = tuple(s[depth * directions + direction] for s in inputs.state)
                runs.append(one.run(inputs, x, start, may_use_core and cpu.serves(cell, x, one.weights)))
            x = torch.cat([outputs for _, outputs in runs], dim=-1)
            trajectories.append(tuple(trajectory for trajectory, _ in runs))
            refuse_nonfinite(f"the output of layer {depth}", x, inputs.samples)
    return tuple(trajectories), x


def _weights(layer: RecurrentLayer, cell: Cell, depth: int, direction: int) -> Weights:
    return {name: weight.detach() for name, weight in weights_of(layer, cell, depth, direction).items()}


@dataclass(frozen=True)
class _OneDirection:
    """One layer in one direction."""

    cell: Cell
    weights: Weights
    suffix: str
    reverse: bool

    def run(self, inputs: Inputs, x: Tensor, state: State, natively: bool) -> tuple[Trajectory, Tensor]:
        """The trajectory, and the outputs in order of time, over x [T, B, ·] in order of time."""
        active, reset = _active(inputs, x), inputs.reset
        if reset is not None and self.reverse:  # backwards in time, what starts at t+1 must not reach t
            reset = torch.cat([reset[1:], reset.new_zeros(1, x.shape[1])])
        if self.reverse:
            x, active, reset = x.flip(0), _flipped(active), _flipped(reset)
        states = _states_by_the_core if natively and active is None else _states_by_the_loop
        before, rows = states(self.cell, self.weights, x, state, active, reset)
        if active is not None:
            rows = torch.where(active[..., None], rows, torch.zeros_like(rows))
        # float16 and bfloat16 hold the states, but not what is computed from them.
        work = torch.promote_types(x.dtype, torch.float32)
        wide = {name: w.to(work) for name, w in self.weights.items()}
        before = tuple(b.to(work) for b in before)
        trajectory = Trajectory(self.cell, wide, self.suffix, x.to(work), before, active, reset, self.reverse)
        return trajectory, trajectory.in_time(rows)


def _flipped(rows: Tensor | None) -> Tensor | None:
    return None if rows is None else rows.flip(0)


def _active(inputs: Inputs, x: Tensor) -> Tensor | None:
    """bool [T, B], False in padding; None where there is none."""
    steps = len(x)
    if inputs.lengths is None or int(inputs.lengths.min()) == steps:
        return None
    return (torch.arange(steps, device="cpu")[:, None] < inputs.lengths).to(x.device)


def _states_by_the_loop(
    cell: Cell, weights: Weights, x: Tensor, state: State, active: Tensor | None, reset: Tensor | None
) -> tuple[State, Tensor]:
    """The state before each step [T, S, ·], and the outputs [T, S, ·]."""
    befores, outputs = [], []
    if isinstance(cell, PointwiseCell):
        zx = cell.net_input(x, weights["weight_ih"], weights.get("bias_ih"))  # T,S,G,H
        advance: Callable[[int, State], State] = lambda step, before: cell.advance(zx[step], before, weights)  # noqa: E731
    else:
        refuse_random(cell, x[0], state, weights)
        advance = lambda step, before: checked_step(cell, x[step], before, weights)  # noqa: E731
    for step in range(len(x)):
        if reset is not None:
            state = tuple(torch.where(reset[step][:, None], torch.zeros_like(s), s) for s in state)
        befores.append(state)
        after = advance(step, state)
        outputs.append(after[0])
        if active is not None:
            after = tuple(torch.where(active[step][:, None], a, s) for a, s in zip(after, state, strict=True))
        state = after
    return tuple(torch.stack(component) for component in zip(*befores, strict=True)), torch.stack(outputs)


def _states_by_the_core(
    cell: Cell, weights: Weights, x: Tensor, state: State, active: Tensor | None, reset: Tensor | None
) -> tuple[State, Tensor]:
    """Like `_states_by_the_loop`, from the native core's forward pass, for sequences of one length."""
    assert isinstance(cell, PointwiseCell)
    assert active is None
    steps, batch = x.shape[:2]
    after = cpu.states(
        cell, Walk(steps, batch, reset=None if reset is None else reset.flatten()), x.flatten(0, 1), state, weights
    )
    shaped = [rows.unflatten(0, (steps, batch)) for rows in after]
    before = tuple(torch.cat([first.unsqueeze(0), rows[:-1]]) for first, rows in zip(state, shaped, strict=True))
    if reset is not None:
        before = tuple(b.masked_fill(reset.unsqueeze(-1), 0) for b in before)
    return before, shaped[0]
