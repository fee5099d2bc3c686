"""Run folders of a stranger: sealed correctly, and wrong in one place."""

import copy
import json
import shutil

import safetensors.torch

from bptt.files import write_atomically
from bptt.train.storage.run_folder import CHECKPOINT, CONFIG, MODEL
from bptt.train.storage.seal import UNSEALED, seal
from tests.runs import SMALL, bptt

SINE = "".join(f"{t},{t % 7 + 0.1 * (t % 3)}\n" for t in range(200))
LABELS = "".join(f"{i},{'up' if i % 2 else 'down'},{t if i % 2 else -t}\n" for i in range(40) for t in range(4))

VALUES = [
    *(None, True, "", "x\x1b[31m\0", "\ud800", [], {}, [None], {"a": {"a": 1}}, -5, 0, 10**18, 10**400, 1e308, 0.5),
    json.loads("[" * 500 + "]" * 500),
]
TASKS = {
    "text": ["text", "--data", "text.txt", "--chunk", "6", "--strategy", "truncated:3,8", "--layers", "2"],
    "series": ["series", "--data", "series.csv", "--target", "y", "--time", "t", "--chunk", "6", "--optimizer", "sgd"],
    "labels": ["labels", "--data", "labels.csv", "--id", "id", "--label", "label", "--dropout", "0.1", "--layers", "2"],
    "adding": ["adding", "--length", "6", "--optimizer", "rmsprop", "--patience", "5"],
    "copy": ["copy", "--length", "3", "--cell", "rnn", "--dtype", "float64"],
}


def make_runs(folder):
    """A small run of each task, with the data beside them."""
    (folder / "text.txt").write_text("the quick brown fox\n" * 60)
    (folder / "series.csv").write_text("t,y\n" + SINE)
    (folder / "labels.csv").write_text("id,label,a\n" + LABELS)
    for name, arguments in TASKS.items():
        result = bptt("train", *arguments, *SMALL, "--steps", "4", "--watch", "2", "--out", name, cwd=folder)
        assert result.returncode == 0, result.stderr
    return folder


def leaves(tree, path=()):
    """The path of every value of a JSON tree but its seal; of a long list its first values alone."""
    if path:
        yield path
    items = tree.items() if isinstance(tree, dict) else enumerate(tree[:2]) if isinstance(tree, list) else ()
    for key, value in ((key, value) for key, value in items if key != "seal"):
        yield from leaves(value, (*path, key))


def changed(tree, path, value):
    """A copy of the tree with another value in one place."""
    tree = copy.deepcopy(tree)
    place = tree
    for key in path[:-1]:
        place = place[key]
    place[path[-1]] = value
    return tree


def write_config(folder, content):
    """Write config.json with a seal that is right."""
    write_atomically(folder / CONFIG, seal(json.dumps(content | {"seal": UNSEALED}).encode()))


def read_about(path):
    """The tensors of a sealed file, and what stands beside them."""
    data = path.read_bytes()
    length = int.from_bytes(data[:8], "little")
    about = json.loads(json.loads(data[8 : 8 + length])["__metadata__"]["bptt"])
    return safetensors.torch.load(data), about


def write_about(path, tensors, about):
    """Write such a file with a seal that is right; `about` may be JSON as it is."""
    text = about if isinstance(about, str) else json.dumps(about | {"seal": UNSEALED})
    write_atomically(path, seal(safetensors.torch.save(tensors, {"bptt": text})))


def copy_of(folder, to):
    """A copy of a run folder in the place of what was there."""
    shutil.rmtree(to, ignore_errors=True)
    return shutil.copytree(folder, to)


__all__ = ["CHECKPOINT", "CONFIG", "MODEL", "TASKS", "VALUES"]
