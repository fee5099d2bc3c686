"""The copy problem: repeat ten symbols after a long pause (many-to-many, softmax)."""

import math
from collections.abc import Iterator
from typing import ClassVar

import numpy as np
import torch
from torch import Tensor, nn

from bptt.network import Softmax
from bptt.options import PredictOptions
from bptt.tasks.base import Shard, Sizes
from bptt.tasks.synthetic import Drawn, Synthetic, answers, check_examples, examples
from bptt.typed import Json

ITEMS, KINDS = 10, 8  # ten symbols to remember, each one of eight
BLANK, DELIMITER = KINDS, KINDS + 1
_LETTERS = "abcdefgh."  # how the classes are shown; the last is the blank


class Copy(Synthetic):
    """T = length + 20 steps: the task is to stay blank until the delimiter has come, and then to repeat the ten symbols.

    input   s_1 … s_10   length − 1 blanks   delimiter   10 blanks
    target  length + 10 blanks                           s_1 … s_10

    Source: M. Arjovsky, A. Shah, Y. Bengio 2016 (section 4.1), after S. Hochreiter, J. Schmidhuber 1997.
    """

    name: ClassVar[str] = "copy"
    unit: ClassVar[str] = "symbols"
    metric: ClassVar[str] = "nats per step"
    shortest: ClassVar[int] = 1

    @staticmethod
    def draw(length: int, n: int, generator: np.random.Generator) -> Drawn:
        """Return n random sequences: x and y int64 [T, n], and a mask [T, n] that is True everywhere."""
        symbols = generator.integers(0, KINDS, (ITEMS, n))
        x = np.full((length + 2 * ITEMS, n), BLANK, dtype=np.int64)
        y = x.copy()
        x[:ITEMS] = y[-ITEMS:] = symbols
        x[-ITEMS - 1] = DELIMITER
        return Drawn(torch.from_numpy(x), torch.from_numpy(y), torch.ones(x.shape, dtype=torch.bool))

    def sizes(self) -> Sizes:
        """The sizes of the network: symbols, blank and delimiter in; symbols and blank out."""
        return Sizes(outputs=KINDS + 1, head="softmax", symbols=KINDS + 2)

    def chance(self) -> float:
        """Return the nats per step of a network without memory: 0 for a blank, ln 8 for each of the ten symbols."""
        return ITEMS * math.log(KINDS) / (self._options.length + 2 * ITEMS)

    def report(self, model: nn.Module) -> Json:
        """Return loss and share of recalled symbols on the validation sequences, each beside that of chance."""
        model.eval()
        total, right, count, sequences = 0.0, 0, 0, 0
        for drawn in self.validation(Shard()):
            batch, z = answers(model, drawn)
            total += float(Softmax().losses(z, batch.y).double().sum())
            right += int((recalled(z) == batch.y[-ITEMS:]).sum())
            count += batch.count
            sequences += batch.y.shape[1]
        return {
            "nats per step": total / count,
            "nats per step by chance (without memory)": self.chance(),
            "share of symbols recalled": right / (ITEMS * sequences),
            "share of symbols recalled by chance": 1 / KINDS,
            "sequences judged": sequences,
        }

    @staticmethod
    def predict(model: nn.Module, spec: Json, options: PredictOptions) -> Iterator[str]:
        """Return CSV lines of new examples: their symbols as letters a to h, and what the network recalls (. is a blank)."""
        check_examples(options)
        model.eval()
        return _lines(model, spec, options)


def recalled(z: Tensor) -> Tensor:
    """Return the likeliest class at each of the last ten steps, [10, B]."""
    return z[-ITEMS:].argmax(-1)


def _lines(model: nn.Module, spec: Json, options: PredictOptions) -> Iterator[str]:
    yield "example,symbols,answer\n"
    for number, drawn in examples(Copy.draw, spec, options):
        batch, z = answers(model, drawn)
        truth, answer = ("".join(_LETTERS[i] for i in a[:, 0].tolist()) for a in (batch.y[-ITEMS:], recalled(z)))
        yield f"{number},{truth},{answer}\n"
