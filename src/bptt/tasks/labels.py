"""Label whole sequences: many-to-one, softmax, or sigmoid for two classes (lecture lines 7 and 8).

The network reads a sequence step by step; its output at the last step is the answer. `--loss-at last` trains on that step
alone; `--loss-at every` takes a loss at each step, as some do to help the earlier steps. Prediction uses the last step in
both cases. (On JapaneseVowels the mean of the outputs over the steps is right less often: with the default GRU by 15 points
after `last`, by one after `every`; only an LSTM after `every` gains a point by it.)
"""

from collections import Counter
from collections.abc import Iterator
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from bptt.errors import InputError
from bptt.options import LabelsOptions, PredictOptions
from bptt.tasks.base import Batch, Shard, Sizes, Stream, Task
from bptt.tasks.reading.csv_and_parquet import csv_line, read_table
from bptt.tasks.reading.scaling import Scaling
from bptt.tasks.reading.sequences import Sequences, check_near, check_varies, from_table, input_columns, scaling_of
from bptt.tasks.reading.ts import read_ts
from bptt.typed import Json

VALIDATION_SHARE = 0.15
"""Share of the training sequences of each class that is held out for validation."""

RECALLS = 12
"""The report names the recall of each class if there are at most this many."""

Places = NDArray[np.int64]
LossAt = Literal["last", "every"]


class Labels(Task):
    """Labelled sequences, read, checked, scaled on the training part, and split by class.

    Attributes:
        classes: the labels, in order; a class id is the place in it.
        train, held_out, test: the three parts, disjoint.
        scaling: mean and standard deviation of each input over the steps of the training part.
    """

    name = "labels"
    carries_state = False
    unit = "labels"
    metric = "cross-entropy (nats)"

    def __init__(self, options: LabelsOptions) -> None:
        _check_options(options)
        self.options = options
        data = _read(options)
        self.classes = _classes(data)
        if options.test_data is None:
            rest, test = _split(data, options.test, options.seed)
            self.test = data.take(test)
        else:
            rest = np.arange(len(data))
            self.test = _read_test(options, data.columns, self.classes)
        kept = data.take(rest)
        train, held_out = _split(kept, VALIDATION_SHARE, options.seed + 1)
        self.train, self.held_out = kept.take(train), kept.take(held_out)
        if not self.held_out.values:
            raise InputError(f"{options.data}: no class has two sequences to spare for validation: add sequences")
        if not _is_ts(options):
            check_varies(self.train, options.data)
        self.scaling = scaling_of(self.train)
        self._check_near()
        self._data = data

    def _numbers(self) -> dict[str, int]:
        """The number of each class."""
        return {name: number for number, name in enumerate(self.classes)}

    def _check_near(self) -> None:
        for part in (self.train, self.held_out, self.test):
            check_near(part, self.scaling)

    def sizes(self) -> Sizes:
        """One output with a sigmoid for two classes, else one output a class with a softmax."""
        inputs, classes = len(self.train.columns), len(self.classes)
        if classes == 2:
            return Sizes(outputs=1, head="sigmoid", inputs=inputs)
        return Sizes(outputs=classes, head="softmax", inputs=inputs)

    def stream(self, shard: Shard) -> "LabelsStream":
        """Shuffled training sequences, without end."""
        return LabelsStream(self, shard)

    def validation(self, shard: Shard) -> Iterator[Batch]:
        """The held-out sequences, the shortest first, so that little is padded."""
        order = np.argsort(self.held_out.lengths(), kind="stable")
        for start in range(0, len(order), self.options.batch):
            yield self.batch(self.held_out, order[start : start + self.options.batch], shard)

    def batch(self, part: Sequences, places: Places, shard: Shard) -> Batch:
        """These sequences of a part, padded at their end to the longest: x [T, B, D], y and mask [T, B]; the shard's B."""
        mine = places[shard.rows(len(places))]
        lengths = part.lengths()
        steps = int(lengths[places].max())
        x = pad([self.scaling.scale(part.values[i]) for i in mine], steps, len(part.columns))
        y = torch.zeros(x.shape[:2], dtype=torch.int64)
        mask = torch.zeros(x.shape[:2], dtype=torch.bool)
        assert part.labels is not None
        number = self._numbers()
        for row, i in enumerate(mine):
            y[:, row] = number[part.labels[i]]
            end = int(lengths[i])
            mask[end - 1 if self.options.loss_at == "last" else 0 : end, row] = True
        count = len(places) if self.options.loss_at == "last" else int(lengths[places].sum())
        return Batch(x, y, mask, count)

    def score(self, loss: float) -> float:
        """The mean cross-entropy itself, in nats."""
        return loss

    def report(self, model: nn.Module) -> Json:
        """Accuracy on the test part, next to that of always naming the class that is most frequent in training."""
        assert self.test.labels is not None
        assert self.train.labels is not None
        p = np.concatenate(list(probabilities(model, self.test, self.scaling)))  # sequences, classes
        predicted = p.argmax(axis=1)
        number = self._numbers()
        truth = np.array([number[label] for label in self.test.labels])
        counts = Counter(self.train.labels)
        usual = counts.most_common(1)[0][0]
        frequencies = np.array([counts[c] for c in self.classes]) / len(self.train)
        out: Json = {
            "test accuracy (%)": 100 * float((predicted == truth).mean()),
            f"accuracy of always saying {usual!r}, the most frequent in training (%)": 100
            * float((truth == number[usual]).mean()),
            f"{self.metric}, test": float(-np.log(p[np.arange(len(p)), truth].clip(1e-300)).mean()),
            f"{self.metric}, frequencies in training": float(-np.log(frequencies[truth]).mean()),
            "test sequences": len(truth),
            "training sequences": len(self.train),
            "validation sequences": len(self.held_out),
        }
        if len(self.classes) <= RECALLS:
            for c, name in enumerate(self.classes):
                if (truth == c).any():
                    out[f"recall of {name!r} (%)"] = 100 * float((predicted[truth == c] == c).mean())
        return out

    def spec(self) -> Json:
        """Form of the data, columns, classes and scaling."""
        o = self.options
        return {
            "form": "ts" if _is_ts(o) else "table",
            "id": o.id,
            "time": o.time,
            "columns": list(self.train.columns),
            "classes": list(self.classes),
            "scaling": self.scaling.json(),
        }

    def encode_as(self, spec: Json) -> None:
        """With the run's classes and scaling; the columns must be the run's, the labels among its classes."""
        wanted, path = tuple(spec["columns"]), self.options.data
        if spec["form"] == "ts":
            _check_dimensions(self.train, len(wanted))
        elif self.train.columns != wanted:
            has = ", ".join(self.train.columns)
            raise InputError(
                f"{path}: the inputs are {has}, the run was trained on {', '.join(wanted)}: give these columns"
            )
        unknown = sorted(set(self.classes) - set(spec["classes"]))
        if unknown:
            raise InputError(
                f"{path}: the label {unknown[0]!r} is not among those of the run ({', '.join(spec['classes'][:12])}): "
                "take such sequences out"
            )
        self.classes, self.scaling = tuple(spec["classes"]), Scaling.from_json(spec["scaling"])
        self._check_near()

    def fingerprint(self) -> Json:
        """Sequences, steps and a hash of the data, and of the test data if that is another file."""
        out: Json = {
            "sequences": len(self._data),
            "steps": int(self._data.lengths().sum()),
            "sha256": self._data.sha256(),
        }
        if self.options.test_data is not None:
            out["test sha256"] = self.test.sha256()
        return out

    @staticmethod
    def predict(model: nn.Module, spec: Json, options: PredictOptions) -> Iterator[str]:
        """CSV: each sequence's id, its label, the probability of that label, then the probability of every class."""
        if options.data is None:
            raise InputError("no data to label: give --data with a file of the form that the run was trained on")
        sequences = _read_new(spec, options)
        check_near(sequences, Scaling.from_json(spec["scaling"]))
        return _prediction_lines(model, spec, sequences)


class LabelsStream(Stream):
    """Batches of shuffled sequences; each epoch has its own order, drawn from (seed, epoch) alone.

    A batch always has its full size: where an epoch ends in the middle of one, the next epoch fills it.
    """

    def __init__(self, task: Labels, shard: Shard) -> None:
        self._task, self._shard = task, shard
        self._epoch, self._index = 0, 0

    def __next__(self) -> Batch:
        places: list[int] = []
        total = len(self._task.train)
        while len(places) < self._task.options.batch:
            order = np.random.default_rng([self._task.options.seed, self._epoch]).permutation(total)
            taken = order[self._index : self._index + self._task.options.batch - len(places)]
            places += taken.tolist()
            self._index += len(taken)
            if self._index == total:
                self._epoch, self._index = self._epoch + 1, 0
        return self._task.batch(self._task.train, np.array(places), self._shard)

    def position(self) -> Json:
        """The epoch, and how many of its sequences are behind."""
        return {"epoch": self._epoch, "index": self._index}

    def position_after(self, batches: int) -> Json:
        """As `Stream.position_after`."""
        epoch, index = divmod(batches * self._task.options.batch, len(self._task.train))
        return {"epoch": epoch, "index": index}

    def seek(self, position: Json) -> None:
        """Go to a place that `position` named."""
        self._epoch, self._index = int(position["epoch"]), int(position["index"])

    @property
    def epoch(self) -> float:
        """Passes over the training sequences."""
        return self._epoch + self._index / len(self._task.train)


def pad(values: list[NDArray[np.float64]], steps: int, width: int) -> Tensor:
    """Sequences [T_i, width] side by side, [steps, B, width], with zeros after each one's end."""
    x = np.zeros((steps, len(values), width))
    for row, v in enumerate(values):
        x[: len(v), row] = v
    return torch.from_numpy(x)


@torch.no_grad()
def probabilities(
    model: nn.Module, sequences: Sequences, scaling: Scaling, batch: int = 64
) -> Iterator[NDArray[np.float64]]:
    """The probability of each class at the last step, [up to `batch`, classes], sequences in their order."""
    model.eval()
    weight = next(model.parameters())
    head: Any = model.head
    lengths = sequences.lengths()
    for start in range(0, len(sequences), batch):
        rows = slice(start, start + batch)
        x = pad([scaling.scale(v) for v in sequences.values[rows]], int(lengths[rows].max()), len(sequences.columns))
        z, _ = model(x.to(weight.device, weight.dtype))
        last = z[torch.as_tensor(lengths[rows] - 1), torch.arange(z.shape[1])]  # B, outputs
        p: NDArray[np.float64] = head.activation(last).double().cpu().numpy()
        yield np.concatenate([1 - p, p], axis=1) if p.shape[1] == 1 else p


def _prediction_lines(model: nn.Module, spec: Json, sequences: Sequences) -> Iterator[str]:
    classes: list[str] = spec["classes"]
    yield csv_line([spec["id"] or "id", "label", "probability", *(f"probability of {c}" for c in classes)])
    done = 0
    for p in probabilities(model, sequences, Scaling.from_json(spec["scaling"])):
        for row in p:
            best = int(row.argmax())
            yield csv_line([sequences.ids[done], classes[best], f"{row[best]:.6f}", *(f"{v:.6f}" for v in row)])
            done += 1


def _is_ts(options: LabelsOptions) -> bool:
    return options.data.suffix.lower() == ".ts"


def _check_options(options: LabelsOptions) -> None:
    """What can be said without the data."""
    if options.batch < 1:
        raise InputError(f"--batch {options.batch}: wanted at least 1 sequence in an update")
    if options.test_data is None and not 0 < options.test < 1:
        raise InputError(f"--test {options.test:g}: wanted a share between 0 and 1, e.g. 0.2; or give --test-data")
    if options.test_data is not None and options.test_data.resolve() == options.data.resolve():
        raise InputError(f"--test-data {options.test_data} is --data itself: give another file, or leave it out")
    if _is_ts(options):
        given = {"--id": options.id, "--label": options.label, "--time": options.time, "--inputs": options.inputs}
        for option, value in given.items():
            if value:
                raise InputError(f"{option} {value!r} is not for .ts files, which have no columns: leave it out")
        return
    _check_roles(options)


def _check_roles(options: LabelsOptions) -> None:
    """A table has an id and a label, and each role its own column."""
    for option, value in (("--id", options.id), ("--label", options.label)):
        if value is None:
            what = "names the sequence of each row" if option == "--id" else "holds the label of the sequence"
            raise InputError(f"{option} is missing: a table of sequences needs it, name the column that {what}")
    roles = [r for r in (options.id, options.label, options.time) if r is not None]
    for r in roles:
        if roles.count(r) > 1:
            raise InputError(f"column {r!r} is named twice among --id, --label and --time: give each its own column")


def _read(options: LabelsOptions) -> Sequences:
    """The sequences of --data, labelled."""
    if _is_ts(options):
        sequences = read_ts(options.data)
        if sequences.labels is None:
            raise InputError(f"{options.data}: '@classLabel' is not true: no labels to learn from; give another file")
        return sequences
    table = read_table(options.data)
    roles = (options.id, options.label, options.time)
    for option, column in zip(("--id", "--label", "--time"), roles, strict=True):
        if column is not None:
            table.require(column, option)
    columns = input_columns(table, options.inputs, roles)
    return from_table(table, options.id, options.label, options.time, columns)


def _read_test(options: LabelsOptions, columns: tuple[str, ...], classes: tuple[str, ...]) -> Sequences:
    """The sequences of --test-data, which must be like those of --data."""
    path = options.test_data
    assert path is not None
    if path.suffix.lower() == ".ts" and _is_ts(options):
        test = read_ts(path)
        if test.labels is None:
            raise InputError(f"{path}: '@classLabel' is not true: no labels to test against; give another file")
        _check_dimensions(test, len(columns))
    elif path.suffix.lower() != ".ts" and not _is_ts(options):
        table = read_table(path)
        for option, column in (("--id", options.id), ("--label", options.label), ("--time", options.time)):
            if column is not None:
                table.require(column, option)
        for column in columns:
            table.require(column, "an input")
        test = from_table(table, options.id, options.label, options.time, columns)
    else:
        raise InputError(f"--test-data {path} is of another form than --data {options.data}: give both in the same")
    assert test.labels is not None
    known = frozenset(classes)
    for i, label in enumerate(test.labels):
        if label not in known:
            raise InputError(
                f"{path}: sequence {test.ids[i]!r} has the label {label!r}, which {options.data} does not have "
                f"({', '.join(classes[:12])}): take it out, or add such sequences there"
            )
    return test


def _check_dimensions(sequences: Sequences, wanted: int) -> None:
    if len(sequences.columns) != wanted:
        raise InputError(
            f"{sequences.source}: {len(sequences.columns)} dimensions, the training data has {wanted}: give data like it"
        )


def _read_new(spec: Json, options: PredictOptions) -> Sequences:
    """The sequences to label, whose labels are not looked at."""
    path, columns = options.data, tuple(spec["columns"])
    assert path is not None
    if (path.suffix.lower() == ".ts") != (spec["form"] == "ts"):
        form = (
            "a .ts file" if spec["form"] == "ts" else f"a .csv or .parquet table with the columns {', '.join(columns)}"
        )
        raise InputError(f"{path}: the run was trained on {form}: give data of that form")
    if spec["form"] == "ts":
        sequences = read_ts(path)
        _check_dimensions(sequences, len(columns))
        return sequences
    table = read_table(path)
    table.require(spec["id"], "the id that the run was trained with")
    if spec["time"] is not None:
        table.require(spec["time"], "the time that the run was trained with")
    for column in columns:
        table.require(column, "an input that the run was trained with")
    return from_table(table, spec["id"], None, spec["time"], columns)


def _classes(data: Sequences) -> tuple[str, ...]:
    """The labels in order (as numbers, if all are); there must be two or more, each with two sequences or more."""
    assert data.labels is not None
    counts = Counter(data.labels)
    if len(counts) < 2:
        raise InputError(
            f"{data.source}: every sequence has the label {data.labels[0]!r}: labels needs 2 classes or more"
        )
    for name, count in counts.items():
        if count < 2:
            i = data.labels.index(name)
            raise InputError(
                f"{data.source}: class {name!r} has a single sequence ({data.ids[i]!r}), wanted 2 or more to split: "
                "add one, or take it out"
            )
    try:
        return tuple(sorted(counts, key=float))
    except ValueError:
        return tuple(sorted(counts))


def _split(data: Sequences, share: float, seed: int) -> tuple[Places, Places]:
    """The places of a large and a small part, both in order: `share` of each class, but at least one stays and one goes.

    A class with a single sequence stays whole in the large part.
    """
    assert data.labels is not None
    members_of: dict[str, list[int]] = {}
    for place, label in enumerate(data.labels):
        members_of.setdefault(label, []).append(place)
    rng = np.random.default_rng([seed, 0x5EED])
    small: list[int] = []
    for name in sorted(members_of):
        members = rng.permutation(np.array(members_of[name]))
        small += members[: min(max(1, round(share * len(members))), len(members) - 1)].tolist()
    return np.setdiff1d(np.arange(len(data)), small), np.sort(np.array(small, dtype=np.int64))
