"""Where programs expect torch.nn's layers: look-ups by class, quantization, recorders, replaced weights, subclasses."""

import copy
import io
import pickle
import warnings

import pytest
import torch
from torch import nn
from torch.nn.utils.rnn import PackedSequence, pack_padded_sequence

import bptt
from tests.cases import assert_same

NAMES = ("RNN", "GRU", "LSTM")
pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")


def three(name, **options):
    """torch's layer, the same one fused, and one made as bptt's, with equal weights."""
    plain = getattr(nn, name)(3, 4, **options)
    made = getattr(bptt, name)(3, 4, **options)
    made.load_state_dict(plain.state_dict())
    return plain, bptt.fuse(copy.deepcopy(plain)), made


def saved(layer):
    file = io.BytesIO()
    torch.save(layer, file)
    file.seek(0)
    return file


# What class it is --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", NAMES)
def test_a_fused_layer_is_torch_s_and_ours_and_so_are_its_copies(name):
    theirs, ours, x = getattr(nn, name), getattr(bptt, name), torch.randn(5, 2, 3)
    _, fused, made = three(name)
    loaded = torch.load(saved(fused), weights_only=False)
    for twin in (fused, copy.copy(fused), copy.deepcopy(fused), pickle.loads(pickle.dumps(fused)), loaded):  # noqa: S301
        assert isinstance(twin, theirs)
        assert isinstance(twin, ours)
        assert type(twin).__name__ == name
        assert torch.equal(twin(x)[0], fused(x)[0])
    assert not isinstance(made, theirs)
    assert type(bptt.unfuse(fused)) is theirs
    assert type(bptt.unfuse(made)) is theirs


def test_the_class_of_a_fused_layer_is_found_where_torch_s_is_looked_up():
    fused = bptt.fuse(nn.LSTM(3, 4))
    assert {nn.LSTM: "found"}[type(fused)] == "found"
    assert type(fused) == nn.LSTM  # noqa: E721  # as others ask
    assert nn.LSTM == type(fused)  # noqa: E721, SIM300  # the other way round
    assert type(fused) not in {nn.GRU, nn.RNN, nn.Module, bptt.LSTM}
    assert len({nn.LSTM, nn.GRU, type(fused)}) == 2

    class Own(type(fused)):
        pass

    assert Own not in {nn.LSTM, type(fused)}
    assert Own in {Own}


@pytest.mark.parametrize("name", NAMES)
def test_weights_only_needs_the_layer_s_class_alone(name):
    x = torch.randn(5, 2, 3)
    for layer in three(name)[1:]:
        with torch.serialization.safe_globals([type(layer)]):
            twin = torch.load(saved(layer), weights_only=True)
        assert type(twin) is type(layer)
        assert torch.equal(twin(x)[0], layer(x)[0])


@pytest.mark.parametrize("nonlinearity", ["tanh", "relu", "sigmoid"])
def test_pickles_of_bptt_0_1_which_hold_the_cell_still_load(nonlinearity):
    layer, x = bptt.RNN(3, 4, nonlinearity=nonlinearity), torch.randn(5, 2, 3)
    state = layer.__getstate__() | {"cell": bptt.cells.Elman(nonlinearity)}
    state["mode"] = "RNN_RELU" if nonlinearity == "relu" else "RNN_TANH"
    old = bptt.RNN.__new__(bptt.RNN)
    old.__setstate__(state)
    assert old.cell == bptt.cells.Elman(nonlinearity)
    assert torch.equal(old(x)[0], layer(x)[0])
    assert "cell" not in vars(copy.deepcopy(old))


# Quantization ------------------------------------------------------------------------------------------------------


def test_quantize_dynamic_takes_a_fused_model_as_the_plain_one():
    model = nn.ModuleDict({"a": nn.LSTM(3, 8), "b": nn.GRU(8, 8), "c": nn.Linear(8, 2)})
    kinds = {nn.LSTM, nn.GRU, nn.Linear}
    plain = torch.ao.quantization.quantize_dynamic(copy.deepcopy(model), kinds)
    fused = torch.ao.quantization.quantize_dynamic(bptt.fuse(copy.deepcopy(model)), kinds)
    assert [type(m) for m in fused.values()] == [type(m) for m in plain.values()]
    assert type(fused["a"]).__module__.startswith("torch.ao.nn.quantized.dynamic")
    x = torch.randn(5, 2, 3)
    assert torch.equal(fused["a"](x)[0], plain["a"](x)[0])


def test_quantize_dynamic_names_unfuse_where_it_leaves_a_layer():
    model = nn.Sequential(bptt.GRU(3, 4))
    with pytest.warns(UserWarning, match=r"leaves bptt.GRU as it is: call bptt.unfuse\(model\) first"):
        torch.ao.quantization.quantize_dynamic(model, {nn.GRU})
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        done = torch.ao.quantization.quantize_dynamic(bptt.unfuse(model), {nn.GRU})
    assert type(done[0]).__module__.startswith("torch.ao.nn.quantized.dynamic")


# Recorders ---------------------------------------------------------------------------------------------------------


class Reader(nn.Module):
    """Two layers, the second from the state of the first, and a head."""

    def __init__(self, make):
        super().__init__()
        self.first, self.second, self.head = make(3, 4), make(4, 4), nn.Linear(4, 2)

    def forward(self, x):
        y, state = self.first(x)
        return self.head(self.second(torch.relu(y), hx=state)[0])


MAKERS = {f"fused {n}": lambda *s, n=n: bptt.fuse(getattr(nn, n)(*s)) for n in NAMES}
MAKERS |= {f"bptt.{n}": getattr(bptt, n) for n in NAMES}
MAKERS["Recurrent"] = lambda *s: bptt.Recurrent(bptt.cells.Elman("sigmoid"), *s)


@pytest.mark.parametrize("make", MAKERS.values(), ids=MAKERS)
def test_symbolic_trace_records_a_layer_as_one_node(make):
    model = Reader(make)
    traced = torch.fx.symbolic_trace(model)
    calls = [node.target for node in traced.graph.nodes if node.op == "call_module"]
    assert calls == ["first", "second", "head"]
    for x in (torch.randn(5, 2, 3), torch.randn(7, 1, 3)):
        want = torch.autograd.grad(model(x).square().sum(), list(model.parameters()))
        for twin in (traced, copy.deepcopy(traced), pickle.loads(pickle.dumps(traced))):  # noqa: S301
            assert torch.equal(twin(x), model(x))
            got = torch.autograd.grad(twin(x).square().sum(), list(twin.parameters()))
            assert_same(dict(enumerate(got)), dict(enumerate(want)), 1e-6)
    traced.second.weight_hh_l0.data.zero_()
    assert torch.equal(traced(x), model(x))  # the same layers


def test_symbolic_trace_records_resets_and_states_alone():
    class Model(nn.Module):
        def __init__(self):
            super().__init__()
            self.layer = bptt.LSTM(3, 4)
            self.register_buffer("x", torch.randn(5, 2, 3))

        def forward(self, h, c, reset):
            return self.layer(self.x, (h, c), reset=reset)[0]

    model, h, reset = Model(), torch.randn(1, 2, 4), torch.rand(5, 2) < 0.3
    assert torch.equal(torch.fx.symbolic_trace(model)(h, h, reset), model(h, h, reset))


@pytest.mark.parametrize("pair", [tuple, list])
def test_symbolic_trace_records_one_component_of_the_state(pair):
    class Model(nn.Module):
        def __init__(self):
            super().__init__()
            self.layer = bptt.LSTM(3, 4)
            self.register_buffer("x", torch.randn(5, 2, 3))
            self.register_buffer("h", torch.randn(1, 2, 4))

        def forward(self, c):
            return self.layer(self.x, pair((self.h, c)))[0]

    model, c = Model(), torch.randn(1, 2, 4)
    assert torch.equal(torch.fx.symbolic_trace(model)(c), model(c))


def test_symbolic_trace_names_unfuse_where_it_would_run_hooks_twice():
    model = nn.Sequential(bptt.fuse(nn.GRU(3, 4)))
    model[0].register_forward_hook(lambda module, given, out: (2 * out[0], out[1]))
    with pytest.raises(RuntimeError, match=r"call bptt.unfuse\(model\) first"):
        torch.fx.symbolic_trace(model)
    x = torch.randn(5, 2, 3)
    torch.testing.assert_close(torch.fx.symbolic_trace(bptt.unfuse(model))(x)[0], model(x)[0])


@pytest.mark.parametrize("make", MAKERS.values(), ids=MAKERS)
def test_jit_trace_is_right_for_other_inputs_and_lengths_and_ours_warns_of_nothing(make):
    model = Reader(make)
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        traced = torch.jit.trace(model, torch.randn(5, 2, 3))
    own_loop = isinstance(model.first, bptt.Recurrent)  # recorded step by step, of which torch rightly warns
    ours = [w for w in said if issubclass(w.category, torch.jit.TracerWarning) and "bptt" in w.filename.split("/")]
    assert all("kernels" in w.filename for w in ours) if own_loop else not ours
    for steps in (5,) if own_loop else (5, 9):
        x = torch.randn(steps, 2, 3)
        torch.testing.assert_close(traced(x), model(x))


class Called(nn.Module):
    """A layer whose packed input or resets come as tensors, as a recorder wants them."""

    def __init__(self, layer):
        super().__init__()
        self.layer = layer

    def forward(self, x, sizes=None, reset=None):
        y, final = self.layer(x, reset=reset) if sizes is None else self.layer(PackedSequence(x, sizes))
        return y if sizes is None else y.data, final


@pytest.mark.parametrize("name", NAMES)
def test_jit_trace_of_packed_rows_takes_other_batches(name):
    few, many = (pack_padded_sequence(torch.randn(n[0], len(n), 3), n) for n in ([5, 3], [6, 5, 3, 2]))
    for layer in three(name)[1:]:
        traced = torch.jit.trace(Called(layer), (few.data, few.batch_sizes))
        want, final = layer(many)
        torch.testing.assert_close(traced(many.data, many.batch_sizes), (want.data, final))


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("bidirectional", [False, True])
def test_what_is_recorded_takes_other_resets(name, bidirectional):
    layer, x = getattr(bptt, name)(3, 4, bidirectional=bidirectional), torch.randn(5, 2, 3)
    first, reset = torch.zeros(5, 2, dtype=torch.bool), torch.rand(5, 2) < 0.4
    first[2, 0], reset[3] = True, True
    called = Called(layer)
    traced = torch.jit.trace(called, example_kwarg_inputs={"x": x, "reset": first})
    exported = torch.export.export(called, (x,), {"reset": first}).module()
    torch.testing.assert_close(traced(x=x, reset=reset), called(x, reset=reset))
    torch.testing.assert_close(exported(x, reset=reset), called(x, reset=reset))


@pytest.mark.parametrize("make", MAKERS.values(), ids=MAKERS)
def test_jit_script_is_refused_in_words_and_works_unfused(make):
    model = Reader(make)
    layer = model.first
    with pytest.raises(RuntimeError, match=r"torch.jit.script got bptt.*: call bptt.unfuse\(model\) first"):
        torch.jit.script(model)
    assert model.first is layer
    torch.jit.trace(model, torch.randn(5, 2, 3))  # leaves nothing behind that would stand in the way of what follows
    if not isinstance(layer, bptt.Recurrent):
        x = torch.randn(5, 2, 3)
        want = model(x)
        torch.testing.assert_close(torch.jit.script(bptt.unfuse(model))(x), want)


@pytest.mark.parametrize("strict", [False, True])
@pytest.mark.parametrize("name", NAMES)
def test_export_takes_the_layers(name, strict):
    x = torch.randn(5, 2, 3)
    for layer in three(name)[1:]:
        exported = torch.export.export(layer, (x,), strict=strict).module()
        torch.testing.assert_close(exported(x)[0], layer(x)[0])


# Weights that other code has replaced ------------------------------------------------------------------------------


def _filled(weight, value=0.1):
    return torch.full_like(weight.detach(), value)


def _one_of_the_list(layer):
    layer._flat_weights[1] = _filled(layer._flat_weights[1])


def _the_list(layer):
    layer._flat_weights = [_filled(weight) for weight in layer._flat_weights]


def _deleted(layer):
    del layer.weight_hh_l0


def _deleted_and_set(layer):
    weight = layer.weight_hh_l0
    del layer.weight_hh_l0
    layer.weight_hh_l0 = weight * 0.5


def _no_parameter(layer):
    layer.register_parameter("weight_hh_l1", None)


def _the_dict(layer):
    layer._parameters["weight_hh_l1"] = nn.Parameter(_filled(layer.weight_hh_l1))


def _both(layer):
    _one_of_the_list(layer)
    _the_dict(layer)


def _list_then_dtype(layer):
    _the_list(layer)
    layer.double().float()


REPLACED = (_one_of_the_list, _the_list, _deleted, _deleted_and_set, _no_parameter, _the_dict, _both, _list_then_dtype)


@pytest.mark.parametrize("replace", REPLACED)
@pytest.mark.parametrize("name", NAMES)
def test_replaced_weights_are_those_that_torch_runs_by(name, replace):
    x, results = torch.randn(5, 2, 3), []
    for layer in three(name, num_layers=2, bidirectional=True):
        before = layer(x)[0]
        replace(layer)
        results.append((layer(x)[0], layer(x)[0], before))
    for got in results[1:]:
        for a, b in zip(got, results[0], strict=True):
            torch.testing.assert_close(a, b)


@pytest.mark.parametrize("name", NAMES)
def test_a_weight_dropped_anew_at_each_call_gets_its_gradient(name):
    """AWD-LSTM: the raw weight is the parameter, a dropped copy of it stands in its place."""
    x, results = torch.randn(5, 2, 3), []
    for layer in three(name):
        raw = layer.weight_hh_l0
        del layer.weight_hh_l0
        layer.register_parameter("weight_hh_l0_raw", raw)
        for seed in (0, 1):
            torch.manual_seed(seed)
            layer.weight_hh_l0 = nn.functional.dropout(raw, 0.5)
            y = layer(x)[0]
        results.append({"y": y, "raw": torch.autograd.grad(y.sum(), raw)[0]})
    for got in results[1:]:
        assert_same(got, results[0], 1e-6)


def test_a_weight_that_is_missing_is_named():
    layer = bptt.GRU(3, 4)
    layer._flat_weights[2] = None
    with pytest.raises(RuntimeError, match="the layer has no tensor bias_ih_l0"):
        layer(torch.randn(5, 2, 3))


# RNN.mode ----------------------------------------------------------------------------------------------------------


def test_the_rnn_runs_by_its_mode_also_if_it_is_set_later():
    x = torch.randn(5, 2, 3)
    plain, fused, made = three("RNN")
    tanh = plain(x)[0]
    for layer in (plain, fused, made):
        layer.nonlinearity = "relu"  # decides nothing once the layer is made
        torch.testing.assert_close(layer(x)[0], tanh)
        layer.mode = "RNN_RELU"
    want = plain(x)[0]
    assert not torch.allclose(want, tanh)
    for layer in (fused, made):
        for twin in (layer, copy.deepcopy(layer), pickle.loads(pickle.dumps(layer))):  # noqa: S301
            torch.testing.assert_close(twin(x)[0], want)
            assert twin.cell == bptt.cells.Elman("relu")
            assert repr(twin) == repr(plain)
        torch.testing.assert_close(bptt.unfuse(layer)(x)[0], want)
        torch.testing.assert_close(bptt.fuse(layer)(x)[0], want)


def test_the_sigmoid_is_ours_and_stays():
    layer, x = bptt.RNN(3, 4, nonlinearity="sigmoid"), torch.randn(5, 2, 3)
    want = bptt.Recurrent(bptt.cells.Elman("sigmoid"), 3, 4)
    want.load_state_dict(layer.state_dict())
    for twin in (layer, copy.deepcopy(layer)):
        assert torch.equal(twin(x)[0], want(x)[0])
    with pytest.warns(UserWarning, match="torch.nn has no layer of Elman"):
        assert bptt.unfuse(layer) is layer
    layer.mode = "RNN_TANH"
    torch.testing.assert_close(layer(x)[0], bptt.unfuse(copy.deepcopy(layer))(x)[0])


def test_a_mode_that_nobody_knows():
    plain, fused, made = three("RNN")
    for layer in (plain, fused, made):
        layer.mode = "RNN_SOFTSIGN"
        said = "mode .*RNN_SOFTSIGN" if layer is not plain else ""  # torch 2.10 says nothing
        with pytest.raises(AssertionError, match=said):
            layer(torch.randn(5, 2, 3))
    lines = []
    bptt.fuse(plain, report=lines.append)
    assert lines[0] == "RNN: torch.nn.RNN left: its mode is 'RNN_SOFTSIGN'"


# Methods of torch.nn's layers --------------------------------------------------------------------------------------

METHODS = ("check_forward_args", "check_hidden_size", "check_input", "get_expected_hidden_size", "permute_hidden")


def _states(name, unbatched=False):
    h = torch.randn(1, 4) if unbatched else torch.randn(1, 2, 4)
    return (h, h.clone()) if name == "LSTM" else h


@pytest.mark.parametrize("name", NAMES)
def test_the_methods_exist_and_do_what_torch_s_do(name):
    x, state, order = torch.randn(5, 2, 3), _states(name), torch.tensor([1, 0])
    plain, *others = three(name)
    for layer in others:
        assert layer.check_forward_args(x, state, None) is None
        assert layer.get_expected_hidden_size(x, None) == plain.get_expected_hidden_size(x, None)
        got, want = layer.permute_hidden(state, order), plain.permute_hidden(state, order)
        assert all(torch.equal(a, b) for a, b in zip(got, want, strict=True))
        if name == "LSTM":
            assert layer.get_expected_cell_size(x, None) == plain.get_expected_cell_size(x, None)
        with pytest.raises(RuntimeError, match="Expected"):
            layer.check_hidden_size(torch.zeros(1), (1, 2, 4))
        with pytest.raises(RuntimeError, match="input_size"):
            layer.check_input(torch.randn(5, 2, 7), None)


def _recording(kind, methods, calls):
    """A subclass whose methods write down what they were called with, and do what they did."""

    def written_down(method):
        def method_of_subclass(self, *given):
            calls.append((method, [_shape(g) for g in given]))
            found = getattr(kind, method)(self, *given)
            return _negated(found) if method == "permute_hidden" else found

        return method_of_subclass

    return type("Own", (kind,), {m: written_down(m) for m in methods})


def _shape(given):
    if isinstance(given, tuple) and not isinstance(given, torch.Size):
        return [_shape(g) for g in given]
    return list(given.shape) if isinstance(given, torch.Tensor) else given


def _negated(state):
    return tuple(-s for s in state) if isinstance(state, tuple) else -state


@pytest.mark.parametrize("methods", [METHODS, *[(m,) for m in METHODS]], ids=lambda m: m[0] if len(m) == 1 else "all")
@pytest.mark.parametrize("batch_first", [False, True])
@pytest.mark.parametrize("name", NAMES)
def test_a_subclass_has_its_methods_called_when_torch_calls_them(name, batch_first, methods):
    padded = torch.randn(5, 2, 3)
    packed = pack_padded_sequence(padded, [3, 5], enforce_sorted=False)
    in_order = pack_padded_sequence(padded, [5, 3])
    given = padded.transpose(0, 1) if batch_first else padded
    inputs = [(given, False), (padded[:, 0], True), (packed, False), (in_order, False)]
    calls = {nn: [], bptt: []}
    layers = {lib: _recording(getattr(lib, name), methods, calls[lib])(3, 4, batch_first=batch_first) for lib in calls}
    layers[bptt].load_state_dict(layers[nn].state_dict())
    for x, unbatched in inputs:
        for hx in (None, _states(name, unbatched)):
            (y, final), (want_y, want) = layers[bptt](x, hx), layers[nn](x, hx)
            assert calls[bptt] == calls[nn]
            torch.testing.assert_close(getattr(y, "data", y), getattr(want_y, "data", want_y))
            torch.testing.assert_close(final, want)
    assert calls[nn]


def test_a_method_overridden_in_a_mixin_is_found_and_one_of_the_object_is_not_lost():
    class Checked:
        def check_input(self, input, batch_sizes):
            raise LookupError("mine")

    class Own(Checked, bptt.LSTM):
        pass

    with pytest.raises(LookupError, match="mine"):
        Own(3, 4)(torch.randn(5, 2, 7))  # before our own check
    layer = nn.GRU(3, 4)
    layer.permute_hidden = lambda hx, permutation: hx
    lines = []
    bptt.fuse(layer, report=lines.append)
    assert lines[0].startswith("GRU: torch.nn.GRU left: the object itself has permute_hidden")
