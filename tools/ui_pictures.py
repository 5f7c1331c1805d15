"""Make the pictures of docs/ui.md: run ``python tools/ui_pictures.py``.

A page of ``loraplan ui`` is started, moved and pinned in a headless Chromium, and a screenshot is taken of each step.
"""

from __future__ import annotations

import shutil
import signal
import subprocess
import sys
import tempfile
from pathlib import Path

from PIL import Image  # installed with matplotlib
from playwright.sync_api import Page, Route, sync_playwright

PICTURES = Path(__file__).resolve().parents[1] / "docs" / "pictures"
BROWSERS = ("chromium", "chromium-browser", "google-chrome")
WIDTH, HEIGHT = 1180, 780
COLOURS = 64
WAIT_MS = 120_000


def main() -> int:
    """Write the pictures and return the exit code."""
    browser = next(filter(None, map(shutil.which, BROWSERS)), None)
    if browser is None:
        print(f"no browser: none of {', '.join(BROWSERS)} is installed", file=sys.stderr)
        return 1
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, "-m", "sim.cli", "ui", "quickstart", "--no-open", "--folder", folder]
        with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True) as served:
            assert served.stdout is not None, "it is a pipe"
            try:
                record(browser, served.stdout.readline().strip())
            finally:
                served.send_signal(signal.SIGINT)
    return 0


def record(browser: str, address: str) -> None:
    """Take the pictures of a page."""
    with sync_playwright() as playwright:
        # Chromium's sandbox needs rights that containers don't give; the page is our own.
        started = playwright.chromium.launch(executable_path=browser, args=["--no-sandbox"])
        page = started.new_page(viewport={"width": WIDTH, "height": HEIGHT}, color_scheme="light")
        page.set_default_timeout(WAIT_MS)
        page.goto(address)
        page.wait_for_selector("body.settled")
        wait_for_curve(page)
        take(page, "ui-1")
        page.click("#pin")
        page.wait_for_selector("#pins .pin")
        page.route("**/api/follow", first_event_alone)  # the moment after the move, as long as the picture takes
        page.fill("#cache-gpu-slots", "16")
        page.wait_for_selector("body.stale[data-stage=estimate]")
        take(page, "ui-2")
        page.unroute("**/api/follow")
        page.fill("#cache-gpu-slots", "15")
        page.fill("#cache-gpu-slots", "16")
        page.wait_for_selector("body:not(.stale)")
        wait_for_curve(page)
        take(page, "ui-3")
        page.wait_for_selector("body.settled")
        page.wait_for_selector("#pins table")
        page.wait_for_selector("#pins:not(:has-text('short runs'))")
        page.evaluate("document.querySelector('#pins-box').scrollIntoView({behavior: 'instant'})")
        take(page, "ui-4")
        started.close()


def first_event_alone(route: Route) -> None:
    """Answer with the estimate, and nothing after it."""
    answer = route.fetch(timeout=WAIT_MS)
    route.fulfill(response=answer, body=answer.text().partition("\n")[0] + "\n")


def wait_for_curve(page: Page) -> None:
    """Wait until the curve has all of its points."""
    page.wait_for_selector("body[data-curve=whole]")


def take(page: Page, name: str) -> None:
    """Write what the window shows."""
    target = PICTURES / f"{name}.png"
    page.screenshot(path=target)
    image = Image.open(target).convert("RGB").quantize(COLOURS, dither=Image.Dither.NONE)
    image.save(target, optimize=True)


if __name__ == "__main__":
    sys.exit(main())
