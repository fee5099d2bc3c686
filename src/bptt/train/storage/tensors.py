"""Tensors in a sealed safetensors file. Reading one executes nothing: it is a JSON header and raw numbers."""

import json
from collections.abc import Mapping
from pathlib import Path

import safetensors
import safetensors.torch
import torch
from torch import Tensor

import bptt
from bptt.errors import InputError
from bptt.files import write_atomically
from bptt.train.storage.seal import FORMAT, UNSEALED, check_format, read_sealed, seal
from bptt.typed import Json, Unexpected, convert, parse

Tensors = dict[str, Tensor]
# The only metadata entry: safetensors does not keep the order of several, and equal runs shall write equal bytes.
_KEY = "bptt"


def snapshot(tensors: Mapping[str, Tensor]) -> Tensors:
    """Return copies on the CPU, which later updates of the originals do not change."""
    return {name: t.detach().to("cpu", copy=True).contiguous() for name, t in tensors.items()}


def write_tensors(path: Path, tensors: Tensors, about: Json) -> None:
    """Write tensors, and the JSON dictionary `about` beside them, as one sealed file. Raises OSError."""
    content = {"seal": UNSEALED, "format": FORMAT, "bptt": bptt.__version__, **about}
    data = safetensors.torch.save(tensors, {_KEY: json.dumps(content)})
    write_atomically(path, seal(data))


def read_tensors(path: Path, remedy: str, largest: int | None = None) -> tuple[Tensors, Json]:
    """Return the tensors of a file and the JSON dictionary about them.

    Raises InputError, which ends with `remedy`, if the file is missing, damaged, too new or larger than `largest` bytes.
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


def differences(tensors: Tensors, wanted: Mapping[str, tuple[tuple[int, ...], torch.dtype]]) -> str:
    """Return in words how the names, shapes or number formats of the tensors differ from those that are wanted; else ""."""
    for name in sorted(set(tensors) ^ set(wanted)):
        return f"{name[:60]!r} is {'missing' if name in wanted else 'not of it'}"
    for name, t in tensors.items():
        shape, dtype = wanted[name]
        if (tuple(t.shape), t.dtype) != (shape, dtype):
            return f"{name!r} is {t.dtype} of shape {tuple(t.shape)}, wanted {dtype} of {shape}".replace("torch.", "")
    return ""
