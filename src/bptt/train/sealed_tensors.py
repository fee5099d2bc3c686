"""Tensors in a sealed safetensors file. Reading one executes nothing: it is a JSON header and raw numbers."""

import json
from collections.abc import Mapping
from pathlib import Path

import safetensors
import safetensors.torch
from torch import Tensor, nn

import bptt
from bptt.errors import InputError
from bptt.files import write_atomically
from bptt.train.run_folder import (
    CHECKPOINT,
    FORMAT,
    MODEL,
    UNSEALED,
    Json,
    check_format,
    read_sealed,
    seal,
)

Tensors = dict[str, Tensor]
# The only metadata entry: safetensors does not keep the order of several, and equal runs shall write equal bytes.
_KEY = "bptt"


def snapshot(tensors: Mapping[str, Tensor]) -> Tensors:
    """Copies on the CPU that later updates leave alone."""
    return {name: t.detach().to("cpu", copy=True).contiguous() for name, t in tensors.items()}


def write_tensors(path: Path, tensors: Tensors, about: Json) -> None:
    """Write tensors, and a JSON dictionary about them, as a sealed file. Raises OSError."""
    content = {"seal": UNSEALED, "format": FORMAT, "bptt": bptt.__version__, **about}
    data = safetensors.torch.save(tensors, {_KEY: json.dumps(content)})
    write_atomically(path, seal(data))


def read_tensors(path: Path, remedy: str) -> tuple[Tensors, Json]:
    """The tensors and the dictionary about them. Raises InputError for a file that is missing, damaged or too new."""
    data = read_sealed(path, remedy)
    try:
        length = int.from_bytes(data[:8], "little")
        about = json.loads(json.loads(data[8 : 8 + length])["__metadata__"][_KEY])
        check_format(path, about)
        return safetensors.torch.load(data), about
    except (KeyError, TypeError, json.JSONDecodeError, UnicodeDecodeError, safetensors.SafetensorError) as error:
        raise InputError(f"{path} is not a file that bptt wrote ({error}); {remedy}") from error


def write_model(folder: Path, weights: Tensors, step: int) -> None:
    """Write model.safetensors: the weights after `step` updates."""
    write_tensors(folder / MODEL, weights, {"step": step})


def read_model(folder: Path) -> Tensors:
    """The weights to use: model.safetensors, or while a run has not come to its end, those of its checkpoint."""
    if not (folder / MODEL).exists() and (folder / CHECKPOINT).exists():
        from bptt.train.checkpoint import read_checkpoint

        return read_checkpoint(folder).chosen
    return read_tensors(folder / MODEL, f"make it anew with `bptt train --resume {folder}`, or train again")[0]


def load_weights(model: nn.Module, weights: Tensors, path: Path) -> None:
    """Put the weights into the model. Raises InputError if they do not fit."""
    try:
        model.load_state_dict(weights)
    except RuntimeError as error:
        reason = " ".join(str(error).split())
        raise InputError(f"{path} does not fit its config.json ({reason}); restore both from one run") from error
