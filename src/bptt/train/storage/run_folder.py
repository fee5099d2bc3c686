"""The run folder: the names of its files, and making, locking and tidying it.

    config.json             what the run is: task, options, sizes, what the task needs to predict     sealed
    model.safetensors       the weights to use                                                        sealed
    checkpoint.safetensors  everything needed to go on                                                sealed
    metrics.jsonl           one line for each update, validation and watched gradient; equal for equal runs
    timing.jsonl            speed and clock times, which differ from run to run
    report.html             curve, result, gradient flow and verdict, for a browser; rewritten as the run goes on
    report.json curve.png sample.txt        made at the end

No file is ever half written, and none of them holds code: configurations are JSON, weights are safetensors. This module
imports no torch.
"""

import contextlib
import os
import re
import sys
from collections.abc import Iterator
from pathlib import Path

from bptt.errors import InputError
from bptt.files import TEMPORARY, open_own

CONFIG, MODEL, CHECKPOINT = "config.json", "model.safetensors", "checkpoint.safetensors"
METRICS, TIMING = "metrics.jsonl", "timing.jsonl"
REPORT, CURVE, SAMPLE, PAGE = "report.json", "curve.png", "sample.txt", "report.html"
LOCK = ".lock"

LARGEST_JSON = 1 << 26  # bytes of config.json and report.json: a vocabulary of all characters has 5 MB


def remove_leftovers(folder: Path) -> None:
    """Remove the temporary files that a killed process left behind."""
    for path in folder.glob(f"{TEMPORARY}*"):
        if not path.is_dir():
            path.unlink(missing_ok=True)


# Making and holding a folder ---------------------------------------------------------------------------------------


def check_out(out: Path | None) -> None:
    """Raise InputError for a folder that `make_folder` would refuse, before the data are read."""
    if out is None:
        return
    if out.exists() and not out.is_dir():
        raise InputError(f"--out {out} is a file; give a folder that does not exist yet")
    if (out / CONFIG).exists():
        raise InputError(
            f"--out {out} already holds a run: go on with `bptt train --resume {out}`, or give another folder"
        )
    if out.is_dir() and any(path.name != LOCK for path in out.iterdir()):
        raise InputError(f"--out {out} is not empty; give a folder that is empty or does not exist yet")


def make_folder(out: Path | None, task: str) -> Path:
    """Make the run folder: `out`, or runs/TASK-N with the next free N. Raises InputError.

    mkdir is what decides between two processes that want the same number at the same time.
    """
    check_out(out)
    parent = out.parent if out else Path("runs")
    try:
        parent.mkdir(parents=True, exist_ok=True)
        if out:
            out.mkdir(exist_ok=True)
            return out
        while True:
            folder = parent / f"{task}-{_highest(parent, task) + 1}"
            with contextlib.suppress(FileExistsError):
                folder.mkdir()
                return folder
    except OSError as error:
        raise InputError(
            f"cannot make the run folder {out or parent}: {error.strerror}; give --out a folder that can be written"
        ) from error


def _highest(parent: Path, task: str) -> int:
    names = (re.fullmatch(rf"{task}-(\d+)", path.name) for path in parent.iterdir())
    return max((int(name.group(1)) for name in names if name), default=0)


@contextlib.contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Hold the folder against a second process that would train in it. The lock dies with its process, even by SIGKILL."""
    if sys.platform == "win32":  # no flock there
        yield
        return
    import fcntl

    with os.fdopen(open_own(folder / LOCK), "rb") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise InputError(f"another process is training in {folder}: wait for it, or stop it with Ctrl-C") from error
        except OSError:  # a file system without locks
            pass
        yield
