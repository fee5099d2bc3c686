"""A trained run as it is used again: its network, and its task with the data that it was trained on or with others."""

from dataclasses import asdict, replace
from pathlib import Path

import torch

from bptt.errors import InputError
from bptt.network import Network
from bptt.options import LabelsOptions, TrainOptions
from bptt.tasks import Task, make_task
from bptt.train.checks.machine import check_memory
from bptt.train.checks.run_folder import check_fingerprint, check_kept_data, kept_data, network_sizes
from bptt.train.model import build_network, check_count, count_parameters, largest_file
from bptt.train.storage.config import Config
from bptt.train.storage.run_folder import MODEL
from bptt.train.storage.weights import load_weights, read_model


def load_network(folder: Path, config: Config) -> Network:
    """Return the network of a run with its trained weights, on the CPU.

    Raises InputError if the files are damaged or do not fit each other, before anything of the size they name is made.
    """
    options, sizes = config.options, network_sizes(folder, config)
    weights = read_model(folder, largest=largest_file(options, sizes))
    check_count(folder / MODEL, weights, options, sizes)
    model = build_network(options, sizes)
    model.to(getattr(torch, options.dtype))
    load_weights(model, weights, folder / MODEL)
    return model


def task_of_run(folder: Path, config: Config, data: Path | None) -> Task:
    """Return the task with the run's own data, or with other `data` encoded as the run encoded its own.

    Raises InputError if the run's data are gone or have changed, or the other data do not fit the run's network.
    """
    if data is None:
        check_kept_data(folder, [("--data", path) for _, path in kept_data(config.options)])
        task = make_task(config.options)
        check_memory(config.options, count_parameters(config.options, task.sizes()))
        check_fingerprint(folder, config, task.fingerprint(), "or give others with --data")
        return task
    task = make_task(_with_data(config.options, data))
    check_memory(config.options, count_parameters(config.options, task.sizes()))
    task.encode_as(config.spec)
    if asdict(task.sizes()) != config.sizes:
        raise InputError(f"--data {data} does not fit the network of {folder}: give data of the form it was trained on")
    return task


def _with_data(options: TrainOptions, data: Path) -> TrainOptions:
    if not hasattr(options, "data"):
        raise InputError(f"--data {data} cannot be used: the {options.task} problem draws its own, leave it out")
    if isinstance(options, LabelsOptions):
        return replace(options, data=data, test_data=None)
    return replace(options, data=data)  # type: ignore[call-arg]  # the task has data
