"""`bptt predict`, `bptt inspect` and `bptt explain`: using a run that was trained."""

from pathlib import Path
from typing import Annotated, Any

from bptt.cli.parsing import fields_of, parse, run_and_options, with_plain_help
from bptt.errors import InputError
from bptt.options import ExplainOptions, InspectOptions, PredictOptions
from bptt.terminal import visible
from bptt.train.storage.config import read_config


def predict(arguments: list[str]) -> int:
    """Run `bptt predict` with these arguments. Returns the exit code."""
    run, options = run_and_options(PredictOptions, "bptt predict", arguments)
    from bptt.train.predict import predict as write_prediction

    write_prediction(run, options)
    return 0


def inspect(arguments: list[str]) -> int:
    """Run `bptt inspect` with these arguments. Returns the exit code."""
    run, options = run_and_options(InspectOptions, "bptt inspect", arguments)
    from bptt.train.inspect import inspect as print_verdict

    print_verdict(run, options)
    return 0


def explain(arguments: list[str]) -> int:
    """Run `bptt explain` with these arguments. Returns the exit code."""
    import tyro

    about = "The folder that `bptt train` made. Default: the lecture alone."
    run = Annotated[
        tyro.conf.Positional[Path | None], tyro.conf.arg(metavar="[RUN]", help=about, help_behavior_hint="")
    ]
    parsed = parse(with_plain_help(ExplainOptions, ("run", run, None)), "bptt explain", arguments)
    options = ExplainOptions(**fields_of(parsed, ExplainOptions))
    from bptt import explaining

    path = explaining.write(options.out, _own(parsed.run, options))
    print(f"wrote {visible(path)}")
    if options.open:
        explaining.show(path)
    return 0


def _own(run: Path | None, options: ExplainOptions) -> dict[str, Any] | None:
    """Return what the page shows of the run's network; None if there is no run."""
    if run is None:
        given = [name for name in ("data", "sample") if getattr(options, name) is not None]
        if given:
            raise InputError(
                f"--{given[0]} is of a run: give its folder, `bptt explain RUN --{given[0]} …`, or leave it out"
            )
        return None
    read_config(run)  # says what is wrong with it before torch is loaded
    from bptt.train.explain import own_of_run

    return own_of_run(run, options)
