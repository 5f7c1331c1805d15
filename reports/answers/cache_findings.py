"""What a replay of a trace on caches shows: the best policy, how far from the least possible, what the order does."""

from __future__ import annotations

from dataclasses import dataclass

from reports.answers.trace_findings import OrderEffect
from sim.results.traces.cache_points import CachePoint, CacheResult
from sim.spec.policies import EVICTIONS

CLAIRVOYANT = next(entry.name for entry in EVICTIONS if entry.needs_future)
SAME = 0.05
"""Two miss ratios within this share of the larger one are called about the same."""


@dataclass(frozen=True)
class MiddleCapacity:
    """The policies at the capacity in the middle, which the headline is about.

    :ivar capacity: slots or bytes.
    :ivar best: the point with the fewest misses of policies that can be built; None where there is none.
    :ivar lru: LRU's point, to compare the best with; None where it is alone or was not replayed.
    :ivar clairvoyant: that of the policy that knows the future.
    """

    capacity: int
    best: CachePoint | None
    lru: CachePoint | None
    clairvoyant: CachePoint | None


@dataclass(frozen=True)
class FewestMisses:
    """The policies with the fewest misses at some capacities.

    :ivar policies: in the order asked; ``all``: whether these are all that were replayed.
    """

    policies: tuple[str, ...]
    capacities: tuple[int, ...]
    all: bool


@dataclass(frozen=True)
class AboveBound:
    """How many times as often LRU misses as the clairvoyant policy.

    :ivar most_at: the capacity of ``most``.
    """

    least: float
    most: float
    most_at: int


@dataclass(frozen=True)
class OrderAtCapacity:
    """What the order of requests does to LRU at the capacity in the middle: it matters little, helps or hurts."""

    effect: OrderEffect
    capacity: int
    real: float
    shuffled: float


def middle_capacity(result: CacheResult) -> MiddleCapacity:
    """Return how the policies compare at the capacity in the middle."""
    place = len(result.capacities) // 2
    points = [result.row(policy)[place] for policy in result.policies]
    built = [point for point in points if point.policy != CLAIRVOYANT]
    lru = next((point for point in built if point.policy == "lru"), None)
    return MiddleCapacity(
        result.capacities[place],
        min(built, key=lambda point: point.misses) if built else None,
        lru if len(built) > 1 else None,
        next((point for point in points if point.policy == CLAIRVOYANT), None),
    )


def fewest_misses(result: CacheResult) -> list[FewestMisses]:
    """Return which policies miss least, with the capacities at which they do; nothing for fewer than two."""
    built = [policy for policy in result.policies if policy != CLAIRVOYANT]
    if len(built) < 2:
        return []
    groups: dict[tuple[str, ...], list[int]] = {}
    for place, capacity in enumerate(result.capacities):
        misses = {policy: result.row(policy)[place].misses for policy in built}
        least = tuple(policy for policy in built if misses[policy] == min(misses.values()))
        groups.setdefault(least, []).append(capacity)
    return [FewestMisses(names, tuple(at), len(names) == len(built)) for names, at in groups.items()]


def above_bound(result: CacheResult) -> AboveBound | None:
    """Return how far LRU is from the clairvoyant policy, where that was replayed."""
    known = result.row(CLAIRVOYANT)
    factors = [real * result.requests / point.misses for real, point in zip(result.at.real, known, strict=False)]
    if not factors:
        return None
    return AboveBound(min(factors), max(factors), result.capacities[factors.index(max(factors))])


def order_at_capacity(result: CacheResult) -> OrderAtCapacity:
    """Return what the order of requests does to LRU at the capacity in the middle."""
    place = len(result.capacities) // 2
    real, shuffled = float(result.at.real[place]), float(result.at.shuffled[place])
    if abs(real - shuffled) <= SAME * max(real, shuffled):
        effect = OrderEffect.LITTLE
    else:
        effect = OrderEffect.HELPS if real < shuffled else OrderEffect.HURTS
    return OrderAtCapacity(effect, result.capacities[place], real, shuffled)
