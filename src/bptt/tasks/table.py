"""Tables from .csv and .parquet files, read with polars and checked, so that each mistake is named by column and row.

CSV: UTF-8 (a byte order mark is allowed), separated by commas, semicolons or tabs (whichever the header line has most
of), one header line, fields in double quotes if need be. Every cell is read as text and turned into a number or a time only
when a column is asked for; rows are counted as a spreadsheet shows them, the header being row 1.
"""

import csv
import difflib
import io
import os
import re
import sys
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import polars as pl
from numpy.typing import NDArray

from bptt.errors import InputError

MISSING = ("", "na", "n/a", "nan", "null", "none", "nil", "?", "-", "#n/a", ".")
"""What people write where a number is missing (compared in lower case)."""


def short(cell: object, most: int = 40) -> str:
    """A cell as it is shown in a message."""
    text = str(cell)
    return repr(text if len(text) <= most else text[:most] + "…")


def split_names(names: str, option: str) -> tuple[str, ...]:
    """The column names of a comma-separated option, each once."""
    parts = tuple(n.strip() for n in names.split(","))
    if "" in parts:
        raise InputError(f"{option} {names!r} holds an empty name: write column names separated by single commas")
    for n in parts:
        if parts.count(n) > 1:
            raise InputError(f"{option} names column {n!r} twice: name it once")
    return parts


def csv_line(cells: Iterable[str]) -> str:
    """One line of CSV, its end included."""
    line = io.StringIO()
    csv.writer(line, lineterminator="\n").writerow(cells)
    return line.getvalue()


@dataclass(frozen=True)
class Table:
    """A table that has columns and at least one row; the columns are checked as they are asked for.

    Attributes:
        path: the file, for messages.
        frame: the cells; all text if they come from CSV.
        first: number of the first row of data as the user sees it (CSV: 2, after the header; Parquet: 1).
    """

    path: Path
    frame: pl.DataFrame
    first: int

    def __len__(self) -> int:
        return self.frame.height

    @property
    def columns(self) -> tuple[str, ...]:
        """Names of the columns."""
        return tuple(self.frame.columns)

    def at(self, row: int) -> str:
        """The words for a row (counted from 0) in a message."""
        return f"{self.path} row {row + self.first}"

    def listing(self, most: int = 12) -> str:
        """The words for what columns there are."""
        names = ", ".join(self.columns[:most]) + (", …" if len(self.columns) > most else "")
        return f"it has {names}"

    def require(self, column: str, option: str) -> None:
        """Raise InputError unless the column is there; `option` is the one that named it."""
        if column in self.columns:
            return
        folded = {c.lower(): c for c in self.columns}
        near = difflib.get_close_matches(column.lower(), list(folded), n=1)
        hint = f"did you mean {folded[near[0]]!r}? " if near else ""
        raise InputError(f"{self.path}: no column {column!r} ({option}): {hint}{self.listing()}")

    def texts(self, column: str) -> list[str]:
        """The cells of a column of names: ids, labels. Empty cells are an error."""
        cells = self.frame[column]
        out = [str(c).strip() if c is not None else "" for c in cells.to_list()]
        if "" in out:
            raise InputError(f"{self.at(out.index(''))}: column {column!r} is empty: fill it in, or take the row out")
        return out

    def numbers(self, column: str) -> NDArray[np.float64]:
        """The cells of a column of numbers, [rows]; text, empty, NaN and infinite cells are errors."""
        cells = self.frame[column]
        if cells.dtype == pl.String:
            cells = cells.str.strip_chars()
        elif not (cells.dtype.is_numeric() or cells.dtype in (pl.Boolean, pl.Null)):
            raise InputError(f"{self.path}: column {column!r} holds {cells.dtype}, wanted numbers: name another column")
        numbers = cells.cast(pl.Float64, strict=False).fill_null(float("nan")).to_numpy().astype(np.float64)
        bad = np.flatnonzero(~np.isfinite(numbers))
        if len(bad):
            raise InputError(f"{self.at(int(bad[0]))}: column {column!r} {_why_no_number(cells[int(bad[0])])}")
        return numbers

    def groups(self, id: str | None) -> dict[str, NDArray[np.int64]]:
        """The rows of each id, in the order in which the ids appear; without an id column, one group named ""."""
        if id is None:
            return {"": np.arange(len(self))}
        names = np.array(self.texts(id))
        unique, start, inverse = np.unique(names, return_index=True, return_inverse=True)
        order = np.argsort(inverse, kind="stable")  # rows, sorted by id, in file order within it
        rows = np.split(order, np.cumsum(np.bincount(inverse))[:-1])
        return {str(unique[g]): rows[g] for g in np.argsort(start)}


def _why_no_number(cell: object) -> str:
    """The end of a sentence that begins with "row 7: column 'x'"."""
    if cell is None or str(cell).strip().lower() in MISSING:
        shown = "is empty" if cell is None or not str(cell).strip() else f"is {str(cell)!r}, a missing value"
        return f"{shown}: fill it in (a gap cannot be learned from), or take the row out"
    if re.fullmatch(r"[+-]?\d+,\d+", str(cell)):
        return f"is {str(cell)!r}, wanted a number: write it with a decimal point, not a comma"
    if str(cell).strip().lower().lstrip("+-") in ("inf", "infinity"):
        return f"is {str(cell)!r}, wanted a finite number: mend the cell"
    return f"is {short(cell)}, wanted a number: mend the cell, or name another column"


def read_table(path: Path) -> Table:
    """Read a .csv or .parquet file. Raises InputError for everything that may be wrong with it."""
    readers: dict[str, Callable[[Path], Table]] = {".csv": _read_csv, ".parquet": _read_parquet}
    reader = readers.get(path.suffix.lower())
    if reader is None:
        if path.is_dir():
            raise InputError(f"{path} is a folder, wanted one file: give a .csv or .parquet file in it")
        raise InputError(f"{path}: the name ends in {path.suffix or 'nothing'!r}, wanted .csv or .parquet: convert it")
    table = reader(path)
    if not len(table):
        raise InputError(f"{path}: no rows below the header ({table.listing()}): the file is empty, give another")
    return table


def read_bytes(path: Path) -> bytes:
    """The bytes of a file that must be there and hold something."""
    try:
        data = path.read_bytes()
    except FileNotFoundError:
        raise InputError(f"{path}: no such file: check the path") from None
    except IsADirectoryError:
        raise InputError(f"{path}: a folder, wanted a file: name one of the files in it") from None
    except OSError as e:
        raise InputError(f"{path}: cannot be read ({e.strerror}): check the path and its permissions") from None
    if not data.strip():
        raise InputError(f"{path}: the file is empty: give another")
    return data


def read_text(path: Path) -> str:
    """The text of a UTF-8 file (without its byte order mark). Raises InputError for binary files and other encodings."""
    data = read_bytes(path).removeprefix(b"\xef\xbb\xbf")
    if data.startswith((b"\xff\xfe", b"\xfe\xff")):
        raise InputError(f"{path}: UTF-16 text, wanted UTF-8: save it again with the encoding UTF-8")
    if b"\0" in data[:65536]:
        raise InputError(f"{path}: binary data, wanted UTF-8 text: give another file")
    try:
        return data.decode("utf-8")
    except UnicodeDecodeError as e:
        line = data.count(b"\n", 0, e.start) + 1
        raise InputError(
            f"{path}: not UTF-8 (byte 0x{data[e.start]:02x} in line {line}): save it again with the encoding UTF-8"
        ) from None


def _read_csv(path: Path) -> Table:
    text = read_text(path)
    if "\n" not in text:
        text = text.replace("\r", "\n")  # line ends of old Macs, which polars does not know
    blank = len(text) - len(text.lstrip("\r\n"))
    first = 2 + text.count("\n", 0, blank)
    text = text[blank:]
    header_line = text.partition("\n")[0].rstrip("\r")
    separator = max(",;\t", key=header_line.count)
    header = [name.strip() for name in next(csv.reader([header_line], delimiter=separator))]
    _check_header(path, header)
    try:
        frame = pl.read_csv(
            io.BytesIO(text.encode()), separator=separator, infer_schema=False, has_header=False, skip_rows=1
        )
    except pl.exceptions.NoDataError:
        frame = pl.DataFrame(schema=dict.fromkeys(header, pl.String))
    except pl.exceptions.PolarsError as e:
        raise InputError(_damage(path, text, separator, len(header), str(e))) from None
    if frame.width != len(header):
        raise InputError(_damage(path, text, separator, len(header), f"{frame.width} fields under the header"))
    frame = frame.rename(dict(zip(frame.columns, header, strict=True)))
    filled = np.flatnonzero(frame.select(pl.any_horizontal(pl.all().is_not_null())).to_series().to_numpy())
    last = int(filled[-1]) if len(filled) else -1
    return Table(path, frame.head(last + 1), first)  # blank lines at the end are dropped


def _check_header(path: Path, header: list[str]) -> None:
    for i, name in enumerate(header):
        if header.count(name) > 1:
            raise InputError(f"{path}: two columns are named {name!r}: give each column its own name")
        if not name and len(header) > 1 and i > 0:  # the first may be nameless: an index that pandas wrote
            raise InputError(f"{path}: column {i + 1} has no name in the header: give it one")


def _damage(path: Path, text: str, separator: str, width: int, cause: str) -> str:
    """The message for rows that do not fit the header: says which row, by reading again slowly."""
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=separator, strict=True)
    try:
        for number, row in enumerate(reader, start=1):
            if row and len(row) != width:
                return f"{path} row {number}: {len(row)} fields, the header has {width}: mend the row"
    except csv.Error as e:
        return f"{path} line {reader.line_num}: damaged CSV ({e}): mend the line, often an open quotation mark"
    return f"{path}: damaged CSV ({_one_line(cause)}): write the file again"


def _read_parquet(path: Path) -> Table:
    data = read_bytes(path)
    if not data.startswith(b"PAR1"):
        raise InputError(f"{path}: not a Parquet file (it does not begin with PAR1): give another, or name it .csv")
    try:
        with _silent_stderr():
            return Table(path, pl.read_parquet(io.BytesIO(data)), first=1)
    except (pl.exceptions.PolarsError, pl.exceptions.PanicException, OSError) as e:
        raise InputError(f"{path}: damaged Parquet ({_one_line(str(e))}): write the file again") from None


@contextmanager
def _silent_stderr() -> Iterator[None]:
    """Nothing reaches file descriptor 2 meanwhile: on damaged files the threads of polars print pages of panics there."""
    sys.stderr.flush()
    kept = os.dup(2)
    nowhere = os.open(os.devnull, os.O_WRONLY)
    try:
        os.dup2(nowhere, 2)
        yield
    finally:
        os.dup2(kept, 2)
        os.close(nowhere)
        os.close(kept)


def _one_line(text: str, most: int = 100) -> str:
    line = " ".join(text.split())
    return line if len(line) <= most else line[:most] + "…"
