"""Readings of an engine's metrics over time: how far counters grew, what gauges were."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from itertools import pairwise

from sim.studies.dashboards.metrics_text import Key, Labels

Point = tuple[float, float]
"""When (seconds since 1970, or since any other origin), and the value."""


@dataclass(frozen=True, slots=True)
class Readings:
    """One or more readings of the same servers.

    :ivar series: points of every series, in order of time.
    :ivar since_start: whether counters are totals since the servers' start, because there is one reading only.
    :ivar seconds: the time that growth refers to; None where nothing says it.
    :ivar timing: how that time is known, in words such as ``as --window says``.
    :ivar said: where the readings come from, in words.
    """

    series: Mapping[Key, tuple[Point, ...]]
    since_start: bool
    seconds: float | None
    timing: str
    said: str

    @property
    def names(self) -> frozenset[str]:
        """Metrics that there are."""
        return frozenset(name for name, _ in self.series)

    def labels_of(self, name: str) -> Iterator[Labels]:
        """Yield the labels of every series of a metric."""
        return (labels for metric, labels in self.series if metric == name)

    def growth(self, key: Key) -> float:
        """Return by how much a counter grew; after a restart of the server it counts from 0.

        A series that is not in the first reading has begun since then, from 0.
        """
        points = self.series.get(key, ())
        if not points:
            return 0.0
        begun = self.since_start or points[0][0] > self.first_s
        grown = points[0][1] if begun else 0.0
        return grown + sum(after - before if after >= before else after for (_, before), (_, after) in pairwise(points))

    def total_growth(self, name: str) -> float:
        """Return the growth of all series of a metric together."""
        return sum(self.growth((name, labels)) for labels in self.labels_of(name))

    def mean_gauge(self, name: str) -> float | None:
        """Return the mean over time of a gauge, all series together; None without any."""
        sums: dict[float, float] = {}
        for labels in self.labels_of(name):
            for at_s, value in self.series[name, labels]:
                sums[at_s] = sums.get(at_s, 0.0) + value
        return math.fsum(sums.values()) / len(sums) if sums else None

    def last(self, key: Key) -> float:
        """Return the last value of a series."""
        return self.series[key][-1][1]

    @property
    def first_s(self) -> float:
        """When the first reading was taken."""
        return min((points[0][0] for points in self.series.values()), default=0.0)

    @property
    def times(self) -> tuple[float, ...]:
        """When readings were taken."""
        return tuple(sorted({at_s for points in self.series.values() for at_s, _ in points}))


def gathered(rows: Iterable[tuple[Key, float, float]]) -> dict[Key, tuple[Point, ...]]:
    """Return the points of each series, sorted by time; of several at the same time the last counts.

    :param rows: series, time and value.
    """
    found: dict[Key, dict[float, float]] = {}
    for key, at_s, value in rows:
        found.setdefault(key, {})[at_s] = value
    return {key: tuple(sorted(points.items())) for key, points in found.items()}
