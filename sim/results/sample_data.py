"""The measured requests of a point's replications, as columns, and what is counted over them by section.

Replica-seconds are counted here, too, from when replicas began and ended.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from itertools import pairwise
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from sim.arrays import Floats, Ints
from sim.results.point import Metric
from sim.results.recording.leaps import Intervals, seconds_by_section
from sim.results.records import COMPLETED, MARKS, STATUS_WORDS, UNFINISHED, Recording
from sim.results.statistics import ENOUGH_REPLICATIONS, MIN_FOR_P99, MIN_FOR_RATIO, Sampled, mean_count
from sim.spec.sections.benchmark_clients import ClosedLoop
from sim.traffic.request import BASE_MODEL, FROM_HOST, FROM_STORAGE

# From the lives of replicas to replica-seconds and counts over time.

PLACE, BEGAN, READY, DRAINED, GONE = range(5)
"""Columns of ``Recording.lives``."""


def provisioned_s(recording: Recording) -> Floats:
    """Return (sections,) replica-seconds, as a cloud bills them: from the start of the cold start to the end of the
    drain."""
    lives, bounds = recording.lives, recording.bounds
    inside = np.minimum(lives[:, GONE, None], bounds[1:]) - np.maximum(lives[:, BEGAN, None], bounds[:-1])
    return np.asarray(np.maximum(inside, 0.0).sum(axis=0))


def counts_at(begin: Floats, end: Floats, times: Floats) -> Floats:
    """Return how many intervals each time lies in."""
    begun = np.searchsorted(np.sort(begin), times, side="right")
    return (begun - np.searchsorted(np.sort(end), times, side="right")).astype(np.float64)


def starting(recording: Recording, times: Floats) -> NDArray[np.bool_]:
    """Return at which times a replica was starting."""
    lives = recording.lives
    until = np.minimum(lives[:, READY], lives[:, GONE])  # a start may be called off
    return counts_at(lives[:, BEGAN], until, times) > 0


@dataclass(frozen=True, slots=True)
class FaultWindow:
    """A time in which replicas are down, or storage doesn't do what it should.

    :ivar kind: of the fault.
    :ivar from_s, to_s: as the scenario says; without an end: infinite.
    :ivar share: of the replicas that it concerns.
    """

    kind: str
    from_s: float
    to_s: float
    share: float


@dataclass(frozen=True, slots=True)
class PoolFacts:
    """What the metrics must know of a pool.

    :ivar first: index of its first replica.
    :ivar gpus: of all its replicas; ``device``: which GPU.
    :ivar loaders: of one replica; ``blocking``: loads happen inside its steps.
    :ivar role: ``prefill`` or ``decode``; empty for a pool that does both.
    """

    name: str
    first: int
    replicas: int
    gpus: int
    device: str
    loaders: int
    blocking: bool
    role: str = ""


@dataclass(frozen=True, slots=True)
class Span:
    """A part of the cycle that the rate repeats.

    :ivar name: from when to when, as times of day where the run has them.
    :ivar from_s, to_s: the same since the cycle began; ``cycle_s``: how long one takes.
    """

    name: str
    from_s: float
    to_s: float
    cycle_s: float


@dataclass(frozen=True, slots=True)
class TenantFacts:
    """What the metrics must know of a tenant.

    :ivar slo: its targets by metric name.
    :ivar bucket_rate: how many ``bucket_counts``, tokens or requests, a second its bucket admits; None without one.
    :ivar refuses: whether its bucket refuses requests; else they wait.
    """

    name: str
    slo: dict[str, float]
    bucket_rate: float | None = None
    bucket_counts: str = "tokens"
    refuses: bool = False


@dataclass(frozen=True, slots=True)
class ScenarioFacts:
    """What the metrics must know of the scenario.

    :ivar slo: targets by metric name.
    :ivar fixed: engine ``fixed``: no tokens.
    :ivar blocking: loads happen after admission, inside the step.
    :ivar storage_blocks: so do those from storage; not where host memory is filled at arrival, beside the steps.
    :ivar host_holds_all: whether host memory has slots for all adapters.
    :ivar size_bytes, kind, kind_names: of the adapters.
    :ivar slots: adapter slots, or None where bytes are counted; ``kv_tokens``, ``max_num_seqs``: None for ``fixed``.
        With pools: the largest KV cache, and None for slots and sequences that differ between them.
    :ivar refusals: for what reasons requests may be refused, in words.
    :ivar strategies: of the rollouts; () where there are none.
    :ivar faults: kinds of the faults.
    :ivar seed: of the random numbers that the traffic is drawn from; None for a trace.
    :ivar faults_from_s: when the first fault begins that isn't there from the start; infinite: there is none.
    :ivar broken: when replicas are down or storage is slow.
    :ivar full_replicas: the last of ``replicas`` that serve full models; loaders and slots are of the others.
    :ivar closed_loop: the closed loop that requests come from; None where they arrive whatever becomes of others.
    :ivar requests: ``workload.requests``; None where a trace or a duration gives the length of the run.
    :ivar steady: whether the traffic and the fleet stay the same throughout.
    :ivar gpus: of all replicas.
    :ivar pools: of the replicas that serve the base model and adapters, where there are several kinds of them.
    :ivar max_model_len: tokens of the longest request that is taken; None: what the KV cache holds.
    :ivar tenants: in the order of the scenario; () where there are none.
    :ivar tenant_of: (adapters + 1,) the tenant of each adapter by its place among those, and last of the base model;
        None without tenants.
    :ivar spans: the parts of a day, or of another cycle that the rate repeats; () where it repeats none;
        ``cyclic``: whether sections are whole cycles.
    :ivar front_end_s: (replicas,) of a request between client and engine.
    """

    slo: dict[str, float]
    fixed: bool
    blocking: bool
    replicas: int
    loaders: int
    size_bytes: Ints
    kind: Ints
    kind_names: tuple[str, ...]
    slots: int | None
    kv_tokens: int | None
    max_num_seqs: int | None
    refusals: str = "prompt and output don't fit into the KV cache of one replica"
    strategies: tuple[str, ...] = ()
    faults: frozenset[str] = frozenset()
    seed: int | None = None
    faults_from_s: float = math.inf
    broken: tuple[FaultWindow, ...] = ()
    full_replicas: int = 0
    max_model_len: int | None = None
    storage_blocks: bool = False
    host_holds_all: bool = False
    closed_loop: ClosedLoop | None = None
    requests: int | None = None
    steady: bool = False
    gpus: int = 1
    pools: tuple[PoolFacts, ...] = ()
    tenants: tuple[TenantFacts, ...] = ()
    tenant_of: Ints | None = None
    spans: tuple[Span, ...] = ()
    cyclic: bool = False
    front_end_s: Floats = field(default_factory=lambda: np.zeros(1))

    @property
    def loader_places(self) -> int:
        """How many loaders all replicas of the base model and adapters have."""
        return sum(pool.loaders * pool.replicas for pool in self.pools) or self.loaders * self.own_replicas

    @property
    def steps_load_all(self) -> bool:
        """Whether steps, where they load at all, load from storage as well as from host memory."""
        return self.storage_blocks or (not self.blocking and any(pool.blocking for pool in self.pools))

    def loads_in_steps(self, replica: NDArray[Any]) -> NDArray[np.bool_]:
        """Return of which replicas loads happen inside steps, same shape; whole models always load inside a step."""
        inside = np.full(len(replica), self.blocking)
        for pool in self.pools:
            inside[(replica >= pool.first) & (replica < pool.first + pool.replicas)] = pool.blocking
        return inside | (replica >= self.own_replicas)

    @property
    def own_replicas(self) -> int:
        """How many replicas serve the base model and its adapters."""
        return self.replicas - self.full_replicas

    @property
    def slos(self) -> tuple[Mapping[str, float], ...]:
        """The SLO of the fleet, then that of each tenant."""
        return self.slo, *(tenant.slo for tenant in self.tenants)


STAMPS = {"queue": "admitted_s", "ttft": "first_token_s", "e2e": "finished_s"}
"""The stages that latencies are measured of, from the arrival, each with the stamp at its end."""


class MeasuredRequests:
    """The measured requests of all replications, as columns, with sums by section.

    :ivar section: section of each request, replications after one another.
    :ivar spans: seconds of each section; ``cyclic``: whether each has whole cycles of the traffic.
    :ivar completed, admitted: which requests got their last token, or at least a place in a batch.
    :ivar for_base: which requests are for the base model; ``admitted_with_adapter``: the other admitted ones.
    :ivar autoscaled: whether the number of replicas changes.
    :ivar least_for_ratio: admitted requests below which there is no miss ratio.
    :ivar alone: whether only the values of one replication are wanted: they are not cut into parts, so that no interval
        is made, which takes twice as long as the value.
    :param least_for_p99: completed requests below which there is no p99.
    """

    def __init__(
        self,
        recordings: list[Recording],
        facts: ScenarioFacts,
        least_for_p99: int = MIN_FOR_P99,
        *,
        alone: bool = False,
    ) -> None:
        self.least_for_p99, self.alone = least_for_p99, alone
        self.least_for_ratio = least_for_p99 * MIN_FOR_RATIO // MIN_FOR_P99
        self.recordings = recordings
        self.facts = facts
        self.sections = len(recordings[0].bounds) - 1
        self.replications = len(recordings)
        self.spans = np.concatenate([np.diff(r.bounds) for r in recordings])
        self.autoscaled = any(len(r.lives) for r in recordings)
        # Requests are numbered in the order of their arrivals, so the measured ones are the last: a view, not a copy.
        self._first = [int(np.searchsorted(r.section_of, 0)) for r in recordings]
        firsts = enumerate(zip(recordings, self._first, strict=True))
        self.section = joined_columns([r.section_of[first:] + np.int32(i * self.sections) for i, (r, first) in firsts])
        assert not np.any(self.section[1:] < self.section[:-1]), "requests are in the order of their arrivals"
        self.cyclic = facts.cyclic and self.replications >= ENOUGH_REPLICATIONS
        self._edges: list[int] = np.searchsorted(self.section, np.arange(len(self.spans) + 1)).tolist()
        self._finished: dict[str | None, Floats] = {}
        self._columns: dict[str, NDArray[Any]] = {}
        self._latencies: dict[str, Sampled] = {}
        self.completed = self.column("status") == COMPLETED
        self.admitted = self.column("admitted_s") >= 0
        self.for_base = self.column("adapter") == BASE_MODEL
        self.admitted_with_adapter = self.admitted & ~self.for_base

    def column(self, name: str) -> NDArray[Any]:
        """Return one column of the measured requests."""
        if name not in self._columns:
            pairs = zip(self.recordings, self._first, strict=True)
            self._columns[name] = joined_columns([r.requests[name][first:] for r, first in pairs])
        return self._columns[name]

    @cached_property
    def replication(self) -> Ints:
        """The replication of each request."""
        return self.section // self.sections

    def by_replication(self, where: NDArray[np.bool_]) -> Floats:
        """Return how many requests these are in each replication."""
        return np.bincount(self.replication[where], minlength=self.replications).astype(np.float64)

    def counted(self, where: NDArray[np.bool_]) -> Metric:
        """Return how many requests these are in a replication."""
        return mean_count(self.by_replication(where), "requests")

    def ended(self, status: str) -> NDArray[np.bool_]:
        """Return which requests ended so, in the words of ``STATUS_WORDS``."""
        return np.asarray(self.column("status") == STATUS_WORDS.index(status))

    def marked(self, *marks: str) -> NDArray[np.bool_]:
        """Return which requests have any of these marks, in the words of ``MARKS``."""
        return np.asarray((self.column("marks") & sum(MARKS[mark] for mark in marks)) > 0)

    def replica_seconds(self, each: int) -> Floats:
        """Return the seconds of each section, times what is there in every replica, times the replicas there were.

        :param each: such as loaders or GPUs of one replica.
        """
        if self.autoscaled:
            return each * np.concatenate([provisioned_s(r) for r in self.recordings])
        return self.spans * (each * self.facts.replicas)

    def seconds(self, later: str, earlier: str) -> Floats:
        """Return the time between two stamps of each completed request."""
        done = self.completed
        return np.asarray(self.column(later)[done] - self.column(earlier)[done], dtype=np.float64)

    def latency(self, stage: str) -> Sampled:
        """Return statistics over the seconds of each completed request from its arrival to the end of a stage.

        Each is made once, because sorting its values takes longer than everything that is read from them.

        :param stage: of ``STAMPS``.
        """
        if stage not in self._latencies:
            self._latencies[stage] = self.sampled(self.seconds(STAMPS[stage], "arrival_s"))
        return self._latencies[stage]

    @cached_property
    def good(self) -> NDArray[np.bool_] | None:
        """Which requests completed within every per-request target; None without such targets.

        The targets of p99 TTFT, E2E and queue wait (else of p95, else of p90), and of TPOT, are applied to each single
        request: those of the fleet, and those of its tenant.
        """
        if not any(single_target(slo, stage) < math.inf for slo in self.facts.slos for stage in _SINGLE):
            return None
        return np.asarray(self.completed & _in_time({name: self.column(name) for name in _JUDGED}, self.facts))

    @cached_property
    def slow(self) -> NDArray[np.bool_] | None:
        """Which requests are late; None without per-request targets.

        A request is late if it completed beyond such a target, or if it was unfinished when the run ended and had
        already waited longer than one. What has not happened by then counts as if it happened at the end of the run,
        the earliest time at which it can.
        """
        if self.good is None:
            return None
        columns = {name: self.column(name) for name in _JUDGED}
        for name in ("admitted_s", "first_token_s", "finished_s"):
            columns[name] = np.where(columns[name] < 0, self.stopped_s, columns[name])
        asked = self.completed | (self.column("status") == UNFINISHED)
        return np.asarray(asked & ~_in_time(columns, self.facts))

    @cached_property
    def stopped_s(self) -> Floats:
        """When the run of each request stopped."""
        ends = np.array([recording.stopped_s for recording in self.recordings], dtype=np.float64)
        return np.asarray(ends[self.section // self.sections])

    def sampled(self, values: Floats, where: NDArray[np.bool_] | None = None) -> Sampled:
        """Return statistics over values of the completed requests (or of those ``where`` says)."""
        mask = self.completed if where is None else where
        if self.alone:
            return Sampled(values, np.zeros(len(values), dtype=np.int8), 1, 1, self.least_for_p99)
        section, shape = self.section[mask], (self.sections, self.replications, self.least_for_p99)
        return Sampled(values, section, *shape, cyclic=self.cyclic, steady=self.facts.steady)

    def count(self, where: NDArray[np.bool_], weight: NDArray[Any] | None = None) -> Floats:
        """Return the number (or summed weight) of measured requests by section."""
        if weight is None:
            return np.array([np.count_nonzero(where[a:b]) for a, b in pairwise(self._edges)], dtype=np.float64)
        return np.bincount(self.section[where], weights=weight[where], minlength=len(self.spans)).astype(np.float64)

    def by_finish(self, weight: str | None = None) -> Floats:
        """Return completions (or their summed ``weight``) by the section in which they ended, whenever they came."""
        if weight not in self._finished:
            parts = []
            for r, (request, section) in zip(self.recordings, self._completions, strict=True):
                weights = None if weight is None else r.requests[weight][request].astype(np.float64)
                parts.append(np.bincount(section, weights=weights, minlength=self.sections))
            self._finished[weight] = np.concatenate(parts).astype(np.float64)
        return self._finished[weight]

    def measured_by_finish(self, where: NDArray[np.bool_]) -> Floats:
        """Return how many of some measured requests completed, by the section in which they did.

        :param where: which ones, all of them completed.
        """
        parts, edges = [], self._edges[:: self.sections]
        replications = zip(self._first, pairwise(edges), self._completions, strict=True)
        for first, (begin, end), (request, section) in replications:
            own, measured = where[begin:end], request >= first
            good = own[request[measured] - first]
            parts.append(np.bincount(section[measured][good], minlength=self.sections))
        return np.concatenate(parts).astype(np.float64)

    @cached_property
    def _completions(self) -> list[tuple[Ints, Ints]]:
        """Of each replication, which requests completed in the measured time, and in which section."""
        found = []
        for r in self.recordings:
            request = np.flatnonzero(r.requests["status"] == COMPLETED)
            finished = np.asarray(r.requests["finished_s"], dtype=np.float64)[request]
            section = np.searchsorted(r.bounds, finished, side="right") - 1
            inside = (section >= 0) & (section < self.sections)
            found.append((request[inside], section[inside]))
        return found

    def host_fill_s(self) -> float:
        """Return the seconds that completed measured requests waited for host memory at replicas whose loads happen
        inside steps, all together."""
        total = 0.0
        for r, first in zip(self.recordings, self._first, strict=True):
            fills, index = r.host_fills["wait_s"], r.host_fills["index"]
            chosen = (index >= first) & self.facts.loads_in_steps(r.requests["replica"][index])
            total += float(fills[chosen].sum())
        return total

    def between_replicas_s(self) -> dict[str, float]:
        """Return the mean seconds of what follows a prompt that another replica computed, where any does that; requests
        whose prompt was computed where they were answered count as 0."""
        pairs = zip(self.recordings, self._first, strict=True)
        rows = np.concatenate([r.hand_overs[r.hand_overs[:, 0] >= first] for r, first in pairs])
        if not len(rows):
            return {}
        seconds = [*np.diff(rows[:, 1:5], axis=1).T, rows[:, 5]]
        names = ("hand_over_s", "read_s", "decode_queue_s", "decode_load_s")
        return {name: float(each.sum()) / int(self.completed.sum()) for name, each in zip(names, seconds, strict=True)}

    def loading_s(self) -> Floats:
        """Return the seconds by section in which loaders load adapters from storage, or steps load them.

        Steps that load do so from storage and from host memory, one load after the other. Where only copies from host
        memory block steps, since loaders have fetched them before, it is what takes more time.
        """
        _, stored = self.loads("from storage")
        if not (self.facts.blocking or any(pool.blocking for pool in self.facts.pools)):
            return stored
        _, copied = self.loads("copies in steps")
        if self.facts.steps_load_all:
            return stored + copied
        return copied if copied.sum() > stored.sum() else stored

    def loads(self, which: Literal["all", "from storage", "copies in steps", "full models"]) -> tuple[Floats, Floats]:
        """Return loads started and seconds of loading by section: of all loads, of those of adapters from storage, of
        those from host memory that block steps, or of whole models.

        Every attempt at a load counts as a load. A loader stays occupied in the pauses between them.
        """
        started, busy = [], []
        from_storage, own = which == "from storage", self.facts.own_replicas
        for r in self.recordings:
            chosen = np.ones(len(r.loads["tier"]), dtype=bool)
            if which != "all":
                chosen = r.loads["replica"] >= own
                if from_storage:
                    chosen = ~chosen & (r.loads["tier"] == FROM_STORAGE)
                elif which == "copies in steps":
                    in_steps = self.facts.loads_in_steps(r.loads["replica"])
                    chosen = ~chosen & in_steps & (r.loads["tier"] == FROM_HOST)
            start, end = r.loads["started_s"][chosen], r.loads["ended_s"][chosen]
            section = np.searchsorted(r.bounds, start, side="right") - 1
            inside = (section >= 0) & (section < self.sections)
            started.append(np.bincount(section[inside], minlength=self.sections))
            occupied = _overlap(start, end, r.bounds)
            if from_storage and len(r.backoffs):
                occupied = occupied + _overlap(r.backoffs[:, 0], r.backoffs[:, 1], r.bounds)
            busy.append(occupied)
        return np.concatenate(started).astype(np.float64), np.concatenate(busy)


def joined_columns(parts: list[NDArray[Any]]) -> NDArray[Any]:
    """Return arrays after one another; of a single one no copy is made."""
    return parts[0] if len(parts) == 1 else np.concatenate(parts)


def _overlap(start: Floats, end: Floats, bounds: Floats) -> Floats:
    """Return the seconds that intervals spend in each section.

    Each by itself: differences of sums over the whole run would leave nothing of sections of a few nanoseconds.
    """
    sections = len(bounds) - 1
    _, section, seconds = seconds_by_section(Intervals.of(start, end, bounds), bounds, sections)
    return np.bincount(section, weights=seconds, minlength=sections).astype(np.float64)


_JUDGED = ("adapter", "arrival_s", "admitted_s", "first_token_s", "finished_s", "output_tokens")
"""Columns that say whether a request was in time."""
_SINGLE = {stage: [f"{stage}_{what}_s" for what in ("p99", "p95", "p90")] for stage in (*STAMPS, "tpot")}
_SINGLE["tpot"].append("tpot_mean_s")
"""By stage, the terms of an SLO of which the first one given is also applied to each single request."""


def single_target(slo: Mapping[str, float], stage: str) -> float:
    """Return what single requests are to keep in a stage; infinite where an SLO has no such term."""
    return next((slo[name] for name in _SINGLE[stage] if name in slo), math.inf)


def request_targets(facts: ScenarioFacts, adapter: NDArray[Any]) -> dict[str, Floats]:
    """Return the per-request targets by stage: (n,), of each request the tightest, infinite where it has none.

    :param adapter: (n,) of each request.
    """
    found = {}
    for stage in _SINGLE:
        targets = np.full(len(adapter), single_target(facts.slo, stage))
        own = np.array([single_target(tenant.slo, stage) for tenant in facts.tenants])
        if facts.tenant_of is not None and len(own):
            targets = np.minimum(targets, own[facts.tenant_of[adapter.astype(np.int64)]])
        if np.isfinite(targets).any():
            found[stage] = targets
    return found


def _in_time(requests: Mapping[str, NDArray[Any]], facts: ScenarioFacts) -> NDArray[np.bool_]:
    targets = request_targets(facts, requests["adapter"])
    good = np.ones(len(requests["arrival_s"]), dtype=bool)
    for stage, stamp in STAMPS.items():
        if stage in targets:
            good &= requests[stamp] - requests["arrival_s"] <= targets[stage]
    if "tpot" in targets and not facts.fixed:
        later = np.maximum(requests["output_tokens"] - 1, 1)
        good &= requests["finished_s"] - requests["first_token_s"] <= targets["tpot"] * later
    return good
