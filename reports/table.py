"""The table class of pages and the terminal, and the cells that charts and tables share."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from reports.axes import Axis, spread
from reports.formatting import calibration, interval, metric_words, show
from sim.results.point import Point
from sim.results.verdict import verdict

MOST_ROWS = 200
"""Rows of a chart's table; beyond it, evenly spaced ones."""


@dataclass(frozen=True)
class Table:
    """The numbers of a chart, or a table of its own.

    :ivar rows: cells as text; the first of each row is its header.
    :ivar note: what was left out, if anything was.
    :ivar words: columns that hold words rather than numbers; they align left.
    :ivar verdicts: the verdict on the SLO that a cell shows, by row and column.
    :ivar optional: columns that a terminal too narrow for all of them leaves out, the first one first.
    :ivar keys: columns that name a row; a terminal that is still too narrow repeats them.
    :ivar unmarked: in its place where a terminal shows no marks, and it needs them.
    """

    caption: str
    head: list[str]
    rows: list[list[str]]
    note: str = ""
    words: tuple[int, ...] = ()
    verdicts: Mapping[tuple[int, int], str] = field(default_factory=dict)
    optional: tuple[int, ...] = ()
    keys: int = 1
    unmarked: Table | None = None


def numbers_table(caption: str, axis: Axis, points: Sequence[Point], names: Sequence[str]) -> Table:
    """Return metrics with their intervals, one row for each point; unsettled values carry a mark."""
    shown = spread(points, MOST_ROWS)
    head = [axis.words, *(metric_words(name) for name in names)]
    rows = [[axis.point_label(p), *(cell(p, name) for name in names)] for p in shown]
    return Table(caption, head, rows, f"{table_note(len(points), len(shown))} {brackets_note(points)}".strip())


def point_rows(
    points: Sequence[Point], axes: Sequence[Axis], slo_terms: Mapping[str, float], names: Sequence[str]
) -> tuple[list[str], list[list[str]]]:
    """Return the head and one row for each point: its swept values, its verdict where there is an SLO, its metrics."""
    head = [*(axis.words for axis in axes), *(["SLO"] if slo_terms else []), *map(metric_words, names)]
    rows = []
    for point in points:
        judged = [verdict(point, slo_terms)] if slo_terms else []
        rows.append([*(axis.point_label(point) for axis in axes), *judged, *(cell(point, name) for name in names)])
    return head, rows


def table_note(total: int, shown: int) -> str:
    """Return which rows a shortened table leaves out."""
    return "" if shown == total else f"{shown:,} of {total:,} points, evenly spaced; points.csv has all of them."


def brackets_note(points: Sequence[Point]) -> str:
    """Return what the square brackets of ``cell`` hold, where there are any."""
    return "In square brackets: calibration intervals." if any(point.calibration for point in points) else ""


def cell(point: Point, name: str) -> str:
    """Return a metric as a table shows it: value, intervals, and a mark if it is unsettled."""
    metric = point.metrics.get(name)
    if metric is None or metric.value is None:
        return "–"
    bounds, drawn = interval(name, metric), calibration(name, metric)
    text = show(name, metric.value, metric.unit) + (f" ({bounds})" if bounds else "")
    return f"{text}{'' if metric.settled else ' unsettled'}{f' [{drawn}]' if drawn else ''}"
