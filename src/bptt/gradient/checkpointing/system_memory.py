"""The C library's part in a process's memory: how much freed memory it keeps, and how to make it return that."""

import ctypes
import functools
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

_MMAP_THRESHOLD, _TRIM_THRESHOLD = -3, -1  # of glibc's mallopt
_PAGES = 128 << 10  # bytes from which a block gets pages of its own, which go back to the system when it is freed
_MOST = 32 << 20  # the largest such limit that glibc sets itself


WASTE = 2.5  # times the bytes of a tape that comes and goes, where freed blocks are kept: measured, 1.4 to 2.4
TRIM_EVERY = 8  # such tapes; without that the waste grows, to four times their bytes


@contextmanager
def freed_at_once(wanted: bool = True) -> Iterator[None]:
    """Inside, large blocks go back to the system as soon as they are freed.

    glibc raises that limit, up to 32 MB, whenever a larger block is freed, and takes all below it from one heap, where
    aligned blocks of a tape that comes and goes leave holes that the next one does not fit: measured, 235 MB for tensors of
    130 MB. Afterwards the limit is the highest that glibc would have come to. Whoever has set MALLOC_MMAP_THRESHOLD_, or
    another C library, is left alone. The cost is that of fresh pages: measured, 1 to 7 µs for each step's 5 to 10 KB.
    """
    mallopt = _mallopt()
    if mallopt is None or not wanted:
        yield
        return
    mallopt(_MMAP_THRESHOLD, _PAGES)
    try:
        yield
    finally:
        mallopt(_MMAP_THRESHOLD, _MOST)
        mallopt(_TRIM_THRESHOLD, 2 * _MOST)


def trim() -> None:
    """Give the pages of freed blocks back to the system, once."""
    if _mallopt() is not None:
        ctypes.CDLL(None).malloc_trim(0)


def can_waste() -> bool:
    """Whether the C library is glibc, which keeps freed memory."""
    return _mallopt() is not None


@functools.cache
def _mallopt() -> Any:
    """glibc's `mallopt`; None for another C library, or where the user has set its limits."""
    if not sys.platform.startswith("linux") or "MALLOC_MMAP_THRESHOLD_" in os.environ:
        return None
    library = ctypes.CDLL(None)
    return library.mallopt if hasattr(library, "gnu_get_libc_version") else None
