"""What `bptt.watch` sees is autograd's own gradient, step by step, in the user's unmodified model."""

import json
import warnings

import numpy as np
import pytest
import torch
from tests.cases import Leaky, Normed, Peephole
from torch import nn
from torch.nn.utils.rnn import pack_padded_sequence, pack_sequence

import bptt
from bptt.cells import GRU, LSTM, Elman

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


@pytest.fixture(autouse=True)
def _one_thread(_two_threads):
    """The tensors are tiny: a second thread would only be waited for."""
    torch.set_num_threads(1)


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


def test_packed_resets():
    lengths = [6, 4, 4, 2]
    x = pack_sequence([torch.randn(n, D, dtype=torch.float64) for n in lengths])
    reset = pack_sequence([torch.rand(n) < 0.3 for n in lengths])
    for cell in (Elman(), GRU(), LSTM()):
        model = bptt.Recurrent(cell, D, H, 2, bidirectional=True, dtype=torch.float64)
        _assert_exact(model, *_watched(model, x, reset=reset), 1e-12)
