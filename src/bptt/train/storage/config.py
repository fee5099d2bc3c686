"""config.json: what a run is. Its task and options, the sizes of its network, what identifies its data.

This module imports no torch, so that a mistake on the command line is answered at once.
"""

import json
import os
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import bptt
from bptt.errors import InputError
from bptt.files import write_atomically
from bptt.options import TASKS, TrainOptions
from bptt.train.storage.run_folder import CONFIG, LARGEST_JSON
from bptt.train.storage.seal import FORMAT, UNSEALED, check_format, read_sealed, seal
from bptt.typed import Json, Unexpected, convert, parse


@dataclass(frozen=True)
class Config:
    """What a run is: with model.safetensors, enough to rebuild the network and to predict.

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
    """Write config.json into the run folder. Raises OSError."""
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
    """Return what config.json says. Raises InputError if the folder is no run folder, or the file is damaged or too new."""
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


_Fingerprint = dict[str, str | int | list[str] | dict[str, str | int]]  # of any task


def _config_of(path: Path, content: Any) -> Config:
    """Return the parsed file as a Config. Raises Unexpected.

    Spec and sizes stay as they are: `bptt.tasks.specs` checks them once torch is loaded.
    """
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
        fingerprint=convert(content["fingerprint"], _Fingerprint, "fingerprint"),
        metric=convert(content["metric"], str, "metric"),
        unit=convert(content["unit"], str, "unit"),
    )
