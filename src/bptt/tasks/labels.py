"""Label whole sequences: many-to-one, softmax, or sigmoid for two classes (docs/equations.md, eqs. (7) and (8)).

The network reads a sequence step by step; its output at the last step is the answer. `--loss-at last` trains on that step
alone; `--loss-at every` takes a loss at each step, as some do to help the earlier steps. Prediction uses the last step in
both cases. (On JapaneseVowels the mean of the outputs over the steps is right less often: with the default GRU by 15 points
after `last`, by one after `every`; only an LSTM after `every` gains a point by it.)
"""

from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from bptt.errors import InputError
from bptt.options import LabelsOptions, PredictOptions
from bptt.tasks.base import Batch, Shard, Sizes, Task
from bptt.tasks.reading.labelled import check_dimensions, is_ts, read_labelled, read_labelled_test, read_to_label
from bptt.tasks.reading.sequences import SequenceSet, check_near, check_varies, scaling_of
from bptt.tasks.reading.table import csv_line
from bptt.tasks.scaling import Scaling
from bptt.tasks.scoring.accuracy import accuracies, recalls
from bptt.tasks.streams.shuffled import ShuffledStream
from bptt.typed import Json

VALIDATION_SHARE = 0.15
"""Share of the training sequences of each class that is held out for validation."""

Places = NDArray[np.int64]


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
        data = read_labelled(options)
        self.classes = _classes(data)
        if options.test_data is None:
            rest, test = _split(data, options.test, options.seed)
            self.test = data.take(test)
        else:
            rest = np.arange(len(data))
            self.test = read_labelled_test(options, options.test_data, data)
            _check_known(self.test, self.classes, options.data)
        kept = data.take(rest)
        train, held_out = _split(kept, VALIDATION_SHARE, options.seed + 1)
        self.train, self.held_out = kept.take(train), kept.take(held_out)
        if not self.held_out.values:
            raise InputError(f"{options.data}: no class has two sequences to spare for validation: add sequences")
        if not is_ts(options.data):
            check_varies(self.train, options.data)
        self.scaling = scaling_of(self.train)
        self._check_near()
        self._data = data

    def _class_numbers(self) -> dict[str, int]:
        """Return the number of each class."""
        return {name: number for number, name in enumerate(self.classes)}

    def _check_near(self) -> None:
        for part in (self.train, self.held_out, self.test):
            check_near(part, self.scaling)

    def sizes(self) -> Sizes:
        """The sizes of the network: one output with a sigmoid for two classes, else a softmax with one for each class."""
        inputs, classes = len(self.train.columns), len(self.classes)
        if classes == 2:
            return Sizes(outputs=1, head="sigmoid", inputs=inputs)
        return Sizes(outputs=classes, head="softmax", inputs=inputs)

    def stream(self, shard: Shard) -> ShuffledStream:
        """Training batches: shuffled sequences, without end."""
        o = self.options
        return ShuffledStream(len(self.train), o.batch, o.seed, lambda places: self.batch(self.train, places, shard))

    def validation(self, shard: Shard) -> Iterator[Batch]:
        """Batches of the held-out sequences, the shortest first, so that little is padded."""
        order = np.argsort(self.held_out.lengths(), kind="stable")
        for start in range(0, len(order), self.options.batch):
            yield self.batch(self.held_out, order[start : start + self.options.batch], shard)

    def batch(self, part: SequenceSet, places: Places, shard: Shard) -> Batch:
        """Return the sequences at these places of a part as a batch: x [T, B, D], y and mask [T, B], with the shard's B.

        They are padded at their end to the longest.
        """
        mine = places[shard.rows(len(places))]
        lengths = part.lengths()
        steps = int(lengths[places].max())
        x = pad([self.scaling.scale(part.values[i]) for i in mine], steps, len(part.columns))
        y = torch.zeros(x.shape[:2], dtype=torch.int64)
        mask = torch.zeros(x.shape[:2], dtype=torch.bool)
        assert part.labels is not None
        number = self._class_numbers()
        for row, i in enumerate(mine):
            y[:, row] = number[part.labels[i]]
            end = int(lengths[i])
            mask[end - 1 if self.options.loss_at == "last" else 0 : end, row] = True
        count = len(places) if self.options.loss_at == "last" else int(lengths[places].sum())
        return Batch(x, y, mask, count)

    def score(self, loss: float) -> float:
        """Return the mean cross-entropy itself, in nats."""
        return loss

    def report(self, model: nn.Module) -> Json:
        """Return the accuracy on the test part, next to that of always naming the most frequent class in training."""
        assert self.test.labels is not None
        assert self.train.labels is not None
        p = np.concatenate(list(probabilities(model, self.test, self.scaling)))  # sequences, classes
        number = self._class_numbers()
        truth = np.array([number[label] for label in self.test.labels])
        return {
            **accuracies(p, truth, self.classes, self.train.labels, self.metric),
            "test sequences": len(self.test),
            "training sequences": len(self.train),
            "validation sequences": len(self.held_out),
            **recalls(p, truth, self.classes),
        }

    def spec(self) -> Json:
        """What a run folder keeps: form of the data, columns, classes and scaling."""
        o = self.options
        return {
            "form": "ts" if is_ts(o.data) else "table",
            "id": o.id,
            "time": o.time,
            "columns": list(self.train.columns),
            "classes": list(self.classes),
            "scaling": self.scaling.json(),
        }

    def encode_as(self, spec: Json) -> None:
        """Encode the data with the run's classes and scaling from now on.

        Raises InputError unless the columns are the run's, and the labels are among its classes.
        """
        wanted, path = tuple(spec["columns"]), self.options.data
        if spec["form"] == "ts":
            check_dimensions(self.train, len(wanted))
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
        """What identifies the data: numbers of sequences and steps, and hashes of --data and --test-data."""
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
        """Return CSV lines: each sequence's id, its label, the probability of that label, and those of all classes."""
        if options.data is None:
            raise InputError("no data to label: give --data with a file of the form that the run was trained on")
        sequences = read_to_label(spec, options.data)
        check_near(sequences, Scaling.from_json(spec["scaling"]))
        return _prediction_lines(model, spec, sequences)


def pad(values: list[NDArray[np.float64]], steps: int, width: int) -> Tensor:
    """Return sequences [T_i, width] side by side, [steps, B, width], with zeros after the end of each."""
    x = np.zeros((steps, len(values), width))
    for row, v in enumerate(values):
        x[: len(v), row] = v
    return torch.from_numpy(x)


@torch.no_grad()
def probabilities(
    model: nn.Module, sequences: SequenceSet, scaling: Scaling, batch: int = 64
) -> Iterator[NDArray[np.float64]]:
    """Yield the probability of each class at the last step, [up to `batch`, classes], for the sequences in their order."""
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


def _prediction_lines(model: nn.Module, spec: Json, sequences: SequenceSet) -> Iterator[str]:
    classes: list[str] = spec["classes"]
    yield csv_line([spec["id"] or "id", "label", "probability", *(f"probability of {c}" for c in classes)])
    done = 0
    for p in probabilities(model, sequences, Scaling.from_json(spec["scaling"])):
        for row in p:
            best = int(row.argmax())
            yield csv_line([sequences.ids[done], classes[best], f"{row[best]:.6f}", *(f"{v:.6f}" for v in row)])
            done += 1


def _check_options(options: LabelsOptions) -> None:
    """Raise InputError for options that cannot work, whatever the data are."""
    if options.batch < 1:
        raise InputError(f"--batch {options.batch}: wanted at least 1 sequence in an update")
    if options.test_data is None and not 0 < options.test < 1:
        raise InputError(f"--test {options.test:g}: wanted a share between 0 and 1, e.g. 0.2; or give --test-data")
    if options.test_data is not None and options.test_data.resolve() == options.data.resolve():
        raise InputError(f"--test-data {options.test_data} is --data itself: give another file, or leave it out")
    if is_ts(options.data):
        given = {"--id": options.id, "--label": options.label, "--time": options.time, "--inputs": options.inputs}
        for option, value in given.items():
            if value:
                raise InputError(f"{option} {value!r} is not for .ts files, which have no columns: leave it out")
        return
    _check_roles(options)


def _check_roles(options: LabelsOptions) -> None:
    """Raise InputError unless a table's options name an id and a label, and each role has its own column."""
    for option, value in (("--id", options.id), ("--label", options.label)):
        if value is None:
            what = "names the sequence of each row" if option == "--id" else "holds the label of the sequence"
            raise InputError(f"{option} is missing: a table of sequences needs it, name the column that {what}")
    roles = [r for r in (options.id, options.label, options.time) if r is not None]
    for r in roles:
        if roles.count(r) > 1:
            raise InputError(f"column {r!r} is named twice among --id, --label and --time: give each its own column")


def _classes(data: SequenceSet) -> tuple[str, ...]:
    """Return the labels in order, as numbers if all are. Raises InputError unless there are two, each of two sequences."""
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


def _split(data: SequenceSet, share: float, seed: int) -> tuple[Places, Places]:
    """Return the places of a large and a small part, both in order; the small part has `share` of each class, at random.

    Both parts get at least one sequence of each class; of a class with a single one, the large part does.
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


def _check_known(test: SequenceSet, classes: tuple[str, ...], data: Path) -> None:
    """Raise InputError if a test sequence has a label that the training data, of the file `data`, does not have."""
    assert test.labels is not None
    known = frozenset(classes)
    for i, label in enumerate(test.labels):
        if label not in known:
            raise InputError(
                f"{test.source}: sequence {test.ids[i]!r} has the label {label!r}, which {data} does not have "
                f"({', '.join(classes[:12])}): take it out, or add such sequences there"
            )
