"""What tables, charts and sentences ask of points: a value, whether something changed there, and where a metric is
certainly lower."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import Enum

from reports.answers.verdicts import main_metric
from reports.axes import Axis
from sim.results.model import Impact
from sim.results.point import Point

_ERROR = 0.025
"""How often a 95 % interval lies above the truth."""


def any_value(points: Sequence[Point], name: str) -> bool:
    """Return whether a metric is not 0 at some point."""
    return any(point.value(name) for point in points)


def is_changed(points: Sequence[Point]) -> bool:
    """Return whether something changes while traffic flows: there are rollouts or faults."""
    return any(point.impact for point in points)


def impact_of(point: Point) -> Impact:
    """Return what rollouts and faults did to the requests of a point; nothing where there are neither."""
    return point.impact or Impact()


def impact_name(points: Sequence[Point]) -> str:
    """Return the metric of the impact: beyond the usual, where that is known at every point."""
    return "harmed_excess" if all(p.value("harmed_excess") is not None for p in points) else "harmed"


def has_rollout(points: Sequence[Point]) -> bool:
    """Return whether there are rollouts."""
    return any(point.version_mix for point in points)


def compares_routers(points: Sequence[Point], axes: Sequence[Axis]) -> bool:
    """Return whether a sweep of a fleet changes its router."""
    return any(axis.key.startswith("router.") for axis in axes) and any(point.replicas for point in points)


def latency_name(points: Sequence[Point], slo_terms: Mapping[str, float]) -> str:
    """Return the p99 that during and before are compared by: the SLO's, where it is one of TTFT or E2E."""
    name = main_metric(points, slo_terms)
    return name if name in ("ttft_p99_s", "e2e_p99_s") else "ttft_p99_s"


class Contrast(Enum):
    """How certain it is that a metric differs between two points."""

    EQUAL = "equal"
    UNCLEAR = "unclear"
    CLEAR = "clear"
    CLEAR_IN_PAIRS = "clear in pairs"
    """The intervals overlap, but the differences in the same replications exclude 0."""


@dataclass(frozen=True)
class Extremes:
    """Where a metric is lowest and highest, and whether that is certain."""

    low: Point
    high: Point
    contrast: Contrast


def find_extremes(points: Sequence[Point], name: str) -> Extremes | None:
    """Return where a metric is lowest and highest; None where fewer than two points have it."""
    known = [(value, point) for point in points if (value := point.value(name)) is not None]
    if len(known) < 2:
        return None
    low, high = min(known, key=lambda pair: pair[0])[1], max(known, key=lambda pair: pair[0])[1]
    return Extremes(low, high, _contrast(low, high, name))


def _contrast(low: Point, high: Point, name: str) -> Contrast:
    """Return whether a metric certainly differs: in the same replications, else by intervals that don't overlap.

    A count of one replication has no interval, but all points count the same requests.
    """
    if low.value(name) == high.value(name):
        return Contrast.EQUAL
    above, below = high.metrics[name].lo, low.metrics[name].hi
    if above is None or below is None or below < above:
        return Contrast.CLEAR
    return Contrast.CLEAR_IN_PAIRS if certainly_less(low, high, name) else Contrast.UNCLEAR


def certainly_less(one: Point, other: Point, name: str, comparisons: int = 1) -> bool | None:
    """Return whether a metric is lower at one point, by the interval of the difference; None where it has none.

    :param comparisons: how many differences are judged together. Each interval is as much wider as it takes for all of
        them to hold in 95 % of cases (Bonferroni).
    """
    from sim.results.pairs import difference_of

    found = difference_of(one, other, name)
    if found is None or found.change is None or found.lo is None:
        return None
    half = found.change - found.lo
    if comparisons > 1 and half > 0:
        from scipy.special import stdtrit  # it is heavy, and few answers need it

        degrees = max(1, len(one.metrics[name].parts) - 1)
        half *= float(stdtrit(degrees, 1 - _ERROR / comparisons) / stdtrit(degrees, 1 - _ERROR))
    return found.change - half > 0
