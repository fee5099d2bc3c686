"""How often a label is right, beside always naming the most frequent one."""

from collections import Counter
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from bptt.typed import Json

RECALLS = 12
"""The recall of each class is reported if there are at most this many."""

Probabilities = NDArray[np.float64]
Places = NDArray[np.int64]


def accuracies(p: Probabilities, truth: Places, classes: Sequence[str], training: Sequence[str], metric: str) -> Json:
    """Return accuracy and cross-entropy, each beside what the frequencies of the training labels alone achieve.

    Args:
        p: the probability of each class, [sequences, classes].
        truth: the number of the right class of each sequence, [sequences].
        classes: the labels in the order of their numbers.
        training: the labels of the training sequences.
        metric: what the cross-entropy in nats is called.
    """
    counts = Counter(training)
    usual = counts.most_common(1)[0][0]
    frequencies = np.array([counts[c] for c in classes]) / len(training)
    return {
        "test accuracy (%)": _percent(p.argmax(axis=1) == truth),
        f"accuracy of always saying {usual!r}, the most frequent in training (%)": _percent(
            truth == list(classes).index(usual)
        ),
        f"{metric}, test": float(-np.log(p[np.arange(len(p)), truth].clip(1e-300)).mean()),
        f"{metric}, frequencies in training": float(-np.log(frequencies[truth]).mean()),
    }


def recalls(p: Probabilities, truth: Places, classes: Sequence[str]) -> Json:
    """Return the share of each class's sequences that are labelled right; nothing if there are more than RECALLS classes."""
    if len(classes) > RECALLS:
        return {}
    predicted = p.argmax(axis=1)
    present = [(c, name) for c, name in enumerate(classes) if (truth == c).any()]
    return {f"recall of {name!r} (%)": _percent(predicted[truth == c] == c) for c, name in present}


def _percent(hits: NDArray[np.bool_]) -> float:
    return 100 * float(hits.mean())
