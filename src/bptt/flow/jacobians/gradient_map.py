"""The map over (t, k): how much each earlier step contributes to the gradient of each loss step.

Equations: docs/equations.md, eqs. (10), (11), (29).
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn.utils.rnn import PackedSequence

from bptt.flow.jacobians.arguments import chosen, listed, whole
from bptt.flow.jacobians.forward import run
from bptt.flow.jacobians.inputs import Inputs, RecurrentLayer, padded, read, refuse_nonfinite
from bptt.flow.jacobians.log_svd import few_threads
from bptt.flow.jacobians.terms import WORK_ALONE, LayerTerms
from bptt.flow.jacobians.trajectory import Trajectory
from bptt.forms import Hidden, Input, data_of
from bptt.layers import cell_of
from bptt.parameters import directions_of

MAP_BYTES = 256 << 20  # what a map may hold before it asks for fewer samples


@dataclass(frozen=True, eq=False)
class GradientMap:
    """The terms ∂L(t)/∂s(t) · ∂s(t)/∂s(k) · ∂⁺s(k)/∂θ of a layer's gradient, for every pair (t, k), S samples apart.

    t and k. For the last layer, t is the step of the loss L(t). Every layer and direction is taken by itself: t is the
    step at which the gradient *enters its outputs* (from the loss or from the layer above), k the step at which the
    weight was *used*. Forward in time k ≤ t, in a reverse direction k ≥ t; lag = |t − k|. In every layer, the terms of
    all (t, k) add up to the full gradient of each of its parameters.

    Names are torch.nn's: "weight_hh_l0", "bias_ih_l1_reverse". Indices begin at 0, in time; `sample` is the place in the
    batch. Where there is no path (padding, across a reset, k after t) a term is exactly 0. What falls on
    its way below 1e-30 (float32; float64: 1e-290) of the largest ∂L(t)/∂h(t) counts as 0.

    Components. An LSTM's state is (h, c), so a gradient reaches step k in two parts: through h(k), that is along W_hh, and
    through c(k), along the cell state. `through="c"` takes that part alone; the parts' terms add up to the whole term.

    Attributes:
        names: the parameters.
        components: names of the state's components.
        steps: T.
        samples: the S places in the batch that are shown, in the order of the results' first axis.
    """

    names: tuple[str, ...]
    components: tuple[str, ...]
    steps: int
    samples: tuple[int, ...]
    _layers: dict[str, "LayerTerms"]

    def norms(self, name: str, through: str | None = None) -> Tensor:
        """Return ‖term(t, k)‖₂ of a parameter, as [S, T, T] indexed [sample, t, k]."""
        layer, short = self._find(name)
        return layer.dense(short, self._component(through))

    def rows(self, name: str, through: str | None = None) -> Tensor:
        """Return Σ_k ‖term(t, k)‖ for each loss step t, [S, T]."""
        return self.norms(name, through).sum(2)

    def columns(self, name: str, through: str | None = None) -> Tensor:
        """Return Σ_t ‖term(t, k)‖ for each earlier step k, [S, T]."""
        return self.norms(name, through).sum(1)

    def lags(self, name: str, through: str | None = None) -> Tensor:
        """Σ ‖term(t, k)‖ over each diagonal |t − k| = lag, [S, T]: how far back the gradient reaches."""
        layer, short = self._find(name)
        return layer.by_lag(short, self._component(through))

    def shares(self, name: str) -> dict[str, Tensor]:
        """Return by lag each component's share: Σ ‖its part‖ / Σ over the components, [S, T] each; 0 where all are 0.

        For an LSTM {"h": ..., "c": ...}: which of the two carries the gradient over that distance.
        """
        parts = {c: self.lags(name, c) for c in self.components}
        whole = torch.stack(list(parts.values())).sum(0)
        return {c: torch.where(whole > 0, part / whole, torch.zeros_like(part)) for c, part in parts.items()}

    def term(self, t: int, k: int, name: str, sample: int, through: str | None = None) -> Tensor:
        """Return one term itself, of the parameter's shape."""
        return self.total(name, t=t, k=k, sample=sample, through=through)

    def total(
        self,
        name: str,
        *,
        t: int | None = None,
        k: int | None = None,
        lag: int | None = None,
        sample: int | None = None,
        through: str | None = None,
    ) -> Tensor:
        """Return the sum of all terms with this t, k, lag and sample (None: any), of the parameter's shape.

        `total(name)` is the gradient of the parameter over the samples shown; `total(name, t=t)` is ∂L(t)/∂θ.
        Raises ValueError for an index outside.
        """
        layer, short = self._find(name)
        for label, index in (("t", t), ("k", k), ("lag", lag)):
            number = whole(index)
            if index is not None and (number is None or not 0 <= number < self.steps):
                raise ValueError(f"{label} is {index!r}, wanted a step from 0 to {self.steps - 1}")
        if sample is not None and sample not in self.samples:
            raise ValueError(f"sample {sample} is not in this map: it has {list(self.samples)}, add it to `samples=`")
        place = None if sample is None else self.samples.index(sample)
        return layer.total(short, t, k, lag, place, self._component(through))

    def __repr__(self) -> str:
        return f"GradientMap({self.steps} steps, samples {list(self.samples)}, {', '.join(self.names)})"

    def _find(self, name: str) -> tuple["LayerTerms", str]:
        for suffix, layer in self._layers.items():
            short = str(name).removesuffix(suffix)
            if short != name and short in layer.trajectory.weights:
                return layer, short
        raise ValueError(f"there is no parameter {name!r} in this map: choose one of {', '.join(self.names)}")

    def _component(self, through: str | None) -> int | None:
        if through is None or self.components == (through,):
            return None
        if through not in self.components:
            raise ValueError(f"the state has no component {through!r}: choose one of {', '.join(self.components)}")
        return self.components.index(through)


def gradient_map(
    layer: RecurrentLayer,
    x: Input,
    *,
    grad_outputs: Input | None = None,
    loss: Callable[[Any], Tensor] | None = None,
    hx: Hidden | None = None,
    reset: Input | None = None,
    samples: Sequence[int] | None = None,
    layers: Sequence[int] | None = None,
) -> GradientMap:
    """The exact map over (t, k) of the gradient of Σ_t L(t) with respect to a recurrent layer's parameters.

        term(t, k) = ∂L(t)/∂s(t) · Π_{i=k+1..t} ∂s(i)/∂s(i-1) · ∂⁺s(k)/∂θ          eqs. (10) and (11)

    What t and k mean in a stack is said in `GradientMap`. Costs about a backward pass of the layer for each 64 samples'
    worth of T; memory T² for the map, never T²·H².

    Args:
        layer: torch.nn.RNN/GRU/LSTM, bptt.RNN/GRU/LSTM or bptt.Recurrent with any cell.
        x: its input, in any form that the layer takes.
        grad_outputs: ∂L/∂outputs, of the shape and form of the layer's outputs (`outputs.retain_grad()` in training).
        loss: instead of that, a function from the layer's outputs to Σ_t L(t), a scalar.
        hx: initial state; zeros if None.
        reset: bool, as bptt's layers take it.
        samples: places in the batch to show; all if None.
        layers: which layers of a stack to show, 0 the lowest; all if None.

    Raises:
        TypeError: layer or x is of another type.
        ValueError: shapes do not fit, neither or both of grad_outputs and loss came, something is not finite, dropout is
            on, or the map would need more than 256 MB.

    >>> lstm = torch.nn.LSTM(3, 5)
    >>> terms = gradient_map(lstm, torch.randn(20, 2, 3), loss=lambda outputs: outputs[-1].square().sum())
    >>> terms.lags("weight_hh_l0").shape  # for each sample: the gradient's norm by its lag, 0 to 19
    torch.Size([2, 20])
    """
    inputs = read(layer, x, hx, reset)
    _check_loss(grad_outputs, loss)
    places = chosen(samples, inputs.x.shape[1])
    wanted = _depths(layers, layer.num_layers)
    # Before the loss, which would pass a NaN of the input on to ∂L/∂outputs.
    with few_threads(len(places) * sum(w.numel() for w in layer.parameters()) < WORK_ALONE):
        trajectories, _ = run(layer, inputs.of(places))
    d_outputs = _given(layer, grad_outputs, inputs) if grad_outputs is not None else _of_loss(layer, x, hx, reset, loss)
    d_outputs = d_outputs[:, places.to(d_outputs.device)]
    refuse_nonfinite("∂L/∂outputs", d_outputs, places.tolist())
    _refuse_large(trajectories[0][0], d_outputs, len(wanted) * len(trajectories[0]))
    shown = _terms_by_suffix(trajectories, d_outputs, wanted)
    names = tuple(name for name, _ in layer.named_parameters() if any(name.endswith(suffix) for suffix in shown))
    return GradientMap(names, cell_of(layer).states, inputs.x.shape[0], tuple(places.tolist()), shown)


def _terms_by_suffix(
    trajectories: Sequence[Sequence[Trajectory]], d_outputs: Tensor, wanted: set[int]
) -> dict[str, LayerTerms]:
    """The terms of the wanted layers, by what torch.nn appends to their parameters' names; the top layer goes first."""
    shown: dict[str, LayerTerms] = {}
    for depth in range(len(trajectories) - 1, min(wanted) - 1, -1):
        directions = trajectories[depth]
        pieces = d_outputs.chunk(len(directions), dim=-1)
        d_outputs = torch.zeros_like(directions[0].x)
        for trajectory, piece in zip(directions, pieces, strict=True):
            terms = LayerTerms(trajectory, piece, depth in wanted, x_wanted=depth > min(wanted))
            d_outputs = d_outputs if terms.d_x is None else d_outputs + terms.d_x
            if depth in wanted:
                shown[trajectory.suffix] = terms
    return shown


def _check_loss(grad_outputs: Input | None, loss: Callable[[Any], Tensor] | None) -> None:
    if (grad_outputs is None) == (loss is None):
        raise ValueError(
            "wanted one of grad_outputs= (∂L/∂outputs) and loss= (a function of the outputs): pass just one"
        )
    if loss is not None and not callable(loss):
        raise TypeError(f"loss is a {type(loss).__name__}, wanted a function from the layer's outputs to Σ_t L(t)")


def _depths(layers: Sequence[int] | None, count: int) -> set[int]:
    given = list(range(count)) if layers is None else listed("layers", layers)
    wanted = {whole(depth) for depth in given}
    if not wanted or not wanted <= set(range(count)):
        raise ValueError(f"layers is {given}, wanted some of {list(range(count))}: 0 is the lowest")
    return {depth for depth in wanted if depth is not None}


def _given(layer: RecurrentLayer, grad_outputs: Input, inputs: Inputs) -> Tensor:
    """∂L/∂outputs, [T, B, ·]."""
    if not isinstance(grad_outputs, Tensor | PackedSequence):
        raise TypeError(f"grad_outputs is a {type(grad_outputs).__name__}, wanted a Tensor or a PackedSequence")
    rows = padded(layer, grad_outputs, "grad_outputs")
    width = (layer.proj_size or layer.hidden_size) * directions_of(layer)
    wanted = (*inputs.x.shape[:2], width)
    if tuple(rows.shape) != wanted:
        raise ValueError(
            f"grad_outputs has shape {tuple(rows.shape)} (time first), wanted {wanted}: ∂L/∂outputs in the outputs' own form"
        )
    return rows.detach()


def _of_loss(
    layer: RecurrentLayer, x: Input, hx: Hidden | None, reset: Input | None, loss: Callable[[Any], Tensor] | None
) -> Tensor:
    """The layer's plain forward, then autograd through the user's loss alone."""
    assert loss is not None
    with torch.no_grad():
        outputs, _ = layer(x, hx) if reset is None else layer(x, hx, reset=reset)
    packed = isinstance(outputs, PackedSequence)
    leaf = data_of(outputs).detach().requires_grad_()
    with torch.enable_grad():
        value = loss(outputs._replace(data=leaf) if packed else leaf)
    if not isinstance(value, Tensor) or value.numel() != 1:
        came = f"a tensor of shape {tuple(value.shape)}" if isinstance(value, Tensor) else f"a {type(value).__name__}"
        raise ValueError(f"loss returned {came}, wanted a scalar tensor, the sum over the steps: end it with .sum()")
    found = torch.autograd.grad(value, leaf, allow_unused=True)[0] if value.requires_grad else None
    if found is None:
        raise ValueError(
            "the loss does not depend on the layer's outputs: check detach, no_grad and what it computes from"
        )
    return padded(layer, outputs._replace(data=found) if packed else found, "outputs")


def _refuse_large(trajectory: Trajectory, d_outputs: Tensor, maps: int) -> None:
    rows = int((d_outputs != 0).flatten(1).any(1).sum())
    kinds = 2 * (1 + (len(trajectory.before) > 1) * len(trajectory.before))
    size = trajectory.steps * rows * d_outputs.shape[1] * kinds * maps * trajectory.x.element_size()
    if size > MAP_BYTES:
        raise ValueError(
            f"the map of {trajectory.steps} steps by {rows} loss steps of {d_outputs.shape[1]} samples would take "
            f"{size / 2**20:.0f} MB, wanted at most {MAP_BYTES >> 20}: pass fewer samples=, or layers="
        )


__all__ = ["GradientMap", "gradient_map"]
