"""The adding problem: the sum of two marked numbers of a long sequence (many-to-one, linear)."""

from collections.abc import Iterator
from typing import ClassVar

import numpy as np
import torch
from torch import nn

from bptt.options import PredictOptions
from bptt.tasks.base import Shard, Sizes
from bptt.tasks.synthetic import Drawn, Synthetic, answers, check_examples, examples
from bptt.typed import Json

CHANCE = 1 / 6  # mean squared error of always answering 1: the variance of the sum of two uniform numbers, 2 · 1/12


class Adding(Synthetic):
    """x [T, B, 2] is a number drawn evenly from [0, 1) and a marker, 1 at one step of each half and else 0.

    The target is the sum of the two marked numbers, at the last step only.

    Source: S. Hochreiter, J. Schmidhuber 1997 (section 5.4), in the form with markers of 0 and 1 that is common today.
    """

    name: ClassVar[str] = "adding"
    unit: ClassVar[str] = "sequences"
    metric: ClassVar[str] = "mean squared error"
    shortest: ClassVar[int] = 2

    @staticmethod
    def draw(length: int, n: int, generator: np.random.Generator) -> Drawn:
        """Return n random sequences: x [T, n, 2], y [T, n, 1], mask [T, n, 1], with T = length."""
        x = np.zeros((length, n, 2), dtype=np.float32)
        x[..., 0] = generator.random((length, n), dtype=np.float32)
        rows = np.arange(n)
        first = generator.integers(0, length // 2, n)
        second = generator.integers(length // 2, length, n)
        x[first, rows, 1] = x[second, rows, 1] = 1
        y = np.zeros((length, n, 1), dtype=np.float32)
        y[-1, :, 0] = x[first, rows, 0] + x[second, rows, 0]
        mask = np.zeros((length, n, 1), dtype=bool)
        mask[-1] = True
        return Drawn(torch.from_numpy(x), torch.from_numpy(y), torch.from_numpy(mask))

    def sizes(self) -> Sizes:
        """The sizes of the network: two values in, one out."""
        return Sizes(outputs=1, head="linear", inputs=2)

    def report(self, model: nn.Module) -> Json:
        """Return the mean squared error on the validation sequences, and that of always answering 1."""
        model.eval()
        total, count = 0.0, 0
        for drawn in self.validation(Shard()):
            batch, z = answers(model, drawn)
            total += float(((z - batch.y)[batch.mask].double() ** 2).sum())
            count += batch.count
        return {
            "mean squared error": total / count,
            "mean squared error by chance (always answering 1)": CHANCE,
            "sequences judged": count,
        }

    @staticmethod
    def predict(model: nn.Module, spec: Json, options: PredictOptions) -> Iterator[str]:
        """Return CSV lines of new examples: the marked steps (from 1) and numbers, their sum, and the network's answer."""
        check_examples(options)
        model.eval()
        return _lines(model, spec, options)


def _lines(model: nn.Module, spec: Json, options: PredictOptions) -> Iterator[str]:
    yield "example,step_1,number_1,step_2,number_2,sum,answer\n"
    for number, drawn in examples(Adding.draw, spec, options):
        batch, z = answers(model, drawn)
        marked = batch.x[:, 0, 1].nonzero().flatten().tolist()
        shown = [f"{step + 1},{float(batch.x[step, 0, 0]):.4f}" for step in marked]
        yield f"{number},{','.join(shown)},{float(batch.y[-1, 0, 0]):.4f},{float(z[-1, 0, 0]):.4f}\n"
