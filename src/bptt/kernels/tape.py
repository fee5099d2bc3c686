"""What a layer keeps of its forward pass for the backward pass: the tape."""

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar

_lean = ContextVar("lean", default=False)


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
