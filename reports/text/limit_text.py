"""What limits a point, in sentences, and what to change there."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence

from reports.answers.limits import (
    BATCH_SLOTS,
    KV_LINK,
    KV_MEMORY,
    Evidence,
    Limit,
    busy_buckets,
    is_broken,
    largest_stage,
    limits,
    loads_explain,
    pools_of,
    queue_decides,
    short_role,
    slowest_pool,
)
from reports.formatting import listed, percent
from reports.text.metric_text import capital, unserved_words
from sim.results.model import BucketUse
from sim.results.point import Point, SliceResult
from sim.results.verdict import is_overloaded
from sim.spec.engines import ENGINES, Engine
from sim.spec.files.tree import value_at
from sim.spec.units import human_seconds

_NAMED = 3
"""How many token buckets a sentence names, at most."""
OVERLOADED = "Overloaded: the queue grew from start to end, and percentiles depend on how long the run is"
BROKEN = "With this fault more requests arrive than are served, so percentiles depend on how long the run is"
_FAULT_WORDS = {
    "crash": "replicas were down for {} of their time",
    "storage-stall": "storage stood still for {} of the time",
    "failing-loads": "loads from storage failed for {} of the time",
    "slow-storage": "storage was slow for {} of the time",
}
_FAILURE_WORDS = {
    "failed_loads": ": their adapter could not be loaded. Allow more retries, or keep more adapters in memory.",
    "lost": ": they were lost with their replica. Send such requests to another replica (requests: reroute).",
    "wrong_detected": ": a wrong answer was noticed, and no retry was left. Allow more retries.",
    "unread": ": the KV of their prompt could not be read. Let decode replicas compute it (policy: recompute).",
    "": ".",
}
"""Why requests fail, and what to do, by the name in ``Impact``."""
_REFUSAL_WORDS: Mapping[Evidence, str] = {
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
    KV_LINK: "that link was busy",
}
_STAGES = {
    "front_end_s": "the front end",
    "loader_queue_s": "waiting for a loader or a slot",
    "load_s": "loading adapters",
    "queue_s": "waiting for admission",
    "prefill_s": "prefill",
    "hand_over_s": "waiting for a decode replica",
    "read_s": "reading KV",
    "decode_queue_s": "waiting for the batch of a decode replica",
    "decode_load_s": "loading adapters on decode replicas",
    "decode_s": "spent generating tokens",
}
_WAITS = ("loader_queue_s", "queue_s", "hand_over_s", "decode_queue_s")
_BUSY: Mapping[Evidence, str] = {
    Evidence.COLD_STARTS: (
        "{busy} of the requests that arrive while a replica starts are late, and {otherwise} of the others. Keep more "
        "replicas (fleet.autoscale.min and fleet.replicas), scale up earlier, or shorten the cold start."
    ),
    Evidence.LOADING_MODELS: "Replicas of full models spend {busy} of their time loading whole models.",
    Evidence.LOADER_OVERLOADED: "Loads need {busy} of the loader's capacity, so its queue grows without limit.",
    Evidence.LOADS_BLOCK: (
        "Loads from storage take {busy} of the time, and no step runs meanwhile. Sweep cache.host.slots (vLLM's "
        "max_cpu_loras) to see what more copies in host memory would give."
    ),
    Evidence.LOADS_BLOCK_ALL_IN_HOST: (
        "Loads from storage take {busy} of the time, and no step runs meanwhile. Host memory already has room for "
        "every adapter."
    ),
    Evidence.LOADS_LAST: "{busy} of requests wait for their adapter to load, {wait} on average.",
    Evidence.LONG_STEPS: "Steps that compute prompts take long, and all running sequences wait for them.",
    Evidence.LONG_READS: "Reading the KV of a prompt, with the wait for it, takes {share} of the mean TTFT: {wait}.",
    Evidence.UNEVEN: "The busiest replica gets {value:.2g} times as many requests as replicas do on average.",
    Evidence.COMPUTE_OVERLOADED: (
        "{value:.3g} times as many requests arrived as were served, and the queue grew from start to end."
    ),
    Evidence.SERVER_BUSY: "The server is busy {busy} of the time.",
    Evidence.QUEUE: "{share} of the mean latency is queueing, though replicas are busy only {busy} of the time.",
    Evidence.GPU_BUSY: "The GPU is busy {busy} of the time and {share} of the latency is queueing.",
}


def overload_words(point: Point) -> str:
    """Return what is to be said first where more arrives than is served; empty elsewhere."""
    return "" if not is_overloaded(point) else BROKEN if is_broken(point) else OVERLOADED


def limit_words(limit: Limit, none: str = "none: few requests wait long") -> str:
    """Return the name of a limit; of ``none`` what that means: a GPU may be busy all the time without a queue."""
    return {"none": none, "slots": "adapter slots"}.get(limit.name, limit.name)


def limit_line(point: Point, missed: Sequence[str] = (), where: str = "", *, searched: bool = True) -> str:
    """Return what limits a point, and why, in one sentence.

    :param missed: as of ``limits``.
    :param where: at which of several points this is: ``, at 16 GPU slots``.
    :param searched: whether more traffic was simulated.
    """
    limit, *_ = limits(point, missed)
    if limit.evidence is Evidence.NOTHING:
        stage = largest_stage(point)
        more = "" if searched or missed else "; more traffic was not simulated"
        start = f"{'Nothing stands out' if missed else 'None'}{where or ' today'}"
        return f"{start}{'' if stage is None else f': {_waits(point)}{stage_words(*stage)}'}{more}."
    why = limit_sentence(limit, point)
    named = capital(by_size(limit_words(limit), point))
    return f"{named}{where}: {why if why[:2].isupper() else why[:1].lower() + why[1:]}"


MORE_COPIES = "keep more copies in host memory (cache.host.slots)"
_FROM_STORAGE = 0.05
"""Share of the time that loads from storage take from steps, from which on copies in host memory help as slots do."""
MORE_SLOTS = "add GPU slots (cache.gpu.slots) or replicas (fleet.replicas)"
_REPLICAS = "add replicas (fleet.replicas)"
_BY_SIZE = {
    "add GPU slots (cache.gpu.slots) or replicas": "give adapters more GPU memory (cache.gpu.size), or add replicas",
    "add GPU slots (cache.gpu.slots)": "give adapters more GPU memory (cache.gpu.size)",
    "fewer GPU slots (cache.gpu.slots), whose memory the KV cache gets": (
        "less GPU memory for adapters (cache.gpu.size), which the KV cache gets"
    ),
    "cache.host.slots (vLLM's max_cpu_loras)": "cache.host.size",
    "cache.host.slots": "cache.host.size",
    "adapter slots": "memory for adapters",
    "every slot was in use by a running request": "running requests used all memory for adapters",
}
"""What remedies say where adapters take bytes of the GPU cache, not slots."""
_COME_BACK = 0.01
"""Share of prompt tokens found cached from which more room for them may help."""
_LITTLE = 0.1
"""Share of the KV cache's memory below which that of slots is not worth having."""
_REMEDIES = {
    "fault": "add replicas (fleet.replicas) that take over",
    "token bucket": "raise the bucket of {bucket.tenant}, or tell its users",
    "cold starts": "keep more replicas (fleet.autoscale.min and fleet.replicas)",
    "swaps": "add replicas for full models (fleet.full_models.replicas)",
    "slots": MORE_SLOTS,
    BATCH_SLOTS: "raise fleet.max_num_seqs, or add replicas (fleet.replicas)",
    KV_MEMORY: f"{_REPLICAS}, or try fewer GPU slots (cache.gpu.slots), whose memory the KV cache gets",
    KV_LINK: "raise fleet.kv_offload.bandwidth",
    "router": "spread requests more evenly (another router.policy, or router.bound: 1.25 where this one has it), "
    f"before you {_REPLICAS}",
    "compute": _REPLICAS,
    "none": _REPLICAS,
}


def remedy_words(limit: Limit, point: Point) -> str:
    """Return what to change where this limits a point, as an order; empty where the limit's sentence says it."""
    said = _REMEDIES.get(limit.name, "").format(bucket=limit.bucket)
    loader = point.capacity.loader
    if limit.name == "loader":
        said = MORE_SLOTS if loader.host_holds_all else MORE_COPIES
    stored = not loader.host_holds_all and (loader.storage or 0.0) >= _FROM_STORAGE
    if limit.name == "slots" and stored and loads_explain(point):
        said = f"{MORE_COPIES}, or {MORE_SLOTS}"
    if limit.evidence is Evidence.LONG_STEPS and _vllm(point) is not None:
        # With prompts in steps of their own, more and shorter ones only come before the next decode step.
        said = f"compute fewer tokens in a step (fleet.max_num_batched_tokens), or {_REPLICAS}"
    role = short_role(point)
    is_of_role = limit.name == "compute" or (limit.name == "none" and role == "prefill")
    if is_of_role and (short := pools_of(role, point)):
        return f"add replicas ({_counts(short)})"
    if limit.name == KV_LINK and (readers := pools_of("decode", point)):
        return f"raise fleet.kv_transfer.bandwidth, or add replicas ({_counts(readers)})"
    memory = None if point.setup is None else point.setup.memory
    if limit.name == KV_MEMORY and (memory is None or memory.adapters < _LITTLE * memory.kv):
        said = _REPLICAS
    if limit.name in (KV_MEMORY, "compute") and said.startswith(_REPLICAS) and _may_offload(point):
        said += ", or try KV offload (fleet.kv_offload)"
    if slowest_pool(point) and point.setup is not None and point.setup.by_load is not None:
        said = f"send faster pools more requests (router.policy: {point.setup.by_load}), or {said}"
    return in_keys_of_scenario(said, point)


def _counts(pools: Sequence[SliceResult]) -> str:
    return " or ".join(f"fleet.pools.{pool.name}.replicas" for pool in pools)


def _may_offload(point: Point) -> bool:
    """Return whether prompts come back, in an engine that can keep their KV in host memory and doesn't."""
    hits, engine = point.value("prefix_hit_ratio") or 0.0, _vllm(point)
    if engine is None or (point.setup is not None and point.setup.pools):
        return False
    new = value_at(engine.preset, "fleet.uncached_blocks") == "first"  # whose offloaded blocks are simulated
    return new and hits >= _COME_BACK and point.value("host_prefix_hit_ratio") is None


def _vllm(point: Point) -> Engine | None:
    """Return the rules that a point's replicas follow if those are vLLM's."""
    engine = None if point.setup is None else ENGINES.get(point.setup.engine)
    return engine if engine is not None and "vLLM" in engine.flags else None


def in_keys_of_scenario(said: str, point: Point) -> str:
    """Return a remedy in the keys that a scenario has: pools and autoscalers have their own, and caches by size have no
    slots."""
    setup = point.setup
    if point.value("mean_replicas") is not None:
        said = said.replace("replicas (fleet.replicas)", "replicas (fleet.autoscale: a larger max, or a lower target)")
    if point.pools or (setup is not None and setup.pools):
        late = slowest_pool(point)
        own = rf" (fleet.pools.{late}.\1)" if late else ""
        return re.sub(r" \((?:fleet\.)?((?:cache\.|replicas|max_num_)[a-z_.]*)\)", own, said)
    return by_size(said, point)


def by_size(said: str, point: Point) -> str:
    """Return what is said of slots for a cache that counts bytes."""
    memory = None if point.setup is None else point.setup.memory
    if memory is not None and memory.slots is None and memory.adapters:
        for slots, size in _BY_SIZE.items():
            said = said.replace(slots, size)
    return said


def limit_sentence(limit: Limit, point: Point) -> str:
    """Return why this limits the point, with the numbers."""
    evidence, busy = limit.evidence, percent(limit.value)
    if evidence is Evidence.NOTHING:
        return _nothing(point)
    if evidence is Evidence.FAULT:
        return _faults(limit.faults)
    if evidence is Evidence.FAILED:
        return f"{capital(unserved_words(point))}{_FAILURE_WORDS[limit.cause]}"
    if evidence in _REFUSAL_WORDS and limit.unserved is not None:
        counts = limit.unserved
        why = _REFUSAL_WORDS[evidence].format(longest=counts.longest_tokens, limit=counts.limit_tokens)
        return f"{capital(unserved_words(point))}{why}"
    if limit.bucket is not None:
        return _bucket(limit.bucket)
    if evidence is Evidence.BLOCKED:
        return by_size(f"During {busy} of the time {_BLOCKED[limit.name]}.", point)
    if evidence is Evidence.COMPUTE_OVERLOADED and limit.value == 1:
        return "More requests arrived than were served, and the queue grew from start to end."
    if evidence in (Evidence.LOADER_WAIT, Evidence.LOADER_BUSY):
        return _loader_words(limit)
    share = "" if limit.of_latency is None else percent(limit.of_latency)
    wait, otherwise = human_seconds(limit.wait_s), percent(limit.otherwise)
    said = _BUSY[evidence].format(busy=busy, value=limit.value, share=share, otherwise=otherwise, wait=wait)
    return by_size(said, point)


def _faults(shares: Mapping[str, float]) -> str:
    said = " and ".join(
        _FAULT_WORDS[kind].format("all" if share > 0.9995 else percent(share)) for kind, share in shares.items()
    )
    return f"{capital(said)}, and requests waited for that."


_MEANT_OTHERWISE = 100
"""How many times as many tokens are asked for as a bucket admits where its rate was probably meant in requests."""


def _bucket(bucket: BucketUse) -> str:
    start = f"The bucket of {bucket.tenant} admits {_figure(bucket.rate)}"
    share = percent(bucket.limited)
    if bucket.asked <= bucket.rate:  # on average; at times it lacks tokens
        return f"{start} {bucket.counts}/s and {'refuses' if bucket.refuses else 'holds'} {share} of its requests."
    asked = f"{start} of {_figure(float(f'{bucket.asked:.3g}'))} {bucket.counts}/s"
    meant = bucket.counts == "tokens" and bucket.rate < bucket.asked / _MEANT_OTHERWISE
    hint = " It counts tokens; counts: requests makes it count requests." if meant else ""
    if bucket.refuses:
        return f"{asked} and refuses {share} of its requests.{hint}"
    return f"{asked}, so the queue in front of it grows without limit.{hint}"


def buckets_sentence(point: Point) -> str:
    """Return which share of their tenants' requests token buckets refuse or hold; empty where none does much."""
    found = [each.bucket for each in busy_buckets(point) if each.bucket is not None][:_NAMED]
    does = [f"of {b.tenant} {'refuses' if b.refuses else 'holds'} {percent(b.limited)}" for b in found]
    if not does:
        return ""
    return f"{listed([f'The bucket {does[0]} of its requests', *(f'that {each}' for each in does[1:])])}."


def _figure(rate: float) -> str:
    return f"{rate:,.0f}" if rate >= 10 else f"{rate:.3g}"


def _loader_words(limit: Limit) -> str:
    share = "" if limit.of_latency is None else f", {percent(limit.of_latency)} of the latency"
    queue = f"a request waits {human_seconds(limit.wait_s)} for it on average{share}"
    if limit.evidence is Evidence.LOADER_WAIT:
        return f"Waiting for the loader is the largest part of the latency: {queue}."
    return f"The loader is busy {percent(limit.value)} of the time; {queue}."


def _nothing(point: Point) -> str:
    stage = largest_stage(point)
    if stage is not None and (waits := _waits(point)):
        return f"{capital(waits)}{stage_words(*stage)}."
    start = "Nothing stands out" if stage is not None and stage[0] in _WAITS else "Few requests wait long"
    return f"{start}{'' if stage is None else f': {stage_words(*stage)}'}."


def _waits(point: Point) -> str:
    """Return how long a few requests wait, to go before what most of the latency is; empty where none waits long."""
    stage = largest_stage(point)  # where loads overlap with steps, a queue includes the wait for them
    if not queue_decides(point) or stage is None or stage[0] not in ("prefill_s", "decode_s"):
        return ""
    return f"one request in a hundred waits {human_seconds(point.value('queue_p99_s') or 0.0)} or longer, though "


def stage_words(name: str, share: float) -> str:
    """Return how much of the mean latency a stage is."""
    return f"{percent(share)} of the mean latency is {_STAGES[name]}"
