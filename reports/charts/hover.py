"""Values that a chart shows while the pointer is on one of its parts: by CSS alone, so they need no script."""

from __future__ import annotations

import html
import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from reports.axes import spread
from reports.table import Table

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_MOST = 120
"""Parts of a chart that have a value to show; of more, evenly spaced ones."""
_LINE, _GAP, _SPOT = 18, 8, 6
"""Height of a line of text, its distance from the part, and half the width of a mark, in chart units."""


@dataclass(frozen=True)
class Tip:
    """A part of a chart and what it shows.

    :ivar left, top, width, height: of the part, in chart units.
    :ivar lines: of text; the first names the part.
    """

    left: float
    top: float
    width: float
    height: float
    lines: tuple[str, ...]

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
            f'<tspan x="{at:.0f}" y="{first + _LINE * i:.0f}">{html.escape(line, quote=False)}</tspan>'
            for i, line in enumerate(self.lines)
        )
        box = f'x="{self.left:.1f}" y="{self.top:.1f}" width="{self.width:.1f}" height="{self.height:.1f}"'
        return f'<g class="tip"><rect {box}/><text text-anchor="{anchor}">{spans}</text></g>'


def column_tips(panels: Sequence[Axes], xs: Sequence[float], table: Table) -> list[Tip]:
    """Return a part for each row of a table: a column through all panels, around its place on the x axis."""
    first, last = panels[0].bbox, panels[-1].bbox
    tall = _height(panels[0])
    places = [float(panels[0].transData.transform((x, 0))[0]) for x in xs]
    top, height = tall - first.y1, first.y1 - last.y0
    return [
        Tip(low, top, high - low, height, lines)
        for low, high, lines in _around(places, first.x0, first.x1, lines_of(table))
    ]


def row_tips(ax: Axes, ys: Sequence[float], table: Table) -> list[Tip]:
    """Return a part for each row of a table: a strip across the chart, around its place on the y axis."""
    tall = _height(ax)
    places = [tall - float(ax.transData.transform((0, y))[1]) for y in ys]
    found = _around(places, tall - ax.bbox.y1, tall - ax.bbox.y0, lines_of(table))
    return [Tip(ax.bbox.x0, low, ax.bbox.width, high - low, lines) for low, high, lines in found]


def spot_tips(ax: Axes, marks: Sequence[tuple[float, float]], lines: Sequence[tuple[str, ...]]) -> list[Tip]:
    """Return a part for each mark of a scatter, given as x and y."""
    tall, found = _height(ax), []
    for (x, y), said in spread(list(zip(marks, lines, strict=True)), 2 * _MOST):
        left, up = ax.transData.transform((x, y))
        found.append(Tip(float(left) - _SPOT, tall - float(up) - _SPOT, 2 * _SPOT, 2 * _SPOT, said))
    return found


def cell_tips(ax: Axes, lines: Sequence[tuple[tuple[int, int], tuple[str, ...]]]) -> list[Tip]:
    """Return a part for each cell of a heat map, given by its column and row."""
    tall, found = _height(ax), []
    for (i, j), said in lines:
        left, low = (float(value) for value in ax.transData.transform((i, j)))
        right, high = (float(value) for value in ax.transData.transform((i + 1, j + 1)))
        found.append(Tip(left, tall - high, right - left, high - low, said))
    return found


def lines_of(table: Table) -> list[tuple[str, ...]]:
    """Return what each row of a table says, in lines: its name, then each of its values with its head."""
    return [
        tuple(f"{head} {text}".strip() for head, text in zip(table.head, row, strict=True) if text not in ("", "–"))
        for row in table.rows
    ]


def _height(ax: Axes) -> float:
    return float(ax.figure.bbox.height)


def _around(
    places: Sequence[float], low: float, high: float, lines: Sequence[tuple[str, ...]]
) -> list[tuple[float, float, tuple[str, ...]]]:
    """Return each place's share of an interval, half way to its neighbours, in ascending order."""
    known = [pair for pair in zip(places, lines, strict=True) if low - 1 <= pair[0] <= high + 1]
    known = spread(sorted(known, key=lambda pair: pair[0]), _MOST)
    ends = [low, *((a + b) / 2 for (a, _), (b, _) in itertools.pairwise(known)), high]
    return [(ends[i], ends[i + 1], said) for i, (_, said) in enumerate(known)]
