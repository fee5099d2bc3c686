"""`bptt predict`: what a trained run predicts, to standard output or a file."""

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
from bptt.options import LabelsOptions, PredictOptions, SeriesOptions, TrainOptions
from bptt.tasks import task_class
from bptt.terminal import visible_lines
from bptt.train.checks.machine import check_device, check_memory
from bptt.train.checks.run_folder import check_kept_data
from bptt.train.storage.config import read_config
from bptt.train.trained import load_network


def predict(folder: Path, options: PredictOptions) -> None:
    """Write what the run in `folder` predicts, to `options.out` or standard output. Raises InputError, OSError."""
    if options.out is not None and options.out.exists():
        raise InputError(f"--out {options.out} exists already: give a file that does not")
    check_device(options.device)
    pieces = _pieces(folder, options)
    if options.out is None:
        _print(pieces)
    else:
        _save(pieces, options.out)


def _pieces(folder: Path, options: PredictOptions) -> Iterator[str]:
    """Return what the run's task writes with its network, piece by piece. Raises InputError before the first piece."""
    config = read_config(folder)
    if options.prompt is not None and config.options.task != "text":
        raise InputError(f"--prompt is for runs on text, this one's task is {config.options.task}: leave it out")
    model = load_network(folder, config).to(options.device).eval()
    model.register_forward_hook(_check_finite)
    if options.data is None:
        options = replace(options, data=_data_of(config.options))
        if options.data is not None:
            check_kept_data(folder, [("--data", options.data)])
    check_memory(replace(config.options, batch=1, strategy="exact", device="cpu"), 0)
    return task_class(config.options.task).predict(model, config.spec, options)


def _check_finite(model: nn.Module, given: Any, found: tuple[Tensor, Any]) -> None:
    """Raise InputError if the network's answer is not finite: a forward hook."""
    if not bool(torch.isfinite(found[0]).all()):
        raise InputError(
            "the network's answer is infinite or not a number: its weights or these data are too large; scale the data as "
            "those that it was trained on, or train again with a smaller --lr"
        )


def _data_of(options: TrainOptions) -> Path | None:
    """Return the data to predict from where the user gives none: the run's test file or its own data; None without any."""
    if isinstance(options, LabelsOptions):
        return options.test_data or options.data
    return options.data if isinstance(options, SeriesOptions) else None


def _print(pieces: Iterator[str]) -> None:
    """Write the pieces to standard output as they come, until the reader goes away (`| head`).

    In a terminal, control characters in them are written out, so that it does not obey them.
    """
    shown = visible_lines if sys.stdout.isatty() else str
    try:
        for piece in pieces:
            sys.stdout.write(shown(piece))
            sys.stdout.flush()
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # for the flush at exit


def _save(pieces: Iterator[str], out: Path) -> None:
    """Write the pieces to a file, which appears only when it is whole. Raises InputError if it cannot be written."""
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        with writing(out) as file:
            file.writelines(piece.encode("utf-8", "surrogateescape") for piece in pieces)
    except OSError as error:
        reason = f"cannot write --out {out}: {error.strerror}"
        raise InputError(f"{reason}; give a file in a folder that can be written") from error
