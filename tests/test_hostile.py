"""A stranger's run folder, sealed correctly and wrong in one place: one line of error within a second, never a traceback.

`make fuzz` tries every wrong value at every place, `make test` the same few at every run.
"""

import contextlib
import dataclasses
import io
import itertools
import json
import os
import random
import shutil
import time

import pytest
import torch

from bptt.errors import InputError
from bptt.options import ExplainOptions, InspectOptions, PredictOptions
from bptt.train import run as training
from bptt.train.events import Diverged
from bptt.train.explain import own_of_run
from bptt.train.inspect import inspect
from bptt.train.predict import predict
from bptt.train.storage.config import read_config
from bptt.train.storage.seal import UNSEALED, seal
from tests.hostile import (
    CHECKPOINT,
    CONFIG,
    MODEL,
    TASKS,
    VALUES,
    changed,
    copy_of,
    leaves,
    make_runs,
    read_about,
    write_about,
    write_config,
)
from tests.runs import bptt, failed

SECONDS = 3600 if os.environ.get("HYPOTHESIS_PROFILE") == "fuzz" else 0.2  # for each of the fuzzed tests
ANSWERS = (InputError, Diverged, MemoryError, OSError)  # which the command line says in one line
USES = ("predict", "inspect", "explain", "resume")


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    return make_runs(tmp_path_factory.mktemp("runs"))


@pytest.fixture
def copied(runs, tmp_path):
    """Makes a copy of the run of a task."""
    return lambda task: copy_of(runs / task, tmp_path / "run")


def use(name, folder):
    """Use the folder as a command does. Returns the error that would be said in a line; None if there was none."""
    try:
        with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
            if name == "predict":
                predict(folder, PredictOptions(length=3))
            elif name == "inspect":
                inspect(folder, InspectOptions(out=folder / "page.html"))
            elif name == "explain":
                own_of_run(folder, ExplainOptions())
            else:
                (folder / "report.json").unlink(missing_ok=True)  # else it is finished, and not looked at
                config = read_config(folder)
                training.resume(folder, config, dataclasses.replace(config.options, steps=6))
    except ANSWERS as error:
        return error
    return None


def refused(folder, *names, words=""):
    """Assert that each use ends in an InputError with these words, soon."""
    for name in names or USES:
        began = time.process_time()
        error = use(name, folder)
        assert isinstance(error, InputError), (name, error)
        assert words in str(error), name
        assert time.process_time() - began < 3, (name, error)


def in_random_order(*choices):
    """The same order at every `make test`, as many as there is time for."""
    every = list(itertools.product(*choices))
    random.Random(None if SECONDS > 10 else 0).shuffle(every)
    end = time.process_time() + SECONDS
    return itertools.takewhile(lambda _: time.process_time() < end, every)


# Wrong values everywhere -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("task", TASKS)
@pytest.mark.parametrize("name", USES)
def test_a_wrong_value_anywhere_in_config_json(name, task, copied):
    folder = copied(task)
    content = json.loads((folder / CONFIG).read_text())
    for path, number in in_random_order(list(leaves(content)), range(len(VALUES))):
        if name == "resume":
            folder = copied(task)
        write_config(folder, changed(content, path, VALUES[number]))
        try:
            use(name, folder)
        except Exception as error:
            raise AssertionError(f"{path}: {str(VALUES[number])[:60]}") from error


@pytest.mark.parametrize("task", TASKS)
def test_a_wrong_value_anywhere_in_a_checkpoint(task, copied):
    folder = copied(task)
    tensors, about = read_about(folder / CHECKPOINT)
    for path, number in in_random_order(list(leaves(about)), range(len(VALUES))):
        folder = copied(task)
        write_about(folder / CHECKPOINT, tensors, changed(about, path, VALUES[number]))
        try:
            use("resume", folder)
        except Exception as error:
            raise AssertionError(f"{path}: {str(VALUES[number])[:60]}") from error


WRONG = {
    "missing": lambda t: None,
    "longer": lambda t: torch.cat([t.reshape(-1), t.reshape(-1)[:1]]),
    "turned": lambda t: t.reshape(1, *t.shape),
    "empty": lambda t: t.reshape(-1)[:0],
    "of another format": lambda t: t.to(torch.float16 if t.dtype != torch.float16 else torch.int64),
    "not a number": lambda t: torch.full_like(t, torch.nan) if t.is_floating_point() else t.to(torch.complex64),
}


@pytest.mark.parametrize("wrong", WRONG)
@pytest.mark.parametrize("task", TASKS)
def test_a_wrong_tensor_anywhere_in_a_checkpoint(task, wrong, copied):
    folder = copied(task)
    tensors, about = read_about(folder / CHECKPOINT)
    for (name,) in in_random_order(sorted(tensors)):
        folder = copied(task)
        bad = WRONG[wrong](tensors[name])
        others = {key: t for key, t in tensors.items() if key != name}
        write_about(folder / CHECKPOINT, others if bad is None else others | {name: bad}, about)
        error = use("resume", folder)
        if wrong == "not a number" and name.startswith(("carried", "optimizer")):
            assert error is None or isinstance(error, InputError | Diverged), name
        else:
            assert isinstance(error, InputError), name
            assert CHECKPOINT in str(error)


@pytest.mark.parametrize("wrong", WRONG)
def test_a_wrong_tensor_in_the_weights(wrong, copied):
    folder = copied("labels")
    tensors, about = read_about(folder / MODEL)
    for name, tensor in tensors.items():
        bad = WRONG[wrong](tensor)
        others = {key: t for key, t in tensors.items() if key != name}
        write_about(folder / MODEL, others if bad is None else others | {name: bad}, about)
        refused(folder, "predict", "inspect", "explain", words=MODEL)


def test_weights_that_are_too_large_are_no_prediction(copied):
    """Finite weights whose answers are not."""
    for task in ("text", "series", "labels"):
        folder = copied(task)
        tensors, about = read_about(folder / MODEL)
        tensors["output.weight"] = torch.full_like(tensors["output.weight"], 3e38)
        for name, bias in tensors.items():
            if "bias_ih" in name:  # every unit near 1
                bias[:] = 50
                if task != "text":
                    bias[8:16] = -50  # z of the GRU
        write_about(folder / MODEL, tensors, about)
        refused(folder, "predict", words="answer is infinite or not a number")


# Named cases -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("task", "change"),
    [
        ("series", {"spec": None}),
        ("series", {"spec": {}}),
        ("series", {"options.layers": 10**6, "options.hidden": 1}),
        ("series", {"options.layers": 1000, "options.hidden": 1}),
        ("series", {"options.hidden": 10**9}),
        ("series", {"options.hidden": 10**30}),
        ("series", {"options.hidden": 10**400}),
        ("series", {"options.steps": 10**400}),
        ("series", {"options.chunk": 10**15}),
        ("series", {"options.horizon": 10**15, "spec.encoding.horizon": 10**15, "sizes.outputs": 10**15}),
        ("series", {"spec.encoding.errors": [], "spec.encoding.horizon": 0}),
        ("series", {"spec.encoding.features.std": [0.0, 1.0, 1.0]}),
        ("series", {"spec.times": {"spacing": None, "dates": True}}),
        ("series", {"options.data": "/dev/zero"}),
        ("series", {"options.data": "/dev/stdin"}),
        ("series", {"options.data": "a\0b"}),
        ("adding", {"options.length": 10**15, "spec.length": 10**15}),
        ("adding", {"options.length": 10**15, "spec.length": 10**15, "options.strategy": "checkpointed:1MB"}),
        ("copy", {"options.length": 10**15, "spec.length": 10**15}),
        ("adding", {"spec.length": 7}),
        ("text", {"spec.vocabulary": "aab"}),
        ("text", {"sizes.symbols": 10**12}),
        ("text", {"options.embedding": 10**12}),
        ("labels", {"spec.classes": ["up", "up"]}),
        ("labels", {"spec.classes": ["up"] * 3}),
        ("labels", {"sizes.outputs": True}),
    ],
)  # fmt: skip
def test_a_config_that_cannot_be_is_refused_before_anything_is_made(task, change, copied):
    folder = copied(task)
    content = json.loads((folder / CONFIG).read_text())
    for path, value in change.items():
        content = changed(content, path.split("."), value)
    write_config(folder, content)
    data_alone = {"options.chunk"}  # which using the weights does not need
    refused(folder, *(name for name in USES if name != "predict" or set(change) != data_alone))


@pytest.mark.parametrize("number", ["NaN", "Infinity", "1e999", "1" * 5000])
def test_numbers_that_json_does_not_have(number, copied):
    folder = copied("series")
    text = (folder / CONFIG).read_text().replace('"lr": 0.002', f'"lr": {number}')
    begin = text.index("sha256:")
    text = text[:begin] + UNSEALED + text[begin + len(UNSEALED) :]
    (folder / CONFIG).write_bytes(seal(text.encode()))
    refused(folder, words=CONFIG)


def test_an_entry_that_is_there_twice(copied):
    folder = copied("adding")
    text = json.dumps(json.loads((folder / CONFIG).read_text()) | {"seal": UNSEALED})
    (folder / CONFIG).write_bytes(seal(text.replace('"layers": 1', '"layers": 1, "layers": 2').encode()))
    refused(folder, words="'layers' is in it twice")


@pytest.mark.parametrize(
    "about", ["[" * 100_000, '{"a":' * 100_000, "null", "[]", '{"format": "new"}', '{"format": 1, "bptt": 7}', ""]
)
def test_what_stands_beside_the_tensors_is_read_with_care(about, copied):
    for name in (MODEL, CHECKPOINT):
        folder = copied("adding")
        tensors, _ = read_about(folder / name)
        write_about(folder / name, tensors, about + " " + UNSEALED)
        refused(folder, "predict" if name == MODEL else "resume", words=name)


@pytest.mark.parametrize(
    "header", ["[" * 100_000, "null", "{}", '{"__metadata__": 7}', '{"__metadata__": {"bptt": 7}}']
)
def test_a_header_that_is_none(header, copied):
    folder = copied("adding")
    text = (header + " " + UNSEALED).encode()
    (folder / MODEL).write_bytes(seal(len(text).to_bytes(8, "little") + text))
    refused(folder, "predict", "inspect", words=MODEL)


@pytest.mark.parametrize("standing", [{"step": -5}, {"step": 10**18}, {"step": 3}, {"best_step": 9}, {"elapsed": -1}])
def test_a_checkpoint_that_stands_nowhere(standing, copied):
    folder = copied("adding")
    tensors, about = read_about(folder / CHECKPOINT)
    write_about(folder / CHECKPOINT, tensors, about | {"standing": about["standing"] | standing})
    refused(folder, "resume", words=CHECKPOINT)


@pytest.mark.parametrize("task", TASKS)
def test_a_checkpoint_elsewhere_in_the_data(task, copied):
    folder = copied(task)
    tensors, about = read_about(folder / CHECKPOINT)
    for key, value in about["position"].items():
        for other in (value + 1, 10**15, -1):
            folder = copied(task)
            write_about(folder / CHECKPOINT, tensors, about | {"position": about["position"] | {key: other}})
            refused(folder, "resume", words=CHECKPOINT)


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("metrics.jsonl", '{"step": 1, "loss": "x", "grad_norm": 1}\n'),
        ("metrics.jsonl", '{"loss": 1}\n'),
        ("metrics.jsonl", '{"step": 1, "flow": [7]}\n'),
        ("metrics.jsonl", '{"step": 1, "flow": [{"layer": "a", "verdict": 7}]}\n'),
        ("metrics.jsonl", "[" * 100_000 + "\n"),
        ("metrics.jsonl", '{"step": 1' + "0" * 500 + "}\n"),
        ("report.json", "[]"),
        ("report.json", "{"),
        ("report.json", '{"a": [1]}'),
        ("report.json", '{"a": ' + "[" * 100_000),
        ("report.json", '{"a": 1' + "0" * 500 + "}"),
        ("report.json", "\xff"),
    ],
)
def test_figures_that_cannot_be_drawn(name, content, copied):
    folder = copied("adding")
    (folder / name).write_bytes(content.encode("latin-1"))
    refused(folder, "inspect", words=name)


# Other things in the places of files -------------------------------------------------------------------------------

USERS = {CONFIG: USES, MODEL: USES[:3], CHECKPOINT: ("resume",), "metrics.jsonl": ("inspect", "resume")}


@pytest.mark.parametrize("kind", ["pipe", "folder", "empty", "huge", "dangling"])
@pytest.mark.parametrize("name", USERS)
def test_something_else_in_the_place_of_a_file(name, kind, copied):
    folder = copied("adding")
    path = folder / name
    path.unlink()
    if kind == "pipe":
        os.mkfifo(path)
    elif kind == "folder":
        path.mkdir()
    elif kind == "dangling":
        path.symlink_to(folder / "nothing")
    else:
        path.touch()
        os.truncate(path, 0 if kind == "empty" else 1 << 43)
    for use_of_it in USERS[name]:
        error = use(use_of_it, folder)
        can_do_without = (name, kind) == (MODEL, "dangling") or (name == "metrics.jsonl" and use_of_it == "inspect")
        if can_do_without and kind in ("empty", "dangling"):
            assert error is None  # the checkpoint has the weights as well, and a page needs no curves
        else:
            assert isinstance(error, InputError | OSError), (use_of_it, error)
            assert name in str(error)


@pytest.mark.skipif(os.geteuid() == 0, reason="nothing is forbidden to root")
def test_files_that_may_not_be_read(copied):
    for name, users in USERS.items():
        folder = copied("adding")
        (folder / name).chmod(0)
        for use_of_it in users:
            assert isinstance(use(use_of_it, folder), InputError | OSError)


def test_a_pipe_as_data_does_not_hang(runs, tmp_path):
    for task in ("text", "series", "labels"):
        folder = copy_of(runs / task, tmp_path / task)
        content = json.loads((folder / CONFIG).read_text())
        pipe = tmp_path / f"{task}-pipe.csv"
        os.mkfifo(pipe)
        content["options"]["data"] = str(pipe)
        write_config(folder, content)
        refused(folder, *(USES if task != "text" else USES[1:]), words="is neither a file nor a folder")


def test_at_the_command_line_it_is_one_line_and_exit_code_2(runs, tmp_path):
    folder = copy_of(runs / "series", tmp_path / "run")
    content = json.loads((folder / CONFIG).read_text())
    content["spec"]["columns"]["targets"] = ["y\x1b]0;PWNED\x07\u202e"]
    content["spec"]["encoding"]["horizon"] = 7
    write_config(folder, content)
    for command in (["predict"], ["inspect"], ["explain", "--out", tmp_path / "page.html"], ["train", "--resume"]):
        error = failed(bptt(*command, folder))
        assert "restore it from a copy" in error
    shutil.rmtree(folder)
