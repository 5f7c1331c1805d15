"""Make the pictures of the README and of docs/: run ``python tools/pictures.py``.

Some are parts of a real report: a bundled scenario is swept, and a headless Chromium takes a screenshot of the report
with everything else hidden, and perhaps with numbers on its parts. The sweeps take about two minutes of one core.
``--runs DIR`` keeps their run directories, and a second run with the same DIR only takes the screenshots. The
others are drawn from the requests of a run (``tools/drawn_pictures.py``); these need no browser.
"""

from __future__ import annotations

import argparse
import shutil
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

import drawn_pictures
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
    :ivar numbered: CSS selectors of the parts that get a number, from 1 on.
    """

    name: str
    scenario: str
    hidden: str
    numbered: tuple[str, ...] = ()


OTHERS = ".packed > div:not(:first-child)"
"""What stands beside and below the first chart."""
REPORT = Picture(
    "report",
    "quickstart",
    f"nav, main > section:not(.answer, [aria-labelledby='tiles-h']), footer, {OTHERS}, details",
)
CLIFF = Picture("cliff", "cache-thrash", f"header, main > :not(.first), footer, {OTHERS}, details")
ANNOTATED = Picture(
    "report-annotated",
    "quickstart",
    REPORT.hidden,
    (
        ".setup",
        ".verdict",
        ".headline",
        *(f".facts > div:nth-child({place}) dt" for place in range(1, 5)),
        "#tiles-h",
        ".tiles li:first-child .t-bounds:nth-of-type(3)",
        ".first h3",
    ),
)
SCREENSHOTS = {picture.name: picture for picture in (REPORT, CLIFF, ANNOTATED)}
DRAWN = {
    "tiers": drawn_pictures.tiers,
    "request": drawn_pictures.request_timeline,
    "rollout": drawn_pictures.rollout,
}
_NUMBER = (
    "content: '{}'; display: inline-block; min-width: 1.5em; margin-right: .5em; border-radius: 1em; "
    "background: #90294c; color: #fff; font: bold 14px/1.5 sans-serif; text-align: center"
)


def main() -> int:
    """Make the pictures named, or all."""
    parser = argparse.ArgumentParser(description="Make the pictures of the README and of docs/.")
    names = [*SCREENSHOTS, *DRAWN]
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"of {', '.join(names)}; default: all")
    parser.add_argument("--runs", type=Path, help="where the run directories are kept; default: nowhere")
    options = parser.parse_args()
    wanted = options.names or names
    if unknown := sorted(set(wanted) - set(names)):
        parser.error(f"no picture is called {unknown[0]}; there are {', '.join(names)}")
    browser = shutil.which("chromium") or shutil.which("google-chrome")
    if browser is None and set(wanted) & set(SCREENSHOTS):
        print("no Chromium found; install one, for example with: apt-get install chromium", file=sys.stderr)
        return 2
    PICTURES.mkdir(exist_ok=True)
    with tempfile.TemporaryDirectory() as folder:
        for name in wanted:
            if name in DRAWN:
                DRAWN[name](PICTURES / f"{name}.png")
            else:
                assert browser is not None
                make_picture(SCREENSHOTS[name], browser, options.runs or Path(folder), Path(folder))
            print(PICTURES / f"{name}.png")
    return 0


def make_picture(picture: Picture, browser: str, runs: Path, work: Path) -> Path:
    """Sweep the picture's scenario and write the picture; return its path."""
    report = loraplan.sweep(picture.scenario, out=runs / picture.scenario).report()
    page, shot = work / f"{picture.name}.html", work / f"{picture.name}.png"
    rules = [f"{picture.hidden} {{ display: none }} body {{ padding-top: 2em }}"]
    rules += [f"{part}::before {{ {_NUMBER.format(at)} }}" for at, part in enumerate(picture.numbered, 1)]
    style = f"<style>{' '.join(rules)}</style>"
    page.write_text(report.read_text(encoding="utf-8").replace("</head>", f"{style}</head>", 1), encoding="utf-8")
    take_screenshot(browser, page, shot)
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
