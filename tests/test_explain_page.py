"""The page of `bptt explain` in a real browser: each scene by mouse and by keyboard, the address, the look."""

import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from playwright.sync_api import expect

import bptt
from bptt import cli, explaining
from bptt.explaining.bundle import join
from tests.browser import DESKTOP, PHONE, processor_time
from tests.explain_golden import answers
from tests.explain_page import LONG, address_says, forward, press, shown, state
from tests.runs import printed
from tests.test_explain_engine import RUNNER, WHOLE, assert_equal, cases

SCENES = ("fold", "forward", "losses", "gradient", "map", "vanish", "remedies", "werbos", "predict")
HEADS = ("softmax", "sigmoid", "linear")
AUDIT = Path(__file__).with_name("page_audit.js").read_text()
# States that fill the page most: six steps, wide numbers, one matrix lit.
FULL = {
    "fold": ("", "?fold_open=1", f"?fold_open=1&fold_lit=hh&{LONG}", "?fold_open=0.5"),
    "forward": ("", "?activation=relu&head=linear&W_hx=-12.25,-0.125;1000,2", f"?t=6&head=sigmoid&{LONG}"),
    "losses": ("", f"?head=linear&counted=last&{LONG}", f"?head=sigmoid&{LONG}"),
    "gradient": ("", f"?t=6&k=1&gradient_factor=hByH&{LONG}", "?gradient_factor=immediate&head=sigmoid&t=4&k=4"),
    "map": (
        "",
        f"?t=6&k=2&map_sum=lag&{LONG}",
        "?map_of=b_h&map_sum=column&counted=last&W_hh=100,0;0,100&activation=relu",
    ),
    "vanish": (
        "",
        "?vanish_s1=40&vanish_ratio=0.0005&vanish_turn=87.5&vanish_T=50",
        "?vanish_T=2&vanish_float=float32",
    ),
    "remedies": ("", f"?remedies_cuts=63&remedies_bias=-6&{LONG}", "?remedies_T=2&remedies_clip=100&remedies_bias=8"),
    "werbos": ("", f"?t=6&k=1&werbos_path=3&{LONG}", "?werbos_lags=1&werbos_of=W_hx"),
    "predict": ("", "?predictions=fold.0.1.1,map.1.1.1,vanish.2.0.1"),
}
# Scenes with "Show this in PyTorch", and the states in which its program is run.
EVERY_HEAD = [
    f"head={head}&{setting}"
    for head in HEADS
    for setting in ("activation=tanh", "activation=relu&counted=last", f"activation=sigmoid&{LONG}")
]
LARGE = f"{LONG}&activation=relu&head=linear&W_hh=3,4;2,5"
LARGER = f"{LONG}&activation=relu&head=linear&W_hh=30,40;20,50"
ENDLESS = "activation=relu&W_hh=1e308,1e308;1e308,1e308"
CODE = {
    "forward": [*EVERY_HEAD, ENDLESS],
    "losses": [*EVERY_HEAD, ENDLESS],
    "gradient": [
        f"{setting}&t={t}&k={k}" for setting, (t, k) in zip(EVERY_HEAD, [(3, 1), (4, 2), (4, 4)] * 3, strict=True)
    ],
    "map": [f"{setting}&map_of={of}" for setting, of in zip(EVERY_HEAD, ["W_hh", "W_hx", "b_h"] * 3, strict=True)]
    + [LARGE, LARGER],
    "vanish": [
        "",
        "vanish_act=sigmoid&vanish_T=50",
        "vanish_s1=3&vanish_ratio=1&vanish_input=1&vanish_T=50",
        "vanish_act=relu&vanish_T=2",
    ],
    "remedies": [
        "",
        "remedies_cuts=63&remedies_clip=100&head=linear",
        f"remedies_cuts=20&counted=last&{LONG}",
        LARGE,
        LARGER,
    ],
    "werbos": ["", f"head=linear&activation=sigmoid&{LONG}", "werbos_lags=1&head=sigmoid&counted=last"],
}


# The file ----------------------------------------------------------------------------------------------------------


def test_one_small_file(lecture_page):
    text = lecture_page.read_text()
    assert len(text.encode()) <= 300_000
    assert not re.search(r'(?:src|href)="(?!#|data:)', text)


def test_a_module_that_the_bundle_does_not_understand_is_refused():
    with pytest.raises(ValueError, match="does not understand 'export default 1;'"):
        join({"a.js": "export default 1;\n"})
    with pytest.raises(ValueError, match="imports b.js, which is not there"):
        join({"a.js": 'import { b } from "./b.js";\n'})
    joined = join(
        {"x/a.js": 'import { b as c } from "../b.js";\nexport const a = c;\n', "b.js": "export const b = 1;\n"}
    )
    assert joined.index('modules["b.js"]') < joined.index('modules["x/a.js"]')
    assert "const { b: c } = modules" in joined


def test_types_stay_out_of_the_page(lecture_page):
    half = "const half = (a) => /** @type {any} */ (a) / 2;"
    typed = f"/**\n * Half of it.\n * @type {{(a: number) => number}}\n */\nexport {half}\n"
    assert "Half of it" not in join({"a.js": typed})
    assert half in join({"a.js": typed})
    assert "@import" not in lecture_page.read_text()


def test_the_command_writes_and_opens(tmp_path, monkeypatch, capsys):
    asked = []
    monkeypatch.setattr("webbrowser.open", lambda url: asked.append(url) or True)
    out = tmp_path / "a page.html"
    assert cli.main(["explain", "--out", str(out)]) == 0
    assert asked == [out.as_uri()]
    assert str(out) in capsys.readouterr().out
    assert cli.main(["explain", "--out", str(out), "--no-open"]) == 0
    assert len(asked) == 1
    assert cli.main(["explain", "--out", str(tmp_path / "no" / "page.html"), "--no-open"]) == 2
    assert "No such file or directory" in capsys.readouterr().err


def test_the_command_needs_no_torch(tmp_path):
    code = (
        "import sys, bptt.cli; bptt.cli.main(['explain', '--no-open', '--out', sys.argv[1]]);"
        "print('torch' in sys.modules)"
    )
    run = subprocess.run([sys.executable, "-c", code, tmp_path / "p.html"], capture_output=True, text=True, check=True)
    assert run.stdout.split()[-1] == "False"


def test_public_name():
    assert bptt.explaining.write is explaining.write


# The numbers -------------------------------------------------------------------------------------------------------


def test_the_engine_in_the_browser_is_torchs(show):
    generator = torch.Generator()
    generator.seed()
    drawn = list(cases(generator))
    source = RUNNER.read_text().partition("if (globalThis.process")[0].replace("export function", "return function")
    page = show()
    found = page.evaluate(
        "([source, cases]) => cases.map((one) => new Function(source)()(window.bptt.modules, one))", [source, drawn]
    )
    for case, answer in zip(drawn, found, strict=True):
        assert_equal(answer, answers(case), WHOLE, case["net"]["cell"])


@pytest.mark.parametrize(("scene", "setting"), [(scene, setting) for scene in CODE for setting in CODE[scene]])
def test_the_pytorch_code_prints_the_digits_that_the_page_says(scene, setting, show):
    page = show(f"#{scene}?{setting}")
    page.locator(f"#scene-{scene} .pytorch summary").click()
    expect(page.locator(f"#scene-{scene} pre").nth(1)).not_to_be_empty()
    code, prints = (page.locator(f"#scene-{scene} pre").nth(i).inner_text() for i in (0, 1))
    assert len(code.splitlines()) <= 15
    assert printed(code).split() == prints.split()


# The scenes --------------------------------------------------------------------------------------------------------


def test_fold_by_mouse(show):
    page = show("#fold")
    page.get_by_role("button", name="Unfold").click()
    page.wait_for_function("window.bptt.app.store.get().fold_open === 1")
    shown(page, ".node", 3 * 4 + 1)
    page.locator("[data-key=hh2] .name").hover()
    shown(page, ".edge.lit", 4)  # every copy of W_hh, no other
    shown(page, ".edge.hh.lit", 4)
    page.mouse.move(0, 0)
    shown(page, ".edge.lit", 0)
    page.get_by_role("button", name="Light every copy of W yh").click()
    address_says(page, "fold_lit=yh")
    page.get_by_role("button", name="Fold", exact=True).click()
    page.wait_for_function("window.bptt.app.store.get().fold_open === 0")
    shown(page, ".node", 3)


def test_fold_by_keyboard(show):
    page = show("#fold")
    page.get_by_role("button", name="Unfold").focus()
    page.keyboard.press("Enter")
    page.wait_for_function("window.bptt.app.store.get().fold_open === 1")
    press(page, "Tab", 2)
    page.keyboard.press("ArrowRight")
    assert state(page)["x"] == [[1, 0], [0, 1], [1, 1], [0.5, -1], [1, 0]]
    page.keyboard.press("Tab")
    page.wait_for_function("document.querySelectorAll('.edge.hx.lit').length === 5")  # focus alone lights
    page.keyboard.press("Space")
    assert state(page)["fold_lit"] == "hx"


def test_reduced_motion_unfolds_at_once(show):
    page = show("#fold")
    page.emulate_media(reduced_motion="reduce")
    page.get_by_role("button", name="Unfold").click()
    assert state(page)["fold_open"] == 1


def test_a_prediction_unlocks_the_answer(show):
    page = show("#fold")
    answer = page.locator("#scene-fold .predict [role=status]")
    expect(answer).to_be_empty()
    page.get_by_role("button", name="twice as many").focus()
    page.keyboard.press("Enter")
    expect(answer).to_contain_text("Not quite: as many as before.")
    page.get_by_role("button", name="as many as before").click()
    expect(answer).to_contain_text("As you predicted.")


def test_forward_shows_what_the_engine_computes(show):
    page = show("#forward?t=3")
    before = page.locator("#scene-forward .live").nth(2).inner_text()
    assert "0.847" in before.replace("\n", "")  # h(3) = tanh(z_h(3))
    page.locator("[data-key=h1] .node-name").click()
    assert state(page)["t"] == 1
    page.get_by_role("radio", name="ReLU").check(force=True)
    page.get_by_label("W hh 1, 1").fill("-2.5")
    address_says(page, "W_hh=-2.5,-0.4;0.3,0.6")
    address_says(page, "activation=relu")
    page.wait_for_function("document.querySelector('#scene-forward .live').textContent.includes('−2.5')")
    h = torch.zeros(2, dtype=torch.float64)
    now = state(page)
    for x in now["x"]:
        z = torch.tensor(now["W_hx"]).double() @ torch.tensor(x).double()
        h = torch.relu(z + torch.tensor(now["W_hh"]).double() @ h + torch.tensor(now["b_h"]).double())
    assert forward(page)["h"][-1] == pytest.approx(h.tolist(), abs=1e-6)


def test_forward_by_keyboard(show):
    page = show("#forward?t=3")
    page.get_by_label("Step t").focus()
    page.keyboard.press("ArrowLeft")
    assert state(page)["t"] == 2
    page.keyboard.press("Tab")
    page.keyboard.press("ArrowRight")
    assert state(page)["activation"] == "sigmoid"
    page.keyboard.press("Tab")
    page.keyboard.press("ArrowRight")
    assert state(page)["head"] == "sigmoid"
    page.keyboard.press("Tab")
    page.keyboard.type("7")  # a cell's content is selected when it is entered by Tab
    assert state(page)["W_hx"][0][0] == 7


def test_losses(show):
    page = show("#losses")
    whole = forward(page)
    assert whole["loss"] == pytest.approx(sum(whole["losses"]))
    page.get_by_role("radio", name="the last only").check(force=True)
    assert forward(page)["loss"] == whole["losses"][-1]
    page.wait_for_selector("text=Some keep them, because they help to train the earlier steps.")
    expect(page.locator(".bar.ignored")).to_have_count(3)
    page.get_by_label("labels 1").fill("1")
    assert forward(page)["losses"][1] != whole["losses"][1]
    page.get_by_label("labels 1").fill("0.5")  # a label is 0 or 1
    expect(page.get_by_label("labels 1")).to_have_attribute("aria-invalid", "true")
    assert state(page)["labels"] == [1, 1, 1, 0]
    page.get_by_role("radio", name="the last only").focus()
    page.keyboard.press("ArrowLeft")
    assert state(page)["counted"] == "each"


# What is typed -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("typed", ["", "abc", "1,5", "NaN", "Infinity", "1e999", "0x10", "--1", "1 2"])
def test_what_is_no_number_is_marked_and_undone(typed, show):
    page = show("#forward")
    before = state(page)
    cell = page.get_by_label("W hx 1, 1")
    cell.fill(typed)
    expect(cell).to_have_attribute("aria-invalid", "true")
    assert state(page) == before
    cell.press("Tab")
    expect(cell).not_to_have_attribute("aria-invalid", "true")
    expect(cell).to_have_value("0.5")


@pytest.mark.parametrize(("typed", "value"), [("−1", -1), (" 2e-3 ", 0.002), (".5", 0.5), ("+4.", 4)])
def test_numbers_as_people_write_them(typed, value, show):
    page = show("#forward")
    page.get_by_label("W hx 1, 1").fill(typed)
    assert state(page)["W_hx"][0][0] == value


def test_huge_numbers_are_shown_as_what_they_are(show):
    page = show("#forward?activation=relu&W_hx=1e308,1e308;0,0&t=3")
    assert "∞" in page.locator("#scene-forward .live").first.inner_text()


OVERFLOWING = [
    "activation=relu&head=linear&W_hh=1e308,1e308;1e308,1e308",
    "activation=relu&W_hh=1e308,1e308;1e308,1e308&W_yh=1e308,0;0,1",
    "head=sigmoid&W_yh=1e308,1e308;1e308,1",
]


@pytest.mark.parametrize("broken", OVERFLOWING)
@pytest.mark.parametrize("scene", ["forward", "losses", "gradient"])
def test_a_gradient_that_overflows_breaks_no_scene(scene, broken, show):
    show(f"#{scene}?{broken}")  # no complaint of the browser


@pytest.mark.parametrize("broken", OVERFLOWING)
@pytest.mark.parametrize("scene", ["map", "werbos"])
def test_terms_that_overflow_are_not_compared(scene, broken, show):
    assert "cannot be compared" in show(f"#{scene}?{broken}").locator(f"#scene-{scene} .badge").inner_text()


@pytest.mark.parametrize("broken", OVERFLOWING)
def test_a_gradient_that_overflows_is_said_beside_its_remedies(broken, show):
    said = show(f"#remedies?{broken}").locator("#scene-remedies .said")
    for i in (0, 1):
        assert "The gradient is infinite or NaN" in said.nth(i).inner_text()


# The address -------------------------------------------------------------------------------------------------------


def test_the_address_restores_the_state(show):
    page = show("#forward")
    page.get_by_label("W hh 2, 1").fill("0.1234567890123456789")
    page.get_by_label("Step t").fill("3")
    address_says(page, "t=3")
    link = page.evaluate("location.hash")
    again = show(link)
    assert state(again) == state(page)
    expect(again.get_by_label("W hh 2, 1")).to_have_value("0.12345678901234568")


@pytest.mark.parametrize(
    "broken",
    [
        "W_hh=1,2;3",
        "W_hh=",
        "W_hh=a,b;c,d",
        "t=0",
        "t=99",
        "t=2&k=3",
        "nothing=1",
        "head=none",
        "x=1,2",
        "%",
        "toString=1",
    ],
)
def test_a_broken_state_falls_back_to_the_default(broken, show):
    page = show(f"#forward?{broken}")
    assert state(page) == state(show("#forward"))
    assert page.locator(".notice").inner_text().startswith("The numbers in this address could not be read")
    assert page.locator("#scene-forward").is_visible()
    page.get_by_role("button", name="Start over").click()
    expect(page.locator(".notice")).to_be_hidden()


def test_an_unknown_scene_falls_back_to_the_first(show):
    page = show("#nowhere")
    assert page.locator("#scene-fold").is_visible()
    assert page.locator(".notice").inner_text().startswith("There is no such scene")


def test_an_escaped_address_is_understood(show):
    for address in ("#forward?W_hh=1%2C2%3B3%2C4", "#forward%3FW_hh%3D1%2C2%3B3%2C4"):
        page = show(address)
        assert state(page)["W_hh"] == [[1, 2], [3, 4]]
        assert page.locator("#scene-forward").is_visible()


def test_scenes_share_the_state_and_history_goes_back(show):
    page = show("#fold")
    page.get_by_label("W hx 1, 1").fill("3")
    address_says(page, "W_hx=3")
    page.get_by_role("link", name="3 A loss at each step").click()
    page.locator("#scene-losses").wait_for()
    assert page.evaluate("document.activeElement.id") == "title-losses"
    assert state(page)["W_hx"][0][0] == 3
    page.go_back()
    page.locator("#scene-fold").wait_for()
    page.get_by_role("button", name="Start over").click()
    assert state(page)["W_hx"][0][0] == 0.5


def test_a_link_is_followed_while_the_address_is_being_written(show):
    page = show("#fold")
    page.evaluate("window.bptt.app.store.set({ t: 2, k: 1 })")
    page.evaluate(
        "() => { document.querySelector('header nav li:nth-child(5) a').click(); history.replaceState(null, '', '#fold'); }"
    )
    page.locator("#scene-map").wait_for()
    address_says(page, "#map")


def test_lecture_mode_moves_on_the_arrow_keys(show):
    page = show("#fold?t=3")
    page.keyboard.press("ArrowRight")
    assert page.locator("#scene-fold").is_visible()  # not before it is asked for
    page.get_by_role("button", name="Lecture mode").click()
    for scene in (*SCENES[1:], SCENES[-1]):
        page.keyboard.press("ArrowRight")
        page.locator(f"#scene-{scene}").wait_for()
    press(page, "PageUp", len(SCENES) - 2)  # as a presenter's remote control sends it
    page.locator("#scene-forward").wait_for()
    page.locator("#scene-forward").get_by_label("Step t").focus()
    page.keyboard.press("ArrowLeft")  # the slider's own
    assert state(page)["t"] == 2
    assert page.locator("#scene-forward").is_visible()


# The look ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dark", [False, True], ids=["light", "dark"])
@pytest.mark.parametrize("size", [DESKTOP, PHONE], ids=["desktop", "phone"])
@pytest.mark.parametrize(
    ("scene", "setting"),
    [pytest.param(scene, setting, id=f"{scene}-{i}") for scene in SCENES for i, setting in enumerate(FULL[scene])],
)
def test_nothing_is_cut_small_or_faint(scene, setting, size, dark, show):
    page = show(f"#{scene}{setting}", size, dark)
    assert page.locator(".notice").is_hidden()  # the address was understood
    if scene != "predict":
        page.locator(f"#scene-{scene} svg").first.wait_for()
    for opens in page.locator(
        f"#scene-{scene} .pytorch summary, #scene-{scene} .predict .options > :first-child"
    ).all():
        opens.click()
    page.mouse.move(0, 0)
    assert page.evaluate(AUDIT) == []


@pytest.mark.parametrize("scene", SCENES)
def test_letters_are_large_enough_in_any_font(scene, show):
    """A font for formulas says how much smaller an index is than its base; one that says nothing makes it smallest."""
    page = show(f"#{scene}{FULL[scene][1]}", PHONE)
    page.add_style_tag(content="math { font-family: monospace !important; }")
    sizes = page.evaluate(
        "[...document.querySelectorAll('body :not(script, style)')].filter((n) => n.checkVisibility() && "
        "[...n.childNodes].some((c) => c.nodeType === Node.TEXT_NODE && c.data.trim()))"
        ".map((n) => [parseFloat(getComputedStyle(n).fontSize), n.textContent.slice(0, 30)])"
    )
    assert min(sizes)[0] >= 12.5, min(sizes)


@pytest.mark.parametrize("scene", SCENES)
def test_every_control_has_a_name(scene, show):
    page = show(f"#{scene}")
    unnamed = page.evaluate(
        "[...document.querySelectorAll('input, button, a[href], svg[role=img], summary')]"
        ".filter((n) => n.checkVisibility() && !(n.ariaLabel || n.textContent.trim() || n.labels?.length))"
        ".map((n) => n.outerHTML.slice(0, 80))"
    )
    assert unnamed == []
    twice = page.locator("output:not([aria-live=off])")  # a slider says its value; its output must not say it again
    assert twice.count() == 0


@pytest.mark.alone
def test_first_paint_is_quick(show):
    page = show("#fold")
    with processor_time(page) as seconds:
        before = seconds()
        page.reload()
        page.wait_for_function("performance.getEntriesByName('first-contentful-paint').length === 1")
        assert seconds() - before < 1
