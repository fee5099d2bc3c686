"""From the traces of several calls that hand their state on (handover.py) to one trace over all of their steps.

What comes from outside. The gradient that autograd brings to a call's final state holds what the later calls send back. With
that taken away, there remains what the loss has sent directly. A sample to which none came, although a later call sends
some, was detached on the way.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from bptt.cells import State
from bptt.flow.tracing.trace import Lineages, StackedTraces, Trace
from bptt.flow.watching.call import WatchedCall
from bptt.kernels.walk import Links, Walk


def join(path: Sequence[WatchedCall], stacks: Sequence[list[StackedTraces]]) -> list[StackedTraces]:
    """Return the stacked traces of all calls of a path as those of one call."""
    if len(path) == 1:
        return stacks[0]
    handed = _handed_on(path, stacks)
    joined: _JoinedWalk | None = None  # the same in every layer
    layers = []
    for depth in range(len(stacks[0])):
        traces = [stack[depth].traces[0] for stack in stacks]
        joined = joined or _joined_walk([trace.walk for trace in traces], handed)
        masks = [m for stack in stacks if (m := stack[depth].mask) is not None]
        trace = _joined_trace(traces, joined, handed, path[0].rounding)
        layers.append(StackedTraces((trace,), torch.cat(masks) if masks else None))
    return layers


@dataclass(frozen=True)
class _HandOver:
    """A `Source` in the traces' terms: places of the two calls in the path, and rows in the order of the traces."""

    earlier: int
    later: int
    here: Tensor
    there: Tensor
    reset: Tensor
    through_outputs: bool


@dataclass(frozen=True)
class _JoinedWalk:
    """The walk over the rows of all calls, the steps at which a call begins, and the samples' ways through them."""

    walk: Walk
    calls: tuple[int, ...]
    lineages: Lineages


def _handed_on(path: Sequence[WatchedCall], stacks: Sequence[list[StackedTraces]]) -> list[_HandOver]:
    place = {id(call): n for n, call in enumerate(path)}
    found = []
    for n, call in enumerate(path):
        for source in call.sources:
            e = place[id(source.call)]
            here, there = call.rows_of_samples()[source.here], source.call.rows_of_samples()[source.there]
            over = _HandOver(e, n, here, there, source.reset, source.through_outputs)
            keep = ~_detached([s.traces[0] for s in stacks[e]], [s.traces[0] for s in stacks[n]], over)
            found.append(_HandOver(e, n, here[keep], there[keep], source.reset[keep], source.through_outputs))
    return found


def _detached(earlier: list[Trace], later: list[Trace], over: _HandOver) -> Tensor:
    """Which samples' gradient the later call sends back, but the earlier one does not get: they were detached."""
    sent = torch.zeros(len(over.here), dtype=torch.bool, device="cpu")
    arrived = torch.zeros_like(sent)
    for before, after in zip(earlier, later, strict=True):
        sent |= _any_nonzero([d[over.here.to(d.device)] for d in after.d_start])
        arrived |= _any_nonzero([d[over.there.to(d.device)] for d in _brought(before, over.through_outputs)])
    return sent & ~arrived & ~over.reset


def _brought(trace: Trace, through_outputs: bool) -> State:
    """The gradients that autograd brought to where the state is handed on, [B, ·] for each component."""
    if not through_outputs:
        return trace.d_final
    return (trace.external[trace.walk.ends.to(trace.x.device)], *trace.d_final[1:])


def _any_nonzero(tensors: Sequence[Tensor]) -> Tensor:
    """Which rows of tensors [B, ·] hold anything but 0, bool [B] on the CPU."""
    return torch.stack([(t != 0).any(1) for t in tensors]).any(0).cpu()


def _joined_walk(walks: Sequence[Walk], handed: Sequence[_HandOver]) -> _JoinedWalk:
    n = sum(walk.starts[-1] for walk in walks)
    sources, ends, row, initial = [], [], [0], [n]
    for walk in walks:
        own = walk.starts[-1]
        sources.append(torch.where(walk.source < own, walk.source + row[-1], walk.source - own + initial[-1]))
        ends.append(walk.ends + row[-1])
        row.append(row[-1] + own)
        initial.append(initial[-1] + walk.batch)
    for over in handed:
        sources[over.later][over.here] = ends[over.earlier][over.there]
    calls = [0]
    for walk in walks[:-1]:
        calls.append(calls[-1] + walk.length)
    sizes = [size for walk in walks for size in walk.sizes]
    links = Links(torch.cat(sources), torch.cat(ends))
    lineages = _lineages(links.source, initial[-1] - n, walks[0].batch)
    return _JoinedWalk(Walk.of_sizes(sizes, _joined_reset(walks, handed), links), tuple(calls), lineages)


def _lineages(source: Tensor, initial: int, first: int) -> Lineages:
    """Follow each sample back to where it begins. Of `initial` initial states, `first` are the first call's."""
    n = len(source)
    is_last = torch.ones(n + initial, dtype=torch.bool, device="cpu")
    is_last[source] = False
    rows = is_last[:n].nonzero().squeeze(1)
    earlier = torch.cat([source, torch.arange(n, n + initial, device="cpu")])
    back = []
    while bool((rows < n).any()):
        back.append(rows)
        rows = earlier[rows]
    order = rows.argsort(stable=True)
    table = torch.stack(back)[:, order]  # the last step comes first
    place = (table < n).sum(0) - 1 - torch.arange(len(table), device="cpu").unsqueeze(1)
    return Lineages(torch.where(place >= 0, table.gather(0, place.clamp_min(0)), n), rows[order] < n + first)


def _joined_reset(walks: Sequence[Walk], handed: Sequence[_HandOver]) -> Tensor | None:
    if all(walk.reset is None for walk in walks) and not any(bool(over.reset.any()) for over in handed):
        return None
    device = next((walk.reset.device for walk in walks if walk.reset is not None), torch.device("cpu"))
    resets = [
        torch.zeros(walk.starts[-1], dtype=torch.bool, device=device) if walk.reset is None else walk.reset.clone()
        for walk in walks
    ]
    for over in handed:
        resets[over.later][over.here[over.reset].to(device)] = True
    return torch.cat(resets)


def _joined_trace(traces: Sequence[Trace], joined: _JoinedWalk, handed: Sequence[_HandOver], rounding: float) -> Trace:
    externals, finals = _from_outside(traces, handed, rounding)
    components = range(len(traces[0].states))

    def all_of(parts: Sequence[State]) -> State:
        return tuple(torch.cat([part[s] for part in parts]) for s in components)

    first, states = traces[0], all_of([t.states for t in traces])
    found = Trace(
        first.cell, first.weights, joined.walk, torch.cat([t.x for t in traces]), states[0],
        all_of([t.start for t in traces]), states=states, external=torch.cat(externals), d_final=all_of(finals),
        delta=all_of([t.delta for t in traces]), d_start=all_of([t.d_start for t in traces]),
        norms={name: torch.cat([t.norms[name] for t in traces]) for name in first.norms},
        samples=tuple(number for t in traces for number in t.samples), calls=joined.calls, lineages=joined.lineages,
    )  # fmt: skip
    if any(over.through_outputs for over in handed):
        found.norms["external"] = found.norm_by_step(found.external)
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
            externals[e] = externals[e].index_copy(0, trace.walk.ends.to(trace.x.device), rest[0])
            finals[e] = (finals[e][0], *rest[1:])
        else:
            finals[e] = rest
    return externals, finals


def _sent_back(trace: Trace, traces: Sequence[Trace], overs: Sequence[_HandOver]) -> State:
    """What the calls that go on from a trace's samples send back to its final state, [B, ·] for each component."""
    total = tuple(torch.zeros_like(d) for d in trace.d_final)
    for over in overs:
        here, there = (rows[~over.reset].to(trace.x.device) for rows in (over.here, over.there))
        for sum_, d in zip(total, traces[over.later].d_start, strict=True):
            sum_.index_add_(0, there, d[here])
    return total


def _remainder(got: Tensor, sent: Tensor, rounding: float) -> Tensor:
    """got − sent for each row [B, ·]; exactly 0 where that is rounding."""
    rest = got - sent
    most = torch.maximum(got.norm(dim=1), sent.norm(dim=1))
    return rest.masked_fill((rest.norm(dim=1) <= rounding * most).unsqueeze(1), 0)
