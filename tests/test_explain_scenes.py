"""The scenes of `bptt explain` from the gradient on: by mouse and by keyboard, their numbers, how fast they repaint."""

import math
import subprocess
import sys
import unicodedata

import pytest
from playwright.sync_api import expect

from tests.browser import repaint_time
from tests.explain_page import LONG, address_says, painted, press, shown, state

# The gradient ------------------------------------------------------------------------------------------------------


def test_pointing_at_a_factor_lights_its_edges_and_shows_its_matrix(show):
    page = show("#gradient?t=3&k=1")
    assert {f"{kind}{t}" for kind, t in [("loss", 3), ("yh", 3), ("hh", 3), ("hh", 2), ("hh", 1)]} == lit_edges(page)
    page.get_by_role("button", name="output by hidden state").hover()
    shown(page, ".edge.lit", 1)
    assert lit_edges(page) == {"yh3"}
    assert "Wyh=0.293−0.276−0.2930.276" in plain(page.locator("#scene-gradient .live").first)
    page.mouse.move(0, 0)
    page.get_by_role("button", name="hidden state by an earlier one").click()
    address_says(page, "gradient_factor=hByH")
    page.mouse.move(0, 0)
    shown(page, ".edge.lit", 2)
    assert lit_edges(page) == {"hh2", "hh3"}
    page.locator("[data-key=h2] .node-name").click()
    assert state(page)["k"] == 2
    page.locator("[data-key=y4] .node-name").click()
    assert (state(page)["t"], state(page)["k"]) == (4, 2)


def plain(node):
    """The text of a formula, without the letters' mathematical look and without breaks."""
    return "".join(unicodedata.normalize("NFKC", node.inner_text()).split())


def lit_edges(page):
    return set(page.locator(".edge.lit:visible").evaluate_all("(nodes) => nodes.map((node) => node.dataset.key)"))


def test_walking_back_by_keyboard(show):
    page = show("#gradient?t=4&k=4")
    rows = page.locator("#scene-gradient .walk tbody tr")
    expect(page.locator("#scene-gradient .walk tr.ahead")).to_have_count(3)
    assert rows.nth(1).inner_text().split() == ["3", "·", "·", "·"]
    page.get_by_role("button", name="One Jacobian further back").focus()
    press(page, "Enter", 2)
    assert state(page)["k"] == 2
    expect(page.locator("#scene-gradient .walk tr.ahead")).to_have_count(1)
    term = rows.nth(2).inner_text().split()[-1]
    exact = page.evaluate(
        "(() => { const {terms} = window.bptt.app.results(); return Math.hypot(...terms[4][2].flat()); })()"
    )
    assert float(term) == pytest.approx(exact, abs=5e-4)
    page.get_by_label("immediate derivative").focus()
    page.wait_for_function("document.querySelectorAll('#scene-gradient .edge.lit').length === 1")
    press(page, "Space")
    assert state(page)["gradient_factor"] == "immediate"


def test_a_loss_that_does_not_count_has_terms_of_zero_and_says_so(show):
    page = show("#gradient?counted=last&t=2&k=1")
    assert "L(2) is left out of the sum" in page.locator("#scene-gradient .said").inner_text()


# The map -----------------------------------------------------------------------------------------------------------


def test_the_cells_are_linked_to_the_drawing(show):
    page = show("#map")
    page.get_by_label("t 4, k 2: size", exact=False).hover()
    page.wait_for_function("document.querySelectorAll('#scene-map .edge.hh.lit').length === 3")
    assert lit_edges(page) == {"loss4", "yh4", "hh4", "hh3", "hh2"}
    page.get_by_label("t 4, k 2: size", exact=False).click()
    assert (state(page)["t"], state(page)["k"]) == (4, 2)
    page.get_by_role("button", name="Terms of W hx").click()
    page.mouse.move(0, 0)
    page.wait_for_function("document.querySelectorAll('#scene-map .edge.hx.lit').length === 1")
    assert lit_edges(page) == {"loss4", "yh4", "hh4", "hh3", "hx2"}


def test_the_map_by_keyboard_and_its_sums(show):
    page = show("#map?t=4&k=4")
    page.get_by_label("t 4, k 4: size", exact=False).focus()
    press(page, "ArrowLeft", 2)
    press(page, "ArrowUp")
    press(page, "ArrowUp", 3)  # not beyond k ≤ t
    assert (state(page)["t"], state(page)["k"]) == (2, 2)
    for kind, marked in (("row t", 2), ("column k", 3), ("lag t − k", 4)):
        page.get_by_role("radio", name=kind).check(force=True)
        expect(page.locator("#scene-map .triangle .among")).to_have_count(marked)
    page.get_by_role("button", name="lag t − k 3").click()
    assert (state(page)["t"], state(page)["k"]) == (4, 1)
    sums = page.evaluate(
        "(() => { const {sums, terms} = window.bptt.modules['engine/terms.js'], {net, forward} = window.bptt.app.results();"
        "return sums(terms(net, forward, 'W_hh')).lags.map((lag) => Math.hypot(...lag.flat())); })()"
    )
    shown_sums = page.locator("#scene-map .sums td:last-child").all_inner_texts()
    assert [float(text) for text in shown_sums] == pytest.approx(sums, abs=5e-4)


EXPLODES = f"?{LONG}&activation=relu&head=linear&W_hh=30,40;20,50"


@pytest.mark.parametrize(
    "setting",
    ["", f"?{LONG}&head=linear", "?activation=relu&head=sigmoid&counted=last", EXPLODES, "?W_yh=0,0;0,0"],
)
def test_the_badge_says_how_far_the_sum_is_from_backpropagation(setting, show):
    text = show(f"#map{setting}").locator("#scene-map .badge").inner_text()
    assert badge(text) < 1e-14, text


RAISED = str.maketrans("⁻⁰¹²³⁴⁵⁶⁷⁸⁹", "-0123456789")


def badge(text):
    return float(text.split("at most ")[1].split(" of ")[0].replace("·10", "e").translate(RAISED))


# Vanish and explode ------------------------------------------------------------------------------------------------


def curves(page):
    """log₁₀ σ₁ at each lag, as the page measures it, and the spectral radius that it shows."""
    return page.evaluate(
        """() => {
          const { growth } = window.bptt.modules["engine/growth.js"];
          const { run } = window.bptt.modules["engine/network.js"];
          const s = window.bptt.app.store.get();
          const turn = window.bptt.modules["engine/remedies.js"].rotation((s.vanish_turn * Math.PI) / 180);
          const stretch = [[s.vanish_s1, 0], [0, s.vanish_s1 * s.vanish_ratio]];
          const W_hh = window.bptt.modules["engine/matrix.js"].matMul(turn, stretch);
          const I = [[1, 0], [0, 1]], zero = [0, 0];
          const x = Array.from({ length: s.vanish_T }, () => [s.vanish_input, s.vanish_input]);
          const head = { head: "linear", counted: "last", W_yh: I, b_y: zero };
          const net = { cell: "rnn", activation: s.vanish_act, W_hx: I, W_hh, b_h: zero, ...head };
          const logs = growth(run(net, x, x), 1).map((lag) => lag.s[0]);
          return { logs, radius: window.bptt.modules["engine/svd.js"].spectralRadius2(W_hh) };
        }"""
    )


def test_eigenvalues_lie(show):
    page = show("#vanish")
    page.get_by_role("button", name="Eigenvalues lie").click()
    expect(page.locator("#scene-vanish .said")).to_contain_text("On the way it is")
    found = curves(page)
    assert found["radius"] < 1
    assert max(found["logs"]) >= 2  # grows 100-fold
    assert found["logs"][-1] < max(found["logs"])
    assert f"ρ={found['radius']:.3f}" in plain(page.locator("#scene-vanish .live").first)


def test_sigma_above_one_and_yet_it_vanishes(show):
    page = show("#vanish")
    page.get_by_role("button", name="σ₁ > 1, yet it vanishes").click()
    expect(page.locator("#scene-vanish .said")).to_contain_text("In float32 the product is exactly 0 from lag")
    assert state(page)["vanish_s1"] > 1
    assert curves(page)["logs"][-1] < -45
    page.get_by_role("radio", name="float64").check(force=True)
    expect(page.locator("#scene-vanish .said")).to_contain_text("In float64 the product is not yet 0")


def test_vanish_by_keyboard_and_by_pointing_at_the_chart(show):
    page = show("#vanish")
    page.get_by_label("Lag t − 1").focus()
    press(page, "ArrowRight", 2)
    expect(page.locator("#scene-vanish figcaption")).to_contain_text("Lag 7")
    page.get_by_label("Steps T").focus()
    press(page, "Home")
    assert state(page)["vanish_T"] == 2
    expect(page.locator("#scene-vanish figcaption")).to_contain_text("Lag 1")
    press(page, "End")
    box = page.locator("#scene-vanish .logchart.picked > div").last.bounding_box()
    page.mouse.click(box["x"] + box["width"] / 2, box["y"] + 60)
    assert 15 < state(page)["vanish_lag"] < 32


# Remedies ----------------------------------------------------------------------------------------------------------


def test_a_gradient_of_zero_has_no_arrows(show):
    page = show("#remedies?W_yh=0,0;0,0")
    expect(page.locator("#scene-remedies .arrows svg")).to_be_visible()
    expect(page.locator("#scene-remedies .arrows :is(.head, text)")).to_have_count(0)


def test_clipping_keeps_the_direction(show):
    page = show("#remedies?remedies_clip=0.1")
    texts = page.locator("#scene-remedies .said").all_inner_texts()
    assert "By norm it is not turned at all." in texts[0]
    whole, clipped = (
        page.locator(f"#scene-remedies .{kind} .line").evaluate_all("(all) => all.map((one) => one.getAttribute('d'))")
        for kind in ("whole", "clipped")
    )
    for long, short in zip(whole, clipped, strict=True):
        (x, y), (u, v) = (
            [float(part) for part in path.split("L")[1].replace(",", " ").split()] for path in (long, short)
        )
        assert math.atan2(y, x) == pytest.approx(math.atan2(v, u))
        assert math.hypot(u, v) < math.hypot(x, y)
    page.get_by_label("Largest norm").focus()
    press(page, "End")
    expect(page.locator("#scene-remedies .said").first).to_contain_text("within the limit")


def test_scissors(show):
    page = show("#remedies?remedies_cuts=0")
    said = page.locator("#scene-remedies .said").nth(1)
    expect(said).to_contain_text("All 10 terms are there.")
    page.locator("#scene-remedies [data-key=hh3] .name").click()
    expect(said).to_contain_text("4 of 10 terms cross a cut")
    shown(page, "#scene-remedies .edge.cut", 1)
    page.get_by_role("button", name="Cut between h(1) and h(2)").focus()
    press(page, "Enter")
    expect(said).to_contain_text("5 of 10 terms cross a cut")
    address_says(page, "remedies_cuts=6")
    assert show("#remedies?remedies_cuts=6").locator("#scene-remedies .said").nth(1).inner_text() == said.inner_text()


def horizons(page):
    """Of the RNN, of the orthogonal start, of the LSTM, in steps."""
    painted(page)
    said = page.locator("#scene-remedies .said").last.inner_text()
    return [int(part) for part in said.split() if part.isdigit() and part != "1"]


def test_the_forget_bias_lengthens_the_horizon_and_the_lstm_vanishes_too(show):
    page = show("#remedies")
    lengths = []
    for name in ("The LSTM vanishes too", "Forget bias 0", "Forget bias 4"):
        page.get_by_role("button", name=name).click()
        lengths.append(horizons(page)[-1])
    assert lengths[0] < lengths[1] < lengths[2]
    assert lengths[0] <= 5
    page.get_by_label("Forget-gate bias").focus()
    press(page, "Home")
    assert state(page)["remedies_bias"] == -6
    before = state(page)["remedies_seed"]
    page.get_by_role("button", name="Other weights").click()
    assert state(page)["remedies_seed"] == before + 1


# Werbos ------------------------------------------------------------------------------------------------------------


def test_the_second_lag_opens_more_ways(show):
    page = show(f"#werbos?t=6&k=1&{LONG}")
    shown(page, "#scene-werbos .ways button", 8)  # Fibonacci
    shown(page, "#scene-werbos .edge.lag", 5)
    page.locator("#scene-werbos .ways button").nth(7).hover()
    page.wait_for_function("document.querySelectorAll('#scene-werbos .edge.lag.lit').length === 2")
    page.get_by_role("radio", name="lag 1", exact=True).check(force=True)
    shown(page, "#scene-werbos .ways button", 1)
    shown(page, "#scene-werbos .edge.lag", 0)
    assert page.get_by_role("button", name="Terms of W hh2").is_hidden()


def test_werbos_by_keyboard(show):
    page = show("#werbos?t=4&k=4")
    cell = page.locator("#scene-werbos .triangle button[tabindex='0']")
    cell.focus()
    press(page, "ArrowLeft", 2)
    assert (state(page)["t"], state(page)["k"]) == (4, 2)
    page.get_by_label("werbos W_hh2 1, 1").fill("2")
    address_says(page, "werbos_W_hh2=2,0.3;0.2,0.4")
    painted(page)
    text = page.locator("#scene-werbos .badge").inner_text()
    assert badge(text) < 1e-14


# Predict first -----------------------------------------------------------------------------------------------------


def test_six_questions_and_what_was_predicted(show):
    page = show("#predict")
    expect(page.locator("#scene-predict .said")).to_have_text("6 questions wait for a prediction.")
    page.locator("#scene-predict .questions a").first.click()
    page.locator("#scene-fold .predict").get_by_role("button", name="as many as before").click()
    page.get_by_role("link", name="5 The map").click()
    page.locator("#scene-map .predict").get_by_role("button", name="10 000").focus()
    press(page, "Enter")
    page.get_by_role("link", name="9 Predict first").click()
    expect(page.locator("#scene-predict .said")).to_have_text("2 of 6 predicted, 1 of them right at the first try.")
    address_says(page, "predictions=fold.1.1.1,map.2.2.1")
    again = show(page.evaluate("location.hash"))
    assert (
        again.locator("#scene-predict .questions").inner_text()
        == page.locator("#scene-predict .questions").inner_text()
    )
    page.get_by_role("button", name="Ask all again").click()
    expect(page.locator("#scene-predict .said")).to_have_text("6 questions wait for a prediction.")


@pytest.mark.parametrize("broken", ["fold", "fold.1", "fold.9.9.9.9", ".1.1.1"])
def test_a_broken_prediction_in_the_address(broken, show):
    page = show(f"#predict?predictions={broken}")
    assert page.locator(".notice").inner_text().startswith("The numbers in this address could not be read")


def test_the_program_for_ones_own_network_runs(show):
    code = show("#predict").locator("#scene-predict pre.own").inner_text()
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert "tensor(" in run.stdout


# Lecture mode ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("scene", "field", "value"),
    [
        ("fold", "fold_open", 1),
        ("forward?t=2", "t", 3),
        ("gradient?k=3", "k", 2),
        ("map?k=3", "k", 2),
        ("remedies", "remedies_bias", 2),
        ("werbos?t=2", "t", 3),
    ],
)
def test_arrow_down_is_the_next_step_of_the_scene(scene, field, value, show):
    page = show(f"#{scene}")
    page.get_by_role("button", name="Lecture mode").click()
    press(page, "ArrowDown")
    assert state(page)[field] == value
    press(page, "Escape")
    assert state(page)["lecture"] is False


# Repainting --------------------------------------------------------------------------------------------------------


@pytest.mark.alone
@pytest.mark.parametrize(
    ("address", "slider", "values"),
    [
        ("#vanish?vanish_T=50", "Rotation", range(20, 60, 2)),
        ("#vanish?vanish_T=50&vanish_float=float32", "Lag t − 1", range(10, 30)),
        ("#remedies?remedies_T=50", "Forget-gate bias", [i / 4 for i in range(20)]),
        (f"#map?{LONG}", "Step t", [6, 5, 4, 3, 2, 1] * 3),
        (f"#gradient?{LONG}", "Step t", [6, 5, 4, 3, 2, 1] * 3),
        (f"#werbos?{LONG}", "Step t", [6, 5, 4, 3, 2, 1] * 3),
    ],
)
def test_dragging_repaints_within_50_ms(address, slider, values, show):
    page = show(address)
    page.locator(".scene:visible svg").first.wait_for()
    name = page.get_by_label(slider, exact=True).get_attribute("id")
    assert repaint_time(page, f"#{name}", values, limit=50) < 50
