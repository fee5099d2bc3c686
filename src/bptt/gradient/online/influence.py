"""The influence of every parameter on the present state, J_t = ∂s_t/∂θ, carried forward in time.

    J_t = I_t + A_t J_{t-1}        A_t = ∂s_t/∂s_{t-1},  I_t = ∂⁺s_t/∂θ with s_{t-1} held fixed (docs/equations.md, eq. (26))

For pointwise cells both are closed form. With D the partials (`bptt.cells.Partials`) and unit i of component s:

    I_t for W_hh:  ∂⁺s[i]/∂W_hh[g, i, p] = D.zh[s][g, i] h_{t-1}[p],  0 for every other unit's row
    I_t for W_ih:  D.zx[s][g, i] x_t[d];   biases: D.zx, D.zh;   per-unit parameters: D.vectors

In a stack the layer below acts at the same step: J_t[l] gets ∂s_t[l]/∂h_t[l-1] · J_t[l-1] as well. `Full` keeps every
entry; `Diagonal` those of a parameter's own unit; `AnyModule` asks autograd, row by row, and is the specification.
Layout: [n·H, B, the parameter's shape]; lanes on axis 1, as states have them, so that checkpoints can share them out.
"""

from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from bptt.cells import Partials, PointwiseCell, State, Weights
from bptt.gradient.collect import gradients

GradientsById = dict[int, Tensor]  # gradients by the parameter's id


@dataclass(frozen=True)
class Layer:
    """One layer of the stack at one step.

    Attributes:
        weights: its parameters by short name.
        inputs, before: its input [B, D], and its state before the step, [B, H] each (zero where reset).
        partials: D of this step.
        keep: bool [B], False where a reset blocks the gradient; None: True for all.
    """

    cell: PointwiseCell
    weights: Weights
    inputs: Tensor
    before: State
    partials: Partials
    keep: Tensor | None

    def jacobian(self) -> Tensor:
        """Return A_t, [B, S, S]."""
        zx = self.cell.net_input(self.inputs, self.weights["weight_ih"], self.weights.get("bias_ih"))
        found = self.cell.jacobian(zx, self.before, self.weights)
        return found if self.keep is None else found * self.keep[:, None, None]

    def diagonal(self) -> list[list[Tensor]]:
        """Return the entries of A_t that lead from a unit to itself, [s][r] of [B, H]."""
        w_hh = self.weights["weight_hh"].unflatten(0, (self.cell.gates, -1)).diagonal(dim1=1, dim2=2)  # G,H
        table = []
        for zh, direct in zip(self.partials.zh, self.partials.direct, strict=True):
            row = [torch.zeros_like(zh[:, 0]) if d is None else d for d in direct]
            row[0] = row[0] + (zh * w_hh).sum(1)
            table.append(row if self.keep is None else [d * self.keep[:, None] for d in row])
        return table

    def from_inputs(self) -> Tensor:
        """Return ∂s_t/∂inputs, [B, S, D]."""
        w_ih = self.weights["weight_ih"].unflatten(0, (self.cell.gates, -1))
        return torch.cat([torch.einsum("bgh,ghd->bhd", zx, w_ih) for zx in self.partials.zx], dim=1)

    def immediate(self, name: str) -> Tensor:
        """Return I_t of a parameter at its own unit, [n, B, rest…, H]: rest is G and a matrix's width, G, or nothing."""
        match name:
            case "weight_ih":
                return torch.stack(self.partials.zx).unsqueeze(3) * self.inputs[None, :, None, :, None]
            case "weight_hh":
                return torch.stack(self.partials.zh).unsqueeze(3) * self.before[0][None, :, None, :, None]
            case "bias_ih":
                return torch.stack(self.partials.zx)
            case "bias_hh":
                return torch.stack(self.partials.zh)
        return torch.stack([v[self.cell.vectors.index(name)] for v in self.partials.vectors])


@dataclass(frozen=True)
class EmbeddedSymbols:
    """The symbols of a step, where the lowest layer's input is an embedding's output: its table has an influence too.

    Attributes:
        weight: the table, [V, E].
        symbols: int64 [B].
        padding: the symbol whose row is never learned, or None.
    """

    weight: Tensor
    symbols: Tensor
    padding: int | None = None


class Influence(ABC):
    """J_t of all parameters that act on the state, as a strategy keeps it."""

    @abstractmethod
    def pull(self, d_state: Sequence[Tensor]) -> GradientsById:
        """Return ∂L/∂s_t · J_t, what the parameters' earlier use contributes; d_state: one [L, B, H] for each component."""

    @abstractmethod
    def tensors(self) -> tuple[Tensor, ...]:
        """Return J_t as tensors in a fixed order, lanes on axis 1."""


class ClosedForm(Influence):
    """The influence in closed form, for a stack of pointwise layers."""

    def __init__(self, parameters: Sequence[Weights], embedding: Tensor | None) -> None:
        """parameters: those of each layer by short name."""
        self.parameters, self.embedding = parameters, embedding
        self.kept: dict[tuple[int, int, str], Tensor] = {}

    def places(self) -> Iterator[tuple[int, int, str, Tensor]]:
        """Yield (layer whose state it is, layer of the parameter, its name, itself); layer -1 is the embedding."""
        for above in range(len(self.parameters)):
            if self.embedding is not None:
                yield above, -1, "embedding", self.embedding
            for below in range(above + 1):
                for name, parameter in self.parameters[below].items():
                    yield above, below, name, parameter

    def tensors(self) -> tuple[Tensor, ...]:
        """Return J_t in the order of `places`."""
        return tuple(self.kept[above, below, name] for above, below, name, _ in self.places())

    def restore(self, tensors: tuple[Tensor, ...]) -> None:
        """Undo `tensors`. Raises ValueError if they are not this model's."""
        places = list(self.places())
        if len(tensors) != len(places):
            raise ValueError("the state is another model's or strategy's Result: pass its `.state` to start from it")
        self.kept = {place[:3]: tensor for place, tensor in zip(places, tensors, strict=True)}

    def pull(self, d_state: Sequence[Tensor]) -> GradientsById:
        """Return the sum over layers, units and samples."""
        found: GradientsById = {}
        for above, below, name, parameter in self.places():
            kept = self.kept.get((above, below, name))
            if kept is None:
                continue
            part = self._pulled(torch.stack([d[above] for d in d_state]), kept, parameter, self._is_sparse(below))
            found[id(parameter)] = found[id(parameter)] + part if id(parameter) in found else part
        return found

    def _pulled(self, d_state: Tensor, kept: Tensor, parameter: Tensor, sparse: bool) -> Tensor:
        if sparse:  # [n, B, rest…, H]
            wide = d_state.view(*d_state.shape[:2], *[1] * (kept.dim() - 3), d_state.shape[2])
            return _parameter_form((wide * kept).sum((0, 1)), parameter)
        rows = d_state.transpose(1, 2).flatten(0, 1)  # S,B
        return torch.einsum("sb,sbp->p", rows, kept.flatten(2)).view_as(parameter)

    @abstractmethod
    def _is_sparse(self, below: int) -> bool:
        """Whether a layer's influence is kept at its own unit alone."""

    @abstractmethod
    def advance(self, layers: Sequence[Layer], embedded: EmbeddedSymbols | None) -> None:
        """Replace J_{t-1} by J_t."""

    def _dense(self, layer: Layer, a: Tensor, key: tuple[int, int, str], parameter: Tensor) -> Tensor:
        """A_t J_{t-1}, [S, B, the parameter's shape]."""
        before = self.kept.get(key)
        if before is None:
            return a.new_zeros(a.shape[1], a.shape[0], *parameter.shape)
        return torch.einsum("bij,jbp->ibp", a, before.flatten(2)).view_as(before)


class Full(ClosedForm):
    """The whole influence: real-time recurrent learning."""

    def _is_sparse(self, below: int) -> bool:
        return False

    def advance(self, layers: Sequence[Layer], embedded: EmbeddedSymbols | None) -> None:
        """Replace J_{t-1} by J_t, the lowest layer first."""
        after: dict[tuple[int, int, str], Tensor] = {}
        jacobians = [layer.jacobian() for layer in layers]
        through = [layer.from_inputs() for layer in layers]
        for above, below, name, parameter in self.places():
            key, layer = (above, below, name), layers[above]
            new = self._dense(layer, jacobians[above], key, parameter)
            if below == above:
                _add_own_unit(new, layer.immediate(name))
            elif above > 0:
                h = after[above - 1, below, name][: through[above].shape[2]]
                new += torch.einsum("bsh,hbp->sbp", through[above], h.flatten(2)).view_as(new)
            else:
                _add_embedded(new, through[0], embedded)
            after[key] = new
        self.kept = after


class Diagonal(ClosedForm):
    """The entries of each parameter's own unit, for one layer: SnAp-1."""

    def _is_sparse(self, below: int) -> bool:
        return below >= 0

    def advance(self, layers: Sequence[Layer], embedded: EmbeddedSymbols | None) -> None:
        """J'[s] = I[s] + Σ_r A[s][r] ∘ J[r], unit by unit; an embedding's entries act on all units, and are all kept."""
        (layer,) = layers
        after: dict[tuple[int, int, str], Tensor] = {}
        own = layer.diagonal()
        for above, below, name, parameter in self.places():
            key = (above, below, name)
            if below < 0:
                after[key] = self._dense(layer, layer.jacobian(), key, parameter)
                _add_embedded(after[key], layer.from_inputs(), embedded)
                continue
            new, before = layer.immediate(name), self.kept.get(key)
            if before is not None:
                for s, row in enumerate(own):
                    for r, factor in enumerate(row):
                        wide = factor.view(len(factor), *[1] * (new.dim() - 3), -1)
                        new[s].addcmul_(wide, before[r])
            after[key] = new
        self.kept = after


def _add_own_unit(dense: Tensor, immediate: Tensor) -> None:
    """Add I_t [n, B, (G, (V)), H] to the entries of its own unit in [n·H, B, (G·)H, (V)]."""
    n, units = len(immediate), immediate.shape[-1]
    split = dense.unflatten(0, (n, units))
    if immediate.dim() == 3:  # a per-unit parameter
        split.diagonal(dim1=1, dim2=3).add_(immediate)
    else:
        split.unflatten(3, (-1, units)).diagonal(dim1=1, dim2=4).add_(immediate)


def _parameter_form(own: Tensor, parameter: Tensor) -> Tensor:
    """[G, V, H], [G, H] or [H] → the parameter's shape."""
    return own.movedim(-1, 1).reshape(parameter.shape) if own.dim() > 1 else own.reshape(parameter.shape)


def _add_embedded(influence: Tensor, through: Tensor, embedded: EmbeddedSymbols | None) -> None:
    """∂⁺s/∂E[v, :] = ∂s/∂inputs where v is the sample's symbol: influence [S, B, V, E], through [B, S, E]."""
    assert embedded is not None
    rows = torch.arange(len(through), device=through.device)
    if embedded.padding is not None:
        through = through * (embedded.symbols != embedded.padding)[:, None, None]
    influence[:, rows, embedded.symbols] += through.transpose(0, 1)


class AnyModule(Influence):
    """For any module, from autograd: one backward of the step for each number of the state. Slow; the specification."""

    def __init__(self, parameters: Sequence[nn.Parameter]) -> None:
        self.parameters = parameters
        self.kept: tuple[Tensor, ...] = ()

    def tensors(self) -> tuple[Tensor, ...]:
        """Return one [n, |θ|] for each parameter."""
        return self.kept

    def restore(self, tensors: tuple[Tensor, ...]) -> None:
        """Undo `tensors`."""
        self.kept = tensors

    def pull(self, d_state: Sequence[Tensor]) -> GradientsById:
        """Return the sum over all numbers of the state."""
        if not self.kept:
            return {}
        row = torch.cat([d.flatten() for d in d_state])
        return {id(p): (row @ j).view_as(p) for p, j in zip(self.parameters, self.kept, strict=True)}

    def advance(self, after: Sequence[Tensor], before: Sequence[Tensor]) -> None:
        """Replace J_{t-1} by J_t, from the graph of one step between the leaves `before` and `after`."""
        leaves = [*before, *self.parameters]
        rows = []
        for component in after:
            for entry in component.flatten():
                if not entry.requires_grad:
                    rows.append([torch.zeros_like(v) for v in leaves])
                    continue
                grads = gradients([entry], leaves, retain_graph=True)
                rows.append([torch.zeros_like(v) if d is None else d for d, v in zip(grads, leaves, strict=True)])
        columns = [torch.stack([d.flatten() for d in column]) for column in zip(*rows, strict=True)]
        immediate = columns[len(before) :]
        if self.kept:
            jacobian = torch.cat(columns[: len(before)], dim=1)
            immediate = [new.addmm(jacobian, j) for new, j in zip(immediate, self.kept, strict=True)]
        self.kept = tuple(immediate)


def layers_of_step(
    cell: PointwiseCell, weights: Sequence[Weights], inputs: Tensor, before: State, reset: Tensor | None
) -> list[Layer]:
    """Return a stack's layers at one step; inputs [B, D], before [L, B, H] each, reset bool [B]."""
    keep = None if reset is None else ~reset
    layers = []
    for depth, own in enumerate(weights):
        state = tuple(s[depth] if keep is None else s[depth].masked_fill(~keep[:, None], 0) for s in before)
        zx = cell.net_input(inputs, own["weight_ih"], own.get("bias_ih"))
        zh = cell.net_input(state[0], own["weight_hh"], own.get("bias_hh"))
        vectors = tuple(own[name] for name in cell.vectors)
        layers.append(Layer(cell, own, inputs, state, cell.partials(zx, zh, state, *vectors), keep))
        inputs = cell.pointwise(zx, zh, state, *vectors)[0]
    return layers
