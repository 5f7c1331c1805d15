"""Points of a sweep of rollouts, faults or routers compared: where a metric is lowest, and whether that is certain.

Where a difference may be chance, the points are in one group: no order among them is claimed.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import Enum

from reports.answers.change_findings import SOME, impact_of, impact_parts, value_of
from reports.axes import Axis, in_order
from sim.results.model import WRONG_KINDS
from sim.results.point import Point
from sim.results.verdict import NOT_MET, verdict

# A fault that grows along an axis of a sweep: that a longer one has more impact is no finding.
#
# The question is in which design the worst one has the least.

_GROWS = frozenset(
    {
        "lasts",
        "probability",
        "down",
        "detected",
        "factor",
        "delay",
        "share",
        "lifetime",
        "propagation",
    }
)
"""Last words of keys of a fault that say how bad it is, not what is done about it."""


@dataclass(frozen=True)
class FaultSeries:
    """The points of a sweep that differ in nothing but how bad the fault is.

    :ivar others: what else is swept; all points have the same values of it.
    :ivar points: the mildest fault first.
    """

    others: tuple[Axis, ...]
    points: tuple[Point, ...]


def growing(axes: Sequence[Axis]) -> list[Axis]:
    """Return the axes along which a fault becomes worse."""
    return [a for a in axes if a.key.startswith("faults.") and a.numeric and a.key.rpartition(".")[2] in _GROWS]


def fault_series(points: Sequence[Point], axes: Sequence[Axis]) -> list[FaultSeries]:
    """Return the designs of a sweep of which several points are there, in its order."""
    worse = growing(axes)
    others = [axis for axis in axes if axis not in worse]
    groups: dict[tuple[int, ...], list[Point]] = {}
    for point in in_order(points, [*others, *worse]):
        groups.setdefault(tuple(axis.index(point) for axis in others), []).append(point)
    if len(worse) > 1:  # of several, the mildest and the worst corner
        groups = {key: [found[0], found[-1]] for key, found in groups.items()}
    most = max(len(found) for found in groups.values())
    return [FaultSeries(tuple(others), tuple(found)) for found in groups.values() if len(found) == most > 1]


MANY_POINTS = 6
"""Points up to which each is listed in a sentence."""
_MANY_TIMES = 10.0
"""How many times the least impact a design has that is to be avoided, whatever the order among the others."""
_ERROR = 0.025
"""How often a 95 % interval lies above the truth."""
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
    """Where the impact is least.

    :ivar name: the metric: requests beyond the usual, or all of them where nothing shows what is usual.
    :ivar best: the point with the least, then those that have not certainly more.
    :ivar rest: those that certainly have more, least first.
    :ivar certain: whether anything is known of the differences; if not, ``rest`` has all others.
    """

    name: str
    best: tuple[Point, ...]
    rest: tuple[Point, ...]
    certain: bool

    @property
    def choice(self) -> tuple[Point, ...]:
        """The points to choose from: the best, and those close to it if others have many times the impact.

        With more replications ever smaller differences become certain. They still don't matter next to one of an order
        of magnitude.
        """
        least = max(1.0, value_of(self.best[0], self.name) or 0.0)
        near = [p for p in self.rest if (value_of(p, self.name) or 0.0) < _MANY_TIMES * least]
        return self.best if len(near) == len(self.rest) else (*self.best, *near)

    @property
    def others(self) -> tuple[Point, ...]:
        """The points to avoid, least impact first."""
        return tuple(point for point in self.rest if point not in self.choice)


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


def any_value(points: Sequence[Point], name: str) -> bool:
    """Return whether a metric is not 0 at some point."""
    return any(value_of(point, name) for point in points)


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


def impact_name(points: Sequence[Point]) -> str:
    """Return the metric of the impact: beyond the usual, where that is known at every point."""
    return "harmed_excess" if all(value_of(p, "harmed_excess") is not None for p in points) else "harmed"


def rank_impact(points: Sequence[Point], axes: Sequence[Axis]) -> Ranking:
    """Return where the impact is least, and where it is not certainly more."""
    name = impact_name(points)
    first, *others = sorted(in_order(points, axes), key=lambda p: value_of(p, name) or 0.0)
    pairs = len(points) * (len(points) - 1) // 2  # the best is chosen from the data, so each pair may be the one
    more = [certainly_less(first, other, name, pairs) for other in others]
    if None in more:
        return Ranking(name, (first,), tuple(others), certain=False)
    ties = [other for other, found in zip(others, more, strict=True) if not found]
    return Ranking(name, (first, *ties), tuple(other for other in others if other not in ties), certain=True)


def meeting(points: Sequence[Point], slo_terms: Mapping[str, float]) -> list[Point]:
    """Return the points that may meet the SLO; all of them where none does."""
    return [point for point in points if verdict(point, slo_terms) != NOT_MET] or list(points)


def recommended(points: Sequence[Point], axes: Sequence[Axis], slo_terms: Mapping[str, float]) -> Point:
    """Return the point with the least impact among those that may meet the SLO, where the fault is worst."""
    series = fault_series(points, axes) if growing(axes) else []
    return rank_impact(meeting([each.points[-1] for each in series] or points, slo_terms), axes).best[0]


def telling_kinds(points: Sequence[Point]) -> list[tuple[Point, str, float]]:
    """Return what some of these points do to requests and others don't: the point, the kind, and how many."""
    found = {kind: [dict(impact_parts(p)).get(kind, 0.0) for p in points] for kind in WRONG_KINDS}
    return [
        (point, kind, counts[i])
        for kind, counts in found.items()
        if min(counts) < SOME <= max(counts)
        for i, point in enumerate(points)
        if counts[i] >= SOME
    ]


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


def late_counts(points: Sequence[Point]) -> list[float] | None:
    """Return how many requests are late at each point; None where some point has no targets to judge by."""
    return None if any(impact_of(p).slow is None for p in points) else [impact_of(p).mean("slow") for p in points]
