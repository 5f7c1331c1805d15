"""What each pool of a fleet did: one row a pool, over all replications."""

from __future__ import annotations

from typing import Any

import numpy as np

from sim.results.sample_data import MeasuredRequests, PoolFacts
from sim.results.statistics import MIN_FOR_P99
from sim.traffic.request import MISS


def pool_rows(m: MeasuredRequests) -> list[dict[str, Any]]:
    """Return one row a pool of the measured requests and time of all replications; nothing without pools."""
    if not m.facts.pools:
        return []
    replica = m.column("replica")
    return [_row(m, pool, (replica >= pool.first) & (replica < pool.first + pool.replicas)) for pool in m.facts.pools]


def _row(m: MeasuredRequests, pool: PoolFacts, here: np.ndarray[tuple[int], np.dtype[np.bool_]]) -> dict[str, Any]:
    done, admitted = m.completed & here, m.admitted_with_adapter & here
    arrived = m.column("arrival_s")[done]
    ttft, e2e = (m.column(stamp)[done] - arrived for stamp in ("first_token_s", "finished_s"))
    span, busy_s, loads = float(m.spans.sum()), 0.0, 0
    for r in m.recordings:
        busy_s += float(r.busy_by_replica[pool.first : pool.first + pool.replicas].sum())
        inside = (r.loads["replica"] >= pool.first) & (r.loads["replica"] < pool.first + pool.replicas)
        measured = (r.loads["started_s"] >= r.bounds[0]) & (r.loads["started_s"] < r.bounds[-1])
        loads += int((inside & measured).sum())
    enough, some = len(e2e) >= MIN_FOR_P99, len(e2e) > 0
    return {
        "pool": pool.name,
        "replicas": pool.replicas,
        "gpus": pool.gpus,
        "device": pool.device,
        "requests": int(here.sum()),
        "request_share": float(here.mean()) if len(here) else 0.0,
        "completed": int(done.sum()),
        "miss_ratio": float((m.column("outcome")[admitted] == MISS).mean()) if admitted.any() else None,
        "loads": loads,
        "gpu_utilization": busy_s / (span * pool.replicas) if span > 0 else None,
        "ttft_mean_s": float(ttft.mean()) if some and not m.facts.fixed else None,
        "ttft_p99_s": float(np.quantile(ttft, 0.99)) if enough and not m.facts.fixed else None,
        "e2e_mean_s": float(e2e.mean()) if some else None,
        "e2e_p99_s": float(np.quantile(e2e, 0.99)) if enough else None,
    }
