"""The forms in which torch.nn's layers take an input and a state, and the way to time first and back.

    input    time first [T, B, D] · batch first [B, T, D] · unbatched [T, D] · a PackedSequence of rows [N, D]
    state    a tensor, or a tuple of one tensor for each component; [layers·directions, B, H or P], without B if unbatched

`Form` tells the four forms of an input apart, `components` and `as_hidden` a state of one tensor from a tuple.
"""

from collections.abc import Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn.utils.rnn import PackedSequence, pad_packed_sequence

from bptt.cells import State

Input = Tensor | PackedSequence
Hidden = Tensor | tuple[Tensor, ...]


class Form(NamedTuple):
    """Which of torch.nn's four forms an input has: time first, batch first, unbatched or packed.

    Its methods take the input itself, or whatever has the same form: the layer's outputs, their gradient, the resets.
    """

    batch_first: bool = False
    unbatched: bool = False
    packed: PackedSequence | None = None

    @staticmethod
    def of(input: Input, batch_first: bool, name: str = "input") -> "Form":
        """Return the form of an input; errors call it `name`. Raises ValueError if it has neither 2 nor 3 axes."""
        if isinstance(input, PackedSequence):
            return Form(packed=input)
        axes = input.dim()
        if axes == 3:
            return _BATCH_FIRST if batch_first else _TIME_FIRST
        if axes != 2:
            raise ValueError(
                f"{name} has {axes} axes, wanted 3 (time, batch, features) or 2 (time, features): "
                "add the missing axis with unsqueeze, or flatten what is too many"
            )
        return _UNBATCHED

    @property
    def batch_sizes(self) -> Tensor | None:
        """The number of rows at each step of a packed sequence, int64 [T] on the CPU; None for a tensor."""
        return None if self.packed is None else self.packed.batch_sizes

    @property
    def lengths(self) -> Tensor | None:
        """The number of steps of each packed sequence in the order of the batch, int64 [B] on the CPU; None for a tensor."""
        if self.packed is None:
            return None
        _, sizes, _, unsorted = self.packed
        sequences = torch.arange(int(sizes[0]), device="cpu")
        lengths = (sizes[:, None] > sequences).sum(0)
        return lengths if unsorted is None else lengths[unsorted.cpu()]

    def time_first(self, input: Input) -> Tensor:
        """Return the input as [T, B, ...], or the rows [N, ...] of a packed sequence in their own order."""
        if isinstance(input, PackedSequence):
            return input.data
        if self.unbatched:
            return input.unsqueeze(1)
        return input.transpose(0, 1) if self.batch_first else input

    def padded(self, input: Input) -> Tensor:
        """Return the input as [T, B, ...] in the order of the batch; a packed sequence is padded with zeros."""
        if not isinstance(input, PackedSequence):
            return self.time_first(input)
        dtype = input.data.dtype
        if dtype == torch.bool:  # which pad_packed_sequence cannot fill
            input = input._replace(data=input.data.to(torch.uint8))
        return pad_packed_sequence(input)[0].to(dtype)

    def reset(self, reset: Input | None) -> Tensor | None:
        """Return the resets, time first. Raises RuntimeError unless they have the form of the input."""
        if reset is None:
            return None
        if isinstance(reset, PackedSequence) != (self.packed is not None):
            raise RuntimeError("reset must have the form of the input: both packed, or both padded tensors")
        return self.time_first(reset)

    def out(self, outputs: Tensor) -> Any:
        """Return outputs, which come as from `time_first`, in the form of the input."""
        if self.packed is not None:
            return PackedSequence(outputs, *self.packed[1:])
        if self.unbatched:
            return outputs.squeeze(1)
        return outputs.transpose(0, 1) if self.batch_first else outputs

    def with_batch(self, component: Tensor) -> Tensor:
        """Return a component of the state as [layers·directions, B, H or P], in the order of the batch."""
        return component.unsqueeze(1) if self.unbatched else component

    def state_in(self, component: Tensor) -> Tensor:
        """Return a component of the state as [layers·directions, B, H or P], in the order of the rows of `time_first`."""
        if self.unbatched:
            return component.unsqueeze(1)
        if self.packed is not None and self.packed.sorted_indices is not None:
            return component.index_select(1, self.packed.sorted_indices)
        return component

    def state_out(self, component: Tensor) -> Tensor:
        """Undo `state_in`."""
        if self.unbatched:
            return component.squeeze(1)
        if self.packed is not None and self.packed.unsorted_indices is not None:
            return component.index_select(1, self.packed.unsorted_indices)
        return component


_TIME_FIRST, _BATCH_FIRST, _UNBATCHED = Form(), Form(batch_first=True), Form(unbatched=True)


class Arguments(NamedTuple):
    """What a recurrent layer was called with, as a forward hook sees it.

    Attributes:
        input: in any of the four forms.
        hx: the components of the initial state; None where none was given.
        reset: in the form of the input, or None.
    """

    input: Any
    hx: State | None
    reset: Any

    @staticmethod
    def of(args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> "Arguments":
        """Read the positional and the keyword arguments of a call `layer(input, hx, reset=...)`."""
        hx = args[1] if len(args) > 1 else kwargs.get("hx")
        return Arguments(args[0] if args else kwargs.get("input"), components(hx), kwargs.get("reset"))


def data_of(input: Input) -> Tensor:
    """Return the tensor that holds the numbers: the input itself, or the rows of a packed sequence."""
    return input.data if isinstance(input, PackedSequence) else input


def components(hx: Any) -> Any:
    """Return the components of a state that a layer takes or returns, a tuple; None for None."""
    return None if hx is None else (hx,) if isinstance(hx, Tensor) else tuple(hx)


def as_hidden(state: State) -> Hidden:
    """Undo `components`: return the state as torch.nn has it, a tensor if there is one component, else the tuple."""
    return state if len(state) > 1 else state[0]
