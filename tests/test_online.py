"""Forward in time: RTRL is the exact gradient, SnAp-1 is RTRL where the recurrence is diagonal, and both learn online."""

import copy
import itertools

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

import bptt
from bptt.network import Network, Softmax
from tests import cases
from tests.cases import CELLS, assert_same, seeds


def _squared(outputs, targets):
    return ((outputs - targets) ** 2).sum()


def _gradients(model, strategy, x, y, loss=_squared, state=None, cuts=(), **options):
    """`.grad` by name after one call, or after several that hand the Result on."""
    model.zero_grad()
    edges, result = [0, *cuts, len(x)], state
    for a, b in itertools.pairwise(edges):
        reset = options.get("reset")
        result = bptt.backward(
            model, x[a:b], y[a:b], loss, strategy, result, reset=None if reset is None else reset[a:b]
        )
    return {n: torch.zeros_like(p) if p.grad is None else p.grad.clone() for n, p in model.named_parameters()}, result


@pytest.mark.parametrize("name", CELLS)
@given(seed=seeds, size=cases.sizes(max_steps=6), layers=st.integers(1, 2), with_reset=st.booleans())
def test_rtrl_is_exact(name, seed, size, layers, with_reset):
    torch.manual_seed(seed)
    T, B, D, H = size
    model = cases.layer(CELLS[name], D, H, num_layers=layers)
    x, y = torch.randn(T, B, D, dtype=torch.float64), torch.randn(T, B, H, dtype=torch.float64)
    reset = torch.rand(T, B) < 0.3 if with_reset else None
    want, end = _gradients(model, bptt.Exact(), x, y, reset=reset)
    for cuts in ((), (T // 2,) if T > 1 else ()):
        got, result = _gradients(model, bptt.RTRL(limit=1000), x, y, reset=reset, cuts=cuts)
        assert_same(got, want, 1e-9)
    assert torch.allclose(end.loss, result.loss) or cuts
    for a, b in zip(
        torch.utils._pytree.tree_leaves(end.state), torch.utils._pytree.tree_leaves(result.state), strict=True
    ):
        torch.testing.assert_close(a, b)


@pytest.mark.parametrize("make", [nn.RNN, nn.GRU, nn.LSTM, bptt.GRU, bptt.LSTM])
def test_the_layers_of_torch_and_ours(make):
    model = make(3, 5, 2).double()
    x, y = torch.randn(7, 2, 3, dtype=torch.float64), torch.randn(7, 2, 5, dtype=torch.float64)
    want, _ = _gradients(model, bptt.Exact(), x, y)
    assert_same(_gradients(model, bptt.RTRL(), x, y)[0], want, 1e-9)


@pytest.mark.parametrize("symbols", [True, False])
def test_a_network_with_an_embedding_and_a_head(symbols):
    torch.manual_seed(0)
    table = nn.Embedding(4, 3) if symbols else None
    model = Network(bptt.GRU(3, 6), 6, 4, Softmax(), table).double()
    x = torch.randint(0, 4, (9, 2)) if symbols else torch.randn(9, 2, 3, dtype=torch.float64)
    y = torch.randint(0, 4, (9, 2))
    reset = torch.rand(9, 2) < 0.2

    def loss(z, targets):
        return model.head.losses(z, targets).sum()

    want, _ = _gradients(model, bptt.Exact(), x, y, loss, reset=reset)
    assert_same(_gradients(model, bptt.RTRL(), x, y, loss, reset=reset)[0], want, 1e-9)
    assert_same(_gradients(model, bptt.RTRL(), x, y, loss, reset=reset, cuts=(2, 3))[0], want, 1e-9)


def test_closed_form_is_autograd_s(monkeypatch):
    model = bptt.LSTM(2, 3, dtype=torch.float64)
    x, y = torch.randn(5, 2, 2, dtype=torch.float64), torch.randn(5, 2, 3, dtype=torch.float64)
    closed, _ = _gradients(model, bptt.RTRL(), x, y)
    monkeypatch.setattr("bptt.gradient.online.rtrl._only_layer", lambda model: None)
    slow, _ = _gradients(model, bptt.RTRL(), x, y)
    assert_same(closed, slow, 1e-10)


class Behind(nn.Module):
    """Parameters before the recurrent layer that are no embedding, a projection, and a state that it wraps."""

    def __init__(self):
        super().__init__()
        self.before, self.rnn = nn.Linear(2, 3), nn.LSTM(3, 4, proj_size=2)

    def forward(self, x, state=None):
        h, c = (None, None) if state is None else (state["h"], state["c"])
        outputs, (h, c) = self.rnn(torch.tanh(self.before(x)), None if h is None else (h, c))
        return outputs, {"h": h, "c": c}


def test_any_module():
    torch.manual_seed(0)
    model = Behind().double()
    x, y = torch.randn(5, 2, 2, dtype=torch.float64), torch.randn(5, 2, 2, dtype=torch.float64)
    want, _ = _gradients(model, bptt.Exact(), x, y)
    assert_same(_gradients(model, bptt.RTRL(), x, y, cuts=(2,))[0], want, 1e-9)
    with pytest.raises(ValueError, match="one recurrent layer"):
        _gradients(model, bptt.SnAp1(), x, y)


class Touched(nn.Module):
    """One recurrent layer, and a hand in its state at every step."""

    def __init__(self, touch):
        super().__init__()
        self.rnn, self.linear, self.touch = nn.GRU(2, 4), nn.Linear(4, 4), touch

    def forward(self, x, state=None):
        outputs = []
        for x_t in x.split(1):
            output, state = self.touch(self, x_t, state)
            outputs.append(output)
        return torch.cat(outputs), state


def _scaled(model, x, state):
    output, state = model.rnn(x, state)
    return output, 0.5 * state


def _cut(model, x, state):
    output, state = model.rnn(x, state)
    return output + model.linear(output), state.detach()


def _through_parameters(model, x, state):
    output, state = model.rnn(x, state)
    return output, model.linear(state)


@pytest.mark.parametrize("touch", [_scaled, _cut, _through_parameters])
def test_a_state_that_the_model_changes_after_the_layer(touch):
    """The layer's closed form is not that of the model's state."""
    torch.manual_seed(0)
    model = Touched(touch).double()
    x, y = torch.randn(6, 2, 2, dtype=torch.float64), torch.randn(6, 2, 4, dtype=torch.float64)
    want, _ = _gradients(model, bptt.Exact(), x, y)
    got, _ = _gradients(model, bptt.RTRL(), x, y)
    for name, p in want.items():
        if p is not None:
            assert_same({name: got[name]}, {name: p}, 1e-9)
    with pytest.raises(ValueError, match="whose state is the model's"):
        _gradients(model, bptt.SnAp1(), x, y)


def test_a_model_that_begins_as_another_is_refused():
    def feedback(model, x, state):
        return model.rnn(x, state) if state is None else model.rnn(x + state[..., :2], state)

    model, x, y = Touched(feedback), torch.randn(6, 2, 2), torch.randn(6, 2, 4)
    with pytest.raises(ValueError, match="do the same at every step"):
        bptt.backward(model, x, y, _squared, bptt.RTRL())
    assert all(p.grad is None for p in model.parameters())


@pytest.mark.parametrize("layer", [nn.GRU, bptt.GRU])
def test_weights_that_are_made_of_other_parameters(layer):
    torch.manual_seed(0)
    model = nn.utils.parametrizations.weight_norm(layer(2, 4, dtype=torch.float64), "weight_hh_l0")
    x, y = torch.randn(6, 2, 2, dtype=torch.float64), torch.randn(6, 2, 4, dtype=torch.float64)
    want, _ = _gradients(model, bptt.Exact(), x, y)
    assert_same(_gradients(model, bptt.RTRL(), x, y)[0], want, 1e-9)


@pytest.mark.parametrize("strategy", [bptt.RTRL(), bptt.SnAp1()], ids=["rtrl", "snap1"])
def test_the_row_of_an_embedding_s_padding_is_not_learned(strategy):
    torch.manual_seed(0)
    model = Network(bptt.RNN(3, 6), 6, 4, Softmax(), nn.Embedding(4, 3, padding_idx=1)).double()
    x, y = torch.randint(0, 4, (9, 2)), torch.randint(0, 4, (9, 2))

    def loss(z, targets):
        return model.head.losses(z, targets).sum()

    want, _ = _gradients(model, bptt.Exact(), x, y, loss)
    got, _ = _gradients(model, strategy, x, y, loss)
    table = next(n for n, p in model.named_parameters() if p.shape == (4, 3))
    assert not got[table][1].any()
    if isinstance(strategy, bptt.RTRL):
        assert_same(got, want, 1e-9)


@pytest.mark.parametrize("name", [n for n in CELLS if n != "normed"])
@given(seed=seeds, size=cases.sizes(max_steps=6), with_reset=st.booleans(), cut=st.booleans())
def test_snap1_is_rtrl_where_the_recurrence_is_diagonal(name, seed, size, with_reset, cut):
    torch.manual_seed(seed)
    T, B, D, H = size
    model = cases.layer(CELLS[name], D, H)
    with torch.no_grad():
        square = model.weight_hh_l0.unflatten(0, (-1, H))
        square.mul_(torch.eye(H, dtype=torch.float64))
    x, y = torch.randn(T, B, D, dtype=torch.float64), torch.randn(T, B, H, dtype=torch.float64)
    reset = torch.rand(T, B) < 0.3 if with_reset else None
    cuts = (T // 2,) if cut and T > 1 else ()
    want, _ = _gradients(model, bptt.RTRL(), x, y, reset=reset)
    assert_same(_gradients(model, bptt.SnAp1(), x, y, reset=reset, cuts=cuts)[0], want, 1e-9)


def test_snap1_with_an_embedding_and_as_an_approximation():
    torch.manual_seed(0)
    model = Network(bptt.RNN(3, 8), 8, 4, Softmax(), nn.Embedding(4, 3)).double()
    x, y = torch.randint(0, 4, (12, 3)), torch.randint(0, 4, (12, 3))

    def loss(z, targets):
        return model.head.losses(z, targets).sum()

    exact, _ = _gradients(model, bptt.Exact(), x, y, loss)
    near, _ = _gradients(model, bptt.SnAp1(), x, y, loss)
    dot = sum((exact[n] * near[n]).sum() for n in exact)
    norms = [sum(g[n].square().sum() for n in g) ** 0.5 for g in (exact, near)]
    assert 0.8 < float(dot / norms[0] / norms[1]) < 1 - 1e-6


def test_memory_does_not_grow_with_the_steps():
    """The tensors that a call leaves behind are those of one step."""
    model = bptt.GRU(2, 4)
    x, y = torch.randn(300, 1, 2), torch.randn(300, 1, 4)
    sizes = []
    for steps in (3, 300):
        result = bptt.backward(model, x[:steps], y[:steps], _squared, bptt.RTRL())
        sizes.append(sum(t.numel() for t in result.past))
    assert sizes[0] == sizes[1]


def test_an_error_on_the_way_leaves_the_gradients_as_they_were():
    model, x, y = bptt.GRU(2, 4), torch.randn(8, 1, 2), torch.randn(8, 1, 4)
    before, _ = _gradients(model, bptt.RTRL(), x, y)
    calls = iter(range(8))

    def failing(outputs, targets):
        if next(calls) == 5:
            raise KeyboardInterrupt
        return _squared(outputs, targets)

    with pytest.raises(KeyboardInterrupt):
        bptt.backward(model, x, y, failing, bptt.RTRL())
    assert all(torch.equal(p.grad, before[n]) for n, p in model.named_parameters())


@pytest.mark.parametrize("strategy", [bptt.RTRL(), bptt.SnAp1()], ids=["rtrl", "snap1"])
def test_learns_online(strategy):
    """Say the input of two steps ago, with an update at every step: far below what the mean would give."""
    torch.manual_seed(0)
    model = Network(bptt.GRU(1, 12), 12, 1, bptt.network.Linear())
    optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
    stream = torch.sign(torch.randn(1500, 4, 1))
    result, losses = None, []
    for t in range(2, len(stream)):
        optimizer.zero_grad()
        result = bptt.backward(model, stream[t : t + 1], stream[t - 2 : t - 1], _squared, strategy, result)
        optimizer.step()
        losses.append(float(result.loss) / 4)
    assert sum(losses[-100:]) / 100 < 0.3  # it begins at 1


def test_bad_input():
    model, x, y = bptt.RNN(2, 200), torch.randn(3, 1, 2), torch.randn(3, 1, 200)
    with pytest.raises(ValueError, match=r"hidden size 200 takes 32\.6 MB.*RTRL\(limit=200\)"):
        bptt.backward(model, x, y, _squared, bptt.RTRL())
    bptt.backward(model, x[:1], y[:1], _squared, bptt.RTRL(limit=200))
    with pytest.raises(ValueError, match="bidirectional"):
        bptt.backward(nn.GRU(2, 2, bidirectional=True), x, torch.randn(3, 1, 4), _squared, bptt.RTRL())
    with pytest.raises(TypeError, match="wanted a torch.nn.Module"):
        bptt.backward(lambda x, state: model(x, state), x, y, _squared, bptt.SnAp1())
    small = bptt.RNN(2, 3)
    with pytest.raises(ValueError, match="wanted a scalar"):
        bptt.backward(small, x, y[..., :3], lambda o, t: o - t, bptt.RTRL())
    other = bptt.backward(copy.deepcopy(small), x, y[..., :3], _squared, bptt.RTRL())
    with pytest.raises(ValueError, match="another model's"):
        bptt.backward(
            bptt.RNN(2, 3, 2), x, y[..., :3], _squared, bptt.RTRL(), bptt.Result(other.loss, None, other.past)
        )


def test_cost_is_what_it_keeps():
    model = bptt.LSTM(3, 5, 2)
    result = bptt.backward(model, torch.randn(2, 4, 3), torch.randn(2, 4, 5), _squared, bptt.RTRL())
    assert bptt.RTRL().cost(model, batch=4).bytes == sum(4 * t.numel() for t in result.past)
