"""What tests ask of the page of `bptt explain`."""

from playwright.sync_api import expect

# Six steps, with targets for each head.
LONG = "x=1,0;0,1;1,1;0.5,-1;1,0;0,1&labels=0,1,1,0,0,1&targets=1,0;0,1;0.5,0.5;-1,0;1,0;0,1"


_AFTER_A_FRAME = (
    "(read) => new Promise((give) => requestAnimationFrame(() => requestAnimationFrame(() => give(eval(read)))))"
)


def state(page):
    """The page's state, two frames on: on a busy machine a key that was pressed may still be on its way to the page."""
    return page.evaluate(_AFTER_A_FRAME, "window.bptt.app.store.get()")


def forward(page):
    return page.evaluate("(({T, losses, loss, steps}) => ({T, losses, loss, h: steps.map((s) => s.h)}))"
                         "(window.bptt.app.results().forward)")  # fmt: skip


def address_says(page, text):
    page.wait_for_function("(text) => location.hash.includes(text)", arg=text)


def shown(page, selector, count):
    """Waits until so many are visible: the page follows its state at the next frame."""
    expect(page.locator(f"{selector}:visible")).to_have_count(count)


def painted(page):
    """Waits for the next frame, at which the page follows its state; then what it shows can be read."""
    page.evaluate("() => new Promise((done) => requestAnimationFrame(() => requestAnimationFrame(done)))")


def press(page, key, times=1):
    for _ in range(times):
        page.keyboard.press(key)
