"""The lecture's network: eqs. (5) to (8) and (10) of docs/equations.md, from the input to the loss."""

import pytest
import torch
from hypothesis import given
from torch import nn

import bptt
from bptt.gradient import double_sum
from bptt.network import HEADS as HEADS_BY_NAME
from bptt.network import Linear, Sigmoid, Softmax
from tests.cases import HEADS, POINTWISE, assert_same, named_gradients, network, seeds, sizes, targets


def _plain_losses(head, z, y):
    """Return the losses of eqs. (7) and (8), written out."""
    if head == "softmax":
        probabilities = z.exp() / z.exp().sum(-1, keepdim=True)
        return -probabilities.gather(-1, y.unsqueeze(-1)).squeeze(-1).log()
    if head == "sigmoid":
        toward_label = torch.where(y == 1, z.squeeze(-1), -z.squeeze(-1))  # 1 - σ(z) = σ(-z), without the cancellation
        return -(1 / (1 + (-toward_label).exp())).log()
    return (z - y) ** 2


@pytest.mark.parametrize("head", HEADS)
@given(seed=seeds, size=sizes())
def test_heads_are_their_equations(head, seed, size):
    torch.manual_seed(seed)
    z = torch.randn(*size[:2], 1 if head == "sigmoid" else 3, dtype=torch.float64)
    y = targets(head, *size[:2], 3)
    assert_same({"L": HEADS[head].losses(z, y)}, {"L": _plain_losses(head, z, y)})
    activated = HEADS[head].activation(z)
    want = {"softmax": torch.softmax(z, -1), "sigmoid": torch.sigmoid(z), "linear": z}[head]
    assert torch.equal(activated, want)


def test_a_confident_mistake_costs_a_finite_loss():
    z = torch.tensor([[[1e4, -1e4]]])
    assert Softmax().losses(z, torch.tensor([[1]])).item() == pytest.approx(2e4)
    assert Sigmoid().losses(torch.tensor([[[-1e4]]]), torch.tensor([[1]])).item() == pytest.approx(1e4)
    assert Linear().losses(torch.tensor([[[1e4]]]), torch.zeros(1, 1, 1)).item() == pytest.approx(1e8)


@pytest.mark.parametrize("head", HEADS)
@pytest.mark.parametrize("name", POINTWISE)
@given(seed=seeds, size=sizes(max_steps=5))
def test_the_gradient_of_the_whole_network_is_line_10(name, head, seed, size):
    """∂L(t)/∂y(t) · ∂y(t)/∂h(t) · Σ_k ∂h(t)/∂h(k) · ∂⁺h(k)/∂W, with the head's two factors taken apart."""
    torch.manual_seed(seed)
    steps, batch, inputs, hidden = size
    model = network(POINTWISE[name], head, inputs, hidden, 3)
    x, y = torch.randn(steps, batch, inputs, dtype=torch.float64), targets(head, steps, batch, 3)
    bptt.backward(model, x, y, lambda z, t: model.head.losses(z, t).sum())
    got = named_gradients(model)
    with torch.no_grad():
        h, _ = model.recurrent(x)
    h.requires_grad_()
    z = model.output(h)
    output_layer = [h, model.output.weight, model.output.bias]
    d_h, d_w, d_b = torch.autograd.grad(_plain_losses(head, z, y).sum(), output_layer)
    state = tuple(torch.zeros(batch, hidden, dtype=torch.float64) for _ in POINTWISE[name].states)
    within = double_sum(POINTWISE[name], model.recurrent.layer_weights(0, 0), x, state, d_h)
    want = {f"recurrent.{n}_l0": g for n, g in within.items()} | {"output.weight": d_w, "output.bias": d_b}
    assert_same(got, want)


def test_the_compact_and_the_unfolded_network_are_one():
    """Eqs. (2) and (4): T copies that share their weights; the gradient is the sum over the copies."""
    torch.manual_seed(0)
    steps, cell = 5, POINTWISE["elman-tanh"]
    model = network(cell, "linear", 2, 3, 1)
    x, y = torch.randn(steps, 1, 2, dtype=torch.float64), targets("linear", steps, 1, 1)
    bptt.backward(model, x, y, lambda z, t: ((z - t) ** 2).sum())
    compact = named_gradients(model)
    weights = model.recurrent.layer_weights(0, 0)
    copies = [{n: w.detach().clone().requires_grad_() for n, w in weights.items()} for _ in range(steps)]
    state, loss = (torch.zeros(1, 3, dtype=torch.float64),), 0
    for t in range(steps):
        state = cell.step(x[t], state, copies[t])
        loss = loss + ((model.output(state[0]) - y[t]) ** 2).sum()
    loss.backward()
    unfolded = {f"recurrent.{n}_l0": sum(c[n].grad for c in copies) for n in weights}
    assert_same({n: compact[n] for n in unfolded}, unfolded)


def test_symbols_go_through_an_embedding_and_torch_layers_fit():
    model = bptt.Network(nn.GRU(4, 8), 8, 5, HEADS_BY_NAME["softmax"](), nn.Embedding(5, 4))
    symbols = torch.randint(5, (6, 3))
    z, state = model(symbols)
    assert z.shape == (6, 3, 5)
    assert state.shape == (1, 3, 8)
