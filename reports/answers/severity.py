"""A fault that grows along an axis of a sweep: how many more requests it harms in each design.

A stall of no length harms fewest, which is no finding. The question is how much a longer one adds in each design. The
points of a design differ in nothing else and meet the same traffic, so requests that are slow anyway cancel.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from reports.axes import Axis, in_order
from sim.results.pairs import difference_of
from sim.results.point import Point

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
_NEVER = frozenset({"lasts", "probability"})
"""Those with which 0 means that there is no fault."""


@dataclass(frozen=True)
class Added:
    """How many more requests are harmed, with the 95 % interval, where there is one."""

    count: int
    lo: float | None = None
    hi: float | None = None


@dataclass(frozen=True)
class FaultSeries:
    """The points of a sweep that differ in nothing but how bad the fault is.

    :ivar others: what else is swept; all points have the same values of it.
    :ivar points: the mildest fault first.
    """

    others: tuple[Axis, ...]
    points: tuple[Point, ...]

    def added(self, step: int) -> Added:
        """Return how many more requests a step harms than the mildest fault."""
        found = difference_of(self.points[0], self.points[step], "harmed")
        if found is None:
            return Added(0)
        return Added(round(found.change or 0), found.lo, found.hi)

    def adds_less(self, other: FaultSeries) -> bool:
        """Return whether the worst fault certainly adds less harm here, by the same replications."""
        import numpy as np  # it is heavy, and the terminal's words need it here alone

        from sim.results.statistics import half_width

        own, theirs = (np.asarray(_more_in_replications(design), dtype=float) for design in (self, other))
        if len(own) != len(theirs) or len(own) < 2:
            return False
        mean = float((own - theirs).mean())
        half = half_width(mean, own - theirs)
        return half is not None and mean + half < 0


def _more_in_replications(design: FaultSeries) -> list[float]:
    """Return how many more requests the worst fault harms in each replication."""
    mild, worst = (design.points[i].metrics["harmed"].parts for i in (0, -1))
    pairs = zip(worst, mild, strict=False)
    return [b - a for b, a in pairs if a is not None and b is not None]


def growing(axes: Sequence[Axis]) -> list[Axis]:
    """Return the axes along which a fault becomes worse."""
    return [a for a in axes if a.key.startswith("faults.") and a.numeric and a.key.rpartition(".")[2] in _GROWS]


def never_happens(axis: Axis) -> bool:
    """Return whether the mildest fault of an axis is none."""
    return axis.key.rpartition(".")[2] in _NEVER and axis.places[0] == 0


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
