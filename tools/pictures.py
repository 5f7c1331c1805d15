"""Make the pictures of the README: run ``python tools/pictures.py``.

Each picture is a part of a real report: a bundled scenario is swept, and a headless Chromium takes a screenshot of the
report with everything else hidden. The sweeps take about two minutes of one core. ``--runs DIR`` keeps their run
directories, and a second run with the same DIR only takes the screenshots.
"""

from __future__ import annotations

import argparse
import shutil
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

from PIL import Image, ImageChops  # installed with matplotlib

import loraplan

PICTURES = Path(__file__).resolve().parents[1] / "docs" / "pictures"
WIDTH, HEIGHT = 1060, 2400
"""CSS pixels of the browser window; the empty part below the page is cut off."""

SCALE = 2
COLOURS = 96
BORDER = 16


@dataclass(frozen=True)
class Picture:
    """A part of the report of a swept scenario.

    :ivar hidden: CSS selector of what the picture leaves out.
    """

    name: str
    scenario: str
    hidden: str


REPORT = Picture(
    "report",
    "quickstart",
    "nav, main > section:not(.answer, [aria-labelledby='tiles-h']), footer, .lead-chart > div, details",
)
CLIFF = Picture("cliff", "cache-thrash", "header, main > :not(.lead-chart), footer, .lead-chart > div, details")


def main() -> int:
    """Make the pictures named, or all."""
    parser = argparse.ArgumentParser(description="Make the pictures of the README.")
    parser.add_argument("names", nargs="*", metavar="NAME", help="report or cliff; default: both")
    parser.add_argument("--runs", type=Path, help="where the run directories are kept; default: nowhere")
    options = parser.parse_args()
    browser = shutil.which("chromium") or shutil.which("google-chrome")
    if browser is None:
        print("no Chromium found; install one, for example with: apt-get install chromium", file=sys.stderr)
        return 2
    pictures = [picture for picture in (REPORT, CLIFF) if not options.names or picture.name in options.names]
    with tempfile.TemporaryDirectory() as folder:
        for picture in pictures:
            print(make_picture(picture, browser, options.runs or Path(folder), Path(folder)))
    return 0


def make_picture(picture: Picture, browser: str, runs: Path, work: Path) -> Path:
    """Sweep the picture's scenario and write the picture; return its path."""
    report = loraplan.sweep(picture.scenario, out=runs / picture.scenario).report()
    page, shot = work / f"{picture.name}.html", work / f"{picture.name}.png"
    style = (
        f"<style>{picture.hidden} {{ display: none }} .grid {{ display: block }} body {{ padding-top: 2em }}</style>"
    )
    page.write_text(report.read_text(encoding="utf-8").replace("</head>", f"{style}</head>", 1), encoding="utf-8")
    take_screenshot(browser, page, shot)
    PICTURES.mkdir(exist_ok=True)
    target = PICTURES / f"{picture.name}.png"
    with Image.open(shot) as image:
        cropped(image.convert("RGB")).quantize(COLOURS).save(target, optimize=True)
    return target


def take_screenshot(browser: str, page: Path, target: Path) -> None:
    """Write what a window of WIDTH × HEIGHT shows of a page."""
    command = [browser, "--headless", "--disable-gpu", "--hide-scrollbars", f"--window-size={WIDTH},{HEIGHT}"]
    # Chromium's sandbox needs rights that containers don't give; the page is our own.
    command += ["--no-sandbox", f"--force-device-scale-factor={SCALE}", f"--screenshot={target}", page.as_uri()]
    subprocess.run(command, check=True, capture_output=True, timeout=120)


def cropped(image: Image.Image) -> Image.Image:
    """Cut off the empty part on all sides, but for a border."""
    background = Image.new("RGB", image.size, image.getpixel((0, 0)))
    box = ImageChops.difference(image, background).getbbox()
    assert box is not None, "a page without anything on it"
    left, top, right, bottom = box
    edge = BORDER * SCALE
    return image.crop(
        (max(0, left - edge), max(0, top - edge), min(image.width, right + edge), min(image.height, bottom + edge))
    )


if __name__ == "__main__":
    sys.exit(main())
