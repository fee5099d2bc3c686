"""`bptt inspect`: how the gradient flows back through a trained run, as a verdict and a page."""

from pathlib import Path

from bptt.errors import InputError
from bptt.flow.report import words
from bptt.options import InspectOptions
from bptt.terminal import visible
from bptt.train.checks.machine import check_device
from bptt.train.display.page import write_page
from bptt.train.storage.config import read_config
from bptt.train.storage.metrics import read_metrics
from bptt.train.storage.run_folder import METRICS, PAGE
from bptt.train.trained import load_network, task_of_run
from bptt.train.watching import watch_training_data
from bptt.train.wording import Wording


def inspect(folder: Path, options: InspectOptions) -> None:
    """Watch a few batches go through the run's network, print the verdict and write the page. Raises InputError."""
    out = folder / PAGE if options.out is None else options.out
    if out.is_dir():
        raise InputError(f"--out {out} is a folder: give a file in it, e.g. {out / PAGE}")
    check_device(options.device)
    config = read_config(folder)
    model = load_network(folder, config).to(options.device)
    task = task_of_run(folder, config, options.data)
    flow = watch_training_data(model, task, config.options, _updates(folder))
    findings = flow.verdict()
    _say(f"{words.worst(findings).symbol} {words.worst(findings).word}: {words.headline(findings)}")
    for line in [*map(str, findings), *flow.notes]:
        _say(line)
    data = f"other data, {options.data}" if options.data else "the training data"
    try:
        write_page(out, folder, Wording.of(task), flow, f"on {data}, with the run's weights")
    except OSError as error:
        reason = f"cannot write the report {out}: {error.strerror or error}"
        raise InputError(f"{reason}; give --out a file in a folder that exists and can be written") from error
    _say(f"report:    {out}")


def _updates(folder: Path) -> int | None:
    """Return how many updates the run has made; None if its metrics are gone."""
    if not (folder / METRICS).exists():
        return None
    return max((line["step"] for line in read_metrics(folder) if "loss" in line), default=0)


def _say(line: str) -> None:
    print(visible(line))
