"""`bptt train`: a new run, or one that goes on."""

import dataclasses
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any, Union

from bptt.cli.failures import fail, out_of_memory
from bptt.cli.parsing import fields_of, given_value, parse, with_plain_help
from bptt.errors import InputError
from bptt.options import TASKS, TrainOptions
from bptt.train.storage.config import read_config

_TRAIN = """Train a recurrent network by backpropagation through time, in a run folder of its own.

Without a task it learns text: `bptt train --steps 500` is `bptt train text --steps 500`.
`bptt train --resume RUN` goes on where RUN stopped; only --steps, --minutes, --watch and --device may be other than before.

Options of a task: `bptt train TASK --help`."""

# Options that may differ when a run goes on. Of the data only the path may; a hash tells whether they are the same.
_MAY_CHANGE = {"steps", "minutes", "watch", "device", "data", "test_data"}


def train(arguments: list[str]) -> int:
    """Run `bptt train` with these arguments. Returns the exit code."""
    if arguments and arguments[0] in ("-h", "--help"):
        return _train_help()
    task = None
    if arguments and not arguments[0].startswith("-"):
        task, *arguments = arguments
        if task not in TASKS:
            raise InputError(f"unknown task {task!r}: give one of {', '.join(TASKS)}, or none for text")
    folder = _resume_argument(arguments)
    if folder is not None:
        return _resume(folder, task, arguments)
    options = _with_given_budget(_parse_training(TASKS[task or "text"], arguments), arguments)
    from bptt.train import run

    return _guarded(lambda: run.start(options))


def _resume(folder: Path, task: str | None, arguments: list[str]) -> int:
    config = read_config(folder)
    kind = type(config.options)
    if task not in (None, kind.task):
        raise InputError(f"{folder} is a run of {kind.task}, not of {task}: leave the task out")
    given = _parse_training(kind, arguments, config.options, folder)
    options = _resumed(folder, config.options, _with_given_budget(given, arguments))
    from bptt.train import run

    return _guarded(lambda: run.resume(folder, config, options))


def _guarded(work: Callable[[], int]) -> int:
    """Return the exit code of a training, and print the error of one that fails."""
    from torch import OutOfMemoryError

    from bptt.train.distributed import AlreadyReported, ProcessDied, Processes
    from bptt.train.events import Diverged

    try:
        code = work()
        if code > 128:  # stopped by a signal, which torchrun repeats: it must not meet the process in its last moments
            signal.signal(signal.SIGINT, signal.SIG_IGN)
        return code
    except AlreadyReported:
        return 2
    except Diverged as error:
        return fail(str(error), code=1) if Processes.number() == 0 else 1
    except ProcessDied as error:
        return fail(str(error)) if Processes.number() == 0 else 2
    except (MemoryError, OutOfMemoryError) as error:
        return fail(out_of_memory(error))
    except RuntimeError as error:
        if "allocate" in str(error):  # torch has no class for it on the CPU
            return fail(out_of_memory(error))
        raise


def _parse_training(
    kind: type[TrainOptions], arguments: list[str], before: TrainOptions | None = None, folder: Path | None = None
) -> TrainOptions:
    """Return the options that the arguments give; the others are those of `before` if it is given, else the defaults."""
    import tyro

    about = "Go on with the run in this folder; its task and options need not be given."
    resume = Annotated[Path | None, tyro.conf.arg(metavar="RUN", help=about, help_behavior_hint="")]
    shown = with_plain_help(kind, ("resume", resume, None))
    default = None if before is None else shown(**fields_of(before, kind), resume=folder)
    return kind(**fields_of(parse(shown, f"bptt train {kind.task}", arguments, default), kind))


def _train_help() -> int:
    import tyro

    named = tuple(Annotated[kind, tyro.conf.subcommand(name=name)] for name, kind in TASKS.items())
    kinds: Any = Union[named]  # noqa: UP007  # made at run time
    tyro.cli(kinds, prog="bptt train", description=_TRAIN, args=["--help"])
    return 0


def _resume_argument(arguments: list[str]) -> Path | None:
    run = given_value(arguments, "resume")
    if run is None or "-h" in arguments or "--help" in arguments:
        return None
    if run == "" or run.startswith("-"):
        raise InputError("--resume needs the folder of a run, e.g. --resume runs/text-1")
    return Path(run)


def _with_given_budget(options: TrainOptions, arguments: list[str]) -> TrainOptions:
    """Return the options with one budget where one of --steps and --minutes is given: a default must not end it sooner."""
    steps, minutes = given_value(arguments, "steps"), given_value(arguments, "minutes")
    if steps is not None and minutes is None:
        return dataclasses.replace(options, minutes=None)
    if minutes is not None and steps is None:
        return dataclasses.replace(options, steps=None)
    return options


def _resumed(folder: Path, before: TrainOptions, given: TrainOptions) -> TrainOptions:
    """Return the given options. Raises InputError if they differ from those of the run where they may not."""
    if given.out is not None and given.out.absolute() == folder.absolute():
        given = dataclasses.replace(given, out=before.out)
    for field in dataclasses.fields(before):
        was, now = getattr(before, field.name), getattr(given, field.name)
        if field.name in _MAY_CHANGE or _same(was, now):
            continue
        raise InputError(
            f"--{field.name.replace('_', '-')} is {was} in {folder}, given is {now}: leave it out to go on with the run, "
            "or train a new one"
        )
    return given


def _same(was: Any, now: Any) -> bool:
    return was == now or (isinstance(was, Path) and isinstance(now, Path) and was.absolute() == now.absolute())
