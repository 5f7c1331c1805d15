"""What rollouts, faults and routers did: which of them a run has, and what is certain about them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from reports.answers.verdicts import main_metric
from reports.axes import Axis
from sim.results.model import Impact
from sim.results.point import Point

MANY = 0.05
"""Share of unanswered requests from which the latencies of the others no longer show what happened."""


def is_changed(points: Sequence[Point]) -> bool:
    """Return whether something changes while traffic flows: there are rollouts or faults."""
    return any(point.impact for point in points)


def impact_of(point: Point) -> Impact:
    """Return what rollouts and faults did to the requests of a point; nothing where there are neither."""
    return point.impact or Impact()


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


def _several(point: Point) -> bool:
    """Return whether there are several rollouts, by the events of the first replication."""
    return len({event["text"].partition(":")[0] for event in point.events if event["kind"] == "rollout"}) > 1


def latency_name(points: Sequence[Point], slo_terms: Mapping[str, float]) -> str:
    """Return the p99 that during and before are compared by: the SLO's, where it is one of TTFT or E2E."""
    name = main_metric(points, slo_terms)
    return name if name in ("ttft_p99_s", "e2e_p99_s") else "ttft_p99_s"


def _any(points: Sequence[Point], name: str) -> bool:
    return any(value_of(point, name) for point in points)


def _apart(low: Point, high: Point, name: str) -> bool:
    """Return whether a metric certainly differs: in the same replications, else by intervals that don't overlap.

    A count of one replication has no interval, but all points count the same requests.
    """
    if certainly_less(low, high, name):
        return True
    above, below = high.metrics[name].lo, low.metrics[name].hi
    if above is None or below is None:
        return True
    return below < above


def certainly_less(one: Point, other: Point, name: str) -> bool:
    """Return whether a metric is lower at one point, by the interval of the difference."""
    from sim.results.pairs import difference_of

    found = difference_of(one, other, name)
    return found is not None and found.lo is not None and found.lo > 0
