"""Metrics of what the fleet did besides serving: growing and shrinking, moving adapters, and costing money.

Decisions are few, so counts are those of one run: means over the replications, with intervals from their spread.
"""

from __future__ import annotations

import math
from dataclasses import replace
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from sim.arrays import Floats, Mask
from sim.results.fleet_costs import HOURS_PER_MONTH
from sim.results.metric_state import Cause, State
from sim.results.point import Metric
from sim.results.records import Recording
from sim.results.sample_data import BEGAN, DRAINED, GONE, PLACE, READY, MeasuredRequests, starting
from sim.results.statistics import mean_count, ratio, spread_over
from sim.traffic.request import BASE_MODEL, HIT, MISS

TIME, ADAPTER, REPLICA, COMES = range(4)
"""Columns of ``Recording.moves``."""
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
    moves = r.moves
    many = int(max(moves[:, REPLICA].max(), np.asarray(r.requests["replica"]).max(initial=0))) + 2  # above all replicas
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


def _pair(adapter: NDArray[np.generic], replica: NDArray[np.generic], many: int) -> NDArray[np.int64]:
    return np.asarray(adapter, dtype=np.int64) * many + np.asarray(replica, dtype=np.int64)


# How many GPU hours requests and tokens take.

_SECONDS_PER_HOUR = 3600.0
_MILLION = 1e6
_ROUNDING = 1e-9
"""Share of idle time that floating-point arithmetic alone leaves."""


class GpuHours:
    """GPU hours of all replications, as costs at a price of 1 per GPU hour.

    All GPUs are paid for all the time, whether they compute or not; with an autoscaler, from the start of a replica's
    cold start to the end of its drain.
    """

    def __init__(self, m: MeasuredRequests) -> None:
        self._m = m
        each = m.facts.gpus // m.facts.replicas
        self._seconds = m.replica_seconds(each) if m.autoscaled else m.spans * m.facts.gpus
        self._hours = self._seconds / _SECONDS_PER_HOUR

    @cached_property
    def m_prompt(self) -> Floats:
        """Millions of prompt tokens of the requests that end, by section."""
        return self._m.by_finish(weight="prompt_tokens") / _MILLION

    @cached_property
    def m_output(self) -> Floats:
        """Millions of output tokens."""
        return self._m.by_finish(weight="output_tokens") / _MILLION

    def per(self, counts: Floats) -> Metric:
        """Return the cost of one of what is counted by section: its interval is that of what an hour brings, inverted.

        Costs of sections have a long tail, and no end where little is served at night.
        """
        brings = ratio(counts, self._hours, self._m.sections, "USD")
        if not brings.value:
            return Metric(None, unit="USD", state=State(Cause.NO_REQUESTS))
        ends = (brings.hi, brings.lo) if brings.lo else (None, None)
        parts = [part or None for part in brings.parts]
        return replace(brings, lo=ends[0], hi=ends[1], parts=parts).mapped(lambda count: 1 / count)

    def whole(self) -> Metric:
        """Return the cost of a replication."""
        return mean_count(self._hours.reshape(self._m.replications, -1).sum(axis=1), "USD")

    def month(self, busy: Metric) -> Metric:
        """Return the cost of a month.

        :param busy: the share of the time in which GPUs compute; a cost that doesn't vary has as many parts.
        """
        if self._m.autoscaled:
            gpus = ratio(self._seconds, self._m.spans, self._m.sections, "USD")
            return gpus.mapped(lambda count: count * HOURS_PER_MONTH)
        month = self._m.facts.gpus * HOURS_PER_MONTH
        parts: list[float | None] = [month] * len(busy.parts)
        return Metric(month, month, month, "USD", parts=parts)

    def idle(self, busy: Metric) -> Metric:
        """Return what the time without computing takes of a month."""
        month = self.month(busy).value or 0.0

        def idle(share: float) -> float:
            return 0.0 if 1 - share < _ROUNDING else (1 - share) * month

        return replace(busy, lo=busy.hi, hi=busy.lo, unit="USD").mapped(idle)


def sold(m: MeasuredRequests) -> dict[str, Metric]:
    """Return what completed requests are in a month: ``request``, and millions of ``input`` and ``output`` tokens.

    Like throughput, it counts what ends in the measured time.
    """
    sales = {"request": m.by_finish()}
    if not m.facts.fixed:
        sales["input"] = m.by_finish(weight="prompt_tokens") / _MILLION
        sales["output"] = m.by_finish(weight="output_tokens") / _MILLION
    month = HOURS_PER_MONTH * _SECONDS_PER_HOUR
    return {name: ratio(count * month, m.spans, m.sections, "1") for name, count in sales.items()}
