"""The training loop in this process: what an update is, what a checkpoint holds, how the learning rate goes."""

import dataclasses
import io
import math

import numpy as np
import pytest
import torch

import bptt
from bptt.gradient import Past, Result
from bptt.network import HEADS, Linear
from bptt.options import AddingOptions, CopyOptions, TextOptions
from bptt.tasks import Batch, Shard, Sizes, Stream, Task, make_task
from bptt.train.checks.machine import available_memory
from bptt.train.display.curve import draw_curve, yardsticks
from bptt.train.display.progress import Lines, Live, clock
from bptt.train.distributed import Processes
from bptt.train.events import Diverged, Update, Validation
from bptt.train.interrupt import Interrupt
from bptt.train.loss import counted_loss
from bptt.train.model import build_network, count_parameters
from bptt.train.optimizer import clip
from bptt.train.schedule import Budget, learning_rate
from bptt.train.storage.carried import lanes_of_all, lanes_of_one
from bptt.train.storage.checkpoint import read_checkpoint, write_checkpoint
from bptt.train.storage.metrics import Metrics
from bptt.train.training import Training
from bptt.train.wording import Wording
from tests.runs import corpus

pytestmark = pytest.mark.usefixtures("one_thread")


ALONE = Processes(0, 1, torch.device("cpu"))
ADDING = AddingOptions(hidden=6, length=7, batch=4, steps=100, validate_every=10)


def training(options=ADDING, **changes):
    options = dataclasses.replace(options, **changes)
    return Training(options, make_task(options), ALONE)


# The loss ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", HEADS)
@pytest.mark.parametrize("strategy", [bptt.Exact(), bptt.Truncated(2), bptt.Truncated(2, 5)])
def test_nothing_of_a_masked_target_reaches_loss_or_gradient(kind, strategy):
    T, B, K = 7, 3, 1 if kind == "sigmoid" else 4
    network = build_network(AddingOptions(hidden=5), Sizes(outputs=K, head=kind, inputs=2)).double()
    x = torch.randn(T, B, 2, dtype=torch.float64)
    mask = torch.rand((T, B, K) if kind == "linear" else (T, B)) < 0.5
    y = torch.randn(T, B, K).double() if kind == "linear" else torch.randint(max(2, K), (T, B))
    wrong = y.masked_fill(~mask, math.nan if kind == "linear" else -7)
    count = int(mask.sum())
    outcomes = []
    for target in (y, wrong):
        network.zero_grad()
        result = bptt.backward(network, x, (target, mask), counted_loss(network.head, count), strategy)
        outcomes.append([result.loss, *(p.grad for p in network.parameters())])
    assert all(torch.equal(a, b) and a.isfinite().all() for a, b in zip(*outcomes, strict=True))
    z = network(x)[0]
    assert outcomes[0][0].item() == pytest.approx(network.head.losses(z, y)[mask].mean().item(), rel=1e-12)


def test_an_update_is_a_step_of_the_optimizer_along_the_clipped_gradient():
    ours = training(clip=0.5, schedule="constant", dtype="float64")
    theirs = training(dtype="float64")
    optimizer = torch.optim.Adam(theirs.parameters, lr=ADDING.lr)
    for _ in range(3):
        batch = next(theirs.stream).to(ALONE.device, torch.float64)
        z, _ = theirs.model(batch.x)
        loss = Linear().losses(z, batch.y)[batch.mask].mean()
        optimizer.zero_grad()
        loss.backward()
        norm = torch.nn.utils.clip_grad_norm_(theirs.parameters, 0.5)
        optimizer.step()
        update = ours.update()
        assert update.loss == pytest.approx(loss.item(), rel=1e-12)
        assert update.grad_norm == pytest.approx(norm.item(), rel=1e-12)
    for p, q in zip(ours.parameters, theirs.parameters, strict=True):
        torch.testing.assert_close(p, q, rtol=1e-12, atol=1e-14)


def test_clip_0_leaves_the_gradient_alone():
    p = torch.nn.Parameter(torch.zeros(2))
    p.grad = torch.tensor([30.0, 40.0])
    assert clip([p], 0).item() == pytest.approx(50)
    assert p.grad.tolist() == [30, 40]
    assert clip([p], 5).item() == pytest.approx(50)
    assert p.grad.norm().item() == pytest.approx(5, rel=1e-4)


def test_the_state_is_carried_where_the_stream_goes_on_and_only_there(tmp_path):
    text = training(TextOptions(data=corpus(tmp_path / "corpus"), hidden=5, batch=3, chunk=8, steps=9))
    text.update()
    h, c = text.carried.state
    assert h.shape == c.shape == (1, 3, 5)
    adding = training()
    adding.update()
    assert adding.carried is None


def test_it_learns(tmp_path):
    options = TextOptions(data=corpus(tmp_path / "corpus"), hidden=32, batch=8, chunk=32, steps=150, lr=0.02)
    text = training(options)
    first = text.update().loss
    for _ in range(149):
        last = text.update()
    assert text.task.score(last.loss) < 2 < 5 < text.task.score(first)
    assert last.lr < options.lr / 100


# Not a number ------------------------------------------------------------------------------------------------------


class Poisoned(Stream):
    """A stream whose third batch holds an infinite number."""

    def __init__(self, stream):
        self._stream, self._n = stream, 0

    def __next__(self):
        batch, self._n = next(self._stream), self._n + 1
        return dataclasses.replace(batch, x=batch.x * math.inf) if self._n == 3 else batch

    def position(self):
        return self._stream.position()

    def position_after(self, batches):
        return self._stream.position_after(batches)

    def seek(self, position):
        self._stream.seek(position)

    @property
    def epoch(self):
        return 0.0


def test_a_loss_that_is_not_finite_poisons_nothing():
    run = training(clip=0, lr=0.01)
    run.stream = Poisoned(run.stream)
    run.update(), run.update()
    before = [p.detach().clone() for p in run.parameters]
    moments = [s["exp_avg"].clone() for s in run.optimizer.state.values()]
    with pytest.raises(
        Diverged, match=r"at step 3 the loss is nan: try a smaller --lr in a new run, e.g. --lr 0.001 .*--clip 1"
    ):
        run.update()
    assert all(torch.equal(p, q) for p, q in zip(run.parameters, before, strict=True))
    assert all(torch.equal(s["exp_avg"], m) for s, m in zip(run.optimizer.state.values(), moments, strict=True))
    assert run.state.step == 2


def test_a_weight_that_is_not_finite_enters_no_checkpoint():
    run = training()
    with torch.no_grad():
        run.model.output.weight[0, 0] = math.inf
    with pytest.raises(Diverged, match="a weight is infinite"):
        run.checkpoint({})
    with pytest.raises(Diverged, match="at step 0 the validation loss is"):
        run.validate(Interrupt())


# The network -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "options",
    [
        AddingOptions(cell="rnn", activation="sigmoid", hidden=5),
        AddingOptions(cell="rnn", activation="relu", hidden=5, layers=2, dropout=0.5),
        AddingOptions(cell="gru", hidden=7, layers=3),
        TextOptions(cell="lstm", hidden=9, embedding=4, layers=2),
        CopyOptions(hidden=3),
    ],
)
def test_the_network_is_what_the_options_say(options):
    symbols = {"symbols": 11} if options.task != "adding" else {"inputs": 2}
    sizes = Sizes(outputs=3, head="softmax", **symbols)
    network = build_network(options, sizes)
    assert sum(p.numel() for p in network.parameters()) == count_parameters(options, sizes)
    recurrent = network.recurrent
    kind = {"rnn": bptt.RNN, "gru": bptt.GRU, "lstm": bptt.LSTM}[options.cell]
    assert isinstance(recurrent, kind)
    assert (recurrent.hidden_size, recurrent.num_layers) == (options.hidden, options.layers)
    assert recurrent.dropout == options.dropout
    if options.cell == "rnn":
        assert recurrent.nonlinearity == options.activation
    keep = slice(options.hidden, 2 * options.hidden)
    bias = recurrent.bias_ih_l0[keep] + recurrent.bias_hh_l0[keep]
    if options.cell != "rnn" and options.task != "text":
        assert ((bias >= 0) & (bias <= math.log(options.length))).all()  # remembers for 1 to `length` steps
    elif options.cell == "lstm":
        assert (bias == 1).all()


def test_the_seed_decides_the_weights_and_the_dtype_does_not():
    single, double, other = training(), training(dtype="float64"), training(seed=1)
    for p, q, r in zip(single.parameters, double.parameters, other.parameters, strict=True):
        assert torch.equal(p, q.float())
        assert not torch.equal(p, r) or (p == p.flatten()[0]).all()  # biases that start at a constant


# Schedules and budgets ---------------------------------------------------------------------------------------------


def test_the_learning_rate_rises_over_the_warm_up_and_falls_over_the_budget():
    def rates(schedule, warmup=0):
        options = dataclasses.replace(ADDING, lr=1.0, schedule=schedule, warmup=warmup)
        return [learning_rate(options, step, step / 10) for step in range(10)]

    assert rates("constant") == [1.0] * 10
    assert rates("linear") == pytest.approx(np.linspace(1, 0, 11)[:10])
    assert rates("cosine") == pytest.approx((1 + np.cos(np.pi * np.arange(10) / 10)) / 2)
    assert rates("constant", warmup=4) == [0.25, 0.5, 0.75, *[1.0] * 7]
    assert learning_rate(dataclasses.replace(ADDING, schedule="linear"), 5, 1.3) == 0  # a little over time


def test_the_budget_ends_with_what_ends_first():
    assert Budget(steps=10, minutes=None).spent(5, 1e9) == 0.5
    assert Budget(steps=None, minutes=2).spent(10**9, 60) == 0.5
    assert Budget(steps=10, minutes=2).spent(9, 60) == 0.9
    assert Budget(steps=10, minutes=2).spent(1, 130) > 1
    assert Budget(steps=10, minutes=None).seconds_left(4, 0, 2.0) == 12
    assert Budget(steps=10, minutes=0.1).seconds_left(4, 1, 2.0) == 5


def test_validations_are_every_so_many_updates_and_at_the_end():
    run = training(steps=25)
    due = []
    while True:
        if run.validation_is_due:
            due.append(run.state.step)
            run.validate(Interrupt())
        if run.finished:
            break
        run.update()
    assert due == [10, 20, 25]


def test_a_validation_is_given_up_when_a_signal_comes():
    run = training()
    run.update()
    interrupt = Interrupt()
    interrupt.number = 2
    assert run.validate(interrupt) is None
    assert run.model.training
    assert run.state.validated == 0


def test_the_validation_loss_is_the_mean_over_the_held_out_part():
    run = training(dtype="float64", batch=7)
    run.update()
    losses = []
    for batch in run.task.validation(Shard()):
        z, _ = run.model(batch.x.double())
        losses.append(Linear().losses(z, batch.y.double())[batch.mask])
    validation = run.validate(Interrupt())
    assert validation.loss == pytest.approx(torch.cat(losses).mean().item(), rel=1e-12)
    assert len(torch.cat(losses)) == 1000


# Checkpoints -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("optimizer", ["adam", "adamw", "rmsprop", "sgd"])
@pytest.mark.parametrize("strategy", ["exact", "truncated:3,8"])
def test_a_restored_training_goes_on_bit_for_bit(optimizer, strategy, tmp_path):
    options = TextOptions(
        data=corpus(tmp_path / "corpus"), hidden=5, batch=3, chunk=6, steps=30, layers=2, dropout=0.4,
        optimizer=optimizer, strategy=strategy, weight_decay=0.01, minutes=None,
    )  # fmt: skip
    run = training(options)
    for _ in range(4):
        run.update()
    write_checkpoint(tmp_path, run.checkpoint({}))
    wanted = [run.update() for _ in range(4)]
    again = training(options)
    again.restore(read_checkpoint(tmp_path))
    assert [again.update() for _ in range(4)] == wanted
    assert all(torch.equal(p, q) for p, q in zip(run.parameters, again.parameters, strict=True))


def test_lanes_are_split_and_joined_along_the_batch():
    def state(*widths):
        return tuple(torch.randn(2, 7, w) for w in widths)

    past = Past(torch.randn(4, 7, 3), state(5, 5), torch.rand(4, 7) < 0.5)
    whole = Result(torch.zeros(()), state(5, 5), past)
    for world in (1, 2, 3):
        shares = [lanes_of_one(whole, Shard(rank, world)) for rank in range(world)]
        assert shares[-1].past.reset.shape == (4, 7 - (world - 1) * 7 // world)
        joined = lanes_of_all(shares)
        assert torch.equal(joined.past.x, past.x)
        assert torch.equal(joined.past.reset, past.reset)
        assert all(torch.equal(a, b) for a, b in zip(joined.state, whole.state, strict=True))
        assert all(torch.equal(a, b) for a, b in zip(joined.past.state, past.state, strict=True))
    assert lanes_of_one(None, Shard(0, 2)) is None
    assert lanes_of_all([Result(torch.zeros(()), torch.ones(1, 2, 3))] * 2).state.shape == (1, 4, 3)


# What is seen ------------------------------------------------------------------------------------------------------


class Terminal(io.StringIO):
    def isatty(self):
        return True


@pytest.mark.parametrize("kind", [Lines, Live])
def test_progress_says_loss_validation_speed_gradient_and_time_left(kind, monkeypatch):
    monkeypatch.setenv("COLUMNS", "120")
    wording = Wording("text", "bits per character", "characters", lambda loss: loss / math.log(2))
    stream = Terminal()
    progress = kind(wording, Budget(steps=200, minutes=None), 0.0, stream)
    progress.interval = 0
    progress.validation(Validation(99, 0.5, 1.0, 1.4427, False))
    progress.update(Update(100, 0.5, math.log(2) * 1.5, 0.37, 0.001, 4096, 0.5, False, False))
    progress.close()
    text = stream.getvalue()
    for wanted in ("step 100", "1.5 bits per character", "validation 1.443", "characters/s", "gradient 0.37", "left"):
        assert wanted in text


def test_clock():
    assert [clock(s) for s in (0, 59.6, 61, 3600, 86399)] == ["0:00", "1:00", "1:01", "1:00:00", "23:59:59"]


def test_the_curve_has_the_yardsticks_of_the_metric(tmp_path):
    report = {
        "bits per character, held-out text": 2.1,
        "bits per character, xz": 1.9,
        "characters held out": 7,
        "bits per character, of a poet": "few",
    }
    assert yardsticks("bits per character", report) == [("xz", 1.9)]
    metrics = Metrics(tmp_path)
    for step in range(1, 1001):
        metrics.write({"step": step, "loss": 10.0 / step})
    metrics.write({"step": 1000, "validation": 0.02})
    metrics.close()
    draw_curve(tmp_path, "text", "bits per character", lambda loss: loss, report)
    assert (tmp_path / "curve.png").read_bytes().startswith(b"\x89PNG")


def test_the_memory_of_the_machine_is_known_here():
    assert 10**8 < available_memory() < 10**14


def test_contracts_are_those_of_the_tasks():
    assert issubclass(Poisoned, Stream)
    assert Task.__abstractmethods__ >= {"sizes", "stream", "validation", "score", "report", "spec", "fingerprint"}
    assert Batch.__dataclass_fields__.keys() == {"x", "y", "mask", "count", "reset"}
