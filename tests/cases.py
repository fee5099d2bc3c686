"""The cells, heads and sizes that the law tests walk over. A new cell joins CELLS and inherits every law."""

from dataclasses import dataclass
from typing import ClassVar

import torch
from hypothesis import strategies as st
from torch import nn
from torch.nn import functional as F

import bptt
from bptt.cells import GRU, LSTM, Cell, Elman, PointwiseCell
from bptt.kernels.autocast import onednn_has_lstm
from bptt.network import Linear, Sigmoid, Softmax


@dataclass(frozen=True)
class Leaky(PointwiseCell):
    """A user's cell that states no derivative: h = (1 − a) h + a tanh(z), with a leak for each unit."""

    gates: ClassVar[int] = 1
    vectors: ClassVar[tuple[str, ...]] = ("leak",)

    def pointwise(self, zx, zh, state, leak):
        a = torch.sigmoid(leak)
        return ((1 - a) * state[0] + a * torch.tanh((zx + zh).squeeze(-2)),)


@dataclass(frozen=True)
class Peephole(PointwiseCell):
    """A user's LSTM with peepholes (Gers, Schmidhuber 2000): two state components and three per-unit parameters."""

    states: ClassVar[tuple[str, ...]] = ("h", "c")
    gates: ClassVar[int] = 4
    vectors: ClassVar[tuple[str, ...]] = ("peephole_i", "peephole_f", "peephole_o")
    projectable: ClassVar[bool] = True

    def pointwise(self, zx, zh, state, p_i, p_f, p_o):
        i, f, g, o = (zx + zh).unbind(-2)
        c = torch.sigmoid(f + p_f * state[1]) * state[1] + torch.sigmoid(i + p_i * state[1]) * torch.tanh(g)
        return torch.sigmoid(o + p_o * c) * torch.tanh(c), c


@dataclass(frozen=True)
class Normed(Cell):
    """A user's cell that is not pointwise: the net input is normalised across the units."""

    def shapes(self, input_size, hidden_size, bias, proj_size=0):
        return {"weight_ih": (hidden_size, input_size), "weight_hh": (hidden_size, hidden_size)}

    def step(self, x, state, weights):
        z = F.linear(x, weights["weight_ih"]) + F.linear(state[0], weights["weight_hh"])
        return (torch.tanh(F.layer_norm(z, z.shape[-1:])),)


POINTWISE = {
    "elman-tanh": Elman("tanh"),
    "elman-relu": Elman("relu"),
    "elman-sigmoid": Elman("sigmoid"),
    "gru": GRU(),
    "lstm": LSTM(),
    "leaky": Leaky(),
    "peephole": Peephole(),
}
CELLS = POINTWISE | {"normed": Normed()}
BY_HAND = {name: POINTWISE[name] for name in ("elman-tanh", "elman-relu", "elman-sigmoid", "gru", "lstm")}
HEADS = {"softmax": Softmax(), "sigmoid": Sigmoid(), "linear": Linear()}

seeds = st.integers(0, 2**31 - 1)


@st.composite
def sizes(draw, max_steps=9):
    """Steps T, batch B, inputs D, hidden units H: small, 1 included."""
    return tuple(draw(st.integers(1, n)) for n in (max_steps, 4, 5, 6))


def layer(cell, input_size, hidden_size, **options):
    """A float64 layer with the cell's parameters drawn wide enough that no derivative is nearly linear or nearly 0."""
    made = bptt.Recurrent(cell, input_size, hidden_size, dtype=torch.float64, **options)
    with torch.no_grad():
        for parameter in made.parameters():
            parameter.normal_(std=0.8)
    return made


def random_reset(steps, batch):
    """Resets at about a third of the places."""
    return torch.rand(steps, batch) < 0.3


def plain(cell, weights, x, state, reset=None):
    """The plain equations, step by step, for autograd: outputs [T, B, ·] and the final state."""
    outputs = []
    for t in range(len(x)):
        if reset is not None:
            state = tuple(torch.where(reset[t, :, None], torch.zeros_like(s), s) for s in state)
        state = cell.step(x[t], state, weights)
        outputs.append(state[0])
    return torch.stack(outputs), state


def initial_state(made, batch, scale=1.0):
    """A random initial state of one layer and direction, requiring a gradient."""
    width = [made.proj_size or made.hidden_size, *[made.hidden_size] * (len(made.cell.states) - 1)]
    return tuple((scale * torch.randn(batch, w, dtype=torch.float64)).requires_grad_() for w in width)


def as_hidden(state):
    """torch.nn's form of one layer's state: a layer axis in front, a tuple only if there are several."""
    stacked = tuple(s.unsqueeze(0) for s in state)
    return stacked if len(stacked) > 1 else stacked[0]


def network(cell, head, inputs, hidden, outputs, **options):
    """The lecture's network in float64 over one layer of `cell`."""
    outputs = 1 if head == "sigmoid" else outputs
    made = bptt.Network(layer(cell, inputs, hidden, **options), hidden, outputs, HEADS[head])
    return made.to(torch.float64)


def targets(head, steps, batch, outputs):
    """Random targets that fit the head."""
    if head == "softmax":
        return torch.randint(outputs, (steps, batch))
    if head == "sigmoid":
        return torch.randint(2, (steps, batch))
    return torch.randn(steps, batch, outputs, dtype=torch.float64)


def lstm_under_autocast():
    """torch.nn.LSTM where its oneDNN has one in bfloat16 for this processor; else bptt's, which needs none."""
    return nn.LSTM if onednn_has_lstm(torch.bfloat16) else bptt.LSTM


def named_gradients(model: nn.Module):
    """{name: gradient}, zeros where there is none; and the gradients are cleared."""
    found = {n: torch.zeros_like(p) if p.grad is None else p.grad.clone() for n, p in model.named_parameters()}
    model.zero_grad(set_to_none=True)
    return found


def assert_same(got, want, tolerance=1e-10):
    """Two trees of tensors agree, relative in norm, each tensor by its name."""
    assert got.keys() == want.keys()
    for name in want:
        error = (got[name] - want[name]).norm() / max(1.0, want[name].norm().item())
        assert error <= tolerance, f"{name}: relative error {error:.3g}"
