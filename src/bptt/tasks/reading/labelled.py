"""The labelled sequences that the options of `labels` name: a .ts file, or a table in long format."""

from pathlib import Path

from bptt.errors import InputError
from bptt.options import LabelsOptions
from bptt.tasks.reading.csv_and_parquet import read_table
from bptt.tasks.reading.sequences import SequenceSet, from_table, input_columns
from bptt.tasks.reading.ts import read_ts
from bptt.typed import Json


def is_ts(path: Path) -> bool:
    """Return whether a file's name says that it is a .ts file; else it is a table."""
    return path.suffix.lower() == ".ts"


def read_labelled(options: LabelsOptions) -> SequenceSet:
    """Return the sequences of --data, with their labels. Raises InputError."""
    if is_ts(options.data):
        return _labelled_ts(options.data, "learn from")
    table = read_table(options.data)
    for option, column in _roles(options).items():
        table.require(column, option)
    columns = input_columns(table, options.inputs, (options.id, options.label, options.time))
    return from_table(table, options.id, options.label, options.time, columns)


def read_labelled_test(options: LabelsOptions, path: Path, data: SequenceSet) -> SequenceSet:
    """Return the sequences of --test-data, the file `path`. Raises InputError unless their form is that of --data."""
    if is_ts(path) != is_ts(options.data):
        raise InputError(f"--test-data {path} is of another form than --data {options.data}: give both in the same")
    if is_ts(path):
        test = _labelled_ts(path, "test against")
        check_dimensions(test, len(data.columns))
    else:
        table = read_table(path)
        for option, column in _roles(options).items():
            table.require(column, option)
        for column in data.columns:
            table.require(column, "an input")
        test = from_table(table, options.id, options.label, options.time, data.columns)
    return test


def _roles(options: LabelsOptions) -> dict[str, str]:
    """Return the column of each role by its option, if it has one."""
    roles = {"--id": options.id, "--label": options.label, "--time": options.time}
    return {option: column for option, column in roles.items() if column is not None}


def _labelled_ts(path: Path, purpose: str) -> SequenceSet:
    sequences = read_ts(path)
    if sequences.labels is None:
        raise InputError(f"{path}: '@classLabel' is not true: no labels to {purpose}; give another file")
    return sequences


def read_to_label(spec: Json, path: Path) -> SequenceSet:
    """Return the sequences of a file to label, which has the form that a run's `spec` names. Raises InputError."""
    columns = tuple(spec["columns"])
    if is_ts(path) != (spec["form"] == "ts"):
        form = (
            "a .ts file" if spec["form"] == "ts" else f"a .csv or .parquet table with the columns {', '.join(columns)}"
        )
        raise InputError(f"{path}: the run was trained on {form}: give data of that form")
    if spec["form"] == "ts":
        sequences = read_ts(path)
        check_dimensions(sequences, len(columns))
        return sequences
    table = read_table(path)
    table.require(spec["id"], "the id that the run was trained with")
    if spec["time"] is not None:
        table.require(spec["time"], "the time that the run was trained with")
    for column in columns:
        table.require(column, "an input that the run was trained with")
    return from_table(table, spec["id"], None, spec["time"], columns)


def check_dimensions(sequences: SequenceSet, wanted: int) -> None:
    """Raise InputError unless the sequences of a .ts file have the number of dimensions that is wanted."""
    if len(sequences.columns) != wanted:
        raise InputError(
            f"{sequences.source}: {len(sequences.columns)} dimensions, the training data has {wanted}: give data like it"
        )
