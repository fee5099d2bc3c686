"""The order of checkpointing: right, as long as the formula says, and no order is shorter."""

import time
from functools import cache

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bptt.gradient.checkpointing.schedule import Advance, Restore, Reverse, Snapshot, extra_links, repetitions, schedule


def play(links, snapshots):
    """Follow the order with a counter for the state; the links run without a tape."""
    state, slots, reversed_links, ran = 0, {}, [], 0
    for action in schedule(links, snapshots):
        match action:
            case Snapshot(slot, at):
                assert state == at
                assert 0 <= slot < snapshots
                slots[slot] = at
            case Restore(slot, at):
                assert slots[slot] == at
                state = at
            case Advance(start, stop):
                assert state == start < stop
                state, ran = stop, ran + stop - start
            case Reverse(at):
                assert state == at
                state = None
                reversed_links.append(at)
    assert reversed_links == list(range(links - 1, -1, -1))
    return ran


@cache
def fewest(links, snapshots):
    """t(n, s) by dynamic programming over where the second snapshot lies."""
    if links == 1:
        return 0
    if snapshots == 1:
        return links * (links - 1) // 2
    return min(m + fewest(links - m, snapshots - 1) + fewest(m, snapshots) for m in range(1, links))


@pytest.mark.parametrize("snapshots", range(1, 8))
def test_no_order_is_shorter(snapshots):
    for links in range(1, 61):
        assert play(links, snapshots) == extra_links(links, snapshots) == fewest(links, snapshots)


@given(links=st.integers(1, 3000), snapshots=st.integers(1, 4000))
def test_what_is_run_is_what_the_formula_says(links, snapshots):
    if snapshots == 1:
        links = min(links, 300)
    assert play(links, snapshots) == extra_links(links, snapshots)


@pytest.mark.parametrize("snapshots", [10, 100, 1000, 10_000, 100_000])
def test_a_million_links(snapshots):
    assert play(1_000_000, snapshots) == extra_links(1_000_000, snapshots)


@given(links=st.integers(1, 10**7), snapshots=st.integers(1, 10**7))
def test_repetitions_are_the_fewest(links, snapshots):
    from math import comb

    r = repetitions(links, snapshots)
    assert comb(snapshots + r, r) >= links
    assert r == 0 or comb(snapshots + r - 1, r - 1) < links


def test_with_room_for_every_state_each_link_is_run_twice():
    for links in (1, 2, 5, 100):
        assert extra_links(links, links) == extra_links(links, 10 * links) == links - 1


@pytest.mark.alone
def test_the_formula_is_quick():
    durations = []
    for _ in range(5):
        start = time.process_time()
        for snapshots in (1, 10, 10**3, 10**7):
            extra_links(10**7, snapshots)
        durations.append(time.process_time() - start)
    assert min(durations) < 0.05


@pytest.mark.parametrize(("links", "snapshots"), [(0, 1), (1, 0), (-1, 3)])
def test_nothing_to_reverse_is_refused(links, snapshots):
    with pytest.raises(ValueError, match="both must be at least 1"):
        repetitions(links, snapshots)
