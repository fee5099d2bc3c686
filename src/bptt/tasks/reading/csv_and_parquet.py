"""Tables from .csv and .parquet files, read with polars and checked, so that each mistake is named by column and row.

CSV: UTF-8, or UTF-16 with its byte order mark, separated by commas, semicolons or tabs (whichever the header line has most
of) or by what a first line `sep=;` names, one header line, fields in double quotes if need be. Columns at the end that are
empty from the header on, as separators at the end of each line make them, are left out. Every cell is read as text and
turned into a number or a time only when a column is asked for; rows are counted as a spreadsheet shows them, the header
being row 1 (a spreadsheet does not show the line `sep=;`).
"""

import csv
import difflib
import functools
import io
import os
import re
import sys
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import polars as pl
from numpy.typing import NDArray

from bptt.errors import InputError
from bptt.reading import decode, open_regular

MISSING = ("", "na", "n/a", "nan", "null", "none", "nil", "?", "-", "#n/a", ".")
"""What people write where a number is missing (compared in lower case)."""

LARGEST = 1e100
SMALLEST = float(np.finfo(np.float64).tiny)
"""Sizes of numbers whose squares and their sums stay finite, and that have all of their digits."""


def short(cell: object, most: int = 40) -> str:
    """A cell as it is shown in a message."""
    text = str(cell)
    return repr(text if len(text) <= most else text[:most] + "…")


def split_names(names: str, option: str) -> tuple[str, ...]:
    """The column names of a comma-separated option, each once."""
    parts = tuple(n.strip() for n in names.split(","))
    if "" in parts:
        raise InputError(f"{option} {names!r} holds an empty name: write column names separated by single commas")
    twice = repeated(parts)
    if twice is not None:
        raise InputError(f"{option} names column {twice!r} twice: name it once")
    return parts


def repeated(names: Iterable[str]) -> str | None:
    """The first name that comes more than once."""
    return next((name for name, count in Counter(names).items() if count > 1), None)


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

    @functools.cached_property
    def columns(self) -> tuple[str, ...]:
        """Names of the columns."""
        return tuple(self.frame.columns)

    @functools.cached_property
    def _names(self) -> frozenset[str]:
        return frozenset(self.columns)

    def at(self, row: int) -> str:
        """The words for a row (counted from 0) in a message."""
        return f"{self.path} row {row + self.first}"

    def listing(self, most: int = 12) -> str:
        """The words for what columns there are."""
        names = ", ".join(map(_one_line, self.columns[:most])) + (", …" if len(self.columns) > most else "")
        return f"it has {names}"

    def require(self, column: str, option: str) -> None:
        """Raise InputError unless the column is there; `option` is the one that named it."""
        if column in self._names:
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
        """The cells of a column of numbers, [rows]; text, empty, NaN and infinite cells are errors, and extreme ones."""
        cells = self.frame[column]
        if cells.dtype == pl.String:
            cells = cells.str.strip_chars()
        elif not (cells.dtype.is_numeric() or cells.dtype in (pl.Boolean, pl.Null)):
            raise InputError(f"{self.path}: column {column!r} holds {cells.dtype}, wanted numbers: name another column")
        numbers = cells.cast(pl.Float64, strict=False).fill_null(float("nan")).to_numpy().astype(np.float64)
        bad = np.flatnonzero(~np.isfinite(numbers))
        if len(bad):
            raise InputError(f"{self.at(int(bad[0]))}: column {column!r} {_why_no_number(cells[int(bad[0])])}")
        extreme = first_extreme(numbers)
        if extreme is not None:
            raise InputError(f"{self.at(extreme)}: column {column!r} is {short(cells[extreme])}, {EXTREME}")
        return numbers

    def matrix(self, columns: Sequence[str]) -> NDArray[np.float64]:
        """The cells of columns of numbers side by side, [rows, columns]; errors as in `numbers`. One look at them all."""
        if not columns:
            return np.empty((len(self), 0))
        cells = self.frame[list(columns)]
        if set(cells.dtypes) != {pl.String}:
            return np.stack([self.numbers(c) for c in columns], axis=1)
        numbers = cells.select(pl.all().str.strip_chars().cast(pl.Float64, strict=False)).to_numpy()
        for c in np.flatnonzero(~_is_number(numbers).all(axis=0)):
            self.numbers(columns[int(c)])  # which says what is wrong
        return np.ascontiguousarray(numbers, dtype=np.float64)

    def groups(self, id: str | None) -> dict[str, NDArray[np.int64]]:
        """The rows of each id, in the order in which the ids appear; without an id column, one group named ""."""
        if id is None:
            return {"": np.arange(len(self))}
        numbers: dict[str, int] = {}  # of the ids, in the order of their first rows
        of_row = np.array([numbers.setdefault(name, len(numbers)) for name in self.texts(id)])
        order = np.argsort(of_row, kind="stable")  # rows, sorted by id, in file order within it
        return dict(zip(numbers, np.split(order, np.cumsum(np.bincount(of_row))[:-1]), strict=True))


EXTREME = (
    f"too extreme to compute with, wanted a number between {SMALLEST:.1e} and {LARGEST:g} in size, or 0: write the column "
    "in another unit, or take it out"
)
"""The end of a sentence about a number that `first_extreme` finds."""


def first_extreme(numbers: NDArray[np.float64]) -> int | None:
    """The place of the first number whose square or sum might overflow, or that is too small to have all its digits."""
    extreme = np.flatnonzero(~_is_number(numbers))
    return int(extreme[0]) if len(extreme) else None


def _is_number(numbers: NDArray[np.float64]) -> NDArray[np.bool_]:
    """Where there is a finite number that can be computed with."""
    sizes = np.abs(numbers)
    return ((sizes >= SMALLEST) & (sizes <= LARGEST)) | (sizes == 0)


def _why_no_number(cell: object) -> str:
    """The end of a sentence that begins with "row 7: column 'x'"."""
    if cell is None or str(cell).strip().lower() in MISSING:
        shown = "is empty" if cell is None or not str(cell).strip() else f"is {str(cell)!r}, a missing value"
        return f"{shown}: fill it in (a gap cannot be learned from), or take the row out"
    if re.fullmatch(r"[+-]?\d+,\d+", str(cell)):
        return f"is {str(cell)!r}, wanted a number: write it with a decimal point, not a comma"
    if re.fullmatch(r"[+-]?\d{1,3}([ '\u00a0\u202f]\d{3})+([.,]\d+)?|[+-]?\d{1,3}([.,]\d{3}){2,}([.,]\d+)?", str(cell)):
        return f"is {str(cell)!r}, wanted a number: write it without separators between the thousands"
    if str(cell).strip().lower().lstrip("+-") in ("inf", "infinity"):
        return f"is {str(cell)!r}, wanted a finite number: mend the cell"
    if re.fullmatch(r"[+-]?(\d+\.?\d*|\.\d+)([eE][+-]?\d+)?", str(cell).strip()):
        return f"is {short(cell)}, {EXTREME}"
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
        if path.is_dir():
            raise InputError(f"{path}: a folder, wanted a file: name one of the files in it")
        with open_regular(path) as file:
            data = file.read()
    except FileNotFoundError:
        raise InputError(f"{path}: no such file: check the path") from None
    except OSError as e:
        raise InputError(f"{path}: cannot be read ({e.strerror}): check the path and its permissions") from None
    if not data.strip():
        raise InputError(f"{path}: the file is empty: give another")
    return data


def read_text(path: Path) -> str:
    """The text of a file in UTF-8 or UTF-16, without its byte order mark. Raises InputError for everything else."""
    text = decode(read_bytes(path), path)
    if not text.strip():
        raise InputError(f"{path}: the file is empty: give another")
    return text


@dataclass(frozen=True)
class _Csv:
    """A CSV text that begins with its header.

    Attributes:
        path: the file, for messages.
        text: from the header on, with line feeds at the ends of lines.
        separator: one ASCII character.
        header: the names, as they stand there.
        first: number of the first row of data.
    """

    path: Path
    text: str
    separator: str
    header: tuple[str, ...]
    first: int


def _read_csv(path: Path) -> Table:
    given = _with_header(path, read_text(path))
    try:
        frame = pl.read_csv(
            io.BytesIO(given.text.encode()),
            separator=given.separator,
            infer_schema=False,
            has_header=False,
            skip_rows=1,
        )
    except pl.exceptions.NoDataError:
        frame = pl.DataFrame(schema=dict.fromkeys(map(str, range(len(given.header))), pl.String))
    except pl.exceptions.PolarsError as e:
        raise InputError(_damage(given, str(e))) from None
    used = _used_width(frame, given.header)
    header = given.header[:used]
    _check_header(path, header)
    if frame.width < used or any(map(_is_filled, frame[:, used:])):
        raise InputError(_damage(given, f"{frame.width} fields under the header"))
    frame = frame[:, :used]
    frame.columns = list(header)
    return Table(path, frame.head(_filled_rows(frame)), given.first)


def _with_header(path: Path, text: str) -> _Csv:
    """Find the header and the separator. Raises InputError for a header that is damaged."""
    if "\n" not in text:
        text = text.replace("\r", "\n")  # line ends of old Macs, which polars does not know
    named = re.match(r'\s*"?sep=([!-/:-@\[-`{-~\t ])"?[ \t]*\r?\n', text, re.IGNORECASE)  # Excel's own line
    text = text[named.end() :] if named else text
    blank = len(text) - len(text.lstrip("\r\n"))
    first = 2 + text.count("\n", 0, blank)
    text = text[blank:]
    line = re.sub(r'"[^"]*"', "", text.partition("\n")[0])
    separator = named[1] if named else max(",;\t", key=line.count)
    try:
        header = next(csv.reader(io.StringIO(text, newline="\n"), delimiter=separator), [])
    except csv.Error as e:
        raise InputError(f"{path}: the header line is damaged ({e}): mend it, often an open quotation mark") from None
    return _Csv(path, text, separator, tuple(name.strip() for name in header), first)


def _used_width(frame: pl.DataFrame, header: tuple[str, ...]) -> int:
    """How many columns there are up to the last that has a name or, below the header's width, a filled cell."""
    width = len(header)
    while width > 1 and not header[width - 1] and not (width <= frame.width and _is_filled(frame[:, width - 1])):
        width -= 1
    return width


def _is_filled(cells: pl.Series) -> bool:
    """Whether a column has a cell that is not empty."""
    return cells.null_count() < len(cells)


def _filled_rows(frame: pl.DataFrame) -> int:
    """How many rows there are up to the last that has a cell that is not empty: blank lines may follow."""
    rows = 0
    for cells in frame:
        if rows == frame.height:
            break
        below = cells.slice(rows)
        if _is_filled(below):
            rows += int(below.is_not_null().arg_true()[-1]) + 1
    return rows


def _check_header(path: Path, header: tuple[str, ...]) -> None:
    nameless = next((i for i, name in enumerate(header) if i and not name), None)
    if nameless is not None:  # the first may be nameless: an index that pandas wrote
        raise InputError(f"{path}: column {nameless + 1} has no name in the header: give it one")
    twice = repeated(header)
    if twice is not None:
        raise InputError(f"{path}: two columns are named {twice!r}: give each column its own name")


def _damage(given: _Csv, cause: str) -> str:
    """The message for rows that do not fit the header: says which row, by reading again slowly."""
    reader = csv.reader(io.StringIO(given.text, newline="\n"), delimiter=given.separator, strict=True)
    width = len(given.header)
    try:
        for number, row in enumerate(reader, start=given.first - 1):
            if row and len(row) != width and (len(row) < width or any(row[width:])):
                return f"{given.path} row {number}: {len(row)} fields, the header has {width}: mend the row"
    except csv.Error as e:
        line = reader.line_num + given.first - 2
        return f"{given.path} line {line}: damaged CSV ({e}): mend the line, often an open quotation mark"
    return f"{given.path}: damaged CSV ({_one_line(cause)}): write the file again"


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
