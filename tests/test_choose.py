"""Which kernel is chosen, and that it is said where the fast one is missing."""

import dataclasses
import importlib
import typing
import warnings
from pathlib import Path

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.fx.experimental.proxy_tensor import make_fx

import bptt
from bptt.kernels import cpu

choose = importlib.import_module("bptt.kernels.choose")  # the module: `bptt.kernels.choose` is the function


@pytest.fixture
def without_the_core(monkeypatch):
    """As where bptt was installed without a compiler."""
    monkeypatch.setattr(cpu, "library", lambda: None)
    monkeypatch.setattr(cpu, "_CORE", Path("/nowhere/libbptt.so"))
    choose._say_that_it_was_not_built.cache_clear()
    yield
    choose._say_that_it_was_not_built.cache_clear()


@pytest.mark.usefixtures("without_the_core")
def test_a_missing_core_is_said_once_and_at_the_first_run():
    layer, x = bptt.GRU(2, 3), torch.randn(4, 1, 2)
    with pytest.warns(UserWarning, match=r"torch's own operators \(backend aten\).*install a C\+\+ compiler") as said:
        layer(x)
    assert said[0].filename == __file__  # the line that called the layer, past bptt's lines and torch's
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        layer(x)
        bptt.LSTM(2, 3)(x)


@pytest.mark.usefixtures("without_the_core")
def test_it_is_not_said_to_who_chose_another_kernel_or_could_not_have_used_it():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        bptt.GRU(2, 3, backend="aten")(torch.randn(4, 1, 2))
        bptt.GRU(2, 3, dtype=torch.bfloat16)(torch.randn(4, 1, 2, dtype=torch.bfloat16))


@pytest.mark.parametrize("name", ["RNN", "GRU", "LSTM"])
def test_tensors_without_memory_and_tracing_take_torch_s_operators(name):
    layer, x, other = getattr(bptt, name)(2, 3), torch.randn(4, 1, 2), torch.randn(4, 1, 2)
    with FakeTensorMode(allow_non_fake_inputs=True) as mode:
        assert layer(mode.from_tensor(x))[0].shape == (4, 1, 3)
    graph = make_fx(lambda given: layer(given)[0])(x)
    torch.testing.assert_close(graph(other), layer(other)[0])
    exported = torch.export.export(layer, (x,)).module()
    torch.testing.assert_close(exported(other)[0], layer(other)[0])
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch.jit.trace is on its way out
        traced = torch.jit.trace(layer, (x,))
    torch.testing.assert_close(traced(other)[0], layer(other)[0])


@dataclasses.dataclass  # compares by value and has no hash
class Unhashable(bptt.PointwiseCell):
    slope: float = 1.0
    gates: typing.ClassVar[int] = 1

    def pointwise(self, zx, zh, state):
        return (torch.tanh(self.slope * (zx + zh).squeeze(-2)),)


@pytest.mark.parametrize("bidirectional", [False, True], ids=["forward", "both"])
def test_a_cell_needs_no_hash_and_its_outputs_may_be_changed_in_place(bidirectional):
    layer = bptt.Recurrent(Unhashable(), 3, 4, bidirectional=bidirectional, dtype=torch.float64)
    x = torch.randn(5, 2, 3, dtype=torch.float64)

    def gradients(change):
        outputs, h_n = layer(x)
        loss = change(outputs).square().sum() + change(h_n).square().sum()
        return torch.autograd.grad(loss, list(layer.parameters()))

    for got, want in zip(gradients(lambda t: t.mul_(2)), gradients(lambda t: 2 * t), strict=True):
        torch.testing.assert_close(got, want)
