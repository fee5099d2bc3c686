"""Yardsticks for a model of characters: how far a text can be compressed without it."""

import lzma

import numpy as np

from bptt.tasks.reading.characters import Characters


def unigram_entropy(text: Characters) -> float:
    """Return −Σ p log2 p over the text's character frequencies p: bits per character of the best model without memory."""
    p = text.counts[text.counts > 0] / text.total
    return float(0.0 - (p * np.log2(p)).sum())  # 0, not -0, for a text of one character


def xz_bits(text: Characters) -> int:
    """Return the size of the text in bits after `xz -9e`, the highest setting."""
    compressor = lzma.LZMACompressor(preset=9 | lzma.PRESET_EXTREME)
    size = sum(len(compressor.compress(data)) for data in text.read())
    return 8 * (size + len(compressor.flush()))
