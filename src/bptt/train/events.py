"""What happens in a training, as the loop tells those who note and show it: an update, a validation, a failure."""

from dataclasses import dataclass

from bptt.flow import Flow


@dataclass(frozen=True)
class Update:
    """What one update did.

    Attributes:
        step: updates made, this one included.
        epoch: passes over the training data.
        loss: mean loss of the batch, over all processes, before the update.
        grad_norm: norm of the gradient before clipping.
        lr: learning rate of the update.
        count: losses that counted.
        spent: share of the budget that was spent when it began.
        stop, checkpoint: True if any process was asked to stop, or the first one's checkpoint is old.
        flow: how this process's gradient flowed back, if the update was watched.
    """

    step: int
    epoch: float
    loss: float
    grad_norm: float
    lr: float
    count: int
    spent: float
    stop: bool
    checkpoint: bool
    flow: Flow | None = None


@dataclass(frozen=True)
class Validation:
    """The mean loss of the held-out part after `step` updates, and as the task's metric. `checkpoint` as in `Update`."""

    step: int
    epoch: float
    loss: float
    score: float
    checkpoint: bool


class Diverged(RuntimeError):
    """The loss or its gradient is no longer a finite number. The message says where, and what to try.

    Attributes:
        flow: how the gradient flowed back there; None if that was not seen.
    """

    def __init__(self, message: str, flow: Flow | None = None) -> None:
        super().__init__(message)
        self.flow = flow
