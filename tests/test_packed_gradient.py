"""`bptt.backward` over packed sequences: each strategy's gradient is that of the whole batch."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn
from torch.nn.utils.rnn import PackedSequence, pack_sequence

import bptt
from tests.cases import assert_same, named_gradients, seeds
from tests.test_checkpointed import budgets

DOUBLE = torch.float64
LAYERS = {
    "torch LSTM": lambda n: nn.LSTM(3, 4, n, dtype=DOUBLE),
    "torch GRU": lambda n: nn.GRU(3, 4, n, dtype=DOUBLE),
    "RNN": lambda n: bptt.RNN(3, 4, n, dtype=DOUBLE),
    "GRU": lambda n: bptt.GRU(3, 4, n, dtype=DOUBLE),
    "LSTM": lambda n: bptt.LSTM(3, 4, n, proj_size=2, dtype=DOUBLE),
}


class WithHead(nn.Module):
    """A layer and a head on the rows, which it gives packed or as they are."""

    def __init__(self, layer, repack):
        super().__init__()
        self.layer, self.repack = layer, repack
        self.head = nn.Linear(layer.proj_size or layer.hidden_size, 2, dtype=DOUBLE)

    def forward(self, x, state=None, **flags):
        rows, state = self.layer(x, state, **flags)
        z = self.head(rows.data)
        return (PackedSequence(z, rows.batch_sizes) if self.repack else z), state


def squared(outputs, y):
    z = outputs.data if isinstance(outputs, PackedSequence) else outputs
    return ((z - y.data) ** 2).sum()


def drawn(lengths, width):
    return pack_sequence([torch.randn(n, width, dtype=DOUBLE) for n in lengths], enforce_sorted=False)


def rows(state):
    return state if isinstance(state, tuple) else (state,)


@pytest.mark.parametrize("name", LAYERS)
@given(
    seed=seeds,
    lengths=st.lists(st.integers(1, 20), min_size=1, max_size=5),
    layers=st.integers(1, 2),
    repack=st.booleans(),
    with_state=st.booleans(),
    with_reset=st.booleans(),
    which=st.integers(0, 4),
)
def test_every_strategy_gives_autograds_gradient(name, seed, lengths, layers, repack, with_state, with_reset, which):
    torch.manual_seed(seed)
    model = WithHead(LAYERS[name](layers), repack)
    x, y = drawn(lengths, 3), drawn(lengths, 2)
    _, shape_of = model(x)
    start = None
    if with_state:
        leaves = tuple(torch.randn_like(s).requires_grad_() for s in rows(shape_of))
        start = leaves if isinstance(shape_of, tuple) else leaves[0]
    options = {}
    if with_reset and not name.startswith("torch"):
        options = {"reset": x._replace(data=torch.rand(len(x.data)) < 0.2)}

    outputs, final = model(x, start, **options)
    loss = squared(outputs, y)
    loss.backward()
    d_start = [s.grad.clone() for s in rows(start)] if with_state else []
    want = named_gradients(model) | {"loss": loss.detach()}
    want |= {f"state {i}": s.detach() for i, s in enumerate(rows(final))} | {f"d_{i}": d for i, d in enumerate(d_start)}

    def found(strategy):
        for s in rows(start) if with_state else ():
            s.grad = None
        result = bptt.backward(model, x, y, squared, strategy, start, **options)
        got = named_gradients(model) | {"loss": result.loss}
        got |= {f"state {i}": s for i, s in enumerate(rows(result.state))}
        return got | ({f"d_{i}": s.grad.clone() for i, s in enumerate(rows(start))} if with_state else {}), result

    assert_same(found(bptt.Exact())[0], want)
    assert_same(found(bptt.Truncated(max(lengths)))[0], want)
    got, result = found(bptt.Checkpointed(budgets(model, x, y, squared, state=start, **options)[which]))
    assert_same(got, want)
    assert result.extra_steps == result.plan.extra_steps


def test_truncated_cuts_packed_sequences_as_padded_ones():
    torch.manual_seed(0)
    layer, lengths = bptt.GRU(3, 4, dtype=DOUBLE), (9, 6, 2)
    x, y = drawn(lengths, 3), drawn(lengths, 4)
    (padded, _), (wanted, sizes) = (nn.utils.rnn.pad_packed_sequence(p) for p in (x, y))
    mask = (torch.arange(9)[:, None] < sizes).unsqueeze(-1)
    strategy = bptt.Truncated(2, 3)
    bptt.backward(layer, padded, (wanted, mask), lambda z, y: (((z - y[0]) ** 2) * y[1]).sum(), strategy)
    want = named_gradients(layer)
    assert bptt.backward(layer, x, y, squared, strategy).past is None
    assert_same(named_gradients(layer), want)


def test_a_plan_of_a_packed_batch():
    model, x = nn.LSTM(3, 8), pack_sequence([torch.randn(n, 3) for n in (400, 300, 20)])
    plan = bptt.Checkpointed("80kB").plan(model, x)
    assert plan.steps == 400
    assert plan.chunks > 1


def test_what_does_not_go_together():
    layer, x = bptt.GRU(3, 4), pack_sequence([torch.randn(n, 3) for n in (4, 2)])
    sorted_otherwise = pack_sequence([torch.randn(n, 4) for n in (2, 4)], enforce_sorted=False)
    for y, message in (
        (torch.zeros(4, 2, 4), "y is a Tensor: pack it in the same way"),
        (pack_sequence([torch.zeros(4, 4), torch.zeros(1, 4)]), "of other lengths"),
        (sorted_otherwise, "were sorted in different ways"),
    ):
        with pytest.raises(ValueError, match=message):
            bptt.backward(layer, x, y, squared)
    y = x._replace(data=torch.zeros(6, 4))
    for strategy in (bptt.RTRL(), bptt.SnAp1()):
        with pytest.raises(ValueError, match="pass x padded"):
            bptt.backward(layer, x, y, squared, strategy)
    with pytest.raises(TypeError, match="the state of a packed batch holds a tensor of shape"):
        bptt.backward(lambda x, _: (layer(x)[0], torch.zeros(())), x, y, squared, bptt.Truncated(2))
