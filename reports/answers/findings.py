"""What a sweep shows: which values meet the SLO, where the cliff is, and which point its report is about."""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from reports.answers.change_comparison import Contrast, find_extremes, recommended
from reports.answers.change_findings import is_changed
from reports.answers.verdicts import main_metric
from reports.axes import Axis, in_order, make_axes
from sim.results.point import Point
from sim.results.slo_terms import metric_of, with_tenants
from sim.results.verdict import MET, NO_SLO, strain, verdict

_CLIFF = 1.5
"""A step of a sweep on which the latency grows by this factor is called a cliff."""
VISIBLE = 0.1
"""Share of a value by which it must differ between points to be drawn."""
BOUGHT = ("slots", "size", "replicas", "loaders", "max_num_seqs", "kv_tokens")
"""Last words of keys that one buys: for these the question is how much is enough."""
_DEMANDED = ("rate", "concurrency", "count", "cv")
"""Last words of keys that traffic demands: for these the question is how much can be served."""


@dataclass(frozen=True)
class Cliff:
    """The step of a sweep on which the latency grows most.

    :ivar before, after: the neighbouring points, the slower one last.
    :ivar factor: how many times the latency grows.
    """

    before: Point
    after: Point
    factor: float


def find_cliff(points: Sequence[Point], axis: Axis, name: str) -> Cliff | None:
    """Return the steepest step of a metric along a numeric axis, None where no step is steep."""
    known = [p for p in in_order(points, [axis]) if name in p.metrics and p.metrics[name].value]
    best: Cliff | None = None
    for left, right in itertools.pairwise(known):
        low, high = sorted((left, right), key=lambda p: p.metrics[name].value or 0.0)
        factor = (high.metrics[name].value or 0.0) / (low.metrics[name].value or 1.0)
        apart = (low.metrics[name].hi or 0.0) <= (high.metrics[name].lo or float("inf"))
        if axis.numeric and apart and factor >= _CLIFF and (best is None or factor > best.factor):
            best = Cliff(low, high, factor)
    return best or _climb(known, axis, name)


def _climb(known: Sequence[Point], axis: Axis, name: str) -> Cliff | None:
    """Return the shortest stretch at the end of a numeric axis on which a metric doubles: a cliff in small steps."""
    if not axis.numeric or len(known) < 3:
        return None
    values = [p.metrics[name].value or 0.0 for p in known]
    if values[0] > values[-1]:
        known, values = known[::-1], values[::-1]
    for start in range(len(values) - 2, -1, -1):
        if values[start] and values[-1] >= 2 * values[start]:
            return Cliff(known[start], known[-1], values[-1] / values[start])
    return None


@dataclass(frozen=True)
class Boundary:
    """Which values of one axis meet the SLO.

    :ivar points: one a value, in the order of the axis; ``verdicts``: theirs.
    :ivar met: places of those that meet it.
    :ivar edge: the place of the first or last value that meets it, where all values on one side of it do; ``beyond``:
        its neighbour that does not. Both are None where nothing, everything or something in between meets it.
    """

    points: tuple[Point, ...]
    verdicts: tuple[str, ...]
    met: tuple[int, ...]
    edge: int | None = None
    beyond: int | None = None

    @property
    def edge_point(self) -> Point | None:
        """The point at the edge, if there is one."""
        return None if self.edge is None else self.points[self.edge]


def find_boundary(points: Sequence[Point], axis: Axis, slo_terms: Mapping[str, float]) -> Boundary:
    """Return which values of one axis meet the SLO.

    :param points: one point a value of the axis, in any order.
    """
    ordered = tuple(in_order(points, [axis]))
    found = tuple(verdict(point, slo_terms) for point in ordered)
    met = tuple(i for i, word in enumerate(found) if word == MET)
    if not met or len(met) == len(ordered) or not axis.numeric:
        return Boundary(ordered, found, met)
    together = met == tuple(range(met[0], met[-1] + 1))
    if not together or (met[0] > 0 and met[-1] < len(ordered) - 1):
        return Boundary(ordered, found, met)
    if met[0] == 0:
        return Boundary(ordered, found, met, met[-1], met[-1] + 1)
    return Boundary(ordered, found, met, met[0], met[0] - 1)


def sweep_focus(points: Sequence[Point], slo_terms: Mapping[str, float]) -> Point:
    """Return the point that the key numbers are of, which is the one to choose where there is a choice.

    That is the edge of the SLO: of several keys the least that serves the most demand. Of rollouts and faults it is the
    design with the least impact, of policies, engines or GPUs the fastest, and else the slowest point that meets the
    SLO. Where no point meets it, that is the one least far from its targets.
    """
    axes = make_axes(points)
    if is_changed(points):
        return recommended([point for point in points if point.impact], axes, slo_terms)
    if not any(verdict(point, slo_terms) in (MET, NO_SLO) for point in points):
        return min(points, key=lambda point: _most_strained(point, slo_terms))
    if axes and not any(axis.numeric for axis in axes):
        return fastest_point(points, slo_terms)
    good = [point for point in points if verdict(point, slo_terms) == MET]
    demanded, bought = ([a for a in axes if a.key.rsplit(".", 1)[-1] in kind] for kind in (_DEMANDED, BOUGHT))
    if good and len(axes) > 1 and len(demanded) + len(bought) == len(axes):
        return min(good, key=lambda p: ([-axis.index(p) for axis in demanded], [axis.index(p) for axis in bought]))
    edge = find_boundary(points, axes[0], slo_terms).edge_point if len(axes) == 1 else None
    return edge or slowest_point(good or points, main_metric(points, slo_terms))


def _most_strained(point: Point, slo_terms: Mapping[str, float]) -> float:
    """Return how far a point is from the target that it misses most; infinite where a term has no value."""
    terms = with_tenants(slo_terms, point)
    known = all((metric := metric_of(point, name)) is not None and metric.value is not None for name in terms)
    return max(strain(point, name, target) for name, target in terms.items()) if known else math.inf


def fastest_point(points: Sequence[Point], slo_terms: Mapping[str, float]) -> Point:
    """Return the fastest point that meets the SLO, or the fastest of all where there is none."""
    good, name = [point for point in points if verdict(point, slo_terms) == MET], main_metric(points, slo_terms)
    known = [point for point in good or points if name in point.metrics and point.metrics[name].value is not None]
    return min(known, key=lambda point: point.metrics[name].value or 0.0) if known else points[0]


def varies(points: Sequence[Point], name: str) -> bool:
    """Return whether a metric differs between points by more than chance, and by enough to be seen in a chart."""
    found = find_extremes(points, name)
    if found is None or found.contrast in (Contrast.EQUAL, Contrast.UNCLEAR):
        return False
    low, high = (point.metrics[name].value or 0.0 for point in (found.low, found.high))
    return high - low > VISIBLE * abs(high)


def slowest_point(points: Sequence[Point], name: str) -> Point:
    """Return the point at which a metric is largest."""
    return max(points, key=lambda p: (p.metrics[name].value or 0.0) if name in p.metrics else 0.0)
