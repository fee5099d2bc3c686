"""Sealed files: damage is noticed, and so is a file that a newer bptt wrote.

A sealed file carries `sha256:` and the digest of its own bytes, taken with 64 zeros in the digest's place. Its JSON names
the format and the version of bptt that wrote it. Reading one runs no code from it.
"""

import hashlib
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import bptt
from bptt.errors import InputError
from bptt.files import read_regular
from bptt.typed import Json, Within, convert

FORMAT = 1
UNSEALED = "sha256:" + "0" * 64
_SEAL = re.compile(rb"sha256:[0-9a-f]{64}")


def seal(data: bytes) -> bytearray:
    """Return `data` with its SHA-256 written over the zeros of its first `UNSEALED`."""
    sealed = bytearray(data)
    start = sealed.index(UNSEALED.encode()) + len("sha256:")
    sealed[start : start + 64] = hashlib.sha256(data).hexdigest().encode()
    return sealed


def read_sealed(path: Path, remedy: str, largest: int | None = None) -> bytes:
    """Return the bytes of a sealed file.

    Raises InputError, which names the file and ends with `remedy`, if it cannot be read, has more than `largest` bytes, or
    is not as it was sealed.
    """
    try:
        data = read_regular(path, largest)
    except OSError as error:
        raise InputError(f"cannot read {path}: {error.strerror}; {remedy}") from error
    found = _SEAL.search(data)
    if found:
        blank = bytearray(data)
        blank[found.start() : found.end()] = UNSEALED.encode()
        if found.group() == b"sha256:" + hashlib.sha256(blank).hexdigest().encode():
            return data
    raise InputError(
        f"{path} is damaged: its {len(data)} bytes do not have the checksum they were written with; {remedy}"
    )


@dataclass(frozen=True)
class _Origin:
    """The part of a file that says which bptt wrote it."""

    format: Annotated[int, Within(1)]
    bptt: str


def check_format(path: Path, content: Any) -> None:
    """Raise InputError if a newer bptt wrote the file; Unexpected if the file does not say which one did."""
    said = convert(content, Json, "the file")
    origin = convert({key: said[key] for key in ("format", "bptt") if key in said}, _Origin, "the file")
    if origin.format > FORMAT:
        raise InputError(
            f"{path} was written by bptt {origin.bptt[:40]} (format {str(origin.format)[:20]}), this is bptt "
            f"{bptt.__version__} (format {FORMAT}): install that version or a newer one"
        )
