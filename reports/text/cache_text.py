"""What a cache-only replay shows, in sentences: the same on the page and on the terminal."""

from __future__ import annotations

from reports.answers.cache_findings import (
    MiddleCapacity,
    above_bound,
    fewest_misses,
    middle_capacity,
    order_at_capacity,
)
from reports.answers.trace_findings import OrderEffect
from reports.formatting import number, percent
from sim.results.traces.cache_points import CacheResult
from sim.spec.units import human_bytes


def capacity_words(result: CacheResult, capacity: float) -> str:
    """Return a capacity in the unit that the reader chose: ``16 slots``, ``10 GB``."""
    return f"{number(capacity)} slot{'' if capacity == 1 else 's'}" if result.by_slots else human_bytes(capacity)


def headline(result: CacheResult) -> str:
    """Return the answer in one or two sentences, for the capacity in the middle."""
    found = middle_capacity(result)
    where = f"With {capacity_words(result, found.capacity)}"
    best, lru = found.best, found.lru
    if best is None:
        assert found.clairvoyant is not None, "some policy was replayed"
        return f"{where}, {percent(found.clairvoyant.miss_ratio)} of requests miss with a cache that knows the future."
    if lru is None:
        text = f"{where}, {percent(best.miss_ratio)} of requests miss under {best.policy}"
    elif best.misses == lru.misses:
        text = (
            f"{where}, {percent(lru.miss_ratio)} of requests miss under lru, and no other of these policies does better"
        )
    else:
        text = (
            f"{where}, {percent(lru.miss_ratio)} of requests miss under lru and {percent(best.miss_ratio)} under "
            f"{best.policy}, the best of these policies"
        )
    return text + _against_clairvoyant(found, result.equal_sizes) + "."


def _against_clairvoyant(found: MiddleCapacity, equal_sizes: bool) -> str:
    known = found.clairvoyant
    if known is None:
        return ""
    if equal_sizes:
        return f"; no policy can go below {percent(known.miss_ratio)}"
    return f"; a cache that knows the future (belady) misses {percent(known.miss_ratio)}"


def sentences(result: CacheResult) -> list[str]:
    """Return what else there is to say: the best at each size, the distance to the bound, and locality."""
    return [text for text in (_best_words(result), _bound_words(result), _order_words(result)) if text]


def _best_words(result: CacheResult) -> str:
    groups = {
        "all the same" if group.all else " and ".join(group.policies): group.capacities
        for group in fewest_misses(result)
    }
    if not groups:
        return ""
    if len(groups) == 1:
        everywhere = "" if len(result.capacities) == 1 else ", at every capacity"
        return f"Fewest misses{everywhere}: {next(iter(groups))}."
    parts = (f"{names} with {', '.join(capacity_words(result, at) for at in sizes)}" for names, sizes in groups.items())
    return f"Fewest misses: {'; '.join(parts)}."


def _bound_words(result: CacheResult) -> str:
    """Return how far LRU is from the clairvoyant policy, where that was replayed."""
    found = above_bound(result)
    if found is None:
        return ""
    what = "the least possible" if result.equal_sizes else "belady, which knows the future"
    if f"{found.least:.1f}" == f"{found.most:.1f}":
        return f"LRU misses {found.most:.1f} times as often as {what}."
    where = capacity_words(result, found.most_at)
    return f"LRU misses {found.least:.1f} to {found.most:.1f} times as often as {what}, most with {where}."


def _order_words(result: CacheResult) -> str:
    found = order_at_capacity(result)
    where = f"with {capacity_words(result, found.capacity)}"
    both = f"LRU misses {percent(found.real)} {where}, {percent(found.shuffled)} of the same requests shuffled"
    if found.effect is OrderEffect.LITTLE:
        return f"The order of requests matters little: {both}. Independent draws describe this trace well."
    if found.effect is OrderEffect.HELPS:
        return (
            f"The order of requests matters: {both}. A model that draws adapters independently would overstate misses "
            f"{found.shuffled / found.real:.2f} times."
        )
    return (
        f"The order of requests hurts: {both}. Adapters return just after they were evicted, as in scans or drifts; "
        "independent draws would understate misses."
    )
