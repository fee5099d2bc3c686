"""The gradient's way back through one layer in one direction, from the states that the forward pass left behind.

Given the state before each row (a shift of the outputs), the net inputs of all steps are two products without a loop, and
so are the diagonals D of the step's derivative. What remains is linear in δ, eq. (20) (docs/equations.md):

    δ_k       = external_k + ∂L/∂h(k) through step k+1          [B, H or P], and one [B, H] for each further component
    d_zh_k    = Σ_s δ_k[s] ∘ D.zh_k[s]                          [B, G, H]
    δ_{k-1}[r] ← Σ_s δ_k[s] ∘ D.direct_k[s][r] + [r is h] W_hhᵀ d_zh_k

Where the native core serves, its backward loop does this: then it is the loop that also computes bptt's own training
gradient, and no independent witness of it. The loops here are its specification, and serve everything else.

Memory: an LSTM's gates exist for all steps while its δ is computed, the diagonals D for a few steps at a time.
Source: P. J. Werbos 1990; partial derivatives: `bptt.cells`.
"""

import torch
from torch import Tensor

from bptt.cells import LSTM, Partials, PointwiseCell, State, Weights
from bptt.flow.tracing import fast_partials
from bptt.flow.tracing.step import through
from bptt.flow.tracing.trace import CHUNK, Trace
from bptt.kernels import cpu
from bptt.kernels.walk import Walk


def send_back(trace: Trace, x_wanted: bool) -> Tensor | None:
    """Fill in the trace's states, δ and norms by the recursion of this module's header.

    Returns the gradient of x [N, D] if it is wanted.
    """
    natively = cpu.serves(trace.cell, trace.x, trace.weights)
    d_x = _by_the_core(trace, x_wanted) if natively else _by_the_loop(trace, x_wanted)
    measured = zip((*trace.cell.states, "external"), (*trace.delta, trace.external), strict=True)
    trace.norms = {name: trace.norm_by_step(rows) for name, rows in measured}
    return d_x


def _by_the_core(trace: Trace, x_wanted: bool) -> Tensor | None:
    cell, walk, x, start, weights = trace.cell, trace.walk, trace.x, trace.start, trace.weights
    tape = trace.tape or cpu.replay(cell, walk, x, start, weights, trace.outputs)
    trace.tape = None  # wide; what is asked for later is computed again
    found = cpu.sensitivity(cell, walk, x, start, weights, tape, trace.external, trace.d_final, x_wanted)
    trace.states, trace.delta, trace.d_start, d_x = found
    return d_x


def _by_the_loop(trace: Trace, x_wanted: bool) -> Tensor | None:
    walk, w_ih = trace.walk, trace.weights["weight_ih"]
    gates = _find_states(trace)
    trace.delta = tuple(torch.empty_like(s) for s in trace.states)
    carry = tuple(d.clone() for d in trace.d_final)
    d_x = torch.empty_like(trace.x) if x_wanted else None
    for steps in walk.chunks(CHUNK // trace.width):
        rows = walk.span(steps)
        if gates is not None:
            step = fast_partials.lstm(gates[rows], trace.states[1][rows], trace.before[1][rows])
            d_zx = _lstm_steps_back(trace, steps, rows, step, carry)
        else:
            partials = trace.partials(rows)
            d_zh = _steps_back(trace, steps, rows, partials, carry)
            d_zx = d_zh if d_x is None else _through_zx(trace, rows, partials, d_zh)
        if d_x is not None:
            torch.mm(d_zx.flatten(1), w_ih, out=d_x[rows])
    trace.d_start = carry
    return d_x


def _steps_back(trace: Trace, steps: range, rows: slice, partials: Partials, carry: State) -> Tensor:
    """d_zh of a chunk [n, G, H]; `carry` goes from the gradient after it to the gradient before it, in place."""
    w_hh, w_hr, walk = trace.weights["weight_hh"], trace.weights.get("weight_hr"), trace.walk
    d_zh = torch.empty_like(partials.zh[0])
    flat = d_zh.flatten(1)
    for t in steps:
        here = slice(walk.starts[t], walk.starts[t + 1])
        local = slice(here.start - rows.start, here.stop - rows.start)
        flow = tuple(c[: walk.sizes[t]] for c in carry)
        delta = tuple(d[here] for d in trace.delta)
        torch.add(flow[0], trace.external[here], out=delta[0])
        for kept, d in zip(delta[1:], flow[1:], strict=True):
            kept.copy_(d)
        if w_hr is not None:
            delta = (delta[0] @ w_hr, *delta[1:])
        step = d_zh[local]
        torch.mul(delta[0].unsqueeze(1), partials.zh[0][local], out=step)
        for s in range(1, len(delta)):
            step.addcmul_(delta[s].unsqueeze(1), partials.zh[s][local])
        for r in range(len(delta)):
            _direct_part(flow[r], r, delta, partials, local)
        if _reads(partials, 0):
            flow[0].addmm_(flat[local], w_hh)
        else:
            torch.mm(flat[local], w_hh, out=flow[0])
        _zero_resets(walk, here, flow)
    return d_zh


def _lstm_steps_back(trace: Trace, steps: range, rows: slice, step: fast_partials.LstmStep, carry: State) -> Tensor:
    """Like `_steps_back`, with one gradient of c: δc + q ∘ δh; two elementwise products of width H less a step."""
    w_hh, w_hr, walk = trace.weights["weight_hh"], trace.weights.get("weight_hr"), trace.walk
    d_z = torch.empty_like(step.by)
    flat = d_z.flatten(1)
    for t in steps:
        here = slice(walk.starts[t], walk.starts[t + 1])
        local = slice(here.start - rows.start, here.stop - rows.start)
        h, c = (d[: walk.sizes[t]] for d in carry)
        d_h, d_c = trace.delta[0][here], trace.delta[1][here]
        torch.add(h, trace.external[here], out=d_h)
        d_c.copy_(c)
        raw = d_h if w_hr is None else d_h @ w_hr
        c.addcmul_(raw, step.q[local])
        by, out = step.by[local], d_z[local]
        torch.mul(c.unsqueeze(1), by[:, :3], out=out[:, :3])
        torch.mul(raw, by[:, 3], out=out[:, 3])
        c.mul_(step.f[local])
        torch.mm(flat[local], w_hh, out=h)
        _zero_resets(walk, here, (h, c))
    return d_z


def _zero_resets(walk: Walk, rows: slice, gradients: State) -> None:
    """Zero, in place, the gradients of the states that a reset has replaced."""
    if walk.reset is not None:
        for d in gradients:
            d.masked_fill_(walk.reset[rows].unsqueeze(-1), 0)


def _through_zx(trace: Trace, rows: slice, partials: Partials, d_zh: Tensor) -> Tensor:
    """The gradient of zx [n, G, H]: that of zh, where one derivative serves both."""
    if all(a is b for a, b in zip(partials.zx, partials.zh, strict=True)):
        return d_zh
    return through(partials.zx, trace.raw_delta(tuple(d[rows] for d in trace.delta)))


def _reads(partials: Partials, r: int) -> bool:
    """Whether the step reads component r of the state otherwise than through W_hh."""
    return any(row[r] is not None for row in partials.direct)


def _direct_part(out: Tensor, r: int, delta: State, partials: Partials, local: slice) -> None:
    """Σ_s δ[s] ∘ D.direct[s][r] into `out`, which δ does not share."""
    fresh = True
    for s, d in enumerate(delta):
        diagonal = partials.direct[s][r]
        if diagonal is None:
            continue
        if fresh:
            torch.mul(d, diagonal[local], out=out)
        else:
            out.addcmul_(d, diagonal[local])
        fresh = False
    if fresh and r:
        out.zero_()


def _find_states(trace: Trace) -> Tensor | None:
    """Fill in the components of the state that the layer does not put out; the gates [N, 4, H] of an LSTM."""
    if len(trace.start) == 1:
        trace.states = (trace.outputs,)
    elif type(trace.cell) is LSTM:
        h = trace.walk.before(trace.outputs, trace.start[0])
        c, gates = _cell_states(trace.weights, trace.walk, trace.x, h, trace.start[1])
        trace.states = (trace.outputs, c)
        return gates
    else:
        trace.states = _run_forward(trace.cell, trace.weights, trace.walk, trace.x, trace.start)
    return None


def _cell_states(weights: Weights, walk: Walk, x: Tensor, h: Tensor, start: Tensor) -> tuple[Tensor, Tensor]:
    """The LSTM's c [N, H] from the state h before each row: c_t = f ∘ c_{t-1} + i ∘ g is elementwise; and its gates."""
    bias = weights["bias_ih"] + weights["bias_hh"] if "bias_ih" in weights else None
    net = _linear(x, weights["weight_ih"], bias).addmm_(h, weights["weight_hh"].T)
    H = start.shape[-1]
    gates = net.unflatten(-1, (4, H))
    c, state = x.new_empty(len(x), H), start
    for steps in list(walk.chunks(CHUNK // (4 * H)))[::-1]:
        rows = walk.span(steps)
        i, f, g, _ = fast_partials.lstm_gates_(gates[rows]).unbind(1)
        new = i * g
        for t in reversed(steps):
            here, n = slice(walk.starts[t], walk.starts[t + 1]), walk.sizes[t]
            local = slice(here.start - rows.start, here.stop - rows.start)
            (before,) = walk.reset_state((state[:n],), here)
            after = torch.addcmul(new[local], f[local], before, out=c[here])
            state = after if n == len(state) else torch.cat([after, state[n:]])
    return c, gates


def _run_forward(cell: PointwiseCell, weights: Weights, walk: Walk, x: Tensor, start: State) -> State:
    """The plain loop, for cells whose further state components nobody has seen."""
    states = tuple(s.new_empty(len(x), s.shape[-1]) for s in start)
    state = tuple(s.clone() for s in start)
    zx = cell.net_input(x, weights["weight_ih"], weights.get("bias_ih"))
    for _, here, n in walk.steps():
        after = cell.advance(zx[here], walk.reset_state(tuple(s[:n] for s in state), here), weights)
        for kept, s, running in zip(states, after, state, strict=True):
            kept[here] = s
            running[:n] = s
    return states


def _linear(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    return x @ weight.T if bias is None else torch.addmm(bias, x, weight.T)
