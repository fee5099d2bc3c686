"""A page of ours in a real browser, headless: what it shows, what it complains about, what it asks the network for."""

import math
import os
import shutil
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from playwright.sync_api import Browser, Page, expect, sync_playwright

# Nothing in the background may reach for the network; the sandbox needs rights that a container's root does not have.
_ARGUMENTS = ["--no-sandbox", "--disable-background-networking", "--disable-component-update", "--disable-sync"]
PHONE, DESKTOP = (360, 740), (1280, 900)
_PATIENCE = 120_000  # ms; other work may keep the machine busy
_FRAME = 1 / 60  # seconds that a change may wait for the screen
expect.set_options(timeout=_PATIENCE)


@dataclass
class Opened:
    """An open page and what it did that a self-contained page must not do."""

    page: Page
    complaints: list[str] = field(default_factory=list)
    requests: list[str] = field(default_factory=list)

    def check(self) -> None:
        """No console error, no uncaught exception, no request beyond the file itself."""
        assert self.complaints == []
        assert self.requests == []


def find_chromium() -> str:
    """The browser's path. Skips the test where there is none, unless BPTT_BROWSER=required (as in CI)."""
    found = next(
        (path for name in ("chromium", "chromium-browser", "google-chrome") if (path := shutil.which(name))), None
    )
    if found is None:
        message = "no Chromium found: install the package `chromium`"
        if os.environ.get("BPTT_BROWSER") == "required":
            pytest.fail(message)
        pytest.skip(message)
    return found


@contextmanager
def browser() -> Iterator[Browser]:
    """A headless Chromium, ended when the block ends."""
    with sync_playwright() as playwright:
        started = playwright.chromium.launch(executable_path=find_chromium(), args=_ARGUMENTS)
        try:
            yield started
        finally:
            started.close()


@contextmanager
def opened(
    browser: Browser, file: Path, size: tuple[int, int] = DESKTOP, fragment: str = "", dark: bool = False
) -> Iterator[Opened]:
    """The file in a fresh page of this size in CSS pixels; `fragment` is what follows the address, "#map"."""
    page = browser.new_page(
        viewport={"width": size[0], "height": size[1]}, color_scheme="dark" if dark else "light", offline=True
    )
    seen = Opened(page)
    page.on("console", lambda said: seen.complaints.append(said.text) if said.type in ("error", "warning") else None)
    page.on("pageerror", lambda error: seen.complaints.append(str(error)))
    own = file.absolute().as_uri()
    page.on("request", lambda asked: seen.requests.append(asked.url) if _leaves(asked.url, own) else None)
    try:
        page.goto(own + fragment)
        yield seen
    finally:
        page.close()


@contextmanager
def silent_pages(browser: Browser) -> Iterator[Callable[..., Page]]:
    """open(file, fragment, size, dark) → its page; when the block ends, every page must have been silent."""
    with ExitStack() as stack:
        every: list[Opened] = []

        def open_page(file: Path, fragment: str = "", size: tuple[int, int] = DESKTOP, dark: bool = False) -> Page:
            every.append(stack.enter_context(opened(browser, file, size, fragment, dark)))
            every[-1].page.set_default_timeout(_PATIENCE)
            return every[-1].page

        yield open_page
        for seen in every:
            seen.check()


def repaint_time(page: Page, slider: str, values: Iterable[float], limit: float) -> float:
    """Milliseconds from moving the slider to a value until the frame after: the quickest of some drags, a value's share.

    Others use this machine too: what counts is the processor's time that the page takes, and the wait for a frame.
    """
    quickest, values = math.inf, list(values)
    with processor_time(page) as seconds:
        for _ in range(6):
            start = seconds()
            _drag(page, slider, values)
            quickest = min(quickest, 1000 * (_FRAME + (seconds() - start) / len(values)))
            if quickest < limit:
                break
    return quickest


@contextmanager
def processor_time(page: Page) -> Iterator[Callable[[], float]]:
    """seconds() → what the page's own thread has taken of a processor so far: script, style, layout and painting."""
    session = page.context.new_cdp_session(page)
    session.send("Performance.enable", {"timeDomain": "threadTicks"})

    def seconds() -> float:
        metrics = session.send("Performance.getMetrics")["metrics"]
        return next(metric["value"] for metric in metrics if metric["name"] == "TaskDuration")

    try:
        yield seconds
    finally:
        session.detach()


def _drag(page: Page, slider: str, values: list[float]) -> None:
    """To one value after the other, each when the frame after the one before was shown."""
    page.evaluate(
        """async ([slider, values]) => {
          const input = document.querySelector(slider);
          for (const value of values) {
            input.value = value;
            input.dispatchEvent(new Event("input", { bubbles: true }));
            await new Promise((done) => requestAnimationFrame(() => requestAnimationFrame(done)));
          }
        }""",
        [slider, values],
    )


def _leaves(url: str, own: str) -> bool:
    return not url.startswith((own, "data:", "blob:"))
