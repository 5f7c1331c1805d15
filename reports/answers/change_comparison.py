"""Points of a sweep of rollouts, faults or routers compared: where a metric is lowest, and whether that is certain."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from enum import Enum

from reports.answers.change_findings import has_rollout, impact_of, value_of
from reports.answers.severity import FaultSeries, growing
from reports.axes import Axis, in_order
from sim.results.point import Point

MANY_POINTS = 6
"""Points up to which each is listed in a sentence."""
_AS_FAST = 1.1
"""A router whose latency is at most this many times the lowest is called as fast."""


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

    name: str
    low: Point
    high: Point
    contrast: Contrast


@dataclass(frozen=True)
class Ranking:
    """Which point has least of something, and which has most.

    :ivar name: the metric.
    :ivar close: points that have not certainly more than the best one, in order; empty where that is not known.
    """

    name: str
    best: Point
    worst: Point
    close: tuple[Point, ...]

    @property
    def equal(self) -> bool:
        """Whether all points have the same."""
        return value_of(self.best, self.name) == value_of(self.worst, self.name)


@dataclass(frozen=True)
class RouterRanking:
    """Which routers are fastest.

    :ivar name: the latency that they are compared by.
    :ivar best: the fastest point, then those that are not certainly slower, or hardly; all where no other is.
    :ivar other: the point to compare them with: round-robin's, or the slowest; None where all are as fast.
    """

    name: str
    best: tuple[Point, ...]
    other: Point | None


@dataclass(frozen=True)
class LeastAdded:
    """In which design a fault harms the fewest additional requests.

    :ivar close: designs in which it does not certainly harm more; ``certain``: whether it does in at least one.
    """

    best: FaultSeries
    close: tuple[FaultSeries, ...]
    certain: bool


def any_value(points: Sequence[Point], name: str) -> bool:
    """Return whether a metric is not 0 at some point."""
    return any(value_of(point, name) for point in points)


def certainly_less(one: Point, other: Point, name: str) -> bool:
    """Return whether a metric is lower at one point, by the interval of the difference."""
    from sim.results.pairs import difference_of

    found = difference_of(one, other, name)
    return found is not None and found.lo is not None and found.lo > 0


def find_extremes(points: Sequence[Point], name: str) -> Extremes | None:
    """Return where a metric is lowest and highest; None where fewer than two points have it."""
    known = [(value, point) for point in points if (value := value_of(point, name)) is not None]
    if len(known) < 2:
        return None
    low, high = min(known, key=lambda pair: pair[0])[1], max(known, key=lambda pair: pair[0])[1]
    return Extremes(name, low, high, _contrast(low, high, name))


def _contrast(low: Point, high: Point, name: str) -> Contrast:
    """Return whether a metric certainly differs: in the same replications, else by intervals that don't overlap.

    A count of one replication has no interval, but all points count the same requests.
    """
    if value_of(low, name) == value_of(high, name):
        return Contrast.EQUAL
    above, below = high.metrics[name].lo, low.metrics[name].hi
    if above is None or below is None or below < above:
        return Contrast.CLEAR
    return Contrast.CLEAR_IN_PAIRS if certainly_less(low, high, name) else Contrast.UNCLEAR


def rank_impact(points: Sequence[Point], axes: Sequence[Axis]) -> Ranking:
    """Return where fewest and most requests are harmed: beyond those that are slow anyway, where that is known."""
    beyond = not has_rollout(points) and all(value_of(p, "harmed_excess") is not None for p in points)
    name = "harmed_excess" if beyond else "harmed"
    ordered = sorted(in_order(points, axes), key=lambda p: value_of(p, name) or 0.0)
    return Ranking(name, ordered[0], ordered[-1], _not_certainly_more(ordered[0], ordered, name))


def _not_certainly_more(best: Point, points: Sequence[Point], name: str) -> tuple[Point, ...]:
    if not best.metrics[name].parts:
        return ()
    return tuple(p for p in points if p is not best and not certainly_less(best, p, name))


def rank_routers(points: Sequence[Point], axes: Sequence[Axis], name: str) -> RouterRanking | None:
    """Return which routers have the lowest latency; None where fewer than two points have something to route."""
    known = [p for p in in_order(points, axes) if value_of(p, name) is not None]
    # With one replica there is nothing to route.
    known = [p for p in known if value_of(p, "replica_load_skew") is not None] or known
    if len(known) < 2:
        return None
    first, *others = sorted(known, key=lambda p: value_of(p, name) or 0.0)
    near = _AS_FAST * (value_of(first, name) or 0.0)
    slower = [p for p in others if (value_of(p, name) or 0.0) > near and certainly_less(first, p, name)]
    other = next((p for p in slower if "round-robin" in p.set.values()), slower[-1] if slower else None)
    return RouterRanking(name, tuple(p for p in (first, *others) if p not in slower), other)


def points_at_worst(points: Sequence[Point], axes: Sequence[Axis]) -> list[Point]:
    """Return the points at which the fault is worst, one for each design; none where there are too many to list."""
    worse = growing(axes)
    worst = [p for p in in_order(points, axes) if all(a.index(p) == len(a.values) - 1 for a in worse)]
    return worst if len(worst) <= MANY_POINTS else []


def shown_designs(designs: Sequence[FaultSeries]) -> list[FaultSeries]:
    """Return the designs to list: all of them, or those with the least and the most additional requests."""
    if len(designs) <= MANY_POINTS:
        return list(designs)
    return sorted(designs, key=lambda design: design.added(-1).count)[:: len(designs) - 1]


def least_added(designs: Sequence[FaultSeries]) -> LeastAdded | None:
    """Return in which design the worst fault adds least; None for a single design."""
    if len(designs) < 2:
        return None
    best = min(designs, key=lambda design: design.added(-1).count)
    close = tuple(d for d in designs if d is not best and not best.adds_less(d))
    return LeastAdded(best, close, len(close) < len(designs) - 1)


def rerouted_points(points: Sequence[Point]) -> list[Point]:
    """Return the points to list for requests that were sent to another replica: all, or the first and the last."""
    known = [p for p in points if value_of(p, "rerouted_e2e_mean_s") is not None]
    return known if len(known) <= MANY_POINTS else [known[0], known[-1]]


def compared_metrics(points: Sequence[Point], latency: str) -> list[tuple[str, list[Point]]]:
    """Return the metrics that a comparison of faults mentions, and the points that each concerns."""
    names = ["retried", "lost", "rerouted", latency]
    if any((value_of(p, "failed") or 0) > (value_of(p, "lost") or 0) for p in points):
        names.insert(3, "failed")
    return [
        (name, [p for p in points if value_of(p, name)] if name in ("lost", "rerouted") else list(points))
        for name in names
        if any_value(points, name)
    ]


def late_counts(points: Sequence[Point]) -> list[int] | None:
    """Return how many requests are late at each point; None where some point has no targets to judge by."""
    late = [impact_of(p).slow for p in points]
    return None if None in late else [count or 0 for count in late]
