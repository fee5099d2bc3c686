"""A cell is one time step; everything else in the package repeats it, differentiates it or shows it.

The one idea: most cells are two linear maps and one function that acts on each hidden unit alone,

    zx_t = W_ih x_t + b_ih              [B, G, H]   eq. (5)
    zh_t = W_hh h_{t-1} + b_hh          [B, G, H]
    state_t = pointwise(zx_t, zh_t, state_{t-1})    eq. (6); all three: eq. (15) of docs/equations.md

so its derivatives are diagonals, and the step Jacobian is closed form, eq. (16):

    ∂state_t/∂state_{t-1} = D_direct + Σ_g D_g W_hh[g]

Symbols, the same in every file: T steps, B batch rows, D inputs, H hidden units, P projected units, G gates.
"""

from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import Any, ClassVar, NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

State = tuple[Tensor, ...]
Weights = Mapping[str, Tensor]


class Cell(ABC):
    """One time step, `state_t = step(x_t, state_{t-1})`; `state_t[0]` is what the layer puts out.

    A cell holds no parameters: it says which shapes it needs, and the layer owns them. So one cell object serves any
    number of layers, and a cell is as good as a value (two equal cells compute the same).

    The contract. `step` returns a tuple of one tensor for each of `states`, of the shape, dtype and device of the state that
    it was given, and changes none of its arguments in place. Autograd goes through each step as it is written, so norms and
    other functions across the units, parameters that the cell closes over, and random numbers all get their right gradient;
    what is computed from a second run (`gradient_map`, `products`, `lyapunov`) refuses a step that draws random numbers.

    Attributes:
        states: names of the state's components, the output first: `("h",)`, or `("h", "c")` for the LSTM.
    """

    states: ClassVar[tuple[str, ...]] = ("h",)

    @abstractmethod
    def shapes(self, input_size: int, hidden_size: int, bias: bool, proj_size: int = 0) -> dict[str, tuple[int, ...]]:
        """Return the name and shape of each parameter, in the order of registration."""

    @abstractmethod
    def step(self, x: Tensor, state: State, weights: Weights) -> State:
        """Return the state after one step, from x [B, D] and the state before it (each [B, H])."""

    def reset_parameters(self, weights: Weights) -> None:
        """Draw every parameter from U(-1/√H, 1/√H), as torch.nn does.

        A layer, which knows H, draws so by itself where this is not overridden. Called directly, H is the last size of
        `weight_hh`; raises KeyError if there is none.
        """
        if "weight_hh" not in weights:
            raise KeyError(
                f"{type(self).__name__} has no weight_hh (only {', '.join(weights)}), whose last size is the number of "
                "units: draw the parameters with bptt.cells.draw_uniform(weights, hidden_size)"
            )
        draw_uniform(weights, weights["weight_hh"].shape[-1])


def draw_uniform(weights: Weights, hidden_size: int) -> None:
    """Draw every parameter from U(-1/√H, 1/√H), with H = hidden_size."""
    bound = hidden_size**-0.5
    for weight in weights.values():
        torch.nn.init.uniform_(weight, -bound, bound)


class Partials(NamedTuple):
    """The derivatives of one pointwise step: all are diagonals over the hidden units, so a vector of H holds each.

    zx[s]         ∂state_t[s]/∂zx_t            [B, G, H]
    zh[s]         ∂state_t[s]/∂zh_t            [B, G, H]
    direct[s][r]  ∂state_t[s]/∂state_{t-1}[r]  [B, H], with zh_t held fixed; None where it is zero
    vectors[s]    ∂state_t[s]/∂vector_v        one [B, H] for each per-unit parameter
    """

    zx: tuple[Tensor, ...]
    zh: tuple[Tensor, ...]
    direct: tuple[tuple[Tensor | None, ...], ...]
    vectors: tuple[tuple[Tensor, ...], ...] = ()


_PAIR = ("pointwise", "partials")


class PointwiseCell(Cell):
    """A cell of the form above. To make one, set `gates` and write `pointwise`; the rest is inherited.

    The contract. `pointwise` is run again on the way back, over the rows of all steps at once, and its derivatives are taken
    as diagonals. So it must
      - act on each hidden unit and each row alone (no mean, norm, softmax, product or shift across them; across the gates
        of a unit is fine), for any number of rows, one included, with each of `vectors` as [H] or as [B, H];
      - give the same result each time: no random numbers, no state of its own;
      - change none of its arguments in place;
      - use no tensor that asks for a gradient but its arguments. A constant tensor (a mask) is fine.
    It returns a tuple, one tensor [B, H] for each of `states`, in the layer's dtype and on its device. A function with
    another derivative than its own (a spike with a surrogate gradient) is a `torch.autograd.Function` that it calls. All
    this is tried out on made-up numbers when a layer of the cell first runs, and what is found is refused in a sentence
    (`bptt.cells.probe` says how, and what that proves); what cannot keep to it is written as a `bptt.Cell`.

    A class that overrides `pointwise` gets autograd's `partials`, unless it states its own.

    Attributes:
        gates: G, the number of rows of H that zx and zh have.
        vectors: names of parameters with one value per hidden unit (peepholes, leaks), passed on to `pointwise`.
        projectable: whether h may be projected to P < H units (true only if `pointwise` does not read `state[0]`).
    """

    gates: ClassVar[int]
    vectors: ClassVar[tuple[str, ...]] = ()
    projectable: ClassVar[bool] = False

    def __init_subclass__(cls, **keywords: Any) -> None:
        """Use autograd's partials where a subclass overrides `pointwise` alone: those inherited are another function's."""
        super().__init_subclass__(**keywords)
        first = {name: next(i for i, base in enumerate(cls.__mro__) if name in vars(base)) for name in _PAIR}
        if first["pointwise"] < first["partials"]:
            cls.partials = PointwiseCell.partials  # type: ignore[method-assign]

    @abstractmethod
    def pointwise(self, zx: Tensor, zh: Tensor, state: State, *vectors: Tensor) -> State:
        """Return state_t, [B, H] each, from zx and zh [B, G, H], state_{t-1} and the per-unit parameters [H]."""

    def partials(self, zx: Tensor, zh: Tensor, state: State, *vectors: Tensor) -> Partials:
        """Return the derivatives of `pointwise`. This default lets autograd find them; the cells here state them by hand.

        Since the function acts on each unit alone, one backward pass of a sum over units yields the whole diagonal.
        """
        n_states = len(self.states)
        per_unit = tuple(v.expand_as(state[-1]) for v in vectors)  # [B, H]: one derivative per row
        leaves = [leaf.detach().requires_grad_() for leaf in (zx, zh, *state, *per_unit)]
        with torch.enable_grad():
            after = self.pointwise(leaves[0], leaves[1], tuple(leaves[2 : 2 + n_states]), *leaves[2 + n_states :])
            rows = [_of_sum(s, leaves) for s in after]

        def filled(start: int, stop: int) -> tuple[tuple[Tensor, ...], ...]:
            pairs = (zip(row[start:stop], leaves[start:stop], strict=True) for row in rows)
            return tuple(tuple(torch.zeros_like(leaf) if g is None else g for g, leaf in pair) for pair in pairs)

        return Partials(
            zx=tuple(zx for (zx,) in filled(0, 1)),
            zh=tuple(zh for (zh,) in filled(1, 2)),
            direct=tuple(tuple(row[2 : 2 + n_states]) for row in rows),
            vectors=filled(2 + n_states, len(leaves)),
        )

    def shapes(self, input_size: int, hidden_size: int, bias: bool, proj_size: int = 0) -> dict[str, tuple[int, ...]]:
        """Return torch.nn's names and shapes, and one [H] for each of `vectors`."""
        rows = self.gates * hidden_size
        shapes: dict[str, tuple[int, ...]] = {
            "weight_ih": (rows, input_size),
            "weight_hh": (rows, proj_size or hidden_size),
        }
        if bias:
            shapes |= {"bias_ih": (rows,), "bias_hh": (rows,)}
        if proj_size:
            shapes["weight_hr"] = (proj_size, hidden_size)
        return shapes | {name: (hidden_size,) for name in self.vectors}

    def step(self, x: Tensor, state: State, weights: Weights) -> State:
        """Return the state after one step: both net inputs, the pointwise function, the projection if there is one."""
        zx = self.net_input(x, weights["weight_ih"], weights.get("bias_ih"))
        return self.advance(zx, state, weights)

    def advance(self, zx: Tensor, state: State, weights: Weights) -> State:
        """Return the state after one step, from zx [B, G, H]: the part of a step that stays inside the time loop."""
        zh = self.net_input(state[0], weights["weight_hh"], weights.get("bias_hh"))
        after = self.pointwise(zx, zh, state, *(weights[name] for name in self.vectors))
        if "weight_hr" in weights:
            after = (F.linear(after[0], weights["weight_hr"]), *after[1:])
        return after

    def net_input(self, inputs: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        """Return W v + b with the gates on an axis of their own: [..., V] → [..., G, H]."""
        return F.linear(inputs, weight, bias).unflatten(-1, (self.gates, -1))

    def joined_net_input(self, x: Tensor, h: Tensor, weights: Weights) -> Tensor:
        """The second form of eq. (5), one product: [W_ih W_hh] [x; h] + b  [B, G, H].

        Equals zx + zh. It is the textbook's form; the loop uses the other one, because the part with x needs no time
        loop. (A GRU needs zx and zh apart: its reset gate multiplies the candidate's zh alone.)
        """
        weight = torch.cat([weights["weight_ih"], weights["weight_hh"]], dim=1)
        bias = weights["bias_ih"] + weights["bias_hh"] if "bias_ih" in weights else None
        return self.net_input(torch.cat([x, h], dim=-1), weight, bias)

    def jacobian(self, zx: Tensor, state: State, weights: Weights) -> Tensor:
        """A_t = ∂state_t/∂state_{t-1}  [B, S, S] with S = Σ sizes of the state's components, in their order.

        A_t[s, r] = diag(direct[s][r]) + [r is h] Σ_g diag(zh[s][g]) W_hh[g]; a projection multiplies row h by W_hr.
        One factor of eq. (11), in the closed form of eq. (16).
        """
        w_hh = weights["weight_hh"].unflatten(0, (self.gates, -1))  # G,H,P
        zh = self.net_input(state[0], weights["weight_hh"], weights.get("bias_hh"))
        partials = self.partials(zx, zh, state, *(weights[name] for name in self.vectors))
        rows = []
        for s in range(len(self.states)):
            blocks = []
            for r, before in enumerate(state):
                block = zh.new_zeros(*zh.shape[:-2], zh.shape[-1], before.shape[-1])
                direct = partials.direct[s][r]
                if direct is not None:
                    block = block + torch.diag_embed(direct)
                if r == 0:
                    block = block + torch.einsum("...gh,ghp->...hp", partials.zh[s], w_hh)
                blocks.append(block)
            row = torch.cat(blocks, dim=-1)
            if s == 0 and "weight_hr" in weights:
                row = weights["weight_hr"] @ row
            rows.append(row)
        return torch.cat(rows, dim=-2)


def _of_sum(after: Tensor, leaves: list[Tensor]) -> tuple[Tensor | None, ...]:
    """Return ∂(Σ after)/∂leaf for each leaf; None where `after` does not depend on it."""
    if not after.requires_grad:
        return (None,) * len(leaves)
    return torch.autograd.grad(after.sum(), leaves, retain_graph=True, allow_unused=True)
