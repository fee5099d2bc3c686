"""What `bptt train --watch N` costs: watched updates against plain ones, and the page, as a share of training time.

    .venv/bin/python benchmarks/watch_training.py [N]

Trains the demo's network and two smaller ones. Plain and watched updates take turns, so that a slow moment of the machine
meets both; a watched one is an update, its verdict and its line in metrics.jsonl. With one watched update in N the share is
(watched − plain) / (N · plain), of medians. The page is written at most once in 200 times what it takes, which adds up to
0.5 %. Exits with 1 if a share is above 3 %.
"""

import os
import statistics
import sys
import tempfile
import time
from dataclasses import replace
from pathlib import Path

os.environ.setdefault("GOMP_SPINCOUNT", "1000")  # as `bptt train` sets it, before torch is loaded

import torch

from bptt.options import AddingOptions, TextOptions
from bptt.tasks import make_task
from bptt.train.display.progress import Silent
from bptt.train.distributed import Processes
from bptt.train.record import Record
from bptt.train.storage.metrics import Metrics
from bptt.train.training import Training
from bptt.train.wording import Wording

LIMIT, PAGE, ROUNDS = 0.03, 0.005, 12
RUNS = {
    "text, lstm 256 (the demo)": TextOptions(),
    "adding 100, lstm 128": AddingOptions(),
    "adding 100, gru 128": AddingOptions(cell="gru"),
}


def seconds(training, record, watch):
    """One update, recorded."""
    training.options = replace(training.options, watch=int(watch))
    start = time.perf_counter()
    record.update(training.update())
    return time.perf_counter() - start


def measure(options):
    """Medians of plain and watched updates that take turns."""
    task = make_task(options)
    training = Training(options, task, Processes(0, 1, torch.device("cpu")))
    with tempfile.TemporaryDirectory() as folder:
        wording = Wording(task.name, task.metric, task.unit, task.score)
        record = Record(Path(folder), Metrics(Path(folder)), Silent(wording, training.budget, 0.0))
        record._page = None  # its cost is bounded by what it takes, whatever that is
        times = {False: [], True: []}
        for n in range(ROUNDS + 2):
            for watch in (False, True):
                spent = [seconds(training, record, watch) for _ in range(1 if watch else 3)]
                if n > 1:
                    times[watch] += spent
        record.close()
    return statistics.median(times[False]), statistics.median(times[True])


def main(every):
    worst = 0.0
    for name, options in RUNS.items():
        plain, watched = measure(options)
        share = (watched - plain) / (every * plain) + PAGE
        worst = max(worst, share)
        print(f"{name:28} plain {plain * 1e3:7.1f} ms  watched {watched * 1e3:7.1f} ms  one in {every}: {share - PAGE:5.2%} "
              f"+ page ≤ {PAGE:.1%} = {share:5.2%} (limit {LIMIT:.0%})")  # fmt: skip
    return int(worst > LIMIT)


if __name__ == "__main__":
    sys.exit(main(int(sys.argv[1]) if len(sys.argv) > 1 else 100))
