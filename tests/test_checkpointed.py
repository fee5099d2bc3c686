"""`bptt.Checkpointed`: the gradient of the full tape, within the budget, and nothing changed when something is wrong."""

import errno
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

import bptt
from bptt.gradient import parse_strategy
from bptt.gradient.base import Chunk
from bptt.gradient.checkpointing import checkpointed
from bptt.gradient.checkpointing.measure import Measured
from bptt.gradient.checkpointing.native_work import NativeWork
from bptt.gradient.checkpointing.peak import Peak, levels_of
from bptt.gradient.checkpointing.plan import Planner, as_text, parse_bytes
from bptt.gradient.checkpointing.schedule import extra_links
from bptt.gradient.checkpointing.snapshots import OnDisk, open_snapshots
from tests.cases import CELLS, assert_same, lstm_under_autocast, named_gradients, network, random_reset, seeds, targets

DOUBLE = torch.float64


def squared(outputs, wanted):
    return ((outputs - wanted) ** 2).sum()


def least(model, x, y, loss=squared, state=None, **options):
    """The smallest budget, as the refusal of a smaller one tells it."""
    with pytest.raises(ValueError, match="need at least [0-9,]+ bytes") as refusal:
        bptt.Checkpointed(1).plan(model, x, y, loss, state, **options)
    return int(str(refusal.value).split("need at least ")[1].split(" bytes")[0].replace(",", ""))


def budgets(model, x, y, loss=squared, **options):
    """From the least on."""
    smallest = least(model, x, y, loss, **options)
    return (smallest, int(1.1 * smallest), 2 * smallest, 10 * smallest, 10**9)


def problem(layer, steps, batch=2, inputs=3, hidden=8, **options):
    """A stable network on random numbers."""
    torch.manual_seed(0)
    model = layer(inputs, hidden, dtype=DOUBLE, **options)
    return model, torch.randn(steps, batch, inputs, dtype=DOUBLE), torch.randn(steps, batch, hidden, dtype=DOUBLE)


# The gradient ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("layer", [bptt.RNN, bptt.GRU, bptt.LSTM])
def test_ten_thousand_steps(layer):
    model, x, y = problem(layer, 10_000)
    want = bptt.backward(model, x, y, squared)
    gradients = named_gradients(model)
    smallest = least(model, x, y)
    for memory in (smallest + 2_000, 2 * smallest, 10**9):
        result = bptt.backward(model, x, y, squared, bptt.Checkpointed(memory))
        assert_same(named_gradients(model), gradients)
        torch.testing.assert_close(result.loss, want.loss, rtol=1e-12, atol=0)
        torch.testing.assert_close(result.state, want.state, rtol=1e-12, atol=1e-12)
        assert result.extra_steps == result.plan.extra_steps
        assert result.plan.resident <= memory


@pytest.mark.parametrize("name", ["elman-tanh", "gru", "lstm", "peephole", "normed"])
@settings(max_examples=8)
@given(
    seed=seeds,
    steps=st.integers(1, 40),
    which=st.integers(0, 4),
    layers=st.integers(1, 3),
    with_reset=st.booleans(),
    with_state=st.booleans(),
)
def test_any_budget_gives_the_gradient_of_the_full_tape(name, seed, steps, which, layers, with_reset, with_state):
    torch.manual_seed(seed)
    model = network(CELLS[name], "softmax", 2, 3, 3, num_layers=layers)
    x, y = torch.randn(steps, 2, 2, dtype=DOUBLE), targets("softmax", steps, 2, 3)
    options = {"reset": random_reset(steps, 2) if with_reset else None}
    start = model(x[:1])[1] if with_state else None
    if with_state:
        start = tuple(s.detach() for s in start) if isinstance(start, tuple) else start.detach()

    def loss(z, target):
        return model.head.losses(z, target).sum()

    want = bptt.backward(model, x, y, loss, state=start, **options)
    gradients = named_gradients(model)
    memory = budgets(model, x, y, loss, state=start, **options)[which]
    got = bptt.backward(model, x, y, loss, bptt.Checkpointed(memory), start, **options)
    assert_same(named_gradients(model) | {"loss": got.loss}, gradients | {"loss": want.loss})
    assert got.extra_steps == got.plan.extra_steps


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_torch_layers_and_trees_of_state(dtype):
    class Pair(nn.Module):
        def __init__(self):
            super().__init__()
            self.lstm, self.gru = nn.LSTM(3, 4), nn.GRU(4, 5)

        def forward(self, x, state=None):
            state = state or {"lstm": None, "gru": None, "seen": torch.zeros((), dtype=torch.int64)}
            h, lstm = self.lstm(x["a"], state["lstm"])
            h, gru = self.gru(h, state["gru"])
            return (h, x["b"]), {"lstm": lstm, "gru": gru, "seen": state["seen"] + len(h)}

    torch.manual_seed(0)
    model = Pair().to(dtype)
    x = {"a": torch.randn(300, 2, 3, dtype=dtype), "b": torch.randn(300, 2, 1, dtype=dtype)}
    y = torch.randn(300, 2, 5, dtype=dtype)

    def loss(outputs, target):
        return ((outputs[0] - target) ** 2 * outputs[1]).sum()

    bptt.backward(model, x, y, loss)
    gradients = named_gradients(model)
    for memory in budgets(model, x, y, loss):
        result = bptt.backward(model, x, y, loss, bptt.Checkpointed(memory))
        assert_same(named_gradients(model), gradients, 1e-10 if dtype == DOUBLE else 1e-5)
        assert result.state["seen"] == 300


def test_float32_over_a_hundred_thousand_steps():
    """Against a float64 full tape, on a network that forgets."""
    torch.manual_seed(0)
    model = bptt.GRU(2, 16)
    x, y = torch.randn(100_000, 1, 2), torch.randn(100_000, 1, 16)
    result = bptt.backward(model, x, y, squared, bptt.Checkpointed("1MB"))
    assert result.plan.chunks > 10
    got = {name: gradient.double() for name, gradient in named_gradients(model).items()}
    model.double()
    bptt.backward(model, x.double(), y.double(), squared)
    want = named_gradients(model)
    assert max(((got[n] - want[n]).norm() / want[n].norm()).item() for n in want) < 1e-3


def test_gradients_are_added_and_a_given_state_gets_its_own():
    model, x, y = problem(bptt.LSTM, 200)
    start = tuple(torch.randn(1, 2, 8, dtype=DOUBLE, requires_grad=True) for _ in range(2))
    bptt.backward(model, x, y, squared, state=start)
    want, of_start = named_gradients(model), [s.grad.clone() for s in start]
    for s in start:
        s.grad = None
    strategy = bptt.Checkpointed(int(1.1 * least(model, x, y, state=start)))
    for times in (1, 2):
        bptt.backward(model, x, y, squared, strategy, start)
        assert_same({n: p.grad for n, p in model.named_parameters()}, {n: times * g for n, g in want.items()})
        assert_same({i: s.grad for i, s in enumerate(start)}, {i: times * g for i, g in enumerate(of_start)})


def test_a_result_goes_on_in_the_next_call():
    model, x, y = problem(bptt.GRU, 60)
    first = bptt.backward(model, x[:30], y[:30], squared)
    bptt.backward(model, x[30:], y[30:], squared, state=first)
    want = named_gradients(model)
    strategy = bptt.Checkpointed("50kB")
    first = bptt.backward(model, x[:30], y[:30], squared, strategy)
    bptt.backward(model, x[30:], y[30:], squared, strategy, first)
    assert_same(named_gradients(model), want)


def test_parameters_of_the_loss_and_unused_ones():
    model, x, y = problem(bptt.GRU, 50)
    model.unused = nn.Parameter(torch.ones(3, dtype=DOUBLE))
    head = nn.Linear(8, 8, dtype=DOUBLE)

    def loss(outputs, wanted):
        return squared(head(outputs), wanted)

    bptt.backward(model, x, y, loss)
    want = named_gradients(model) | named_gradients(head)
    bptt.backward(model, x, y, loss, bptt.Checkpointed(least(model, x, y, loss)))
    assert model.unused.grad is None
    assert_same(named_gradients(model) | named_gradients(head), want)


# Dropout, buffers, autocast ----------------------------------------------------------------------------------------------


def by_chunks(model, x, y, loss, length):
    """One graph over all steps, run chunk by chunk: the masks are drawn as `Checkpointed` draws them."""
    state, total = None, 0.0
    for a in range(0, len(x), length):
        outputs, state = model(x[a : a + length], state)
        total = total + loss(outputs, y[a : a + length])
    total.backward()
    return total


@pytest.mark.parametrize("layer", [bptt.LSTM, nn.LSTM])
@pytest.mark.parametrize("storage", ["memory", "disk"])
def test_dropout_masks_are_repeated(layer, storage):
    model, x, y = problem(layer, 120, num_layers=3, dropout=0.5)
    strategy = bptt.Checkpointed(least(model, x, y) + 20_000, storage)
    torch.manual_seed(7)
    result = bptt.backward(model, x, y, squared, strategy)
    after = torch.get_rng_state()
    assert result.plan.chunks > 3
    got = named_gradients(model)
    torch.manual_seed(7)
    total = by_chunks(model, x, y, squared, result.plan.chunk)
    assert torch.equal(torch.get_rng_state(), after)
    assert_same(got | {"loss": result.loss}, named_gradients(model) | {"loss": total.detach()})


def test_buffers_end_as_after_one_pass():
    class Counted(nn.Module):
        def __init__(self):
            super().__init__()
            self.rnn = bptt.RNN(3, 8, dtype=DOUBLE)
            self.register_buffer("seen", torch.zeros(()))

        def forward(self, x, state=None):
            self.seen += len(x)
            return self.rnn(x, state)

    _, x, y = problem(bptt.RNN, 100)
    model = Counted()
    smallest = least(model, x, y)
    assert model.seen == 0
    result = bptt.backward(model, x, y, squared, bptt.Checkpointed(smallest))
    assert result.plan.repetitions > 1
    assert model.seen == 100


@pytest.mark.parametrize("layer", [nn.RNN, nn.GRU, lstm_under_autocast(), bptt.LSTM])
def test_autocast_is_entered_again(layer):
    """Chunks with and without a tape take turns, and share what autocast converted."""
    torch.manual_seed(0)
    model = layer(3, 8)
    x, y = torch.randn(60, 2, 3), torch.randn(60, 2, 8)

    def loss(outputs, wanted):
        assert torch.is_autocast_enabled("cpu")
        return squared(outputs.float(), wanted)

    with torch.autocast("cpu", dtype=torch.bfloat16):
        strategy = bptt.Checkpointed(least(model, x, y, loss) + 1_000)
        result = bptt.backward(model, x, y, loss, strategy)
        assert result.plan.chunks > 2
        got = named_gradients(model)
        by_chunks(model, x, y, loss, result.plan.chunk)
    assert_same(got, named_gradients(model), 2e-2)


# Inputs from elsewhere --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "strategy", [bptt.Exact(), bptt.Truncated(7), bptt.Truncated(7, 13), bptt.Checkpointed("1.2MB")]
)
def test_arrays_and_streams(strategy, tmp_path):
    model, x, y = problem(bptt.GRU, 230)
    want = bptt.backward(model, x, y, squared, strategy)
    gradients = named_gradients(model)
    np.save(tmp_path / "x.npy", x.numpy())
    mapped = np.load(tmp_path / "x.npy", mmap_mode="r")

    class Pieces:
        def __iter__(self):
            for a in range(0, 230, 17):
                yield x[a : a + 17]

    def pieces():
        for a in range(0, 230, 50):
            yield y[a : a + 50].numpy()

    for given_x, given_y in ((mapped, y), (mapped, pieces), (Pieces(), y.numpy()), (Pieces(), pieces)):
        result = bptt.backward(model, given_x, given_y, squared, strategy)
        assert_same(named_gradients(model) | {"loss": result.loss}, gradients | {"loss": want.loss})


def test_a_list_is_a_stream_and_the_least_budget_is_enough_for_it():
    model, x, y = problem(bptt.RNN, 400)
    bptt.backward(model, x, y, squared)
    gradients = named_gradients(model)
    pieces, wanted = list(x.split(50)), lambda: iter(y.split(70))
    result = bptt.backward(model, pieces, wanted, squared, bptt.Checkpointed(least(model, pieces, wanted)))
    assert_same(named_gradients(model), gradients)
    assert result.plan.chunks > 10


def test_a_stream_is_never_all_in_memory():
    """The pieces alive at a time are those that the plan says, and walks are few."""
    model, x, y = problem(bptt.GRU, 3000)
    alive, highest, walks = set(), 0, 0

    class Tracked(np.ndarray):
        def __del__(self):
            alive.discard(id(self))

    def pieces():
        nonlocal highest, walks
        walks += 1
        for a in range(0, 3000, 10):
            piece = x[a : a + 10].numpy().copy().view(Tracked)
            alive.add(id(piece))
            highest = max(highest, len(alive))
            yield piece

    result = bptt.backward(model, pieces, y, squared, bptt.Checkpointed("120kB"))
    assert result.plan.chunks > 10
    assert highest <= (result.plan.held + result.plan.chunk) // 10 + 3 < 150
    assert walks <= 6 + 3000 // result.plan.held + result.plan.repetitions


# Plans -------------------------------------------------------------------------------------------------------------------


def measured(state=1000, tape=5000, fixed=100_000, at=50_000):
    return Measured(state, fixed, NativeWork(), Peak(((at, tape),)), True, False, False, ())


@settings(max_examples=300)
@given(
    steps=st.integers(1, 10**6),
    times=st.floats(1, 10**4),
    state=st.integers(1, 10**5),
    tape=st.integers(1, 10**5),
)
def test_a_plan_keeps_its_budget_and_its_formula(steps, times, state, tape):
    planner = Planner(measured(state, tape), steps)
    budget = int(planner.least() * times)
    plan = planner.plan(budget)
    assert plan.peak <= plan.resident <= budget
    assert plan.least == planner.least()
    assert plan.extra_steps == plan.chunk * extra_links(plan.chunks, plan.snapshots)
    assert (plan.chunks - 1) * plan.chunk < steps <= plan.chunks * plan.chunk
    with pytest.raises(ValueError, match="cannot be met: this model and batch need at least"):
        planner.plan(int(planner.least() * 0.95))


def test_a_larger_budget_is_never_slower():
    planner = Planner(measured(), 10**6)
    factors = [planner.plan(planner.least() * 2**i).time_factor for i in range(18)]
    assert all(b <= 1.011 * a for a, b in pairwise(factors))
    assert factors[-1] == 1.0
    assert planner.plan(24_000_000).extra_steps <= 10**6


def test_states_alone_are_taped_where_that_saves_time():
    """In wide batches, where the tape of a chunk is far larger than the block whose gates are computed again."""
    model, x, y = problem(bptt.GRU, 400, batch=32, hidden=128)
    bptt.backward(model, x, y, squared)
    gradients = named_gradients(model)
    smallest = least(model, x, y)
    chunk = Chunk(model, x, y, squared)
    for tenths in range(30, 120, 3):
        plan, replay, uses_random = checkpointed._prepared(chunk, bptt.Checkpointed(smallest * tenths // 10))
        assert ("gates are computed again" in str(plan)) == plan.lean
        if plan.lean:
            break
    assert plan.lean
    model.zero_grad()
    run = checkpointed._Run(replay, plan, uses_random)
    highest = max(levels_of(lambda: run.all(open_snapshots("memory", plan.snapshots)), None))
    native = NativeWork.of(model, torch.zeros(32, 128), lean=True).bytes(plan.chunk)
    assert abs((plan.peak - native) / highest - 1) < 0.1
    assert run.result().extra_steps == plan.extra_steps
    assert_same(named_gradients(model), gradients)
    assert not bptt.Checkpointed(10**10).plan(model, x, y, squared).lean  # it takes longer


def test_only_layers_that_tape_gates_are_tried_with_a_lean_tape():
    for layer in (nn.GRU, bptt.RNN):
        model, x, y = problem(layer, 2000)
        assert not bptt.Checkpointed(2 * least(model, x, y)).plan(model, x, y, squared).lean


@pytest.mark.alone
def test_a_plan_for_ten_million_steps_is_quick():
    planner, seconds = Planner(measured(), 10**7), []
    for _ in range(3):
        start = time.process_time()
        planner.plan(24_000_000)
        seconds.append(time.process_time() - start)
    assert min(seconds) < 0.05


@pytest.mark.parametrize("layer", [bptt.RNN, bptt.GRU, bptt.LSTM])
@pytest.mark.parametrize("steps", [1, 2, 7, 300])
@pytest.mark.parametrize("times", [1.0, 3.0, 1000.0])
def test_the_predicted_peak_of_short_sequences_and_stacks(layer, steps, times):
    """Where the gradients of the weights are more than the tape, and where there is one chunk."""
    torch.manual_seed(0)
    model, x, y = layer(3, 5, 2), torch.randn(steps, 2, 3), torch.randn(steps, 2, 5)
    memory = bptt.Checkpointed(int(times * least(model, x, y)))
    plan, replay, uses_random = checkpointed._prepared(Chunk(model, x, y, squared), memory)
    native = NativeWork.of(model, torch.zeros(2, 2, 5), lean=plan.lean).bytes(plan.chunk)
    run = checkpointed._Run(replay, plan, uses_random)
    highest = max(levels_of(lambda: run.all(open_snapshots("memory", plan.snapshots)), None))
    assert abs((plan.peak - native) / highest - 1) < 0.1


def test_a_stack_works_on_a_layer_at_a_time():
    one, three = (NativeWork.of(bptt.GRU(5, 5, layers), torch.zeros(layers, 2, 5)) for layers in (1, 3))
    assert one == three


@pytest.mark.parametrize("layer", [bptt.RNN, bptt.GRU, bptt.LSTM, nn.GRU])
@pytest.mark.parametrize("times", [1.0, 1.3, 3.0, 100.0])
def test_the_predicted_peak_is_the_measured_one(layer, times):
    """Bytes handed out by torch's allocator over the whole run. (The native core's own are not among them.)"""
    torch.manual_seed(0)
    model, steps = layer(16, 64), 3000
    x, y = torch.randn(steps, 1, 16), torch.randn(steps, 1, 64)
    memory = int(times * least(model, x, y))
    if bptt.Checkpointed(memory).plan(model, x, y, squared).repetitions > 5:
        x, y = x[:300], y[:300]  # else it takes long
    plan, replay, uses_random = checkpointed._prepared(Chunk(model, x, y, squared), bptt.Checkpointed(memory))
    native = NativeWork.of(model, torch.zeros(1, 1, 64)).bytes(plan.chunk)
    run = checkpointed._Run(replay, plan, uses_random)
    highest = max(levels_of(lambda: run.all(open_snapshots("memory", plan.snapshots)), None))
    assert abs((plan.peak - native) / highest - 1) < 0.1


_RESIDENT = """
import sys, torch, bptt, ctypes, gc
def status(key): return next(int(l.split()[1]) * 1024 for l in open("/proc/self/status") if l.startswith(key))
torch.manual_seed(0); torch.set_num_threads(1)
model, loss = getattr(bptt, sys.argv[1])(16, 256), lambda z, y: ((z - y) ** 2).sum()
x, y = torch.randn(30_000, 1, 16), torch.zeros(30_000, 1, 1)
plan = bptt.Checkpointed("1GB").plan(model, x[:256], y[:256], loss)
bptt.backward(model, x[:256], y[:256], loss, bptt.Checkpointed(int(1.05 * plan.least))); model.zero_grad()
gc.collect(); ctypes.CDLL(None).malloc_trim(0)
open("/proc/self/clear_refs", "w").write("5")
before = status("VmRSS")
bptt.backward(model, x, y, loss, bptt.Checkpointed(24_000_000))
print(status("VmHWM") - before)
"""


@pytest.mark.alone
@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="the kernel's figure for the process")
@pytest.mark.parametrize("layer", ["RNN", "GRU", "LSTM"])
def test_the_process_stays_within_the_budget(layer):
    """Resident bytes at the highest, in a fresh process that has run every code path once before."""
    environment = {k: v for k, v in os.environ.items() if not k.startswith("MALLOC")} | {"OMP_NUM_THREADS": "1"}
    run = subprocess.run(
        [sys.executable, "-c", _RESIDENT, layer], capture_output=True, text=True, check=True, env=environment
    )
    assert int(run.stdout) <= 24_000_000


def test_a_plan_can_be_read_and_changes_nothing():
    model, x, _ = problem(bptt.LSTM, 500, num_layers=2, dropout=0.3)
    generators = torch.get_rng_state()
    text = str(bptt.Checkpointed("150kB").plan(model, x))
    for words in ("500 steps in", "snapshots", "extra forward steps", "the time of a full tape", "least budget"):
        assert words in text
    assert torch.equal(torch.get_rng_state(), generators)
    assert all(p.grad is None for p in model.parameters())


# Sizes and names -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("size", "wanted"),
    [
        ("256MB", 256e6), ("256 mb", 256e6), ("1GiB", 2**30), ("24e6", 24e6), (24_000_000, 24e6), (1.5e6, 1.5e6),
        (" 0.5 GB ", 5e8), ("64k", 64e3), ("12", 12),
    ],
)  # fmt: skip
def test_sizes(size, wanted):
    assert parse_bytes(size) == wanted


@pytest.mark.parametrize("size", ["lots", "", "MB", "-3MB", "1 2 MB", "3 parsecs", "nan", None, True, 0, -5, "1e300"])
def test_unreadable_sizes(size):
    with pytest.raises(ValueError, match="memory .* (is no size: give bytes|bytes, wanted at least 1)"):
        bptt.Checkpointed(size)


def test_sizes_are_rounded_for_reading():
    assert [as_text(n) for n in (12, 1200, 3_450_000, 2e10)] == ["12 bytes", "1.2 kB", "3.45 MB", "20 GB"]


def test_strategy_by_name():
    assert parse_strategy("checkpointed:256MB") == bptt.Checkpointed("256MB")
    assert parse_strategy("checkpointed:1 GiB,disk") == bptt.Checkpointed("1 GiB", "disk")
    wrong = {"checkpointed:lots": "is no size", "checkpointed:1MB,tape": "storage 'tape'", "checkpointed": "unknown"}
    for text, message in wrong.items():
        with pytest.raises(ValueError, match=message):
            parse_strategy(text)


# What cannot be ------------------------------------------------------------------------------------------------------


class Noisy(nn.Module):
    """Adds numbers from outside torch's generators to its state, once `calm` calls are over."""

    def __init__(self, calm):
        super().__init__()
        self.rnn, self.calls, self.calm = bptt.RNN(3, 8, dtype=DOUBLE), 0, calm

    def forward(self, x, state=None):
        self.calls += 1
        outputs, state = self.rnn(x, state)
        return outputs, state + (random.random() if self.calls > self.calm else 0.0)


class Words(nn.Module):
    """A state that is no tensor."""

    def __init__(self):
        super().__init__()
        self.rnn = bptt.RNN(3, 8, dtype=DOUBLE)

    def forward(self, x, state=None):
        outputs, h = self.rnn(x, None if state is None else state[0])
        return outputs, (h, "a word")


class Ahead(nn.Module):
    """Each output sees the next input."""

    def __init__(self):
        super().__init__()
        self.rnn = bptt.RNN(3, 8, dtype=DOUBLE)

    def forward(self, x, state=None):
        return self.rnn(x.roll(-1, 0), state)


class Forgets(Ahead):
    """Does not go on from the state it is given."""

    def forward(self, x, state=None):
        return self.rnn(x)


def _mean(outputs, wanted):
    return ((outputs - wanted) ** 2).mean()


@pytest.mark.parametrize(
    ("model", "loss", "error", "message"),
    [
        (Noisy(0), squared, RuntimeError, "randomness outside torch's generators"),
        (Noisy(15), squared, RuntimeError, "randomness outside torch's generators"),
        (Words(), squared, TypeError, "state holds a str"),
        (Ahead(), squared, ValueError, "it looks ahead"),
        (Forgets(), squared, ValueError, "it looks ahead .* or the state it returns is not all"),
        (bptt.RNN(3, 4, bidirectional=True, dtype=DOUBLE), squared, ValueError, "is bidirectional: its state"),
        (nn.Sequential(nn.LSTM(3, 4, bidirectional=True)), squared, ValueError, "layer '0' is bidirectional"),
        (bptt.RNN(3, 8, dtype=DOUBLE), _mean, ValueError, "not a sum over the steps; write the sum"),
        (bptt.RNN(3, 8, dtype=DOUBLE), lambda z, y: (z - y) ** 2, ValueError, "loss returned a tensor of shape"),
        (bptt.RNN(3, 8, dtype=DOUBLE), lambda z, y: z.detach().sum(), ValueError, "the loss depends on no parameter"),
    ],
)
def test_what_cannot_be_is_refused_and_changes_no_gradient(model, loss, error, message):
    _, x, y = problem(bptt.RNN, 400)
    for p in model.parameters():
        p.grad = torch.ones_like(p)
    with pytest.raises(error, match=message):
        bptt.backward(model, x, y, loss, bptt.Checkpointed("80kB"))
    assert all(torch.equal(p.grad, torch.ones_like(p)) for p in model.parameters())


def test_inputs_that_cannot_be():
    model, x, y = problem(bptt.RNN, 400)
    strategy = bptt.Checkpointed("2MB")
    with pytest.raises(ValueError, match="a generator can be walked only once"):
        bptt.backward(model, (piece for piece in x.split(10)), y, squared, strategy)
    once = iter(x.split(10))
    with pytest.raises(ValueError, match="had 400 steps at first, and ended before step"):
        bptt.backward(model, lambda: once, y, squared, strategy)
    with pytest.raises(ValueError, match="x or y requires a gradient"):
        bptt.backward(model, x.clone().requires_grad_(), y, squared, strategy)
    with pytest.raises(ValueError, match="storage 'tape' is unknown: give memory, host, disk"):
        bptt.Checkpointed("2MB", "tape")


def test_a_frozen_model_is_refused_at_once():
    model, x, y = problem(bptt.RNN, 40)
    model.requires_grad_(False)
    with pytest.raises(ValueError, match="the loss depends on no parameter"):
        bptt.backward(model, x, y, squared, bptt.Checkpointed("1MB"))
    state = torch.zeros(1, 2, 8, dtype=DOUBLE, requires_grad=True)
    bptt.backward(model, x, y, squared, state=state)
    want, state.grad = state.grad, None
    bptt.backward(model, x, y, squared, bptt.Checkpointed("30kB"), state)
    torch.testing.assert_close(state.grad, want)


class Normed(nn.Module):
    """Dropout, and something behind the layer that must not see all steps."""

    def __init__(self, behind):
        super().__init__()
        self.rnn, self.behind, self.drop = bptt.RNN(3, 8, dtype=DOUBLE), behind, nn.Dropout(0.2)

    def forward(self, x, state=None):
        outputs, state = self.rnn(x, state)
        return self.drop(self.behind(outputs.flatten(0, 1)).view_as(outputs)), state


class Centred(nn.Module):
    def forward(self, x):
        return x - x.mean(0)


def test_means_over_all_steps_are_refused_although_there_is_dropout():
    _, x, y = problem(bptt.RNN, 400)
    strategy = bptt.Checkpointed("80kB")
    with pytest.raises(ValueError, match="looks ahead"):
        bptt.backward(Normed(Centred()), x, y, squared, strategy)
    model = Normed(nn.BatchNorm1d(8, dtype=DOUBLE))
    with pytest.raises(ValueError, match="layer 'behind' is a BatchNorm1d that takes its means"):
        bptt.backward(model, x, y, squared, strategy)
    assert model.training
    assert model.drop.training
    model.behind.eval()
    bptt.backward(model, x, y, squared, strategy)


def test_an_interrupted_run_changes_nothing():
    class Interrupted(nn.Module):
        def __init__(self):
            super().__init__()
            self.rnn, self.left = bptt.GRU(3, 8, 2, dropout=0.3, dtype=DOUBLE), 100
            self.register_buffer("calls", torch.zeros(()))

        def forward(self, x, state=None):
            self.left -= 1
            self.calls += 1
            if not self.left:
                raise KeyboardInterrupt
            return self.rnn(x, state)

    _, x, y = problem(bptt.GRU, 400)
    model, generators = Interrupted(), torch.get_rng_state()
    with pytest.raises(KeyboardInterrupt):
        bptt.backward(model, x, y, squared, bptt.Checkpointed("55kB"))
    assert torch.equal(torch.get_rng_state(), generators)
    assert model.calls == 0
    assert all(p.grad is None for p in model.parameters())


def test_a_diverged_run_is_not_taken_for_a_random_one():
    model, x, y = problem(bptt.RNN, 200)
    x[150] = float("nan")
    result = bptt.backward(model, x, y, squared, bptt.Checkpointed("40kB"))
    assert result.loss.isnan()


# On disk -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("storage", ["disk", "host"])
def test_snapshots_elsewhere(storage, tmp_path, monkeypatch):
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    model, x, y = problem(bptt.LSTM, 300)
    bptt.backward(model, x, y, squared)
    want = named_gradients(model)
    strategy = bptt.Checkpointed(least(model, x, y) + 3_000, storage)
    result = bptt.backward(model, x, y, squared, strategy)
    assert result.plan.chunks > 3
    assert_same(named_gradients(model), want)
    assert not list(tmp_path.glob("bptt-snapshots-*"))


_KILLED = """
import glob, os, signal, torch, bptt
class Model(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.rnn = bptt.RNN(2, 8)
    def forward(self, x, state=None):
        if glob.glob(os.environ["TMPDIR"] + "/bptt-snapshots-*/2"):
            os.kill(os.getpid(), signal.SIGKILL)
        return self.rnn(x, state)
x, y, loss = torch.randn(500, 1, 2), torch.randn(500, 1, 8), lambda z, t: ((z - t) ** 2).sum()
model = Model()
bptt.backward(model, x, y, loss, bptt.Checkpointed(bptt.Checkpointed("1GB").plan(model, x, y, loss).least, "disk"))
"""


def test_the_next_start_removes_what_a_kill_left(tmp_path, monkeypatch):
    environment = os.environ | {"TMPDIR": str(tmp_path)}
    run = subprocess.run([sys.executable, "-c", _KILLED], env=environment, capture_output=True, text=True)
    assert run.returncode == -signal.SIGKILL, run.stderr
    left = list(tmp_path.glob("bptt-snapshots-*"))
    assert len(left) == 1
    assert list(left[0].iterdir())
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    mine = OnDisk()
    other = OnDisk()  # of a process that lives: this one
    assert not left[0].exists()
    assert mine.folder.exists()
    for place in (mine, other):
        place.close()
    assert not list(tmp_path.glob("bptt-snapshots-*"))


def test_a_full_disk_changes_nothing(tmp_path, monkeypatch):
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    model, x, y = problem(bptt.GRU, 300)
    optimizer = torch.optim.Adam(model.parameters())
    bptt.backward(model, x, y, squared)
    optimizer.step()
    before = [p.detach().clone() for p in model.parameters()], named_gradients(model), str(optimizer.state_dict())
    written = 0
    plain = Path.write_bytes

    def write(path, data):
        nonlocal written
        written += 1
        if written > 5:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return plain(path, data)

    monkeypatch.setattr(Path, "write_bytes", write)
    with pytest.raises(OSError, match="No space left on device.*make room, set TMPDIR") as full:
        bptt.backward(model, x, y, squared, bptt.Checkpointed(least(model, x, y) + 3_000, "disk"))
    assert full.value.errno == errno.ENOSPC
    assert all(torch.equal(p, b) for p, b in zip(model.parameters(), before[0], strict=True))
    assert all(p.grad is None for p in model.parameters())
    assert str(optimizer.state_dict()) == before[2]
    assert not list(tmp_path.glob("bptt-snapshots-*"))


_FULL = """
import errno, sys, tempfile, torch, bptt
from pathlib import Path
tempfile.tempdir = sys.argv[1]
torch.manual_seed(0)
model = bptt.LSTM(3, 40, dtype=torch.float64)
x, y = torch.randn(300, 2, 3, dtype=torch.float64), torch.randn(300, 2, 40, dtype=torch.float64)
loss = lambda z, t: ((z - t) ** 2).sum()
optimizer = torch.optim.Adam(model.parameters())
bptt.backward(model, x, y, loss)
optimizer.step()
def everything():
    moments = [v for of in optimizer.state_dict()["state"].values() for v in of.values()]
    return [t.detach().clone() for p in model.parameters() for t in (p, p.grad)] + [v.clone() for v in moments]
before = everything()
least = bptt.Checkpointed("1GB").plan(model, x, y, loss).least
try:
    bptt.backward(model, x, y, loss, bptt.Checkpointed(least, "disk"))
except OSError as error:
    assert error.errno == errno.ENOSPC, error
    assert "make room, set TMPDIR" in str(error), error
else:
    raise AssertionError("the disk was not full")
assert all(map(torch.equal, before, everything()))
left = sorted(map(str, Path(tempfile.tempdir).glob("bptt-*")))
assert not left, left
print("as before")
"""


def test_a_small_disk_that_really_fills_changes_nothing(tmp_path):
    """A file system of 32 kB, mounted where only the run sees it."""
    inside = ["unshare", "--user", "--map-root-user", "--mount", "sh", "-c"]
    mount = 'mount -t tmpfs -o size=32k none "$0"'
    try:
        subprocess.run([*inside, mount, str(tmp_path)], check=True, capture_output=True)
    except (OSError, subprocess.CalledProcessError) as error:
        pytest.skip(f"no file system can be mounted here without rights: {error}")
    command = [*inside, f'{mount} && exec "$@"', str(tmp_path), sys.executable, "-c", _FULL, str(tmp_path)]
    run = subprocess.run(command, capture_output=True, text=True)
    assert run.returncode == 0, run.stderr
    assert run.stdout == "as before\n"


def test_training_says_its_plan_and_its_peak(tmp_path):
    (tmp_path / "a.txt").write_text("a tale of two cities " * 3000)
    command = f"-m bptt train text --data {tmp_path / 'a.txt'} --chunk 30000 --batch 1 --steps 2 --hidden 64"
    command += f" --strategy checkpointed:8MB --out {tmp_path / 'run'}"
    run = subprocess.run([sys.executable, *command.split()], capture_output=True, text=True)
    assert run.returncode == 0, run.stderr
    assert run.stderr.count("plan: 30,000 steps in ") == 1
    took = run.stderr.split("memory: the gradient took at most ")[1].split(";")[0]
    # Resident memory of a process, on a machine that may be busy: the system's allocator wastes more then. What torch's
    # allocator hands out is compared with the plan above, to 10 %.
    assert parse_bytes(took) <= 1.25 * 8e6, run.stderr


def test_training_with_too_small_a_budget_says_the_least_one(tmp_path):
    (tmp_path / "a.txt").write_text("a tale of two cities " * 100)
    command = f"-m bptt train text --data {tmp_path / 'a.txt'} --chunk 100 --batch 1 --steps 1 --hidden 8"
    command += f" --strategy checkpointed:1kB --out {tmp_path / 'run'}"
    run = subprocess.run([sys.executable, *command.split()], capture_output=True, text=True)
    assert run.returncode == 2
    assert "Traceback" not in run.stderr
    assert "a budget of 1 kB cannot be met: this model and batch need at least" in run.stderr
