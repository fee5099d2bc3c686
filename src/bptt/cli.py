"""The command line: `bptt train`, `predict`, `inspect`, `explain` and `bench`, made from the dataclasses of `bptt.options`.

Exit codes: 0 done; 1 the loss became infinite or not a number, or bench found wrong gradients; 2 something given cannot be
used; 130 and 143 stopped by Ctrl-C and SIGTERM. torch is imported only when there is work for it: help and mistakes are
answered at once.
"""

import contextlib
import dataclasses
import io
import itertools
import os
import signal
import sys
import warnings
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from types import NoneType
from typing import Annotated, Any, Union, get_args

import bptt
from bptt.errors import InputError
from bptt.options import TASKS, BenchOptions, ExplainOptions, InspectOptions, PredictOptions, TrainOptions
from bptt.terminal import visible, visible_lines

HELP = f"""\
usage: bptt [-h] [--version] {{train,predict,inspect,explain,bench}} ...

Train recurrent networks by backpropagation through time, and use them.

  bptt train                                           learn to write, from the source text of Python's own
                                                       library; 90 seconds
  bptt train text   --data BOOK.txt                    … from a text of yours, a file or a folder
  bptt train series --data FILE.csv --target COLUMN    forecast a table over time
  bptt train labels --data FILE.csv --id COLUMN --label COLUMN
                                                       label whole sequences
  bptt train {{adding,copy}} --length 100                two problems that need a long memory
  bptt train --resume RUN                              go on where a run stopped
  bptt predict RUN                                     use a run: continue a text, forecast, label
  bptt inspect RUN                                     how the gradient flows back through a run, and a report
  bptt explain                                         the lecture on backpropagation through time as a page
  bptt explain RUN                                     … with a run's own network on it
  bptt bench                                           torch.nn against bptt on this machine; a minute

  torchrun --nproc-per-node N -m bptt train …          train in N processes

options:
  -h, --help     show this help; also `bptt train --help`, `bptt train TASK --help`, `bptt predict --help`,
                 `bptt inspect --help`, `bptt explain --help`, `bptt bench --help`
  --version      show the version ({bptt.__version__})
"""

_TRAIN = """Train a recurrent network by backpropagation through time, in a run folder of its own.

Without a task it learns text: `bptt train --steps 500` is `bptt train text --steps 500`.
`bptt train --resume RUN` goes on where RUN stopped; only --steps, --minutes, --watch and --device may be other than before.

Options of a task: `bptt train TASK --help`."""

# Whether the data are the same, their hashes tell.
_MAY_CHANGE = {"steps", "minutes", "watch", "device", "data", "test_data"}


def main(arguments: Sequence[str] | None = None) -> int:
    """Run `bptt` with these arguments (default: the process's own). Returns the exit code."""
    arguments = list(sys.argv[1:] if arguments is None else arguments)
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="replace")  # a terminal that cannot show "…" is no reason to fail
    try:
        with _warnings_in_words():
            return _command(arguments)
    except InputError as error:
        return _fail(str(error))
    except MemoryError as error:
        return _fail(_out_of_memory(error))
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # for the flush at exit
        return 0
    except OSError as error:
        where = f"{error.filename}: " if error.filename else ""
        return _fail(f"{where}{error.strerror or error}; check the disk and the permissions, then try again")
    except KeyboardInterrupt:
        print("\nbptt: stopped at once; a run keeps its last checkpoint", file=sys.stderr)
        return 130


def _fail(message: str, code: int = 2) -> int:
    if os.environ.get("RANK", "0") == "0":  # of several processes the first speaks for all
        print(f"bptt: error: {visible(' '.join(message.split()))}", file=sys.stderr)
    return code


@contextlib.contextmanager
def _warnings_in_words() -> Iterator[None]:
    """A warning may quote what the data say: it is shown, not obeyed."""
    usual = warnings.formatwarning
    warnings.formatwarning = lambda *args, **more: visible_lines(usual(*args, **more))
    try:
        yield
    finally:
        warnings.formatwarning = usual


def _command(arguments: list[str]) -> int:
    # OpenMP's threads wait for each other by spinning, and come almost to a halt when another process wants a core: on 2
    # cores the demo then went 5 times slower. Spinning briefly loses nothing when alone. To be set before torch is loaded.
    if arguments[:1] != ["bench"]:  # which measures torch as it is in the user's own programs
        os.environ.setdefault("GOMP_SPINCOUNT", "1000")
    commands: dict[str, Callable[[list[str]], int]] = {
        "train": _train,
        "predict": _predict,
        "inspect": _inspect,
        "explain": _explain,
        "bench": _bench,
    }
    if not arguments or arguments[0] in ("-h", "--help"):
        print(HELP, end="")
        return 0 if arguments else 2
    if arguments[0] == "--version":
        print(f"bptt {bptt.__version__}")
        return 0
    if arguments[0] not in commands:
        raise InputError(
            f"unknown command {arguments[0]!r}: give train, predict, inspect, explain or bench; "
            "`bptt --help` shows examples"
        )
    return commands[arguments[0]](arguments[1:])


# train -------------------------------------------------------------------------------------------------------------


def _train(arguments: list[str]) -> int:
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
    from bptt.train.storage.config import read_config

    config = read_config(folder)
    kind = type(config.options)
    if task not in (None, kind.task):
        raise InputError(f"{folder} is a run of {kind.task}, not of {task}: leave the task out")
    given = _parse_training(kind, arguments, config.options, folder)
    options = _resumed(folder, config.options, _with_given_budget(given, arguments))
    from bptt.train import run

    return _guarded(lambda: run.resume(folder, config, options))


def _guarded(work: Callable[[], int]) -> int:
    """The exit code of a training, also where it ends in one of the ways that a training can."""
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
        return _fail(str(error), code=1) if Processes.number() == 0 else 1
    except ProcessDied as error:
        return _fail(str(error)) if Processes.number() == 0 else 2
    except (MemoryError, OutOfMemoryError) as error:
        return _fail(_out_of_memory(error))
    except RuntimeError as error:
        if "allocate" in str(error):  # torch has no class for it on the CPU
            return _fail(_out_of_memory(error))
        raise


def _out_of_memory(error: BaseException) -> str:
    reason = str(error).split("\n")[0]
    return f"out of memory ({reason}): try a smaller --batch, --hidden, --layers, --chunk or --length"


def _parse_training(
    kind: type[TrainOptions], arguments: list[str], before: TrainOptions | None = None, folder: Path | None = None
) -> TrainOptions:
    """The options on the line; those that are not given as `before`, or the defaults."""
    import tyro

    about = "Go on with the run in this folder; its task and options need not be given."
    resume = Annotated[Path | None, tyro.conf.arg(metavar="RUN", help=about, help_behavior_hint="")]
    shown = _with_plain_help(kind, ("resume", resume, None))
    default = None if before is None else shown(**_values(before, kind), resume=folder)
    return kind(**_values(_parse(shown, f"bptt train {kind.task}", arguments, default), kind))


def _parse(kind: Any, program: str, arguments: list[str], default: Any = None) -> Any:
    """tyro's parser, with its boxed errors as one line. Raises InputError; help exits with 0."""
    import tyro

    given = {} if default is None else {"default": default}
    said = io.StringIO()
    try:
        with contextlib.redirect_stderr(said):
            return tyro.cli(kind, prog=program, args=arguments, **given)
    except SystemExit as end:
        if not end.code:
            raise
        # The box is drawn with other signs where the terminal does not show these.
        lines = (line.strip("│╭╮╰╯─| ") for line in said.getvalue().splitlines()[1:] if line.strip("+-| "))
        message = " ".join(line for line in lines if line).partition("For full helptext")[0].strip()
        order = (
            "; the task comes first: `bptt train TASK --option …`"
            if message.split()[-1:] and message.split()[-1] in TASKS
            else ""
        )
        raise InputError(f"{message.replace('Argument helptext:', '— ')}{order}; see `{program} --help`") from None


def _with_plain_help(kind: type[Any], *more: tuple[Any, ...]) -> Any:
    """A dataclass with the fields of `kind` and some more, of which tyro's help says PATH instead of {None}|PATH."""
    import tyro

    fields: list[tuple[Any, ...]] = []
    for f in dataclasses.fields(kind):
        others = [t for t in get_args(f.type) if t is not NoneType]
        if NoneType in get_args(f.type):
            hint = "" if f.default is None else None  # where it is None, the help line itself says what that means
            argument: Any = Annotated[
                f.type, tyro.conf.arg(metavar=others[0].__name__.upper(), help_behavior_hint=hint)
            ]
            fields.append((f.name, argument, f.default))
    return dataclasses.make_dataclass(
        kind.__name__, [*fields, *more], bases=(kind,), frozen=True, kw_only=True, namespace={"__doc__": kind.__doc__}
    )


def _values(options: Any, kind: type[Any]) -> dict[str, Any]:
    """The fields that `kind` has, from an object that may have more."""
    return {f.name: getattr(options, f.name) for f in dataclasses.fields(kind)}


def _train_help() -> int:
    import tyro

    named = tuple(Annotated[kind, tyro.conf.subcommand(name=name)] for name, kind in TASKS.items())
    kinds: Any = Union[named]  # noqa: UP007  # made at run time
    tyro.cli(kinds, prog="bptt train", description=_TRAIN, args=["--help"])
    return 0


def _given(arguments: list[str], name: str) -> str | None:
    """The value of --name on the line, None if it is not there ("" if it is last)."""
    flag = f"--{name}"
    for here, following in itertools.pairwise([*arguments, ""]):
        if here == flag:
            return following
        if here.startswith(flag + "="):
            return here.removeprefix(flag + "=")
    return None


def _resume_argument(arguments: list[str]) -> Path | None:
    run = _given(arguments, "resume")
    if run is None or "-h" in arguments or "--help" in arguments:
        return None
    if run == "" or run.startswith("-"):
        raise InputError("--resume needs the folder of a run, e.g. --resume runs/text-1")
    return Path(run)


def _with_given_budget(options: TrainOptions, arguments: list[str]) -> TrainOptions:
    """Where one of --steps and --minutes is given, it alone is the budget: a default must not cut it short."""
    steps, minutes = _given(arguments, "steps"), _given(arguments, "minutes")
    if steps is not None and minutes is None:
        return dataclasses.replace(options, minutes=None)
    if minutes is not None and steps is None:
        return dataclasses.replace(options, steps=None)
    return options


def _resumed(folder: Path, before: TrainOptions, given: TrainOptions) -> TrainOptions:
    """The given options, if they differ from those of the run only where they may."""
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


# predict -----------------------------------------------------------------------------------------------------------


def _predict(arguments: list[str]) -> int:
    run, options = _run_and_options(PredictOptions, "bptt predict", arguments)
    from bptt.train.predict import predict

    predict(run, options)
    return 0


def _run_and_options(kind: type[Any], program: str, arguments: list[str]) -> tuple[Path, Any]:
    """The run folder on the line, which is one, and the options."""
    import tyro

    about = "The folder that `bptt train` made."
    run = Annotated[tyro.conf.Positional[Path], tyro.conf.arg(metavar="RUN", help=about)]
    parsed = _parse(_with_plain_help(kind, ("run", run)), program, arguments)
    from bptt.train.storage.config import read_config

    read_config(parsed.run)  # says what is wrong with it before torch is loaded
    return parsed.run, kind(**_values(parsed, kind))


# inspect -----------------------------------------------------------------------------------------------------------


def _inspect(arguments: list[str]) -> int:
    run, options = _run_and_options(InspectOptions, "bptt inspect", arguments)
    from bptt.train.inspect import inspect

    inspect(run, options)
    return 0


# explain -----------------------------------------------------------------------------------------------------------


def _explain(arguments: list[str]) -> int:
    import tyro

    about = "The folder that `bptt train` made. Default: the lecture alone."
    run = Annotated[
        tyro.conf.Positional[Path | None], tyro.conf.arg(metavar="[RUN]", help=about, help_behavior_hint="")
    ]
    parsed = _parse(_with_plain_help(ExplainOptions, ("run", run, None)), "bptt explain", arguments)
    options = ExplainOptions(**_values(parsed, ExplainOptions))
    from bptt import explaining

    path = explaining.write(options.out, _own(parsed.run, options))
    print(f"wrote {visible(path)}")
    if options.open:
        explaining.show(path)
    return 0


def _own(run: Path | None, options: ExplainOptions) -> dict[str, Any] | None:
    """What the page shows of the run's network; None if there is no run."""
    if run is None:
        given = [name for name in ("data", "sample") if getattr(options, name) is not None]
        if given:
            raise InputError(
                f"--{given[0]} is of a run: give its folder, `bptt explain RUN --{given[0]} …`, or leave it out"
            )
        return None
    from bptt.train.storage.config import read_config

    read_config(run)  # says what is wrong with it before torch is loaded
    from bptt.train.explain import own_of_run

    return own_of_run(run, options)


# bench -------------------------------------------------------------------------------------------------------------


def _bench(arguments: list[str]) -> int:
    parsed = _parse(_with_plain_help(BenchOptions), "bptt bench", arguments)
    from bptt import bench

    return bench.run(BenchOptions(**_values(parsed, BenchOptions)))
