"""Calls of a layer that hand their state on, with its graph, are one path through time.

A rollout or a decoder calls the layer once a step, others feed a long sequence in pieces. Each call then begins with the
state that an earlier one has left, and the gradient travels back across it: horizon, profile and verdict are those of all
steps.

How an earlier call is found. What the layer puts out is marked in autograd's graph, and from the initial state of a later
call the graph is searched backwards for marks. Then the numbers tell row from row: a sample's initial state that is bit
by bit the state of a sample of the earlier call goes on from that one, whatever was done to it on the way (a copy, another
order of the samples, fewer or more of them, a mask that leaves it alone); one that is zero was reset; any other begins anew.
If no row is found again, the state was computed from the earlier one, and this path cannot be followed: it is said so.

What comes from outside. The gradient that autograd brings to a call's final state holds what the later calls send back. With
that taken away, there remains what the loss has sent directly. A sample to which none came, although a later call sends
some, was detached on the way.
"""

import weakref
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor

from bptt.cells import State
from bptt.flow.watching.trace import Joined, Trace, Way
from bptt.flow.watching.truncation import Link

if TYPE_CHECKING:
    from bptt.flow.watching.call import Call

_MARK = "bptt.flow"
_SEARCHED = 64  # nodes of the graph: what lies between two steps of a loop is a handful
_RECENT = 8  # calls among which one is looked for whose state was handed on detached
_BITS = {2: torch.int16, 4: torch.int32, 8: torch.int64}


class Mark(NamedTuple):
    """A place in the graph: what a call has put out; place 0 the outputs, 1 and up the components of the final state."""

    output: int
    call: "weakref.ref[Call]"
    place: int


class Source(NamedTuple):
    """From which samples of an earlier call a later one goes on.

    Attributes:
        call: the earlier call.
        here: samples of the later call that go on from it, in the user's order, int64 [n].
        there: the samples of the earlier call that they go on from, [n].
        cut: whether their state was set to zero in between, bool [n].
        through_outputs: whether its outputs were handed on, not its final state.
    """

    call: "Call"
    here: Tensor
    there: Tensor
    cut: Tensor
    through_outputs: bool = False


def mark(call: "Call", place: int, tensor: Tensor) -> None:
    """Mark where in the graph a call's outputs or final state come from."""
    if tensor.grad_fn is not None:
        _marks_of(tensor.grad_fn).append(Mark(tensor.output_nr, weakref.ref(call), place))


def _marks_of(node: Any) -> list[Mark]:
    marks: list[Mark] = node.metadata.setdefault(_MARK, [])
    return marks


def _marks_before(state: State) -> Iterator[Mark]:
    """The marks that the search from an initial state meets first."""
    todo = [(s.grad_fn, s.output_nr) for s in state if s.grad_fn is not None]
    seen: set[object] = set()
    while todo and len(seen) < _SEARCHED:
        node, output = todo.pop(0)
        found = [m for m in _marks_of(node) if m.output == output]
        yield from found
        if not found and node not in seen:
            seen.add(node)
            todo += [(earlier, n) for earlier, n in node.next_functions if earlier is not None]


def attached_to(given: State, calls: Sequence["Call"]) -> list[tuple["Call", bool]]:
    """Which of `calls` an initial state's graph comes from, the latest first, and whether h is then of its outputs."""
    found: dict[int, set[int]] = {}  # by place in `calls`, the places of the marks that h itself comes from
    for part, state in enumerate(given):
        for m in _marks_before((state,)):
            n = _place(m.call(), calls)
            if n is not None:
                found.setdefault(n, set()).update([m.place] if part == 0 else [])
    return [(calls[n], 0 in found[n] and 1 not in found[n]) for n in sorted(found, reverse=True)]


def _place(call: "Call | None", calls: Sequence["Call"]) -> int | None:
    return next((n for n in reversed(range(len(calls))) if calls[n] is call), None)


def sources(later: "Call", candidates: Sequence[tuple["Call", bool]]) -> tuple[Source, ...]:
    """How a call's samples go on from those of earlier calls (each with whether by its outputs); () if none does."""
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


def detached_from(later: "Call", calls: Sequence["Call"]) -> tuple["Call", ...]:
    """The latest of `calls` whose final state a call began with, all of its samples that are not 0; () if there is none."""
    for call in calls[: -_RECENT - 1 : -1]:
        found = sources(later, [(call, False)])
        begun = (later.samples_of(later.hx) != 0).any(1)
        if found and int(begun.sum()) <= int((~found[0].cut).sum()) > 0:
            return (call,)
    return ()


def _bits(samples: Tensor, dtype: torch.dtype) -> Tensor:
    """[B, ·] as whole numbers, in the format that they are compared in."""
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
    """With the samples that begin with zeros: they go on at their own place among the earlier call's, cut."""
    lowest = torch.iinfo(now.dtype).min  # the bits of -0.0, as of a mask's product with a negative number
    zero = free & ((now == 0) | (now == lowest)).all(1)
    zero[samples:] = False
    rows = zero.nonzero().squeeze(1)
    cut = torch.cat([source.cut, torch.ones(len(rows), dtype=torch.bool, device="cpu")])
    return source._replace(here=torch.cat([source.here, rows]), there=torch.cat([source.there, rows]), cut=cut)


def paths(calls: Sequence["Call"]) -> list[list["Call"]]:
    """The calls in groups that hand their state on, each in the order of the calls."""
    group: dict[int, list[Call]] = {}
    for call in calls:
        joined: list[Call] = []
        for earlier in {id(group[id(s.call)]): group[id(s.call)] for s in call.sources}.values():
            joined += earlier
        joined.append(call)
        for member in joined:
            group[id(member)] = joined
    position = {id(call): n for n, call in enumerate(calls)}
    found = {id(path): path for path in group.values()}
    return [sorted(path, key=lambda call: position[id(call)]) for path in found.values()]


def join(path: Sequence["Call"], stacks: Sequence[list[Link]]) -> list[Link]:
    """The stacked traces of a path as those of one call."""
    if len(path) == 1:
        return stacks[0]
    handed = _handed_on(path, stacks)
    way: Way | None = None
    links = []
    for depth in range(len(stacks[0])):
        traces = [stack[depth].traces[0] for stack in stacks]
        way = way or _joined_way([trace.way for trace in traces], handed)
        masks = [m for stack in stacks if (m := stack[depth].mask) is not None]
        links.append(Link((_joined_trace(traces, way, handed, path[0].rounding),), torch.cat(masks) if masks else None))
    return links


@dataclass(frozen=True)
class _HandOver:
    """A `Source` in the traces' terms: places of the two calls in the path, and rows in the order of the traces."""

    earlier: int
    later: int
    here: Tensor
    there: Tensor
    cut: Tensor
    through_outputs: bool


def _handed_on(path: Sequence["Call"], stacks: Sequence[list[Link]]) -> list[_HandOver]:
    place = {id(call): n for n, call in enumerate(path)}
    found = []
    for n, call in enumerate(path):
        for source in call.sources:
            e = place[id(source.call)]
            here, there = call.rows_of_samples()[source.here], source.call.rows_of_samples()[source.there]
            over = _HandOver(e, n, here, there, source.cut, source.through_outputs)
            keep = ~_severed([s.traces[0] for s in stacks[e]], [s.traces[0] for s in stacks[n]], over)
            found.append(_HandOver(e, n, here[keep], there[keep], source.cut[keep], source.through_outputs))
    return found


def _severed(earlier: list[Trace], later: list[Trace], over: _HandOver) -> Tensor:
    """Which samples' gradient the later call sends back, but the earlier one does not get: they were detached."""
    sent = torch.zeros(len(over.here), dtype=torch.bool, device="cpu")
    arrived = torch.zeros_like(sent)
    for before, after in zip(earlier, later, strict=True):
        sent |= _any([d[over.here.to(d.device)] for d in after.d_start])
        arrived |= _any([d[over.there.to(d.device)] for d in _brought(before, over.through_outputs)])
    return sent & ~arrived & ~over.cut


def _brought(trace: Trace, through_outputs: bool) -> State:
    """The gradients that autograd brought to where the state is handed on, [B, ·] for each component."""
    if not through_outputs:
        return trace.d_final
    return (trace.external[trace.way.ends.to(trace.x.device)], *trace.d_final[1:])


def _any(tensors: Sequence[Tensor]) -> Tensor:
    return torch.stack([(t != 0).any(1) for t in tensors]).any(0).cpu()


def _joined_way(ways: Sequence[Way], handed: Sequence[_HandOver]) -> Way:
    n = sum(way.starts[-1] for way in ways)
    sources, ends, row, initial = [], [], [0], [n]
    for way in ways:
        own = way.starts[-1]
        sources.append(torch.where(way.source < own, way.source + row[-1], way.source - own + initial[-1]))
        ends.append(way.ends + row[-1])
        row.append(row[-1] + own)
        initial.append(initial[-1] + way.batch)
    for over in handed:
        sources[over.later][over.here] = ends[over.earlier][over.there]
    cut = _joined_cut(ways, handed)
    calls = [0]
    for way in ways[:-1]:
        calls.append(calls[-1] + way.steps)
    sizes = tuple(size for way in ways for size in way.sizes)
    joined = Joined.of(torch.cat(sources), torch.cat(ends), initial[-1] - n, ways[0].batch)
    return Way(sizes, False, cut, tuple(calls), joined)


def _joined_cut(ways: Sequence[Way], handed: Sequence[_HandOver]) -> Tensor | None:
    if all(way.cut is None for way in ways) and not any(bool(over.cut.any()) for over in handed):
        return None
    device = next((way.cut.device for way in ways if way.cut is not None), torch.device("cpu"))
    cuts = [
        torch.zeros(way.starts[-1], dtype=torch.bool, device=device) if way.cut is None else way.cut.clone()
        for way in ways
    ]
    for over in handed:
        cuts[over.later][over.here[over.cut].to(device)] = True
    return torch.cat(cuts)


def _joined_trace(traces: Sequence[Trace], way: Way, handed: Sequence[_HandOver], rounding: float) -> Trace:
    externals, finals = _from_outside(traces, handed, rounding)
    components = range(len(traces[0].states))

    def joined(parts: Sequence[State]) -> State:
        return tuple(torch.cat([part[s] for part in parts]) for s in components)

    first = traces[0]
    states = joined([t.states for t in traces])
    found = Trace(
        first.cell, first.weights, way, torch.cat([t.x for t in traces]), states[0], joined([t.start for t in traces])
    )
    found.states, found.delta = states, joined([t.delta for t in traces])
    found.external, found.d_final = torch.cat(externals), joined(finals)
    found.d_start = joined([t.d_start for t in traces])
    found.norms = {name: torch.cat([t.norms[name] for t in traces]) for name in first.norms}
    if any(over.through_outputs for over in handed):
        found.norms["external"] = found.norm_by_step(found.external)
    found.samples = tuple(number for t in traces for number in t.samples)
    return found


def _from_outside(
    traces: Sequence[Trace], handed: Sequence[_HandOver], rounding: float
) -> tuple[list[Tensor], list[State]]:
    """The gradients of all outputs and final states without what later calls send back to them."""
    externals, finals = [t.external for t in traces], [t.d_final for t in traces]
    groups: dict[tuple[int, bool], list[_HandOver]] = {}
    for over in handed:
        groups.setdefault((over.earlier, over.through_outputs), []).append(over)
    for (e, through_outputs), overs in groups.items():
        trace = traces[e]
        brought = (*_brought(trace, through_outputs)[:1], *finals[e][1:])
        sent = _sent_back(trace, traces, overs)
        rest = tuple(_remainder(got, d, rounding) for got, d in zip(brought, sent, strict=True))
        if through_outputs:
            externals[e] = externals[e].index_copy(0, trace.way.ends.to(trace.x.device), rest[0])
            finals[e] = (finals[e][0], *rest[1:])
        else:
            finals[e] = rest
    return externals, finals


def _sent_back(trace: Trace, traces: Sequence[Trace], overs: Sequence[_HandOver]) -> State:
    """What the calls that go on from a trace's samples send back to its final state, [B, ·] for each component."""
    total = tuple(torch.zeros_like(d) for d in trace.d_final)
    for over in overs:
        here, there = (rows[~over.cut].to(trace.x.device) for rows in (over.here, over.there))
        for sum_, d in zip(total, traces[over.later].d_start, strict=True):
            sum_.index_add_(0, there, d[here])
    return total


def _remainder(got: Tensor, sent: Tensor, rounding: float) -> Tensor:
    """got − sent for each row [B, ·]; exactly 0 where that is rounding."""
    rest = got - sent
    most = torch.maximum(got.norm(dim=1), sent.norm(dim=1))
    return rest.masked_fill((rest.norm(dim=1) <= rounding * most).unsqueeze(1), 0)
