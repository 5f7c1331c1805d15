"""Which charts a run gets: by how many keys were swept and whether they are quantities."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

from reports.answers.verdicts import main_metric
from reports.axes import Axis, in_order, point_words, spread
from reports.charts.breakdown_charts import breakdown_bars_chart, breakdown_chart, breakdown_sweep_chart
from reports.charts.change_charts import moments_chart, version_chart
from reports.charts.distribution_charts import cdf_chart
from reports.charts.heat_maps import Facet, heat_chart
from reports.charts.svg import SERIES, Chart
from reports.charts.sweep_charts import family_chart, has_values, latency_chart, ratio_chart
from reports.charts.timeline_chart import timeline_chart
from sim.results.point import Point

_MOST_CELLS = 1600
_MOST_FACETS = 6


def choose_charts(
    points: Sequence[Point], axes: Sequence[Axis], slo_terms: Mapping[str, float], focus: Point
) -> list[Chart]:
    """Return the charts of a run, the most informative first.

    :param focus: the point whose timeline is drawn.
    """
    where = f" at {point_words(focus, axes)}" if axes else ""
    timeline = timeline_chart(focus, where)
    changed = [moments_chart(points, axes), version_chart(points, axes)]
    if not axes and focus.events:
        found = [timeline, *changed, cdf_chart(points, axes), breakdown_chart(points[0])]
    elif not axes:
        found = [breakdown_chart(points[0]), cdf_chart(points, axes), timeline]
    elif len(axes) == 1:
        axis = axes[0]
        found = [
            latency_chart(points, axis, slo_terms),
            ratio_chart(points, axis, slo_terms),
            breakdown_sweep_chart(points, axis),
            cdf_chart(points, axes),
            timeline,
        ]
    else:
        several = _two_keys(points, axes, slo_terms) if len(axes) == 2 else _facets(points, axes, slo_terms)
        found = [*several, breakdown_bars_chart(points, axes), cdf_chart(points, axes), timeline]
    if axes:
        found = [*found[:1], *changed, *found[1:]]
    return [chart for chart in found if chart is not None]


def _latency(points: Sequence[Point], slo_terms: Mapping[str, float]) -> str:
    name = main_metric(points, slo_terms)
    if name.endswith("_s"):
        return name
    return "ttft_p99_s" if has_values(points, "ttft_p99_s") else "e2e_p99_s"


def _two_keys(points: Sequence[Point], axes: Sequence[Axis], slo_terms: Mapping[str, float]) -> list[Chart | None]:
    """Return heat maps for two quantities; one line a category where one key is no quantity."""
    first, second = axes
    latency = _latency(points, slo_terms)
    if first.numeric and second.numeric and len(first.values) * len(second.values) <= _MOST_CELLS:
        heat = [heat_chart(points, first, second, name, slo_terms) for name in ("miss_ratio", latency)]
        few, many = sorted(axes, key=lambda axis: len(axis.values))
        return [*heat, family_chart(points, many, few, slo_terms, latency)]
    line, other = (first, second) if first.numeric or not second.numeric else (second, first)
    if len(other.values) <= len(SERIES):
        return [family_chart(points, line, other, slo_terms, name) for name in (latency, "miss_ratio")]
    if len(first.values) * len(second.values) <= _MOST_CELLS:
        return [heat_chart(points, first, second, name, slo_terms) for name in ("miss_ratio", latency)]
    return []


def _facets(points: Sequence[Point], axes: Sequence[Axis], slo_terms: Mapping[str, float]) -> list[Chart | None]:
    """Return one heat map of latency for each combination of the keys beyond the two with most values."""
    ranked = sorted(axes, key=lambda axis: (not axis.numeric, -len(axis.values)))
    across, up = ranked[:2]
    rest = [axis for axis in axes if axis not in (across, up)]
    groups: dict[str, list[Point]] = {}
    for point in in_order(points, rest):
        groups.setdefault(point_words(point, rest), []).append(point)
    if len(across.values) * len(up.values) > _MOST_CELLS:
        return []
    name = _latency(points, slo_terms)
    shown = spread(list(groups.items()), _MOST_FACETS)
    charts = [
        heat_chart(some, across, up, name, slo_terms, Facet(f"heat-{i}", f" with {words}", points))
        for i, (words, some) in enumerate(shown)
    ]
    if len(shown) == len(groups):
        return list(charts)
    note = f" {len(shown)} of {len(groups)} such charts are drawn, evenly spaced."
    return [chart and replace(chart, caption=chart.caption + note) for chart in charts]
