"""Metrics of a fleet that grows and shrinks.

Decisions are few, so counts are those of one run: means over the replications, with intervals from their spread.
"""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

from sim.results.autoscaling.lives import BEGAN, DRAINED, GONE, PLACE, READY, counts_at, starting
from sim.results.changes.change_metrics import mean_count, spread_over
from sim.results.metric_state import Cause, State
from sim.results.point import Metric
from sim.results.records import Recording
from sim.results.sample_data import MeasuredRequests
from sim.results.statistics import ratio
from sim.traffic.request import BASE_MODEL, MISS

Floats = NDArray[np.float64]
Mask = NDArray[np.bool_]

NEW_S = 60.0
"""How long a replica counts as new."""


def scaling_metrics(m: MeasuredRequests) -> dict[str, Metric]:
    """Return the metrics of the autoscaler; nothing where the fleet stays as it is."""
    if not m.autoscaled:
        return {}
    seconds = m.replica_seconds(1).reshape(m.replications, -1).sum(axis=1)
    return {
        "replica_seconds": mean_count(seconds, "replica-s"),
        "mean_replicas": ratio(m.replica_seconds(1), m.spans, m.sections, "1"),
        "replicas_started": mean_count(_within(m, BEGAN), "replicas"),
        "replicas_stopped": mean_count(_within(m, DRAINED), "replicas"),
        "cold_start_mean_s": _cold_start(m),
        **_late(m),
        **_new_replicas(m),
    }


def _within(m: MeasuredRequests, moment: int) -> Floats:
    """Return how many replicas have a moment of their life in the measured time, by replication."""
    found = []
    for r in m.recordings:
        at = r.lives[:, moment]
        found.append(int(((at > max(0.0, r.bounds[0])) & (at <= r.bounds[-1])).sum()))
    return np.array(found, dtype=np.float64)


def _cold_start(m: MeasuredRequests) -> Metric:
    seconds = [(r.lives[:, READY] - r.lives[:, BEGAN])[_new(r)] for r in m.recordings]
    mean = float(np.concatenate(seconds).mean()) if any(map(len, seconds)) else math.nan
    each = np.array([float(some.mean()) if len(some) else math.nan for some in seconds])
    return spread_over(mean, each, "s")


def _new(r: Recording) -> Mask:
    """Return which replicas started and were ready within the measured time."""
    ready = r.lives[:, READY]
    return np.asarray((r.lives[:, BEGAN] > 0) & (ready >= r.bounds[0]) & (ready < r.bounds[-1]))


def _late(m: MeasuredRequests) -> dict[str, Metric]:
    """Return the share of late requests among those that arrived while a replica was starting, and among the others."""
    names = ("late_while_starting", "late_otherwise")
    if m.slow is None:
        return {name: Metric(None, unit="1", state=State(Cause.NO_TARGET)) for name in names}
    arrival = m.column("arrival_s")
    replication = m.section // m.sections
    during = np.zeros(len(arrival), dtype=bool)
    for i, r in enumerate(m.recordings):
        own = replication == i
        during[own] = starting(r, arrival[own])
    groups = zip(names, (during, ~during), strict=True)
    return {name: ratio(m.count(m.slow & group), m.count(group), m.sections, "1", highest=1) for name, group in groups}


def _new_replicas(m: MeasuredRequests) -> dict[str, Metric]:
    """Return the loads of a new replica in its first minute, and the miss ratio of the requests that it admits then."""
    loads, missed, asked, count = (np.zeros(m.replications) for _ in range(4))
    for i, r in enumerate(m.recordings):
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
    return {"new_replica_loads": _each(loads, count), "new_replica_miss_ratio": _each(missed, asked, highest=1.0)}


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
