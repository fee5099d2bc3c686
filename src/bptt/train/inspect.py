"""Seeing how the gradient flows back through a trained run: `bptt inspect`."""

from dataclasses import asdict, replace
from pathlib import Path

from bptt.errors import InputError
from bptt.flow.report import words
from bptt.options import InspectOptions, LabelsOptions, TrainOptions
from bptt.tasks import Task, make_task
from bptt.terminal import visible
from bptt.train import check
from bptt.train.display.page import write_page
from bptt.train.display.progress import Wording
from bptt.train.model import count_parameters
from bptt.train.predict import load_network
from bptt.train.storage.metrics import read_metrics
from bptt.train.storage.run_folder import METRICS, PAGE, Config, read_config
from bptt.train.watching import watch_training_data


def inspect(folder: Path, options: InspectOptions) -> None:
    """Watch a few batches go through the run's network; print the verdict, write the page. Raises InputError."""
    out = folder / PAGE if options.out is None else options.out
    if out.is_dir():
        raise InputError(f"--out {out} is a folder: give a file in it, e.g. {out / PAGE}")
    check.check_device(options.device)
    config = read_config(folder)
    model = load_network(folder, config).to(options.device)
    task = task_of_run(folder, config, options.data)
    flow = watch_training_data(model, task, config.options, _updates(folder))
    findings = flow.verdict()
    _say(f"{words.worst(findings).symbol} {words.worst(findings).word}: {words.headline(findings)}")
    for line in [*map(str, findings), *flow.notes]:
        _say(line)
    watched = (
        f"on {'other data, ' + str(options.data) if options.data else 'the training data'}, with the run's weights"
    )
    wording = Wording(task.name, task.metric, task.unit, task.score)
    try:
        write_page(out, folder, wording, flow, watched)
    except OSError as error:
        reason = f"cannot write the report {out}: {error.strerror or error}"
        raise InputError(f"{reason}; give --out a file in a folder that exists and can be written") from error
    _say(f"report:    {out}")


def _updates(folder: Path) -> int | None:
    """How many updates the run has made, None if its metrics are gone."""
    if not (folder / METRICS).exists():
        return None
    return max((line["step"] for line in read_metrics(folder) if "loss" in line), default=0)


def task_of_run(folder: Path, config: Config, data: Path | None) -> Task:
    """The task with the run's data, or with other data encoded as the run's. Raises InputError."""
    if data is None:
        check.check_kept_data(folder, [("--data", path) for _, path in check.kept_data(config.options)])
        task = make_task(config.options)
        check.check_memory(config.options, count_parameters(config.options, task.sizes()))
        check.check_fingerprint(folder, config, task.fingerprint(), "or give others with --data")
        return task
    task = make_task(_with_data(config.options, data))
    check.check_memory(config.options, count_parameters(config.options, task.sizes()))
    task.encode_as(config.spec)
    if asdict(task.sizes()) != config.sizes:
        raise InputError(f"--data {data} does not fit the network of {folder}: give data of the form it was trained on")
    return task


def _with_data(options: TrainOptions, data: Path) -> TrainOptions:
    if not hasattr(options, "data"):
        raise InputError(f"--data {data} cannot be used: the {options.task} problem draws its own, leave it out")
    if isinstance(options, LabelsOptions):
        return replace(options, data=data, test_data=None)
    return replace(options, data=data)  # type: ignore[call-arg]  # the task has data


def _say(line: str) -> None:
    print(visible(line))
