"""From the recordings of a point's replications to its metrics."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sim.results.changes import change_metrics
from sim.results.point import UNITS, Metric
from sim.results.records import COMPLETED, UNFINISHED, Recording, gap_bin_edges
from sim.results.stats import MIN_FOR_P99, Sampled, estimate, histogram_quantile, ratio
from sim.traffic.request import DELAYED_HIT, FROM_STORAGE, HIT, MISS

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]

BUSY = 0.95
"""A loader or server busier than this leaves latencies unsettled: their queue has not reached its mean."""


Judge = Callable[[Mapping[str, NDArray[Any]]], NDArray[np.bool_]]
"""Says of each request, given the columns of all, whether it is good."""


@dataclass(frozen=True, slots=True)
class Facts:
    """What the metrics must know of the scenario.

    :ivar slo: targets by metric name.
    :ivar fixed: engine ``fixed``: no tokens.
    :ivar blocking: loads happen after admission, inside the step.
    :ivar size_bytes, kind, kind_names: of the adapters.
    :ivar slots: adapter slots, or None where bytes are counted; ``kv_tokens``, ``max_num_seqs``: None for ``fixed``.
    :ivar refusals: for what reasons requests may be refused, in words.
    :ivar strategies: of the rollouts; () where there are none.
    :ivar faults: kinds of the faults.
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


class Measured:
    """The measured requests of all replications, as columns, with sums by section.

    :ivar section: section of each request, replications after one another.
    :ivar spans: seconds of each section.
    :param least_for_p99: completed requests below which there is no p99.
    """

    def __init__(self, recordings: list[Recording], facts: Facts, least_for_p99: int = MIN_FOR_P99) -> None:
        self.least_for_p99 = least_for_p99
        self.recordings = recordings
        self.facts = facts
        self.sections = len(recordings[0].bounds) - 1
        self.replications = len(recordings)
        self.spans = np.concatenate([np.diff(r.bounds) for r in recordings])
        keep = [r.section_of >= 0 for r in recordings]
        self._keep = keep
        self.section = np.concatenate([
            r.section_of[k] + i * self.sections for i, (r, k) in enumerate(zip(recordings, keep, strict=True))
        ])  # fmt: skip
        self._columns: dict[str, NDArray[Any]] = {}
        status = self.column("status")
        self.completed = status == COMPLETED
        self.admitted = self.column("admitted_s") >= 0

    def column(self, name: str) -> NDArray[Any]:
        """Return one column of the measured requests."""
        if name not in self._columns:
            pairs = zip(self.recordings, self._keep, strict=True)
            self._columns[name] = np.concatenate([r.requests[name][k] for r, k in pairs])
        return self._columns[name]

    def seconds(self, later: str, earlier: str) -> Floats:
        """Return the time between two stamps of each completed request."""
        done = self.completed
        return np.asarray(self.column(later)[done] - self.column(earlier)[done], dtype=np.float64)

    def sampled(self, values: Floats, where: NDArray[np.bool_] | None = None) -> Sampled:
        """Return statistics over values of the completed requests (or of those ``where`` says)."""
        mask = self.completed if where is None else where
        return Sampled(values, self.section[mask], self.sections, self.replications, self.least_for_p99)

    def count(self, where: NDArray[np.bool_], weight: NDArray[Any] | None = None) -> Floats:
        """Return the number (or summed weight) of measured requests by section."""
        weights = None if weight is None else weight[where]
        total = self.sections * self.replications
        return np.bincount(self.section[where], weights=weights, minlength=total).astype(np.float64)

    def by_finish(self, where: Judge | None = None, weight: str | None = None) -> Floats:
        """Return completions (or their summed ``weight``) by the section in which they ended, whenever they came."""
        parts = []
        for r in self.recordings:
            chosen = r.requests["status"] == COMPLETED if where is None else where(r.requests)
            finished = np.asarray(r.requests["finished_s"], dtype=np.float64)[chosen]
            section = np.searchsorted(r.bounds, finished, side="right") - 1
            inside = (section >= 0) & (section < self.sections)
            weights = None if weight is None else r.requests[weight][chosen][inside].astype(np.float64)
            parts.append(np.bincount(section[inside], weights=weights, minlength=self.sections))
        return np.concatenate(parts).astype(np.float64)

    def loads(self, from_storage: bool) -> tuple[Floats, Floats]:
        """Return loads started and loader-seconds by section; of loads from storage only, or of all."""
        started, busy = [], []
        for r in self.recordings:
            chosen = r.loads["tier"] == FROM_STORAGE if from_storage else np.ones(len(r.loads["tier"]), dtype=bool)
            start, end = r.loads["started_s"][chosen], r.loads["ended_s"][chosen]
            section = np.searchsorted(r.bounds, start, side="right") - 1
            inside = (section >= 0) & (section < self.sections)
            started.append(np.bincount(section[inside], minlength=self.sections))
            busy.append(_overlap(start, end, r.bounds))
        return np.concatenate(started).astype(np.float64), np.concatenate(busy)


def _overlap(start: Floats, end: Floats, bounds: Floats) -> Floats:
    """Return the seconds that intervals spend in each section: a difference of integrals at the bounds."""
    start, end = np.sort(start), np.sort(end)
    sums_start, sums_end = np.concatenate(([0.0], np.cumsum(start))), np.concatenate(([0.0], np.cumsum(end)))
    began, ended = np.searchsorted(start, bounds), np.searchsorted(end, bounds)
    # Up to time b, the intervals have run for the sum of min(b, end) - min(b, start).
    until = (bounds * began - sums_start[began]) - (bounds * ended - sums_end[ended])
    return np.diff(until)


def measure(
    recordings: list[Recording], facts: Facts, least_for_p99: int = MIN_FOR_P99
) -> tuple[dict[str, Metric], Measured]:
    """Return every metric of ``UNITS`` over all replications, and the measured requests."""
    m = Measured(recordings, facts, least_for_p99)
    metrics = {**_cache(m), **_latency(m), **_tokens(m), **_rates(m), **_counts(m)}
    metrics |= change_metrics(m, slow_ones(m))
    _unsettle(metrics, m)
    return {name: metrics[name] for name in UNITS}, m


def _cache(m: Measured) -> dict[str, Metric]:
    outcome, admitted = m.column("outcome"), m.admitted
    total = m.count(admitted)
    sizes = m.facts.size_bytes[m.column("adapter")].astype(np.float64)
    missed = admitted & (outcome == MISS)
    started, _ = m.loads(from_storage=False)
    _, busy = m.loads(from_storage=True)
    places = m.facts.loaders * m.facts.replicas
    names = {"miss_ratio": MISS, "delayed_hit_ratio": DELAYED_HIT, "hit_ratio": HIT}
    return {
        **{
            name: ratio(m.count(admitted & (outcome == o)), total, m.sections, "1", highest=1)
            for name, o in names.items()
        },
        "byte_miss_ratio": ratio(m.count(missed, sizes), m.count(admitted, sizes), m.sections, "1", highest=1),
        "loads_per_request": ratio(started, total, m.sections, "1"),
        "loader_utilization": ratio(busy, m.spans * places, m.sections, "1", highest=1),
        "load_wait_mean_s": m.sampled(m.column("load_wait_s")[m.completed]).mean("s"),
    }


def _latency(m: Measured) -> dict[str, Metric]:
    queue = m.sampled(m.seconds("admitted_s", "arrival_s"))
    ttft = m.sampled(m.seconds("first_token_s", "arrival_s"))
    e2e = m.sampled(m.seconds("finished_s", "arrival_s"))
    metrics = {}
    for name, sample in (("queue", queue), ("ttft", ttft), ("e2e", e2e)):
        metrics[f"{name}_mean_s"] = sample.mean("s")
        metrics[f"{name}_p50_s"] = sample.quantile(0.5, "s")
        metrics[f"{name}_p99_s"] = sample.quantile(0.99, "s")
    return metrics


def _tokens(m: Measured) -> dict[str, Metric]:
    if m.facts.fixed:
        nothing = Metric(None, unit="s", note="engine fixed has no tokens")
        return {"tpot_mean_s": nothing, "itl_mean_s": nothing, "itl_p99_s": nothing}
    several = m.completed & (m.column("output_tokens") > 1)
    decode = (m.column("finished_s") - m.column("first_token_s"))[several]
    tpot = m.sampled(decode / (m.column("output_tokens")[several] - 1), several).mean("s")
    counts = np.concatenate([r.gap_counts for r in m.recordings])
    sums = np.concatenate([r.gap_sum_s for r in m.recordings])
    edges = gap_bin_edges()
    itl_mean = ratio(sums, counts.sum(axis=1).astype(np.float64), m.sections, "s")
    by_replication = [r.gap_counts.sum(axis=0) for r in m.recordings]
    itl_p99 = estimate(
        histogram_quantile(counts.sum(axis=0), edges, 0.99),
        np.array([histogram_quantile(row, edges, 0.99) for row in counts]),
        np.array([histogram_quantile(row, edges, 0.99) for row in by_replication]),
        "s",
    )
    return {"tpot_mean_s": tpot, "itl_mean_s": itl_mean, "itl_p99_s": itl_p99}


_JUDGED = ("status", "arrival_s", "admitted_s", "first_token_s", "finished_s", "output_tokens")
"""Columns that a judge looks at."""


def judge_of(facts: Facts) -> Judge | None:
    """Return what says of each request whether it completed within every per-request target; None without such.

    The targets of p99 TTFT, E2E and queue wait, and of mean TPOT, are held against each single request.
    """
    slo = facts.slo
    terms = (("ttft_p99_s", "first_token_s"), ("e2e_p99_s", "finished_s"), ("queue_p99_s", "admitted_s"))
    if not any(name in slo for name, _ in terms) and "tpot_mean_s" not in slo:
        return None

    def judge(requests: Mapping[str, NDArray[Any]]) -> NDArray[np.bool_]:
        good: NDArray[np.bool_] = requests["status"] == COMPLETED
        for name, stamp in terms:
            if name in slo:
                good &= requests[stamp] - requests["arrival_s"] <= slo[name]
        if "tpot_mean_s" in slo and not facts.fixed:
            later = np.maximum(requests["output_tokens"] - 1, 1)
            good &= requests["finished_s"] - requests["first_token_s"] <= slo["tpot_mean_s"] * later
        return good

    return judge


def slow_ones(m: Measured) -> NDArray[np.bool_] | None:
    """Return which measured requests completed, but not within every per-request target; None without such."""
    judge = judge_of(m.facts)
    if judge is None:
        return None
    return np.asarray(m.completed & ~judge({name: m.column(name) for name in _JUDGED}))


def _rates(m: Measured) -> dict[str, Metric]:
    busy = np.concatenate([r.busy_s for r in m.recordings])
    metrics = {
        "gpu_utilization": ratio(busy, m.spans * m.facts.replicas, m.sections, "1", highest=1),
        "throughput_rps": ratio(m.by_finish(), m.spans, m.sections, "1/s"),
    }
    if m.facts.fixed:
        metrics["output_tokens_per_s"] = Metric(None, unit="1/s", note="engine fixed has no tokens")
    else:
        tokens = m.by_finish(weight="output_tokens")
        metrics["output_tokens_per_s"] = ratio(tokens, m.spans, m.sections, "1/s")
    judge = judge_of(m.facts)
    if judge is None:
        note = "the scenario's slo has no target for single requests"
        metrics["goodput_rps"] = Metric(None, unit="1/s", note=note)
        metrics["slo_attainment"] = Metric(None, unit="1", note=note)
    else:
        metrics["goodput_rps"] = ratio(m.by_finish(judge), m.spans, m.sections, "1/s")
        good = judge({name: m.column(name) for name in _JUDGED})
        ended = m.column("status") != UNFINISHED
        metrics["slo_attainment"] = ratio(m.count(good), m.count(ended), m.sections, "1", highest=1)
    return metrics


def _counts(m: Measured) -> dict[str, Metric]:
    status = m.column("status")
    return {
        "completed": Metric(int((status == COMPLETED).sum()), unit="requests"),
        "unfinished": Metric(int((status == UNFINISHED).sum()), unit="requests"),
        "preemptions": Metric(int(m.column("preemptions").sum()), unit="1"),
        "evictions": Metric(sum(r.evictions for r in m.recordings), unit="1"),
    }


def _unsettle(metrics: dict[str, Metric], m: Measured) -> None:
    """Mark latencies near saturation: their intervals don't show what a longer run would."""
    loader = metrics["loader_utilization"].value
    server = metrics["gpu_utilization"].value if m.facts.fixed else None  # a batch engine is busy at any load
    for what, load in (("loader", loader), ("server", server)):
        if load is not None and load > BUSY:
            for name in metrics:
                if UNITS[name] == "s" and name != "rollout_duration_s" and metrics[name].value is not None:
                    metrics[name].settled = False
                    metrics[name].note = f"the {what} is busy {load:.1%} of the time: near saturation"
