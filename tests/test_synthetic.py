"""The two synthetic classics: what a sequence is, that it can be drawn again, and what chance gives."""

import csv
import io
import json
import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from bptt.errors import InputError
from bptt.network import Linear, Network, Softmax
from bptt.options import AddingOptions, CopyOptions, PredictOptions
from bptt.tasks.adding import Adding
from bptt.tasks.base import Shard
from bptt.tasks.copy import BLANK, DELIMITER, ITEMS, KINDS, Copy
from tests.runs import bptt as bptt_run

LENGTHS = st.integers(2, 30)
BOTH = st.sampled_from([(Adding, AddingOptions), (Copy, CopyOptions)])


@given(LENGTHS, st.integers(1, 8), st.integers(-3, 2**70))
def test_adding_marks_one_number_of_each_half_and_asks_for_their_sum(length, batch, seed):
    task = Adding(AddingOptions(length=length, batch=batch, seed=seed))
    b = next(task.stream(Shard()))
    values, markers = b.x.unbind(-1)
    assert b.x.shape == (length, batch, 2)
    assert b.y.shape == b.mask.shape == (length, batch, 1)
    assert ((values >= 0) & (values < 1)).all()
    assert ((markers == 0) | (markers == 1)).all()
    assert (markers[: length // 2].sum(0) == 1).all()
    assert (markers[length // 2 :].sum(0) == 1).all()
    torch.testing.assert_close(b.y[-1, :, 0], (values * markers).sum(0), rtol=1e-6, atol=0)
    assert b.mask[-1].all()
    assert not b.mask[:-1].any()
    assert b.count == batch
    assert b.reset is None


@given(st.integers(1, 30), st.integers(1, 8))
def test_copy_repeats_ten_symbols_after_the_delimiter(length, batch):
    task = Copy(CopyOptions(length=length, batch=batch))
    b = next(task.stream(Shard()))
    assert b.x.shape == b.y.shape == b.mask.shape == (length + 20, batch)
    assert (b.x[:ITEMS] < KINDS).all()
    assert (b.x[ITEMS : ITEMS + length - 1] == BLANK).all()
    assert (b.x[ITEMS + length - 1] == DELIMITER).all()
    assert (b.x[-ITEMS:] == BLANK).all()
    assert (b.y[:-ITEMS] == BLANK).all()
    assert torch.equal(b.y[-ITEMS:], b.x[:ITEMS])
    assert b.mask.all()
    assert b.count == b.x.numel()


def same(a, b):
    assert a.count == b.count
    for name in ("x", "y", "mask"):
        assert torch.equal(getattr(a, name), getattr(b, name))


def joined(shards):
    x, y, mask = (torch.cat([getattr(s, name) for s in shards], 1) for name in ("x", "y", "mask"))
    return type(shards[0])(x, y, mask, shards[0].count)


@given(BOTH, LENGTHS, st.integers(1, 8), st.integers(0, 20), st.integers(1, 4))
def test_a_stream_goes_back_to_any_step_with_any_number_of_processes(task, length, batch, steps, world):
    made = task[0](task[1](length=length, batch=batch))
    straight = made.stream(Shard())
    for _ in range(steps):
        next(straight)
    position = json.loads(json.dumps(straight.position()))
    shards = [made.stream(Shard(r, world)) for r in range(world)]
    for shard in shards:
        next(shard)
        shard.seek(position)
        assert (shard.position(), shard.epoch) == (position, straight.epoch)
    for _ in range(2):
        same(next(straight), joined([next(s) for s in shards]))


@pytest.mark.parametrize("batch", [1, 7, 32, 600, 1000, 1500])
def test_validation_is_a_fixed_thousand_that_every_process_has_a_part_of(batch):
    task = Copy(CopyOptions(length=1, batch=batch))
    whole, again = list(task.validation(Shard())), list(task.validation(Shard()))
    world = min(batch, 3)
    shards = zip(*[task.validation(Shard(r, world)) for r in range(world)], strict=True)
    for a, b, parts in zip(whole, again, shards, strict=True):
        same(a, b)
        same(a, joined(parts))
        assert all(p.x.shape[1] > 0 for p in parts)
        assert a.x.shape[1] >= min(batch, 1000)
    assert sum(b.x.shape[1] for b in whole) == 1000


def test_every_draw_is_another():
    tasks = [Adding(AddingOptions(length=9, batch=1000, seed=seed)) for seed in (0, 1)]
    drawn = [next(t.validation(Shard())) for t in tasks]
    for stream in [t.stream(Shard()) for t in tasks]:
        drawn += [next(stream), next(stream)]
    firsts = {float(v) for b in drawn for v in b.y[-1, :, 0]}
    assert len(firsts) > 0.99 * 1000 * len(drawn)


class Oracle(nn.Module):
    """A model that answers with a function of its input."""

    def __init__(self, answer):
        super().__init__()
        self.scale = nn.Parameter(torch.ones((), dtype=torch.float64))
        self.answer = answer

    def forward(self, x, state=None, reset=None):
        return self.scale * self.answer(x), None


def memoryless(x):
    """Sure of the blanks, all eight symbols equally likely afterwards."""
    z = torch.full((*x.shape, KINDS + 1), -1e4, dtype=torch.float64)
    z[:-ITEMS, :, BLANK] = 0
    z[-ITEMS:, :, :KINDS] = 0
    return z


def copying(x):
    """The right answer."""
    y = torch.full_like(x, BLANK)
    y[-ITEMS:] = x[:ITEMS]
    return 50.0 * nn.functional.one_hot(y, KINDS + 1)


@pytest.mark.parametrize("length", [1, 20])
def test_copy_reports_loss_and_recall_beside_chance(length):
    task = Copy(CopyOptions(length=length))
    loss, chance, share, share_by_chance, sequences = task.report(Oracle(memoryless)).values()
    assert loss == pytest.approx(chance, rel=1e-10)
    assert chance == pytest.approx(10 * math.log(8) / (length + 20), rel=1e-12)
    assert share == pytest.approx(share_by_chance, abs=0.02)
    assert (share_by_chance, sequences) == (1 / 8, 1000)
    loss, _, share, *_ = task.report(Oracle(copying)).values()
    assert loss < 1e-12
    assert share == 1


def test_adding_reports_its_error_beside_chance():
    task = Adding(AddingOptions(length=7))
    error, chance, sequences = task.report(Oracle(lambda x: torch.ones_like(x[..., :1]))).values()
    assert error == pytest.approx(chance, rel=0.15)
    assert (chance, sequences) == (1 / 6, 1000)
    error, *_ = task.report(Oracle(lambda x: x.prod(-1, keepdim=True).cumsum(0))).values()
    assert error < 1e-12


def test_sizes_fit_the_batches():
    adding, copy = Adding(AddingOptions(length=5)), Copy(CopyOptions(length=5))
    lstm = nn.LSTM(adding.sizes().inputs, 4)
    z, _ = Network(lstm, 4, adding.sizes().outputs, Linear())(next(adding.stream(Shard())).x)
    assert z.shape == next(adding.stream(Shard())).y.shape
    sizes = copy.sizes()
    net = Network(nn.LSTM(3, 4), 4, sizes.outputs, Softmax(), nn.Embedding(sizes.symbols, 3))
    b = next(copy.stream(Shard()))
    assert Softmax().losses(net(b.x)[0], b.y).shape == b.mask.shape
    assert sizes.outputs == int(b.y.max()) + 1
    assert sizes.symbols == int(b.x.max()) + 1
    assert (adding.score(0.5), copy.score(0.5)) == (0.5, 0.5)
    assert (adding.fingerprint(), copy.spec()) == ({}, {"length": 5})


def rows(task, model, **options):
    lines = list(task.predict(model, {"length": 6}, PredictOptions(**options)))
    assert all(line.endswith("\n") and line.count("\n") == 1 for line in lines)
    return list(csv.DictReader(io.StringIO("".join(lines))))


def test_adding_shows_examples():
    got = rows(Adding, Oracle(lambda x: x.prod(-1, keepdim=True).cumsum(0)), length=5)
    assert [r["example"] for r in got] == list("12345")
    for r in got:
        assert int(r["step_1"]) <= 3 < int(r["step_2"]) <= 6
        assert float(r["number_1"]) + float(r["number_2"]) == pytest.approx(float(r["sum"]), abs=2e-4)
        assert r["answer"] == r["sum"]
    assert got == rows(Adding, Oracle(lambda x: x.prod(-1, keepdim=True).cumsum(0)), length=5)


def test_copy_shows_examples():
    for model, right in [(copying, True), (lambda x: 0 * copying(x) + torch.arange(KINDS + 1.0), False)]:
        got = rows(Copy, Oracle(model), length=3, seed=4)
        assert len({r["symbols"] for r in got}) == 3
        assert all(set(r["symbols"]) <= set("abcdefgh") and len(r["symbols"]) == 10 for r in got)
        assert all(r["answer"] == (r["symbols"] if right else "." * 10) for r in got)


@pytest.mark.parametrize(
    ("make", "says"),
    [
        (lambda: Adding(AddingOptions(length=1)), "--length is 1: the adding problem needs 2 or more"),
        (lambda: Copy(CopyOptions(length=0)), "--length is 0: the copy problem needs 1 or more"),
        (lambda: Copy(CopyOptions(batch=0)), "--batch is 0: 1 or more is wanted"),
        (
            lambda: Copy.predict(Oracle(copying), {"length": 6}, PredictOptions(length=0)),
            "--length is 0: at least 1 example is wanted",
        ),
        (
            lambda: Adding.predict(Oracle(copying), {"length": 6}, PredictOptions(data="a.csv")),
            "--data a.csv cannot be used: examples of a synthetic task are drawn, leave it out",
        ),
    ],
)
def test_impossible_sizes_are_refused(make, says):
    with pytest.raises(InputError) as e:
        make()
    assert str(e.value) == says


@pytest.mark.real
def test_adding_100_numbers_is_learned(tmp_path):
    """The promise, with nothing but defaults: chance is 0.167."""
    assert bptt_run("train", "adding", "--length", "100", "--out", tmp_path / "run").returncode == 0
    report = json.loads((tmp_path / "run" / "report.json").read_text())
    assert report["mean squared error"] < 0.01


@pytest.mark.real
def test_copy_beats_its_chance(tmp_path):
    assert bptt_run("train", "copy", "--steps", "1500", "--out", tmp_path / "run").returncode == 0
    report = json.loads((tmp_path / "run" / "report.json").read_text())
    model, chance = (v for name, v in report.items() if "nats" in name)
    assert model < 0.8 * chance
