"""The fused CPU kernel against the reference, in every instruction set that this machine has."""

import dataclasses
import functools
import os
import subprocess
import sys
import threading
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import bptt
from bptt.kernels import Sequences, cpu
from bptt.kernels.autocast import onednn_has_lstm
from bptt.kernels.cpu import Cpu, library
from bptt.kernels.reference import Reference
from bptt.kernels.tape import lean_tape
from bptt.kernels.walk import Walk
from tests.cases import BY_HAND, POINTWISE, seeds

SIZES = st.tuples(
    st.integers(1, 12), st.integers(1, 19), st.integers(1, 9), st.sampled_from([1, 2, 7, 8, 16, 17, 31, 64, 97])
)

needs_bfloat16 = pytest.mark.skipif(
    library() is None or not library().has_bfloat16, reason="no products in bfloat16 here"
)


def _gradients(kernel, cell, walk, x, state, weights, seed):
    outputs, final = kernel.layer(cell, walk, x, state, weights)
    torch.manual_seed(seed)
    tensors = {"y": outputs} | {f"final {i}": s for i, s in enumerate(final)}
    loss = sum((t * torch.randn(t.shape, dtype=torch.float64).to(t.dtype)).sum() for t in tensors.values())
    leaves = {"x": x} | {f"initial {i}": s for i, s in enumerate(state)} | dict(weights)
    found = torch.autograd.grad(loss, list(leaves.values()))
    return {n: t.detach() for n, t in tensors.items()} | {f"d_{n}": g for n, g in zip(leaves, found, strict=True)}


def _drawn(name, form, seed, size, reverse, with_reset, share, bias=True):
    """A layer, a walk, rows x and an initial state, in float64."""
    torch.manual_seed(seed)
    steps, batch, inputs, hidden = size
    projected = int(share * (hidden - 1)) if name == "lstm" else 0
    made = bptt.Recurrent(BY_HAND[name], inputs, hidden, bias=bias, proj_size=projected, dtype=torch.float64)
    sizes = torch.full((steps,), batch)
    if form == "packed":
        sizes = torch.randint(1, batch + 1, (steps,)).sort(descending=True).values
    x = torch.randn(int(sizes.sum()), inputs, dtype=torch.float64)
    walk = Walk.over(Sequences(x, sizes, torch.rand(len(x)) < 0.2 if with_reset else None), reverse)
    widths = [projected or hidden, hidden][: len(made.cell.states)]
    state = tuple(torch.randn(int(sizes[0]), width, dtype=torch.float64) for width in widths)
    return made, walk, x, state


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=["f32", "f64"])
@pytest.mark.parametrize("form", ["padded", "packed"])
@pytest.mark.parametrize("name", BY_HAND)
@given(
    seed=seeds, size=SIZES, reverse=st.booleans(), bias=st.booleans(), with_reset=st.booleans(), share=st.floats(0, 1)
)
def test_it_is_the_reference(name, form, dtype, seed, size, reverse, bias, with_reset, share):
    made, walk, x, state = _drawn(name, form, seed, size, reverse, with_reset, share, bias)

    def run(kernel, dtype):
        made.to(dtype)
        leaves = [t.detach().to(dtype).requires_grad_() for t in (x, *state)]
        found = _gradients(kernel, made.cell, walk, leaves[0], tuple(leaves[1:]), made.layer_weights(0, 0), seed)
        return {name: t.double() for name, t in found.items()}

    want = run(Reference(), torch.float64)
    got = run(Cpu(), dtype)
    rounding = run(Reference(), dtype)
    for tensor in want:
        scale = max(1.0, want[tensor].norm().item())
        error, unavoidable = ((r[tensor] - want[tensor]).norm().item() / scale for r in (got, rounding))
        assert error <= max(1e-10 if dtype == torch.float64 else 1e-5, 2 * unavoidable), f"{tensor}: {error:.3g}"


@needs_bfloat16
@pytest.mark.parametrize("form", ["padded", "packed"])
@pytest.mark.parametrize("name", BY_HAND)
@given(
    seed=seeds, size=SIZES, reverse=st.booleans(), bias=st.booleans(), with_reset=st.booleans(), share=st.floats(0, 1)
)
def test_products_in_bfloat16_are_right_to_its_rounding(name, form, seed, size, reverse, bias, with_reset, share):
    """Against the same operands, rounded beforehand where that can be: x, the weights and the first state."""
    made, walk, x, state = _drawn(name, form, seed, size, reverse, with_reset, share, bias)
    with torch.no_grad():
        for tensor in (x, *state, *made.parameters()):
            tensor.copy_(tensor.bfloat16())

    def run(kernel, dtype):
        made.to(dtype)
        leaves = [t.detach().to(dtype).requires_grad_() for t in (x, *state)]
        return _gradients(kernel, made.cell, walk, leaves[0], tuple(leaves[1:]), made.layer_weights(0, 0), seed)

    want, got = run(Reference(), torch.float64), run(Cpu(bfloat16=True), torch.float32)
    rounding = run(Reference(), torch.bfloat16)
    for tensor, value in want.items():
        if name == "elman-relu" and tensor.startswith("d_"):
            continue  # at the kink rounding decides the slope
        scale = max(1.0, value.norm().item())
        error, unavoidable = ((r[tensor] - value).norm().item() / scale for r in (got, rounding))
        assert error <= max(2e-2, unavoidable), f"{tensor}: {error:.3g}"


@needs_bfloat16
@pytest.mark.parametrize("name", BY_HAND)
def test_products_in_bfloat16_add_up_in_float32(name):
    """One step whose operands are exact in bfloat16: only the sums could lose anything."""
    made, walk, x, state = _drawn(name, "padded", 0, (1, 3, 300, 40), False, False, 0.5)
    with torch.no_grad():
        for tensor in (x, *state, *made.parameters()):
            tensor.copy_(tensor.bfloat16())
    want, _ = Reference().layer(made.cell, walk, x, state, made.layer_weights(0, 0))
    made.float()
    got, _ = Cpu(bfloat16=True).layer(
        made.cell, walk, x.float(), tuple(s.float() for s in state), made.layer_weights(0, 0)
    )
    bound = 5e-3 if made.proj_size else 1e-6  # the projection takes a rounded h
    assert (got - want).norm() <= bound * want.norm()


@needs_bfloat16
@pytest.mark.parametrize("name", ["RNN", "GRU", "LSTM"])
def test_special_inputs_and_the_same_bits_in_bfloat16(name):
    made, x = getattr(bptt, name)(3, 20), torch.randn(4, 6, 3)
    x[0, 0, 1], x[1, 1, 2], x[0, 3], x[1, 4] = 1e4, -1e4, float("inf"), float("nan")
    with torch.autocast("cpu", dtype=torch.bfloat16):
        (y, _), (again, _) = made(x), made(x)
    assert torch.equal(y.nan_to_num(7.0), again.nan_to_num(7.0))
    assert y[1:, 4].isnan().all()
    assert y[:, [0, 1, 2, 5]].isfinite().all()


@pytest.mark.parametrize("form", ["padded", "packed"])
@pytest.mark.parametrize("name", BY_HAND)
@given(seed=seeds, size=SIZES, reverse=st.booleans(), with_reset=st.booleans(), share=st.floats(0, 1))
def test_the_way_back_from_known_states(name, form, seed, size, reverse, with_reset, share):
    """A replay finds what forward kept; from it, and from a tape without gates, come the same gradients."""
    made, walk, x, state = _drawn(name, form, seed, size, reverse, with_reset, share)
    cell, weights, kernel = made.cell, {n: w.detach() for n, w in made.layer_weights(0, 0).items()}, Cpu()
    h, _, tape = kernel.forward(cell, walk, x, state, weights, keep=True)
    replayed = cpu.replay(cell, walk, x, state, weights, h)
    for kept, found in zip(tape, replayed, strict=True):
        if found is not None:  # c, and gates [N, G, H rounded up]
            H = state[-1].shape[-1]
            torch.testing.assert_close(found[..., :H], kept[..., :H], rtol=1e-10, atol=1e-12)
    d_outputs, d_final = torch.randn_like(h), tuple(torch.randn_like(s) for s in state)
    want = kernel.backward(cell, walk, x, state, weights, tape, d_outputs, d_final, True)
    with lean_tape():
        states_alone = kernel.forward(cell, walk, x, state, weights, keep=True)[2]
    assert [kept is None for kept in states_alone] == [False, len(state) == 1, True, True]
    lean = kernel.backward(cell, walk, x, state, weights, states_alone, d_outputs, d_final, True)
    seen = cpu.sensitivity(cell, walk, x, state, weights, replayed, d_outputs, d_final, True)
    close = functools.partial(torch.testing.assert_close, rtol=1e-10, atol=1e-10)
    close(lean, want)
    close(seen.d_x, want.x)
    close(seen.d_start, want.state)
    first = walk.spans[-1 if reverse else 0]  # δ of the first step, one step on, is the initial state's
    one = Walk.over(Sequences(x[first], torch.tensor([len(x[first])])), reverse)
    if walk.cut is not None:
        one = dataclasses.replace(one, cut=walk.cut[first])
    begin = tuple(s[: len(x[first])] for s in state)
    after = tuple(d[first] for d in seen.delta)
    part = kernel.forward(cell, one, x[first], begin, weights, keep=True)[2]
    step = kernel.backward(cell, one, x[first], begin, weights, part, torch.zeros_like(h[first]), after, False)
    close(step.state, tuple(d[: len(x[first])] for d in want.state))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("name", BY_HAND)
def test_saturated_and_special_inputs(name, dtype):
    """±1e4, denormals and infinities give the reference's values; a NaN stays in its row."""
    made = bptt.Recurrent(BY_HAND[name], 3, 20, dtype=dtype)
    x = torch.randn(4, 6, 3, dtype=dtype)
    x[0, 0] = x[1, 1] = 0  # one large number a row: the sum of several may cancel, and then rounding is all there is
    x[0, 0, 1], x[1, 1, 2], x[2, 2], x[0, 3] = 1e4, -1e4, 1e-42, float("inf")
    made.backend = "reference"
    want, _ = made(x)
    made.backend = "cpu"
    got, _ = made(x)
    largest = want[want.isfinite()].abs().max().item()  # a ReLU passes 1e4 on: rounding is relative to it
    torch.testing.assert_close(got, want, equal_nan=True, atol=1e-6 * max(1.0, largest), rtol=1e-5)
    x[1, 4] = float("nan")
    got, _ = made(x)
    assert got[1:, 4].isnan().all()
    assert got[:, 5].isfinite().all()


@pytest.mark.parametrize("name", ["RNN", "GRU", "LSTM"])
def test_the_same_bits_at_every_run_and_thread_count(name):
    made = getattr(bptt, name)(7, 33, num_layers=2, bidirectional=True, backend="cpu")
    x, results = torch.randn(9, 12, 7), []
    for threads in (2, 2, 1):
        torch.set_num_threads(threads)
        y, _ = made(x)
        results.append([y, *torch.autograd.grad(y.square().sum(), list(made.parameters()))])
    assert all(torch.equal(a, b) for a, b in zip(results[0], results[1], strict=True))
    assert torch.equal(results[0][0], results[2][0])


def test_strides_offsets_and_frozen_weights():
    made = bptt.GRU(4, 6, backend="cpu")
    made.weight_hh_l0.requires_grad_(False)
    base = torch.randn(3, 9, 5, 4)
    for x in (
        base[1],
        base[:, 1:8:2, 2].contiguous().expand(3, 4, 4),
        base.transpose(0, 1)[:, :, 0],
        base[0, :, :, :].flip(0),
    ):
        made.backend = "cpu"
        y, h = made(x)
        got = torch.autograd.grad(h.sum(), [made.weight_ih_l0, made.bias_hh_l0])  # the outputs themselves unused
        made.backend = "reference"
        y2, h2 = made(x)
        want = torch.autograd.grad(h2.sum(), [made.weight_ih_l0, made.bias_hh_l0])
        torch.testing.assert_close(y, y2)
        torch.testing.assert_close(got, want)


def test_a_graph_may_be_walked_twice():
    made = bptt.LSTM(4, 6, backend="cpu")
    y, _ = made(torch.randn(5, 3, 4))
    first = torch.autograd.grad(y.sum(), list(made.parameters()), retain_graph=True)
    second = torch.autograd.grad(y.sum(), list(made.parameters()))
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))


def test_derivatives_that_bypass_autograd_never_come_out_as_zero():
    made = bptt.RNN(3, 4, dtype=torch.float64)
    x, v = torch.randn(5, 2, 3, dtype=torch.float64), torch.randn(5, 2, 3, dtype=torch.float64)
    _, tangent = torch.func.jvp(lambda x: made(x)[0], (x,), (v,))
    numeric = (made(x + 1e-6 * v)[0] - made(x - 1e-6 * v)[0]) / 2e-6
    torch.testing.assert_close(tangent, numeric.detach(), atol=1e-7, rtol=1e-6)
    made.backend = "cpu"
    with pytest.raises(RuntimeError, match="go through torch's own operators"):
        torch.func.jvp(lambda x: made(x)[0], (x,), (v,))


def test_what_it_refuses():
    for made, x, reason in (
        (bptt.Recurrent(POINTWISE["leaky"], 2, 4, backend="cpu"), torch.randn(3, 1, 2), "the native core has no"),
        (bptt.GRU(2, 4, backend="cpu", dtype=torch.bfloat16), torch.randn(3, 1, 2, dtype=torch.bfloat16), "bfloat16"),
    ):
        with pytest.raises(RuntimeError, match=reason):
            made(x)


class _Gradients(torch.utils.data.Dataset):
    """Item i is a training step's gradients, computed where the item is asked for."""

    def __len__(self):
        return 6

    def __getitem__(self, i):
        torch.manual_seed(i)
        made = bptt.LSTM(40, 100, backend="cpu")
        y, _ = made(torch.randn(30, 5, 40))
        return torch.cat([g.flatten() for g in torch.autograd.grad(y.square().sum(), list(made.parameters()))])


def test_several_python_threads_at_once():
    torch.set_num_threads(2)
    items = _Gradients()
    want = [items[i] for i in range(len(items))]
    barrier, found = threading.Barrier(4), {}

    def work(first):
        barrier.wait()
        for i in [*range(first, len(items)), *range(first)]:
            # Seeds are one for all threads: each makes its layer under a lock, and computes outside it.
            with lock:
                torch.manual_seed(i)
                made = bptt.LSTM(40, 100, backend="cpu")
                x = torch.randn(30, 5, 40)
            y, _ = made(x)
            gradients = torch.autograd.grad(y.square().sum(), list(made.parameters()))
            found[first, i] = torch.cat([g.flatten() for g in gradients])

    lock = threading.Lock()
    threads = [threading.Thread(target=work, args=(first,)) for first in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(found) == 4 * len(items)
    assert all(torch.equal(gradient, want[i]) for (_, i), gradient in found.items())


def test_after_fork_in_the_workers_of_a_data_loader():
    torch.set_num_threads(2)
    items = _Gradients()
    want = [items[i] for i in range(len(items))]  # the parent's threads are running when it forks
    loader = torch.utils.data.DataLoader(items, batch_size=None, num_workers=2, multiprocessing_context="fork")
    for gradient, wanted in zip(loader, want, strict=True):
        torch.testing.assert_close(gradient, wanted)


@pytest.mark.parametrize("name", ["RNN", "GRU", "LSTM"])
def test_more_threads_than_cores_and_large_layers(name, monkeypatch):
    """Sizes at which a team shares the units and at which it does not, on as many threads as a larger machine has."""
    native = library()._replace(cores=8)
    monkeypatch.setattr(cpu, "library", lambda: native)
    for batch, hidden in ((1, 300), (3, 129), (40, 64), (7, 200)):
        made = getattr(bptt, name)(24, hidden, **({"proj_size": 90} if (name, hidden) == ("LSTM", 200) else {}))
        x, results = torch.randn(6, batch, 24), []
        for threads, backend in ((1, "reference"), (1, "cpu"), (2, "cpu"), (3, "cpu"), (8, "cpu")):
            torch.set_num_threads(threads)
            made.backend = backend
            y, _ = made(x)
            results.append([y.detach(), *torch.autograd.grad(y.square().sum(), list(made.parameters()))])
        for result in results[1:]:
            for got, want in zip(result, results[0], strict=True):
                assert (got - want).norm() <= 1e-5 * want.norm()
    torch.set_num_threads(2)


LENGTHS = {
    "spread": [120 - 3 * i for i in range(40)],
    "nearly even": [120] * 3 + [110] * 37,
    "one long": [120, *[40] * 39],
    "most of one step": [90, *[1] * 12],
}


@pytest.mark.parametrize("lengths", LENGTHS.values(), ids=LENGTHS)
@pytest.mark.parametrize("name", ["RNN", "GRU", "LSTM"])
def test_packed_sequences_divided_between_threads(name, lengths, monkeypatch):
    """Several blocks of steps on the way back, each divided anew; or, where one sequence is long, units that are shared."""
    native = library()._replace(cores=8)
    monkeypatch.setattr(cpu, "library", lambda: native)
    made = getattr(bptt, name)(16, 128, bidirectional=True)
    x = torch.randn(max(lengths), len(lengths), 16)
    results = []
    for threads, backend in ((1, "reference"), (1, "cpu"), (2, "cpu"), (2, "cpu"), (3, "cpu"), (8, "cpu")):
        torch.set_num_threads(threads)
        made.backend = backend
        inputs = x.clone().requires_grad_()
        packed, final = made(torch.nn.utils.rnn.pack_padded_sequence(inputs, lengths))
        loss = packed.data.square().sum() + sum(h.sum() for h in (final if name == "LSTM" else [final]))
        results.append([packed.data.detach(), *torch.autograd.grad(loss, [inputs, *made.parameters()])])
    torch.set_num_threads(2)
    for result in results[1:]:
        for got, want in zip(result, results[0], strict=True):
            assert (got - want).norm() <= 1e-5 * want.norm()
    assert all(torch.equal(a, b) for a, b in zip(results[2], results[3], strict=True))


def test_a_step_without_gradient_keeps_nothing_and_gives_the_same():
    for name in ("RNN", "GRU", "LSTM"):
        made = getattr(bptt, name)(5, 37, backend="cpu")
        x = torch.randn(300, 2, 5)
        with torch.no_grad():
            y, _ = made(x)
        assert torch.equal(y, made(x)[0])
        assert not y.requires_grad


@pytest.mark.parametrize("name", ["RNN", "GRU", "LSTM"])
def test_the_working_memory_that_the_core_states(name):
    """At least the packed weights and one block's dz; no more for longer sequences; more where gates are computed again."""
    made = getattr(bptt, name)(16, 64)
    sizes = cpu.LayerSizes.of(made.cell, made.layer_weights(0, 0), batch=4)
    gates = made.weight_hh_l0.shape[0]
    weights = 4 * made.weight_hh_l0.numel() + 4 * made.weight_ih_l0.numel()
    found = [cpu.workspace_bytes(sizes, steps) for steps in (1, 8, 64, 2048, 4096)]
    assert found == sorted(found)
    assert found[0] >= weights + 4 * 4 * gates
    assert weights + (1 << 20) <= found[-2] == found[-1] <= 16 * (1 << 20)
    again = cpu.workspace_bytes(sizes, 2048, lean=True)
    assert again == found[-1] if name == "RNN" else again > found[-1]
    own = bptt.Recurrent(POINTWISE["leaky"], 2, 4)
    assert cpu.workspace_bytes(cpu.LayerSizes.of(own.cell, own.layer_weights(0, 0), 1), 10) == 0


def test_export():
    for name in ("RNN", "GRU", "LSTM"):
        made, x = getattr(bptt, name)(3, 4).eval(), torch.randn(5, 2, 3)
        program = torch.export.export(made, (x,))
        torch.testing.assert_close(program.module()(x)[0], made(x)[0])


_IN_A_PROCESS = """
import pytest, sys
from bptt.kernels.cpu import library
assert library().instructions == sys.argv[1], library().instructions
chosen = "reference or special or extreme or closed or functions or ones"
sys.exit(pytest.main(["-q", "-p", "no:cacheprovider", *sys.argv[2:], "-k", chosen]))
"""


@pytest.mark.slow
@pytest.mark.parametrize("isa", ["baseline", "avx2"])
def test_the_smaller_instruction_sets(isa):
    native = library()
    assert native is not None
    if isa == "avx2" and native.instructions == "baseline":
        return  # this machine has no larger one, and the tests above have run it
    environment = os.environ | {"BPTT_ISA": isa, "HYPOTHESIS_PROFILE": "quick"}
    files = [
        str(Path(__file__).with_name(name)) for name in ("test_cpu_kernel.py", "test_extremes.py", "test_accuracy.py")
    ]
    command = [sys.executable, "-c", _IN_A_PROCESS, isa, *files]
    result = subprocess.run(command, capture_output=True, text=True, env=environment, check=False)
    assert result.returncode == 0, result.stdout[-3000:]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("backend", ["auto", "reference"])
@pytest.mark.parametrize("name", ["RNN", "GRU", "LSTM"])
def test_under_autocast_formats_are_torchs_and_numbers_those_of_float64(name, backend, dtype):
    theirs, ours = (getattr(library, name)(24, 40, bidirectional=True) for library in (torch.nn, bptt))
    ours.load_state_dict(theirs.state_dict())
    ours.backend = backend
    x = torch.randn(50, 7, 24, dtype=dtype)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        y, final = ours(x)
        if name == "LSTM" and not onednn_has_lstm(torch.bfloat16):
            wanted, wanted_final = torch.utils._pytree.tree_map(torch.Tensor.bfloat16, (y, final))
        else:
            wanted, wanted_final = theirs(x)
    assert y.dtype == wanted.dtype
    assert torch.utils._pytree.tree_map(lambda s: s.dtype, final) == torch.utils._pytree.tree_map(
        lambda s: s.dtype, wanted_final
    )
    got = [y.double(), *torch.autograd.grad(y.double().square().sum(), list(ours.parameters()))]
    theirs.double()
    y, _ = theirs(x.double())
    want = [y, *torch.autograd.grad(y.square().sum(), list(theirs.parameters()))]
    for a, b in zip(got, want, strict=True):
        assert (a - b).norm() <= 2e-2 * b.norm()


@pytest.mark.parametrize(
    ("sizes", "rows"), [((3, 3, 3), 4), ((1, 2, 3), 6), ((3, 1, 0), 4), ((3, 2, -1), 4), ((2, 2), 5)]
)
def test_batch_sizes_that_are_none_are_refused(sizes, rows):
    packed = torch.nn.utils.rnn.PackedSequence(torch.randn(rows, 2), torch.tensor(sizes))
    with pytest.raises(RuntimeError, match="the batch sizes are not those of a packed sequence"):
        bptt.GRU(2, 40, backend="cpu")(packed)


@pytest.mark.parametrize("backend", ["cpu", "auto"])
def test_states_and_weights_of_another_format_or_size_never_reach_the_core(backend):
    x = torch.randn(6, 3, 4)
    for dtype in (torch.float64, torch.float16):
        with pytest.raises(RuntimeError, match=rf"hidden state h is {dtype} on cpu, the input torch.float32 on cpu"):
            bptt.GRU(4, 40, backend=backend)(x, torch.zeros(1, 3, 40, dtype=dtype))
        made = bptt.GRU(4, 40, num_layers=2, backend=backend)
        made.weight_hh_l1.data = made.weight_hh_l1.data.to(dtype)
        with pytest.raises(RuntimeError):
            made(x)
    for name, shape in (("weight_hh_l0", (8, 40)), ("weight_ih_l1", (120, 7)), ("bias_ih_l1", (3,))):
        made = bptt.GRU(4, 40, num_layers=2, backend=backend)
        getattr(made, name).data = torch.randn(shape)
        with pytest.raises(RuntimeError, match=rf"{name} has shape .*, wanted"):
            made(x)
