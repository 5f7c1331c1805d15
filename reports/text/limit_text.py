"""What limits a point, in sentences."""

from __future__ import annotations

from collections.abc import Mapping

from reports.answers.bottleneck import (
    BATCH_SLOTS,
    KV_MEMORY,
    Evidence,
    Limit,
    is_broken,
    largest_stage,
)
from reports.formatting import percent
from reports.text.metric_text import capital, unserved_words
from sim.results.model import BucketUse
from sim.results.point import Point
from sim.results.verdict import is_overloaded
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
