"""From arguments to options: parsers made from the dataclasses of `bptt.options`, with errors in one line.

tyro makes the parsers. It is imported only when one is needed, as `bptt --help` must answer at once.
"""

import contextlib
import dataclasses
import io
import itertools
from pathlib import Path
from types import NoneType
from typing import Annotated, Any, get_args

from bptt.errors import InputError
from bptt.options import TASKS
from bptt.train.storage.config import read_config


def parse(kind: Any, program: str, arguments: list[str], default: Any = None) -> Any:
    """Return the options that the arguments give, as a `kind`. Raises InputError; --help prints and exits with 0.

    Args:
        kind: a dataclass of options.
        program: what the help calls the command.
        arguments: those after the command.
        default: an object to take from what the arguments do not give; None takes the defaults of `kind`.
    """
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


def with_plain_help(kind: type[Any], *more: tuple[Any, ...]) -> Any:
    """Return a dataclass like `kind` with further fields, whose help says PATH where tyro would say {None}|PATH."""
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


def fields_of(options: Any, kind: type[Any]) -> dict[str, Any]:
    """Return the fields of `kind` by name, from an object that may have more."""
    return {f.name: getattr(options, f.name) for f in dataclasses.fields(kind)}


def run_and_options(kind: type[Any], program: str, arguments: list[str]) -> tuple[Path, Any]:
    """Return the run folder that the arguments name, and the options. Raises InputError if it is no run folder."""
    import tyro

    about = "The folder that `bptt train` made."
    run = Annotated[tyro.conf.Positional[Path], tyro.conf.arg(metavar="RUN", help=about)]
    parsed = parse(with_plain_help(kind, ("run", run)), program, arguments)
    read_config(parsed.run)  # says what is wrong with it before torch is loaded
    return parsed.run, kind(**fields_of(parsed, kind))


def given_value(arguments: list[str], name: str) -> str | None:
    """Return the value of --name among the arguments; "" if it is the last of them, None if it is not there."""
    flag = f"--{name}"
    for here, following in itertools.pairwise([*arguments, ""]):
        if here == flag:
            return following
        if here.startswith(flag + "="):
            return here.removeprefix(flag + "=")
    return None
