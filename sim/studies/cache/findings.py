"""What a replay of a trace on caches shows: the same sentences on the page and on the terminal."""

from __future__ import annotations

from reports.formatting import percent, plural
from sim.spec.policies import EVICTIONS
from sim.spec.units import human_bytes
from sim.studies.cache.study import CacheResult

CLAIRVOYANT = next(entry.name for entry in EVICTIONS if entry.needs_future)
SAME = 0.05
"""Two miss ratios within this share of the larger one are called about the same."""


def capacity_words(result: CacheResult, capacity: float) -> str:
    """Return a capacity in the unit that the reader chose: ``16 slots``, ``10 GB``."""
    return plural(capacity, "slot") if result.by_slots else human_bytes(capacity)


def headline(result: CacheResult) -> str:
    """Return the answer in one or two sentences, for the capacity in the middle."""
    place = len(result.capacities) // 2
    where = f"With {capacity_words(result, result.capacities[place])}"
    points = {policy: result.row(policy)[place] for policy in result.policies}
    known = points.pop(CLAIRVOYANT, None)
    if not points:
        assert known is not None, "some policy was replayed"
        return f"{where}, {percent(known.miss_ratio)} of requests miss with a cache that knows the future."
    best, lru = min(points.values(), key=lambda point: point.misses), points.get("lru")
    if lru is None or len(points) == 1:
        text = f"{where}, {percent(best.miss_ratio)} of requests miss under {best.policy}"
    else:
        text = f"{where}, {percent(lru.miss_ratio)} of requests miss under lru"
        text += (
            ", and no other of these policies does better"
            if best.misses == lru.misses
            else f" and {percent(best.miss_ratio)} under {best.policy}, the best of these policies"
        )
    if known is None:
        return f"{text}."
    if result.equal_sizes:
        return f"{text}; no policy can go below {percent(known.miss_ratio)}."
    return f"{text}; a cache that knows the future (belady) misses {percent(known.miss_ratio)}."


def sentences(result: CacheResult) -> list[str]:
    """Return what else there is to say: the best at each size, the distance to the bound, and locality."""
    return [text for text in (_best_words(result), _bound_words(result), _order_words(result)) if text]


def _best_words(result: CacheResult) -> str:
    """Return which policies miss least, with the capacities at which they do; nothing for fewer than two."""
    built = [policy for policy in result.policies if policy != CLAIRVOYANT]
    if len(built) < 2:
        return ""
    groups: dict[str, list[str]] = {}
    for place, capacity in enumerate(result.capacities):
        misses = {policy: result.row(policy)[place].misses for policy in built}
        least = [policy for policy in built if misses[policy] == min(misses.values())]
        names = "all the same" if least == built else " and ".join(least)
        groups.setdefault(names, []).append(capacity_words(result, capacity))
    if len(groups) == 1:
        everywhere = "" if len(result.capacities) == 1 else ", at every capacity"
        return f"Fewest misses{everywhere}: {next(iter(groups))}."
    parts = (f"{names} with {', '.join(sizes)}" for names, sizes in groups.items())
    return f"Fewest misses: {'; '.join(parts)}."


def _bound_words(result: CacheResult) -> str:
    """Return how far LRU is from the clairvoyant policy, where that was replayed."""
    known = result.row(CLAIRVOYANT)
    factors = [real * result.requests / point.misses for real, point in zip(result.at.real, known, strict=False)]
    if not factors:
        return ""
    what = "the least possible" if result.equal_sizes else "belady, which knows the future"
    least, most = f"{min(factors):.1f}", f"{max(factors):.1f}"
    if least == most:
        return f"LRU misses {most} times as often as {what}."
    where = capacity_words(result, result.capacities[factors.index(max(factors))])
    return f"LRU misses {least} to {most} times as often as {what}, most with {where}."


def _order_words(result: CacheResult) -> str:
    """Return what the order of requests does to LRU at the capacity in the middle."""
    place = len(result.capacities) // 2
    real, shuffled = float(result.at.real[place]), float(result.at.shuffled[place])
    where = f"with {capacity_words(result, result.capacities[place])}"
    both = f"LRU misses {percent(real)} {where}, {percent(shuffled)} of the same requests shuffled"
    if abs(real - shuffled) <= SAME * max(real, shuffled):
        return f"The order of requests matters little: {both}. Independent draws describe this trace well."
    if real < shuffled:
        return (
            f"The order of requests matters: {both}. A model that draws adapters independently would overstate misses "
            f"{shuffled / real:.2f} times."
        )
    return (
        f"The order of requests hurts: {both}. Adapters return just after they were evicted, as in scans or drifts; "
        "independent draws would understate misses."
    )
