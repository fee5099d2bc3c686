"""The training loop: update, validate, write a checkpoint, until the budget is spent or somebody asks to stop."""

from bptt.train.interrupt import Interrupt
from bptt.train.record import Record
from bptt.train.training import Training


def train(training: Training, record: Record, interrupt: Interrupt) -> bool:
    """Train until the budget is spent or patience is over, and return True; False if a signal asked to stop before that.

    Every process runs this. All take the same decisions, which come from numbers that were summed over all of them.
    """
    while True:
        if training.validation_is_due:
            validation = training.validate(interrupt, record.checkpoint_is_due(validated=True))
            if validation is None:
                record.checkpoint(training)
                return False
            record.validation(training, validation)
        if training.finished:
            record.checkpoint(training)
            return True
        update = training.update(interrupt.asked, record.checkpoint_is_due())
        record.update(update)
        if update.checkpoint or update.stop:
            record.checkpoint(training)
        if update.stop:
            return False
