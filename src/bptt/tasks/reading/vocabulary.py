"""The symbols that stand for characters in a character model."""

from typing import Any

import numpy as np
import numpy.typing as npt

CODE_POINTS = 0x110000
UNICODE_CHARACTERS = CODE_POINTS - 2048  # without the surrogates, which are not characters
START, UNKNOWN = 0, 1  # the first two symbols
Symbols = npt.NDArray[np.int32]


class Vocabulary:
    """Characters as symbols: 0 is the start of a document (only ever an input), 1 any unknown character, 2 … the known ones.

    Args:
        characters: the known ones, in the order of their symbols.
    """

    def __init__(self, characters: str) -> None:
        self.characters = characters
        self._symbol_of = np.full(CODE_POINTS, UNKNOWN, dtype=np.int32)
        self._symbol_of[code_points(characters)] = np.arange(2, len(characters) + 2)

    def __len__(self) -> int:
        """The number of symbols."""
        return len(self.characters) + 2

    def symbols(self, codes: npt.NDArray[Any]) -> Symbols:
        """Return the symbols of Unicode code points, in an array of their shape."""
        return self._symbol_of[codes]

    def encode(self, text: str) -> Symbols:
        """Return the symbols of a text, [len(text)]."""
        return self.symbols(code_points(text))

    def character(self, symbol: int) -> str:
        """Return the character of a symbol, which is 2 or more."""
        return self.characters[symbol - 2]

    @property
    def bits_to_spell(self) -> float:
        """Bits that name one of the characters outside the vocabulary, all equally likely."""
        return float(np.log2(UNICODE_CHARACTERS - len(self.characters)))


def code_points(text: str) -> npt.NDArray[np.uint32]:
    """Return the Unicode code points of a text, [len(text)]."""
    return np.frombuffer(text.encode("utf-32-le", "surrogatepass"), dtype="<u4")
