"""`bptt.backward`: truncation against its definition, state across chunks and calls, and what is refused."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import bptt
from bptt.gradient import parse_strategy
from tests.cases import CELLS, HEADS, assert_same, named_gradients, network, random_reset, seeds, sizes, targets

steps_and_calls = st.lists(st.integers(1, 9), min_size=1, max_size=3)


def oracle(model, x, y, losses, k1, k2, ends, reset=None):
    """The definition of `Truncated`, by brute force: one forward from zero and one backward for each loss step.

    ends: the steps at which a call ends. Blocks of k1 start anew at each call.
    """
    gradient = {name: torch.zeros_like(p) for name, p in model.named_parameters()}
    begin = 0
    for end_of_call in ends:
        while begin < end_of_call:
            end = min(begin + k1, end_of_call)
            for t in range(begin, end):
                start = max(0, end - k2)
                if t < start:
                    continue
                state = None
                if start > 0:
                    with torch.no_grad():
                        _, state = _piece(model, x, 0, start, state, reset)
                z, _ = _piece(model, x, start, t + 1, state, reset)
                loss = losses(z[-1:], y[t : t + 1]).sum()
                found = torch.autograd.grad(loss, list(model.parameters()), allow_unused=True, materialize_grads=True)
                for name, g in zip(gradient, found, strict=True):
                    gradient[name] += g
            begin = end
    return gradient


def _piece(model, x, start, stop, state, reset):
    return model(x[start:stop], state, None if reset is None else reset[start:stop])


@pytest.mark.parametrize("with_reset", [False, True])
@pytest.mark.parametrize("head", HEADS)
@pytest.mark.parametrize("name", ["elman-tanh", "gru", "lstm", "peephole", "normed"])
@given(seed=seeds, size=sizes(), k1=st.integers(1, 6), k2=st.integers(1, 10))
def test_truncated_is_its_definition(name, head, with_reset, seed, size, k1, k2):
    torch.manual_seed(seed)
    steps, batch, inputs, hidden = size
    model = network(CELLS[name], head, inputs, hidden, 3)
    x, y = torch.randn(steps, batch, inputs, dtype=torch.float64), targets(head, steps, batch, 3)
    reset = random_reset(steps, batch) if with_reset else None
    want = oracle(model, x, y, model.head.losses, k1, k2, [steps], reset)

    def loss(z, target):
        return model.head.losses(z, target).sum()

    result = bptt.backward(model, x, y, loss, bptt.Truncated(k1, k2), reset=reset)
    assert_same(named_gradients(model), want)
    with torch.no_grad():
        z, state = model(x, None, reset)
        assert_same({"loss": result.loss}, {"loss": loss(z, y)})
    if torch.is_tensor(state):
        assert_same({"state": result.state}, {"state": state})


@given(
    seed=seeds,
    k1=st.integers(1, 4),
    extra=st.integers(0, 9),
    blocks=st.lists(st.integers(1, 3), min_size=1, max_size=4),
    with_reset=st.lists(st.booleans(), min_size=4, max_size=4),
)
def test_windows_reach_back_across_calls(seed, k1, extra, blocks, with_reset):
    """Calls of whole blocks, chained by their Result, give the gradient of one call over all steps."""
    torch.manual_seed(seed)
    lengths = [k1 * n for n in blocks]
    steps, batch = sum(lengths), 2
    model = network(CELLS["lstm"], "linear", 2, 3, 2)
    x, y = torch.randn(steps, batch, 2, dtype=torch.float64), targets("linear", steps, batch, 2)
    ends = torch.tensor(lengths).cumsum(0).tolist()
    resets = [random_reset(n, batch) if on else None for n, on in zip(lengths, with_reset, strict=False)]
    joined = torch.cat([torch.zeros(n, batch).bool() if r is None else r for n, r in zip(lengths, resets, strict=True)])
    strategy = bptt.Truncated(k1, k1 + extra)

    def loss(z, target):
        return model.head.losses(z, target).sum()

    result = None
    for end, length, reset in zip(ends, lengths, resets, strict=True):
        piece = slice(end - length, end)
        result = bptt.backward(model, x[piece], y[piece], loss, strategy, result, reset=reset)
    chained = named_gradients(model)
    assert_same(chained, oracle(model, x, y, model.head.losses, k1, k1 + extra, ends, joined))
    bptt.backward(model, x, y, loss, strategy, reset=joined)
    assert_same(named_gradients(model), chained)


def test_a_window_uses_the_weights_as_they_are_now():
    """After an optimizer step the look-back runs with the new weights, from the state that the old ones left."""
    torch.manual_seed(0)
    model = network(CELLS["elman-tanh"], "linear", 2, 3, 1)
    x, y = torch.randn(4, 2, 2, dtype=torch.float64), targets("linear", 4, 2, 1)

    def loss(z, target):
        return ((z - target) ** 2).sum()

    first = bptt.backward(model, x[:2], y[:2], loss, bptt.Truncated(2, 3))
    with torch.no_grad():
        _, before = model(x[:1])  # the state at the window's start, by the old weights
        for parameter in model.parameters():
            parameter -= 0.1 * parameter.grad
    model.zero_grad()
    bptt.backward(model, x[2:], y[2:], loss, bptt.Truncated(2, 3), state=first)
    got = named_gradients(model)
    z, _ = model(x[1:], before)
    loss(z[1:], y[2:]).backward()
    assert_same(got, named_gradients(model))


def test_exact_over_chunks_carries_the_state_but_not_the_gradient():
    torch.manual_seed(0)
    model = network(CELLS["gru"], "softmax", 2, 3, 4)
    x, y = torch.randn(6, 2, 2, dtype=torch.float64), targets("softmax", 6, 2, 4)

    def loss(z, target):
        return model.head.losses(z, target).sum()

    first = bptt.backward(model, x[:3], y[:3], loss)
    second = bptt.backward(model, x[3:], y[3:], loss, state=first.state)
    got = named_gradients(model) | {"loss": first.loss + second.loss}
    want = bptt.backward(model, x, y, loss, bptt.Truncated(3))
    assert_same(got, named_gradients(model) | {"loss": want.loss})
    assert not second.state.requires_grad


def test_an_initial_state_that_is_learned_gets_its_gradient():
    model = network(CELLS["lstm"], "linear", 2, 3, 1)
    x, y = torch.randn(5, 1, 2, dtype=torch.float64), targets("linear", 5, 1, 1)
    start = tuple(torch.randn(1, 1, 3, dtype=torch.float64, requires_grad=True) for _ in range(2))
    bptt.backward(model, x, y, lambda z, t: ((z - t) ** 2).sum(), state=start)
    z, _ = model(x, start)
    want = torch.autograd.grad(((z - y) ** 2).sum(), start)
    assert_same({i: s.grad for i, s in enumerate(start)}, dict(enumerate(want)))


def test_torch_layers_and_trees_of_inputs_work():
    """Any module of the form (x, state) -> (outputs, state); here with a dict as the input and as the outputs."""

    class Wrapped(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.lstm = torch.nn.LSTM(3, 4)

        def forward(self, x, state=None):
            h, state = self.lstm(torch.cat([x["a"], x["b"]], dim=-1), state)
            return {"h": h}, state

    model = Wrapped()
    x, y = {"a": torch.randn(7, 2, 1), "b": torch.randn(7, 2, 2)}, (torch.randn(7, 2, 4), torch.rand(7, 2) < 0.5)

    def loss(outputs, target):
        return (((outputs["h"] - target[0]) ** 2).sum(-1) * target[1]).sum()

    bptt.backward(model, x, y, loss, bptt.Truncated(2, 7))
    got = named_gradients(model)
    bptt.backward(model, x, y, loss)
    assert_same(got, named_gradients(model), tolerance=1e-5)


def _call(**changes):
    x, y = torch.randn(4, 2, 3), torch.randn(4, 2, 3)
    arguments = {"model": torch.nn.RNN(3, 3), "x": x, "y": y, "loss": lambda z, t: ((z - t) ** 2).sum()} | changes
    return bptt.backward(**arguments)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"y": torch.randn(5, 2, 3)}, "x has 4 steps, y has 5"),
        ({"x": torch.randn(0, 2, 3), "y": torch.randn(0, 2, 3)}, "x has 0 steps, wanted at least 1"),
        ({"x": (torch.randn(4, 2, 3), torch.randn(3, 2))}, r"sizes \[3, 4\] along the first axis"),
        ({"loss": lambda z, t: (z - t) ** 2}, r"loss returned a tensor of shape \(\d, 2, 3\), wanted a scalar"),
        ({"loss": lambda z, t: 1.0}, "loss returned a float, wanted a scalar tensor"),
        ({"loss": lambda z, t: (z - t).detach().sum()}, "the loss depends on no parameter"),
        ({"reset": torch.zeros(3, 2, dtype=torch.bool)}, "reset has 3 steps, x has 4"),
    ],
)
def test_what_cannot_be_is_refused(changes, message):
    for strategy in (bptt.Exact(), bptt.Truncated(2)):
        with pytest.raises(ValueError, match=message):
            _call(**changes, strategy=strategy)


@pytest.mark.parametrize(("k1", "k2"), [(0, None), (-1, 2), (2, 0), (1.5, None), (True, None)])
def test_impossible_windows_are_refused(k1, k2):
    with pytest.raises(ValueError, match="wanted a whole number of steps, at least 1"):
        bptt.Truncated(k1, k2)


def test_strategies_by_name():
    assert parse_strategy("exact") == bptt.Exact()
    assert parse_strategy("truncated:7") == bptt.Truncated(7)
    assert parse_strategy("truncated:7,9") == bptt.Truncated(7, 9)
    for wrong in (
        "",
        "exact:3",
        "truncated",
        "truncated:",
        "truncated:1,2,3",
        "truncated:-1",
        "truncated:a",
        "tbptt:5",
    ):
        with pytest.raises(ValueError, match="unknown: give exact, truncated:K1"):
            parse_strategy(wrong)
    with pytest.raises(ValueError, match="at least 1"):
        parse_strategy("truncated:0")


def test_truncation_measures_what_it_loses():
    """Against the same gradients by hand; and it changes neither the gradient nor the state."""
    torch.manual_seed(0)
    model = network(CELLS["gru"], "linear", 3, 5, 2)
    x, y = torch.randn(20, 2, 3, dtype=torch.float64), torch.randn(20, 2, 2, dtype=torch.float64)

    def loss(z, target):
        return model.head.losses(z, target).sum()

    plain = bptt.backward(model, x, y, loss, bptt.Truncated(3, 4))
    want = named_gradients(model)
    found = bptt.backward(model, x, y, loss, bptt.Truncated(3, 4, measure=True))
    assert_same(named_gradients(model), want, 0)
    assert plain.lost is None
    assert torch.equal(plain.state, found.state)
    vectors = []
    for back in (found.lost.lookback, 4):
        with torch.no_grad():
            _, state = model(x[: 20 - back])
        z, _ = model(x[20 - back :], state)
        grads = torch.autograd.grad(loss(z[-2:], y[-2:]), list(model.parameters()))  # the last block has 2 steps
        vectors.append(torch.cat([g.flatten() for g in grads]))
    whole, part = vectors
    assert found.lost.lookback >= 8
    assert found.lost.share == pytest.approx(float((whole - part).norm() / whole.norm()))
    assert found.lost.cosine == pytest.approx(float(whole @ part / whole.norm() / part.norm()))
    assert bptt.backward(model, x, y, loss, bptt.Truncated(20, measure=True)).lost[:2] == pytest.approx((0, 1))
    zero = bptt.backward(model, x, y, lambda z, _: 0 * z.sum(), bptt.Truncated(3, 4, measure=True))
    assert zero.lost[:2] == (0.0, 1.0)
