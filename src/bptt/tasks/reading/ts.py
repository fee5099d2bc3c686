"""The .ts format of the UCR/UEA time series archive (https://www.timeseriesclassification.com).

    # a comment
    @problemName Vowels          header lines, in any case and order
    @dimensions 2
    @classLabel true a e
    @data
    1.0,2.0,3.0:0.1,0.2,0.3:a    one sequence a line: dimensions between colons, steps between commas, last the label

Read here: numbers, one or several dimensions, different lengths, with or without labels. Not read: missing values ('?'),
time stamps ('@timeStamps true', values in brackets) and regression files ('@targetLabel true'); each is refused by name.
"""

import re
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from bptt.errors import InputError
from bptt.tasks.reading.csv_and_parquet import read_text
from bptt.tasks.reading.sequences import SequenceSet, Values
from bptt.tasks.reading.table import EXTREME, first_extreme, short
from bptt.tasks.reading.user_files import lines

_FLAGS = {"true": True, "false": False}


@dataclass(frozen=True)
class _Header:
    """What the lines before the data promise; None where they say nothing."""

    labels: tuple[str, ...] | None = None
    known: frozenset[str] = frozenset()
    dimensions: int | None = None
    length: int | None = None
    equal: bool = False


def read_ts(path: Path) -> SequenceSet:
    """Return the sequences of a .ts file, named by their order: "1", "2", … Raises InputError, which names the line."""
    header = _Header()
    in_data = False
    values: list[Values] = []
    labels: list[str] = []
    for number, raw in enumerate(lines(read_text(path)), start=1):
        line, where = raw.strip(), f"{path} line {number}"
        if not line or line.startswith("#"):
            continue
        if in_data:
            value, label = _case(line, header, where)
            header = replace(
                header, dimensions=value.shape[1], length=len(value) if header.equal else None
            )  # the first sequence settles what the header left open
            values.append(value)
            labels.append(label)
        elif line.lower() == "@data":
            in_data = True
        else:
            header = _header_line(line, header, where)
    _check_filled(path, in_data, values)
    columns = tuple(f"dimension {d}" for d in range(1, values[0].shape[1] + 1))
    ids = tuple(str(i) for i in range(1, len(values) + 1))
    return SequenceSet(str(path), columns, ids, tuple(values), None if header.labels is None else tuple(labels))


def _check_filled(path: Path, in_data: bool, values: list[Values]) -> None:
    if not in_data:
        raise InputError(f"{path}: no line '@data' found: not a .ts file, or a truncated one; give another file")
    if not values:
        raise InputError(f"{path}: no sequence after '@data': the file is truncated or empty; give another file")


def _header_line(line: str, header: _Header, where: str) -> _Header:
    """Return the header as one more of its lines changes it. Lines of no use here (problem name, …) change nothing."""
    if not line.startswith("@"):
        raise InputError(f"{where}: {short(line)} before '@data': header lines begin with '@' or '#'; mend the file")
    key, *rest = line[1:].split()
    _refuse_unread(key, rest, where)
    match key.lower():
        case "classlabel":
            labels = _classes(rest, where) if _flag(rest, where, key) else None
            return replace(header, labels=labels, known=frozenset(labels or ()))
        case "dimensions" | "dimension":
            return replace(header, dimensions=_count(rest, where, key))
        case "equallength":
            return replace(header, equal=_flag(rest, where, key))
        case "serieslength" if rest and rest[0] not in ("0", "-1"):  # seen in files of unequal length
            _count(rest, where, key)
    return header


def _refuse_unread(key: str, rest: list[str], where: str) -> None:
    """Raise InputError for a header line that announces what is not read here."""
    match key.lower():
        case "timestamps" if _flag(rest, where, key):
            raise InputError(f"{where}: '@timeStamps true' is not supported: write the values without their times")
        case "targetlabel" if _flag(rest, where, key):
            raise InputError(f"{where}: '@targetLabel true' is a regression file: labels needs classes ('@classLabel')")


def _flag(rest: list[str], where: str, key: str) -> bool:
    value = rest[0].lower() if rest else ""
    if value not in _FLAGS:
        raise InputError(f"{where}: '@{key} {value}': wanted true or false; mend the line")
    return _FLAGS[value]


def _count(rest: list[str], where: str, key: str) -> int:
    text = rest[0] if rest else ""
    if not re.fullmatch(r"0*[1-9][0-9]{0,8}", text):
        raise InputError(
            f"{where}: {short(' '.join(('@' + key, *rest)))}: wanted a whole number from 1, with nine digits at most; "
            "mend the line"
        )
    return int(text)


def _classes(rest: list[str], where: str) -> tuple[str, ...]:
    if len(rest) < 2:
        raise InputError(f"{where}: '@classLabel true' names no class: list them, e.g. '@classLabel true a b'")
    return tuple(rest[1:])


def _case(line: str, header: _Header, where: str) -> tuple[Values, str]:
    """Return the values [T, D] and the label ("" without labels) of one line of data. Raises InputError."""
    if "(" in line:
        raise InputError(f"{where}: time stamps in brackets are not supported: write the values without their times")
    parts = line.split(":")
    label = ""
    if header.labels is not None:
        label = parts.pop().strip()
        if label not in header.known:
            raise InputError(
                f"{where}: label {short(label)} is none of '@classLabel' ({_list(header.labels)}): mend the line, "
                "or name the class there"
            )
    if len(parts) != (header.dimensions or len(parts)) or not parts:
        raise InputError(f"{where}: {len(parts)} dimensions, wanted {header.dimensions}: the line is damaged, mend it")
    rows = [_dimension(part, d, where) for d, part in enumerate(parts, start=1)]
    lengths = {len(r) for r in rows}
    if len(lengths) > 1:
        raise InputError(
            f"{where}: dimensions of {min(lengths)} and of {max(lengths)} steps in one sequence: all need the same"
        )
    if header.length not in (None, len(rows[0])):
        raise InputError(
            f"{where}: {len(rows[0])} steps, wanted {header.length} as in the first sequence ('@equalLength true'): "
            "the line is damaged, or set '@equalLength false'"
        )
    return np.stack(rows, axis=1), label


def _dimension(part: str, d: int, where: str) -> Values:
    """Return the steps of one dimension, [T]. Raises InputError for a cell that is no finite number."""
    cells = part.split(",")
    try:
        row = np.array(cells, dtype=np.float64)
    except ValueError:
        row = np.array([_as_float(c) for c in cells])
    bad = np.flatnonzero(~np.isfinite(row))
    if len(bad):
        cell = cells[bad[0]].strip()
        what = "a missing value" if cell.lower() in ("?", "", "nan") else "not a finite number"
        raise InputError(
            f"{where}: dimension {d}, step {bad[0] + 1} is {short(cell)}, {what}: fill it in, or take the line out"
        )
    extreme = first_extreme(row)
    if extreme is not None:
        raise InputError(f"{where}: dimension {d}, step {extreme + 1} is {short(cells[extreme].strip())}, {EXTREME}")
    return row


def _as_float(cell: str) -> float:
    """Return the number in a cell, NaN if there is none."""
    try:
        return float(cell)
    except ValueError:
        return float("nan")


def _list(names: tuple[str, ...], most: int = 12) -> str:
    return ", ".join(names[:most]) + (", …" if len(names) > most else "")
