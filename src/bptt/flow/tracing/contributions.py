"""What each step contributes to the gradient of each parameter, from a trace's δ:

step k's contribution to ∂L/∂W_hh = d_zh_kᵀ h_{k-1},  to ∂L/∂W_ih = d_zx_kᵀ x_k,  to the biases Σ_b d_zh_k, Σ_b d_zx_k
"""

import torch
from torch import Tensor

from bptt.cells import State
from bptt.flow.tracing.step import by_step, through
from bptt.flow.tracing.trace import CHUNK, Trace


def contribution_norms(trace: Trace, kind: str) -> Tensor:
    """Return the norm of every step's contribution, for each gate [T, G]: to "weight_hh", "weight_ih" or "bias"."""
    norms = torch.empty(trace.walk.length, trace.cell.gates, dtype=torch.float64, device="cpu")
    v = {"weight_hh": trace.before[0], "weight_ih": trace.x}.get(kind)
    for steps in trace.walk.chunks(CHUNK // trace.width):
        rows = trace.walk.span(steps)
        low, high = min(steps[0], steps[-1]), max(steps[0], steps[-1]) + 1
        partials, sizes = trace.partials(rows), trace.walk.sizes[low:high]
        raw = trace.raw_delta(tuple(d[rows] for d in trace.delta))
        d_z = by_step(through(partials.zh if kind == "weight_hh" else partials.zx, raw), sizes)
        scale = d_z.abs().amax((1, 2, 3)).clamp(1e-300 if d_z.dtype == torch.float64 else 1e-37)
        d_z = d_z / scale[:, None, None, None]  # squares must not underflow
        found = d_z.sum(1).norm(dim=-1) if v is None else _outer_norm(d_z, by_step(v[rows], sizes))
        norms[low:high] = (found.double() * scale.double()[:, None]).cpu()
    return norms


def contribution(trace: Trace, name: str, k: int | None = None) -> Tensor:
    """Return step k's contribution to the gradient of parameter `name`; of all steps together if k is None.

    Raises IndexError if there is no step k, KeyError if there is no such parameter.
    """
    if name not in trace.weights:
        raise KeyError(f"no parameter {name!r}: choose one of {', '.join(trace.weights)}")
    if k is None:
        return parameter_gradient(trace, name, trace.delta)
    if not 0 <= k < trace.walk.length:
        raise IndexError(f"step {k} of {trace.walk.length}: count from 0")
    return _of_rows(trace, name, slice(trace.walk.starts[k], trace.walk.starts[k + 1]), trace.delta)


def parameter_gradient(trace: Trace, name: str, delta: State) -> Tensor:
    """Return the gradient of parameter `name` that follows from δ, [N, ·] each: the trace's own, or a part of it."""
    total = torch.zeros_like(trace.weights[name])
    for steps in trace.walk.chunks(CHUNK // trace.width):
        total += _of_rows(trace, name, trace.walk.span(steps), delta)
    return total


def _of_rows(trace: Trace, name: str, rows: slice, delta: State) -> Tensor:
    """The part of a parameter's gradient that comes from some rows: d_zᵀ v, where it is a weight."""
    part = tuple(d[rows] for d in delta)
    if name == "weight_hr":
        return part[0].T @ trace.unprojected(rows)
    raw, partials = trace.raw_delta(part), trace.partials(rows)
    if name in trace.cell.vectors:
        v = trace.cell.vectors.index(name)
        terms = [d * p[v] for d, p in zip(raw, partials.vectors, strict=True)]
        return sum(terms[1:], terms[0]).sum(0)
    d_z = through(partials.zh if name in ("weight_hh", "bias_hh") else partials.zx, raw).flatten(1)
    match name:
        case "weight_hh":
            return d_z.T @ trace.before[0][rows]
        case "weight_ih":
            return d_z.T @ trace.x[rows]
        case _:
            return d_z.sum(0)


def _outer_norm(d: Tensor, v: Tensor) -> Tensor:
    """‖Σ_b d_b ⊗ v_b‖ for each step and gate [steps, G], from d [steps, B, G, H] and v [steps, B, V].

    ‖Σ_b d_b ⊗ v_b‖² = Σ_{b,b'} ⟨d_b, d_b'⟩ ⟨v_b, v_b'⟩: two Gram matrices, unless the products themselves are cheaper.
    """
    _, B, G, H = d.shape
    V = v.shape[-1]
    if B * (G * H + V) > G * H * V:
        outer = d.flatten(2).mT @ v  # steps, G·H, V
        return outer.unflatten(1, (G, H)).flatten(2).norm(dim=-1)
    by_gate = d.transpose(1, 2)
    return torch.einsum("tgbc,tbc->tg", by_gate @ by_gate.mT, v @ v.mT).clamp_min_(0).sqrt_()
