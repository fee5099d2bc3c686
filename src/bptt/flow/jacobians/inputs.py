"""The input of a layer, checked, and brought from any of torch.nn's forms into one."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn.utils.rnn import PackedSequence

from bptt.cells import Cell, State
from bptt.forms import Form, Hidden, Input, components
from bptt.layers import cell_of
from bptt.parameters import state_shapes

RecurrentLayer = Any  # torch.nn.RNNBase, or bptt's own; `cell_of` checks it


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
        """Return the input of some samples."""
        rows = samples.to(self.x.device)
        return Inputs(
            self.x[:, rows],
            tuple(s[:, rows] for s in self.state),
            None if self.lengths is None else self.lengths[samples],
            None if self.reset is None else self.reset[:, rows],
            tuple(self.samples[i] for i in samples.tolist()),
        )


def read(layer: RecurrentLayer, x: Input, hx: Hidden | None, reset: Input | None) -> Inputs:
    """Check the input of a layer, and bring it into one form. Raises TypeError or ValueError."""
    cell = cell_of(layer)
    if not isinstance(x, Tensor | PackedSequence):
        raise TypeError(f"x is a {type(x).__name__}, wanted a Tensor or a PackedSequence")
    if layer.training and layer.dropout and layer.num_layers > 1:
        raise ValueError(
            f"the layer drops {layer.dropout:.0%} of its outputs at random, so what is shown would belong to another draw "
            "than the training step's: call layer.eval() first"
        )
    form = Form.of(x, layer.batch_first, "x")
    rows = form.padded(x)
    _check_rows(layer, rows)
    for name, parameter in layer.named_parameters():
        if not parameter.isfinite().all():
            raise ValueError(f"the parameter {name} holds NaN or Inf: restore the weights from before the update")
    flags = None if reset is None else _flags(layer, reset, rows)
    state = _initial_state(layer, cell, form, rows, hx)
    return Inputs(rows.detach(), state, form.lengths, flags, tuple(range(rows.shape[1])))


def padded(layer: RecurrentLayer, rows: Input, name: str) -> Tensor:
    """Return [T, B, ...] from any of torch.nn's forms. Raises ValueError, in which it is called `name`."""
    return Form.of(rows, layer.batch_first, name).padded(rows)


def _check_rows(layer: RecurrentLayer, rows: Tensor) -> None:
    weight = next(layer.parameters())
    if rows.dtype != weight.dtype:
        raise ValueError(f"x has dtype {rows.dtype}, the weights have {weight.dtype}: pass x.to({weight.dtype})")
    if rows.shape[-1] != layer.input_size:
        raise ValueError(f"x has {rows.shape[-1]} features, input_size is {layer.input_size}: put the features last")
    if rows.shape[0] == 0 or rows.shape[1] == 0:
        raise ValueError(f"x has {rows.shape[0]} steps of {rows.shape[1]} samples, wanted at least one of each")


def _flags(layer: RecurrentLayer, reset: Input, x: Tensor) -> Tensor:
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


def _initial_state(layer: RecurrentLayer, cell: Cell, form: Form, x: Tensor, hx: Hidden | None) -> State:
    wanted = state_shapes(layer, cell, x.shape[1])
    if hx is None:
        return tuple(x.new_zeros(shape) for shape in wanted)
    if not isinstance(hx, Tensor | tuple | list) or not all(isinstance(s, Tensor) for s in components(hx)):
        raise TypeError(f"hx is a {type(hx).__name__}, wanted {' and '.join(cell.states)} as Tensors, or None")
    state = [form.with_batch(s) for s in components(hx)]
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
