"""How the gradient travels back in time: one call, `backward`, and a strategy object that says how."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

from torch import Tensor
from torch.nn.utils.rnn import PackedSequence

from bptt.gradient.base import Loss, Past, Result, Strategy, chunk_of, steps_of
from bptt.gradient.checkpointing.checkpointed import Checkpointed
from bptt.gradient.double_sum import double_sum
from bptt.gradient.exact import Exact
from bptt.gradient.inputs.packed import permuted
from bptt.gradient.online.rtrl import RTRL, SnAp1
from bptt.gradient.truncated import Truncated

__all__ = [
    "RTRL",
    "Checkpointed",
    "Exact",
    "Past",
    "Result",
    "SnAp1",
    "Strategy",
    "Truncated",
    "backward",
    "double_sum",
    "parse_strategy",
]


def backward(
    model: Callable[..., tuple[Any, Any]],
    x: Any,
    y: Any,
    loss: Loss,
    strategy: Strategy = Exact(),  # noqa: B008  # a value without state
    state: Any = None,
    *,
    reset: Tensor | PackedSequence | None = None,
) -> Result:
    """Backpropagation through time: add ∂(Σ_t L(t))/∂θ to `.grad` of the model's parameters.

    Equations: docs/equations.md, eqs. (8), (10) and (20).

    However many pieces a strategy runs, autograd gets the gradient once, whole: each hook of a parameter (`register_hook`,
    `register_post_accumulate_grad_hook`) runs once a call, and DistributedDataParallel averages, as with one `.backward()`.
    After an error, the loss's, the model's or a hook's, `.grad` is as before. A sharded model (FSDP) needs `Exact()`.

    Args:
        model: `(x, state) -> (outputs, state)` with time first, as nn.LSTM; it accepts state None.
        x: inputs [T, B, ...], or a tree (tuple, dict) of tensors that all have T steps along the first axis. A leaf may also
            be an array (memory-mapped, say), or a stream of chunks: a list, an iterable that can be restarted, or a function
            that makes an iterator. Strategies that go by pieces then read a piece at a time. Or a PackedSequence: the model
            is called with packed pieces, and its state needs a row for each sequence, [layers, B, ...] or [B, H].
        y: targets in the same way; packed like x.
        loss: `(outputs, y) -> scalar`: the sum of the losses L(t) of the steps it is given. (A mean over the steps would
            weigh the pieces of a truncated run wrongly; divide by a number fixed beforehand instead.)
        strategy: `Exact()`, `Checkpointed(memory)`, `Truncated(k1, k2)`, `RTRL()` or `SnAp1()`.
        state: where to begin: None for zeros, a state, or the `Result` of the previous call: then the state goes on
            from there, and a truncated window may reach back into that call's steps.
        reset: bool [T, B] (packed if x is), handed to the model as `reset=`: rows whose state is zeroed before that step.

    Returns:
        Result with the loss (summed over all steps), and the state after the last step.

    Raises:
        ValueError: x and y differ in T, the loss is not a scalar with a graph, or the model is sharded (see above).

    >>> import torch
    >>> model = torch.nn.RNN(2, 2)
    >>> x, y = torch.randn(6, 1, 2), torch.randn(6, 1, 2)
    >>> squared = lambda outputs, targets: ((outputs - targets) ** 2).sum()
    >>> first = backward(model, x[:4], y[:4], squared, Truncated(k1=2, k2=3))
    >>> second = backward(model, x[4:], y[4:], squared, Truncated(k1=2, k2=3), state=first)
    >>> second.state.shape
    torch.Size([1, 1, 2])
    """
    past = None
    if isinstance(state, Result):
        state, past = state.state, state.past
    chunk = chunk_of(model, x, y, loss, state, reset, past)
    steps, targets = steps_of(chunk.x), steps_of(chunk.y)
    if steps != targets:
        raise ValueError(
            f"x has {steps} steps, y has {targets}: give a target for each step, or let the loss ignore some"
        )
    if steps == 0:
        raise ValueError("x has 0 steps, wanted at least 1")
    if reset is not None and steps_of(chunk.reset) != steps:
        raise ValueError(f"reset has {steps_of(chunk.reset)} steps, x has {steps}: give a flag for each step")
    if not isinstance(x, PackedSequence):
        return strategy.backward(chunk)
    if isinstance(strategy, RTRL | SnAp1):
        raise ValueError(f"x is a packed sequence: {strategy} goes on from step to step with all rows; pass x padded")
    result = strategy.backward(chunk)
    return replace(result, state=permuted(result.state, x.unsorted_indices))


def parse_strategy(text: str) -> Strategy:
    """Return the strategy that a text names.

    The texts are "exact", "checkpointed:MEMORY[,STORAGE]", "truncated:K1[,K2]", "rtrl" and "snap1".

    Raises ValueError for any other.

    >>> parse_strategy("truncated:20,40")
    Truncated(k1=20, k2=40)
    """
    name, _, numbers = text.partition(":")
    simple: dict[str, type[Strategy]] = {"exact": Exact, "rtrl": RTRL, "snap1": SnAp1}
    if text in simple:
        return simple[text]()
    parts = numbers.split(",")
    if name == "checkpointed" and numbers and len(parts) <= 2:
        return Checkpointed(*(part.strip() for part in parts))
    if name == "truncated" and len(parts) <= 2 and all(part.strip().isdecimal() for part in parts):
        k1, k2 = int(parts[0]), int(parts[1]) if len(parts) == 2 else None
        return Truncated(k1, k2)
    raise ValueError(
        f"strategy {text!r} is unknown: give exact, truncated:K1 or truncated:K1,K2 with whole numbers, "
        "checkpointed:MEMORY, e.g. checkpointed:256MB, rtrl, or snap1"
    )
