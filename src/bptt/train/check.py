"""Options that cannot work are refused before any data is read."""

import dataclasses
import math
import os
import stat
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bptt.errors import InputError
from bptt.options import TrainOptions
from bptt.train.storage.run_folder import CONFIG, Config
from bptt.typed import MANY, Unexpected

if TYPE_CHECKING:
    from bptt.tasks import Sizes

# Much more than a machine can do; what its memory can hold, `check_memory` says.
_LARGEST: dict[str, int] = {
    "hidden": MANY**2, "batch": MANY**2, "layers": 1000, "seed": 2**63 - 1, "minutes": 10**9,
    **dict.fromkeys(("chunk", "embedding", "length", "horizon", "season", "steps"), MANY),
    **dict.fromkeys(("validate_every", "warmup", "patience", "watch"), MANY),
}  # fmt: skip
_COUNTS = ("hidden", "layers", "batch", "chunk", "embedding", "length", "horizon", "validate_every", "steps")
_ANY_MACHINE = 10**18  # bytes: more than any has
_NOT_NEGATIVE = ("clip", "weight_decay", "warmup", "patience", "watch", "seed")


def flag(name: str) -> str:
    """How an option is written on the command line."""
    return "--" + name.replace("_", "-")


def check_options(options: TrainOptions, world: int = 1) -> None:
    """Refuse impossible options. Raises InputError.

    Args:
        options: what the user asked for.
        world: number of processes.
    """
    _check_numbers(options)
    _check_network(options)
    if options.steps is None and options.minutes is None:
        raise InputError("no budget: give --steps, e.g. --steps 1000, or --minutes, e.g. --minutes 2")
    if options.steps is not None and options.minutes is None and options.warmup >= options.steps:
        raise InputError(
            f"--warmup {options.warmup} does not end within --steps {options.steps}: make it smaller than the steps"
        )
    if options.batch < world:
        raise InputError(
            f"--batch {options.batch} is too small for {world} processes: make it {world} or more, or start fewer"
        )
    _check_strategy(options)


def _check_numbers(options: TrainOptions) -> None:
    values = {f.name: getattr(options, f.name) for f in dataclasses.fields(options)}
    for name in _COUNTS:
        if values.get(name) is not None and values[name] < 1:
            raise InputError(f"{flag(name)} {values[name]} is impossible: it must be 1 or more")
    for name in _NOT_NEGATIVE:
        if not 0 <= values[name] < math.inf:
            raise InputError(f"{flag(name)} {values[name]} is impossible: it must be 0 or more")
    for name, largest in _LARGEST.items():
        if values.get(name) is not None and values[name] > largest:
            raise InputError(f"{flag(name)} {str(values[name])[:30]} is too large: it must be {largest:,} or less")
    if not 0 < options.lr < math.inf:
        raise InputError(f"--lr {options.lr} is impossible: it must be above 0, e.g. 0.002")
    if options.minutes is not None and not 0 < options.minutes < math.inf:
        raise InputError(f"--minutes {options.minutes} is impossible: it must be above 0, e.g. 1.5")
    if not 0 <= options.dropout < 1:
        raise InputError(f"--dropout {options.dropout} is impossible: it is a share, from 0 to below 1, e.g. 0.2")


def _check_network(options: TrainOptions) -> None:
    if options.dropout > 0 and options.layers == 1:
        raise InputError(
            f"--dropout {options.dropout} is between recurrent layers, but there is --layers 1: "
            "use --layers 2 or more, or leave --dropout out"
        )
    if options.cell != "rnn" and options.activation != "tanh":
        raise InputError(
            f"--activation {options.activation} does not fit --cell {options.cell}, which has its own: "
            "use --cell rnn, or leave --activation out"
        )


def _check_strategy(options: TrainOptions) -> None:
    from bptt.gradient import RTRL, SnAp1, Truncated, parse_strategy

    try:
        strategy = parse_strategy(options.strategy)
    except ValueError as error:
        raise InputError(f"--strategy {options.strategy}: {error}") from error
    if isinstance(strategy, RTRL) and options.hidden > strategy.limit:
        raise InputError(
            f"--strategy rtrl needs H⁴ multiplications a step, too many for --hidden {options.hidden}: give --hidden "
            f"{strategy.limit} or less, or --strategy snap1, truncated:K1 or exact"
        )
    if isinstance(strategy, SnAp1) and options.layers > 1:
        raise InputError(
            f"--strategy snap1 is for one layer, --layers is {options.layers}: give --strategy rtrl or exact"
        )
    chunk = getattr(options, "chunk", None)
    if chunk is not None and isinstance(strategy, Truncated) and strategy.k1 > chunk:
        raise InputError(
            f"--strategy {options.strategy} goes back every {strategy.k1} steps, but an update has only --chunk {chunk}: "
            f"give --chunk {strategy.k1}, or --strategy truncated:{chunk}"
        )


def network_sizes(folder: Path, config: Config) -> "Sizes":
    """The sizes of a run's network, after a look at all that config.json says. Raises InputError."""
    from bptt.tasks.specs import check_spec

    try:
        check_options(config.options)
    except InputError as error:
        raise InputError(f"{folder / CONFIG} says: {error}") from error
    try:
        return check_spec(config.options, config.spec, config.sizes)
    except Unexpected as error:
        raise InputError(f"{folder / CONFIG} describes no network ({error}); restore it from a copy") from error


def kept_data(options: TrainOptions) -> list[tuple[str, Path]]:
    """The data that the options name, each with its option."""
    named = [(flag(name), getattr(options, name, None)) for name in ("data", "test_data")]
    return [(option, path) for option, path in named if path is not None]


def check_kept_data(folder: Path, kept: Iterable[tuple[str, Path]]) -> None:
    """Refuse data that a run folder names, if they are not there or neither a file nor a folder: a stranger's folder may
    name a pipe or a device, which never end. Raises InputError.

    Args:
        folder: whose they are.
        kept: the paths, each with the option by which another can be given.
    """
    for option, path in kept:
        try:
            mode = path.stat().st_mode
        except FileNotFoundError as error:
            raise InputError(
                f"{path} does not exist, where {folder} has its data from: say where they are now with {option} PATH"
            ) from error
        if not (stat.S_ISREG(mode) or stat.S_ISDIR(mode)):
            raise InputError(
                f"{path}, where {folder} has its data from, is neither a file nor a folder: give the data with "
                f"{option} PATH"
            )


def check_fingerprint(folder: Path, config: Config, fingerprint: dict[str, Any], remedy: str) -> None:
    """Refuse data that are not those of the run in `folder`. Raises InputError: bring them back, or `remedy`."""
    before = config.fingerprint
    if fingerprint != before:
        changed = [key for key in {**fingerprint, **before} if fingerprint.get(key) != before.get(key)]
        raise InputError(
            f"the data are not those that {folder} was trained on (different: {', '.join(changed)}): "
            f"bring them back, {remedy}"
        )


def check_device(name: str) -> None:
    """Refuse a device that is unknown or not there. Raises InputError."""
    import torch

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
    """Refuse a network that the memory of this machine cannot hold. Raises InputError.

    An estimate from below: weights, gradients, two moments of Adam, a copy of the best weights and one in the
    checkpoint (6 numbers a weight); 8 numbers a unit and step of activations, which every cell needs at least.

    Args:
        options: for the sizes of a batch.
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
    """Bytes of memory that may still be used: what the system has, or what the container is allowed. None: unknown."""
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
