"""JSON as declared types, within declared bounds."""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

import pytest

from bptt.typed import Items, Unexpected, Within, convert, is_number, parse


@dataclass(frozen=True)
class Inner:
    size: Annotated[int, Within(1, 10)]
    share: float = 0.5


@dataclass(frozen=True)
class Outer:
    name: str
    kind: Literal["a", 1]
    inner: Inner
    path: Path | None = None
    rows: list[list[float]] | None = None
    names: Annotated[list[str], Items(1, distinct=True)] = ("x",)
    table: dict[str, int | str] | None = None


GOOD = {"name": "é\udcff", "kind": "a", "inner": {"size": 3}}


def test_what_fits_is_what_was_declared():
    more = {"path": "/a", "rows": [[1, 2.5]], "names": ["p", "q"], "table": {"k": 1, "l": "m"}}
    found = convert(GOOD | more, Outer, "it")
    assert found == Outer("é\udcff", "a", Inner(3, 0.5), Path("/a"), [[1.0, 2.5]], ["p", "q"], {"k": 1, "l": "m"})
    assert convert([1, 2], tuple[int, ...], "it") == (1, 2)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"name": None}, "it.name is null, wanted a text"),
        ({"name": "\ud800"}, "it.name holds half a character"),
        ({"kind": True}, "it.kind is true, wanted one of 'a', 1"),
        ({"kind": ["a"]}, "it.kind is a list of 1, wanted one of"),
        ({"inner": []}, "it.inner is a list of 0, wanted an object"),
        ({"inner": {}}, "it.inner lacks 'size'"),
        ({"inner": {"size": 0}}, "it.inner.size is 0, wanted 1 to 10"),
        ({"inner": {"size": 10**400}}, "wanted 1 to 10"),
        ({"inner": {"size": True}}, "it.inner.size is true, wanted a whole number"),
        ({"inner": {"size": 1.0}}, "it.inner.size is 1.0, wanted a whole number"),
        ({"inner": {"size": 1, "share": 10**400}}, "wanted a finite number"),
        ({"inner": {"size": 1, "share": float("inf")}}, "it.inner.share is inf, wanted a finite number"),
        ({"inner": {"size": 1, "more": 1}}, "it.inner has the unknown entries more"),
        ({"path": "a\0"}, "wanted a path without NUL"),
        ({"rows": [[1], ["x"]]}, "it.rows[1][0] is 'x', wanted a number"),
        ({"names": []}, "it.names is a list of 0, wanted 1 or more of them"),
        ({"names": ["p", "p"]}, "it.names is a list of 2, wanted each of them once"),
        ({"table": {"k": None}}, "it.table.k is null, wanted a whole number"),
        ({"name": 7, "x" * 1000: 1}, "it has the unknown entries xxx"),
    ],
)
def test_what_does_not_fit_is_named(change, message):
    with pytest.raises(Unexpected) as error:
        convert(GOOD | change, Outer, "it")
    assert message in str(error.value)
    assert len(str(error.value)) < 200


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[" * 100_000, "nested too deep"),
        ('{"a": 1, "a": 2}', "'a' is in it twice"),
        ("[NaN]", "NaN is no number"),
        ("[-Infinity]", "-Infinity is no number"),
        ("1" * 5000, "digits"),
        (b"\xff", "can't decode"),
        ("{", "Expecting"),
    ],
)
def test_only_json_is_parsed(text, message):
    with pytest.raises(Unexpected, match=message):
        parse(text)


def test_numbers_that_can_be_drawn():
    assert all(is_number(value) for value in (0, -5, 1.5, parse("[NaN]", finite=False)[0], 10**15))
    assert not any(is_number(value) for value in (True, None, "1", 10**400, [1]))
