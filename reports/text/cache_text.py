"""What a cache-only replay shows, in sentences: the same on the page and on the terminal."""

from __future__ import annotations

from collections.abc import Sequence

from reports.answers.cache_findings import CLAIRVOYANT, SAME
from reports.formatting import number, percent
from sim.results.traces.cache_points import CachePoint, CacheResult
from sim.spec.units import human_bytes


def capacity_words(result: CacheResult, capacity: float) -> str:
    """Return a capacity in the unit that the reader chose: ``16 slots``, ``10 GB``."""
    return f"{number(capacity)} slot{'' if capacity == 1 else 's'}" if result.by_slots else human_bytes(capacity)


def headline(result: CacheResult) -> str:
    """Return the answer in one or two sentences, for the capacity in the middle."""
    place = len(result.capacities) // 2
    where = f"With {capacity_words(result, result.capacities[place])}"
    points = [result.row(policy)[place] for policy in result.policies]
    served = [point for point in points if point.policy != CLAIRVOYANT]
    if not served:
        return f"{where}, {percent(points[0].miss_ratio)} of requests miss with a cache that knows the future."
    best = min(served, key=lambda point: point.misses)
    lru = next((point for point in served if point.policy == "lru"), None)
    if lru is None or len(served) == 1:
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
    return text + _against_clairvoyant(points, result.equal_sizes) + "."


def _against_clairvoyant(points: Sequence[CachePoint], equal_sizes: bool) -> str:
    known = next((point for point in points if point.policy == CLAIRVOYANT), None)
    if known is None:
        return ""
    if equal_sizes:
        return f"; no policy can go below {percent(known.miss_ratio)}"
    return f"; a cache that knows the future (belady) misses {percent(known.miss_ratio)}"


def sentences(result: CacheResult) -> list[str]:
    """Return what else there is to say: the best at each size, the distance to the bound, and locality."""
    return [text for text in (_best_words(result), _bound_words(result), _order_words(result)) if text]


def _best_words(result: CacheResult) -> str:
    served = [policy for policy in result.policies if policy != CLAIRVOYANT]
    if len(served) < 2:
        return ""
    groups: dict[str, list[str]] = {}
    for place, capacity in enumerate(result.capacities):
        misses = {policy: result.row(policy)[place].misses for policy in served}
        least = [policy for policy in served if misses[policy] == min(misses.values())]
        names = "all the same" if len(least) == len(served) else " and ".join(least)
        groups.setdefault(names, []).append(capacity_words(result, capacity))
    if len(groups) == 1:
        everywhere = "" if len(result.capacities) == 1 else ", at every capacity"
        return f"Fewest misses{everywhere}: {next(iter(groups))}."
    return "Fewest misses: " + "; ".join(f"{names} with {', '.join(sizes)}" for names, sizes in groups.items()) + "."


def _bound_words(result: CacheResult) -> str:
    """Return how far LRU is from the clairvoyant policy, where that was replayed."""
    known = result.row(CLAIRVOYANT)
    factors = [real * result.requests / point.misses for real, point in zip(result.at.real, known, strict=False)]
    if not factors:
        return ""
    least, most = min(factors), max(factors)
    where = capacity_words(result, result.capacities[factors.index(most)])
    what = "the least possible" if result.equal_sizes else "belady, which knows the future"
    if f"{least:.1f}" == f"{most:.1f}":
        return f"LRU misses {most:.1f} times as often as {what}."
    return f"LRU misses {least:.1f} to {most:.1f} times as often as {what}, most with {where}."


def _order_words(result: CacheResult) -> str:
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
