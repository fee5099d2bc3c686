"""model.safetensors: the weights of a run, as they are used after training."""

from pathlib import Path

import torch
from torch import nn

from bptt.errors import InputError
from bptt.train.storage.checkpoint import read_checkpoint
from bptt.train.storage.run_folder import CHECKPOINT, MODEL
from bptt.train.storage.tensors import Tensors, differences, read_tensors, write_tensors


def write_model(folder: Path, weights: Tensors, step: int) -> None:
    """Write model.safetensors with the weights after `step` updates. Raises OSError."""
    write_tensors(folder / MODEL, weights, {"step": step})


def read_model(folder: Path, largest: int | None = None) -> Tensors:
    """Return the weights to use: those of model.safetensors, or until that is written, those of the checkpoint.

    Raises InputError if neither can be read, or model.safetensors has more than `largest` bytes.
    """
    if not (folder / MODEL).exists() and (folder / CHECKPOINT).exists():
        return read_checkpoint(folder).chosen
    remedy = f"make it again with `bptt train --resume {folder}`, or train again"
    return read_tensors(folder / MODEL, remedy, largest)[0]


def load_weights(model: nn.Module, weights: Tensors, path: Path) -> None:
    """Load the weights, read from `path`, into the model. Raises InputError if they do not fit or are not finite."""
    wanted = {name: (tuple(t.shape), t.dtype) for name, t in model.state_dict().items()}
    reason = differences(weights, wanted)
    if reason:
        raise InputError(f"{path} does not fit its config.json ({reason}); restore both from one run")
    for name, t in weights.items():
        if not bool(torch.isfinite(t).all()):
            raise InputError(
                f"{path} has a weight in {name} that is infinite or not a number, which makes every answer so: restore it "
                "from a copy, or train again with a smaller --lr"
            )
    model.load_state_dict(weights)
