"""Heat maps of a sweep along two keys: which pairs of values meet the SLO, and the metric that decides."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from reports.axes import Axis, point_words
from reports.charts.axis_ticks import x_title, y_title
from reports.charts.canvas import Axes
from reports.charts.svg import COLOURS, HEAT, HEAT_STEPS, WIDTH, Chart, cell_tips, drawing, place, to_svg
from reports.charts.sweep_charts import has_values, unserved_note
from reports.formatting import metric_words, show
from reports.table import Table, cell
from sim.results.catalogue import SHARES
from sim.results.point import Point
from sim.results.verdict import MET, NO_SLO, PROBABLY_MET, verdict

_LETTER = 6.6
_INVERSE = 5
"""Step of the colours from which text on them is inverse."""
Grid = dict[tuple[int, int], Point]
"""Points by column (first key) and row (second key)."""
Scale = tuple[float, float, bool]
"""Lowest and highest value of the colours, and whether they are logarithmic."""


@dataclass(frozen=True)
class Facet:
    """What one heat map shows, maybe one of several with one colour scale.

    :ivar scale_over: the points whose values span the colours of all of them.
    :ivar chosen: the point that is recommended; its cell has a star.
    :ivar ident: prefix of its ids.
    :ivar where: the values of further keys, for the title.
    :ivar certain: values of the designs that a plan is sure of, by more than a point's own verdict; None: no plan.
    """

    scale_over: Sequence[Point]
    chosen: Point
    ident: str = "heat"
    where: str = ""
    certain: Sequence[Mapping[str, Any]] | None = None


@dataclass(frozen=True)
class HeatMap:
    """The cells of a heat map.

    :ivar across: the key along x; ``up`` that along y.
    :ivar name: the metric.
    :ivar met: the cells that certainly meet the SLO.
    :ivar chosen: the cell with the star, if it has one.
    """

    grid: Grid
    across: Axis
    up: Axis
    name: str
    met: set[tuple[int, int]]
    chosen: tuple[int, int] | None
    scale: Scale


def heat_chart(
    points: Sequence[Point], across: Axis, up: Axis, name: str, slo_terms: Mapping[str, float], facet: Facet
) -> Chart | None:
    """Draw one metric as coloured cells, one a pair of values, and outline the cells that meet the whole SLO."""
    if not has_values(points, name):
        return None
    grid = {(across.index(p), up.index(p)): p for p in points}
    words = metric_words(name)
    pair = f"{across.words} and {up.words}"
    verdicts = {at: _word(p, slo_terms, facet) for at, p in grid.items()}
    with_slo = any(word != NO_SLO for word in verdicts.values())
    question = f"Which {pair} meet the SLO" if with_slo else f"How does {words} change with {pair}"
    title = f"{question}{facet.where}?"
    met = {at for at, word in verdicts.items() if word == MET}
    chosen = next((at for at, p in grid.items() if p is facet.chosen), None)
    desc = f"{words} by {across.words} and {up.words}. {_extremes(grid, across, up, name)}"
    caption = _caption(words, len(met), len(grid), judged=with_slo)
    if chosen is not None:
        caption += f" ★ {point_words(facet.chosen, [across, up])}: the key numbers are of this cell."
    if any(not p.metrics[name].settled for p in points if p.value(name) is not None):
        caption += " ? marks unsettled values."
    caption += unserved_note(points, name)
    if with_slo:
        desc += f" {len(met)} of {len(grid)} cells meet the SLO."
    known = [value for p in facet.scale_over if (value := p.value(name)) is not None]
    heat = HeatMap(grid, across, up, name, met, chosen, _steps(known, name))
    judged = {at: [f"SLO {word}"] for at, word in verdicts.items()} if with_slo else {}
    said = [
        (at, (point_words(p, [across, up]), f"{words} {cell(p, name)}", *judged.get(at, []))) for at, p in grid.items()
    ]
    svg = _draw(heat, (facet.ident, title, desc), said)
    head = [f"{up.words} ＼ {across.words}", *(across.label(value) for value in across.values)]
    rows = []
    for j, value in enumerate(up.values):
        found = [grid.get((i, j)) for i in range(len(across.values))]
        rows.append([up.label(value), *("–" if p is None else cell(p, name) for p in found)])
    table = Table(f"{words} by {across.words} and {up.words}{facet.where}", head, rows)
    return Chart(facet.ident, title, caption, desc, svg, table)


def _word(point: Point, slo_terms: Mapping[str, float], facet: Facet) -> str:
    word = verdict(point, slo_terms)
    doubted = word == MET and facet.certain is not None and point.set not in facet.certain
    return PROBABLY_MET if doubted else word


def _caption(words: str, met: int, cells: int, *, judged: bool) -> str:
    """Return how colours and hatches read."""
    colours = f"Colours: {words}, as in the strip below."
    if not judged:
        return colours
    if met in (0, cells):
        return f"{'No cell certainly meets' if met == 0 else 'Every cell meets'} the SLO. {colours}"
    return f"Hatched cells do not certainly meet the SLO. {colours}"


def _extremes(grid: Grid, across: Axis, up: Axis, name: str) -> str:
    known = [(value, at) for at, p in grid.items() if (value := p.value(name)) is not None]
    parts = []
    for word, (value, (i, j)) in (("Lowest", min(known)), ("highest", max(known))):
        where = f"{across.words} {across.label(across.values[i])}, {up.words} {up.label(up.values[j])}"
        parts.append(f"{word} {show(name, value)} at {where}")
    return f"{'; '.join(parts)}."


def _steps(values: Sequence[float], name: str) -> Scale:
    """Return the ends of the colour scale and whether it is logarithmic; shares are linear."""
    low, high = min(values), max(values)
    return low, high, name not in SHARES and low > 0 and high > 4 * low


def _level(value: float, scale: Scale) -> int:
    low, high, log = scale
    if not high > low:
        return 0
    share = math.log(value / low) / math.log(high / low) if log else (value - low) / (high - low)
    return min(HEAT_STEPS - 1, int(share * HEAT_STEPS))


def _draw(heat: HeatMap, about: tuple[str, str, str], said: Sequence[tuple[tuple[int, int], tuple[str, ...]]]) -> str:
    grid, across, up, name, scale = heat.grid, heat.across, heat.up, heat.name, heat.scale
    columns, rows = len(across.values), len(up.values)
    left = 22 + _LETTER * max(map(len, up.short_labels(18)))
    width = (WIDTH - left - 16) / columns
    height = min(40.0, max(300.0 / rows, 4.0))
    texts = {at: f"{'★ ' if at == heat.chosen else ''}{_text(point, name)}" for at, point in grid.items()}
    written = height >= 18 and max(len(t) for t in texts.values()) * _LETTER + 6 <= width
    with drawing(round(34 + height * rows + 96)) as figure:
        ax = place(figure, left, 34, 16, 96)
        ax.set_xlim(0, columns)
        ax.set_ylim(0, rows)
        for (i, j), point in grid.items():
            value = point.value(name)
            if value is None:
                continue
            level = _level(value, scale)
            ax.rectangle(i, i + 1, j, j + 1, color=HEAT[level], linewidth=0)
            if written or (i, j) == heat.chosen:
                ink = COLOURS["ink"] if level < _INVERSE else COLOURS["heat-ink"]
                text = texts[i, j] if written else "★"
                ax.text(i + 0.5, j + 0.5, text, color=ink, ha="center", va="center_baseline")
        if heat.met:
            _outline(ax, heat)
            _hatch(ax, heat)
        _labels(ax, across, up, width, height)
        y_title(ax, up.words, min(46, left - 4))
        x_title(ax, across.words)
        _draw_scale(place(figure, left, 34 + height * rows + 58, 16, 26), scale, name)
        return to_svg(figure, *about, cell_tips(ax, said))


def _text(point: Point, name: str) -> str:
    value = point.value(name)
    return "–" if value is None else show(name, value) + ("" if point.metrics[name].settled else "?")


def _outline(ax: Axes, heat: HeatMap) -> None:
    """Draw the border between cells that meet the SLO and those that don't, with a seam that parts it from them."""
    segments = []
    for i, j in heat.met:
        edges = {
            (i + 1, j): ((i + 1, i + 1), (j, j + 1)),
            (i - 1, j): ((i, i), (j, j + 1)),
            (i, j + 1): ((i, i + 1), (j + 1, j + 1)),
            (i, j - 1): ((i, i + 1), (j, j)),
        }
        segments += [edge for other, edge in edges.items() if other in heat.grid and other not in heat.met]
    for xs, ys in segments:
        ax.plot(xs, ys, color=COLOURS["paper"], linewidth=4.6, solid_capstyle="round", zorder=4)
        ax.plot(xs, ys, color=COLOURS["slo"], linewidth=2.6, solid_capstyle="round", zorder=5)


def _hatch(ax: Axes, heat: HeatMap) -> None:
    """Hatch the cells that don't certainly meet the SLO, in a colour that is seen on theirs."""
    inks: dict[str, list[tuple[int, int]]] = {}
    for at, point in heat.grid.items():
        value = point.value(heat.name)
        if at not in heat.met and value is not None:
            inks.setdefault("ink" if _level(value, heat.scale) < _INVERSE else "heat-ink", []).append(at)
    for ink, cells in inks.items():
        for i, j, length in _runs(cells):
            look = {"facecolor": "none", "hatch": "//", "edgecolor": COLOURS[ink], "linewidth": 0, "alpha": 0.25}
            ax.rectangle(i, i + length, j, j + 1, **look)


def _runs(cells: Sequence[tuple[int, int]]) -> list[tuple[int, int, int]]:
    """Return cells that follow each other in a row as first column, row and length."""
    runs: list[tuple[int, int, int]] = []
    for i, j in sorted(cells, key=lambda cell: (cell[1], cell[0])):
        if runs and runs[-1][1] == j and sum(runs[-1][::2]) == i:
            runs[-1] = (runs[-1][0], j, runs[-1][2] + 1)
        else:
            runs.append((i, j, 1))
    return runs


def _labels(ax: Axes, across: Axis, up: Axis, width: float, height: float) -> None:
    labels = across.short_labels(14)
    every = max(1, math.ceil((max(map(len, labels)) * _LETTER + 8) / width))
    ax.set_ticks("x", [i + 0.5 for i in range(0, len(labels), every)], labels[::every])
    labels = up.short_labels(18)
    every = max(1, math.ceil(16 / height))
    ax.set_ticks("y", [j + 0.5 for j in range(0, len(labels), every)], labels[::every])
    ax.tick_length = 0.0
    ax.frame.clear()


def _draw_scale(ax: Axes, scale: Scale, name: str) -> None:
    """Draw the colour scale as a strip with its values below."""
    low, high, log = scale
    ax.set_xlim(0, HEAT_STEPS)
    ax.set_ylim(0, 1)
    for step in range(HEAT_STEPS):
        ax.rectangle(step, step + 1, 0, 1, color=HEAT[step], linewidth=0)
    shares = [i / HEAT_STEPS for i in range(0, HEAT_STEPS + 1, 3)]
    values = [low * (high / low) ** s if log else low + s * (high - low) for s in shares]
    sides = ["left", *["center"] * (len(shares) - 2), "right"]
    ax.set_ticks("x", [s * HEAT_STEPS for s in shares], [show(name, value) for value in values], sides)
    ax.tick_length = 0.0
    ax.frame.clear()
