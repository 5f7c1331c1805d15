"""What happened when: means over equal spans of the first replication, events, and which version answered."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sim.arrays import Floats
from sim.results.model import Timeline
from sim.results.records import COMPLETED, UNFINISHED, Recording
from sim.results.sample_data import BEGAN, DRAINED, GONE, READY, counts_at
from sim.results.served import was_unserved
from sim.results.statistics import MIN_SECTION_P99, mean_of, quantiles_of_windows
from sim.traffic.request import BASE_MODEL

Requests = Mapping[str, NDArray[Any]]

SPANS = 200
"""Equal spans of a replication."""
_NEIGHBOURS = 2
"""Spans on each side that the p99 of a span includes."""
_BEGIN = frozenset({"rollout", "stage", "fault", "crash"})
"""Kinds of events with which something begins."""


def timeline_of(recording: Recording) -> Timeline:
    """Return means over equal spans of the first replication, from counts at eight instants in each."""
    r = recording.requests
    end = recording.stopped_s
    if end <= 0 or len(r["index"]) == 0:
        return Timeline()
    at = (np.arange(SPANS * 8) + 0.5) * end / (SPANS * 8)

    def passed(stamps: NDArray[Any]) -> Floats:
        return _passed(np.asarray(stamps, dtype=np.float64), at, end)

    def mean(counts: Floats) -> list[float | None]:
        found: list[float | None] = counts.reshape(SPANS, 8).mean(axis=1).tolist()
        return found

    served = ~was_unserved(r["status"])  # the others never wait, or left at an unknown time
    arrived, admitted = passed(r["arrival_s"][served]), passed(r["admitted_s"][served])

    def per_second(times: NDArray[Any]) -> list[float | None]:
        counts, _ = np.histogram(np.asarray(times, dtype=np.float64), bins=SPANS, range=(0, end))
        found: list[float | None] = (counts / (end / SPANS)).tolist()
        return found

    replicas: dict[str, list[float | None]] = {}
    if len(recording.lives):
        provisioned, serving = replicas_over_time(recording, at)
        replicas = {"replicas": mean(provisioned), "serving_replicas": mean(serving)}
    loading = passed(recording.loads["started_s"]) - passed(recording.loads["ended_s"])
    return Timeline(
        t_s=_middles(end, SPANS),
        running=mean(admitted - passed(r["finished_s"])),
        waiting=mean(arrived - admitted),
        loads_in_flight=mean(loading),
        arrivals_per_s=per_second(r["arrival_s"]),
        loads_per_s=per_second(recording.loads["started_s"]),
        **replicas,
        **timeline_latencies(r, end, SPANS, event_cuts(recording, SPANS)),
    )


def _passed(stamps: Floats, at: Floats, end: float) -> Floats:
    """Return how many stamps have come by each instant; a time that never came is negative.

    The first instant at which a stamp has come is found by division, and put right where rounding moved it by one. That
    takes a fifth of the time of sorting the stamps.

    :param at: (n,) the middles of n equal parts of the time from 0 to ``end``.
    """
    known = np.minimum(stamps[stamps >= 0], end)
    before, after = np.concatenate(((-np.inf,), at)), np.concatenate((at, (np.inf,)))
    first = (known * (len(at) / end) + 0.5).astype(np.int64)
    first -= before[first] >= known
    first += after[first] < known
    return np.cumsum(np.bincount(first, minlength=len(at) + 1)[: len(at)]).astype(np.float64)


def replicas_over_time(r: Recording, times: Floats) -> tuple[Floats, Floats]:
    """Return how many replicas there are at each time, and how many of them take requests."""
    lives = r.lives
    serving = np.minimum(lives[:, DRAINED], lives[:, GONE])
    ready = lives[:, READY] < math.inf
    return counts_at(lives[:, BEGAN], lives[:, GONE], times), counts_at(lives[ready, READY], serving[ready], times)


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


def _middles(end: float, spans: int) -> list[float]:
    middles: list[float] = ((np.arange(spans) + 0.5) * end / spans).tolist()
    return middles


def event_rows(recording: Recording) -> list[dict[str, Any]]:
    """Return what happened to the fleet, in order of time; events of rollouts have their number."""
    ordered = sorted(recording.events, key=lambda event: event.time_s)
    return [
        {
            "t_s": float(event.time_s),
            "kind": event.kind,
            "text": event.text,
            **({} if event.rollout is None else {"rollout": event.rollout}),
            **({"missed": [list(term) for term in event.missed]} if event.missed else {}),
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
    span = np.clip((np.asarray(r["arrival_s"], dtype=np.float64) * spans / end).astype(np.int64), 0, spans - 1)
    table = np.zeros((int(version.max()) + 1, spans))
    np.add.at(table, (version[known], span[known]), 1.0)
    total = table.sum(axis=0)
    shares = np.divide(table, total, out=np.zeros_like(table), where=total > 0)
    named = {str(number): shares[number].tolist() for number in range(1, len(shares)) if table[number].any()}
    if table[0].any():
        named["none"] = shares[0].tolist()
    return {"t_s": _middles(end, spans), "versions": named}
