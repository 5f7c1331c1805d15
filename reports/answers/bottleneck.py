"""What limits a point: the loader, slots, KV memory, seats or compute, and how far away the limit is.

The claims follow from ``Point.capacity`` and ``Point.breakdown`` alone.
"""

from __future__ import annotations

from dataclasses import dataclass

from reports.formatting import percent
from reports.text import capital, unserved_words
from sim.results.model import Impact
from sim.results.point import Point
from sim.results.verdict import is_overloaded, offered, unserved
from sim.spec.units import human_seconds

BUSY_LOADER = 0.7
"""From this utilization on, waiting for a loader grows faster than the traffic."""
BUSY_COMPUTE = 0.9
SWAPPING = 0.25
"""From this share of their time on that replicas of full models spend loading, swaps limit the point."""
BLOCKED = 0.05
"""A resource that made requests wait during this share of the time limits the point."""
OVERLOADED = "Overloaded: the queue grows without limit, and percentiles depend on how long the run is"
BROKEN = "With this fault more requests arrive than are served, so percentiles depend on how long the run is"
_FAULTS = {
    "crash": "replicas were down for {} of their time",
    "storage-stall": "storage stood still for {} of the time",
    "failing-loads": "loads from storage failed for {} of the time",
    "slow-storage": "storage was slow for {} of the time",
}
_UNANSWERED = 0.01
"""Share of requests that wait in vain when the run ends, from which a fault limits the point."""

_UNSERVED = 0.01
"""Share of requests that are refused or fail, from which that limits a point."""

_FAILURES = {
    "failed_loads": ": their adapter could not be loaded. Allow more retries, or keep more adapters in memory.",
    "lost": ": they were lost with their replica. Send such requests to another replica (requests: reroute).",
    "wrong_detected": ": a wrong answer was noticed, and no retry was left. Allow more retries.",
}
"""Why requests fail, and what to do, by the name in ``Impact``."""
_NAMES = {"slots": "slots", "kv": "KV memory", "seats": "seats (max_num_seqs)"}
_STAGES = {
    "loader_queue_s": "waiting for a loader or a slot",
    "load_s": "loading adapters",
    "queue_s": "waiting for admission",
    "prefill_s": "prefill",
    "decode_s": "decode",
}


@dataclass(frozen=True)
class Limit:
    """One resource that limits a point.

    :ivar name: ``fault``, ``refusals``, ``failures``, ``swaps``, ``loader``, ``slots``, ``KV memory``,
        ``seats (max_num_seqs)``, ``compute`` or ``none``.
    :ivar sentence: why, with the numbers.
    """

    name: str
    sentence: str


def _of(point: Point, part: str, key: str) -> float | None:
    value = getattr(getattr(point.capacity, part), key, None)
    return None if value is None else float(value)


def is_fixed(point: Point) -> bool:
    """Return whether the engine serves one request at a time (no prefill of its own)."""
    return not point.breakdown.get("prefill_s") and point.capacity.seats is None


def is_broken(point: Point) -> bool:
    """Return whether it is a fault that keeps requests from being served: what stands still lacks no resources."""
    shares = [point.capacity.faults.get(kind, 0.0) for kind in _FAULTS]
    impact = point.impact or Impact()
    in_vain = (impact.slow_unanswered or 0) > _UNANSWERED * max(1, impact.requests)
    return max(shares) >= BLOCKED and (is_overloaded(point) or in_vain)


def overload_words(point: Point) -> str:
    """Return what is to be said first where more arrives than is served; empty elsewhere."""
    return "" if not is_overloaded(point) else BROKEN if is_broken(point) else OVERLOADED


def _broken(point: Point) -> Limit:
    shares = {kind: point.capacity.faults.get(kind, 0.0) for kind in _FAULTS}
    said = " and ".join(
        _FAULTS[kind].format("all" if share > 0.9995 else percent(share))
        for kind, share in shares.items()
        if share >= BLOCKED
    )
    return Limit("fault", f"{said[0].upper()}{said[1:]}, and requests waited for that.")


def _not_served(point: Point) -> Limit | None:
    """Return that requests are refused or fail, why, and what to do about the larger part of them."""
    lost, total = unserved(point)
    if lost <= _UNSERVED * total:
        return None
    refused = point.metrics["refused"].value or 0.0
    words = capital(unserved_words(point))
    if refused < lost / 2:
        return Limit("failures", f"{words}{_why_failed(point)}")
    return Limit("refusals", f"{words}{_why_refused(point, refused)}")


def _why_refused(point: Point, refused: float) -> str:
    by_rollout = point.impact.refused_by_rollout if point.impact is not None else 0
    too_long = point.unserved.get("too_long", 0)
    if by_rollout > refused / 2:
        return " while their adapter was being replaced. Strategies other than unload-then-load refuse no requests."
    longest, limit = point.unserved.get("longest_tokens", 0), point.unserved.get("limit_tokens", 0)
    if too_long <= refused / 2 or longest <= limit:
        return ". The notes of this run list the possible reasons."
    if limit < (_of(point, "kv", "tokens") or 0.0):
        return (
            f": the longest has {longest:,} tokens, and fleet.max_model_len allows {limit:,}. Raise it to {longest:,} "
            "to serve them all."
        )
    return (
        f": the longest has {longest:,} tokens, and the KV cache of a replica holds {limit:,}. Raise fleet.kv_tokens, "
        "or leave the KV cache more GPU memory (fewer adapter slots, smaller adapters)."
    )


def _why_failed(point: Point) -> str:
    counts = {name: getattr(point.impact or Impact(), name) for name in _FAILURES}
    most = max(counts, key=lambda name: counts[name])
    return _FAILURES[most] if counts[most] else "."


def largest_stage(point: Point) -> tuple[str, float] | None:
    """Return the part of the latency that is largest and its share of the mean."""
    total = sum(point.breakdown.values())
    if not total > 0:
        return None
    name = max(point.breakdown, key=lambda part: point.breakdown[part])
    return name, point.breakdown[name] / total


def _loader(point: Point) -> Limit | None:
    busy, load = _of(point, "loader", "utilization"), _of(point, "loader", "offered_load")
    if load is not None and load >= 1:
        return Limit("loader", f"Loads need {percent(load)} of what the loader can do, so its queue only grows.")
    stage = largest_stage(point)
    waits = stage is not None and stage[0] == "loader_queue_s"
    if busy is None or busy < BUSY_LOADER:
        short = _of(point, "slots", "blocked_share")
        if not waits or (short is not None and short >= BLOCKED):
            return None  # what looks like a wait for a loader is one for a slot to load into
    wait = point.breakdown.get("loader_queue_s", 0.0)
    share = f", {percent(stage[1])} of the latency" if stage is not None and waits else ""
    queue = f"a request waits {human_seconds(wait)} for it on average{share}"
    if busy is None:
        return Limit("loader", f"Waiting for the loader is the largest part of the latency: {queue}.")
    return Limit("loader", f"The loader is busy {percent(busy)} of the time; {queue}.")


def _blocked(point: Point) -> list[tuple[float, Limit]]:
    """Return slots, KV memory and seats that made requests wait, with the share of time."""
    why = {
        "slots": "every slot was in use by a running request while others waited",
        "kv": "no KV block was free while requests waited",
        "seats": "the batch was full while requests waited",
    }
    found = []
    for part, name in _NAMES.items():
        share = _of(point, part, "blocked_share")
        if share is not None and share >= BLOCKED:
            found.append((share, Limit(name, f"During {percent(share)} of the time {why[part]}.")))
    return sorted(found, key=lambda pair: -pair[0])


def _compute(point: Point) -> Limit | None:
    busy, load = _of(point, "compute", "utilization"), _of(point, "compute", "offered_load")
    if load is not None and load >= 1:
        return Limit("compute", f"{load:.3g} times as many requests arrive as are served, so the queue only grows.")
    total, queue = sum(point.breakdown.values()), point.breakdown.get("queue_s", 0.0)
    if busy is None:
        return None
    if is_fixed(point):
        text = f"The server is busy {percent(busy)} of the time."
        return Limit("compute", text) if busy >= BUSY_LOADER else None
    # A batching engine is busy whenever anything runs: only waiting requests show a limit.
    if busy < BUSY_COMPUTE or not total or queue < 0.1 * total:
        return None
    text = f"The GPU is busy {percent(busy)} of the time and {percent(queue / total)} of the latency is queueing."
    return Limit("compute", text)


def _swaps(point: Point) -> Limit | None:
    busy = _of(point, "full_models", "utilization")
    if busy is None or busy < SWAPPING:
        return None
    return Limit("swaps", f"Replicas of full models spend {percent(busy)} of their time loading whole models.")


def limits(point: Point) -> list[Limit]:
    """Return what limits a point, the first of them first; one Limit ``none`` if nothing does.

    A busy loader comes before blocked slots: a slot stays taken while its adapter waits to be loaded.
    """
    if is_broken(point):
        return [_broken(point)]
    loader, compute = _loader(point), _compute(point)
    found = [limit for limit in (_not_served(point), _swaps(point), loader) if limit is not None]
    found += [limit for _, limit in _blocked(point)]
    if compute is not None:
        found.append(compute)  # where seats, KV memory or slots run out, they are what to buy
    return found or [Limit("none", _nothing(point))]


def _nothing(point: Point) -> str:
    stage = largest_stage(point)
    if stage is None:
        return "Nothing is near its limit."
    name, share = stage
    return f"Nothing is near its limit; {percent(share)} of the mean latency is {_STAGES.get(name, name)}."


def headroom(point: Point) -> str:
    """Return how much more traffic fits, as far as the loads say it."""
    if is_broken(point):
        return "Not visible in this run: simulate without the fault to see it."
    if is_overloaded(point):
        load = offered(point) or 1.0
        return f"None. The offered load is {percent(load)} of capacity; reduce it by at least {percent(1 - 1 / load)}."
    first = limits(point)[0].name
    if first in ("refusals", "failures"):
        return "Headroom is unknown while requests are refused or fail. Fix that first."
    part = "compute" if first == "compute" else "loader"
    busy = _of(point, part, "utilization")
    demand = _of(point, part, "offered_load") or busy
    if first in _NAMES.values():
        return _peaks(point, first)
    if first == "swaps":
        return "Not visible in one run: a longer turn, more replicas for full models or dedicated ones load less often."
    if demand is None or busy is None or demand <= 0.001:
        return "Not visible in this run: no part of it was measurably busy with loads."
    resource = "loader" if part == "loader" else "server" if is_fixed(point) else "GPU"
    if part == "compute" and not is_fixed(point):
        return "Not visible in one run: batches grow with the traffic. Sweep the arrival rate to find the limit."
    more = 1 / demand - 1
    times = f"{1 / demand:,.2g}" if more < 99 else f"{1 / demand:,.0f}"
    amount = f"about {max(1, round(more * 100))} % more traffic" if more < 1 else f"about {times} times the traffic"
    same = " if the miss ratio stays the same" if part == "loader" else ""
    text = f"The {resource} is busy {percent(busy)} of the time; its queue grows without limit at {amount}{same}."
    return text if first != "none" else f"{text} Another limit may come first."


def _peaks(point: Point, name: str) -> str:
    if name == "slots":
        peak, slots = _of(point, "slots", "in_use_peak"), _of(point, "slots", "slots")
        if peak is not None and slots is not None:
            used = f"Up to {peak:,.0f} adapters were in use or asked for at once, with {slots:,.0f} slots."
            return f"{used} Sweep the slots to see what more would give."
    if name == "KV memory":
        peak = _of(point, "kv", "peak_share")
        if peak is not None:
            return f"At the peak {percent(peak)} of the KV memory was taken. Sweep it to see what more would give."
    return f"None in {name}: requests already wait for it. Sweep it to see what more would give."
