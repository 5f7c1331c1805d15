"""Metrics of what changes while traffic flows: rollouts, faults, and how evenly replicas are loaded.

A rollout is one event, not a stream that could be cut into sections. So its counts are those of one rollout: means
over the replications, with intervals from the spread between them. Each replication sees other traffic, and designs
see the same.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from sim.results.metric_state import SETTLED, Cause, State
from sim.results.point import UNITS, Metric
from sim.results.records import (
    COMPLETED,
    FAILED,
    GATED,
    LOST,
    MISROUTED,
    MIXED,
    OLD_PREFIX,
    REFUSED,
    REROUTED,
    RETRIED,
    STALE,
    WRONG_DETECTED,
    WRONG_SERVED,
    Recording,
)
from sim.results.sample_data import MeasuredRequests
from sim.results.statistics import ENOUGH_REPLICATIONS, WIDE, half_width, kept, ratio
from sim.traffic.request import MISS

Floats = NDArray[np.float64]
Mask = NDArray[np.bool_]

PEAK_SPAN_S = 10.0
"""Loads per second peak over spans of this length."""
IDENTITY = frozenset({"misrouting", "stale-map", "base-model"})
"""Kinds of faults by which a request reaches the wrong adapter."""
_OF_ROLLOUTS = {"mixed_version_responses": MIXED, "stale_after_cutover": STALE}
_OF_FAULTS = {
    "misrouted": (MISROUTED, IDENTITY),
    "wrong_adapter_served": (WRONG_SERVED, IDENTITY),
    "wrong_adapter_detected": (WRONG_DETECTED, IDENTITY),
    "retried": (RETRIED, IDENTITY),
    "old_prefix_served": (OLD_PREFIX, frozenset({"named-prefixes"})),
    "rerouted": (REROUTED, frozenset({"crash"})),
    "lost": (LOST, frozenset({"crash"})),
}
_HARMFUL = MIXED | STALE | GATED | WRONG_SERVED | OLD_PREFIX


def change_metrics(m: MeasuredRequests) -> dict[str, Metric]:
    """Return the metrics of refusals, failures, rollouts, faults and the load of replicas."""
    status = m.column("status")
    return {
        "refused": _ended(m, status == REFUSED),
        "failed": _ended(m, status == FAILED),
        "replica_load_skew": _skew(m),
        **_affected(m),
        **_rollouts(m),
        **_faults(m),
    }


def _affected(m: MeasuredRequests) -> dict[str, Metric]:
    """Return the requests with a mixed, stale, wrong or late answer, or none; each counts once.

    How many of them there would be anyway, only a simulation of the baseline shows (``baseline_impact``).
    """
    if not m.facts.strategies and not m.facts.faults:
        return {
            name: Metric(None, unit="requests", state=State(Cause.NO_CHANGE)) for name in ("harmed", "harmed_excess")
        }
    affected = wrong_ones(m) if m.slow is None else wrong_ones(m) | m.slow
    beyond = Metric(None, unit="requests", state=State(Cause.NO_BASELINE))
    return {"harmed": counted(m, affected), "harmed_excess": beyond}


def wrong_ones(m: MeasuredRequests) -> Mask:
    """Return which measured requests got a mixed, stale or wrong answer, or none."""
    return np.asarray(((m.column("marks") & _HARMFUL) > 0) | (m.column("status") == FAILED))


def before_changes(m: MeasuredRequests) -> Mask:
    """Return which measured requests came before the first rollout or fault that begins at some time.

    What is there from the start belongs to how things are anyway; where there is nothing else, no request came before.
    """
    begins = np.array([min(r.facts.get("during_from_s", math.inf), m.facts.faults_from_s) for r in m.recordings])
    begins[np.isinf(begins)] = 0.0
    return np.asarray(m.column("arrival_s") < begins[replication_of(m)])


def replication_of(m: MeasuredRequests) -> NDArray[np.int64]:
    """Return the replication of each measured request."""
    return m.section // m.sections


def counted(m: MeasuredRequests, where: Mask, unit: str = "requests") -> Metric:
    """Return how many measured requests these are in a replication."""
    return mean_count(by_replication(m, where), unit)


def by_replication(m: MeasuredRequests, where: Mask) -> Floats:
    """Return how many measured requests these are in each replication."""
    return np.bincount(replication_of(m)[where], minlength=m.replications).astype(np.float64)


def _ended(m: MeasuredRequests, where: Mask) -> Metric:
    """Return how many requests ended in a way in all replications; if nothing changes, with the sections of a short
    run as parts."""
    each = by_replication(m, where)
    mean, count = mean_count(each, "requests"), len(each)
    ends = [None if end is None else end * count for end in (mean.lo, mean.hi)]
    metric = replace(mean, value=round(each.sum()), lo=ends[0], hi=ends[1])
    if m.replications < ENOUGH_REPLICATIONS and not m.facts.strategies and not m.facts.faults:
        return replace(metric, parts=kept(m.count(where)))
    return metric


def mean_count(each: Floats, unit: str, least: float = 0.0) -> Metric:
    """Return the mean of one count a replication, with an interval from their spread, which ends at ``least``."""
    mean = float(each.mean())
    half = half_width(mean, each)
    if half is None:
        state = State(Cause.ONE_REPLICATION) if mean else SETTLED
        return Metric(mean, unit=unit, state=state, parts=kept(each))
    return Metric(mean, max(least, mean - half), mean + half, unit, parts=kept(each))


def spread_over(value: float, each: Floats, unit: str, *, highest: float = math.inf) -> Metric:
    """Return a value with an interval from the same statistic in each replication (nan: it has none there)."""
    if not math.isfinite(value):
        return Metric(None, unit=unit, state=State(Cause.NO_REQUESTS))
    half = half_width(value, each)
    if half is None:
        return Metric(value, unit=unit, state=State(Cause.ONE_REPLICATION))
    state = State(Cause.WIDE_OVER_REPLICATIONS) if half > WIDE * abs(value) else SETTLED
    return Metric(value, max(0.0, value - half), min(highest, value + half), unit, state, parts=kept(each))


def _skew(m: MeasuredRequests) -> Metric:
    """Return the requests of each replication's busiest replica, over the mean per replica; those of full models
    aside, to which requests don't come by choice."""
    replicas = m.facts.own_replicas
    if replicas == 1:
        return Metric(None, state=State(Cause.ONE_REPLICA))
    replica = m.column("replica").astype(np.int64)
    sent = (replica >= 0) & (replica < replicas)
    by_section = np.zeros((m.sections * m.replications, replicas))
    np.add.at(by_section, (m.section[sent], replica[sent]), 1.0)
    by_replication = by_section.reshape(m.replications, m.sections, replicas).sum(axis=1)
    busiest = np.repeat(by_replication.argmax(axis=1), m.sections)
    of_busiest = by_section[np.arange(len(by_section)), busiest]
    metric = ratio(of_busiest, by_section.sum(axis=1) / replicas, m.sections, "1", highest=float(replicas))
    return metric if metric.lo is None else replace(metric, lo=max(1.0, metric.lo))


def _faults(m: MeasuredRequests) -> dict[str, Metric]:
    marks, found = m.column("marks"), {}
    for name, (mark, kinds) in _OF_FAULTS.items():
        if kinds & m.facts.faults:
            found[name] = counted(m, (marks & mark) > 0)
        else:
            found[name] = Metric(None, unit="requests", state=State(Cause.NO_FAULT))
    found["rerouted_e2e_mean_s"] = (
        _rerouted(m) if "crash" in m.facts.faults else Metric(None, unit="s", state=State(Cause.NO_FAULT))
    )
    return found


def _rerouted(m: MeasuredRequests) -> Metric:
    """Return how long requests take that start again on another replica, from their first arrival on."""
    chosen = m.completed & ((m.column("marks") & REROUTED) > 0)
    if not chosen.any():
        return Metric(None, unit="s", state=State(Cause.NONE_REROUTED))
    seconds = m.column("finished_s") - m.column("arrival_s")

    def mean(where: Mask) -> float:
        return float(seconds[where].mean()) if where.any() else math.nan

    return spread_over(mean(chosen), _per_replication(m, chosen, mean), "s")


@dataclass(frozen=True, slots=True)
class RolloutWindow:
    """Which measured requests came during the rollouts and which before, and the times that count.

    :ivar during_s, before_s: from and to, within the measured time; the same in every design.
    """

    during: Mask
    before: Mask
    during_s: tuple[float, float]
    before_s: tuple[float, float]

    @staticmethod
    def of(recording: Recording, arrival_s: Floats) -> RolloutWindow:
        """Return the window of one replication.

        :param arrival_s: (n,) of its measured requests.
        """
        begins, ends = recording.facts["during_from_s"], recording.facts["during_to_s"]
        first, last = float(recording.bounds[0]), float(recording.bounds[-1])
        return RolloutWindow(
            (arrival_s >= begins) & (arrival_s < ends),
            arrival_s < begins,
            (max(first, begins), max(first, begins, min(last, ends))),
            (first, max(first, min(last, begins))),
        )


def _rollouts(m: MeasuredRequests) -> dict[str, Metric]:
    if not m.facts.strategies:
        names = [name for name in UNITS if name.startswith(("rollout_", "before_", "sessions_"))]
        names += [*_OF_ROLLOUTS, "extra_resident_bytes_peak"]
        return {name: Metric(None, unit=UNITS[name], state=State(Cause.NO_ROLLOUT)) for name in names}
    marks = m.column("marks")
    extra = np.array([r.facts["extra_resident_bytes_peak"] for r in m.recordings])
    return {
        **{name: counted(m, (marks & mark) > 0) for name, mark in _OF_ROLLOUTS.items()},
        **_sessions(m),
        "extra_resident_bytes_peak": spread_over(float(extra.mean()), extra, "B"),
        "rollout_duration_s": _duration(m),
        **window_metrics(m),
    }


def _duration(m: MeasuredRequests) -> Metric:
    took = np.array([r.facts["rollout_duration_s"] for r in m.recordings])
    back = sum(r.facts["rolled_back"] > 0 for r in m.recordings)
    complete = int(np.isfinite(took).sum())
    if complete == m.replications:
        return spread_over(float(took.mean()), took, "s")
    if m.replications == 1:
        return Metric(None, unit="s", state=State(Cause.ROLLED_BACK if back else Cause.NOT_COMPLETE))
    cause = Cause.ROLLED_BACK_IN_SOME if back else Cause.COMPLETE_IN_SOME
    return Metric(None, unit="s", state=State(cause, complete, m.replications, back))


def window_metrics(m: MeasuredRequests) -> dict[str, Metric]:
    """Return latencies, misses and loads during the rollouts and before."""
    arrival, replication = m.column("arrival_s").astype(np.float64), replication_of(m)
    windows = [RolloutWindow.of(r, arrival[replication == i]) for i, r in enumerate(m.recordings)]
    found: dict[str, Metric] = {}
    for side in ("rollout", "before"):
        mask = np.concatenate([w.during if side == "rollout" else w.before for w in windows])
        for name, stamp in (("ttft", "first_token_s"), ("e2e", "finished_s")):
            found[f"{side}_{name}_p99_s"] = _p99(m, mask, m.column(stamp) - arrival)
        found[f"{side}_miss_ratio"] = _misses(m, mask)
        spans = [w.during_s if side == "rollout" else w.before_s for w in windows]
        starts = [np.sort(_inside(r.loads["started_s"], span)) for r, span in zip(m.recordings, spans, strict=True)]
        peaks = np.array([_peak(s, b - a) for s, (a, b) in zip(starts, spans, strict=True)])
        found[f"{side}_peak_loads_per_s"] = spread_over(float(peaks.mean()), peaks, "1/s")
        if side == "rollout":
            found["rollout_loads"] = mean_count(np.array([float(len(s)) for s in starts]), "loads")
    return found


def _inside(times: Floats, span: tuple[float, float]) -> Floats:
    return times[(times >= span[0]) & (times < span[1])]


def _peak(starts: Floats, span_s: float) -> float:
    """Return the highest rate of loads in any ``PEAK_SPAN_S`` seconds of a span; nan where there is no time.

    :param starts: sorted.
    """
    length = min(PEAK_SPAN_S, span_s)
    if length <= 0:
        return math.nan
    ends = np.searchsorted(starts, starts + length, side="left")
    return float(np.max(ends - np.arange(len(starts)), initial=0)) / length


def _per_replication(m: MeasuredRequests, mask: Mask, statistic: Callable[[Mask], float]) -> Floats:
    replication = replication_of(m)
    return np.array([statistic(mask & (replication == i)) for i in range(m.replications)])


def _p99(m: MeasuredRequests, mask: Mask, seconds: Floats) -> Metric:
    done = mask & (m.column("status") == COMPLETED)
    count = int(done.sum())
    if count < m.least_for_p99:
        return Metric(None, unit="s", state=State(Cause.FEW_REQUESTS, count, m.least_for_p99))

    def p99(chosen: Mask) -> float:
        return float(np.quantile(seconds[chosen], 0.99)) if chosen.any() else math.nan

    return spread_over(p99(done), _per_replication(m, done, p99), "s")


def _misses(m: MeasuredRequests, mask: Mask) -> Metric:
    inside, missed = mask & m.admitted_with_adapter, m.column("outcome") == MISS

    def share(chosen: Mask) -> float:
        return float(missed[chosen].mean()) if chosen.any() else math.nan

    return spread_over(share(inside), _per_replication(m, inside, share), "1", highest=1)


def _sessions(m: MeasuredRequests) -> dict[str, Metric]:
    names = ("sessions_saw_both", "sessions_went_back")
    if any("session" not in r.requests for r in m.recordings):
        return {name: Metric(None, unit="sessions", state=State(Cause.NO_SESSIONS)) for name in names}
    counts = np.array(
        [sessions_of_both({n: c[k] for n, c in r.requests.items()}) for r in m.recordings for k in [r.section_of >= 0]],
        dtype=np.float64,
    )
    return {name: mean_count(counts[:, i], "sessions") for i, name in enumerate(names)}


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
