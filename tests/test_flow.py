"""What `bptt.watch` sees is autograd's own gradient, step by step, in the user's unmodified model."""

import copy
import json
import warnings

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn.utils.rnn import pack_padded_sequence, pack_sequence, pad_packed_sequence

import bptt
from bptt.cells import GRU, LSTM, Elman, PointwiseCell
from bptt.flow.diagnosis.criteria import START
from bptt.flow.report import words
from bptt.flow.tracing import fast_partials
from bptt.flow.tracing.reach import strands
from bptt.kernels import cpu
from bptt.train.watching import figures
from tests.cases import Leaky, Normed, Peephole, lstm_under_autocast
from tests.flow_cases import cases, right

T, B, D, H = 6, 4, 3, 5


def _layers(**options):
    yield "nn.RNN", nn.RNN(D, H, **options)
    yield "nn.RNN relu", nn.RNN(D, H, nonlinearity="relu", **options)
    yield "nn.GRU", nn.GRU(D, H, **options)
    yield "nn.LSTM", nn.LSTM(D, H, **options)
    yield "nn.LSTM projected", nn.LSTM(D, H, proj_size=2, **options)
    yield "bptt.RNN sigmoid", bptt.RNN(D, H, nonlinearity="sigmoid", **options)
    yield "bptt.GRU", bptt.GRU(D, H, **options)
    yield "bptt.LSTM", bptt.LSTM(D, H, **options)
    yield "leaky", bptt.Recurrent(Leaky(), D, H, **options)
    yield "peephole", bptt.Recurrent(Peephole(), D, H, **options)


pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(params=["native core", "plain loops"])
def way_back(request, monkeypatch):
    """What computes δ."""
    if request.param == "plain loops":
        monkeypatch.setattr(cpu, "serves", lambda *_: False)


FORMS = {
    "plain": {}, "two layers": {"num_layers": 2}, "both directions": {"num_layers": 2, "bidirectional": True},
    "batch first": {"batch_first": True}, "dropout": {"num_layers": 3, "dropout": 0.4},
    "dropout, both directions, batch first":
        {"num_layers": 2, "dropout": 0.4, "bidirectional": True, "batch_first": True}, "no bias": {"bias": False},
}  # fmt: skip


def _tensors(result):
    outputs, final = result
    outputs = getattr(outputs, "data", outputs)
    return [outputs, *(final if isinstance(final, tuple) else (final,))]


def _loss(result):
    """Every output and every final state, each with its own random weight."""
    return sum((torch.randn_like(t) * t).sum() for t in _tensors(result))


def _watched(model, *args, **kwargs):
    """The flow, and the gradients; the same run without `watch` gives the same gradients bit for bit."""
    found = []
    for watching in (False, True):
        torch.manual_seed(1)
        model.zero_grad()
        if watching:
            with warnings.catch_warnings():
                warnings.simplefilter("error")
                with bptt.watch(model) as flow:
                    _loss(model(*args, **kwargs)).backward()
        else:
            _loss(model(*args, **kwargs)).backward()
        found.append({n: p.grad.clone() for n, p in model.named_parameters()})
    assert all(torch.equal(found[0][n], found[1][n]) for n in found[0])
    return flow, found[0]


def _assert_exact(model, flow, gradients, tolerance):
    for layer in flow:
        end = f"_l{layer.layer}" + ("_reverse" if layer.direction else "")
        for short in layer.traces[0].weights:
            want = gradients.pop(short + end)
            parts = sum(layer.contribution(short, k) for k in range(layer.steps))
            for got in (parts, layer.contribution(short)):
                error = (got - want).norm() / want.norm().clamp_min(1e-3)
                assert error <= tolerance, f"{layer.name} {short}: {error:.2e}"
        for k in (0, layer.steps - 2):
            for kind in ("weight_hh", "weight_ih"):
                norms = layer.contribution(kind, k).unflatten(0, (layer.cell.gates, -1)).flatten(1).norm(dim=1)
                np.testing.assert_allclose(layer.contributions(kind)[k], norms, rtol=1e-3, atol=1e-4)
    assert not gradients


@pytest.mark.parametrize(
    ("form", "dtype"), [*((form, torch.float64) for form in FORMS), ("two layers", torch.float32)], ids=str
)
@pytest.mark.usefixtures("way_back")
def test_contributions_sum_to_the_gradient(form, dtype):
    options = FORMS[form]
    for name, model in _layers(**options):
        model.to(dtype)
        shape = (B, T, D) if options.get("batch_first") else (T, B, D)
        with torch.no_grad():
            for p in model.parameters():
                p.normal_(std=0.5)
        try:
            flow, gradients = _watched(model, torch.randn(shape, dtype=dtype))
            _assert_exact(model, flow, gradients, 1e-12 if dtype == torch.float64 else 1e-5)
        except Exception as error:
            raise AssertionError(f"{name}: {error}") from error


@pytest.mark.parametrize("enforce_sorted", [True, False])
@pytest.mark.usefixtures("way_back")
def test_packed_sequences_and_padding(enforce_sorted):
    lengths = [6, 4, 4, 2] if enforce_sorted else [2, 6, 3, 4]
    for _, model in _layers(num_layers=2, bidirectional=True):
        model.double()
        x = torch.randn(T, B, D, dtype=torch.float64)
        packed = pack_padded_sequence(x, lengths, enforce_sorted=enforce_sorted)
        flow, gradients = _watched(model, packed)
        _assert_exact(model, flow, gradients, 1e-12)


def test_padding_contributes_exactly_nothing():
    model = nn.LSTM(D, H)
    with bptt.watch(model) as flow:
        outputs, _ = model(torch.randn(T, B, D))
        outputs[:4].square().sum().backward()
    layer = flow["lstm.l0"]
    assert (layer.delta[4:] == 0).all()
    assert (layer.contributions()[4:] == 0).all()
    assert (layer.contribution("weight_hh", 5) == 0).all()


@pytest.mark.usefixtures("way_back")
def test_initial_states_unbatched_and_resets():
    reset = torch.rand(T, B) < 0.3
    for cell in (Elman("relu"), GRU(), LSTM(), Leaky(), Peephole()):
        for bidirectional in (False, True):
            model = bptt.Recurrent(cell, D, H, 2, bidirectional=bidirectional, dtype=torch.float64)
            x = torch.randn(T, B, D, dtype=torch.float64)
            _assert_exact(model, *_watched(model, x, reset=reset), 1e-12)
            _assert_exact(model, *_watched(model, x[:, 0]), 1e-12)
            hx = tuple(torch.randn(4 if bidirectional else 2, B, H, dtype=torch.float64) for _ in cell.states)
            _assert_exact(model, *_watched(model, x, hx if len(hx) > 1 else hx[0], reset=reset), 1e-12)


@pytest.mark.usefixtures("way_back")
def test_packed_resets():
    lengths = [6, 4, 4, 2]
    x = pack_sequence([torch.randn(n, D, dtype=torch.float64) for n in lengths])
    reset = pack_sequence([torch.rand(n) < 0.3 for n in lengths])
    for cell in (Elman(), GRU(), LSTM()):
        model = bptt.Recurrent(cell, D, H, 2, bidirectional=True, dtype=torch.float64)
        _assert_exact(model, *_watched(model, x, reset=reset), 1e-12)


def test_the_profile_is_the_gradient_of_each_state():
    """‖∂L/∂h(k)‖ and ‖∂L/∂c(k)‖ against autograd through the plain equations, with states that keep their gradient."""
    for cell in (Elman(), GRU(), LSTM(), Peephole()):
        model = bptt.Recurrent(cell, D, H, dtype=torch.float64)
        x = torch.randn(T, B, D, dtype=torch.float64)
        flow, _ = _watched(model, x)
        torch.manual_seed(1)
        weights, seen = model.layer_weights(0, 0), []
        state = tuple(torch.zeros(B, H, dtype=torch.float64) for _ in cell.states)
        for t in range(T):
            state = tuple(s.clone() for s in cell.step(x[t], state, weights))  # h(k) is no function of c(k) here
            for s in state:
                s.retain_grad()
            seen.append(state)
        outputs = torch.stack([s[0] for s in seen])
        _loss((outputs, tuple(s.unsqueeze(0) for s in state))).backward()
        layer = next(iter(flow))
        for n, name in enumerate(cell.states):
            want = [float(s[n].grad.norm()) for s in seen]
            np.testing.assert_allclose(layer.state_delta(name), want, rtol=1e-10)


def test_closed_derivatives_equal_the_cells_own():
    for cell in (Elman("tanh"), Elman("relu"), Elman("sigmoid"), GRU()):
        zx, zh, h = (torch.randn(B, *s, dtype=torch.float64) for s in ((cell.gates, H), (cell.gates, H), (H,)))
        want = cell.partials(zx, zh, (h,))
        is_elman = isinstance(cell, Elman)
        got = (
            fast_partials.elman(cell, *cell.pointwise(zx, zh, (h,)))
            if is_elman
            else fast_partials.gru(zx.clone(), zh.clone(), h)
        )
        torch.testing.assert_close(got, want, rtol=1e-12, atol=1e-12)
    zx, zh, h, c = (torch.randn(B, *s, dtype=torch.float64) for s in ((4, H), (4, H), (H,), (H,)))
    want, after = LSTM().partials(zx, zh, (h, c)), LSTM().pointwise(zx, zh, (h, c))
    got = fast_partials.lstm(fast_partials.lstm_gates_(zx + zh), after[1], c)
    torch.testing.assert_close(got.by[:, :3], want.zh[1][:, :3])
    torch.testing.assert_close(got.by[:, 3], want.zh[0][:, 3])
    torch.testing.assert_close(got.q[:, None] * got.by[:, :3], want.zh[0][:, :3])
    torch.testing.assert_close(got.f, want.direct[1][1])


def _truncated(cell, weights, x, k, loss_weights, reset):
    """Truncated BPTT with lookback k by its definition: one run for each loss step, its start held constant."""
    layers = len(weights)
    parameters = [p for layer in weights for p in layer.values()]
    total = [torch.zeros_like(p) for p in parameters]

    def advance(t, states):
        inputs, after = x[t], []
        for layer in range(layers):
            before = states[layer]
            if reset is not None:
                before = tuple(torch.where(reset[t, :, None], torch.zeros_like(s), s) for s in before)
            after.append(cell.step(inputs, before, weights[layer]))
            inputs = after[-1][0]
        return after

    for t in range(len(x)):
        states = [tuple(torch.zeros(x.shape[1], H, dtype=x.dtype) for _ in cell.states)] * layers
        for i in range(t + 1):
            if i == max(0, t - k):
                states = [tuple(s.detach() for s in state) for state in states]
            states = advance(i, states)
        found = torch.autograd.grad((states[-1][0] * loss_weights[t]).sum(), parameters, allow_unused=True)
        total = [a if g is None else a + g for a, g in zip(total, found, strict=True)]
    return torch.cat([g.flatten() for g in total])


@pytest.mark.parametrize("with_reset", [False, True])
def test_truncation_is_what_truncated_backpropagation_computes(with_reset):
    for cell in (Elman(), GRU(), LSTM(), Leaky()):
        model = bptt.Recurrent(cell, D, H, 2, dtype=torch.float64)
        x, weights = torch.randn(T, B, D, dtype=torch.float64), torch.randn(T, B, H, dtype=torch.float64)
        reset = torch.rand(T, B) < 0.2 if with_reset else None
        with bptt.watch(model) as flow:
            (model(x, reset=reset)[0] * weights).sum().backward()
        of_layers = [model.layer_weights(n, 0) for n in range(2)]
        exact = torch.cat([p.grad.flatten() for p in model.parameters()])
        for k in (0, 1, 3, T - 1, 4 * T):
            kept = _truncated(cell, of_layers, x, k, weights, reset)
            got = flow.truncation(k)
            assert got.lost == pytest.approx(float((exact - kept).norm() / exact.norm()), abs=1e-10)
            assert got.share == pytest.approx(float(kept.norm() / exact.norm()), abs=1e-10)
            assert got.cosine == pytest.approx(float(exact @ kept / exact.norm() / kept.norm()), abs=1e-10)
    assert flow.truncation(T).lost == 0
    with pytest.raises(ValueError, match="whole number"):
        flow.truncation(-1)


def test_reach_is_the_jacobian_product_along_the_trajectory():
    """With one loss step, gain(j) is the norm of δ at lag j: autograd's own, each state's gradient retained."""
    model = bptt.LSTM(D, H, dtype=torch.float64)
    with bptt.watch(model) as flow:
        model(torch.randn(T, 1, D, dtype=torch.float64))[0][-1].sum().backward()
    layer = flow["lstm.l0"]
    size = np.sqrt(layer.delta**2 + layer.state_delta("c") ** 2)[::-1]
    np.testing.assert_allclose(layer.reach.gain, size / size[0], rtol=1e-9)
    assert layer.lags == T - 1
    assert layer.lag_share.sum() == pytest.approx(1)


@pytest.mark.parametrize("steps", [1, 2, 3, 4])
def test_reach_of_a_short_sequence_counts_every_loss_step(steps):
    model = nn.RNN(D, H)
    with bptt.watch(model) as flow:
        model(torch.randn(steps, 1, D))[0].sum().backward()
    assert flow["rnn.l0"].reach.pairs == list(range(steps, 0, -1))


@pytest.mark.parametrize("scale", [1e-30, 1.0, 1e25])
def test_reach_in_float32_neither_underflows_nor_overflows(scale):
    """Gains down to 1e-130, of gradients whose own squares float32 does not hold."""
    model, x = nn.RNN(D, H, nonlinearity="relu"), torch.rand(30, B, D)
    with torch.no_grad():
        model.weight_hh_l0.copy_(3e-5 * torch.eye(H))
        model.weight_ih_l0.abs_()
        model.bias_ih_l0.fill_(1.0)
    with bptt.watch(model) as flow:
        (scale * model(x)[0][-1]).sum().backward()
    wanted = 3e-5 ** np.arange(30.0)
    np.testing.assert_allclose(flow["rnn.l0"].reach.gain, wanted, rtol=1e-4)


def test_reach_ends_where_a_packed_sequence_or_a_reset_does():
    model = bptt.GRU(D, H, bidirectional=True, dtype=torch.float64)
    long, short = torch.randn(T, D, dtype=torch.float64), torch.randn(2, D, dtype=torch.float64)
    found = []
    for rows in ([long, short], [long], [short]):
        with bptt.watch(model) as flow:
            model(pack_sequence(rows))[1].sum().backward()
        found.append([flow[name].reach for name in ("gru.l0", "gru.l0_reverse")])
    for both, one, other in zip(*found, strict=True):
        assert both.pairs == [2] * len(other.gain) + [1] * (T - len(other.gain))
        joined = [np.sqrt((a**2 + b**2) / 2) for a, b in zip(one.gain, other.gain, strict=False)]
        np.testing.assert_allclose(both.gain, [*joined, *one.gain[len(joined) :]], rtol=1e-9)
    model = bptt.GRU(D, H)
    reset = torch.zeros(T, 1, dtype=torch.bool)
    reset[3] = True
    with bptt.watch(model) as flow:
        model(torch.randn(T, 1, D), reset=reset)[0][-1].sum().backward()
    assert flow["gru.l0"].lags == T - 1 - 3


def test_half_precision_is_watched_in_float32():
    for maker in (lstm_under_autocast(), bptt.GRU):
        model = maker(D, H, 2)
        with bptt.watch(model) as flow, torch.autocast("cpu", torch.bfloat16):
            model(torch.randn(T, B, D))[0].float().square().sum().backward()
        assert len(flow.layers) == 2
        want = model.weight_hh_l0.grad
        got = next(iter(flow)).contribution("weight_hh")
        assert (got - want).norm() <= 3e-2 * want.norm()
        model.bfloat16().zero_grad()
        with bptt.watch(model) as flow:
            model(torch.randn(T, B, D, dtype=torch.bfloat16))[0].float().square().sum().backward()
        assert len(flow.layers) == 2


@pytest.mark.parametrize("seed", [0, 1])
def test_verdicts_are_right_on_labelled_cases(seed):
    wrong, total, alarms, healthy = [], 0, 0, 0
    for case in cases(seed):
        verdicts = {finding.verdict for finding in case.watch().verdict()}
        total += 1
        healthy += case.label == "healthy"
        if not right(case, verdicts):
            wrong.append(f"{case.name}: {verdicts}")
            alarms += case.label == "healthy"
    assert total >= 60
    assert len(wrong) <= 0.05 * total, "\n".join(wrong)
    assert alarms <= 0.02 * healthy, "\n".join(wrong)


def test_a_few_rows_do_not_make_a_unit_dead():
    """A live ReLU is 0 in half of its rows: in a single row half of all units are."""
    model = nn.RNN(D, 8, nonlinearity="relu")
    for steps in (1, 2, 3):
        with bptt.watch(model) as flow:
            model(torch.randn(steps, 1, D))[0].square().sum().backward()
        assert [finding.verdict for finding in flow.verdict()] == ["healthy"]
    with torch.no_grad():
        model.bias_ih_l0.fill_(-20)
    with bptt.watch(model) as flow:
        model(torch.randn(3, 1, D))[0].sum().backward()
    assert "dead units" in [finding.verdict for finding in flow.verdict()]


def test_trap_a_transient_that_grows_a_hundredfold_although_the_spectral_radius_is_0():
    model = nn.RNN(4, 12)
    with torch.no_grad():
        model.weight_hh_l0.copy_(torch.diag(torch.full((11,), 1.6), 1))
        model.weight_ih_l0.mul_(0.01)
        model.bias_ih_l0.zero_()
        model.bias_hh_l0.zero_()
    with bptt.watch(model) as flow:
        model(torch.randn(40, 8, 4))[0][-1][:, 0].sum().backward()
    assert float(torch.linalg.eigvals(model.weight_hh_l0.detach()).abs().max()) < 1
    assert {f.verdict for f in flow.verdict()} == {"exploding"}
    assert flow["rnn.l0"].growth > 50


def test_trap_a_large_singular_value_whose_units_are_saturated():
    model = nn.RNN(4, 32)
    nn.init.orthogonal_(model.weight_hh_l0, 3.0)
    with bptt.watch(model) as flow:
        model(200 * torch.randn(40, 8, 4))[0].sum().backward()
    assert float(torch.linalg.matrix_norm(model.weight_hh_l0.detach(), 2)) > 1
    assert {f.verdict for f in flow.verdict()} == {"vanishing", "saturated"}


# What may go wrong around it.


def _said(action):
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        result = action()
    return result, " ".join(str(w.message) for w in caught if "bptt.watch" in str(w.message))


def _hooks(model):
    return sum(
        len(m._forward_hooks) + len(m._forward_pre_hooks) + len(m._backward_hooks) for m in model.modules()
    ) + sum(len(p._post_accumulate_grad_hooks or ()) for p in model.parameters())


def test_a_model_without_recurrent_layers_is_told():
    def run():
        with bptt.watch(nn.Linear(2, 2)) as flow:
            pass
        return flow

    flow, said = _said(run)
    assert "no recurrent layer" in said
    assert flow.verdict() == []
    with pytest.raises(TypeError, match=r"torch\.nn\.Module"):
        bptt.watch("model")


@pytest.mark.parametrize("what", ["no backward", "no_grad", "no call", "other loss", "frozen"])
def test_nothing_arrives(what):
    model = nn.LSTM(D, H)
    head = nn.Linear(2, 2)

    def run():
        with bptt.watch(model) as flow:
            if what == "no_grad":
                with torch.no_grad():
                    model(torch.randn(T, B, D))
            elif what == "frozen":
                model.requires_grad_(False)
                model(torch.randn(T, B, D))
            elif what != "no call":
                model(torch.randn(T, B, D))
            if what == "other loss":
                head(torch.randn(3, 2)).sum().backward()
        return flow

    flow, said = _said(run)
    assert ("no call" if what == "no call" else "no gradient") in said
    assert flow.layers == {}
    assert _hooks(model) == 0
    json.dumps(flow.to_json())


def test_the_users_own_exception_passes_and_the_hooks_are_gone():
    model = nn.Sequential(nn.LSTM(D, H, 2, dropout=0.1))
    with pytest.raises(ZeroDivisionError), bptt.watch(model):
        raise ZeroDivisionError(model(torch.randn(T, B, D))[0].sum())
    assert _hooks(model) == 0


def test_a_failure_inside_warns_and_training_goes_on(monkeypatch):
    model = nn.GRU(D, H)
    for target in ("bptt.flow.watching.hooks.observe", "bptt.flow.watching.replay.send_back"):
        with monkeypatch.context() as patch:
            patch.setattr(target, lambda *args, **kwargs: 1 / 0)

            def run():
                with bptt.watch(model) as flow:
                    model(torch.randn(T, B, D))[0].sum().backward()
                return flow

            flow, said = _said(run)
        assert "ZeroDivisionError" in said
        assert flow.verdict() == []
        assert all(p.grad is not None for p in model.parameters())
        assert _hooks(model) == 0


def test_what_cannot_be_watched_is_handed_to_say():
    said = []
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with bptt.watch(nn.Linear(2, 2), said.append) as flow:
            pass
    assert said == flow.notes != []


def test_warnings_that_are_errors_stop_nobody(capsys):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with bptt.watch(nn.Linear(2, 2)):
            pass
    assert "no recurrent layer" in capsys.readouterr().err


def test_one_step_and_all_zero_gradients():
    model = nn.GRU(D, H)
    with bptt.watch(model) as flow:
        model(torch.randn(1, B, D))[0].sum().backward()
    assert flow["gru.l0"].horizon == 0
    assert flow.truncation(0).lost == 0
    assert [f.verdict for f in flow.verdict()] == ["healthy"]
    with bptt.watch(model) as flow:
        (0 * model(torch.randn(T, B, D))[0].sum()).backward()
    assert [f.verdict for f in flow.verdict()] == ["no gradient"]
    assert flow.truncation(1).cosine == 1
    assert "nothing but zeros" in str([t.get_text() for a in flow.plot().axes for t in a.texts])
    json.dumps(flow.to_json(), allow_nan=False)


def test_called_twice_in_a_row_and_on_different_inputs():
    model = nn.LSTM(D, H).double()
    x = torch.randn(2 * T, B, D, dtype=torch.float64)
    with bptt.watch(model) as flow:
        first, state = model(x[:T])
        torch.cat([first, model(x[T:], state)[0]]).square().sum().backward()
    layer = flow["lstm.l0"]
    assert layer.boundaries == [T]
    torch.testing.assert_close(layer.contribution("weight_hh"), model.weight_hh_l0.grad, rtol=1e-12, atol=1e-12)
    assert [f.verdict for f in flow.verdict()] == ["healthy"]
    model.zero_grad()
    with bptt.watch(model) as whole:
        model(x)[0].square().sum().backward()
    np.testing.assert_allclose(layer.delta, whole["lstm.l0"].delta, rtol=1e-10)


def test_several_updates_in_one_block_and_several_blocks():
    model = nn.LSTM(D, H)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.5)
    flow, norms = bptt.watch(model), []
    for _ in range(2):
        with flow:
            for _ in range(3):
                optimizer.zero_grad()
                model(torch.randn(T, B, D))[0].square().sum().backward()
                norms.append(float(nn.utils.clip_grad_norm_(model.parameters(), 0.01)))
                optimizer.step()
    assert flow["lstm.l0"].passes == 6
    np.testing.assert_allclose(flow.norms, norms, rtol=1e-5)
    assert flow.clip_value(1.0) == pytest.approx(max(norms), rel=1e-5)


def _trained(loop, make=torch.optim.Adam, **options):
    """The flow of an `optimizer.step` by `loop(optimizer, backward)`, without a word of warning."""
    torch.manual_seed(3)
    model = nn.Sequential(nn.LSTM(D, H))
    optimizer = make(model.parameters(), lr=0.1, **options)

    def backward(draws=1):
        optimizer.zero_grad()
        for _ in range(draws):
            loss = model(torch.randn(12, B, D))[0][-1].square().mean()
            loss.backward()
        return loss

    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with bptt.watch(model) as flow:
            loop(optimizer, backward)
    return flow


def _assert_same_flow(one, other):
    assert len(one.norms) == len(other.norms)
    np.testing.assert_allclose(one.norms, other.norms, rtol=1e-6)
    for a, b in zip(one, other, strict=True):
        assert a.passes == b.passes
        assert a.boundaries == b.boundaries
        np.testing.assert_allclose(a.delta, b.delta, rtol=1e-6)
        np.testing.assert_allclose(a.contributions(), b.contributions(), rtol=1e-5)
    assert list(map(str, one.verdict())) == list(map(str, other.verdict()))


@pytest.mark.parametrize("draws", [1, 2])
def test_a_backward_within_the_optimizers_closure_is_seen(draws):
    def plain(optimizer, backward):
        for _ in range(3):
            backward(draws)
            optimizer.step()

    def closure(optimizer, backward):
        for n in range(3):
            call = lambda: backward(draws)  # noqa: E731
            optimizer.step(call) if n % 2 else optimizer.step(closure=call)

    wanted = _trained(plain)
    assert wanted["0.l0"].passes == 3
    _assert_same_flow(wanted, _trained(closure))


def test_an_optimizer_that_calls_its_closure_several_times():
    """Each of LBFGS's evaluations has weights of its own: each is a pass."""
    calls = []

    def lbfgs(optimizer, backward):
        optimizer.step(lambda: calls.append(0) or backward())

    flow = _trained(lbfgs, torch.optim.LBFGS, max_iter=3)
    assert flow["0.l0"].passes == len(flow.norms) == len(calls) > 2


@pytest.mark.parametrize("clipped", [False, True])
def test_a_loss_that_is_scaled_for_half_precision(clipped):
    """The numbers are those of the loss itself, whatever torch.amp.GradScaler has multiplied it with."""

    def updates(scaler):
        torch.manual_seed(3)
        model = nn.LSTM(D, H)
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        with bptt.watch(model) as flow:
            for _ in range(2):
                optimizer.zero_grad()
                scaler.scale(model(torch.randn(12, B, D))[0][-1].square().mean()).backward()
                if clipped:
                    scaler.unscale_(optimizer)
                    nn.utils.clip_grad_norm_(model.parameters(), 1e-3)
                scaler.step(optimizer)
                scaler.update()
        return flow

    plain, scaled = (updates(torch.amp.GradScaler("cpu", enabled=enabled)) for enabled in (False, True))
    _assert_same_flow(plain, scaled)


def test_a_closure_whose_forward_pass_or_update_lies_elsewhere():
    model = nn.GRU(D, H)
    inner, outer = (torch.optim.SGD(model.parameters(), lr=0.1) for _ in range(2))
    norms = []

    def noted():
        norms.append(float(nn.utils.clip_grad_norm_(model.parameters(), 1e9)))

    def nested():
        outer.zero_grad()
        model(torch.randn(T, B, D))[0].sum().backward()
        noted()
        inner.step()
        inner.zero_grad()
        model(torch.randn(T, B, D))[0].sum().backward()
        noted()

    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with bptt.watch(model) as flow:
            loss = model(torch.randn(T, B, D))[0].square().sum()
            outer.step(lambda: (outer.zero_grad(), loss.backward(), noted()))
            outer.step(nested)
    assert flow["gru.l0"].passes == 3
    np.testing.assert_allclose(flow.norms, norms, rtol=1e-5)
    kept = flow._settling(lambda: 7)
    assert kept() == 7, "a closure that outlives the block is only called"
    with pytest.raises(ZeroDivisionError), bptt.watch(model):
        outer.step(lambda: 1 / 0)
    assert _hooks(model) == 0


def test_a_change_that_cannot_be_followed_is_told():
    model = nn.GRU(D, H)

    def run():
        with bptt.watch(model) as flow:
            model(torch.randn(T, B, D))[0].sum().backward()
            with torch.no_grad():
                model.weight_hh_l0.mul_(3)
        return flow

    flow, said = _said(run)
    assert "could not be reproduced" in said
    assert flow.notes


def test_cells_that_are_not_pointwise_and_outputs_changed_in_place():
    def run(model, change):
        with bptt.watch(model) as flow:
            outputs = model(torch.randn(T, B, D))[0]
            (outputs.mul_(2) if change else outputs).sum().backward()
        return flow

    assert "no closed form" in _said(lambda: run(bptt.Recurrent(Normed(), D, H), False))[1]
    assert "in place" in _said(lambda: run(nn.RNN(D, H), True))[1]


@pytest.mark.parametrize("lib", [nn, bptt])
def test_a_class_derived_from_a_layer_that_takes_or_returns_something_else(lib):
    class Lengths(lib.LSTM):
        def forward(self, x, lengths):
            outputs, final = super().forward(pack_padded_sequence(x, lengths))
            return pad_packed_sequence(outputs)[0], final

    class OutputsAlone(lib.LSTM):
        def forward(self, x):
            return super().forward(x)[0]

    class Doubled(lib.LSTM):
        def forward(self, x):
            outputs, final = super().forward(x)
            return 2 * outputs, final

    def run(model, steps, *arguments, **options):
        with bptt.watch(model) as flow:
            result = model(torch.randn(steps, 2, D), *arguments, **options)
            (result if isinstance(result, torch.Tensor) else result[0]).sum().backward()
        return flow

    lengths = torch.tensor([T, 2])
    for model, steps, arguments, options, reason in (
        (Lengths(D, H), T, (lengths,), {}, "takes or returns other than"),
        (Lengths(D, H), T, (), {"lengths": lengths}, "could not be reproduced"),
        (OutputsAlone(D, H), T, (), {}, "takes or returns other than"),
        (OutputsAlone(D, H), 2, (), {}, "takes or returns other than"),
        (Doubled(D, H), T, (), {}, "could not be reproduced"),
    ):
        flow, said = _said(lambda: run(model, steps, *arguments, **options))  # noqa: B023  # called at once
        assert reason in said
        assert said.count("bptt.watch") <= 1
        assert not flow.layers


def test_what_a_layer_outside_the_model_has_kept_is_not_taken_for_the_models_own():
    model, outside = nn.GRU(D, H), bptt.GRU(D, H)
    outside.load_state_dict(model.state_dict())
    with bptt.watch(model) as flow:
        outside(torch.randn(T, B, D))
        model(torch.randn(T, B, D))[0].sum().backward()
    _assert_exact(model, flow, {n: p.grad for n, p in model.named_parameters()}, 1e-5)


@pytest.mark.parametrize("kind", [Elman, GRU, LSTM])
def test_a_cell_derived_from_one_of_ours_has_its_own_equations(kind):
    """Neither the native core nor our closed derivatives are taken for it."""

    class Damped(kind):
        def pointwise(self, zx, zh, state, *vectors):
            h, *c = super().pointwise(zx, zh, state, *vectors)
            return 0.7 * h + 0.1, *c

        partials = PointwiseCell.partials

    model = bptt.Recurrent(Damped(), D, H, 2, dtype=torch.float64)
    x = torch.randn(T, B, D, dtype=torch.float64)
    flow, gradients = _watched(model, x)
    _assert_exact(model, flow, dict(gradients), 1e-12)
    assert not any(layer.saturation for layer in flow)
    model.zero_grad()
    model(x)[0][-1].sum().backward()
    terms = bptt.gradient_map(model, x, loss=lambda outputs: outputs[-1].sum())
    for name, parameter in model.named_parameters():
        torch.testing.assert_close(terms.total(name), parameter.grad, rtol=1e-12, atol=1e-14)


def test_the_first_number_that_is_not_finite():
    model = nn.LSTM(D, H, 2)
    x = torch.randn(T, B, D)
    x[3, 2, 1] = torch.inf
    with bptt.watch(model) as flow:
        model(x)[0].sum().backward()
    found = flow.first_non_finite
    assert (found.layer, found.what, found.step, found.sample) == ("lstm.l0", "input", 3, 2)
    packed = pack_padded_sequence(torch.randn(T, B, D), [2, 6, 3, 4], enforce_sorted=False)
    with torch.no_grad():
        model.bias_ih_l1[H] = torch.nan
    with bptt.watch(model) as flow:
        model(packed)[0].data.sum().backward()
    assert flow.first_non_finite.what == "weight"
    assert flow.first_non_finite.gate == "bias_ih"


def test_weights_that_get_no_gradient_of_their_own():
    frozen, x = nn.GRU(D, H).requires_grad_(False), torch.randn(T, B, D, requires_grad=True)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with bptt.watch(frozen) as flow:
            frozen(x)[0].square().sum().backward()
        assert flow.norms == []
        assert flow["gru.l0"].delta.min() > 0
        model = nn.GRU(D, H)
        with bptt.watch(model) as flow:
            found = torch.autograd.grad(model(x)[0].square().sum(), list(model.parameters()))
    torch.testing.assert_close(flow["gru.l0"].contribution("weight_hh"), found[1])


def test_a_gradient_that_is_differentiated_again_is_told():
    model, x = nn.GRU(D, H), torch.randn(T, B, D, requires_grad=True)

    def run():
        with bptt.watch(model) as flow:
            loss = model(x)[0].square().sum()
            (slope,) = torch.autograd.grad(loss, x, create_graph=True)
            (loss + slope.square().sum()).backward()
        return flow

    flow, said = _said(run)
    assert "create_graph=True" in said
    assert flow.layers == {}


def test_a_copy_made_in_the_block_is_not_watched():
    model = nn.Sequential(nn.GRU(D, H)).double()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with bptt.watch(model) as flow:
            twin = copy.deepcopy(model)
            twin(torch.randn(T, B, D).double())[0].sum().backward()
            model(torch.randn(T, B, D).double())[0].square().sum().backward()
    _assert_exact(model, flow, {n[2:]: p.grad for n, p in model.named_parameters()}, 1e-12)


def test_a_block_within_a_block_of_the_same_object():
    model = nn.LSTM(D, H).double()
    flow = bptt.watch(model)
    with flow, flow:
        model(torch.randn(T, B, D).double())[0].square().sum().backward()
    assert _hooks(model) == 0
    assert flow["lstm.l0"].passes == 1
    _assert_exact(model, flow, {n: p.grad for n, p in model.named_parameters()}, 1e-12)


def test_a_drawn_initial_state_is_no_truncation():
    model = nn.RNN(D, H, bias=False)
    nn.init.orthogonal_(model.weight_hh_l0)
    with torch.no_grad():
        model.weight_ih_l0.mul_(0.01)
    carried = torch.full((1, B, H), 0.1)
    drawn = carried.clone()
    drawn[0, 0, 0] = 1.1
    found = []
    for state in (drawn, carried):
        with bptt.watch(model) as flow:
            (1e-3 * model(0.01 * torch.randn(20, B, D), state)[0][-1].sum()).backward()
        found.append([f.verdict for f in flow.verdict()])
    assert found == [["healthy"], ["truncation too short"]]


def test_a_gradient_that_comes_broken_from_the_loss():
    model = nn.LSTM(D, H, 2)
    with bptt.watch(model) as flow:
        (model(torch.randn(T, B, D))[0][2].sum() * float("nan")).backward()
    assert flow.first_non_finite[:3] == ("lstm.l1", "gradient", 2)
    assert all("from outside the layer" in f.text and "log(0)" in str(f) for f in flow.verdict())


@pytest.mark.filterwarnings("ignore:bptt.watch does not follow")
def test_few_lags_are_not_praised():
    model = nn.LSTM(D, H)
    with bptt.watch(model) as flow:
        state, total = None, 0.0
        for _ in range(20):
            outputs, state = model(torch.randn(1, B, D), state)
            state = tuple(0.9 * s for s in state)  # what is done to it here is not followed
            total = total + outputs.square().sum()
        total.backward()
    assert len(flow.notes) == 1
    assert "Fewer than 8 lags" in flow.verdict()[0].text
    assert "whole sequences" in flow.verdict()[0].text
    assert "well" not in words.headline(flow.verdict())


@pytest.mark.parametrize("everywhere", [False, True])
def test_what_is_not_finite_is_json_and_not_called_unsaturated(everywhere):
    model, x = nn.LSTM(D, H), torch.full((T, B, D), 1e4)
    x[slice(None) if everywhere else 3, :, 0] = float("nan")
    with torch.no_grad():
        model.weight_ih_l0.fill_(1.0)
    with bptt.watch(model) as flow:
        model(x)[0].sum().backward()
    found = json.loads(json.dumps(flow.to_json(), allow_nan=False))
    assert found["norms"] == [None]
    assert found["layers"][0]["saturation"] == ({} if everywhere else dict.fromkeys("ifgo", 1.0))


def test_under_torch_compile_training_goes_on():
    model = nn.GRU(D, H)
    compiled = torch.compile(model, backend="eager")

    def run():
        with bptt.watch(compiled) as flow:
            compiled(torch.randn(T, B, D))[0].sum().backward()
        return flow

    flow, said = _said(run)
    assert "compile" in said
    assert model.weight_hh_l0.grad is not None
    assert _hooks(model) == 0
    flow.verdict()


def test_an_update_by_two_optimizers_is_one():
    model = nn.GRU(D, H)
    optimizers = [torch.optim.SGD([w]) for w in (model.weight_ih_l0, model.weight_hh_l0)]
    with bptt.watch(model, updates=0) as flow:
        for _ in range(3):
            model(torch.randn(40, B, D))[0].square().mean().backward()
            for optimizer in optimizers:
                optimizer.step()
    assert "After 3 updates" in flow.verdict()[0].text


class _TwoParts(nn.Module):
    def __init__(self):
        super().__init__()
        self.encoder, self.decoder = nn.LSTM(D, H).requires_grad_(False), nn.GRU(H, H)

    def forward(self, x):
        return self.decoder(self.encoder(x)[0])[0]


def test_a_frozen_layer_is_not_called_cut_off():
    model, x = _TwoParts(), torch.randn(T, B, D)
    with bptt.watch(model) as flow:
        model(x).square().mean().backward()
    encoder, decoder = flow.verdict()
    assert (encoder.layer, encoder.verdict, encoder.remedies) == ("encoder.l0", "frozen", ())
    assert words.worst(flow.verdict()) is words.FINE
    assert words.headline(flow.verdict()) == words.headline([decoder])
    assert words.headline([encoder]) == "frozen in encoder.l0"
    x[2] = torch.nan  # and what goes wrong in it is still seen
    with bptt.watch(model) as flow:
        model(x).square().mean().backward()
    assert flow.verdict()[0].verdict == "non-finite input"
    x = torch.randn(T, B, D, requires_grad=True)  # here one is wanted
    with bptt.watch(model) as flow:
        model(x).square().mean().backward()
    assert flow.verdict()[0].verdict == "healthy"


@pytest.mark.parametrize("layer", [nn.GRU, bptt.GRU])
def test_a_compiled_model_that_is_watched_by_its_own_module(layer):
    """As the sentence about a compiled model advises; Dynamo then traces the hooks."""
    model = layer(D, H)
    compiled, x = torch.compile(nn.Sequential(model), backend="eager"), torch.randn(T, B, D)

    def run():
        with bptt.watch(model) as flow:
            compiled(x)[0].sum().backward()
        return flow

    flow, _ = _said(run)
    assert _hooks(model) == 0
    flow.verdict()
    got = model.weight_hh_l0.grad.clone()
    model.zero_grad()
    model(x)[0].sum().backward()
    torch.testing.assert_close(got, model.weight_hh_l0.grad)


@pytest.mark.parametrize("steps", [5, 5000])
def test_plot_and_json(steps, tmp_path):
    model = nn.GRU(2, 3, bidirectional=True)
    with bptt.watch(model) as flow:
        model(torch.randn(steps, 1, 2))[0].sum().backward()
    figure = flow.plot()
    assert len(figure.axes) == 6
    assert all(axis.get_xlabel() and "log" in axis.get_ylabel() for axis in figure.axes)
    figure.savefig(tmp_path / "flow.png", dpi=60)
    found = json.loads(json.dumps(flow.to_json(), allow_nan=False))
    assert [layer["name"] for layer in found["layers"]] == ["gru.l0", "gru.l0_reverse"]
    assert "<figure>" in flow._repr_html_()


# One horizon, its spread, and the verdict that follows.


def _keeping(slope, steps=41):
    """An RNN whose gradient keeps `slope` of its norm in each step, nearly: linear, since its states are small."""
    model = nn.RNN(D, H, bias=False).double()
    with torch.no_grad():
        model.weight_hh_l0.copy_(slope * torch.eye(H))
        model.weight_ih_l0.mul_(1e-4)
    return model, torch.randn(steps, B, D, dtype=torch.float64)


def _reaching(lag):
    """The slope with which the horizon is `lag`."""
    return 0.01 ** (1 / (lag + 0.5))


def _over_batches(*lags):
    """The flow of batches whose horizons are these, of 40 lags."""
    torch.manual_seed(0)
    model, x = _keeping(0.5)
    flow = bptt.watch(model)
    for lag in lags:
        with torch.no_grad():
            model.weight_hh_l0.copy_(_reaching(lag) * torch.eye(H))
        with flow:
            model(x)[0][-1].sum().backward()
    return flow


@pytest.mark.parametrize("lag", [1, 5, 12, 33])
def test_the_horizon_is_the_longest_lag_with_one_percent(lag):
    layer = _over_batches(lag)["rnn.l0"]
    assert (layer.horizon, layer.lags, layer.horizon_range) == (lag, 40, (lag, lag))
    assert layer.reach.gain[lag] >= 0.01 > layer.reach.gain[lag + 1]


def test_the_spread_over_samples_decides_what_is_borderline():
    for lags, verdict in (
        ((5, 6, 7), "vanishing"), ((20, 25, 30), "healthy"), ((5, 25), "borderline"), ((5, 5, 25, 25), "borderline"),
        ((25, 25, 25, 5), "healthy"), ((9,), "vanishing"), ((10,), "healthy"),
    ):  # fmt: skip
        flow = _over_batches(*lags)
        layer, (found,) = flow["rnn.l0"], flow.verdict()
        assert found.verdict == verdict, lags
        assert layer.horizon_range == (min(lags), max(lags))
        assert found.evidence["horizon_steps"] == layer.horizon
        assert (
            found.evidence["shortest_horizon_steps"],
            found.evidence["longest_horizon_steps"],
        ) == layer.horizon_range
        assert (found.evidence["samples"], found.evidence["batches"]) == (B * len(lags), len(lags))
        if len(lags) > 1:
            assert f"{min(lags)} to {max(lags)} in {B * len(lags)} samples of {len(lags)} batches" in found.text
    found = _over_batches(5, 5, 25, 25).verdict()[0]
    assert f"in {2 * B} of {4 * B} samples of 4 batches" in found.text
    assert [r.name for r in found.remedies][:2] == ["watch more batches", "orthogonal start"]
    assert words.level_of("borderline") == words.LOOK
    assert words.headline([found]) == "borderline in rnn.l0"


def _dead_early(samples, of):
    """A ReLU unit that carries a gradient on as it is, and inputs over 40 lags: of some samples it is 0 at step 35."""
    model = nn.RNN(1, 1, nonlinearity="relu", bias=False).double()
    with torch.no_grad():
        model.weight_hh_l0.fill_(1.0)
        model.weight_ih_l0.fill_(1.0)
    x = torch.ones(41, of, 1, dtype=torch.float64)
    x[35, samples] = -1e3
    return model, x


def test_the_samples_of_a_single_batch_disagree():
    """ReLU units: of half of the samples the gradient is cut early, where their units are 0."""
    model, x = _dead_early(slice(0, 2), of=4)
    with bptt.watch(model) as flow:
        model(x)[0][-1].sum().backward()
    layer, (found,) = flow["rnn.l0"], flow.verdict()
    assert sorted(span.horizon for span in layer.spans) == [5, 5, 40, 40]
    assert found.verdict == "borderline"
    assert "in 2 of 4 samples" in found.text
    assert "5 to 40 in 4 samples" in found.text


def test_several_batches_are_judged_as_one_that_holds_their_samples():
    """ReLU units: the units are 0 early in some samples, in one batch of eight and in four batches of two alike."""
    model, x = _dead_early(slice(0, None, 2), of=8)
    together, apart = bptt.watch(model), bptt.watch(model)
    with together:
        model(x)[0][-1].sum().backward()
    for part in x.split(2, 1):
        with apart:
            model(part)[0][-1].sum().backward()
    one, several = together["rnn.l0"], apart["rnn.l0"]
    assert sorted(one.spans) == sorted(several.spans)
    assert [f.verdict for f in together.verdict()] == [f.verdict for f in apart.verdict()] == ["borderline"]
    assert "in 4 of 8 samples," in together.verdict()[0].text
    assert "in 4 of 8 samples of 4 batches," in apart.verdict()[0].text


def test_a_growth_that_only_some_batches_show_is_borderline():
    model, x = _keeping(1.0)
    flow = bptt.watch(model)
    for slope in (1.0, 1.0, 1.1, 1.1):
        with torch.no_grad():
            model.weight_hh_l0.copy_(slope * torch.eye(H))
            model.weight_ih_l0.mul_(1e-3)
        with flow:
            (1e-9 * model(x)[0][-1].sum()).backward()
    (found,) = flow.verdict()
    assert found.verdict == "borderline"
    assert f"10-fold or more on its way back in {2 * B} of {4 * B} samples of 4 batches" in found.text


def test_the_horizon_is_pooled_over_recent_passes_however_they_are_kept(monkeypatch):
    lags = [5, 25, 12, 30]
    kept = _over_batches(*lags)["rnn.l0"]
    monkeypatch.setattr("bptt.flow.diagnosis.profile._KEPT", 0)
    at_once = _over_batches(*lags)["rnn.l0"]
    assert kept.reach == at_once.reach
    assert kept.spans == at_once.spans
    alone = [_over_batches(lag)["rnn.l0"].reach.gain for lag in lags]
    np.testing.assert_allclose(kept.reach.gain, np.sqrt(np.mean(np.square(alone), axis=0)), rtol=1e-9)
    many = _over_batches(*[30] * 5, *[5] * 16)["rnn.l0"]
    assert (many.passes, many.batches, many.horizon_range) == (21, 16, (5, 5))


def test_what_arrives_at_the_start_is_pooled_as_the_gains_are():
    lags = [5, 25, 12, 30]
    alone = [_over_batches(lag)["rnn.l0"].reach for lag in lags]
    together = _over_batches(*lags)["rnn.l0"].reach
    assert together.started == sum(one.started for one in alone) == B * len(lags)
    want = np.sqrt(np.mean([one.at_start**2 for one in alone]))
    np.testing.assert_allclose(together.at_start, want, rtol=1e-9)
    assert min(one.at_start for one in alone) < together.at_start < max(one.at_start for one in alone)


def test_a_young_layer_is_not_blamed():
    def text(updates, steps=100, seen=0, **changes):
        torch.manual_seed(0)
        model = nn.LSTM(D, H)
        optimizer = torch.optim.SGD(model.parameters(), lr=0.0)
        with torch.no_grad():
            for name, factor in changes.items():
                getattr(model, name).mul_(factor)
        with bptt.watch(model, updates=updates) as flow:
            for _ in range(seen + 1):
                model(torch.randn(steps, B, D))[0][-1].sum().backward()
                if seen:
                    optimizer.step()
        return flow.verdict()[0]

    for updates, said in ((0, "Before any update this is normal"), (1, "After 1 update "), (999, "After 999 updates ")):
        found = text(updates)
        assert found.verdict == "vanishing"
        assert said in found.text
        assert "3 to 11 steps back. Look again after 1,000." in found.text
    assert "In a layer that has had fewer than 1,000 updates this is normal" in text(None).text
    assert "After 3 updates" in text(0, seen=2).text
    for found in (text(1000), text(998, seen=2), text(0, steps=12), text(0, weight_hh_l0=0.0, bias_ih_l0=20.0)):
        assert "normal" not in found.text


def test_the_default_start_reaches_what_the_verdict_says_of_it():
    for kind in (nn.RNN, nn.GRU, nn.LSTM):
        for hidden in (16, 64):
            model = kind(D, hidden)
            with bptt.watch(model) as flow:
                model(torch.randn(100, 8, D))[0][-1].square().mean().backward()
            assert START[0] <= next(iter(flow)).horizon <= START[1]


def test_every_place_tells_the_same_number_and_word():
    flow = _over_batches(5, 5, 25, 25)
    layer, (found,) = flow["rnn.l0"], flow.verdict()
    assert f"horizon {layer.horizon} steps" in flow._repr_html_()
    spread = f"(5 to 25 in {4 * B} samples of 4 batches)"
    assert f"{layer.horizon} of 40 steps {spread}" in dict(words.facts(layer))["memory horizon"]
    data = flow.to_json()
    assert (data["layers"][0]["horizon"], data["verdict"][0]["verdict"]) == (layer.horizon, "borderline")
    assert f"reaches {layer.horizon} of 40 steps" in str(found)
    (kept,) = figures(flow)
    assert (kept["horizon_steps"], kept["horizon_range_steps"], kept["verdict"]) == (
        layer.horizon,
        [5, 25],
        ["borderline"],
    )
    assert any(f"horizon {layer.horizon} steps" in t.get_text() for t in flow.plot().axes[2].texts)


def test_the_samples_of_a_packed_batch_are_followed_along_their_own_rows():
    """Also where the rows are as many as 8 samples of the full length would have: 12 sequences, 320 rows, 40 steps."""
    lengths = [40] * 4 + [32] * 3 + [24, 16] + [8] * 3
    assert sum(lengths) == 8 * max(lengths)
    torch.manual_seed(0)
    model, x = nn.LSTM(D, H), torch.randn(max(lengths), len(lengths), D)
    packed = nn.utils.rnn.pack_padded_sequence(x, torch.tensor(lengths))
    with bptt.watch(model) as flow:
        model(packed)[0].data.square().mean().backward()
    (trace,) = flow["lstm.l0"].traces
    found = strands(trace)
    chosen = torch.linspace(0, len(lengths) - 1, 8).round().long()
    assert found.exists.sum(0).tolist() == [lengths[sample] for sample in chosen]
    seen = found.trace.x.unflatten(0, found.exists.shape)
    assert torch.equal(seen[found.exists], x[:, chosen][found.exists])
