"""Numbers at the ends of their range, against autograd of the plain equations and torch.nn.

Run once more in the smaller instruction sets and under the sanitizers, by test_cpu_kernel.py and test_sanitizers.py.
"""

import math

import pytest
import torch

import bptt
from bptt.kernels import Sequences
from bptt.kernels.cpu import Cpu
from bptt.kernels.layer_kernel import plain_layer
from bptt.kernels.reference import Reference
from bptt.kernels.walk import Walk
from tests.cases import BY_HAND

EXTREMES = {
    "inf": math.inf,
    "-inf": -math.inf,
    "max": "max",
    "-max": "-max",
    "nan": math.nan,
    "tiny": 1e-42,
    "-0": -0.0,
}
KERNELS = {"cpu": Cpu(), "reference": Reference()}


def _number(extreme, dtype):
    largest = torch.finfo(dtype).max
    return {"max": largest, "-max": -largest}.get(extreme, extreme)


def _same(got, want, name, dtype):
    """The same infinities and NaNs, and close everywhere else."""
    torch.testing.assert_close(got.isnan(), want.isnan(), msg=lambda m: f"{name}: other NaNs: {m}")
    size = want[want.isfinite()].abs().max().item() if want.isfinite().any() else 1.0
    tolerance = (1e-10 if dtype == torch.float64 else 1e-5) * max(1.0, size)
    torch.testing.assert_close(
        got, want, rtol=0, atol=tolerance, equal_nan=True, msg=lambda m: f"{name}: {m}"
    )  # infinities must be equal


def _extreme_rows(form, dtype, extreme):
    """Rows of five sequences, one feature of one of which is extreme, and that row's number."""
    sizes = torch.tensor([5, 5, 4, 2] if form == "packed" else [5, 5, 5, 5])
    x = torch.randn(int(sizes.sum()), 3, dtype=dtype)
    x[6, 1] = _number(extreme, dtype)  # step 1 of sequence 1
    return x, sizes


@pytest.mark.parametrize("kernel", KERNELS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=["f32", "f64"])
@pytest.mark.parametrize("form", ["padded", "packed"])
@pytest.mark.parametrize("name", BY_HAND)
def test_every_extreme_of_the_input_gives_autograds_numbers(name, form, dtype, kernel):
    """Also where H does not fill the last register: a lane without a unit must not hand on its NaN."""
    for extreme in EXTREMES.values():
        if name == "elman-relu" and extreme in ("max", "-max"):
            continue  # finite sums that overflow or not by the order in which they are added
        for hidden in (1, 5, 20, 33):
            projected = 4 if name == "lstm" and hidden == 20 else 0
            layer = bptt.Recurrent(BY_HAND[name], 3, hidden, proj_size=projected, dtype=dtype)
            x, sizes = _extreme_rows(form, dtype, extreme)
            walk = Walk.over(Sequences(x, sizes), reverse=False)
            state = tuple(
                torch.zeros(5, n, dtype=dtype) for n in [projected or hidden, hidden][: len(layer.cell.states)]
            )
            weights = layer.layer_weights(0, 0)

            def run(way, x=x, state=state, walk=walk, layer=layer, weights=weights):
                leaves = [t.clone().requires_grad_() for t in (x, *state)]
                y, final = way(layer.cell, walk, leaves[0], tuple(leaves[1:]), weights)
                found = torch.autograd.grad(y.sum() + final[-1].sum(), [*leaves, *weights.values()])
                names = ["d_x", *(f"d_state{i}" for i in range(len(state))), *(f"d_{n}" for n in weights)]
                return {"y": y.detach(), "final": final[-1].detach()} | dict(zip(names, found, strict=True))

            want, got = run(plain_layer), run(KERNELS[kernel].layer)
            for tensor in want:
                _same(got[tensor], want[tensor], f"{tensor}, H {hidden}, {extreme}", dtype)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=["f32", "f64"])
@pytest.mark.parametrize("name", ["RNN", "GRU", "LSTM"])
def test_extremes_give_torchs_numbers(name, dtype):
    """Also the "no data" values of tables. Gates saturate: only what the input itself multiplies is not finite."""
    theirs, ours = (getattr(library, name)(3, 5, dtype=dtype) for library in (torch.nn, bptt))
    ours.load_state_dict(theirs.state_dict())
    for extreme in (math.inf, -math.inf, "max", "-max", -3.4e38, -1e37, 1e30):
        found = []
        for layer in (theirs, ours):
            torch.manual_seed(1)
            x = torch.randn(6, 4, 3, dtype=dtype)
            x[2, 1, 0] = _number(extreme, dtype)
            x.requires_grad_()
            y, _ = layer(x)
            found.append([y.detach(), *torch.autograd.grad(y.sum(), [x, *layer.parameters()])])
        for index, (want, got) in enumerate(zip(*found, strict=True)):
            _same(got, want, f"tensor {index}, {extreme}", dtype)
        assert all(t.isfinite().all() for t in (found[1][0], found[1][1], found[1][3]))  # outputs, d_x, d_weight_hh


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=["f32", "f64"])
@pytest.mark.parametrize("name", ["RNN", "GRU", "LSTM"])
def test_a_closed_gate_is_closed_however_large_the_input(name, dtype):
    """A sigmoid that only comes near 0 times an input near the end of the range is no small number."""
    options = {"nonlinearity": "sigmoid"} if name == "RNN" else {}
    made = getattr(bptt, name)(2, 4, dtype=dtype, **options)
    largest = torch.finfo(dtype).max
    for big in (largest, largest / 40, -largest, -largest / 40):
        x = torch.randn(6, 1, 2, dtype=dtype)
        x[2] = big
        found = {}
        for backend in ("cpu", "reference"):
            made.backend = backend
            found[backend] = torch.autograd.grad(made(x)[0].sum(), list(made.parameters()))
        for got, want in zip(found["cpu"], found["reference"], strict=True):
            _same(got, want, f"{big}", dtype)


@pytest.mark.parametrize("name", ["RNN", "GRU", "LSTM"])
def test_a_nan_stays_in_its_row(name):
    made = getattr(bptt, name)(3, 21, num_layers=2, bidirectional=True)
    clean = torch.randn(7, 6, 3)
    spoilt = clean.clone()
    spoilt[3, 4, 1] = math.nan
    found = []
    for x in (clean, spoilt):
        x.requires_grad_()
        y, _ = made(x)
        found.append((y.detach(), torch.autograd.grad(y.square().sum(), x)[0]))
    others = [0, 1, 2, 3, 5]
    for before, after in zip(*found, strict=True):
        assert torch.equal(before[:, others], after[:, others])
        assert after[:, 4].isnan().any()
