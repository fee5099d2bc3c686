"""Cells of the user's own: what keeps the contract is right to 1e-10, what cannot be right is refused in a sentence."""

import copy
import dataclasses
import pickle
import random
import warnings

import numpy as np
import pytest
import torch
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.fx.experimental.proxy_tensor import make_fx
from torch.nn import functional as F

import bptt
from bptt.cells import GRU, LSTM, Elman, probe
from tests.cases import Leaky, Normed, Peephole, assert_same, plain

T, B, D, H = 6, 3, 2, 5


class Own(bptt.PointwiseCell):
    """tanh(zx + zh), to derive hostile cells from."""

    gates = 1

    def pointwise(self, zx, zh, state, *vectors):
        return (self.of(zx[..., 0, :] + zh[..., 0, :], state[0]),)

    def of(self, z, h):
        return torch.tanh(z)


def own(function, **attributes):
    """A cell with h_t = function(z, h_{t-1})."""
    return type("Own", (Own,), {"of": lambda self, z, h: function(z, h), **attributes})()


def pointwise(function, **attributes):
    """A cell with that `pointwise`."""
    return type("Own", (Own,), {"pointwise": function, **attributes})()


def run(cell, **options):
    """One training step of a layer of it."""
    layer = bptt.Recurrent(cell, D, H, dtype=torch.float64, **options)
    outputs, _ = layer(torch.randn(T, B, D, dtype=torch.float64))
    outputs.square().sum().backward()
    return layer


# Accepted ---------------------------------------------------------------------------------------------------


class Minimal(bptt.PointwiseCell):
    """The minimal gated unit."""

    gates = 2

    def pointwise(self, zx, zh, state):
        f = torch.sigmoid(zx[..., 0, :] + zh[..., 0, :])
        return ((1 - f) * state[0] + f * torch.tanh(zx[..., 1, :] + f * zh[..., 1, :]),)


class AcrossGates(bptt.PointwiseCell):
    """A softmax and a norm over the gates of one unit, which is no mixing; and a width read off."""

    gates = 3

    def pointwise(self, zx, zh, state):
        share = torch.softmax(zx + zh, dim=-2)
        values = torch.stack([state[0], torch.tanh(zx.sum(-2)), zh.norm(dim=-2) / zx.shape[-1]], dim=-2)
        return ((share * values).sum(-2),)


class Spike(torch.autograd.Function):
    @staticmethod
    def forward(ctx, v):
        ctx.save_for_backward(v)
        return (v > 0).to(v)

    @staticmethod
    def backward(ctx, d):
        (v,) = ctx.saved_tensors
        return d / (1 + v.abs()) ** 2


class Spiking(bptt.PointwiseCell):
    """Leaky integrate and fire, with a surrogate gradient and a reset through which none goes."""

    states = ("s", "v")
    gates = 1
    vectors = ("decay",)

    def pointwise(self, zx, zh, state, decay):
        v = torch.sigmoid(decay) * state[1] * (1 - state[0].detach()) + (zx + zh).squeeze(-2)
        return Spike.apply(v - 0.3), v


class Masked(bptt.PointwiseCell):
    """A constant mask, one value for each unit, and a component that is the same at every step."""

    states = ("h", "one")
    gates = 1

    def __init__(self):
        self.mask = torch.tensor([1.0, 0.0, 1.0, 1.0, 0.0])

    def pointwise(self, zx, zh, state):
        h = torch.tanh((zx + zh).squeeze(-2)) * self.mask.to(zx)
        return h, torch.ones_like(h)


class Careful(bptt.PointwiseCell):
    """It tests its own numbers, and takes logarithms and roots that are NaN for some."""

    gates = 1

    def pointwise(self, zx, zh, state):
        z = (zx + zh).squeeze(-2)
        if not z.isfinite().all():
            raise ArithmeticError("not finite")
        return (torch.log1p(z.abs()).sqrt() * z.sign(),)


class DampedGRU(GRU):
    """Derived from one of ours, whose partials are not its own."""

    def pointwise(self, zx, zh, state, *vectors):
        return (0.7 * super().pointwise(zx, zh, state)[0] + 0.1 * torch.sin(zx[..., 0, :]),)


class Interwoven(bptt.PointwiseCell):
    """Gates weighed by a constant matrix, sorted and summed up within each unit, and units taken one by one."""

    gates = 4

    def __init__(self):
        self.weights = torch.linspace(-1, 1, 8, dtype=torch.float64).view(4, 2)

    def pointwise(self, zx, zh, state):
        a, b = torch.einsum("bgh,gk->kbh", zx + zh, self.weights)
        c = (zx + zh).sort(-2).values.cumsum(-2)[..., 1, :]
        d = torch.stack([torch.tanh(unit) for unit in state[0].unbind(-1)], -1)
        e = torch.zeros_like(d)
        e[..., :2], e[..., 2:] = c[..., :2], (zx.flatten(-2).chunk(4, -1)[3] * d)[..., 2:]
        return (torch.tanh(a) * torch.sigmoid(b) + 0.1 * e.clamp(-2, 2),)


class InPlaceInside(bptt.PointwiseCell):
    """What it made itself it may change in place."""

    gates = 1

    def pointwise(self, zx, zh, state):
        z = (zx + zh).squeeze(-2)
        z += 0.1
        return (z.tanh() * 0.9 + 0.1 * state[0],)


RIGHT = {
    "leaky": Leaky(),
    "peephole": Peephole(),
    "minimal": Minimal(),
    "across-gates": AcrossGates(),
    "spiking": Spiking(),
    "masked": Masked(),
    "careful": Careful(),
    "damped-gru": DampedGRU(),
    "in-place-inside": InPlaceInside(),
    "interwoven": Interwoven(),
}


@pytest.mark.parametrize("bidirectional", [False, True], ids=["forward", "both"])
@pytest.mark.parametrize("name", RIGHT)
def test_what_keeps_the_contract_has_the_gradient_of_the_plain_loop(name, bidirectional):
    torch.manual_seed(0)
    cell = RIGHT[name]
    layer = bptt.Recurrent(cell, D, H, bidirectional=bidirectional, dtype=torch.float64)
    with torch.no_grad():
        for parameter in layer.parameters():
            parameter.normal_(std=0.7)
    x = torch.randn(T, B, D, dtype=torch.float64)
    weighting = torch.randn(T, B, H * (1 + bidirectional), dtype=torch.float64)
    names = [name for name, _ in layer.named_parameters()]
    got = torch.autograd.grad((layer(x)[0] * weighting).sum(), list(layer.parameters()))
    outputs = []
    for direction in range(1 + bidirectional):
        start = tuple(torch.zeros(B, H, dtype=torch.float64) for _ in cell.states)
        rows, _ = plain(cell, layer.layer_weights(0, direction), x.flip(0) if direction else x, start)
        outputs.append(rows.flip(0) if direction else rows)
    loss = (torch.cat(outputs, -1) * weighting).sum()
    want = torch.autograd.grad(loss, list(layer.parameters()), allow_unused=True, materialize_grads=True)
    assert_same(dict(zip(names, got, strict=True)), dict(zip(names, want, strict=True)))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("hidden", [1, 2, 8, 33])
def test_every_size_and_dtype_is_tried_without_a_false_alarm(hidden, dtype):
    cells = [Leaky(), Peephole(), Minimal(), AcrossGates(), Spiking(), DampedGRU()]
    for cell in [*cells, *(type("Sub", (kind,), {})() for kind in (Elman, GRU, LSTM))]:
        layer = bptt.Recurrent(cell, D, hidden, dtype=dtype)
        probe.uphold(layer, cell, layer.layer_weights(0, 0))


def test_a_projected_cell_that_reads_no_h_is_accepted():
    run(Peephole(), proj_size=2)
    run(Peephole(), proj_size=1)


# Refused when the layer is made -----------------------------------------------------------------------------


def identity(self, zx, zh, state):
    return (torch.tanh((zx + zh).squeeze(-2)),)


def without_gates():
    return type("Own", (bptt.PointwiseCell,), {"pointwise": identity})()


DECLARED = {
    "class": (lambda: Leaky, TypeError, r"cell is the class Leaky, wanted a bptt.Cell object: pass Leaky\(\)"),
    "no-gates": (without_gates, TypeError, "Own.gates is missing, wanted a whole number from 1"),
    "gates-none": (lambda: pointwise(identity, gates=None), TypeError, "Own.gates is None"),
    "gates-0": (lambda: pointwise(identity, gates=0), ValueError, "Own.gates is 0, wanted a whole number from 1"),
    "gates-negative": (lambda: pointwise(identity, gates=-2), ValueError, "Own.gates is -2"),
    "gates-fraction": (lambda: pointwise(identity, gates=1.0), TypeError, "Own.gates is 1.0"),
    "states-string": (lambda: pointwise(identity, states="h"), TypeError, r"Own.states is the string 'h', wanted a tuple"),
    "states-empty": (lambda: pointwise(identity, states=()), ValueError, "Own.states is empty, wanted at least one name"),
    "states-twice": (lambda: pointwise(identity, states=("h", "h")), ValueError, "Own.states has 'h' twice"),
    "states-number": (lambda: pointwise(identity, states=2), TypeError, "Own.states is 2, wanted a tuple of names"),
    "vectors-string": (lambda: pointwise(identity, vectors="leak"), TypeError, "Own.vectors is the string 'leak'"),
    "vectors-taken": (lambda: own(torch.add, vectors=("bias_hh",)), ValueError, "has 'bias_hh', which is a weight"),
    "arguments": (lambda: pointwise(identity, vectors=("a",)), TypeError, r"takes .* wanted \(zx, zh, state, a\): one"),
    "few-arguments": (
        lambda: pointwise(lambda self, z, state: (z,)), TypeError, r"Own.pointwise takes .* wanted \(zx, zh, state\)"
    ),
    "step-overridden": (
        lambda: own(torch.add, step=lambda self, x, state, weights: state), ValueError, "overrides step, .* from bptt.Cell"
    ),
    "shapes-without-hh": (
        lambda: own(torch.add, shapes=lambda self, *sizes: {"weight_ih": (H, D)}),
        ValueError,
        "Own.shapes gives .*weight_hh.*bptt.Cell",
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", DECLARED)
def test_a_wrong_declaration_is_a_sentence(name):
    make, error, sentence = DECLARED[name]
    with pytest.raises(error, match=sentence):
        bptt.Recurrent(make(), D, H)


# Refused when the layer runs --------------------------------------------------------------------------------

gain = nn.Parameter(torch.ones((), dtype=torch.float64))
scale = 2 * gain
mask = torch.ones(H + 1, dtype=torch.float64)
elsewhere = torch.ones(H, dtype=torch.float64, device="meta")
numbers = torch.Generator()
np.random.get_state()  # NumPy loads its generator when it is first named


class Holding(Own):
    """A cell with a module of its own."""

    def __init__(self):
        self.inner = nn.Linear(1, 1, dtype=torch.float64)

    def of(self, z, h):
        return torch.tanh(self.inner.weight[0, 0] * z)


class Counting(Own):
    """A memory of its own."""

    def __init__(self):
        self.calls = 0

    def of(self, z, h):
        self.calls += 1
        return torch.tanh(z) * 0.9**self.calls


def with_own_numpy():
    generator = np.random.default_rng(0)
    return own(lambda z, h: torch.tanh(z + float(generator.standard_normal())))


def written(part):
    def function(self, zx, zh, state):
        (zx, zh, state[0])[part].mul_(0.5)
        return (torch.tanh((zx + zh).squeeze(-2)) + state[0],)

    return pointwise(function)


def past_autograd(self, zx, zh, state):
    zx.data += 1
    return (torch.tanh((zx + zh).squeeze(-2)),)


def by_view(self, zx, zh, state):
    z = (zx + zh).reshape(len(zx), -1)
    return (torch.tanh(z[:, ::2]),)


def mixed_in_second(self, zx, zh, state):
    h = torch.tanh((zx + zh).squeeze(-2))
    return h, state[1] + h.flip(-1)


def mixed_vectors(self, zx, zh, state, leak):
    return (torch.tanh((zx + zh).squeeze(-2)) * torch.softmax(leak, -1),)


def half_right(z, h):
    """Right for all numbers but the large ones."""
    return torch.where(z > 50, z - z.mean(-1, keepdim=True), z)


def where_flat(z, h):
    """The mean of the others has an effect, but no derivative."""
    return torch.tanh(z) + (z.mean(-1, keepdim=True) > 0)


def smeared(z):
    """With the rows before and after, by an operator whose numbers are not followed."""
    return F.conv1d(z.T[:, None], torch.full((1, 1, 3), 0.3, dtype=z.dtype), padding=1)[:, 0].T


def two(self, zx, zh, state):
    h = torch.tanh((zx + zh).squeeze(-2))
    return h, h


def generated(z, h):
    return torch.tanh(z + 0.1 * torch.rand(z.shape, generator=numbers, dtype=z.dtype))


def seeded(z, h):
    """The same bits in each call, but others for another number of rows."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return torch.tanh(z + torch.randn_like(z))


RANDOM = {
    "randn_like": lambda z, h: torch.tanh(z + torch.randn_like(z)),
    "rand": lambda z, h: z + torch.rand(z.shape, dtype=z.dtype),
    "generator": generated,
    "seeded": seeded,
    "dropout": lambda z, h: F.dropout(z, 0.5),
    "tiny": lambda z, h: z + 1e-12 * torch.randn_like(z),
    "bernoulli": lambda z, h: z * torch.bernoulli(torch.full_like(z, 0.9)),
    "normal_": lambda z, h: z + torch.empty_like(z).normal_(),
    "one-number": lambda z, h: z * torch.rand(()).item(),
    "without-effect": lambda z, h: z + 0 * torch.randint(3, z.shape),
    "python": lambda z, h: z * (1 if random.random() < 0.999 else 2),
    "numpy": lambda z, h: z * float(np.random.rand()),
}
UNITS = {
    "mean": lambda z, h: torch.tanh(z - z.mean(-1, keepdim=True)),
    "tiny-mean": lambda z, h: z + 1e-13 * z.mean(-1, keepdim=True),
    "softmax": lambda z, h: torch.softmax(z, -1),
    "norm": lambda z, h: z / z.norm(dim=-1, keepdim=True),
    "layer-norm": lambda z, h: F.layer_norm(z, z.shape[-1:]),
    "matmul": lambda z, h: z @ torch.eye(H, dtype=z.dtype).roll(1, 0),
    "cumsum": lambda z, h: z.cumsum(-1),
    "roll": lambda z, h: z.roll(1, -1),
    "flip": lambda z, h: z.flip(-1),
    "sort": lambda z, h: z.sort(-1).values,
    "index": lambda z, h: z[..., [1, 0, 2, 3, 4]],
    "max": lambda z, h: z - z.detach().amax(-1, keepdim=True),
    "nansum": lambda z, h: z + z.nan_to_num().sum(-1, keepdim=True),
    "state": lambda z, h: z + h.mean(-1, keepdim=True),
    "flat": where_flat,
    "large-alone": half_right,
    "huge-alone": lambda z, h: torch.where(z > 1e9, z - z.mean(-1, keepdim=True), z),
    "one-place-alone": lambda z, h: torch.where(z == 0.123, z.flip(-1), torch.tanh(z)),
    "softmax-alone": lambda z, h: torch.where(z == 0.123, torch.softmax(z, -1), torch.tanh(z)),
    "matmul-alone": lambda z, h: torch.where(z == 0.123, z @ torch.ones(H, H, dtype=z.dtype), torch.tanh(z)),
    "norm-alone": lambda z, h: torch.where(z == 0.123, z / z.norm(), torch.tanh(z)),
}
ROWS = {
    "mean": lambda z, h: z - z.mean(0),
    "batch-norm": lambda z, h: F.batch_norm(z, None, None, training=True) if len(z) > 1 else z,
    "roll": lambda z, h: z.roll(1, 0),
    "state": lambda z, h: z + h.sum(0),
    "first": lambda z, h: z + 0.1 * z[:1],
    "start-alone": lambda z, h: torch.where(h == 0, smeared(z), z),
    "branch": lambda z, h: z if z.norm() < 1e6 else -z,
    "mean-alone": lambda z, h: torch.where(z == 0.123, z.mean(0), torch.tanh(z)),
    "pairs": lambda z, h: z + 0.1 * z[torch.arange(len(z)) // 2 * 2],
}
OTHER = {
    "view": (lambda: pointwise(by_view, gates=2), "mixes hidden units: h of unit"),
    "second": (lambda: pointwise(mixed_in_second, states=("h", "c")), "mixes hidden units: c of unit"),
    "vectors": (lambda: pointwise(mixed_vectors, vectors=("leak",)), "mixes hidden units|vectors as \\[H\\]"),
    "projected": (lambda: own(lambda z, h: z + h[:, :1], projectable=True), "mixes hidden units"),
    "counter": (Counting, "another result when it is called again"),
    "own-numpy": (with_own_numpy, "another result when it is called again"),
    "parameter": (lambda: own(lambda z, h: gain * z), r"uses gain, a Parameter of shape \(\).*no argument.*`vectors`"),
    "made-of-one": (lambda: own(lambda z, h: scale * z), r"uses scale, computed from a Parameter of shape \(\)"),
    "module": (Holding, r"uses self.inner.weight, a Parameter of shape \(1, 1\)"),
    "zx-written": (lambda: written(0), "changes zx in place, which is still used .*zx \\* a"),
    "zh-written": (lambda: written(1), "changes zh in place"),
    "state-written": (lambda: written(2), r"changes state\[0\] in place"),
    "data-written": (lambda: pointwise(past_autograd), "changes zx in place"),
    "shape": (lambda: own(lambda z, h: z.unsqueeze(-2)), r"returned h with shape \(\d+, 1, 5\), wanted \(\d+, 5\)"),
    "squeezed": (lambda: own(lambda z, h: z.squeeze()), r"returned h with shape \(5,\), wanted \(1, 5\)"),
    "dtype": (lambda: own(lambda z, h: z.float()), "returned h as torch.float32 on cpu, the layer has torch.float64"),
    "device": (lambda: own(lambda z, h: z.to("meta")), "returned h as torch.float64 on meta"),
    "count": (lambda: pointwise(identity, states=("h", "c")), r"returned 1 tensors, wanted 2, .* \(h, c\)"),
    "too-many": (lambda: pointwise(two), "returned 2 tensors, wanted 1"),
    "tensor": (lambda: pointwise(lambda s, zx, zh, h: zx[:, 0]), r"a tensor of shape .* wanted a tuple.*return \(h,\)"),
    "nothing": (lambda: pointwise(lambda s, zx, zh, h: None), "returned a NoneType, wanted a tuple"),
    "number": (lambda: pointwise(lambda s, zx, zh, h: (1.0,)), "returned a float for h, wanted a tensor"),
    "mask-shape": (lambda: own(lambda z, h: z * mask), r"uses mask, a tensor of shape \(6,\).*does not fit"),
    "mask-device": (lambda: own(lambda z, h: z * elsewhere), "uses elsewhere, .* on meta, which does not fit .* on cpu"),
}  # fmt: skip
HOSTILE = {f"random-{n}": (lambda f=f: own(f), "draws random numbers .*bptt.Cell") for n, f in RANDOM.items()}
HOSTILE |= {f"units-{n}": (lambda f=f: own(f), "mixes hidden units: h of unit .*bptt.Cell") for n, f in UNITS.items()}
HOSTILE |= {f"rows-{n}": (lambda f=f: own(f), "mixes rows of the batch: h of unit") for n, f in ROWS.items()}
HOSTILE |= OTHER


@pytest.mark.parametrize("name", HOSTILE)
def test_what_cannot_be_right_is_refused_at_the_first_run(name):
    make, sentence = HOSTILE[name]
    cell = make()
    with pytest.raises((ValueError, TypeError, RuntimeError), match=sentence) as raised:
        run(cell, proj_size=2 if name == "projected" else 0)
    assert str(raised.value).startswith(type(cell).__name__)


def test_an_error_of_the_users_own_comes_through_with_its_traceback():
    class Own(Leaky):
        def pointwise(self, zx, zh, state, leak):
            raise ArithmeticError("mine")

    with pytest.raises(ArithmeticError, match="^mine$") as raised:
        run(Own())
    assert raised.traceback[-1].name == "pointwise"
    assert raised.value.__cause__ is None


def refused_by(use, cell=None):
    """`use(layer, x)` is refused before anything is computed."""
    layer = bptt.Recurrent(cell or own(UNITS["mean"]), D, H, dtype=torch.float64)
    with pytest.raises(ValueError, match="mixes hidden units"):
        use(layer, torch.randn(T, 1, D, dtype=torch.float64))
    assert all(p.grad is None for p in layer.parameters())


def backward(strategy):
    return lambda layer, x: bptt.backward(layer, x, x, lambda outputs, _: outputs.square().sum(), strategy=strategy)


@pytest.mark.parametrize(
    "strategy", [bptt.Exact(), bptt.Truncated(2), bptt.Checkpointed(memory="1GB"), bptt.RTRL(), bptt.SnAp1()], ids=repr
)
def test_every_strategy_refuses_it(strategy):
    refused_by(backward(strategy))


def test_every_view_refuses_it():
    def watched(layer, x):
        with bptt.watch(layer):
            layer(x)[0].sum().backward()

    refused_by(watched)
    refused_by(lambda layer, x: bptt.gradient_map(layer, x, loss=lambda outputs: outputs.sum()))
    refused_by(lambda layer, x: bptt.products(layer, x, lags=[1]))
    refused_by(lambda layer, x: bptt.lyapunov(layer, x))
    refused_by(lambda layer, x: layer(x, reset=torch.ones(T, 1, dtype=torch.bool)))
    refused_by(lambda layer, x: layer(nn.utils.rnn.pack_sequence([x[:, 0]])))


def test_a_derived_built_in_cell_with_other_partials_is_refused():
    class Other(GRU):
        @staticmethod
        def _gates(zx, zh):
            r, z, n = GRU._gates(zx, zh)
            return r, z, torch.sin(n)

    with pytest.raises(ValueError, match=r"Other.partials gives another ∂h/∂zx than the derivative of `pointwise`"):
        run(Other())


# What the trial leaves as it was, and when it is made -------------------------------------------------------


class Noted(Own):
    """It counts its calls, without using the number."""

    calls = 0

    def of(self, z, h):
        type(self).calls += 1
        return torch.tanh(z)


def trials(layer, x=None):
    """How many calls of `pointwise` one run of the layer takes beyond its T steps."""
    before = type(layer.cell).calls
    with torch.no_grad():
        layer(torch.randn(T, B, D, dtype=torch.float64) if x is None else x)
    return type(layer.cell).calls - before - T


def test_the_trial_is_made_once_and_again_where_something_was_replaced():
    layer = bptt.Recurrent(Noted(), D, H, dtype=torch.float64)
    assert trials(layer) > 10
    assert trials(layer) == 0
    layer.cell.slope = 2.0
    assert trials(layer) > 0 == trials(layer)
    layer.eval()
    assert trials(layer) > 0 == trials(layer)
    layer.cell = Noted()
    assert trials(layer) > 0 == trials(layer)
    layer.float()
    assert trials(layer, torch.randn(T, B, D)) > 0
    for other in (copy.deepcopy(layer), pickle.loads(pickle.dumps(layer))):  # noqa: S301  # our own bytes
        torch.testing.assert_close(other(torch.ones(T, B, D))[0], layer(torch.ones(T, B, D))[0])


@dataclasses.dataclass
class Switched(bptt.PointwiseCell):
    """Noise that is switched on later, or a gain that is trained later."""

    gates = 1
    noise: float = 0.0
    gain: torch.Tensor = dataclasses.field(default_factory=lambda: torch.ones((), dtype=torch.float64))

    def pointwise(self, zx, zh, state):
        z = self.gain * (zx + zh).squeeze(-2)
        return (torch.tanh(z + self.noise * torch.randn_like(z) if self.noise else z),)


def test_what_is_switched_on_later_is_seen_all_the_same():
    x = torch.randn(T, B, D, dtype=torch.float64)
    layer = run(Switched())
    layer.cell.noise = 0.1
    with pytest.raises(ValueError, match="draws random numbers"):
        layer(x)
    layer = run(Switched())
    layer.cell.gain.requires_grad_()
    with pytest.raises(ValueError, match=r"uses self.gain, a tensor of shape \(\)"):
        layer(x)
    layer.cell.gain.requires_grad_(False)
    layer(x)


@pytest.mark.parametrize("name", ["random-dropout", "random-python", "random-numpy", "units-mean", "parameter"])
def test_generators_and_modes_are_left_as_they_were(name):
    random.seed(1), np.random.seed(1), torch.manual_seed(1)
    make, sentence = HOSTILE[name]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        run(Leaky())
        want = torch.get_rng_state(), random.getstate(), np.random.get_state()[1].tolist()
        torch.manual_seed(1)
        layer = bptt.Recurrent(make(), D, H, dtype=torch.float64)
        x = torch.randn(T, B, D, dtype=torch.float64)
        before = torch.get_rng_state(), random.getstate(), np.random.get_state()[1].tolist()
        with torch.no_grad(), pytest.raises(ValueError, match=sentence):
            layer(x)
        assert not torch.is_autocast_enabled("cpu")
    assert torch.equal(torch.get_rng_state(), before[0])
    assert (random.getstate(), np.random.get_state()[1].tolist()) == before[1:] == want[1:]


MODES = {
    "no_grad": torch.no_grad,
    "inference": torch.inference_mode,
    "autocast": lambda: torch.autocast("cpu", dtype=torch.bfloat16),
    "default-device": lambda: torch.device("meta"),
}


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("name", ["random-dropout", "units-mean", "parameter"])
def test_the_first_run_is_tried_in_any_mode(mode, name):
    entered = MODES[mode]
    make, sentence = HOSTILE[name]
    layer, x = bptt.Recurrent(make(), D, H, dtype=torch.float64), torch.randn(T, B, D, dtype=torch.float64)
    with entered(), pytest.raises(ValueError, match=sentence):
        layer(x)
    right = bptt.Recurrent(Peephole(), D, H, dtype=torch.float64)
    with entered():
        right(x)
    right(x)[0].sum().backward()


def test_while_operators_are_recorded_it_is_tried_beside_the_record():
    layer, x = bptt.Recurrent(Leaky(), D, H, dtype=torch.float64), torch.randn(T, B, D, dtype=torch.float64)
    graph = make_fx(lambda given: layer(given)[0])(x)
    torch.testing.assert_close(graph(2 * x), layer(2 * x)[0])
    assert len(graph.graph.nodes) < 40 * T
    with pytest.raises(ValueError, match="mixes hidden units"):
        make_fx(lambda given: bptt.Recurrent(own(UNITS["mean"]), D, H, dtype=torch.float64)(given)[0])(x)


def test_without_memory_it_is_tried_as_soon_as_there_is_some():
    layer, x = bptt.Recurrent(own(UNITS["mean"]), D, H), torch.randn(T, B, D)
    with FakeTensorMode(allow_non_fake_inputs=True) as mode, pytest.raises(ValueError, match="mixes hidden units"):
        layer(mode.from_tensor(x))
    with FakeTensorMode():
        nothing = bptt.Recurrent(own(UNITS["mean"]), D, H)
        assert nothing(torch.randn(T, B, D))[0].shape == (T, B, H)
    exported = torch.export.export(bptt.Recurrent(Minimal(), D, H), (x,)).module()
    assert exported(x)[0].shape == (T, B, H)


@pytest.mark.parametrize("cell", [Minimal(), Normed()], ids=["pointwise", "general"])
def test_an_own_cell_can_be_traced(cell):
    layer, x = bptt.Recurrent(cell, D, H), torch.randn(T, B, D)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch.jit.trace is on its way out
        traced = torch.jit.trace(layer, (x,))
    got = torch.autograd.grad(traced(2 * x)[0].square().sum(), list(layer.parameters()))
    want = torch.autograd.grad(layer(2 * x)[0].square().sum(), list(layer.parameters()))
    torch.testing.assert_close(got, want)


def test_where_autograd_goes_through_the_plain_loop_all_is_right_and_nothing_is_tried():
    """torch.func and torch.compile: a cell that mixes has its right gradient there, and is refused when it runs eagerly."""
    layer = bptt.Recurrent(own(UNITS["mean"]), D, H, dtype=torch.float64)
    weights, x = dict(layer.named_parameters()), torch.randn(T, B, D, dtype=torch.float64)
    start = (torch.zeros(B, H, dtype=torch.float64),)

    def loss(weights):
        return torch.func.functional_call(layer, weights, x)[0].square().sum()

    got = torch.func.grad(loss)(weights)
    plain(layer.cell, layer.layer_weights(0, 0), x, start)[0].square().sum().backward()
    assert_same(got, {name: p.grad for name, p in layer.named_parameters()})
    compiled = torch.compile(layer, fullgraph=True, backend="aot_eager")
    layer.zero_grad()
    compiled(x)[0].square().sum().backward()
    assert_same({name: p.grad for name, p in layer.named_parameters()}, got)
    with pytest.raises(ValueError, match="mixes hidden units"):
        layer(x)


# General cells ----------------------------------------------------------------------------------------------


class Step(bptt.Cell):
    """h = tanh(W x + u ∘ h), whose recurrent weight has another name and shape."""

    def __init__(self, end=None):
        self.end = end or (lambda h, state: (h,))

    def shapes(self, input_size, hidden_size, bias, proj_size=0):
        return {"kernel": (hidden_size, input_size), "u": (hidden_size,)}

    def step(self, x, state, weights):
        return self.end(torch.tanh(F.linear(x, weights["kernel"]) + weights["u"] * state[0]), state)


def test_a_cell_without_weight_hh_is_drawn_from_the_hidden_size():
    torch.manual_seed(0)
    layer = bptt.Recurrent(Step(), 50, 400)
    for parameter in layer.parameters():
        assert 0.045 < parameter.abs().max() <= 0.05  # 1/√400
    with pytest.raises(KeyError, match=r"Step has no weight_hh \(only kernel, u\)"):
        layer.cell.reset_parameters(layer.layer_weights(0, 0))
    projected = bptt.Recurrent(Peephole(), 50, 400, proj_size=4)
    assert max(p.abs().max() for p in projected.parameters()) <= 0.05  # as torch.nn.LSTM's


STEPS = {
    "tensor": (lambda h, state: h, TypeError, r"Step.step returned a tensor of shape \(3, 5\), wanted a tuple"),
    "count": (lambda h, state: (h, h), ValueError, "Step.step returned 2 tensors, wanted 1"),
    "none": (lambda h, state: None, TypeError, "Step.step returned a NoneType"),
    "shape": (lambda h, state: (h[:, :2],), ValueError, r"returned h with shape \(3, 2\), wanted \(3, 5\)"),
    "dtype": (lambda h, state: (h.float(),), ValueError, "returned h as torch.float32"),
    "number": (lambda h, state: ([0.0],), TypeError, "returned a list for h, wanted a tensor"),
    "in-place": (
        lambda h, state: (h + state[0].detach().add_(1),),
        ValueError,
        r"Step.step changes state\[0\] in place",
    ),
}


@pytest.mark.parametrize("name", STEPS)
def test_a_general_cell_gives_back_a_state(name):
    end, error, sentence = STEPS[name]
    with pytest.raises(error, match=sentence):
        run(Step(end))
    with pytest.raises(error, match=sentence), torch.no_grad():
        bptt.Recurrent(Step(end), D, H, dtype=torch.float64)(torch.randn(T, 3, D, dtype=torch.float64))


SHAPES = {
    "none": (None, TypeError, "Own.shapes returned None, wanted a dict"),
    "empty": ({}, TypeError, "Own.shapes returned {}, wanted a dict"),
    "dots": ({"w.x": (3,)}, ValueError, "names a parameter 'w.x', wanted a name without dots"),
    "number": ({"w": 3}, TypeError, r"gives w the shape 3, wanted a tuple of whole numbers: \(5,\)"),
}


@pytest.mark.parametrize("name", SHAPES)
def test_a_general_cell_names_its_shapes(name):
    shapes, error, sentence = SHAPES[name]
    cell = type("Own", (Step,), {"shapes": lambda self, *sizes: shapes})()
    with pytest.raises(error, match=sentence):
        bptt.Recurrent(cell, D, H)


def test_a_general_cell_takes_x_state_and_weights():
    cell = type("Own", (Step,), {"step": lambda self, x, state: state})()
    with pytest.raises(TypeError, match=r"Own.step takes \(x, state\), wanted \(x, state, weights\)"):
        bptt.Recurrent(cell, D, H)


outside = nn.Parameter(torch.tensor(0.8, dtype=torch.float64))


ran = []


def noisy(h, state):
    ran.append(1)
    return (outside * h + 0.3 * torch.randn_like(h),)


def test_a_general_cell_may_draw_random_numbers_and_close_over_parameters():
    """Also where `Checkpointed` runs the steps again."""
    torch.manual_seed(0)
    layer = bptt.Recurrent(Step(noisy), D, H, dtype=torch.float64)
    x = torch.randn(100, B, D, dtype=torch.float64)
    leaves = {**dict(layer.named_parameters()), "outside": outside}
    torch.manual_seed(3)
    got = torch.autograd.grad(layer(x)[0].square().sum(), list(leaves.values()))
    torch.manual_seed(3)
    outputs, _ = plain(layer.cell, layer.layer_weights(0, 0), x, (torch.zeros(B, H, dtype=torch.float64),))
    want = dict(zip(leaves, torch.autograd.grad(outputs.square().sum(), list(leaves.values())), strict=True))
    assert_same(dict(zip(leaves, got, strict=True)), want)

    def backward(strategy):
        bptt.backward(layer, x, x, lambda outputs, _: outputs.square().sum(), strategy=strategy)

    for strategy in (bptt.Exact(), bptt.Checkpointed(memory="100KB")):
        ran.clear()
        torch.manual_seed(3)
        backward(strategy)
        assert_same({n: p.grad for n, p in layer.named_parameters()}, {n: want[n] for n, _ in layer.named_parameters()})
        assert (len(ran) > 200) == isinstance(strategy, bptt.Checkpointed)
        layer.zero_grad()
    outside.grad = None
    with pytest.raises(ValueError, match="a tensor that wants a gradient and is no parameter of the model"):
        backward(bptt.RTRL())  # which carries the influence of the model's parameters alone


def test_what_runs_a_general_cell_twice_refuses_one_that_draws_random_numbers():
    layer = bptt.Recurrent(Step(noisy), D, H, dtype=torch.float64)
    x = torch.randn(T, 1, D, dtype=torch.float64)
    before = torch.get_rng_state()
    for use in (
        lambda: bptt.gradient_map(layer, x, loss=lambda outputs: outputs.sum()),
        lambda: bptt.products(layer, x, lags=[1]),
        lambda: bptt.lyapunov(layer, x),
    ):
        with pytest.raises(ValueError, match=r"Step.step draws random numbers \(randn_like\), so what is shown"):
            use()
    assert torch.equal(torch.get_rng_state(), before)


def test_a_norm_across_the_units_stays_right_as_a_general_cell():
    layer = bptt.Recurrent(Normed(), D, H, dtype=torch.float64)
    x = torch.randn(T, B, D, dtype=torch.float64)
    got = torch.autograd.grad(layer(x)[0].square().sum(), list(layer.parameters()))
    outputs, _ = plain(layer.cell, layer.layer_weights(0, 0), x, (torch.zeros(B, H, dtype=torch.float64),))
    want = torch.autograd.grad(outputs.square().sum(), list(layer.parameters()))
    assert_same(dict(enumerate(got)), dict(enumerate(want)))
