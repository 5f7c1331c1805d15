"""Pages and a browser, one of each for a module."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from typing import TYPE_CHECKING

import pytest
from served_page import ServedPage, serve_page

if TYPE_CHECKING:
    from playwright.sync_api import Browser

BROWSERS = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable", "chrome")


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServedPage]:
    """A page with the scenario ``tiny.yaml``, whose full run takes a second."""
    page = serve_page(tmp_path_factory.mktemp("page"))
    yield page
    if page.process.poll() is None:
        page.stop()


@pytest.fixture(scope="module")  # while Playwright runs, no test of another module could run an event loop
def browser() -> Iterator[Browser]:
    """A Chromium that is there anyway; tests are skipped where there is none."""
    found = next(filter(None, map(shutil.which, BROWSERS)), None)
    if found is None:
        pytest.skip(f"no browser is here: none of {', '.join(BROWSERS)}")
    sync_api = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
    with sync_api.sync_playwright() as playwright:
        # Containers have no user namespaces for Chromium's sandbox, and this one opens nothing but our page.
        started = playwright.chromium.launch(executable_path=found, args=["--no-sandbox"])
        yield started
        started.close()
