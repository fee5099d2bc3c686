"""The forward pass as `flow` sees it: the state before every step, for chosen samples, layer by layer.

`flow` runs the cells' plain equations itself, and shares nothing with the code that computes the training gradient but
those equations and their partial derivatives: it is an independent witness.

Order. Everything here is in the order of walking: a reverse direction has its last step first (`Trajectory.in_time` turns
it round). Padding is a step that leaves the state as it is and lets no gradient through.
"""

import operator
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor
from torch.nn.utils.rnn import PackedSequence, pad_packed_sequence

from bptt.cells import Cell, PointwiseCell, State, Weights
from bptt.cells.contract import checked_step
from bptt.cells.probe import refuse_random, uphold
from bptt.kernels import cpu
from bptt.kernels.walk import Walk
from bptt.layers import cell_of

Rows = Tensor | PackedSequence
Hidden = Tensor | tuple[Tensor, ...]
RecurrentLayer = Any  # torch.nn.RNNBase, or bptt's own; `cell_of` checks it


@dataclass(frozen=True)
class Trajectory:
    """One layer in one direction, over S samples and T steps.

    Attributes:
        cell, weights: the step, and its parameters by short name, without graph.
        suffix: what torch.nn appends to the short names: "_l0", "_l1_reverse".
        x: what the layer was given, [T, S, D].
        before: the state before each step, each component [T, S, H or P]; zero where a reset cuts.
        active: bool [T, S], False in padding; None where there is none.
        cut: bool [T, S], True where the state was reset before the step; None where it never was.
        reverse: the walk went from the last step to the first.
    """

    cell: Cell
    weights: Weights
    suffix: str
    x: Tensor
    before: State
    active: Tensor | None
    cut: Tensor | None
    reverse: bool

    @property
    def steps(self) -> int:
        """T."""
        return self.x.shape[0]

    @property
    def size(self) -> int:
        """N, the units of all components of the state together."""
        return sum(component.shape[-1] for component in self.before)

    def in_time(self, rows: Tensor, axis: int = 0) -> Tensor:
        """Bring a tensor from the order of walking into that of time, or back."""
        return rows.flip(axis) if self.reverse else rows

    def of(self, samples: slice) -> "Trajectory":
        """The same for some of the samples."""
        return replace(
            self,
            x=self.x[:, samples],
            before=tuple(s[:, samples] for s in self.before),
            active=None if self.active is None else self.active[:, samples],
            cut=None if self.cut is None else self.cut[:, samples],
        )

    def jacobians(self, steps: slice) -> Tensor:
        """A_t = ∂state_t/∂state_{t-1} of some steps, in the order of walking, of the only sample: [steps, N, N], float64.

        N = Σ sizes of the state's components. From the partials of a pointwise cell, from autograd for any other. Zero
        where a reset cuts. Raises ValueError if one is not finite.
        """
        x, *before = (rows[steps, 0].double() for rows in (self.x, *self.before))
        weights = {name: w.double() for name, w in self.weights.items()}
        if isinstance(self.cell, PointwiseCell):
            zx = self.cell.net_input(x, weights["weight_ih"], weights.get("bias_ih"))
            with torch.no_grad():
                factors = self.cell.jacobian(zx, tuple(before), weights)
        else:
            factors = _jacobian_by_autograd(self.cell, x, tuple(before), weights)
        if self.cut is not None:
            factors = factors.masked_fill(self.cut[steps, 0, None, None], 0)
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


@dataclass(frozen=True)
class Inputs:
    """A layer's input in one form: padded, time first, batched.

    Attributes:
        x: [T, B, D].
        state: the initial state, each component [layers·directions, B, H or P].
        lengths: steps of each row, int64 [B] on the CPU; None where all have T.
        reset: bool [T, B] or None.
        samples: the places of the B rows in the batch that was given.
    """

    x: Tensor
    state: State
    lengths: Tensor | None
    reset: Tensor | None
    samples: tuple[int, ...]

    def of(self, samples: Tensor) -> "Inputs":
        """Some rows of the batch."""
        rows = samples.to(self.x.device)
        return Inputs(
            self.x[:, rows],
            tuple(s[:, rows] for s in self.state),
            None if self.lengths is None else self.lengths[samples],
            None if self.reset is None else self.reset[:, rows],
            tuple(self.samples[i] for i in samples.tolist()),
        )


def read(layer: RecurrentLayer, x: Rows, hx: Hidden | None, reset: Rows | None) -> Inputs:
    """Check the input of a layer, and bring it into one form. Raises TypeError or ValueError."""
    cell = cell_of(layer)
    if not isinstance(x, Tensor | PackedSequence):
        raise TypeError(f"x is a {type(x).__name__}, wanted a Tensor or a PackedSequence")
    if layer.training and layer.dropout and layer.num_layers > 1:
        raise ValueError(
            f"the layer drops {layer.dropout:.0%} of its outputs at random, so what is shown would belong to another draw "
            "than the training step's: call layer.eval() first"
        )
    rows = padded(layer, x, "x")
    weight = next(layer.parameters())
    if rows.dtype != weight.dtype:
        raise ValueError(f"x has dtype {rows.dtype}, the weights have {weight.dtype}: pass x.to({weight.dtype})")
    if rows.shape[-1] != layer.input_size:
        raise ValueError(f"x has {rows.shape[-1]} features, input_size is {layer.input_size}: put the features last")
    if rows.shape[0] == 0 or rows.shape[1] == 0:
        raise ValueError(f"x has {rows.shape[0]} steps of {rows.shape[1]} samples, wanted at least one of each")
    lengths = pad_packed_sequence(x)[1] if isinstance(x, PackedSequence) else None
    for name, parameter in layer.named_parameters():
        if not parameter.isfinite().all():
            raise ValueError(f"the parameter {name} holds NaN or Inf: restore the weights from before the update")
    flags = None if reset is None else _flags(layer, cell, reset, rows)
    state = _initial_state(layer, cell, rows, hx, x)
    return Inputs(rows.detach(), state, lengths, flags, tuple(range(rows.shape[1])))


def padded(layer: RecurrentLayer, rows: Rows, name: str) -> Tensor:
    """[T, B, ...] from any of torch.nn's forms: time or batch first, unbatched, packed."""
    if isinstance(rows, PackedSequence):
        data = rows.data
        whole, _ = pad_packed_sequence(rows._replace(data=data.to(torch.uint8)) if data.dtype == torch.bool else rows)
        return whole.to(data.dtype)
    if rows.dim() not in (2, 3):
        raise ValueError(
            f"{name} has {rows.dim()} axes, wanted 3 (time, batch, features) or 2 (time, features): "
            "add the missing axis with unsqueeze, or flatten what is too many"
        )
    if rows.dim() == 2:
        return rows.unsqueeze(1)
    return rows.transpose(0, 1) if layer.batch_first else rows


def _flags(layer: RecurrentLayer, cell: Cell, reset: Rows, x: Tensor) -> Tensor:
    if getattr(layer, "cell", None) is None:
        raise ValueError("torch.nn's layers know no reset: use bptt's layer of the same name, or leave reset out")
    if not isinstance(reset, Tensor | PackedSequence):
        raise TypeError(f"reset is a {type(reset).__name__}, wanted a Tensor or a PackedSequence of torch.bool")
    packed = isinstance(reset, PackedSequence)
    data = reset.data if isinstance(reset, PackedSequence) else reset
    if data.dtype != torch.bool:
        raise ValueError(f"reset is {data.dtype}, wanted torch.bool: one flag for each step of each sample")
    rows = reset._replace(data=data.unsqueeze(-1)) if isinstance(reset, PackedSequence) else data.unsqueeze(-1)
    flags = padded(layer, rows, "reset").squeeze(-1)
    if flags.shape != x.shape[:2]:
        raise ValueError(
            f"reset has {'packed ' if packed else ''}shape {tuple(flags.shape)} (time first), wanted {tuple(x.shape[:2])}: "
            "one flag for each step of each sample"
        )
    return flags


def _initial_state(layer: RecurrentLayer, cell: Cell, x: Tensor, hx: Hidden | None, given: Rows) -> State:
    rows = layer.num_layers * (2 if layer.bidirectional else 1)
    widths = [layer.proj_size or layer.hidden_size, *[layer.hidden_size] * (len(cell.states) - 1)]
    wanted = [(rows, x.shape[1], width) for width in widths]
    if hx is None:
        return tuple(x.new_zeros(shape) for shape in wanted)
    state = (hx,) if isinstance(hx, Tensor) else hx
    if not isinstance(state, tuple | list) or not all(isinstance(s, Tensor) for s in state):
        raise TypeError(f"hx is a {type(hx).__name__}, wanted {' and '.join(cell.states)} as Tensors, or None")
    if isinstance(given, Tensor) and given.dim() == 2:
        state = tuple(s.unsqueeze(1) for s in state)
    got = [tuple(s.shape) for s in state]
    if got != wanted:
        raise ValueError(
            f"the initial state ({', '.join(cell.states)}) has shapes {got}, wanted {wanted} "
            "(layers·directions, batch, units): pass those or None"
        )
    return tuple(s.detach().to(x.dtype) for s in state)


def refuse_nonfinite(name: str, rows: Tensor, samples: Sequence[int]) -> None:
    """Raise ValueError if one of rows [T, S, ·] is NaN or Inf."""
    if not rows.isfinite().all():
        step, row, _ = (~rows.isfinite()).nonzero()[0].tolist()
        sample = samples[row]
        raise ValueError(
            f"{name} holds NaN or Inf, first at index {step}, sample {sample}: clean the data, or leave that sample out"
        )


def trace(layer: RecurrentLayer, inputs: Inputs) -> tuple[tuple[tuple[Trajectory, ...], ...], Tensor]:
    """Run the layer: the trajectories [layer][direction], and the outputs of the last layer [T, B, ·].

    On the native core where the layer itself runs on it, so that its states are these to the last bit: where tanh is
    nearly 1, its derivative takes most of their rounding. Else by the plain equations.

    Raises ValueError if the input or an output is not finite.
    """
    cell, x = cell_of(layer), inputs.x
    uphold(layer, cell, _weights(layer, cell, "_l0"))
    refuse_nonfinite("x", x, inputs.samples)
    for name, component in zip(cell.states, inputs.state, strict=True):
        refuse_nonfinite(f"the initial state {name}", component, inputs.samples)
    directions = 2 if layer.bidirectional else 1
    trajectories = []
    with torch.no_grad(), torch.autocast(x.device.type, enabled=False):
        for depth in range(layer.num_layers):
            runs = []
            for direction in range(directions):
                suffix = f"_l{depth}{'_reverse' if direction else ''}"
                start = tuple(s[depth * directions + direction] for s in inputs.state)
                weights = _weights(layer, cell, suffix)
                natively = getattr(layer, "backend", None) in ("auto", "cpu") and cpu.serves(cell, x, weights)
                runs.append(_run(cell, weights, suffix, inputs, x, start, bool(direction), natively))
            x = torch.cat([outputs for _, outputs in runs], dim=-1)
            trajectories.append(tuple(trajectory for trajectory, _ in runs))
            refuse_nonfinite(f"the output of layer {depth}", x, inputs.samples)
    return tuple(trajectories), x


def _weights(layer: RecurrentLayer, cell: Cell, suffix: str) -> Weights:
    names = cell.shapes(1, layer.hidden_size, layer.bias, layer.proj_size)
    return {name: getattr(layer, name + suffix).detach() for name in names}


def _run(
    cell: Cell, weights: Weights, suffix: str, inputs: Inputs, x: Tensor, state: State, reverse: bool, natively: bool
) -> tuple[Trajectory, Tensor]:
    steps, batch = x.shape[:2]
    active = None
    if inputs.lengths is not None and int(inputs.lengths.min()) < steps:
        active = (torch.arange(steps, device="cpu")[:, None] < inputs.lengths).to(x.device)
    cut = inputs.reset
    if cut is not None and reverse:  # backwards in time, what starts at t+1 must not reach t
        cut = torch.cat([cut[1:], cut.new_zeros(1, batch)])
    if reverse:
        x, active, cut = x.flip(0), None if active is None else active.flip(0), None if cut is None else cut.flip(0)
    states = _states_by_the_core if natively and active is None else _states_by_the_loop
    before, rows = states(cell, weights, x, state, active, cut)
    if active is not None:
        rows = torch.where(active[..., None], rows, torch.zeros_like(rows))
    # float16 and bfloat16 hold the states, but not what is computed from them.
    work = torch.promote_types(x.dtype, torch.float32)
    wide = {name: w.to(work) for name, w in weights.items()}
    trajectory = Trajectory(cell, wide, suffix, x.to(work), tuple(b.to(work) for b in before), active, cut, reverse)
    return trajectory, trajectory.in_time(rows)


def _states_by_the_loop(
    cell: Cell, weights: Weights, x: Tensor, state: State, active: Tensor | None, cut: Tensor | None
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
        if cut is not None:
            state = tuple(torch.where(cut[step][:, None], torch.zeros_like(s), s) for s in state)
        befores.append(state)
        after = advance(step, state)
        outputs.append(after[0])
        if active is not None:
            after = tuple(torch.where(active[step][:, None], a, s) for a, s in zip(after, state, strict=True))
        state = after
    return tuple(torch.stack(component) for component in zip(*befores, strict=True)), torch.stack(outputs)


def _states_by_the_core(
    cell: Cell, weights: Weights, x: Tensor, state: State, active: Tensor | None, cut: Tensor | None
) -> tuple[State, Tensor]:
    """The same from the native core, for sequences of one length."""
    assert isinstance(cell, PointwiseCell)
    assert active is None
    steps, batch = x.shape[:2]
    after = cpu.states(
        cell, Walk(steps, batch, cut=None if cut is None else cut.flatten()), x.flatten(0, 1), state, weights
    )
    shaped = [rows.unflatten(0, (steps, batch)) for rows in after]
    before = tuple(torch.cat([first.unsqueeze(0), rows[:-1]]) for first, rows in zip(state, shaped, strict=True))
    if cut is not None:
        before = tuple(b.masked_fill(cut.unsqueeze(-1), 0) for b in before)
    return before, shaped[0]


def listed(name: str, values: Sequence[int]) -> list[int]:
    """`values` as a list. Raises TypeError if a single number came."""
    if not isinstance(values, Iterable):
        raise TypeError(f"{name} is {values!r}, wanted a list of whole numbers, such as [{values!r}]")
    return list(values)


def whole(number: object) -> int | None:
    """The whole number that it is, of Python, numpy or torch; None for anything else, and for True and False."""
    if isinstance(number, bool) or (isinstance(number, Tensor) and number.dtype == torch.bool):
        return None
    try:
        return operator.index(number)  # type: ignore[arg-type]
    except TypeError:
        return None


def chosen(samples: Sequence[int] | None, batch: int) -> Tensor:
    """The indices of the samples that are to be shown; all if None. Raises ValueError."""
    if samples is None:
        return torch.arange(batch, device="cpu")
    wanted = []
    for index in listed("samples", samples):
        place = whole(index)
        if place is None or not 0 <= place < batch:
            raise ValueError(f"samples has {index!r}, wanted whole numbers from 0 to {batch - 1}, places in the batch")
        wanted.append(place)
    if not wanted or len(set(wanted)) != len(wanted):
        raise ValueError(f"samples is {wanted}, wanted at least one place in the batch, and each only once")
    return torch.tensor(wanted, device="cpu")
