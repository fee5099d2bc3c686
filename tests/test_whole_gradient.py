"""What is attached to a parameter sees the whole gradient, once a call; an error leaves `.grad` as it was."""

import re

import pytest
import torch
from torch import nn
from torch.autograd.graph import register_multi_grad_hook
from torch.nn.utils.rnn import PackedSequence, pack_sequence

import bptt
from bptt.errors import InputError
from bptt.gradient.collect import Sum
from tests.cases import CELLS, assert_same, named_gradients

DOUBLE = torch.float64
T, B = 24, 2


class Custom(nn.Module):
    """A loop in Python, a state in a dict, and a head that every step uses twice."""

    def __init__(self):
        super().__init__()
        self.cell, self.head = nn.GRUCell(3, 4, dtype=DOUBLE), nn.Linear(4, 4, dtype=DOUBLE)

    def forward(self, x, state=None):
        h = x.new_zeros(x.shape[1], 4) if state is None else state["h"]
        outputs = []
        for x_t in x:
            h = self.cell(x_t, h)
            outputs.append(self.head(torch.tanh(self.head(h))))
        return torch.stack(outputs), {"h": h}


MODELS = {
    "torch LSTM": lambda: nn.LSTM(3, 4, 2, dtype=DOUBLE),
    "torch GRU": lambda: nn.GRU(3, 4, dtype=DOUBLE),
    "GRU": lambda: bptt.GRU(3, 4, dtype=DOUBLE),
    "LSTM": lambda: bptt.LSTM(3, 4, 2, dtype=DOUBLE),
    "peephole": lambda: bptt.Recurrent(CELLS["peephole"], 3, 4, dtype=DOUBLE),
    "custom": Custom,
}
PIECEWISE = {
    "truncated": bptt.Truncated(5),
    "k1 < k2": bptt.Truncated(5, 13),
    "k1 > k2": bptt.Truncated(5, 3),
    "measured": bptt.Truncated(5, 8, measure=True),
    "checkpointed": bptt.Checkpointed("1MB"),
    "checkpointed, disk": bptt.Checkpointed("25kB", "disk"),
    "many chunks": bptt.Checkpointed("25kB"),
    "rtrl": bptt.RTRL(),
    "snap1": bptt.SnAp1(),
}
STRATEGIES = {"exact": bptt.Exact()} | PIECEWISE
ONLINE = (bptt.RTRL, bptt.SnAp1)


def squared(outputs, wanted):
    z, y = (t.data if isinstance(t, PackedSequence) else t for t in (outputs, wanted))
    return ((z - y) ** 2).sum()


def made(name="GRU"):
    torch.manual_seed(0)
    return MODELS[name]()


def data(packed=False):
    torch.manual_seed(1)
    if packed:
        return tuple(pack_sequence([torch.randn(n, w, dtype=DOUBLE) for n in (T, 17, 6)]) for w in (3, 4))
    return torch.randn(T, B, 3, dtype=DOUBLE), torch.randn(T, B, 4, dtype=DOUBLE)


class Attached:
    """Hooks of all kinds on every parameter, and what they saw."""

    def __init__(self, model):
        self.seen, self.accumulated, self.together = {}, {}, []
        for name, p in model.named_parameters():
            p.register_hook(lambda g, name=name: self._change(name, g))
            p.register_post_accumulate_grad_hook(lambda p, name=name: self._after(name, p))
        register_multi_grad_hook(list(model.parameters()), self.together.append)

    def _change(self, name, gradient):
        self.seen.setdefault(name, []).append(gradient.clone())
        return gradient.clamp(-0.5, 0.5)

    def _after(self, name, p):
        self.accumulated.setdefault(name, []).append(p.grad.clone())


def assert_once(attached, model, whole, before=None):
    """Each hook ran once, on the whole gradient, and `.grad` is what was there and what the first hook returned."""
    gradients = named_gradients(model)
    for name, gradient in whole.items():
        assert [len(attached.seen[name]), len(attached.accumulated[name])] == [1, 1], name
        (seen,) = attached.seen[name]
        assert_same({name: seen}, {name: gradient}, 1e-12)  # other pieces may be added up in another order
        assert_same({name: attached.accumulated[name][0]}, {name: gradients[name]}, 0)
        wanted = seen.clamp(-0.5, 0.5) + (0 if before is None else before)
        assert_same({name: gradients[name]}, {name: wanted}, 0 if before is None else 1e-12)
    assert len(attached.together) == 1


@pytest.mark.parametrize("strategy", STRATEGIES)
@pytest.mark.parametrize("name", MODELS)
def test_hooks_run_once_on_the_whole_gradient(name, strategy):
    strategy = STRATEGIES[strategy]
    if isinstance(strategy, bptt.SnAp1) and name not in ("torch GRU", "GRU", "peephole"):
        pytest.skip("one layer with a pointwise cell only")
    model, (x, y) = made(name), data()
    bptt.backward(model, x, y, squared, strategy)
    whole = named_gradients(model)
    attached = Attached(model)
    bptt.backward(model, x, y, squared, strategy)
    assert_once(attached, model, whole)
    attached = Attached(model := made(name))
    for p in model.parameters():
        p.grad = torch.full_like(p, 3.0)
    bptt.backward(model, x, y, squared, strategy)
    assert_once(attached, model, whole, 3.0)


@pytest.mark.parametrize("strategy", [s for s in STRATEGIES if s not in ("rtrl", "snap1")])
@pytest.mark.parametrize("kind", ["packed", "stream"])
def test_hooks_with_packed_sequences_and_streams(kind, strategy):
    strategy, model = STRATEGIES[strategy], made()
    x, y = data(packed=kind == "packed")
    bptt.backward(model, x, y, squared, strategy)
    whole = named_gradients(model)
    if kind == "stream":
        x, y = list(x.split(7)), (lambda y=y: iter(y.split(5)))
    attached = Attached(model)
    bptt.backward(model, x, y, squared, strategy)
    assert_once(attached, model, whole)


@pytest.mark.parametrize("strategy", ["k1 < k2", "rtrl", "snap1"])
def test_hooks_where_the_past_reaches_back_into_an_earlier_call(strategy):
    strategy, model, (x, y) = STRATEGIES[strategy], made(), data()

    def twice():
        first = bptt.backward(model, x[:10], y[:10], squared, strategy)
        model.zero_grad()
        return first, bptt.backward(model, x[10:], y[10:], squared, strategy, first)

    first, _ = twice()
    whole = named_gradients(model)
    attached = Attached(model)
    bptt.backward(model, x[10:], y[10:], squared, strategy, first)
    assert_once(attached, model, whole)


def test_a_hook_can_be_removed_and_registered_on_the_way():
    model, (x, y), calls = made(), data(), []
    handles = [p.register_hook(lambda g: calls.append("removed")) for p in model.parameters()]
    late = []

    def loss(outputs, wanted):
        if not late:
            handles[0].remove()
            late.append(model.bias_hh_l0.register_hook(lambda g: calls.append("late")))
        return squared(outputs, wanted)

    bptt.backward(model, x, y, loss, bptt.Truncated(5))
    assert sorted(calls) == ["late"] + ["removed"] * 3
    bptt.backward(model, x, y, squared, bptt.Truncated(5))
    assert len(calls) == 8


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_an_optimizer_in_the_backward_pass_changes_nothing_on_the_way(strategy):
    """Each parameter is updated when its gradient is complete; its memory is free then."""
    strategy, (x, y), lr = STRATEGIES[strategy], data(), 0.05
    plain, model = made(), made()
    bptt.backward(plain, x, y, squared, strategy)
    want = {name: p.detach() - lr * p.grad for name, p in plain.named_parameters()}

    def step(p):
        with torch.no_grad():
            p -= lr * p.grad
        p.grad = None

    for p in model.parameters():
        p.register_post_accumulate_grad_hook(step)
    result = bptt.backward(model, x, y, squared, strategy)
    assert all(p.grad is None for p in model.parameters())
    assert_same(dict(model.named_parameters()), want, 1e-14)
    torch.testing.assert_close(result.loss, bptt.backward(plain, x, y, squared, strategy).loss)


@pytest.mark.parametrize("strategy", ["exact", "truncated", "k1 < k2", "k1 > k2"])
def test_inputs_and_the_state_get_their_gradient_once(strategy):
    """Also where they are made of others: the way behind them is gone once, and hooks see the whole."""
    strategy, model, (x, y) = STRATEGIES[strategy], made(), data()
    scale = torch.tensor(1.3, dtype=DOUBLE, requires_grad=True)
    begin = torch.randn(1, B, 4, dtype=DOUBLE, requires_grad=True)
    calls = []

    def through(made_of):
        given, state = made_of(x), made_of(begin)
        for tensor in (scale, begin):
            tensor.grad = None
        handles = [t.register_hook(lambda g: calls.append(g)) for t in (given, begin)] if given.requires_grad else []
        bptt.backward(model, given, y, squared, strategy, state)
        for handle in handles:
            handle.remove()
        return named_gradients(model), torch.zeros_like(begin) if begin.grad is None else begin.grad, scale.grad

    gradients, d_begin, d_scale = through(lambda t: torch.exp(scale) * t)
    assert len(calls) == (1 if strategy == bptt.Truncated(5, 3) else 2)  # no window of 3 steps has the state
    plain, d_plain, _ = through(lambda t: torch.exp(scale).detach() * t)
    assert_same(gradients | {"begin": d_begin}, plain | {"begin": d_plain}, 1e-12)
    if not isinstance(strategy, bptt.Exact):
        return
    other = torch.autograd.grad(squared(model(scale.exp() * x, scale.exp() * begin)[0], y), [scale])[0]
    torch.testing.assert_close(d_scale, other)


def test_the_gradient_of_inputs_of_a_truncated_run():
    model, (x, y) = made(), data()
    given = x.clone().requires_grad_()
    bptt.backward(model, given, y, squared, bptt.Truncated(5, 9))
    want, edges = torch.zeros_like(x), range(0, T, 5)
    for begin in edges:
        end = min(begin + 5, T)
        start = max(0, end - 9)
        with torch.no_grad():
            state = model(x[:start])[1] if start else None
        part = x[start:end].clone().requires_grad_()
        loss = squared(model(part, state)[0][begin - start :], y[begin:end])
        want[start:end] += torch.autograd.grad(loss, part)[0]
    torch.testing.assert_close(given.grad, want)


class Failing(nn.Module):
    """Fails at a call of the model, of the loss, or in a hook."""

    def __init__(self, where):
        super().__init__()
        torch.manual_seed(0)
        self.rnn, self.where, self.left = bptt.GRU(3, 4, dtype=DOUBLE), where, 3
        if where == "hook":
            list(self.parameters())[-1].register_hook(self._fail)
        elif where == "late hook":
            next(iter(self.parameters())).register_post_accumulate_grad_hook(self._fail)

    def forward(self, x, state=None):
        if self.where == "model":
            self.count()
        return self.rnn(x, state)

    def loss(self, outputs, wanted):
        if self.where == "loss":
            self.count()
        return squared(outputs, wanted)

    def count(self):
        self.left -= 1
        if self.left == 0:
            raise KeyError("on purpose")

    def _fail(self, _):
        raise KeyError("on purpose")


@pytest.mark.parametrize("where", ["model", "loss", "hook", "late hook"])
@pytest.mark.parametrize("strategy", [s for s in STRATEGIES if s != "snap1"])
def test_after_an_error_the_gradients_are_as_before(strategy, where):
    (x, y), strategy = data(), STRATEGIES[strategy]
    for before in (None, 2.0):
        model = Failing(where)
        if isinstance(strategy, bptt.Exact):
            model.left = 1
        for p in model.parameters():
            p.grad = None if before is None else torch.full_like(p, before)
        with pytest.raises(KeyError, match="on purpose"):
            bptt.backward(model, x, y, model.loss, strategy)
        for p in model.parameters():
            assert (p.grad is None) if before is None else torch.equal(p.grad, torch.full_like(p, before))


def test_after_an_error_in_a_hook_a_checkpointed_run_leaves_the_generators():
    model, (x, y) = nn.LSTM(3, 4, 2, dropout=0.5, dtype=DOUBLE), data()
    model.weight_ih_l0.register_hook(Failing("hook")._fail)
    before = torch.get_rng_state()
    with pytest.raises(KeyError):
        bptt.backward(model, x, y, squared, bptt.Checkpointed("40kB"))
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize("layer", [nn.GRU, bptt.GRU])
def test_a_smaller_last_batch_is_refused_as_by_the_other_strategies(layer):
    model, (x, y) = layer(3, 4, dtype=DOUBLE), data()

    def refusal(strategy, **options):
        first = bptt.backward(model, x[:10], y[:10], squared, strategy, **options)
        rest = {name: value.new_zeros(T - 10, 1) for name, value in options.items()}
        with pytest.raises((RuntimeError, ValueError)) as caught:
            bptt.backward(model, x[10:, :1], y[10:, :1], squared, strategy, first, **rest)
        return caught.type, str(caught.value)

    want = refusal(bptt.Exact())
    assert ("hidden state h has batch 2, input has batch 1: pass state" in want[1]) == (layer is bptt.GRU)
    for strategy in (bptt.Truncated(5), bptt.Truncated(5, 13), bptt.Truncated(5, 100), bptt.Checkpointed("1MB")):
        assert refusal(strategy) == want
    if layer is bptt.GRU:
        assert refusal(bptt.Truncated(5, 13), reset=torch.zeros(10, B, dtype=torch.bool)) == want


def test_other_steps_than_the_past_has_are_refused_in_a_sentence():
    class Any(nn.Module):
        def __init__(self):
            super().__init__()
            self.weight = nn.Parameter(torch.ones(()))

        def forward(self, x, state=None):
            x = x["a"] if isinstance(x, dict) else x
            return self.weight * x, torch.zeros(())

    model, strategy = Any(), bptt.Truncated(2, 4)
    first = bptt.backward(model, torch.ones(6, 2, 3), torch.ones(6, 2, 3), squared, strategy)
    for x in (torch.ones(6, 1, 3), {"a": torch.ones(6, 2, 3)}):
        with pytest.raises(ValueError, match=r"reach back into the previous call, .* pass the `.state` of its Result"):
            bptt.backward(model, x, torch.ones(6, 1, 3), squared, strategy, first)
    assert bptt.backward(model, torch.ones(6, 1, 3), torch.ones(6, 1, 3), squared, strategy, first.state).loss == 0


# Many pieces -------------------------------------------------------------------------------------------------------------


def least_budget(model, x):
    """The bytes with which `Checkpointed` takes the most pieces; the native core's share of them differs by machine."""
    with pytest.raises(InputError) as refused:
        bptt.Checkpointed(1).plan(model, x, x, lambda outputs, _: outputs.sum())
    return int(re.search(r"at least ([\d,]+) bytes", str(refused.value))[1].replace(",", ""))


def summing(layer):
    """h_t = relu(x_t + 0.1): with h_{t-1} unused, each gradient of Σ h is a plain sum over all rows and steps."""
    model = layer(1, 1, nonlinearity="relu")
    with torch.no_grad():
        for name, p in model.named_parameters():
            p.fill_({"weight_ih_l0": 1.0, "bias_ih_l0": 0.1}.get(name, 0.0))
    return model


@pytest.mark.parametrize("layer", [nn.RNN, bptt.RNN])
@pytest.mark.parametrize(
    "strategy", [bptt.Truncated(1), bptt.Truncated(2, 3), bptt.Checkpointed(1), bptt.RTRL(), bptt.SnAp1()]
)
def test_the_error_does_not_grow_with_the_number_of_pieces(layer, strategy):
    """Added up one after the other in float32, 300 pieces of 1.1 err by 2.9e-6 and 3000 by 2.4e-5."""
    steps = 300 if isinstance(strategy, bptt.Checkpointed) else 3000
    model, x = summing(layer), torch.full((steps, 1, 1), 1.1)
    if isinstance(strategy, bptt.Checkpointed):
        strategy = bptt.Checkpointed(least_budget(model, x) + 16)  # backward measures a few bytes more
    result = bptt.backward(model, x, x, lambda outputs, _: outputs.sum(), strategy)
    want = {"weight_ih_l0": x.double().sum(), "bias_ih_l0": float(steps), "bias_hh_l0": float(steps)}
    for name, value in want.items():
        error = abs(float(model.get_parameter(name).grad) / float(value) - 1)
        assert error <= 2**-22, f"{name}: {error:.2g}"
    right = x.double().sum() + 0.1 * steps
    assert abs(float(result.loss) / float(right) - 1) <= 2**-22


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_short_formats_are_not_added_up_in_themselves(dtype):
    """1000 times 0.01 in bfloat16 would stop at about 4."""
    weight = nn.Parameter(torch.ones((), dtype=dtype))
    x = torch.full((1000, 1), 0.01, dtype=dtype)
    bptt.backward(lambda x, state: (weight * x, torch.zeros(())), x, x, lambda z, _: z.sum(), bptt.Truncated(1))
    assert weight.grad.dtype == dtype
    assert abs(float(weight.grad) / float(x.double().sum()) - 1) < 2**-8


@pytest.mark.parametrize("dense_too", [False, True])
@pytest.mark.parametrize("k1", [2, 24])
def test_sparse_gradients_stay_sparse(k1, dense_too):
    """As autograd has them: SparseAdam needs it. Where the table is used otherwise too, the gradient is dense."""

    class Tabled(nn.Module):
        def __init__(self):
            super().__init__()
            torch.manual_seed(0)
            self.table, self.rnn = nn.Embedding(5, 3, sparse=True), bptt.GRU(3, 4)

        def forward(self, x, state=None):
            outputs, state = self.rnn(self.table(x), state)
            if dense_too and x[0, 0] % 2:
                outputs = outputs + self.table.weight.sum()
            return outputs, state

    torch.manual_seed(2)
    x, y = torch.randint(5, (T, B)), torch.randn(T, B, 4)
    model = Tabled()
    bptt.backward(model, x, y, squared, bptt.Truncated(k1))
    total, state = 0.0, None
    for a in range(0, T, k1):
        outputs, state = model(x[a : a + k1], state)
        total, state = total + squared(outputs, y[a : a + k1]), state.detach()
    want = torch.autograd.grad(total, model.table.weight)[0]
    found = model.table.weight.grad
    assert found.is_sparse == (not dense_too)
    torch.testing.assert_close(found.to_dense(), want.to_dense(), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("together", [1, 8])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32, torch.float64, torch.complex64])
def test_sums_of_any_number_of_gradients(dtype, together):
    """Up to the end of each group and beyond; what is added stays as it is, also where its numbers share memory."""
    wide = torch.complex128 if dtype.is_complex else torch.float64
    for n in (1, 2, 8, 9, 63, 64, 65, 1000):
        gradients = [torch.randn(3, 1, dtype=dtype).expand(3, 4) + 3 * (k % 2) for k in range(n)]
        kept, total = [gradient.clone() for gradient in gradients], Sum(together)
        for gradient in gradients:
            total.add(gradient)
        right, size = (sum(f(gradient.to(wide)) for gradient in kept) for f in (lambda g: g, torch.abs))
        found = total.take()
        assert found.dtype == dtype
        assert ((found - right).abs() <= 3 * torch.finfo(dtype).eps * size.abs()).all(), n
        assert all(map(torch.equal, gradients, kept)), n


@pytest.mark.parametrize("together", [1, 8])
def test_sums_of_sparse_and_dense_gradients(together):
    for n in (1, 9, 100):
        for dense in (0, 3, n):
            total, right = Sum(together), torch.zeros(5, 2, dtype=torch.float64)
            for k in range(n):
                gradient = torch.zeros(5, 2)
                gradient[k % 5] = torch.randn(2)
                right += gradient
                total.add(gradient if k < dense else gradient.to_sparse(1))
            torch.testing.assert_close(total.take().to_dense().double(), right, rtol=1e-5, atol=1e-5)


# Online strategies ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("strategy", [bptt.RTRL(), bptt.SnAp1()], ids=["rtrl", "snap1"])
def test_online_parameters_of_the_loss(strategy):
    """A head that is part of the loss: it does not act on the state, and its gradient is that of each step alone."""
    (x, y), model, head = data(), made(), nn.Linear(4, 4, dtype=DOUBLE)

    def loss(outputs, wanted):
        return squared(head(outputs), wanted)

    bptt.backward(model, x, y, loss)
    want = named_gradients(model) | {f"head {n}": g for n, g in named_gradients(head).items()}
    bptt.backward(model, x, y, loss, strategy)
    got = named_gradients(model) | {f"head {n}": g for n, g in named_gradients(head).items()}
    kept = want if isinstance(strategy, bptt.RTRL) else {n: g for n, g in want.items() if n.startswith("head")}
    assert_same({n: got[n] for n in kept}, kept, 1e-10)


@pytest.mark.parametrize("strategy", [bptt.RTRL(), bptt.SnAp1()], ids=["rtrl", "snap1"])
def test_online_what_would_get_no_gradient_is_refused(strategy):
    (x, y), model = data(), made()
    with pytest.raises(ValueError, match="the state wants a gradient"):
        bptt.backward(model, x, y, squared, strategy, torch.zeros(1, B, 4, dtype=DOUBLE, requires_grad=True))
    with pytest.raises(ValueError, match=r"depends on a tensor that wants a gradient|SnAp1 needs one recurrent layer"):
        bptt.backward(model, x.requires_grad_(), y, squared, strategy)
    assert all(p.grad is None for p in model.parameters())
