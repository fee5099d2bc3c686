"""Outputs may be changed in place before backward, as torch's RNN and GRU take it; what else backward needs may not."""

import pytest
import torch
from torch.nn.utils.rnn import PackedSequence, pack_padded_sequence
from torch.utils.checkpoint import checkpoint

import bptt
from bptt.kernels import lean_tape
from tests.cases import assert_same

NAMES = ("RNN", "GRU", "LSTM", "LSTM projected")
DOUBLE = torch.float64


def _dropped(y):
    torch.manual_seed(3)
    return torch.nn.functional.dropout(y, 0.5, training=True, inplace=True)


def _masked(y):
    y[y > 0.1] = 0
    return y


def _last_row(y):
    y[-1] = 0
    return y


def _through_a_view(y):
    y.transpose(0, -1)[0].mul_(2)
    return y


CHANGES = {
    "relu_": torch.relu_,
    "dropout": _dropped,
    "+=": lambda y: y.add_(1),
    "out[mask] = 0": _masked,
    "out[-1] = 0": _last_row,
    "a view of it": _through_a_view,
    "twice": lambda y: y.mul_(2).sigmoid_(),
}


def _made(name, **options):
    cell, _, projected = name.partition(" ")
    return getattr(bptt, cell)(3, 4, dtype=DOUBLE, **({"proj_size": 2} if projected else {}), **options)


def _gradients(layer, x, change, copied, run=None):
    """Of every tensor that the layer takes, where its outputs were changed: in place, or a copy of them."""
    outputs, final = (run or layer)(x)
    y = outputs.data if isinstance(outputs, PackedSequence) else outputs
    states = torch.utils._pytree.tree_leaves(final)
    if copied:
        y, states = y.clone(), [s.clone() for s in states]
    y = change(y)
    loss = y.square().sum() + sum(s.mul_(2).cos().sum() for s in states)
    data = x.data if isinstance(x, PackedSequence) else x
    return dict(enumerate(torch.autograd.grad(loss, [data, *layer.parameters()])))


@pytest.mark.parametrize("options", [{}, {"num_layers": 2}, {"bidirectional": True, "batch_first": True}], ids=str)
@pytest.mark.parametrize("backend", ["auto", "reference"])
@pytest.mark.parametrize("name", NAMES)
def test_the_gradient_is_that_of_a_copy_that_was_changed(name, backend, options):
    layer = _made(name, backend=backend, **options)
    x = torch.randn(5, 2, 3, dtype=DOUBLE, requires_grad=True)
    packed = pack_padded_sequence(x.detach(), [5, 3])
    packed = PackedSequence(packed.data.requires_grad_(), *packed[1:])
    one = torch.randn(5, 3, dtype=DOUBLE, requires_grad=True)
    for change in CHANGES.values():
        for form in (x, packed, one):
            assert_same(*(_gradients(layer, form, change, copied) for copied in (False, True)))


@pytest.mark.parametrize("name", NAMES)
def test_also_under_checkpoint_hooks_a_lean_tape_and_autocast(name):
    layer, x = _made(name), torch.randn(5, 2, 3, dtype=DOUBLE, requires_grad=True)
    want = _gradients(layer, x, torch.relu_, copied=True)
    again = lambda x: checkpoint(layer, x, use_reentrant=False)  # noqa: E731
    assert_same(_gradients(layer, x, torch.relu_, copied=False, run=again), want)
    with torch.autograd.graph.save_on_cpu():
        assert_same(_gradients(layer, x, torch.relu_, copied=False), want)
    with torch.autograd.graph.saved_tensors_hooks(lambda t: t.numpy(force=True).copy(), torch.from_numpy):
        assert_same(_gradients(layer, x, torch.relu_, copied=False), want)
    with lean_tape():
        assert_same(_gradients(layer, x, torch.relu_, copied=False), want)
    single = layer.float()
    with torch.autocast("cpu", torch.bfloat16):
        assert_same(*(_gradients(single, x.detach().float().requires_grad_(), torch.relu_, c) for c in (False, True)))


@pytest.mark.parametrize("name", NAMES)
def test_second_derivatives_of_changed_outputs(name):
    layer, x = _made(name), torch.randn(5, 2, 3, dtype=DOUBLE, requires_grad=True)

    def second(copied):
        y = layer(x)[0]
        y = torch.tanh_(y.clone() if copied else y)
        (d_x,) = torch.autograd.grad(y.pow(3).sum(), x, create_graph=True)
        return dict(enumerate(torch.autograd.grad(d_x.square().sum(), [x, *layer.parameters()], allow_unused=True)))

    found, want = second(False), second(True)
    assert_same(*({n: g for n, g in d.items() if g is not None} for d in (found, want)))


@pytest.mark.parametrize("backend", ["auto", "reference"])
@pytest.mark.parametrize("name", NAMES)
def test_inputs_weights_and_states_must_not_change(name, backend):
    layer, x = _made(name, backend=backend), torch.randn(5, 2, 3, dtype=DOUBLE)
    h = torch.zeros(1, 2, layer.proj_size or 4, dtype=DOUBLE)
    state = (h, torch.zeros(1, 2, 4, dtype=DOUBLE)) if name.startswith("LSTM") else h
    for changed in (x, layer.weight_hh_l0, torch.utils._pytree.tree_leaves(state)[-1]):
        y = torch.relu_(layer(x, state)[0])
        with torch.no_grad():
            changed.mul_(2)
        with pytest.raises(RuntimeError, match="modified by an inplace operation"):
            y.sum().backward()
    below, above = _made("GRU", backend=backend), bptt.GRU(4, 4, dtype=DOUBLE, backend=backend)
    y, _ = below(x)
    z, _ = above(y)
    y.relu_()
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        z.sum().backward()


def test_whoever_changes_nothing_pays_nothing(monkeypatch):
    """The layer runs forward once, and backward reads what it put out, without a copy."""
    runs = []
    forward = bptt.kernels.cpu.Cpu.forward
    monkeypatch.setattr(bptt.kernels.cpu.Cpu, "forward", lambda *a, **k: (runs.append(1), forward(*a, **k))[1])
    layer, x, saved = bptt.RNN(3, 40, backend="cpu"), torch.randn(50, 2, 3), []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: (saved.append(t.data_ptr()), t)[1], lambda t: t):
        y, _ = layer(x)
    assert y.data_ptr() in saved
    y.sum().backward(retain_graph=True)
    assert len(runs) == 1
    y.detach().mul_(2)
    y.sum().backward()
    assert len(runs) == 2


def test_watch_says_that_it_cannot_see_changed_outputs():
    layer = bptt.GRU(3, 4)
    with pytest.warns(UserWarning, match="the output was changed in place after the call: clone it"), bptt.watch(layer):
        torch.relu_(layer(torch.randn(5, 2, 3))[0]).sum().backward()


def test_a_projection_that_the_loss_does_not_depend_on_has_no_gradient():
    for steps in (1, 3):
        for choose in (lambda y, h, c: c, lambda y, h, c: h, lambda y, h, c: y):
            for backend in ("cpu", "reference"):
                theirs, ours = (lib.LSTM(3, 4, proj_size=2, dtype=DOUBLE) for lib in (torch.nn, bptt))
                ours.load_state_dict(theirs.state_dict())
                ours.backend = backend
                x = torch.randn(steps, 2, 3, dtype=DOUBLE)
                for layer in (theirs, ours):
                    y, (h, c) = layer(x)
                    choose(y, h, c).sum().backward()
                for (name, p), q in zip(theirs.named_parameters(), ours.parameters(), strict=True):
                    assert (p.grad is None) == (q.grad is None), (steps, name)
                    if p.grad is not None:
                        torch.testing.assert_close(q.grad, p.grad, rtol=1e-10, atol=1e-12)
