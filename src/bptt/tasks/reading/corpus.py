"""Which files a text is made of, and which part of them is held out for validation."""

import hashlib
import os
import sysconfig
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

from bptt.errors import InputError
from bptt.tasks.reading.user_files import LONGEST_MARK, encoding_name, encoding_of, open_regular

HELD_OUT_SHARE = 0.05
HELD_OUT_BYTES = 300_000  # at most: the final validation is to take a few seconds only, however large the text

# Parts of the standard library that are not code to learn from: tests, tables (encodings, pydoc_data), what was installed
# beside it, and the old lib2to3 with its grammar files.
_NOT_CODE = {
    *("test", "tests", "idle_test", "site-packages", "dist-packages", "__pycache__", "__phello__", "_bundled"),
    *("encodings", "pydoc_data", "lib2to3"),
}


@dataclass(frozen=True)
class Document:
    """Bytes [begin, end) of a file, both at the border of a character, after its byte order mark.

    `name` is its path below the folder, `codec` Python's name of its encoding: UTF-8, or UTF-16 of one of the two orders.
    """

    path: Path
    name: str
    begin: int
    end: int
    codec: str = "utf-8"

    @property
    def size(self) -> int:
        """Its size in bytes."""
        return self.end - self.begin

    @property
    def unit(self) -> int:
        """Bytes of a code unit: a character has 1 to 4 units in UTF-8, 1 or 2 in UTF-16."""
        return 1 if self.codec == "utf-8" else 2

    def find(self, character: str, data: bytes, begin: int = 0, end: int | None = None) -> int:
        """Return the first place of an ASCII character in data[begin:end], else -1; `data` begins at a code unit."""
        code, end = character.encode(self.codec), len(data) if end is None else end
        at = data.find(code, begin, end)
        while at % self.unit and at >= 0:  # the halves of two units
            at = data.find(code, at + 1, end)
        return at

    def splits_character(self, data: bytes, at: int) -> bool:
        """Return whether place `at` of its bytes `data` is inside a character: before a unit that is not its first."""
        if self.codec == "utf-8":
            return data[at] & 0xC0 == 0x80
        return data[at + (self.codec == "utf-16-le")] & 0xFC == 0xDC


def find_documents(data: Path | None, glob: str) -> list[Document]:
    """Return the documents of a file, of a folder (its files that match `glob`), or of Python's standard library (None).

    They are in the order of their names, and none is empty. Raises InputError.
    """
    if data is None:
        return _standard_library()
    if not os.path.isdir(data):
        return [one_document(data)]
    documents = _in_order(_in_folder(data, glob))
    if not documents:
        raise InputError(f"{data} has only empty files for --glob '{glob}': give a text of some thousand characters")
    return documents


def one_document(path: Path) -> Document:
    """Return a whole file as a document. Raises InputError if there is no such file, or nothing in it."""
    with _readable(path):
        if not path.exists():
            raise InputError(f"{path} does not exist: give the path of a UTF-8 text")
        if path.is_dir():
            raise InputError(f"{path} is a folder: give the path of one UTF-8 text file")
        document = _whole(path, path.name)
    if not document.size:
        raise InputError(f"{path} is empty: give a text of some thousand characters")
    return document


@contextmanager
def _readable(path: Path) -> Iterator[None]:
    """Turn an OSError while reading `path` into an InputError."""
    try:
        yield
    except OSError as e:
        raise InputError(f"cannot read {path} ({e.strerror}): give a text that you may read") from e


def _in_order(documents: Iterable[Document]) -> list[Document]:
    return sorted((d for d in documents if d.size), key=lambda d: d.name)


def _whole(path: Path, name: str) -> Document:
    with open_regular(path) as file:
        codec, mark = encoding_of(file.read(LONGEST_MARK))
        size = os.fstat(file.fileno()).st_size
    if encoding_name(codec) == "UTF-32":
        raise InputError(
            f"{path} is UTF-32: a text in UTF-8 or UTF-16 is wanted, leave the file out (--glob) or convert it"
        )
    return Document(path, name, mark, size, codec)


def _in_folder(folder: Path, glob: str) -> list[Document]:
    with _readable(folder):
        os.scandir(folder).close()  # glob finds nothing, silently, in a folder that may not be read
        try:
            found = [(path, path.relative_to(folder)) for path in folder.glob(glob)]
        except (ValueError, NotImplementedError) as e:
            raise InputError(f"--glob '{glob}' is not a pattern below a folder ({e}): try '**/*.txt'") from e
        documents = [_whole(path, name.as_posix()) for path, name in found if _is_wanted(name) and path.is_file()]
    if not documents:
        raise InputError(f"no file in {folder} matches --glob '{glob}' (hidden ones do not count): try '**/*'")
    return documents


def _is_wanted(name: Path) -> bool:
    return not any(part.startswith(".") or part == "__pycache__" for part in name.parts)


def _standard_library() -> list[Document]:
    root = Path(sysconfig.get_path("stdlib"))
    documents = [_whole(path, path.relative_to(root).as_posix()) for path in _code_below(root) if _is_text(path)]
    if not documents:
        raise InputError(f"no Python source text below {root}: give a text of your own with --data PATH")
    return _in_order(documents)


def _code_below(root: Path) -> Iterator[Path]:
    for folder, subfolders, names in os.walk(root):
        subfolders[:] = [s for s in subfolders if s not in _NOT_CODE and not s.startswith((".", "config-"))]
        yield from (Path(folder, n) for n in names if n.endswith(".py") and not n.startswith((".", "_sysconfigdata")))


def _is_text(path: Path) -> bool:
    """Return whether a file is text in UTF-8: a source file may declare another encoding."""
    try:
        return "\0" not in path.read_bytes().decode()
    except (OSError, UnicodeDecodeError):
        return False


def split(documents: Sequence[Document]) -> tuple[list[Document], list[Document]]:
    """Return the training part and the held-out part, each in the order given; together they hold each byte once.

    Held out are 5 % of the bytes (at most 300,000) in whole documents, taken in the order of the hash of their names: so
    the choice depends on no seed, and neighbours are not taken together. Where whole documents fill less than half of
    that, as with a single file, the end of the largest document makes up the rest.
    """
    target = min(HELD_OUT_BYTES, max(1, round(HELD_OUT_SHARE * sum(d.size for d in documents))))
    held_out, missing = _choose(documents, target)
    training = [d for d in documents if d not in held_out]
    validation = [d for d in documents if d in held_out]
    if missing > target // 2:
        largest = max(training, key=lambda d: d.size)
        border = _border_near(largest, largest.end - missing)
        start = [replace(largest, end=border)] if border > largest.begin else []
        place = training.index(largest)
        training[place : place + 1] = start
        validation.append(replace(largest, begin=border))
    return training, validation


def _choose(documents: Sequence[Document], target: int) -> tuple[set[Document], int]:
    """Return the whole documents to hold out, and how many bytes of `target` they leave unfilled."""
    chosen, missing = set(), target
    for document in sorted(documents, key=_hash_of_name):
        if document.size <= missing:
            chosen.add(document)
            missing -= document.size
    return chosen, missing


def _hash_of_name(document: Document) -> str:
    return hashlib.sha256(os.fsencode(document.name)).hexdigest()


def _border_near(document: Document, at: int) -> int:
    """Return where to divide a document near byte `at`: at the first line that starts before half of the rest is over.

    Without such a line, where a character starts: at most 3 bytes back in UTF-8, 2 in UTF-16.
    """
    unit = document.unit
    at -= (at - document.begin) % unit
    begin, half = max(document.begin, at - 4 + unit), at + (document.end - at) // 2
    window = read_bytes(document.path, begin, min(half + unit, document.end))
    line_end = document.find("\n", window, at - begin, half - begin)
    if line_end >= 0:
        return begin + line_end + unit
    while at > begin and document.splits_character(window, at - begin):
        at -= unit
    return at


def read_bytes(path: Path, begin: int, end: int) -> bytes:
    """Return bytes [begin, end) of a file. Raises InputError if it cannot be read, or has become too short."""
    with _readable(path), open_regular(path) as file:
        file.seek(begin)
        data = file.read(end - begin)
    if len(data) != end - begin:
        raise changed(path)
    return data


def changed(path: Path) -> InputError:
    """Return the error for a file that has changed since the run began."""
    return InputError(f"{path} has changed while it was in use: leave the text alone until the training has ended")
