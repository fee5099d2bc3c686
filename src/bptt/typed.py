"""JSON from files that anyone may have written, read as declared types within declared bounds.

`parse` reads strictly: no NaN, no key twice, no endless nesting. `convert` then returns the value as a declared type: int,
float, bool, str, Path, None, Literal, unions, list[…], tuple[…, ...], dict[str, …], dataclasses by the types of their
fields, and Annotated with `Within` or `Items`. A value that does not fit raises `Unexpected`, which says where it is, what
came and what was wanted. An int is never read from 1.0 or true, and floats are finite.
"""

import dataclasses
import json
import math
import os
import types
import typing
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar, get_args, get_origin

T = TypeVar("T")
Json = dict[str, Any]
"""A JSON object as Python reads it."""

MANY = 10**15
"""More steps, updates or characters than any run can reach."""


class Unexpected(ValueError):
    """The JSON is not of the declared form."""


@dataclass(frozen=True)
class Within:
    """Bounds of a number, both included."""

    low: float
    high: float = math.inf

    def check(self, value: Any) -> str | None:
        """Return what was wanted, in words, if the value does not fit; else None."""
        if self.low <= value <= self.high:
            return None
        return f"{self.low:g} or more" if self.high == math.inf else f"{self.low:g} to {self.high:g}"


@dataclass(frozen=True)
class Items:
    """The least length of a list or text, and whether its items must be distinct."""

    least: int = 1
    distinct: bool = False

    def check(self, value: Any) -> str | None:
        """Return what was wanted, in words, if the value does not fit; else None."""
        if len(value) < self.least:
            return f"{self.least} or more of them"
        return "each of them once" if self.distinct and len(set(value)) < len(value) else None


Count = Annotated[int, Within(0, MANY)]
Positive = Annotated[int, Within(1, MANY)]
Scale = Annotated[float, Within(5e-324)]  # above 0
Names = Annotated[list[str], Items(1, distinct=True)]


# Parsing -----------------------------------------------------------------------------------------------------------


def parse(data: bytes | str, finite: bool = True) -> Any:
    """Return JSON as Python's own values. NaN and Infinity are read only if not `finite`. Raises Unexpected."""
    try:
        text = data if isinstance(data, str) else data.decode("utf-8", "surrogatepass")
        return json.loads(text, object_pairs_hook=_object, parse_constant=_constant if finite else None)
    except RecursionError as error:
        raise Unexpected("it is nested too deep") from error
    except Unexpected:
        raise
    except ValueError as error:  # no JSON, no UTF-8, or a number of thousands of digits
        raise Unexpected(str(error)) from error


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for key, value in pairs:
        if key in found:
            raise Unexpected(f"{_short(repr(key))} is in it twice")
        found[key] = value
    return found


def _constant(name: str) -> Any:
    raise Unexpected(f"{name} is no number")


def is_number(value: Any) -> bool:
    """Return whether a value can be drawn and printed: any float, or an int that a float can hold."""
    return type(value) is float or (type(value) is int and -MANY <= value <= MANY)


# Converting --------------------------------------------------------------------------------------------------------


def convert(value: Any, kind: type[T], where: str) -> T:
    """Return the value as a `kind`. `where` is its name in messages. Raises Unexpected if it does not fit."""
    return _convert(value, kind, where)


def _convert(value: Any, kind: Any, where: str) -> Any:
    origin = get_origin(kind)
    if dataclasses.is_dataclass(kind):
        return _dataclass(value, kind, where)
    if origin is Annotated:
        return _bounded(value, kind, where)
    if kind is Any:
        return value
    if origin is Literal:
        return _literal(value, kind, where)
    if origin in (typing.Union, types.UnionType):
        return _union(value, kind, where)
    if origin in (list, tuple):
        _check(isinstance(value, list), value, "a list", where)
        return origin(_convert(item, get_args(kind)[0], f"{where}[{i}]") for i, item in enumerate(value))
    if origin is dict:
        _check(isinstance(value, dict), value, "an object", where)
        return {key: _convert(v, get_args(kind)[1], f"{where}.{_short(key)}") for key, v in value.items()}
    return _SIMPLE[kind](value, where)


def _check(fits: bool, value: Any, wanted: str, where: str) -> None:
    if not fits:
        raise Unexpected(f"{where} is {_shown(value)}, wanted {wanted}")


def _bounded(value: Any, kind: Any, where: str) -> Any:
    base, *bounds = get_args(kind)
    found = _convert(value, base, where)
    for bound in bounds:
        wanted = bound.check(found)
        _check(wanted is None, value, str(wanted), where)
    return found


def _literal(value: Any, kind: Any, where: str) -> Any:
    choices = get_args(kind)
    fits = any(type(value) is type(choice) and value == choice for choice in choices)
    _check(fits, value, f"one of {', '.join(map(repr, choices))}", where)
    return value


def _union(value: Any, kind: Any, where: str) -> Any:
    failures = []
    for member in get_args(kind):
        try:
            return _convert(value, member, where)
        except Unexpected as error:
            failures.append(error)
    telling = [f for f, member in zip(failures, get_args(kind), strict=True) if member is not types.NoneType]
    raise telling[0]


def _dataclass(value: Any, kind: Any, where: str) -> Any:
    _check(isinstance(value, dict), value, "an object", where)
    hints = typing.get_type_hints(kind, include_extras=True)
    named = {f.name: f for f in dataclasses.fields(kind)}
    unknown = sorted(set(value) - set(named))
    if unknown:
        raise Unexpected(f"{where} has the unknown entries {_short(', '.join(unknown))}")
    for name, f in named.items():
        if name not in value and f.default is dataclasses.MISSING and f.default_factory is dataclasses.MISSING:
            raise Unexpected(f"{where} lacks {name!r}")
    return kind(**{name: _convert(v, hints[name], f"{where}.{name}") for name, v in value.items()})


def _whole(value: Any, where: str) -> int:
    _check(type(value) is int, value, "a whole number", where)
    return int(value)


def _real(value: Any, where: str) -> float:
    _check(type(value) in (int, float), value, "a number", where)
    try:
        number = float(value)
    except OverflowError:
        number = math.inf
    _check(math.isfinite(number), value, "a finite number", where)
    return number


def _truth(value: Any, where: str) -> bool:
    _check(isinstance(value, bool), value, "true or false", where)
    return bool(value)


def _text(value: Any, where: str) -> str:
    _check(isinstance(value, str), value, "a text", where)
    try:
        os.fsencode(value)
    except UnicodeEncodeError as error:
        raise Unexpected(f"{where} holds half a character, wanted a text") from error
    return str(value)


def _path(value: Any, where: str) -> Path:
    text = _text(value, where)
    _check("\0" not in text, value, "a path without NUL", where)
    return Path(text)


def _null(value: Any, where: str) -> None:
    _check(value is None, value, "null", where)


_SIMPLE: dict[Any, Callable[[Any, str], Any]] = {
    int: _whole,
    float: _real,
    bool: _truth,
    str: _text,
    Path: _path,
    types.NoneType: _null,
}


def _shown(value: Any) -> str:
    """Return a value as a message shows it, which is never long."""
    if value is None or isinstance(value, bool):
        return {None: "null", True: "true", False: "false"}[value]
    if isinstance(value, dict | list):
        return f"{'an object' if isinstance(value, dict) else 'a list'} of {len(value)}"
    return _short(repr(value))


def _short(text: str, most: int = 60) -> str:
    return text if len(text) <= most else text[:most] + "…"
