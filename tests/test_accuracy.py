"""How right the digits are: the core's functions in units in the last place, and sums over very many rows."""

import numpy as np
import pytest
import torch

import bptt
from bptt.kernels.tape import lean_tape

# What csrc/simd.h states of each function, in ULP.
WORST = {("tanh", "f32"): 2.2, ("tanh", "f64"): 2.6, ("sigmoid", "f32"): 2.5, ("sigmoid", "f64"): 2.5}
FORMATS = {"f32": torch.float32, "f64": torch.float64}


def _points(dtype):
    """10^6 numbers: all powers of two, a fine grid where the functions bend, the ends of the range."""
    information = torch.finfo(dtype)
    powers = torch.pow(2.0, torch.arange(-1074 if dtype == torch.float64 else -149, 9, dtype=torch.float64))
    grid = torch.linspace(-25, 25, 600_000, dtype=torch.float64) * torch.empty(600_000, dtype=torch.float64).uniform_(
        0.99, 1.01
    )
    wide = torch.empty(398_000, dtype=torch.float64).uniform_(-800, 800)
    ends = torch.tensor([0.0, -0.0, information.max, -information.max, information.tiny, torch.inf, -torch.inf])
    return torch.cat([powers, -powers, grid, wide, ends.double()]).to(dtype)


def _unit(values, dtype):
    """One unit in the last place of each exact value, in the given format."""
    digits, least = (24, -149) if dtype == torch.float32 else (53, -1074)
    _, exponent = np.frexp(values)
    return np.ldexp(np.ones_like(values), np.maximum(exponent - digits, least))


@pytest.mark.parametrize(("function", "form"), WORST)
def test_functions_are_as_right_as_the_core_says(function, form):
    """A network of one unit without recurrence is the function itself."""
    dtype = FORMATS[form]
    layer = bptt.RNN(1, 1, nonlinearity=function, bias=False, dtype=dtype, backend="cpu")
    with torch.no_grad():
        layer.weight_ih_l0.fill_(1)
        layer.weight_hh_l0.zero_()
        x = _points(dtype)
        got = layer(x.view(1, -1, 1))[0].flatten().numpy()
    exact = x.numpy().astype(np.longdouble)
    with np.errstate(over="ignore"):
        exact = np.tanh(exact) if function == "tanh" else 1 / (1 + np.exp(-exact))
    error = np.abs(got.astype(np.longdouble) - exact)
    tiny = torch.finfo(dtype).tiny
    if function == "sigmoid":  # where the exact number is denormal it may be 0, as torch's
        assert (error[exact < tiny] < tiny).all()
        error[exact < tiny] = 0
    error /= _unit(exact, dtype)
    assert error.max() <= WORST[function, form], f"{error.max():.2f} ULP at {x[int(error.argmax())].item()!r}"
    if function == "tanh":  # odd, also where it is 0
        assert torch.equal(torch.from_numpy(got), -layer(-x.view(1, -1, 1))[0].detach().flatten())
        assert np.array_equal(np.signbit(got[x != 0]), np.signbit(x[x != 0].numpy()))


def _gradients(layer, x):
    y, _ = layer(x)
    return [g.double() for g in torch.autograd.grad(y.double().square().sum(), list(layer.parameters()))]


@pytest.mark.parametrize("name", ["RNN", "GRU", "LSTM"])
@pytest.mark.parametrize(("steps", "batch"), [(200, 16), (3000, 4)])
def test_sums_over_many_rows_are_as_right_as_torchs(name, steps, batch):
    theirs, ours = (getattr(library, name)(20, 96) for library in (torch.nn, bptt))
    ours.load_state_dict(theirs.state_dict())
    x = torch.randn(steps, batch, 20)
    got, beside = _gradients(ours, x), _gradients(theirs, x)
    with lean_tape():
        lean = _gradients(ours, x)
    want = _gradients(theirs.double(), x.double())
    for parameter, a, b, c, d in zip(dict(theirs.named_parameters()), got, beside, lean, want, strict=True):
        error, lean_error, torchs = ((t - d).norm() / d.norm() for t in (a, c, b))
        assert max(error, lean_error) <= 3 * torchs, f"{parameter}: {error:.2g}, {lean_error:.2g}, torch {torchs:.2g}"


def _counting_layer():
    """An RNN of one unit, h = 1 · x + 0.1, whose bias gradient adds up the gradients of its outputs."""
    layer = bptt.RNN(1, 1, nonlinearity="relu", backend="cpu")
    with torch.no_grad():
        for parameter, value in zip(layer.parameters(), (1.0, 0.0, 0.1, 0.0), strict=True):
            parameter.fill_(value)
    return layer


@pytest.mark.parametrize(("steps", "batch"), [(1, 2**20), (2**10, 2**10)])
def test_a_sum_of_very_many_small_numbers(steps, batch):
    """Each row adds 1 to the bias gradient, which is exact, and x in [0, 1) to that of the input weight."""
    layer, x = _counting_layer(), torch.rand(steps, batch, 1)
    d_w_ih, _, d_b_ih, d_b_hh = torch.autograd.grad(layer(x)[0].sum(), list(layer.parameters()))
    assert d_b_ih.item() == d_b_hh.item() == steps * batch
    assert abs(d_w_ih.item() / x.double().sum().item() - 1) <= 2e-7


def test_a_sum_of_ones_goes_on_beyond_2_to_the_24():
    """One running sum in float32 stays there: 2^24 + 1 is 2^24."""
    layer, d_outputs = _counting_layer(), torch.ones(1, 2**18, 1)
    d_outputs[0, 0] = 2**24
    (d_b_ih,) = torch.autograd.grad(layer(torch.rand(1, 2**18, 1))[0], [layer.bias_ih_l0], d_outputs)
    assert abs(d_b_ih.item() / (2**24 + 2**18 - 1) - 1) <= 2**-16  # what the first 256 rows may lose
