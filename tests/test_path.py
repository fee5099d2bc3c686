"""A sequence that comes in several calls is one path through time: what is seen equals what a single call shows."""

import itertools
import warnings

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn.utils.rnn import pack_padded_sequence

import bptt
from tests.cases import Leaky

T, B, D, H = 24, 4, 3, 5
KINDS = {
    "nn.RNN": lambda **o: nn.RNN(D, H, **o), "nn.GRU": lambda **o: nn.GRU(D, H, **o),
    "nn.LSTM": lambda **o: nn.LSTM(D, H, **o), "projected": lambda **o: nn.LSTM(D, H, proj_size=2, **o),
    "bptt.GRU": lambda **o: bptt.GRU(D, H, **o), "bptt.LSTM": lambda **o: bptt.LSTM(D, H, **o),
    "leaky": lambda **o: bptt.Recurrent(Leaky(), D, H, **o),
}  # fmt: skip


pytestmark = pytest.mark.usefixtures("one_thread")


def _watched(model, run):
    model.zero_grad()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with bptt.watch(model) as flow:
            run(model)
    return flow


def _noted(model, run):
    model.zero_grad()
    with warnings.catch_warnings(record=True):
        warnings.simplefilter("always")
        with bptt.watch(model) as flow:
            run(model)
    return flow


def _mapped(state, function):
    return tuple(map(function, state)) if isinstance(state, tuple) else function(state)


def _fed(x, size, between=lambda state, t: state, loss=None):
    """Feed x in pieces of `size` steps; `between(state, t)` is what becomes of the state before step t."""

    def run(model):
        state, outputs = None, []
        for t in range(0, len(x), size):
            state = state if state is None else between(state, t)
            out, state = model(x[t : t + size], state)
            outputs.append(out)
        (loss or _loss)(torch.cat(outputs), state)

    return run


def _loss(outputs, state):
    """Of every output, and of the last state."""
    weights = torch.randn(outputs.shape, generator=torch.Generator().manual_seed(5), dtype=outputs.dtype)
    final = state if isinstance(state, tuple) else (state,)
    ((outputs * weights).sum() + sum(s.square().sum() for s in final)).backward()


def _last(outputs, state):
    outputs[-1].sum().backward()


def _assert_same(whole, pieces, model, tolerance=1e-9):
    for one, other in zip(whole, pieces, strict=True):
        assert one.steps == other.steps
        assert len(other.traces) == 1
        for state in one.cell.states:
            np.testing.assert_allclose(other.state_delta(state), one.state_delta(state), rtol=tolerance)
        np.testing.assert_allclose(other.external, one.external, rtol=tolerance, atol=1e-12)
        for kind in ("weight_hh", "weight_ih", "bias"):
            np.testing.assert_allclose(other.contributions(kind), one.contributions(kind), rtol=tolerance, atol=1e-12)
        for k in (0, T // 2, T - 1):
            torch.testing.assert_close(other.contribution("weight_hh", k), one.contribution("weight_hh", k))
        np.testing.assert_allclose(other.reach.gain, one.reach.gain, rtol=tolerance)
        assert other.reach.pairs == one.reach.pairs
        assert other.reach.at_start == pytest.approx(one.reach.at_start, rel=tolerance)
        np.testing.assert_allclose(np.array(other.spans), np.array(one.spans), rtol=tolerance)
        assert (other.horizon, other.lags, other.dead) == (one.horizon, one.lags, one.dead)
    for k in (0, 3, T):
        a, b = whole.truncation(k), pieces.truncation(k)
        assert (a.lost, a.share, a.cosine) == pytest.approx(
            (b.lost, b.share, b.cosine), rel=max(1e-8, tolerance), abs=1e-12
        )
    assert list(map(str, whole.verdict())) == list(map(str, pieces.verdict()))
    for layer in pieces:
        for short in layer.traces[0].weights:
            want = getattr(model, f"{short}_l{layer.layer}").grad
            torch.testing.assert_close(layer.contribution(short).to(want.dtype), want, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("loss", [_loss, _last])
@pytest.mark.parametrize("size", [1, 10])
@pytest.mark.parametrize("kind", KINDS)
def test_pieces_are_seen_as_the_whole(kind, size, loss):
    for layers in (1, 2):
        model = KINDS[kind](num_layers=layers).double()
        x = torch.randn(T, B, D, dtype=torch.float64)
        whole, pieces = (_watched(model, _fed(x, n, loss=loss)) for n in (T, size))
        _assert_same(whole, pieces, model)
        assert next(iter(pieces)).boundaries == list(range(size, T, size))


def test_in_single_precision_batch_first_unbatched_and_with_dropout():
    for form, options in (
        ("unbatched", {}),
        ("batch first", {"batch_first": True}),
        ("relu", {"nonlinearity": "relu"}),
    ):
        model = nn.RNN(D, H, 2, **options)
        x = torch.randn(T, D) if form == "unbatched" else torch.randn(T, B, D)
        axis = 1 if form == "batch first" else 0

        def run(model, size, x=x, axis=axis):
            state, outputs = None, []
            for piece in (x.transpose(0, axis) if axis else x).split(size, axis):
                out, state = model(piece, state)
                outputs.append(out)
            torch.cat(outputs, axis).square().sum().backward()

        whole = _watched(model, lambda model: run(model, T))
        pieces = _watched(model, lambda model: run(model, 5))
        _assert_same(whole, pieces, model, 1e-3)
    model = nn.LSTM(D, H, 2, dropout=0.5).double()
    flow = _watched(model, _fed(torch.randn(T, B, D, dtype=torch.float64), 4))
    for layer in flow:
        want = getattr(model, f"weight_hh_l{layer.layer}").grad
        torch.testing.assert_close(layer.contribution("weight_hh"), want, rtol=1e-10, atol=1e-12)


# What may be done to the state in between.

DONE = (torch.rand(T, B, generator=torch.Generator().manual_seed(2)) < 0.15).double()
ROUNDABOUT = {
    "clone": lambda s, t: s.clone(), "stack and unbind": lambda s, t: torch.stack([*s.unbind(1)], 1),
    "to float32 and back": lambda s, t: s.float().double(), "times 1": lambda s, t: s * torch.ones(1, B, 1).double(),
    "where": lambda s, t: torch.where(torch.zeros(1, B, 1).bool(), torch.zeros_like(s), s),
    "transposed": lambda s, t: s.transpose(0, 1).contiguous().transpose(0, 1),
    "view": lambda s, t: s.view_as(s)[:],
}  # fmt: skip


@pytest.mark.parametrize("how", ROUNDABOUT)
@pytest.mark.parametrize("kind", ["nn.GRU", "bptt.LSTM"])
def test_a_state_that_goes_a_roundabout_way(kind, how):
    model, x = KINDS[kind]().double(), torch.randn(T, B, D, dtype=torch.float64)
    if how == "to float32 and back":
        model, x = model.float(), x.float()
        between = lambda s, t: s.double().float()  # noqa: E731
    else:
        between = ROUNDABOUT[how]
    whole = _watched(model, _fed(x, T))
    pieces = _watched(model, _fed(x, 3, lambda state, t: _mapped(state, lambda s: between(s, t))))
    _assert_same(whole, pieces, model, 1e-3 if x.dtype == torch.float32 else 1e-9)


@pytest.mark.parametrize("how", ["product", "where"])
def test_episodes_that_end_are_resets(how):
    """h · (1 − done), as a rollout does it, against the layer's own `reset`."""
    for kind in ("bptt.GRU", "bptt.LSTM"):
        model, x = KINDS[kind](num_layers=2).double(), torch.randn(T, B, D, dtype=torch.float64)

        def between(state, t):
            done = DONE[t].view(1, B, 1)
            mask = (lambda s: s * (1 - done)) if how == "product" else lambda s: torch.where(done > 0, 0.0, s)
            return _mapped(state, mask)

        def run(model, x=x):
            reset = DONE > 0
            reset[0] = False
            _loss(*model(x, reset=reset))

        _assert_same(_watched(model, run), _watched(model, _fed(x, 1, between)), model)
        _assert_same(_watched(model, run), _watched(model, _fed(x, 1, between, _loss)), model)


def test_samples_that_change_places_or_leave():
    """A beam search without choice: the path of each sample that is left is that of a call by itself."""
    model, x = nn.LSTM(D, H).double(), torch.randn(T, B, D, dtype=torch.float64)
    order = torch.tensor([2, 0, 3, 1])

    def shuffled(model):
        state, rows, total = None, torch.arange(B), 0.0
        for t in range(T):
            if state is not None:
                state = _mapped(state, lambda s: s.index_select(1, order))
                rows = rows[order]
            out, state = model(x[t : t + 1, rows], state)
            total = total + out.square().sum()
        total.backward()

    def leaving(model):
        state, rows, total = None, torch.arange(B), 0.0
        for t in range(T):
            if t == 10:
                rows = torch.tensor([0, 3])
                state = _mapped(state, lambda s: s[:, [0, 3]])
            out, state = model(x[t : t + 1, rows], state)
            total = total + out.square().sum()
        total.backward()

    def packed(model):
        lengths = torch.tensor([T, 10, 10, T])
        model(pack_padded_sequence(x, lengths, enforce_sorted=False))[0].data.square().sum().backward()

    whole = _watched(model, _fed(x, T, loss=lambda outputs, _: outputs.square().sum().backward()))
    other = _watched(model, shuffled)
    np.testing.assert_allclose(other["lstm.l0"].reach.gain, whole["lstm.l0"].reach.gain, rtol=1e-9)
    np.testing.assert_allclose(other["lstm.l0"].delta, whole["lstm.l0"].delta, rtol=1e-9)
    assert other.truncation(3).lost == pytest.approx(whole.truncation(3).lost, rel=1e-9)
    one, other = _watched(model, packed), _watched(model, leaving)
    np.testing.assert_allclose(other["lstm.l0"].reach.gain, one["lstm.l0"].reach.gain, rtol=1e-9)
    assert other["lstm.l0"].reach.pairs == one["lstm.l0"].reach.pairs
    np.testing.assert_allclose(other["lstm.l0"].delta, one["lstm.l0"].delta, rtol=1e-9)
    assert other.truncation(3).lost == pytest.approx(one.truncation(3).lost, rel=1e-9)
    torch.testing.assert_close(other["lstm.l0"].contribution("weight_hh"), model.weight_hh_l0.grad)


def test_a_sample_that_two_go_on_from():
    """A tree, as beam search makes it: each hypothesis has its own path, and they share its beginning."""
    model, x = nn.GRU(D, H).double(), torch.randn(T, 1, D, dtype=torch.float64)

    def beams(model):
        out, state = model(x[:10])
        both, _ = model(x[10:].repeat(1, 2, 1), state.repeat(1, 2, 1))
        (out.sum() * 0 + both[-1].sum()).backward()

    flow = _watched(model, beams)
    layer = flow["gru.l0"]
    whole = _watched(model, lambda model: model(x)[0][-1].sum().backward())["gru.l0"]
    np.testing.assert_allclose(layer.reach.gain, whole.reach.gain, rtol=1e-9)
    assert layer.reach.pairs == [2] * T
    np.testing.assert_allclose(layer.delta[:10], 2 * whole.delta[:10], rtol=1e-9)

    def fork(model):
        _, state = model(x[:10])
        (model(x[10:], state)[0][-1].sum() + model(x[10:12], state)[0][-1].sum()).backward()

    layer = _watched(model, fork)["gru.l0"]
    assert (layer.lags, layer.steps, layer.chunk) == (T - 1, T + 2, T)


@pytest.mark.parametrize("enforce_sorted", [True, False])
def test_packed_pieces(enforce_sorted):
    model = nn.LSTM(D, H).double()
    x = torch.randn(T, B, D, dtype=torch.float64)
    parts = [([7, 5, 3, 3], slice(0, 7)), ([8, 8, 2, 1], slice(7, 15))]
    shuffle = [0, 1, 2, 3] if enforce_sorted else [2, 0, 3, 1]

    def pieces(model):
        state, total = None, 0.0
        for lengths, steps in parts:
            packed = pack_padded_sequence(x[steps], [lengths[i] for i in shuffle], enforce_sorted=enforce_sorted)
            out, state = model(packed, state)
            total = total + out.data.square().sum()
        total.backward()

    def whole(model):
        rows = [torch.cat([x[s][: n[i], b] for n, s in parts]) for b, i in enumerate(shuffle)]
        packed = nn.utils.rnn.pack_sequence(rows, enforce_sorted=False)
        model(packed)[0].data.square().sum().backward()

    one, other = _watched(model, whole), _watched(model, pieces)
    np.testing.assert_allclose(other["lstm.l0"].reach.gain, one["lstm.l0"].reach.gain, rtol=1e-9)
    assert other["lstm.l0"].reach.pairs == one["lstm.l0"].reach.pairs
    np.testing.assert_allclose(sorted(other["lstm.l0"].spans), sorted(one["lstm.l0"].spans))
    assert other.truncation(3).lost == pytest.approx(one.truncation(3).lost, rel=1e-9)
    assert str(other.verdict()[0]) == str(one.verdict()[0])
    assert other["lstm.l0"].contributions().shape == (15, 4)


def test_the_outputs_handed_on_as_the_state():
    for kind in ("nn.RNN", "bptt.GRU"):
        model, x = KINDS[kind]().double(), torch.randn(T, B, D, dtype=torch.float64)

        def run(model, x=x):
            h, outputs = None, []
            for step in x:
                h, _ = model(step[None], h)
                outputs.append(h)
            _last(torch.cat(outputs), None)

        _assert_same(_watched(model, _fed(x, T, loss=_last)), _watched(model, run), model)


def test_a_loss_on_the_state_of_each_step():
    """As of a decoder that reads h_n: that is the outputs' own gradient, in another place."""
    for kind in ("nn.RNN", "nn.LSTM"):
        model, x = KINDS[kind]().double(), torch.randn(T, B, D, dtype=torch.float64)

        def run(model, x=x):
            state, total = None, 0.0
            for step in x:
                _, state = model(step[None], state)
                total = total + (state[0] if isinstance(state, tuple) else state).square().sum()
            total.backward()

        whole = _watched(model, _fed(x, T, loss=lambda outputs, _: outputs.square().sum().backward()))
        one, other = next(iter(whole)), next(iter(_watched(model, run)))
        np.testing.assert_allclose(other.delta, one.delta, rtol=1e-9)
        np.testing.assert_allclose(other.reach.gain, one.reach.gain, rtol=1e-7)
        assert (other.reach.pairs, other.horizon) == (one.reach.pairs, one.horizon)


def test_two_rollouts_in_turn_are_two_paths():
    model, x = nn.GRU(D, H).double(), torch.randn(2, T, B, D, dtype=torch.float64)

    def run(model):
        states, total = [None, None], 0.0
        for t in range(T):
            for n in range(2):
                out, states[n] = model(x[n, t : t + 1], states[n])
                total = total + out.square().sum()
        total.backward()

    def apart(model):
        (model(x[0])[0].square().sum() + model(x[1])[0].square().sum()).backward()

    one, other = _watched(model, apart)["gru.l0"], _watched(model, run)["gru.l0"]
    assert len(one.traces) == len(other.traces) == 2
    assert one.breaks == other.breaks == [T]
    np.testing.assert_allclose(other.delta, one.delta, rtol=1e-9)
    np.testing.assert_allclose(other.reach.gain, one.reach.gain, rtol=1e-9)

    def batched(model):  # two rollouts that are one batch from the middle on
        (a, s), (b, r) = model(x[0, :10]), model(x[1, :10])
        out = model(torch.cat([x[0, 10:], x[1, 10:]], 1), torch.cat([s, r], 1))[0]
        (a.square().sum() + b.square().sum() + out.square().sum()).backward()

    layer = _watched(model, batched)["gru.l0"]
    np.testing.assert_allclose(layer.reach.gain, one.reach.gain, rtol=1e-9)
    assert layer.reach.pairs == one.reach.pairs


# What is no path.


def test_a_state_that_is_detached_is_a_truncation():
    torch.manual_seed(0)
    model, x = nn.LSTM(D, H), torch.randn(60, B, D)
    with torch.no_grad():
        model.bias_ih_l0[H : 2 * H] = 5.0

    def run(detach):
        def loop(model):
            state = None
            for chunk in x.split(20):
                outputs = []
                for step in chunk:
                    out, state = model(step[None], state)
                    outputs.append(out)
                torch.cat(outputs).square().sum().backward()
                state = _mapped(state, detach)

        return loop

    for detach in (torch.Tensor.detach, lambda s: s.detach().requires_grad_(), lambda s: s.detach().clone()):
        (found,) = _watched(model, run(detach)).verdict()
        assert found.verdict == "truncation too short"
        assert found.evidence["chunk_steps"] == 20
        assert "a chunk of 20 steps" in found.text.replace("where a", "a")
    flow = _watched(model, _fed(x, 1, lambda s, t: _mapped(s, torch.Tensor.detach) if t == 40 else s))
    found = {f.verdict: f for f in flow.verdict()}
    assert found["cut"].evidence["at_step"] == 40
    assert flow["lstm.l0"].breaks == [40]


def test_a_sample_that_is_detached_alone():
    """torch.where(done, h.detach(), h): that sample's path ends there, the others' goes on."""
    model, x = nn.GRU(D, H).double(), torch.randn(T, B, D, dtype=torch.float64)
    rows = torch.tensor([False, True, False, False]).view(1, B, 1)
    flow = _watched(model, _fed(x, 12, lambda s, t: torch.where(rows, s.detach(), s), _last))
    layer = flow["gru.l0"]
    assert layer.reach.pairs == [B] * 12 + [B - 1] * 12
    torch.testing.assert_close(layer.contribution("weight_hh"), model.weight_hh_l0.grad)


CHANGED = {
    "scaled": lambda s: 0.9 * s, "projected": lambda s: s @ torch.eye(H).double() * 1.01, "dropped": lambda s: s + 0.1,
}  # fmt: skip


@pytest.mark.parametrize("how", CHANGED)
def test_a_state_that_is_computed_anew_is_told(how):
    model, x = nn.GRU(D, H).double(), torch.randn(T, B, D, dtype=torch.float64)
    flow = _noted(model, _fed(x, 4, lambda s, t: CHANGED[how](s)))
    assert any("from call to call" in note and "each call is judged for itself" in note for note in flow.notes)
    assert len(flow["gru.l0"].traces) == 6
    torch.testing.assert_close(flow["gru.l0"].contribution("weight_hh"), model.weight_hh_l0.grad)


def test_a_bidirectional_layer_is_told():
    model, x = nn.GRU(D, H, bidirectional=True).double(), torch.randn(T, B, D, dtype=torch.float64)
    flow = _noted(model, _fed(x, 12))
    assert any("both ends" in note for note in flow.notes)
    torch.testing.assert_close(flow["gru.l0"].contribution("weight_hh"), model.weight_hh_l0.grad)


def test_what_hangs_on_an_earlier_call_in_another_way():
    """An encoder's state that a bridge turns into the first one of the next sentence, two sentences, and another layer."""
    model = nn.ModuleDict({"a": nn.GRU(D, H), "b": nn.GRU(D, H), "bridge": nn.Linear(H, H)}).double()
    x = torch.randn(T, B, D, dtype=torch.float64)

    def run(model):
        _, state = model["a"](x)
        model["b"](x, torch.tanh(model["bridge"](state)))[0].sum().backward()

    def siamese(model):
        (model["a"](x)[1] * model["a"](x.flip(0))[1]).sum().backward()

    def encoder(model):
        _, state = model["a"](x)
        model["b"](x, state)[0].sum().backward()

    for one in (run, siamese, encoder):
        flow = _watched(model, one)
        assert len(flow["a.l0"].traces) == (2 if one is siamese else 1)
        assert flow.notes == []


def test_a_learned_first_state_at_each_new_episode():
    model, first = nn.GRU(D, H).double(), torch.randn(1, B, H, dtype=torch.float64, requires_grad=True)
    x = torch.randn(T, B, D, dtype=torch.float64)
    between = lambda s, t: torch.where(DONE[t].view(1, B, 1) > 0, first, s)  # noqa: E731
    layer = _watched(model, _fed(x, 1, between))["gru.l0"]
    torch.testing.assert_close(layer.contribution("weight_hh"), model.weight_hh_l0.grad)
    episodes = [len(list(g)) for b in range(B) for _, g in itertools.groupby((DONE[1:, b].cumsum(0)).tolist())]
    assert layer.lags <= max(episodes)


def test_half_precision_in_pieces():
    for maker in (nn.GRU, bptt.GRU):
        model = maker(D, H)
        for autocast in (True, False):
            x = torch.randn(T, B, D)
            if not autocast:
                model, x = model.bfloat16(), x.bfloat16()
            with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
                flow = _watched(model, _fed(x, 6, loss=lambda outputs, _: outputs.float().square().sum().backward()))
            assert next(iter(flow)).lags == T - 1
