"""Which calls of a layer hand their state on, with its graph: they are one path through time.

A rollout or a decoder calls the layer once a step, others feed a long sequence in pieces. Each call then begins with the
state that an earlier one has left, and the gradient travels back across it.

How an earlier call is found. What the layer puts out is marked in autograd's graph, and from the initial state of a later
call the graph is searched backwards for marks. Then the numbers tell row from row: a sample's initial state that is bit
by bit the state of a sample of the earlier call goes on from that one, whatever was done to it on the way (a copy, another
order of the samples, fewer or more of them, a mask that leaves it alone); one that is zero was reset; any other is a
fresh start. If no row is found again, the state was computed from the earlier one, and this path cannot be followed: that
is said.
"""

import weakref
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from bptt.cells import State
from bptt.flow.watching.call import Source, WatchedCall

_MARK = "bptt.flow"
_SEARCHED = 64  # nodes of the graph: what lies between two steps of a loop is a handful
_RECENT = 8  # calls among which one is looked for whose state was handed on detached
_BITS = {2: torch.int16, 4: torch.int32, 8: torch.int64}


class Mark(NamedTuple):
    """A place in the graph: what a call has put out; place 0 the outputs, 1 and up the components of the final state."""

    output: int
    call: weakref.ref[WatchedCall]
    place: int


def mark(call: WatchedCall, place: int, tensor: Tensor) -> None:
    """Mark where in the graph a call's outputs or final state come from."""
    if tensor.grad_fn is not None:
        _marks_of(tensor.grad_fn).append(Mark(tensor.output_nr, weakref.ref(call), place))


def _marks_of(node: Any) -> list[Mark]:
    marks: list[Mark] = node.metadata.setdefault(_MARK, [])
    return marks


def _marks_before(state: State) -> Iterator[Mark]:
    """Search the graph of an initial state backwards; yield the marks that each branch meets first."""
    todo = [(s.grad_fn, s.output_nr) for s in state if s.grad_fn is not None]
    seen: set[object] = set()
    while todo and len(seen) < _SEARCHED:
        node, output = todo.pop(0)
        found = [m for m in _marks_of(node) if m.output == output]
        yield from found
        if not found and node not in seen:
            seen.add(node)
            todo += [(earlier, n) for earlier, n in node.next_functions if earlier is not None]


def attached_to(given: State, calls: Sequence[WatchedCall]) -> list[tuple[WatchedCall, bool]]:
    """Return the calls that an initial state's graph comes from, the latest first, each with whether h is of its outputs."""
    found: dict[int, set[int]] = {}  # by place in `calls`, the places of the marks that h itself comes from
    for part, state in enumerate(given):
        for m in _marks_before((state,)):
            n = _place(m.call(), calls)
            if n is not None:
                found.setdefault(n, set()).update([m.place] if part == 0 else [])
    return [(calls[n], 0 in found[n] and 1 not in found[n]) for n in sorted(found, reverse=True)]


def _place(call: WatchedCall | None, calls: Sequence[WatchedCall]) -> int | None:
    return next((n for n in reversed(range(len(calls))) if calls[n] is call), None)


def sources(later: WatchedCall, candidates: Sequence[tuple[WatchedCall, bool]]) -> tuple[Source, ...]:
    """Return the samples of earlier calls with whose state a call begins; () if there are none.

    candidates: the earlier calls, each with whether it is their outputs that were handed on.
    """
    if not later.hx or not candidates:
        return ()
    dtype, found = later.hx[0].dtype, []
    now = _bits(later.samples_of(later.hx), dtype)
    free = torch.ones(len(now), dtype=torch.bool, device="cpu")
    for call, through_outputs in candidates:
        left = _bits(call.samples_of(call.final), dtype)
        here, there = _found_again(now, left, free)
        free[here] = False
        found.append(Source(call, here, there, torch.zeros(len(here), dtype=torch.bool, device="cpu"), through_outputs))
    found[0] = _with_resets(found[0], now, free, len(candidates[0][0].samples_of(candidates[0][0].final)))
    return tuple(source for source in found if len(source.here))


def detached_from(later: WatchedCall, calls: Sequence[WatchedCall]) -> tuple[WatchedCall, ...]:
    """Return the latest of `calls` whose final state a call began with, wherever it is not 0; () if there is none."""
    for call in calls[: -_RECENT - 1 : -1]:
        found = sources(later, [(call, False)])
        begun = (later.samples_of(later.hx) != 0).any(1)
        if found and int(begun.sum()) <= int((~found[0].reset).sum()) > 0:
            return (call,)
    return ()


def _bits(samples: Tensor, dtype: torch.dtype) -> Tensor:
    """Return [B, ·] as whole numbers with the same bits, to be compared."""
    samples = samples.to(dtype).contiguous().cpu()
    return samples.view(_BITS[samples.element_size()])


def _found_again(now: Tensor, left: Tensor, free: Tensor) -> tuple[Tensor, Tensor]:
    """The free rows of `now` [B, ·] that are in `left` [B', ·], and where: at their own place, else anywhere."""
    same = torch.zeros_like(free)
    n = min(len(now), len(left))
    same[:n] = (now[:n] == left[:n]).all(1) & free[:n]
    here = there = same.nonzero().squeeze(1)
    others = (free & ~same & (now != 0).any(1)).nonzero().squeeze(1)
    if not len(others):
        return here, there
    # Sums modulo 2⁶⁴ with random factors tell rows apart; what seems equal is compared.
    factors = torch.randint(-(2**62), 2**62, (now.shape[1],), generator=torch.Generator().manual_seed(0))
    equal = (now[others].long() * factors).sum(1).unsqueeze(1) == (left.long() * factors).sum(1)
    place = equal.int().argmax(1)
    right = equal.any(1) & (now[others] == left[place]).all(1)
    return torch.cat([here, others[right]]), torch.cat([there, place[right]])


def _with_resets(source: Source, now: Tensor, free: Tensor, samples: int) -> Source:
    """Add the samples that begin with zeros: they go on at their own place among the earlier call's, reset."""
    lowest = torch.iinfo(now.dtype).min  # the bits of -0.0, as of a mask's product with a negative number
    zero = free & ((now == 0) | (now == lowest)).all(1)
    zero[samples:] = False
    rows = zero.nonzero().squeeze(1)
    reset = torch.cat([source.reset, torch.ones(len(rows), dtype=torch.bool, device="cpu")])
    return source._replace(here=torch.cat([source.here, rows]), there=torch.cat([source.there, rows]), reset=reset)


def paths(calls: Sequence[WatchedCall]) -> list[list[WatchedCall]]:
    """Return the calls in groups that hand their state on, each in the order of the calls."""
    group: dict[int, list[WatchedCall]] = {}
    for call in calls:
        joined: list[WatchedCall] = []
        for earlier in {id(group[id(s.call)]): group[id(s.call)] for s in call.sources}.values():
            joined += earlier
        joined.append(call)
        for member in joined:
            group[id(member)] = joined
    position = {id(call): n for n, call in enumerate(calls)}
    found = {id(path): path for path in group.values()}
    return [sorted(path, key=lambda call: position[id(call)]) for path in found.values()]
