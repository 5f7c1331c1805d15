"""Replays a trace on caches of several policies and sizes, without times: the miss ratio, and what drives it."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from sim.policies.replay.cache_replay import Replayed, replay, replayable
from sim.results.traces.cache_points import CachePoint, CacheResult, LruOrders
from sim.spec.policies import EvictionEntry
from sim.studies.lru_orders import lru_orders

DEFAULT_SHARES = (0.025, 0.05, 0.1, 0.2, 0.4, 0.8)
"""Default cache sizes, as shares of all adapters' bytes."""

_MOST_SLOTS = 6
_CURVE_POINTS = 120
_SMALLEST = 1 / 1000
"""The curve begins at this share of all adapters' bytes, or at the largest adapter."""


@dataclass(frozen=True, slots=True)
class CacheSizes:
    """The sizes of the caches to replay on: slots or bytes."""

    capacities: Sequence[int]
    by_slots: bool


def default_slots(adapters: int) -> tuple[int, ...]:
    """Return powers of two below the number of adapters, the largest six; 1 where there is one adapter."""
    return tuple(1 << power for power in range((adapters - 1).bit_length()))[-_MOST_SLOTS:] or (1,)


def default_capacities(sizes: NDArray[np.int64]) -> tuple[int, ...]:
    """Return round sizes from a fortieth to most of all adapters' bytes, none below twice the largest adapter."""
    total, least = int(sizes.sum()), 2 * int(sizes.max())
    rounded = {_two_digits(share * total) for share in DEFAULT_SHARES}
    return tuple(sorted({max(size, least) for size in rounded}))


def study_cache(
    adapter: NDArray[np.int32],
    sizes: NDArray[np.int64] | None,
    policies: Sequence[str | EvictionEntry],
    caches: CacheSizes,
    *,
    seed: int = 1,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> CacheResult:
    """Replay every policy at every capacity, and LRU in shuffled orders of the trace.

    :param adapter: (requests,) adapters from 0 on, at least one request.
    :param sizes: (adapters,) bytes, or None where they are unknown; then caches must count slots.
    :param policies: names, or entries of policies from outside.
    :param seed: of the shuffles and of random policies.
    :param progress: called with the replays done and the replays there are.
    """
    by_slots = caches.by_slots
    assert by_slots or sizes is not None, "a capacity in bytes needs the adapters' sizes"
    adapters = int(adapter.max()) + 1
    weights = np.ones(adapters, dtype=np.int64) if by_slots or sizes is None else sizes
    asked = tuple(sorted(set(caches.capacities)))
    points = []
    entries = [replayable(policy) for policy in policies]
    total = len(entries) * len(asked) + 1
    for policy in entries:
        for capacity in asked:
            done = replay(policy, adapter, weights, capacity, seed)
            points.append(_point(policy.name, capacity, caches.by_slots, sizes, done))
            progress(len(points), total)
    equal = bool((weights == weights[0]).all())
    grid = _grid(weights, asked)
    objects, bytes_, shuffles = lru_orders(adapter, weights, grid, seed)
    places = np.searchsorted(grid, asked)
    progress(total, total)
    return CacheResult(
        requests=len(adapter),
        adapters=adapters,
        by_slots=by_slots,
        footprint=int(weights.sum()),
        equal_sizes=equal,
        policies=tuple(entry.name for entry in entries),
        capacities=asked,
        points=tuple(points),
        at=_at(objects, places),
        at_bytes=None if equal else _at(bytes_, places),
        curve=objects,
        shuffles=shuffles,
    )


def _point(policy: str, capacity: int, by_slots: bool, sizes: NDArray[np.int64] | None, done: Replayed) -> CachePoint:
    requests, misses = done.requests, done.misses
    ratio = misses / requests
    if not by_slots:
        return CachePoint(policy, None, capacity, requests, misses, ratio, done.byte_miss_ratio)
    if sizes is None:
        return CachePoint(policy, capacity, None, requests, misses, ratio, None)
    # The replay counted slots: missed bytes follow from it only if all adapters are equally large.
    equal = bool((sizes == sizes[0]).all())
    return CachePoint(policy, capacity, capacity * int(sizes.max()), requests, misses, ratio, ratio if equal else None)


def _grid(weights: NDArray[np.int64], asked: Sequence[int]) -> NDArray[np.int64]:
    """Return the capacities of the curve: evenly spaced on a logarithmic axis, plus those in ``asked``."""
    total = int(weights.sum())
    low = max(int(weights.max()), math.ceil(total * _SMALLEST))
    spaced = np.geomspace(low, total, _CURVE_POINTS).round().astype(np.int64)
    if (weights == weights[0]).all():
        spaced -= spaced % weights[0]  # between two whole numbers of adapters nothing changes
    return np.unique(np.concatenate([spaced, np.asarray(asked, dtype=np.int64)]))


def _at(orders: LruOrders, places: NDArray[np.intp]) -> LruOrders:
    return LruOrders(
        orders.capacities[places], orders.real[places], orders.shuffled[places], orders.independent[places]
    )


def _two_digits(size: float) -> int:
    unit = int(10.0 ** max(math.floor(math.log10(size)) - 1, 0))
    return math.ceil(size / unit) * unit
