"""What limits a point, and how much more traffic fits, in sentences."""

from __future__ import annotations

from collections.abc import Mapping

from reports.answers.bottleneck import (
    BATCH_SLOTS,
    BLOCKED_FOR_P99,
    KV_MEMORY,
    Evidence,
    Limit,
    blocked,
    is_broken,
    largest_stage,
    limits,
)
from reports.formatting import listed, metric_words, percent
from reports.text.metric_text import capital, unserved_words
from sim.results.model import BucketUse
from sim.results.point import Point
from sim.results.run_directory.study_records import (
    ALWAYS,
    BUCKETS,
    CLOSED_LOOP,
    NEVER,
    QUEUES,
    TOO_LONG,
    TOO_SHORT,
    Headroom,
)
from sim.results.slo_terms import judged, split_term
from sim.results.verdict import allowed, is_overloaded, lacks_answers, unserved
from sim.spec.units import human_seconds

OVERLOADED = "Overloaded: the queue grows without limit, and percentiles depend on how long the run is"
BROKEN = "With this fault more requests arrive than are served, so percentiles depend on how long the run is"
_FAULTS = {
    "crash": "replicas were down for {} of their time",
    "storage-stall": "storage stood still for {} of the time",
    "failing-loads": "loads from storage failed for {} of the time",
    "slow-storage": "storage was slow for {} of the time",
}
_FAILURES = {
    "failed_loads": ": their adapter could not be loaded. Allow more retries, or keep more adapters in memory.",
    "lost": ": they were lost with their replica. Send such requests to another replica (requests: reroute).",
    "wrong_detected": ": a wrong answer was noticed, and no retry was left. Allow more retries.",
    "": ".",
}
"""Why requests fail, and what to do, by the name in ``Impact``."""
_REFUSALS: Mapping[Evidence, str] = {
    Evidence.REPLACED: (
        " while their adapter was being replaced. Strategies other than unload-then-load refuse no requests."
    ),
    Evidence.TOO_LONG_FOR_MODEL: (
        ": the longest has {longest:,} tokens, and fleet.max_model_len allows {limit:,}. Raise it to {longest:,} to "
        "serve them all."
    ),
    Evidence.TOO_LONG_FOR_KV: (
        ": the longest has {longest:,} tokens, and the KV cache of a replica holds {limit:,}. Enlarge "
        "it: by fleet.kv_tokens where the scenario sets that, else by more or larger GPUs for each replica, fewer "
        "adapter slots, or smaller adapters."
    ),
    Evidence.REFUSED: ". The notes of this run list the possible reasons.",
}
_BLOCKED = {
    "slots": "every slot was in use by a running request while others waited",
    KV_MEMORY: "no KV block was free while requests waited",
    BATCH_SLOTS: "the batch was full while requests waited",
}
_STAGES = {
    "front_end_s": "the front end",
    "loader_queue_s": "waiting for a loader or a slot",
    "load_s": "loading adapters",
    "queue_s": "waiting for admission",
    "prefill_s": "prefill",
    "decode_s": "decode",
}
_BUSY: Mapping[Evidence, str] = {
    Evidence.COLD_STARTS: (
        "{busy} of the requests that arrive while a replica starts are late, and {otherwise} of the others. Keep more "
        "replicas (fleet.autoscale.min), scale up earlier, or shorten the cold start."
    ),
    Evidence.LOADING_MODELS: "Replicas of full models spend {busy} of their time loading whole models.",
    Evidence.LOADER_OVERLOADED: "Loads need {busy} of the loader's capacity, so its queue grows without limit.",
    Evidence.LOADS_BLOCK: (
        "The loader is busy {busy} of the time, and no step runs meanwhile. Sweep cache.host.slots (vLLM's "
        "max_cpu_loras) to see what more copies in host memory would give."
    ),
    Evidence.LOADS_BLOCK_ALL_IN_HOST: (
        "The loader is busy {busy} of the time, and no step runs meanwhile. Host memory already has room for every "
        "adapter."
    ),
    Evidence.COMPUTE_OVERLOADED: (
        "{value:.3g} times as many requests arrive as are served, so the queue grows without limit."
    ),
    Evidence.SERVER_BUSY: "The server is busy {busy} of the time.",
    Evidence.GPU_BUSY: "The GPU is busy {busy} of the time and {share} of the latency is queueing.",
}


def overload_words(point: Point) -> str:
    """Return what is to be said first where more arrives than is served; empty elsewhere."""
    return "" if not is_overloaded(point) else BROKEN if is_broken(point) else OVERLOADED


def limit_words(limit: Limit) -> str:
    """Return the name of a limit; of ``none`` what that means: a GPU may be busy all the time without a queue."""
    return "none: no request waits long" if limit.name == "none" else limit.name


def limit_sentence(limit: Limit, point: Point) -> str:
    """Return why this limits the point, with the numbers."""
    evidence, busy = limit.evidence, percent(limit.value)
    if evidence is Evidence.NOTHING:
        return _nothing(point)
    if evidence is Evidence.FAULT:
        return _faults(limit.faults)
    if evidence is Evidence.FAILED:
        return f"{capital(unserved_words(point))}{_FAILURES[limit.cause]}"
    if evidence in _REFUSALS and limit.unserved is not None:
        counts = limit.unserved
        why = _REFUSALS[evidence].format(longest=counts.longest_tokens, limit=counts.limit_tokens)
        return f"{capital(unserved_words(point))}{why}"
    if limit.bucket is not None:
        return _bucket(limit.bucket)
    if evidence is Evidence.BLOCKED:
        return f"During {busy} of the time {_BLOCKED[limit.name]}."
    if evidence is Evidence.COMPUTE_OVERLOADED and limit.value == 1:
        return "More requests arrive than are served, so the queue grows without limit."
    if evidence in (Evidence.LOADER_WAIT, Evidence.LOADER_BUSY):
        return _loader(limit)
    share = "" if limit.of_latency is None else percent(limit.of_latency)
    return _BUSY[evidence].format(busy=busy, value=limit.value, share=share, otherwise=percent(limit.otherwise))


def _faults(shares: Mapping[str, float]) -> str:
    said = " and ".join(
        _FAULTS[kind].format("all" if share > 0.9995 else percent(share)) for kind, share in shares.items()
    )
    return f"{capital(said)}, and requests waited for that."


def _bucket(bucket: BucketUse) -> str:
    start = f"The bucket of {bucket.tenant} admits {bucket.rate:,.0f}"
    share = percent(bucket.limited)
    if bucket.asked <= bucket.rate:  # on average; at times it lacks tokens
        return f"{start} tokens/s and {'refuses' if bucket.refuses else 'holds'} {share} of its requests."
    asked = f"{start} of {float(f'{bucket.asked:.3g}'):,.0f} tokens/s"
    if bucket.refuses:
        return f"{asked} and refuses {share} of its requests."
    return f"{asked}, so the queue in front of it grows without limit."


def _loader(limit: Limit) -> str:
    share = "" if limit.of_latency is None else f", {percent(limit.of_latency)} of the latency"
    queue = f"a request waits {human_seconds(limit.wait_s)} for it on average{share}"
    if limit.evidence is Evidence.LOADER_WAIT:
        return f"Waiting for the loader is the largest part of the latency: {queue}."
    return f"The loader is busy {percent(limit.value)} of the time; {queue}."


def _nothing(point: Point) -> str:
    stage = largest_stage(point)
    if stage is None:
        return "No request waits long."
    name, share = stage
    return f"No request waits long; {percent(share)} of the mean latency is {_STAGES[name]}."


def headroom_sentences(found: Headroom | None, *, missed_today: bool = False, cold: bool = False) -> str:
    """Return at what multiple of the traffic the SLO fails and what limits there; empty where none was searched.

    :param missed_today: whether the SLO is missed with today's traffic.
    :param cold: whether caches start empty, and that may decide today's verdict; those of the search start full.
    """
    if found is None:
        return ""
    if found.outcome == CLOSED_LOOP:
        return "A closed loop has headroom only against an SLO: its clients wait for their answers. Add an slo."
    if found.outcome == TOO_LONG:
        return f"Headroom: not searched. {_too_long(found)}"
    if found.outcome == TOO_SHORT:
        return (
            f"Headroom: not searched. The trace has {found.trace_requests:,} requests, too few to fill the batches; "
            f"headroom needs about {found.needed_requests:,}."
        )
    missed_today = missed_today and not fails_today(found)
    if missed_today and not found.without:
        return "Headroom: none. The SLO is missed with today's traffic."
    batches = found.failing is not None and found.failing.capacity.seats is not None
    load = (
        f"Today's traffic is {percent(found.load)} of what full batches could serve." if found.load and batches else ""
    )
    without = f"The search leaves out {listed(found.without)}." if found.without and not missed_today else ""
    full = "The search starts with full caches." if cold else ""
    multiple = _otherwise(found) if missed_today else _multiple(found)
    return " ".join(part for part in (multiple, _limit(found), load, without, full) if part)


def fails_today(found: Headroom) -> bool:
    """Return whether the search, too, finds that the SLO fails with today's traffic or less."""
    return found.outcome in (NEVER, *_NO_SEARCH) or (found.multiple is not None and found.multiple < 1)


_NO_SEARCH = (CLOSED_LOOP, TOO_LONG, TOO_SHORT)


def _too_long(found: Headroom) -> str:
    """Return why traffic that changes slowly can't be searched in short runs, and what answers instead."""
    assert found.period_s is not None, "it is too slow"
    return (
        f"The traffic takes {human_seconds(found.period_s)} to go through its phases, which is longer than this run or "
        "than a short run can be. Simulate whole periods, and let loraplan plan --maximize workload.arrivals.rate find "
        "the highest rate."
    )


def _otherwise(found: Headroom) -> str:
    """Return at what multiple the SLO fails without the parts that the search leaves out, where these make it fail."""
    left_out = [part for part in found.without if part != _SCALING]
    parts = [f"without {listed(left_out)}"] if left_out else []
    parts += ["with as many replicas all the time as the autoscaler may start"] if _SCALING in found.without else []
    start = f"Headroom: none. {capital(' and '.join(parts))}, the SLO would be met"
    if found.outcome == ALWAYS:
        assert found.lo is not None, "something was tried"
        return f"{start} up to {times_words(found.lo)} times the traffic, the most that was tried."
    assert found.multiple is not None, "it was found"
    return f"{start} up to about {times_words(found.multiple)} times the traffic."


_SCALING = "autoscaling"
"""What ``Headroom.without`` calls an autoscaler: the search runs all the replicas that it may start."""


def headroom_words(found: Headroom | None, *, missed_today: bool = False) -> str:
    """Return the headroom in a few words: ``1.5 times the traffic``; empty where there is no number.

    :param missed_today: as of ``headroom_sentences``.
    """
    if found is None or found.outcome in _NO_SEARCH:
        return ""
    if found.outcome == NEVER or (missed_today and not fails_today(found)):
        return "None"
    multiple = found.lo if found.outcome == ALWAYS else found.multiple
    assert multiple is not None, "it was found"
    start = "more than " if found.outcome == ALWAYS else "none: up to " if multiple < 1 else "up to "
    return capital(f"{start}{times_words(multiple)} times the traffic")


def times_words(multiple: float) -> str:
    """Return a multiple with the digits that a search to within a few percent has; one more near 1."""
    return f"{multiple:.2f}" if 0.9 <= multiple < 1.15 else f"{multiple:.2g}" if multiple < 10 else f"{multiple:,.0f}"


def _multiple(found: Headroom) -> str:
    if found.outcome == ALWAYS:
        assert found.lo is not None, "something was tried"
        longer = (
            f" With more, whole periods of {human_seconds(found.period_s)} are more requests than a short run can have."
            if found.period_s
            else ""
        )
        return f"The SLO is met up to {times_words(found.lo)} times the traffic, the most that was tried.{longer}"
    misses = _GROWS.get(found.term) or f"{metric_words(found.term)} misses its target"
    if found.outcome == NEVER:
        return f"The SLO is not met at any traffic: {misses} even with a fraction of it."
    assert found.multiple is not None, "it was found"
    times = times_words(found.multiple)
    if found.multiple < 1:
        return f"The SLO is met up to about {times} times the traffic. Beyond that, {misses}."
    return f"{capital(misses)} at about {times} times the traffic."


_GROWS = {
    QUEUES: "queues grow without limit",
    BUCKETS: "the queue in front of a token bucket grows without limit",
}


def _limit(found: Headroom) -> str:
    point = found.failing
    if point is None:
        return ""
    if split_term(found.term)[1] == "miss_ratio":
        return "What limits it there: the adapter cache. It holds too few of the requested adapters."
    if unserved := _unserved(point, found.term):
        return unserved
    limit = next((limit for limit in limits(point) if _concerns(limit, found.term)), Limit("none", Evidence.NOTHING))
    if limit.name == "none" and "p99" in (found.term or ""):
        limit = next(iter(blocked(point, BLOCKED_FOR_P99)), limit)
    why = limit_sentence(limit, point)
    if limit.name == "none":
        return f"No queue decides there: {_steps(point)}."
    return f"What limits it there: {limit.name}. {why}"


def _concerns(limit: Limit, term: str) -> bool:
    """Return whether a limit can be why a term fails: what a token bucket holds is its own tenant's."""
    if term == BUCKETS or limit.bucket is None:
        return (limit.bucket is None) == (term != BUCKETS)
    return term != QUEUES and split_term(term)[0] in ("", limit.bucket.tenant)


def _unserved(point: Point, term: str) -> str:
    """Return that a tenant's requests go unserved, where that decides; those of a whole fleet are one of its limits."""
    tenant, metric = split_term(term)
    target = next((each.slo.get(metric) for each in point.tenants if each.name == tenant), None)
    if target is None or not lacks_answers(point, term, target):
        return ""
    own, _ = judged(point, term)
    lost, _ = unserved(own)
    name = "refusals" if (own.metrics["refused"].value or 0.0) >= lost / 2 else "failures"
    said = capital(unserved_words(own, f"the requests of {tenant}"))
    share = percent(allowed(metric))
    return f"What limits it there: {name}. {said}, and a target for {metric_words(metric)} allows {share}."


def _steps(point: Point) -> str:
    """Return why requests are slow where none waits."""
    blocks = point.capacity.seats is not None
    return "steps take longer the larger the batch" if blocks else "the service itself takes as long"
