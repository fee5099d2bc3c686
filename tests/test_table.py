"""Tables from CSV and Parquet, and their time column: what is read, and how each mistake is named."""

import datetime
import itertools
import os
import socket
import time
from decimal import Decimal
from pathlib import Path

import numpy as np
import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bptt.errors import InputError
from bptt.tasks.reading.csv_and_parquet import read_table
from bptt.tasks.reading.notation import write_moment
from bptt.tasks.reading.spacing import Spacing, is_month_end
from bptt.tasks.reading.table import split_names
from bptt.tasks.reading.times import read_times
from bptt.tasks.reading.ts import read_ts
from bptt.tasks.reading.user_files import lines


def table_of(folder: Path, text: str | bytes, name: str = "t.csv"):
    path = folder / name
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return read_table(path)


def message(error: pytest.ExceptionInfo[InputError]) -> str:
    text = str(error.value)
    assert "\n" not in text
    return text


@pytest.mark.parametrize(
    "text",
    [
        "a,b\n1,2\n3,4\n",
        "\ufeffa,b\r\n1,2\r\n3,4",
        "a;b\n1;2\n3;4\n",
        "a\tb\n1\t2\n3\t4\n",
        '"a","b"\n"1","2"\n3, 4 \n',
        "a,b\n1,2\n3,4\n\n\n",
        "a,b\r1,2\r3,4\r",
        "\n\na,b\n1,2\n3,4\n",
        "a, b\n1.0,2e0\n+3,4.\n",
        '\ufeff"a","b"\n1,2\n3,4\n',
        "a,b\n1,2\n3,4\n".encode("utf-16"),
        "\ufeffa;b\r\n1;2\r\n3;4\r\n".encode("utf-16-be"),
        "a\tb\r1\t2\r3\t4\r".encode("utf-16"),
        "sep=;\na;b\n1;2\n3;4\n",
        '\ufeff"sep=;"\r\na;b\r\n1;2\r\n3;4\r\n',
        "SEP=|\n\na|b\n1|2\n3|4\n",
        "sep=\t\na\tb\n1\t2\n3\t4\n".encode("utf-16"),
        "sep=,\na,b,\n1,2,\n3,4,\n",
        "a,b,\n1,2,\n3,4,\n",
        "a;b;;;\n1;2;;;\n3;4;;;\n;;;;\n;;;;\n",
        "a,b,\n1,2\n3,4\n",
        "a,b\n1,2,\n3,4,\n",
        "a,b,\n1,2,\n3,4\n",
    ],
)
def test_csv_in_many_hands(tmp_path, text):
    table = table_of(tmp_path, text)
    assert table.columns == ("a", "b")
    assert table.numbers("a").tolist() == [1, 3]
    assert table.numbers("b").tolist() == [2, 4]


def test_the_header_is_no_guess_from_what_stands_in_quotes(tmp_path):
    table = table_of(tmp_path, '"x,y,z";"two\nlines";c\n1;2;3\n')
    assert table.columns == ("x,y,z", "two\nlines", "c")
    assert table.numbers("c").tolist() == [3]


@pytest.mark.parametrize("mark", ["\u2028", "\u2029", "\x85", "\x0b", "\x0c", "\x1c", "\x1e"])
def test_a_line_ends_at_a_line_feed_alone(tmp_path, mark):
    table = table_of(tmp_path, f"id,a{mark}b\nx{mark}y,1\nz,2\n")
    assert table.columns == ("id", f"a{mark}b")
    assert table.texts("id") == [f"x{mark}y", "z"]
    assert lines(f"a{mark}b\r\nc\n\nd") == [f"a{mark}b", "c", "", "d"]
    assert lines(f"a{mark}b\rc\r") == [f"a{mark}b", "c"]  # an old Mac's
    assert lines("a\rb\nc") == ["a\rb", "c"]


@pytest.mark.parametrize(
    ("cell", "wanted"),
    [
        ("1e308", "is '1e308', too extreme to compute with"),
        ("-1.7e+308", "is '-1.7e+308', too extreme to compute with"),
        ("1e400", "is '1e400', too extreme to compute with"),
        ("1e-320", "is '1e-320', too extreme to compute with"),
        ("-5e-324", "is '-5e-324', too extreme to compute with"),
        ("1.234.567", "without separators between the thousands"),
        ("1.234,5", "wanted a number"),
        ("1 234", "without separators between the thousands"),
        ("1'234.5", "without separators between the thousands"),
        ("1\u202f234", "without separators between the thousands"),
        ("1,5", "with a decimal point, not a comma"),
    ],
)
def test_numbers_that_would_be_misread_are_named(tmp_path, cell, wanted):
    table = table_of(tmp_path, f"sep=;\na;b\n1;2\n{cell};3\n")
    for read in (lambda: table.numbers("a"), lambda: table.matrix(("b", "a"))):
        with pytest.raises(InputError) as error:
            read()
        assert "row 3: column 'a' is " in message(error)
        assert wanted in message(error)


def test_the_extremes_that_are_read(tmp_path):
    table = table_of(tmp_path, "a,b\n1e100,0\n-1e100,-0\n2.3e-308,1e-400\n1e39,-3.4e38\n")
    assert table.matrix(("a", "b")).tolist() == [[1e100, 0], [-1e100, 0], [2.3e-308, 0], [1e39, -3.4e38]]
    assert table.matrix(()).shape == (4, 0)
    assert table.matrix(("b",)).tolist() == table.numbers("b")[:, None].tolist()


@pytest.mark.parametrize("name", ["d.csv", "d.parquet", "d.ts"])
@pytest.mark.parametrize("kind", ["pipe", "socket", "device", "folder"])
def test_what_is_no_regular_file_is_refused_at_once(tmp_path, monkeypatch, kind, name):
    monkeypatch.chdir(tmp_path)
    path = Path(name)
    if kind == "pipe":
        os.mkfifo(path)
    elif kind == "socket":
        socket.socket(socket.AF_UNIX).bind(name)
    elif kind == "device":
        path.symlink_to("/dev/zero")
    else:
        path.mkdir()
    with pytest.raises(InputError) as error:
        (read_ts if name == "d.ts" else read_table)(path)
    said = {"pipe": "a named pipe", "socket": "a socket", "device": "a device", "folder": "a folder, wanted a file"}[
        kind
    ]
    assert f"{name}" in message(error)
    assert said in message(error)
    assert kind == "folder" or "not a regular file" in message(error)


def test_a_pipe_that_takes_the_place_of_a_file_is_not_waited_for(tmp_path, monkeypatch):
    """Between the look at the file and its opening it may become another."""
    (tmp_path / "d.csv").write_text("a\n1\n")
    regular = os.stat(tmp_path / "d.csv")
    os.mkfifo(tmp_path / "p.csv")
    with monkeypatch.context() as patch:
        patch.setattr("os.stat", lambda *_, **__: regular)
        with pytest.raises(InputError, match="not a regular file, but a named pipe"):
            read_table(tmp_path / "p.csv")


@pytest.mark.alone
def test_many_columns_are_read_in_linear_time(tmp_path):
    """10⁵ columns: what looks through all names for each of them takes minutes."""
    names = [f"c{i}" for i in range(100_000)]
    began = time.process_time()
    table = table_of(tmp_path, ",".join(names) + ",\n" + 2 * ("1," * len(names) + "\n") + "," * len(names) + "\n")
    for name in names:
        table.require(name, "--inputs")
    assert split_names(",".join(names), "--inputs") == tuple(names)
    assert table.matrix(names).shape == (2, len(names))
    with pytest.raises(InputError, match="two columns are named 'c0'"):
        table_of(tmp_path, ",".join([*names, "c0"]) + "\n1\n")
    assert time.process_time() - began < 40


def test_ids_are_told_apart_to_their_last_character(tmp_path):
    long = "x" * 100_000
    text = f"id,a\ny,1\n{long},2\n{long}\0,3\ny,4\n" + "".join(f"i{k},5\n" for k in range(10_000))
    groups = table_of(tmp_path, text).groups("id")  # as an array of equally long texts they would take 4 GB
    assert list(groups)[:3] == ["y", long, long + "\0"]
    assert [groups[name].tolist() for name in ("y", long, long + "\0", "i9")] == [[0, 3], [1], [2], [13]]


def test_names_with_commas_and_line_ends_in_quotes(tmp_path):
    table = table_of(tmp_path, 'id,a\n"x, y",1\n"two\nlines",2\n')
    assert table.texts("id") == ["x, y", "two\nlines"]


def test_parquet_types(tmp_path):
    frame = pl.DataFrame(
        {"i": [1, 2], "f": [0.5, 1.5], "b": [True, False], "s": ["3", "4"], "d": [datetime.date(2014, 1, 1)] * 2}
    )
    frame.write_parquet(tmp_path / "t.parquet")
    table = read_table(tmp_path / "t.parquet")
    assert [table.numbers(c).tolist() for c in "ifbs"] == [[1, 2], [0.5, 1.5], [1, 0], [3, 4]]
    with pytest.raises(InputError, match="column 'd' holds Date, wanted numbers"):
        table.numbers("d")


UNREADABLE = {
    "empty": (b"", "is empty"),
    "white": (b" \n\n", "is empty"),
    "header only": (b"a,b\n", "no rows below the header"),
    "header without line end": (b"a,b", "no rows below the header"),
    "binary": (b"\x89PNG\r\n\x1a\n\0\0\0\rIHDR", "binary data, wanted UTF-8"),
    "latin-1": ("a,b\n1,2\né,3\n".encode("latin-1"), "not UTF-8 (byte 0xe9 in line 3)"),
    "utf-16 without a mark": ("a,b\n1,2\n".encode("utf-16-le"), "UTF-16 without a byte order mark, wanted UTF-8"),
    "the other order": ("a,b\n1,2\n".encode("utf-16-be"), "UTF-16 without a byte order mark, wanted UTF-8"),
    "half a character": ("a,b\n1,2\n".encode("utf-16")[:-1], "not UTF-16 (byte 0x0a in line 2)"),
    "half a pair": ("a,b\n1,".encode("utf-16") + b"\x3d\xd8\n\0", "not UTF-16 (byte 0x3d in line 2)"),
    "utf-32": ("a,b\n1,2\n".encode("utf-32"), "UTF-32 text, wanted UTF-8 or UTF-16"),
    "a mark and nothing": (b"\xef\xbb\xbf", "is empty"),
    "another mark and nothing": (b"\xff\xfe", "is empty"),
    "sep= and nothing": (b"sep=;\n", "no rows below the header"),
    "open quote in the header": (b'"a,b\n1,2\n', "no rows below the header (it has a,b 1,2)"),
    "carriage return in the header": (b"a,b\rc\n1,2\n", "the header line is damaged"),
    "filled last column without a name": (b"a,b,\n1,2,\n3,4,5\n", "column 3 has no name"),
    "a field too many behind empty ones": (b"a,b\n1,2,\n3,4,5\n", "row 3: 3 fields, the header has 2"),
    "twice the same column": (b"a,b,a\n1,2,3\n", "two columns are named 'a'"),
    "nameless column": (b"a,,b\n1,2,3\n", "column 2 has no name"),
    "too many fields": (b"a,b\n1,2\n3,4,5\n", "row 3: 3 fields, the header has 2"),
    "open quote": (b'a,b\n1,"2\n3,4\n', "damaged CSV"),
}


@pytest.mark.parametrize("case", UNREADABLE)
def test_unreadable_csv(tmp_path, case):
    text, wanted = UNREADABLE[case]
    with pytest.raises(InputError) as error:
        table_of(tmp_path, text)
    assert wanted in message(error)
    assert "t.csv" in message(error)


def test_files_that_are_not_there_or_not_tables(tmp_path):
    (tmp_path / "t.csv").mkdir()
    for path, wanted in (
        ("none.csv", "no such file"),
        ("t.csv", "a folder, wanted a file"),
        ("t.xls", "wanted .csv or .parquet"),
    ):
        with pytest.raises(InputError, match=wanted) as error:
            read_table(tmp_path / path)
        message(error)


CELLS = {
    "": "row 3: column 'a' is empty",
    '" "': "row 3: column 'a' is empty",
    "NA": "row 3: column 'a' is 'NA', a missing value",
    "nan": "row 3: column 'a' is 'nan', a missing value",
    "-inf": "row 3: column 'a' is '-inf', wanted a finite number",
    '"1,5"': "row 3: column 'a' is '1,5', wanted a number: write it with a decimal point",
    "two": "row 3: column 'a' is 'two', wanted a number",
    "1" * 400: "wanted a",
}


@pytest.mark.parametrize("cell", CELLS)
def test_cells_that_are_no_numbers(tmp_path, cell):
    table = table_of(tmp_path, f"a,b\n1,1\n{cell},2\n3,3\n")
    with pytest.raises(InputError) as error:
        table.numbers("a")
    assert CELLS[cell] in message(error)
    assert len(message(error)) < 400


def test_rows_are_counted_as_in_a_spreadsheet(tmp_path):
    with pytest.raises(InputError, match="row 5: column 'a' is 'x'"):
        table_of(tmp_path, "\na,b\n1,2\n3,4\nx,5\n").numbers("a")
    with pytest.raises(InputError, match="row 3: column 'a' is empty"):
        table_of(tmp_path, "a,b\n1,2\n\n3,4\n").numbers("a")
    pl.DataFrame({"a": [1.0, None]}).write_parquet(tmp_path / "t.parquet")
    with pytest.raises(InputError, match="row 2: column 'a' is empty"):
        read_table(tmp_path / "t.parquet").numbers("a")


def test_missing_column_suggests_the_closest(tmp_path):
    table = table_of(tmp_path, "Time,Demand,Temperature\n1,2,3\n")
    with pytest.raises(
        InputError, match=r"no column 'demnd' \(--target\): did you mean 'Demand'\? it has Time, Demand, Temp"
    ):
        table.require("demnd", "--target")
    with pytest.raises(InputError, match=r"no column 'xyz' \(--id\): it has Time"):
        table.require("xyz", "--id")


def test_lists_of_names():
    assert split_names("a, b,c", "--inputs") == ("a", "b", "c")
    with pytest.raises(InputError, match="--inputs names column 'a' twice"):
        split_names("a,b,a", "--inputs")
    with pytest.raises(InputError, match="holds an empty name"):
        split_names("a,,b", "--inputs")


def test_damaged_parquet_is_one_error_and_nothing_on_the_screen(tmp_path, capfd):
    path = tmp_path / "t.parquet"
    pl.DataFrame({"a": list(range(500)), "b": ["x"] * 500}).write_parquet(path)
    whole = path.read_bytes()
    damaged = [whole[:n] for n in range(0, len(whole), 131)]
    damaged += [whole[:n] + bytes([whole[n] ^ 0xFF]) + whole[n + 1 :] for n in range(0, len(whole), 37)]
    refusals = []
    for data in damaged:
        path.write_bytes(data)
        try:
            read_table(path)  # a flipped bit in a value cannot be noticed: Parquet has no check sums by default
        except InputError as error:
            refusals.append(str(error))
    assert len(refusals) > len(whole) // 131
    assert not any("\n" in r for r in refusals)
    assert capfd.readouterr().err == ""


# Times ------------------------------------------------------------------------------------------------------------------


def times_of(folder: Path, cells: list[str]):
    table = table_of(folder, "time,v\n" + "".join(f"{c},1\n" for c in cells))
    return read_times(table, "time")


EVEN = {  # cells, words for the step, the two that follow
    "numbers": (["1", "2", "3"], "1", ["4", "5"]),
    "years": (["1999", "2000", "2001"], "1", ["2002", "2003"]),
    "tenths": ([f"{0.1 * k:.1f}" for k in range(50)], "0.1", ["5", "5.1"]),
    "half hours": (["2014-01-01 23:00", "2014-01-01 23:30"], "0:30:00", ["2014-01-02", "2014-01-02 00:30"]),
    "seconds": (["2014-01-01T23:59:58", "2014-01-01T23:59:59"], "0:00:01", ["2014-01-02", "2014-01-02 00:00:01"]),
    "zone": (["2014-01-01T00:00:00Z", "2014-01-01T01:00:00Z"], "1:00:00", ["2014-01-01 02:00Z", "2014-01-01 03:00Z"]),
    "offset": (
        ["2014-01-01 02:00+02:00", "2014-01-01 03:00+02:00"],
        "1:00:00",
        ["2014-01-01 02:00Z", "2014-01-01 03:00Z"],
    ),
    "days": (["2014-02-27", "2014-02-28"], "1 day, 0:00:00", ["2014-03-01", "2014-03-02"]),
    "days without dashes": (["20140227", "20140228"], "1 day, 0:00:00", ["2014-03-01", "2014-03-02"]),
    "weeks": (["2014-02-20", "2014-02-27", "2014-03-06"], "7 days, 0:00:00", ["2014-03-13", "2014-03-20"]),
    "months": (["2014-11", "2014-12", "2015-01"], "1 month", ["2015-02-01", "2015-03-01"]),
    "month ends": (["2015-11-30", "2015-12-31", "2016-01-31"], "1 month", ["2016-02-29", "2016-03-31"]),
    "quarters": (["2014-01-15", "2014-04-15", "2014-07-15"], "3 months", ["2014-10-15", "2015-01-15"]),
}


@pytest.mark.parametrize("case", EVEN)
def test_even_times_and_how_they_go_on(tmp_path, case):
    cells, words, following = EVEN[case]
    times = times_of(tmp_path, cells)
    rows = np.arange(len(cells))
    spacing = times.spacing(rows, "")
    assert spacing.words() == words
    ahead = Spacing(**spacing.json()).after(times.moments[-1], 2)
    assert [write_moment(m, times.dates, times.zone) for m in ahead] == following


def test_dates_of_parquet(tmp_path):
    start = datetime.datetime(2014, 1, 1)
    frame = pl.DataFrame({"t": [start + k * datetime.timedelta(hours=6) for k in range(4)]})
    for unit in ("ms", "us", "ns"):
        frame.with_columns(pl.col("t").cast(pl.Datetime(unit))).write_parquet(tmp_path / "t.parquet")
        times = read_times(read_table(tmp_path / "t.parquet"), "t")
        assert times.spacing(np.arange(4), "").words() == "6:00:00"
        assert write_moment(times.moments[1], times.dates) == "2014-01-01 06:00"


UNEVEN = {
    "gap": (
        ["2014-01-01", "2014-01-02", "2014-01-03", "2014-01-05"],
        "row 5",
        "from '2014-01-03' to '2014-01-05', wanted a step of 1 day",
    ),
    "numbers": (["1", "2", "4", "5"], "row 4", "wanted a step of 1 "),
    "months": (["2014-01", "2014-02", "2014-04", "2014-05"], "row 4", "wanted a step of 1 month"),
    "unsorted": (["3", "2", "1"], "row 3", "is '2', which comes after '3': sort the rows by time"),
    "twice": (["1", "2", "2"], "row 4", "is '2', which comes a second time: keep one row for each time"),
    "not a date": (["2014-01-01", "yesterday"], "row 3", "'yesterday', wanted a number or a date"),
    "american": (["01/31/2014", "02/01/2014"], "row 2", "such as 2014-01-31"),
    "impossible": (["2014-02-28", "2014-02-29"], "row 3", "'2014-02-29'"),
    "not a number": (["1", "two"], "row 3", "'two', wanted a number"),
    "empty": (["2014-01-01", ""], "row 3", "is empty"),
    "mixed": (["2014-01-01", "2014-01-02 00:00"], "row 3", "written as on row 2"),
}


@pytest.mark.parametrize("case", UNEVEN)
def test_times_that_are_not_even(tmp_path, case):
    cells, row, wanted = UNEVEN[case]
    with pytest.raises(InputError) as error:
        times_of(tmp_path, cells).spacing(np.arange(len(cells)), "")
    assert row in message(error)
    assert "column 'time'" in message(error)
    assert wanted in message(error)


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 400), st.integers(1, 14), st.integers(2, 30))
def test_dates_go_on_as_python_counts_them(start, step, rows):
    first = datetime.datetime(2015, 1, 1) + datetime.timedelta(days=start)
    spacing = Spacing("date", step * 86400e6)
    epoch = datetime.datetime(1970, 1, 1)
    ahead = spacing.after((first - epoch).total_seconds() * 1e6, rows)
    assert [write_moment(m, dates=True) for m in ahead] == [
        (first + datetime.timedelta(days=step * k)).date().isoformat() for k in range(1, rows + 1)
    ]


def ahead(times, steps: int = 3) -> list[str]:
    """The times that follow, as they are written."""
    spacing, last = times.course(np.arange(len(times.ticks)), "")
    return [write_moment(m, *times.notation) for m in spacing.after(last, steps)]


CLOCKS = {  # the last two cells, the two that follow
    "minutes": (["2014-01-30 22:00", "2014-01-30 23:00"], ["2014-01-31 00:00", "2014-01-31 01:00"]),
    "with an offset": (["2014-01-30T22:00Z", "2014-01-30T23:00Z"], ["2014-01-31 00:00Z", "2014-01-31 01:00Z"]),
    "seconds": (["2014-01-30 23:59:20", "2014-01-30 23:59:40"], ["2014-01-31 00:00:00", "2014-01-31 00:00:20"]),
    "fractions": (["2014-01-30 23:59:59", "2014-01-30 23:59:59.5"], ["2014-01-31 00:00:00.000000"]),
}


@pytest.mark.parametrize("case", CLOCKS)
def test_midnight_is_written_as_the_other_hours_and_can_be_read_beside_them(tmp_path, case):
    cells, following = CLOCKS[case]
    times = times_of(tmp_path, cells)
    found = ahead(times, len(following))
    assert found == following
    times_of(tmp_path, [write_moment(int(t), *times.notation) for t in times.ticks] + found).spacing(np.arange(3), "")


def tenths_added_up(n: int) -> list[float]:
    return list(itertools.accumulate([0.1] * (n - 1), initial=0.0))


HOURS = [43831 + k / 24 for k in range(100)]  # days since 1900, as Excel counts them
WRITTEN = {  # cells, the three that follow
    "row numbers": ([str(k) for k in range(5)], ["5", "6", "7"]),
    "large row numbers": ([str(12345678901 + k) for k in range(9)], ["12345678910", "12345678911", "12345678912"]),
    "milliseconds": ([str(1577836800123 + 40 * k) for k in range(9)], [str(1577836800123 + 40 * k) for k in (9, 10, 11)]),
    "nanoseconds": (
        [str(1577836800000000007 + 10**9 * k) for k in range(9)],
        [str(1577836800000000007 + 10**9 * k) for k in (9, 10, 11)],
    ),
    "one nanosecond": ([str(1577836800000000007 + k) for k in range(3)], [str(1577836800000000010 + k) for k in range(3)]),
    "seconds with nanoseconds": (
        ["1577836800.123456798", "1577836800.123456799"],
        ["1577836800.123456800", "1577836800.123456801", "1577836800.123456802"],
    ),
    "half seconds": (["1577836800.0", "1577836800.5"], ["1577836801.0", "1577836801.5", "1577836802.0"]),
    "hundredths": (["0.98", "0.99"], ["1.00", "1.01", "1.02"]),
    "negative": (["-0.3", "-0.2", "-0.1"], ["0.0", "0.1", "0.2"]),
    "negative whole": (["-30", "-20"], ["-10", "0", "10"]),
    "tenths of a program": ([repr(0.1 * k) for k in range(9)], ["0.9", "1", "1.1"]),
    "tenths added up": ([repr(x) for x in tenths_added_up(1001)], ["100.1", "100.2", "100.3"]),
    "powers": (["1e3", "2E+3", "3000.0"], ["4000", "5000", "6000"]),
    "Excel's ten digits": ([f"{x:.10f}".rstrip("0").rstrip(".") for x in HOURS], ["43835.1666666667", "43835.2083333333", "43835.25"]),  # noqa: E501
    "Excel's hours to a day": ([f"{x:.10f}" for x in HOURS[:22]], ["43831.9166666667", "43831.9583333333", "43832.0000000000"]),  # noqa: E501
    "hours of a program": ([repr(x) for x in HOURS[:22]], ["43831.916666666667", "43831.958333333333", "43832"]),
    "months of a year": ([repr(1991.5 + k / 12) for k in range(28)], ["1993.8333333333333", "1993.9166666666667", "1994"]),
    "sixtieths in microseconds": ([str(round(1e6 * k / 60)) for k in range(200)], ["3333333", "3350000", "3366667"]),
    "microseconds": (
        ["2020-01-01 23:59:59.999998", "2020-01-01 23:59:59.999999"],
        ["2020-01-02 00:00:00.000000", "2020-01-02 00:00:00.000001", "2020-01-02 00:00:00.000002"],
    ),
    "the first year": (["0001-01-01", "0001-01-02"], ["0001-01-03", "0001-01-04", "0001-01-05"]),
    "the last year": (["9999-12-27", "9999-12-28"], ["9999-12-29", "9999-12-30", "9999-12-31"]),
    "over a change to summer time": (
        ["2020-03-29T01:00+01:00", "2020-03-29T03:00+02:00"],
        ["2020-03-29 02:00Z", "2020-03-29 03:00Z", "2020-03-29 04:00Z"],
    ),
    "the 30th": (["2019-10-30", "2019-11-30", "2019-12-30"], ["2020-01-30", "2020-02-29", "2020-03-30"]),
    "month ends": (["2019-10-31", "2019-11-30"], ["2019-12-31", "2020-01-31", "2020-02-29"]),
}  # fmt: skip


@pytest.mark.parametrize("case", WRITTEN)
def test_times_go_on_as_they_are_written(tmp_path, case):
    cells, following = WRITTEN[case]
    assert ahead(times_of(tmp_path, cells)) == following


@settings(max_examples=200, deadline=None)
@given(st.integers(-(10**17), 10**17), st.integers(1, 10**14), st.integers(0, 9), st.integers(2, 30))
def test_every_even_time_goes_on_to_the_last_place(tmp_path_factory, start, step, decimals, rows):
    def written(k):
        return f"{Decimal(start + step * k).scaleb(-decimals):.{decimals}f}"

    times = times_of(tmp_path_factory.mktemp("t"), [written(k) for k in range(rows)])
    assert ahead(times) == [written(rows + k) for k in range(3)]


@pytest.mark.parametrize("kind", [pl.Int64, pl.UInt32, pl.Float64, pl.Float32, pl.Decimal(20, 1)])
def test_times_of_parquet_go_on_exactly(tmp_path, kind):
    step = 1 if kind.is_integer() else 0.1
    pl.DataFrame({"t": pl.Series([k * step for k in range(5)]).cast(kind)}).write_parquet(tmp_path / "t.parquet")
    following = ["5", "6", "7"] if kind.is_integer() else ["0.5", "0.6", "0.7"]
    assert ahead(read_times(read_table(tmp_path / "t.parquet"), "t")) == following


def test_a_zone_and_summer_time_of_parquet(tmp_path):
    start = datetime.datetime(2020, 3, 28, 23, tzinfo=datetime.UTC)
    hours = pl.Series([start + k * datetime.timedelta(hours=1) for k in range(4)]).dt.convert_time_zone("Europe/Berlin")
    pl.DataFrame({"t": hours}).write_parquet(tmp_path / "t.parquet")
    times = read_times(read_table(tmp_path / "t.parquet"), "t")
    assert ahead(times, 2) == ["2020-03-29 03:00Z", "2020-03-29 04:00Z"]


UNREADABLE_TIMES = {
    "too large": (["1", "1e19"], "row 3: column 'time' is '1e19', too large for a time: wanted one of up to 18 digits"),
    "far too large": (
        ["1", "9" * 90],
        "row 3: column 'time' is '9999999999999999999999999999999999999999…', too large",
    ),
    "a huge exponent": (["1", "1e999999999"], "row 3: column 'time' is '1e999999999', too extreme"),
    "finer than a microsecond": (
        ["2020-01-01 00:00:00.1234560", "2020-01-01 00:00:00.1234561"],
        "row 3: column 'time' is '2020-01-01 00:00:00.1234561', finer than a microsecond",
    ),
}


@pytest.mark.parametrize("case", UNREADABLE_TIMES)
def test_times_that_cannot_be_exact_are_refused(tmp_path, case):
    cells, wanted = UNREADABLE_TIMES[case]
    with pytest.raises(InputError) as error:
        times_of(tmp_path, cells)
    assert wanted in message(error)


def test_odd_zeros_are_zero(tmp_path):
    assert ahead(times_of(tmp_path, ["0E+999999999", "1"])) == ["2", "3", "4"]
    assert ahead(times_of(tmp_path, ["1e-999999999", "1"])) == ["2", "3", "4"]


def test_nanoseconds_of_parquet_are_not_rounded(tmp_path):
    pl.DataFrame({"t": pl.Series([1, 2]).cast(pl.Datetime("ns"))}).write_parquet(tmp_path / "t.parquet")
    with pytest.raises(InputError, match=r"row 1: column 't' is .* finer than a microsecond"):
        read_times(read_table(tmp_path / "t.parquet"), "t")


def test_there_is_no_date_after_9999(tmp_path):
    for cells in (["9999-12-30", "9999-12-31"], ["9999-11", "9999-12"], ["9999-12-31 23:00", "9999-12-31 23:30"]):
        with pytest.raises(InputError, match="beyond the year 9999") as error:
            ahead(times_of(tmp_path, cells))
        message(error)


def test_last_days_of_months():
    day = 86400 * 10**6
    assert [is_month_end(k * day) for k in (30, 31, 58, 59)] == [True, False, True, False]
