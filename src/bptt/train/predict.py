"""Using a trained run: `bptt predict`."""

import os
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

from bptt.errors import InputError
from bptt.files import TEMPORARY
from bptt.network import Network
from bptt.options import LabelsOptions, PredictOptions, SeriesOptions, TrainOptions
from bptt.tasks import Sizes, task_class
from bptt.train import check, run_folder
from bptt.train.model import build_network
from bptt.train.run_folder import CONFIG, MODEL, Config
from bptt.train.sealed_tensors import load_weights, read_model


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
    config = run_folder.read_config(folder)
    if options.prompt is not None and config.options.task != "text":
        raise InputError(f"--prompt is for runs on text, this one's task is {config.options.task}: leave it out")
    model = load_network(folder, config).to(options.device).eval()
    if options.data is None:
        options = replace(options, data=_data_of(config.options))
    try:
        return task_class(config.options.task).predict(model, config.spec, options)
    except KeyError as error:
        raise InputError(f"{folder / CONFIG} lacks {error} in its spec; restore it from a copy") from error


def load_network(folder: Path, config: Config) -> Network:
    """The network of a run with the weights that it handed out, on the CPU. Raises InputError."""
    import torch

    check.check_options(config.options)
    try:
        model = build_network(config.options, Sizes(**config.sizes))
        model.to(getattr(torch, config.options.dtype))
    except (KeyError, TypeError, ValueError, AttributeError, RuntimeError, AssertionError) as error:
        raise InputError(f"{folder / CONFIG} describes no network ({error!r}); restore it from a copy") from error
    load_weights(model, read_model(folder), folder / MODEL)
    return model


def _data_of(options: TrainOptions) -> Path | None:
    """What to predict where nothing is given: the run's own data, or its test file."""
    if isinstance(options, LabelsOptions):
        return options.test_data or options.data
    return options.data if isinstance(options, SeriesOptions) else None


def _print(pieces: Iterator[str]) -> None:
    """To standard output as the pieces come. A reader that goes away (`| head`) ends it."""
    try:
        for piece in pieces:
            sys.stdout.write(piece)
            sys.stdout.flush()
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # for the flush at exit


def _save(pieces: Iterator[str], out: Path) -> None:
    """To a file that is there only when it is whole."""
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        part = out.with_name(f"{TEMPORARY}{os.getpid()}-{out.name}")
        try:
            with open(part, "x", encoding="utf-8", newline="") as file:
                file.writelines(pieces)
                file.flush()
                os.fsync(file.fileno())
            os.replace(part, out)
        finally:
            part.unlink(missing_ok=True)
    except OSError as error:
        reason = f"cannot write --out {out}: {error.strerror}"
        raise InputError(f"{reason}; give a file in a folder that can be written") from error
