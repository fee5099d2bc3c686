"""The tape: what a layer keeps of its forward pass for the backward pass, and who may look at it."""

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any, NamedTuple

from torch import Tensor

from bptt.cells import State

Saved = tuple[Tensor | None, ...]

_lean = ContextVar("lean", default=False)
_recorded: ContextVar["list[Tape] | None"] = ContextVar("recorded", default=None)


class Tape(NamedTuple):
    """What one layer in one direction keeps of a forward pass.

    Attributes:
        kernel: the kernel that ran.
        x: rows [N, D].
        state: the initial state, [B, ·] each.
        outputs: [N, H or P].
        saved: what that kernel's backward needs.
    """

    kernel: Any
    x: Tensor
    state: State
    outputs: Tensor
    saved: Saved


@contextmanager
def lean_tape() -> Iterator[None]:
    """Inside, a layer on the CPU keeps only its states, and the backward pass recomputes the gates, block by block.

    The gradients are equal up to rounding. In float32, a step of one sample then takes 4H bytes instead of 20H (GRU), 8H
    instead of 24H (LSTM); for the RNN nothing changes. It costs one more product over all steps, as many multiplications as
    a forward pass. Other backends ignore it.
    """
    token = _lean.set(True)
    try:
        yield
    finally:
        _lean.reset(token)


def is_lean() -> bool:
    """Whether the call is inside `lean_tape`."""
    return _lean.get()


def show_tapes() -> None:
    """Start to record tapes for `take_tapes`."""
    _recorded.set([])


def hide_tapes() -> None:
    """Stop recording tapes, and drop those recorded."""
    _recorded.set(None)


def note(kernel: Any, x: Tensor, state: State, outputs: Tensor, saved: Saved) -> None:
    """Record a tape, without graph, if `show_tapes` was called."""
    recorded = _recorded.get()
    if recorded is not None:
        h = outputs.detach().flatten(0, -2)
        kept = tuple(h if s is outputs else None if s is None else s.detach() for s in saved)
        start = tuple(s.detach().flatten(0, -2) for s in state)
        recorded.append(Tape(kernel, x.detach().flatten(0, -2), start, h, kept))


def take_tapes() -> list[Tape]:
    """Return the tapes recorded since the last call, in the order in which the layers ran."""
    recorded = _recorded.get() or []
    taken = list(recorded)
    recorded.clear()
    return taken
