"""What is said to the user: the one kind of error that an input can cause at the command line, and warnings."""

import sys
import warnings

_NOT_THE_USER = {"bptt", "torch"}


class InputError(ValueError):
    """Something the user gave cannot be used. The message says what came, what was wanted and what to do, in one line.

    The command line prints it without a traceback and exits with 2; in a program it is a ValueError like any other.
    """


def warn(text: str) -> None:
    """A UserWarning that points at the line of the user's that led to it, past bptt's own lines and torch's."""
    level, frame = 2, sys._getframe(1)
    while frame.f_back is not None and frame.f_globals.get("__name__", "").partition(".")[0] in _NOT_THE_USER:
        level, frame = level + 1, frame.f_back
    warnings.warn(text, stacklevel=level)
