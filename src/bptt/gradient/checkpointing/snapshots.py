"""Where the kept states lie: in the device's memory, in the host's, or in files."""

import contextlib
import io
import os
import shutil
import tempfile
from abc import ABC, abstractmethod
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from bptt.gradient.checkpointing.plan import as_text
from bptt.torch_private import tree_flatten

STORAGES = ("memory", "host", "disk")
_PREFIX = "bptt-snapshots-"
_UNLOCKED_PREFIX = "bptt-making-"  # the folder's name until its lock is held
_LOCK = "lock"


class Snapshots(ABC):
    """Numbered slots, each of which holds a state; writing to a slot again overwrites it."""

    @abstractmethod
    def put(self, slot: int, state: Any) -> None:
        """Keep a copy of a state. Raises OSError if there is no room for it."""

    @abstractmethod
    def get(self, slot: int) -> Any:
        """Return a copy of the state in a slot."""

    def close(self) -> None:  # noqa: B027  # most have nothing to do
        """Release memory and files."""


class InMemory(Snapshots):
    """One tensor for each part of the state, with an axis for the slots: a state of 1 KB costs 1 KB, and no more.

    The state of slot 0, the one before the first step, may have another form (None, say) than those that the model returns.
    """

    def __init__(self, slots: int, device: torch.device | None = None) -> None:
        self._slots, self._device = slots, device
        self._first: Any = None
        self._structure: Any = None
        self._parts: list[Any] = []
        self._home: list[Any] = []

    def put(self, slot: int, state: Any) -> None:
        """Copy a state into a slot."""
        if slot == 0:
            self._first = state
            return
        leaves, structure = tree_flatten(state)
        if self._structure is None:
            self._structure = structure
            self._home = [leaf.device if isinstance(leaf, Tensor) else None for leaf in leaves]
            self._parts = [self._allocate(leaf) for leaf in leaves]
        fits = structure == self._structure and all(map(_fits, self._parts, leaves))
        if not fits:
            raise ValueError(
                "the model's state changed its form between two chunks (its structure, a shape or a dtype): Checkpointed "
                "keeps states of one form; let the model return the same form each time"
            )
        for part, leaf in zip(self._parts, leaves, strict=True):
            if isinstance(leaf, Tensor):
                part[slot - 1].copy_(leaf)

    def get(self, slot: int) -> Any:
        """Return a copy of the state in a slot."""
        if slot == 0:
            return self._first
        parts = zip(self._parts, self._home, strict=True)
        leaves = [None if part is None else part[slot - 1].to(home, copy=True) for part, home in parts]
        return self._structure.unflatten(leaves)

    def _allocate(self, leaf: Any) -> Tensor | None:
        if not isinstance(leaf, Tensor):
            return None
        return torch.empty((self._slots - 1, *leaf.shape), dtype=leaf.dtype, device=self._device or leaf.device)


def _fits(part: Any, leaf: Any) -> bool:
    if part is None or not isinstance(leaf, Tensor):
        return part is None and leaf is None
    return part.shape[1:] == leaf.shape and part.dtype == leaf.dtype


class OnDisk(Snapshots):
    """A file for each slot, in a folder of its own in the temporary folder (TMPDIR), which its user alone can open.

    A lock (flock) on a file in it is held as long as it is in use, on this machine or another that shares the disk, and the
    system ends it with the process. A process that is killed leaves the folder; the next one that is to make such a folder
    removes those whose lock nobody holds. On a file system without such locks none is removed.
    """

    def __init__(self) -> None:
        remove_leftovers()
        self.folder = Path(tempfile.mkdtemp(prefix=_UNLOCKED_PREFIX))
        self._lock: int | None = None
        try:
            self._lock = _new_lock(self.folder)
            # Others look at this name only, so that none finds it without its lock.
            self.folder = self.folder.rename(
                self.folder.with_name(self.folder.name.replace(_UNLOCKED_PREFIX, _PREFIX, 1))
            )
        except BaseException:
            self.close()
            raise

    def put(self, slot: int, state: Any) -> None:
        """Write a state to a file. Raises OSError if the disk is full."""
        data = io.BytesIO()
        leaves, self._structure = tree_flatten(state)
        torch.save(leaves, data)
        try:
            (self.folder / str(slot)).write_bytes(data.getbuffer())
        except OSError as error:
            free = shutil.disk_usage(self.folder).free
            raise OSError(
                error.errno,
                f"no snapshot could be written in {self.folder.parent} ({error.strerror}; {as_text(free)} are free, a state "
                f"takes {as_text(data.tell())}): make room, set TMPDIR to another disk, or use storage='memory'; no "
                "gradient, parameter or optimizer was changed",
            ) from error
        if slot == 0:
            self._first_structure = self._structure

    def get(self, slot: int) -> Any:
        """Read a state from its file."""
        leaves = torch.load(self.folder / str(slot), weights_only=True)
        return (self._first_structure if slot == 0 else self._structure).unflatten(leaves)

    def close(self) -> None:
        """Remove the folder, then release its lock."""
        shutil.rmtree(self.folder, ignore_errors=True)
        if self._lock is not None:
            os.close(self._lock)
            self._lock = None


def open_snapshots(storage: str, slots: int) -> Snapshots:
    """Return snapshots with `slots` slots: in the device's "memory", in the "host"'s, or on "disk"."""
    if storage == "disk":
        return OnDisk()
    return InMemory(slots, torch.device("cpu") if storage == "host" else None)


def remove_leftovers() -> None:
    """Remove this user's folders of snapshots that no process uses."""
    for folder in Path(tempfile.gettempdir()).glob(f"{_PREFIX}*"):
        with contextlib.suppress(OSError):
            lock = _lock_of_leftover(folder)
            if lock is not None:
                shutil.rmtree(folder, ignore_errors=True)
                os.close(lock)


def _new_lock(folder: Path) -> int | None:
    """Lock a new file in the folder and return its descriptor.

    None where there are no locks; then there is no file either, and nobody removes the folder.
    """
    lock = os.open(folder / _LOCK, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    if _locked(lock):
        return lock
    os.close(lock)
    (folder / _LOCK).unlink()
    return None


def _lock_of_leftover(folder: Path) -> int | None:
    """Take the lock of a folder, if nobody holds it, and return its descriptor, else None.

    Links are not followed, and another user's folder is left alone.
    """
    within = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
    try:
        if os.fstat(within).st_uid != os.getuid():
            return None
        lock = os.open(_LOCK, os.O_RDWR | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC, dir_fd=within)
    finally:
        os.close(within)
    if _locked(lock):
        return lock
    os.close(lock)
    return None


def _locked(file: int) -> bool:
    """Take the lock on an open file, and return whether that worked; False also where the file system has no locks."""
    try:
        import fcntl

        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except (ImportError, OSError):
        return False
    return True
