"""From the recordings of a point's replications to its metrics."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from sim.results.autoscaling.scaling_metrics import scaling_metrics
from sim.results.changes.change_metrics import change_metrics
from sim.results.metric_state import MANY_TIMES, Cause, State
from sim.results.placement.placement_metrics import placement_metrics
from sim.results.point import UNITS, Metric
from sim.results.recording.leaps import gap_bin_edges
from sim.results.records import COMPLETED, UNFINISHED, Recording
from sim.results.sample_data import STAMPS, MeasuredRequests, ScenarioFacts, joined_columns
from sim.results.served import attainment
from sim.results.statistics import (
    ENOUGH_FOR_SHARE,
    ENOUGH_REPLICATIONS,
    MIN_FOR_P99,
    estimate,
    histogram_quantile,
    kept,
    ratio,
    share_by_size,
)
from sim.traffic.request import DELAYED_HIT, HIT, MISS

BUSY = 0.95
"""A loader or server busier than this leaves latencies unsettled: their queue has not reached its mean."""


def measure(
    recordings: list[Recording], facts: ScenarioFacts, least_for_p99: int = MIN_FOR_P99
) -> tuple[dict[str, Metric], MeasuredRequests]:
    """Return every metric of ``UNITS`` that applies over all replications, and the measured requests."""
    m = MeasuredRequests(recordings, facts, least_for_p99)
    metrics = {**_cache(m), **_latency(m), **_tokens(m), **_rates(m), **_counts(m)}
    metrics |= change_metrics(m) | _prefixes(m) | scaling_metrics(m) | placement_metrics(m)
    busy = _near_saturation(metrics, m)
    if busy is not None:
        metrics |= {
            name: replace(metric, state=busy)
            for name, metric in metrics.items()
            if UNITS[name] == "s"
            and name not in ("rollout_duration_s", "cold_start_mean_s", "placement_load_s")
            and metric.value is not None
        }
    return {name: _with_requests(metrics[name], facts.requests) for name in UNITS if name in metrics}, m


def _with_requests(metric: Metric, requests: int | None) -> Metric:
    """Return a metric with the number of requests for a run that is long enough, rounded up to two digits."""
    times = metric.state.times_longer
    if times is None or times > MANY_TIMES or requests is None:
        return metric
    needed = requests * times
    step = int(10 ** max(0, math.floor(math.log10(needed)) - 1))
    return replace(metric, state=replace(metric.state, requests=math.ceil(needed / step) * step))


def _cache(m: MeasuredRequests) -> dict[str, Metric]:
    places = m.replica_seconds(m.facts.loaders) if m.autoscaled else m.spans * m.facts.loader_places
    return {
        **_ratios(m),
        "loader_utilization": ratio(m.loading_s(), places, m.sections, "1", highest=1),
        "load_wait_mean_s": m.sampled(m.column("load_wait_s")[m.completed]).mean("s"),
    }


def _ratios(m: MeasuredRequests) -> dict[str, Metric]:
    """Return what is counted over the admitted requests for adapters."""
    outcome, admitted = m.column("outcome"), m.admitted_with_adapter
    total, count = m.count(admitted), int(admitted.sum())
    names = {"miss_ratio": MISS, "delayed_hit_ratio": DELAYED_HIT, "hit_ratio": HIT}
    if 0 < count < m.least_for_ratio:
        few = Metric(None, unit="1", state=State(Cause.FEW_REQUESTS, count, m.least_for_ratio))
        return dict.fromkeys((*names, "byte_miss_ratio", "loads_per_request"), few)
    found = {}
    for name, chosen in names.items():
        series = m.sampled((outcome[admitted] == chosen).astype(np.float64), admitted).by_replication()
        over = m.count(admitted & (outcome == chosen))
        found[name] = share_by_size(over, total, m.sections, series, ENOUGH_FOR_SHARE)
    sizes = m.facts.size_bytes[m.column("adapter")].astype(np.float64)
    missed = admitted & (outcome == MISS)
    started, _ = m.loads("all")
    found["byte_miss_ratio"] = ratio(m.count(missed, sizes), m.count(admitted, sizes), m.sections, "1", highest=1)
    found["loads_per_request"] = ratio(started, total, m.sections, "1")
    return found


def _latency(m: MeasuredRequests) -> dict[str, Metric]:
    metrics = {}
    for name in STAMPS:
        sample = m.latency(name)
        metrics[f"{name}_mean_s"] = sample.mean("s")
        metrics[f"{name}_p50_s"] = sample.quantile(0.5, "s")
        metrics[f"{name}_p99_s"] = sample.quantile(0.99, "s")
    return metrics


def _tokens(m: MeasuredRequests) -> dict[str, Metric]:
    if m.facts.fixed:
        nothing = Metric(None, unit="s", state=State(Cause.NO_TOKENS))
        return {"tpot_mean_s": nothing, "itl_mean_s": nothing, "itl_p99_s": nothing}
    several = m.completed & (m.column("output_tokens") > 1)
    decode = (m.column("finished_s") - m.column("first_token_s"))[several]
    tpot = m.sampled(decode / (m.column("output_tokens")[several] - 1), several).mean("s")
    counts = joined_columns([r.gap_counts for r in m.recordings])
    used = np.flatnonzero(counts.sum(axis=0))
    bins = slice(used[0], used[-1] + 1) if len(used) else slice(0)  # few of all bins: the others take time, too
    counts, edges = counts[:, bins], gap_bin_edges()[bins]
    sums = np.concatenate([r.gap_sum_s for r in m.recordings])
    itl_mean = ratio(sums, counts.sum(axis=1).astype(np.float64), m.sections, "s")
    by_replication = counts.reshape(m.replications, m.sections, -1).sum(axis=1)
    itl_p99 = estimate(
        histogram_quantile(counts.sum(axis=0), edges, 0.99),
        np.array([histogram_quantile(row, edges, 0.99) for row in counts]),
        np.array([histogram_quantile(row, edges, 0.99) for row in by_replication]),
        "s",
    )
    return {"tpot_mean_s": tpot, "itl_mean_s": itl_mean, "itl_p99_s": itl_p99}


def _rates(m: MeasuredRequests) -> dict[str, Metric]:
    busy = np.concatenate([r.busy_s for r in m.recordings])
    metrics = {
        "gpu_utilization": ratio(busy, m.replica_seconds(1), m.sections, "1", highest=1),
        "throughput_rps": ratio(m.by_finish(), m.spans, m.sections, "1/s"),
    }
    if m.facts.fixed:
        metrics["output_tokens_per_s"] = Metric(None, unit="1/s", state=State(Cause.NO_TOKENS))
    else:
        tokens = m.by_finish(weight="output_tokens")
        metrics["output_tokens_per_s"] = ratio(tokens, m.spans, m.sections, "1/s")
    if m.good is None or m.slow is None:
        metrics["goodput_rps"] = Metric(None, unit="1/s", state=State(Cause.NO_TARGET))
        metrics["slo_attainment"] = Metric(None, unit="1", state=State(Cause.NO_TARGET))
    else:
        metrics["goodput_rps"] = ratio(m.measured_by_finish(m.good), m.spans, m.sections, "1/s")
        metrics["slo_attainment"] = attainment(m, m.good, m.slow)
    return metrics


def _counts(m: MeasuredRequests) -> dict[str, Metric]:
    status = m.column("status")
    everywhere = np.ones(len(status), dtype=bool)
    evictions = np.array([r.evictions for r in m.recordings], dtype=np.float64)
    return {
        "completed": _total(m, m.count(status == COMPLETED), "requests"),
        "unfinished": _total(m, m.count(status == UNFINISHED), "requests"),
        "preemptions": _total(m, m.count(everywhere, m.column("preemptions")), "1"),
        "evictions": Metric(int(evictions.sum()), unit="1", parts=kept(evictions)),
    }


def _prefixes(m: MeasuredRequests) -> dict[str, Metric]:
    """Return how much of the prompts was cached; nothing where there is no prefix cache."""
    if any(r.prefix_blocks_evicted is None for r in m.recordings):
        return {}
    cached = m.column("cached_tokens")
    found = m.count(m.admitted, cached)
    ttft = m.column("first_token_s") - m.column("arrival_s")
    hit, miss = m.completed & (cached > 0), m.completed & (cached == 0)
    evicted = np.array([r.prefix_blocks_evicted for r in m.recordings], dtype=np.float64)
    return {
        "prefix_hit_ratio": ratio(found, m.count(m.admitted, m.column("prompt_tokens")), m.sections, "1", highest=1),
        "prefix_blocks_evicted": Metric(int(evicted.sum()), unit="1", parts=kept(evicted)),
        "prefix_hit_ttft_mean_s": m.sampled(ttft[hit], hit).mean("s"),
        "prefix_miss_ttft_mean_s": m.sampled(ttft[miss], miss).mean("s"),
    }


def _total(m: MeasuredRequests, by_section: NDArray[np.float64], unit: str) -> Metric:
    """Return a count of what a run consists of: exact, so without an interval, but with parts to compare it by."""
    enough = m.replications >= ENOUGH_REPLICATIONS
    parts = by_section.reshape(-1, m.sections).sum(axis=1) if enough else by_section
    return Metric(int(by_section.sum()), unit=unit, parts=kept(parts))


def _near_saturation(metrics: Mapping[str, Metric], m: MeasuredRequests) -> State | None:
    """Return the state of latencies near saturation, where intervals don't show what a longer run would; else None."""
    server = metrics["gpu_utilization"].value if m.facts.fixed else None  # a batch engine is busy at any load
    if server is not None and server > BUSY:
        return State(Cause.SERVER_BUSY, share=server)
    loader = metrics["loader_utilization"].value
    return State(Cause.LOADER_BUSY, share=loader) if loader is not None and loader > BUSY else None
