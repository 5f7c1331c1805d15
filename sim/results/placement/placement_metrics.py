"""Metrics of a placement controller.

Decisions are few, so counts are those of one run: means over the replications, with intervals from their spread.
"""

from __future__ import annotations

import math
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from sim.results.point import Metric
from sim.results.records import Recording
from sim.results.sample_data import MeasuredRequests
from sim.results.statistics import ratio
from sim.traffic.request import HIT

Floats = NDArray[np.float64]

TIME, ADAPTER, REPLICA, COMES = range(4)
"""Columns of ``Recording.moves``."""


class PlacementMetrics:
    """What a placement controller did."""

    def __init__(self, m: MeasuredRequests) -> None:
        self._m = m

    @cached_property
    def spent(self) -> Floats:
        """(replications, 3) moves, those of them that cost a load, and the seconds of these loads."""
        return np.array([_moves_and_loads(r) for r in self._m.recordings])

    def placed(self) -> Metric:
        """Return the share of the requests for adapters whose adapter had a place."""
        m = self._m
        placed = np.concatenate([_placed(r)[int(np.searchsorted(r.section_of, 0)) :] for r in m.recordings])
        return ratio(m.count(~m.for_base & placed), m.count(~m.for_base), m.sections, "1", highest=1)


def _moves_and_loads(r: Recording) -> tuple[float, float, float]:
    """Return the moves in the measured time, those of them that cost a load, and the seconds of these loads.

    A move costs a load if the adapter is loaded on the replica after it came, before any request finds it there and
    before it is taken away.
    """
    moves, many = r.moves, _many(r)
    pair = _pair(moves[:, ADAPTER], moves[:, REPLICA], many)
    begin, end = max(0.0, float(r.bounds[0])), float(r.bounds[-1])
    coming = (moves[:, COMES] > 0) & (moves[:, TIME] > begin) & (moves[:, TIME] <= end)
    found = np.asarray(r.requests["outcome"]) == HIT
    admitted = np.asarray(r.requests["admitted_s"], dtype=np.float64)
    found &= admitted >= 0
    loads = _Times(_pair(r.loads["adapter"], r.loads["replica"], many), r.loads["started_s"])
    hits = _Times(_pair(r.requests["adapter"], r.requests["replica"], many)[found], admitted[found])
    gone = _Times(pair[moves[:, COMES] == 0], moves[moves[:, COMES] == 0, TIME])
    seconds = r.loads["ended_s"] - r.loads["started_s"]
    cost, total_s = 0, 0.0
    for at, name in zip(moves[coming, TIME].tolist(), pair[coming].tolist(), strict=True):
        load, where = loads.first_from(name, at)
        if load < math.inf and load <= min(hits.first_from(name, at)[0], gone.first_from(name, at)[0]):
            cost += 1
            total_s += float(seconds[where])
    return float(coming.sum()), float(cost), total_s


def _placed(r: Recording) -> NDArray[np.bool_]:
    """Return of each request whether its adapter was placed anywhere when it arrived."""
    order = np.lexsort((r.moves[:, TIME], r.moves[:, ADAPTER]))
    moves = r.moves[order]
    span = 2.0 * r.stopped_s + 1.0
    homes = np.concatenate([[0.0], np.cumsum(np.where(moves[:, COMES] > 0, 1.0, -1.0))])
    adapter = np.asarray(r.requests["adapter"], dtype=np.float64)
    arrival = np.asarray(r.requests["arrival_s"], dtype=np.float64)
    first = np.searchsorted(moves[:, ADAPTER], adapter)
    until = np.searchsorted(moves[:, ADAPTER] * span + moves[:, TIME], adapter * span + arrival, side="right")
    return np.asarray(homes[np.maximum(until, first)] > homes[first])


class _Times:
    """Times of many pairs of adapter and replica, to find the first one of a pair from some time on."""

    def __init__(self, pair: NDArray[np.int64], time: Floats) -> None:
        self._order = np.lexsort((time, pair))
        self._pair, self._time = pair[self._order], time[self._order]

    def first_from(self, pair: int, time: float) -> tuple[float, int]:
        """Return that time, infinite if there is none, and its place among the times given."""
        low, high = np.searchsorted(self._pair, [pair, pair + 1])
        at = low + int(np.searchsorted(self._time[low:high], time))
        return (float(self._time[at]), int(self._order[at])) if at < high else (math.inf, -1)


def _many(r: Recording) -> int:
    """Return a number above those of all replicas."""
    return int(max(r.moves[:, REPLICA].max(), np.asarray(r.requests["replica"]).max(initial=0))) + 2


def _pair(adapter: NDArray[np.generic], replica: NDArray[np.generic], many: int) -> NDArray[np.int64]:
    return np.asarray(adapter, dtype=np.int64) * many + np.asarray(replica, dtype=np.int64)
