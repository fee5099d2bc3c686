"""The run folder: its files, written so that none is ever half written, and sealed so that damage is noticed.

A sealed file carries `sha256:` and the digest of its own bytes, taken with 64 zeros in the digest's place. Neither the
seal nor anything else here runs code from the file: configurations are JSON, weights are safetensors.

    config.json             what the run is: task, options, sizes, what the task needs to predict     sealed
    model.safetensors       the weights to use                                                        sealed
    checkpoint.safetensors  everything needed to go on                                                sealed
    metrics.jsonl           one line an update, validation or watched gradient, the same at every repetition
    timing.jsonl            speed and clock times, which are not
    report.html             curve, result, gradient flow and verdict, for a browser; written anew as the run goes on
    report.json curve.png sample.txt        made at the end

This module imports no torch.
"""

import contextlib
import hashlib
import json
import os
import re
import sys
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated, Any

import bptt
from bptt.errors import InputError
from bptt.files import TEMPORARY, open_own, read_regular, write_atomically
from bptt.options import TASKS, TrainOptions
from bptt.typed import Unexpected, Within, convert, is_number, parse

Json = dict[str, Any]

FORMAT = 1
CONFIG, MODEL, CHECKPOINT = "config.json", "model.safetensors", "checkpoint.safetensors"
METRICS, TIMING = "metrics.jsonl", "timing.jsonl"
REPORT, CURVE, SAMPLE, PAGE = "report.json", "curve.png", "sample.txt", "report.html"
LOCK = ".lock"

LARGEST_JSON = 1 << 26  # bytes of config.json and report.json: a vocabulary of all characters has 5 MB

UNSEALED = "sha256:" + "0" * 64
_SEAL = re.compile(rb"sha256:[0-9a-f]{64}")


def remove_leftovers(folder: Path) -> None:
    """Remove the temporary files that a killed process left behind."""
    for path in folder.glob(f"{TEMPORARY}*"):
        if not path.is_dir():
            path.unlink(missing_ok=True)


# Seals -------------------------------------------------------------------------------------------------------------


def seal(data: bytes) -> bytearray:
    """`data` with the digest of itself in the place of its first `UNSEALED`."""
    sealed = bytearray(data)
    start = sealed.index(UNSEALED.encode()) + len("sha256:")
    sealed[start : start + 64] = hashlib.sha256(data).hexdigest().encode()
    return sealed


def read_sealed(path: Path, remedy: str, largest: int | None = None) -> bytes:
    """The bytes of a sealed file, or an InputError that names it and the remedy if a byte is missing or changed.

    Nor is a file read that has more than `largest` bytes.
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


# config.json -------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Config:
    """What a run is. Enough, with model.safetensors, to rebuild the network and to predict.

    Attributes:
        options: the task and all its options.
        sizes: `bptt.tasks.Sizes` as a dictionary.
        spec: what the task needs to predict (vocabulary, scaling, …).
        fingerprint: what identifies the data.
        metric: name of the task's metric.
        unit: what one counted loss is called.
    """

    options: TrainOptions
    sizes: Json
    spec: Json
    fingerprint: Json
    metric: str
    unit: str


def write_config(folder: Path, config: Config) -> None:
    """Write config.json."""
    values = asdict(config.options)
    content = {
        "seal": UNSEALED,
        "format": FORMAT,
        "bptt": bptt.__version__,
        "task": config.options.task,
        "metric": config.metric,
        "unit": config.unit,
        "options": {name: str(v.absolute()) if isinstance(v, Path) else v for name, v in values.items()},
        "sizes": config.sizes,
        "fingerprint": config.fingerprint,
        "spec": config.spec,
    }
    text = json.dumps(content, indent=2, ensure_ascii=False) + "\n"
    write_atomically(folder / CONFIG, seal(text.encode("utf-8", "surrogatepass")))


def read_config(folder: Path) -> Config:
    """The configuration of a run folder. Raises InputError where it is not one, is damaged, or too new."""
    path = folder / CONFIG
    if not os.path.lexists(path):
        missing = "is a file, not a run folder" if folder.exists() else "does not exist"
        what = "is not a run folder: it has no config.json" if folder.is_dir() else missing
        raise InputError(f"{folder} {what}; give the folder that `bptt train` made, e.g. runs/text-1")
    data = read_sealed(path, "restore the file from a copy, or train again", LARGEST_JSON)
    try:
        return _config_of(path, parse(data))
    except Unexpected as error:
        raise InputError(f"{path} is not a config that bptt wrote ({error}); restore it from a copy") from error


Marks = dict[str, str | int | list[str] | dict[str, str | int]]  # the fingerprint of any task


def _config_of(path: Path, content: Any) -> Config:
    """Raises Unexpected. The spec and the sizes are the task's: `bptt.tasks.specs` reads them, when torch is at hand."""
    check_format(path, content)
    known = {"seal", "format", "bptt", "task", "metric", "unit", "options", "sizes", "fingerprint", "spec"}
    if set(content) != known:
        raise Unexpected(f"its entries are not {', '.join(sorted(known))}")
    task = convert(content["task"], str, "task")
    if task not in TASKS:
        raise Unexpected(f"task is {task[:60]!r}, wanted one of {', '.join(TASKS)}")
    return Config(
        options=convert(content["options"], TASKS[task], "options"),
        sizes=convert(content["sizes"], Json, "sizes"),
        spec=convert(content["spec"], Json, "spec"),
        fingerprint=convert(content["fingerprint"], Marks, "fingerprint"),
        metric=convert(content["metric"], str, "metric"),
        unit=convert(content["unit"], str, "unit"),
    )


@dataclass(frozen=True)
class _Origin:
    """Which bptt wrote a file."""

    format: Annotated[int, Within(1)]
    bptt: str


def check_format(path: Path, content: Any) -> None:
    """Refuse what a newer bptt wrote. Raises InputError; Unexpected where nothing says which bptt did."""
    said = convert(content, Json, "the file")
    origin = convert({key: said[key] for key in ("format", "bptt") if key in said}, _Origin, "the file")
    if origin.format > FORMAT:
        raise InputError(
            f"{path} was written by bptt {origin.bptt[:40]} (format {str(origin.format)[:20]}), this is bptt "
            f"{bptt.__version__} (format {FORMAT}): install that version or a newer one"
        )


# Making and holding a folder ---------------------------------------------------------------------------------------


def check_out(out: Path | None) -> None:
    """Refuse early what `make_folder` would refuse after the data was read."""
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


def read_report(folder: Path) -> dict[str, str | float | int]:
    """What report.json says, by name. Raises InputError, OSError."""
    path = folder / REPORT
    try:
        content: Json = convert(parse(read_regular(path, LARGEST_JSON), finite=False), Json, "the report")
        for name, value in content.items():
            if not (isinstance(value, str) or is_number(value)):
                raise Unexpected(f"{name[:60]!r} is neither a number nor a text")
    except Unexpected as error:
        raise InputError(f"{path} is not a report that bptt wrote ({error}): restore it from a copy") from error
    return content


def write_json(path: Path, content: Json) -> None:
    """Write readable JSON."""
    write_atomically(path, (json.dumps(content, indent=2, ensure_ascii=False) + "\n").encode("utf-8", "surrogatepass"))
