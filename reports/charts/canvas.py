"""What charts are drawn on: axes with the few of matplotlib's methods that they need, written as SVG.

Importing matplotlib and letting it lay out three charts takes longer than a short run. Here every tick, limit and label
is given, so there is nothing to lay out. Calls read as they would there; a unit is about one CSS pixel.
"""

from __future__ import annotations

import html
import math
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import pairwise
from typing import Any

Pair = tuple[float, float]
_AXES = "axes fraction"
Coords = str | tuple[str, str]
"""``data`` or ``axes fraction``: of x and y, or of each."""
_DASHES = {"--": (3.7, 1.6), ":": (1.0, 1.65)}


def _regular(corners: int) -> list[Pair]:
    angles = (2 * math.pi * i / corners for i in range(corners))
    return [(math.sin(angle), -math.cos(angle)) for angle in angles]


_PLUS = ((-1, -3), (1, -3), (1, -1), (3, -1), (3, 1), (1, 1), (1, 3), (-1, 3), (-1, 1), (-3, 1), (-3, -1), (-1, -1))
_MARKS: dict[str, Sequence[Pair]] = {
    "s": ((-1, -1), (1, -1), (1, 1), (-1, 1)),
    "^": ((0, -1), (1, 1), (-1, 1)),
    "v": ((0, 1), (1, -1), (-1, -1)),
    ">": ((1, 0), (-1, 1), (-1, -1)),
    "<": ((-1, 0), (1, 1), (1, -1)),
    "D": ((0, -1.4), (1.4, 0), (0, 1.4), (-1.4, 0)),
    "P": [(x / 3, y / 3) for x, y in _PLUS],
    "X": [((x - y) / 4, (x + y) / 4) for x, y in _PLUS],
    "p": _regular(5),
    "h": _regular(6),
}
"""Corners of markers, y downwards, in half widths; ``o`` is a circle."""
_DROP = {"baseline": "", "top": ".8em", "bottom": "-.25em"}
_ANCHORS = {"left": "", "center": "middle", "right": "end"}
_WIDTH, _MUTED = 0.8, "var(--muted)"
_TICK, _BELOW, _BESIDE = 4.0, 5.0, 3.5
"""Length of a tick below the axis, and how far tick labels are from the end of ticks, and from the axis at the left."""


def short(value: float) -> str:
    """Return a coordinate with a tenth of a unit."""
    text = f"{value:.1f}".removesuffix(".0")
    return "0" if text == "-0" else text


@dataclass(frozen=True)
class Box:
    """A part of a figure, y upwards."""

    x0: float
    y0: float
    x1: float
    y1: float

    @property
    def width(self) -> float:
        return self.x1 - self.x0

    @property
    def height(self) -> float:
        return self.y1 - self.y0


class Figure:
    """A drawing of this size; ``definitions`` are the patterns and clip paths that its marks refer to."""

    def __init__(self, width: float, height: float) -> None:
        self.bbox = Box(0.0, 0.0, width, height)
        self.axes: list[Axes] = []
        self.definitions: dict[str, str] = {}

    def add_axes(self, box: Box) -> Axes:
        """Return axes in a part of the figure."""
        self.axes.append(Axes(self, box, len(self.axes)))
        return self.axes[-1]

    def svg(self, ident: str, colours: Mapping[str, str]) -> str:
        """Return all that is drawn.

        :param ident: prefix of its ids; ``colours``: what stands for colours of six hexadecimal digits.
        """
        body = "".join(ax.svg() for ax in self.axes)
        text = f"<defs>{''.join(self.definitions.values())}</defs>{body}" if self.definitions else body
        text = re.sub(r"(id=\"|url\(#)@", rf"\g<1>{ident}-", text)
        return re.sub(r"#[0-9a-f]{6}\b", lambda found: colours.get(found[0], found[0]), text)

    def pattern(self, hatch: str, face: str, edge: str) -> str:
        """Return the paint of a hatched area: its lines are as much closer together as the hatch has letters."""
        ident = f"@h{hatch.encode().hex()}{face.strip('#')}{edge.strip('#')}"
        size = (24 if hatch[0] in "/\\x" else 12) / len(hatch)
        half = size / 2
        rising, falling, level = f"M0 {size:g}L{size:g} 0", f"M0 0L{size:g} {size:g}", f"M0 {half:g}H{size:g}"
        lines = {"/": rising, "\\": falling, "x": rising + falling, "-": level, "+": f"{level}M{half:g} 0V{size:g}"}
        path, width = lines.get(hatch[0], f"M{half:g} {half:g}h.01"), 1.2 if hatch[0] == "." else 0.7
        self.definitions[ident] = (
            f'<pattern id="{ident}" patternUnits="userSpaceOnUse" width="{size:g}" height="{size:g}">'
            f'<path d="M0 0h{size:g}v{size:g}h-{size:g}z" style="fill: {face}"/>'
            f'<path d="{path}" style="fill: none; stroke: {edge}; stroke-width: {width}; stroke-linecap: round"/>'
            "</pattern>"
        )
        return f"url(#{ident})"


class Axes:
    """A pair of axes: its methods are those of matplotlib's, with what charts ask of them.

    Positions are taken when all is drawn, so limits may be set at any time.

    :ivar bbox: its place in the figure.
    :ivar frame: which of its lines are drawn: ``left``, ``bottom``; ``tick_length``: of its ticks.
    """

    def __init__(self, figure: Figure, bbox: Box, number: int) -> None:
        self.figure, self.bbox, self._number = figure, bbox, number
        self.frame, self.tick_length = {"left", "bottom"}, _TICK
        self._limits, self._log = {"x": (0.0, 1.0), "y": (0.0, 1.0)}, {"x": False, "y": False}
        self._ticks: dict[str, list[tuple[float, str, str, float]]] = {"x": [], "y": []}
        self._grid: set[str] = set()
        self._drawn: list[tuple[float, Callable[[], str]]] = []

    # Axes -------------------------------------------------------------------------------------------------------------

    def set_xlim(self, low: float | Pair, high: float = 0.0) -> None:
        self._limits["x"] = low if isinstance(low, tuple) else (low, high)

    def set_ylim(self, low: float, high: float) -> None:
        self._limits["y"] = (low, high)

    def get_xlim(self) -> Pair:
        return self._limits["x"]

    def get_ylim(self) -> Pair:
        return self._limits["y"]

    def set_xscale(self, kind: str) -> None:
        self._log["x"] = kind == "log"

    def set_yscale(self, kind: str) -> None:
        self._log["y"] = kind == "log"

    def set_ticks(
        self, which: str, places: Iterable[float], labels: Iterable[str], anchors: Sequence[str] = (), turn: float = 0.0
    ) -> None:
        """Set the ticks of an axis.

        :param anchors: how labels stand below their ticks: ``left``, ``center``, ``right``. Default: all in the middle.
        :param turn: degrees by which they are turned.
        """
        labels = list(labels)
        sides = anchors or ["center"] * len(labels)
        self._ticks[which] = [(*each, turn) for each in zip(places, labels, sides, strict=True)]

    def grid(self, on: bool = True, axis: str = "both") -> None:
        self._grid |= {"x", "y"} if axis == "both" else {axis}

    # Marks ------------------------------------------------------------------------------------------------------------

    def plot(
        self,
        xs: Iterable[float],
        ys: Iterable[float],
        how: str = "",
        *,
        color: str,
        linestyle: Any = "",
        linewidth: float = 1.8,
        marker: str = "",
        drawstyle: str = "",
        solid_capstyle: str = "square",
        clip_on: bool = True,
        zorder: float = 2.0,
        alpha: float = 1.0,
        transform: Coords = "data",
        aside: float = 0.0,
        **marks: Any,
    ) -> None:
        """Draw a line through points, markers on them, or both.

        :param how: a marker and a line style, such as ``o-``; else both are given by name.
        :param aside: how far to the right of its place it stands.
        :param marks: of markers: ``markersize``, ``markerfacecolor``, ``markeredgecolor``, ``markeredgewidth``.
        """
        points = list(zip(xs, ys, strict=True))
        marker = "".join(letter for letter in how if letter in (*_MARKS, "o")) or marker
        style = how.strip("".join((*_MARKS, "o"))) if how else linestyle or "-"
        if drawstyle:
            points = [points[0], *(p for (_, y), (x, z) in pairwise(points) for p in ((x, y), (x, z)))]
        if style and style != "none":
            dash = style[1] if isinstance(style, tuple) else _DASHES.get(style, ())
            parts = " ".join(short(part * linewidth) for part in dash)
            ends = f"dasharray: {parts}" if dash else f"linecap: {solid_capstyle}"
            look = f"fill: none; stroke: {color}; stroke-width: {linewidth:g}; stroke-{ends}"
            self._add(zorder, partial(self._path, points, transform, aside), look, alpha, clip=clip_on)
        if marker and marker != "none":
            face, edge = marks.get("markerfacecolor", color), marks.get("markeredgecolor", color)
            look = f"fill: {face}; stroke: {edge}; stroke-width: {marks.get('markeredgewidth', 1.0):g}"
            half = marks.get("markersize", 5.0) / 2
            for some in [points] if alpha == 1 else [[each] for each in points]:  # marks on each other look darker
                self._add(zorder, partial(self._marks, some, marker, half, transform, aside), look, alpha, clip=clip_on)

    def fill(
        self,
        xs: Sequence[float],
        ys: Sequence[float],
        *,
        color: str = "",
        facecolor: str = "",
        edgecolor: str = "none",
        hatch: str = "",
        linewidth: float = 1.0,
        alpha: float = 1.0,
        transform: Coords = "data",
        clip_on: bool = True,
    ) -> None:
        """Fill an area between points."""
        face = facecolor or color
        paint = self.figure.pattern(hatch, face, edgecolor) if hatch else face
        edged = linewidth and edgecolor != "none"
        look = f"fill: {paint}{f'; stroke: {edgecolor}; stroke-width: {linewidth:g}' if edged else ''}"
        points = list(zip(xs, ys, strict=True))
        self._add(1.0, lambda: self._path(points, transform) + "z" if points else "", look, alpha, clip=clip_on)

    def rectangle(self, left: float, right: float, low: float, high: float, **look: Any) -> None:
        """Fill a rectangle, with the look of ``fill``."""
        self.fill([left, right, right, left], [low, low, high, high], **look)

    def fill_between(
        self, xs: Sequence[float], low: float | Sequence[float], high: Sequence[float], **look: Any
    ) -> None:
        """Fill the area between two lines; nothing where one is missing."""
        lows = [float(low)] * len(xs) if isinstance(low, (int, float)) else low
        run: list[tuple[float, float, float]] = []
        for each in [*zip(xs, lows, high, strict=True), (math.nan,) * 3]:
            if all(map(math.isfinite, each)):
                run.append(each)
            elif run:
                there, back = [(x, b) for x, _, b in run], [(x, a) for x, a, _ in reversed(run)]
                self.fill(*zip(*there, *back, strict=True), **look)
                run = []

    def barh(self, y: float, width: float, *, left: float = 0.0, height: float, **look: Any) -> None:
        self.rectangle(left, left + width, y - height / 2, y + height / 2, **look)

    def bar(
        self, xs: Sequence[float], heights: Sequence[float], width: float, *, bottom: Sequence[float], **look: Any
    ) -> None:
        for x, tall, base in zip(xs, heights, bottom, strict=True):
            self.rectangle(x - width / 2, x + width / 2, base, base + tall, **look)

    def vlines(self, xs: Iterable[float], lows: Iterable[float], highs: Iterable[float], **look: Any) -> None:
        for x, low, high in zip(xs, lows, highs, strict=True):
            self.plot([x, x], [low, high], solid_capstyle="butt", **look)

    def hlines(self, y: float, low: float, high: float, **look: Any) -> None:
        self.plot([low, high], [y, y], solid_capstyle="butt", **look)

    def axvline(self, x: float, **look: Any) -> None:
        self.plot([x, x], [0, 1], transform=("data", _AXES), **look)

    def axhline(self, y: float, **look: Any) -> None:
        self.plot([0, 1], [y, y], transform=(_AXES, "data"), **look)

    def axhspan(self, low: float, high: float, **look: Any) -> None:
        self.rectangle(0, 1, low, high, transform=(_AXES, "data"), **look)

    def stairs(self, values: Sequence[float], edges: Sequence[float], **look: Any) -> None:
        self.plot([e for pair in pairwise(edges) for e in pair], [v for v in values for _ in range(2)], **look)

    def annotate(
        self,
        text: str,
        at: Pair,
        offset: Pair = (0.0, 0.0),
        *,
        xycoords: Coords = "data",
        color: str = "",
        ha: str = "left",
        va: str = "baseline",
        turn: float = 0.0,
    ) -> None:
        """Write beside a place, this many units to the right and up."""

        def made() -> str:
            x, y = self.place(at, xycoords)
            left, top = short(x + offset[0]), short(y - offset[1])
            how = {
                "text-anchor": _ANCHORS[ha],
                "dy": _DROP.get(va, ".36em"),
                "transform": f"rotate({-turn:g} {left} {top})" if turn else "",
                "style": f"fill: {color or 'currentColor'}",
            }
            named = " ".join(f'{name}="{value}"' for name, value in how.items() if value)
            return f'<text x="{left}" y="{top}" {named}>{html.escape(text, quote=False)}</text>'

        if text:
            self._drawn.append((3.0, made))

    def text(self, x: float, y: float, text: str, **look: Any) -> None:
        self.annotate(text, (x, y), **look)

    # As SVG -----------------------------------------------------------------------------------------------------------

    def svg(self) -> str:
        self._axes()
        return "".join(made() for _, made in sorted(self._drawn, key=lambda each: each[0]))

    def _axes(self) -> None:
        """Draw ticks, their labels, the grid, and the lines at the left and below."""
        thin: dict[str, Any] = {"linewidth": _WIDTH, "solid_capstyle": "butt"}
        for which in ("x", "y"):
            low, high = sorted(self._limits[which])
            slack = (high - low) * 1e-9
            for place, label, side, turn in self._ticks[which]:
                if not low - slack <= place <= high + slack:
                    continue
                if which in self._grid:
                    line = self.axvline if which == "x" else self.axhline
                    line(place, color="var(--grid)", zorder=0.5, **thin)
                if which == "y":
                    beside: dict[str, Any] = {"xycoords": (_AXES, "data"), "ha": "right", "va": "center"}
                    self.annotate(label, (0.0, place), (-_BESIDE, 0.0), **beside)
                    continue
                if self.tick_length:
                    end = -self.tick_length / self.bbox.height
                    self.plot([place] * 2, [0, end], color=_MUTED, transform=("data", _AXES), clip_on=False, **thin)
                below: dict[str, Any] = {"ha": "right", "va": "center"} if turn else {"ha": side, "va": "top"}
                down = (0.0, -self.tick_length - _BELOW)
                self.annotate(label, (place, 0.0), down, xycoords=("data", _AXES), turn=turn, **below)
        for frame, xs, ys in (("left", [0, 0], [0, 1]), ("bottom", [0, 1], [0, 0])):
            if frame in self.frame:
                self.plot(xs, ys, color=_MUTED, linewidth=_WIDTH, transform=_AXES, clip_on=False, zorder=2.5)

    def _add(self, zorder: float, path: Callable[[], str], look: str, alpha: float, *, clip: bool) -> None:
        def made() -> str:
            lines = path()
            clipped = f' clip-path="{self._clip()}"' if clip and lines else ""
            faint = f"; opacity: {alpha:g}" if alpha < 1 else ""
            return f'<path d="{lines}"{clipped} style="{look}{faint}"/>' if lines else ""

        self._drawn.append((zorder, made))

    def _clip(self) -> str:
        ident, tall = f"@p{self._number}", self.figure.bbox.height
        sizes = (self.bbox.x0, tall - self.bbox.y1, self.bbox.width, self.bbox.height)
        names = zip(("x", "y", "width", "height"), map(short, sizes), strict=True)
        rect = " ".join(f'{name}="{size}"' for name, size in names)
        self.figure.definitions[ident] = f'<clipPath id="{ident}"><rect {rect}/></clipPath>'
        return f"url(#{ident})"

    def _share(self, which: str, value: float) -> float:
        """Return where on its axis a value stands, from 0 to 1."""
        low, high = self._limits[which]
        if self._log[which]:
            return math.log(value / low) / (math.log(high / low) or 1.0) if value > 0 else -9.0
        return (value - low) / ((high - low) or 1.0)

    def place(self, at: Pair, coords: Coords = "data") -> Pair:
        """Return a place in the SVG, y downwards."""
        kinds = (coords, coords) if isinstance(coords, str) else coords
        x, y = (
            self._share(which, float(value)) if kind == "data" else float(value)
            for which, value, kind in zip("xy", at, kinds, strict=True)
        )
        box = self.bbox
        return box.x0 + x * box.width, self.figure.bbox.height - box.y0 - y * box.height

    def _path(self, points: Iterable[Pair], coords: Coords, aside: float = 0.0) -> str:
        """Return the path through points: with a gap where one is missing, without those that are hidden by others."""
        parts, last, pen = [], "", "M"
        for x, y in points:
            if not (math.isfinite(x) and math.isfinite(y)):
                pen = "M"
                continue
            left, top = self.place((x, y), coords)
            at = f"{short(left + aside)} {short(top)}"
            if at != last or pen == "M":
                parts.append(f"{pen}{at}")
            last, pen = at, "L"
        return "".join(parts)

    def _marks(self, points: Iterable[Pair], marker: str, half: float, coords: Coords, aside: float) -> str:
        parts = []
        for at in points:
            if not all(map(math.isfinite, at)):
                continue
            x, y = self.place(at, coords)
            x += aside
            if marker == "o":
                size, across = short(half), short(2 * half)
                arcs = f"a{size} {size} 0 1 0 {across} 0a{size} {size} 0 1 0 -{across} 0z"
                parts.append(f"M{short(x - half)} {short(y)}{arcs}")
            else:
                corners = (f"{short(x + half * i)} {short(y + half * j)}" for i, j in _MARKS[marker])
                parts.append(f"M{'L'.join(corners)}z")
        return "".join(parts)
