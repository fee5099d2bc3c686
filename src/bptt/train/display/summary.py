"""The end of a run: report, sample and curve, in the folder and on the screen."""

import sys
from pathlib import Path
from typing import Any

from bptt.files import write_atomically
from bptt.tasks import Json
from bptt.terminal import visible, visible_lines
from bptt.train.display.curve import draw_curve
from bptt.train.display.page import write_page
from bptt.train.display.progress import Wording, clock
from bptt.train.loop import Training
from bptt.train.storage.run_folder import CURVE, PAGE, REPORT, SAMPLE, write_json
from bptt.train.watching import Once, watch_training_data


def finish(training: Training, folder: Path, wording: Wording) -> None:
    """Judge the model on the held-out data; write report.json, sample.txt and curve.png; print them."""
    report = training.task.report(training.model)
    sample = report.get("sample")
    if sample is not None:
        write_atomically(folder / SAMPLE, str(sample).encode("utf-8", "replace"))
    draw_curve(folder, wording.task, wording.metric, wording.score, report)
    _write_page(training, folder, wording, report)
    write_json(folder / REPORT, report)  # last: where it is, the run is complete
    print_summary(training, folder, {name: value for name, value in report.items() if name != "sample"}, sample)


def _write_page(training: Training, folder: Path, wording: Wording, report: Json) -> None:
    """Write report.html, with the gradient's flow through the final weights; if that fails, say so and no more."""
    if not training.options.watch:
        return
    try:
        flow = watch_training_data(training.model, training.task, training.options, training.standing.step)
        watched = "on the training data, with the run's weights"
        write_page(folder / PAGE, folder, wording, flow, watched, report)
    except Exception as error:  # the training is done, and what it made is of more worth
        Once()(f"could not write {folder / PAGE}: {type(error).__name__}: {error}")


def print_summary(training: Training, folder: Path, report: Json, sample: Any) -> None:
    """The report as a table, the sample, and what to do next, on standard output."""
    from rich.console import Console
    from rich.text import Text

    console = Console(file=sys.stdout, highlight=False, soft_wrap=not sys.stdout.isatty())
    with console.capture() as captured:  # and print it here: rich ends the process if nobody reads
        console.print(_table(training, report))
        if training.best:
            best, patience = training.standing.best_step, training.options.patience
            console.print(f"weights of the best validation, at step {best:,} (--patience {patience})")
        if sample is not None:
            console.rule("written by the model", align="left")
            console.print(Text(visible_lines(str(sample))), soft_wrap=True)
            console.rule()
        for line in _what_next(training, folder):
            console.print(Text(visible(line)), soft_wrap=True)
    print(captured.get(), end="", flush=True)


def _table(training: Training, report: Json) -> Any:
    from rich.table import Table
    from rich.text import Text

    at = training.standing
    table = Table(title=f"{training.task.name}: after {at.step:,} updates in {clock(at.elapsed)}", title_justify="left")
    table.add_column("on held-out data", overflow="fold")
    table.add_column("", justify="right")
    for name, value in report.items():
        table.add_row(Text(visible(name)), Text(visible(_number(value))))
    return table


def _what_next(training: Training, folder: Path) -> list[str]:
    lines = [f"curve:     {folder / CURVE}", f"use it:    bptt predict {folder}"]
    if not stopped_early(training):
        lines.append(f"train on:  bptt train --resume {folder} --steps {2 * training.standing.step}")
    if (folder / PAGE).exists():
        lines.append(f"report:    {folder / PAGE}")
    return lines


def stopped_early(training: Training) -> bool:
    """True if patience ended the run."""
    return 0 < training.options.patience <= training.standing.misses


def _number(value: Any) -> str:
    if isinstance(value, bool) or not isinstance(value, int | float):
        return str(value)
    return f"{value:,}" if isinstance(value, int) else f"{value:.4g}"
