"""Charts of a sweep along one key: latency and ratios with their intervals, and where the time goes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from reports.answers.limits import is_fixed
from reports.answers.points import Contrast, find_extremes
from reports.axes import Axis, in_order, spread
from reports.charts.axis_ticks import scale_x, scale_y, slanted, x_title, y_title
from reports.charts.canvas import Axes
from reports.charts.svg import (
    COLOURS,
    SERIES,
    WIDTH,
    Chart,
    Heading,
    column_tips,
    dash_of,
    drawing,
    label_sample,
    marker_of,
    place,
    place_labels,
    to_svg,
)
from reports.formatting import metric_words, percent, show
from reports.table import MOST_ROWS, Table, brackets_note, cell, numbers_table, table_note
from sim.results.catalogue import SHARES, UNITS
from sim.results.point import COUNTS, Metric, Point
from sim.results.slo_terms import is_tail
from sim.results.verdict import unserved

VISIBLE = 0.1
"""Share of a value by which it must differ between points to be drawn."""
LATENCIES = ("ttft_p99_s", "e2e_p99_s")
RATIOS = {
    "miss_ratio": ("misses", SERIES[1]),
    "delayed_hit_ratio": ("delayed hits", SERIES[4]),
    "loader_utilization": ("loader busy", SERIES[0]),
}
"""What the chart of ratios shows: label and colour by metric."""
HEIGHT = 330
LEFT, TOP, RIGHT, BOTTOM = 58, 36, 134, 52
_MOST_MARKERS = 40
_MOST_PLACES = 200
_ASIDE = 0.16
"""Distance between the marks of one category, as a share of its width."""
_REACH = 2.0
"""Intervals are drawn up to this factor beyond all values of a chart, and arrows where they go further."""
_WHISKERS = 25
_APART = 2.5
"""Calibration intervals of a line that are drawn at most, and how far apart those of two lines are, in chart units."""
_Pair = tuple[float, float]


@dataclass(frozen=True)
class Line:
    """One metric along an axis.

    :ivar label: written at the line's end.
    :ivar points: sorted along the axis.
    """

    label: str
    colour: str
    name: str
    points: Sequence[Point]


def varies(points: Sequence[Point], name: str) -> bool:
    """Return whether a metric differs between points by more than chance, and by enough to be seen in a chart."""
    found = find_extremes(points, name)
    if found is None or found.contrast in (Contrast.EQUAL, Contrast.UNCLEAR):
        return False
    low, high = (point.metrics[name].value or 0.0 for point in (found.low, found.high))
    return high - low > VISIBLE * abs(high)


def bands_note(points: Sequence[Point]) -> str:
    """Return what the thin bars are, where there are any."""
    return " Thin bars: calibration intervals." if any(point.calibration for point in points) else ""


def unserved_note(points: Sequence[Point], name: str = "e2e_p99_s") -> str:
    """Return which share of the requests a latency leaves out because they were not served, at the worst point."""
    worst = max((lost / total for lost, total in map(unserved, points) if total), default=0.0)
    if not worst or UNITS.get(name) != "s":
        return ""
    up_to = "up to " if len(points) > 1 else ""
    return f" Refused and failed requests ({up_to}{percent(worst)}) have no latency, but count against the SLO."


def _bands_words(points: Sequence[Point], axis: Axis, names: Sequence[str]) -> str:
    """Return what bands and marks are; hollow ones only where there are any."""
    unsettled = any(not p.metrics[name].settled for p in points for name in names if has_values([p], name))
    hollow = "; hollow points are unsettled" if unsettled and len(points) <= _MOST_MARKERS else ""
    return f"{'Bands' if axis.numeric else 'Bars'} are 95 % intervals{hollow}."


def has_values(points: Sequence[Point], name: str) -> bool:
    """Return whether at least one point measured this metric."""
    return any(p.value(name) is not None for p in points)


def _seen(lines: Sequence[Line]) -> list[float]:
    """Return the values that an axis must show: all of the lines, and of their intervals what isn't far from these."""
    metrics = [(line.name, p.metrics[line.name]) for line in lines for p in line.points if has_values([p], line.name)]
    values = [float(m.value or 0.0) for _, m in metrics]
    low, high = min(values, default=0.0) / _REACH, max(values, default=0.0) * _REACH
    ends = [end for name, m in metrics for drawn in (False, True) for end in _bounds(name, m, drawn=drawn)]
    return [*values, *(min(max(end, low), high) for end in ends)]


def _bars(ax: Axes, xs: Sequence[float], pairs: Sequence[_Pair], colour: str, width: float, aside: float = 0.0) -> bool:
    """Draw an interval at each place, with an arrow where it goes beyond the axis; return whether one does.

    :param width: of the bar; 0: the arrow alone.
    :param aside: how far to the right they stand, in chart units.
    """
    bottom, top = ax.get_ylim()
    if width:
        lows, highs = [max(low, bottom) for low, _ in pairs], [min(high, top) for _, high in pairs]
        ax.vlines(xs, lows, highs, color=colour, linewidth=width, alpha=0.45, aside=aside)
    below = [x for x, (low, _) in zip(xs, pairs, strict=True) if low < bottom and bottom > 0]
    above = [x for x, (_, high) in zip(xs, pairs, strict=True) if high > top]
    for mark, edge, some in (("v", bottom, below), ("^", top, above)):
        ax.plot(some, [edge] * len(some), mark, color=colour, markersize=5, clip_on=False, aside=aside)
    return bool(below or above)


def _draw_line(ax: Axes, axis: Axis, line: Line, place_: float) -> bool:
    """Draw a line, its intervals and its markers; return whether an interval goes beyond the axis.

    :param place_: of the line among all, from the middle: what would hide each other stands apart.
    """
    points = [p for p in spread(line.points, _MOST_PLACES) if has_values([p], line.name)]
    xs = [axis.place(p) + (0.0 if axis.numeric else _ASIDE * place_) for p in points]
    metrics = [p.metrics[line.name] for p in points]
    ys = [float(m.value or 0.0) for m in metrics]
    lows, highs = (list(ends) for ends in zip(*(_bounds(line.name, m) for m in metrics), strict=True))
    pairs = list(zip(lows, highs, strict=True))
    cut = _bars(ax, xs, pairs, line.colour, 0.0 if axis.numeric else 2.4)
    known = [(x, m) for x, m in zip(xs, metrics, strict=True) if m.calibration_lo is not None]
    if known:
        xs_, ends = zip(*((x, _bounds(line.name, m, drawn=True)) for x, m in spread(known, _WHISKERS)), strict=True)
        cut |= _bars(ax, xs_, ends, line.colour, 1.2, _APART * place_ if axis.numeric else 0.0)
    if axis.numeric:
        ax.fill_between(xs, lows, highs, color=line.colour, alpha=0.18, linewidth=0)
        style = "-" if len(points) <= _MOST_MARKERS else dash_of(line.colour)
        ax.plot(xs, ys, color=line.colour, linestyle=style)
    if len(points) <= _MOST_MARKERS or not axis.numeric:
        for settled in (True, False):
            some = [i for i, m in enumerate(metrics) if m.settled is settled]
            ax.plot(
                [xs[i] for i in some],
                [ys[i] for i in some],
                marker_of(line.colour),
                color=line.colour,
                clip_on=False,
                zorder=4,
                markerfacecolor=line.colour if settled else COLOURS["paper"],
                markeredgewidth=1.6,
            )
    return cut


def _bounds(name: str, metric: Metric, *, drawn: bool = False) -> tuple[float, float]:
    """Return the interval, or that of the draws: the value itself where there is none, shares between 0 and 1."""
    ends = (metric.calibration_lo, metric.calibration_hi) if drawn else (metric.lo, metric.hi)
    low, high = (float(metric.value or 0.0) if end is None else end for end in ends)
    return (max(low, 0.0), min(high, 1.0)) if name in SHARES else (low, high)


def end_labels(
    ax: Axes,
    ends: Sequence[tuple[str, str, float]],
    how: str = "line",
    dashes: Sequence[Any] = (),
    markers: Sequence[str] = (),
) -> None:
    """Write labels in the right margin, each at the height of its line's end, with a sample of it.

    :param ends: text, colour and the value on the y axis; of those that end together the last stands highest.
    :param how: what the sample shows: ``line``, ``marker``, ``both`` or ``area``.
    :param dashes: line styles in the same order, ``markers`` likewise; else those of the colours.
    """
    bottom = ax.figure.bbox.height - ax.bbox.y0
    wanted = [bottom - ax.place((ax.get_xlim()[1], end[2]))[1] for end in ends]
    places = place_labels(wanted, 17, 2, ax.bbox.height - 2)
    for i, ((label, colour, _), at) in enumerate(zip(ends, places, strict=True)):
        ink = colour if colour == COLOURS["slo"] else COLOURS["ink"]
        dash, marker = dashes[i] if dashes else None, markers[i] if markers else ""
        begin = label_sample(ax, colour, at, how, dash, marker)
        ax.annotate(label, (1, 0), (begin, at), xycoords="axes fraction", color=ink, va="center")


@dataclass(frozen=True)
class YAxis:
    """The y axis of a line chart.

    :ivar what: what it shows, in words.
    :ivar kind: how its ticks read, a key of ``axis_ticks.TICKS``.
    :ivar targets: SLO lines by their label.
    """

    what: str
    kind: str
    targets: Mapping[str, float] = field(default_factory=dict)


def line_chart(
    heading: Heading, axis: Axis, y_axis: YAxis, lines: Sequence[Line], table: Table, chosen: Point | None = None
) -> Chart:
    """Draw metrics along one axis, with interval bands and SLO lines.

    :param chosen: the point that the key numbers are of; it gets a star.
    """
    room = WIDTH - LEFT - RIGHT
    below = slanted(axis, room)
    desc = f"{y_axis.what} against {axis.words}. {_describe(axis, lines)}"
    with drawing(round(HEIGHT + below)) as figure:
        ax = place(figure, LEFT, TOP, RIGHT, BOTTOM + below)
        seen = _seen(lines)
        targets = {label: at for label, at in y_axis.targets.items() if not seen or at <= 3 * max(seen)}
        scale_y(ax, [*seen, *targets.values()], y_axis.kind)
        scale_x(ax, axis, room)
        cut = [_draw_line(ax, axis, line, i - (len(lines) - 1) / 2) for i, line in enumerate(lines)]
        for at in set(targets.values()):
            ax.axhline(at, color=COLOURS["slo"], linewidth=1.4, linestyle=(0, (5, 3)), zorder=3)
        if chosen is not None:
            ax.axvline(axis.place(chosen), color=COLOURS["muted"], linewidth=1, linestyle=(0, (2, 2)), zorder=1)
            ax.annotate("★", (axis.place(chosen), 1), (4, -1), xycoords=("data", "axes fraction"), va="top")
        ends = [(label, COLOURS["slo"], at) for label, at in targets.items()]
        for line in lines:
            known = [p for p in line.points if has_values([p], line.name)]
            if known:
                ends.append((line.label, line.colour, float(known[-1].metrics[line.name].value or 0.0)))
        many = max(len(line.points) for line in lines) > _MOST_MARKERS
        end_labels(ax, ends, "marker" if not axis.numeric else "line" if many else "both")
        y_title(ax, y_axis.what)
        x_title(ax, axis.words, below)
        places = {axis.index(p): axis.place(p) for line in lines for p in line.points}  # some lines may lack a value
        xs = spread([places[index] for index in sorted(places)], MOST_ROWS)
        tips = column_tips([ax], xs, table, [line.colour for line in lines])
        svg = to_svg(figure, heading.ident, heading.title, desc, tips)
    caption = heading.caption + (" Arrows: an interval ends outside the chart." if any(cut) else "")
    return Chart(heading.ident, heading.title, caption, desc, svg, table)


def _describe(axis: Axis, lines: Sequence[Line]) -> str:
    sentences = []
    for line in lines:
        known = [p for p in line.points if has_values([p], line.name)]
        if known:
            first, last = known[0], known[-1]
            sentences.append(
                f"{line.label} goes from {show(line.name, first.metrics[line.name].value)} at "
                f"{axis.point_label(first)} to {show(line.name, last.metrics[line.name].value)} at "
                f"{axis.point_label(last)}."
            )
    return " ".join(sentences)


def _drawn(stage: str, slo_terms: Mapping[str, float]) -> str:
    """Return the percentile of a stage that is drawn: the p99, or the one that only the SLO asks for."""
    p99 = f"{stage}_p99_s"
    asked = (name for name in slo_terms if name.startswith(f"{stage}_") and is_tail(name))
    return p99 if p99 in slo_terms else next(asked, p99)


def latency_chart(points: Sequence[Point], axis: Axis, slo_terms: Mapping[str, float], chosen: Point) -> Chart | None:
    """Draw p99 TTFT and E2E against a swept key, with the SLO and a star at the point that the key numbers are of.

    Where the SLO has a target for another percentile of one, that is drawn.
    """
    ordered = in_order(points, [axis])
    names = [name for name in (_drawn(stage, slo_terms) for stage in ("ttft", "e2e")) if has_values(points, name)]
    if len(names) > 1 and "ttft_p99_s" not in slo_terms and all(map(is_fixed, points)):
        names = names[1:]  # the first token is the whole answer
    if not names:
        return None
    lines = [Line(metric_words(name), SERIES[0 if name.startswith("ttft") else 1], name, ordered) for name in names]
    targets: dict[str, float] = {}
    for name in names:
        if name in slo_terms:
            same = next((label for label, at in targets.items() if at == slo_terms[name]), None)
            targets.pop(same or "", None)
            label = "SLO" if same else f"SLO {metric_words(name).removeprefix('p99 ')}"
            targets[f"{label} {show(name, slo_terms[name])}"] = slo_terms[name]
    caption = f"{_bands_words(points, axis, names)}{bands_note(points)}"
    if slo_terms and not targets:
        caption += " The SLO is about another metric."
    caption += f"{unserved_note(points)} ★ {axis.point_phrase(chosen)}: the key numbers are of this point."
    what = "p99 latency" if set(names) <= set(LATENCIES) else "latency"
    table = numbers_table(f"{what} by {axis.words}", axis, ordered, names)
    title = f"How does {what} change with {axis.words}?"
    heading = Heading("latency", title, caption)
    return line_chart(heading, axis, YAxis(what, "s", targets), lines, table, chosen)


def ratio_chart(points: Sequence[Point], axis: Axis, slo_terms: Mapping[str, float]) -> Chart | None:
    """Draw miss and delayed-hit ratio, and how busy the loader is, against a swept key."""
    ordered = in_order(points, [axis])
    lines = [Line(*how, name, ordered) for name, how in RATIOS.items() if varies(points, name)]
    if not lines:
        return None
    target = slo_terms.get("miss_ratio")
    targets = {} if target is None else {f"SLO {show('miss_ratio', target)}": target}
    busy = any(line.name == "loader_utilization" for line in lines)
    title = f"How often must an adapter be loaded{', and how busy is the loader' if busy else ''}?"
    caption = "Misses and delayed hits as shares of admitted requests for adapters"
    caption += "; the loader as a share of time." if busy else "."
    caption += bands_note(points)
    names = [line.name for line in lines]
    table = numbers_table(f"Miss ratio, delayed hits and loader by {axis.words}", axis, ordered, names)
    heading = Heading("ratios", title, caption)
    return line_chart(heading, axis, YAxis("share", "share", targets), lines, table)


def family_chart(
    points: Sequence[Point], axis: Axis, other: Axis | None, slo_terms: Mapping[str, float], name: str
) -> Chart | None:
    """Draw one metric against a swept key, one line a value of a second key if there is one (at most six)."""
    if not has_values(points, name) or (other is not None and len(other.values) > len(SERIES)):
        return None
    words = metric_words(name)
    count = UNITS[name] in COUNTS
    title = (
        f"How many requests are affected, by {axis.words}" if count else f"How does {words} change with {axis.words}"
    )
    if other is None:
        lines = [Line("affected" if count else words, SERIES[0], name, in_order(points, [axis]))]
        table = numbers_table(f"{words} by {axis.words}", axis, lines[0].points, [name])
    else:
        labels = other.short_labels(15)
        rows = [in_order([p for p in points if other.index(p) == i], [axis]) for i in range(len(other.values))]
        lines = [Line(label, colour, name, row) for label, colour, row in zip(labels, SERIES, rows, strict=False)]
        table = _family_table(points, axis, other, name)
        title += f" and {other.words}" if count else f", for each {other.words}"
    targets = {f"SLO {show(name, slo_terms[name])}": slo_terms[name]} if name in slo_terms else {}
    caption = f"{_bands_words(points, axis, [name])}{bands_note(points)}{unserved_note(points, name)}"
    kind = "share" if name in SHARES else "requests" if count else "s"
    heading = Heading(f"family-{name.replace('_', '-')}", f"{title}?", caption)
    return line_chart(heading, axis, YAxis(words, kind, targets), lines, table)


def _family_table(points: Sequence[Point], axis: Axis, other: Axis, name: str) -> Table:
    head = [axis.words, *(f"{other.words} {other.label(value)}" for value in other.values)]
    found = {(axis.index(p), other.index(p)): p for p in points}
    rows = []
    for i, value in enumerate(axis.values):
        row_points = [found.get((i, j)) for j in range(len(other.values))]
        rows.append([axis.label(value), *("–" if p is None else cell(p, name) for p in row_points)])
    shown = spread(rows, MOST_ROWS)
    note = f"{table_note(len(rows), len(shown))} {brackets_note(points)}".strip()
    return Table(f"{metric_words(name)} by {axis.words} and {other.words}", head, shown, note)
