"""`bptt explain RUN`: a run's network on the page of the lecture."""

from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from bptt.errors import InputError
from bptt.explaining.own import own
from bptt.network import Head
from bptt.options import ExplainOptions
from bptt.tasks import Shard
from bptt.train.loss import masked_losses
from bptt.train.storage.config import read_config
from bptt.train.trained import load_network, task_of_run
from bptt.typed import Json


def own_of_run(folder: Path, options: ExplainOptions) -> Json:
    """Return what the page shows of a run: its trained network on the first batch of its data, or of `options.data`.

    The losses are those that count in training, but not divided by their number. Raises InputError.
    """
    config = read_config(folder)
    model = load_network(folder, config)
    task = task_of_run(folder, config, options.data)
    batch = next(task.stream(Shard())).to(torch.device("cpu"), getattr(torch, config.options.dtype))
    samples = None if options.sample is None else [_place(options.sample, batch.x.shape[1])]
    try:
        return own(
            model, batch.x, (batch.y, batch.mask), loss=partial(_losses, model.head), samples=samples, reset=batch.reset
        )
    except ValueError as error:
        raise InputError(f"{folder} cannot be explained: {error}") from error


def _losses(head: Head, z: Tensor, target: Any) -> Tensor:
    return masked_losses(head, z, *target)


def _place(sample: int, batch: int) -> int:
    if not 1 <= sample <= batch:
        raise InputError(f"--sample is {sample}, the first batch has {batch} sequences: give one from 1 to {batch}")
    return sample - 1
