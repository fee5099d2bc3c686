"""`bptt inspect RUN`: the gradient's flow through a trained run, on its own data or others; mistakes in one line."""

import html
import re
import shutil

import pytest

from tests.runs import SMALL, TEXT, bptt, corpus, failed

SINE = "".join(f"{t},{t % 7 + 0.1 * (t % 3)}\n" for t in range(300))


def _rows(labels=("up", "down"), columns="a", sequences=40):
    rows = [f"{i},{labels[i % 2]},{t if i % 2 else -t}" for i in range(sequences) for t in range(4)]
    return f"id,label,{columns}\n" + "\n".join(rows) + "\n"


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """A run of each kind of task, in one folder with its data."""
    folder = tmp_path_factory.mktemp("runs")
    corpus(folder / "corpus")
    (folder / "series.csv").write_text("t,y\n" + SINE)
    (folder / "labels.csv").write_text(_rows())
    few = ["--steps", "6", *SMALL]
    kinds = {
        "text": ["text", "--data", "corpus", "--chunk", "16", "--watch", "0"],
        "series": ["series", "--data", "series.csv", "--target", "y", "--time", "t", "--chunk", "16"],
        "labels": ["labels", "--data", "labels.csv", "--id", "id", "--label", "label"],
        "adding": ["adding", "--length", "12"],
    }
    for name, arguments in kinds.items():
        result = bptt("train", *arguments, *few, "--out", f"run-{name}", cwd=folder)
        assert result.returncode == 0, result.stderr
    return folder


@pytest.mark.parametrize("name", ["text", "series", "labels", "adding"])
def test_verdict_on_the_screen_and_report_in_the_folder(name, runs, tmp_path):
    run = runs / f"run-{name}"
    before = {path.name: path.read_bytes() for path in run.iterdir() if path.name != "report.html"}
    result = bptt("inspect", run, cwd=tmp_path)
    assert result.returncode == 0, result.stderr
    assert "Warning" not in result.stderr
    assert result.stdout.split("\n")[0].startswith(("✓", "▲", "✕"))
    assert "recurrent.l0" in result.stdout
    assert f"report:    {run / 'report.html'}" in result.stdout
    page = (run / "report.html").read_text()
    assert "on the training data, with the run" in page
    assert "Training curve" in page
    assert {path.name: path.read_bytes() for path in run.iterdir() if path.name != "report.html"} == before


def test_inspect_and_the_reports_tell_the_same(runs, tmp_path):
    """What `bptt train` wrote at its end, what `inspect` prints and what it writes: the same words and numbers."""
    result = bptt(
        "train",
        "adding",
        "--length",
        "150",
        "--cell",
        "rnn",
        "--steps",
        "4",
        *SMALL,
        "--watch",
        "2",
        "--out",
        "run",
        cwd=tmp_path,
    )
    assert result.returncode == 0, result.stderr
    at_the_end = html.unescape((tmp_path / "run" / "report.html").read_text())
    result = bptt("inspect", tmp_path / "run", "--out", tmp_path / "again.html")
    assert result.returncode == 0, result.stderr
    again = html.unescape((tmp_path / "again.html").read_text())
    headline, finding = result.stdout.splitlines()[:2]
    layer, verdict, text = re.fullmatch(r"(\S+): ([a-z ]+)\. (.*?)(?: Try: .*)?", finding).groups()
    assert f"{verdict} in {layer}" in headline
    steps, lags = re.search(r"(\d+) of the (\d+) steps", text).groups()
    assert "After 4 updates this is normal" in text
    for page in (at_the_end, again):
        assert headline.split(": ", 1)[1] in page
        assert text in page
        assert f"{steps} of {lags} steps" in page
        assert f"horizon {steps} step" in page


def test_the_same_data_seen_as_other_data_gives_the_same_verdict(runs, tmp_path):
    for name, data in (("text", "corpus"), ("series", "series.csv"), ("labels", "labels.csv")):
        own = bptt("inspect", runs / f"run-{name}", "--out", tmp_path / f"{name}-own.html")
        other = bptt("inspect", runs / f"run-{name}", "--data", runs / data, "--out", tmp_path / f"{name}.html")
        assert other.returncode == 0, other.stderr
        assert other.stdout.split("report:")[0] == own.stdout.split("report:")[0]
        assert "on other data" in (tmp_path / f"{name}.html").read_text()


def test_other_data_is_encoded_as_the_run_did(runs, tmp_path):
    (tmp_path / "other").mkdir()
    for n in range(4):
        (tmp_path / "other" / f"{n}.txt").write_text(TEXT.replace("quick", "Ωmega ¿") + "zz")  # characters that are new
    (tmp_path / "series.csv").write_text("t,y\n" + "".join(f"{t},{1000 + t % 5}\n" for t in range(200)))
    (tmp_path / "labels.csv").write_text(_rows(sequences=60))
    for name, data in (("text", "other"), ("series", "series.csv"), ("labels", "labels.csv")):
        out = tmp_path / f"{name}.html"
        result = bptt("inspect", runs / f"run-{name}", "--data", tmp_path / data, "--out", out)
        assert result.returncode == 0, result.stderr
        assert out.exists()


def test_mistakes_are_one_line(runs, tmp_path):
    run = runs / "run-labels"
    assert "does not exist" in failed(bptt("inspect", tmp_path / "nothing"))
    assert "is not a run folder" in failed(bptt("inspect", tmp_path))
    assert "is a folder" in failed(bptt("inspect", run, "--out", tmp_path))
    assert "cannot write the report" in failed(bptt("inspect", run, "--out", tmp_path / "no" / "flow.html"))
    assert "draws its own" in failed(bptt("inspect", runs / "run-adding", "--data", run))
    assert "--device" in failed(bptt("inspect", run, "--device", "cuda:99"))
    (tmp_path / "columns.csv").write_text(_rows(columns="b"))
    assert "the run was trained on a" in failed(bptt("inspect", run, "--data", tmp_path / "columns.csv"))
    (tmp_path / "labels.csv").write_text(_rows(labels=("up", "sideways")))
    assert "'sideways' is not among those of the run" in failed(bptt("inspect", run, "--data", tmp_path / "labels.csv"))
    (tmp_path / "series.csv").write_text("t,z\n" + SINE)
    assert "series.csv" in failed(bptt("inspect", runs / "run-series", "--data", tmp_path / "series.csv"))
    assert "not/there" in failed(bptt("inspect", run, "--data", "not/there.csv"))


def test_data_that_changed_since_the_training_are_refused(runs):
    data = runs / "labels.csv"
    before = data.read_text()
    try:
        data.write_text(_rows(sequences=44))
        error = failed(bptt("inspect", runs / "run-labels"))
    finally:
        data.write_text(before)
    assert "the data are not those" in error
    assert "--data" in error


def test_help_names_the_options():
    shown = bptt("inspect", "--help")
    assert shown.returncode == 0
    assert all(word in shown.stdout for word in ("RUN", "--data", "--out", "--device"))


def test_metrics_that_are_damaged_or_gone(runs, tmp_path):
    run = shutil.copytree(runs / "run-adding", tmp_path / "run")
    (run / "metrics.jsonl").write_text("{half\n")
    assert "metrics.jsonl" in failed(bptt("inspect", run))
    (run / "metrics.jsonl").unlink()
    assert bptt("inspect", run).returncode == 0


def test_a_run_without_weights_says_so(runs, tmp_path):
    run = shutil.copytree(runs / "run-adding", tmp_path / "run")
    (run / "model.safetensors").unlink()
    (run / "checkpoint.safetensors").unlink()
    assert "model.safetensors" in failed(bptt("inspect", run))
