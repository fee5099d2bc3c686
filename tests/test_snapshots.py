"""Snapshots on disk: what is in use is never removed, whoever shares the folder; what a kill left is."""

import errno
import fcntl
import os
import signal
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

from bptt.gradient.checkpointing.snapshots import OnDisk

_HOLDS = """
import sys
from bptt.gradient.checkpointing.snapshots import OnDisk
place = OnDisk()
place.put(0, None)
print(place.folder, flush=True)
sys.stdin.read()
place.close()
"""
_OTHER = "from bptt.gradient.checkpointing.snapshots import OnDisk; OnDisk().close()"


@pytest.fixture(autouse=True)
def _here(tmp_path, monkeypatch):
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    monkeypatch.setenv("TMPDIR", str(tmp_path))


def folders(tmp_path):
    return {path.name for path in tmp_path.iterdir()}


@pytest.fixture
def holder():
    process = subprocess.Popen([sys.executable, "-c", _HOLDS], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    folder = Path(process.stdout.readline().strip())
    yield process, folder
    process.kill()
    process.wait()
    process.stdin.close()
    process.stdout.close()


@pytest.mark.parametrize("prefix", [None, ["unshare", "--user", "--map-root-user", "--pid", "--fork", "--mount-proc"]])
def test_a_running_process_keeps_its_snapshots(holder, prefix):
    """From here, and where its process has another number or none: a container that shares the folder."""
    if prefix and subprocess.run([*prefix, "true"], capture_output=True).returncode:
        pytest.skip("no namespace can be made here")

    def other():
        if prefix:
            subprocess.run([*prefix, sys.executable, "-c", _OTHER], check=True)
        else:
            OnDisk().close()

    process, folder = holder
    other()
    assert sorted(path.name for path in folder.iterdir()) == ["0", "lock"]
    process.send_signal(signal.SIGKILL)
    process.wait()
    other()
    assert not folder.exists()


def test_a_process_that_ends_removes_its_own(holder, tmp_path):
    process, folder = holder
    process.stdin.close()
    assert process.wait() == 0
    assert not folder.exists()
    assert not folders(tmp_path)


def test_a_child_of_a_process_that_is_gone_delays_the_removal(tmp_path):
    """A worker that was forked holds the lock on; a program that it starts does not."""
    read, write = os.pipe()
    place = OnDisk()
    child = os.fork()
    if child == 0:
        os.read(read, 1)
        os._exit(0)
    subprocess.run(["true"], check=True, close_fds=False)
    os.close(place._lock)  # as if this process were gone
    place._lock = None
    OnDisk().close()
    assert place.folder.exists()
    os.write(write, b"x")
    os.waitpid(child, 0)
    OnDisk().close()
    assert not place.folder.exists()
    os.close(read)
    os.close(write)


def test_a_program_that_is_started_does_not_hold_the_lock():
    place = OnDisk()
    started = subprocess.Popen(["sleep", "60"], close_fds=False)
    os.close(place._lock)
    place._lock = None
    OnDisk().close()
    started.kill()
    started.wait()
    assert not place.folder.exists()


def test_where_there_are_no_locks_nothing_is_removed(tmp_path, monkeypatch):
    plain = fcntl.flock

    def refused(file, operation):
        raise OSError(errno.ENOTSUP, "no locks here")

    monkeypatch.setattr(fcntl, "flock", refused)
    place = OnDisk()
    place.put(0, None)
    assert place.get(0) is None
    OnDisk().close()
    assert place.folder.exists()
    monkeypatch.setattr(fcntl, "flock", plain)
    OnDisk().close()  # of one that found none, it cannot be told whether it is in use
    assert place.folder.exists()
    place.close()
    assert not folders(tmp_path)


def test_links_and_strangers_folders_are_left_alone(tmp_path, monkeypatch):
    outside = tmp_path / "outside"
    outside.mkdir()
    for name in ("lock", "0"):
        (outside / name).write_text("mine")
    (tmp_path / "bptt-snapshots-link").symlink_to(outside)
    linked = tmp_path / "bptt-snapshots-lock"  # its lock is a link to a file elsewhere
    linked.mkdir()
    (linked / "lock").symlink_to(outside / "lock")
    fifo = tmp_path / "bptt-snapshots-fifo"
    fifo.mkdir()
    os.mkfifo(fifo / "lock")
    (tmp_path / "bptt-snapshots-file").write_text("a file")
    left = tmp_path / "bptt-snapshots-left"  # it is removed, not what it has a link to
    left.mkdir()
    (left / "lock").touch()
    (left / "0").symlink_to(outside)
    OnDisk().close()
    assert sorted(path.read_text() for path in outside.iterdir()) == ["mine", "mine"]
    assert not left.exists()
    assert linked.exists()
    strangers = tmp_path / "bptt-snapshots-other"
    strangers.mkdir()
    (strangers / "lock").touch()
    own = os.getuid()
    monkeypatch.setattr(os, "getuid", lambda: own + 1)
    OnDisk().close()
    assert strangers.exists()


def test_the_folder_is_its_users_alone():
    before = os.umask(0)
    try:
        place = OnDisk()
    finally:
        os.umask(before)
    assert place.folder.stat().st_mode & 0o777 == 0o700
    assert (place.folder / "lock").stat().st_mode & 0o777 == 0o600
    place.close()
