"""Make a point from recordings: its metrics, distributions, timeline, breakdown, groups and capacity."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from sim.results.change_metrics import (
    event_cuts,
    event_rows,
    impact_of,
    mark_words,
    timeline_latencies,
    version_mix,
)
from sim.results.effective_size import initial_transient
from sim.results.metrics import measure, measured_usage
from sim.results.model import (
    BatchSlotUse,
    BucketUse,
    Capacity,
    ComputeUse,
    FullModelUse,
    Impact,
    KvUse,
    LoaderUse,
    SlotUse,
    Timeline,
)
from sim.results.point import LateShare, Metric, Point, TenantResult
from sim.results.records import LIMITED, REFUSED, STATUS_WORDS, Recording, column, table, words
from sim.results.sample_data import MeasuredRequests, ScenarioFacts, joined_columns
from sim.results.scaling_metrics import replicas_over_time
from sim.results.served import is_served, late_shares, unserved_counts, was_unserved
from sim.results.slices import group_results, overloaded, pool_results, replica_results, tenant_results
from sim.results.statistics import ENOUGH_REPLICATIONS, MIN_SECTION_P99
from sim.results.traffic_digest import traffic_ids
from sim.traffic.popularity import concentration
from sim.traffic.request import (
    BASE_MODEL,
    BY_ADAPTER_LIMIT,
    BY_BATCH_SLOTS,
    BY_KV,
    DELAYED_HIT,
    FROM_HOST,
    FROM_STORAGE,
    MISS,
)

if TYPE_CHECKING:
    import pyarrow

Floats = NDArray[np.float64]

_Q = [
    0.0,
    0.001,
    0.005,
    0.01,
    0.02,
    0.05,
    *(i / 20 for i in range(2, 18)),
    0.9,
    0.92,
    0.94,
    0.95,
    0.96,
    0.97,
    0.98,
    0.985,
    0.99,
    0.9925,
    0.995,
    0.9975,
    0.999,
    0.9995,
    1.0,
]
_SPANS = 200
_FULL = 0.98
"""Loader utilization from which its queue only grows."""
_ROUNDING = 1e-10
"""Share of the latency below which a stage is what rounding left of a difference of equal times."""
_BACKLOG = 0.02
"""Growth of the queue over the measured time, as a share of arrivals, from which more comes than is served."""
_LEAST_SERVED = 50
"""Completions of the measured time from which on they say how many times as much comes."""


def summarise(recordings: list[Recording], facts: ScenarioFacts, set_: dict[str, Any], warnings: list[str]) -> Point:
    """Return the point of these replications.

    :param set_: the swept keys and their values.
    :param warnings: sentences from before the run.
    """
    metrics, m = measure(recordings, facts)
    capacity, impact = _capacity(m, metrics), impact_of(m)
    load = capacity.offered_load
    groups, pools = group_results(m), pool_results(m)
    if load is not None and load >= 1:
        metrics = overloaded(metrics)
        groups, pools = ([replace(one, metrics=overloaded(one.metrics)) for one in some] for some in (groups, pools))
    return Point(
        set=set_,
        metrics=metrics,
        cdf=_cdf(m),
        timeline=_timeline(recordings[0]),
        breakdown=_breakdown(m),
        groups=groups,
        capacity=capacity,
        traffic=_traffic(m),
        warnings=[
            *warnings,
            *_warnings(capacity, impact or Impact(), metrics, facts.refusals),
            *(_start_warnings(m) if load is None or load < 1 else ()),
        ],
        replicas=replica_results(recordings[0], facts),
        events=event_rows(recordings[0]),
        version_mix=version_mix(recordings[0], _SPANS) if facts.strategies else {},
        impact=impact,
        traffic_ids=traffic_ids(recordings, facts),
        late={} if is_served(m) else late_shares(m),
        unserved=unserved_counts(m),
        usage=measured_usage(m),
        pools=pools,
        tenants=tenant_results(recordings, facts, _overload),
    )


def measure_alone(recording: Recording, facts: ScenarioFacts) -> tuple[dict[str, Metric], dict[str, LateShare], bool]:
    """Return the metrics of one replication, the shares of late requests, and whether more arrive than are served.

    They are there to be compared with others on the same traffic, so fewer requests are enough for a p99 than where
    it is printed: one that varies more only makes the comparison wider.
    """
    metrics, m = measure([recording], facts, least_for_p99=MIN_SECTION_P99)
    buckets = (each.offered_load for each in _bucket_uses(m))
    loads = (_offered_to_loaders(m), _overload(m, behind_buckets=True), *buckets)
    overloaded = any(load is not None and load >= 1 for load in loads)
    return metrics, late_shares(m), overloaded


def tenants_alone(recording: Recording, facts: ScenarioFacts) -> list[TenantResult]:
    """Return what each tenant got in one replication, to be compared like ``measure_alone``."""
    return tenant_results([recording], facts, _overload, MIN_SECTION_P99)


def request_table(recording: Recording, names: tuple[str, ...], facts: ScenarioFacts | None = None) -> pyarrow.Table:
    """Return one row a request of one replication: every stamp, outcome, adapter, replica, version.

    A request to the base model has no adapter, and so no outcome and no tier.

    :param names: adapter names, or () where adapters are numbered.
    :param facts: where there are tenants, each request has the name of its own.
    """
    requests: dict[str, NDArray[Any]] = recording.requests
    columns = {name: column(values) for name, values in requests.items()}
    texts = {
        "outcome": ["hit", "delayed_hit", "miss"],
        "tier": ["gpu", "host", "storage"],
        "status": list(STATUS_WORDS),
    }
    base = requests["adapter"] == BASE_MODEL
    for name, values in texts.items():
        columns[name] = words(requests[name].astype(np.int8), values, None if name == "status" else base)
    columns["adapter"] = column(requests["adapter"], base)
    if names:
        columns["adapter_id"] = words(requests["adapter"], names, base)
    if facts is not None and facts.tenant_of is not None:
        tenant = facts.tenant_of[requests["adapter"].astype(np.int64)]
        columns["tenant"] = words(tenant, [one.name for one in facts.tenants])
    columns["marks"] = words(*mark_words(requests["marks"]))
    columns["measured"] = column(recording.section_of >= 0)
    for name in ("admitted_s", "first_token_s", "finished_s"):
        columns[name] = column(requests[name], requests[name] < 0)
    for name in ("version", "last_version"):
        columns[name] = column(requests[name], requests[name] == 0)
    return table(columns)


def _cdf(m: MeasuredRequests) -> dict[str, list[float]]:
    waits = m.sampled(m.column("load_wait_s")[m.completed])
    curves = {f"{stage}_s": m.latency(stage).quantiles(_Q) for stage in ("ttft", "e2e", "queue")}
    if m.facts.fixed:
        curves["ttft_s"] = []
    return {"q": _Q, **curves, "load_wait_s": waits.quantiles(_Q)}


def _timeline(recording: Recording) -> Timeline:
    """Return means over equal spans of the first replication, from counts at eight instants in each."""
    r = recording.requests
    end = recording.stopped_s
    if end <= 0 or len(r["index"]) == 0:
        return Timeline()
    at = (np.arange(_SPANS * 8) + 0.5) * end / (_SPANS * 8)

    def passed(stamps: NDArray[Any]) -> Floats:
        return _passed(np.asarray(stamps, dtype=np.float64), at, end)

    def mean(counts: Floats) -> list[float | None]:
        found: list[float | None] = counts.reshape(_SPANS, 8).mean(axis=1).tolist()
        return found

    served = ~was_unserved(r["status"])  # the others never wait, or left at an unknown time
    arrived, admitted = passed(r["arrival_s"][served]), passed(r["admitted_s"][served])

    def per_second(times: NDArray[Any]) -> list[float | None]:
        counts, _ = np.histogram(np.asarray(times, dtype=np.float64), bins=_SPANS, range=(0, end))
        found: list[float | None] = (counts / (end / _SPANS)).tolist()
        return found

    replicas: dict[str, list[float | None]] = {}
    if len(recording.lives):
        provisioned, serving = replicas_over_time(recording, at)
        replicas = {"replicas": mean(provisioned), "serving_replicas": mean(serving)}
    loading = passed(recording.loads["started_s"]) - passed(recording.loads["ended_s"])
    return Timeline(
        t_s=((np.arange(_SPANS) + 0.5) * end / _SPANS).tolist(),
        running=mean(admitted - passed(r["finished_s"])),
        waiting=mean(arrived - admitted),
        loads_in_flight=mean(loading),
        arrivals_per_s=per_second(r["arrival_s"]),
        loads_per_s=per_second(recording.loads["started_s"]),
        **replicas,
        **timeline_latencies(r, end, _SPANS, event_cuts(recording, _SPANS)),
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


def _breakdown(m: MeasuredRequests) -> dict[str, float]:
    """Return the mean seconds of each stage, which add up to mean E2E.

    Admission and first token cut E2E into three. Load waits are taken out of that part in which they lie: of the
    first, unless loads happen inside steps. Host memory that fills at arrival fills before admission, wherever the
    loads to the GPU happen.
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
    stages = {
        **({"front_end_s": outside} if outside else {}),
        "loader_queue_s": load_queue,
        "load_s": load_wait - load_queue,
        "queue_s": before - outside - (load_wait - inside_step),
        "prefill_s": prefill - inside_step,
        "decode_s": after,
    }
    rounding = _ROUNDING * sum(stages.values())
    return {name: 0.0 if abs(seconds) < rounding else seconds for name, seconds in stages.items()}


def _capacity(m: MeasuredRequests, metrics: dict[str, Metric]) -> Capacity:
    facts, span = m.facts, float(m.spans.sum())
    blocked = np.sum([r.blocked_s.sum(axis=1) for r in m.recordings], axis=0)
    time = max(float(m.replica_seconds(1).sum()) if m.autoscaled else span * facts.replicas, 1e-12)
    own_time = time if m.autoscaled else max(span * facts.own_replicas, 1e-12)
    short_s = sum(r.room_short_s for r in m.recordings)
    full_models = seats = kv = None
    if facts.full_replicas:
        started, loading = m.loads("full models")
        full_models = FullModelUse(
            utilization=float(loading.sum()) / max(span * facts.full_replicas, 1e-12),
            loads=float(started.sum()) / m.replications,
            replicas=facts.full_replicas,
        )
    if not facts.fixed:
        seats = BatchSlotUse(float(blocked[BY_BATCH_SLOTS]) / time, facts.max_num_seqs)
        kv = KvUse(float(blocked[BY_KV]) / time, max(r.kv_peak_share for r in m.recordings), facts.kv_tokens)
    return Capacity(
        LoaderUse(
            metrics["loader_utilization"].value,
            _offered_to_loaders(m),
            facts.loader_places,
            facts.storage_blocks,
            facts.host_holds_all,
            _storage_share(m),
        ),
        SlotUse(
            blocked_share=min(1.0, (short_s + float(blocked[BY_ADAPTER_LIMIT])) / own_time),
            in_use_peak=max(r.in_use_peak for r in m.recordings),
            slots=facts.slots,
        ),
        ComputeUse(metrics["gpu_utilization"].value, _overload(m, behind_buckets=True)),
        full_models,
        _broken_shares(m),
        seats,
        kv,
        _bucket_uses(m),
    )


def _broken_shares(m: MeasuredRequests) -> dict[str, float]:
    """Return the share of the measured time, times that of the replicas, in which each kind of fault was there."""
    shares: dict[str, float] = {}
    span = max(float(m.spans.sum()), 1e-12)
    for fault in m.facts.broken:
        inside = sum(
            max(0.0, min(fault.to_s, float(r.bounds[-1])) - max(fault.from_s, float(r.bounds[0]))) for r in m.recordings
        )
        shares[fault.kind] = shares.get(fault.kind, 0.0) + inside * fault.share / span
    return shares


def _offered_to_loaders(m: MeasuredRequests) -> float | None:
    """Return loader-seconds asked for, over those there are: loads asked for times the mean time that one holds its
    loader. None in a closed loop, which asks for no more than its clients can wait for."""
    if m.facts.closed_loop is not None:
        return None
    loads, occupied_s = 0, 0.0
    for r in m.recordings:
        stored = _by_loaders(m, r.loads["tier"], r.loads["replica"])
        loads += int(stored.sum()) - int(r.backoffs[:, 2].sum())  # those after a pause belong to one load
        occupied_s += float((r.loads["ended_s"] - r.loads["started_s"])[stored].sum())
        occupied_s += float((r.backoffs[:, 1] - r.backoffs[:, 0]).sum())
    if loads <= 0:
        return 0.0
    places = m.facts.loader_places * float(m.spans.sum())
    if m.autoscaled:
        places = float(m.replica_seconds(m.facts.loaders).sum())
    # A full loader turns misses into delayed hits, since one load serves all that wait for it. Without its queue they
    # would be misses.
    full = occupied_s > _FULL * places
    outcome = m.column("outcome")
    of_loaders = _by_loaders(m, m.column("tier"), m.column("replica"))
    asked = of_loaders & ((outcome == MISS) | (full & (outcome == DELAYED_HIT)))
    return float(asked.sum() * occupied_s / loads / places) if places > 0 else None


def _storage_share(m: MeasuredRequests) -> float:
    """Return the share of the loaders' time in which loads from storage run."""
    places = m.replica_seconds(m.facts.loaders) if m.autoscaled else m.spans * m.facts.loader_places
    return float(m.loads("from storage")[1].sum()) / max(float(places.sum()), 1e-12)


def _by_loaders(m: MeasuredRequests, tier: NDArray[Any], replica: NDArray[Any]) -> NDArray[np.bool_]:
    """Return which loads of adapters are those of ``loader_utilization``: from storage, and copies that block steps
    like them."""
    counted = tier == FROM_STORAGE
    if m.facts.steps_load_all:
        counted = counted | ((tier == FROM_HOST) & m.facts.loads_in_steps(replica))
    return np.asarray(counted & (replica < m.facts.own_replicas))


def _bucket_uses(m: MeasuredRequests) -> tuple[BucketUse, ...]:
    """Return how the token buckets of tenants are used."""
    facts, found = m.facts, []
    if all(tenant.bucket_rate is None for tenant in facts.tenants):
        return ()
    assert facts.tenant_of is not None, "there are tenants"
    measured = joined_columns([r.section_of >= 0 for r in m.recordings])
    waits = np.concatenate([_sent_s(r) for r in m.recordings])[measured] - m.column("arrival_s")
    refused = (m.column("status") == REFUSED) & (m.column("marks") & LIMITED > 0)
    tokens = m.column("prompt_tokens").astype(np.float64) + m.column("output_tokens")
    for place, tenant in enumerate(facts.tenants):
        own = facts.tenant_of[m.column("adapter").astype(np.int64)] == place
        rate = tenant.bucket_rate
        if rate is None or not own.any():
            continue
        asked = float(tokens[own].sum() / m.spans.sum())
        grown = came = 0.0
        for r in m.recordings:
            mine = facts.tenant_of[r.requests["adapter"].astype(np.int64)] == place
            arrived = np.asarray(r.requests["arrival_s"][mine], dtype=np.float64)
            grown += _growth(arrived, _sent_s(r)[mine], r.bounds)
            came += np.count_nonzero((arrived > r.bounds[0]) & (arrived <= r.bounds[-1]))
        overloaded = not tenant.refuses and _is_backlog(grown, came, m.replications)
        found.append(
            BucketUse(
                tenant.name,
                rate,
                asked,
                float(((waits > 0) | refused)[own].mean()),
                int(refused[own].sum()),
                tenant.refuses,
                float(waits[own & m.completed].sum()) / max(1, int(m.completed.sum())),
                max(1.0, asked / rate) if overloaded else None,
            )
        )
    return tuple(found)


def _sent_s(r: Recording) -> Floats:
    """Return when each request was sent on to the fleet: at its arrival, or when its token bucket let it pass."""
    sent = np.array(r.requests["arrival_s"], dtype=np.float64)
    sent[r.held[:, 0].astype(np.int64)] = r.held[:, 1]
    return sent


def _growth(arrived: Floats, left: Floats, bounds: Floats) -> float:
    """Return by how many requests a queue grew over the measured time, if it grew in both of its halves.

    :param arrived, left: (n,) when each request came and when it left; not a number: it never left.
    """
    marks = np.linspace(bounds[0], bounds[-1], 3)
    queue = [float(np.count_nonzero(arrived <= t) - np.count_nonzero(left <= t)) for t in marks]
    return queue[2] - queue[0] if queue[2] > queue[1] > queue[0] else 0.0


def _is_backlog(grown: float, came: float, replications: int) -> bool:
    """Return whether a queue grew by more than chance may make it."""
    return grown > max(50 * replications, _BACKLOG * came)


def _overload(m: MeasuredRequests, *, behind_buckets: bool = False) -> float | None:
    """Return arrivals over completions where the queue grew over the whole measured time, 1 where few completions don't
    tell how much; None where it didn't, and in a closed loop, where it can't.

    :param behind_buckets: whether requests come when their token bucket lets them pass, as the replicas see it.
    """
    if m.facts.closed_loop is not None:
        return None
    grown = served = came = 0.0
    for r in m.recordings:
        taken_in = ~was_unserved(r.requests["status"])
        arrived, admitted, finished = (
            np.asarray(r.requests[name][taken_in], dtype=np.float64)
            for name in ("arrival_s", "admitted_s", "finished_s")
        )
        if behind_buckets and len(r.held):
            arrived = _sent_s(r)[taken_in]
        begin, end = r.bounds[0], r.bounds[-1]
        grown += _growth(arrived, np.where(admitted < 0, math.nan, admitted), r.bounds)
        served += float(np.count_nonzero((finished > begin) & (finished <= end)))
        came += float(np.count_nonzero((arrived > begin) & (arrived <= end)))
    if not _is_backlog(grown, came, m.replications):
        return None
    return 1.0 if served < _LEAST_SERVED else max(1.0, came / served)


def _traffic(m: MeasuredRequests) -> dict[str, float]:
    count = len(m.facts.size_bytes)
    span = float(m.spans.sum())
    return {
        "requests": float(len(m.section)),
        "adapters": float(count),
        **_load(m, span),
        **({"base_share": float(m.for_base.mean())} if m.for_base.any() else {}),
        **concentration(np.bincount(m.column("adapter")[~m.for_base], minlength=count)),
    }


def _load(m: MeasuredRequests, span_s: float) -> dict[str, float]:
    """Return the rate at which requests arrive, or how many clients send them."""
    if m.facts.closed_loop is not None:
        return {"clients": float(m.facts.closed_loop.concurrency)}
    return {"rate_rps": float(len(m.section)) / span_s if span_s > 0 else 0.0}


def _warnings(capacity: Capacity, impact: Impact, metrics: dict[str, Metric], refusals: str) -> Iterator[str]:
    """Yield sentences on overload, refused and failed requests."""
    loader, batch = capacity.loader.offered_load, capacity.compute.offered_load
    if loader is not None and loader >= 1:
        yield (
            f"overloaded: loads need {loader:.2f} times what the loaders can do; the queue grows without limit, and "
            "percentiles depend on how long the run is"
        )
    if batch is not None:
        more = f"{batch:.2f} times as many requests arrive as" if batch > 1 else "more requests arrive than"
        yield (
            f"overloaded: {more} are served; the queue grows without limit, and "
            "percentiles depend on how long the run is"
        )
    for bucket in capacity.buckets:
        if bucket.offered_load is not None:
            yield (
                f"overloaded: {bucket.tenant} asks for {bucket.offered_load:.2f} times the tokens that its bucket "
                "admits; the queue in front of it grows without limit, and percentiles depend on how long the run is"
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


def _start_warnings(m: MeasuredRequests) -> Iterator[str]:
    """Yield which ``run.warmup`` would leave out a start of the run that is still measured.

    Without replications a start can't be told from a long queue by chance.
    """
    if not m.facts.steady or m.replications < ENOUGH_REPLICATIONS:
        return
    missed = (m.column("outcome")[m.admitted_with_adapter] == MISS).astype(np.float64)
    series = {
        "latencies": m.latency("e2e"),
        "misses": m.sampled(missed, m.admitted_with_adapter),
    }
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
    """Return why requests failed, in words."""
    parts = (
        (impact.lost, "lost with their replica"),
        (impact.failed_loads, "their adapter could not be loaded"),
        (failed - impact.lost - impact.failed_loads, "no right answer to the last try"),
    )
    return ", ".join(f"{count:,} {why}" for count, why in parts if count > 0)
