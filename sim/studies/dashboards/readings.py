"""Readings of an engine's metrics over time: how far counters grew, what gauges were."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise
from statistics import median

from sim.studies.dashboards.engine_metrics import PROCESS_START, Key, Labels

Point = tuple[float, float]
"""When (seconds since 1970), and the value."""

_PROCESS = ("instance", "pod")
_SERVER = (*_PROCESS, "engine", "tp_rank", "dp_rank")
_ENDING = re.compile(r"_(?:total|bucket|sum|count)$")


def server_of(labels: Labels) -> Labels:
    """Return the labels that say which engine a series is of."""
    return tuple(pair for pair in labels if pair[0] in _SERVER)


@dataclass(frozen=True)
class Readings:
    """One or more readings of the same servers.

    :ivar series: points of every series, in order of time.
    :ivar since_start: whether counters are totals since the servers' start, because there is one reading only.
    :ivar seconds: the time that growth refers to; None where nothing says it.
    :ivar timing: how that time is known, in words such as ``as --window says``.
    :ivar source: where the readings come from, in words.
    :ivar whole: whether each reading is a whole page, so that a series that it lacks did not exist.
    """

    series: Mapping[Key, tuple[Point, ...]]
    since_start: bool
    seconds: float | None
    timing: str
    source: str
    whole: bool = False

    @property
    def names(self) -> frozenset[str]:
        """Metrics that there are."""
        return frozenset(name for name, _ in self.series)

    def labels_of(self, name: str) -> Iterator[Labels]:
        """Yield the labels of every series of a metric."""
        return (labels for metric, labels in self.series if metric == name)

    def growth(self, key: Key) -> float:
        """Return by how much a counter grew; after a restart of the server it counts from 0.

        A series that is not in the first reading counts from its own first value, which may be that of a long life,
        unless ``began`` shows that it began at 0 since then.
        """
        points = self.series.get(key, ())
        if not points:
            return 0.0
        grown = points[0][1] if self.since_start or self.began(key) else 0.0
        return grown + sum(after - before if after >= before else after for (_, before), (_, after) in pairwise(points))

    def began(self, key: Key) -> bool:
        """Return whether a counter began after the first reading.

        Either its server was read before and had other labels of the metric alone, or the counter or the process says
        that it is younger than the first reading.
        """
        name, labels = key
        first_s = self.series[key][0][0]
        if first_s <= self.first_s:
            return False
        if self._seen_s["" if self.whole else name, server_of(labels)] < first_s:
            return True
        plain = tuple(pair for pair in labels if pair[0] != "le")
        created = self.series.get((_ENDING.sub("", name) + "_created", plain))
        started_s = created[-1][1] if created else self._started_s.get(_process_of(labels), 0.0)
        return started_s > self.first_s

    @cached_property
    def _seen_s(self) -> dict[tuple[str, Labels], float]:
        """When each server was first read; with the metric's name, when it first had that metric."""
        found: dict[tuple[str, Labels], float] = {}
        for (name, labels), points in self.series.items():
            for key in ((name, server_of(labels)), ("", server_of(labels))):
                found[key] = min(found.get(key, math.inf), points[0][0])
        return found

    @cached_property
    def _started_s(self) -> dict[Labels, float]:
        return {_process_of(labels): self.last((PROCESS_START, labels)) for labels in self.labels_of(PROCESS_START)}

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

    def late_servers(self, name: str) -> list[Labels]:
        """Return the first series of each server that is not in the first reading."""
        found = {server_of(labels): labels for labels in self.labels_of(name)}
        return [labels for server, labels in sorted(found.items()) if self._seen_s["", server] > self.first_s]

    def servers(self, name: str) -> int:
        """Return how many servers have a metric at a time: the median over time; at least 1."""
        found: dict[float, set[Labels]] = {}
        for labels in self.labels_of(name):
            for at_s, _ in self.series[name, labels]:
                found.setdefault(at_s, set()).add(server_of(labels))
        return math.ceil(median(map(len, found.values()))) if found else 1

    def last(self, key: Key) -> float:
        """Return the last value of a series."""
        return self.series[key][-1][1]

    @cached_property
    def first_s(self) -> float:
        """When the first reading was taken."""
        return min((points[0][0] for points in self.series.values()), default=0.0)

    @property
    def times(self) -> tuple[float, ...]:
        """When readings were taken."""
        return tuple(sorted({at_s for points in self.series.values() for at_s, _ in points}))


def _process_of(labels: Labels) -> Labels:
    return tuple(pair for pair in labels if pair[0] in _PROCESS)


def gathered(rows: Iterable[tuple[Key, float, float]]) -> dict[Key, tuple[Point, ...]]:
    """Return the points of each series, sorted by time; of several at the same time the last counts.

    :param rows: series, time and value.
    """
    found: dict[Key, dict[float, float]] = {}
    for key, at_s, value in rows:
        found.setdefault(key, {})[at_s] = value
    return {key: tuple(sorted(points.items())) for key, points in found.items()}
