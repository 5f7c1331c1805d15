"""What limits a point: a token bucket, the loader, slots, KV memory, a router or compute.

It follows from ``Point.capacity``, ``Point.breakdown`` and the counts of requests that were not served; the words are
in ``reports.text.limit_text``.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from enum import Enum, auto

from sim.results.model import BucketUse, Impact, from_plain
from sim.results.point import Point, SliceResult
from sim.results.slo_terms import is_gap, is_tail, split_term, value_of
from sim.results.verdict import is_overloaded, unserved

BUSY_LOADER = 0.7
"""From this utilization on, waiting for a loader grows faster than the traffic."""
_BUSY_PREFILL = 0.5
"""From this utilization on, a queue in front of prefill replicas is for their steps."""
BUSY_COMPUTE = 0.9
_QUEUED, _OFTEN_QUEUED = 0.1, 0.3
"""Shares of the mean latency, and of the median TTFT where that is late, from which a queue for a busy GPU counts."""
_EXPLAINED = 1.25
"""How many times as much as loads keep from being served still goes unserved because of them: both are rough."""
LOADING = 0.25
"""From this share of their time on that replicas spend loading instead of computing, loads limit the point: swaps of
whole models, and loads that block steps. The latter never queue for their loader, so ``BUSY_LOADER`` would come too
late: they cost the batch its steps, and requests then seem to lack slots or compute."""
BLOCKED = 0.05
"""A resource that made requests wait during this share of the time limits the point."""
_BLOCKED_FOR_TAIL = 0.01
"""The same where a p99 misses its target: one request in a hundred decides, and it came at such a time."""
_BLOCKED_IN_BURSTS, _BLOCKED_AND_QUEUED = 0.001, 0.005
"""The same where that p99 is a wait in the queue: bursts came at such times if the GPU is often idle; if it is busy,
half of the slowest hundredth did."""
_QUEUE_OF_TAIL, _LOAD_OF_TAIL, _BLOCKING_LOAD_OF_TAIL, _LOAD_OF_GAP = 0.5, 0.3, 0.1, 0.5
_READ_OF_FIRST, _LOAD_OF_FIRST = 0.5, 0.5
"""Shares of a latency from which its queue decides it, a load, or a read of KV. Loads of others may come before a
request's own, and all of them do where loads block steps."""
_BUSY_FOR_GAP, _BUSY_FOR_MEAN_GAP = 0.01, 0.1
"""Shares of the time from which loads within steps decide one gap in a hundred, and the mean gap of a request."""
_LONG_GAPS, _LONG_MEAN_GAPS = 2.0, 1.5
"""How many times as long as a mean gap a p99 gap is where prompts lengthen some steps, and a request's own mean where
these decide: in five settings below that, steps of 512 tokens took at most 11 % off p99 TPOT; in three above, 22 % to
58 %."""
KV_MEMORY, BATCH_SLOTS = "KV memory", "batch slots (max_num_seqs)"
KV_LINK = "the link that KV is copied over"
_BUSY_LINK = 0.9
_FAULTS = ("crash", "storage-stall", "failing-loads", "slow-storage")
"""Kinds of faults that keep requests from being served."""
_UNANSWERED = 0.01
"""Share of requests, late and still unanswered when the run ends, from which a fault limits the point."""
_UNSERVED = 0.01
"""Share of requests that are refused or fail, from which that limits a point."""
_LATE = 0.01
"""Share of late requests from which cold starts limit a point: what a p99 allows."""
_OFTEN_LATE = 4.0
"""How many times as often requests are late, at least, that arrive while a replica starts."""
_UNEVEN = 1.3
"""Requests of the busiest replica over the mean, from which a router is why requests are late."""
_LATE_POOL = 1.5
"""The mean TTFT of the slowest pool over the next one's from which that pool is to blame."""
_OF_REPLICAS = ("refusals", "failures", "swaps")
"""Limits other than a loader that concern requests once they run, too."""
_FAILURES = ("failed_loads", "lost", "wrong_detected")
"""Why requests fail, by the name in ``Impact``."""


class Evidence(Enum):
    """How a limit shows."""

    FAULT = auto()
    REPLACED = auto()
    TOO_LONG_FOR_MODEL = auto()
    TOO_LONG_FOR_KV = auto()
    REFUSED = auto()
    FAILED = auto()
    BUCKET = auto()
    COLD_STARTS = auto()
    LOADING_MODELS = auto()
    LOADER_OVERLOADED = auto()
    LOADER_WAIT = auto()
    LOADER_BUSY = auto()
    LOADS_BLOCK = auto()
    LOADS_BLOCK_ALL_IN_HOST = auto()
    LOADS_LAST = auto()
    LONG_STEPS = auto()
    LONG_READS = auto()
    UNEVEN = auto()
    BLOCKED = auto()
    COMPUTE_OVERLOADED = auto()
    SERVER_BUSY = auto()
    GPU_BUSY = auto()
    QUEUE = auto()
    NOTHING = auto()


_GROWS = (Evidence.LOADER_OVERLOADED, Evidence.COMPUTE_OVERLOADED)
"""Evidence that more requests arrive than a fleet serves."""


@dataclass(frozen=True)
class Limit:
    """One resource that limits a point.

    :ivar name: ``fault``, ``refusals``, ``failures``, ``token bucket``, ``cold starts``, ``swaps``, ``loader``,
        ``slots``, ``KV memory``, ``batch slots (max_num_seqs)``, ``router``, ``compute`` or ``none``.
    :ivar value: utilization, offered load, blocked share, share of late requests or skew, as the evidence has it.
    :ivar bucket: of a tenant, with how it is used.
    :ivar otherwise: of cold starts: the share of late requests among those that arrive while no replica starts.
    :ivar wait_s: mean wait for a loader; ``of_latency``: the share of the mean latency that is spent waiting.
    :ivar cause: why most of the failed requests failed, by the name in ``Impact``; empty where no count says so.
    :ivar faults: share of the time, by kind of fault.
    :ivar unserved: counts of the requests that were refused or failed.
    """

    name: str
    evidence: Evidence
    value: float = 0.0
    wait_s: float = 0.0
    of_latency: float | None = None
    cause: str = ""
    faults: Mapping[str, float] = field(default_factory=dict)
    unserved: Unserved | None = None
    otherwise: float = 0.0
    bucket: BucketUse | None = None


@dataclass(frozen=True)
class Unserved:
    """``Point.unserved``: measured requests of all replications that were refused or failed.

    :ivar too_long: refused at arrival; ``longest_tokens``: the most that one of them has.
    :ivar limit_tokens: how many ``fleet.max_model_len`` or the KV cache allows.
    """

    too_long: int = 0
    longest_tokens: int = 0
    limit_tokens: int = 0


def _stage_s(point: Point, name: str) -> float:
    """Return the mean seconds of a completed request in one stage."""
    return point.breakdown.get(name, 0.0)


def is_fixed(point: Point) -> bool:
    """Return whether the engine serves one request at a time (no prefill of its own)."""
    return not _stage_s(point, "prefill_s") and point.capacity.seats is None


def _fault_shares(point: Point) -> dict[str, float]:
    """Return the share of the time that each kind of fault takes, where it is enough to limit the point."""
    shares = {kind: point.capacity.faults[kind] for kind in _FAULTS if kind in point.capacity.faults}
    return {kind: share for kind, share in shares.items() if share >= BLOCKED}


def is_broken(point: Point) -> bool:
    """Return whether a fault keeps requests from being served, so that no resource is short."""
    impact = point.impact or Impact()
    unanswered = (impact.slow_unanswered or 0) > _UNANSWERED * max(1, impact.requests)
    return bool(_fault_shares(point)) and (is_overloaded(point) or unanswered)


def largest_stage(point: Point) -> tuple[str, float] | None:
    """Return the part of the latency that is largest and its share of the mean."""
    total = sum(point.breakdown.values())
    if not total > 0:
        return None
    name = max(point.breakdown, key=lambda part: point.breakdown[part])
    return name, point.breakdown[name] / total


NO_LIMIT = Limit("none", Evidence.NOTHING)


def limits(point: Point, missed: Sequence[str] = ()) -> list[Limit]:
    """Return what limits a point, the first of them first; one Limit ``none`` if nothing does.

    A busy loader comes before blocked slots: a slot stays taken while its adapter waits to be loaded; not where far
    more arrives than would be served without loads. A bucket holds
    back only its own tenant: where the SLO of another decides, it comes last. No queue makes gaps between tokens
    longer, but running more sequences at once does.

    :param missed: terms of its SLO that it misses, the one that decides first. Of those about tails, few requests
        decide.
    """
    if is_broken(point):
        return [Limit("fault", Evidence.FAULT, faults=_fault_shares(point))]
    loader, compute = _loader(point), _compute(point, missed)
    used, decides = busy_buckets(point), split_term(missed[0])[0] if missed else ""
    aside = [each for each in used if each.bucket and decides and each.bucket.tenant != decides]
    own = [each for each in used if each not in aside]
    first = (_not_served(point), *own, _cold_starts(point), _swaps(point), _copies(point, missed), loader)
    short = _blocked(point, BLOCKED)
    found = [*(limit for limit in first if limit is not None), *short]
    if compute is not None and not (short and compute.evidence is Evidence.GPU_BUSY):
        found.append(compute)  # last, and not for a queue that is one for slots, KV memory or batch slots
    if loader is not None and not loads_explain(point):
        found.remove(loader)
        found.append(loader)
    if not found and _is_late(missed) and (bursts := _in_bursts(point)) is not None:
        found, compute = [bursts], compute or bursts
    tails, gaps = [term for term in missed if is_tail(term)], [term for term in missed if is_gap(term)]
    if gaps and (gaps[0] == missed[0] or (found and found[0] in short)):
        grows = any(limit.evidence in _GROWS for limit in found)  # then shorter steps are not what is needed
        of_gaps = _of_gaps(point, found, [] if grows else [term for term in tails if is_gap(term)])
        of_gaps = of_gaps or ([compute] if compute else [] if grows else [NO_LIMIT])
        return [*of_gaps, *(limit for limit in found if limit not in of_gaps), *aside]
    if missed and (not found or found[0] is compute) and is_uneven(point):
        found.insert(0, Limit("router", Evidence.UNEVEN, _value(point, "replica_load_skew")))
    return (found or [_of_tails(point, tails) or _loads_first(point, missed) or NO_LIMIT]) + aside


def loads_explain(point: Point) -> bool:
    """Return whether loads may be why more arrives than is served.

    A loader lets through what is asked of it over its load, and loads that block steps cost a fleet their time.
    """
    loader, load = point.capacity.loader, point.capacity.compute.offered_load or 0.0
    blocked = (loader.storage or 0.0) if loader.blocks_steps else 0.0
    return load * (1 - blocked) <= _EXPLAINED * max(loader.offered_load or 0.0, 1.0)


def _of_gaps(point: Point, found: Sequence[Limit], tails: Sequence[str]) -> list[Limit]:
    """Return what makes the gaps between tokens longer: what keeps a replica from its steps, and long steps."""
    blocks = point.capacity.loader.blocks_steps
    known = [limit for limit in found if limit.name in _OF_REPLICAS or (limit.name == "loader" and blocks)]
    steps = _of_tails(point, tails)
    return [*known, *([] if steps is None else [steps])]


def _is_late(missed: Sequence[str]) -> bool:
    """Return whether waits could be why a target is missed, if one is: no wait is in gaps and misses."""
    return not missed or not (is_gap(missed[0]) or split_term(missed[0])[1] == "miss_ratio")


def _copies(point: Point, missed: Sequence[str]) -> Limit | None:
    """Return that KV is copied too slowly: the link is busy, or a TTFT that misses its target is mostly a read."""
    link, read_s = point.capacity.link, _stage_s(point, "read_s")
    if link is None:
        return None
    if link >= _BUSY_LINK:
        return Limit(KV_LINK, Evidence.BLOCKED, link)
    ttft_s = sum(value for stage, value in point.breakdown.items() if stage != "decode_s")
    whole_s = sum(point.breakdown.values()) if missed and split_term(missed[0])[1].startswith("e2e") else ttft_s
    reads = bool(missed) and _is_late(missed) and read_s > _READ_OF_FIRST * whole_s
    return Limit(KV_LINK, Evidence.LONG_READS, link, wait_s=read_s, of_latency=read_s / ttft_s) if reads else None


def pools_of(role: str, point: Point) -> list[SliceResult]:
    """Return the pools of a role, ``prefill`` or ``decode``; [] where no pool has one."""
    return [pool for pool in point.pools if pool.facts.get("role") == role]


def short_role(point: Point) -> str:
    """Return whose pools are short where compute limits prefill and decode apart.

    Prefill is short if its replicas are busy and requests wait longest for them. Idle ones may hold blocks that wait
    for decode.
    """
    busy = any((pool.facts["gpu_utilization"] or 0.0) >= _BUSY_PREFILL for pool in pools_of("prefill", point))
    queue_s, *after = (_stage_s(point, name) for name in ("queue_s", "hand_over_s", "decode_queue_s"))
    return "prefill" if busy and queue_s >= sum(after) else "decode"


def slowest_pool(point: Point) -> str:
    """Return the pool whose first tokens are late, if those of others are not; empty elsewhere."""
    asked = [pool for pool in point.pools if pool.facts.get("requests") and "ttft_mean_s" in pool.metrics]
    found = sorted((pool.metrics["ttft_mean_s"].value or 0.0, pool.name) for pool in asked)
    return found[-1][1] if len(found) > 1 and found[-1][0] > _LATE_POOL * found[-2][0] else ""


def is_uneven(point: Point) -> bool:
    """Return whether one replica gets much more than the others, and not by design.

    Pools may differ, and so do replicas of which some start, crash or get other versions.
    """
    by_design = point.pools or point.impact is not None or _value(point, "replica_seconds")
    return not by_design and _value(point, "replica_load_skew") >= _UNEVEN


def _of_tails(point: Point, terms: Collection[str]) -> Limit | None:
    """Return what the slowest requests wait for, where that takes no large share of the time.

    Not where something changed while traffic flowed: they are the ones that met it.
    """
    if not terms or point.impact is not None:
        return None
    known = [value for term in terms if (value := value_of(point, term))]
    loader, (waiting, load_s) = point.capacity.loader, _waits_for_loads(point)
    shortest_s = min(known, default=math.inf)
    if all(map(is_gap, terms)):
        of_means = all(split_term(term)[1].startswith("tpot") for term in terms)
        often = (loader.utilization or 0.0) >= (_BUSY_FOR_MEAN_GAP if of_means else _BUSY_FOR_GAP)
        if loader.blocks_steps and often and load_s > _LOAD_OF_GAP * shortest_s:
            return Limit("loader", Evidence.LOADS_LAST, waiting, wait_s=load_s)
        mixes = point.capacity.seats is not None and not pools_of("decode", point)  # prompts and answers in one step
        long = mixes and _value(point, "itl_p99_s") > _LONG_GAPS * _value(point, "itl_mean_s")
        long = long and (not of_means or max(known, default=0.0) > _LONG_MEAN_GAPS * _value(point, "tpot_mean_s"))
        return Limit("compute", Evidence.LONG_STEPS) if long else None
    idle = (point.capacity.compute.utilization or 0.0) < BUSY_COMPUTE  # else queues may be for steps
    queued = _BLOCKED_IN_BURSTS if idle else _BLOCKED_AND_QUEUED
    if short := _blocked(point, queued if queue_decides(point) else _BLOCKED_FOR_TAIL):
        return short[0]
    share = _BLOCKING_LOAD_OF_TAIL if loader.blocks_steps else _LOAD_OF_TAIL
    if waiting >= _BLOCKED_FOR_TAIL and load_s > share * shortest_s:
        return Limit("loader", Evidence.LOADS_LAST, waiting, wait_s=load_s)
    return None


def _waits_for_loads(point: Point) -> tuple[float, float]:
    """Return the share of requests that wait for a load, and for how many seconds on average."""
    for_adapters = 1 - (point.traffic.get("base_share") or 0.0)
    waiting = for_adapters * (_value(point, "miss_ratio") + _value(point, "delayed_hit_ratio"))
    loading_s = _stage_s(point, "loader_queue_s") + _stage_s(point, "load_s")
    return waiting, loading_s / waiting if waiting else 0.0


def _loads_first(point: Point, missed: Sequence[str]) -> Limit | None:
    """Return that a TTFT which misses its target is mostly loads, where any request may be a miss: not the median."""
    term = split_term(missed[0])[1] if missed else ""
    waiting, load_s = _waits_for_loads(point)
    mostly = waiting * load_s > _LOAD_OF_FIRST * (point.value("ttft_mean_s") or math.inf)
    concerns = term.startswith("ttft") and term != "ttft_p50_s" and point.impact is None
    return Limit("loader", Evidence.LOADS_LAST, waiting, wait_s=load_s) if mostly and concerns else None


def queue_decides(point: Point) -> bool:
    """Return whether the slowest first tokens are those of requests that waited for admission."""
    queue_s = _value(point, "queue_p99_s")
    return queue_s > 0 and queue_s > _QUEUE_OF_TAIL * _value(point, "ttft_p99_s")


def _value(point: Point, name: str) -> float:
    return point.value(name) or 0.0


def _not_served(point: Point) -> Limit | None:
    """Return that requests are refused, other than by token buckets, or fail, and why the larger part of them does."""
    lost, total = unserved(point)
    refused = point.metrics["refused"].value or 0.0
    by_buckets = sum(bucket.refused for bucket in point.capacity.buckets)
    if lost - by_buckets <= _UNSERVED * total:
        return None
    lost, refused = lost - by_buckets, refused - by_buckets
    counts = from_plain(Unserved, point.unserved)
    if refused >= lost / 2:
        return Limit("refusals", _refusals(point, counts, refused), unserved=counts)
    by_cause = {name: getattr(point.impact or Impact(), name) for name in _FAILURES}
    most = max(by_cause, key=lambda name: by_cause[name])
    cause = most if by_cause[most] else "" if point.impact else "unread"
    return Limit("failures", Evidence.FAILED, cause=cause, unserved=counts)


def busy_buckets(point: Point) -> list[Limit]:
    """Return the token buckets that hold or refuse requests, the one that does most of it first."""
    used = sorted(point.capacity.buckets, key=lambda bucket: -bucket.limited)
    found = [each for each in used if each.limited >= BLOCKED or (each.offered_load or 0.0) >= 1]
    return [Limit("token bucket", Evidence.BUCKET, each.limited, bucket=each) for each in found]


def _cold_starts(point: Point) -> Limit | None:
    """Return that late requests are mostly those that arrive while a replica starts, if too many are late.

    Too many at one time of the cycle that the rate repeats are enough: that is when replicas start.
    """
    starting, otherwise = point.value("late_while_starting"), point.value("late_otherwise")
    found = [each.get("slo_attainment") for each in (point.metrics, *(one.metrics for one in point.times))]
    in_time = [each.value for each in found if each is not None and each.value is not None]
    if starting is None or otherwise is None or not in_time or 1 - min(in_time) <= _LATE:
        return None
    if starting < _OFTEN_LATE * otherwise:
        return None
    return Limit("cold starts", Evidence.COLD_STARTS, starting, otherwise=otherwise)


def _refusals(point: Point, counts: Unserved, refused: float) -> Evidence:
    if (point.impact or Impact()).refused_by_rollout > refused / 2:
        return Evidence.REPLACED
    if counts.too_long <= refused / 2 or counts.longest_tokens <= counts.limit_tokens:
        return Evidence.REFUSED
    kv = point.capacity.kv
    allowed_by_kv = 0 if kv is None else kv.tokens or 0
    return Evidence.TOO_LONG_FOR_MODEL if counts.limit_tokens < allowed_by_kv else Evidence.TOO_LONG_FOR_KV


def _loader(point: Point) -> Limit | None:
    loader = point.capacity.loader
    busy, load = loader.utilization, loader.offered_load
    if load is not None and load >= 1:
        return Limit("loader", Evidence.LOADER_OVERLOADED, load)
    if loader.blocks_steps:  # copies from host memory block them too, but those come from too few slots
        busy = busy if loader.storage is None else loader.storage
        evidence = Evidence.LOADS_BLOCK_ALL_IN_HOST if loader.host_holds_all else Evidence.LOADS_BLOCK
        return None if busy is None or busy < LOADING else Limit("loader", evidence, busy)
    stage = largest_stage(point)
    waits = stage is not None and stage[0] == "loader_queue_s"
    if busy is None or busy < BUSY_LOADER:
        short = point.capacity.slots.blocked_share
        if not waits or (short is not None and short >= BLOCKED):
            return None  # requests wait for a slot to load into, not for a loader
    share = stage[1] if stage is not None and waits else None
    evidence = Evidence.LOADER_WAIT if busy is None else Evidence.LOADER_BUSY
    return Limit("loader", evidence, busy or 0.0, _stage_s(point, "loader_queue_s"), share)


def _blocked(point: Point, least: float) -> list[Limit]:
    """Return slots, KV memory and batch slots that made requests wait, the longest wait first.

    :param least: share of the time from which it counts.
    """
    parts = {"slots": point.capacity.slots, KV_MEMORY: point.capacity.kv, BATCH_SLOTS: point.capacity.seats}
    shares = {name: part.blocked_share for name, part in parts.items() if part is not None}
    found = [
        Limit(name, Evidence.BLOCKED, share) for name, share in shares.items() if share is not None and share >= least
    ]
    return sorted(found, key=lambda limit: -limit.value)


def _compute(point: Point, missed: Sequence[str]) -> Limit | None:
    busy, load = point.capacity.compute.utilization, point.capacity.compute.offered_load
    if load is not None and load >= 1:
        return Limit("compute", Evidence.COMPUTE_OVERLOADED, load)
    if busy is None:
        return None
    if is_fixed(point):
        return Limit("compute", Evidence.SERVER_BUSY, busy) if busy >= BUSY_LOADER else None
    # A batching engine is busy whenever anything runs: only waiting requests show a limit.
    in_front = sum(bucket.wait_s for bucket in point.capacity.buckets)
    total, queue = sum(point.breakdown.values()) - in_front, _stage_s(point, "queue_s") - in_front
    is_of_first = bool(missed) and split_term(missed[0])[1].startswith("ttft") and not _loads_first(point, missed)
    often = is_of_first and _value(point, "queue_p50_s") > _OFTEN_QUEUED * _value(point, "ttft_p50_s")
    if busy < BUSY_COMPUTE or not total or not (queue >= _QUEUED * total or often):
        return None
    return Limit("compute", Evidence.GPU_BUSY, busy, of_latency=queue / total)


def _in_bursts(point: Point) -> Limit | None:
    """Return what most of the latency is spent queueing for, though queues are rare; not where something changed."""
    in_front = sum(bucket.wait_s for bucket in point.capacity.buckets)
    total, queue_s = sum(point.breakdown.values()) - in_front, _stage_s(point, "queue_s") - in_front
    if queue_s <= _QUEUE_OF_TAIL * total or point.impact is not None:
        return None
    if short := _blocked(point, _BLOCKED_IN_BURSTS):
        return short[0]
    busy = point.capacity.compute.utilization or 0.0
    return Limit("compute", Evidence.QUEUE, busy, of_latency=queue_s / total)


def _swaps(point: Point) -> Limit | None:
    models = point.capacity.full_models
    busy = None if models is None else models.utilization
    return None if busy is None or busy < LOADING else Limit("swaps", Evidence.LOADING_MODELS, busy)
