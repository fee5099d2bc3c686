"""Tensors that are not what they seem: what reaches the native core is plain memory, or something else computes."""

import os
import subprocess
import sys

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import bptt
from bptt.kernels.gate import Freed, Unreadable, readable
from tests.cases import assert_same

NAMES = ("RNN", "GRU", "LSTM")


def _pair(name, dtype=torch.float64, **options):
    """torch's layer and ours, with the same weights."""
    theirs, ours = (getattr(library, name)(3, 4, dtype=dtype, **options) for library in (torch.nn, bptt))
    ours.load_state_dict(theirs.state_dict())
    return theirs, ours


def _hidden(layer, dtype, make=lambda t: t):
    h = make(torch.randn(layer.num_layers, 2, 4, dtype=dtype))
    return (h, make(torch.randn(layer.num_layers, 2, 4, dtype=dtype))) if layer.mode == "LSTM" else h


PLAIN_TO_ODD = {
    "negative": lambda t: torch._neg_view(-t),
    "imaginary part of a conjugate": lambda t: torch.complex(torch.zeros_like(t), -t).conj().imag,
    "zero tensor": lambda t: torch._efficientzerotensor(t.shape, dtype=t.dtype),
    "strided": lambda t: torch.stack([t, t], dim=-1)[..., 0],
    "transposed": lambda t: t.transpose(0, -1).contiguous().transpose(0, -1),
    "expanded": lambda t: t[:1].expand_as(t),
    "with an offset": lambda t: torch.cat([t.flatten(), t.flatten()])[t.numel() :].view_as(t),
    "left over from torch.func": lambda t: _leaked(t),
    "a Parameter": torch.nn.Parameter,
}


def _leaked(tensor):
    kept = []
    torch.func.grad(lambda t: (kept.append(t), t.sum())[1])(tensor)
    return kept[0]


def _run(layer, x, state, grad, changed):
    """Outputs and gradients with `changed` weights in the place of some of the layer's."""
    weights = {n: changed.get(n, p) for n, p in layer.named_parameters()}
    outputs, final = torch.func.functional_call(layer, weights, (x, state))
    leaves = [p for n, p in layer.named_parameters() if n not in changed]
    gradients = torch.autograd.grad(outputs, leaves, grad) if leaves else ()
    return {str(i): t.detach() for i, t in enumerate((outputs, *torch.utils._pytree.tree_leaves(final), *gradients))}


@pytest.mark.parametrize("backend", ["auto", "cpu", "reference"])
@pytest.mark.parametrize("name", NAMES)
@given(
    kinds=st.dictionaries(
        st.sampled_from(["x", "state", "grad", "weight_ih_l0", "weight_hh_l1", "bias_ih_l0", "bias_hh_l1"]),
        st.sampled_from(list(PLAIN_TO_ODD)), min_size=1,
    )
)  # fmt: skip
def test_odd_tensors_anywhere_give_torchs_numbers(name, backend, kinds):
    theirs, ours = _pair(name, num_layers=2)
    ours.backend = backend
    make = {place: PLAIN_TO_ODD[kind] for place, kind in kinds.items()}
    as_it_is = lambda t: t  # noqa: E731
    x = make.get("x", as_it_is)(torch.randn(5, 2, 3, dtype=torch.float64))
    grad = make.get("grad", as_it_is)(torch.randn(5, 2, 4, dtype=torch.float64))
    state = _hidden(theirs, torch.float64, make.get("state", as_it_is))
    changed = {n: make[n](p.detach()) for n, p in theirs.named_parameters() if n in make}
    got = _run(ours, x, state, grad, changed)
    assert_same(got, _run(theirs, *torch.utils._pytree.tree_map(torch.clone, (x, state, grad, changed))))


IN_A_PROCESS = """
import torch, bptt, sys
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.testing._internal.two_tensor import TwoTensor
torch.manual_seed(0)

class Own(torch.Tensor): pass
def two(t): return TwoTensor(t.detach(), t.detach())
def fake(t): return FakeTensorMode().from_tensor(t.detach())
def own(t): return t.detach().as_subclass(Own)
def freed(t):
    t = t.detach().clone(); t.untyped_storage().resize_(0); return t
def partly_freed(t):  # one in the middle of a memory that others share
    t = torch.cat([t.detach(), t.detach()])[len(t):]; t.untyped_storage().resize_(0); return t
def sparse(t): return t.detach().to_sparse()
def mkldnn(t): return t.detach().to_mkldnn()
def meta(t): return t.detach().to("meta")
def double(t): return t.detach().double()
def bfloat16(t): return t.detach().bfloat16()
def whole(t): return t.detach().long()
def complex(t): return t.detach().cfloat()
KINDS = [two, fake, own, freed, partly_freed, sparse, mkldnn, meta, double, bfloat16, whole, complex]

def attempt(library, name, place, kind):
    torch.manual_seed(1)
    layer = getattr(library, name)(3, 4)
    x, h, g = torch.randn(5, 2, 3), torch.randn(1, 2, 4), torch.randn(5, 2, 4)
    x, h, g = (kind(t) if place == p else t for t, p in ((x, "x"), (h, "state"), (g, "grad")))
    weights = {n: kind(p) if place == n else p for n, p in layer.named_parameters()}
    try:
        y, _ = torch.func.functional_call(layer, weights, (x, (h, h) if name == "LSTM" else h))
        leaf = layer.weight_ih_l0 if place != "weight_ih_l0" else layer.bias_hh_l0
        found = torch.autograd.grad(y, leaf, g)[0]
        return [t.a if isinstance(t, TwoTensor) else t for t in (y.detach(), found)]
    except Exception as error:
        return error

for name in sys.argv[1:]:
    for place in ("x", "state", "grad", "weight_ih_l0", "weight_hh_l0", "bias_hh_l0"):
        for kind in KINDS:
            print(name, place, kind.__name__, end=": ", flush=True)
            got = attempt(bptt, name, place, kind)
            # torch.nn itself may die of freed memory
            want = got if "freed" in kind.__name__ else attempt(torch.nn, name, place, kind)
            if "freed" in kind.__name__:
                print("both raise" if isinstance(got, Exception) else "WRONG")
            elif isinstance(want, list) and not isinstance(got, list):
                print("torch.nn takes it, bptt raised", type(got).__name__, got)
            elif isinstance(want, list) and "fake" in kind.__name__:
                print("as torch.nn" if [t.shape for t in want] == [t.shape for t in got] else "WRONG")
            elif isinstance(want, list):
                print("as torch.nn" if all(torch.allclose(a, b, atol=1e-5) for a, b in zip(want, got)) else "WRONG")
            else:
                print("both raise" if isinstance(got, Exception) else f"torch.nn raised {want}, bptt gave {got[0].dtype}")
"""


def test_what_has_no_memory_ends_no_process():
    """Classes of one's own, fakes, freed memory, other layouts, devices and number formats: as torch.nn, value or error."""
    command = [sys.executable, "-W", "ignore", "-c", IN_A_PROCESS, *NAMES]
    result = subprocess.run(
        command, capture_output=True, text=True, env=os.environ | {"OMP_NUM_THREADS": "1"}, check=False
    )
    assert result.returncode == 0, result.stdout[-500:] + result.stderr[-500:]
    lines = result.stdout.splitlines()
    assert len(lines) == 3 * 6 * 12
    assert not [line for line in lines if not line.endswith(("as torch.nn", "both raise"))]


HOOKS = {  # what unpacking makes of a tensor that was saved
    "on another place": lambda t: t.clone(),
    "other strides": lambda t: t.transpose(0, -1).contiguous().transpose(0, -1) if t.is_floating_point() else t,
    "a lazy minus": lambda t: torch._neg_view(-t) if t.is_floating_point() else t,
    "a subclass": lambda t: t.as_subclass(_Own),
    "another format": lambda t: t.double() if t.dtype == torch.float32 else t,
}


class _Own(torch.Tensor):
    """A class of the user's own."""


@pytest.mark.parametrize("hook", HOOKS)
@pytest.mark.parametrize("backend", ["cpu", "reference"])
@pytest.mark.parametrize("name", NAMES)
def test_hooks_on_saved_tensors_may_give_back_other_tensors(name, backend, hook):
    _, ours = _pair(name, torch.float32, num_layers=2, bidirectional=True)
    ours.backend = backend
    x, found = torch.randn(5, 2, 3, requires_grad=True), []
    for unpack in (lambda t: t, HOOKS[hook]):
        with torch.autograd.graph.saved_tensors_hooks(lambda t: t.detach(), unpack):
            y, _ = ours(x)
            gradients = torch.autograd.grad(y.square().sum(), [x, *ours.parameters()])
        found.append(dict(enumerate(gradients)))
    assert all(type(g) is torch.Tensor and g.dtype == torch.float32 for g in found[0].values())
    assert_same({n: g.as_subclass(torch.Tensor) for n, g in found[1].items()}, found[0], 1e-6)


@pytest.mark.parametrize("name", NAMES)
def test_a_hook_that_gives_back_another_shape_is_told_so(name):
    _, ours = _pair(name)
    with torch.autograd.graph.saved_tensors_hooks(lambda t: t, lambda t: t[:1]):
        y = ours(torch.randn(5, 2, 3, dtype=torch.float64))[0].sum()
        with pytest.raises(
            RuntimeError, match=r"a hook on saved tensors gave back shape \(1, 2, 3\) for one of \(5, 2, 3\)"
        ):
            y.backward()


@pytest.mark.parametrize("backend", ["auto", "cpu", "reference"])
@pytest.mark.parametrize("name", NAMES)
def test_another_default_device_changes_nothing(name, backend):
    made = getattr(bptt, name)(3, 4, num_layers=2, bidirectional=True, backend=backend)
    x, reset = torch.randn(5, 2, 3), torch.rand(5, 2) < 0.3
    packed = torch.nn.utils.rnn.pack_padded_sequence(x, [5, 3])
    one = torch.nn.utils.rnn.pack_padded_sequence(reset.unsqueeze(-1), [5, 3])
    one = torch.nn.utils.rnn.PackedSequence(one.data[:, 0], *one[1:])

    def run():
        found = []
        for form, cut in ((x, None), (x, reset), (packed, None), (packed, one)):
            y, final = made(form, reset=cut)
            y = y.data if isinstance(y, torch.nn.utils.rnn.PackedSequence) else y
            parts = [y, *torch.utils._pytree.tree_leaves(final)]
            found += [*parts, *torch.autograd.grad(sum(p.square().sum() for p in parts), list(made.parameters()))]
        with torch.autocast("cpu", torch.bfloat16):
            found.append(made(x)[0])
        return {str(i): t.detach() for i, t in enumerate(found)}

    want = run()
    with torch.device("meta"):
        got = run()
    assert_same(got, want, 1e-6)


@pytest.mark.parametrize("name", NAMES)
def test_a_state_of_another_format_is_refused_under_another_device_s_autocast(name):
    _, ours = _pair(name, torch.float32)
    with (
        torch.autocast("xpu"),
        pytest.raises(RuntimeError, match=r"hidden state h is torch.float64 on cpu.*pass state.to"),
    ):
        ours(torch.randn(5, 2, 3), _hidden(ours, torch.float64))


def test_the_gate_says_what_came():
    plain = torch.randn(3, 4)
    assert readable([plain, None], torch.float32) == [plain, None]
    assert readable([plain.T], torch.float32)[0].is_contiguous()
    for odd, words in (
        (
            plain.double(),
            "a Tensor of torch.float64 and shape .3, 4. on cpu, torch.strided, came where the native core wants",
        ),
        (plain.to("meta"), "on meta"),
        (plain.to_sparse(), "torch.sparse_coo"),
        (plain.as_subclass(_Own), "a _Own of"),
    ):
        with pytest.raises(Unreadable, match=words):
            readable([plain, odd], torch.float32)
    gone = torch.randn(3, 4)
    gone, _ = gone[1:], gone.untyped_storage().resize_(0)
    with pytest.raises(Freed, match="has no memory: its storage was freed.*gather it before the layer runs"):
        readable([plain, gone], torch.float32)


@pytest.mark.parametrize("name", NAMES)
def test_another_default_device_changes_nothing_that_calls_the_core(name):
    """Watching, the map, the products and every strategy."""
    made, x = getattr(bptt, name)(3, 4), torch.randn(6, 3, 3)
    packed, y = torch.nn.utils.rnn.pack_padded_sequence(x, [6, 4, 2]), torch.randn(6, 3, 4)
    strategies = (bptt.Exact(), bptt.Truncated(2, 4), bptt.Checkpointed("64MB"), bptt.SnAp1(), bptt.RTRL())

    def run():
        found = []
        for form in (x, packed):
            with bptt.watch(made) as flow:
                outputs = made(form)[0]
                (outputs if form is x else outputs.data).square().sum().backward()
            (layer,) = flow
            found += [torch.as_tensor(layer.delta, device="cpu"), layer.contribution("weight_hh")]
        terms = bptt.gradient_map(made, x, loss=lambda outputs: outputs[-1].square().sum())
        found += [terms.lags("weight_hh_l0"), bptt.products(made, x[:, :1]).log10]
        for strategy in strategies:
            made.zero_grad()
            bptt.backward(made, x, y, lambda outputs, y: ((outputs - y) ** 2).sum(), strategy)
            found += [p.grad.clone() for p in made.parameters()]
        made.zero_grad()
        return {str(i): torch.as_tensor(t, device="cpu").nan_to_num() for i, t in enumerate(found)}

    want = run()
    with torch.device("meta"):
        got = run()
    assert_same(got, want, 1e-6)
