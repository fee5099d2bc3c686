"""Tables from CSV and Parquet, and their time column: what is read, and how each mistake is named."""

import datetime
from pathlib import Path

import numpy as np
import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bptt.errors import InputError
from bptt.tasks.table import read_table, split_names
from bptt.tasks.times import Spacing, read_times, write_moment


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
    ],
)
def test_csv_in_many_hands(tmp_path, text):
    table = table_of(tmp_path, text)
    assert table.columns == ("a", "b")
    assert table.numbers("a").tolist() == [1, 3]
    assert table.numbers("b").tolist() == [2, 4]


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
    "utf-16": ("a,b\n1,2\n".encode("utf-16"), "UTF-16 text, wanted UTF-8"),
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
