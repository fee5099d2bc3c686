"""Under autocast every layer runs on every processor: float32 inside, results in the formats that torch.nn's have."""

import itertools
import os
import subprocess
import sys

import pytest
import torch
from torch.nn.utils.rnn import PackedSequence, pack_padded_sequence

import bptt
from bptt.kernels.autocast import onednn_has_lstm
from tests.cases import assert_same

pytestmark = pytest.mark.filterwarnings("ignore:LSTM with projections is not supported with oneDNN")
F32, F64, BF16, F16 = torch.float32, torch.float64, torch.bfloat16, torch.float16
LAYERS = {"RNN": {}, "GRU": {}, "LSTM": {}, "LSTM projected": {"proj_size": 2}}
BACKENDS = ("auto", "cpu", "aten", "reference")


def _made(name, dtype=F32, **options):
    """torch's layer and ours, with the same weights."""
    theirs, ours = (
        getattr(library, name.split()[0])(3, 4, dtype=dtype, **LAYERS[name], **options) for library in (torch.nn, bptt)
    )
    ours.load_state_dict(theirs.state_dict())
    return theirs, ours


def _given(layer, form, dtype, state_dtype):
    x = torch.randn(5, 2, 3).to(dtype)
    x = pack_padded_sequence(x, [5, 3]) if form == "packed" else x
    if state_dtype is None:
        return (x,)
    rows = layer.num_layers * (2 if layer.bidirectional else 1)
    h = torch.randn(rows, 2, layer.proj_size or 4).to(state_dtype)
    return x, (h, torch.randn(rows, 2, 4).to(state_dtype)) if layer.mode == "LSTM" else h


def _tensors(result):
    outputs, final = result
    return (outputs.data if isinstance(outputs, PackedSequence) else outputs, *torch.utils._pytree.tree_leaves(final))


def _lacks(name, form, cast, dtype):
    """Whether torch.nn cannot run it for want of an operator: oneDNN's LSTM, or a cat of float16 with bfloat16."""
    return name == "LSTM" and form == "padded" and dtype in (F32, BF16) and not onednn_has_lstm(cast)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("name", LAYERS)
def test_results_have_torchs_formats_for_each_format_of_input_and_state(name, backend):
    for cast, form, dtype, state_dtype in itertools.product(
        (BF16, F16), ("padded", "packed"), (F32, BF16, F16), (None, F32, BF16, F16)
    ):
        theirs, ours = _made(name)
        ours.backend = backend
        given = _given(ours, form, dtype, state_dtype)
        with torch.autocast("cpu", cast):
            got = tuple(t.dtype for t in _tensors(ours(*given)))
            lacks = _lacks(name, form, cast, dtype)
            want = (cast,) * len(got) if lacks else tuple(t.dtype for t in _tensors(theirs(*given)))
        assert got == want, f"autocast {cast}, {form}, input {dtype}, state {state_dtype}"


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("name", LAYERS)
def test_float64_is_mixed_with_nothing_and_left_as_it_is(name, backend):
    theirs, ours = _made(name)
    ours.backend = backend
    with torch.autocast("cpu", BF16):
        for given in (_given(ours, "padded", F64, None), _given(ours, "padded", F32, F64)):
            for layer in (theirs, ours):
                with pytest.raises((RuntimeError, ValueError)):
                    layer(*given)
        if backend != "cpu":  # whose refusal the others make good
            theirs, ours = _made(name, F64)
            ours.backend = backend
            x = torch.randn(5, 2, 3, dtype=F64)
            for got, want in zip(_tensors(ours(x)), _tensors(theirs(x)), strict=True):
                torch.testing.assert_close(got, want, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("cast", [BF16, F16], ids=["bfloat16", "float16"])
@pytest.mark.parametrize("form", ["padded", "packed"])
@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("name", LAYERS)
def test_numbers_are_those_of_float64(name, backend, form, cast):
    theirs, ours = _made(name, num_layers=2, bidirectional=True)
    ours.backend = backend
    given = _given(ours, form, F32, F32)
    with torch.autocast("cpu", cast):
        trained = _tensors(ours(*given))
        with torch.no_grad():
            inferred = _tensors(ours(*given))
    loss = sum(t.double().square().sum() for t in trained)
    got = [*trained, *torch.autograd.grad(loss, list(ours.parameters()))]
    theirs.double()
    wide = torch.utils._pytree.tree_map(torch.Tensor.double, given[1])
    x = given[0].double() if form == "padded" else PackedSequence(given[0].data.double(), *given[0][1:])
    exact = _tensors(theirs(x, wide))
    want = [*exact, *torch.autograd.grad(sum(t.square().sum() for t in exact), list(theirs.parameters()))]
    for tensors in (got, inferred):
        found = {str(i): t.detach().double() for i, t in enumerate(tensors)}
        assert_same(found, {str(i): t.detach() for i, t in zip(range(len(found)), want, strict=False)}, 2e-2)


@pytest.mark.parametrize("trained", [True, False])
@pytest.mark.parametrize("name", LAYERS)
def test_compiled_whole_it_gives_what_it_gives_otherwise(name, trained):
    layer, x = _made(name)[1].requires_grad_(trained), torch.randn(5, 2, 3)
    onednn_has_lstm.cache_clear()  # torch.compile may come first
    torch._dynamo.reset()
    compiled = torch.compile(layer, backend="aot_eager", fullgraph=True)
    for cast in (BF16, F16):
        with torch.autocast("cpu", cast):
            got, want = _tensors(compiled(x)), _tensors(layer(x))
        assert [t.dtype for t in got] == [t.dtype for t in want]
        for a, b in zip(got, want, strict=True):
            torch.testing.assert_close(a.float(), b.float(), rtol=2e-2, atol=2e-2)
    torch._dynamo.reset()


@pytest.mark.slow
def test_on_a_processor_whose_onednn_has_no_lstm_in_bfloat16():
    """What the processor offers is decided when torch starts, so in a process of its own."""
    if not onednn_has_lstm(BF16):
        return  # then this is such a processor, and the tests above have run on it
    smaller = {"BPTT_ISA": "avx2", "ATEN_CPU_CAPABILITY": "avx2", "ONEDNN_MAX_CPU_ISA": "AVX2"}
    code = f"""
import pytest, sys, torch
from bptt.kernels.autocast import onednn_has_lstm
assert not onednn_has_lstm(torch.bfloat16), "this does not reproduce such a processor"
sys.exit(pytest.main(["-q", "-p", "no:cacheprovider", {__file__!r}, "-k", "LSTM"]))
"""
    command = [sys.executable, "-c", code]
    result = subprocess.run(command, capture_output=True, text=True, env=os.environ | smaller, check=False)
    assert result.returncode == 0, result.stdout[-3000:] + result.stderr[-1000:]
