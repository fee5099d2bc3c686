"""The map over (t, k): exact against autograd, for every layer and form of input; what it shows; what it refuses."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn
from torch.nn.utils.rnn import PackedSequence, pack_padded_sequence, pack_sequence, pad_packed_sequence

import bptt
from tests.cases import CELLS, layer, random_reset, seeds

TORCH = {
    "rnn-tanh": lambda *a, **k: nn.RNN(*a, **k),
    "rnn-relu": lambda *a, **k: nn.RNN(*a, nonlinearity="relu", **k),
    "gru": nn.GRU,
    "lstm": nn.LSTM,
    "lstm-projected": lambda d, h, **k: nn.LSTM(d, h, proj_size=max(1, h - 1), **k) if h > 1 else nn.LSTM(d, h, **k),
}
odd_sizes = st.tuples(
    st.sampled_from((1, 2, 5, 7)), st.sampled_from((1, 2, 3)), st.sampled_from((1, 3)), st.sampled_from((1, 2, 5))
)
TOLERANCE = {torch.float64: 1e-12, torch.float32: 1e-5}


def cubed(outputs):
    """A loss at every step, nonlinear in the outputs."""
    rows = outputs.data if isinstance(outputs, PackedSequence) else outputs
    return ((rows - 0.3) ** 3).sum()


def at_the_end(outputs):
    """Many-to-one: a loss at the last step alone."""
    return (outputs[-1] ** 2).sum()


def gradients(made, x, loss, hx=None, **options):
    made.zero_grad()
    outputs, _ = made(x, hx, **options)
    loss(outputs).backward()
    return {name: p.grad.clone() for name, p in made.named_parameters()}


def assert_sums(terms, wanted, tolerance):
    """Relative to the parameter's gradient, or to what is added up where that cancels.

    Of terms that cancel to a thousandth, no float32 sum knows more than two digits: against float64, torch's own gradient
    is then off by 7e-5.
    """
    scale = max(g.norm().item() for g in wanted.values())
    assert set(terms.names) == set(wanted)
    for name, g in wanted.items():
        added = terms.norms(name).sum().item()
        error = (terms.total(name) - g).norm().item() / max(g.norm().item(), 0.1 * added, 1e-2 * scale, 1e-300)
        assert error <= tolerance, f"{name}: relative error {error:.3g}"


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("name", TORCH)
@given(
    seed=seeds,
    size=odd_sizes,
    depth=st.integers(1, 2),
    both=st.booleans(),
    batch_first=st.booleans(),
    last=st.booleans(),
)
def test_the_terms_add_up_to_autograds_gradient(name, dtype, seed, size, depth, both, batch_first, last):
    torch.manual_seed(seed)
    steps, batch, inputs, hidden = size
    made = TORCH[name](inputs, hidden, num_layers=depth, bidirectional=both, batch_first=batch_first, dtype=dtype)
    x = torch.randn(steps, batch, inputs, dtype=dtype)
    x = x.transpose(0, 1) if batch_first else x
    loss = at_the_end if last else cubed
    assert_sums(bptt.gradient_map(made, x, loss=loss), gradients(made, x, loss), TOLERANCE[dtype])


@pytest.mark.parametrize("with_reset", [False, True])
@pytest.mark.parametrize("name", CELLS)
@given(seed=seeds, size=odd_sizes, depth=st.integers(1, 2), both=st.booleans())
def test_any_cell_with_and_without_resets(name, with_reset, seed, size, depth, both):
    torch.manual_seed(seed)
    steps, batch, inputs, hidden = size
    if name == "normed":  # a norm over 1 or 2 units leaves ±1 and a gradient of nothing but rounding
        hidden = max(hidden, 3)
    made = layer(CELLS[name], inputs, hidden, num_layers=depth, bidirectional=both)
    x = torch.randn(steps, batch, inputs, dtype=torch.float64)
    options = {"reset": random_reset(steps, batch)} if with_reset else {}
    terms = bptt.gradient_map(made, x, loss=cubed, **options)
    assert_sums(terms, gradients(made, x, cubed, **options), 1e-12)
    if with_reset:  # nothing crosses
        for b in range(batch):
            starts = options["reset"][:, b].cumsum(0)
            apart = starts[:, None] != starts[None, :]
            for parameter in terms.names:
                assert (terms.norms(parameter)[b][apart] == 0).all()


@pytest.mark.parametrize("name", ["rnn-tanh", "gru", "lstm", "lstm-projected", "peephole", "normed"])
@given(
    seed=seeds, lengths=st.lists(st.integers(1, 7), min_size=1, max_size=4), both=st.booleans(), depth=st.integers(1, 2)
)
def test_packed_sequences_and_their_padding(name, seed, lengths, both, depth):
    torch.manual_seed(seed)
    options = {"num_layers": depth, "bidirectional": both}
    made = TORCH[name](2, 3, dtype=torch.float64, **options) if name in TORCH else layer(CELLS[name], 2, 3, **options)
    x = pack_sequence([torch.randn(n, 2, dtype=torch.float64) for n in lengths], enforce_sorted=False)
    terms = bptt.gradient_map(made, x, loss=cubed)
    assert_sums(terms, gradients(made, x, cubed), 1e-12)
    for parameter in terms.names:
        norms = terms.norms(parameter)
        for b, n in enumerate(lengths):
            assert (norms[b, n:] == 0).all()
            assert (norms[b, :, n:] == 0).all()


def test_resets_in_a_packed_sequence_and_an_initial_state():
    torch.manual_seed(0)
    lengths = torch.tensor([3, 7, 5])
    made = bptt.LSTM(2, 3, num_layers=2, bidirectional=True, dtype=torch.float64)
    x = pack_padded_sequence(torch.randn(7, 3, 2, dtype=torch.float64), lengths, enforce_sorted=False)
    reset = x._replace(data=torch.rand(len(x.data)) < 0.3)
    hx = tuple(torch.randn(4, 3, 3, dtype=torch.float64) for _ in range(2))
    wanted = gradients(made, x, cubed, hx, reset=reset)
    assert_sums(bptt.gradient_map(made, x, loss=cubed, hx=hx, reset=reset), wanted, 1e-12)


@pytest.mark.parametrize("name", ["elman-tanh", "gru", "lstm", "peephole", "normed"])
@pytest.mark.parametrize("both", [False, True])
def test_single_terms(name, both):
    """Each term against autograd of L(t) with the weights of all steps but k held fixed."""
    torch.manual_seed(1)
    made = layer(CELLS[name], 2, 3, bidirectional=both)
    suffix = "_l0_reverse" if both else "_l0"
    x, steps = torch.randn(5, 2, 2, dtype=torch.float64), 5
    terms = bptt.gradient_map(made, x, loss=cubed)
    weights = made.layer_weights(0, int(both))
    own = [{n: w.detach().clone().requires_grad_() for n, w in weights.items()} for _ in range(steps)]
    state = tuple(torch.zeros(2, 3, dtype=torch.float64) for _ in made.cell.states)
    outputs = [None] * steps
    for k in reversed(range(steps)) if both else range(steps):
        state = made.cell.step(x[k], state, own[k])
        outputs[k] = state[0]
    for t in range(steps):
        for k in range(steps):
            loss = ((outputs[t][1] - 0.3) ** 3).sum()
            leaves = list(own[k].values())
            found = torch.autograd.grad(loss, leaves, retain_graph=True, allow_unused=True, materialize_grads=True)
            for short, g in zip(own[k], found, strict=True):
                term = terms.term(t, k, short + suffix, sample=1)
                torch.testing.assert_close(term, g, rtol=1e-10, atol=1e-12)
                torch.testing.assert_close(terms.norms(short + suffix)[1, t, k], g.norm(), rtol=1e-10, atol=1e-12)


def test_rows_columns_and_diagonals():
    torch.manual_seed(2)
    made = nn.LSTM(2, 3, bidirectional=True, dtype=torch.float64)
    x = torch.randn(6, 3, 2, dtype=torch.float64)
    terms = bptt.gradient_map(made, x, loss=cubed, samples=[2, 0])
    assert terms.samples == (2, 0)
    for name in ("weight_hh_l0", "weight_ih_l0_reverse", "bias_ih_l0"):
        norms = terms.norms(name)
        torch.testing.assert_close(terms.rows(name), norms.sum(2))
        torch.testing.assert_close(terms.columns(name), norms.sum(1))
        every = {(t, k): terms.term(t, k, name, 2) for t in range(6) for k in range(6)}
        for n in range(6):
            on = [norms[:, t, k] for t, k in every if abs(t - k) == n]
            torch.testing.assert_close(terms.lags(name)[:, n], sum(on))
            for chosen, pick in (({"t": n}, lambda t, k, n=n: t == n), ({"k": n}, lambda t, k, n=n: k == n),
                                 ({"lag": n}, lambda t, k, n=n: abs(t - k) == n)):  # fmt: skip
                wanted = sum(term for (t, k), term in every.items() if pick(t, k))
                torch.testing.assert_close(terms.total(name, **chosen, sample=2), wanted)
        both = terms.total(name, sample=2) + terms.total(name, sample=0)
        torch.testing.assert_close(terms.total(name), both)
    assert norms[0, 0, 1] == 0  # forward in time, nothing comes from later steps
    assert terms.norms("weight_ih_l0_reverse")[0, 1, 0] == 0


def test_a_loss_step_is_that_steps_gradient():
    """STYLE's law: Σ_k terms[t, k] = ∂L(t)/∂θ."""
    torch.manual_seed(3)
    made = nn.GRU(2, 4, dtype=torch.float64)
    x = torch.randn(7, 2, 2, dtype=torch.float64)
    terms = bptt.gradient_map(made, x, loss=cubed)
    for t in range(7):
        wanted = gradients(made, x, lambda o, t=t: cubed(o[t]))
        for name, g in wanted.items():
            torch.testing.assert_close(terms.total(name, t=t), g, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("name", ["lstm", "peephole"])
def test_the_parts_through_h_and_c(name):
    """They add up; with W_hh = 0 all that is older than the step itself came through c."""
    torch.manual_seed(4)
    made = layer(CELLS[name], 2, 3)
    x = torch.randn(6, 2, 2, dtype=torch.float64)
    terms = bptt.gradient_map(made, x, loss=cubed)
    for parameter in terms.names:
        parts = [terms.term(5, 2, parameter, 0, through=c) for c in ("h", "c")]
        torch.testing.assert_close(sum(parts), terms.term(5, 2, parameter, 0))
        for c, part in zip(("h", "c"), parts, strict=True):
            torch.testing.assert_close(terms.norms(parameter, c)[0, 5, 2], part.norm())
        there = (terms.lags(parameter) > 0).double()  # at the largest lag h(k-1) = 0, and with it the term of W_hh
        torch.testing.assert_close(sum(terms.shares(parameter).values()), there)
    with torch.no_grad():
        made.weight_hh_l0.zero_()
    shares = bptt.gradient_map(made, x, loss=cubed).shares("weight_ih_l0")
    assert (shares["c"][:, 0] == 0).all()
    assert (shares["c"][:, 1:] == 1).all()


@pytest.mark.parametrize("name", ["rnn-tanh", "gru", "lstm"])
@given(seed=seeds, steps=st.sampled_from((1, 6)), batch_first=st.booleans())
def test_grad_outputs_in_every_form(name, seed, steps, batch_first):
    torch.manual_seed(seed)
    made = TORCH[name](2, 3, num_layers=2, batch_first=batch_first, dtype=torch.float64)
    x = torch.randn(steps, 2, dtype=torch.float64)
    outputs, _ = made(x)
    given_ = torch.randn_like(outputs)
    wanted = dict(
        zip(dict(made.named_parameters()), torch.autograd.grad(outputs, made.parameters(), given_), strict=True)
    )
    assert_sums(bptt.gradient_map(made, x, grad_outputs=given_), wanted, 1e-12)
    packed = pack_padded_sequence(x.unsqueeze(1), torch.tensor([steps]))
    assert_sums(bptt.gradient_map(made, packed, grad_outputs=packed._replace(data=given_)), wanted, 1e-12)


def test_some_layers_of_a_stack():
    torch.manual_seed(5)
    made = nn.LSTM(2, 3, num_layers=3, bidirectional=True, dtype=torch.float64)
    x = torch.randn(5, 2, 2, dtype=torch.float64)
    whole, some = bptt.gradient_map(made, x, loss=cubed), bptt.gradient_map(made, x, loss=cubed, layers=[1])
    assert {name.split("_")[2] for name in some.names} == {"l1"}
    for name in some.names:
        torch.testing.assert_close(some.norms(name), whole.norms(name))


def test_samples_in_turns_give_the_same(monkeypatch):
    torch.manual_seed(6)
    made = nn.GRU(2, 3, dtype=torch.float64)
    x = torch.randn(5, 5, 2, dtype=torch.float64)
    whole = bptt.gradient_map(made, x, loss=cubed)
    monkeypatch.setattr("bptt.flow.jacobians.terms.GROUP_BYTES", 1)
    turns = bptt.gradient_map(made, x, loss=cubed)
    for name in whole.names:
        torch.testing.assert_close(turns.norms(name), whole.norms(name))
        torch.testing.assert_close(turns.total(name), whole.total(name))
        torch.testing.assert_close(turns.total(name, lag=2, sample=3), whole.total(name, lag=2, sample=3))


@pytest.mark.parametrize("steps", [1, 2, 16, 37])
def test_measuring_in_blocks_or_step_by_step_gives_the_same(steps, monkeypatch):
    torch.manual_seed(8)
    made = nn.LSTM(2, 3, proj_size=2, dtype=torch.float64)
    x = torch.randn(steps, 2, 2, dtype=torch.float64)
    whole = bptt.gradient_map(made, x, loss=cubed)
    monkeypatch.setattr("bptt.flow.jacobians.pullback.BLOCK_BYTES", 1)
    single = bptt.gradient_map(made, x, loss=cubed)
    for name in whole.names:
        torch.testing.assert_close(single.norms(name), whole.norms(name))
        torch.testing.assert_close(single.norms(name, "h"), whole.norms(name, "h"))


def test_low_precision_layers():
    torch.manual_seed(7)
    made = nn.GRU(2, 3).to(torch.bfloat16)
    x = torch.randn(5, 2, 2).to(torch.bfloat16)
    terms = bptt.gradient_map(made, x, loss=cubed)
    wanted = gradients(made, x, cubed)
    for name in terms.names:
        assert (terms.total(name) - wanted[name]).norm() <= 4e-2 * wanted[name].norm()


def test_a_gradient_of_zero_is_a_map_of_zeros():
    made = nn.LSTM(2, 3)
    terms = bptt.gradient_map(made, torch.randn(4, 2, 2), loss=lambda o: 0 * o.sum())
    for name, parameter in made.named_parameters():
        assert (terms.norms(name) == 0).all()
        assert (terms.lags(name) == 0).all()
        assert torch.equal(terms.total(name), torch.zeros_like(parameter))
        assert torch.equal(terms.term(3, 1, name, 0), torch.zeros_like(parameter))
    assert all((share == 0).all() for share in terms.shares("weight_hh_l0").values())


def test_small_gradients_are_not_lost_to_their_square():
    made = nn.RNN(1, 1)
    with torch.no_grad():
        made.weight_hh_l0.fill_(0.1)
        made.weight_ih_l0.fill_(1e-3)
    made.bias_ih_l0.data.zero_(), made.bias_hh_l0.data.zero_()
    norms = bptt.gradient_map(made, torch.ones(31, 1, 1), loss=lambda o: o[-1].sum()).norms("bias_hh_l0")[0, -1]
    wanted = torch.arange(-30, 1)
    torch.testing.assert_close(norms[2:].log10(), wanted[2:].float(), rtol=0, atol=1e-2)


def test_a_forward_that_explodes_is_named():
    made = nn.RNN(1, 1, nonlinearity="relu")
    with torch.no_grad():
        made.weight_hh_l0.fill_(1e10)
        made.weight_ih_l0.fill_(1.0)
    with pytest.raises(ValueError, match="the output of layer 0 holds NaN or Inf, first at index 4, sample 0"):
        bptt.gradient_map(made, torch.ones(6, 1, 1), grad_outputs=torch.ones(6, 1, 1))


def with_nan(shape, *place):
    made = torch.zeros(shape)
    made[place] = float("nan")
    return made


@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        ({"layer": nn.Linear(2, 3)}, TypeError, "layer is a Linear, wanted torch.nn.RNN"),
        ({"x": [1, 2]}, TypeError, "x is a list, wanted a Tensor"),
        ({"x": torch.zeros(4, 2, 3)}, ValueError, "x has 3 features, input_size is 2"),
        ({"x": torch.zeros(0, 2, 2)}, ValueError, "x has 0 steps of 2 samples, wanted at least one of each"),
        ({"x": torch.zeros(4, 2, 2, 2)}, ValueError, "x has 4 axes, wanted 3"),
        ({"x": torch.zeros(4, 2, 2).double()}, ValueError, "x has dtype torch.float64, the weights have torch.float32"),
        ({"x": with_nan((4, 2, 2), 3, 1, 0)}, ValueError, "x holds NaN or Inf, first at index 3, sample 1"),
        ({"x": with_nan((4, 2, 2), 3, 1, 0), "loss": cubed}, ValueError, "x holds NaN or Inf, first at index 3, sample 1"),
        ({"loss": None}, ValueError, "wanted one of grad_outputs= .* and loss="),
        ({"grad_outputs": torch.zeros(4, 2, 3)}, ValueError, "wanted one of grad_outputs= .* and loss="),
        ({"loss": None, "grad_outputs": torch.zeros(4, 2, 2)}, ValueError, r"grad_outputs has shape \(4, 2, 2\)"),
        ({"loss": None, "grad_outputs": 1.0}, TypeError, "grad_outputs is a float, wanted a Tensor"),
        ({"loss": None, "grad_outputs": with_nan((4, 2, 3), 2, 0)}, ValueError, "outputs holds NaN .* index 2, sample 0"),
        ({"loss": lambda o: o}, ValueError, r"loss returned a tensor of shape \(4, 2, 3\), wanted a scalar"),
        ({"loss": lambda o: 1.0}, ValueError, "loss returned a float, wanted a scalar"),
        ({"loss": lambda o: o.detach().sum()}, ValueError, "the loss does not depend on the layer's outputs"),
        ({"loss": lambda o: o.sum() / 0}, ValueError, "∂L/∂outputs holds NaN or Inf, first at index 0, sample 0"),
        ({"hx": torch.zeros(1, 3, 3)}, ValueError, r"the initial state \(h\) has shapes \[\(1, 3, 3\)\], wanted"),
        ({"hx": with_nan((1, 2, 3), 0, 1, 0)}, ValueError, "the initial state h holds NaN"),
        ({"reset": torch.zeros(4, 2).bool()}, ValueError, "torch.nn's layers know no reset"),
        ({"layer": bptt.GRU(2, 3), "reset": torch.zeros(4, 2)}, ValueError, "reset is torch.float32, wanted torch.bool"),
        ({"layer": bptt.GRU(2, 3), "reset": torch.zeros(3, 2).bool()}, ValueError, r"shape \(3, 2\) .*, wanted \(4, 2\)"),
        ({"layer": bptt.GRU(2, 3), "reset": [True] * 4}, TypeError, "reset is a list, wanted a Tensor"),
        ({"samples": [True]}, ValueError, "samples has True, wanted whole numbers from 0 to 1"),
        ({"samples": [2]}, ValueError, "samples has 2, wanted whole numbers from 0 to 1"),
        ({"samples": [0, 0]}, ValueError, "each only once"),
        ({"samples": []}, ValueError, "at least one place"),
        ({"samples": 0}, TypeError, r"samples is 0, wanted a list of whole numbers, such as \[0\]"),
        ({"layers": 0}, TypeError, "layers is 0, wanted a list"),
        ({"loss": torch.zeros(())}, TypeError, "loss is a Tensor, wanted a function"),
        ({"layers": [0.0]}, ValueError, r"layers is \[0.0\], wanted some of \[0\]"),
        ({"layers": [1]}, ValueError, r"layers is \[1\], wanted some of \[0\]"),
        ({"layer": nn.GRU(2, 3, 2, dropout=0.5)}, ValueError, "call layer.eval"),
        ({"x": torch.zeros(4000, 4, 2), "samples": None}, ValueError, "would take .* MB, wanted at most 256: pass fewer"),
    ],
)  # fmt: skip
def test_what_cannot_be_is_refused(changes, error, message):
    arguments = {"layer": nn.GRU(2, 3), "x": torch.zeros(4, 2, 2), "loss": lambda o: o.sum()} | changes
    with pytest.raises(error, match=message):
        bptt.gradient_map(arguments.pop("layer"), arguments.pop("x"), **arguments)


def test_whole_numbers_of_numpy_and_torch_will_do():
    made, x = nn.GRU(2, 3), torch.randn(4, 2, 2)
    for places in (np.array([1]), torch.tensor([1])):
        assert bptt.gradient_map(made, x, loss=cubed, samples=places).samples == (1,)


def test_broken_weights_are_named():
    made = nn.GRU(2, 3)
    with torch.no_grad():
        made.weight_hh_l0[0, 0] = float("inf")
    with pytest.raises(ValueError, match="the parameter weight_hh_l0 holds NaN or Inf"):
        bptt.gradient_map(made, torch.zeros(4, 2, 2), loss=lambda o: o.sum())


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda m: m.norms("weight_hh_l1"), "no parameter 'weight_hh_l1' in this map: choose one of weight_ih_l0"),
        (lambda m: m.norms(1), "no parameter 1 in this map"),
        (lambda m: m.total("weight_hh_l0", lag="1"), "lag is '1', wanted a step from 0 to 3"),
        (lambda m: m.norms("weight_hh_l0", "c"), "the state has no component 'c': choose one of h"),
        (lambda m: m.total("weight_hh_l0", t=4), "t is 4, wanted a step from 0 to 3"),
        (lambda m: m.term(0, -1, "weight_hh_l0", 0), "k is -1, wanted a step from 0 to 3"),
        (lambda m: m.term(0, 0, "weight_hh_l0", 1), r"sample 1 is not in this map: it has \[0\]"),
    ],
)
def test_what_the_map_does_not_have(call, message):
    made = bptt.gradient_map(nn.GRU(2, 3), torch.zeros(4, 2, 2), loss=lambda o: o.sum(), samples=[0])
    with pytest.raises(ValueError, match=message):
        call(made)


def test_the_grouping_of_packed_rows_is_pytorchs():
    """`padded` must restore the order in which the sequences were given."""
    made = nn.RNN(1, 1)
    x = pack_sequence([torch.full((n, 1), float(n)) for n in (2, 4, 3)], enforce_sorted=False)
    terms = bptt.gradient_map(made, x, loss=cubed)
    whole, lengths = pad_packed_sequence(made(x)[0])
    assert lengths.tolist() == [2, 4, 3]
    assert [int((row > 0).sum()) for row in terms.columns("bias_hh_l0")] == [2, 4, 3]
    assert whole.shape[0] == terms.steps
