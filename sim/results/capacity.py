"""What could limit a point: how far each part of the fleet is used, and whether more is asked for than it can give."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sim.arrays import Floats
from sim.results.model import BatchSlotUse, BucketUse, Capacity, ComputeUse, FullModelUse, KvUse, LoaderUse, SlotUse
from sim.results.point import Metric
from sim.results.records import LIMITED, REFUSED, Recording
from sim.results.sample_data import MeasuredRequests, joined_columns
from sim.results.served import was_unserved
from sim.traffic.request import BY_ADAPTER_LIMIT, BY_BATCH_SLOTS, BY_KV, DELAYED_HIT, FROM_HOST, FROM_STORAGE, MISS

_FULL = 0.98
"""Loader utilization from which its queue may grow, and what is asked of it at most where it can't."""
_SHORT = 0.1
"""Share of a replication's time up to which the longest queue of a loader is filled long before the end."""
_BACKLOG = 0.02
"""Growth of the queue over the measured time, as a share of arrivals, from which more comes than is served."""
_LEAST_SERVED = 50
"""Completions of the measured time from which on they say how many times as much comes."""


def capacity_of(m: MeasuredRequests, metrics: Mapping[str, Metric]) -> Capacity:
    """Return what could limit a point.

    :param metrics: those of the point.
    """
    facts, span = m.facts, float(m.spans.sum())
    loaders = float((m.replica_seconds(facts.loaders) if m.autoscaled else m.spans * facts.loader_places).sum())
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
    links = [r.facts["kv_link_busy"] for r in m.recordings if "kv_link_busy" in r.facts]
    return Capacity(
        LoaderUse(
            metrics["loader_utilization"].value,
            _offered_to_loaders(m),
            facts.loader_places,
            facts.storage_blocks,
            facts.host_holds_all,
            float(m.loads("from storage")[1].sum()) / max(loaders, 1e-12),
        ),
        SlotUse(
            blocked_share=min(1.0, (short_s + float(blocked[BY_ADAPTER_LIMIT])) / own_time),
            in_use_peak=max(r.in_use_peak for r in m.recordings),
            slots=facts.slots,
        ),
        ComputeUse(metrics["gpu_utilization"].value, overload(m, behind_buckets=True)),
        full_models,
        _broken_shares(m),
        seats,
        kv,
        _bucket_uses(m),
        float(np.mean(links)) if links else None,
    )


def is_overloaded(m: MeasuredRequests) -> bool:
    """Return whether loaders, replicas or a token bucket are asked for more than they can give."""
    buckets = (each.offered_load for each in _bucket_uses(m))
    loads = (_offered_to_loaders(m), overload(m, behind_buckets=True), *buckets)
    return any(load is not None and load >= 1 for load in loads)


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
    if places <= 0:
        return None
    full = occupied_s > _FULL * places
    outcome = m.column("outcome")
    of_loaders = _by_loaders(m, m.column("tier"), m.column("replica"))
    # A full loader turns misses into delayed hits, since one load serves all that wait for it. Without its queue they
    # would be misses, unless that is as long as it gets: one load of each adapter.
    longest_s = len(np.unique(m.column("adapter")[of_loaders])) * occupied_s / loads * m.facts.own_replicas
    bounded = full and longest_s <= _SHORT * places / m.replications and overload(m, behind_buckets=True) is None
    asked = of_loaders & ((outcome == MISS) | (full & (not bounded) & (outcome == DELAYED_HIT)))
    offered = float(asked.sum() * occupied_s / loads / places)
    return min(offered, _FULL) if bounded else offered


def _by_loaders(m: MeasuredRequests, tier: NDArray[Any], replica: NDArray[Any]) -> NDArray[np.bool_]:
    """Return which loads of adapters are those of ``loader_utilization``: from storage, and copies that block steps
    like them."""
    counted = tier == FROM_STORAGE
    if m.facts.steps_load_all:
        counted = counted | ((tier == FROM_HOST) & m.facts.loads_in_steps(replica))
    return np.asarray(counted & (replica < m.facts.own_replicas))


def _bucket_uses(m: MeasuredRequests) -> tuple[BucketUse, ...]:
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
        taken = tokens[own].sum() if tenant.bucket_counts == "tokens" else np.count_nonzero(own)
        asked = float(taken / m.spans.sum())
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
                tenant.bucket_counts,
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


def overload(m: MeasuredRequests, *, behind_buckets: bool = False) -> float | None:
    """Return arrivals over completions where the queue grew over the whole measured time, 1 where few completions don't
    tell how much; None where it didn't, and in a closed loop, where it can't.

    :param behind_buckets: whether requests come when their token bucket lets them pass, as the replicas see it.
    """
    if m.facts.closed_loop is not None:
        return None
    grown = served = came = 0.0
    for r in m.recordings:
        taken_in = ~was_unserved(r.requests["status"])
        waits = "first_token_s" if len(r.hand_overs) else "admitted_s"  # for KV and for decode, behind its prefill
        arrived, admitted, finished = (
            np.asarray(r.requests[name][taken_in], dtype=np.float64) for name in ("arrival_s", waits, "finished_s")
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
