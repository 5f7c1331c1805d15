"""Which charts a run gets: one for each question, by how many keys were swept, and none that shows no difference."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from reports.answers.points import is_changed
from reports.answers.verdicts import main_metric
from reports.axes import Axis, in_order, point_words, spread
from reports.charts.heat_maps import Facet, heat_chart
from reports.charts.latency_charts import breakdown_chart, breakdown_sweep_chart, cdf_chart
from reports.charts.svg import SERIES, Chart
from reports.charts.sweep_charts import LATENCIES, RATIOS, family_chart, has_values, latency_chart, ratio_chart, varies
from reports.charts.timeline_chart import timeline_chart
from reports.table import Table
from sim.results.point import Point
from sim.results.verdict import strain, strained
from sim.studies.changes.charts import impact_chart, moments_chart, version_chart
from sim.timing import timed

_MOST_CELLS = 1600
_MOST_FACETS = 6
_TIMES = (*LATENCIES, "ttft_p50_s", "e2e_mean_s")


@timed("charts")
def choose_charts(
    points: Sequence[Point],
    axes: Sequence[Axis],
    slo_terms: Mapping[str, float],
    focus: Point,
    *,
    certain: Sequence[Mapping[str, Any]] | None = None,
    day_s: int | None = None,
    rates: Sequence[tuple[float, float]] = (),
) -> list[Chart | Table]:
    """Return the charts of a run, the most informative first.

    :param focus: the point whose timeline, stages and distribution are drawn.
    :param day_s: time of day at the start of the run, in seconds from midnight; None: it has none.
    :param rates: when the scenario changes its rate, and the requests a second from then on.
    :param certain: of the answer of a plan, values of the designs that it is sure of; no chart but the first then shows
        other points.
    """
    where = f" at {point_words(focus, axes)}" if axes else ""
    timeline = timeline_chart(focus, where, day_s, rates)
    rest = [breakdown_chart(focus, where), cdf_chart([focus], [], where), timeline]
    found: Sequence[Chart | Table | None]
    changed = [moments_chart(points, axes, day_s), version_chart(points, axes, day_s)]
    if not axes and focus.events:
        found = [rest[2], *changed, *rest[:2]]
    elif is_changed(points):
        found = [impact_chart(points, axes), *changed, rest[2]]
    elif len(axes) == 1:
        axis = axes[0]
        flat = unchanged(points, axes, slo_terms)
        sweeps = [
            None if flat.issuperset(LATENCIES) else latency_chart(points, axis, slo_terms, focus),
            None if flat.issuperset(RATIOS) else ratio_chart(points, axis, slo_terms),
        ]
        if certain is None and any(varies(points, name) for name in _TIMES):
            rest[:2] = [breakdown_sweep_chart(points, axis), cdf_chart(points, axes)]
        found = [*sweeps, *rest]
    elif axes:
        several = (
            _two_keys(points, axes, slo_terms, focus, certain)
            if len(axes) == 2
            else _facets(points, axes, slo_terms, focus)
        )
        found = [*several, *rest]
    else:
        found = rest
    return [chart for chart in found if chart is not None]


def unchanged(points: Sequence[Point], axes: Sequence[Axis], slo_terms: Mapping[str, float]) -> set[str]:
    """Return the metrics that would have a chart if all of its lines were not equal."""
    groups: list[Sequence[str]] = []
    if is_changed(points):
        return set()
    if len(axes) == 1:
        groups = [LATENCIES, *((name,) for name in RATIOS)]
    elif len(axes) == 2 and not all(axis.numeric for axis in axes):
        groups = [(_latency(points, slo_terms),), ("miss_ratio",)]
    return {name for group in groups if not any(varies(points, each) for each in group) for name in group}


def _latency(points: Sequence[Point], slo_terms: Mapping[str, float]) -> str:
    name = main_metric(points, slo_terms)
    if name.endswith("_s"):
        return name
    return "ttft_p99_s" if has_values(points, "ttft_p99_s") else "e2e_p99_s"


def _most_missed(points: Sequence[Point], slo_terms: Mapping[str, float]) -> str:
    """Return the latency that keeps most points from the SLO; the main one where none does."""
    worst = Counter(
        max(over, key=lambda name: strain(point, name, slo_terms[name]))
        for point in points
        if (over := [name for name in strained(point, slo_terms) if name.endswith("_s") and has_values([point], name)])
    )
    return worst.most_common(1)[0][0] if worst else _latency(points, slo_terms)


def _two_keys(
    points: Sequence[Point],
    axes: Sequence[Axis],
    slo_terms: Mapping[str, float],
    focus: Point,
    certain: Sequence[Mapping[str, Any]] | None,
) -> list[Chart | None]:
    """Return one heat map for two quantities; one line a category where one key is no quantity."""
    first, second = axes
    latency = _latency(points, slo_terms)
    line, other = (first, second) if first.numeric or not second.numeric else (second, first)
    if not (first.numeric and second.numeric) and len(other.values) <= len(SERIES):
        flat = unchanged(points, axes, slo_terms)
        return [
            family_chart(points, line, other, slo_terms, name) for name in (latency, "miss_ratio") if name not in flat
        ]
    if len(first.values) * len(second.values) > _MOST_CELLS:
        return []
    cells = _most_missed(points, slo_terms)
    return [heat_chart(points, first, second, cells, slo_terms, Facet(points, focus, certain=certain))]


def _facets(
    points: Sequence[Point], axes: Sequence[Axis], slo_terms: Mapping[str, float], focus: Point
) -> list[Chart | None]:
    """Return one heat map of latency for each combination of the keys beyond the two with most values."""
    ranked = sorted(axes, key=lambda axis: (not axis.numeric, -len(axis.values)))
    across, up = ranked[:2]
    rest = [axis for axis in axes if axis not in (across, up)]
    groups: dict[str, list[Point]] = {}
    for point in in_order(points, rest):
        groups.setdefault(point_words(point, rest), []).append(point)
    if len(across.values) * len(up.values) > _MOST_CELLS:
        return []
    name = _most_missed(points, slo_terms)
    shown = spread(list(groups.items()), _MOST_FACETS)
    charts = [
        heat_chart(some, across, up, name, slo_terms, Facet(points, focus, f"heat-{i}", f" with {words}"))
        for i, (words, some) in enumerate(shown)
    ]
    if len(shown) == len(groups):
        return list(charts)
    note = f" {len(shown)} of {len(groups)} such charts are drawn, evenly spaced."
    return [chart and replace(chart, caption=chart.caption + note) for chart in charts]
