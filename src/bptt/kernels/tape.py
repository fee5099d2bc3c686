"""What a layer keeps of its forward pass for the backward pass: the tape."""

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any, NamedTuple

from torch import Tensor

from bptt.cells import State

Saved = tuple[Tensor | None, ...]

_lean = ContextVar("lean", default=False)
_seen: ContextVar["list[Tape] | None"] = ContextVar("seen", default=None)


class Tape(NamedTuple):
    """What one layer in one direction has kept of a forward pass.

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
    """Inside, a layer on the CPU keeps only its states; the backward pass computes the gates anew, block by block.

    The gradients are the same up to rounding. Of H units of 4 bytes at one step of one sample remain 4H bytes instead of
    20H (GRU), 8H instead of 24H (LSTM); for the RNN nothing changes. It costs one more product over all steps, as many
    multiplications as a forward pass. Other backends take no notice.
    """
    token = _lean.set(True)
    try:
        yield
    finally:
        _lean.reset(token)


def is_lean() -> bool:
    """Whether this is inside `lean_tape`."""
    return _lean.get()


def show_tapes() -> None:
    """From now on tapes are noted for `take_tapes`."""
    _seen.set([])


def hide_tapes() -> None:
    """From now on they are not."""
    _seen.set(None)


def note(kernel: Any, x: Tensor, state: State, outputs: Tensor, saved: Saved) -> None:
    """Note a tape, without graph, for whoever has called `show_tapes`."""
    seen = _seen.get()
    if seen is not None:
        h = outputs.detach().flatten(0, -2)
        kept = tuple(h if s is outputs else None if s is None else s.detach() for s in saved)
        start = tuple(s.detach().flatten(0, -2) for s in state)
        seen.append(Tape(kernel, x.detach().flatten(0, -2), start, h, kept))


def take_tapes() -> list[Tape]:
    """The tapes since the last time, in the order in which the layers ran."""
    seen = _seen.get() or []
    taken = list(seen)
    seen.clear()
    return taken
