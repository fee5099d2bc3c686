"""A run that is stopped, in whatever way, and resumed is the run that was never stopped: the same metrics, bit for bit."""

import random
import signal
import time

import pytest

from tests.runs import SMALL, Run, bptt, corpus, failed, losses, size, wait_for

RUNS = {
    "adding": ["adding", "--length", "8", "--steps", "120"],
    "dropout": ["adding", "--length", "8", "--steps", "120", "--layers", "2", "--dropout", "0.3"],
    "text": ["text", "--data", "corpus", "--chunk", "16", "--strategy", "truncated:16", "--steps", "120"],
    "look-back": ["text", "--data", "corpus", "--chunk", "12", "--strategy", "truncated:5,14", "--steps", "100"],
    "rtrl": ["text", "--data", "corpus", "--chunk", "5", "--embedding", "3", "--strategy", "rtrl", "--steps", "60"],
    "snap1": ["text", "--data", "corpus", "--chunk", "12", "--strategy", "snap1", "--steps", "100"],
    "checkpointed": ["text", "--data", "corpus", "--chunk", "400", "--strategy", "checkpointed:160kB", "--steps", "60"],
    "patience": ["copy", "--length", "5", "--steps", "400", "--patience", "2", "--lr", "10", "--schedule", "constant"],
    "gru, float64": ["adding", "--length", "8", "--steps", "120", "--cell", "gru", "--dtype", "float64"],
}


@pytest.mark.parametrize("name", RUNS)
def test_killed_at_any_moment_and_resumed(name, tmp_path):
    """Now with rare checkpoints, so that many updates are lost, now with one at every update, so that it dies in one."""
    corpus(tmp_path / "corpus")
    arguments = [*RUNS[name], *SMALL]
    whole, cut = tmp_path / "whole", tmp_path / "cut"
    assert bptt("train", *arguments, "--out", whole, cwd=tmp_path).returncode == 0
    run = Run("train", *arguments, "--out", cut, cwd=tmp_path, checkpoint_seconds=0)
    wait_for(lambda: (cut / "config.json").exists(), run)
    for _ in range(8):
        before = size(cut)
        wait_for(lambda before=before: size(cut) != before, run)
        time.sleep(random.uniform(0, 0.15))
        run.kill()
        often = random.choice([0, 0.05, 15])
        run = Run("train", "--resume", cut, cwd=tmp_path, checkpoint_seconds=often)
    result = run.result()
    assert result.returncode == 0, result.stderr
    for file in ("metrics.jsonl", "model.safetensors", "report.json"):
        assert (cut / file).read_bytes() == (whole / file).read_bytes(), file
    assert not list(cut.glob(".writing-*"))


def test_killed_before_the_first_checkpoint_it_starts_again(tmp_path):
    arguments = ["adding", "--length", "8", "--steps", "20", *SMALL]
    assert bptt("train", *arguments, "--out", tmp_path / "whole").returncode == 0
    assert bptt("train", *arguments, "--out", tmp_path / "cut").returncode == 0
    for file in (tmp_path / "cut").iterdir():  # as SIGKILL after writing config.json leaves it
        if file.name != "config.json":
            file.unlink()
    (tmp_path / "cut" / ".writing-x").write_bytes(b"half a check")
    assert bptt("train", "--resume", tmp_path / "cut").returncode == 0
    assert (tmp_path / "cut/metrics.jsonl").read_bytes() == (tmp_path / "whole/metrics.jsonl").read_bytes()
    assert not (tmp_path / "cut" / ".writing-x").exists()


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_ctrl_c_ends_cleanly_with_a_checkpoint(number, code, tmp_path):
    arguments = ["adding", "--length", "8", "--steps", "400", *SMALL]
    assert bptt("train", *arguments, "--out", tmp_path / "whole").returncode == 0
    cut = tmp_path / "cut"
    run = Run("train", *arguments, "--out", cut, checkpoint_seconds=0.02, hold_after=70)
    wait_for(run.held.exists, run)
    run.send_signal(number)
    result = run.result()
    assert result.returncode == code, result.stderr
    assert f"go on with: bptt train --resume {cut}" in result.stderr
    assert "Traceback" not in result.stderr
    assert bptt("predict", cut, "--length", "2").returncode == 0  # what is there so far can be used
    assert bptt("train", "--resume", cut).returncode == 0
    assert (cut / "metrics.jsonl").read_bytes() == (tmp_path / "whole" / "metrics.jsonl").read_bytes()


def test_a_second_ctrl_c_stops_at_once_and_leaves_the_last_checkpoint(tmp_path):
    corpus(tmp_path / "corpus")
    # The first update takes many seconds: both presses come in it, however long a product of matrices keeps the first one.
    slow = [
        "text",
        "--data",
        tmp_path / "corpus",
        "--hidden",
        "512",
        "--layers",
        "3",
        "--chunk",
        "2500",
        "--batch",
        "16",
    ]
    run = Run("train", *slow, "--steps", "50", "--out", tmp_path / "run")
    wait_for(lambda: (tmp_path / "run" / "checkpoint.safetensors").exists(), run)
    presses = 0
    while run.alive():
        run.send_signal(signal.SIGINT)
        presses += 1
        time.sleep(1.2)  # within a second, it would count as the same press
    assert presses > 1
    result = run.result()
    assert result.returncode == 130
    assert "Traceback" not in result.stderr
    assert "keeps its last checkpoint" in result.stderr


def test_a_finished_run_says_so_and_goes_on_only_for_a_larger_budget(tmp_path):
    run = tmp_path / "run"
    arguments = ["adding", "--length", "8", *SMALL, "--schedule", "constant"]
    assert bptt("train", *arguments, "--steps", "20", "--out", run).returncode == 0
    again = bptt("train", "--resume", run)
    assert again.returncode == 0
    assert "is finished" in again.stdout
    assert bptt("train", "--resume", run, "--steps", "40").returncode == 0
    assert bptt("train", *arguments, "--steps", "40", "--out", tmp_path / "whole").returncode == 0
    assert (run / "model.safetensors").read_bytes() == (tmp_path / "whole" / "model.safetensors").read_bytes()


def test_time_before_a_resume_counts(tmp_path):
    """3 seconds, and then up to 4.2, of a clock that goes on by 0.05 at each update, and now and then between two."""
    arguments = ["adding", "--length", "8", *SMALL]
    clock = {"tick": 0.05, "checkpoint_seconds": 1e9}
    run, whole = tmp_path / "run", tmp_path / "whole"
    assert bptt("train", *arguments, "--minutes", "0.05", "--out", run, **clock).returncode == 0
    before = len(losses(run))
    assert 55 <= before <= 60
    assert "is finished" in bptt("train", "--resume", run).stdout
    assert bptt("train", "--resume", run, "--minutes", "0.07", **clock).returncode == 0
    assert bptt("train", *arguments, "--minutes", "0.07", "--out", whole, **clock).returncode == 0
    assert 20 <= len(losses(run)) - before <= 24
    assert abs(len(losses(run)) - len(losses(whole))) <= 3


def test_patience_hands_out_the_best_weights(tmp_path):
    from bptt.train.storage.checkpoint import read_checkpoint
    from bptt.train.storage.weights import read_model

    run = tmp_path / "run"
    assert bptt("train", *RUNS["patience"], *SMALL, "--out", run).returncode == 0
    checkpoint = read_checkpoint(run)
    assert checkpoint.state.misses == 2
    assert checkpoint.state.step == checkpoint.state.best_step + 2 * 20 < 400
    model = read_model(run)
    assert all((model[name] == checkpoint.best[name]).all() for name in model)
    assert any((model[name] != checkpoint.weights[name]).any() for name in model)
    assert "stopped early" in bptt("train", "--resume", run, "--steps", "1000").stdout


def test_changed_options_and_changed_data_are_refused(tmp_path):
    corpus(tmp_path / "corpus")
    run = tmp_path / "run"
    arguments = ["text", "--data", tmp_path / "corpus", "--chunk", "16", "--strategy", "truncated:16", *SMALL]
    assert bptt("train", *arguments, "--steps", "10", "--out", run).returncode == 0
    error = failed(bptt("train", "--resume", run, "--hidden", "9", "--steps", "20"))
    assert "--hidden is 8 in" in error
    assert "given is 9" in error
    assert "--out is" in failed(bptt("train", "--resume", run, "--out", tmp_path / "other", "--steps", "20"))
    assert "is a run of text, not of adding" in failed(bptt("train", "adding", "--resume", run))
    before = (run / "checkpoint.safetensors").read_bytes()
    with open(tmp_path / "corpus" / "0.txt", "a") as file:
        file.write("one line more\n")
    assert "the data are not those" in failed(bptt("train", "--resume", run, "--steps", "20"))
    assert (run / "checkpoint.safetensors").read_bytes() == before


def test_options_that_are_given_as_they_were_and_data_that_were_moved_are_fine(tmp_path):
    corpus(tmp_path / "corpus")
    run = tmp_path / "run"
    arguments = ["--data", "corpus", "--chunk", "16", *SMALL]
    assert bptt("train", "text", *arguments, "--steps", "10", "--out", run, cwd=tmp_path).returncode == 0
    (tmp_path / "corpus").rename(tmp_path / "moved")
    assert "corpus does not exist" in failed(bptt("train", "--resume", run, "--steps", "15", cwd=tmp_path))
    arguments[1] = "moved"
    assert bptt("train", "--resume", run, *arguments, "--steps", "15", "--out", run, cwd=tmp_path).returncode == 0
    assert len(losses(run)) == 15


def test_a_text_that_was_renamed_is_the_same_text(tmp_path):
    book, run = tmp_path / "book.txt", tmp_path / "run"
    book.write_text("the quick brown fox jumps over it\n" * 60)
    arguments = ["--chunk", "16", *SMALL]
    assert bptt("train", "text", "--data", book, *arguments, "--steps", "10", "--out", run).returncode == 0
    book = book.rename(tmp_path / "novel.md")
    error = failed(bptt("train", "--resume", run, "--steps", "15"))
    assert f"{tmp_path / 'book.txt'} does not exist, where {run} has its data from" in error
    assert "say where they are now with --data PATH" in error
    assert bptt("train", "--resume", run, "--data", book, "--steps", "15").returncode == 0
    assert bptt("train", "--resume", run, "--steps", "20").returncode == 0  # it has remembered where
    assert len(losses(run)) == 20
    # With as many kinds of letters, and with fewer: then the network is another, and the checkpoint is not blamed.
    for other in ("the quick brown fox jumps over me\n", "the fox is over it now and then so\n"):
        book.write_text(other * 60)
        error = failed(bptt("train", "--resume", run, "--steps", "25"))
        assert "the data are not those" in error
        assert "say where they are now with --data PATH, or train a new run on these" in error


def test_a_folder_of_texts_that_were_renamed_in_their_order(tmp_path):
    """Which documents are held out follows from their names; where that changes nothing, the names may change."""
    run = tmp_path / "run"
    (tmp_path / "texts").mkdir()
    (tmp_path / "texts" / "a.txt").write_text("the quick brown fox jumps over it\n" * 60)
    arguments = ["text", "--data", tmp_path / "texts", "--chunk", "16", *SMALL, "--steps", "10", "--out", run]
    assert bptt("train", *arguments).returncode == 0
    (tmp_path / "texts" / "a.txt").rename(tmp_path / "texts" / "z.txt")
    assert bptt("train", "--resume", run, "--steps", "12").returncode == 0


def test_data_that_moved_are_asked_for_by_the_option_of_the_command(tmp_path):
    rows = [f"{i},{'up' if i % 2 else 'down'},{t if i % 2 else -t}" for i in range(40) for t in range(4)]
    for name in ("data.csv", "test.csv"):
        (tmp_path / name).write_text("id,label,a\n" + "\n".join(rows) + "\n")
    arguments = ["labels", "--data", "data.csv", "--test-data", "test.csv", "--id", "id", "--label", "label", *SMALL]
    assert bptt("train", *arguments, "--steps", "5", "--out", "run", cwd=tmp_path).returncode == 0
    (tmp_path / "test.csv").rename(tmp_path / "moved.csv")
    for command, option in ((["predict"], "--data"), (["inspect"], "--data"), (["train", "--resume"], "--test-data")):
        assert f"say where they are now with {option} PATH" in failed(bptt(*command, "run", cwd=tmp_path))
    for command, option in ((["predict"], "--data"), (["train", "--steps", "7", "--resume"], "--test-data")):
        result = bptt(*command, "run", option, "moved.csv", cwd=tmp_path)
        assert result.returncode == 0, result.stderr


def test_metrics_that_were_changed_are_noticed(tmp_path):
    run = tmp_path / "run"
    assert bptt("train", "adding", "--length", "8", *SMALL, "--steps", "10", "--out", run).returncode == 0
    file = run / "metrics.jsonl"
    good = file.read_bytes()
    made = {name: (run / name).read_bytes() for name in ("report.json", "report.html", "model.safetensors")}
    for bad in (good[:-20], good.replace(b"1", b"2", 1), b""):
        file.write_bytes(bad)
        assert "metrics.jsonl is not as the checkpoint left it" in failed(
            bptt("train", "--resume", run, "--steps", "20")
        )
    assert {name: (run / name).read_bytes() for name in made} == made  # a refusal takes nothing away
    file.write_bytes(good + b'{"step": 11, "lo')  # what a killed process had written after its last checkpoint
    assert bptt("train", "--resume", run, "--steps", "20").returncode == 0
    assert len(losses(run)) == 20


def test_only_one_process_trains_in_a_folder(tmp_path):
    run = Run("train", "adding", "--length", "8", *SMALL, "--steps", "60", "--out", tmp_path / "run", hold_after=20)
    wait_for(run.held.exists, run)
    assert "another process is training in" in failed(bptt("train", "--resume", tmp_path / "run"))
    run.kill()
    assert bptt("train", "--resume", tmp_path / "run", "--steps", "100").returncode == 0  # the lock died with it


def test_a_loss_that_is_not_finite_stops_the_run_and_keeps_the_last_good_checkpoint(tmp_path):
    run = tmp_path / "run"
    arguments = [
        "adding",
        "--length",
        "8",
        "--steps",
        "200",
        "--optimizer",
        "sgd",
        "--lr",
        "1e30",
        "--clip",
        "0",
        *SMALL,
    ]
    error = failed(bptt("train", *arguments, "--out", run, checkpoint_seconds=0), code=1)
    assert "at step " in error
    assert "try a smaller --lr" in error
    assert "the checkpoint of step" in error
    predicted = bptt("predict", run, "--length", "3")
    assert predicted.returncode == 0
    assert "nan" not in predicted.stdout


def test_a_full_disk_is_one_line_and_the_last_checkpoint_is_kept(tmp_path):
    """RLIMIT_FSIZE fails a write as a full disk does, with another number."""
    run = tmp_path / "run"
    arguments = ["adding", "--length", "8", *SMALL, "--schedule", "constant"]
    error = failed(
        bptt("train", *arguments, "--steps", "2000", "--out", run, checkpoint_seconds=0.01, file_size=20_000)
    )  # metrics.jsonl outgrows it
    assert f"cannot write in {run}: File too large" in error
    assert "is kept: make room, then go on with `bptt train --resume" in error
    assert not list(run.glob(".writing-*"))
    assert bptt("train", "--resume", run, "--steps", "300").returncode == 0
    assert bptt("train", *arguments, "--steps", "300", "--out", tmp_path / "whole").returncode == 0
    assert (run / "metrics.jsonl").read_bytes() == (tmp_path / "whole" / "metrics.jsonl").read_bytes()
