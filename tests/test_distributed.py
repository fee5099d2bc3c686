"""Several processes are one: the losses of two equal those of one at the same global batch."""

import contextlib
import os
import signal
import subprocess
import sys
import time

import pytest

from tests.runs import (
    ENVIRONMENT,
    PATIENCE,
    Run,
    bptt,
    corpus,
    failed,
    losses,
    meeting,
    metrics,
    several,
    size,
    wait_for,
)

pytestmark = pytest.mark.distributed

ARGUMENTS = ["--dtype", "float64", "--hidden", "8", "--validate-every", "4", "--steps", "12"]
TASKS = {
    "adding, uneven rows": ["adding", "--length", "9", "--batch", "5"],
    "adding, adamw": ["adding", "--length", "9", "--batch", "8", "--optimizer", "adamw", "--weight-decay", "0.1"],
    "text with resets": ["text", "--data", "corpus", "--chunk", "12", "--strategy", "truncated:12", "--batch", "6"],
    "text, looking back": ["text", "--data", "corpus", "--chunk", "8", "--strategy", "truncated:4,11", "--batch", "7"],
    "labels of uneven lengths": ["labels", "--data", "labels.csv", "--id", "id", "--label", "label", "--batch", "5"],
}


def labelled(path):
    """Sequences of 3 to 9 steps of two classes."""
    rows = [
        f"{i},{'up' if i % 2 else 'down'},{(t if i % 2 else -t) + i % 5 / 7},{(i * t) % 3}"
        for i in range(40)
        for t in range(3 + i % 7)
    ]
    path.write_text("id,label,a,b\n" + "\n".join(rows) + "\n")


@pytest.mark.parametrize("name", TASKS)
def test_two_processes_give_the_losses_of_one(name, tmp_path):
    corpus(tmp_path / "corpus", documents=40)
    labelled(tmp_path / "labels.csv")
    for n in (1, 2):
        result = bptt("train", *TASKS[name], *ARGUMENTS, "--out", f"run{n}", processes=n, cwd=tmp_path)
        assert result.returncode == 0, result.stderr
    one, two = (losses(tmp_path / f"run{n}") for n in (1, 2))
    assert len(one) == len(two) == 12
    assert max(abs(a - b) for a, b in zip(one, two, strict=True)) <= 1e-9
    validated = [
        [m["validation_loss"] for m in metrics(tmp_path / f"run{n}") if "validation_loss" in m] for n in (1, 2)
    ]
    assert validated[0] == pytest.approx(validated[1], abs=1e-9)
    # A run of two goes on as one, and a run of one as three.
    assert bptt("train", "--resume", "run2", "--steps", "15", cwd=tmp_path).returncode == 0
    assert bptt("train", "--resume", "run1", "--steps", "15", cwd=tmp_path, processes=3).returncode == 0
    assert losses(tmp_path / "run1") == pytest.approx(losses(tmp_path / "run2"), abs=1e-9)


def test_fewer_rows_than_processes_in_the_last_validation_batch(tmp_path):
    """1,000 validation sequences in batches of 3 leave one process without a row now and then; nothing may hang."""
    arguments = ["adding", "--length", "4", "--batch", "3", *ARGUMENTS, "--out", tmp_path / "run"]
    assert bptt("train", *arguments, processes=3).returncode == 0


def test_torchrun_starts_it(tmp_path):
    port = meeting(2)["MASTER_PORT"]
    command = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2", "--master-addr", "127.0.0.1"]
    command += ["--master-port", port, "-m", "bptt", "train", "adding", "--length", "9"]
    result = subprocess.run(
        [*command, *ARGUMENTS, "--out", tmp_path / "run"],
        capture_output=True, text=True, timeout=PATIENCE, env=os.environ | ENVIRONMENT, check=False,
    )  # fmt: skip
    assert result.returncode == 0, result.stderr
    assert len(losses(tmp_path / "run")) == 12
    assert result.stdout.count("mean squared error by chance") == 1  # one process speaks


PARTING = """
import os
from bptt.train.distributed import Processes

threads = lambda: len(os.listdir("/proc/self/task"))
before = threads()
processes = Processes.join("cpu")
import torch._dynamo, torch.distributed.nn  # as a training does, sooner or later
assert processes.broadcast(3) == 3 and threads() > before
processes.leave()
assert threads() == before, f"{threads()} threads, {before} before"
"""


def test_parting_ends_the_threads_that_carried_the_messages():
    """One that was left behind took Python's lock during its last moments, and aborted one process in ten."""
    shared = meeting(2)
    both = [
        subprocess.Popen([sys.executable, "-c", PARTING], env=os.environ | ENVIRONMENT | shared | {"RANK": rank})
        for rank in "01"
    ]
    assert [process.wait(PATIENCE) for process in both] == [0, 0]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["adding", "--batch", "1"], "too small for 2 processes"),
        (["text", "--data", "nowhere"], "nowhere does not exist"),
        (["adding", "--out", "/proc/run"], "cannot make the run folder"),
        (["adding", "--hidden", "10000000"], "make one of them smaller"),
    ],
)
def test_mistakes_are_said_once_and_nobody_hangs(arguments, message, tmp_path):
    result = bptt("train", *arguments, processes=2, cwd=tmp_path)
    assert message in failed(result)


def test_a_process_that_is_killed_ends_the_others(tmp_path):
    folder = tmp_path / "run"
    runs = several("train", "adding", "--length", "9", *ARGUMENTS[:-1], "100000", "--out", folder, processes=2)
    wait_for(lambda: size(folder) > 0, runs[0])
    runs[1].kill()
    assert "another process of this run has stopped" in failed(runs[0].result())
    assert bptt("train", "--resume", folder, "--steps", "10").returncode == 0


def test_a_diverged_run_ends_everywhere(tmp_path):
    arguments = ["adding", "--length", "9", "--optimizer", "sgd", "--lr", "1e300", "--clip", "0", *ARGUMENTS]
    result = bptt("train", *arguments, "--out", tmp_path / "run", processes=2)
    assert "the checkpoint of step 0 is kept" in failed(result, code=1)


@pytest.mark.parametrize("which", [[0], [1], [0, 1]])
def test_ctrl_c_in_any_process_stops_all_at_the_same_step(which, tmp_path):
    arguments = [
        "adding",
        "--length",
        "9",
        "--batch",
        "4",
        "--hidden",
        "8",
        "--steps",
        "600",
        "--validate-every",
        "200",
    ]
    assert bptt("train", *arguments, "--out", tmp_path / "whole", processes=2).returncode == 0
    folder = tmp_path / "cut"
    hold = {"hold_after": 150}
    given = ["train", *arguments, "--out", folder]
    runs = several(*given, processes=2, same_press=1e9, of_rank=lambda r: hold if r in which else {})
    for rank in which:
        wait_for(runs[rank].held.exists, runs[rank])
        runs[rank].send_signal(signal.SIGINT)
    time.sleep(0.05)
    for rank in which:  # torchrun passes on what the terminal has sent already
        with contextlib.suppress(ProcessLookupError):  # a quick one is gone by now
            runs[rank].send_signal(signal.SIGINT)
    results = [run.result() for run in runs]
    assert [r.returncode for r in results] == [130, 130], results
    assert "go on with" in results[0].stderr
    assert "Traceback" not in results[0].stderr + results[1].stderr
    assert bptt("train", "--resume", folder, processes=2).returncode == 0
    assert (folder / "metrics.jsonl").read_bytes() == (tmp_path / "whole" / "metrics.jsonl").read_bytes()


def test_the_clock_of_the_first_counts(tmp_path):
    arguments = ["adding", "--length", "9", "--hidden", "8", "--minutes", "0.03"]
    assert bptt("train", *arguments, "--out", tmp_path / "run", processes=2).returncode == 0


def test_one_process_alone_still_says_its_mistakes(tmp_path):
    assert "--batch 0 is impossible" in failed(Run("train", "adding", "--batch", "0").result())
