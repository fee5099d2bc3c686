"""Tensors in a sealed safetensors file. Reading one executes nothing: it is a JSON header and raw numbers."""

import json
from collections.abc import Mapping
from pathlib import Path

import safetensors
import safetensors.torch
import torch
from torch import Tensor, nn

import bptt
from bptt.errors import InputError
from bptt.files import write_atomically
from bptt.train.storage.run_folder import (
    CHECKPOINT,
    FORMAT,
    MODEL,
    UNSEALED,
    Json,
    check_format,
    read_sealed,
    seal,
)
from bptt.typed import Unexpected, convert, parse

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


def read_tensors(path: Path, remedy: str, largest: int | None = None) -> tuple[Tensors, Json]:
    """The tensors and the dictionary about them. Raises InputError for a file that is missing, damaged or too new, or has
    more than `largest` bytes.
    """
    data = read_sealed(path, remedy, largest)
    try:
        header = convert(parse(data[8 : 8 + int.from_bytes(data[:8], "little")]), Json, "the header")
        metadata = convert(header.get("__metadata__"), dict[str, str], "the metadata")
        about: Json = convert(parse(metadata.get(_KEY, "")), Json, "the metadata")
        check_format(path, about)
        return safetensors.torch.load(data), about
    except (Unexpected, KeyError, safetensors.SafetensorError) as error:  # KeyError: a number format unknown to torch
        raise InputError(f"{path} is not a file that bptt wrote ({error}); {remedy}") from error


def write_model(folder: Path, weights: Tensors, step: int) -> None:
    """Write model.safetensors: the weights after `step` updates."""
    write_tensors(folder / MODEL, weights, {"step": step})


def read_model(folder: Path, largest: int | None = None) -> Tensors:
    """The weights to use: model.safetensors, or while a run has not come to its end, those of its checkpoint.

    Raises InputError. `largest`: how many bytes model.safetensors can have.
    """
    if not (folder / MODEL).exists() and (folder / CHECKPOINT).exists():
        from bptt.train.storage.checkpoint import read_checkpoint

        return read_checkpoint(folder).chosen
    remedy = f"make it anew with `bptt train --resume {folder}`, or train again"
    return read_tensors(folder / MODEL, remedy, largest)[0]


def load_weights(model: nn.Module, weights: Tensors, path: Path) -> None:
    """Put the weights into the model. Raises InputError if they do not fit, or are no finite numbers."""
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


def differences(tensors: Tensors, wanted: Mapping[str, tuple[tuple[int, ...], torch.dtype]]) -> str:
    """What is wrong with these tensors, in words, if names, shapes and number formats are not as wanted; else ""."""
    for name in sorted(set(tensors) ^ set(wanted)):
        return f"{name[:60]!r} is {'missing' if name in wanted else 'not of it'}"
    for name, t in tensors.items():
        shape, dtype = wanted[name]
        if (tuple(t.shape), t.dtype) != (shape, dtype):
            return f"{name!r} is {t.dtype} of shape {tuple(t.shape)}, wanted {dtype} of {shape}".replace("torch.", "")
    return ""
