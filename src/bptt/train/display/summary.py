"""The summary that a run prints when it has ended: result, sample, and what to do next."""

import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bptt.terminal import visible, visible_lines
from bptt.train.display.progress import clock
from bptt.train.storage.checkpoint import TrainingState
from bptt.train.storage.run_folder import CURVE, PAGE
from bptt.train.wording import in_words
from bptt.typed import Json


@dataclass(frozen=True)
class Summary:
    """What is said of a run that has ended.

    Attributes:
        folder: the run folder.
        task: the task's name.
        state: how far the training came.
        patience: that of --patience if the weights are those of the best validation, 0 if they are the last.
        stopped_early: True if patience ended the run.
        report: what the task says of held-out data, {name: number or text}.
        sample: what the model wrote; None if it writes nothing.
    """

    folder: Path
    task: str
    state: TrainingState
    patience: int
    stopped_early: bool
    report: Json
    sample: str | None


def print_summary(summary: Summary) -> None:
    """Print the result as a table, the sample, and what to do next, to standard output."""
    from rich.console import Console
    from rich.text import Text

    console = Console(file=sys.stdout, highlight=False, soft_wrap=not sys.stdout.isatty())
    with console.capture() as captured:  # and print it here: rich ends the process if nobody reads
        console.print(_table(summary))
        if summary.patience:
            best = summary.state.best_step
            console.print(f"weights of the best validation, at step {best:,} (--patience {summary.patience})")
        if summary.sample is not None:
            console.rule("written by the model", align="left")
            console.print(Text(visible_lines(str(summary.sample))), soft_wrap=True)
            console.rule()
        for line in _what_next(summary):
            console.print(Text(visible(line)), soft_wrap=True)
    print(captured.get(), end="", flush=True)


def _table(summary: Summary) -> Any:
    from rich.table import Table
    from rich.text import Text

    state = summary.state
    title = f"{summary.task}: after {state.step:,} updates in {clock(state.elapsed)}"
    table = Table(title=title, title_justify="left")
    table.add_column("on held-out data", overflow="fold")
    table.add_column("", justify="right")
    for name, value in summary.report.items():
        table.add_row(Text(visible(name)), Text(visible(in_words(value))))
    return table


def _what_next(summary: Summary) -> list[str]:
    folder = summary.folder
    lines = [f"curve:     {folder / CURVE}", f"use it:    bptt predict {folder}"]
    if not summary.stopped_early:
        lines.append(f"train on:  bptt train --resume {folder} --steps {2 * summary.state.step}")
    if (folder / PAGE).exists():
        lines.append(f"report:    {folder / PAGE}")
    return lines
