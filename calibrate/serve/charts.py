"""Charts of a live server's requests: each against its prediction, and both distributions."""

from __future__ import annotations

import math
from collections.abc import Sequence

from reports.charts.axis_ticks import scale_log, seconds_tick, x_title, y_title
from reports.charts.fidelity_charts import BAND, draw_agreement, is_within
from reports.charts.svg import SERIES, Chart, drawing, place, row_tips, spot_tips, to_svg
from reports.table import Table
from sim.spec.units import human_seconds

_SIDE, _LEFT, _TOP, _RIGHT, _BOTTOM = 430, 66, 30, 16, 52
_MOST_MARKS = 3000
_WORST = 20
_QUANTILES = (0.1, 0.25, 0.5, 0.75, 0.9, 0.95, 0.99)


def request_scatter(ident: str, title: str, what: str, points: Sequence[tuple[int, float, float]]) -> Chart:
    """Draw every request's predicted against its measured time, both on logarithmic axes.

    :param points: request number, measured and predicted seconds, all above 0.
    """
    within = sum(is_within(measured, predicted) for _, measured, predicted in points)
    caption = (
        f"One mark a request. On the line prediction and measurement agree; the band is a factor of {BAND} either way "
        f"and holds {within / len(points):.0%} of {len(points):,} requests."
    )
    desc = f"{what}: {within:,} of {len(points):,} requests lie within a factor of {BAND} of their prediction."
    step = math.ceil(len(points) / _MOST_MARKS)
    shown = points[::step]
    low, high = _limits([value for _, *pair in points for value in pair])
    with drawing(_SIDE, _SIDE + 60) as figure:
        ax = place(figure, _LEFT, _TOP, _RIGHT, _BOTTOM)
        draw_agreement(ax, low, high)
        ax.plot(
            [m for _, m, _ in shown],
            [p for _, _, p in shown],
            "o",
            color=SERIES[0],
            markersize=3.6,
            alpha=0.5,
            markeredgewidth=0,
        )
        scale_log(ax, "x", low, high, seconds_tick)
        scale_log(ax, "y", low, high, seconds_tick)
        ax.grid(True)
        y_title(ax, f"predicted {what}", _LEFT - 8)
        x_title(ax, f"measured {what}")
        said = [(f"request {n}", f"measured {human_seconds(m)}", f"predicted {human_seconds(p)}") for n, m, p in shown]
        svg = to_svg(figure, ident, title, desc, spot_tips(ax, [(m, p) for _, m, p in shown], said))
    return Chart(ident, title, caption, desc, svg, _worst(what, points))


def distributions(
    ident: str, title: str, what: str, measured: Sequence[Sequence[float]], predicted: Sequence[float]
) -> Chart:
    """Draw the share of requests that took at most a given time, for each measured run and the prediction.

    :param measured: seconds, one sequence a run.
    """
    values = [value for run in (*measured, predicted) for value in run]
    low, high = _limits(values)
    rows = [[f"{q:.0%}", *(human_seconds(_quantile(run, q)) for run in (*measured, predicted))] for q in _QUANTILES]
    names = ["measured", "measured again"][: len(measured)]
    desc = f"{title} " + " ".join(f"{row[0]} of requests: measured {row[1]}, predicted {row[-1]}." for row in rows)
    table = Table(title, ["requests", *names, "predicted"], rows)
    caption = "The share of requests that took at most this long."
    if len(measured) > 1:
        caption += " No prediction can be closer than two measured runs of the same requests are to each other."
    lines = [(run, SERIES[1], 1.8 if number == 0 else 1.0, "-") for number, run in enumerate(measured)]
    with drawing(330) as figure:
        ax = place(figure, 58, _TOP, 24, _BOTTOM)
        for run, colour, width, style in (*lines, (predicted, SERIES[0], 1.8, "--")):
            ordered = sorted(run)
            ax.plot(
                ordered,
                [(i + 1) / len(ordered) for i in range(len(ordered))],
                style,
                color=colour,
                linewidth=width,
                drawstyle="steps-post",
            )
        scale_log(ax, "x", low, high, seconds_tick)
        ax.set_ylim(0, 1.01)
        ax.set_yticks([0, 0.25, 0.5, 0.75, 1], ["0 %", "25 %", "50 %", "75 %", "100 %"])
        ax.grid(True)
        y_title(ax, "requests")
        x_title(ax, what)
        svg = to_svg(figure, ident, title, desc, row_tips(ax, _QUANTILES, table))
    legend = [(" and ".join(names), "var(--s2)"), ("predicted (dashed)", "var(--s1)")]
    return Chart(ident, title, caption, desc, svg, table, legend, ["line", "dashed"])


def _limits(values: Sequence[float]) -> tuple[float, float]:
    return min(values) / 1.2, max(values) * 1.2


def _quantile(values: Sequence[float], q: float) -> float:
    ordered = sorted(values)
    place_ = q * (len(ordered) - 1)
    below = int(place_)
    above = min(below + 1, len(ordered) - 1)
    return ordered[below] + (ordered[above] - ordered[below]) * (place_ - below)


def _worst(what: str, points: Sequence[tuple[int, float, float]]) -> Table:
    order = sorted(points, key=lambda point: -abs(math.log(point[2] / point[1])))[:_WORST]
    rows = [[str(n), human_seconds(m), human_seconds(p), f"{p / m:.2f}"] for n, m, p in order]
    return Table(
        f"{what}: the {len(rows)} requests that are furthest off",
        ["request", "measured", "predicted", "ratio"],
        rows,
        "requests.parquet has all of them.",
    )
