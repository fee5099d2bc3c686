"""Using a trained run: `bptt predict`."""

import os
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from bptt.errors import InputError
from bptt.files import writing
from bptt.network import Network
from bptt.options import LabelsOptions, PredictOptions, SeriesOptions, TrainOptions
from bptt.tasks import task_class
from bptt.terminal import visible_lines
from bptt.train import check
from bptt.train.model import build_network, check_count, largest_file
from bptt.train.storage.run_folder import MODEL, Config, read_config
from bptt.train.storage.tensors import load_weights, read_model


def predict(folder: Path, options: PredictOptions) -> None:
    """Write what the run in `folder` predicts, to `options.out` or standard output. Raises InputError, OSError."""
    if options.out is not None and options.out.exists():
        raise InputError(f"--out {options.out} exists already: give a file that does not")
    check.check_device(options.device)
    pieces = _pieces(folder, options)
    if options.out is None:
        _print(pieces)
    else:
        _save(pieces, options.out)


def _pieces(folder: Path, options: PredictOptions) -> Iterator[str]:
    """What the task writes with the run's network."""
    config = read_config(folder)
    if options.prompt is not None and config.options.task != "text":
        raise InputError(f"--prompt is for runs on text, this one's task is {config.options.task}: leave it out")
    model = load_network(folder, config).to(options.device).eval()
    model.register_forward_hook(_check_finite)
    if options.data is None:
        options = replace(options, data=_data_of(config.options))
        if options.data is not None:
            check.check_kept_data(folder, [("--data", options.data)])
    check.check_memory(replace(config.options, batch=1, strategy="exact", device="cpu"), 0)
    return task_class(config.options.task).predict(model, config.spec, options)


def _check_finite(model: nn.Module, given: Any, found: tuple[Tensor, Any]) -> None:
    """Refuse answers that are no numbers. Raises InputError."""
    if not bool(torch.isfinite(found[0]).all()):
        raise InputError(
            "the network's answer is infinite or not a number: its weights or these data are too large; scale the data as "
            "those that it was trained on, or train again with a smaller --lr"
        )


def load_network(folder: Path, config: Config) -> Network:
    """The network of a run with the weights that it handed out, on the CPU. Raises InputError.

    What the files say of themselves must agree before anything of that size is made.
    """
    options, sizes = config.options, check.network_sizes(folder, config)
    weights = read_model(folder, largest=largest_file(options, sizes))
    check_count(folder / MODEL, weights, options, sizes)
    model = build_network(options, sizes)
    model.to(getattr(torch, options.dtype))
    load_weights(model, weights, folder / MODEL)
    return model


def _data_of(options: TrainOptions) -> Path | None:
    """What to predict where nothing is given: the run's own data, or its test file."""
    if isinstance(options, LabelsOptions):
        return options.test_data or options.data
    return options.data if isinstance(options, SeriesOptions) else None


def _print(pieces: Iterator[str]) -> None:
    """To standard output as the pieces come; a terminal is shown the control characters in them, and does not obey them.

    A reader that goes away (`| head`) ends it.
    """
    shown = visible_lines if sys.stdout.isatty() else str
    try:
        for piece in pieces:
            sys.stdout.write(shown(piece))
            sys.stdout.flush()
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # for the flush at exit


def _save(pieces: Iterator[str], out: Path) -> None:
    """To a file that is there only when it is whole."""
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        with writing(out) as file:
            file.writelines(piece.encode("utf-8", "surrogateescape") for piece in pieces)
    except OSError as error:
        reason = f"cannot write --out {out}: {error.strerror}"
        raise InputError(f"{reason}; give a file in a folder that can be written") from error
