"""What a report draws of rollouts, faults and replicas in addition to their metrics."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sim.results.changes.change_metrics import before_changes
from sim.results.model import Impact
from sim.results.records import COMPLETED, MARKS, UNFINISHED, Recording
from sim.results.sample_data import MeasuredRequests
from sim.results.statistics import MIN_SECTION_P99, mean_of, quantiles_of_windows
from sim.traffic.request import BASE_MODEL

Floats = NDArray[np.float64]
Requests = Mapping[str, NDArray[Any]]

_MARKED = ("mixed", "stale", "wrong_served", "wrong_detected", "retried", "lost", "rerouted", "old_prefix")
"""Counts of ``Impact`` that are called as their mark is."""
_NEIGHBOURS = 2
"""Spans on each side that the p99 of a span includes."""
_BEGIN = frozenset({"rollout", "stage", "fault", "crash"})
"""Kinds of events with which something begins."""


def mark_words(marks: NDArray[Any]) -> tuple[NDArray[np.int32], list[str]]:
    """Return the marks of requests as words with spaces between, each text once: (n,) which text, and the texts."""
    found, which = np.unique(marks, return_inverse=True)
    texts = [" ".join(word for word, mark in MARKS.items() if value & mark) for value in found.tolist()]
    return which.astype(np.int32), texts


def event_rows(recording: Recording) -> list[dict[str, Any]]:
    """Return what happened to the fleet, in order of time; events of rollouts have their number."""
    ordered = sorted(recording.events, key=lambda event: event.time_s)
    return [
        {
            "t_s": float(event.time_s),
            "kind": event.kind,
            "text": event.text,
            **({} if event.rollout is None else {"rollout": event.rollout}),
        }
        for event in ordered
    ]


def version_mix(recording: Recording, spans: int) -> dict[str, Any]:
    """Return which version answers the requests that arrive in each of equal spans of a replication."""
    r: Requests = recording.requests
    end = recording.stopped_s
    if end <= 0 or len(r["index"]) == 0:
        return {}
    completed = r["status"] == COMPLETED
    version = np.where(completed, r["version"], 0).astype(np.int64)
    # The end came before the others' version was known, or they have an answer, but by another adapter or by none.
    known = (r["status"] != UNFINISHED) & ~(completed & (version == 0)) & (r["adapter"] != BASE_MODEL)
    span = _span_of(r["arrival_s"], end, spans)
    table = np.zeros((int(version.max()) + 1, spans))
    np.add.at(table, (version[known], span[known]), 1.0)
    total = table.sum(axis=0)
    shares = np.divide(table, total, out=np.zeros_like(table), where=total > 0)
    named = {str(number): shares[number].tolist() for number in range(1, len(shares)) if table[number].any()}
    if table[0].any():
        named["none"] = shares[0].tolist()
    return {"t_s": _middles(end, spans), "versions": named}


def timeline_latencies(
    r: Requests, end: float, spans: int, cuts: Sequence[float] = ()
) -> dict[str, list[float | None]]:
    """Return mean and p99 TTFT and E2E of the requests that arrive in each of equal spans; None where too few do.

    The p99 of a span is that over its neighbours, too, or it would be little more than the slowest request. But never
    are those that came before something happened taken together with those that came after: a span in which it happens
    belongs to the side on which its middle lies, or an effect would show before its cause.

    :param cuts: when something happened.
    """
    done = r["status"] == COMPLETED
    arrival = np.asarray(r["arrival_s"][done], dtype=np.float64)
    order = np.argsort(arrival, kind="stable")
    arrival, width = arrival[order], end / spans
    walls = np.array([-math.inf, *sorted(cuts), math.inf])
    side = np.searchsorted(walls, _middles(end, spans), side="right")
    lowest, highest = walls[side - 1], walls[side]

    def edges(neighbours: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        first = np.maximum(np.maximum(np.arange(spans) - neighbours, 0) * width, lowest)
        last = np.arange(spans) + neighbours + 1
        until = np.minimum(np.where(last >= spans, math.inf, last * width), highest)
        return np.searchsorted(arrival, first), np.searchsorted(arrival, until)

    (own_from, own_to), (from_, to) = edges(0), edges(_NEIGHBOURS)
    own = list(zip(own_from.tolist(), own_to.tolist(), strict=True))
    enough = np.flatnonzero((own_to > own_from) & (to - from_ >= MIN_SECTION_P99))
    found: dict[str, list[float | None]] = {}
    for name, stamp in (("ttft", "first_token_s"), ("e2e", "finished_s")):
        seconds = np.asarray(r[stamp][done], dtype=np.float64)[order] - arrival
        found[f"{name}_mean_s"] = [mean_of(seconds[a:b]) if b > a else None for a, b in own]
        p99 = quantiles_of_windows(seconds, from_[enough], to[enough], 0.99) if len(enough) else np.empty(0)
        tails = dict(zip(enough.tolist(), p99.tolist(), strict=True))
        found[f"{name}_p99_s"] = [tails.get(i) for i in range(spans)]
    return found


def event_cuts(recording: Recording, spans: int) -> list[float]:
    """Return when something began, except what follows within the spans that a p99 includes."""
    cuts: list[float] = []
    for event in sorted(recording.events, key=lambda event: event.time_s):
        far = not cuts or event.time_s - cuts[-1] >= (2 * _NEIGHBOURS + 1) * recording.stopped_s / spans
        if event.kind in _BEGIN and event.time_s > 0 and far:
            cuts.append(float(event.time_s))
    return cuts


def _span_of(times: NDArray[Any], end: float, spans: int) -> NDArray[np.int64]:
    return np.clip((np.asarray(times, dtype=np.float64) * spans / end).astype(np.int64), 0, spans - 1)


def _middles(end: float, spans: int) -> list[float]:
    middles: list[float] = ((np.arange(spans) + 0.5) * end / spans).tolist()
    return middles


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
