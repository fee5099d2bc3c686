"""Settings that every test shares."""

import os
import zlib

# Before torch is loaded: its threads wait by spinning, and beside other processes the tests took many times as long.
os.environ.setdefault("GOMP_SPINCOUNT", "1000")

import pytest
import torch
from hypothesis import HealthCheck, settings

# Drawn inputs are the same at every run, so that a change alone can break a test; `make fuzz` draws fresh ones, and more. A
# failure prints the seed and the sizes that made it.
every = {"deadline": None, "suppress_health_check": list(HealthCheck)}
settings.register_profile("fast", max_examples=15, derandomize=True, **every)
settings.register_profile("quick", max_examples=4, derandomize=True, **every)
settings.register_profile("fuzz", max_examples=400, **every)
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "fast"))


def pytest_collection_modifyitems(config, items):
    """Mark the tests that use the browser; among parallel workers, begin with the files that take longest.

    A long file that begins last keeps one worker busy while the others have nothing left to do.
    """
    for item in items:
        if "chromium" in item.fixturenames:
            item.add_marker(pytest.mark.browser)
    if hasattr(config, "workerinput"):
        long = {item.path for item in items if any(map(item.get_closest_marker, ("real", "slow", "browser")))}
        items.sort(key=lambda item: item.path not in long)


@pytest.fixture(autouse=True)
def _two_threads():
    torch.set_num_threads(2)


@pytest.fixture
def one_thread(_two_threads):
    """For tests of tiny networks: a second thread would only be waited for, beside other processes for long."""
    torch.set_num_threads(1)


@pytest.fixture(autouse=True)
def _same_numbers_at_every_run(request):
    """Each test has a seed of its own, the same at every run, whichever tests run before it; BPTT_TEST_SEED gives others."""
    torch.manual_seed(zlib.crc32(request.node.nodeid.encode()) + int(os.environ.get("BPTT_TEST_SEED", "0")))


@pytest.fixture(scope="module")
def chromium():
    """A headless browser for the tests of a module."""
    from tests.browser import browser

    with browser() as started:
        yield started


@pytest.fixture(scope="module")
def lecture_page(tmp_path_factory):
    """The file that `bptt explain` writes."""
    from bptt import explaining

    return explaining.write(tmp_path_factory.mktemp("explain") / "page.html")


@pytest.fixture
def show(chromium, lecture_page):
    """Opens the page at an address, "#map?t=2"; when the test ends, it must have been silent."""
    from tests.browser import silent_pages

    with silent_pages(chromium) as open_page:
        yield lambda *at, **look: open_page(lecture_page, *at, **look)
