"""Laws that hold for every cell and head, in float64 to 1e-10, on inputs drawn afresh."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.nn.utils.rnn import pack_padded_sequence

import bptt
from bptt.gradient import double_sum
from tests.cases import (
    BY_HAND,
    CELLS,
    HEADS,
    POINTWISE,
    as_hidden,
    assert_same,
    initial_state,
    layer,
    named_gradients,
    network,
    plain,
    random_reset,
    seeds,
    sizes,
    targets,
)

BACKENDS = ("aten", "reference")
IN_TORCH = ("elman-tanh", "elman-relu", "gru", "lstm")  # cells that torch has an operator for


def _gradients(outputs, final, leaves, seed):
    """Outputs, final state, and the gradient of a random projection of both, by name."""
    torch.manual_seed(seed)
    tensors = [outputs, *final]
    loss = sum((t * torch.randn_like(t)).sum() for t in tensors)
    gradients = torch.autograd.grad(loss, list(leaves.values()), allow_unused=True, materialize_grads=True)
    values = {"outputs": outputs.detach()} | {f"final {i}": s.detach() for i, s in enumerate(final)}
    return values | {f"d_{name}": g for name, g in zip(leaves, gradients, strict=True)}


def _run(made, backend, x, state, leaves, seed, reset=None):
    made.backend = backend
    outputs, final = made(x, as_hidden(state), reset=reset)
    final = final if isinstance(final, tuple) else (final,)
    return _gradients(outputs, [s[0] for s in final], leaves, seed)


def _one_layer(cell, seed, size, **options):
    torch.manual_seed(seed)
    steps, batch, inputs, hidden = size
    made = layer(cell, inputs, hidden, **options)
    x = torch.randn(steps, batch, inputs, dtype=torch.float64, requires_grad=True)
    state = initial_state(made, batch)
    weights = made.layer_weights(0, 0)
    leaves = {"x": x} | {f"{n}_0": s for n, s in zip(cell.states, state, strict=True)} | dict(weights)
    return made, x, state, weights, leaves


@pytest.mark.parametrize("with_reset", [False, True])
@pytest.mark.parametrize("name", CELLS)
@given(seed=seeds, size=sizes(), bias=st.booleans())
def test_every_backend_is_autograd_of_the_plain_equations(name, with_reset, seed, size, bias):
    cell = CELLS[name]
    made, x, state, weights, leaves = _one_layer(cell, seed, size, bias=bias)
    reset = random_reset(*size[:2]) if with_reset else None
    want = _gradients(*plain(cell, weights, x, state, reset), leaves, seed)
    assert_same(_run(made, "reference", x, state, leaves, seed, reset), want)
    if name in IN_TORCH:
        assert_same(_run(made, "aten", x, state, leaves, seed, reset), want)
    if name in BY_HAND:
        assert_same(_run(made, "cpu", x, state, leaves, seed, reset), want)


@pytest.mark.parametrize("name", ["lstm", "peephole"])
@given(seed=seeds, size=sizes())
def test_the_same_with_a_projection(name, seed, size):
    size = (*size[:3], size[3] + 1)
    made, x, state, weights, leaves = _one_layer(CELLS[name], seed, size, proj_size=size[3] - 1)
    want = _gradients(*plain(made.cell, weights, x, state), leaves, seed)
    for backend in BACKENDS if name == "lstm" else ("reference",):
        assert_same(_run(made, backend, x, state, leaves, seed), want)


@pytest.mark.parametrize("proj", [False, True])
@pytest.mark.parametrize("name", POINTWISE)
@given(seed=seeds, size=sizes(max_steps=6))
def test_the_double_sum_of_the_lecture_is_the_gradient(name, proj, seed, size):
    """Eqs. (10) and (11): Σ_t Σ_k, with every factor of the product a Jacobian."""
    cell = POINTWISE[name]
    size = (*size[:3], size[3] + 1)
    options = {"proj_size": size[3] - 1} if proj and cell.projectable else {}
    made, x, state, weights, _ = _one_layer(cell, seed, size, **options)
    outputs, _ = made(x, as_hidden(state))
    d_outputs = torch.randn_like(outputs)
    want = torch.autograd.grad(outputs, list(weights.values()), d_outputs)
    got = double_sum(cell, weights, x.detach(), tuple(s.detach() for s in state), d_outputs)
    assert_same(got, dict(zip(weights, want, strict=True)))


@pytest.mark.parametrize("head", HEADS)
@pytest.mark.parametrize("name", CELLS)
@given(seed=seeds, size=sizes(), data=st.data())
def test_truncation_over_all_steps_is_exact_and_the_loss_is_the_sum_of_the_steps(name, head, seed, size, data):
    torch.manual_seed(seed)
    steps, batch, inputs, hidden = size
    model = network(CELLS[name], head, inputs, hidden, 3)
    x, y = torch.randn(steps, batch, inputs, dtype=torch.float64), targets(head, steps, batch, 3)
    state = as_hidden(tuple(s.detach() for s in initial_state(model.recurrent, batch)))

    def loss(z, target):
        return model.head.losses(z, target).sum()

    exact = bptt.backward(model, x, y, loss, bptt.Exact(), state)
    want = named_gradients(model) | {"loss": exact.loss}
    with torch.no_grad():  # eq. (8)
        z, _ = model(x, state)
        assert_same({"L": sum(loss(z[t : t + 1], y[t : t + 1]) for t in range(steps))}, {"L": exact.loss})
    k1 = data.draw(st.integers(steps, steps + 3))
    k2 = data.draw(st.none() | st.integers(steps, steps + 5))
    truncated = bptt.backward(model, x, y, loss, bptt.Truncated(k1, k2), state)
    assert_same(named_gradients(model) | {"loss": truncated.loss}, want)
    blocks = bptt.backward(model, x, y, loss, bptt.Truncated(data.draw(st.integers(1, steps)), steps), state)
    assert_same(named_gradients(model) | {"loss": blocks.loss}, want)


@pytest.mark.parametrize("name", CELLS)
@given(seed=seeds, size=sizes(), lengths=st.lists(st.integers(1, 7), min_size=1, max_size=4), two=st.booleans())
def test_padding_has_a_gradient_of_exactly_zero(name, seed, size, lengths, two):
    """And what a packed batch computes is what each of its sequences computes alone."""
    torch.manual_seed(seed)
    made = layer(CELLS[name], size[2], size[3], num_layers=2, bidirectional=two)
    x = torch.randn(max(lengths), len(lengths), size[2], dtype=torch.float64, requires_grad=True)
    packed = pack_padded_sequence(x, torch.tensor(lengths), enforce_sorted=False)
    outputs, final = made(packed)
    padded, _ = torch.nn.utils.rnn.pad_packed_sequence(outputs)
    d_outputs = torch.randn_like(padded)
    leaves = [x, *made.parameters()]
    got = torch.autograd.grad(padded, leaves, d_outputs)
    alone = [made(x[:n, i]) for i, n in enumerate(lengths)]
    want = torch.autograd.grad([y for y, _ in alone], leaves, [d_outputs[:n, i] for i, n in enumerate(lengths)])
    assert_same(dict(enumerate(got)), dict(enumerate(want)))
    first = final if torch.is_tensor(final) else final[0]
    first_alone = torch.stack([s if torch.is_tensor(s) else s[0] for _, s in alone], dim=1)
    assert_same({"h_n": first.detach()}, {"h_n": first_alone.detach()})
    for i, n in enumerate(lengths):
        assert torch.equal(got[0][n:, i], torch.zeros_like(got[0][n:, i]))


@pytest.mark.parametrize("form", ["padded", "bidirectional", "packed"])
@pytest.mark.parametrize("name", CELLS)
@given(seed=seeds, size=sizes())
def test_nothing_crosses_a_reset(name, form, seed, size):
    """Neither the state nor the gradient: what comes before has no effect at all on what comes after, not even as NaN."""
    torch.manual_seed(seed)
    steps, batch, inputs, hidden = size[0] + 1, *size[1:]
    at = int(torch.randint(1, steps, ()))
    reset = torch.zeros(steps, batch, dtype=torch.bool)
    reset[at] = True
    made = layer(CELLS[name], inputs, hidden, num_layers=2, bidirectional=form != "padded")
    x = torch.randn(steps, batch, inputs, dtype=torch.float64, requires_grad=True)
    if form == "packed":
        pack = torch.nn.utils.rnn.pack_sequence
        packed_y, _ = made(pack([*x.unbind(1)]), reset=pack([*reset.unbind(1)]))
        outputs, _ = torch.nn.utils.rnn.pad_packed_sequence(packed_y)
    else:
        outputs, _ = made(x, reset=reset)
    alone = torch.cat([made(x[:at])[0], made(x[at:])[0]])
    assert_same({"outputs": outputs.detach()}, {"outputs": alone.detach()})
    (d_x,) = torch.autograd.grad(outputs[at:].sum(), x, retain_graph=True)
    assert torch.equal(d_x[:at], torch.zeros_like(d_x[:at]))
    poisoned = x.detach().clone()
    poisoned[:at] = float("nan")
    if form == "padded":
        assert torch.equal(made(poisoned, reset=reset)[0][at:], outputs[at:])


@pytest.mark.parametrize("name", CELLS)
@given(seed=seeds, size=sizes())
def test_a_row_resets_alone(name, seed, size):
    """One row's reset is as if that row had been given in two pieces, and the other rows do not notice."""
    torch.manual_seed(seed)
    steps, batch, inputs, hidden = size
    made = layer(CELLS[name], inputs, hidden)
    x = torch.randn(steps, batch, inputs, dtype=torch.float64)
    reset = random_reset(steps, batch)
    outputs, _ = made(x, reset=reset)
    for row in range(batch):
        starts = sorted({0, *reset[:, row].nonzero().flatten().tolist()})
        pieces = [made(x[a:b, row])[0] for a, b in zip(starts, [*starts[1:], steps], strict=True)]
        assert_same({"row": outputs[:, row].detach()}, {"row": torch.cat(pieces).detach()})


@pytest.mark.parametrize("two", [False, True])
@pytest.mark.parametrize("name", POINTWISE)
def test_first_and_second_derivatives_by_finite_differences(name, two):
    torch.manual_seed(0)
    made = layer(POINTWISE[name], 2, 2, bidirectional=two, backend="reference")
    x = torch.randn(3, 2, 2, dtype=torch.float64, requires_grad=True)
    parameters = dict(made.named_parameters())

    def run(x, *values):
        y, s = torch.func.functional_call(made, dict(zip(parameters, values, strict=True)), (x,))
        return (y, *s) if isinstance(s, tuple) else (y, s)

    assert torch.autograd.gradcheck(run, (x, *parameters.values()))
    assert torch.autograd.gradgradcheck(run, (x, *parameters.values()))
