"""The forms in which torch.nn's layers take an input, and the way to the one form that the kernels take, and back."""

from typing import Any, NamedTuple

from torch import Tensor
from torch.nn.utils.rnn import PackedSequence

Input = Tensor | PackedSequence
Hidden = Tensor | tuple[Tensor, ...]


class Form(NamedTuple):
    """Which of torch.nn's four forms the input has: time first, batch first, unbatched or packed."""

    batch_first: bool = False
    unbatched: bool = False
    packed: PackedSequence | None = None

    @staticmethod
    def of(input: Input, batch_first: bool) -> "Form":
        """Find the form of an input. Raises ValueError if it has neither 2 nor 3 axes."""
        if isinstance(input, PackedSequence):
            return Form(packed=input)
        axes = input.dim()
        if axes == 3:
            return _BATCH_FIRST if batch_first else _TIME_FIRST
        if axes != 2:
            raise ValueError(
                f"input has {axes} axes, wanted 3 (time, batch, features) or 2 (time, features): "
                "add the missing axis with unsqueeze, or flatten what is too many"
            )
        return _UNBATCHED

    @property
    def batch_sizes(self) -> Tensor | None:
        """How many rows each step of a packed sequence has."""
        return None if self.packed is None else self.packed.batch_sizes

    def time_first(self, input: Input) -> Tensor:
        """The input as [T, B, D], or the rows [N, D] of a packed sequence."""
        if isinstance(input, PackedSequence):
            return input.data
        if self.unbatched:
            return input.unsqueeze(1)
        return input.transpose(0, 1) if self.batch_first else input

    def reset(self, reset: Input | None) -> Tensor | None:
        """The resets, time first. Raises RuntimeError unless they have the form of the input."""
        if reset is None:
            return None
        if isinstance(reset, PackedSequence) != (self.packed is not None):
            raise RuntimeError("reset must have the form of the input: both packed, or both padded tensors")
        return self.time_first(reset)

    def out(self, outputs: Tensor) -> Any:
        """The outputs in the form of the input."""
        if self.packed is not None:
            return PackedSequence(outputs, *self.packed[1:])
        if self.unbatched:
            return outputs.squeeze(1)
        return outputs.transpose(0, 1) if self.batch_first else outputs

    def state_in(self, component: Tensor) -> Tensor:
        """A given state as [layers·directions, B, H], its sequences in the order of a packed input."""
        if self.unbatched:
            return component.unsqueeze(1)
        if self.packed is not None and self.packed.sorted_indices is not None:
            return component.index_select(1, self.packed.sorted_indices)
        return component

    def state_out(self, component: Tensor) -> Tensor:
        """The way back of `state_in`."""
        if self.unbatched:
            return component.squeeze(1)
        if self.packed is not None and self.packed.unsorted_indices is not None:
            return component.index_select(1, self.packed.unsorted_indices)
        return component


_TIME_FIRST, _BATCH_FIRST, _UNBATCHED = Form(), Form(batch_first=True), Form(unbatched=True)
