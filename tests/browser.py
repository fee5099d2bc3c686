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


class Pages:
    """The pages of one browser, to be opened and used again.

    To start the process of a page takes more of a processor than all that a test does with it, so a page that a test is
    done with is kept for the next one: on an empty document, without listeners, with its mouse in the corner.
    """

    def __init__(self, browser: Browser):
        self._browser = browser
        self._free: dict[tuple[tuple[int, int], bool], list[Page]] = {}

    @contextmanager
    def take(self, size: tuple[int, int], dark: bool) -> Iterator[Page]:
        """An empty page of this size in CSS pixels. One whose test fails is closed, in whatever state it is."""
        free = self._free.setdefault((size, dark), [])
        page = free.pop() if free else self._new(size, dark)
        try:
            yield page
        except BaseException:
            page.close()
            raise
        page.emulate_media(media="null", reduced_motion="null")
        page.goto("about:blank")
        page.mouse.move(0, 0)
        free.append(page)

    def _new(self, size: tuple[int, int], dark: bool) -> Page:
        page = self._browser.new_page(
            viewport={"width": size[0], "height": size[1]}, color_scheme="dark" if dark else "light", offline=True
        )
        page.set_default_timeout(_PATIENCE)
        return page


@contextmanager
def browser() -> Iterator[Pages]:
    """The pages of a headless Chromium that ends with the block."""
    with sync_playwright() as playwright:
        started = playwright.chromium.launch(executable_path=find_chromium(), args=_ARGUMENTS)
        try:
            yield Pages(started)
        finally:
            started.close()


@contextmanager
def opened(
    pages: Pages, file: Path, size: tuple[int, int] = DESKTOP, fragment: str = "", dark: bool = False
) -> Iterator[Opened]:
    """The file in a page of this size in CSS pixels; `fragment` is what follows the address, "#map"."""
    own = file.absolute().as_uri()
    with pages.take(size, dark) as page:
        seen = Opened(page)
        listeners = {
            "console": lambda said: seen.complaints.append(said.text) if said.type in ("error", "warning") else None,
            "pageerror": lambda error: seen.complaints.append(str(error)),
            "request": lambda asked: seen.requests.append(asked.url) if _leaves(asked.url, own) else None,
        }
        for event, listener in listeners.items():
            page.on(event, listener)
        page.goto(own + fragment)
        yield seen
        for event, listener in listeners.items():
            page.remove_listener(event, listener)


@contextmanager
def silent_pages(pages: Pages) -> Iterator[Callable[..., Page]]:
    """open(file, fragment, size, dark) → its page; when the block ends, every page must have been silent."""
    with ExitStack() as stack:
        every: list[Opened] = []

        def open_page(file: Path, fragment: str = "", size: tuple[int, int] = DESKTOP, dark: bool = False) -> Page:
            every.append(stack.enter_context(opened(pages, file, size, fragment, dark)))
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
