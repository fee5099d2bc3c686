"""A text as numbered characters, which are read from its files block by block."""

import codecs
import hashlib
import json
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from bptt.errors import InputError
from bptt.tasks.reading.corpus import Document, changed, read_bytes
from bptt.tasks.reading.user_files import encoding_name, kind_of_binary
from bptt.tasks.reading.vocabulary import CODE_POINTS, START, Symbols, Vocabulary, code_points

Ints = npt.NDArray[np.int64]

BLOCK = 1 << 14  # bytes read at once, an even number; each lane holds one block, so 1,000 lanes need some 100 MB


class Characters:
    """The characters of documents, one after the other and numbered from 0. Memory holds an index of their blocks alone.

    The constructor reads every document once, and raises InputError for one that is not text in its encoding.

    Attributes:
        documents: as given.
        total: how many characters there are.
        counts: how often each code point occurs, [CODE_POINTS].
    """

    def __init__(self, documents: Sequence[Document]) -> None:
        self.documents = documents
        self.counts: Ints = np.zeros(CODE_POINTS, dtype=np.int64)
        self._hash = hashlib.sha256()
        rows = [row for number, document in enumerate(documents) for row in self._scan(number, document)]
        index = np.array(rows, dtype=np.int64).reshape(-1, 5)
        self._document, self._begin, self._end, self._before, sizes = index.T.copy()
        self._first: Ints = np.concatenate([[0], np.cumsum(sizes)])  # the number of each block's first character
        self.total = int(self._first[-1])

    def _scan(self, number: int, document: Document) -> Iterator[tuple[int, int, int, int, int]]:
        """Yield for each block: document, bytes [begin, end), code point before it (-1 at the start), characters in it."""
        decoder = codecs.getincrementaldecoder(document.codec)()
        begin, before = document.begin, -1
        for at in range(document.begin, document.end, BLOCK):
            end = min(at + BLOCK, document.end)
            data = read_bytes(document.path, at, end)
            self._hash.update(data)
            codes = _decode(decoder, data, document, begin, at)
            end -= len(decoder.getstate()[0])  # a character that began in this block and ends in the next
            counted = np.bincount(codes)
            self.counts[: len(counted)] += counted
            yield number, begin, end, before, len(codes)
            begin, before = end, int(codes[-1])

    @property
    def known(self) -> str:
        """The characters that occur, in the order of their code points."""
        return "".join(map(chr, np.flatnonzero(self.counts)))

    @property
    def size(self) -> int:
        """The size of all documents in bytes."""
        return sum(d.size for d in self.documents)

    @property
    def digest(self) -> str:
        """SHA-256 of the documents' bytes."""
        return self._hash.hexdigest()

    @property
    def borders_digest(self) -> str:
        """SHA-256 of where the documents begin and end in their files; their names say nothing about what is learned."""
        digest = hashlib.sha256()
        for d in self.documents:
            digest.update(json.dumps([d.begin, d.end]).encode())
        return digest.hexdigest()

    def block_of(self, character: int) -> int:
        """Return the block that holds the character of this number."""
        return int(np.searchsorted(self._first, character, side="right")) - 1

    def first(self, block: int) -> int:
        """Return the number of a block's first character; `total` for the number after the last block's."""
        return int(self._first[block])

    def symbols(self, block: int, vocabulary: Vocabulary) -> Symbols:
        """Return the symbols of a block's n characters behind the one before them (START before a document), [n + 1]."""
        codes = code_points(self._text(block))
        if len(codes) != self._first[block + 1] - self._first[block]:
            raise changed(self._path(block))
        before = int(self._before[block])
        out = np.empty(len(codes) + 1, dtype=np.int32)
        out[0] = START if before < 0 else vocabulary.symbols(np.array(before))
        out[1:] = vocabulary.symbols(codes)
        return out

    def read(self) -> Iterator[bytes]:
        """Return the whole text in UTF-8, block by block."""
        return (self._text(block).encode() for block in range(len(self._begin)))

    def _path(self, block: int) -> Any:
        return self.documents[self._document[block]].path

    def _text(self, block: int) -> str:
        data = read_bytes(self._path(block), int(self._begin[block]), int(self._end[block]))
        try:
            return data.decode(self.documents[self._document[block]].codec)
        except UnicodeDecodeError as e:
            raise changed(self._path(block)) from e


def _decode(
    decoder: codecs.IncrementalDecoder, data: bytes, document: Document, begin: int, at: int
) -> npt.NDArray[np.uint32]:
    """Return the code points of `data`, the bytes from `at` on; the decoder still holds those from `begin` on."""
    wanted = "a UTF-8 text is wanted, leave the file out (--glob) or convert it"
    zero = document.find("\0", data)
    if zero >= 0:
        kind = kind_of_binary(data) if document.codec == "utf-8" else "binary"
        raise InputError(f"{document.path} is {kind}, it has a NUL byte at byte {at + zero}: {wanted}")
    try:
        return code_points(decoder.decode(data, at + len(data) == document.end))
    except UnicodeDecodeError as e:
        name = encoding_name(document.codec)
        raise InputError(f"{document.path} is not {name} at byte {begin + e.start} ({e.reason}): {wanted}") from e
