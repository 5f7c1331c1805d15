"""Every metric of docs/metrics.md a second time, in plain loops.

Written from the documents alone (docs/metrics.md, run-directory.md, statistics.md, rollouts.md, faults.md,
full-models.md), so that it can be checked against them line by line. It knows nothing of ``sim.results`` and must
stay that way: no vectors, no shared helpers, no shortcuts.

It counts from the rows of ``naive_parts.Replication``: those of ``requests.parquet``, and one row for each load, each
step and each gap between two tokens. ``naive_intervals`` has the values by section and the intervals,
``naive_capacity`` what a point holds beside its metrics.
"""

from __future__ import annotations

import math
from dataclasses import replace

from naive_parts import (
    Facts,
    Part,
    Request,
    admitted,
    completed,
    e2e_s,
    is_in,
    is_late,
    mean,
    overlap_s,
    quantile,
    queue_s,
    ratio,
    tpot_s,
    ttft_s,
)


def miss_ratio(parts: list[Part]) -> float | None:
    return share_of_outcome(parts, "miss")


def delayed_hit_ratio(parts: list[Part]) -> float | None:
    return share_of_outcome(parts, "delayed_hit")


def hit_ratio(parts: list[Part]) -> float | None:
    return share_of_outcome(parts, "hit")


def share_of_outcome(parts: list[Part], outcome: str) -> float | None:
    those = [request for request in admitted(parts) if request.outcome == outcome]
    return ratio(len(those), len(admitted(parts)))


def byte_miss_ratio(parts: list[Part]) -> float | None:
    missed_bytes = math.fsum(request.adapter_bytes for request in admitted(parts) if request.outcome == "miss")
    return ratio(missed_bytes, math.fsum(request.adapter_bytes for request in admitted(parts)))


def loads_per_request(parts: list[Part]) -> float | None:
    begun = 0
    for part in parts:
        for load in part.loads:
            if is_in(load.start_s, part.begin_s, part.end_s):
                begun += 1
    return ratio(begun, len(admitted(parts)))


def loading_s(parts: list[Part]) -> tuple[float, float]:
    """Seconds of loads of adapters from storage, with their pauses, and of copies from host memory that block steps."""
    stored_s = []
    copied_s = []
    for part in parts:
        for load in part.loads:
            if load.tier == "storage" and not load.whole_model:
                stored_s.append(overlap_s(load.start_s, load.end_s, part.begin_s, part.end_s))
            if load.tier == "host" and not load.whole_model and part.facts.blocking:
                copied_s.append(overlap_s(load.start_s, load.end_s, part.begin_s, part.end_s))
        for pause in part.pauses:
            stored_s.append(overlap_s(pause.start_s, pause.end_s, part.begin_s, part.end_s))
    return math.fsum(stored_s), math.fsum(copied_s)


def loader_utilization(parts: list[Part]) -> float | None:
    facts = parts[0].facts
    stored, copied = loading_s(parts)
    busy_s = stored + copied
    if facts.fetched_at_arrival:  # loaders and steps load side by side
        busy_s = copied if facts.mostly_copies else stored
    return ratio(busy_s, math.fsum(part.seconds * facts.loaders * facts.base_replicas for part in parts))


def gpu_utilization(parts: list[Part]) -> float | None:
    busy_s = []
    there_s = []
    for part in parts:
        there_s.append(part.seconds * part.facts.all_replicas)
        for step in part.steps:
            busy_s.append(overlap_s(step.start_s, step.end_s, part.begin_s, part.end_s))
    return ratio(math.fsum(busy_s), math.fsum(there_s))


def queue_mean_s(parts: list[Part]) -> float | None:
    return mean([queue_s(request) for request in completed(parts)])


def queue_p50_s(parts: list[Part]) -> float | None:
    return quantile([queue_s(request) for request in completed(parts)], 0.5)


def queue_p99_s(parts: list[Part]) -> float | None:
    return quantile([queue_s(request) for request in completed(parts)], 0.99)


def load_wait_mean_s(parts: list[Part]) -> float | None:
    return mean([request.load_wait_s for request in completed(parts)])


def ttft_mean_s(parts: list[Part]) -> float | None:
    return mean([ttft_s(request) for request in completed(parts)])


def ttft_p50_s(parts: list[Part]) -> float | None:
    return quantile([ttft_s(request) for request in completed(parts)], 0.5)


def ttft_p99_s(parts: list[Part]) -> float | None:
    return quantile([ttft_s(request) for request in completed(parts)], 0.99)


def tpots(parts: list[Part]) -> list[float]:
    return [tpot_s(request) for request in completed(parts) if tpot_s(request) is not None]


def tpot_mean_s(parts: list[Part]) -> float | None:
    return mean(tpots(parts))


def gaps(parts: list[Part]) -> list[float]:
    return [gap.gap_s for part in parts for gap in part.gaps]


def itl_mean_s(parts: list[Part]) -> float | None:
    return mean(gaps(parts))


def itl_p99_s(parts: list[Part]) -> float | None:
    """The gap that 99 % of the gaps don't exceed; the metric is the upper edge of its bin, up to 0.1 % more."""
    ordered = sorted(gaps(parts))
    if not ordered:
        return None
    return ordered[math.ceil(0.99 * len(ordered)) - 1]


def e2e_mean_s(parts: list[Part]) -> float | None:
    return mean([e2e_s(request) for request in completed(parts)])


def e2e_p50_s(parts: list[Part]) -> float | None:
    return quantile([e2e_s(request) for request in completed(parts)], 0.5)


def e2e_p99_s(parts: list[Part]) -> float | None:
    return quantile([e2e_s(request) for request in completed(parts)], 0.99)


def all_seconds(parts: list[Part]) -> float:
    return math.fsum(part.seconds for part in parts)


def throughput_rps(parts: list[Part]) -> float | None:
    return ratio(sum(len(part.ended) for part in parts), all_seconds(parts))


def output_tokens_per_s(parts: list[Part]) -> float | None:
    tokens = 0
    for part in parts:
        for request in part.ended:
            tokens += request.output_tokens
    return ratio(tokens, all_seconds(parts))


def goodput_rps(parts: list[Part]) -> float | None:
    good = 0
    for part in parts:
        for request in part.ended:
            if request.index in part.measured_indices and not is_late(request, part.facts):
                good += 1
    return ratio(good, all_seconds(parts))


def slo_attainment(parts: list[Part]) -> float | None:
    good = 0
    judged = 0
    for part in parts:
        for request in part.measured:
            late = is_late(request, part.facts)
            if request.status == "completed" and not late:
                good += 1
            if request.status in ("completed", "refused", "failed") or late:
                judged += 1
    return ratio(good, judged)


def count_status(parts: list[Part], status: str) -> int:
    return len([request for part in parts for request in part.measured if request.status == status])


def count_mark(parts: list[Part], mark: str) -> int:
    return len([request for part in parts for request in part.measured if mark in request.marks])


def preemptions(parts: list[Part]) -> int:
    return sum(request.preemptions for part in parts for request in part.measured)


def replica_load_skew(parts: list[Part]) -> float | None:
    """Requests of each replication's busiest replica over the mean per replica of the base model."""
    of_busiest = 0
    means = []
    for part in parts:
        own = [request for request in part.measured if 0 <= request.replica < part.facts.base_replicas]
        of_busiest += len([request for request in own if request.replica == part.busiest_replica])
        means.append(len(own) / part.facts.base_replicas)
    return ratio(of_busiest, math.fsum(means))


HARMS = ("mixed", "stale", "wrong-served", "old-prefix", "gated")


def is_harmed(request: Request, facts: Facts) -> bool:
    for harm in HARMS:
        if harm in request.marks:
            return True
    return request.status == "failed" or is_late(request, facts)


def harmed(parts: list[Part]) -> int:
    return len([request for part in parts for request in part.measured if is_harmed(request, part.facts)])


def versions_of_sessions(part: Part) -> dict[tuple[int, int], list[Request]]:
    """The completed requests of each session for each adapter, in order of arrival."""
    answers: dict[tuple[int, int], list[Request]] = {}
    for request in part.measured:
        if request.status != "completed" or request.session is None or not request.version:
            continue
        answers.setdefault((request.session, request.adapter), []).append(request)
    return answers


def sessions_saw_both(parts: list[Part]) -> int:
    sessions_with_both = 0
    for part in parts:
        for answers in versions_of_sessions(part).values():
            seen = set()
            for request in answers:
                seen.add(request.version)
                seen.add(request.last_version)
            if len(seen) > 1:
                sessions_with_both += 1
    return sessions_with_both


def sessions_went_back(parts: list[Part]) -> int:
    went_back = 0
    for part in parts:
        for answers in versions_of_sessions(part).values():
            newest = 0
            back = False
            for request in answers:
                if request.version < newest:
                    back = True
                newest = max(newest, request.last_version)
            if back:
                went_back += 1
    return went_back


def window_during(facts: Facts) -> tuple[float, float]:
    """From the first rollout to the end of the last observation."""
    ends = [math.inf if end_s is None else end_s for end_s in facts.rollout_ends]
    return min(facts.rollout_begins), max(ends)


def only_arrived(part: Part, begin_s: float, end_s: float) -> Part:
    """The part with the requests that arrived in a window alone."""
    mine = [request for request in part.measured if begin_s <= request.arrival_s < end_s]
    return replace(part, measured=mine)


def arrived_during(parts: list[Part]) -> list[Part]:
    return [only_arrived(part, *window_during(part.facts)) for part in parts]


def arrived_before(parts: list[Part]) -> list[Part]:
    return [only_arrived(part, -math.inf, min(part.facts.rollout_begins)) for part in parts]


def span_during(part: Part) -> tuple[float, float]:
    """The part of the window that lies in the measured time."""
    begin_s, end_s = window_during(part.facts)
    begin_s = max(begin_s, part.begin_s)
    return begin_s, max(begin_s, min(end_s, part.end_s))


def span_before(part: Part) -> tuple[float, float]:
    """The measured time before the first rollout."""
    return part.begin_s, max(part.begin_s, min(min(part.facts.rollout_begins), part.end_s))


def loads_begun(part: Part, span: tuple[float, float]) -> list[float]:
    return sorted(load.start_s for load in part.loads if is_in(load.start_s, *span))


def rollout_loads(parts: list[Part]) -> int:
    return sum(len(loads_begun(part, span_during(part))) for part in parts)


def peak_loads_per_s(part: Part, span: tuple[float, float]) -> float | None:
    """The highest number of loads that begin within any 10 s of a span, or in all of a shorter one, per second."""
    begins = loads_begun(part, span)
    window_s = min(10.0, span[1] - span[0])
    if window_s <= 0:
        return None
    most = 0
    for first in range(len(begins)):
        within = 0
        for other in begins[first:]:
            if other < begins[first] + window_s:
                within += 1
        most = max(most, within)
    return most / window_s


def rollout_peak_loads_per_s(part: Part) -> float | None:
    return peak_loads_per_s(part, span_during(part))


def before_peak_loads_per_s(part: Part) -> float | None:
    return peak_loads_per_s(part, span_before(part))


def rerouted_e2e_mean_s(parts: list[Part]) -> float | None:
    return mean([e2e_s(request) for request in completed(parts) if "rerouted" in request.marks])
