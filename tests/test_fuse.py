"""fuse and unfuse: same objects, same results, everything attached to a layer stays; what is left, and why."""

import copy
import io
import pickle
import warnings

import pytest
import torch
from torch import nn
from torch.nn.utils import parametrizations, prune
from torch.nn.utils.rnn import pack_padded_sequence

import bptt
from tests.cases import assert_same

NAMES = ("RNN", "GRU", "LSTM")
VARIANTS = {
    "rnn": lambda: nn.RNN(4, 5),
    "rnn-relu": lambda: nn.RNN(4, 5, nonlinearity="relu", bias=False),
    "gru": lambda: nn.GRU(4, 5, 2, dropout=0.3, batch_first=True),
    "lstm": lambda: nn.LSTM(4, 5, 2, bidirectional=True),
    "lstm-proj": lambda: nn.LSTM(4, 5, proj_size=3),
}
pytestmark = [
    pytest.mark.filterwarnings("ignore:LSTM with projections is not supported with oneDNN"),
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
]


class Model(nn.Module):
    """One layer and a head, as a user has it."""

    def __init__(self, recurrent):
        super().__init__()
        self.recurrent = recurrent
        self.head = nn.Linear((recurrent.proj_size or 5) * (2 if recurrent.bidirectional else 1), 2)

    def forward(self, x):
        y = self.recurrent(x)[0]
        return self.head(y.data if isinstance(y, nn.utils.rnn.PackedSequence) else y)


class Own(nn.LSTM):
    """A user's subclass with a forward of its own."""

    def forward(self, x):
        return super().forward(2 * x)


@pytest.fixture(params=VARIANTS)
def twins(request):
    """A model in evaluation mode and its fused twin."""
    plain = Model(VARIANTS[request.param]()).eval()
    return plain, bptt.fuse(copy.deepcopy(plain))


def lines_of(action, model):
    lines = []
    action(model, report=lines.append)
    return lines


def gradients(model, x):
    found = torch.autograd.grad(model(x).square().sum(), list(model.parameters()))
    return dict(zip([n for n, _ in model.named_parameters()], found, strict=True))


# The same model ----------------------------------------------------------------------------------------------------


def test_outputs_and_gradients_agree_padded_and_packed(twins):
    plain, fused = twins
    padded = torch.randn(6, 3, 4)
    for x in (padded, padded[:, 0], pack_padded_sequence(padded, torch.tensor([4, 6, 1]), enforce_sorted=False)):
        torch.testing.assert_close(fused(x), plain(x))
        assert_same(gradients(fused, x), gradients(plain, x), 1e-5)


@pytest.mark.parametrize("variant", VARIANTS)
def test_the_layer_stays_the_same_object_with_the_same_parameters(variant):
    layer = VARIANTS[variant]()
    layer.note, layer.weight_hh_l0.requires_grad = "mine", False
    layer.register_buffer("seen", torch.ones(2))
    before, keys, type_before = list(layer.named_parameters()), list(layer.state_dict()), type(layer)
    holder = {"plain reference": layer}
    assert bptt.fuse(layer) is layer is holder["plain reference"]
    assert isinstance(layer, getattr(bptt, type_before.__name__))
    assert isinstance(layer, type_before)
    assert all(a is b and m == n for (m, a), (n, b) in zip(before, layer.named_parameters(), strict=True))
    assert list(layer.state_dict()) == keys
    assert layer.note == "mine"
    assert torch.equal(layer.seen, torch.ones(2))
    assert not layer.weight_hh_l0.requires_grad
    assert layer.training


@pytest.mark.parametrize("variant", VARIANTS)
def test_an_optimizer_made_before_trains_the_fused_model_as_the_plain_one(variant):
    plain = Model(VARIANTS[variant]().eval())  # without dropout
    fused = copy.deepcopy(plain)
    optimizers = [torch.optim.Adam(m.parameters(), lr=1e-2) for m in (plain, fused)]
    bptt.fuse(fused)
    losses = []
    for _ in range(10):
        x = torch.randn(6, 3, 4)
        for model, optimizer in zip((plain, fused), optimizers, strict=True):
            loss = (model(x) - x.mean()).square().mean()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            losses.append(loss.item())
    assert losses[-2:] != losses[:2]
    assert losses[::2] == pytest.approx(losses[1::2], rel=1e-4)
    assert_same(dict(fused.named_parameters()), dict(plain.named_parameters()), 1e-4)


def test_frozen_weights_get_no_gradient_and_train_and_eval_stay(twins):
    _, fused = twins
    assert not fused.recurrent.training
    fused.train()
    assert fused.recurrent.training
    fused.recurrent.weight_hh_l0.requires_grad_(False)
    fused(torch.randn(6, 3, 4)).sum().backward()
    assert fused.recurrent.weight_hh_l0.grad is None
    assert fused.recurrent.weight_ih_l0.grad is not None


@pytest.mark.parametrize("name", NAMES)
def test_every_hook_fires_once(name):
    layer, fired = getattr(nn, name)(4, 5), []

    def hook(kind):
        return lambda *_: fired.append(kind)

    layer.register_forward_pre_hook(hook("forward pre"))
    layer.register_forward_pre_hook(hook("forward pre, keywords"), with_kwargs=True)
    layer.register_forward_hook(hook("forward"))
    layer.register_forward_hook(hook("forward, keywords"), with_kwargs=True)
    layer.register_full_backward_pre_hook(hook("backward pre"))
    layer.register_full_backward_hook(hook("backward"))
    layer.register_state_dict_pre_hook(hook("state_dict pre"))
    layer.register_state_dict_post_hook(hook("state_dict post"))
    layer.register_load_state_dict_pre_hook(hook("load pre"))
    layer.register_load_state_dict_post_hook(hook("load post"))
    layer.weight_hh_l0.register_hook(hook("gradient"))
    bptt.fuse(layer)(torch.randn(6, 3, 4, requires_grad=True))[0].sum().backward()
    layer.load_state_dict(layer.state_dict())
    assert sorted(fired) == [
        "backward", "backward pre", "forward", "forward pre", "forward pre, keywords", "forward, keywords", "gradient",
        "load post", "load pre", "state_dict post", "state_dict pre",
    ]  # fmt: skip


def test_nested_and_shared_layers():
    shared = nn.LSTM(4, 4)
    model = nn.ModuleDict({
        "tower": nn.Sequential(nn.Linear(4, 4), nn.ModuleList([shared, nn.GRU(4, 4)])),
        "again": shared,
        "relu": nn.RNN(4, 4, nonlinearity="relu"),
    })  # fmt: skip
    model["loop"] = nn.Sequential()
    model["loop"].parent = model  # a cycle
    assert lines_of(bptt.fuse, model) == [
        "again, tower.1.0: torch.nn.LSTM -> bptt.LSTM",
        "relu: torch.nn.RNN -> bptt.RNN",
        "tower.1.1: torch.nn.GRU -> bptt.GRU",
    ]
    assert model["again"] is model["tower"][1][0] is shared
    assert isinstance(shared, bptt.LSTM)
    assert model["relu"].cell == bptt.cells.Elman("relu")


def test_state_dicts_fit_both_ways(twins):
    plain, fused = twins
    other = copy.deepcopy(plain)
    for parameter in other.parameters():
        nn.init.normal_(parameter)
    fused.load_state_dict(other.state_dict(), strict=True)
    plain.load_state_dict(fused.state_dict(), strict=True)
    assert_same(dict(plain.named_parameters()), dict(other.named_parameters()), 0)


def test_copies_pickles_and_replicas(twins):
    _, fused = twins
    x = torch.randn(6, 3, 4)
    file = io.BytesIO()
    torch.save(fused, file)
    file.seek(0)
    saved = torch.load(file, weights_only=False)
    for twin in (copy.deepcopy(fused), pickle.loads(pickle.dumps(fused)), saved):  # noqa: S301  # our own bytes
        assert type(twin.recurrent) is type(fused.recurrent)
        assert torch.equal(twin(x), fused(x))
        assert twin.recurrent.weight_hh_l0 is not fused.recurrent.weight_hh_l0
    replica = fused.recurrent._replicate_for_data_parallel()
    for name, parameter in fused.recurrent.named_parameters():
        setattr(replica, name, parameter.detach().clone())
    assert torch.equal(replica(x)[0], fused.recurrent(x)[0])


def test_it_compiles_as_the_plain_one_and_one_compiled_before_goes_on(twins, caplog):
    plain, fused = twins
    torch._dynamo.reset()
    x = torch.randn(6, 3, 4)
    compiled = torch.compile(fused, backend="aot_eager")  # around the layer, as around torch.nn's
    torch.testing.assert_close(compiled(x), plain(x))
    got = {n.removeprefix("_orig_mod."): g for n, g in gradients(compiled, x).items()}
    assert_same(got, gradients(plain, x), 1e-5)
    torch._dynamo.reset()
    with torch._dynamo.config.patch(allow_rnn=True):
        whole = torch.compile(fused, fullgraph=True, backend="aot_eager")
        torch.testing.assert_close(whole(x), plain(x))
        got = {n.removeprefix("_orig_mod."): g for n, g in gradients(whole, x).items()}
        assert_same(got, gradients(plain, x), 1e-5)
    torch._dynamo.reset()
    assert "recompile_limit" not in caplog.text
    before = torch.compile(copy.deepcopy(plain), backend="eager")
    want = before(x)
    torch.testing.assert_close(bptt.fuse(before)(x), want)
    torch._dynamo.reset()


def test_resets_work_in_a_fused_layer():
    layer, x = bptt.fuse(nn.GRU(4, 5)), torch.randn(6, 1, 4)
    reset = torch.zeros(6, 1, dtype=torch.bool)
    reset[3] = True
    torch.testing.assert_close(layer(x, reset=reset)[0][3:], layer(x[3:])[0])


# What is left, and what is said ------------------------------------------------------------------------------------


def test_subclasses_cells_and_parametrized_layers_are_left_with_the_reason():
    model = nn.ModuleDict({
        "own": Own(4, 5),
        "cell": nn.LSTMCell(4, 5),
        "normed": parametrizations.weight_norm(nn.GRU(4, 5), "weight_hh_l0"),
        "wrapped": nn.RNN(4, 5),
        "linear": nn.Linear(4, 5),
        "quantizable": torch.ao.nn.quantizable.LSTM(4, 5),
        "scripted": torch.jit.script(nn.LSTM(4, 5)),
    })  # fmt: skip
    model["wrapped"].forward = lambda x: x
    types = {name: type(module) for name, module in model.items()}
    lines = dict(line.split(": ", 1) for line in lines_of(bptt.fuse, model) if ": " in line)
    assert {name: type(module) for name, module in model.items()} == types
    assert lines["own"] == "Own left: a subclass of torch.nn.LSTM may have a forward of its own"
    assert lines["cell"].startswith("torch.nn.LSTMCell left: it runs one step at a time")
    assert lines["normed"].startswith("ParametrizedGRU left: it is parametrized")
    assert lines["wrapped"].startswith("torch.nn.RNN left: the object itself has forward")
    assert lines["quantizable"].startswith("LSTM left: quantized")
    assert lines["scripted"].endswith("left: scripted: fuse the model it was made from")
    assert "linear" not in lines


def test_pruned_and_old_weight_norm_layers_are_swapped_and_right():
    x = torch.randn(6, 3, 4)
    pruned, normed = nn.LSTM(4, 5), nn.LSTM(4, 5)
    prune.l1_unstructured(pruned, "weight_hh_l0", 0.4)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        nn.utils.weight_norm(normed, "weight_hh_l0")
    for layer in (pruned, normed):
        want, keys = layer(x)[0], list(layer.state_dict())
        torch.testing.assert_close(bptt.fuse(layer)(x)[0], want)
        assert isinstance(layer, bptt.LSTM)
        assert list(layer.state_dict()) == keys


def test_fuse_first_then_parametrize():
    layer = bptt.fuse(nn.GRU(4, 5))
    want = layer(x := torch.randn(6, 3, 4))[0]
    parametrizations.weight_norm(layer, "weight_hh_l0")
    torch.testing.assert_close(layer(x)[0], want)
    with pytest.warns(UserWarning, match="parametrized"):
        bptt.unfuse(layer)


@pytest.mark.parametrize(
    ("layer", "why"),
    [
        (
            lambda: nn.GRU(4, 5, dtype=torch.float16),
            "backend aten (cpu: it runs float32 and float64 on the CPU, not 4 numbers of torch.float16 on cpu)",
        ),
        (lambda: nn.GRU(4, 5, dtype=torch.bfloat16), "backend aten (cpu: it runs float32 and float64 on the CPU"),
        (lambda: nn.RNN(4, 5, device="meta"), "on meta"),
    ],
)
def test_where_the_fused_kernel_does_not_serve_the_report_says_so(layer, why):
    (line,) = lines_of(bptt.fuse, layer())
    assert ", which runs on " in line
    assert why in line


def test_a_model_without_anything_to_swap_is_told_and_other_calls_are_silent():
    with pytest.warns(UserWarning, match="no torch.nn.RNN, GRU or LSTM that it can swap in Linear"):
        bptt.fuse(nn.Linear(2, 2))
    with pytest.warns(UserWarning, match="in Own; Own: Own left: a subclass") as caught:
        bptt.fuse(Own(2, 2))
    assert caught[0].filename == __file__
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        model = bptt.fuse(nn.Sequential(nn.GRU(2, 2), nn.LSTMCell(2, 2)))
        assert bptt.fuse(model) is model
        assert lines_of(bptt.fuse, model)[0] == "0: already bptt.GRU"
        assert len(lines_of(bptt.fuse, nn.Linear(2, 2))) == 1
        bptt.unfuse(nn.Linear(2, 2))


@pytest.mark.parametrize("action", [bptt.fuse, bptt.unfuse])
@pytest.mark.parametrize(
    ("given", "message"),
    [
        (nn.LSTM, "got the class LSTM, wanted a torch.nn.Module object: make an object of it first"),
        ({}, "got a dict, wanted a torch.nn.Module object: pass the model itself"),
        (None, "got a NoneType"),
    ],
)
def test_what_is_no_model_is_a_type_error(action, given, message):
    with pytest.raises(TypeError, match=f"{action.__name__} {message}"):
        action(given)


# And back ----------------------------------------------------------------------------------------------------------


def test_unfuse_gives_back_what_was_there_type_for_type(twins):
    plain, fused = twins
    x = torch.randn(6, 3, 4)
    again = bptt.unfuse(fused)
    assert again is fused
    assert [type(m) for m in again.modules()] == [type(m) for m in plain.modules()]
    assert vars(again.recurrent).keys() == vars(plain.recurrent).keys()
    assert torch.equal(again(x), plain(x))
    torch.testing.assert_close(bptt.fuse(again)(x), plain(x))
    assert bptt.unfuse(copy.deepcopy(plain))(x).equal(plain(x))


@pytest.mark.parametrize("name", NAMES)
def test_layers_made_by_hand_unfuse_too(name):
    ours = getattr(bptt, name)(4, 5, 2, backend="reference")
    x = torch.randn(6, 3, 4)
    want = ours(x)[0]
    assert lines_of(bptt.unfuse, ours) == [f"{name}: bptt.{name} -> torch.nn.{name}"]
    assert type(ours) is getattr(nn, name)
    torch.testing.assert_close(ours(x)[0], want)
    torch.jit.script(ours)


def test_unfuse_leaves_what_torch_does_not_have():
    model = nn.ModuleDict({
        "sigmoid": bptt.RNN(4, 5, nonlinearity="sigmoid"),
        "any": bptt.Recurrent(bptt.cells.LSTM(), 4, 5),
        "gru": bptt.GRU(4, 5),
    })  # fmt: skip
    with pytest.warns(UserWarning, match="unfuse left what torch.nn does not have") as caught:
        bptt.unfuse(model)
    assert "sigmoid: bptt.RNN left: torch.nn has no layer of Elman" in str(caught[0].message)
    assert "any: bptt.Recurrent left: torch.nn has no such layer" in str(caught[0].message)
    assert [type(m) for m in model.values()] == [bptt.RNN, bptt.Recurrent, nn.GRU]


def test_the_function_is_the_function_whatever_was_imported_first():
    import bptt.fusing  # as bench does

    assert callable(bptt.fuse)
    assert callable(bptt.unfuse)
