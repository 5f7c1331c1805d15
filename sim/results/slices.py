"""Parts of the traffic and the fleet: what the requests of a group of adapters, a pool or a replica got.

A row has values alone, without intervals. Tenants, which are judged by their own SLO, have all of ``TenantResult``.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sim.results.measured_usage import tokens_of
from sim.results.records import Recording
from sim.results.sample_data import STAMPS, MeasuredRequests, ScenarioFacts
from sim.results.statistics import MIN_FOR_REST, MIN_SECTION_P99, mean_of, quantile_of
from sim.traffic.request import MISS

Mask = NDArray[np.bool_]
Groups = list[tuple[str, Mask | None]]
"""Groups of requests by name, each with its adapters; None: the base model."""


def _values(
    m: MeasuredRequests,
    names: Sequence[str],
    inside: Mask | None,
    replicas: range = range(0),
    span_s: float = 0.0,
) -> dict[str, Any]:
    """Return what some of the measured requests got, by name.

    :param inside: which requests these are; None: those that went to ``replicas``.
    :param span_s: of which replicas are busy a part.
    """
    if inside is None:
        inside = np.asarray((m.column("replica") >= replicas.start) & (m.column("replica") < replicas.stop))
    done, admitted = m.completed & inside, m.admitted_with_adapter & inside
    busy_s, loads = 0.0, 0
    for r in m.recordings:
        busy_s += float(r.busy_by_replica[replicas.start : replicas.stop].sum())
        own = (r.loads["replica"] >= replicas.start) & (r.loads["replica"] < replicas.stop)
        loads += int((own & (r.loads["started_s"] >= r.bounds[0]) & (r.loads["started_s"] < r.bounds[-1])).sum())
    found: dict[str, Any] = {
        "requests": int(inside.sum()),
        "request_share": float(inside.mean()) if len(inside) else 0.0,
        "completed": int(done.sum()),
        "miss_ratio": float((m.column("outcome")[admitted] == MISS).mean()) if admitted.any() else None,
        "loads": loads,
        "gpu_utilization": busy_s / (span_s * len(replicas)) if span_s > 0 else None,
    }
    return {name: found[name] if name in found else _latency(m, done, name) for name in names}


def _latency(m: MeasuredRequests, done: Mask, name: str) -> float | None:
    """Return a latency of completed requests; None where the engine has none, or too few requests do."""
    stage, statistic, _ = name.split("_")
    seconds = m.column(STAMPS[stage])[done] - m.column("arrival_s")[done]
    if len(seconds) == 0 or (stage == "ttft" and m.facts.fixed):
        return None
    if statistic == "mean":
        return mean_of(seconds)
    share, least = (0.5, MIN_FOR_REST) if statistic == "p50" else (0.99, m.least_for_p99)
    return quantile_of(seconds, share) if len(seconds) >= least else None


_OF_POOLS = (
    *("requests", "request_share", "completed", "miss_ratio", "loads", "gpu_utilization"),
    *("ttft_mean_s", "ttft_p99_s", "e2e_mean_s", "e2e_p99_s"),
)
_OF_REPLICAS = ("requests", "completed", "miss_ratio", "loads", "gpu_utilization", "e2e_p99_s")
_OF_GROUPS = ("requests", "request_share", "miss_ratio", "ttft_p50_s", "ttft_p99_s", "e2e_p99_s")


def pool_rows(m: MeasuredRequests) -> list[dict[str, Any]]:
    """Return one row a pool of the measured requests and time of all replications; nothing without pools."""
    return [
        {
            "pool": pool.name,
            "replicas": pool.replicas,
            "gpus": pool.gpus,
            "device": pool.device,
            **_values(m, _OF_POOLS, None, range(pool.first, pool.first + pool.replicas), float(m.spans.sum())),
        }
        for pool in m.facts.pools
    ]


def replica_rows(recording: Recording, facts: ScenarioFacts) -> list[dict[str, Any]]:
    """Return one row a replica of what one replication measured; nothing for a single replica."""
    if facts.replicas == 1:
        return []
    m = MeasuredRequests([recording], facts, MIN_SECTION_P99)
    measured_s = float(recording.bounds[-1]) - float(recording.bounds[0])
    pool_of = [pool.name for pool in facts.pools for _ in range(pool.replicas)]
    rows = []
    for replica in range(facts.replicas):
        values = _values(m, _OF_REPLICAS, None, range(replica, replica + 1), measured_s)
        rows.append(
            {
                "replica": replica,
                **({"pool": pool_of[replica]} if pool_of else {}),
                **({"full": replica >= facts.own_replicas} if facts.full_replicas else {}),
                **{"busy_share" if name == "gpu_utilization" else name: value for name, value in values.items()},
            }
        )
    return rows


def group_rows(m: MeasuredRequests) -> tuple[list[dict[str, Any]], list[float]]:
    """Return one row a group of adapters, and which share of the tokens each has."""
    tokens = tokens_of(m)
    whole = float(tokens.sum())
    rows, shares = [], []
    for name, chosen in _groups(m):
        inside = m.for_base if chosen is None else np.asarray(~m.for_base & chosen[m.column("adapter")])
        sizes = np.empty(0) if chosen is None else m.facts.size_bytes[chosen]
        mean = float(sizes.mean()) if len(sizes) else 0.0
        rows.append({"group": name, "adapters": len(sizes), "adapter_bytes": mean, **_values(m, _OF_GROUPS, inside)})
        shares.append(float(tokens[inside].sum()) / whole if whole else 0.0)
    return rows, shares


def _groups(m: MeasuredRequests) -> Groups:
    """Return groups by name, each with its adapters (None: the base model): the base model and all adapters if both are
    asked for, kinds of adapters, and popularity as seen in the run."""
    facts = m.facts
    count = len(facts.size_bytes)
    found: Groups = []
    if m.for_base.any():
        found += [("base model", None), ("adapters", np.ones(count, dtype=np.bool_))]
    if len(facts.kind_names) > 1:
        found += [(name, facts.kind == i) for i, name in enumerate(facts.kind_names)]
    if count >= 10:
        asked = np.bincount(m.column("adapter")[~m.for_base], minlength=count)
        place = np.empty(count, dtype=np.int64)
        place[np.argsort(-asked, kind="stable")] = np.arange(count)
        top, next_ = max(1, round(count * 0.01)), max(2, round(count * 0.1))
        bands = (("hottest 1 %", 0, top), ("next 9 %", top, next_), ("other 90 %", next_, count))
        found += [(name, (place >= a) & (place < b)) for name, a, b in bands]
    return found
