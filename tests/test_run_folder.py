"""The run folder: sealed against damage, never overwritten, and safe to load from a stranger."""

import json
import shutil

import pytest

from bptt.errors import InputError
from bptt.train.storage.checkpoint import read_checkpoint
from bptt.train.storage.config import read_config
from bptt.train.storage.seal import FORMAT, UNSEALED, seal
from bptt.train.storage.weights import read_model
from tests.runs import SMALL, bptt, failed

READERS = {"config.json": read_config, "model.safetensors": read_model, "checkpoint.safetensors": read_checkpoint}


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs") / "run"
    arguments = ["adding", "--length", "6", "--hidden", "2", "--batch", "4", "--steps", "6", "--validate-every", "3"]
    assert bptt("train", *arguments, "--out", folder).returncode == 0
    return folder


@pytest.fixture
def run(trained, tmp_path):
    return shutil.copytree(trained, tmp_path / "run")


@pytest.mark.parametrize("name", READERS)
def test_any_changed_byte_and_any_missing_end_is_noticed(name, run):
    path = run / name
    good = path.read_bytes()
    READERS[name](run)
    places = range(len(good)) if len(good) < 4000 else [*range(1500), *range(1500, len(good), 37)]
    for at in places:
        path.write_bytes(good[:at] + bytes([good[at] ^ (1 << at % 8)]) + good[at + 1 :])
        with pytest.raises(InputError) as error:
            READERS[name](run)
        assert str(path) in str(error.value)
    for length in {0, 1, 7, 8, 9, len(good) // 2, len(good) - 1}:
        path.write_bytes(good[:length])
        with pytest.raises(InputError):
            READERS[name](run)
    path.write_bytes(good + b"\0")
    with pytest.raises(InputError):
        READERS[name](run)


@pytest.mark.parametrize("name", READERS)
def test_damage_is_one_line_at_the_command_line(name, run):
    data = bytearray((run / name).read_bytes())
    data[len(data) // 2] ^= 0xFF
    (run / name).write_bytes(data)
    arguments = ["train", "--resume", run, "--steps", "9"] if name == "checkpoint.safetensors" else ["predict", run]
    assert name in failed(bptt(*arguments))


def test_a_run_of_a_newer_version_is_refused(run):
    content = json.loads((run / "config.json").read_text())
    content |= {"seal": UNSEALED, "format": FORMAT + 1, "bptt": "9.9.9"}
    (run / "config.json").write_bytes(seal(json.dumps(content).encode()))
    error = failed(bptt("predict", run))
    assert "was written by bptt 9.9.9" in error
    assert "install that version or a newer one" in error


def test_what_is_not_a_run_folder_is_refused(tmp_path):
    assert "does not exist" in failed(bptt("predict", tmp_path / "nothing"))
    assert "is not a run folder: it has no config.json" in failed(bptt("train", "--resume", tmp_path))
    assert "--resume needs the folder of a run" in failed(bptt("train", "--resume"))


def test_a_run_is_never_overwritten(run):
    before = {path.name: path.read_bytes() for path in run.iterdir()}
    assert "already holds a run" in failed(bptt("train", "adding", *SMALL, "--steps", "3", "--out", run))
    assert {path.name: path.read_bytes() for path in run.iterdir()} == before
    other = run.parent / "other"
    other.mkdir()
    (other / "thesis.tex").write_text("precious")
    assert "is not empty" in failed(bptt("train", "adding", *SMALL, "--steps", "3", "--out", other))


def test_a_pickle_in_the_place_of_the_weights_is_not_executed(run, tmp_path):
    import pickle

    class Bomb:
        def __reduce__(self):
            return (open, (str(tmp_path / "executed"), "w"))

    (run / "model.safetensors").write_bytes(pickle.dumps(Bomb()))
    assert "model.safetensors is damaged" in failed(bptt("predict", run))
    (run / "model.safetensors").write_bytes(bytes(seal(UNSEALED.encode() + pickle.dumps(Bomb()))))
    assert "is not a file that bptt wrote" in failed(bptt("predict", run))
    assert not (tmp_path / "executed").exists()


def test_two_runs_side_by_side_get_folders_of_their_own(tmp_path):
    from bptt.train.storage.run_folder import make_folder

    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(tmp_path)
        assert [make_folder(None, "text").name for _ in range(3)] == ["text-1", "text-2", "text-3"]


@pytest.mark.parametrize(
    "change",
    [
        {"options": {"hidden": "many"}},
        {"options": {"cell": "transformer"}},
        {"options": {"hidden": True}},
        {"options": {"lr": None}},
        {"options": {"unheard": 1}},
        {"options": 7},
        {"task": "abacus"},
        {"task": ["adding"]},
        {"format": "new"},
        {"sizes": {"outputs": -1, "head": "linear", "inputs": 2}},
        {"sizes": {"outputs": 1, "head": "exec", "inputs": 2}},
    ],
)
def test_a_sealed_config_of_a_stranger_that_makes_no_sense_is_one_line(change, run):
    content = json.loads((run / "config.json").read_text()) | {"seal": UNSEALED}
    change = {
        key: content[key] | value if isinstance(value, dict) and key == "options" else value
        for key, value in change.items()
    }
    (run / "config.json").write_bytes(seal(json.dumps(content | change).encode()))
    failed(bptt("predict", run))
    for garbage in (b"[" * 100_000, b"\xff", b"null", b"7"):
        (run / "config.json").write_bytes(seal(b'"' + UNSEALED.encode() + b'"' + garbage))
        with pytest.raises(InputError):
            read_config(run)
