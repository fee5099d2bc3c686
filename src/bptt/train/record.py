"""Noting what happens in a training: metrics and checkpoints in the run folder, progress and a page for the user."""

import time
from pathlib import Path

from bptt.flow import Flow
from bptt.train.display.page import LivePage
from bptt.train.display.progress import Progress
from bptt.train.events import Update, Validation
from bptt.train.storage.checkpoint import write_checkpoint
from bptt.train.storage.metrics import Metrics, write_timing
from bptt.train.training import Training
from bptt.train.watching import WarnOnce, figures

CHECKPOINT_SECONDS = 15.0  # between two checkpoints
VALIDATED_SECONDS = 3.0  # between a checkpoint and one right after a validation

_UPDATE_LINE = ("step", "epoch", "loss", "grad_norm", "lr")


class Record:
    """The files and the display of a run. In other processes than the first it only takes part in checkpoints."""

    def __init__(
        self, folder: Path | None, metrics: Metrics | None, progress: Progress, step: int | None = None
    ) -> None:
        """Take the open files and the display of a run.

        Args:
            folder: the run folder; None in other processes than the first.
            metrics: the open metrics.jsonl, None there too.
            progress: what shows the progress.
            step: the step of the checkpoint that the folder holds; None if it holds none.
        """
        self.folder, self.metrics, self.progress = folder, metrics, progress
        self._page = None if folder is None else LivePage(folder, progress.wording)
        self._step = step
        self._written = time.monotonic()
        self._warn_once = WarnOnce()

    def checkpoint_is_due(self, validated: bool = False) -> bool:
        """True when the last checkpoint is old; right after a validation it counts as old sooner."""
        return time.monotonic() - self._written >= (VALIDATED_SECONDS if validated else CHECKPOINT_SECONDS)

    def update(self, update: Update) -> None:
        """Write an update to the metrics, show it, and write the page if the update was watched."""
        if self.metrics is not None:
            self.metrics.write({name: getattr(update, name) for name in _UPDATE_LINE})
        if update.flow is not None:
            try:
                self._flow(update.step, update.flow)
            except Exception as error:  # an observer must not stop a training run
                self._warn_once(f"could not note what was seen: {type(error).__name__}: {error}")
        self.progress.update(update)

    def _flow(self, step: int, flow: Flow) -> None:
        """Write to the metrics how the gradient flowed back, and the page if it is due."""
        if self.metrics is not None:
            self.metrics.write({"step": step, "flow": figures(flow)})
            if self._page is not None and self._page.is_due:
                self.metrics.flush()
                self._page.write(step, flow)

    def diverged(self, step: int, flow: Flow) -> str:
        """Write report.html for an update that failed; returns the end of a message that says where it is, or ""."""
        if self._page is None:
            return ""
        try:
            self._page.write(step, flow, "whose loss or gradient is no finite number")
        except Exception as error:
            self._warn_once(f"could not write the report: {type(error).__name__}: {error}")
            return ""
        return f"; where it began: {self._page.path}"

    def validation(self, training: Training, validation: Validation) -> None:
        """Write a validation to the metrics, show it, and write a checkpoint if one is due."""
        if self.metrics is not None:
            line = {"step": validation.step, "epoch": validation.epoch}
            self.metrics.write(line | {"validation_loss": validation.loss, "validation": validation.score})
        self.progress.validation(validation)
        if validation.checkpoint:
            self.checkpoint(training)

    def checkpoint(self, training: Training) -> None:
        """Write a checkpoint and its time. Raises OSError, and then the last checkpoint is still there."""
        mark = {} if self.metrics is None else self.metrics.mark()
        checkpoint = training.checkpoint(mark)
        if checkpoint is not None and self.folder is not None:
            write_checkpoint(self.folder, checkpoint)
            state = checkpoint.state
            self._step = state.step
            write_timing(self.folder, {"step": state.step, "elapsed": state.elapsed, "time": time.time()})
        self._written = time.monotonic()

    @property
    def kept(self) -> str:
        """What is said of the last checkpoint in a message: "the checkpoint of step 40 is kept"."""
        return (
            "no checkpoint was written yet" if self._step is None else f"the checkpoint of step {self._step:,} is kept"
        )

    def close(self) -> None:
        """Take the display from the screen, and close the files."""
        self.progress.close()
        if self.metrics is not None:
            self.metrics.close()
