"""Binomial checkpointing: the order in which a chain is run forward and back when only s of its states can be kept.

A chain of n links, from state 0 to state n, is to be reversed, and no more than s states are kept at a time, the initial one
among them. With r repetitions of no link more than r times (docs/equations.md, eqs. (24) and (25)),

    β(s, r) = C(s+r, s)             links can be reversed at most
    t(n, s) = r n − C(s+r, s+1)     links are run forward without a tape, with the smallest r that has β(s, r) ≥ n

and no order needs fewer. (Each link is run once more with a tape, right before it goes back; that is not counted here.)
With s ≥ n it is t = n − 1: all but the last link are run twice.

Source: A. Griewank, A. Walther, "Algorithm 799: revolve", ACM TOMS 26 (2000).
"""

from collections.abc import Iterator
from math import comb
from typing import NamedTuple


class Snapshot(NamedTuple):
    """Keep the current state, which is the one before link `at`, in a slot, and overwrite what is there."""

    slot: int
    at: int


class Restore(NamedTuple):
    """Make the state in a slot, the one before link `at`, the current one. The slot stays as it is."""

    slot: int
    at: int


class Advance(NamedTuple):
    """Run the links [start, stop) forward without a tape."""

    start: int
    stop: int


class Reverse(NamedTuple):
    """Run the link `at` forward with a tape, and go back through it. There is no current state afterwards."""

    at: int


Action = Snapshot | Restore | Advance | Reverse


def repetitions(links: int, snapshots: int) -> int:
    """Return r, how often a link is run without a tape at most: the smallest r with C(s+r, s) ≥ n.

    Raises ValueError unless there are at least one link and one snapshot.
    """
    if links < 1 or snapshots < 1:
        raise ValueError(f"a chain of {links} links and {snapshots} snapshots: both must be at least 1")
    high = 0
    while comb(snapshots + high, snapshots) < links:
        high = 2 * high + 1
    low = high // 2  # the first r that could be enough
    while low < high:
        middle = (low + high) // 2
        low, high = (low, middle) if comb(snapshots + middle, snapshots) >= links else (middle + 1, high)
    return high


def extra_links(links: int, snapshots: int) -> int:
    """Return t(n, s) = r n − C(s+r, s+1), how many links are run without a tape."""
    r = repetitions(links, snapshots)
    return r * links - comb(snapshots + r, snapshots + 1)


def schedule(links: int, snapshots: int) -> Iterator[Action]:
    """Yield the actions in the optimal order: each link is reversed once, from the last to the first.

    >>> for action in schedule(3, 2):
    ...     print(action)
    Snapshot(slot=0, at=0)
    Advance(start=0, stop=1)
    Snapshot(slot=1, at=1)
    Advance(start=1, stop=2)
    Reverse(at=2)
    Restore(slot=1, at=1)
    Reverse(at=1)
    Restore(slot=0, at=0)
    Reverse(at=0)
    """
    kept = [0]  # the link before which the state of each slot stands
    yield Snapshot(0, 0)
    at = 0
    for last in range(links - 1, -1, -1):
        while at < last:
            middle = at + _first_leg(last + 1 - at, snapshots - len(kept) + 1)
            yield Advance(at, middle)
            at = middle
            if at < last:
                yield Snapshot(len(kept), at)
                kept.append(at)
        yield Reverse(last)
        while kept and kept[-1] >= last:
            kept.pop()
        if kept:
            at = kept[-1]
            yield Restore(len(kept) - 1, at)


def _first_leg(links: int, snapshots: int) -> int:
    """How far to run before the next state is kept; `snapshots` counts the one at the start, and those that are free.

    t(n, s) = min over m of m + t(n−m, s−1) + t(m, s) is reached by every m with
    β(s, r−2) ≤ m ≤ β(s, r−1) and β(s−1, r−1) ≤ n − m ≤ β(s−1, r). This is the longest.
    """
    if snapshots == 1:
        return links - 1
    r = repetitions(links, snapshots)
    return min(comb(snapshots + r - 1, snapshots), links - comb(snapshots + r - 2, snapshots - 1))
