"""A text as numbered characters that are read from its files block by block, and the symbols that stand for them."""

import codecs
import hashlib
import json
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from bptt.errors import InputError
from bptt.reading import encoding_name, kind_of_binary
from bptt.tasks.reading.corpus import Document, changed, read_bytes

BLOCK = 1 << 14  # bytes read at once, an even number; each lane holds one block, so 1,000 lanes need some 100 MB
CODE_POINTS = 0x110000
UNICODE_CHARACTERS = CODE_POINTS - 2048  # without the surrogates, which are not characters
START, UNKNOWN = 0, 1

Ints = npt.NDArray[np.int64]
Symbols = npt.NDArray[np.int32]


class Vocabulary:
    """Symbols: 0 the start of a document (only ever an input), 1 any unknown character, then the known characters.

    Args:
        characters: the known ones, in the order of their symbols.
    """

    def __init__(self, characters: str) -> None:
        self.characters = characters
        self._symbol_of = np.full(CODE_POINTS, UNKNOWN, dtype=np.int32)
        self._symbol_of[code_points(characters)] = np.arange(2, len(characters) + 2)

    def __len__(self) -> int:
        """How many symbols there are."""
        return len(self.characters) + 2

    def symbols(self, codes: npt.NDArray[Any]) -> Symbols:
        """The symbols of Unicode code points, of the same shape."""
        return self._symbol_of[codes]

    def encode(self, text: str) -> Symbols:
        """The symbols of a text, [len(text)]."""
        return self.symbols(code_points(text))

    def character(self, symbol: int) -> str:
        """The character of a symbol from 2 on."""
        return self.characters[symbol - 2]

    @property
    def bits_to_spell(self) -> float:
        """Bits that name one of the characters outside the vocabulary, each as likely as the others."""
        return float(np.log2(UNICODE_CHARACTERS - len(self.characters)))


def code_points(text: str) -> npt.NDArray[np.uint32]:
    """The Unicode code points of a text, [len(text)]."""
    return np.frombuffer(text.encode("utf-32-le", "surrogatepass"), dtype="<u4")


class Characters:
    """The characters of some documents in their order, numbered from 0. Only an index of the blocks is kept in memory.

    Reads every document once, which checks that it is text in its encoding. Raises InputError.

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
        """One row a block: document, bytes [begin, end), code point before it (-1 at the start), characters in it."""
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
        """Of all documents, in bytes."""
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
        """The block that holds the character of that number."""
        return int(np.searchsorted(self._first, character, side="right")) - 1

    def first(self, block: int) -> int:
        """The number of a block's first character, or `total` after the last block."""
        return int(self._first[block])

    def symbols(self, block: int, vocabulary: Vocabulary) -> Symbols:
        """[n + 1]: the symbol before the block's first character (START in front of a document), then its n characters."""
        codes = code_points(self._text(block))
        if len(codes) != self._first[block + 1] - self._first[block]:
            raise changed(self._path(block))
        before = int(self._before[block])
        out = np.empty(len(codes) + 1, dtype=np.int32)
        out[0] = START if before < 0 else vocabulary.symbols(np.array(before))
        out[1:] = vocabulary.symbols(codes)
        return out

    def read(self) -> Iterator[bytes]:
        """The whole text in UTF-8, block by block."""
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
    """The code points of `data`, which stands at byte `at`, behind undecoded bytes from `begin` on."""
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
