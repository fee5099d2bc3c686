"""What goes wrong, as the command line says it: one line on standard error, and an exit code."""

import contextlib
import os
import sys
import warnings
from collections.abc import Iterator

from bptt.terminal import visible, visible_lines


def fail(message: str, code: int = 2) -> int:
    """Print an error in one line, and return its exit code."""
    if os.environ.get("RANK", "0") == "0":  # of several processes the first speaks for all
        print(f"bptt: error: {visible(' '.join(message.split()))}", file=sys.stderr)
    return code


def out_of_memory(error: BaseException) -> str:
    """Return what is said of an error that torch or Python raises where there is no more memory."""
    reason = str(error).split("\n")[0]
    return f"out of memory ({reason}): try a smaller --batch, --hidden, --layers, --chunk or --length"


@contextlib.contextmanager
def warnings_in_words() -> Iterator[None]:
    """Write out the control characters in warnings, which may quote the data, so that a terminal does not obey them."""
    usual = warnings.formatwarning
    warnings.formatwarning = lambda *args, **more: visible_lines(usual(*args, **more))
    try:
        yield
    finally:
        warnings.formatwarning = usual
