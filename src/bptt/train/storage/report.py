"""report.json: what the task said of the trained network on held-out data."""

import json
from pathlib import Path

from bptt.errors import InputError
from bptt.files import read_regular, write_atomically
from bptt.train.storage.run_folder import LARGEST_JSON, REPORT
from bptt.typed import Json, Unexpected, convert, is_number, parse


def read_report(folder: Path) -> dict[str, str | float | int]:
    """Return what report.json says: {name: number or text}. Raises InputError, OSError."""
    path = folder / REPORT
    try:
        content: Json = convert(parse(read_regular(path, LARGEST_JSON), finite=False), Json, "the report")
        for name, value in content.items():
            if not (isinstance(value, str) or is_number(value)):
                raise Unexpected(f"{name[:60]!r} is neither a number nor a text")
    except Unexpected as error:
        raise InputError(f"{path} is not a report that bptt wrote ({error}): restore it from a copy") from error
    return content


def write_report(folder: Path, content: Json) -> None:
    """Write report.json, indented for people to read. Raises OSError."""
    write_atomically(
        folder / REPORT, (json.dumps(content, indent=2, ensure_ascii=False) + "\n").encode("utf-8", "surrogatepass")
    )
