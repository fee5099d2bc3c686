"""What a run leaves behind while it goes on: metrics, checkpoints, and what the user sees."""

import time
from dataclasses import asdict
from pathlib import Path

from bptt.flow import Flow
from bptt.train.display.page import LivePage
from bptt.train.display.progress import Progress
from bptt.train.loop import Training, Update, Validation
from bptt.train.storage.checkpoint import write_checkpoint
from bptt.train.storage.metrics import Metrics, write_timing
from bptt.train.watching import Once, figures

CHECKPOINT_SECONDS = 15.0  # between two checkpoints
VALIDATED_SECONDS = 3.0  # the same right after a validation

_UPDATE_LINE = ("step", "epoch", "loss", "grad_norm", "lr")


class Record:
    """The files and the display of a run, in its first process; in the others it only takes part in checkpoints."""

    def __init__(
        self, folder: Path | None, metrics: Metrics | None, progress: Progress, step: int | None = None
    ) -> None:
        """`step` is that of the checkpoint that is already there, None if none is."""
        self.folder, self.metrics, self.progress = folder, metrics, progress
        self._page = None if folder is None else LivePage(folder, progress.wording)
        self._step = step
        self._written = time.monotonic()
        self._warn_once = Once()

    def checkpoint_is_due(self, validated: bool = False) -> bool:
        """True when the last one is old."""
        return time.monotonic() - self._written >= (VALIDATED_SECONDS if validated else CHECKPOINT_SECONDS)

    def update(self, update: Update) -> None:
        """Note an update."""
        if self.metrics is not None:
            self.metrics.write({name: getattr(update, name) for name in _UPDATE_LINE})
        if update.flow is not None:
            try:
                self._flow(update.step, update.flow)
            except Exception as error:  # an observer must not stop a training run
                self._warn_once(f"could not note what was seen: {type(error).__name__}: {error}")
        self.progress.update(update)

    def _flow(self, step: int, flow: Flow) -> None:
        """Note how the gradient flowed back."""
        if self.metrics is not None:
            self.metrics.write({"step": step, "flow": figures(flow)})
            if self._page is not None and self._page.is_due:
                self.metrics.flush()
                self._page.write(step, flow)

    def diverged(self, step: int, flow: Flow) -> str:
        """Write report.html of an update that failed; returns where it is, in words, or nothing if that fails too."""
        if self._page is None:
            return ""
        try:
            self._page.write(step, flow, "whose loss or gradient is no finite number")
        except Exception as error:
            self._warn_once(f"could not write the report: {type(error).__name__}: {error}")
            return ""
        return f"; where it began: {self._page.path}"

    def validation(self, training: Training, validation: Validation) -> None:
        """Note a validation."""
        if self.metrics is not None:
            line = {"step": validation.step, "epoch": validation.epoch}
            self.metrics.write(line | {"validation_loss": validation.loss, "validation": validation.score})
        self.progress.validation(validation)
        if validation.checkpoint:
            self.checkpoint(training)

    def checkpoint(self, training: Training) -> None:
        """Write a checkpoint. Raises OSError, and then the last one is still there."""
        mark = {} if self.metrics is None else self.metrics.mark()
        checkpoint = training.checkpoint(mark)
        if checkpoint is not None and self.folder is not None:
            write_checkpoint(self.folder, checkpoint)
            self._step = checkpoint.standing.step
            standing = asdict(checkpoint.standing)
            write_timing(self.folder, {key: standing[key] for key in ("step", "elapsed")} | {"time": time.time()})
        self._written = time.monotonic()

    @property
    def kept(self) -> str:
        """Which checkpoint there is, in words."""
        return (
            "no checkpoint was written yet" if self._step is None else f"the checkpoint of step {self._step:,} is kept"
        )

    def close(self) -> None:
        """Close the files, and take the display from the screen."""
        self.progress.close()
        if self.metrics is not None:
            self.metrics.close()
