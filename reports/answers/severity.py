"""A fault that grows along an axis of a sweep: that a longer one has more impact is no finding.

The question is in which design the worst one has the least.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from reports.axes import Axis, in_order
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
