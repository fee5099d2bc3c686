"""The user's own network on the page: its numbers are gradient_map's, whatever is not finite is said, and it can be read."""

import base64
import json
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from playwright.sync_api import expect
from torch import nn
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence

import bptt
from bptt import cli
from bptt.explaining import own as own_module
from bptt.explaining.downsample import INF, NAN, ZERO, borders, largest, number
from bptt.explaining.own import explain, own
from bptt.explaining.reach import largest_singular_value
from bptt.network import Linear, Network, Softmax
from tests.browser import DESKTOP, PHONE, opened, repaint_time, silent_pages
from tests.runs import SMALL, failed
from tests.runs import bptt as run_bptt

AUDIT = Path(__file__).with_name("page_audit.js").read_text()
CELL, CURVE = 1.2e-2, 5.1e-4  # what rounding to hundredths of a decade, and to four digits, may leave
LIMIT = 200_000


class Forecaster(nn.Module):
    """A user's model: a recurrent layer in the middle, named as they like."""

    def __init__(self, layer):
        super().__init__()
        self.inner = nn.ModuleDict({"memory": layer})
        self.last = nn.Linear(layer.hidden_size * (2 if layer.bidirectional else 1), 2)

    def forward(self, x):
        hidden, _ = self.inner["memory"](x)
        return self.last(torch.tanh(hidden if isinstance(hidden, torch.Tensor) else pad_packed_sequence(hidden)[0]))


def squares(outputs, y):
    return (outputs - y) ** 2


def network(layer, features, outputs=2, head=None):
    return Network(layer, features, outputs, head or Linear())


def log10_cells(text, blocks, reverse=False):
    """The triangle as a full matrix of norms."""
    raw = torch.frombuffer(bytearray(base64.b64decode(text)), dtype=torch.int16).double()
    values = torch.where(raw == ZERO, 0.0, 10 ** (raw / 100))
    values = torch.where(raw == INF, torch.inf, torch.where(raw == NAN, torch.nan, values))
    rows, columns = torch.triu_indices(blocks, blocks) if reverse else torch.tril_indices(blocks, blocks)
    full = torch.zeros(blocks, blocks, dtype=torch.float64)
    full[rows, columns] = values
    return full


def numbers(values):
    return torch.tensor([float(str(v).lower()) for v in values], dtype=torch.float64)


def assert_close(found, wanted, relative):
    assert found.shape == wanted.shape
    torch.testing.assert_close(found, wanted.double(), rtol=relative, atol=1e-300, equal_nan=True)


def check_layer(layer, seen, terms, blocks, place=0):
    """One embedded layer and direction against its GradientMap."""
    suffix = "_l" + seen["name"].rsplit(".l", 1)[1]
    one = seen["samples"][0]
    for short in seen["parameters"]:
        name, made = short + suffix, one["maps"][short]
        norms = terms.norms(name)[place]
        assert_close(log10_cells(made["cells"], blocks, seen["reverse"]), largest(norms.double(), blocks), CELL)
        assert_close(numbers(made["lags"]), largest(terms.lags(name)[place].double(), blocks), CURVE)
        for component, values in made["through"].items():
            assert_close(numbers(values), largest(terms.lags(name, component)[place].double(), blocks), CURVE)
        if blocks == len(norms) and made["through"]:  # nothing thinned: the shares are the map's own
            parts = torch.stack([numbers(values) for values in made["through"].values()])
            shares = torch.where(parts.sum(0) > 0, parts / parts.sum(0), torch.zeros_like(parts))
            wanted = torch.stack([share[place] for share in terms.shares(name).values()]).double()
            torch.testing.assert_close(shares, wanted, rtol=2e-3, atol=1e-6)


# The numbers -------------------------------------------------------------------------------------------------------

LAYERS = {
    "LSTM": lambda: nn.LSTM(3, 6),
    "bptt.GRU": lambda: bptt.GRU(3, 5),
    "relu": lambda: nn.RNN(3, 12, nonlinearity="relu"),
    "two layers, both ways": lambda: nn.LSTM(3, 4, num_layers=2, bidirectional=True),
    "batch first": lambda: nn.GRU(3, 5, batch_first=True),
    "own cell": lambda: bptt.Recurrent(bptt.cells.Elman("sigmoid"), 3, 5),
}


@pytest.mark.parametrize("kind", LAYERS)
@pytest.mark.parametrize("steps", [1, 5, 40])
def test_the_numbers_are_those_of_gradient_map(kind, steps):
    layer = LAYERS[kind]()
    model, first = Forecaster(layer), getattr(layer, "batch_first", False)
    shape = (4, steps) if first else (steps, 4)
    x, y = torch.randn(*shape, 3), torch.randn(*shape, 2)
    hidden, _ = layer(x)
    hidden.retain_grad()
    losses = squares(model.last(torch.tanh(hidden)), y)
    losses.sum().backward()
    data = own(model, x, y, loss=squares, samples=[2])
    terms = bptt.gradient_map(layer, x, grad_outputs=hidden.grad, samples=[2])
    names = [
        f"inner.memory.l{d}{r}"
        for d in range(layer.num_layers)
        for r in (["", "_reverse"] if layer.bidirectional else [""])
    ]
    assert [seen["name"] for seen in data["layers"]] == names
    for place, seen in enumerate(data["layers"]):
        one = seen["samples"][0]
        assert (one["steps"], one["words"]) == (steps, [])
        check_layer(layer, seen, terms, one["blocks"])
        depth, direction = divmod(place, 2 if layer.bidirectional else 1)
        whole = bptt.products(layer, x, sample=2, depth=depth, direction=direction, lags=one["products"]["lags"])
        assert one["products"]["t"] == whole.t
        ranks = torch.tensor(one["products"]["ranks"]) - 1
        found = torch.stack([numbers(row) for row in one["products"]["log10"]], dim=1)
        torch.testing.assert_close(found, whole.log10[:, ranks], rtol=1e-4, atol=1e-10)
    wanted = losses.detach()[2] if first else losses.detach()[:, 2]
    assert_close(numbers(data["losses"][0]["values"]), wanted.sum(1), CURVE)
    assert float(data["total"]) == pytest.approx(float(losses.detach().sum()), rel=1e-5)


def test_a_bptt_network_brings_its_own_loss_and_resets():
    model = network(bptt.LSTM(3, 6), 6, head=Softmax())
    x, y, reset = torch.randn(12, 2, 3), torch.randint(2, (12, 2)), torch.zeros(12, 2, dtype=torch.bool)
    reset[7, 1] = True
    data = own(model, x, y, reset=reset, samples=[1])
    hidden, _ = model.recurrent(x, reset=reset)
    hidden.retain_grad()
    model.head.losses(model.output(hidden), y).sum().backward()
    terms = bptt.gradient_map(model.recurrent, x, grad_outputs=hidden.grad, reset=reset, samples=[1])
    check_layer(model.recurrent, data["layers"][0], terms, 12)
    cells = log10_cells(data["layers"][0]["samples"][0]["maps"]["weight_ih"]["cells"], 12)
    assert bool((cells[7:, :7] == 0).all())
    assert bool((cells[7:, 7] > 0).all())


def test_packed_sequences_are_shown_without_padding_the_longest_by_itself():
    layer = nn.LSTM(3, 5, bidirectional=True)
    lengths = [3, 9, 6]
    x = pack_padded_sequence(torch.randn(9, 3, 3), lengths, enforce_sorted=False)
    model, y = Forecaster(layer), torch.randn(9, 3, 2)

    def loss(outputs, y):
        mask = torch.arange(9)[:, None] < torch.tensor(lengths)
        return squares(outputs, y) * mask[..., None]

    data = own(model, x, y, loss=loss)
    assert data["samples"] == [1]
    alone = own(model, pad_packed_sequence(x)[0][:, 1:2], y[:, 1:2], loss=squares)
    for seen, wanted in zip(data["layers"], alone["layers"], strict=True):
        assert seen["samples"][0]["steps"] == 9
        for name, made in seen["samples"][0]["maps"].items():
            other = wanted["samples"][0]["maps"][name]
            for cells in (made, other):
                cells["full"] = log10_cells(cells["cells"], 9, seen["reverse"])
            assert_close(made["full"], other["full"], 2.4e-2)
    assert own(model, x, y, loss=loss, samples=[0])["layers"][0]["samples"][0]["steps"] == 3


def test_a_loss_on_the_final_hidden_state_is_one_on_the_last_output():
    class Last(nn.Module):
        def __init__(self, by_state):
            super().__init__()
            self.lstm, self.by_state = nn.LSTM(3, 5, bidirectional=True), by_state

        def forward(self, x):
            outputs, (h, c) = self.lstm(x)
            if self.by_state == "c":
                return c[-1]
            return (
                torch.cat([h[-2], h[-1]], -1)
                if self.by_state
                else torch.cat([outputs[-1, :, :5], outputs[0, :, 5:]], -1)
            )

    model, x = Last(True), torch.randn(7, 2, 3)
    through_state = own(model, x, loss=lambda out, y: out.square())
    model.by_state = False
    assert own(model, x, loss=lambda out, y: out.square()) == through_state
    assert [v != 0 for v in through_state["losses"][0]["values"]] == [False] * 6 + [True]
    model.by_state = "c"
    words = own(model, x, loss=lambda out, y: out.square())["layers"][1]["samples"][0]["words"]
    assert any("final state (c) directly" in word for word in words)


def test_the_largest_singular_value_alone_is_that_of_products():
    layer, x = nn.LSTM(3, 8, num_layers=2, bidirectional=True), torch.randn(40, 1, 3)
    lags = [0, 1, 5, 17, 39]
    for depth in range(2):
        for direction in range(2):
            place = {"depth": depth, "direction": direction, "hx": None, "reset": None}
            found = largest_singular_value(layer, x[:, 0], lags, **place)
            wanted = bptt.products(layer, x, lags=lags, depth=depth, direction=direction).log10[:, 0]
            torch.testing.assert_close(found, wanted, rtol=1e-10, atol=1e-10)


def test_a_large_state_shows_the_largest_singular_value_and_a_dead_one_none():
    data = own(Forecaster(nn.LSTM(3, 40)), torch.randn(6, 1, 3), torch.randn(6, 1, 2), loss=squares)
    products = data["layers"][0]["samples"][0]["products"]
    assert (products["ranks"], products["size"], len(products["log10"][0])) == ([1], 80, 6)
    layer = nn.RNN(3, 70, nonlinearity="relu")
    nn.init.constant_(layer.bias_ih_l0, -100)
    data = own(Forecaster(layer), torch.randn(6, 1, 3), torch.randn(6, 1, 2), loss=squares)
    assert data["layers"][0]["samples"][0]["products"]["log10"][0] == [0.0, *["-Inf"] * 5]
    json.dumps(data, allow_nan=False)


# Thinning ----------------------------------------------------------------------------------------------------------


def test_blocks_hold_the_largest():
    values = torch.rand(11, 11)
    thin, edges = largest(values, 4), borders(11, 4)
    assert edges == [0, 2, 5, 8, 11]
    for i in range(4):
        for j in range(4):
            assert thin[i, j] == values[edges[i] : edges[i + 1], edges[j] : edges[j + 1]].max()
    values[0, 10] = torch.nan
    assert largest(values, 4)[0, 3].isnan()
    assert [number(v) for v in (torch.nan, torch.inf, -torch.inf, 123456.0)] == ["NaN", "Inf", "-Inf", 123500.0]


@pytest.mark.parametrize(
    ("layer", "steps"),
    [
        (lambda: nn.LSTM(3, 4), 5),
        (lambda: nn.LSTM(3, 4), 2000),
        (lambda: nn.LSTM(3, 4, num_layers=6, bidirectional=True), 150),
        (lambda: nn.RNN(3, 2, num_layers=40, bidirectional=True), 130),
    ],
    ids=["T 5", "T 2000", "12 layers", "80 layers"],
)
def test_what_is_embedded_stays_small(layer, steps):
    layer = layer()
    data = own(Forecaster(layer), torch.randn(steps, 2, 3), torch.randn(steps, 2, 2), loss=squares, samples=[0, 1])
    text = json.dumps(data, allow_nan=False, separators=(",", ":"))
    assert len(text) <= LIMIT
    sample = data["layers"][0]["samples"][1]
    assert sample["steps"] == steps
    assert 5 <= sample["blocks"] <= min(steps, 120)
    assert data["left_out"] + len(data["layers"]) == layer.num_layers * (2 if layer.bidirectional else 1)


def test_a_thinned_map_is_that_of_gradient_map():
    layer = nn.LSTM(3, 4)
    x, y = torch.randn(300, 1, 3), torch.randn(300, 1, 2)
    model = Forecaster(layer)
    seen = own(model, x, y, loss=squares)["layers"][0]
    terms = bptt.gradient_map(layer, x, loss=lambda h: squares(model.last(torch.tanh(h)), y).sum())
    assert seen["samples"][0]["blocks"] < 300
    check_layer(layer, seen, terms, seen["samples"][0]["blocks"])


def test_the_horizon_is_that_of_watch():
    """One definition: the page's number is the one that `bptt.watch` finds on the same sequence."""
    for layer in (nn.LSTM(3, 4, 2), bptt.GRU(3, 4, bidirectional=True), nn.RNN(3, 4)):
        model = Forecaster(layer)
        x, y = torch.randn(40, 3, 3), torch.randn(40, 3, 2)
        x.requires_grad_()
        before = [p.grad for p in model.parameters()]
        data = own(model, x, y, loss=squares, samples=[1])
        assert [p.grad for p in model.parameters()] == before
        with bptt.watch(layer) as flow:
            squares(model(x[:, 1:2]), y[:, 1:2]).sum().backward()
        for shown, seen in zip(data["layers"], flow, strict=True):
            maps = shown["samples"][0]["maps"]
            assert {one["horizon"] for one in maps.values()} == {seen.horizon}


# What is not finite, and what is not there -------------------------------------------------------------------------


@pytest.mark.parametrize(("value", "said"), [(torch.nan, "NaN"), (torch.inf, "∞")])
def test_an_input_that_is_not_finite_is_said_and_marked(value, said):
    layer = nn.GRU(3, 4)
    model, x, y = Forecaster(layer), torch.randn(9, 2, 3), torch.randn(9, 2, 2)
    x[6, 0, 1] = value
    data = own(model, x, y, loss=squares, samples=[0, 1])
    broken, fine = data["layers"][0]["samples"]
    assert broken["words"][0] == f"The input of the layer is {said} at step 7."
    cells = log10_cells(broken["maps"]["weight_ih"]["cells"], 9)
    lower = torch.tril(torch.ones(9, 9, dtype=torch.bool))
    assert bool((~cells[lower].isfinite()).any())
    assert bool(cells[:6].isfinite().all())
    assert fine["words"] == []
    clean = own(model, x[:6], y[:6], loss=squares, samples=[0])["layers"][0]["samples"][0]
    assert_close(cells[:6, :6], log10_cells(clean["maps"]["weight_ih"]["cells"], 6), 1e-12)
    assert bool(cells[lower].isnan().any() if said == "NaN" else (~cells[6:][lower[6:]].isfinite()).all())
    json.dumps(data, allow_nan=False)


def test_a_target_that_is_not_finite_marks_its_row_alone():
    model, x, y = Forecaster(nn.LSTM(3, 4)), torch.randn(8, 1, 3), torch.randn(8, 1, 2)
    y[4, 0, 0] = torch.nan
    data = own(model, x, y, loss=squares)
    sample = data["layers"][0]["samples"][0]
    assert "The gradient ∂L/∂h(t) is NaN at step 5." in sample["words"]
    cells = log10_cells(sample["maps"]["weight_ih"]["cells"], 8)
    assert bool(cells[4, :5].isnan().all())
    assert bool(cells[torch.arange(8) != 4].isfinite().all())
    assert data["losses"][0]["values"][4] == "NaN"
    assert data["total"] == "NaN"


def test_weights_that_are_not_finite_leave_words_alone():
    layer = nn.LSTM(3, 4)
    layer.weight_hh_l0.data[1, 2] = torch.inf
    data = own(Forecaster(layer), torch.randn(5, 1, 3), torch.randn(5, 1, 2), loss=squares)
    sample = data["layers"][0]["samples"][0]
    assert sample["words"][0] == "The parameter weight_hh_l0 holds ∞."
    assert sample["maps"] is None
    assert sample["products"] is None


def test_both_directions_meet_in_what_is_not_finite():
    x = torch.randn(6, 1, 3)
    x[3] = torch.nan
    layer = nn.LSTM(3, 4, num_layers=2, bidirectional=True)
    data = own(Forecaster(layer), x, torch.randn(6, 1, 2), loss=squares)
    assert all(seen["samples"][0]["maps"] is None for seen in data["layers"])
    assert "The output h(t) is NaN at every step." in data["layers"][0]["samples"][0]["words"]


def test_a_layer_without_gradient_says_so():
    data = own(Forecaster(nn.LSTM(3, 4)), torch.randn(5, 1, 3), torch.zeros(5, 1, 2), loss=lambda z, y: z * 0)
    assert "No gradient" in data["layers"][0]["samples"][0]["words"][0]


def test_a_map_too_large_is_said_in_words(monkeypatch):
    monkeypatch.setattr("bptt.flow.jacobians.gradient_map.MAP_BYTES", 1000)
    data = own(Forecaster(nn.LSTM(3, 4)), torch.randn(50, 1, 3), torch.randn(50, 1, 2), loss=squares)
    sample = data["layers"][0]["samples"][0]
    assert sample["maps"] is None
    assert sample["words"][0].startswith("The map cannot be shown: the map of 50 steps")
    assert sample["products"] is not None


def test_the_model_stays_as_it_was():
    layer = nn.LSTM(3, 4, num_layers=2, dropout=0.5)
    model = Forecaster(layer).train()
    model.last.eval()
    model.last.weight.requires_grad_(False)
    own(model, torch.randn(5, 1, 3), torch.randn(5, 1, 2), loss=squares)
    assert layer.training
    assert not model.last.training
    assert all(p.grad is None for p in model.parameters())
    assert not layer._forward_hooks
    for parameter in model.parameters():
        parameter.requires_grad_(False)
    assert own(model, torch.randn(5, 1, 3), torch.randn(5, 1, 2), loss=squares)["layers"]


def test_a_sum_says_nothing_of_steps_and_repeated_calls_are_counted():
    class Twice(Forecaster):
        def forward(self, x):
            return torch.cat([super().forward(x[:2]), super().forward(x[2:])])

    data = own(Twice(nn.LSTM(3, 4)), torch.randn(7, 1, 3), torch.randn(7, 1, 2), loss=lambda z, y: squares(z, y).sum())
    assert data["losses"] == [None]
    assert data["layers"][0]["samples"][0]["steps"] == 5
    assert data["layers"][0]["samples"][0]["words"] == [
        "The model calls this layer 2 times; this is the longest call, by itself."
    ]


@pytest.mark.parametrize(
    ("model", "keywords", "kind", "message"),
    [
        (nn.Linear(3, 2), {"loss": squares}, ValueError, "Linear holds no recurrent layer: wanted torch.nn.RNN"),
        (nn.ModuleList([nn.LSTMCell(3, 2)]), {"loss": squares}, ValueError, "single cells cannot be seen"),
        (Forecaster(nn.LSTM(3, 4)), {}, TypeError, "has no head that says its loss: give loss="),
        (Forecaster(nn.LSTM(3, 4)), {"loss": lambda z, y: 1.0}, ValueError, "loss returned a float, wanted a tensor"),
        (Forecaster(nn.LSTM(3, 4)), {"loss": lambda z, y: z.detach()}, ValueError, "does not depend on a recurrent"),
        (Forecaster(nn.LSTM(3, 4)), {"loss": squares, "samples": [7]}, ValueError, "samples has 7, the batch of inner"),
        (Forecaster(nn.LSTM(3, 4)), {"loss": squares, "samples": []}, ValueError, "samples is empty"),
        (lambda x: x, {"loss": squares}, TypeError, "model is a function, wanted a torch.nn.Module"),
    ],
)  # fmt: skip
def test_errors(model, keywords, kind, message):
    with pytest.raises(kind, match=message):
        own(model, torch.randn(5, 2, 3), torch.randn(5, 2, 2), **keywords)


@pytest.mark.parametrize(
    "first",
    [
        "import bptt.explaining",
        "import bptt.explaining.own",
        "from bptt import explain",
        "bptt.explaining",
        "bptt.explain",
    ],
)
def test_the_public_name_is_the_function_whatever_is_imported_first(first):
    code = f"import bptt\n{first}\nimport bptt.explaining.own as home\nprint(bptt.explain is home.explain)"
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert run.stdout.strip() == "True"
    assert "explain" in bptt.__all__
    assert not set(bptt._MODULES) & set(bptt._HOMES)


# The command -------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def run_folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs") / "adding"
    made = run_bptt("train", "adding", "--length", "12", "--steps", "3", "--cell", "lstm", "--out", folder, *SMALL)
    assert made.returncode == 0, made.stderr
    return folder


def test_explain_a_run(run_folder, tmp_path, capsys, monkeypatch):
    asked = []
    monkeypatch.setattr("webbrowser.open", lambda url: asked.append(url) or True)
    out = tmp_path / "page.html"
    assert cli.main(["explain", str(run_folder), "--out", str(out), "--sample", "2"]) == 0
    assert capsys.readouterr().out == f"wrote {out}\n"
    assert asked == [out.as_uri()]
    text = out.read_text()
    assert len(text.encode()) <= 500_000
    data = json.loads(text.split('<script type="application/json" id="own">')[1].split("</script>")[0])
    assert (data["samples"], data["batch"]) == ([1], 4)
    layer = data["layers"][0]
    assert (layer["name"], layer["cell"], layer["samples"][0]["steps"]) == ("recurrent.l0", "LSTM", 12)
    assert [v != 0 for v in data["losses"][0]["values"]] == [False] * 11 + [True]


def test_mistakes_get_one_line(run_folder, tmp_path):
    for arguments, said in [
        ((tmp_path,), "is not a run folder: it has no config.json"),
        ((tmp_path / "none",), "does not exist"),
        ((run_folder, "--sample", "5"), "--sample is 5, the first batch has 4 sequences"),
        ((run_folder, "--data", "x.csv"), "the adding problem draws its own"),
        (("--sample", "1"), "--sample is of a run"),
        ((run_folder, "--out", tmp_path / "no" / "page.html"), "No such file or directory"),
    ]:
        assert said in failed(run_bptt("explain", *arguments, "--no-open"))


def test_a_run_without_a_recurrent_layer_says_so(run_folder, monkeypatch, capsys):
    class Plain(nn.Linear):
        head = Linear()

    monkeypatch.setattr("bptt.train.explain.load_network", lambda folder, config: Plain(2, 1))
    assert cli.main(["explain", str(run_folder), "--no-open"]) == 2
    assert "Plain holds no recurrent layer" in capsys.readouterr().err


# The page ----------------------------------------------------------------------------------------------------------


class Two(nn.Module):
    """An LSTM below an RNN that has no bias."""

    def __init__(self):
        super().__init__()
        self.below, self.above = nn.LSTM(3, 5), nn.RNN(5, 2, bias=False)

    def forward(self, x):
        return self.above(self.below(x)[0])[0]


def pages():
    torch.manual_seed(11)
    x, y = torch.randn(60, 3, 3), torch.randn(60, 3, 2)
    broken = x.clone()
    broken[40, 0] = torch.nan
    broken[30, 1] = torch.inf
    weights = nn.GRU(3, 4)
    weights.weight_ih_l0.data[0, 0] = torch.nan
    yield "plain", (nn.LSTM(3, 8), x, y, [0, 1])
    yield "short", (nn.LSTM(3, 4, num_layers=2, bidirectional=True), x[:5], y[:5], [0])
    yield "long", (nn.RNN(3, 6, nonlinearity="relu"), torch.randn(2000, 1, 3), torch.randn(2000, 1, 2), [0])
    yield "broken", (nn.GRU(3, 4, num_layers=2), broken, y, [0, 1, 2])
    yield "weights", (weights, x, y, [0])


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    folder = tmp_path_factory.mktemp("own")
    made = {}
    for name, (layer, x, y, samples) in pages():
        made[name] = explain(
            Forecaster(layer), x, y, loss=squares, samples=samples, out=folder / f"{name}.html", open=False
        )
    data = torch.randn(1, 2, 3), torch.randn(1, 2, 2)
    made["two"] = explain(Two(), *data, loss=squares, out=folder / "two.html", open=False)
    return made


@pytest.fixture
def show(chromium, files):
    with silent_pages(chromium) as open_page:
        yield lambda name, *at, **look: open_page(files[name], *at, **look)


def state(page):
    return {
        name: value for name, value in page.evaluate("window.bptt.app.store.get()").items() if name.startswith("own_")
    }


READOUT = "#scene-own .readout"


def says(page, text):
    page.wait_for_function("([at, text]) => document.querySelector(at).textContent.includes(text)", arg=[READOUT, text])


def test_the_page_opens_with_it_and_the_lecture_is_there(show):
    page = show("plain")
    assert page.locator("#scene-own").is_visible()
    assert (
        "inner.memory.l0, LSTM with 8 hidden units, on sample 1 of 3, 60 steps"
        in page.locator(".lead").last.inner_text()
    )
    page.get_by_role("link", name="1 ").first.click()
    page.locator("#scene-fold").wait_for()


def test_the_lecture_alone_has_no_such_scene(chromium, tmp_path):
    from bptt.explaining import write

    with opened(chromium, write(tmp_path / "page.html")) as seen:
        assert seen.page.locator("#scene-own").count() == 0
        assert seen.page.locator("#scene-fold").is_visible()
        seen.check()


def test_by_mouse(show):
    page = show("plain")
    page.locator(".heatmap canvas").scroll_into_view_if_needed()
    box = page.locator(".heatmap canvas").bounding_box()
    at = [(k + 0.5) / 60 for k in (20, 50)]
    page.mouse.move(box["x"] + at[0] * box["width"], box["y"] + at[1] * box["height"])
    says(page, "t = 51, k = 21:")
    assert state(page)["own_t"] != 50  # pointing alone chooses nothing
    page.mouse.down()
    page.mouse.up()
    assert (state(page)["own_t"], state(page)["own_k"]) == (50, 20)
    page.mouse.move(5, 5)
    says(page, "t = 51, k = 21:")
    page.get_by_text("bias_ih", exact=True).click()
    assert state(page)["own_parameter"] == "bias_ih"
    page.get_by_label("Sample").select_option("sample 2")
    assert state(page)["own_sample"] == 1
    page.wait_for_function("location.hash.includes('own_sample=1')")


def test_the_readout_is_the_number_of_the_map(show, files):
    data = json.loads(files["plain"].read_text().split('id="own">')[1].split("</script>")[0])
    cells = log10_cells(data["layers"][0]["samples"][0]["maps"]["weight_hh"]["cells"], 60)
    page = show("plain", "#own?own_t=30&own_k=25")
    says(page, "t = 31, k = 26:")
    text = page.locator(READOUT).inner_text().split(": ")[1]
    found = page.evaluate(
        "(values) => values.map((v) => window.bptt.modules['components/numbers.js'].show(v))", [float(cells[30, 25])]
    )
    assert text == f"≈ {found[0]}"


def test_by_keyboard(show):
    page = show("plain", "#own?own_t=30&own_k=10")
    page.locator(".heatmap").focus()
    for key in ("ArrowDown", "ArrowRight", "ArrowRight", "ArrowUp", "ArrowLeft"):
        page.keyboard.press(key)
    assert (state(page)["own_t"], state(page)["own_k"]) == (30, 11)
    page.get_by_label("Earlier step k").focus()
    page.keyboard.press("End")
    assert state(page)["own_k"] == 30  # never after t
    says(page, "t = 31, k = 31:")
    page.get_by_role("radio", name="weight_hh").focus()
    page.keyboard.press("ArrowLeft")
    assert state(page)["own_parameter"] == "weight_ih"
    page.get_by_label("Sample").focus()
    page.keyboard.press("ArrowDown")
    assert state(page)["own_sample"] == 1


def test_a_reverse_direction_looks_ahead(show):
    assert "inner.memory.l1," in show("short").locator(".lead").last.inner_text()  # it opens with the last forward one
    page = show("short", "#own?own_layer=3&own_t=1&own_k=3")
    assert "inner.memory.l1_reverse" in page.locator(".lead").last.inner_text()
    says(page, "t = 2, k = 4:")
    page.get_by_label("Layer").select_option("inner.memory.l0")
    says(page, "t = 2, k = 2:")


def test_a_layer_without_a_bias_offers_none(show):
    page = show("two", "#own?own_layer=0&own_parameter=bias_ih")
    expect(page.get_by_role("radio", name="bias_ih")).to_be_checked()
    page.get_by_label("Layer").select_option("above.l0")
    expect(page.get_by_role("radio")).to_have_count(2)
    expect(page.get_by_role("radio", name="weight_hh")).to_be_checked()


def test_a_single_step_is_drawn_as_a_dot(show):
    page = show("two")
    expect(page.locator("#scene-own .curve.loss").first).to_have_attribute("d", re.compile(r"^M[^M]*a2 2 "))


def test_a_block_of_lags_is_said_to_be_one(show):
    expect(show("long", "#own?own_k=3").get_by_text(re.compile("^Lags .*–.*: the sizes of each lag’s"))).to_have_count(
        1
    )
    expect(show("plain", "#own?own_k=3").get_by_text(re.compile("^Lag 56: the sizes of all its"))).to_have_count(1)


def test_the_address_restores_the_view(show):
    page = show("plain", "#own?own_t=12&own_k=3&own_sample=1&own_parameter=bias_hh")
    page.evaluate("window.bptt.app.store.set({ own_t: 13 })")
    page.wait_for_function("location.hash.includes('own_t=13')")
    wanted = state(page)
    assert state(show("plain", page.evaluate("location.hash"))) == wanted
    assert state(show("plain", "#own?own_sample=9")) == state(show("plain"))


def test_thinning_is_said(show):
    page = show("long", "#own?own_t=60&own_k=60")
    assert "2000 steps as 120 blocks of 16 or 17" in page.locator(".thinned").inner_text()
    says(page, "t = 1001–1016, k = 1001–1016:")
    assert show("plain").locator(".thinned").is_hidden()


def test_what_is_not_finite_is_shown(show):
    page = show("broken", "#own?own_t=50&own_k=20")
    says(page, "t = 51, k = 21: NaN")
    words = page.locator(".words").inner_text()
    assert "is NaN at steps 41 to 60" in words
    assert page.locator(".legend .nan").is_visible()
    assert page.locator(".unusual").count() == 20
    bare = show("weights")
    assert "The parameter weight_ih_l0 holds NaN." in bare.locator(".words").inner_text()
    assert bare.locator(".heatmap").is_hidden()


@pytest.mark.parametrize("dark", [False, True], ids=["light", "dark"])
@pytest.mark.parametrize("size", [DESKTOP, PHONE], ids=["desktop", "phone"])
@pytest.mark.parametrize("name", ["plain", "short", "long", "broken", "weights"])
def test_nothing_is_cut_small_or_faint(name, size, dark, show):
    page = show(name, size=size, dark=dark)
    page.locator("#scene-own .chart-drawing svg").first.wait_for()
    assert page.evaluate(AUDIT) == []
    unnamed = page.evaluate(
        "[...document.querySelectorAll('input, button, a[href], select, [role=img], summary')]"
        ".filter((n) => n.checkVisibility() && !(n.ariaLabel || n.textContent.trim() || n.labels?.length))"
        ".map((n) => n.outerHTML.slice(0, 80))"
    )
    assert unnamed == []


@pytest.mark.alone
def test_dragging_repaints_at_once(show):
    page = show("long")
    page.locator("#scene-own .chart-drawing svg").first.wait_for()
    assert repaint_time(page, "#scene-own .the-cell input", range(100, 80, -1), limit=50) < 50


def test_the_page_is_as_small_as_promised(files):
    for path in files.values():
        data = path.read_text().split('id="own">')[1].split("</script>")[0]
        assert len(data) <= LIMIT
        assert len(path.read_text()) - len(data) <= 300_000
    assert own_module.BLOCKS == 120
