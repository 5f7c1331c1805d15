"""Charts of latency: where the time goes, and how it is distributed."""

from __future__ import annotations

import math
from collections.abc import Sequence

from reports.axes import Axis, in_order, shorten, spread
from reports.charts.axis_ticks import (
    draw_grid,
    nice_linear,
    scale_log,
    scale_rows,
    scale_x,
    scale_y,
    seconds_tick,
    slanted,
    x_title,
    y_title,
)
from reports.charts.canvas import Axes
from reports.charts.svg import (
    COLOURS,
    SERIES,
    WIDTH,
    Chart,
    column_tips,
    dash_of,
    drawing,
    hatched,
    place,
    row_tips,
    to_svg,
)
from reports.charts.sweep_charts import end_labels
from reports.formatting import percent
from reports.table import MOST_ROWS, Table, table_note
from sim.results.point import Point
from sim.spec.units import human_seconds

# Charts of where the time goes, stage by stage.

STAGES = {
    "front_end_s": ("front end", "s4"),
    "loader_queue_s": ("load queue", "s2"),
    "load_s": ("load", "s5"),
    "queue_s": ("admission queue", "s1"),
    "prefill_s": ("prefill", "s3"),
    "hand_over_s": ("hand-over", "s4"),
    "read_s": ("KV read", "s2"),
    "decode_queue_s": ("decode queue", "s1"),
    "decode_load_s": ("decode load", "s5"),
    "decode_s": ("decode", "s6"),
}
"""Stages of a request in their order: words and colour."""


def _stages(points: Sequence[Point]) -> list[tuple[str, str, str]]:
    """Return key, words and colour of the stages that take any time."""
    fixed = all(not p.breakdown.get("prefill_s") for p in points)
    return [
        (key, "service" if fixed and key == "decode_s" else words, COLOURS[colour])
        for key, (words, colour) in STAGES.items()
        if any(p.breakdown.get(key, 0.0) > 0 for p in points)
    ]


def breakdown_chart(point: Point, where: str) -> Chart | None:
    """Draw the stages of the mean request one after the other, each starting where the last one ended.

    :param where: which of several points it is, in words.
    """
    stages = _stages([point])
    total = sum(point.breakdown.values())
    if not stages or not total > 0:
        return None
    rows = [
        [words, human_seconds(point.breakdown[key]), percent(point.breakdown[key] / total)] for key, words, _ in stages
    ]
    largest = max(rows, key=lambda row: float(row[2].split()[0]))
    desc = f"Mean time of a request by stage, {human_seconds(total)} in all. The largest is {largest[0]}: {largest[2]}."
    title = "Where does the time go?"
    table = Table("Mean time by stage", ["stage", "time", "share"], rows)
    with drawing(66 + 48 * len(stages)) as figure:
        ax = place(figure, 112, 14, 138, 52)
        start = 0.0
        for i, (key, _, colour) in enumerate(stages):
            length = point.breakdown[key]
            ax.barh(i, length, left=start, height=0.62, **hatched(colour))
            if i:
                ax.plot([start, start], [i - 1.31, i + 0.31], color=COLOURS["muted"], linewidth=0.8)
            text = f"{rows[i][1]} · {rows[i][2] if length > 0.001 * total else '< 0.1 %'}"
            ax.annotate(text, (start + length, i), (6, 0), va="center")
            start += length
        ax.set_xlim(0, total)
        ticks = nice_linear(0, total, 5)
        ax.set_ticks("x", ticks, [seconds_tick(tick) for tick in ticks])
        scale_rows(ax, [words for _, words, _ in stages])
        x_title(ax, "mean time since arrival")
        svg = to_svg(figure, "breakdown", title, desc, row_tips(ax, range(len(rows)), table))
    caption = f"The mean request{where}, {human_seconds(total)} from arrival to last token, stage by stage."
    return Chart("breakdown", title, caption, desc, svg, table)


def breakdown_sweep_chart(points: Sequence[Point], axis: Axis) -> Chart | None:
    """Draw the stages of the mean request, stacked, against a swept key."""
    known = [p for p in in_order(points, [axis]) if p.breakdown]
    stages = _stages(known)
    if not known or not stages:
        return None
    shown = spread(known, MOST_ROWS)
    head = [axis.words, *(words for _, words, _ in stages), "mean E2E"]
    rows = [
        [
            axis.point_label(p),
            *(human_seconds(p.breakdown.get(key, 0.0)) for key, _, _ in stages),
            human_seconds(sum(p.breakdown.values())),
        ]
        for p in shown
    ]
    last = max(stages, key=lambda stage: known[-1].breakdown.get(stage[0], 0.0))
    share = known[-1].breakdown[last[0]] / (sum(known[-1].breakdown.values()) or 1.0)
    desc = f"Mean time by stage against {axis.words}; at {axis.point_label(known[-1])}, {percent(share)} is {last[1]}."
    title = "Where does the time go?"
    table = Table(f"Mean time by stage and {axis.words}", head, rows, table_note(len(known), len(shown)))
    room = WIDTH - 58 - 134
    below = slanted(axis, room)
    with drawing(round(330 + below)) as figure:
        ax = place(figure, 58, 36, 134, 52 + below)
        ends = _stack(ax, axis, shown, stages)
        scale_y(ax, [sum(p.breakdown.values()) for p in shown], "stacked")
        scale_x(ax, axis, room)
        end_labels(ax, ends, "area")
        y_title(ax, "mean latency")
        x_title(ax, axis.words, below)
        tips = column_tips([ax], [axis.place(p) for p in shown], table)
        svg = to_svg(figure, "breakdown", title, desc, tips)
    caption = "Mean seconds of a request, stage by stage; the top edge is mean E2E."
    return Chart("breakdown", title, caption, desc, svg, table)


def _stack(
    ax: Axes, axis: Axis, points: Sequence[Point], stages: Sequence[tuple[str, str, str]]
) -> list[tuple[str, str, float]]:
    """Draw areas (bars for categories); return label, colour and height of each part's right end."""
    xs = [axis.place(p) for p in points]
    base = [0.0] * len(points)
    ends = []
    for key, words, colour in stages:
        top = [low + p.breakdown.get(key, 0.0) for low, p in zip(base, points, strict=True)]
        if axis.numeric and len(points) > 1:
            ax.fill_between(xs, base, top, **hatched(colour))
        else:
            ax.bar(xs, [t - b for t, b in zip(top, base, strict=True)], 0.62, bottom=base, **hatched(colour))
        if top[-1] - base[-1] > 0:
            ends.append((words, colour, (top[-1] + base[-1]) / 2))
        base = top
    return ends


# How latencies are distributed: quantiles up to the far tail.

LATENCIES = {
    "e2e_s": ("E2E", "s2"),
    "ttft_s": ("TTFT", "s1"),
    "queue_s": ("queue", "s3"),
    "load_wait_s": ("load wait", "s5"),
}


_QUANTILES = (0.1, 0.25, 0.5, 0.75, 0.9, 0.95, 0.99, 0.999)
Curve = tuple[str, str, list[float], list[float]]
"""Label, colour, quantiles and seconds."""


def _tail(quantile: float) -> float:
    """Return where a quantile stands on an axis that gives 90, 99 and 99.9 % the same room."""
    return -math.log10(1 - quantile)


def measured_quantiles(point: Point, key: str) -> tuple[list[float], list[float]]:
    """Return the quantiles that have a value, and the values; JSON keeps what is missing as null."""
    pairs = [(q, v) for q, v in zip(point.cdf["q"], point.cdf[key], strict=False) if v is not None]
    return [q for q, _ in pairs], [v for _, v in pairs]


def _curves(points: Sequence[Point], axes: Sequence[Axis]) -> list[Curve]:
    """Return label, colour, quantiles and seconds of each curve."""
    curves: list[Curve] = []
    if len(points) == 1:
        for key, (label, colour) in LATENCIES.items():
            if points[0].cdf.get(key):
                curves.append((label, COLOURS[colour], *measured_quantiles(points[0], key)))
        return curves
    key = next((k for k in ("ttft_s", "e2e_s") if any(p.cdf.get(k) for p in points)), "e2e_s")
    for point, colour in zip(points, SERIES, strict=False):
        if point.cdf.get(key):
            label = shorten(", ".join(axis.short_label(point, 16) for axis in axes), 16)
            curves.append((label, colour, *measured_quantiles(point, key)))
    return curves


def cdf_chart(points: Sequence[Point], axes: Sequence[Axis], where: str = "") -> Chart | None:
    """Draw latency quantiles up to the far tail: four latencies of one point, or one of up to six points.

    :param where: which point it is, in words, where others have no curve.
    """
    some = spread([p for p in in_order(points, axes) if p.cdf.get("q")], len(SERIES))
    curves = [curve for curve in _curves(some, axes) if any(value > 0 for value in curve[3])]
    if not curves:
        return None
    what = "latency" if len(some) == 1 else "TTFT" if some[0].cdf.get("ttft_s") else "E2E"
    by = f"{what} by {', '.join(axis.words for axis in axes)}." if len(some) > 1 else ""
    return quantile_chart(
        "cdf", "How slow are the slowest requests?", by or (where and f"Requests{where}."), what, curves
    )


def quantile_chart(ident: str, title: str, caption: str, what: str, curves: Sequence[Curve]) -> Chart:
    """Draw quantiles of one or several latencies up to the far tail.

    :param caption: what comes before how to read the chart.
    :param what: the latency, in words.
    :param curves: each with a value above 0.
    """
    top = max(q for curve in curves for q in curve[2] if q < 1)
    high = max(max(curve[3]) for curve in curves)
    low = max(min(min(v for v in curve[3] if v > 0) for curve in curves), high / 1e5)
    desc = f"Share of requests served within a time, for {', '.join(curve[0] for curve in curves)}."
    table = _cdf_table(curves, what)
    with drawing(330) as figure:
        ax = place(figure, 58, 36, 136, 52)
        for _, colour, quantiles, values in curves:
            pairs = [(q, v) for q, v in zip(quantiles, values, strict=True) if q < 1]
            start = max((i for i, (_, v) in enumerate(pairs) if v <= low / 1.2), default=0)
            kept = [(q, max(v, low / 1.2)) for q, v in pairs[start:]]
            ax.plot([v for _, v in kept], [_tail(q) for q, _ in kept], color=colour, linestyle=dash_of(colour))
        scale_log(ax, "x", low / 1.2, high * 1.2, seconds_tick)
        levels = [q for q in (0.0, 0.5, 0.9, 0.99, 0.999, 0.9999) if q <= top + 1e-9]
        ax.set_ticks("y", [_tail(q) for q in levels], [f"{q * 100:.6g} %" for q in levels])
        ax.set_ylim(0, _tail(top) * 1.02)
        draw_grid(ax, "both")
        # The curves in the right margin, slowest first, as they end at the right.
        order = sorted(curves, key=lambda curve: -max(curve[3]))
        ends = [(name, colour, ax.get_ylim()[1] * (0.97 - 0.07 * i)) for i, (name, colour, _, _) in enumerate(order)]
        end_labels(ax, ends)
        y_title(ax, "share of requests within")
        x_title(ax, what)
        svg = to_svg(figure, ident, title, desc, row_tips(ax, [_tail(q) for q in _QUANTILES], table))
    reading = "Further up means further into the tail: each labelled line is a tenth as many requests as the one below."
    return Chart(ident, title, f"{caption} {reading}".strip(), desc, svg, table)


def _cdf_table(curves: Sequence[Curve], what: str) -> Table:
    rows = []
    for wanted in _QUANTILES:
        cells = []
        for _, _, quantiles, values in curves:
            at = min(range(len(quantiles)), key=lambda i: abs(quantiles[i] - wanted))
            close = abs(quantiles[at] - wanted) <= 0.1 * (1 - wanted) + 1e-9
            cells.append(human_seconds(values[at]) if close else "–")
        rows.append([f"{wanted * 100:.6g} %", *cells])
    return Table(f"Quantiles of {what}", ["share within", *(curve[0] for curve in curves)], rows)
