"""bptt.RNN, GRU and LSTM in the place of torch.nn's: keys, outputs, gradients, errors, and what else a model is used for."""

import copy
import itertools
import pickle
import subprocess
import sys
import warnings

import pytest
import torch
from torch import nn
from torch.nn.utils.rnn import PackedSequence, pack_padded_sequence, pad_packed_sequence
from torch.utils.checkpoint import checkpoint

import bptt
from bptt.kernels.autocast import onednn_has_lstm
from tests.cases import CELLS, assert_same

VARIANTS = {
    "rnn-tanh": ("RNN", {}),
    "rnn-relu": ("RNN", {"nonlinearity": "relu"}),
    "gru": ("GRU", {}),
    "lstm": ("LSTM", {}),
    "lstm-proj": ("LSTM", {"proj_size": 3}),
}
FORMS = ("time first", "batch first", "unbatched", "packed sorted", "packed unsorted")
pytestmark = pytest.mark.filterwarnings("ignore:LSTM with projections is not supported with oneDNN")


def _pair(variant, backend="auto", **options):
    """torch's layer and ours, with the same weights."""
    name, extra = VARIANTS[variant]
    theirs = getattr(nn, name)(4, 5, **extra, **options)
    ours = getattr(bptt, name)(4, 5, **extra, **options, backend=backend)
    assert list(ours.state_dict()) == list(theirs.state_dict())
    ours.load_state_dict(theirs.state_dict())
    return theirs, ours


def _input(form, dtype):
    x = torch.randn(6, 3, 4, dtype=dtype)
    if form == "batch first":
        return x.transpose(0, 1).contiguous()
    if form == "unbatched":
        return x[:, 0]
    if form.startswith("packed"):
        lengths = [6, 4, 1] if form == "packed sorted" else [4, 1, 6]
        return pack_padded_sequence(x, torch.tensor(lengths), enforce_sorted=form == "packed sorted")
    return x


def _states(layer, form, dtype):
    rows = layer.num_layers * (2 if layer.bidirectional else 1)
    shape = (rows,) if form == "unbatched" else (rows, 3)
    h = torch.randn(*shape, layer.proj_size or 5, dtype=dtype)
    return (h, torch.randn(*shape, 5, dtype=dtype)) if isinstance(layer, nn.LSTM) else h


def _everything(layer, x, state):
    """Outputs, final states, and the gradients of weights, input and initial state, by name."""
    data = x.data if isinstance(x, PackedSequence) else x
    data = data.clone().requires_grad_()
    given = PackedSequence(data, *x[1:]) if isinstance(x, PackedSequence) else data
    hx = None if state is None else tuple(s.clone().requires_grad_() for s in _tuple(state))
    outputs, final = layer(given, hx if hx is None or len(hx) > 1 else hx[0])
    y = pad_packed_sequence(outputs)[0] if isinstance(outputs, PackedSequence) else outputs
    tensors = {"y": y} | {f"final {i}": s for i, s in enumerate(_tuple(final))}
    torch.manual_seed(1)
    loss = sum((t * torch.randn(t.shape, dtype=t.dtype)).sum() for t in tensors.values())
    leaves = {"x": data} | dict(layer.named_parameters()) | {f"initial {i}": s for i, s in enumerate(hx or ())}
    gradients = torch.autograd.grad(loss, list(leaves.values()))
    return {n: t.detach() for n, t in tensors.items()} | {f"d_{n}": g for n, g in zip(leaves, gradients, strict=True)}


def _tuple(state):
    return state if isinstance(state, tuple) else (state,)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=["f32", "f64"])
@pytest.mark.parametrize("backend", ["auto", "aten", "reference"])
@pytest.mark.parametrize("variant", VARIANTS)
def test_the_whole_option_matrix(variant, backend, dtype):
    tolerance = 1e-10 if dtype == torch.float64 else 1e-5
    for form, layers, two, bias, with_state in itertools.product(FORMS, (1, 2), (False, True), (True, False), (0, 1)):
        options = {"num_layers": layers, "bidirectional": two, "bias": bias, "batch_first": form == "batch first"}
        theirs, ours = _pair(variant, backend, dtype=dtype, **options)
        x, state = _input(form, dtype), _states(theirs, form, dtype) if with_state else None
        assert_same(_everything(ours, x, state), _everything(theirs, x, state), tolerance)
        y_ours, y_theirs = ours(x)[0], theirs(x)[0]
        if isinstance(y_theirs, PackedSequence):
            assert all(_equal(a, b) for a, b in zip(y_ours[1:], y_theirs[1:], strict=True))
        else:
            assert y_ours.shape == y_theirs.shape


def _equal(a, b):
    return a is b or torch.equal(a, b)


def test_dropout_in_a_single_layer_is_no_use():
    with pytest.warns(UserWarning, match="dropout=0.3 has no effect with num_layers=1") as said:
        bptt.Recurrent(bptt.cells.Elman("sigmoid"), 2, 3, dropout=0.3)

    class Derived(bptt.Recurrent):
        def __init__(self):
            super().__init__(bptt.cells.Elman("sigmoid"), 2, 3, dropout=0.3)

    with pytest.warns(UserWarning, match="dropout=0.3 has no effect") as of_a_derived_one:
        Derived()
    assert [w.filename for w in (*said, *of_a_derived_one)] == [__file__, __file__]


@pytest.mark.parametrize("variant", VARIANTS)
def test_dropout_draws_what_torch_draws(variant):
    theirs, ours = _pair(variant, "aten", num_layers=3, dropout=0.4)
    x = torch.randn(6, 3, 4)
    results = []
    for layer in (theirs, ours):
        torch.manual_seed(5)
        results.append(layer(x)[0])
    assert torch.equal(*results)
    assert torch.equal(theirs.eval()(x)[0], ours.eval()(x)[0])
    for backend in ("auto", "reference"):
        other = copy.deepcopy(ours).train()
        other.backend = backend
        torch.manual_seed(5)
        torch.testing.assert_close(other(x)[0], results[0])


@pytest.mark.parametrize("variant", VARIANTS)
def test_an_empty_batch_works_as_in_torch(variant):
    theirs, ours = _pair(variant, "reference")
    x = torch.randn(3, 0, 4)
    assert ours(x)[0].shape == theirs(x)[0].shape


@pytest.mark.parametrize("backend", ["auto", "reference"])
@pytest.mark.parametrize("variant", VARIANTS)
def test_copies_pickles_and_state_dicts(variant, backend):
    theirs, ours = _pair(variant, backend, num_layers=2, bidirectional=True)
    x = torch.randn(6, 3, 4)
    want = ours(x)[0]
    for twin in (copy.deepcopy(ours), pickle.loads(pickle.dumps(ours))):  # noqa: S301  # our own bytes
        assert torch.equal(twin(x)[0], want)
        assert twin.backend == backend
    theirs.load_state_dict(ours.state_dict())
    torch.testing.assert_close(theirs(x)[0], want)
    ours.to(torch.float64)
    assert ours(x.double())[0].dtype == torch.float64


@pytest.mark.parametrize("backend", ["auto", "reference"])
@pytest.mark.parametrize("variant", VARIANTS)
def test_functional_call_and_torch_func(variant, backend):
    _, ours = _pair(variant, backend, dtype=torch.float64)
    x = torch.randn(6, 3, 4, dtype=torch.float64)
    other = {n: torch.randn_like(p) * 0.5 for n, p in ours.named_parameters()}

    def loss(parameters):
        return torch.func.functional_call(ours, parameters, (x,))[0].square().sum()

    gradient = torch.func.grad(loss)(other)
    ours.load_state_dict(other)
    ours(x)[0].square().sum().backward()
    assert_same(gradient, {n: p.grad for n, p in ours.named_parameters()})


@pytest.mark.parametrize("variant", VARIANTS)
def test_torch_compile_takes_the_whole_model(variant):
    class Model(nn.Module):
        def __init__(self, recurrent):
            super().__init__()
            self.recurrent, self.output = recurrent, nn.Linear(recurrent.proj_size or 5, 2)

        def forward(self, x):
            return self.output(self.recurrent(x)[0])

    model = Model(_pair(variant)[1])
    x = torch.randn(6, 3, 4)
    compiled = torch.compile(model, fullgraph=True, backend="aot_eager")
    want = torch.autograd.grad(model(x).square().sum(), list(model.parameters()))
    got = torch.autograd.grad(compiled(x).square().sum(), list(model.parameters()))
    assert_same(dict(enumerate(got)), dict(enumerate(want)), 1e-5)


@pytest.mark.parametrize("options", [{}, {"num_layers": 2, "bidirectional": True}], ids=["plain", "both"])
@pytest.mark.parametrize("name", CELLS)
def test_torch_compile_takes_every_cell_without_a_word(name, options):
    torch._dynamo.reset()
    layer, x = bptt.Recurrent(CELLS[name], 4, 5, **options), torch.randn(6, 3, 4)
    want = torch.autograd.grad(layer(x)[0].square().sum(), list(layer.parameters()))
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        outputs, _ = torch.compile(layer, fullgraph=True, backend="aot_eager")(x)
    assert not [w for w in said if not issubclass(w.category, DeprecationWarning)]  # torch has one about Functions
    got = torch.autograd.grad(outputs.square().sum(), list(layer.parameters()))
    assert_same(dict(enumerate(got)), dict(enumerate(want)), 1e-5)


@pytest.mark.parametrize("use_reentrant", [False, True])
@pytest.mark.parametrize("backend", ["auto", "reference"])
@pytest.mark.parametrize("variant", VARIANTS)
def test_activation_checkpointing(variant, backend, use_reentrant):
    _, ours = _pair(variant, backend, num_layers=2, bidirectional=True, dropout=0.5)
    x, found = torch.randn(6, 3, 4, requires_grad=True), []
    for run in (ours, lambda x: checkpoint(ours, x, use_reentrant=use_reentrant)):
        torch.manual_seed(0)
        run(x)[0].square().sum().backward()
        found.append({"x": x.grad.clone(), **{n: p.grad.clone() for n, p in ours.named_parameters()}})
        x.grad = None
        ours.zero_grad()
    assert_same(*found)


def test_subclasses_and_hooks():
    for layer in (bptt.RNN(2, 2), bptt.GRU(2, 2), bptt.LSTM(2, 2)):
        assert isinstance(layer, nn.RNNBase)
        seen = []
        layer.register_forward_hook(lambda *a, seen=seen: seen.append(1))
        layer(torch.randn(3, 1, 2))
        assert seen == [1]
        assert [list(map(id, g)) for g in layer.all_weights] == [[id(p) for p in layer.parameters()]]


def test_torch_nn_s_positional_arguments():
    assert bptt.RNN(2, 3, 2, "relu", False, True, 0.1, True).state_dict().keys() == (
        nn.RNN(2, 3, 2, "relu", False, True, 0.1, True).state_dict().keys()
    )
    assert repr(bptt.LSTM(2, 3, 2, False, True, 0.1, True, 1)) == repr(nn.LSTM(2, 3, 2, False, True, 0.1, True, 1))


@pytest.mark.parametrize("name", ["RNN", "GRU", "LSTM"])
@pytest.mark.parametrize("backend", ["auto", "reference"])
def test_errors_are_of_torch_s_types(name, backend):
    theirs, ours = getattr(nn, name)(4, 5), getattr(bptt, name)(4, 5, backend=backend)
    pair = (lambda h: (h, torch.zeros(1, 3, 5))) if name == "LSTM" else (lambda h: h)
    wrong = [
        (torch.randn(6, 3, 7),),
        (torch.randn(6, 3, 4, 1),),
        (torch.randn(4),),
        (torch.randn(0, 3, 4),),
        (torch.randn(6, 3, 4, dtype=torch.float64),),
        (torch.randn(6, 3, 4), pair(torch.zeros(1, 4, 5))),
        (torch.randn(6, 3, 4), pair(torch.zeros(2, 3, 5))),
        (torch.randn(6, 4), pair(torch.zeros(1, 3, 5))),
    ]
    for arguments in wrong:
        with pytest.raises((ValueError, RuntimeError)) as expected:
            theirs(*arguments)
        with pytest.raises(expected.type) as got:
            ours(*arguments)
        assert ":" in str(got.value)


@pytest.mark.parametrize(
    "arguments",
    [(0, 5), (4, 0), (4, -1), (4.0, 5), (4, 5, 0), ("4", 5)],
)
def test_impossible_sizes(arguments):
    def own(*sizes):
        return bptt.Recurrent(bptt.cells.GRU(), *sizes)

    try:
        nn.GRU(*arguments)
    except (ValueError, TypeError) as error:
        for make in (bptt.GRU, own):
            with pytest.raises(type(error)):
                make(*arguments)
    else:
        assert arguments == (0, 5), "torch 2.10 takes a layer without inputs, and no other of these"
        assert bptt.GRU(*arguments).weight_ih_l0.shape == nn.GRU(*arguments).weight_ih_l0.shape
        with pytest.raises(ValueError, match="input_size is 0"):
            own(*arguments)


def test_other_wrong_arguments():
    with pytest.raises(ValueError, match="unknown backend 'cuda': choose one of 'auto'"):
        bptt.LSTM(2, 3, backend="cuda")
    with pytest.raises(ValueError, match="only supported for LSTM, not GRU"):
        bptt.GRU(2, 3, proj_size=1)
    with pytest.raises(TypeError, match="unexpected keyword argument 'hidden'"):
        bptt.RNN(2, 3, hidden=1)
    with pytest.raises(ValueError, match="Unknown nonlinearity"):
        bptt.RNN(2, 3, nonlinearity="gelu")
    with pytest.raises(ValueError, match="cannot be projected"):
        bptt.Recurrent(bptt.cells.GRU(), 2, 3, proj_size=1)
    with pytest.raises(TypeError, match="wanted a bptt.Cell object"):
        bptt.Recurrent(bptt.cells.GRU, 2, 3)
    with pytest.raises(RuntimeError, match="hidden state h has batch 3, input has batch 4: pass state"):
        bptt.GRU(2, 3)(torch.randn(5, 4, 2), torch.zeros(1, 3, 3))
    with pytest.raises(RuntimeError, match=r"initial state has 1 tensors, wanted 2: pass \(h_0, c_0\)"):
        bptt.LSTM(2, 3)(torch.randn(5, 4, 2), torch.zeros(1, 4, 3))
    with pytest.raises(RuntimeError, match="reset is torch.float32"):
        bptt.GRU(2, 3)(torch.randn(5, 4, 2), reset=torch.zeros(5, 4))
    with pytest.raises(RuntimeError, match="reset must have the form of the input"):
        bptt.GRU(2, 3)(pack_padded_sequence(torch.randn(5, 4, 2), [5, 5, 5, 5]), reset=torch.zeros(5, 4).bool())


def test_a_backend_that_is_insisted_on_refuses_clearly():
    with pytest.raises(RuntimeError, match="backend='aten' cannot run this layer: torch has no operator for Elman"):
        bptt.RNN(2, 3, nonlinearity="sigmoid", backend="aten")(torch.randn(4, 1, 2))
    two_ways = bptt.GRU(2, 3, bidirectional=True, backend="aten")
    with pytest.raises(RuntimeError, match="bidirectional operators know no reset: pass backend='auto'"):
        two_ways(torch.randn(4, 1, 2), reset=torch.ones(4, 1).bool())


@pytest.mark.parametrize("name", ["RNN", "GRU", "LSTM"])
def test_autocast_on_the_cpu_runs_in_both_backends(name):
    x = torch.randn(6, 3, 4)
    theirs, ours = getattr(nn, name)(4, 5), getattr(bptt, name)(4, 5)
    ours.load_state_dict(theirs.state_dict())
    want = theirs(x)[0].to(torch.float32 if name == "GRU" else torch.bfloat16)
    with torch.autocast("cpu", torch.bfloat16):
        if name != "LSTM" or onednn_has_lstm(torch.bfloat16):
            want = theirs(x)[0]
        for backend in ("auto", "reference"):  # where it is not torch's operator, it is the more exact one
            ours.backend = backend
            torch.testing.assert_close(ours(x)[0], want, atol=3e-2, rtol=3e-2)


def test_the_layers_do_not_load_the_compiler():
    """torch.compile's modules take a second to load, which only those who compile should wait for."""
    code = "import sys, torch, bptt; bptt.fuse(torch.nn.LSTM(3, 4)); print('torch._dynamo' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "False\n"
