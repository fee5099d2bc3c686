"""Small runs for the tests of the command line: real processes with tiny networks, one thread each.

The processes are forked from one that has imported torch already, which takes seconds; they share nothing else.

What a test asserts must not depend on how busy the machine is: a run can be given a clock that counts looks at it, can be
held until a signal comes, and says how much time of a processor it took. What waits here only ends what hangs.
"""

import contextlib
import io
import itertools
import json
import math
import multiprocessing
import os
import signal
import socket
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

PATIENCE = 600  # seconds until something that takes a few is said to hang
SMALL = ["--hidden", "8", "--batch", "4", "--validate-every", "20"]
TEXT = "".join(f"line {i}: the quick brown fox {i * i % 97} jumps over it\n" for i in range(400))
ENVIRONMENT = {"OMP_NUM_THREADS": "1", "MPLBACKEND": "Agg", "COLUMNS": "120"}

_forks = multiprocessing.get_context("forkserver")
_forks.set_forkserver_preload(["bptt.train.run", "torch._dynamo", "matplotlib.pyplot", "rich.table", "tyro", "jinja2"])


@dataclass
class Result:
    """As of subprocess.run; `seconds` of a processor's time."""

    returncode: int
    stdout: str
    stderr: str
    seconds: float = math.nan


@dataclass(frozen=True)
class Settings:
    """What a test may change inside a run.

    Attributes:
        checkpoint_seconds: between two checkpoints.
        file_size: bytes that a file may have.
        tick: seconds that the clock of the training goes on at each look at it, instead of a real one.
        same_press: seconds within which a second Ctrl-C counts as the first.
        hold_after: how often the training asks whether a signal came; then it waits for one, and `Run.held` is there.
    """

    checkpoint_seconds: float | None = None
    file_size: int | None = None
    tick: float | None = None
    same_press: float | None = None
    hold_after: int | None = None


class Run:
    """`bptt ARGUMENTS` in the background; what it says goes to files, or to the terminal of that path."""

    def __init__(self, *arguments, cwd=None, environment=None, terminal=None, **settings):
        self._folder = tempfile.TemporaryDirectory()
        self._out, self._err, self._seconds, self.held = (
            Path(self._folder.name) / name for name in ("out", "err", "seconds", "held")
        )
        if terminal is not None:
            self._out = self._err = terminal
        paths = (self._out, self._err, self._seconds, self.held)
        given = (list(map(str, arguments)), cwd, ENVIRONMENT | (environment or {}), paths, Settings(**settings))
        self._process = _forks.Process(target=_command, args=given)
        self._process.start()

    def alive(self):
        return self._process.is_alive()

    def send_signal(self, number):
        os.kill(self._process.pid, number)

    def kill(self):
        """SIGKILL: the process has no say. One that has already ended stays as it is."""
        with contextlib.suppress(ProcessLookupError):
            self.send_signal(signal.SIGKILL)
        self._process.join()

    def wait(self, timeout=PATIENCE):
        """The exit code."""
        self._process.join(timeout)
        return self._process.exitcode

    def result(self, timeout=PATIENCE):
        self.wait(timeout)
        if self.alive():
            self.kill()
            raise AssertionError(f"still running after {timeout} s: {self._err.read_text()}")
        seconds = float(self._seconds.read_text()) if self._seconds.exists() else math.nan
        return Result(self._process.exitcode, self._out.read_text(), self._err.read_text(), seconds)


def _command(arguments, cwd, environment, paths, settings):
    """What happens in the forked process."""
    out, err, seconds, held = paths
    for number, path in ((1, out), (2, err)):
        os.dup2(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND), number)
    sys.stdout, sys.stderr = (io.TextIOWrapper(os.fdopen(n, "wb"), "utf-8", write_through=n == 2) for n in (1, 2))
    os.environ.update(environment)
    os.chdir(cwd or os.getcwd())
    import torch

    import bptt.cli

    torch.set_num_threads(1)
    _change(settings, held)
    try:
        code = bptt.cli.main(arguments)
    finally:
        seconds.write_text(str(time.process_time()))
    sys.exit(code)


def _change(settings, held):
    """Change the modules of this process."""
    import bptt.train.interrupt
    import bptt.train.record
    import bptt.train.training

    if settings.checkpoint_seconds is not None:
        bptt.train.record.CHECKPOINT_SECONDS = bptt.train.record.VALIDATED_SECONDS = settings.checkpoint_seconds
    if settings.file_size is not None:
        import resource

        resource.setrlimit(resource.RLIMIT_FSIZE, (settings.file_size, resource.RLIM_INFINITY))
    if settings.tick is not None:
        ticks = itertools.count()
        bptt.train.training.CLOCK = lambda: settings.tick * next(ticks)
    if settings.same_press is not None:
        bptt.train.interrupt._SAME_PRESS = settings.same_press
    if settings.hold_after is not None:
        bptt.train.interrupt.Interrupt.asked = property(_held(settings.hold_after, held))


def _held(after, held):
    """`Interrupt.asked` that waits for a signal, once, when it was asked so often."""
    looks = itertools.count(1)

    def asked(interrupt):
        if next(looks) >= after and not held.exists():  # the signal's own look, in between, must not wait
            held.touch()
            while interrupt.number == 0:
                time.sleep(0.01)
        return interrupt.number != 0

    return asked


def printed(program):
    """What a Python program prints, which must end well."""
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "out"
        process = _forks.Process(target=_program, args=(program, out))
        process.start()
        process.join(PATIENCE)
        assert process.exitcode == 0, program
        return out.read_text(encoding="utf-8")


def _program(program, out):
    """What happens in the forked process."""
    with out.open("w", encoding="utf-8") as file, contextlib.redirect_stdout(file):
        exec(compile(program, "program", "exec"), {"__name__": "__main__"})


def bptt(*arguments, processes=1, timeout=PATIENCE, **keywords):
    """Run `bptt ARGUMENTS` to its end, in several processes if wanted: then the largest code, and all their output."""
    if processes == 1:
        return Run(*arguments, **keywords).result(timeout)
    runs = several(*arguments, processes=processes, **keywords)
    results = [run.result(timeout) for run in runs]
    return Result(
        max(r.returncode for r in results), "".join(r.stdout for r in results), "".join(r.stderr for r in results)
    )


def several(*arguments, processes, of_rank=None, **keywords):
    """The runs of several processes that find each other as under torchrun; of_rank(r) are settings of one of them."""
    shared = meeting(processes)
    ranks = [shared | {"RANK": str(r), "LOCAL_RANK": str(r)} for r in range(processes)]
    return [
        Run(*arguments, environment=rank, **keywords, **(of_rank(r) if of_rank else {})) for r, rank in enumerate(ranks)
    ]


def meeting(processes):
    """The environment in which some processes meet, at a port that is free."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    return {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "WORLD_SIZE": str(processes)}


def wait_for(condition, run, seconds=PATIENCE):
    """Wait until the condition holds, while the process lives."""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        if condition():
            return True
        if not run.alive():
            return condition()
        time.sleep(0.002)
    raise AssertionError("nothing happened in time")


def metrics(folder):
    return [json.loads(line) for line in (Path(folder) / "metrics.jsonl").read_text().splitlines()]


def losses(folder):
    return [line["loss"] for line in metrics(folder) if "loss" in line]


def size(folder):
    """Of metrics.jsonl in bytes, -1 where there is none."""
    file = Path(folder) / "metrics.jsonl"
    return file.stat().st_size if file.exists() else -1


def corpus(folder, documents=4):
    """A folder with a few text files, some with characters of several bytes."""
    folder.mkdir()
    for i in range(documents):
        (folder / f"{i}.txt").write_text(TEXT[i * 50 :] + "Ünïcödé → 語\n" * 5, encoding="utf-8")
    return folder


def failed(result, code=2):
    """One line of error, no traceback, that exit code; returns the line."""
    lines = [line for line in result.stderr.splitlines() if line.strip()]
    assert result.returncode == code, result.stderr
    assert "Traceback" not in result.stderr
    errors = [line for line in lines if line.startswith("bptt: error: ")]
    assert len(errors) == 1, result.stderr
    return errors[0]
