"""What a point holds beside its metrics: docs/metrics.md, "What else a point holds".

Plain loops; see ``naive_metrics``.
"""

from __future__ import annotations

import math

from naive_metrics import all_seconds, count_mark, count_status, e2e_mean_s, queue_mean_s
from naive_parts import (
    MIN_REQUESTS_P99,
    Facts,
    Part,
    Replication,
    Request,
    completed,
    e2e_s,
    has_targets,
    is_in,
    is_late,
    mean,
    overlap_s,
    quantile,
    ratio,
    ttft_s,
)

FULL_LOADERS = 0.98
BACKLOG_EACH = 50
BACKLOG_SHARE = 0.02
LEAST_SERVED = 50
QUARTERS = 4
MIN_REQUESTS_P99_REPLICA = 100
MIN_REQUESTS_RATIO, MIN_REQUESTS_RATIO_REPLICA = 100, 10
COUNTED_MARKS = {
    "mixed": "mixed",
    "stale": "stale",
    "refused_by_rollout": "gated",
    "wrong_served": "wrong-served",
    "wrong_detected": "wrong-detected",
    "retried": "retried",
    "lost": "lost",
    "failed_loads": "load-failed",
    "rerouted": "rerouted",
    "old_prefix": "old-prefix",
}


def loader_seconds(replications: list[Replication], facts: Facts) -> float:
    """Seconds for which loads hold the loaders, pauses included, in the whole run."""
    held_s = []
    for replication in replications:
        for load in replication.loads:
            if facts.occupies_loaders(load.tier) and not load.whole_model:
                held_s.append(load.end_s - load.start_s)
        for pause in replication.pauses:
            held_s.append(pause.end_s - pause.start_s)
    return math.fsum(held_s)


def loaders_are_full(replications: list[Replication], parts: list[Part]) -> bool:
    """Whether their seconds are more than 98 % of measured time × loaders × replicas."""
    facts = parts[0].facts
    return loader_seconds(replications, facts) > FULL_LOADERS * all_seconds(parts) * facts.loaders * facts.base_replicas


def offered_to_loaders(replications: list[Replication], parts: list[Part]) -> float | None:
    """Loads that measured requests ask storage for, times the mean time that a load holds its loader, over the time.

    Delayed hits ask for none, unless the loaders are full: then they would be misses if there were no queue. If a load
    of each adapter, one after the other, takes up to a tenth of the time, and requests don't pile up, that is the
    longest queue, and full loaders are asked for 98 % at most.
    """
    facts = parts[0].facts
    loads = 0
    for replication in replications:
        loads += len([load for load in replication.loads if facts.occupies_loaders(load.tier) and not load.whole_model])
        loads -= replication.retries
    if loads <= 0:
        return 0.0
    full = loaders_are_full(replications, parts)
    wanted = [request for part in parts for request in part.measured if facts.occupies_loaders(request.tier)]
    adapters = {request.adapter for request in wanted if request.replica < facts.base_replicas}
    longest_s = len(adapters) * loader_seconds(replications, facts) / loads / facts.loaders
    bounded = longest_s <= 0.1 * all_seconds(parts) / len(parts) and overload(replications, parts) is None
    asked = 0
    for part in parts:
        for request in part.measured:
            if facts.occupies_loaders(request.tier) and request.replica < facts.base_replicas:
                if request.outcome == "miss" or (full and not bounded and request.outcome == "delayed_hit"):
                    asked += 1
    there_s = all_seconds(parts) * facts.loaders * facts.base_replicas
    offered = ratio(asked * loader_seconds(replications, facts) / loads, there_s)
    return min(offered, FULL_LOADERS) if full and bounded and offered is not None else offered


def queue_length(requests: list[Request], time_s: float) -> int:
    """Requests that have arrived by a time and were not admitted by then."""
    waiting = 0
    for request in requests:
        if request.arrival_s <= time_s:
            waiting += 1
        if request.admitted_s is not None and request.admitted_s <= time_s:
            waiting -= 1
    return waiting


def overload(replications: list[Replication], parts: list[Part]) -> float | None:
    """Arrivals over completions where the queue grew over both halves of the measured time; None where it didn't.

    It is 1 where few completions don't tell how much.
    """
    grown = served = came = 0
    for replication, part in zip(replications, parts, strict=True):
        taken_in = [request for request in replication.requests if request.status not in ("refused", "failed")]
        middle_s = part.begin_s + (part.end_s - part.begin_s) * 2 / QUARTERS
        first, middle, last = (queue_length(taken_in, time_s) for time_s in (part.begin_s, middle_s, part.end_s))
        if last > middle > first:
            grown += last - first
        for request in taken_in:
            if request.finished_s is not None and part.begin_s < request.finished_s <= part.end_s:
                served += 1
            if part.begin_s < request.arrival_s <= part.end_s:
                came += 1
    if grown > max(BACKLOG_EACH * len(parts), BACKLOG_SHARE * came):
        return 1.0 if served < LEAST_SERVED else max(1.0, came / served)
    return None


def blocked_share(parts: list[Part], reason: str, replicas: int) -> float:
    """Seconds of the first replicas in which a step ran while requests waited for something, over their time."""
    blocked_s = []
    for part in parts:
        for step in part.steps:
            if step.waiting_for == reason and step.replica < replicas:
                blocked_s.append(overlap_s(step.start_s, step.end_s, part.begin_s, part.end_s))
    return math.fsum(blocked_s) / max(all_seconds(parts) * replicas, 1e-12)


def slots_blocked_share(replications: list[Replication], parts: list[Part]) -> float:
    """As ``blocked_share``, and the time in which the first load in a queue found no room; at most 1."""
    short_s = []
    for replication, part in zip(replications, parts, strict=True):
        for short in replication.short_of_room:
            short_s.append(overlap_s(short.start_s, short.end_s, part.begin_s, part.end_s))
    replicas = parts[0].facts.base_replicas
    queued = math.fsum(short_s) / max(all_seconds(parts) * replicas, 1e-12)
    return min(1.0, queued + blocked_share(parts, "slots", replicas))


def full_models_utilization(parts: list[Part]) -> float:
    facts = parts[0].facts
    busy_s = []
    for part in parts:
        for load in part.loads:
            if load.whole_model:
                busy_s.append(overlap_s(load.start_s, load.end_s, part.begin_s, part.end_s))
    return math.fsum(busy_s) / max(all_seconds(parts) * (facts.all_replicas - facts.base_replicas), 1e-12)


def broken_shares(parts: list[Part]) -> dict[str, float]:
    """Share of the measured time, times that of the replicas, in which each kind of fault was there."""
    shares: dict[str, float] = {}
    for fault in parts[0].facts.broken:
        there_s = [overlap_s(fault.begin_s, fault.end_s, part.begin_s, part.end_s) for part in parts]
        share = math.fsum(there_s) / max(all_seconds(parts), 1e-12)
        shares[fault.kind] = shares.get(fault.kind, 0.0) + share * fault.share
    return shares


def breakdown(parts: list[Part]) -> dict[str, float]:
    """Mean seconds of each stage that rows alone can tell; ``queue_and_prefill_s`` is what is left of mean E2E."""
    facts = parts[0].facts
    done = completed(parts)
    if not done:
        return {}
    decode = []
    for request in done:
        decode.append(request.finished_s - (request.admitted_s if facts.fixed_engine else request.first_token_s))
    waits_s = mean([request.load_wait_s for request in done])
    queues_s = mean([request.load_queue_s for request in done])
    return {
        "loader_queue_s": queues_s,
        "load_s": waits_s - queues_s,
        "decode_s": mean(decode),
        "queue_and_prefill_s": e2e_mean_s(parts) - waits_s - mean(decode),
        "until_admission_s": queue_mean_s(parts),
    }


def miss_ratio(let_in: list[Request], least: int) -> float | None:
    """The share of requests that had to start a load; none where too few say it."""
    missed = [request for request in let_in if request.outcome == "miss"]
    return ratio(len(missed), len(let_in)) if len(let_in) >= least else None


def replica_rows(replication: Replication, part: Part) -> list[dict[str, float | None]]:
    """One row a replica, of the measured requests and time of one replication."""
    rows = []
    for replica in range(part.facts.all_replicas):
        here = [request for request in part.measured if request.replica == replica]
        let_in = [request for request in here if request.admitted_s is not None and request.adapter is not None]
        done = [request for request in here if request.status == "completed"]
        loads = [load for load in part.loads if load.replica == replica]
        busy_s = [
            overlap_s(step.start_s, step.end_s, part.begin_s, part.end_s)
            for step in part.steps
            if step.replica == replica
        ]
        enough = len(done) >= MIN_REQUESTS_P99_REPLICA
        rows.append(
            {
                "requests": len(here),
                "completed": len(done),
                "miss_ratio": miss_ratio(let_in, MIN_REQUESTS_RATIO_REPLICA),
                "loads": len([load for load in loads if is_in(load.start_s, part.begin_s, part.end_s)]),
                "gpu_utilization": ratio(math.fsum(busy_s), part.seconds),
                "e2e_p99_s": quantile([e2e_s(request) for request in done], 0.99) if enough else None,
            }
        )
    return rows


def group_row(parts: list[Part], adapters: list[int] | None, adapter_bytes: list[float]) -> dict[str, float | None]:
    """A row of the table of groups: what was measured of some adapters; None: of the base model."""
    measured = [request for part in parts for request in part.measured]
    chosen: list[int | None] = [None] if adapters is None else [*adapters]
    return {
        "adapters": len(adapters or []),
        "adapter_bytes": mean([adapter_bytes[adapter] for adapter in adapters or []]) or 0.0,
        **requests_row(parts, [request for request in measured if request.adapter in chosen]),
    }


def requests_row(parts: list[Part], asked: list[Request]) -> dict[str, float | None]:
    """What was measured of some requests, as tables of slices have it."""
    measured = [request for part in parts for request in part.measured]
    let_in = [request for request in asked if request.admitted_s is not None and request.adapter is not None]
    done = [request for request in asked if request.status == "completed"]
    enough = len(done) >= MIN_REQUESTS_P99
    ttft = [ttft_s(request) for request in done]
    return {
        "requests": len(asked),
        "request_share": len(asked) / len(measured) if measured else 0.0,
        "miss_ratio": miss_ratio(let_in, MIN_REQUESTS_RATIO),
        "ttft_p50_s": quantile(ttft, 0.5) if len(done) >= 20 and not parts[0].facts.fixed_engine else None,
        "ttft_p99_s": quantile(ttft, 0.99) if enough and not parts[0].facts.fixed_engine else None,
        "e2e_p99_s": quantile([e2e_s(request) for request in done], 0.99) if enough else None,
    }


def popularity_bands(parts: list[Part], adapters: int) -> list[list[int]]:
    """The hottest 1 %, the next 9 % and the other adapters, by measured requests; of equals the lower number first."""
    counts = [0] * adapters
    for part in parts:
        for request in part.measured:
            if request.adapter is not None:
                counts[request.adapter] += 1
    ranking = sorted(range(adapters), key=lambda adapter: (-counts[adapter], adapter))
    hottest, warm = max(1, round(0.01 * adapters)), max(2, round(0.1 * adapters))
    return [ranking[:hottest], ranking[hottest:warm], ranking[warm:]]


def harm_counts(parts: list[Part]) -> dict[str, int]:
    """Measured requests by what befell them."""
    facts = parts[0].facts
    measured = [request for part in parts for request in part.measured]
    counts = {name: count_mark(parts, mark) for name, mark in COUNTED_MARKS.items()}
    counts["requests"], counts["replications"] = len(measured), len(parts)
    counts["failed"] = count_status(parts, "failed")
    counts["unanswered"] = count_status(parts, "unfinished")
    if has_targets(facts):
        counts["slow"] = len([request for request in measured if is_late(request, facts)])
    return counts
