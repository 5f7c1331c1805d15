"""Make a point from recordings: its metrics, distributions, timeline, breakdown, groups and capacity."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Container, Iterator, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from sim.results.capacity import capacity_of, is_overloaded
from sim.results.change_metrics import impact_of
from sim.results.effective_size import initial_transient
from sim.results.metrics import MEASURED, Measured, measure, measured_usage, metrics_of
from sim.results.model import Capacity, Impact
from sim.results.point import LateShare, Metric, Point
from sim.results.records import Recording
from sim.results.sample_data import MeasuredRequests, ScenarioFacts
from sim.results.served import is_served, late_shares, unserved_counts
from sim.results.slices import group_results, overloaded, pool_results, replica_results, span_results, tenant_results
from sim.results.statistics import ENOUGH_REPLICATIONS, MIN_SECTION_P99, is_whole
from sim.results.timeline import SPANS, event_rows, timeline_of, version_mix
from sim.traffic.popularity import concentration
from sim.traffic.request import MISS

# fmt: off
# One value a line would be a page.
_Q = [
    0.0, 0.001, 0.005, 0.01, 0.02, 0.05, *(i / 20 for i in range(2, 18)),
    0.9, 0.92, 0.94, 0.95, 0.96, 0.97, 0.98, 0.985, 0.99, 0.9925, 0.995, 0.9975, 0.999, 0.9995, 1.0,
]
# fmt: on
_ROUNDING = 1e-10
"""Share of the latency below which a stage is what rounding left of a difference of equal times."""


def summarise(recordings: list[Recording], facts: ScenarioFacts, set_: dict[str, Any], warnings: list[str]) -> Point:
    """Return the point of these replications.

    :param set_: the swept keys and their values.
    :param warnings: sentences from before the run.
    """
    metrics, m = measure(recordings, facts)
    capacity, impact = capacity_of(m, metrics), impact_of(m)
    load = capacity.offered_load
    slices = [group_results(m), pool_results(m), span_results(m)]
    if load is not None and load >= 1:
        metrics = overloaded(metrics)
        slices = [[replace(one, metrics=overloaded(one.metrics)) for one in some] for some in slices]
    groups, pools, times = slices
    return Point(
        set=set_,
        metrics=metrics,
        cdf=_cdf(m),
        timeline=timeline_of(recordings[0]),
        breakdown=_breakdown(m),
        groups=groups,
        capacity=capacity,
        traffic=_traffic(m),
        warnings=[
            *warnings,
            *_warnings(capacity, impact or Impact(), metrics, facts.refusals),
            *_never_filled(recordings),
            *(_start_warnings(m) if load is None or load < 1 else ()),
        ],
        replicas=replica_results(recordings[0], facts),
        events=event_rows(recordings[0]),
        version_mix=version_mix(recordings[0], SPANS) if facts.strategies else {},
        impact=impact,
        traffic_ids=traffic_ids(recordings, facts),
        late={} if is_served(m) else late_shares(m),
        unserved=unserved_counts(m),
        usage=measured_usage(m),
        pools=pools,
        times=times,
        tenants=tenant_results(recordings, facts),
    )


def measure_alone(
    recording: Recording, facts: ScenarioFacts, names: Container[str] = MEASURED
) -> tuple[dict[str, Metric], dict[str, LateShare], bool]:
    """Return the metrics of one replication, the shares of late requests, and whether more arrive than are served.

    They are there to be compared with others on the same traffic. So no interval is made, and fewer requests are enough
    for a p99 than where it is printed: one that varies more only makes the comparison wider.

    :param names: which metrics.
    """
    m = Measured([recording], facts, MIN_SECTION_P99, alone=True)
    return metrics_of(m, names), late_shares(m), is_overloaded(m)


def _cdf(m: MeasuredRequests) -> dict[str, list[float]]:
    waits = m.sampled(m.column("load_wait_s")[m.completed])
    curves = {f"{stage}_s": m.latency(stage).quantiles(_Q) for stage in ("ttft", "e2e", "queue")}
    if m.facts.fixed:
        curves["ttft_s"] = []
    return {"q": _Q, **curves, "load_wait_s": waits.quantiles(_Q)}


def _breakdown(m: MeasuredRequests) -> dict[str, float]:
    """Return the mean seconds of each stage, which add up to mean E2E.

    Admission and first token cut E2E into three. Load waits are taken out of that part in which they lie: of the
    first, unless loads happen inside steps. Host memory that fills at arrival fills before admission, wherever the
    loads to the GPU happen. What lies between the replica that computes a prompt and the one that answers is taken out
    of the second part.
    """
    if not m.completed.any():
        return {}
    waits = m.column("load_wait_s")[m.completed]
    load_queue, load_wait = float(m.column("load_queue_s")[m.completed].mean()), float(waits.mean())
    before = float(m.seconds("admitted_s", "arrival_s").mean())
    prefill = 0.0 if m.facts.fixed else float(m.seconds("first_token_s", "admitted_s").mean())
    after = float(m.seconds("finished_s", "admitted_s" if m.facts.fixed else "first_token_s").mean())
    inside_step = 0.0
    if m.facts.blocking and not m.facts.pools:
        inside_step = load_wait - m.host_fill_s() / len(waits)
    elif m.facts.full_replicas or m.facts.pools:
        in_steps = m.facts.loads_in_steps(m.column("replica")[m.completed])
        inside_step = float(np.where(in_steps, waits, 0.0).mean()) - m.host_fill_s() / len(waits)
    front_ends = m.facts.front_end_s
    outside = float(front_ends[m.column("replica")[m.completed]].mean()) if front_ends.any() else 0.0
    between = m.between_replicas_s()
    load_there = between.get("decode_load_s", 0.0)
    stages = {
        **({"front_end_s": outside} if outside else {}),
        "loader_queue_s": load_queue,
        "load_s": load_wait - load_queue - load_there,
        "queue_s": before - outside - (load_wait - inside_step),
        "prefill_s": prefill - inside_step - (sum(between.values()) - load_there),
        **between,
        "decode_s": after,
    }
    rounding = _ROUNDING * sum(stages.values())
    return {name: 0.0 if abs(seconds) < rounding else seconds for name, seconds in stages.items()}


def _traffic(m: MeasuredRequests) -> dict[str, float]:
    count, loop, span_s = len(m.facts.size_bytes), m.facts.closed_loop, float(m.spans.sum())
    rate_rps = float(len(m.section)) / span_s if span_s > 0 else 0.0
    return {
        "requests": float(len(m.section)),
        "adapters": float(count),
        **({"rate_rps": rate_rps} if loop is None else {"clients": float(loop.concurrency)}),
        **({"base_share": float(m.for_base.mean())} if m.for_base.any() else {}),
        **concentration(np.bincount(m.column("adapter")[~m.for_base], minlength=count)),
        **_cycle(m),
    }


def _cycle(m: MeasuredRequests) -> dict[str, float]:
    """Return how long the cycle is that the rate repeats, how much of it was measured, if that is not all, and how long
    a run takes that measures all."""
    bounds = m.recordings[0].bounds
    measured_s, cycle_s = float(bounds[-1] - bounds[0]), m.facts.spans[0].cycle_s if m.facts.spans else 0.0
    if not 0 < measured_s < cycle_s or is_whole(measured_s / cycle_s):
        return {}
    return {"cycle_s": cycle_s, "measured_s": measured_s, "whole_s": cycle_s * float(bounds[-1]) / measured_s}


def _warnings(capacity: Capacity, impact: Impact, metrics: dict[str, Metric], refusals: str) -> Iterator[str]:
    loader, batch = capacity.loader.offered_load, capacity.compute.offered_load
    if loader is not None and loader >= 1:
        yield (
            f"overloaded: loads need {loader:.2f} times what the loaders can do; the queue grows without limit, and "
            "percentiles depend on how long the run is"
        )
    if batch is not None:
        more = f"{batch:.2f} times as many requests arrived as" if batch > 1 else "more requests arrived than"
        yield (
            f"overloaded: {more} were served; the queue grew from start to end, and "
            "percentiles depend on how long the run is"
        )
    for bucket in capacity.buckets:
        if bucket.offered_load is not None:
            yield (
                f"overloaded: {bucket.tenant} asks for {bucket.offered_load:.2f} times the {bucket.counts} that its "
                "bucket admits; the queue in front of it grows without limit, and percentiles depend on how long the "
                "run is"
            )
    refused = metrics["refused"].value
    if refused:
        gated = impact.refused_by_rollout
        parts = [f"{gated:,} since the adapter was being replaced (unload-then-load)"] if gated else []
        if refused > gated:
            parts.append(f"{refused - gated:,.0f} since {refusals}" if gated else refusals)
        some = f"{refused:,.0f} request{'s were' if refused > 1 else ' was'} refused"
        yield f"{some}: {', '.join(parts)}"
    failed = metrics["failed"].value
    if failed:
        some = f"{failed:,.0f} request{'s' if failed > 1 else ''}"
        yield f"{some} failed: {_failures(impact, int(failed))}"


ALMOST_FULL = 0.95
"""Share of a pool from which blocks on their way may fill it."""


def _never_filled(recordings: Sequence[Recording]) -> Iterator[str]:
    """Yield how full the host's pool of KV became, where nothing had to leave it."""
    full = max((recording.facts.get("kv_host_share", 1.0) for recording in recordings), default=1.0)
    if full < ALMOST_FULL:
        yield (
            f"the pool of KV offload starts empty and was {full:.0%} full at the end, so nothing had to leave it: only "
            "a longer run shows how large it has to be (workload.requests)"
        )


def _start_warnings(m: MeasuredRequests) -> Iterator[str]:
    """Yield which ``run.warmup`` would leave out a start of the run that is still measured.

    Without replications a start can't be told from a long queue by chance.
    """
    if not m.facts.steady or m.replications < ENOUGH_REPLICATIONS:
        return
    missed = (m.column("outcome")[m.admitted_with_adapter] == MISS).astype(np.float64)
    series = {"latencies": m.latency("e2e"), "misses": m.sampled(missed, m.admitted_with_adapter)}
    for what, sample in series.items():
        end = initial_transient(sample.by_replication())
        if end is not None:
            requests = len(m.recordings[0].section_of)
            measured = len(m.section) / (requests * m.replications)
            warmup = math.ceil(20 * (1 - measured * (1 - end))) / 20
            yield (
                f"{what} settle only after the warm-up, so the start of the run is in the results: set "
                f"run.warmup={warmup:.0%} or run more requests"
            )
            return


def _failures(impact: Impact, failed: int) -> str:
    rest = "no right answer to the last try" if impact.faults else "the KV of their prompt could not be read"
    parts = (
        (impact.lost, "lost with their replica"),
        (impact.failed_loads, "their adapter could not be loaded"),
        (failed - impact.lost - impact.failed_loads, rest),
    )
    return ", ".join(f"{count:,} {why}" for count, why in parts if count > 0)


_DRAWN = ("adapter", "prompt_tokens", "output_tokens")


def traffic_ids(recordings: list[Recording], facts: ScenarioFacts) -> dict[str, str]:
    """Return two short digests: ``requests`` and ``draws``.

    ``requests`` is the same where every request comes at the same time, for the same adapter, with the same lengths; in
    closed loops, where the same clients send the same requests, each when it has its last answer.
    ``draws`` is the same where as many requests come from the same random numbers (or are those of the same trace),
    whatever is made of them: another rate scales the same gaps, other lengths come from the same quantiles. Both know
    which requests are measured, so that parts with the same number hold the same requests.
    """
    counts = [(len(r.section_of), int((r.section_of >= 0).sum()), len(r.bounds)) for r in recordings]
    requests, draws = (hashlib.blake2b(repr(counts).encode(), digest_size=8) for _ in range(2))
    requests.update(repr(facts.closed_loop).encode() if facts.closed_loop is not None else b"")
    for recording in recordings:
        for name in ("arrival_s", *_DRAWN) if facts.closed_loop is None else _DRAWN:
            requests.update(np.ascontiguousarray(recording.requests[name]).data)
        if facts.seed is None:
            for name in _DRAWN:
                draws.update(np.ascontiguousarray(recording.requests[name]).data)
    draws.update(repr(facts.seed).encode())
    return {"requests": requests.hexdigest(), "draws": draws.hexdigest()}
