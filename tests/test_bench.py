"""bptt bench: the check before the ratio, the table, the picture, Ctrl-C, and mistakes in one line."""

import dataclasses
import math

import pytest
import torch
from torch import nn

from bptt import bench, cli
from bptt.options import BenchOptions

TINY = ["--batch", "1", "3", "--hidden", "4", "8", "--steps", "6", "--seconds", "0.01"]
RIGHT = bench.Point("lstm", 2, 8, 4e-3, 2e-3, 1e-3, 1e-7, 1e-5)

RATE = bench.matrix_rate


@pytest.fixture(autouse=True)
def _here(monkeypatch, tmp_path):
    torch.set_num_threads(1)  # these sizes are too small to share
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(bench, "matrix_rate", lambda dtype: 1e11)
    monkeypatch.setenv("COLUMNS", "100")


def test_the_whole_command(capsys, tmp_path):
    assert cli.main(["bench", *TINY, "--threads", "1", "--dtype", "float64"]) == 0
    text = capsys.readouterr().out
    assert "T 6, D = H, float64, 1 thread; matrix product 100 GFLOP/s" in text
    assert all(word in text for word in ("torch ms", "bptt ms", "of the limit", "geometric mean", "over 12 points"))
    assert text.count("│ lstm │") == 4
    assert (tmp_path / "bench.png").read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize("cell", ["rnn", "gru", "lstm"])
def test_a_point(cell):
    point = bench.measure(cell, 3, 8, BenchOptions(inputs=5, steps=7, seconds=0.01), rate=1e9)
    assert point.right
    assert point.error > 0
    assert point.ratio == point.torch_seconds / point.bptt_seconds
    gates = {"rnn": 1, "gru": 3, "lstm": 4}[cell]
    assert point.limit_seconds == pytest.approx(2 * 3 * 7 * gates * 8 * (2 * 5 + 3 * 8) / 1e9)


def test_the_rate_of_a_matrix_product():
    assert 1e7 < RATE(torch.float32, size=128) < 1e14


@pytest.mark.parametrize("by", [1e-3, math.nan])
def test_no_ratio_where_the_gradients_differ(by, monkeypatch, capsys, tmp_path):
    def fuse_wrongly(layer):
        with torch.no_grad():
            layer.weight_hh_l0 += by  # every entry: one alone may hide below the tolerance
        return layer

    monkeypatch.setattr(bench, "fuse", fuse_wrongly)
    assert cli.main(["bench", *TINY, "--cell", "gru"]) == 1
    text = capsys.readouterr().out
    assert text.count("gradients differ by") == 4
    assert "at 4 of 4 points the gradients differ" in text
    assert "x │" not in text
    assert "geometric mean" not in text
    assert not (tmp_path / "bench.png").exists()


def test_the_allowed_error_is_the_table_s_or_twice_torch_s():
    torch.manual_seed(0)
    layer = nn.LSTM(4, 8)
    for steps, tolerance in ((16, 1e-5), (257, 1e-4)):
        x, d_outputs = torch.randn(steps, 2, 4), torch.randn(steps, 2, 8)
        assert bench._error(layer, layer, x, d_outputs)[1] >= tolerance
    layer.double()
    assert bench._error(layer, layer, x.double(), d_outputs.double()) == (0.0, 1e-10)


def test_ctrl_c_shows_what_there_is(monkeypatch, capsys, tmp_path):
    points = iter([RIGHT, dataclasses.replace(RIGHT, batch=64, bptt_seconds=0.5e-3)])

    def measure(*_):
        for point in points:
            return point
        raise KeyboardInterrupt

    monkeypatch.setattr(bench, "measure", measure)
    assert cli.main(["bench"]) == 130
    text = capsys.readouterr().out
    assert "8.00x" in text
    assert "geometric mean: bptt is 4.00x as fast as torch.nn, over 2 points" in text
    assert "stopped" in text
    assert (tmp_path / "bench.png").exists()


def test_ctrl_c_before_anything_was_measured(monkeypatch, capsys):
    def measure(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(bench, "measure", measure)
    assert cli.main(["bench"]) == 130
    assert "geometric mean" not in capsys.readouterr().out


@pytest.mark.parametrize("cells", [1, 3])
def test_the_picture_of_one_and_of_several_cells(cells, tmp_path):
    names = ["rnn", "gru", "lstm"][:cells]
    points = [dataclasses.replace(RIGHT, cell=c, hidden=h) for c in names for h in (8, 64)]
    bench.draw([*points, dataclasses.replace(RIGHT, cell=names[0], batch=1)], BenchOptions())
    assert (tmp_path / "bench.png").stat().st_size > 5000


def test_out_of_memory_is_one_line(monkeypatch, capsys):
    def measure(*_):
        raise RuntimeError("DefaultCPUAllocator: can't allocate memory")

    monkeypatch.setattr(bench, "measure", measure)
    assert cli.main(["bench"]) == 2
    assert "does not fit in memory: give a smaller --batch" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--batch", "0"], "--batch is 0, at least 1 is wanted"),
        (["--hidden", "8", "-4"], "--hidden"),
        (["--hidden", "many"], "--hidden"),
        (["--batch"], "--batch is empty"),
        (["--cell"], "--cell is empty"),
        (["--cell", "LSTMs"], "--cell"),
        (["--steps", "0"], "--steps is 0"),
        (["--inputs", "0"], "--inputs is 0"),
        (["--threads", "0"], "--threads is 0"),
        (["--threads", "100000"], "give at most"),
        (["--seconds", "0"], "--seconds is 0.0, wanted is a time above 0"),
        (["--seconds", "nan"], "--seconds is nan"),
        (["--dtype", "float16"], "--dtype"),
        (["--hidden", "10000000000"], "GiB of memory: give a smaller"),
        (["--picture", "bench.pdf"], "a name that ends in .png"),
        (["--picture", "nowhere/bench.png"], "in nowhere, which is no folder"),
        (["--sizes", "3"], "--sizes"),
    ],
)
def test_mistakes_are_one_line_and_exit_code_2(arguments, message, capsys):
    assert cli.main(["bench", *arguments]) == 2
    said = capsys.readouterr()
    assert message in said.err
    assert said.err.startswith("bptt: error: ")
    assert said.err.count("\n") == 1
    assert said.out == ""


def test_help_names_every_option(capsys):
    with pytest.raises(SystemExit) as end:
        cli.main(["bench", "--help"])
    assert not end.value.code
    text = capsys.readouterr().out
    assert all(f"--{field.name} " in text for field in dataclasses.fields(BenchOptions))
