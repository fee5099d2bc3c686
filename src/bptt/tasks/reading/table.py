"""A table whose columns are checked as they are asked for, so that each mistake is named by column and row."""

import csv
import difflib
import functools
import io
import re
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import polars as pl
from numpy.typing import NDArray

from bptt.errors import InputError

MISSING = ("", "na", "n/a", "nan", "null", "none", "nil", "?", "-", "#n/a", ".")
"""What people write where a number is missing (compared in lower case)."""
LARGEST = 1e100
SMALLEST = float(np.finfo(np.float64).tiny)
"""Sizes of numbers whose squares and their sums stay finite, and that have all of their digits."""
EXTREME = (
    f"too extreme to compute with, wanted a number between {SMALLEST:.1e} and {LARGEST:g} in size, or 0: write the column "
    "in another unit, or take it out"
)
"""The end of a sentence about a number that `first_extreme` finds."""


def short(cell: object, most: int = 40) -> str:
    """Return a cell as it is shown in a message: quoted, and shortened to `most` characters."""
    text = str(cell)
    return repr(text if len(text) <= most else text[:most] + "…")


def split_names(names: str, option: str) -> tuple[str, ...]:
    """Return the column names of a comma-separated option. Raises InputError for an empty name, or one that comes twice."""
    parts = tuple(n.strip() for n in names.split(","))
    if "" in parts:
        raise InputError(f"{option} {names!r} holds an empty name: write column names separated by single commas")
    twice = repeated(parts)
    if twice is not None:
        raise InputError(f"{option} names column {twice!r} twice: name it once")
    return parts


def repeated(names: Iterable[str]) -> str | None:
    """Return the first name that comes more than once; None if none does."""
    return next((name for name, count in Counter(names).items() if count > 1), None)


def csv_line(cells: Iterable[str]) -> str:
    """Return cells as one line of CSV, its end included."""
    line = io.StringIO()
    csv.writer(line, lineterminator="\n").writerow(cells)
    return line.getvalue()


@dataclass(frozen=True)
class Table:
    """A table with columns and at least one row.

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
        """Return how a message names a row (counted from 0): "load.csv row 7"."""
        return f"{self.path} row {row + self.first}"

    def listing(self, most: int = 12) -> str:
        """Return how a message names the columns that there are: "it has time, load, …"."""
        names = ", ".join(map(one_line, self.columns[:most])) + (", …" if len(self.columns) > most else "")
        return f"it has {names}"

    def require(self, column: str, option: str) -> None:
        """Raise InputError unless there is such a column; `option` is the one that named it."""
        if column in self._names:
            return
        folded = {c.lower(): c for c in self.columns}
        near = difflib.get_close_matches(column.lower(), list(folded), n=1)
        hint = f"did you mean {folded[near[0]]!r}? " if near else ""
        raise InputError(f"{self.path}: no column {column!r} ({option}): {hint}{self.listing()}")

    def texts(self, column: str) -> list[str]:
        """Return the cells of a column of names, such as ids and labels. Raises InputError for an empty cell."""
        cells = self.frame[column]
        out = [str(c).strip() if c is not None else "" for c in cells.to_list()]
        if "" in out:
            raise InputError(f"{self.at(out.index(''))}: column {column!r} is empty: fill it in, or take the row out")
        return out

    def numbers(self, column: str) -> NDArray[np.float64]:
        """Return the cells of a column of numbers, [rows].

        Raises InputError for a cell that is empty, text, not finite, or too extreme to compute with.
        """
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
        """Return the cells of columns of numbers side by side, [rows, columns], in one pass. Raises as `numbers` does."""
        if not columns:
            return np.empty((len(self), 0))
        cells = self.frame[list(columns)]
        if set(cells.dtypes) != {pl.String}:
            return np.stack([self.numbers(c) for c in columns], axis=1)
        numbers = cells.select(pl.all().str.strip_chars().cast(pl.Float64, strict=False)).to_numpy()
        for c in np.flatnonzero(~_is_computable(numbers).all(axis=0)):
            self.numbers(columns[int(c)])  # which says what is wrong
        return np.ascontiguousarray(numbers, dtype=np.float64)

    def groups(self, id: str | None) -> dict[str, NDArray[np.int64]]:
        """Return the rows of each id, in the order in which the ids appear; without an id column, one group named ""."""
        if id is None:
            return {"": np.arange(len(self))}
        numbers: dict[str, int] = {}  # of the ids, in the order of their first rows
        of_row = np.array([numbers.setdefault(name, len(numbers)) for name in self.texts(id)])
        order = np.argsort(of_row, kind="stable")  # rows, sorted by id, in file order within it
        return dict(zip(numbers, np.split(order, np.cumsum(np.bincount(of_row))[:-1]), strict=True))


def first_extreme(numbers: NDArray[np.float64]) -> int | None:
    """Return the place of the first number whose square might overflow, or that is too small to have all its digits."""
    extreme = np.flatnonzero(~_is_computable(numbers))
    return int(extreme[0]) if len(extreme) else None


def _is_computable(numbers: NDArray[np.float64]) -> NDArray[np.bool_]:
    """Return where a number is finite, and can be squared and summed in float64."""
    sizes = np.abs(numbers)
    return ((sizes >= SMALLEST) & (sizes <= LARGEST)) | (sizes == 0)


def _why_no_number(cell: object) -> str:
    """Return the end of a message that begins with "row 7: column 'x'": what is wrong with the cell, and the remedy."""
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


def one_line(text: str, most: int = 100) -> str:
    """Return a text in one line, shortened to `most` characters."""
    line = " ".join(text.split())
    return line if len(line) <= most else line[:most] + "…"
