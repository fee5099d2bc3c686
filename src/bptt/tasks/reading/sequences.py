"""Sequences of different lengths: how they lie in memory, and how they are read from a table with one row for each step."""

import hashlib
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from bptt.errors import InputError
from bptt.tasks.reading.table import Table, split_names
from bptt.tasks.reading.times import read_times
from bptt.tasks.scaling import FAR, NARROW, Scaling, narrow_column

Values = NDArray[np.float64]


@dataclass(frozen=True)
class SequenceSet:
    """N sequences, each with its own number of steps.

    Attributes:
        source: where they come from, for messages.
        columns: the D input columns.
        ids: the name of each sequence.
        values: for each sequence its inputs [T_i, D].
        labels: the label of each sequence; None where the file has none.
    """

    source: str
    columns: tuple[str, ...]
    ids: tuple[str, ...]
    values: tuple[Values, ...]
    labels: tuple[str, ...] | None

    def __len__(self) -> int:
        return len(self.values)

    def lengths(self) -> NDArray[np.int64]:
        """Return the number of steps of each sequence, [N]."""
        return np.array([len(v) for v in self.values], dtype=np.int64)

    def take(self, which: Iterable[int]) -> "SequenceSet":
        """Return the sequences at these places, in this order."""
        places = [int(i) for i in which]
        labels = None if self.labels is None else tuple(self.labels[i] for i in places)
        ids, values = tuple(self.ids[i] for i in places), tuple(self.values[i] for i in places)
        return SequenceSet(self.source, self.columns, ids, values, labels)

    def sha256(self) -> str:
        """Return a hash of everything that a model could learn from: columns, values and labels."""
        digest = hashlib.sha256(repr((self.columns, self.labels, [v.shape for v in self.values])).encode())
        for v in self.values:
            digest.update(np.ascontiguousarray(v).tobytes())
        return digest.hexdigest()


def from_table(
    table: Table, id: str | None, label: str | None, time: str | None, columns: tuple[str, ...]
) -> SequenceSet:
    """Return the sequences of a table, in the order in which their ids first appear. Raises InputError.

    Args:
        table: one row for each step.
        id: column that names the sequence of each row; None takes the whole table as one sequence.
        label: column with the label, constant within a sequence; None where the labels are not wanted.
        time: column that must rise from row to row within a sequence; None takes the rows as they come.
        columns: the input columns.
    """
    groups = table.groups(id)
    values = table.matrix(columns)  # rows, D
    if time is not None:
        times = read_times(table, time)
        for name, rows in groups.items():
            times.check_rising(rows, "" if id is None else name)
    labels = None
    if label is not None:
        texts = table.texts(label)
        labels = tuple(_label(table, label, texts, rows, name) for name, rows in groups.items())
    return SequenceSet(str(table.path), columns, tuple(groups), tuple(values[rows] for rows in groups.values()), labels)


def _label(table: Table, column: str, labels: list[str], rows: NDArray[np.int64], name: str) -> str:
    """Return the one label of a sequence. Raises InputError, which names the first row that disagrees."""
    first = labels[rows[0]]
    for r in rows:
        if labels[r] != first:
            raise InputError(
                f"{table.at(r)}: column {column!r} is {labels[r]!r}, but sequence {name!r} began with {first!r}: "
                "a sequence has one label, repeat it on each of its rows (or check --id)"
            )
    return first


def input_columns(table: Table, named: str, others: tuple[str | None, ...]) -> tuple[str, ...]:
    """Return the columns that --inputs lists (`named`); if it lists none, all columns but `others`. Raises InputError."""
    if named:
        columns = split_names(named, "--inputs")
        for c in columns:
            table.require(c, "--inputs")
            if c in others:
                raise InputError(f"column {c!r} is both an input and the id, label or time: take it out of --inputs")
        return columns
    columns = tuple(c for c in table.columns if c not in others)
    if not columns:
        raise InputError(f"{table.path}: no column is left for the inputs ({table.listing()}): add one")
    return columns


def check_varies(sequences: SequenceSet, path: Path) -> None:
    """Raise InputError for an input column that has one value at all steps of all sequences."""
    everything = np.concatenate(sequences.values)  # all steps, D
    for c, column in enumerate(sequences.columns):
        if np.ptp(everything[:, c]) == 0:
            raise InputError(
                f"{path}: column {column!r} is {everything[0, c]:g} everywhere, which teaches nothing: "
                "leave it out (name the others with --inputs)"
            )


def scaling_of(sequences: SequenceSet) -> Scaling:
    """Return the scaling of all steps. Raises InputError for a column that varies by less than can be computed with."""
    everything = np.concatenate(sequences.values)
    narrow = narrow_column(everything)
    if narrow is not None:
        raise InputError(f"{sequences.source}: {sequences.columns[narrow]!r} {NARROW}")
    return Scaling.of(everything)


def check_near(sequences: SequenceSet, scaling: Scaling) -> None:
    """Raise InputError for a cell so far from the training data that the network's arithmetic cannot hold it."""
    for name, values in zip(sequences.ids, sequences.values, strict=True):
        far = scaling.farthest(values)
        if far is not None:
            raise InputError(
                f"{sequences.source}: sequence {name!r}, step {far[0] + 1}: {sequences.columns[far[1]]!r} is "
                f"{values[far]:g}, {FAR}"
            )
