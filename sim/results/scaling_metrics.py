"""Metrics of a fleet that grows and shrinks.

Decisions are few, so counts are those of one run: means over the replications, with intervals from their spread.
"""

from __future__ import annotations

import math
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from sim.results.point import Metric
from sim.results.records import Recording
from sim.results.sample_data import BEGAN, DRAINED, GONE, PLACE, READY, MeasuredRequests, counts_at, starting
from sim.results.statistics import mean_count, ratio, spread_over
from sim.traffic.request import BASE_MODEL, MISS

Floats = NDArray[np.float64]
Mask = NDArray[np.bool_]

NEW_S = 60.0
"""How long a replica counts as new."""


class ScalingMetrics:
    """What an autoscaler did."""

    def __init__(self, m: MeasuredRequests) -> None:
        self._m = m

    def replica_seconds(self) -> Metric:
        """Return the seconds of all replicas."""
        m = self._m
        return mean_count(m.replica_seconds(1).reshape(m.replications, -1).sum(axis=1), "replica-s")

    def started(self) -> Metric:
        """Return the replicas whose cold start begins."""
        return mean_count(self._within(BEGAN), "replicas")

    def stopped(self) -> Metric:
        """Return the replicas whose drain begins."""
        return mean_count(self._within(DRAINED), "replicas")

    def _within(self, moment: int) -> Floats:
        """Return how many replicas have a moment of their life in the measured time, by replication."""
        found = []
        for r in self._m.recordings:
            at = r.lives[:, moment]
            found.append(int(((at > max(0.0, r.bounds[0])) & (at <= r.bounds[-1])).sum()))
        return np.array(found, dtype=np.float64)

    def cold_start(self) -> Metric:
        """Return how long replicas take until they serve."""
        seconds = [(r.lives[:, READY] - r.lives[:, BEGAN])[_new(r)] for r in self._m.recordings]
        mean = float(np.concatenate(seconds).mean()) if any(map(len, seconds)) else math.nan
        each = np.array([float(some.mean()) if len(some) else math.nan for some in seconds])
        return spread_over(mean, each, "s")

    @cached_property
    def while_starting(self) -> Mask:
        """Which requests arrived while a replica was starting."""
        arrival, replication = self._m.column("arrival_s"), self._m.replication
        during = np.zeros(len(arrival), dtype=bool)
        for i, r in enumerate(self._m.recordings):
            own = replication == i
            during[own] = starting(r, arrival[own])
        return during

    def late(self, group: Mask) -> Metric:
        """Return the share of late requests in a group."""
        m = self._m
        assert m.slow is not None, "there are targets"
        return ratio(m.count(m.slow & group), m.count(group), m.sections, "1", highest=1)

    def new_loads(self) -> Metric:
        """Return the loads of a new replica in its first minute."""
        loads, _, _, count = self._first_minutes
        return _each(loads, count)

    def new_misses(self) -> Metric:
        """Return the miss ratio of the requests that new replicas admit in their first minute."""
        _, missed, asked, _ = self._first_minutes
        return _each(missed, asked, highest=1.0)

    @cached_property
    def _first_minutes(self) -> tuple[Floats, Floats, Floats, Floats]:
        """Loads, misses and requests of new replicas, and how many of these there are, by replication."""
        loads, missed, asked, count = (np.zeros(self._m.replications) for _ in range(4))
        for i, r in enumerate(self._m.recordings):
            lives = r.lives[_new(r)]
            count[i] = len(lives)
            admitted, replica = np.asarray(r.requests["admitted_s"]), np.asarray(r.requests["replica"])
            misses = np.asarray(r.requests["outcome"]) == MISS
            named = np.asarray(r.requests["adapter"]) != BASE_MODEL
            for life in lives:
                begin, end = life[READY], min(life[READY] + NEW_S, life[GONE])
                started = r.loads["started_s"]
                loads[i] += ((r.loads["replica"] == life[PLACE]) & (started >= begin) & (started < end)).sum()
                here = (replica == life[PLACE]) & (admitted >= begin) & (admitted < end) & named
                missed[i] += (here & misses).sum()
                asked[i] += here.sum()
        return loads, missed, asked, count


def _new(r: Recording) -> Mask:
    """Return which replicas started and were ready within the measured time."""
    ready = r.lives[:, READY]
    return np.asarray((r.lives[:, BEGAN] > 0) & (ready >= r.bounds[0]) & (ready < r.bounds[-1]))


def _each(over: Floats, under: Floats, *, highest: float = math.inf) -> Metric:
    """Return a ratio of sums with an interval from the replications that have any."""
    each = np.divide(over, under, out=np.full(len(over), math.nan), where=under > 0)
    whole = float(over.sum() / under.sum()) if under.any() else math.nan
    return spread_over(whole, each, "1", highest=highest)


def replicas_over_time(r: Recording, times: Floats) -> tuple[Floats, Floats]:
    """Return how many replicas there are at each time, and how many of them take requests."""
    lives = r.lives
    serving = np.minimum(lives[:, DRAINED], lives[:, GONE])
    ready = lives[:, READY] < math.inf
    return counts_at(lives[:, BEGAN], lives[:, GONE], times), counts_at(lives[ready, READY], serving[ready], times)
