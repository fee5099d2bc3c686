"""The command line: every mistake is one line and exit code 2, and help costs nothing."""

import ast
import dataclasses
import os
import subprocess
import sys
from pathlib import Path

import pytest

import bptt
import bptt.train.run
from bptt import cli
from bptt.options import TASKS, PredictOptions
from tests.runs import ENVIRONMENT, PATIENCE, Run, corpus, failed, losses
from tests.runs import bptt as run_bptt

NEEDED = {"series": ["--data", "x.csv", "--target", "y"], "labels": ["--data", "x.csv"]}


@pytest.fixture
def started(monkeypatch):
    """The options with which a run would have been started."""
    options = []
    monkeypatch.setattr(bptt.train.run, "start", lambda given: options.append(given) or 0)
    return options


def ended(arguments):
    """The exit code, also where tyro ends the process."""
    try:
        return cli.main(arguments)
    except SystemExit as end:
        return end.code


def test_a_box_drawn_in_ascii_is_left_out_too(tmp_path):
    environment = os.environ | {"PYTHONIOENCODING": "ascii"}
    command = [sys.executable, "-m", "bptt", "bench", "--cell", "foo"]
    result = subprocess.run(command, env=environment, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert result.returncode == 2
    assert result.stderr.startswith("bptt: error: invalid choice 'foo'")
    assert "---" not in result.stderr


# Help --------------------------------------------------------------------------------------------------------------


def test_help_shows_every_command_and_task(capsys):
    assert cli.main(["--help"]) == 0
    text = capsys.readouterr().out
    assert all(word in text for word in ("train", "predict", "torchrun", "--resume", *TASKS))
    assert cli.main([]) == 2
    assert ended(["train", "--help"]) == 0
    text = capsys.readouterr().out
    assert "Without a task it learns text" in text
    assert all(task in text for task in TASKS)


@pytest.mark.parametrize("task", [*TASKS, "predict"])
def test_every_option_is_in_the_help_with_a_line_about_it(task, capsys):
    kind = TASKS.get(task, PredictOptions)
    assert ended([task, "--help"] if task == "predict" else ["train", task, "--help"]) == 0
    text = capsys.readouterr().out
    for field in dataclasses.fields(kind):
        assert f"--{field.name.replace('_', '-')} " in text
    assert "--resume RUN" in text or task == "predict"
    assert "{None}" not in text


def test_every_option_has_a_docstring_and_all_but_the_data_a_default():
    tree = ast.parse(Path(bptt.options.__file__).read_text())
    for node in ast.walk(tree):
        if isinstance(node, ast.ClassDef):
            for statement, after in zip(node.body, [*node.body[1:], None], strict=True):
                if isinstance(statement, ast.AnnAssign) and "ClassVar" not in ast.unparse(statement.annotation):
                    assert isinstance(after, ast.Expr), ast.unparse(statement)
    for kind in TASKS.values():
        needed = {f.name for f in dataclasses.fields(kind) if f.default is dataclasses.MISSING}
        assert needed <= {"data", "target"}


def test_version_and_module(capsys):
    assert cli.main(["--version"]) == 0
    assert capsys.readouterr().out == f"bptt {bptt.__version__}\n"
    module = subprocess.run([sys.executable, "-m", "bptt", "--version"], capture_output=True, text=True, check=True)
    assert module.stdout == f"bptt {bptt.__version__}\n"


# What starts -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("arguments", [[], ["--hidden", "7"], ["text", "--hidden", "7"]])
def test_no_task_is_text(arguments, started):
    assert cli.main(["train", *arguments]) == 0
    assert started[0].task == "text"
    assert started[0].hidden == (7 if arguments else TASKS["text"]().hidden)
    assert (started[0].steps, started[0].minutes) == (None, 1.5)


@pytest.mark.parametrize(
    ("arguments", "budget"),
    [
        (["text", "--steps", "5"], (5, None)),
        (["text", "--steps=5"], (5, None)),
        (["adding", "--minutes", "3"], (None, 3.0)),
        (["adding", "--minutes", "3", "--steps", "9"], (9, 3.0)),
    ],
)
def test_a_given_budget_takes_the_place_of_the_default(arguments, budget, started):
    assert cli.main(["train", *arguments]) == 0
    assert (started[0].steps, started[0].minutes) == budget


# What cannot be ----------------------------------------------------------------------------------------------------

IMPOSSIBLE = [
    (["adding", "--hidden", "0"], "--hidden 0 is impossible: it must be 1 or more"),
    (["adding", "--layers", "-1"], "--layers -1"),
    (["adding", "--batch", "0"], "--batch 0"),
    (["text", "--chunk", "0"], "--chunk 0"),
    (["text", "--embedding", "0"], "--embedding 0"),
    (["copy", "--length", "0"], "--length 0"),
    (["series", "--horizon", "0"], "--horizon 0"),
    (["adding", "--steps", "0"], "--steps 0"),
    (["adding", "--validate-every", "0"], "--validate-every 0"),
    (["adding", "--minutes", "0"], "--minutes 0.0 is impossible: it must be above 0"),
    (["adding", "--minutes", "nan"], "--minutes nan"),
    (["adding", "--steps", "None", "--minutes", "None"], "no budget: give --steps"),
    (["adding", "--lr", "0"], "--lr 0.0"),
    (["adding", "--lr", "inf"], "--lr inf"),
    (["adding", "--clip", "-1"], "--clip -1.0"),
    (["adding", "--weight-decay", "nan"], "--weight-decay nan"),
    (["adding", "--patience", "-1"], "--patience -1"),
    (["adding", "--seed", "-1"], "--seed -1"),
    (["adding", "--seed", str(2**63)], "too large"),
    (["adding", "--warmup", "10", "--steps", "10"], "--warmup 10 does not end within --steps 10"),
    (["adding", "--dropout", "1", "--layers", "2"], "--dropout 1.0 is impossible: it is a share"),
    (["adding", "--dropout", "0.5"], "there is --layers 1: use --layers 2 or more"),
    (["adding", "--activation", "relu"], "--activation relu does not fit --cell lstm"),
    (["adding", "--strategy", "backwards"], "--strategy backwards: "),
    (["adding", "--strategy", "truncated:0"], "--strategy truncated:0: "),
    (["text", "--chunk", "32", "--strategy", "truncated:48"], "give --chunk 48, or --strategy truncated:32"),
    (["adding", "--device", "abacus"], "--device abacus is unknown: give cpu, cuda, or cuda:N"),
    (["adding", "--device", "mps"], "--device mps is unknown"),
    (["adding", "--device", "cuda:99"], "--device cuda:99 is not there"),
    (["adding", "--hidden", "10000000"], "is free: make one of them smaller"),
    (["adding", "--hidden", str(10**30)], "is free: make one of them smaller"),
    (["adding", "--batch", str(10**12)], "is free: make one of them smaller"),
    (["text", "--data", "nowhere.txt"], "nowhere.txt does not exist"),
    (["adding", "--out", "/dev/null/run"], "cannot make the run folder"),
    (["adding", "--out", "/proc/nowhere"], "cannot make the run folder"),
    (["adding", "--out", "/dev/null"], "is a file"),
    (["abacus"], "unknown task 'abacus': give one of text, series, labels, adding, copy, or none for text"),
    (["--resume"], "--resume needs the folder of a run"),
    (["--resume", "nowhere"], "nowhere does not exist"),
]


@pytest.mark.parametrize(("arguments", "message"), IMPOSSIBLE, ids=[" ".join(a)[:60] for a, _ in IMPOSSIBLE])
def test_what_cannot_be_is_refused_in_one_line(arguments, message, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    task = arguments[0]
    given = ["--steps", "1"] if task in TASKS and not {"--steps", "--minutes"} & set(arguments) else []
    assert cli.main(["train", *arguments, *NEEDED.get(task, []), *given]) == 2
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 1
    assert lines[0].startswith("bptt: error: ")
    assert message in lines[0]
    assert list(tmp_path.iterdir()) == []  # nothing is left behind


@pytest.mark.parametrize(
    "arguments",
    [
        ["train", "adding", "--hidden", "many"],
        ["train", "adding", "--cell", "transformer"],
        ["train", "adding", "--hiden", "3"],
        ["train", "series"],
        ["predict"],
        ["abacus"],
    ],
)
def test_a_line_that_cannot_be_read_ends_with_2(arguments, capsys):
    assert ended(arguments) == 2
    assert "Traceback" not in capsys.readouterr().err


# predict -----------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def text_run(tmp_path_factory):
    folder = tmp_path_factory.mktemp("text")
    corpus(folder / "corpus")
    options = ["--hidden", "8", "--batch", "4", "--chunk", "16", "--steps", "12", "--validate-every", "5"]
    result = run_bptt("train", "--data", folder / "corpus", *options, "--out", folder / "run")
    assert result.returncode == 0, result.stderr
    return folder / "run", result


def test_a_run_leaves_what_it_promises(text_run):
    folder, result = text_run
    names = {path.name for path in folder.iterdir()} - {".lock"}
    assert names == {
        "config.json", "model.safetensors", "checkpoint.safetensors", "metrics.jsonl", "timing.jsonl",
        "report.json", "report.html", "curve.png", "sample.txt",
    }  # fmt: skip
    assert len(losses(folder)) == 12
    for wanted in ("unigram entropy", "xz", "written by the model", f"bptt predict {folder}", "curve.png"):
        assert wanted in result.stdout
    from safetensors.torch import load_file

    assert "recurrent.weight_hh_l0" in load_file(folder / "model.safetensors")  # readable by other programs


def test_runs_are_numbered(tmp_path):
    for n in (1, 2):
        arguments = ["train", "adding", "--length", "4", "--hidden", "2", "--steps", "2"]
        assert run_bptt(*arguments, cwd=tmp_path).returncode == 0
        assert (tmp_path / "runs" / f"adding-{n}" / "model.safetensors").exists()


def test_predict_writes_to_standard_output_or_to_a_new_file(text_run, tmp_path):
    folder, _ = text_run
    printed = run_bptt("predict", folder, "--length", "40")
    assert printed.returncode == 0, printed.stderr
    assert len(printed.stdout) == 40
    out = tmp_path / "made" / "continued.txt"
    assert run_bptt("predict", folder, "--length", "40", "--out", out).returncode == 0
    assert out.read_text() == printed.stdout
    assert "exists already" in failed(run_bptt("predict", folder, "--length", "40", "--out", out))
    assert "cannot write --out" in failed(run_bptt("predict", folder, "--out", "/dev/null/x"))
    assert [path.name for path in out.parent.iterdir()] == ["continued.txt"]
    assert "--device" in failed(run_bptt("predict", folder, "--device", "cuda:99"))


def test_predict_labels_the_data_of_the_run_if_none_are_given(tmp_path):
    rows = [f"{i},{'up' if i % 2 else 'down'},{t if i % 2 else -t}" for i in range(40) for t in range(4)]
    (tmp_path / "data.csv").write_text("id,label,a\n" + "\n".join(rows) + "\n")
    arguments = ["labels", "--data", "data.csv", "--id", "id", "--label", "label", "--steps", "5", "--hidden", "4"]
    trained = run_bptt("train", *arguments, "--out", "run", cwd=tmp_path)
    assert trained.returncode == 0, trained.stderr
    predicted = run_bptt("predict", tmp_path / "run")  # from another folder: the path was kept whole
    assert predicted.returncode == 0, predicted.stderr
    assert len(predicted.stdout.splitlines()) == 41


def test_a_reader_that_goes_away_is_no_error(text_run):
    folder, _ = text_run
    command = f"{sys.executable} -m bptt predict {folder} --length 3000 | head -c 5"
    result = subprocess.run(
        command, shell=True, capture_output=True, text=True, env=os.environ | ENVIRONMENT, timeout=PATIENCE, check=False
    )
    assert (len(result.stdout), result.stderr) == (5, "")


def test_the_prompt_may_be_any_text(text_run):
    folder, _ = text_run
    result = Run("predict", folder, "--length", "5", "--prompt", "日本 \U0001f600 the").result()
    assert result.returncode == 0, result.stderr


def test_a_prompt_is_for_texts(tmp_path):
    Run("train", "adding", "--length", "4", "--hidden", "2", "--steps", "2", "--out", tmp_path / "run").result()
    result = Run("predict", tmp_path / "run", "--prompt", "the").result()
    assert result.returncode == 2
    assert "--prompt is for runs on text, this one's task is adding: leave it out" in result.stderr


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ("abc", "'abc', wanted a number"),
        ("0", "0, but one is the least"),
        ("2", "2, but RANK, MASTER_ADDR, MASTER_PORT"),
    ],
)
def test_a_number_of_processes_that_cannot_be(value, message, tmp_path):
    command = ["train", "adding", "--length", "4", "--hidden", "2", "--steps", "2", "--out", tmp_path / "run"]
    result = Run(*command, environment={"WORLD_SIZE": value}).result()
    assert result.returncode == 2
    assert f"the environment variable WORLD_SIZE is {message}" in result.stderr


def test_a_reader_of_the_summary_that_goes_away_costs_nothing(tmp_path):
    command = f"{sys.executable} -m bptt train adding --length 4 --hidden 2 --steps 2 --out {tmp_path}/run | true"
    result = subprocess.run(
        ["bash", "-o", "pipefail", "-c", command], capture_output=True, env=os.environ | ENVIRONMENT, check=False
    )
    assert result.returncode == 0, result.stderr
    assert (tmp_path / "run" / "report.json").exists()
