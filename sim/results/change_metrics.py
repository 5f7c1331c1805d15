"""Metrics of rollouts, faults and the load of replicas, and what a report draws of them besides.

A rollout is one event, not a stream that could be cut into sections. So its counts are those of one rollout: means
over the replications, with intervals from the spread between them. Each replication sees other traffic, and designs
see the same.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sim.arrays import Floats, Mask
from sim.results.metric_state import Cause, State
from sim.results.model import Impact
from sim.results.point import Metric
from sim.results.records import COMPLETED, UNFINISHED
from sim.results.sample_data import STAMPS, MeasuredRequests
from sim.results.statistics import mean_count, quantile_of, ratio, spread_over
from sim.traffic.request import MISS

PEAK_SPAN_S = 10.0
"""Loads per second peak over spans of this length."""


def wrong_ones(m: MeasuredRequests) -> Mask:
    """Return which measured requests got a mixed, stale or wrong answer, or none."""
    return m.marked("mixed", "stale", "gated", "wrong-served", "old-prefix") | m.ended("failed")


def before_changes(m: MeasuredRequests) -> Mask:
    """Return which measured requests came before the first rollout or fault that begins at some time.

    What is there from the start belongs to how things are anyway; where there is nothing else, no request came before.
    """
    begins = np.array([min(r.facts.get("during_from_s", math.inf), m.facts.faults_from_s) for r in m.recordings])
    begins[np.isinf(begins)] = 0.0
    return np.asarray(m.column("arrival_s") < begins[m.replication])


class ChangeMetrics:
    """What rollouts and faults did to the measured requests."""

    def __init__(self, m: MeasuredRequests) -> None:
        self._m = m

    def affected(self) -> Metric:
        """Return the requests with a mixed, stale, wrong or late answer, or none; each counts once.

        How many of them there would be anyway, only a simulation of the baseline shows (``baseline_impact``).
        """
        wrong, slow = wrong_ones(self._m), self._m.slow
        return self._m.counted(wrong if slow is None else wrong | slow)

    def skew(self) -> Metric:
        """Return the requests of each replication's busiest replica, over the mean per replica; those of full models
        aside, to which requests don't come by choice."""
        m, replicas = self._m, self._m.facts.own_replicas
        replica = m.column("replica").astype(np.int64)
        sent = (replica >= 0) & (replica < replicas)
        by_section = np.zeros((m.sections * m.replications, replicas))
        np.add.at(by_section, (m.section[sent], replica[sent]), 1.0)
        by_replication = by_section.reshape(m.replications, m.sections, replicas).sum(axis=1)
        busiest = np.repeat(by_replication.argmax(axis=1), m.sections)
        of_busiest = by_section[np.arange(len(by_section)), busiest]
        if any(len(r.hand_overs) for r in m.recordings):  # the others compute prompts only
            replicas = max(1, int(np.count_nonzero(by_section.sum(axis=0))))
        metric = ratio(of_busiest, by_section.sum(axis=1) / replicas, m.sections, "1", highest=float(replicas))
        return metric if metric.lo is None else replace(metric, lo=max(1.0, metric.lo))

    def rerouted(self) -> Metric:
        """Return how long requests take that start again on another replica, from their first arrival on."""
        chosen = self._m.completed & self._m.marked("rerouted")
        if not chosen.any():
            return Metric(None, unit="s", state=State(Cause.NONE_REROUTED))
        seconds = self._m.column("finished_s") - self._m.column("arrival_s")
        return over_replications(self._m, chosen, lambda where: float(seconds[where].mean()), "s")

    def fact(self, name: str) -> Floats:
        """Return a number that each replication of a rollout has."""
        return np.array([r.facts[name] for r in self._m.recordings])

    def duration(self) -> Metric:
        """Return how long the rollouts took."""
        m, took = self._m, self.fact("rollout_duration_s")
        back = int((self.fact("rolled_back") > 0).sum())
        complete = int(np.isfinite(took).sum())
        if complete == m.replications:
            return spread_over(float(took.mean()), took, "s")
        if m.replications == 1:
            return Metric(None, unit="s", state=State(Cause.ROLLED_BACK if back else Cause.NOT_COMPLETE))
        cause = Cause.ROLLED_BACK_IN_SOME if back else Cause.COMPLETE_IN_SOME
        return Metric(None, unit="s", state=State(cause, complete, m.replications, back))

    @cached_property
    def during(self) -> Window:
        """The rollouts: from the first one on, for as long as they are observed."""
        return self._window(self.fact("during_from_s"), self.fact("during_to_s"))

    @cached_property
    def before(self) -> Window:
        """The measured time before the rollouts."""
        return self._window(np.full(self._m.replications, -math.inf), self.fact("during_from_s"))

    def _window(self, begins: Floats, ends: Floats) -> Window:
        """Return a part of the measured time, from a begin to an end of each replication."""
        arrival = self._m.column("arrival_s").astype(np.float64)
        here = (arrival >= begins[self._m.replication]) & (arrival < ends[self._m.replication])
        spans = []
        for r, begin, end in zip(self._m.recordings, begins.tolist(), ends.tolist(), strict=True):
            first = max(float(r.bounds[0]), begin)
            spans.append((first, max(first, min(float(r.bounds[-1]), end))))
        return Window(self._m, here, spans)

    @cached_property
    def sessions(self) -> Floats:
        """(replications, 2) sessions that were answered by several versions of an adapter, and that went back."""
        return np.array([sessions_of_both(r.measured()) for r in self._m.recordings], dtype=np.float64)


class Window:
    """Latencies, misses and loads in a part of the measured time; the same part in every design.

    :param here: which measured requests came in it.
    :param spans: from and to, of each replication.
    """

    def __init__(self, m: MeasuredRequests, here: Mask, spans: list[tuple[float, float]]) -> None:
        self._m, self._here, self._spans = m, here, spans

    def p99(self, stage: str) -> Metric:
        """Return the 99 % quantile of a stage of ``STAMPS``."""
        m = self._m
        done = self._here & m.completed
        count = int(done.sum())
        if count < m.least_for_p99:
            return Metric(None, unit="s", state=State(Cause.FEW_REQUESTS, count, m.least_for_p99))
        seconds = m.column(STAMPS[stage]) - m.column("arrival_s").astype(np.float64)
        return over_replications(m, done, lambda where: quantile_of(seconds[where], 0.99), "s")

    def misses(self) -> Metric:
        """Return the miss ratio."""
        missed = self._m.column("outcome") == MISS
        inside = self._here & self._m.admitted_with_adapter
        return over_replications(self._m, inside, lambda where: float(missed[where].mean()), "1", highest=1)

    def loads(self) -> Metric:
        """Return the loads that start."""
        return mean_count(np.array([float(len(starts)) for starts in self._starts]), "loads")

    def peak_loads(self) -> Metric:
        """Return the highest rate of loads."""
        peaks = np.array([_peak(s, b - a) for s, (a, b) in zip(self._starts, self._spans, strict=True)])
        return spread_over(float(peaks.mean()), peaks, "1/s")

    @cached_property
    def _starts(self) -> list[Floats]:
        """When loads start in each replication, in ascending order."""
        times = zip((r.loads["started_s"] for r in self._m.recordings), self._spans, strict=True)
        return [np.sort(starts[(starts >= a) & (starts < b)]) for starts, (a, b) in times]


def over_replications(
    m: MeasuredRequests, mask: Mask, statistic: Callable[[Mask], float], unit: str, *, highest: float = math.inf
) -> Metric:
    """Return a statistic of some requests with an interval from the same one in each replication."""

    def known(where: Mask) -> float:
        return statistic(where) if where.any() else math.nan

    each = np.array([known(mask & (m.replication == i)) for i in range(m.replications)])
    return spread_over(known(mask), each, unit, highest=highest)


def _peak(starts: Floats, span_s: float) -> float:
    """Return the highest rate of loads in any ``PEAK_SPAN_S`` seconds of a span; nan where there is no time.

    :param starts: sorted.
    """
    length = min(PEAK_SPAN_S, span_s)
    if length <= 0:
        return math.nan
    ends = np.searchsorted(starts, starts + length, side="left")
    return float(np.max(ends - np.arange(len(starts)), initial=0)) / length


def sessions_of_both(requests: dict[str, NDArray[np.generic]]) -> tuple[int, int]:
    """Return how many sessions were answered by more than one version of an adapter, and how many of them went back.

    A session that asks for several adapters counts once for each. It goes back where an answer begins with a version
    older than one that an earlier request (in order of arrival) was answered with.

    :param requests: columns session, adapter, index, status, version, last_version. Version 0, an answer by another
        adapter, counts for nothing.
    """
    done = (requests["status"] == COMPLETED) & (requests["version"] != 0)
    columns = {
        name: requests[name][done].astype(np.int64)
        for name in ("session", "adapter", "index", "version", "last_version")
    }
    order = np.lexsort((columns["index"], columns["adapter"], columns["session"]))
    session, adapter, _, first, last = (column[order] for column in columns.values())
    if len(session) == 0:
        return 0, 0
    new = np.concatenate(([True], (session[1:] != session[:-1]) | (adapter[1:] != adapter[:-1])))
    group = np.cumsum(new) - 1
    room = int(last.max()) + 1
    newest = np.maximum.accumulate(group * room + last) - group * room  # the newest so far within its group
    older = np.concatenate(([False], ~new[1:] & (first[1:] < newest[:-1])))
    lowest, highest = (np.full(group[-1] + 1, fill) for fill in (room, 0))
    np.minimum.at(lowest, group, first)
    np.maximum.at(highest, group, last)
    return int((lowest < highest).sum()), len(np.unique(group[older]))


_MARKED = ("mixed", "stale", "wrong_served", "wrong_detected", "retried", "lost", "rerouted", "old_prefix")
"""Counts of ``Impact`` that are called as their mark is."""


def impact_of(m: MeasuredRequests) -> Impact | None:
    """Return how many measured requests rollouts and faults met with what; None where there are neither."""
    if not m.facts.strategies and not m.facts.faults:
        return None
    counts: dict[str, Any] = {name: int(m.marked(name.replace("_", "-")).sum()) for name in _MARKED}
    slow, unanswered, before = m.slow, m.column("status") == UNFINISHED, before_changes(m)
    since = bool(before.any() or m.facts.strategies)

    def late(where: NDArray[np.bool_]) -> int | None:
        return None if slow is None else int((slow & where).sum())

    return Impact(
        requests=len(m.section),
        replications=m.replications,
        faults=tuple(sorted(m.facts.faults)),
        **counts,
        refused_by_rollout=int(m.marked("gated").sum()),
        failed_loads=int(m.marked("load-failed").sum()),
        failed=int(m.ended("failed").sum()),
        slow=late(np.ones_like(unanswered)),
        unanswered=int(unanswered.sum()),
        slow_unanswered=late(unanswered),
        requests_before=int(before.sum()) if since else None,
        unanswered_after=int((unanswered & ~before).sum()) if since else None,
        slow_before=late(before) if since else None,
    )
