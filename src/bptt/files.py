"""Writing files so that they are never half written and never written through a link, and reading regular files only.

A run folder may lie where others write too, or come from a stranger. So a file is written beside its place, under a name
that nobody can foresee, and renamed: a link that waits in its place is replaced, and what it points at stays as it is. A
file that grows line by line is opened only if it is regular, and no link. So is a file that is read: a pipe would never end.
"""

import contextlib
import errno
import os
import secrets
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import IO

from bptt.errors import InputError

TEMPORARY = ".writing-"
_NO_LINK = getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_CLOEXEC", 0)
_NO_WAIT = getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_CLOEXEC", 0) | getattr(os, "O_BINARY", 0)


def write_atomically(path: Path, data: bytes | bytearray) -> None:
    """Write a file so that at every moment, even in a crash, `path` is the old file or the new one.

    Raises OSError; InputError where a device or pipe is in its place.
    """
    with writing(path) as file:
        file.write(data)


@contextlib.contextmanager
def writing(path: Path) -> Iterator[IO[bytes]]:
    """Yield a file to write into, which replaces `path` at the end; after an error `path` stays as it was.

    Raises OSError; InputError where a device or pipe is in its place.
    """
    _refuse_devices(path)
    if path.is_dir() and not path.is_symlink():  # the rename would say so too, but of the temporary file
        raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), str(path))
    name = path.parent / f"{TEMPORARY}{secrets.token_hex(8)}"
    # Not mkstemp, which makes it for the owner alone: what the umask allows cannot be asked for without changing it.
    try:
        handle = os.open(name, os.O_RDWR | os.O_CREAT | os.O_EXCL | getattr(os, "O_BINARY", 0) | _NO_LINK, 0o666)
    except OSError as error:
        raise OSError(error.errno, error.strerror, str(path)) from error  # nobody knows the other name
    try:
        with os.fdopen(handle, "wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        os.replace(name, path)
    except BaseException:
        with contextlib.suppress(OSError):
            os.unlink(name)
        raise
    _sync_folder(path.parent)


def open_own(path: Path) -> int:
    """Return a descriptor to read a file of our own and to append to it; it is made if it is missing, and never shortened.

    Raises OSError; InputError where something else is in its place: a symbolic link, a pipe, a device, a folder.
    """
    refuse_link(path)
    handle = os.open(path, os.O_RDWR | os.O_CREAT | os.O_APPEND | getattr(os, "O_BINARY", 0) | _NO_LINK, 0o666)
    try:
        _check_regular(path, handle)
    except BaseException:
        os.close(handle)
        raise
    return handle


def append(path: Path, data: bytes) -> None:
    """Append to a file of our own, which is made if it is missing. Raises as `open_own` does.

    A file that has a second name (a hard link, as some backups make) is copied first: the other name keeps its content.
    """
    handle = open_own(path)
    with os.fdopen(handle, "r+b") as file:
        if os.fstat(handle).st_nlink > 1:
            write_atomically(path, file.read() + data)
        else:
            file.write(data)


def refuse_link(path: Path) -> None:
    """Raise InputError if the path is a symbolic link."""
    if path.is_symlink():
        raise InputError(
            f"{path} is a symbolic link, and a run writes no file outside its folder: remove the link, or put the file "
            "itself in its place"
        )


def read_regular(path: Path, largest: int | None = None) -> bytes:
    """Return the bytes of a regular file. Raises OSError; InputError for another kind, or more than `largest` bytes."""
    handle = os.open(path, os.O_RDONLY | _NO_WAIT)
    try:
        size = _check_regular(path, handle)
        if largest is not None and size > largest:
            raise InputError(
                f"{path} has {size:,} bytes, and {largest:,} are the most it can have: restore it from a copy"
            )
        with os.fdopen(os.dup(handle), "rb") as file:
            return file.read()
    except MemoryError as error:
        raise InputError(
            f"{path} has {size:,} bytes, more than the memory can hold: free some, or use another"
        ) from error
    finally:
        os.close(handle)


def _check_regular(path: Path, handle: int) -> int:
    """Return the size of an open file. Raises InputError if it is not a regular one."""
    status = os.fstat(handle)
    if not stat.S_ISREG(status.st_mode):
        raise InputError(f"{path} is {kind_of(status.st_mode)}, wanted a regular file: remove it, or restore the file")
    return status.st_size


def _refuse_devices(path: Path) -> None:
    """Raise InputError for a device such as /dev/null: a rename would replace it, for every program."""
    with contextlib.suppress(OSError):
        mode = os.lstat(path).st_mode
        if not (stat.S_ISREG(mode) or stat.S_ISLNK(mode) or stat.S_ISDIR(mode)):
            raise InputError(f"{path} is {kind_of(mode)}, wanted a regular file: give another name")


def kind_of(mode: int) -> str:
    """Return in words what a file is that is not regular ("a folder", "a named pipe"); `mode` is that of os.stat."""
    kinds = ((stat.S_ISDIR, "a folder"), (stat.S_ISFIFO, "a named pipe"), (stat.S_ISSOCK, "a socket"))
    return next((name for is_kind, name in kinds if is_kind(mode)), "a device")


def _sync_folder(folder: Path) -> None:
    """Make a rename survive a power cut. Where a system cannot open a folder, it is not needed."""
    with contextlib.suppress(OSError):
        handle = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)
