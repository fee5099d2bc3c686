"""Every cell: its derivatives by hand, its Jacobian, and torch.nn's cells as witnesses."""

import pytest
import torch
from hypothesis import given
from torch import nn

from bptt.cells import GRU, LSTM, Elman, PointwiseCell
from tests.cases import BY_HAND, POINTWISE, assert_same, initial_state, layer, seeds, sizes


def _step_inputs(cell, seed, size):
    """A layer, its weights, x [B, D], zx [B, G, H] and a state."""
    torch.manual_seed(seed)
    _, batch, inputs, hidden = size
    made = layer(cell, inputs, hidden)
    weights = {name: w.detach() for name, w in made.layer_weights(0, 0).items()}
    x = torch.randn(batch, inputs, dtype=torch.float64)
    state = tuple(s.detach() for s in initial_state(made, batch))
    return weights, x, cell.net_input(x, weights["weight_ih"], weights["bias_ih"]), state


def _partials_as_dict(partials):
    tensors = {f"zx{s}": p for s, p in enumerate(partials.zx)} | {f"zh{s}": p for s, p in enumerate(partials.zh)}
    shape = partials.zx[0][..., 0, :]
    for s, row in enumerate(partials.direct):
        for r, diagonal in enumerate(row):
            tensors[f"direct{s}{r}"] = torch.zeros_like(shape) if diagonal is None else diagonal
    return tensors


@pytest.mark.parametrize("name", BY_HAND)
@given(seed=seeds, size=sizes())
def test_partials_by_hand_are_those_of_autograd(name, seed, size):
    cell = BY_HAND[name]
    weights, _, zx, state = _step_inputs(cell, seed, size)
    zh = cell.net_input(state[0], weights["weight_hh"], weights["bias_hh"])
    by_hand = _partials_as_dict(cell.partials(zx, zh, state))
    by_autograd = _partials_as_dict(PointwiseCell.partials(cell, zx, zh, state))
    assert_same({k: v.expand_as(by_autograd[k]) for k, v in by_hand.items()}, by_autograd)


@pytest.mark.parametrize("proj", [False, True])
@pytest.mark.parametrize("name", POINTWISE)
@given(seed=seeds, size=sizes())
def test_jacobian_is_that_of_autograd(name, proj, seed, size):
    cell = POINTWISE[name]
    torch.manual_seed(seed)
    _, batch, inputs, hidden = size
    hidden += 1
    made = layer(cell, inputs, hidden, proj_size=hidden - 1 if proj and cell.projectable else 0)
    weights = {n: w.detach() for n, w in made.layer_weights(0, 0).items()}
    state = tuple(s.detach() for s in initial_state(made, batch))
    x = torch.randn(batch, inputs, dtype=torch.float64)
    widths = [s.shape[1] for s in state]

    def step(joined):
        return torch.cat(cell.step(x, joined.split(widths, dim=1), weights), dim=1)

    full = torch.autograd.functional.jacobian(step, torch.cat(state, dim=1))  # B,S,B,S
    want = full.diagonal(dim1=0, dim2=2).permute(2, 0, 1)
    got = cell.jacobian(cell.net_input(x, weights["weight_ih"], weights["bias_ih"]), state, weights)
    assert_same({"A": got}, {"A": want})


@pytest.mark.parametrize("name", ["elman-tanh", "elman-relu", "elman-sigmoid", "lstm"])
@given(seed=seeds, size=sizes())
def test_both_forms_of_the_net_input_are_equal(name, seed, size):
    """Eq. (5): W_hx x + W_hh h + b = [W_hx W_hh] [x; h] + b."""
    cell = BY_HAND[name]
    weights, x, zx, state = _step_inputs(cell, seed, size)
    apart = zx + cell.net_input(state[0], weights["weight_hh"], weights["bias_hh"])
    assert_same({"z": cell.joined_net_input(x, state[0], weights)}, {"z": apart})
    joined_step = cell.pointwise(cell.joined_net_input(x, state[0], weights), torch.zeros_like(zx), state)
    assert_same({"h": joined_step[0]}, {"h": cell.step(x, state, weights)[0]})


@pytest.mark.parametrize(
    ("cell", "peer"),
    [
        (Elman("tanh"), nn.RNNCell),
        (Elman("relu"), lambda *a, **k: nn.RNNCell(*a, nonlinearity="relu", **k)),
        (GRU(), nn.GRUCell),
        (LSTM(), nn.LSTMCell),
    ],
)
@given(seed=seeds, size=sizes())
def test_one_step_is_that_of_torch(cell, peer, seed, size):
    weights, x, _, state = _step_inputs(cell, seed, size)
    theirs = peer(x.shape[1], state[0].shape[1], dtype=torch.float64)
    theirs.load_state_dict(weights)
    after = theirs(x, state if len(state) > 1 else state[0])
    after = after if isinstance(after, tuple) else (after,)
    got = cell.step(x, state, weights)
    assert_same(dict(enumerate(got)), {i: a.detach() for i, a in enumerate(after)})


def test_an_unknown_nonlinearity_is_refused():
    with pytest.raises(ValueError, match="Unknown nonlinearity 'gelu': select from 'tanh', 'relu' or 'sigmoid'"):
        Elman("gelu")


def test_cells_are_values():
    assert Elman("tanh") == Elman() != Elman("relu")
    assert len({GRU(), GRU(), LSTM()}) == 2
