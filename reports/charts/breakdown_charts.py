"""Charts of where the time goes, stage by stage."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from reports.axes import Axis, in_order, spread
from reports.charts.axis_ticks import (
    nice_linear,
    scale_rows,
    scale_x,
    scale_y,
    seconds_tick,
    set_ticks,
    slanted,
    x_title,
    y_title,
)
from reports.charts.hover import column_tips, row_tips
from reports.charts.svg import COLOURS, WIDTH, Chart, drawing, hatched, place, to_svg
from reports.charts.sweep_charts import end_labels
from reports.formatting import percent
from reports.table import MOST_ROWS, Table, table_note
from sim.results.point import Point
from sim.spec.units import human_seconds

if TYPE_CHECKING:
    from matplotlib.axes import Axes

STAGES = {
    "front_end_s": ("front end", "s4"),
    "loader_queue_s": ("load queue", "s2"),
    "load_s": ("load", "s5"),
    "queue_s": ("admission queue", "s1"),
    "prefill_s": ("prefill", "s3"),
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
            ax.annotate(text, (start + length, i), (6, 0), textcoords="offset points", va="center")
            start += length
        ax.set_xlim(0, total)
        ticks = nice_linear(0, total, 5)
        set_ticks(ax, "x", ticks, [seconds_tick(tick) for tick in ticks])
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
        scale_y(ax, [sum(p.breakdown.values()) for p in shown], "s")
        _undo_log(ax, max(sum(p.breakdown.values()) for p in shown))
        scale_x(ax, axis, room)
        end_labels(ax, ends, "area")
        y_title(ax, "mean latency")
        x_title(ax, axis.words, below)
        tips = column_tips([ax], [axis.place(p) for p in shown], table)
        svg = to_svg(figure, "breakdown", title, desc, tips)
    caption = "Mean seconds of a request, stage by stage; the top edge is mean E2E."
    return Chart("breakdown", title, caption, desc, svg, table)


def _undo_log(ax: Axes, top: float) -> None:
    """Keep a stack linear: on a logarithmic axis its parts can't be compared."""
    if ax.get_yscale() == "log":
        ax.set_yscale("linear")
        ax.set_ylim(0, top * 1.08)
        ticks = nice_linear(0, top * 1.08)
        set_ticks(ax, "y", ticks, [seconds_tick(tick) for tick in ticks])


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
