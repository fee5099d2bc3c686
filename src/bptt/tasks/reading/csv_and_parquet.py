"""Reading .csv and .parquet files into a `Table`, with polars.

CSV: UTF-8, or UTF-16 with its byte order mark, separated by commas, semicolons or tabs (whichever the header line has most
of) or by what a first line `sep=;` names, one header line, fields in double quotes if need be. Columns at the end that are
empty from the header on, as separators at the end of each line make them, are left out. Every cell is read as text and
turned into a number or a time only when a column is asked for; rows are counted as a spreadsheet shows them, the header
being row 1 (a spreadsheet does not show the line `sep=;`).
"""

import csv
import io
import os
import re
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import polars as pl

from bptt.errors import InputError
from bptt.tasks.reading.table import Table, one_line, repeated
from bptt.tasks.reading.user_files import decode, open_regular


def read_table(path: Path) -> Table:
    """Return the table of a .csv or .parquet file. Raises InputError for everything that may be wrong with the file."""
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
    """Return the bytes of a file. Raises InputError if it cannot be read, or is empty."""
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
    """Return the text of a file in UTF-8 or UTF-16, without its byte order mark. Raises InputError for any other file."""
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
    """Return the text from its header on, with the separator that the header uses. Raises InputError if it is damaged."""
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
    """Return how many columns are used: up to the last that has a name or, within the header's width, a filled cell."""
    width = len(header)
    while width > 1 and not header[width - 1] and not (width <= frame.width and _is_filled(frame[:, width - 1])):
        width -= 1
    return width


def _is_filled(cells: pl.Series) -> bool:
    """Return whether a column has a cell that is not empty."""
    return cells.null_count() < len(cells)


def _filled_rows(frame: pl.DataFrame) -> int:
    """Return how many rows there are up to the last with a filled cell: blank lines may follow."""
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
    """Return the message for rows that do not fit the header. Says which row, by reading the text again slowly."""
    reader = csv.reader(io.StringIO(given.text, newline="\n"), delimiter=given.separator, strict=True)
    width = len(given.header)
    try:
        for number, row in enumerate(reader, start=given.first - 1):
            if row and len(row) != width and (len(row) < width or any(row[width:])):
                return f"{given.path} row {number}: {len(row)} fields, the header has {width}: mend the row"
    except csv.Error as e:
        line = reader.line_num + given.first - 2
        return f"{given.path} line {line}: damaged CSV ({e}): mend the line, often an open quotation mark"
    return f"{given.path}: damaged CSV ({one_line(cause)}): write the file again"


def _read_parquet(path: Path) -> Table:
    data = read_bytes(path)
    if not data.startswith(b"PAR1"):
        raise InputError(f"{path}: not a Parquet file (it does not begin with PAR1): give another, or name it .csv")
    try:
        with _silent_stderr():
            return Table(path, pl.read_parquet(io.BytesIO(data)), first=1)
    except (pl.exceptions.PolarsError, pl.exceptions.PanicException, OSError) as e:
        raise InputError(f"{path}: damaged Parquet ({one_line(str(e))}): write the file again") from None


@contextmanager
def _silent_stderr() -> Iterator[None]:
    """Discard what reaches file descriptor 2: on damaged files the threads of polars print pages of panics there."""
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
