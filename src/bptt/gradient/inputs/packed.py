"""Packed batches: sequences of different lengths without padding, split along time into packed pieces.

Rows are in the order of the packed data, longest sequence first, and so are the states in use. A state always has a row for
every sequence: of those that have ended it is the one after their last step.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence

from bptt.torch_private import tree_map


@dataclass(frozen=True)
class PackedSteps:
    """A PackedSequence as strategies handle it: torch's trees take the PackedSequence itself for a tuple of four.

    Attributes:
        data: the rows, step after step.
        batch_sizes: rows of each step.
        rows_alone: whether the user's model returned `data` alone, as a tensor of the rows.
    """

    data: Tensor
    batch_sizes: Tensor
    rows_alone: bool = False

    def __len__(self) -> int:
        return len(self.batch_sizes)

    def time_slice(self, start: int, stop: int) -> "PackedSteps":
        """Return steps [start, stop)."""
        first, sizes = int(self.batch_sizes[:start].sum()), self.batch_sizes[start:stop]
        return PackedSteps(self.data[first : first + int(sizes.sum())], sizes, self.rows_alone)

    def join(self, after: "PackedSteps") -> "PackedSteps":
        """Return these steps followed by those of `after`."""
        sizes = torch.cat([self.batch_sizes, after.batch_sizes])
        return PackedSteps(torch.cat([self.data, after.data]), sizes, self.rows_alone)

    def to(self, device: torch.device | None) -> "PackedSteps":
        """Return the steps with their data on a device; the sizes stay on the CPU, as torch wants them."""
        return PackedSteps(self.data.to(device), self.batch_sizes, self.rows_alone)

    def as_given(self) -> PackedSequence | Tensor:
        """Return what the user's model and loss know it as."""
        return self.data if self.rows_alone else PackedSequence(self.data, self.batch_sizes)


def as_steps(x: PackedSequence, other: Any, name: str) -> PackedSteps:
    """Return `other`, which goes with x, as PackedSteps. Raises ValueError if it is not packed as x is."""
    if not isinstance(other, PackedSequence):
        raise ValueError(f"x is a packed sequence, {name} is a {type(other).__name__}: pack it in the same way")
    if not torch.equal(x.batch_sizes, other.batch_sizes):
        raise ValueError(f"x and {name} are packed sequences of other lengths: pack both with the same lengths")
    if not _equal(x.sorted_indices, other.sorted_indices):
        raise ValueError(
            f"x and {name} were sorted in different ways: pack both with the same lengths and enforce_sorted"
        )
    return PackedSteps(other.data, other.batch_sizes)


def _equal(a: Tensor | None, b: Tensor | None) -> bool:
    return a is b if a is None or b is None else torch.equal(a, b)


class OverPacked(nn.Module):
    """The user's model as strategies call it: it takes and returns PackedSteps and the state of all sequences."""

    def __init__(self, model: Callable[..., tuple[Any, Any]]) -> None:
        super().__init__()
        self.model = model

    def forward(self, x: PackedSteps, state: Any, reset: PackedSteps | None = None) -> tuple[Any, Any]:
        """Run the model; in the state after the steps, rows of sequences that ended before are those of `state`."""
        rows = int(x.batch_sizes[0])
        now = None if state is None else tree_map(lambda s: s.narrow(_batch_axis(s), 0, rows), state)
        flags = {} if reset is None else {"reset": reset.as_given()}
        outputs, after = self.model(x.as_given(), now, **flags)
        if state is not None:
            after = tree_map(lambda new, old: _with_ended(new, old, rows), after, state)
        return tree_map(lambda o: _wrapped(o, x), outputs, is_leaf=_is_packed), after


def _is_packed(value: Any) -> bool:
    return isinstance(value, PackedSequence)


def _wrapped(output: Any, x: PackedSteps) -> Any:
    if isinstance(output, PackedSequence):
        return PackedSteps(output.data, output.batch_sizes)
    of_rows = isinstance(output, Tensor) and output.dim() > 0 and len(output) == len(x.data)
    return PackedSteps(output, x.batch_sizes, rows_alone=True) if of_rows else output


def loss_over_packed(loss: Callable[[Any, Any], Tensor]) -> Callable[[Any, Any], Tensor]:
    """Return the user's loss as strategies call it, with PackedSteps for packed sequences."""

    def as_given(leaf: Any) -> Any:
        return leaf.as_given() if isinstance(leaf, PackedSteps) else leaf

    return lambda outputs, y: loss(tree_map(as_given, outputs), tree_map(as_given, y))


def _with_ended(new: Tensor, old: Tensor, rows: int) -> Tensor:
    axis = _batch_axis(old)
    ended = old.narrow(axis, rows, old.shape[axis] - rows)
    return torch.cat([new, ended], axis) if ended.numel() else new


def permuted(state: Any, indices: Tensor | None) -> Any:
    """Return the state with its rows in the order of `indices`; None for either changes nothing."""
    if state is None or indices is None:
        return state
    return tree_map(lambda s: s.index_select(_batch_axis(s), indices.to(s.device)), state)


def _batch_axis(state: Any) -> int:
    """The axis of the batch in a state, [L, B, ·] as torch.nn's layers have it, or [B, ·]."""
    if not isinstance(state, Tensor) or state.dim() < 2:
        came = f"a tensor of shape {tuple(state.shape)}" if isinstance(state, Tensor) else f"a {type(state).__name__}"
        raise TypeError(
            f"the state of a packed batch holds {came}, wanted tensors [layers, batch, ...] or [batch, size]: a row "
            "for each sequence"
        )
    return 1 if state.dim() > 2 else 0
