"""Warnings that point at the line of the user's own program that caused them."""

import sys
import warnings
from pathlib import Path

_OWN = str(Path(__file__).parent) + "/"


def warn(text: str, category: type[Warning] = UserWarning) -> None:
    """Warn with the file and line of the nearest caller outside bptt, torch, contextlib and functools.

    torch's modules and optimizers call our hooks, perhaps through wrappers of contextlib and functools: they lie between
    the user's line and ours. Python's filters ("once for each place", by module) then see the user's module. Without such
    a caller, as in a thread of ours, the warning points at the outermost one.
    """
    warnings.warn(text, category, stacklevel=_levels_to_the_user())


def _levels_to_the_user() -> int:
    """Return the stacklevel for a `warnings.warn` in the function that called this one."""
    frame, level = sys._getframe(1), 1
    while frame.f_back is not None and _stands_between(frame.f_code.co_filename):
        frame, level = frame.f_back, level + 1
    return level


def _stands_between(file: str) -> bool:
    return file.startswith((_OWN, *_torch())) or Path(file).stem in ("contextlib", "functools")


def _torch() -> tuple[str, ...]:
    """Return torch's folder, if torch is loaded; this must not load it."""
    torch = sys.modules.get("torch")
    return () if torch is None or torch.__file__ is None else (str(Path(torch.__file__).parent) + "/",)
