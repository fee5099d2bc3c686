"""The arithmetic of the page of `bptt explain`: every number equals torch's, to 1e-12 in float64."""

import itertools
import json
import shutil
import subprocess
from pathlib import Path

import pytest
import torch

from bptt import explaining
from tests.explain_golden import answers, draw

RUNNER = Path(__file__).with_name("explain_cases.mjs")
WHOLE, EACH_OF = 1e-12, ("softmax", "sigmoid", "linear")


def cases(generator):
    """Every cell, activation, head and choice of losses, of random sizes."""
    for head, counted in itertools.product(EACH_OF, ("each", "last")):
        for activation, lags in itertools.product(("tanh", "sigmoid", "relu"), (1, 2)):
            yield draw(generator, "rnn", activation, head, counted, lags=lags)
        for biases in (1, 2):
            yield draw(generator, "lstm", "tanh", head, counted, biases=biases)


@pytest.fixture(scope="module")
def drawn():
    seed = torch.seed() % 2**31
    print("seed", seed)  # shown when a test fails
    return list(cases(torch.Generator().manual_seed(seed)))


def in_node(given, folder):
    node = shutil.which("node") or pytest.skip("no Node found: install the package `nodejs`")
    asked, answered = folder / "cases.json", folder / "answers.json"
    asked.write_text(json.dumps(given))
    subprocess.run([node, RUNNER, explaining.PAGE, asked, answered], check=True)
    return json.loads(answered.read_text())


def assert_equal(found, wanted, tolerance, where=""):
    """Same structure, and every tensor within the tolerance relative to its norm (to 1 where it is smaller)."""
    if isinstance(wanted, dict):
        for name, value in wanted.items():
            assert_equal(found[name], value, tolerance, f"{where}.{name}")
    elif isinstance(wanted, list):
        assert len(found) == len(wanted), where
        for i, value in enumerate(wanted):
            assert_equal(found[i], value, tolerance, f"{where}[{i}]")
    else:
        ours = torch.tensor(found, dtype=torch.float64)
        assert ours.shape == wanted.shape, where
        error = (ours - wanted).norm() / wanted.norm().clamp(min=1)
        assert error <= tolerance, f"{where}: relative difference {error:.1e}"


def test_every_number_is_torchs(drawn, tmp_path):
    found = in_node(drawn, tmp_path)
    for case, answer in zip(drawn, found, strict=True):
        assert_equal(answer, answers(case), WHOLE, case["net"]["cell"])


def test_the_factors_of_eq_10_multiply_to_the_term(drawn, tmp_path):
    plain = [case for case in drawn if case["net"]["cell"] == "rnn" and "W_hh2" not in case["net"]]
    tested = [
        case for case in plain if case["net"]["activation"] != "relu"
    ]  # whose y may round to 1: ∂L/∂y is infinite
    for case, answer in zip(tested, in_node(tested, tmp_path), strict=True):
        f = {name: torch.tensor(value, dtype=torch.float64) for name, value in answer["factors"].items()}
        product = (f["lossByY"] @ f["yByH"] @ f["hByH"]) * f["slopes"]
        assert_equal(torch.outer(product, f["before"]).tolist(), answers(case)["terms"]["W_hh"][-1][0], WHOLE)


def test_float32_rounds_like_float32(drawn, tmp_path):
    """Every number is one that float32 has, and it is as near to float64 as float32's rounding allows."""
    found = in_node([{**case, "rounding": "float32"} for case in drawn], tmp_path)
    for case, answer in zip(drawn, found, strict=True):
        exact = answers(case)
        for name in ("h", "losses"):
            ours = torch.tensor(answer[name], dtype=torch.float64)
            assert torch.equal(ours, ours.float().double())
            assert_equal(answer[name], exact[name], 1e-5)
        assert_equal(answer["gradient"], exact["gradient"], 1e-3)  # long ReLU products amplify the rounding


def test_lstm_is_torch_nn_lstm(drawn):
    """The golden answers rest on equations written here; torch's own layer must agree with them."""
    for case in (case for case in drawn if case["net"]["cell"] == "lstm"):
        net, H = case["net"], len(case["net"]["W_hh"][0])
        layer = torch.nn.LSTM(len(net["W_hx"][0]), H, dtype=torch.float64)
        biases = torch.zeros(4 * H) if "b_hh" not in net else torch.tensor(net["b_hh"], dtype=torch.float64)
        values = (*(torch.tensor(net[n], dtype=torch.float64) for n in ("W_hx", "W_hh", "b_h")), biases)
        with torch.no_grad():
            for parameter, value in zip(layer.parameters(), values, strict=True):
                parameter.copy_(value)
            h, c = torch.tensor(case["state0"], dtype=torch.float64).view(2, 1, H)
            outputs, _ = layer(torch.tensor(case["x"], dtype=torch.float64), (h, c))
        assert_equal(outputs.tolist(), torch.stack(answers(case)["h"]).detach(), WHOLE)


NODE_CHECKS = """
import { clip, cosine, rotation, truncate, uncut, within } from "PAGE/engine/remedies.js";
import { withForgetBias } from "PAGE/engine/lstm.js";
import { spectralRadius2, svd } from "PAGE/engine/svd.js";
import { generator, orthogonal, uniform } from "PAGE/engine/start.js";
import { matMul, scale, transpose } from "PAGE/engine/matrix.js";
import { pathCount, paths } from "PAGE/engine/paths.js";
import { chainsFrom, horizon, logSvd, outOfRange } from "PAGE/engine/growth.js";
import { cellPath, forwardOf, racers } from "PAGE/engine/race.js";
import assert from "node:assert/strict";
const near = (a, b) => assert.ok(Math.abs(a - b) < 1e-15, `${a} is not ${b}`);

near(clip([[3, 4]], 1).after, 1);
assert.deepEqual(clip([[3, 4]], 1).gradient, [[3 * (1 / 5), 4 * (1 / 5)]]);
assert.deepEqual(clip([[3, 4]], 9).gradient, [[3, 4]]);

const terms = [[], [null, [[1, 0]]], [null, [[0, 2]], [[2, 0]]]];
near(truncate(terms, within(2)).lost, 0);
near(truncate(terms, within(1)).lost, 2 / Math.hypot(3, 2));
near(truncate(terms, within(1)).cosine, 3 / Math.hypot(3, 2));
assert.deepEqual(truncate(terms, uncut([false, false, true])).kept, [[3, 0]]);
assert.deepEqual(truncate(terms, () => false), { kept: [[0, 0]], full: [[3, 2]], lost: 1, cosine: 0 });
const broken = truncate([[], [null, [[NaN, 1]]]], within(1));
assert.ok(Number.isNaN(broken.lost) && Number.isNaN(broken.cosine));
near(cosine([[3e-200, 4e-200]], [[4e-200, 3e-200]]), 24 / 25);
near(cosine([[0.1, 0.7]], [[0.1, 0.7]]), 1);

near(spectralRadius2(rotation(0.7)), 1);
near(spectralRadius2([[2, 1], [0, -3]]), 3);
assert.deepEqual(svd([[0, 0], [0, 0]]).s, [0, 0]);
near(svd([[0, 2], [1, 0]]).s[0], 2);
const cell = { W_hh: [[1], [1], [1], [1]], b_h: [1, 2, 3, 4], b_hh: [5, 6, 7, 8] };
assert.deepEqual(withForgetBias(cell, 9).b_h, [1, 9, 3, 4]);
assert.deepEqual(withForgetBias(cell, 9).b_hh, [5, 0, 7, 8]);

const drawn = uniform(generator(7), 5, 5, 0.5);
const Q = orthogonal(drawn);
const one = matMul(transpose(Q), Q);
one.forEach((row, i) => row.forEach((value, j) => near(value, i === j ? 1 : 0)));
const R = matMul(transpose(Q), drawn); // upper triangular with a positive diagonal
R.forEach((row, i) => row.forEach((value, j) => assert.ok(i > j ? Math.abs(value) < 1e-15 : i < j || value > 0)));

assert.deepEqual(paths(4, 1, 2).sort(), [[1, 2, 3, 4], [1, 2, 4], [1, 3, 4]]);
for (let t = 1; t <= 6; t++) for (const lags of [1, 2]) assert.equal(pathCount(t, 1, lags), paths(t, 1, lags).length);

near(logSvd([[1e-200, 0], [0, 1e-210]]).s[0], -200); // its squares are 0
assert.deepEqual(logSvd([[0, 0], [0, 0]]).s, [-Infinity, -Infinity]);
const plain = [[3, 4], [2, 5]];
for (const size of [1e-300, 1e-180, 1e180, 1e300]) near(svd(scale(plain, size)).s[0] / size / svd(plain).s[0], 1);
near(logSvd([[2 ** -1060, 0], [0, 2 ** -1062]]).s[1] / Math.log10(2 ** -1062), 1); // below the smallest normal number
near(cosine([[2 ** -1070, 0]], [[1e300, 0]]), 1);
assert.equal(horizon([0, -1, -2.1]), 2);
assert.equal(horizon([0, -1]), null);
assert.deepEqual(outOfRange([undefined, [[1]], [[0]], [[0]]]), { died: 2, overflowed: null });
assert.deepEqual(outOfRange([undefined, [[1]], [[Infinity]], [[NaN]]]), { died: null, overflowed: 2 });

const made = (forgetBias) => racers({ seed: 3, H: 4, D: 2, T: 9, size: 1, forgetBias });
assert.deepEqual(made(1).rnn, made(5).rnn); // the same draw
const forward = forwardOf(made(1).lstm, made(1).x);
const all = cellPath(forward);
const products = [0, 1, 2, 3].map((j) => forward.steps.slice(2).reduce((product, { f }) => product * f[j], 1));
near(10 ** all[8], Math.max(...products));
assert.equal(chainsFrom(forward, 1).length, 10);
"""


def test_clipping_truncation_and_the_small_decompositions(tmp_path):
    node = shutil.which("node") or pytest.skip("no Node found: install the package `nodejs`")
    script = tmp_path / "checks.mjs"
    script.write_text(NODE_CHECKS.replace("PAGE", explaining.PAGE.as_uri()))
    subprocess.run([node, script], check=True)
