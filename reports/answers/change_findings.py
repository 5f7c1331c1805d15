"""What rollouts, faults and routers did at one point: which of them a run has, and what is certain about them."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from reports.answers.verdicts import main_metric
from reports.axes import Axis
from sim.results.intervals import student
from sim.results.model import WRONG_KINDS, Impact
from sim.results.point import Point

MANY = 0.05
"""Share of unanswered requests from which the latencies of the others no longer show what happened."""

SOME = 0.5
"""Requests of a replication from which a kind of impact is there."""


TELLS = 0.01
"""Share of the requests up to which an interval of the impact must reach to say that there is none: what a p99 allows.
"""

_FEWEST, _MOST = 5, 100
"""Replications from which an interval is not mainly that of a small sample, and the most that are worth a hint."""


@dataclass(frozen=True)
class Aftermath:
    """What happened to the requests that came after the first event.

    :ivar came: how many in a replication; ``unanswered``: those of them without an answer when the run ended.
    :ivar stuck: whether so many had none that latencies no longer show what happened.
    :ivar worst_s: the longest mean E2E in a span of the timeline, at ``worst_at_s``; ``usual_s``: the median span's.
        None where the timeline has too few.
    """

    came: float
    unanswered: float
    stuck: bool
    worst_s: float | None = None
    worst_at_s: float | None = None
    usual_s: float | None = None


def is_changed(points: Sequence[Point]) -> bool:
    """Return whether something changes while traffic flows: there are rollouts or faults."""
    return any(point.impact for point in points)


def impact_of(point: Point) -> Impact:
    """Return what rollouts and faults did to the requests of a point; nothing where there are neither."""
    return point.impact or Impact()


def impact_parts(point: Point) -> list[tuple[str, float]]:
    """Return the kinds of impact of a point, and how many requests of a replication each concerns, most frequent first.

    They are those beyond the usual, where that is known.
    """
    impact = impact_of(point)
    found = {kind: impact.mean(kind) for kind in (*WRONG_KINDS, "slow")} if impact.beyond is None else impact.beyond
    return sorted(((kind, count) for kind, count in found.items() if count > 0), key=lambda pair: -pair[1])


def has_clear_impact(point: Point) -> bool:
    """Return whether a rollout or fault did something to requests that is no chance.

    Wrong answers count as they are, and so does the difference of a single replication to its baseline.
    """
    if any(kind in WRONG_KINDS and count >= SOME for kind, count in impact_parts(point)):
        return True
    metric = point.metrics.get("harmed_excess")
    return metric is not None and ((metric.value or 0.0) >= SOME if metric.lo is None else metric.lo > 0)


def is_too_short(point: Point) -> bool:
    """Return whether there are too few replications to tell: the impact may be none, or enough to miss a p99."""
    metric, impact = point.metrics.get("harmed_excess"), impact_of(point)
    if metric is None or metric.lo is None or metric.hi is None or has_clear_impact(point):
        return False
    return impact.replications > 1 and metric.hi > TELLS * impact.requests / impact.replications


def replications_needed(point: Point) -> int | None:
    """Return how many replications would show an impact as large as it seems; None where too many, or it is none."""
    metric, count = point.metrics["harmed_excess"], impact_of(point).replications
    value = metric.value or 0.0
    if metric.lo is None or metric.hi is None or value <= 0:
        return None
    deviation = (metric.hi - metric.lo) / 2 / student(count - 1) * math.sqrt(count)
    enough = (n for n in range(max(count + 1, _FEWEST), _MOST + 1) if student(n - 1) * deviation < value * math.sqrt(n))
    return next(enough, None)


def per_event(point: Point) -> Point:
    """Return a point whose refused and failed requests are those of one replication, as all others of a change are."""
    count, metrics = impact_of(point).replications, dict(point.metrics)
    for name in ("refused", "failed"):
        if name in metrics:
            metric = metrics[name]
            value, low, high = (None if end is None else end / count for end in (metric.value, metric.lo, metric.hi))
            metrics[name] = replace(metric, value=value, lo=low, hi=high, parts=[])  # the parts add up to the total
    return replace(point, metrics=metrics)


def has_rollout(points: Sequence[Point]) -> bool:
    """Return whether there are rollouts."""
    return any(point.version_mix for point in points)


def compares_routers(points: Sequence[Point], axes: Sequence[Axis]) -> bool:
    """Return whether a sweep of a fleet changes its router."""
    return any(axis.key.startswith("router.") for axis in axes) and any(point.replicas for point in points)


def value_of(point: Point, name: str) -> float | None:
    """Return a metric's value, None where there is none."""
    metric = point.metrics.get(name)
    return None if metric is None else metric.value


def rollouts_begun(point: Point) -> int:
    """Return how many rollouts began in the first replication; 0 for run directories without numbers in events."""
    return len({event["rollout"] for event in point.events if event["kind"] == "rollout" and "rollout" in event})


def latency_name(points: Sequence[Point], slo_terms: Mapping[str, float]) -> str:
    """Return the p99 that during and before are compared by: the SLO's, where it is one of TTFT or E2E."""
    name = main_metric(points, slo_terms)
    return name if name in ("ttft_p99_s", "e2e_p99_s") else "ttft_p99_s"


def aftermath(point: Point) -> Aftermath:
    """Return what happened to the requests that came after the first event."""
    impact = impact_of(point)
    came = (impact.requests - (impact.requests_before or 0)) / impact.replications
    unanswered = (impact.unanswered_after or 0) / impact.replications
    if unanswered > MANY * came:
        return Aftermath(came, unanswered, stuck=True)
    begins = min((event["t_s"] for event in point.events if event["t_s"] > 0), default=0.0)
    times, means = point.timeline.t_s, point.timeline.e2e_mean_s
    known = [(value, time) for value, time in zip(means, times, strict=True) if value is not None]
    after = [pair for pair in known if pair[1] >= begins]
    if len(known) < 3 or not after:
        return Aftermath(came, unanswered, stuck=False)
    usual = sorted(value for value, _ in known)[len(known) // 2]
    worst, when = max(after)
    return Aftermath(came, unanswered, stuck=False, worst_s=worst, worst_at_s=when, usual_s=usual)
