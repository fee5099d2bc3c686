"""Whether this machine can do what the options ask for: it has the device, and enough memory."""

import os
from pathlib import Path

import torch

from bptt.errors import InputError
from bptt.options import TrainOptions

_ANY_MACHINE = 10**18  # bytes: more than any has


def check_device(name: str) -> None:
    """Raise InputError if the device has an unknown name, or this machine does not have it."""
    try:
        device = torch.device(name)
    except RuntimeError:
        device = None
    if device is None or device.type not in ("cpu", "cuda"):
        raise InputError(f"--device {name} is unknown: give cpu, cuda, or cuda:N")
    if device.type == "cuda":
        there = torch.cuda.device_count() if torch.cuda.is_available() else 0
        if (device.index or 0) >= there:
            count = "no CUDA device" if there == 0 else f"only cuda:0 to cuda:{there - 1}"
            raise InputError(f"--device {name} is not there: this machine has {count}; use --device cpu")


def check_memory(options: TrainOptions, parameters: int) -> None:
    """Raise InputError if training surely needs more memory than is free.

    The need is a lower bound: 6 numbers for each weight (itself, its gradient, two moments of Adam, a copy of the best
    weights, one for the checkpoint), and 8 numbers for each unit and step, the least that any cell keeps of a batch.

    Args:
        options: the sizes of a batch, the number format and the device.
        parameters: how many weights the network has.
    """
    available = available_memory()
    if available is None:
        available = _ANY_MACHINE
    width = 8 if options.dtype == "float64" else 4
    steps = getattr(options, "chunk", None) or getattr(options, "length", None) or 1
    activations = 16 * steps * options.batch  # inputs, targets and mask
    if not options.strategy.startswith("checkpointed"):  # which keeps to its own budget
        activations += 8 * width * steps * options.batch * options.hidden * options.layers
    needed = 6 * width * parameters + activations
    if not options.device.startswith("cpu"):  # there the weights are drawn, and the batches made
        needed = width * parameters + 16 * steps * options.batch
    if needed > available:
        sizes = f"--hidden {options.hidden} --layers {options.layers} --batch {options.batch}"
        if steps > 1:
            sizes += f" --chunk {steps}" if hasattr(options, "chunk") else f" --length {steps}"
        raise InputError(
            f"{sizes} needs at least {_in_bytes(needed)} of memory, and {_in_bytes(available)} is free: "
            "make one of them smaller"
        )


def available_memory() -> int | None:
    """Return how many bytes of memory are free: in the system, or if that is less, in the container. None: unknown."""
    free = []
    try:
        for line in Path("/proc/meminfo").read_text().splitlines():
            if line.startswith("MemAvailable:"):
                free.append(int(line.split()[1]) * 1024)
        free.append(
            int(Path("/sys/fs/cgroup/memory.max").read_text()) - int(Path("/sys/fs/cgroup/memory.current").read_text())
        )
    except (OSError, ValueError):  # not Linux, or no limit
        if not free and hasattr(os, "sysconf") and "SC_PHYS_PAGES" in os.sysconf_names:
            free.append(os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE"))
    return max(min(free), 0) if free else None


def _in_bytes(count: int) -> str:
    if count > _ANY_MACHINE:
        return "more than a million TB"
    for unit, size in (("TB", 10**12), ("GB", 10**9)):
        if count >= size:
            return f"{count / size:,.1f} {unit}"
    return f"{count / 10**6:,.0f} MB"
