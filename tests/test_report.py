"""The page of a flow, in a real browser: verdict first, readable on a phone, self-contained, of a bounded size."""

import math
import re
import warnings
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

import bptt
from bptt.flow.report.plot import call_marks
from bptt.flow.report.svg import Curve, Mark, bar_chart, line_chart, thinned
from bptt.train.display.curve import draw_curve
from bptt.train.storage.metrics import read_metrics
from tests.browser import DESKTOP, PHONE, opened
from tests.cases import Leaky

MEGABYTE = 1_000_000
AUDIT = Path(__file__).with_name("page_audit.js").read_text()


def _flow(model, x, loss=lambda outputs: outputs.square().mean()):
    flow = bptt.watch(model)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        with flow:
            result = model(x)
            loss(result[0] if isinstance(result, tuple) else result).backward()
    return flow


def _with_nan():
    x = torch.randn(30, 3, 4)
    x[15, 2, 1] = math.nan
    return _flow(nn.LSTM(4, 6), x)


def _named():
    """A model whose names would be markup."""
    model = nn.ModuleDict({"<b>&'\"</b><script>alert(1)</script>": nn.GRU(4, 6)})
    model.forward = lambda x: next(iter(model.values()))(x)
    return _flow(model, torch.randn(12, 3, 4))


FLOWS = {
    "two layers, both directions": lambda: _flow(
        nn.LSTM(4, 6, num_layers=2, bidirectional=True), torch.randn(40, 3, 4)
    ),
    "nothing watched": lambda: _flow(nn.Linear(4, 2), torch.randn(10, 4)),
    "not finite": _with_nan,
    "all zero": lambda: _flow(nn.GRU(4, 6), torch.randn(12, 3, 4), lambda outputs: (0 * outputs).sum()),
    "own cell": lambda: _flow(bptt.Recurrent(Leaky(), 4, 6), torch.randn(12, 3, 4)),
    "relu": lambda: _flow(nn.RNN(4, 6, nonlinearity="relu"), torch.randn(12, 3, 4)),
    "one step": lambda: _flow(nn.LSTM(4, 6), torch.randn(1, 3, 4)),
    "names that are markup": _named,
}


@pytest.mark.parametrize("name", FLOWS)
def test_every_flow_has_a_page(name, chromium, tmp_path):
    flow = FLOWS[name]()
    file = tmp_path / "flow.html"
    flow.report(file)
    for size in (PHONE, DESKTOP):
        with opened(chromium, file, size) as seen:
            seen.check()
            page = seen.page
            assert page.evaluate("document.documentElement.scrollWidth") <= size[0]
            first = page.locator(".summary").bounding_box()
            assert first["y"] + first["height"] < size[1], "the first screen tells the verdict"
            text = page.inner_text("body")
    for layer in flow:
        assert layer.name in text
    for finding in flow.verdict():
        assert finding.text in text
        assert all(remedy.code in text for remedy in finding.remedies)
    assert all(note in text for note in flow.notes)
    assert "NaN" not in file.read_text().replace("NaN or infinite", "")


def test_severity_is_a_word_and_a_symbol(tmp_path):
    _with_nan().report(tmp_path / "broken.html")
    assert "✕ Broken" in (tmp_path / "broken.html").read_text()
    assert "▲ Look here" in _flow(nn.GRU(4, 6), torch.randn(200, 3, 4))._repr_html_()
    assert "✓ Healthy" in _flow(nn.GRU(4, 6), torch.randn(5, 3, 4))._repr_html_()


@pytest.mark.parametrize(("steps", "most"), [(5, 100_000), (200, MEGABYTE), (5000, MEGABYTE)])
def test_the_size_does_not_grow_with_the_steps(steps, most, chromium, tmp_path):
    model = nn.LSTM(4, 8, num_layers=2, bidirectional=True)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "bias_ih" in name:
                parameter[8:16] = 8.0  # far-reaching, so that the curves are long
    file = tmp_path / "flow.html"
    _flow(model, torch.randn(steps, 2, 4)).report(file)
    assert file.stat().st_size <= most
    with opened(chromium, file, PHONE) as seen:
        seen.check()
        assert seen.page.evaluate("document.documentElement.scrollWidth") <= PHONE[0]


def test_charts_name_their_axes_and_nothing_leaves_them(chromium, tmp_path):
    file = tmp_path / "flow.html"
    _flow(nn.LSTM(4, 6), torch.randn(200, 3, 4)).report(file)
    with opened(chromium, file, PHONE) as seen:
        labels = seen.page.eval_on_selector_all("figure > svg", "all => all.map(s => s.getAttribute('aria-label'))")
        outside = seen.page.eval_on_selector_all(
            "figure > svg text",
            """all => all.filter(t => {
                const a = t.getBoundingClientRect(), b = t.ownerSVGElement.getBoundingClientRect();
                return a.left < b.left - 1 || a.right > b.right + 1 || a.top < b.top - 1 || a.bottom > b.bottom + 1;
            }).map(t => t.textContent)""",
        )
        complaints = seen.page.evaluate(AUDIT)  # letters, as they are after the chart was shrunk, of 12 px at least
        words = seen.page.inner_text("body")
    assert len(labels) == 5
    assert all("over" in label or "share" in label for label in labels)
    assert words.count("log scale") == 4
    assert outside == []
    assert complaints == []


def test_dark_text_on_light_also_where_the_reader_prefers_dark(chromium, tmp_path):
    file = tmp_path / "flow.html"
    _flow(nn.GRU(4, 6), torch.randn(12, 3, 4)).report(file)
    (tmp_path / "notebook.html").write_text(
        "<!doctype html><link rel=icon href='data:,'><body style='background: #111; color: #eee'>"
        + _flow(nn.GRU(4, 6), torch.randn(12, 3, 4))._repr_html_()
    )
    for path in (file, tmp_path / "notebook.html"):
        with opened(chromium, path, DESKTOP, dark=True) as seen:
            seen.check()
            style = "e => [getComputedStyle(e).backgroundColor, getComputedStyle(e).color]"
            assert seen.page.eval_on_selector(".bptt", style) == ["rgb(255, 255, 255)", "rgb(26, 26, 26)"]


def test_it_prints(chromium, tmp_path):
    file = tmp_path / "flow.html"
    _flow(nn.LSTM(4, 6), torch.randn(40, 3, 4)).report(file)
    with opened(chromium, file) as seen:
        printed = seen.page.pdf(format="A4", prefer_css_page_size=True)
        seen.page.emulate_media(media="print")
        assert seen.page.eval_on_selector("figure", "e => getComputedStyle(e).breakInside") == "avoid"
    assert printed.startswith(b"%PDF")


def test_a_page_is_whole_or_not_there(tmp_path, monkeypatch):
    flow = _flow(nn.GRU(4, 6), torch.randn(12, 3, 4))
    file = tmp_path / "flow.html"
    file.write_text("of before")
    with pytest.raises(FileNotFoundError, match=r"cannot write the report .*exists and can be written"):
        flow.report(tmp_path / "nowhere" / "flow.html")
    with pytest.raises(IsADirectoryError, match="wanted a file"):
        flow.report(tmp_path)
    with monkeypatch.context() as patch:
        patch.setattr("os.replace", lambda *_: (_ for _ in ()).throw(OSError(28, "No space left on device")))
        with pytest.raises(OSError, match="No space left"):
            flow.report(file)
    assert [path.name for path in tmp_path.iterdir()] == ["flow.html"]
    assert file.read_text() == "of before"
    flow.report(str(file))
    assert file.read_text().startswith("<!doctype html>")


def test_many_layers_in_a_notebook_are_named_not_drawn():
    flow = _flow(nn.LSTM(4, 6, num_layers=3, bidirectional=True), torch.randn(12, 3, 4))
    page = flow._repr_html_()
    assert page.count("<figure>") == 8
    assert "lstm.l2, lstm.l2_reverse" in page


def test_truncations_in_the_page_are_those_of_the_flow(tmp_path):
    flow = _flow(nn.GRU(4, 6), torch.randn(40, 3, 4))
    flow.report(tmp_path / "flow.html")
    found = re.findall(r"<tr><td>(\d+)</td><td>([^<]+)</td>", (tmp_path / "flow.html").read_text())
    assert [int(k) for k, _ in found] == [1, 4, 16]
    for k, lost in found:
        assert float(lost) == pytest.approx(flow.truncation(int(k)).lost, rel=0.06, abs=1e-12)


def test_thinning_keeps_every_peak():
    y = torch.rand(10_000, dtype=torch.float64).numpy()
    y[[17, 5001, 9999]] = 7.0
    y[[18, 6000]] = -7.0
    x, kept = thinned(torch.arange(10_000.0).numpy(), y)
    assert len(x) <= 360
    assert {17, 5001, 9999, 18, 6000} <= {int(n) for n in x}
    assert (kept == y[x.astype(int)]).all()


def test_charts_of_awkward_values_are_drawn():
    values = torch.tensor([1e-300, 0.0, math.inf, math.nan, 1.0, 1.0], dtype=torch.float64).numpy()
    for log in (True, False):
        chart = line_chart(
            "awkward", "step", "norm", [Curve("a", values)], [Mark(2.0, "here"), Mark(0.5, upright=False)], log
        )
        assert "nan" not in chart.lower()
        assert "inf" not in re.sub("not finite", "", chart)
    assert "Nothing to draw" in line_chart("zero", "step", "norm", [Curve("a", 0 * values[:2])])
    assert "&lt;i&gt;" in bar_chart("<i>", "share", {"<i>": 0.004})


# TensorBoard -------------------------------------------------------------------------------------------------------


class Writer:
    """Keeps what it is given."""

    def __init__(self):
        self.scalars, self.others = {}, []

    def add_scalar(self, name, value, step):
        assert math.isfinite(value)
        self.scalars[name] = (value, step)


class FullWriter(Writer):
    def add_histogram(self, name, values, step):
        self.others.append("histogram")

    def add_text(self, name, text, step):
        self.others.append("text")

    def add_figure(self, name, figure, step):
        self.others.append("figure")


@pytest.mark.parametrize("kind", [Writer, FullWriter])
def test_tensorboard_by_what_the_writer_can_do(kind):
    writer = kind()
    flow = _flow(nn.LSTM(4, 6), torch.randn(40, 3, 4))
    flow.to_tensorboard(writer, 7)
    assert writer.scalars["flow/lstm.l0/horizon (steps)"] == (flow["lstm.l0"].horizon, 7)
    assert writer.scalars["flow/gradient norm"] == (flow.norms[-1], 7)
    assert set(writer.others) == (set() if kind is Writer else {"histogram", "text", "figure"})
    for flow in (_with_nan(), FLOWS["nothing watched"](), FLOWS["all zero"]()):
        flow.to_tensorboard(kind(), 1)
    with pytest.raises(TypeError, match="SummaryWriter"):
        flow.to_tensorboard(object(), 1)


def test_tensorboard_itself(tmp_path):
    tensorboard = pytest.importorskip("torch.utils.tensorboard")
    with tensorboard.SummaryWriter(str(tmp_path)) as writer:
        _flow(nn.LSTM(4, 6), torch.randn(40, 3, 4)).to_tensorboard(writer, 3)
    assert any(path.stat().st_size > 1000 for path in tmp_path.iterdir())


@pytest.mark.parametrize("calls", [3, 100])
def test_the_calls_of_a_loop_do_not_paint_the_chart_over(calls):
    model = nn.GRU(3, 4)
    with bptt.watch(model) as flow:
        state, total = None, 0.0
        for _ in range(calls):
            outputs, state = model(torch.randn(1, 2, 3), state)
            total = total + outputs.square().sum()
        total.backward()
    marks = call_marks(flow["gru.l0"])
    assert marks == ([0.5, 1.5] if calls == 3 else [])
    assert flow._repr_html_().count("next call") == bool(marks)
    assert len(flow.plot().axes[0].lines) < 20


# Marks and logarithms ----------------------------------------------------------------------------------------------

VALUES = st.one_of(st.floats(), st.sampled_from([0.0, -0.0, 1e-12, 1.0, -1.0, 5e-324, 1.7e308, -1.7e308]))


@given(st.lists(VALUES, min_size=1, max_size=6), st.lists(st.tuples(VALUES, st.booleans()), max_size=4), st.booleans())
def test_every_chart_is_drawn(values, marks, log):
    curve = Curve("a", torch.tensor(values, dtype=torch.float64).numpy())
    chart = line_chart("t", "x", "y", [curve], [Mark(at, "m", upright) for at, upright in marks], log)
    picture = chart.partition("</svg>")[0]
    assert not re.search(r"nan|inf", picture.replace("not finite", ""))
    assert all(0 <= float(y) <= 240 for y in re.findall(r'class="k" d="M[\d.]+ ([-\d.e]+)', picture))


@pytest.mark.parametrize("at", [0.0, -0.0, -2.0, math.nan, math.inf, 1e-30, 1e30])
def test_a_mark_that_a_logarithmic_axis_cannot_show_is_named(at):
    curve = Curve("loss", torch.tensor([1.0, 0.01], dtype=torch.float64).numpy())
    marks = [Mark(0.1, "chance", upright=False), Mark(at, "perfect", upright=False)]
    chart = line_chart("curve", "updates", "bits", [curve], marks)
    assert chart.count('class="k"') == 1
    assert ">chance</text>" in chart
    assert "<p>No line at (0 or less, not finite, or more than 12 decades from the curves): perfect.</p>" in chart
    assert (
        chart.split("<p>No line")[0] == line_chart("curve", "updates", "bits", [curve], marks[:1]).split("</figure>")[0]
    )
    if math.isfinite(at):
        assert line_chart("curve", "updates", "bits", [curve], marks, log=False).count('class="k"') == 2


@pytest.mark.parametrize("report", [{"loss": 0.1, "loss, naive": 0.0, "loss, other": -1.0, "loss, broken": math.nan}])
def test_the_picture_of_a_curve_has_yardsticks_of_any_size(tmp_path, report, monkeypatch):
    (tmp_path / "metrics.jsonl").write_text("".join(f'{{"step": {k}, "loss": {100 / k**2}}}\n' for k in range(1, 40)))
    labels = []
    monkeypatch.setattr(
        "matplotlib.axes.Axes.legend", lambda axes, **_: labels.extend(axes.get_legend_handles_labels()[1])
    )
    draw_curve(tmp_path, "text", "loss", float, report)
    absent = " (not on this axis)"
    assert labels[-3:] == [f"naive: 0{absent}", f"other: -1{absent}", f"broken: nan{absent}"]
    assert (tmp_path / "curve.png").read_bytes().startswith(b"\x89PNG")


def test_metrics_are_cut_at_line_feeds_alone(tmp_path):
    layer = "a\u2028b\x85c"
    line = f'{{"step": 1, "flow": [{{"layer": "{layer}", "verdict": []}}]}}'
    (tmp_path / "metrics.jsonl").write_bytes((line + "\n" + line + "\r\n" + line[:9]).encode())
    assert read_metrics(tmp_path) == 2 * [{"step": 1, "flow": [{"layer": layer, "verdict": []}]}]
