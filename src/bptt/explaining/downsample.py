"""Large maps and curves made small for a page: the largest value in each block of steps, in a few digits, safe for JSON.

T steps become N blocks, block i the steps from ⌊iT/N⌋ up to ⌊(i+1)T/N⌋; with N = T nothing is thinned. The same rule holds
for steps t and k, for lags and for losses.
"""

import base64
import math
from itertools import pairwise

import torch
from torch import Tensor

Number = float | str

ZERO, INF, NAN = -32768, 32766, 32767  # among the hundredths of a decade


def borders(steps: int, blocks: int) -> list[int]:
    """Return the step at which each block begins, and `steps` at the end."""
    return [i * steps // blocks for i in range(blocks + 1)]


def largest(values: Tensor, blocks: int) -> Tensor:
    """Return the largest value in each block of every axis; NaN where one is NaN."""
    for axis in range(values.dim()):
        pieces = [values.narrow(axis, a, b - a).amax(axis) for a, b in pairwise(borders(values.shape[axis], blocks))]
        values = torch.stack(pieces, dim=axis)
    return values


def curve(values: Tensor, blocks: int) -> list[Number]:
    """Return a curve, thinned to `blocks` values, as JSON numbers."""
    return [number(v) for v in largest(values.double(), blocks).tolist()]


def number(value: float, digits: int = 4) -> Number:
    """Return the value rounded to `digits` digits; "NaN", "Inf" and "-Inf" as words, since JSON has no such numbers."""
    if math.isnan(value):
        return "NaN"
    if math.isinf(value):
        return "Inf" if value > 0 else "-Inf"
    return float(f"{value:.{digits}g}")


def cells(norms: Tensor, blocks: int, reverse: bool) -> str:
    """Return a map [T, T] as base64 of int16, little-endian: for each row t the cells k ≤ t (reverse: k ≥ t), 100 · log10.

    Each cell is within 1.2 %; 0 is -32768, infinity 32766, NaN 32767.
    """
    rows, columns = torch.tril_indices(blocks, blocks) if not reverse else torch.triu_indices(blocks, blocks)
    values = largest(norms.double(), blocks)[rows, columns]
    hundredths = (100 * values.log10()).round().clamp(ZERO + 1, INF - 1)
    hundredths = torch.where(values == 0, ZERO, torch.where(values.isinf(), INF, hundredths))
    whole = torch.where(values.isnan(), NAN, hundredths).to(torch.int16)
    return base64.b64encode(whole.cpu().numpy().astype("<i2").tobytes()).decode("ascii")


__all__ = ["Number", "borders", "cells", "curve", "largest", "number"]
