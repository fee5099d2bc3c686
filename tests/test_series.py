"""Series: targets line up with the future, nothing of a later part leaks into an earlier one, errors are what they say."""

import csv
import io
import itertools
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from bptt.errors import InputError
from bptt.network import Linear, Network
from bptt.options import PredictOptions, SeriesOptions
from bptt.tasks import make_task
from bptt.tasks.base import Shard
from bptt.tasks.season import find_season, lags
from bptt.tasks.series import Series
from bptt.tasks.streams.series import Lanes, Window
from tests.real_data import electricity, r_data
from tests.runs import bptt


def message(error: pytest.ExceptionInfo[InputError]) -> str:
    text = str(error.value)
    assert "\n" not in text
    return text


def write(folder: Path, text: str, name: str = "d.csv") -> Path:
    path = folder / name
    path.write_text(text, encoding="utf-8")
    return path


def table(folder: Path, lengths=(120, 90), season: int = 6, name: str = "d.csv", seed: int = 0) -> Path:
    """Series "s0", "s1" … with a season, a trend and noise; targets u and v, an input w, whole seconds as time."""
    rng = np.random.default_rng(seed)
    lines = ["id,t,u,v,w"]
    for i, length in enumerate(lengths):
        t = np.arange(length)
        u = 10 * (i + 1) * (np.sin(2 * np.pi * t / season) + 0.01 * t + 0.3 * rng.normal(size=length))
        v, w = rng.normal(size=length), rng.normal(size=length)
        lines += [f"s{i},{k},{u[k]:.6f},{v[k]:.6f},{w[k]:.6f}" for k in range(length)]
    return write(folder, "\n".join(lines) + "\n", name)


def options(path: Path, **more) -> SeriesOptions:
    default = {"data": path, "target": "u,v", "time": "t", "id": "id", "inputs": "w", "horizon": 4, "season": 6}
    default |= {"batch": 3, "chunk": 7}
    return SeriesOptions(**(default | more))


def network(task: Series, seed: int = 0) -> Network:
    torch.manual_seed(seed)
    sizes = task.sizes()
    assert sizes.inputs is not None
    layer = TakesReset(sizes.inputs, 8)
    return Network(layer, 8, sizes.outputs, Linear()).double()


class TakesReset(torch.nn.GRU):
    """torch's GRU, one step at a time, with resets."""

    def forward(self, x, state=None, reset=None):
        state = x.new_zeros(1, x.shape[1], self.hidden_size) if state is None else state
        outputs = []
        for t in range(len(x)):
            if reset is not None:
                state = state.masked_fill(reset[t][None, :, None], 0)
            y, state = super().forward(x[t : t + 1], state)
            outputs.append(y)
        return torch.cat(outputs), state


# Yardsticks -------------------------------------------------------------------------------------------------------------


@given(st.integers(1, 9), st.integers(1, 30), st.integers(0, 40))
def test_seasonal_naive_as_a_loop(season, horizon, t):
    """y(t + h − m·⌈h/m⌉): go back whole seasons from t+h until the value is known at t."""
    y = np.random.default_rng(t).normal(size=200)
    t += 50
    for h, lag in enumerate(lags(season, horizon), start=1):
        place = t + h
        while place > t:
            place -= season
        assert y[t - lag] == y[place]


@pytest.mark.parametrize(
    ("name", "column", "season"),
    [
        ("fpp2/elecdemand", "Demand", 336),
        ("forecast/taylor", "x", 336),
        ("fpp2/a10", "value", 12),
        ("fpp2/usmelec", "value", 12),
        ("fpp2/qgas", "value", 4),
        ("fpp2/goog", "value", 1),
        ("forecast/gold", "value", 1),
    ],
)
def test_seasons_of_real_series(name, column, season):
    frame = r_data(name)
    y = frame[column if column in frame.columns else frame.columns[-1]].drop_nulls().to_numpy().astype(float)
    y = y[np.isfinite(y)]
    assert find_season([y[: int(0.7 * len(y)), None]], horizon=12) == season


@given(st.integers(3, 20), st.integers(0, 1000))
def test_season_of_a_repeated_pattern(season, seed):
    rng = np.random.default_rng(seed)
    y = np.tile(rng.normal(size=season), 30) + 0.01 * rng.normal(size=30 * season)
    found = find_season([y[:, None]], horizon=1)
    assert found % season == 0  # twice the season repeats as well
    assert found > 1


@given(st.integers(10, 400), st.integers(0, 1000))
def test_a_random_walk_has_no_season(length, seed):
    walk = np.random.default_rng(seed).normal(size=length).cumsum()
    assert find_season([walk[:, None]], horizon=1) == 1


# Targets ----------------------------------------------------------------------------------------------------------------


def by_hand(task: Series, member: int, t: int, h: int, k: int) -> float:
    """What the network is asked for at step t: (y(t+h) − ŷ(t+h)) / scale / σ_h, from the file's own numbers."""
    y = task.panel.series[member].targets[:, k]
    encoding = task.encoding
    scale = encoding.scales[f"s{member}"][k]
    place = t + h
    while place > t:
        place -= encoding.season
    return (y[t + h] - y[place]) / scale / encoding.errors[h - 1, k]


def test_targets_are_the_future(tmp_path):
    task = Series(options(table(tmp_path)))
    assert task.encoding.season == 6
    batch = next(task.stream(Shard()))
    length = [d.validation for d in task.divisions]
    starts = np.arange(3) * sum(length) // 3
    checked = 0
    for row, start in enumerate(starts):
        for step in range(7):
            place = int(start) + step
            member, t = (0, place) if place < length[0] else (1, place - length[0])
            y = batch.y[step, row].reshape(4, 2)
            mask = batch.mask[step, row].reshape(4, 2)
            for h in range(1, 5):
                known = t + h < length[member] and t - lags(6, 4)[h - 1] >= 0
                assert mask[h - 1].tolist() == [known, known]
                for k in range(2 * known):
                    assert float(y[h - 1, k]) == pytest.approx(by_hand(task, member, t, h, k))
                    checked += 1
    assert checked > 50


def test_network_sees_changes_and_inputs(tmp_path):
    task = Series(options(table(tmp_path)))
    tape = task.training
    s = task.panel.series[1]
    begin = task.divisions[0].validation
    features = task.encoding.features
    for t in (10, 33):
        y = s.targets / task.encoding.scales["s1"]
        raw = np.concatenate([y[t] - y[t - 1], y[t] - y[t - 6], s.inputs[t]])
        np.testing.assert_allclose(tape.x[begin + t], (raw - features.mean) / features.std)
    assert (tape.x[begin, :4] == 0).all()  # the first step has no change to see


def test_perfect_outputs_are_perfect_forecasts(tmp_path):
    """encode, then decode: forecasts(targets) = the future, in the data's units."""
    task = Series(options(table(tmp_path)))
    tape = task.encoding.join(task.panel.series)
    at = np.array([20, 50, 150, 180])
    z, known = task.encoding.targets(tape, at)
    assert known.all()
    forecasts = task.encoding.forecasts(tape, at, z.reshape(4, -1))
    raw = np.concatenate([s.targets for s in task.panel.series])
    np.testing.assert_allclose(forecasts, raw[at[:, None] + np.arange(1, 5)])


# Parts ------------------------------------------------------------------------------------------------------------------


def with_tail(path: Path, rows_from: dict[str, int], name: str) -> Path:
    """The same table with every value from a row of each series on replaced by something large."""
    lines = path.read_text().splitlines()
    out = [lines[0]]
    for line in lines[1:]:
        i, t, *values = line.split(",")
        if int(t) >= rows_from[i]:
            values = [f"{1e6 + k * int(t) ** 2}" for k, _ in enumerate(values, start=1)]
        out.append(",".join([i, t, *values]))
    return write(path.parent, "\n".join(out) + "\n", name)


def test_nothing_after_the_training_part_is_in_training(tmp_path):
    """Scaling, season and every training batch stay the same when validation and test are replaced by anything."""
    path = table(tmp_path)
    task = Series(options(path))
    d = task.divisions
    assert [(x.validation, x.test, x.end) for x in d] == [(84, 96, 120), (63, 72, 90)]
    changed = Series(options(with_tail(path, {"s0": 84, "s1": 63}, "e.csv")))
    assert changed.spec() == task.spec()
    one, other = task.stream(Shard()), changed.stream(Shard())
    while one.epoch < 2.5:
        assert_same(next(one), next(other))


def test_nothing_of_the_test_part_is_in_validation(tmp_path):
    path = table(tmp_path)
    task, changed = Series(options(path)), Series(options(with_tail(path, {"s0": 96, "s1": 72}, "e.csv")))
    for a, b in zip(task.validation(Shard()), changed.validation(Shard()), strict=True):
        assert_same(a, b)


def test_validation_judges_each_forecast_of_its_part_once(tmp_path):
    """Rows 84 … 95 of s0 and 63 … 71 of s1, each from up to 4 origins before it (from the last training row on)."""
    task = Series(options(table(tmp_path)))
    count = sum(b.count for b in task.validation(Shard()))
    assert count == sum(min(4, n - k) for n in (12, 9) for k in range(n)) * 2
    total = sum(int(b.mask.sum()) for b in task.validation(Shard()))
    assert total == count


def test_long_validation_is_read_in_windows_with_warm_up(tmp_path):
    """2,000 judged steps in windows of 512, 256 steps of warm-up before each: the same values as in one piece."""
    task = Series(options(table(tmp_path, lengths=(20000,)), target="u", inputs=""))
    got = [(b.y[b.mask], b.mask.shape[1]) for b in task.validation(Shard())]
    assert {lanes for _, lanes in got} == {4}
    d = task.divisions[0]
    tape = task.encoding.join([task.panel.series[0].head(d.test)])
    y, known = task.encoding.targets(tape, np.arange(d.validation - 1, d.test - 1))
    assert sorted(torch.cat([g for g, _ in got]).tolist()) == sorted(y[known].tolist())


@given(
    st.lists(st.tuples(st.integers(0, 50), st.integers(0, 20), st.integers(1, 30)), min_size=1, max_size=12),
    st.integers(1, 5),
)
def test_lanes_read_each_window_whole_and_once(raw, lanes):
    windows = [Window(b, b + f, b + f + n) for b, f, n in raw]
    pieces = list(Lanes(windows, lanes).pieces(9))
    at, judged, starts = (np.concatenate([getattr(p, n) for p in pieces]) for n in ("at", "judged", "starts"))
    left = sorted(windows, key=lambda w: w.stop - w.begin, reverse=True)
    for row in range(at.shape[1]):
        begins = [*np.flatnonzero(starts[:, row]), len(at)]
        for begin, end in itertools.pairwise(begins):
            run, flags = at[begin:end, row].tolist(), judged[begin:end, row].tolist()
            left.remove(next(w for w in left if holds(w, run, flags)))  # the longest that fits: zeros follow the last
    assert not left
    assert judged.sum() == sum(w.stop - w.first for w in windows)


def holds(w: Window, run: list[int], flags: list[bool]) -> bool:
    length = w.stop - w.begin
    wanted = [p >= w.first for p in range(w.begin, w.stop)]
    return run[:length] == list(range(w.begin, w.stop)) and flags[:length] == wanted and not any(flags[length:])


# Streams ----------------------------------------------------------------------------------------------------------------


def assert_same(a, b):
    for name in ("x", "y", "mask", "reset"):
        one, other = getattr(a, name), getattr(b, name)
        assert (one is None and other is None) or torch.equal(one, other), name
    assert a.count == b.count


@settings(max_examples=20, deadline=None)
@given(st.integers(0, 40), st.integers(1, 9), st.integers(1, 30))
def test_seek_gives_the_same_batches(tmp_path_factory, ahead, batch, chunk):
    task = Series(options(table(tmp_path_factory.mktemp("t")), batch=batch, chunk=chunk))
    one, other = task.stream(Shard()), task.stream(Shard())
    for _ in range(ahead):
        next(one)
    other.seek(json.loads(json.dumps(one.position())))
    for _ in range(3):
        assert_same(next(one), next(other))
    with pytest.raises(InputError, match=f"use --batch {batch + 1}"):
        one.seek({"lanes": batch + 1, "steps": 0})


@settings(max_examples=20, deadline=None)
@given(st.integers(1, 4), st.integers(1, 9))
def test_rows_of_all_shards_are_the_rows_of_one(tmp_path_factory, world, batch):
    task = Series(options(table(tmp_path_factory.mktemp("t")), batch=batch))
    shards = [Shard(r, world) for r in range(world)]

    def check(whole, parts):
        for name in ("x", "y", "mask"):
            assert torch.equal(getattr(whole, name), torch.cat([getattr(p, name) for p in parts], dim=1)), name
        resets = [torch.zeros(p.x.shape[:2], dtype=torch.bool) if p.reset is None else p.reset for p in parts]
        wanted = torch.zeros(whole.x.shape[:2], dtype=torch.bool) if whole.reset is None else whole.reset
        assert torch.equal(torch.cat(resets, dim=1), wanted)
        assert {p.count for p in parts} == {whole.count} == {int(whole.mask.sum())}

    streams, whole = [task.stream(s) for s in shards], task.stream(Shard())
    for _ in range(5):
        check(next(whole), [next(s) for s in streams])
    held_out = [list(task.validation(s)) for s in shards]
    for i, batch_ in enumerate(task.validation(Shard())):
        check(batch_, [h[i] for h in held_out])


def test_lanes_read_on_and_are_reset_where_a_series_begins(tmp_path):
    """Each lane's steps follow one another on the tape; a reset stands at each series' first step, and a lane's own."""
    task = Series(options(table(tmp_path), batch=2, chunk=10))
    stream, tape = task.stream(Shard()), task.training
    lanes = [[], []]
    for step in range(40):
        batch = next(stream)
        for row in range(2):
            for t in range(10):
                place = (row * len(tape) // 2 + 10 * step + t) % len(tape)
                np.testing.assert_array_equal(batch.x[t, row].numpy(), tape.x[place])
                begins = place in (0, task.divisions[0].validation) or (step == 0 and t == 0)
                assert bool(batch.reset is not None and batch.reset[t, row]) == begins
                lanes[row].append(place)
    assert stream.epoch == pytest.approx(800 / len(tape))


# Report and predictions -------------------------------------------------------------------------------------------------


def test_report_against_a_hand_written_loop(tmp_path):
    task = Series(options(table(tmp_path)))
    model = network(task)
    report = task.report(model)
    n, m, K = 4, 6, 2
    wrong = {"": [], "naive": [], "seasonal": []}
    for member, (s, d) in enumerate(zip(task.panel.series, task.divisions, strict=True)):
        x = task.encoding.join([s]).x
        z, _ = model(torch.from_numpy(x)[:, None])
        for t in range(d.test - 1, d.end - n):
            for h in range(1, n + 1):
                base = s.targets[t + h - m * -(-h // m)]
                out = z[t, 0].detach().numpy().reshape(n, K)[h - 1]
                forecast = base + out * task.encoding.errors[h - 1] * task.encoding.scales[f"s{member}"]
                wrong[""].append(forecast - s.targets[t + h])
                wrong["naive"].append(s.targets[t] - s.targets[t + h])
                wrong["seasonal"].append(base - s.targets[t + h])
    names = {"": "", "naive": ", naive (last value)", "seasonal": ", seasonal-naive (season 6)"}
    for key, errors in wrong.items():
        for k, target in enumerate("uv"):
            e = np.array(errors)[:, k]
            assert report[f"{target}: mean absolute error{names[key]}"] == pytest.approx(np.abs(e).mean())
            assert report[f"{target}: root mean squared error{names[key]}"] == pytest.approx(np.sqrt((e**2).mean()))
    assert report["forecasts compared"] == (24 - 3) + (18 - 3)
    assert not model.training


def test_a_network_that_says_nothing_is_the_seasonal_naive_forecast(tmp_path):
    task = Series(options(table(tmp_path)))
    model = network(task)
    torch.nn.init.zeros_(model.output.weight)
    torch.nn.init.zeros_(model.output.bias)
    report = task.report(model)
    for target in "uv":
        assert (
            report[f"{target}: mean absolute error"]
            == report[f"{target}: mean absolute error, seasonal-naive (season 6)"]
        )
    lines = list(
        csv.DictReader(
            io.StringIO("".join(Series.predict(model, task.spec(), PredictOptions(data=tmp_path / "d.csv"))))
        )
    )
    assert [float(r["u"]) for r in lines[:4]] == pytest.approx(task.panel.series[0].targets[-6:-2, 0])


def test_without_a_season_the_yardstick_is_the_last_value(tmp_path):
    walk = np.random.default_rng(0).normal(size=300).cumsum()
    path = write(tmp_path, "u\n" + "\n".join(f"{v:.5f}" for v in walk))
    task = Series(options(path, target="u", inputs="", time=None, id=None, season=None))
    assert task.encoding.season == 1
    assert task.sizes().inputs == 1
    report = task.report(network(task))
    assert "u: mean absolute error, naive (last value)" in report
    assert not any("seasonal" in key for key in report)


def test_predict_goes_on_where_the_data_end(tmp_path):
    """`horizon` rows a series, times in their spacing; the forecast of the last row is the model's own."""
    task = Series(options(table(tmp_path)))
    model, spec = network(task), json.loads(json.dumps(task.spec()))
    rows = list(
        csv.DictReader(io.StringIO("".join(Series.predict(model, spec, PredictOptions(data=tmp_path / "d.csv")))))
    )
    assert [(r["id"], r["t"]) for r in rows] == [("s0", str(120 + k)) for k in range(4)] + [
        ("s1", str(90 + k)) for k in range(4)
    ]
    for member, s in enumerate(task.panel.series):
        tape = task.encoding.join([s])
        z, _ = model(torch.from_numpy(tape.x)[:, None])
        wanted = task.encoding.forecasts(tape, np.array([len(s) - 1]), z[-1].detach().numpy())[0]
        got = [[float(r["u"]), float(r["v"])] for r in rows[4 * member : 4 * member + 4]]
        np.testing.assert_allclose(got, wanted, rtol=1e-6)


def test_predict_a_series_that_was_not_in_training(tmp_path):
    """A new id is scaled by its own deviation: ten times the values give ten times the forecast."""
    task = Series(options(table(tmp_path), inputs=""))
    model = network(task)
    rng = np.random.default_rng(5)
    y = np.sin(np.arange(60)) + rng.normal(size=60)
    out = []
    for factor in (1, 10):
        text = "id,t,u,v\n" + "".join(f"new,{k},{factor * y[k]:.8f},{factor * y[-k]:.8f}\n" for k in range(60))
        lines = Series.predict(model, task.spec(), PredictOptions(data=write(tmp_path, text, "n.csv")))
        out.append([float(r["u"]) for r in csv.DictReader(io.StringIO("".join(lines)))])
    np.testing.assert_allclose(out[1], 10 * np.array(out[0]), rtol=1e-5)


def test_predict_without_a_time_column_counts_steps(tmp_path):
    task = Series(options(table(tmp_path, lengths=(100,)), time=None, id=None))
    lines = list(Series.predict(network(task), task.spec(), PredictOptions(data=tmp_path / "d.csv")))
    assert lines[0] == "step,u,v\n"
    assert [line.split(",")[0] for line in lines[1:]] == ["101", "102", "103", "104"]


def test_predict_checks_before_it_writes(tmp_path):
    task = Series(options(table(tmp_path)))
    model, spec = network(task), task.spec()
    head = "id,t,u,v,w\n"
    for text, wanted in (
        ("id,t,u,w\ns,1,2,3\n", "no column 'v' .the run was trained with it"),
        (
            head + "".join(f"s,{2 * k},{k},1,1\n" for k in range(20)),
            "the step of the times is 2, the run was trained on 1",
        ),
        (head + "".join(f"s,{k},{k},1,1\n" for k in range(5)), "series 's' has 5 rows, wanted 7 or more"),
        (head + "".join(f"s,{k},{k},1,\n" for k in range(9)), "row 2: column 'w' is empty"),
    ):
        with pytest.raises(InputError, match=wanted) as error:
            Series.predict(model, spec, PredictOptions(data=write(tmp_path, text, "n.csv")))
        message(error)
    with pytest.raises(InputError, match="no data to go on from"):
        Series.predict(model, spec, PredictOptions())


def test_fingerprint_knows_the_used_columns(tmp_path):
    path = table(tmp_path)
    mark = make_task(options(path, inputs="")).fingerprint()
    assert mark["rows"] == 210
    lines = path.read_text().splitlines()
    other = write(
        tmp_path,
        "\n".join(line.rsplit(",", 1)[0] + ("" if k else ",w") + (",9" if k else "") for k, line in enumerate(lines)),
    )
    assert make_task(options(other, inputs="")).fingerprint() == mark  # w is not used
    lines[50] = lines[50].replace(",", ",", 1).rsplit(",", 2)[0] + ",7,7"
    assert make_task(options(write(tmp_path, "\n".join(lines)), inputs="")).fingerprint() != mark


# Mistakes ---------------------------------------------------------------------------------------------------------------

HEAD = "id,t,u,v,w\n"


def rows(id: str, length: int, step: int = 1, u: int | None = None, w: int | None = None) -> str:
    return "".join(
        f"{id},{step * k},{k * k % 17 if u is None else u},{k * 7 % 5},{k % 3 if w is None else w}\n"
        for k in range(length)
    )


GOOD = HEAD + rows("a", 60)
BAD = {
    "missing target": (GOOD, {"target": "x"}, "no column 'x' (--target): it has id, t, u, v, w"),
    "missing input": (GOOD, {"inputs": "vv"}, "no column 'vv' (--inputs): did you mean 'v'?"),
    "missing time": (GOOD, {"time": "time"}, "no column 'time' (--time)"),
    "missing id": (GOOD, {"id": "ids"}, "no column 'ids' (--id): did you mean 'id'?"),
    "target is input": (GOOD, {"inputs": "u"}, "column 'u' is both --target and --inputs: each column has one role"),
    "time is target": (GOOD, {"time": "u"}, "column 'u' is both --target and --time"),
    "target twice": (GOOD, {"target": "u,u"}, "--target names column 'u' twice"),
    "horizon": (GOOD, {"horizon": 0}, "--horizon 0: wanted a whole number from 1"),
    "chunk": (GOOD, {"chunk": 0}, "--chunk 0: wanted a whole number from 1"),
    "batch": (GOOD, {"batch": -1}, "--batch -1: wanted a whole number from 1"),
    "season": (GOOD, {"season": 0}, "--season 0: wanted a whole number from 1"),
    "test share": (GOOD, {"test": 0.0}, "--test 0: wanted a share between 0 and 1"),
    "text": (GOOD + "a,60,many,1,1\n", {}, "row 62: column 'u' is 'many', wanted a number"),
    "text in an unused column": (GOOD + "a,60,1,1,many\n", {"inputs": ""}, None),
    "NaN": (GOOD + "a,60,nan,1,1\n", {}, "row 62: column 'u' is 'nan', a missing value"),
    "infinite": (GOOD + "a,60,1,inf,1\n", {}, "row 62: column 'v' is 'inf', wanted a finite number"),
    "empty cell": (GOOD + "a,60,1,,1\n", {}, "row 62: column 'v' is empty"),
    "no id": (GOOD + ",60,1,2,1\n", {}, "row 62: column 'id' is empty"),
    "gap": (GOOD + "a,65,1,2,1\n", {}, "row 62: column 't' of 'a' goes from '59' to '65', wanted a step of 1"),
    "unsorted": (GOOD + "a,58,1,2,1\n", {}, "row 62: column 't' of 'a' is '58', which comes after '59': sort the rows"),
    "twice": (GOOD + "a,59,1,2,1\n", {}, "row 62: column 't' of 'a' is '59', which comes a second time"),
    "two series without an id": (GOOD + rows("b", 60), {"id": None}, "or if the file holds several series name the column"),
    "other spacing": (GOOD + rows("b", 60, step=2), {}, "series 'b' has a step of 2, series 'a' one of 1"),
    "constant target": (HEAD + rows("a", 60, u=5), {}, "column 'u' of series 'a' is 5 on each of its 42 training rows"),
    "constant input": (HEAD + rows("a", 60, w=5), {}, "input column 'w' is 5 on every training row"),
    "short test": (GOOD, {"horizon": 13}, "of which --test 0.2 keeps 12 for the test, fewer than the --horizon of 13"),
    "short training": (GOOD, {"horizon": 12, "season": 30}, "36 are left for training after test and validation, fewer"),
    "one row": (HEAD + "a,1,1,2,3\n", {}, "--test 0.2 keeps 0 for the test"),
    "short series": (GOOD + rows("b", 9), {}, "series 'b' has 9 rows, of which --test 0.2 keeps 2 for the test"),
    "header only": (HEAD, {}, "no rows below the header"),
}  # fmt: skip


@pytest.mark.parametrize("case", BAD)
def test_bad_table(tmp_path, case):
    text, more, wanted = BAD[case]
    path = write(tmp_path, text)
    if wanted is None:
        Series(options(path, **more))
        return
    with pytest.raises(InputError) as error:
        Series(options(path, **more))
    assert wanted in message(error)


def test_calendar_months_and_parquet(tmp_path):
    """A monthly series with a time column of decimals (1991.583 …) and of dates, from CSV and from Parquet."""
    frame = r_data("fpp2/a10")
    frame.write_csv(tmp_path / "a10.csv")
    frame.write_parquet(tmp_path / "a10.parquet")
    more = {"target": "value", "inputs": "", "id": None, "horizon": 12, "season": None}
    one, other = (Series(options(tmp_path / f"a10.{form}", time="time", **more)) for form in ("csv", "parquet"))
    assert one.encoding.season == other.encoding.season == 12
    lines = list(Series.predict(network(one), one.spec(), PredictOptions(data=tmp_path / "a10.csv")))
    assert float(lines[1].split(",")[0]) == pytest.approx(2008.5, abs=1e-3)


# Real ------------------------------------------------------------------------------------------------------------------


@pytest.mark.real
@pytest.mark.parametrize("seed", [0, 1])
def test_electricity_beats_seasonal_naive(tmp_path, seed):
    """Half-hourly demand with a daily and a weekly season, a day ahead, with nothing but defaults."""
    path, run = electricity(tmp_path), tmp_path / "run"
    roles = ["--data", path, "--target", "Demand", "--time", "Time", "--horizon", 48]
    done = bptt("train", "series", *roles, "--seed", seed, "--out", run)
    assert done.returncode == 0, done.stderr
    report = json.loads((run / "report.json").read_text())
    for error in ("mean absolute error", "root mean squared error"):
        assert report[f"Demand: {error}"] < 0.9 * report[f"Demand: {error}, seasonal-naive (season 336)"]
        assert report[f"Demand: {error}"] < 0.9 * report[f"Demand: {error}, naive (last value)"]
    assert done.seconds < 120
    lines = bptt("predict", run).stdout.splitlines()
    assert len(lines) == 49
    assert lines[1].startswith("2015-01-01 00:00,")
    assert lines[-1].startswith("2015-01-01 23:30,")


# Times and extreme numbers ------------------------------------------------------------------------------------------------


def timed(folder: Path, times: list[str], name: str = "t.csv", values: dict[int, str] | None = None) -> Path:
    """A series of one target with these times, and other values on some rows (from 0)."""
    u = {k: f"{np.sin(k / 2) + 5:.4f}" for k in range(len(times))} | (values or {})
    return write(folder, "t,u\n" + "".join(f"{t},{u[k]}\n" for k, t in enumerate(times)), name)


TIMED = {"target": "u", "inputs": "", "id": None, "season": 1}


@pytest.mark.parametrize(
    "written",
    [
        lambda k: str(1577836800123 + 40 * k),
        lambda k: str(1577836800000000007 + 10**9 * k),
        lambda k: f"{1577836800.5 + 0.5 * k:.1f}",
        lambda k: f"{k / 10 - 3:.1f}",
        lambda k: str(12345678901 + k),
        lambda k: (np.datetime64("2020-01-30") + k).item().isoformat(),
    ],
)
def test_predict_writes_times_as_the_data_do(tmp_path, written):
    path = timed(tmp_path, [written(k) for k in range(80)])
    task = Series(options(path, **TIMED))
    spec = json.loads(json.dumps(task.spec()))
    lines = list(Series.predict(network(task), spec, PredictOptions(data=path)))
    assert [line.split(",")[0] for line in lines[1:]] == [written(k) for k in range(80, 84)]
    more = timed(tmp_path, [written(k) for k in range(5000, 5060)], "m.csv")
    lines = list(Series.predict(network(task), spec, PredictOptions(data=more)))
    assert [line.split(",")[0] for line in lines[1:]] == [written(k) for k in range(5060, 5064)]


def test_each_series_goes_on_from_its_own_time(tmp_path):
    cells = [
        (name, begin + 1000 * k, k * k % 11) for name, begin in (("a", 1577836800123), ("b", 7)) for k in range(60)
    ]
    path = write(tmp_path, "id,t,u\n" + "".join(f"{i},{t},{u}\n" for i, t, u in cells))
    task = Series(options(path, target="u", inputs="", season=1))
    lines = list(Series.predict(network(task), task.spec(), PredictOptions(data=path)))[1:]
    wanted = [str(begin + 1000 * k) for begin in (1577836800123, 7) for k in range(60, 64)]
    assert [line.split(",")[1] for line in lines] == wanted


def test_month_ends_are_known_from_the_training(tmp_path):
    """June, September, December … 2019 do not say that the 30th is a month's end, the run's data do."""
    months = np.datetime64("2000-01") + 3 * np.arange(80)
    ends = [str((m + 1).astype("datetime64[D]") - 1) for m in months]
    task = Series(options(timed(tmp_path, ends), **TIMED))
    model, spec = network(task), json.loads(json.dumps(task.spec()))
    for last, following in (("2019-06-30,1\n2019-09-30,2", "2019-12-31"), ("2019-06-15,1\n2019-09-15,2", "2019-12-15")):
        path = write(tmp_path, f"t,u\n{last}\n", "m.csv")
        assert list(Series.predict(model, spec, PredictOptions(data=path)))[1].startswith(following)


def test_a_forecast_beyond_the_year_9999_is_refused_before_anything_is_written(tmp_path):
    path = timed(tmp_path, [str(np.datetime64("9999-12-31") - 79 + k) for k in range(80)])
    task = Series(options(path, **TIMED))
    with pytest.raises(InputError, match="a forecast would go beyond the year 9999") as error:
        Series.predict(network(task), task.spec(), PredictOptions(data=path))
    message(error)


def test_times_that_differ_beyond_float64_are_not_the_same(tmp_path):
    """One nanosecond apart, and one twice: 2^53 of them are 104 days."""
    begin = 1577836800000000000
    Series(options(timed(tmp_path, [str(begin + k) for k in range(80)]), **TIMED))
    with pytest.raises(InputError, match=f"is '{begin + 78}', which comes a second time"):
        Series(options(timed(tmp_path, [str(begin + min(k, 78)) for k in range(80)]), **TIMED))


@pytest.mark.parametrize("row", [3, 59, 75])
def test_a_cell_that_cannot_be_computed_with_is_named(tmp_path, row):
    """In the training, validation and test part. 1e39 is infinite in float32."""
    times = [str(k) for k in range(80)]
    for cell, wanted in (("1e308", "is '1e308', too extreme to"), ("1e-320", "is '1e-320', too extreme to")):
        with pytest.raises(InputError, match=f"row {row + 2}: column 'u' {wanted}") as error:
            Series(options(timed(tmp_path, times, values={row: cell}), **TIMED))
        message(error)
    far = timed(tmp_path, times, "f.csv", values={row: "1e39"})
    if row == 3:  # training decides what is usual
        batch = next(Series(options(far, **TIMED)).stream(Shard()))
        assert batch.x.float().isfinite().all()
        assert batch.y.float().square().isfinite().all()
        return
    with pytest.raises(InputError, match=rf"row {row + 2}: column 'u' is 1e\+39, more than 1e\+12 standard deviations"):
        Series(options(far, **TIMED))
    task = Series(options(timed(tmp_path, times), **TIMED))
    with pytest.raises(InputError, match=rf"f.csv row {row + 2}: column 'u' is 1e\+39, more than"):
        Series.predict(network(task), task.spec(), PredictOptions(data=far))


def test_a_far_input_is_named_among_the_inputs(tmp_path):
    path = table(tmp_path)
    lines = path.read_text().split("\n")
    lines[110] = lines[110].rpartition(",")[0] + ",-3.4e38"
    with pytest.raises(InputError, match=r"row 111: column 'w' is -3.4e\+38, more than"):
        Series(options(write(tmp_path, "\n".join(lines))))
    lines = table(tmp_path).read_text().split("\n")
    lines[205] = ",".join([*lines[205].split(",")[:3], "1e60", "0"])
    with pytest.raises(InputError, match=r"row 206: column 'v' is 1e\+60, more than"):
        Series(options(write(tmp_path, "\n".join(lines))))


def test_a_column_that_hardly_varies_is_named(tmp_path):
    path = timed(tmp_path, [str(k) for k in range(80)], values={k: f"{k % 7}e-200" for k in range(80)})
    with pytest.raises(InputError, match="column 'u' varies by less than 1e-100, too little to compute with"):
        Series(options(path, **TIMED))


def test_the_rounding_of_numbers_is_not_learned_from(tmp_path):
    """A straight line has one change, but for its last bits, which the network must neither see nor be asked for."""
    path = timed(tmp_path, [str(k) for k in range(80)], values={k: repr(0.1 * k) for k in range(80)})
    task = Series(options(path, **TIMED))
    assert abs(task.training.x).max() < 1e-6
    assert task.report(network(task))["u: mean absolute error, naive (last value)"] == pytest.approx(0.25)


@pytest.mark.parametrize("form", ["sep=;\nt;u\n{rows}", "\ufefft;u;\n{rows}"])
def test_tables_of_excel_are_learned(tmp_path, form):
    rows = "".join(f"{k};{k * k % 17};\n" for k in range(60))
    path = tmp_path / "d.csv"
    for encoding in ("utf-8", "utf-16"):
        path.write_bytes(form.format(rows=rows).removeprefix("\ufeff" if encoding == "utf-16" else "").encode(encoding))
        task = Series(options(path, **TIMED))
        assert task.panel.series[0].targets[:, 0].tolist() == [k * k % 17 for k in range(60)]
