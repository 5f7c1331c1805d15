"""Charts as PNG, for agents: their clients show images, but neither pages nor SVG."""

from __future__ import annotations

import html
import itertools
import re
from collections.abc import Iterator, Sequence
from functools import cache
from pathlib import Path

import resvg_py

from reports.charts.svg import Chart
from reports.document import Columns, Part, Report

_CSS = Path(__file__).parents[1] / "templates" / "report.css"
_PIXELS, _HEAD, _LETTER = 900, 26, 6.4
"""Width of a picture; height of its title or of a line of its legend, and width of a letter, in chart units."""
_FONTS = "Arial, Liberation Sans, DejaVu Sans, Noto Sans, Helvetica, Verdana, sans-serif"
"""The first that is installed. By itself, resvg takes sans-serif for Arial, which most Linux servers lack."""


def pictures(report: Report, most: int) -> list[tuple[str, bytes]]:
    """Return captions of a report's first charts, and the charts as PNG.

    Empty where the machine has no font: a chart without its words says nothing.
    """
    if not _has_font():
        return []
    charts = (chart for section in report.sections() for chart in _charts(section.parts))
    shown = itertools.islice(charts, most)
    return [(f"{chart.title} {chart.caption}", _png(_whole(chart))) for chart in shown]


def _charts(parts: Sequence[Part | None]) -> Iterator[Chart]:
    for part in parts:
        if isinstance(part, Chart):
            yield part
        elif isinstance(part, Columns):
            for column in part.columns:
                yield from _charts(column)


def _whole(chart: Chart) -> str:
    """Return a chart with its title and legend, in the colours of a light page, without what shows on hover."""
    opening, body = chart.svg.removesuffix("</svg>").split(">", 1)
    *_, width, height = (float(value) for value in opening.split('viewBox="', 1)[1].split('"')[0].split())
    body = body.split('<g class="tip">', 1)[0]
    legend, across, down = "", 0.0, height
    for words, colour in chart.legend:
        needed = 28 + _LETTER * len(words)
        if across == 0 or across + needed > width:
            across, down = 0.0, down + _HEAD
        legend += f'<rect x="{across:g}" y="{down - 20:g}" width="12" height="12" fill="{colour}"/>'
        legend += f'<text x="{across + 17:g}" y="{down - 10:g}">{html.escape(words)}</text>'
        across += needed
    colours = dict(re.findall(r"--([\w-]+): (#\w+)", _CSS.read_text(encoding="utf-8").split("}", 1)[0]))
    text = (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="-8 {-_HEAD:g} {width + 16:g} {down + _HEAD + 4:g}" '
        f'style="color: var(--ink)" fill="currentColor" font-family="{_FONTS}" font-size="12">'
        f'<text y="-9" font-size="14" font-weight="bold">{html.escape(chart.title)}</text>{body}{legend}</svg>'
    )
    return re.sub(r"var\(--([\w-]+)\)", lambda found: colours[found[1]], text)


@cache
def _has_font() -> bool:
    shown = f'<svg xmlns="http://www.w3.org/2000/svg" width="9" height="9" font-family="{_FONTS}">{{}}</svg>'
    return _png(shown.format('<text y="9">x</text>')) != _png(shown.format(""))


def _png(svg: str) -> bytes:
    return resvg_py.svg_to_bytes(svg, width=_PIXELS, background="#fcfcfa")
