"""How much of the training loop is not forward, backward or optimizer: batches, metrics, display, checkpoints.

    .venv/bin/python benchmarks/loop_overhead.py [SECONDS]

Runs the demo (`bptt train` with its defaults) for 30 seconds, with the callables wrapped in stopwatches. Exits with 1 if
the share is above 10 %.
"""

import sys
import tempfile
import time
from collections import defaultdict
from pathlib import Path

import torch

from bptt.options import TextOptions
from bptt.tasks import make_task
from bptt.train import training as one_update
from bptt.train.display.progress import make_progress
from bptt.train.distributed import Processes
from bptt.train.interrupt import Interrupt
from bptt.train.loop import train
from bptt.train.record import Record
from bptt.train.storage.metrics import Metrics
from bptt.train.wording import Wording

LIMIT = 0.10
seconds = defaultdict(float)


def timed(name, function):
    """The function, with its time added to `seconds[name]`."""

    def run(*arguments, **keywords):
        start = time.perf_counter()
        try:
            return function(*arguments, **keywords)
        finally:
            seconds[name] += time.perf_counter() - start

    return run


def watch(training):
    """Put the stopwatches in. A forward pass in training is within `backward`, so only that of a validation is taken."""
    one_update.backward = timed("forward and backward", one_update.backward)
    one_update.clip = timed("optimizer (with clipping)", one_update.clip)
    training.optimizer.step = timed("optimizer (with clipping)", training.optimizer.step)
    forward = training.model.forward
    validating = timed("forward of validations", forward)
    training.model.forward = lambda *a, **k: (forward if training.model.training else validating)(*a, **k)


def main(length):
    options = TextOptions(minutes=length / 60)
    task = make_task(options)
    training = one_update.Training(options, task, Processes(0, 1, torch.device("cpu")))
    wording = Wording(task.name, task.metric, task.unit, task.score)
    with tempfile.TemporaryDirectory() as folder, Interrupt() as interrupt:
        progress = make_progress(wording, training.budget, 0.0, sys.stderr, first=True)
        record = Record(Path(folder), Metrics(Path(folder)), progress)
        training.update()  # the first one loads what torch loads late
        watch(training)
        start = time.perf_counter()
        record.checkpoint(training)
        train(training, record, interrupt)
        total = time.perf_counter() - start
        record.close()
    share = 1 - sum(seconds.values()) / total
    print(f"{training.state.step} updates of {options.batch} × {options.chunk} characters in {total:.1f} s")
    for name, spent in seconds.items():
        print(f"{name:28} {spent:7.2f} s  {spent / total:6.1%}")
    print(f"{'everything else':28} {total - sum(seconds.values()):7.2f} s  {share:6.1%}   (limit {LIMIT:.0%})")
    return int(share > LIMIT)


if __name__ == "__main__":
    sys.exit(main(float(sys.argv[1]) if len(sys.argv) > 1 else 30.0))
