"""`bptt train --watch N`: what is seen while training goes on, which changes nothing but what is told."""

import json

import pytest
import torch

import bptt as library
from bptt.options import AddingOptions, CopyOptions, TextOptions
from bptt.tasks import Shard, make_task
from bptt.train import watching
from bptt.train.display.page import LivePage
from bptt.train.display.progress import Silent
from bptt.train.distributed import Processes
from bptt.train.record import Record
from bptt.train.training import Training
from bptt.train.watching import WarnOnce, figures, watch_training_data
from bptt.train.wording import Wording
from tests.browser import PHONE, opened
from tests.runs import SMALL, Run, bptt, corpus, failed, losses, metrics, size, wait_for

ADDING = ["adding", "--length", "8", *SMALL]


def _seen(folder):
    return [line for line in metrics(folder) if "flow" in line]


def _training(options):
    return Training(options, make_task(options), Processes(0, 1, torch.device("cpu")))


def _without_flow(folder):
    return [line for line in metrics(folder) if "flow" not in line]


WAYS = {
    "adding": [*ADDING, "--steps", "30"],
    "dropout": [*ADDING, "--steps", "30", "--layers", "3", "--dropout", "0.4", "--cell", "gru"],
    "truncated": ["text", "--data", "corpus", "--chunk", "12", "--strategy", "truncated:5,14", *SMALL, "--steps", "30"],
    "rnn": ["copy", "--length", "5", "--cell", "rnn", *SMALL, "--steps", "30"],
}


@pytest.mark.parametrize("name", WAYS)
def test_watching_changes_no_weight_and_no_other_line(name, tmp_path):
    corpus(tmp_path / "corpus")
    for watch in ("0", "1", "7"):
        result = bptt("train", *WAYS[name], "--watch", watch, "--out", tmp_path / watch, cwd=tmp_path)
        assert result.returncode == 0, result.stderr
        assert "Warning" not in result.stderr
    for watch in ("1", "7"):
        assert _without_flow(tmp_path / watch) == metrics(tmp_path / "0")
        for file in ("model.safetensors", "report.json"):
            assert (tmp_path / watch / file).read_bytes() == (tmp_path / "0" / file).read_bytes()
    assert [line["step"] for line in _seen(tmp_path / "1")] == list(range(1, 31))
    assert [line["step"] for line in _seen(tmp_path / "7")] == [1, 8, 15, 22, 29]
    assert not (tmp_path / "0" / "report.html").exists()


def test_what_is_noted_of_each_layer(tmp_path):
    result = bptt("train", *ADDING, "--layers", "2", "--steps", "12", "--watch", "5", "--out", tmp_path / "run")
    assert result.returncode == 0, result.stderr
    for line in _seen(tmp_path / "run"):
        assert [layer["layer"] for layer in line["flow"]] == ["recurrent.l0", "recurrent.l1"]
        for layer in line["flow"]:
            assert 0 <= layer["horizon_steps"] <= layer["lags_steps"] == 7
            assert layer["largest_gain"] >= 1 - 1e-6  # at lag 0 it is 1
            assert sum(layer["lag_shares"].values()) == pytest.approx(1)
            assert set(layer["saturation"]) == set("ifgo")
            assert layer["verdict"]


def test_the_gradient_seen_is_that_before_clipping():
    clipped = _training(AddingOptions(length=8, hidden=8, batch=4, steps=9, clip=1e-6, watch=3))
    updates = [clipped.update() for _ in range(7)]
    assert [update.flow is not None for update in updates] == [True, False, False, True, False, False, True]
    for update in updates[::3]:
        assert update.flow.norms == pytest.approx([update.grad_norm], rel=1e-5)
        assert update.grad_norm > 1e-5


def test_killed_and_resumed_it_notes_the_same(tmp_path):
    arguments = [*ADDING, "--steps", "120", "--watch", "7"]
    whole, cut = tmp_path / "whole", tmp_path / "cut"
    assert bptt("train", *arguments, "--out", whole).returncode == 0
    run = Run("train", *arguments, "--out", cut, checkpoint_seconds=0)
    wait_for(lambda: size(cut) > 3000, run)
    run.kill()
    result = bptt("train", "--resume", cut)
    assert result.returncode == 0, result.stderr
    assert (cut / "metrics.jsonl").read_bytes() == (whole / "metrics.jsonl").read_bytes()


def test_a_resumed_run_may_be_watched_more_closely(tmp_path):
    run = tmp_path / "run"
    assert bptt("train", *ADDING, "--steps", "10", "--watch", "0", "--out", run).returncode == 0
    assert bptt("train", *ADDING, "--steps", "20", "--out", tmp_path / "whole").returncode == 0
    result = bptt("train", "--resume", run, "--steps", "20", "--watch", "2")
    assert result.returncode == 0, result.stderr
    assert [line["step"] for line in _seen(run)] == [11, 13, 15, 17, 19]
    assert (run / "report.html").exists()
    assert "--watch -1 is impossible" in bptt("train", *ADDING, "--watch", "-1", "--out", tmp_path / "x").stderr


@pytest.mark.distributed
@pytest.mark.parametrize("batch", ["4", "5"])
def test_of_several_processes_the_first_one_looks(batch, tmp_path):
    arguments = [
        "adding",
        "--length",
        "8",
        "--hidden",
        "8",
        "--batch",
        batch,
        "--steps",
        "12",
        "--validate-every",
        "20",
    ]
    for watch in ("0", "3"):
        result = bptt("train", *arguments, "--watch", watch, "--out", tmp_path / watch, processes=2)
        assert result.returncode == 0, result.stderr
    assert losses(tmp_path / "0") == losses(tmp_path / "3")
    assert [line["step"] for line in _seen(tmp_path / "3")] == [1, 4, 7, 10]
    assert (tmp_path / "3" / "report.html").exists()


def test_a_watch_that_fails_is_said_once_and_training_goes_on(tmp_path, monkeypatch):
    def broken(*_):
        raise RuntimeError("no eyes")

    monkeypatch.setattr("bptt.flow.watching.hooks.observe", broken)
    options = AddingOptions(length=8, hidden=8, batch=4, steps=9, watch=1)
    training = _training(options)
    with pytest.warns(UserWarning, match="no eyes") as said:
        values = [training.update().loss for _ in range(4)]
    assert len(said) == 1
    plain = _training(AddingOptions(length=8, hidden=8, batch=4, steps=9, watch=0))
    assert values == [plain.update().loss for _ in range(4)]


def test_what_cannot_be_written_is_said_once_and_training_goes_on(tmp_path, monkeypatch):
    def broken(*_):
        raise OSError("no paper")

    training = _training(AddingOptions(length=8, hidden=8, batch=4, steps=9, watch=1))
    task = training.task
    wording = Wording(task.name, task.metric, task.unit, task.score)
    record = Record(tmp_path, None, Silent(wording, training.budget, 0.0))
    monkeypatch.setattr("bptt.train.record.figures", broken)
    record.metrics = type("Metrics", (), {"write": lambda self, line: None, "close": lambda self: None})()
    with pytest.warns(UserWarning, match="no paper") as said:
        [record.update(training.update()) for _ in range(3)]
    assert len(said) == 1


def test_once():
    once = WarnOnce()
    with pytest.warns(UserWarning, match="first") as said:
        [once(text) for text in ("first", "second")]
    assert len(said) == 1


@pytest.mark.parametrize(
    "options",
    [
        CopyOptions(length=5, hidden=8, batch=4, steps=5, cell="rnn", activation="relu", lr=1e3, clip=0),
        AddingOptions(length=2, hidden=8, batch=4, steps=5),
    ],
)
def test_figures_are_json_whatever_was_seen(options):
    training = _training(options)
    with torch.no_grad():
        for parameter in training.parameters:
            parameter.mul_(1e4 if options.task == "copy" else 1)
    flow = watch_training_data(training.model, training.task, options)
    json.dumps(figures(flow), allow_nan=False)
    assert all(parameter.grad is None for parameter in training.parameters)
    assert training.model.training


def test_watching_the_training_data_leaves_the_generator_alone(tmp_path):
    options = TextOptions(data=corpus(tmp_path / "corpus"), hidden=8, batch=4, chunk=16, steps=5, layers=2, dropout=0.5)
    training = _training(options)
    before = torch.get_rng_state()
    flow = watch_training_data(training.model, training.task, options)
    assert torch.equal(before, torch.get_rng_state())
    assert flow["recurrent.l1"].passes == 5
    assert isinstance(flow, library.Flow)


def test_what_is_watched_comes_from_all_over_the_training_data(tmp_path):
    """Each batch with the one before it, whose state it goes on with, as in training."""
    options = TextOptions(data=corpus(tmp_path / "corpus"), hidden=8, batch=4, chunk=16, steps=5)
    task = make_task(options)
    pairs = list(watching._from_all_over(task, with_before=True))
    stream = task.stream(Shard())
    drawn = []
    while stream.epoch < 1:
        drawn.append(next(stream))
    assert len(pairs) == 5
    for n, pair in enumerate(pairs):
        place = (len(drawn) - 1) * n // 5
        assert all(map(torch.equal, [p.x for p in pair], [d.x for d in drawn[place : place + 2]]))
    assert all(before is None for before, _ in watching._from_all_over(task, with_before=False))


def test_of_a_sequence_that_fits_no_memory_the_end_is_watched(monkeypatch):
    """A strategy that holds a long sequence within its budget must not end in a watch that holds all of it."""
    monkeypatch.setattr(watching, "_MOST", 60)
    options = AddingOptions(length=200, hidden=4, strategy="checkpointed:2MB")
    training = _training(options)
    flow = watch_training_data(training.model, training.task, options)
    assert flow["recurrent.l0"].steps <= 60 * 5
    assert flow["recurrent.l0"].lags > 0  # the one loss, at the end, is among what is seen


def test_the_page_is_written_anew_while_training_goes_on(tmp_path, monkeypatch):
    monkeypatch.setattr("bptt.train.display.page._PAUSE", 0.0)
    page = LivePage(tmp_path, Wording("adding", "mean squared error", "sequences", float))
    assert page.is_due
    monkeypatch.setattr(
        "bptt.train.display.page.write_page", lambda *_, **__: torch.randn(400, 400) @ torch.randn(400, 400)
    )
    page.write(1, None)
    assert not page.is_due, "what was written took time, and is not written anew at once"


def test_a_run_that_diverges_shows_where_it_began(tmp_path):
    arguments = ["adding", "--length", "60", "--cell", "rnn", "--activation", "relu", "--lr", "1e4", "--clip", "0"]
    for watch in ("0", "100"):
        run = tmp_path / watch
        error = failed(bptt("train", *arguments, *SMALL, "--steps", "50", "--watch", watch, "--out", run), code=1)
        assert "is kept" in error
        assert (f"where it began: {run / 'report.html'}" in error) == (watch == "100")
    assert "✕ Broken" in (tmp_path / "100" / "report.html").read_text()


@pytest.fixture(scope="module")
def watched_run(tmp_path_factory):
    folder = tmp_path_factory.mktemp("watched")
    corpus(folder / "corpus")
    options = ["--chunk", "16", "--steps", "60", "--watch", "10", *SMALL]
    result = bptt("train", "--data", "corpus", *options, "--out", folder / "run", cwd=folder)
    assert result.returncode == 0, result.stderr
    return folder / "run", result


def test_the_report_joins_curve_result_flow_and_verdict(watched_run, chromium):
    folder, result = watched_run
    assert f"report:    {folder / 'report.html'}" in result.stdout
    report = json.loads((folder / "report.json").read_text())
    with opened(chromium, folder / "report.html", PHONE) as seen:
        seen.check()
        text = seen.page.inner_text("body")
        assert seen.page.evaluate("document.documentElement.scrollWidth") <= PHONE[0]
        first = seen.page.locator(".summary").bounding_box()
    assert first["y"] + first["height"] < PHONE[1]
    for wanted in (
        "Training curve",
        "Memory horizon",
        "Verdict over the updates",
        "recurrent.l0",
        "--hidden",
        "60 updates",
    ):
        assert wanted in text
    assert all(name in text for name in report if name != "sample")
