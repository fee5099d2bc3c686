"""What a gradient strategy is given, and what it returns."""

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn.utils.rnn import PackedSequence

from bptt.gradient.inputs.packed import OverPacked, PackedSteps, as_steps, loss_over_packed, permuted
from bptt.gradient.inputs.stream import Stream, is_array, open_streams, to_tensor
from bptt.torch_private import tree_flatten, tree_leaves, tree_map

Loss = Callable[[Any, Any], Tensor]


@dataclass(frozen=True)
class Chunk:
    """A stretch of a sequence, and everything that is needed to run the model over it.

    Attributes:
        model: `(x, state) -> (outputs, state)`; with resets `(x, state, reset=reset)`.
        x, y: inputs and targets, tensors or trees of tensors, time first: every leaf [T, ...]; or both PackedSteps.
        loss: `(outputs, y) -> Σ_t L(t)` over the steps it is given.
        state: the model's state before the first step.
        reset: bool [T, B], or PackedSteps of them, or None.
        past: what the strategy left in the previous call's `Result`; or None.
    """

    model: Callable[..., tuple[Any, Any]]
    x: Any
    y: Any
    loss: Loss
    state: Any = None
    reset: Tensor | PackedSteps | None = None
    past: "Past | tuple[Tensor, ...] | None" = None

    @property
    def steps(self) -> int:
        """T."""
        return steps_of(self.x)

    def forward(self, x: Any, state: Any, reset: Any) -> tuple[Any, Any]:
        """Run the model over the steps of x; return its outputs and the state after them."""
        outputs, after = self.model(x, state) if reset is None else self.model(x, state, reset=reset)
        return outputs, after


@dataclass(frozen=True)
class Past:
    """The inputs of the last steps of a call and the state before them, from which a later call can run them again."""

    x: Any
    state: Any
    reset: Tensor | None = None


class TruncationLoss(NamedTuple):
    """What a truncation loses of the gradient of one block's losses, estimated by a gradient through a longer window.

    Attributes:
        share: ‖longer − truncated‖ / ‖longer‖; 0 where the longer gradient is 0.
        cosine: of the angle between the two gradients; 1 where the longer one is 0.
        lookback: the longer window, in steps.
    """

    share: float
    cosine: float
    lookback: int


@dataclass(frozen=True)
class Result:
    """What `bptt.backward` returns; the gradient itself is in `.grad` of the parameters.

    Attributes:
        loss: L = Σ_t L(t) of this call, a scalar without graph.
        state: the model's state after the last step, without graph: for the next chunk, or to go on predicting.
        past: None, or what a strategy carries from call to call: the steps that `Truncated(k1, k2)` with k2 > k1 looks back
            on, or the influence of `RTRL` and `SnAp1`.
        lost: what `Truncated(k1, k2, measure=True)` estimates to have lost; else None.
    """

    loss: Tensor
    state: Any
    past: Past | tuple[Tensor, ...] | None = None
    lost: TruncationLoss | None = None


class Strategy(ABC):
    """How the gradient travels back in time. A strategy is a value: it holds numbers, never a state."""

    @abstractmethod
    def backward(self, chunk: Chunk) -> Result:
        """Add the gradient of the chunk's loss to `.grad`."""


def chunk_of(
    model: Callable[..., tuple[Any, Any]],
    x: Any,
    y: Any,
    loss: Loss,
    state: Any = None,
    reset: Any = None,
    past: "Past | tuple[Tensor, ...] | None" = None,
) -> Chunk:
    """Return the chunk of a call's arguments, with opened streams, and with PackedSteps for packed sequences."""
    if not isinstance(x, PackedSequence):
        return Chunk(model, open_streams(x), open_streams(y), loss, state, reset, past)
    x_steps, y_steps, flags = (
        None if other is None else as_steps(x, other, name) for other, name in ((x, "x"), (y, "y"), (reset, "reset"))
    )
    begin = permuted(state, x.sorted_indices)
    return Chunk(OverPacked(model), x_steps, y_steps, loss_over_packed(loss), begin, flags)


def steps_of(tree: Any) -> int:
    """Return T, the first size of every leaf. Raises ValueError if the leaves disagree or there is none."""
    sizes = {size for size in map(_steps_of_leaf, tree_leaves(tree)) if size is not None}
    if len(sizes) != 1:
        found = f"sizes {sorted(sizes)}" if sizes else "no tensor with a time axis"
        raise ValueError(f"x or y has {found} along the first axis, wanted one number of steps: put time first")
    return int(sizes.pop())


def _steps_of_leaf(leaf: Any) -> int | None:
    if isinstance(leaf, Stream):
        return leaf.steps
    if isinstance(leaf, PackedSteps):
        return len(leaf)
    has_time = (isinstance(leaf, Tensor) or is_array(leaf)) and len(leaf.shape) > 0
    return int(leaf.shape[0]) if has_time else None


def in_memory(tree: Any) -> Any:
    """Return the tree with tensors in place of arrays and streams, which are read as a whole."""
    outside = any(isinstance(leaf, Stream) or is_array(leaf) for leaf in tree_leaves(tree))
    return time_slice(tree, 0, steps_of(tree)) if outside else tree


def time_slice(tree: Any, start: int, stop: int) -> Any:
    """Return steps [start, stop) of every leaf as tensors; of a file or a stream, those steps are read."""

    def of_leaf(leaf: Any) -> Any:
        if isinstance(leaf, Tensor):
            return leaf[start:stop]
        if isinstance(leaf, Stream):
            return leaf.read(start, stop)
        if isinstance(leaf, PackedSteps):
            return leaf.time_slice(start, stop)
        return to_tensor(leaf[start:stop]) if is_array(leaf) else leaf

    return tree_map(of_leaf, tree)


def first_steps(chunk: Chunk, steps: int) -> Chunk:
    """Return a chunk of the first `steps` steps of `chunk`."""
    x, y, reset = (None if tree is None else time_slice(tree, 0, steps) for tree in (chunk.x, chunk.y, chunk.reset))
    return replace(chunk, x=x, y=y, reset=reset)


def join(first: Any, second: Any) -> Any:
    """Concatenate two trees of one structure along time."""
    left, structure = tree_flatten(first)
    right = tree_leaves(in_memory(second))
    return structure.unflatten([_join_leaves(a, b) for a, b in zip(left, right, strict=True)])


def _join_leaves(first: Any, second: Any) -> Any:
    if isinstance(first, PackedSteps):
        return first.join(second)
    return torch.cat([first, second]) if isinstance(first, Tensor) else first


def detach(tree: Any) -> Any:
    """Return the tree with every tensor detached from its graph."""
    return tree_map(lambda leaf: leaf.detach() if isinstance(leaf, Tensor) else leaf, tree)


def total(value: Tensor) -> Tensor:
    """Return the user's loss as a scalar. Raises ValueError if it is no scalar tensor, or has no graph."""
    value = scalar(value)
    if not value.requires_grad:
        raise ValueError(NO_GRAPH)
    return value


NO_GRAPH = "the loss depends on no parameter that requires a gradient: check requires_grad, torch.no_grad and detach"


def scalar(value: Any) -> Tensor:
    """Return the user's loss as a scalar, shape (). Raises ValueError if it is no tensor of one number."""
    if not isinstance(value, Tensor) or value.numel() != 1:
        came = f"a tensor of shape {tuple(value.shape)}" if isinstance(value, Tensor) else f"a {type(value).__name__}"
        raise ValueError(f"loss returned {came}, wanted a scalar tensor, the sum over the steps: end it with .sum()")
    return value.reshape(())
