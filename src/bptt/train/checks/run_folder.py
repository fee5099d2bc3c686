"""Whether a run folder can be used: its options and sizes are possible, its data are where they were, and unchanged.

A run folder may be a stranger's, or damaged on purpose: it is judged before anything of the size that it names is made.
"""

import stat
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from bptt.errors import InputError
from bptt.options import TrainOptions
from bptt.tasks import Sizes
from bptt.tasks.specs import check_spec
from bptt.train.checks.options import check_options, flag
from bptt.train.storage.config import Config
from bptt.train.storage.run_folder import CONFIG
from bptt.typed import Unexpected


def network_sizes(folder: Path, config: Config) -> Sizes:
    """Return the sizes of the network that config.json describes. Raises InputError if its options, its spec and the
    sizes that it gives do not agree, or are impossible.
    """
    try:
        check_options(config.options)
    except InputError as error:
        raise InputError(f"{folder / CONFIG} says: {error}") from error
    try:
        return check_spec(config.options, config.spec, config.sizes)
    except Unexpected as error:
        raise InputError(f"{folder / CONFIG} describes no network ({error}); restore it from a copy") from error


def kept_data(options: TrainOptions) -> list[tuple[str, Path]]:
    """Return (option, path) for each file or folder of data that the options name: [("--data", Path("book.txt"))]."""
    named = [(flag(name), getattr(options, name, None)) for name in ("data", "test_data")]
    return [(option, path) for option, path in named if path is not None]


def check_kept_data(folder: Path, kept: Iterable[tuple[str, Path]]) -> None:
    """Raise InputError unless the data that a run folder names are there, and are files or folders.

    A stranger's folder may name a pipe or a device, reading which would never end.

    Args:
        folder: the run folder that names them.
        kept: (option, path) pairs; the option is the one with which the user can give another path.
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
    """Raise InputError if the data are not those that the run in `folder` was trained on.

    Args:
        folder: the run folder.
        config: its config.json, which holds the fingerprint of its data.
        fingerprint: `Task.fingerprint` of the data at hand.
        remedy: how the message ends, after "bring them back, ".
    """
    before = config.fingerprint
    if fingerprint != before:
        changed = [key for key in {**fingerprint, **before} if fingerprint.get(key) != before.get(key)]
        raise InputError(
            f"the data are not those that {folder} was trained on (different: {', '.join(changed)}): "
            f"bring them back, {remedy}"
        )
