"""What a run's page shows of rollouts, faults and routers: impact, strategies side by side, events, and what holding a
rollout back avoided."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from reports.answers.points import compares_routers, has_rollout, is_changed
from reports.axes import Axis, in_order, spread
from reports.charts.axis_ticks import moment_words
from reports.document import Section
from reports.formatting import metric_words, percent, show
from reports.table import Table, point_rows, table_note
from sim.results.point import Point
from sim.studies.changes.findings import clear_change, count_bounds, per_event, rounded, why_held_back, with_bounds

_MOST_POINTS = 100
_MOST_EVENTS = 40
_IMPACT_ROWS = {
    "mixed": ("answers of more than one version", "mixed_version_responses"),
    "stale": ("answers of an old version after cutover", "stale_after_cutover"),
    "refused_by_rollout": ("refused while an adapter was replaced", ""),
    "misrouted": ("reached a wrong adapter, or none", "misrouted"),
    "wrong_served": ("wrong answers that went unnoticed", "wrong_adapter_served"),
    "wrong_detected": ("wrong answers noticed", "wrong_adapter_detected"),
    "retried": ("sent again after a wrong answer", "retried"),
    "old_prefix": ("prefixes of an old version", "old_prefix_served"),
    "lost": ("lost with their replica", "lost"),
    "rerouted": ("sent to another replica", "rerouted"),
    "failed_loads": ("adapter could not be loaded", ""),
    "failed": ("failed, for any reason", "failed"),
    "slow": ("late by the SLO, answered or not", "harmed"),
}
"""Kinds of impact in words, each with the metric that says whether it is possible; without one, a row is shown where
it is not zero."""
_AFFECTED = {"harmed": "affected in any of these ways", "harmed_excess": "affected by the change"}
_COUNTS = (
    "harmed_excess",
    "harmed",
    "mixed_version_responses",
    "stale_after_cutover",
    "refused",
    "sessions_saw_both",
    "sessions_went_back",
    "wrong_adapter_served",
    "wrong_adapter_detected",
    "retried",
    "old_prefix_served",
    "failed",
    "lost",
    "rerouted",
)
_ROLLOUT = (
    "rollout_ttft_p99_s",
    "before_ttft_p99_s",
    "rollout_e2e_p99_s",
    "before_e2e_p99_s",
    "rollout_miss_ratio",
    "before_miss_ratio",
    "rollout_loads",
    "rollout_peak_loads_per_s",
    "before_peak_loads_per_s",
    "extra_resident_bytes_peak",
    "rollout_duration_s",
)
_PLAIN = ("rerouted_e2e_mean_s", "ttft_p99_s", "e2e_p99_s", "miss_ratio", "loads_per_request")


def changes_section(
    points: Sequence[Point],
    axes: Sequence[Axis],
    slo_terms: Mapping[str, float],
    focus: Point,
    where: str,
    day_s: int | None,
) -> Section:
    """Return the section on what changed, or on how routers compare; without parts where a run has neither.

    :param focus: the point that tables of one point are of; ``where``: its values in words.
    """
    held = focus if focus.held_back else next((point for point in points if point.held_back), focus)
    changed = is_changed(points) or held.held_back is not None
    return Section(
        "changes",
        "What changed, and what did it cost?" if changed else "How do the routers compare?",
        held_table(held, where if focus.held_back else ""),
        side_by_side(points, axes, slo_terms),
        impact_table(focus, where),
        events_table(focus, where, day_s),
        listed="What changed" if changed else "Routers",
    )


def impact_table(point: Point, where: str) -> Table | None:
    """Return how many requests were affected at one point, and how."""
    impact = point.impact
    if impact is None:
        return None
    total = max(1, impact.requests) / impact.replications
    rows = []
    for key, (words, name) in _IMPACT_ROWS.items():
        every = getattr(impact, key, None)
        count = point.value("misrouted") or 0 if key == "misrouted" else every and every / impact.replications
        metric = point.metrics.get(name)
        if count is not None and (count or (metric is not None and metric.applies)):
            rows.append([words, rounded(count), percent(count / total)])
    for name, words in _AFFECTED.items():
        metric = point.metrics.get(name)
        if metric is not None and metric.value is not None:
            rows.append([words, with_bounds(metric), percent(metric.value / total)])
    mean = "in one replication" if impact.replications == 1 else f"the mean of {impact.replications} replications"
    note = (
        f"Of {total:,.0f} measured requests, {mean}; a request may be in "
        "several rows. The usual is the same traffic without the rollouts and faults. A request that was noticed, sent "
        "again or sent to another replica is affected only if it took too long."
    )
    return Table(f"What happened to requests{where}", ["", "requests", "share"], rows, note)


def side_by_side(points: Sequence[Point], axes: Sequence[Axis], slo_terms: Mapping[str, float]) -> Table | None:
    """Return one row for each point with impact, latencies, loads and skew; None for a sweep that isn't about these."""
    if not axes or not (is_changed(points) or compares_routers(points, axes)):
        return None
    names = [name for name in _COUNTS if is_changed(points) and any(p.value(name) for p in points)]
    names += _ROLLOUT if has_rollout(points) else _PLAIN
    names.append("replica_load_skew")
    names = [name for name in names if any(p.value(name) for p in points)]
    shown = spread(in_order(points, axes), _MOST_POINTS)
    if is_changed(points):
        shown = [per_event(point) for point in shown]
    head, rows = point_rows(shown, axes, slo_terms, names)
    if len(axes) == 1 and len(shown) <= 6:  # few enough to be columns
        rows = [list(row) for row in zip(head, *rows, strict=True)]
        head, rows = rows[0], rows[1:]
    note = table_note(len(points), len(shown))
    counted = "Counts are means over the replications, with 95 % intervals; all points get the same traffic."
    return Table("Side by side, on the same traffic", head, rows, f"{note} {counted}".strip())


def events_table(point: Point, where: str, day_s: int | None = None) -> Table | None:
    """Return what happened to the fleet in the first replication, numbered as in the timeline."""
    if not point.events:
        return None
    events = point.events[:_MOST_EVENTS]
    rows = [[str(i), moment_words(event["t_s"], day_s), str(event["text"])] for i, event in enumerate(events, 1)]
    more = len(point.events) - len(events)
    note = f"{more} more events are in points/." if more else ""
    return Table(f"Events of the first replication{where}", ["", "at", "what"], rows, note, words=(2,))


def held_table(point: Point, where: str) -> Table | None:
    """Return what happened next to what would have happened; None where nothing is held back."""
    held = point.held_back
    if held is None:
        return None
    answered = held.answered
    rows = [["requests answered by the version held back", "0", f"{answered.value:,}{count_bounds(answered)}", ""]]
    if len(held.rollouts) > 1:
        for row, each in zip(held.rollouts, held.by_rollout, strict=True):
            rows.append([f"of rollouts.{row.rollout}", "0", f"{each.value:,}{count_bounds(each)}", ""])
    for name, found in held.metrics.items():
        if found.one is None or found.other is None:
            continue
        rows.append([metric_words(name), show(name, found.one), show(name, found.other), clear_change(name, found)])
    why = "; ".join(why_held_back(row) for row in held.rollouts)
    note = (
        f"Held back: {why}. Both columns are the same traffic over all replications; “during” runs from the start of "
        "the rollout to the end of its observation."
    )
    return Table(f"What holding it back avoided{where}", ["", "held back", "if rolled out", "change"], rows, note)
