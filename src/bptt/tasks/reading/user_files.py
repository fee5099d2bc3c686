"""The user's data files, as bytes, as text in UTF-8 or UTF-16, and as lines. Only regular files are opened.

An encoding is told by the byte order mark at the file's beginning, which is no character of the text; without a mark it is
UTF-8. A line ends with a line feed, or a carriage return and a line feed, and with nothing else: Unicode's other
separators (U+2028, U+0085, form feeds) are characters like any other.
"""

import codecs
import os
import stat
from pathlib import Path
from typing import BinaryIO

from bptt.errors import InputError
from bptt.files import kind_of

_MARKS = (  # UTF-32 first: in little endian its mark begins with that of UTF-16
    (codecs.BOM_UTF8, "utf-8"),
    (codecs.BOM_UTF32_LE, "utf-32-le"),
    (codecs.BOM_UTF32_BE, "utf-32-be"),
    (codecs.BOM_UTF16_LE, "utf-16-le"),
    (codecs.BOM_UTF16_BE, "utf-16-be"),
)
LONGEST_MARK = 4


def check_regular(path: Path, mode: int) -> None:
    """Raise InputError unless `mode`, of os.stat, is that of a regular file: reading others may wait or go on for ever."""
    if not stat.S_ISREG(mode):
        raise InputError(f"{path} is not a regular file, but {kind_of(mode)}: save the data to a file, and give that")


def open_regular(path: Path) -> BinaryIO:
    """Open a regular file to read its bytes, without ever waiting for one. Raises InputError, OSError."""
    try:
        check_regular(path, os.stat(path).st_mode)  # opening a device may do something
    except ValueError as error:
        if isinstance(error, InputError):
            raise
        raise InputError(f"{str(path)!r} is no path ({error}): give the path of a file") from None
    file = open(path, "rb", buffering=0, opener=_at_once)  # noqa: SIM115  # the caller closes it
    try:
        check_regular(path, os.fstat(file.fileno()).st_mode)  # it may have been replaced since
    except InputError:
        file.close()
        raise
    return file


def _at_once(path: str, flags: int) -> int:
    """Open a file like os.open, but without waiting for a writer if it is a named pipe."""
    return os.open(path, flags | getattr(os, "O_NONBLOCK", 0))


def encoding_of(start: bytes) -> tuple[str, int]:
    """Return the codec that the first bytes of a text's file show, and how many of them are the byte order mark."""
    return next(((codec, len(mark)) for mark, codec in _MARKS if start.startswith(mark)), ("utf-8", 0))


def encoding_name(codec: str) -> str:
    """Return a codec's name as people write it: "utf-16-le" → "UTF-16"."""
    return codec.upper().removesuffix("-LE").removesuffix("-BE")


def kind_of_binary(data: bytes) -> str:
    """Return what a file seems to be that has no byte order mark and whose first bytes, `data`, hold a NUL."""
    even, odd = data[0:512:2], data[1:512:2]
    one_sided = (odd.count(0) > len(odd) / 2 and not even.count(0)) or (
        even.count(0) > len(even) / 2 and not odd.count(0)
    )
    return "UTF-16 without a byte order mark" if one_sided else "binary"


def decode(data: bytes, path: Path) -> str:
    """Return a file's bytes as text, without a byte order mark. Raises InputError for binary files and other encodings."""
    codec, mark = encoding_of(data)
    name = encoding_name(codec)
    if name == "UTF-32":
        raise InputError(f"{path}: UTF-32 text, wanted UTF-8 or UTF-16: save it again with the encoding UTF-8")
    if codec == "utf-8" and b"\0" in data[:65536]:
        kind = kind_of_binary(data).replace("binary", "binary data")
        raise InputError(f"{path}: {kind}, wanted UTF-8 text: give another file, or save it with the encoding UTF-8")
    try:
        return data[mark:].decode(codec)
    except UnicodeDecodeError as e:
        line = data[mark : mark + e.start].decode(codec, "replace").count("\n") + 1
        raise InputError(
            f"{path}: not {name} (byte 0x{data[mark + e.start]:02x} in line {line}): save it again with the encoding UTF-8"
        ) from None


def lines(text: str) -> list[str]:
    """Return the lines of a text without their ends. A text without line feeds is split at carriage returns (old Macs)."""
    if "\n" not in text:
        return text.removesuffix("\r").split("\r")
    return text.removesuffix("\n").replace("\r\n", "\n").split("\n")
