"""`LayerFlow`: the numbers of one layer in one direction, such as profiles over time, reach, saturation and dead units."""

import math
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from bptt.cells import Elman, PointwiseCell
from bptt.flow.diagnosis.non_finite import NonFinite, first_non_finite
from bptt.flow.diagnosis.slopes import SATURATED, gate_names, slopes
from bptt.flow.tracing.contributions import contribution, contribution_norms
from bptt.flow.tracing.horizon import Reach, Span, horizon, pooled
from bptt.flow.tracing.reach import Strands, reach_of, strands
from bptt.flow.tracing.trace import Trace

Array = NDArray[np.float64]

_RECENT, _KEPT = 16, 1 << 26  # watched passes whose reach counts; bytes of those in which nobody has measured it yet


@dataclass
class _Mean:
    """Root mean square over watched passes of profiles over k, whose lengths may differ."""

    squares: Array | None = None
    counts: Array | None = None

    def add(self, values: Array) -> None:
        if self.squares is None or self.counts is None:
            self.squares, self.counts = np.zeros_like(values), np.zeros(len(values))
        more = len(values) - len(self.squares)
        if more > 0:
            wide = [(0, more)] + [(0, 0)] * (values.ndim - 1)
            self.squares, self.counts = np.pad(self.squares, wide), np.pad(self.counts, (0, more))
        with np.errstate(over="ignore", invalid="ignore"):
            self.squares[: len(values)] += values**2
        self.counts[: len(values)] += 1

    def value(self) -> Array:
        assert self.squares is not None
        assert self.counts is not None
        counts = self.counts.reshape(-1, *[1] * (self.squares.ndim - 1))
        return np.asarray(np.sqrt(self.squares / counts))


@dataclass
class LayerFlow:
    """One layer in one direction. k counts steps from 0; several calls in one watched pass follow each other on it.

    Attributes:
        name: module, layer and direction: "encoder.l0", "encoder.l0_reverse".
        traces: the last watched pass, one for each path through time: a call, or several that hand their state on.
        passes: how many passes were watched.
        grads: whether any gradient arrived in the last pass.
    """

    name: str
    module: str
    layer: int
    direction: int
    cell: PointwiseCell
    traces: list[Trace] = field(default_factory=list)
    passes: int = 0
    _means: dict[str, _Mean] = field(default_factory=dict)
    _contributions: dict[str, Array] = field(default_factory=dict)
    _last: "_Pass | None" = None
    _earlier: list["_Pass"] = field(default_factory=list)

    def add(self, traces: list[Trace]) -> None:
        """Take in one watched pass."""
        if self._last is not None:
            self._earlier = [*self._earlier, self._last.apart()][1 - _RECENT :]
            if sum(p.size for p in self._earlier) > _KEPT:
                for one in self._earlier:
                    one.measure()
        self._last = _Pass(traces)
        self.traces, self.passes, self._contributions = traces, self.passes + 1, {}
        for name in ("reach", "saturation", "dead", "non_finite"):
            self.__dict__.pop(name, None)
        for key, values in self._measured().items():
            self._means.setdefault(key, _Mean()).add(values)

    def _measured(self) -> dict[str, Array]:
        return {name: torch.cat([t.norms[name] for t in self.traces]).cpu().numpy() for name in self.traces[0].norms}

    @property
    def gates(self) -> tuple[str, ...]:
        """Names of the gates, in the order of the weights' rows."""
        return gate_names(self.cell)

    @property
    def boundaries(self) -> list[int]:
        """The steps k at which a further call begins."""
        return [first + call for first, t in zip(self._first_steps(), self.traces, strict=True) for call in t.calls][1:]

    @property
    def breaks(self) -> list[int]:
        """The steps k at which a call begins without the state of an earlier one, or with one that was detached."""
        return self._first_steps()[1:]

    def _first_steps(self) -> list[int]:
        """Where each trace begins."""
        return [0, *np.cumsum([t.walk.length for t in self.traces])[:-1].tolist()]

    @property
    def chunk(self) -> int:
        """The steps of the longest path through time: what a gradient can travel at most, and one more."""
        return max(t.longest for t in self.traces)

    @property
    def steps(self) -> int:
        """T, of all calls together."""
        return sum(t.walk.length for t in self.traces)

    @property
    def delta(self) -> Array:
        """‖∂L/∂h(k)‖ over batch and units [T]; root mean square over the watched passes."""
        return self._means[self.cell.states[0]].value()

    @property
    def external(self) -> Array:
        """Norm [T] of the part of it that comes from outside the layer: the loss at step k, and layers above."""
        return self._means["external"].value()

    def state_delta(self, state: str) -> Array:
        """‖∂L/∂state(k)‖ [T] for a component of the state: "h", for an LSTM also "c".

        The components are variables of their own: what leaves c(k) through h(k) of the same step counts for h(k) alone.
        """
        return self._means[state].value()

    def contributions(self, kind: str = "weight_hh") -> Array:
        """Norm [T, G] of step k's contribution to a gradient, for each gate: "weight_hh", "weight_ih" or "bias".

        Of the last watched pass, computed when first asked for, at the cost of about one more backward pass.
        Raises KeyError for any other kind.
        """
        if kind not in ("weight_hh", "weight_ih", "bias"):
            raise KeyError(f"no contributions {kind!r}: choose 'weight_hh', 'weight_ih' or 'bias'")
        if kind not in self._contributions:
            with torch.no_grad():
                found = torch.cat([contribution_norms(trace, kind) for trace in self.traces])
            self._contributions[kind] = found.numpy()
        return self._contributions[kind]

    def contribution(self, parameter: str, k: int | None = None) -> Tensor:
        """Step k's contribution itself, in the last pass, [the parameter's shape]; the sum over all steps if k is None.

        The sum is the parameter's gradient. `parameter` is its short name: weight_hh, weight_ih, bias_hh, bias_ih, …
        """
        if k is None:
            return torch.stack([contribution(trace, parameter) for trace in self.traces]).sum(0)
        for trace in self.traces:
            if k < trace.walk.length:
                return contribution(trace, parameter, k)
            k -= trace.walk.length
        raise IndexError(f"step {k + self.steps} of {self.steps}: count from 0")

    @property
    def _passes(self) -> list["_Pass"]:
        """The recent passes whose reach is known, or else the last one."""
        assert self._last is not None
        found = [p for p in (*self._earlier, self._last) if p.measure().gain]
        return found or [self._last]

    @cached_property
    def reach(self) -> Reach:
        """How far a loss step's gradient gets (see `bptt.flow.tracing.reach`), over the last 16 watched passes."""
        return pooled([p.measure() for p in self._passes])

    @property
    def spans(self) -> tuple[Span, ...]:
        """Horizon, longest lag and largest gain of each single sample that was looked at in these passes."""
        return self.reach.samples

    @property
    def batches(self) -> int:
        """Over how many watched passes the reach is taken."""
        return len(self._passes)

    @property
    def lag_share(self) -> Array:
        """Share of the gradient by lag j [lags]: gain(j) / Σ gain, of the chosen loss steps' own gradients."""
        gain = np.minimum(np.array(self.reach.gain), 1e300)
        total = float(gain.sum()) if len(gain) else 0.0
        return gain / total if total > 0 else gain

    @property
    def lags(self) -> int:
        """The longest lag that the data had, in steps."""
        return max(0, len(self.reach.gain) - 1)

    @property
    def horizon(self) -> int:
        """The memory horizon in steps (see `bptt.flow.tracing.horizon`)."""
        return horizon(self.reach.gain)

    @property
    def horizon_range(self) -> tuple[int, int]:
        """The shortest and the longest horizon of the `spans`."""
        found = [span.horizon for span in self.spans] or [0]
        return min(found), max(found)

    @property
    def growth(self) -> float:
        """The largest gain over all lags: how many times its norm a loss step's gradient reaches on its way."""
        return max(self.reach.gain, default=0.0)

    @property
    def rate(self) -> float:
        """Decades per step at which the gain falls (negative) or grows, fitted over the lags up to where it leaves 1e±6."""
        logs = [math.log10(g) for g in self.reach.gain if g > 0]
        n = next((i for i, log in enumerate(logs) if abs(log) > 6), len(logs))
        n = max(n, min(2, len(logs)))
        return float(np.polyfit(range(n), logs[:n], 1)[0]) if n > 1 else 0.0

    @cached_property
    def saturation(self) -> dict[str, float]:
        """For each gate the share of (unit, step, sample) whose slope is below 5 % of its maximum.

        The maximum is 1/4 for the logistic sigmoid, 1 for tanh; a ReLU has none, and a cell of the user's own none known:
        then the dictionary is empty. From at most 512 rows, evenly spaced; of slopes that are NaN nothing is said.
        """
        found: dict[str, list[Tensor]] = {}
        for trace in self.traces:
            for gate, slope in slopes(trace).items():
                finite = slope[slope.isfinite()]
                if len(finite):
                    found.setdefault(gate, []).append((finite < SATURATED).double().mean())
        return {gate: float(torch.stack(shares).mean()) for gate, shares in found.items()}

    @cached_property
    def dead(self) -> int:
        """Units that are 0 at every step of every sample (ReLU): no gradient reaches their weights."""
        if self.cell != Elman("relu"):
            return 0
        live = torch.stack([(t.states[0] != 0).any(0) for t in self.traces]).any(0)
        return int((~live).sum())

    @property
    def units(self) -> int:
        """The number of hidden units, H."""
        return self.traces[-1].width // self.cell.gates

    @cached_property
    def non_finite(self) -> NonFinite | None:
        """The first non-finite number in the last pass, in the order in which they are computed; None if all are finite."""
        return first_non_finite(self.name, self.traces)

    def to_json(self) -> dict[str, Any]:
        """All of it as numbers, lists and names; what is not finite becomes None."""
        return {
            "name": self.name, "cell": str(self.cell), "steps": self.steps, "passes": self.passes,
            "gates": list(self.gates), "boundaries": self.boundaries,
            "delta": {s: _listed(self.state_delta(s)) for s in self.cell.states},
            "external": _listed(self.external),
            "contributions": {kind: _listed(self.contributions(kind)) for kind in ("weight_hh", "weight_ih", "bias")},
            "gain": _listed(np.array(self.reach.gain)), "lag_share": _listed(self.lag_share),
            "horizon": self.horizon, "horizon_range": list(self.horizon_range), "batches": self.batches, "lags": self.lags,
            "growth": finite_or_none(self.growth), "rate": finite_or_none(self.rate),
            "saturation": self.saturation, "dead": self.dead, "units": self.units,
            "non_finite": None if self.non_finite is None else self.non_finite._asdict(),
        }  # fmt: skip


class _Pass:
    """The reach of a watched pass, measured when somebody asks for it, or when it is too large to be kept for that."""

    def __init__(self, traces: list[Trace]) -> None:
        self._traces: list[Trace] | None = traces
        self._strands: list[Strands] = []
        self._found: Reach | None = None

    @property
    def size(self) -> int:
        """Bytes that it keeps."""
        return sum(seen.size for seen in self._strands)

    def apart(self) -> "_Pass":
        """Let go of the traces, and keep what measuring needs."""
        if self._found is None and self._traces is not None:
            self._strands = [strands(trace) for trace in self._traces]
        self._traces = None
        return self

    def measure(self) -> Reach:
        """The reach; sequences of one pass are joined by lag."""
        if self._found is None:
            seen = self._strands or [strands(trace) for trace in self._traces or ()]
            with torch.no_grad():
                self._found = pooled([reach_of(one) for one in seen])
            self._strands = []
        return self._found


def _listed(values: Array) -> Any:
    return [_listed(v) for v in values] if values.ndim > 1 else [finite_or_none(float(v)) for v in values]


def finite_or_none(value: float) -> float | None:
    """Return the number as JSON takes it: None for NaN and infinity."""
    return value if math.isfinite(value) else None
