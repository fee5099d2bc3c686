"""The end of a run: the network is judged on held-out data, and the result is written and printed."""

from pathlib import Path

from bptt.files import write_atomically
from bptt.train.display.curve import draw_curve
from bptt.train.display.page import write_page
from bptt.train.display.summary import Summary, print_summary
from bptt.train.storage.report import write_report
from bptt.train.storage.run_folder import PAGE, SAMPLE
from bptt.train.training import Training, stopped_early
from bptt.train.watching import WarnOnce, watch_training_data
from bptt.train.wording import Wording
from bptt.typed import Json


def finish(training: Training, folder: Path, wording: Wording) -> None:
    """Judge the network on held-out data; write sample.txt, curve.png, report.html and report.json; print a summary.

    Raises OSError if a file cannot be written; without report.json the run counts as unfinished.
    """
    report = training.task.report(training.model)
    sample = report.get("sample")
    if sample is not None:
        write_atomically(folder / SAMPLE, str(sample).encode("utf-8", "replace"))
    draw_curve(folder, wording.task, wording.metric, wording.score, report)
    _write_page(training, folder, wording, report)
    write_report(folder, report)  # last: where it is, the run is complete
    print_summary(
        Summary(
            folder=folder,
            task=wording.task,
            state=training.state,
            patience=training.options.patience if training.best else 0,
            stopped_early=stopped_early(training.options, training.state),
            report={name: value for name, value in report.items() if name != "sample"},
            sample=sample,
        )
    )


def _write_page(training: Training, folder: Path, wording: Wording, report: Json) -> None:
    """Write report.html, with the gradient's flow through the final weights; where that fails, warn and go on."""
    if not training.options.watch:
        return
    try:
        flow = watch_training_data(training.model, training.task, training.options, training.state.step)
        watched = "on the training data, with the run's weights"
        write_page(folder / PAGE, folder, wording, flow, watched, report)
    except Exception as error:  # the training is done, and what it made is of more worth
        WarnOnce()(f"could not write {folder / PAGE}: {type(error).__name__}: {error}")
