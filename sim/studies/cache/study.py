"""Replays a trace on caches of several policies and sizes, without times: the miss ratio, and what drives it."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sim.policies.replay.cache_replay import Replayed, check_byte_sums, replay, replayable
from sim.policies.replay.lru_curve import LruOrders, lru_orders
from sim.spec.policies import EvictionEntry
from sim.spec.units import round_up
from sim.traffic.traces.read import AdapterSequence

DEFAULT_SHARES = (0.025, 0.05, 0.1, 0.2, 0.4, 0.8)
"""Default cache sizes, as shares of all adapters' bytes."""

_MOST_SLOTS = 6
_CURVE_POINTS = 120
_SMALLEST = 1 / 1000
"""The curve begins at this share of all adapters' bytes, or at the largest adapter."""


@dataclass(frozen=True, slots=True)
class CachePoint:
    """One policy at one capacity.

    :ivar capacity_bytes: the capacity in bytes; None where adapters have no known size. A slot is as large as the
        largest adapter.
    :ivar slots: the capacity where it was asked in slots, else None.
    :ivar byte_miss_ratio: missed over requested bytes; None where it isn't known.
    """

    policy: str
    capacity_bytes: int | None
    slots: int | None
    requests: int
    misses: int
    miss_ratio: float
    byte_miss_ratio: float | None

    def as_json(self) -> dict[str, Any]:
        """Return what ``loraplan cache --json`` prints."""
        return {name: value for name, value in asdict(self).items() if name != "slots" or value is not None}


@dataclass(frozen=True, slots=True)
class CacheResult:
    """All that ``loraplan cache`` reports.

    :ivar adapters: how many the trace asks for.
    :ivar by_slots: whether capacities count slots; else they are bytes.
    :ivar footprint: capacity that holds every adapter.
    :ivar equal_sizes: whether all adapters take the same room, so that Belady's choice is the best there is.
    :ivar capacities: as asked, ascending.
    :ivar points: policies in the order asked, each at every capacity.
    :ivar at: LRU's orders at the capacities; ``at_bytes`` the same in missed over requested bytes, where sizes differ.
    :ivar curve: LRU's orders over all capacities.
    :ivar shuffles: how many random orders were averaged.
    """

    requests: int
    adapters: int
    by_slots: bool
    footprint: int
    equal_sizes: bool
    policies: tuple[str, ...]
    capacities: tuple[int, ...]
    points: tuple[CachePoint, ...]
    at: LruOrders
    at_bytes: LruOrders | None
    curve: LruOrders
    shuffles: int

    def row(self, policy: str) -> tuple[CachePoint, ...]:
        """Return a policy's points, by capacity."""
        return tuple(point for point in self.points if point.policy == policy)


@dataclass(frozen=True, slots=True)
class CacheSizes:
    """The sizes of the caches to replay on: slots or bytes."""

    capacities: Sequence[int]
    by_slots: bool


def cache_sizes(
    objects: AdapterSequence, slots: Sequence[int] | None, in_bytes: Sequence[int] | None
) -> tuple[CacheSizes, list[str]]:
    """Return the sizes that were asked for, or defaults in bytes where adapters have sizes; and what to know of that.

    Default slots are the largest six powers of two below the number of adapters. Default bytes are round, from a
    fortieth to most of all adapters' bytes, and never below twice the largest adapter.
    """
    if slots is not None:
        return CacheSizes(slots, by_slots=True), []
    sizes = objects.size_bytes
    if sizes is None:
        note = "the trace doesn't say how large adapters are, so sizes count slots; --adapter-size gives bytes"
        powers = [1 << power for power in range((len(objects.names) - 1).bit_length())]
        return CacheSizes(powers[-_MOST_SLOTS:] or [1], by_slots=True), [note]
    check_byte_sums(len(objects.adapter), sizes)
    total, least = int(sizes.sum()), 2 * int(sizes.max())
    rounded = {max(round_up(share * total), least) for share in DEFAULT_SHARES}
    return CacheSizes(in_bytes or sorted(rounded), by_slots=False), []


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
        return CachePoint(policy, capacity, None, requests, misses, ratio, done.byte_miss_ratio)
    if sizes is None:
        return CachePoint(policy, None, capacity, requests, misses, ratio, None)
    # The replay counted slots: missed bytes follow from it only if all adapters are equally large.
    equal = bool((sizes == sizes[0]).all())
    return CachePoint(policy, capacity * int(sizes.max()), capacity, requests, misses, ratio, ratio if equal else None)


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
