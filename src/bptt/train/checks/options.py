"""Whether options are possible: what cannot work is refused before any data is read."""

import dataclasses
import math
from collections.abc import Mapping
from typing import Any

from bptt.errors import InputError
from bptt.gradient import RTRL, SnAp1, Truncated, parse_strategy
from bptt.options import TrainOptions
from bptt.typed import MANY

# Far beyond any machine; `bptt.train.checks.machine` compares with the memory of this one.
_LARGEST: dict[str, int] = {
    "hidden": MANY**2, "batch": MANY**2, "layers": 1000, "seed": 2**63 - 1, "minutes": 10**9,
    **dict.fromkeys(("chunk", "embedding", "length", "horizon", "season", "steps"), MANY),
    **dict.fromkeys(("validate_every", "warmup", "patience", "watch"), MANY),
}  # fmt: skip
_COUNTS = ("hidden", "layers", "batch", "chunk", "embedding", "length", "horizon", "validate_every", "steps")
_NOT_NEGATIVE = ("clip", "weight_decay", "warmup", "patience", "watch", "seed")


def flag(name: str) -> str:
    """Return an option as it is written on the command line: "validate_every" → "--validate-every"."""
    return "--" + name.replace("_", "-")


def check_options(options: TrainOptions, world: int = 1) -> None:
    """Raise InputError if the options cannot work, whatever the data are.

    Args:
        options: what the user asked for.
        world: number of processes that share each batch.
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
    values = {f.name: value for f in dataclasses.fields(options) if (value := getattr(options, f.name)) is not None}
    _check_least(values)
    for name, largest in _LARGEST.items():
        if values.get(name, 0) > largest:
            raise InputError(f"{flag(name)} {str(values[name])[:30]} is too large: it must be {largest:,} or less")
    if not 0 < options.lr < math.inf:
        raise InputError(f"--lr {options.lr} is impossible: it must be above 0, e.g. 0.002")
    if options.minutes is not None and not 0 < options.minutes < math.inf:
        raise InputError(f"--minutes {options.minutes} is impossible: it must be above 0, e.g. 1.5")
    if not 0 <= options.dropout < 1:
        raise InputError(f"--dropout {options.dropout} is impossible: it is a share, from 0 to below 1, e.g. 0.2")


def _check_least(values: Mapping[str, Any]) -> None:
    """Raise InputError for a count below 1, and for a number below 0 (or not finite) where 0 is the least."""
    for name in _COUNTS:
        if values.get(name, 1) < 1:
            raise InputError(f"{flag(name)} {values[name]} is impossible: it must be 1 or more")
    for name in _NOT_NEGATIVE:
        if not 0 <= values[name] < math.inf:
            raise InputError(f"{flag(name)} {values[name]} is impossible: it must be 0 or more")


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
