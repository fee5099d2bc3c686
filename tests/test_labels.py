"""Labels: sequences from tables and .ts files, their split, batches, report and predictions, and each mistake by name."""

import csv
import io
import json
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from bptt.errors import InputError
from bptt.network import Network, Sigmoid, Softmax
from bptt.options import LabelsOptions, PredictOptions
from bptt.tasks import make_task
from bptt.tasks.base import Shard
from bptt.tasks.labels import Labels
from bptt.tasks.reading.ts import read_ts
from tests.real_data import archive
from tests.runs import bptt

SMALL_TS = """\
# a comment

@ProblemName Small
@timestamps FALSE
@UNIVARIATE false
@dimensions 2
@equallength false
@classLabel TRUE no yes
@DATA
1.0,2.0,3.0:-1,-2,-3:yes
# between
4,5:6e0, 7 :no
"""


def write(folder: Path, text: str, name: str = "d.ts") -> Path:
    path = folder / name
    path.write_text(text, encoding="utf-8")
    return path


def message(error: pytest.ExceptionInfo[InputError]) -> str:
    text = str(error.value)
    assert "\n" not in text
    return text


def table(folder: Path, classes: int = 3, each: int = 7, name: str = "d.csv", offset: float = 0.0) -> Path:
    """Sequences of 3 to 9 steps whose level is their class."""
    rng = np.random.default_rng(classes * 100 + each)
    lines = ["id,step,a,b,kind"]
    for i in range(classes * each):
        for t in range(3 + i % 7):
            a, b = rng.normal(i % classes, 0.3) + offset, rng.normal(0, 2)
            lines.append(f"s{i},{t},{a:.4f},{b:.4f},k{i % classes}")
    return write(folder, "\n".join(lines) + "\n", name)


def options(path: Path, **more) -> LabelsOptions:
    roles = {} if path.suffix == ".ts" else {"id": "id", "label": "kind", "time": "step"}
    return LabelsOptions(**({"data": path, "batch": 4} | roles | more))


def network(task: Labels, seed: int = 0) -> Network:
    torch.manual_seed(seed)
    sizes = task.sizes()
    assert sizes.inputs is not None
    head = Sigmoid() if sizes.head == "sigmoid" else Softmax()
    return Network(torch.nn.GRU(sizes.inputs, 8), 8, sizes.outputs, head)


# Reading ----------------------------------------------------------------------------------------------------------------


def test_ts_file_read_by_hand(tmp_path):
    s = read_ts(write(tmp_path, SMALL_TS))
    assert s.labels == ("yes", "no")
    assert s.ids == ("1", "2")
    assert s.values[0].tolist() == [[1, -1], [2, -2], [3, -3]]
    assert s.values[1].tolist() == [[4, 6], [5, 7]]


def test_univariate_ts_without_labels(tmp_path):
    s = read_ts(write(tmp_path, "@univariate true\n@classLabel false\n@data\n1,2,3\n4,5\n"))
    assert s.labels is None
    assert [v.tolist() for v in s.values] == [[[1], [2], [3]], [[4], [5]]]


def test_japanese_vowels():
    train, test = (read_ts(path) for path in archive("JapaneseVowels"))
    assert (len(train), len(test)) == (270, 370)
    assert len(train.columns) == 12
    assert (train.lengths().min(), train.lengths().max(), test.lengths().max()) == (7, 26, 29)
    assert train.labels is not None
    assert sorted(set(train.labels)) == list("123456789")


@pytest.mark.parametrize("name", ["ArrowHead", "BasicMotions", "GunPoint", "ItalyPowerDemand", "PickupGestureWiimoteZ"])
def test_other_files_of_the_archive(name):
    for path in archive(name):
        s = read_ts(path)
        assert s.labels is not None
        assert min(s.lengths()) > 0


DAMAGED_TS = {
    "missing value": ("1,2,3:-1,?,-3:yes", "line 10: dimension 2, step 2 is '?', a missing value"),
    "NaN": ("1,NaN,3:1,2,3:yes", "line 10: dimension 1, step 2 is 'NaN', a missing value"),
    "text": ("1,2,x:1,2,3:yes", "line 10: dimension 1, step 3 is 'x', not a finite number"),
    "ragged": ("1,2,3:1,2:yes", "line 10: dimensions of 2 and of 3 steps in one sequence"),
    "dimension lost": ("1,2,3:yes", "line 10: 1 dimensions, wanted 2"),
    "label lost": ("1,2,3:1,2,3", "line 10: label '1,2,3' is none of '@classLabel' (no, yes)"),
    "time stamps": ("(0,1),(1,2):(0,1),(1,2):yes", "line 10: time stamps in brackets are not supported"),
    "truncated": ("1,2,3:1,", "line 10: label '1,' is none of"),
}


@pytest.mark.parametrize("case", DAMAGED_TS)
def test_damaged_line_of_a_ts_file(tmp_path, case):
    line, wanted = DAMAGED_TS[case]
    with pytest.raises(InputError) as error:
        read_ts(write(tmp_path, SMALL_TS.replace("1.0,2.0,3.0:-1,-2,-3:yes", line)))
    assert wanted in message(error)


DAMAGED_HEADER = {
    "regression": ("@targetLabel true", "line 1: '@targetLabel true' is a regression file"),
    "time stamps": ("@timeStamps true", "line 1: '@timeStamps true' is not supported"),
    "no flag": ("@classLabel", "line 1: '@classLabel ': wanted true or false"),
    "no class": ("@classLabel true", "line 1: '@classLabel true' names no class"),
    "no number": ("@dimensions many", "line 1: '@dimensions many': wanted a whole number from 1"),
    "no header": ("1,2,3:yes", "line 1: '1,2,3:yes' before '@data'"),
}


@pytest.mark.parametrize("case", DAMAGED_HEADER)
def test_damaged_header_of_a_ts_file(tmp_path, case):
    line, wanted = DAMAGED_HEADER[case]
    with pytest.raises(InputError) as error:
        read_ts(write(tmp_path, line + "\n" + SMALL_TS))
    assert wanted in message(error)


def test_ts_files_that_end_too_early(tmp_path):
    for text, wanted in (
        ("@classLabel true a b\n", "no line '@data'"),
        ("@classLabel true a b\n@data\n", "no sequence after"),
    ):
        with pytest.raises(InputError, match=wanted):
            read_ts(write(tmp_path, text))
    unequal = "@equalLength true\n@classLabel true a b\n@data\n1,2,3:a\n1,2:b\n"
    with pytest.raises(InputError, match="line 5: 2 steps, wanted 3 as in the first sequence"):
        read_ts(write(tmp_path, unequal))
    assert len(read_ts(write(tmp_path, unequal.replace("true\n", "false\n", 1)))) == 2


# Split, scaling, batches ------------------------------------------------------------------------------------------------


def test_parts_are_disjoint_whole_and_hold_every_class(tmp_path):
    task = Labels(options(table(tmp_path)))
    parts = [task.train, task.held_out, task.test]
    assert sorted(i for p in parts for i in p.ids) == sorted(f"s{i}" for i in range(21))
    for p in parts:
        assert p.labels is not None
        assert set(p.labels) == {"k0", "k1", "k2"}
    assert (len(task.test), len(task.held_out)) == (3, 3)
    again, other = Labels(options(table(tmp_path))), Labels(options(table(tmp_path), seed=1))
    assert again.test.ids == task.test.ids
    assert other.test.ids != task.test.ids


def test_scaling_is_of_the_training_part_alone(tmp_path):
    """A test file on another level, with another spread, changes nothing; the training steps have mean 0, deviation 1."""
    data = table(tmp_path)
    near = Labels(options(data, test_data=table(tmp_path, each=3, name="near.csv")))
    far = Labels(options(data, test_data=table(tmp_path, each=3, name="far.csv", offset=1e6)))
    np.testing.assert_array_equal(near.scaling.mean, far.scaling.mean)
    np.testing.assert_array_equal(near.scaling.std, far.scaling.std)
    seen = np.concatenate([near.scaling.scale(v) for v in near.train.values])
    np.testing.assert_allclose(seen.mean(axis=0), 0, atol=1e-12)
    np.testing.assert_allclose(seen.std(axis=0), 1)


@pytest.mark.parametrize("loss_at", ["last", "every"])
def test_batch_holds_what_the_file_says(tmp_path, loss_at):
    task = Labels(options(table(tmp_path), loss_at=loss_at))
    batch = task.batch(task.train, np.array([0, 5, 2]), Shard())
    assert batch.mask.shape == batch.y.shape == batch.x.shape[:2]
    assert batch.count == int(batch.mask.sum())
    assert task.train.labels is not None
    for row, i in enumerate([0, 5, 2]):
        values = task.train.values[i]
        end = len(values)
        torch.testing.assert_close(
            batch.x[:end, row], torch.from_numpy((values - task.scaling.mean) / task.scaling.std)
        )
        assert (batch.x[end:, row] == 0).all()
        assert batch.mask[:, row].nonzero().flatten().tolist() == ([end - 1] if loss_at == "last" else list(range(end)))
        assert (batch.y[:, row] == int(task.train.labels[i][1])).all()


def test_every_epoch_shows_each_training_sequence_once_and_nothing_else(tmp_path):
    task = Labels(options(table(tmp_path), batch=5))
    stream, total = task.stream(Shard()), len(task.train)
    seen = []
    for _ in range(total):  # total batches of 5: five epochs
        batch = next(stream)
        seen += [batch.x[: int(batch.mask[:, r].nonzero()) + 1, r].numpy().tobytes() for r in range(5)]
    train = sorted(task.scaling.scale(v).tobytes() for v in task.train.values)
    epochs = [seen[e * total : (e + 1) * total] for e in range(5)]
    assert all(sorted(e) == train for e in epochs)
    assert epochs[0] != epochs[1]
    assert stream.epoch == 5


@settings(max_examples=20, deadline=None)
@given(st.integers(0, 12), st.integers(1, 9), st.integers(0, 3))
def test_seek_gives_the_same_batches(tmp_path_factory, ahead, batch, seed):
    task = Labels(options(table(tmp_path_factory.mktemp("t")), batch=batch, seed=seed))
    one, other = task.stream(Shard()), task.stream(Shard())
    for _ in range(ahead):
        next(one)
    other.seek(json.loads(json.dumps(one.position())))
    for _ in range(3):
        assert_same(next(one), next(other))
    assert one.position() == other.position()


def assert_same(a, b):
    for name in ("x", "y", "mask"):
        assert torch.equal(getattr(a, name), getattr(b, name)), name
    assert a.count == b.count


@settings(max_examples=20, deadline=None)
@given(st.integers(1, 5), st.integers(1, 9), st.sampled_from(["last", "every"]))
def test_rows_of_all_shards_are_the_rows_of_one(tmp_path_factory, world, batch, loss_at):
    task = Labels(options(table(tmp_path_factory.mktemp("t")), batch=batch, loss_at=loss_at))
    shards = [Shard(r, world) for r in range(world)]

    def check(whole, parts):
        for name in ("x", "y", "mask"):
            assert torch.equal(getattr(whole, name), torch.cat([getattr(p, name) for p in parts], dim=1)), name
        assert {p.count for p in parts} == {whole.count} == {int(whole.mask.sum())}

    streams = [task.stream(s) for s in shards]
    whole = task.stream(Shard())
    for _ in range(4):
        check(next(whole), [next(s) for s in streams])
    held_out = [list(task.validation(s)) for s in shards]
    for i, batch_ in enumerate(task.validation(Shard())):
        check(batch_, [h[i] for h in held_out])


def test_validation_is_the_held_out_part_once(tmp_path):
    task = Labels(options(table(tmp_path), batch=2))
    batches = list(task.validation(Shard()))
    assert sum(b.count for b in batches) == len(task.held_out) == 3


def test_two_classes_take_one_output(tmp_path):
    sizes = Labels(options(table(tmp_path, classes=2))).sizes()
    assert (sizes.outputs, sizes.head, sizes.inputs) == (1, "sigmoid", 2)
    sizes = Labels(options(table(tmp_path, classes=3))).sizes()
    assert (sizes.outputs, sizes.head, sizes.inputs) == (3, "softmax", 2)


def test_classes_that_are_numbers_come_in_their_order(tmp_path):
    lines = [f"{i},{v},{i % 3 + 9}" for i in range(12) for v in (i, i * i)]
    task = Labels(options(write(tmp_path, "id,v,kind\n" + "\n".join(lines), "n.csv"), time=None))
    assert task.classes == ("9", "10", "11")


# Report and predictions -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("classes", [2, 3])
def test_report_counts_what_predict_writes(tmp_path, classes):
    path = table(tmp_path, classes)
    task = Labels(options(path, test_data=table(tmp_path, classes, each=9, name="t.csv")))
    model = network(task)
    report = task.report(model)
    assert not model.training
    spec = json.loads(json.dumps(task.spec()))
    lines = "".join(Labels.predict(model, spec, PredictOptions(data=tmp_path / "t.csv")))
    rows = list(csv.DictReader(io.StringIO(lines)))
    assert [r["id"] for r in rows] == list(task.test.ids)
    assert task.test.labels is not None
    right = [r["label"] == label for r, label in zip(rows, task.test.labels, strict=True)]
    assert report["test accuracy (%)"] == pytest.approx(100 * np.mean(right))
    assert report["accuracy of always saying 'k0', the most frequent in training (%)"] == pytest.approx(100 / classes)
    for r in rows:
        p = [float(r[f"probability of {c}"]) for c in task.classes]
        assert sum(p) == pytest.approx(1, abs=1e-5)
        assert max(p) == float(r["probability"]) == p[task.classes.index(r["label"])]


def test_prediction_does_not_depend_on_the_neighbours(tmp_path):
    """Alone or padded beside longer sequences: the same answer. No label column is needed."""
    task = Labels(options(table(tmp_path)))
    model, spec = network(task).double(), task.spec()
    text = (tmp_path / "d.csv").read_text().splitlines()
    unlabelled = [",".join(line.split(",")[:4]) for line in text]
    together = list(Labels.predict(model, spec, PredictOptions(data=write(tmp_path, "\n".join(unlabelled), "all.csv"))))
    for i in (1, 4, 20):
        one = [unlabelled[0]] + [line for line in unlabelled if line.startswith(f"s{i},")]
        alone = list(Labels.predict(model, spec, PredictOptions(data=write(tmp_path, "\n".join(one), "one.csv"))))
        assert alone == [together[0], together[i + 1]]


def test_predict_checks_before_it_writes(tmp_path):
    task = Labels(options(table(tmp_path)))
    model, spec = network(task), task.spec()
    for name, text, wanted in (
        ("a.csv", "id,step,a\ns,1,2\n", "no column 'b' .an input that the run was trained with"),
        ("b.csv", "id,step,a,b\ns,1,2,x\n", "row 2: column 'b' is 'x'"),
        ("c.csv", "name,step,a,b\ns,1,2,3\n", "no column 'id'"),
        ("d.ts", SMALL_TS, "trained on a .csv or .parquet table with the columns a, b"),
    ):
        with pytest.raises(InputError, match=wanted) as error:
            Labels.predict(model, spec, PredictOptions(data=write(tmp_path, text, name)))
        message(error)
    with pytest.raises(InputError, match="no data to label"):
        Labels.predict(model, spec, PredictOptions())


def test_make_task_and_fingerprint(tmp_path):
    task = make_task(options(table(tmp_path)))
    assert task.fingerprint() == make_task(options(table(tmp_path))).fingerprint()
    text = (tmp_path / "d.csv").read_text()
    changed = write(tmp_path, text.replace("k0", "k1", 1).replace("k0", "k1"), "e.csv")
    assert task.fingerprint() != make_task(options(changed)).fingerprint()


# Mistakes ---------------------------------------------------------------------------------------------------------------

HEAD = "id,step,a,b,kind\n"
ROWS = "".join(f"s{i},{t},{i * t},{i + t},k{i % 2}\n" for i in range(8) for t in range(3))

BAD_TABLES = {
    "one class": (HEAD + ROWS.replace("k1", "k0"), {}, "every sequence has the label 'k0'"),
    "single": (HEAD + ROWS + "s9,0,1,2,k7\n", {}, "class 'k7' has a single sequence ('s9')"),
    "label changes": (HEAD + ROWS + "s7,3,1,2,k0\n", {}, "row 26: column 'kind' is 'k0', but sequence 's7' began with 'k1'"),
    "missing cell": (HEAD + ROWS + "s7,3,,2,k1\n", {}, "row 26: column 'a' is empty"),
    "ragged row": (HEAD + ROWS + "s7,3,1\n", {}, "row 26: column 'b' is empty"),
    "text": (HEAD + ROWS + "s7,3,1,no,k1\n", {}, "row 26: column 'b' is 'no', wanted a number"),
    "no label": (HEAD + ROWS + "s7,3,1,2,\n", {}, "row 26: column 'kind' is empty"),
    "no id": (HEAD + ROWS + ",3,1,2,k1\n", {}, "row 26: column 'id' is empty"),
    "time twice": (HEAD + ROWS + "s7,2,1,2,k1\n", {}, "row 26: column 'step' of 's7' is '2', which comes a second time"),
    "time falls": (HEAD + ROWS + "s7,1,1,2,k1\n", {}, "row 26: column 'step' of 's7' is '1', which comes after '2'"),
    "wrong input": (HEAD + ROWS, {"inputs": "a,c"}, "no column 'c' (--inputs)"),
    "id option": (HEAD + ROWS, {"id": None}, "--id is missing"),
    "label option": (HEAD + ROWS, {"label": None}, "--label is missing"),
    "wrong id": (HEAD + ROWS, {"id": "ids"}, "no column 'ids' (--id): did you mean 'id'?"),
    "same column": (HEAD + ROWS, {"label": "id"}, "column 'id' is named twice among --id, --label and --time"),
    "input is label": (HEAD + ROWS, {"inputs": "a,kind"}, "column 'kind' is both an input and the id, label or time"),
    "test share": (HEAD + ROWS, {"test": 1.0}, "--test 1: wanted a share between 0 and 1"),
    "batch": (HEAD + ROWS, {"batch": 0}, "--batch 0: wanted at least 1"),
    "itself": (HEAD + ROWS, {"test_data": "d.csv"}, "is --data itself"),
    "no inputs": ("id,kind\ns0,k0\ns1,k0\ns2,k1\ns3,k1\n", {"time": None}, "no column is left for the inputs"),
}  # fmt: skip


@pytest.mark.parametrize("case", BAD_TABLES)
def test_bad_table(tmp_path, case):
    text, more, wanted = BAD_TABLES[case]
    if "test_data" in more:
        more = {"test_data": tmp_path / more["test_data"]}
    with pytest.raises(InputError) as error:
        Labels(options(write(tmp_path, text, "d.csv"), **more))
    assert wanted in message(error)


def test_constant_column(tmp_path):
    rows = "".join(f"s{i},{t},{i * t},7,k{i % 2}\n" for i in range(8) for t in range(3))
    path = write(tmp_path, HEAD + rows, "d.csv")
    with pytest.raises(InputError, match="column 'b' is 7 everywhere, which teaches nothing: leave it out"):
        Labels(options(path))
    assert Labels(options(path, inputs="a")).sizes().inputs == 1


def test_bad_test_data(tmp_path):
    data = write(tmp_path, HEAD + ROWS, "d.csv")
    for text, name, wanted in (
        (HEAD + "x,0,1,2,k9\n", "t.csv", "sequence 'x' has the label 'k9', which"),
        ("id,step,a,kind\nx,0,1,k0\n", "t.csv", "no column 'b' .an input"),
        (SMALL_TS, "t.ts", "is of another form than --data"),
    ):
        with pytest.raises(InputError, match=wanted) as error:
            Labels(options(data, test_data=write(tmp_path, text, name)))
        message(error)


def test_options_that_are_not_for_ts(tmp_path):
    path = write(tmp_path, SMALL_TS)
    with pytest.raises(InputError, match=r"--id 'x' is not for \.ts files"):
        Labels(options(path, id="x"))
    unlabelled = write(tmp_path, "@classLabel false\n@data\n1,2\n", "u.ts")
    with pytest.raises(InputError, match="no labels to learn from"):
        Labels(options(unlabelled))
    with pytest.raises(InputError, match="has a single sequence"):
        Labels(options(path))


@pytest.mark.real
@pytest.mark.parametrize("seed", [0, 1, 2])
def test_japanese_vowels_at_95_percent(tmp_path, seed):
    """The promise, with nothing but defaults, within two minutes."""
    train, test = archive("JapaneseVowels")
    run = tmp_path / "run"
    done = bptt("train", "labels", "--data", train, "--test-data", test, "--seed", seed, "--out", run)
    assert done.returncode == 0, done.stderr
    assert json.loads((run / "report.json").read_text())["test accuracy (%)"] >= 95
    assert done.seconds < 120
    lines = bptt("predict", run).stdout.splitlines()
    assert len(lines) == 371


# Hostile and odd files --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("key", ["@dimensions", "@seriesLength"])
@pytest.mark.parametrize("value", ["9" * 5000, "10000000000", "-3", "0.5", "1e3", "٣", "³", "1_0", "+4"])
def test_a_header_number_is_a_plain_one(tmp_path, key, value):
    with pytest.raises(InputError) as error:
        read_ts(write(tmp_path, f"{key} {value}\n{SMALL_TS}"))
    assert f"line 1: '{key} {value[:5]}" in message(error)
    assert "wanted a whole number from 1, with nine digits at most" in message(error)
    assert len(message(error)) < 400


def test_a_large_but_plain_header_number_is_compared_with_the_data(tmp_path):
    with pytest.raises(InputError, match="line 4: 1 dimensions, wanted 999999999"):
        read_ts(write(tmp_path, "@dimensions 999999999\n@classLabel false\n@data\n1,2\n"))


@pytest.mark.parametrize("mark", ["\u2028", "\x85", "\x0c", "\x1e"])
def test_a_line_of_a_ts_file_ends_at_a_line_feed_alone(tmp_path, mark):
    text = f"# a comment{mark}@data\r\n@classLabel true a{mark}b c\r\n@data\r\n1,2:c\r\n# no{mark}1,2:c\r\n3,4:c\r\n"
    s = read_ts(write(tmp_path, text))
    assert [v.tolist() for v in s.values] == [[[1], [2]], [[3], [4]]]
    with pytest.raises(InputError, match="line 4: dimension 1, step 2 is .* not a finite number"):
        read_ts(write(tmp_path, f"# {mark}\n@classLabel false\n@data\n1,2{mark}3,4\n"))


@pytest.mark.parametrize("encoding", ["utf-8-sig", "utf-16", "utf-16-be"])
def test_a_ts_file_of_any_encoding_and_an_old_mac(tmp_path, encoding):
    text = SMALL_TS.replace("no", "nö").replace("\n", "\r")
    path = tmp_path / "d.ts"
    path.write_bytes((("\ufeff" if encoding == "utf-16-be" else "") + text).encode(encoding))
    s = read_ts(path)
    assert s.labels == ("yes", "nö")
    assert [v.tolist() for v in s.values] == [v.tolist() for v in read_ts(write(tmp_path, SMALL_TS, "e.ts")).values]


@pytest.mark.parametrize("cell", ["1e308", "-1e-320", "1e101"])
def test_extreme_numbers_of_a_ts_file_are_named(tmp_path, cell):
    with pytest.raises(InputError) as error:
        read_ts(write(tmp_path, SMALL_TS.replace("-2", cell)))
    assert f"line 10: dimension 2, step 2 is '{cell}', too extreme to compute with" in message(error)


def with_cell(path: Path, row: int, value: str) -> Path:
    """The table with another value of `a` on a row, as the user counts them."""
    lines = path.read_text().split("\n")
    cells = lines[row - 1].split(",")
    lines[row - 1] = ",".join([*cells[:2], value, *cells[3:]])
    return write(path.parent, "\n".join(lines), "e.csv")


def test_a_cell_far_from_the_training_data_is_named(tmp_path):
    """1e39 is a number of float64, and infinite in float32, in which the network computes."""
    path = table(tmp_path)
    task = Labels(options(path))
    name = task.test.ids[0]
    row = next(n for n, line in enumerate(path.read_text().split("\n"), 1) if line.startswith(f"{name},1,"))
    far = with_cell(path, row, "1e39")
    with pytest.raises(InputError) as error:
        Labels(options(far))
    assert f"sequence {name!r}, step 2: 'a' is 1e+39, more than 1e+12 standard deviations from the training" in message(
        error
    )
    with pytest.raises(InputError, match=r"step 2: 'a' is 1e\+39, more than"):
        Labels.predict(network(task), task.spec(), PredictOptions(data=far))
    other = Labels(options(with_cell(path, row, "1e9")))
    other.test.values[0][1, 0] = 1e39
    with pytest.raises(InputError, match=r"step 2: 'a' is 1e\+39, more than"):
        other.encode_as(task.spec())
    for p in Labels.predict(network(task), task.spec(), PredictOptions(data=with_cell(path, row, "1e9"))):
        assert "nan" not in p


def test_a_column_that_hardly_varies_is_named(tmp_path):
    text = "".join(f"{k % 5}e-200,{k},{k + 1}:{'no' if k % 2 else 'yes'}\n" for k in range(20))
    with pytest.raises(InputError, match="'dimension 1' varies by less than 1e-100"):
        Labels(options(write(tmp_path, "@classLabel true no yes\n@data\n" + text.replace(",", ":").replace("::", ":"))))


@pytest.mark.alone
def test_many_classes_are_read_in_linear_time(tmp_path):
    """20,000 of them: what looks through all classes for each sequence takes 800 million comparisons."""
    names = [f"class-number-{i}" for i in range(20_000)]
    lines = [f"{i % 7},{i % 5}:{name}\n" for i, name in enumerate(names)]
    path = write(tmp_path, f"@classLabel true {' '.join(names)}\n@data\n{''.join(3 * lines)}")
    began = time.process_time()
    task = Labels(options(path))
    assert len(task.classes) == 20_000
    places = np.arange(2000)
    assert task.train.labels is not None
    wanted = [task.classes.index(label) for label in task.train.labels[:20]]
    assert task.batch(task.train, places, Shard()).y[-1, :20].tolist() == wanted
    assert time.process_time() - began < 15
