"""Files that are whole or absent: at every moment, even in a crash, a path is the old file or the new one."""

import contextlib
import os
import tempfile
from pathlib import Path

TEMPORARY = ".writing-"


def write_atomically(path: Path, data: bytes | bytearray) -> None:
    """Write a file so that at every moment, even in a crash, `path` is the old file or the new one. Raises OSError."""
    handle, name = tempfile.mkstemp(prefix=TEMPORARY, dir=path.parent)
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        os.chmod(name, 0o666 & ~_umask())  # mkstemp makes it for the owner alone
        os.replace(name, path)
    except BaseException:
        with contextlib.suppress(OSError):
            os.unlink(name)
        raise
    _sync_folder(path.parent)


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask


def _sync_folder(folder: Path) -> None:
    """Make a rename last through a power cut; not every system can open a folder, and then it is not needed."""
    with contextlib.suppress(OSError):
        handle = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)
