"""Control characters in names, labels and texts reach a terminal written out; a file or a pipe gets them as they are."""

import contextlib
import os
import pty
import re
import shutil
import threading

import pytest

from bptt.terminal import visible, visible_lines
from tests.runs import SMALL, Run, bptt, failed

NASTY = "\x1b]0;PWNED\x07[bold]:warning:\u202e"  # names the window, rich's markup and emoji, turns the writing around
SHOWN = "\\x1b]0;PWNED\\x07[bold]:warning:\\u202e"


def test_every_control_character_is_written_out():
    assert visible("a\x1b[31m\r\n\tb\x7f\x85\x9b\u2028\u202e\u2066é語😀") == (
        "a\\x1b[31m\\x0d\\x0a\\x09b\\x7f\\x85\\x9b\\u2028\\u202e\\u2066é語😀"
    )
    assert visible_lines("a\tb\n\x1bc\r") == "a\tb\n\\x1bc\\x0d"
    assert visible(7) == "7"


def on_a_terminal(*arguments, cwd=None):
    """What `bptt ARGUMENTS` writes to a terminal, which is its standard output and error, and its exit code."""
    control, terminal = pty.openpty()
    said = []

    def listen():
        with contextlib.suppress(OSError):  # the terminal is closed
            while data := os.read(control, 1 << 16):
                said.append(data)

    listener = threading.Thread(target=listen)
    listener.start()
    run = Run(*arguments, cwd=cwd, environment={"TERM": "xterm"}, terminal=os.ttyname(terminal))
    code = run.wait()
    os.close(terminal)
    listener.join()
    os.close(control)
    return b"".join(said).decode(), code


def obeys(text):
    """What a terminal would do beside showing letters, but for the colours, lines and cursor of the display."""
    harmless = re.compile(r"\x1b\[[0-9;?]*[A-Za-ln-z]|\x1b\[[0-9;]*m|[\r\n]")
    return [c for c in harmless.sub("", text) if visible(c) != c]


@pytest.fixture(scope="module")
def text_run(tmp_path_factory):
    """A run on a text with escape sequences in it."""
    folder = tmp_path_factory.mktemp("text")
    (folder / "book.txt").write_text("\x1b]0;PWNED\x07\x9b31m\u202e\r" * 200, encoding="utf-8", newline="")
    arguments = ["text", "--data", "book.txt", "--chunk", "8", *SMALL, "--steps", "4", "--out", "run"]
    said, code = on_a_terminal("train", *arguments, cwd=folder)
    assert code == 0, said
    return folder / "run", said


def test_what_a_model_writes_is_shown_by_train_and_predict(text_run):
    run, said = text_run
    sample = (run / "sample.txt").read_bytes().decode()
    assert "\x1b" in sample
    assert obeys(said) == []
    assert any(c in said for c in ("\\x1b", "\\x9b", "\\u202e"))
    shown, code = on_a_terminal("predict", run, "--length", "60", "--temperature", "5")
    assert code == 0
    assert obeys(shown) == []
    assert "\x1b" in bptt("predict", run, "--length", "60", "--temperature", "5").stdout
    out = run.parent / "out.txt"
    assert bptt("predict", run, "--length", "60", "--temperature", "5", "--out", out).returncode == 0
    exact = out.read_bytes().decode()
    assert len(exact) == 60
    assert visible_lines(exact).replace("\n", "\r\n") == shown


def test_names_of_columns_labels_and_files_are_shown(tmp_path):
    table = tmp_path / f"{NASTY}.csv"
    rows = "".join(f"{i % 7},{i * i % 11}\n" for i in range(120))
    table.write_text(f"{NASTY},b\n{rows}", encoding="utf-8")
    error = failed(bptt("train", "series", "--data", table, "--target", "zz"))
    assert SHOWN in error
    assert obeys(error) == []
    small = [*SMALL, "--steps", "3", "--chunk", "8", "--out", tmp_path / f"{NASTY}-run"]
    said, code = on_a_terminal("train", "series", "--data", table, "--target", NASTY, *small)
    assert code == 0, said
    assert obeys(said) == []
    assert SHOWN in said.replace("│", "").replace("\r\n", "").replace(" ", "")
    result = bptt("predict", tmp_path / f"{NASTY}-run")
    assert NASTY in result.stdout  # the header, as it is
    shown, _ = on_a_terminal("predict", tmp_path / f"{NASTY}-run")
    assert SHOWN in shown
    for arguments in (["inspect"], ["train", "--resume"]):
        said, code = on_a_terminal(*arguments, tmp_path / f"{NASTY}-run")
        assert code == 0, said
        assert obeys(said) == []
    shutil.rmtree(tmp_path / f"{NASTY}-run")
    error = failed(bptt("predict", tmp_path / f"{NASTY}-run"))
    assert SHOWN in error
    assert obeys(error) == []
