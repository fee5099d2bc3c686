"""metrics.jsonl: a line for each update, validation and watched gradient. Equal runs write equal bytes: no times."""

import hashlib
import json
import os
import time
from dataclasses import dataclass, fields
from pathlib import Path
from typing import IO, Any

from bptt.errors import InputError
from bptt.files import append, open_own, read_regular, refuse_link, write_atomically
from bptt.train.storage.run_folder import METRICS, TIMING
from bptt.typed import Json, Unexpected, convert, is_number, parse


class Metrics:
    """metrics.jsonl, open to append to. Lines reach the disk every second, and for certain at `mark`."""

    def __init__(self, folder: Path, mark: Json | None = None) -> None:
        """Begin the file, or shorten it to what it held at `mark` and go on from there. Raises InputError, OSError.

        Either makes a new file: if the old one has a second name (a hard link, as backups make), that keeps its content.
        """
        self.path = folder / METRICS
        refuse_link(self.path)
        before = b"" if mark is None else self._read(mark)
        write_atomically(self.path, before)
        self._hash = hashlib.sha256(before)
        self._bytes = len(before)
        self._file: IO[bytes] = os.fdopen(open_own(self.path), "ab")  # closed by `close`
        self._flushed = time.monotonic()

    def _read(self, mark: Json) -> bytes:
        length, digest = mark.get("bytes"), mark.get("sha256")
        if not (isinstance(length, int) and isinstance(digest, str)):
            raise InputError(f"the checkpoint of {self.path.parent} does not say how far {METRICS} goes: train again")
        data = read_regular(self.path)[:length] if self.path.exists() else b""
        if hashlib.sha256(data).hexdigest() != digest:
            raise InputError(
                f"{self.path} is not as the checkpoint left it (its first {length} bytes were removed or changed): "
                "restore it from a copy, or train again"
            )
        return data

    def write(self, line: Json) -> None:
        """Append one line."""
        data = json.dumps(line).encode() + b"\n"
        self._file.write(data)
        self._hash.update(data)
        self._bytes += len(data)
        if time.monotonic() - self._flushed > 1:
            self._file.flush()
            self._flushed = time.monotonic()

    def flush(self) -> None:
        """Hand all lines to the system, so that other readers of the file see them."""
        self._file.flush()
        self._flushed = time.monotonic()

    def mark(self) -> Json:
        """Bring everything to the disk, and return how far the file goes: {"bytes": …, "sha256": …}, for a checkpoint."""
        self._file.flush()
        os.fsync(self._file.fileno())
        return {"bytes": self._bytes, "sha256": self._hash.hexdigest()}

    def close(self) -> None:
        """Close the file."""
        self._file.close()


def write_timing(folder: Path, line: Json) -> None:
    """Append a line to timing.jsonl, whose numbers differ from run to run. Raises InputError, OSError."""
    append(folder / TIMING, json.dumps(line).encode() + b"\n")


def read_metrics(folder: Path) -> list[Json]:
    """Return the lines of metrics.jsonl, without one that is still being written. Raises InputError, OSError."""
    path = folder / METRICS
    lines = read_regular(path).split(b"\n")[:-1]
    try:
        return [_line(parse(line, finite=False), f"line {number}") for number, line in enumerate(lines, 1)]
    except Unexpected as error:
        raise InputError(f"{path} is not as bptt wrote it ({error}): restore it from a copy") from error


@dataclass(frozen=True)
class _LayerFigures:
    """The part of a watched layer's key figures (`bptt.train.watching.figures`) that a page shows."""

    layer: str
    verdict: list[str]
    horizon_steps: float | None = None
    largest_gain: float | None = None


_SHOWN = {f.name for f in fields(_LayerFigures)}


def _line(line: Any, where: str) -> Json:
    """Return a parsed line if it has a step, and its numbers can be drawn. Raises Unexpected."""
    content: Json = convert(line, Json, where)
    for name, value in content.items():
        if name == "flow":
            for figures in convert(value, list[Json], f"{where}: flow"):
                convert({key: v for key, v in figures.items() if key in _SHOWN}, _LayerFigures, f"{where}: flow")
        elif not is_number(value):
            raise Unexpected(f"{where}: {name[:60]!r} is no number")
    if "step" not in content:
        raise Unexpected(f"{where} lacks its step")
    return content
