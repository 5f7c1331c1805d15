"""How latencies are distributed: quantiles up to the far tail."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

from reports.axes import Axis, in_order, shorten, spread
from reports.charts.axis_ticks import draw_grid, nice_log, seconds_tick, set_ticks, x_title, y_title
from reports.charts.hover import row_tips
from reports.charts.svg import COLOURS, SERIES, Chart, dash_of, drawing, place, to_svg
from reports.charts.sweep_charts import end_labels
from reports.table import Table
from sim.results.point import Point
from sim.spec.units import human_seconds

if TYPE_CHECKING:
    from matplotlib.axes import Axes

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
        ax.set_xscale("log")
        ax.set_xlim(low / 1.2, high * 1.2)
        ticks = nice_log(low / 1.2, high * 1.2, 6)
        set_ticks(ax, "x", ticks, [seconds_tick(tick) for tick in ticks])
        levels = [q for q in (0.0, 0.5, 0.9, 0.99, 0.999, 0.9999) if q <= top + 1e-9]
        set_ticks(ax, "y", [_tail(q) for q in levels], [f"{q * 100:.6g} %" for q in levels])
        ax.set_ylim(0, _tail(top) * 1.02)
        draw_grid(ax, "both")
        _curve_labels(ax, curves)
        y_title(ax, "share of requests within")
        x_title(ax, what)
        svg = to_svg(figure, ident, title, desc, row_tips(ax, [_tail(q) for q in _QUANTILES], table))
    reading = "Further up means further into the tail: each labelled line is a tenth as many requests as the one below."
    return Chart(ident, title, f"{caption} {reading}".strip(), desc, svg, table)


def _curve_labels(ax: Axes, curves: Sequence[Curve]) -> None:
    """List the curves in the right margin, slowest first, as they end at the right."""
    order = sorted(curves, key=lambda curve: -max(curve[3]))
    ends = [(label, colour, ax.get_ylim()[1] * (0.97 - 0.07 * i)) for i, (label, colour, _, _) in enumerate(order)]
    end_labels(ax, ends)


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
