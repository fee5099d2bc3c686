"""Singular values of long Jacobian products and Lyapunov exponents, against high precision and known systems."""

import itertools
import math
from dataclasses import dataclass
from typing import ClassVar

import mpmath
import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn
from torch.nn.utils.rnn import pack_sequence

import bptt
from bptt.flow.jacobians.log_svd import GradedProduct, log_singular_values
from tests.cases import CELLS, layer, seeds


@dataclass(frozen=True)
class Linear(bptt.PointwiseCell):
    """h_t = zx_t + zh_t: every Jacobian is W_hh."""

    gates: ClassVar[int] = 1

    def pointwise(self, zx, zh, state):
        return ((zx + zh).squeeze(-2),)


@dataclass(frozen=True)
class Henon(bptt.PointwiseCell):
    """The Hénon map, a = 1.4, b = 0.3, as a cell with two state components of one unit: no weight has a say in it."""

    states: ClassVar[tuple[str, ...]] = ("h", "c")
    gates: ClassVar[int] = 1

    def pointwise(self, zx, zh, state):
        return 1 - 1.4 * state[0] ** 2 + state[1], 0.3 * state[0]


def linear(w):
    made = bptt.Recurrent(Linear(), 1, len(w), bias=False, dtype=torch.float64)
    with torch.no_grad():
        made.weight_hh_l0.copy_(w)
    return made


def in_high_precision(factors, digits):
    """log10 of all singular values of the product, by brute force in mpmath."""
    with mpmath.workdps(digits):
        product = mpmath.eye(factors[0].shape[0])
        for factor in factors:
            product = mpmath.matrix(factor.tolist()) * product
        largest = max(abs(value) for value in product) or mpmath.mpf(1)
        values = sorted(mpmath.svd_r(product / largest, compute_uv=False), reverse=True)
        return torch.tensor([float(mpmath.log10(v * largest)) for v in values], dtype=torch.float64)


def by_compounds(factors):
    """The same for very long products: the m-th compound matrices multiply, and their norm is the product of m values.

    Each needs only its own largest singular value, so 40 digits do, where the product itself would need thousands.
    """
    whole, sums = torch.stack(factors), []
    size = whole.shape[-1]
    with mpmath.workdps(40):
        for m in range(1, size + 1):
            places = list(itertools.combinations(range(size), m))
            minors = torch.stack(
                [torch.linalg.det(whole[:, list(i)][:, :, list(j)]) for i in places for j in places], -1
            )
            # A column at a time: in mpmath's own matrix product, the bookkeeping would cost more than the numbers.
            rows = [[mpmath.mpf(i == j) for j in range(len(places))] for i in range(len(places))]
            for factor in minors.unflatten(-1, (len(places), len(places))).tolist():
                columns = list(zip(*rows, strict=True))
                rows = [[mpmath.fdot(left, column) for column in columns] for left in factor]
            largest = max(abs(value) for row in rows for value in row)  # svd_r wants numbers of about 1
            values = mpmath.svd_r(mpmath.matrix(rows) / largest, compute_uv=False)
            sums.append(mpmath.log10(largest) + mpmath.log10(max(values)))
        return torch.tensor([float(b - a) for a, b in itertools.pairwise([mpmath.mpf(0), *sums])], dtype=torch.float64)


def graded(factors):
    product = GradedProduct(len(factors[0]))
    for factor in factors:
        product.multiply(factor)
    return log_singular_values(product.log[None], product.t[None])[0] / math.log(10)


FACTORS = {
    "contracting": lambda n: torch.rand(n, 1).double() * torch.randn(n, n).double() / n**0.5,
    "nearly orthogonal": lambda n: torch.linalg.qr(torch.randn(n, n).double())[0] + 1e-3 * torch.randn(n, n).double(),
    "exploding": lambda n: 30 * torch.randn(n, n).double(),
    "saturated": lambda n: 10 ** (-6 * torch.rand(n, 1).double()) * torch.randn(n, n).double(),
    "a Jordan block": lambda n: 0.9 * torch.eye(n).double() + 3 * torch.eye(n).double().roll(1, 1).triu(),
}


@pytest.mark.parametrize("kind", FACTORS)
@given(seed=seeds, size=st.sampled_from((1, 2, 3, 5)), count=st.sampled_from((1, 2, 31)))
def test_all_singular_values_of_a_product(kind, seed, size, count):
    torch.manual_seed(seed)
    factors = [FACTORS[kind](size) for _ in range(count)]
    torch.testing.assert_close(graded(factors), in_high_precision(factors, 400), rtol=0, atol=1e-5)


def test_lost_directions_are_minus_infinity_and_the_others_stay():
    """Dead units: a different one at each step, so that in the end one direction alone is alive."""
    torch.manual_seed(0)
    factors = [torch.randn(3, 3).double() * torch.tensor(mask).double() for mask in ([1, 1, 0], [0, 1, 1], [1, 1, 1])]
    found = graded([f.T.contiguous() for f in factors])
    wanted = torch.linalg.svdvals(factors[2].T @ factors[1].T @ factors[0].T).log10()
    assert torch.isneginf(found[1:]).sum() >= 1
    torch.testing.assert_close(found[found > -13], wanted[wanted > -13], rtol=0, atol=1e-9)
    assert torch.isneginf(graded([torch.zeros(3, 3).double(), torch.eye(3).double()])).all()


def test_ten_thousand_steps_at_gain_one_half():
    """Where the direct product is 0: all singular values within 0.01 decade of the reference."""
    torch.manual_seed(1)
    made, x = nn.RNN(1, 3, dtype=torch.float64), torch.randn(10_001, 1, 1, dtype=torch.float64)
    with torch.no_grad():
        made.weight_hh_l0.copy_(0.5 * torch.linalg.qr(torch.randn(3, 3, dtype=torch.float64))[0])
        h = made(x)[0][:, 0]
        factors = [(1 - h[i] ** 2).unsqueeze(1) * made.weight_hh_l0 for i in range(1, 10_001)]
    found = bptt.products(made, x, lags=[1, 10_000])
    assert found.direct[1] == 0
    assert found.log10[1, 0] < -3000
    torch.testing.assert_close(found.log10[1], by_compounds([f.detach() for f in factors]), rtol=0, atol=0.01)
    torch.testing.assert_close(found.log10[0], torch.linalg.svdvals(factors[-1]).log10(), rtol=0, atol=1e-9)


def test_exploding_far_beyond_float64():
    w = torch.tensor([[3.0, 1.0], [0.0, 2.0]], dtype=torch.float64)
    made = linear(w)
    hx = torch.zeros(1, 1, 2, dtype=torch.float64)
    found = bptt.products(made, torch.zeros(2001, 1, 1, dtype=torch.float64), hx=hx, lags=[0, 3, 2000])
    assert torch.isinf(found.direct[2])
    torch.testing.assert_close(found.log10[0], torch.zeros(2, dtype=torch.float64), rtol=0, atol=1e-12)
    torch.testing.assert_close(found.log10[2], in_high_precision([w] * 2000, 1000), rtol=0, atol=1e-8)
    torch.testing.assert_close(found.direct[1].log10(), found.log10[1, 0])
    assert found.rate[2, 0] == found.log10[2, 0] / 2000


@pytest.mark.parametrize("name", CELLS)
@pytest.mark.parametrize("direction", [0, 1])
def test_products_are_those_of_autograd(name, direction):
    """∂s(t)/∂s(k) of a middle t, in a stack, by autograd through the cell's own steps."""
    torch.manual_seed(2)
    made = layer(CELLS[name], 2, 3, num_layers=2, bidirectional=True)
    x = torch.randn(7, 2, 2, dtype=torch.float64)
    found = bptt.products(made, x, t=4, lags=[0, 1, 2], sample=1, depth=1, direction=direction)
    below = layer(CELLS[name], 2, 3, bidirectional=True)
    below.load_state_dict({k: v for k, v in made.state_dict().items() if "_l0" in k})
    rows, weights = below(x)[0][:, 1:], made.layer_weights(1, direction)
    order = list(reversed(range(7))) if direction else list(range(7))
    state, visited = tuple(torch.zeros(1, 3, dtype=torch.float64) for _ in made.cell.states), {}
    for i in order:
        state = visited[i] = tuple(s.detach() for s in made.cell.step(rows[i], state, weights))

    def onward(flat, lag):
        state = tuple(flat.split(3, dim=-1))
        for step in range(lag):
            i = 4 - (lag - 1 - step) * (-1 if direction else 1)
            state = made.cell.step(rows[i], state, weights)
        return torch.cat(state, -1)

    for row, lag in enumerate((0, 1, 2)):
        start = torch.cat(visited[4 + lag if direction else 4 - lag], -1)
        whole = torch.autograd.functional.jacobian(lambda s, lag=lag: onward(s, lag), start)[0, :, 0]
        wanted = torch.linalg.svdvals(whole)
        torch.testing.assert_close(10 ** found.log10[row], wanted, rtol=1e-7, atol=1e-11)
        torch.testing.assert_close(found.direct[row], wanted[0])


def test_the_longest_lags_are_shown_by_default():
    made = nn.LSTM(2, 3)
    found = bptt.products(made, torch.randn(400, 1, 2))
    assert found.t == 399
    assert found.lags[0] == 0
    assert found.lags[-1] == 399
    assert len(found.lags) <= 130
    assert found.log10.shape == (len(found.lags), 6)
    assert bptt.products(made, torch.randn(1, 2)).log10.tolist() == [[0.0] * 6]  # a sequence of one step


def test_a_packed_sample_is_as_long_as_itself_and_a_reset_cuts():
    torch.manual_seed(3)
    made = bptt.GRU(2, 3, bidirectional=True)
    x = pack_sequence([torch.randn(n, 2) for n in (3, 6, 4)], enforce_sorted=False)
    for direction in (0, 1):
        alone = bptt.products(made, x_of(x, 2), direction=direction)
        packed = bptt.products(made, x, sample=2, direction=direction)
        assert packed.t == (0 if direction else 3)
        torch.testing.assert_close(packed.log10, alone.log10)
    reset = torch.zeros(5, 1, dtype=torch.bool)
    reset[3] = True
    found = bptt.products(made, torch.randn(5, 1, 2), reset=reset)
    assert torch.isneginf(found.log10[2:]).all()
    assert found.log10[:2].isfinite().all()
    assert found.direct[2:].tolist() == [0, 0, 0]


def x_of(packed, sample):
    whole, lengths = nn.utils.rnn.pad_packed_sequence(packed)
    return whole[: lengths[sample], sample]


def test_a_non_normal_matrix_grows_before_it_vanishes():
    """Trap: spectral radius 0.9, and yet a 100-fold growth on the way. Seen in the products and in the map."""
    size = 12
    w = 0.5 * torch.eye(size, dtype=torch.float64) + 1.0 * torch.diag(torch.ones(size - 1, dtype=torch.float64), 1)
    assert torch.linalg.eigvals(w).abs().max() < 0.6
    made = nn.RNN(1, size, dtype=torch.float64, bias=False)
    with torch.no_grad():
        made.weight_hh_l0.copy_(w)
        made.weight_ih_l0.copy_(torch.full((size, 1), 1e-12))
    x = torch.ones(200, 1, 1, dtype=torch.float64)
    found = bptt.products(made, x)
    assert found.log10[:, 0].max() > 2
    assert found.log10[-1, 0] < -10

    def at_the_end(outputs):
        return outputs[-1, 0, 0]

    lags = bptt.gradient_map(made, x, loss=at_the_end).lags("weight_ih_l0")[0]
    assert lags.max() > 30 * lags[0]  # of the one row that the loss looks along
    assert lags[-1] < 1e-10 * lags[0]


def test_saturated_units_vanish_whatever_the_matrix():
    """Trap: σ₁(W_hh) = 3, but the units sit where tanh is flat."""
    torch.manual_seed(4)
    made = nn.RNN(1, 8, dtype=torch.float64)
    with torch.no_grad():
        made.weight_hh_l0.copy_(3 * torch.linalg.qr(torch.randn(8, 8, dtype=torch.float64))[0])
        made.weight_ih_l0.copy_(8 * torch.randn(8, 1).sign())
    x = torch.randn(100, 1, 1, dtype=torch.float64).sign()
    found = bptt.products(made, x)
    assert found.rate[-1, 0] < -1  # a decade in each step
    assert bptt.lyapunov(made, x, n=1).exponents[0] < -1
    lags = bptt.gradient_map(made, x, loss=lambda o: o[-1].sum()).lags("weight_hh_l0")[0]
    assert lags[20] < 1e-20 * lags[0]


@given(seed=seeds, size=st.sampled_from((1, 2, 3, 5, 7)))
def test_a_linear_network_has_the_moduli_of_its_eigenvalues(seed, size):
    torch.manual_seed(seed)
    # Moduli apart from each other, complex pairs among them: the directions settle within the transient.
    blocks, modulus, left = [], 1.3, size
    while left:
        angle = float(torch.rand(())) * 2 + 0.5
        turn = torch.tensor(
            [[math.cos(angle), -math.sin(angle)], [math.sin(angle), math.cos(angle)]], dtype=torch.float64
        )
        blocks.append(modulus * (turn if left > 1 and torch.rand(()) < 0.6 else torch.eye(1, dtype=torch.float64)))
        left -= len(blocks[-1])
        modulus *= 0.6
    basis = torch.eye(size, dtype=torch.float64) + 0.3 * torch.randn(size, size, dtype=torch.float64) / size**0.5
    w = basis @ torch.block_diag(*blocks) @ basis.inverse()
    wanted = torch.linalg.eigvals(w).abs().log().sort(descending=True)[0]
    found = bptt.lyapunov(linear(w), torch.zeros(1500, 1, 1, dtype=torch.float64))
    torch.testing.assert_close(found.exponents, wanted, rtol=0, atol=1e-6)
    if size == 1:
        assert found.exponents.item() == pytest.approx(math.log(1.3), abs=1e-12)  # log|w|, exactly


def test_a_random_network_below_the_edge_of_chaos():
    """h' = tanh(g J h), J ~ N(0, 1/H): λ₁ = ln g + O(H^-1/2), and exactly ln of the spectral radius, since h → 0."""
    torch.manual_seed(5)
    size, gain = 100, 0.8
    made = nn.RNN(1, size, bias=False, dtype=torch.float64)
    with torch.no_grad():
        made.weight_hh_l0.copy_(gain * torch.randn(size, size) / size**0.5)
    hx = torch.randn(1, 1, size, dtype=torch.float64)
    found = bptt.lyapunov(made, torch.zeros(1500, 1, 1, dtype=torch.float64), n=2, hx=hx, discard=500)
    radius = torch.linalg.eigvals(made.weight_hh_l0.detach()).abs().max().log().item()
    assert found.exponents[0].item() == pytest.approx(radius, abs=2e-3)
    assert found.exponents[0].item() == pytest.approx(math.log(gain), abs=1.5 / size**0.5)


def test_the_henon_map():
    made = bptt.Recurrent(Henon(), 1, 1, dtype=torch.float64)
    found = bptt.lyapunov(made, torch.zeros(20_000, 1, 1, dtype=torch.float64))
    assert found.exponents[0].item() == pytest.approx(0.419, abs=1e-2)
    assert found.exponents[1].item() == pytest.approx(-1.623, abs=1e-2)
    assert found.exponents.sum().item() == pytest.approx(math.log(0.3), abs=1e-9)  # |det| of every step
    assert (found.error < 1e-2).all()
    assert abs(found.exponents[0] - 0.4192) < 4 * found.error[0]
    product = bptt.products(made, torch.zeros(3000, 1, 1, dtype=torch.float64), lags=[2999])
    torch.testing.assert_close(product.rate[0] * math.log(10), found.exponents, rtol=0, atol=3e-2)


def test_the_error_estimate_covers_the_truth():
    """A scalar random product: the mean of ln|w_t| is known, and its estimate lies within 3 errors in most runs."""

    class Scaled(bptt.PointwiseCell):
        gates: ClassVar[int] = 1

        def pointwise(self, zx, zh, state):
            return (zx.squeeze(-2) * 0 + state[0] * torch.exp(zx.squeeze(-2)) / (1 + 0 * zh.squeeze(-2)),)

    made = bptt.Recurrent(Scaled(), 1, 1, bias=False, dtype=torch.float64)
    with torch.no_grad():
        made.weight_ih_l0.fill_(1.0)
    torch.manual_seed(6)
    inside = 0
    for _ in range(20):
        found = bptt.lyapunov(made, 0.3 * torch.randn(300, 1, 1, dtype=torch.float64) - 0.1)
        inside += abs(found.exponents[0].item() + 0.1) < 3 * found.error[0].item()
    assert inside >= 17


@pytest.mark.parametrize("name", CELLS)
def test_products_and_exponents_agree(name):
    """The sum of all exponents is the mean of ln|det A_t|; so is that of all singular values, at any lag."""
    torch.manual_seed(7)
    made = layer(CELLS[name], 2, 3)
    x = torch.randn(60, 1, 2, dtype=torch.float64)
    product = bptt.products(made, x, lags=[59])
    found = bptt.lyapunov(made, x, discard=1)
    assert found.exponents.shape == (3 * len(made.cell.states),)
    if name in ("elman-relu", "normed"):  # singular steps: a dead unit; a norm takes away two directions
        assert torch.isneginf(product.log10[0, -1]) or product.log10[0, -1] < -300
    else:
        assert product.log10[0].sum().isfinite()
        assert found.exponents.isfinite().all()


def test_a_dead_network_has_exponents_of_minus_infinity():
    made = nn.RNN(1, 3, nonlinearity="relu")
    with torch.no_grad():
        made.bias_ih_l0.fill_(-100.0)
    found = bptt.lyapunov(made, torch.randn(50, 1, 1))
    assert torch.isneginf(found.exponents).all()
    assert torch.isneginf(bptt.products(made, torch.randn(50, 1, 1)).log10[1:]).all()
    assert not found.error.isnan().any()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"sample": 2}, "sample is 2, wanted a whole number from 0 to 1"),
        ({"depth": 1}, "depth is 1, wanted a whole number from 0 to 0"),
        ({"direction": True}, "direction is True, wanted a whole number from 0 to 0"),
        ({"hx": torch.zeros(1, 3, 3)}, r"the initial state \(h\) has shapes"),
        ({"x": torch.full((4, 2, 2), math.nan)}, "x holds NaN or Inf"),
        ({"x": torch.zeros(0, 2, 2)}, "x has 0 steps"),
    ],
)
def test_what_neither_can_use(changes, message):
    for function in (bptt.products, bptt.lyapunov):
        arguments = {"x": torch.zeros(4, 2, 2)} | changes
        with pytest.raises(ValueError, match=message):
            function(nn.GRU(2, 3), arguments.pop("x"), **arguments)


def test_an_initial_state_that_is_no_tensor():
    for function in (bptt.products, bptt.lyapunov):
        with pytest.raises(TypeError, match="hx is a int, wanted h and c as Tensors, or None"):
            function(nn.LSTM(2, 3), torch.zeros(4, 2, 2), hx=3)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda m, x: bptt.products(m, x, t=4), "t is 4, wanted a step of the sample, from 0 to 3"),
        (lambda m, x: bptt.products(m, x, t=2, lags=[3]), "lags has 3, wanted whole numbers of steps from 0 to 2"),
        (lambda m, x: bptt.products(m, x, lags=[]), "lags is empty"),
        (lambda m, x: bptt.lyapunov(m, x, n=4), "n is 4, wanted a whole number from 1 to 3, the size of the state"),
        (lambda m, x: bptt.lyapunov(m, x, discard=-1), "discard is -1, wanted a whole number of steps"),
        (lambda m, x: bptt.lyapunov(m, x, discard=3), "4 steps with 3 left out leave 1, wanted at least 2"),
        (lambda m, x: bptt.lyapunov(m, x[:1]), "1 steps with 0 left out leave 1, wanted at least 2"),
    ],
)
def test_what_cannot_be_is_refused(call, message):
    with pytest.raises(ValueError, match=message):
        call(nn.GRU(2, 3), torch.zeros(4, 2, 2))


def test_whole_numbers_of_numpy_and_torch_will_do():
    made, x = nn.GRU(2, 3), torch.randn(4, 2, 2)
    wanted = bptt.products(made, x, t=3, lags=[0, 2], sample=1)
    for array in (np.array, torch.tensor):
        got = bptt.products(made, x, t=array(3), lags=array([0, 2]), sample=array(1))
        torch.testing.assert_close(got.log10, wanted.log10)
        assert got.lags.tolist() == [0, 2]
    assert bptt.lyapunov(made, x, n=np.int64(2)).exponents.shape == (2,)
    for number in (True, np.True_, torch.tensor(True), 1.0):
        with pytest.raises(ValueError, match="t is .*, wanted a step of the sample"):
            bptt.products(made, x, t=number)


def test_one_lag_is_a_list_of_one():
    with pytest.raises(TypeError, match=r"lags is 3, wanted a list of whole numbers, such as \[3\]"):
        bptt.products(nn.GRU(2, 3), torch.zeros(4, 2, 2), lags=3)
