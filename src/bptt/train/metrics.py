"""metrics.jsonl: one line an update, one a validation, one a watched gradient; equal runs write equal bytes (no times)."""

import hashlib
import json
import os
import time
from pathlib import Path
from typing import IO

from bptt.errors import InputError
from bptt.train.run_folder import METRICS, TIMING, Json


class Metrics:
    """The open file. Lines reach the disk every second, and for certain at `mark`."""

    def __init__(self, folder: Path, mark: Json | None = None) -> None:
        """Begin the file, or cut it back to `mark` and go on from there. Raises InputError, OSError."""
        self.path = folder / METRICS
        before = b"" if mark is None else self._read(mark)
        self._hash = hashlib.sha256(before)
        self._bytes = len(before)
        self._file: IO[bytes] = open(self.path, "wb" if mark is None else "r+b")  # noqa: SIM115  # closed by `close`
        self._file.truncate(self._bytes)
        self._file.seek(self._bytes)
        self._flushed = time.monotonic()

    def _read(self, mark: Json) -> bytes:
        length: int = mark["bytes"]
        data = self.path.read_bytes()[:length] if self.path.exists() else b""
        if hashlib.sha256(data).hexdigest() != mark["sha256"]:
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
        """Let other readers of the file see every line."""
        self._file.flush()
        self._flushed = time.monotonic()

    def mark(self) -> Json:
        """Bring everything to the disk; returns how far the file goes now, for a checkpoint."""
        self._file.flush()
        os.fsync(self._file.fileno())
        return {"bytes": self._bytes, "sha256": self._hash.hexdigest()}

    def close(self) -> None:
        """Close the file."""
        self._file.close()


def write_timing(folder: Path, line: Json) -> None:
    """Append a line to timing.jsonl, whose numbers differ from run to run."""
    with open(folder / TIMING, "a", encoding="utf-8") as file:
        file.write(json.dumps(line) + "\n")


def read_metrics(folder: Path) -> list[Json]:
    """The lines of metrics.jsonl; of a run that goes on, the whole ones."""
    data = (folder / METRICS).read_bytes()
    return [json.loads(line) for line in data[: data.rfind(b"\n") + 1].split(b"\n")[:-1]]
