"""Charts as inline SVG that belongs to the page: its colours, its font, no clashing ids, values on hover.

Figures are drawn in stand-in colours; here they become CSS variables, so that one SVG reads in light and dark.
"""

from __future__ import annotations

import html
import itertools
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from reports.axes import spread
from reports.charts.canvas import Axes, Box, Figure
from reports.table import Table

# Values that a chart shows while the pointer is on one of its parts: by CSS alone inside the chart, and in a box at the
# pointer or finger where the page's script runs.

_MOST = 120
"""Parts of a chart that have a value to show; of more, evenly spaced ones."""
_LINE, _GAP, _SPOT = 18, 8, 6
"""Height of a line of text, its distance from the part, and half the width of a mark, in chart units."""


@dataclass(frozen=True)
class Tip:
    """A part of a chart and what it shows.

    :ivar left, top, width, height: of the part, in chart units.
    :ivar lines: of text, each with the colour of its series, if it has one; the first names the part. A wide space
        stands between a name and its value.
    :ivar rule: where a vertical line marks the place of the values, in chart units.
    """

    left: float
    top: float
    width: float
    height: float
    lines: tuple[tuple[str, str], ...]
    rule: float | None = None

    def svg(self, room: float, tall: float) -> str:
        """Return the part and its hidden text, which stays inside a chart of this width and height."""
        right, bottom = self.left + self.width, self.top + self.height
        before = self.left + self.width / 2 < room / 2
        column, row = self.height > tall / 3, self.width > room / 2
        if row:
            at, anchor = self.left + _GAP, "start"
        elif column:
            at, anchor = (right + _GAP, "start") if before else (self.left - _GAP, "end")
        else:
            at, anchor = (self.left, "start") if before else (right, "end")
        if column:
            first = self.top + _LINE
        elif self.top + self.height / 2 < tall / 2:
            first = bottom + _GAP + _LINE * 0.7
        else:
            first = self.top - _GAP - _LINE * (len(self.lines) - 1)
        spans = "".join(
            f'<tspan class="{_CSS.get(colour, "")[6:-1]}" x="{at:.0f}" y="{first + _LINE * i:.0f}">'
            f"{html.escape(line, quote=False)}</tspan>"
            for i, (line, colour) in enumerate(self.lines)
        )
        box = f'x="{self.left:.1f}" y="{self.top:.1f}" width="{self.width:.1f}" height="{self.height:.1f}"'
        spans = spans.replace(' class=""', "")
        rule = "" if self.rule is None else f'<path d="M{self.rule:.1f} {self.top:.1f}v{self.height:.1f}"/>'
        return f'<g class="tip"><rect {box}/>{rule}<text text-anchor="{anchor}">{spans}</text></g>'


def column_tips(
    panels: Sequence[Axes], xs: Sequence[float], table: Table, colours: Sequence[str] = (), most: int = _MOST
) -> list[Tip]:
    """Return a part for each row of a table: a column through all panels, around its place on the x axis.

    :param colours: of the series in the columns of the table, after the first.
    :param most: parts; of more, evenly spaced ones.
    """
    first, last = panels[0].bbox, panels[-1].bbox
    places = [panels[0].place((x, 0))[0] for x in xs]
    top, height = panels[0].figure.bbox.height - first.y1, first.y1 - last.y0
    return [
        Tip(low, top, high - low, height, lines, at)
        for low, high, at, lines in _around(places, first.x0, first.x1, lines_of(table, colours), most)
    ]


def row_tips(ax: Axes, ys: Sequence[float], table: Table) -> list[Tip]:
    """Return a part for each row of a table: a strip across the chart, around its place on the y axis."""
    tall = ax.figure.bbox.height
    places = [ax.place((0, y))[1] for y in ys]
    found = _around(places, tall - ax.bbox.y1, tall - ax.bbox.y0, lines_of(table))
    return [Tip(ax.bbox.x0, low, ax.bbox.width, high - low, lines) for low, high, _, lines in found]


def spot_tips(ax: Axes, marks: Sequence[tuple[float, float]], lines: Sequence[tuple[str, ...]]) -> list[Tip]:
    """Return a part for each mark of a scatter, given as x and y."""
    found = []
    for at, said in spread(list(zip(marks, lines, strict=True)), 2 * _MOST):
        left, top = ax.place(at)
        found.append(Tip(left - _SPOT, top - _SPOT, 2 * _SPOT, 2 * _SPOT, tuple((line, "") for line in said)))
    return found


def cell_tips(ax: Axes, lines: Sequence[tuple[tuple[int, int], tuple[str, ...]]]) -> list[Tip]:
    """Return a part for each cell of a heat map, given by its column and row."""
    found = []
    for (i, j), said in lines:
        (left, bottom), (right, top) = ax.place((i, j)), ax.place((i + 1, j + 1))
        found.append(Tip(left, top, right - left, bottom - top, tuple((line, "") for line in said)))
    return found


def lines_of(table: Table, colours: Sequence[str] = ()) -> list[tuple[tuple[str, str], ...]]:
    """Return what each row of a table says, in lines: its name, then each of its values with its head; and colours."""
    return [
        tuple(
            (f"{head}\u2002{text}".strip(), colour)
            for head, text, colour in itertools.zip_longest(table.head, row, ["", *colours], fillvalue="")
            if text not in ("", "–")
        )
        for row in table.rows
    ]


def _around(
    places: Sequence[float], low: float, high: float, lines: Sequence[tuple[tuple[str, str], ...]], most: int = _MOST
) -> list[tuple[float, float, float, tuple[tuple[str, str], ...]]]:
    """Return each place's share of an interval, half way to its neighbours, in ascending order, and the place."""
    known = [pair for pair in zip(places, lines, strict=True) if low - 1 <= pair[0] <= high + 1]
    known = spread(sorted(known, key=lambda pair: pair[0]), most)
    ends = [low, *((a + b) / 2 for (a, _), (b, _) in itertools.pairwise(known)), high]
    return [(ends[i], ends[i + 1], at, said) for i, (at, said) in enumerate(known)]


WIDTH = 560
"""Width of a chart in its own units; one unit is about one CSS pixel on a desktop, less on a phone."""
HEAT_STEPS = 9

_NAMES = ("ink", "muted", "grid", "paper", "slo", "s1", "s2", "s3", "s4", "s5", "s6", "heat-ink")
COLOURS = {name: f"#0101{i:02x}" for i, name in enumerate(_NAMES, start=1)}
"""Stand-in colour of every CSS variable; ``ink`` is the text colour of the page."""
HEAT = tuple(f"#0102{i:02x}" for i in range(HEAT_STEPS))
"""Stand-in colours of the steps of a heat map, from low to high."""
SERIES = tuple(COLOURS[f"s{i}"] for i in range(1, 7))

_DASHES = ("-", (0, (7, 2)), (0, (2, 1.5)), (0, (8, 2, 1.5, 2)), (0, (4, 1.5, 1, 1.5, 1, 1.5)), (0, (1, 1.2)))
_MARKERS = ("o", "s", "^", "D", "v", "P")
_HATCHES = ("--", "////", "\\\\\\\\", "xxx", "...", "")
_SLO_DASH = (0, (5, 3))
_SAMPLE = 18
"""Length of a line's sample before its label, in chart units."""

_CSS = {value: "currentColor" if name == "ink" else f"var(--{name})" for name, value in COLOURS.items()}
_CSS |= {value: f"var(--h{i})" for i, value in enumerate(HEAT)}


@dataclass(frozen=True)
class Heading:
    """What names a chart.

    :ivar ident: unique in the page; prefix of every id inside the SVG.
    :ivar title: the question that the chart answers.
    :ivar caption: how to read it.
    """

    ident: str
    title: str
    caption: str


@dataclass(frozen=True)
class Chart:
    """One figure of the report.

    :ivar ident: as in ``Heading``; ``title`` and ``caption`` likewise.
    :ivar desc: the text alternative to the picture.
    :ivar legend: words and CSS colour, for charts that can't label their parts in place.
    :ivar legend_styles: how each part of the legend is drawn, apart from its colour: ``line``, ``dashed``, ``dotted``,
        a marker (``o``, ``s``, ``t``), or a hatch (``s1`` to ``s6``).
    """

    ident: str
    title: str
    caption: str
    desc: str
    svg: str
    table: Table
    legend: list[tuple[str, str]] = field(default_factory=list)
    legend_styles: list[str] = field(default_factory=list)


def dash_of(colour: str) -> Any:
    """Return the line style that goes with a colour, so that colour is never the only cue."""
    if colour == COLOURS["slo"]:
        return _SLO_DASH
    return _DASHES[SERIES.index(colour)] if colour in SERIES else "-"


def marker_of(colour: str) -> str:
    """Return the marker that goes with a colour."""
    return _MARKERS[SERIES.index(colour)] if colour in SERIES else "o"


def legend_style(style: str, marker: str = "") -> str:
    """Return how a legend shows a line style and a marker."""
    line = {"-": "line", "--": "dashed", ":": "dotted"}.get(style, "")
    return f"{line} {({'o': 'o', 's': 's', '^': 't'}).get(marker, '')}".strip()


def hatched(colour: str) -> dict[str, Any]:
    """Return how an area of this colour is filled: its hatch, in the colour of the page."""
    hatch = _HATCHES[SERIES.index(colour)] if colour in SERIES else "++"
    return {"facecolor": colour, "hatch": hatch, "edgecolor": COLOURS["paper"], "linewidth": 0.0}


def label_sample(ax: Axes, colour: str, at: float, how: str, dash: Any = None, marker: str = "") -> float:
    """Draw a sample of a line, marker or area in the right margin; return how far from the axis its label begins.

    :param at: height above the lower end of the axis, in chart units.
    :param how: ``line``, ``marker``, ``both`` or ``area``.
    :param dash: the line style, ``marker`` the marker; those that go with the colour where not given.
    """
    width, height = ax.bbox.width, ax.bbox.height
    left, middle, right = (1 + x / width for x in (6, 6 + _SAMPLE / 2, 6 + _SAMPLE))
    common: dict[str, Any] = {"transform": "axes fraction", "clip_on": False, "color": colour}
    if how == "area":
        swatch = hatched(colour) | {"transform": "axes fraction", "clip_on": False}
        ax.rectangle(left, left + 12 / width, (at - 5) / height, (at + 5) / height, **swatch)
        return 6 + 12 + 5
    if how != "marker" or colour == COLOURS["slo"]:
        style = dash or ("-" if how == "both" and colour in SERIES else dash_of(colour))
        ax.plot([left, right], [at / height] * 2, linestyle=style, linewidth=1.6, **common)
    if how in ("marker", "both") and colour != COLOURS["slo"]:
        ax.plot([middle], [at / height], marker or marker_of(colour), **common)
    return 6 + _SAMPLE + 5


@contextmanager
def drawing(height: int, width: int = WIDTH) -> Iterator[Figure]:
    """Give a figure of this size in chart units."""
    yield Figure(width, height)


def place(figure: Figure, left: float, top: float, right: float, bottom: float) -> Axes:
    """Return axes with these margins in chart units."""
    return figure.add_axes(Box(left, bottom, figure.bbox.width - right, figure.bbox.height - top))


def to_svg(figure: Figure, ident: str, title: str, desc: str, tips: Sequence[Tip]) -> str:
    """Return a figure as an element of the page, with the values that its parts show.

    :param ident: prefix of all ids, so that two charts can't use each other's clip paths and patterns.
    """
    width, height = figure.bbox.width, figure.bbox.height
    # A title element would show up as a tooltip on top of the values of the chart's parts.
    return (
        f'<svg viewBox="0 0 {width:g} {height:g}" role="img" aria-label="{html.escape(title)}" '
        f'aria-describedby="{ident}-d" preserveAspectRatio="xMidYMid meet">'
        f'<desc id="{ident}-d">{html.escape(desc)}</desc>'
        f"{figure.svg(ident, _CSS)}{''.join(tip.svg(width, height) for tip in tips)}</svg>"
    )


def place_labels(wanted: list[float], gap: float, low: float, high: float) -> list[float]:
    """Move labels apart that would overlap.

    :param wanted: where each label would stand, in chart units.
    :returns: places in the same order, at least ``gap`` apart and between ``low`` and ``high`` if they fit.
    """
    order = sorted(range(len(wanted)), key=lambda i: wanted[i])
    places = [0.0] * len(wanted)
    floor = low
    for i in order:
        places[i] = max(wanted[i], floor)
        floor = places[i] + gap
    ceiling = high
    for i in reversed(order):
        places[i] = min(places[i], ceiling)
        ceiling = places[i] - gap
    return places
