"""Small runs for the tests of the command line: real processes with tiny networks, one thread each.

The processes are forked from one that has imported torch already, which takes seconds; they share nothing else.
"""

import contextlib
import io
import json
import multiprocessing
import os
import signal
import socket
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

SMALL = ["--hidden", "8", "--batch", "4", "--validate-every", "20"]
TEXT = "".join(f"line {i}: the quick brown fox {i * i % 97} jumps over it\n" for i in range(400))
ENVIRONMENT = {"OMP_NUM_THREADS": "1", "MPLBACKEND": "Agg", "COLUMNS": "120"}

_forks = multiprocessing.get_context("forkserver")
_forks.set_forkserver_preload(["bptt.train.run", "torch._dynamo", "matplotlib.pyplot", "rich.table", "tyro", "jinja2"])


@dataclass
class Result:
    """As of subprocess.run."""

    returncode: int
    stdout: str
    stderr: str


class Run:
    """`bptt ARGUMENTS` in the background; what it says goes to files, or to the terminal of that path."""

    def __init__(self, *arguments, cwd=None, environment=None, checkpoint_seconds=None, file_size=None, terminal=None):
        self._folder = tempfile.TemporaryDirectory()
        self._out, self._err = Path(self._folder.name) / "out", Path(self._folder.name) / "err"
        if terminal is not None:
            self._out = self._err = terminal
        environment = ENVIRONMENT | (environment or {})
        given = (list(map(str, arguments)), cwd, environment, self._out, self._err, checkpoint_seconds, file_size)
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

    def wait(self, timeout=240):
        """The exit code."""
        self._process.join(timeout)
        return self._process.exitcode

    def result(self, timeout=240):
        self.wait(timeout)
        if self.alive():
            self.kill()
            raise AssertionError(f"still running after {timeout} s: {self._err.read_text()}")
        return Result(self._process.exitcode, self._out.read_text(), self._err.read_text())


def _command(arguments, cwd, environment, out, err, checkpoint_seconds, file_size):
    """What happens in the forked process."""
    for number, path in ((1, out), (2, err)):
        os.dup2(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND), number)
    sys.stdout, sys.stderr = (io.TextIOWrapper(os.fdopen(n, "wb"), "utf-8", write_through=n == 2) for n in (1, 2))
    os.environ.update(environment)
    os.chdir(cwd or os.getcwd())
    import torch

    import bptt.cli
    import bptt.train.record

    torch.set_num_threads(1)
    if checkpoint_seconds is not None:
        bptt.train.record.CHECKPOINT_SECONDS = bptt.train.record.VALIDATED_SECONDS = checkpoint_seconds
    if file_size is not None:
        import resource

        resource.setrlimit(resource.RLIMIT_FSIZE, (file_size, resource.RLIM_INFINITY))
    sys.exit(bptt.cli.main(arguments))


def bptt(*arguments, processes=1, timeout=240, **keywords):
    """Run `bptt ARGUMENTS` to its end, in several processes if wanted: then the largest code, and all their output."""
    if processes == 1:
        return Run(*arguments, **keywords).result(timeout)
    runs = several(*arguments, processes=processes, **keywords)
    results = [run.result(timeout) for run in runs]
    return Result(
        max(r.returncode for r in results), "".join(r.stdout for r in results), "".join(r.stderr for r in results)
    )


def several(*arguments, processes, **keywords):
    """The runs of several processes that find each other as under torchrun."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    shared = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "WORLD_SIZE": str(processes)}
    ranks = [shared | {"RANK": str(r), "LOCAL_RANK": str(r)} for r in range(processes)]
    return [Run(*arguments, environment=rank, **keywords) for rank in ranks]


def wait_for(condition, run, seconds=60):
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
