"""Misses of an LRU cache at every size: in one pass over a request stream, or by Che's approximation.

LRU has the stack property (Mattson et al., IBM Systems Journal 1970): a request hits exactly where the cache has at
least as many slots as its stack distance, the number of distinct adapters from its adapter's last use up to and with
itself.

Here ``last[i]`` is the position of the same adapter's request before position i. Of the ``i - last[i] - 1`` requests
between the two, those with ``last[j] > last[i]`` repeat an adapter seen in between already; any other j before i has
``last[j] < j <= last[i]``. So

    distance[i] = i - last[i] - (number of j < i with last[j] > last[i]),

and the bracket counts inversions, which takes log2(requests) passes of numpy over the array and no loop over requests.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from sim.arrays import Ints
from sim.policies.replay.cache_replay import check_byte_sums, lru
from sim.rng import stream

CHUNK = 1 << 20
"""Requests whose distances are counted at a time: about 60 MB of work space, whatever the length of the trace."""


@dataclass(frozen=True, slots=True)
class LruCurve:
    """Requests by stack distance.

    :ivar counts: (adapters + 1,) at d the requests that hit with d slots or more and miss with fewer; none at 0.
    :ivar first: first requests of an adapter, which miss at every size: a cache starts empty.
    """

    counts: NDArray[np.int64]
    first: int

    @property
    def requests(self) -> int:
        return int(self.counts.sum()) + self.first

    def misses(self, slots: Sequence[int] | NDArray[np.integer]) -> NDArray[np.int64]:
        """Return the misses with so many slots each; 0 slots hold nothing."""
        hits = np.cumsum(self.counts)
        return self.requests - hits[np.clip(np.asarray(slots, dtype=np.int64), 0, len(hits) - 1)]

    def miss_ratios(self, slots: Sequence[int] | NDArray[np.integer]) -> NDArray[np.float64]:
        """Return misses over requests with so many slots each."""
        return self.misses(slots) / self.requests


def lru_curve(objects: NDArray[np.integer], chunk: int = CHUNK) -> LruCurve:
    """Return the whole LRU curve of a stream.

    :param objects: (requests,) adapters, numbered from 0 without many gaps.
    :param chunk: requests at a time; changes time and memory, never the result.
    """
    adapters = int(objects.max()) + 1 if len(objects) else 0
    counts = np.zeros(adapters + 1, dtype=np.int64)
    first = 0
    for distances, repeated, _ in _distances(objects, np.ones(adapters, dtype=np.int64), chunk):
        counts += np.bincount(distances, minlength=adapters + 1)
        first += int((~repeated).sum())
    return LruCurve(counts, first)


def lru_byte_curve(
    objects: NDArray[np.integer],
    sizes: NDArray[np.int64],
    capacities: Sequence[int] | NDArray[np.int64],
    chunk: int = CHUNK,
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Return misses and missed bytes at each capacity, exact for sizes of any mix.

    The stack property also holds in bytes. The residents are always the top of the LRU stack, and the next adapter
    below does not fit in addition. That is true after an eviction, which removes no more than needed, and it stays true
    after hits, which only reorder the top, and after loads of adapters from below. So a request hits exactly if the
    bytes from its adapter's last use up to and including itself fit. Only an adapter larger than the cache breaks this,
    because it is never kept; capacities below the largest adapter are replayed one by one.

    :param sizes: (adapters,) bytes, all positive.
    :param capacities: bytes, in any order.
    :raises InputError: for sizes whose sum over all requests is too large to be counted.
    """
    check_byte_sums(len(objects), sizes)
    asked = np.asarray(capacities, dtype=np.int64)
    misses, missed_bytes = np.zeros((2, len(asked)), dtype=np.int64)
    largest = int(sizes.max()) if len(sizes) else 0
    for index in np.flatnonzero(asked < largest):
        misses[index], missed_bytes[index] = lru(objects, sizes, int(asked[index]))
    holding = np.flatnonzero(asked >= largest)
    holding = holding[np.argsort(asked[holding])]
    # found[k]: requests that the k-th capacity holds and the one before doesn't; the last: those that none holds.
    found, found_bytes = np.zeros((2, len(holding) + 1), dtype=np.int64)
    for distances, repeated, requested in _distances(objects, sizes, chunk):
        holds = np.full(len(requested), len(holding))
        holds[repeated] = np.searchsorted(asked[holding], distances, side="left")
        np.add.at(found, holds, 1)
        np.add.at(found_bytes, holds, sizes[requested])
    misses[holding] = found.sum() - np.cumsum(found)[:-1]
    missed_bytes[holding] = found_bytes.sum() - np.cumsum(found_bytes)[:-1]
    return misses, missed_bytes


def _distances(
    objects: NDArray[np.integer], weights: NDArray[np.int64], chunk: int
) -> Iterator[tuple[NDArray[np.int64], NDArray[np.bool_], NDArray[np.integer]]]:
    """Yield, chunk by chunk, weighted stack distances of repeated requests, which requests repeat, and all requests.

    A chunk begins with the LRU stack so far, least recent first, as if these requests came just before it. That is
    all that later distances depend on, so the result is the same as in one piece.
    """
    used = np.full(len(weights), -1, dtype=np.int64)  # where each adapter was requested last
    for start in range(0, len(objects), chunk):
        requested = objects[start : start + chunk]
        known = np.flatnonzero(used >= 0)
        stack = known[np.argsort(used[known])]
        stream = np.concatenate([stack, requested])
        last = _last_use(stream)
        repeated = last >= 0
        position = np.flatnonzero(repeated)
        before = last[position]
        total = np.concatenate([[0], np.cumsum(weights[stream])])
        between = total[position + 1] - total[before + 1]
        repeats = _larger_before(before, weights[stream[position]])
        yield between - repeats, repeated[len(stack) :], requested
        used[requested] = np.arange(start, start + len(requested))  # for equal adapters the last assignment wins


def _last_use(stream: NDArray[np.integer]) -> NDArray[np.int64]:
    """Return the position of the request before with the same adapter, -1 where there is none."""
    # numpy sorts 16-bit numbers by radix: ten times as fast.
    keys = stream.astype(np.uint16) if len(stream) and stream.max() < 1 << 16 else stream
    order = np.argsort(keys, kind="stable")
    same = keys[order[1:]] == keys[order[:-1]]
    last = np.full(len(stream), -1, dtype=np.int64)
    last[order[1:][same]] = order[:-1][same]
    return last


def _larger_before(values: Ints, weights: Ints) -> Ints:
    """Return for each value the sum of the weights of larger ones to its left; values are distinct.

    Values become ranks, which are sorted stably by their bits, highest bit first. Two ranks separate at the highest bit
    in which they differ. There the one with a 1 is larger, and counts for every 0 to its right in its group. A group
    shares all higher bits, so it begins at its smallest rank.
    """
    count = len(values)
    if not count:
        return np.zeros(0, dtype=np.int64)
    equal = bool((weights == weights[0]).all())
    seen = np.zeros(int(values.max()) + 1, dtype=np.int64)
    seen[values] = 1
    original: Ints = np.cumsum(seen)[values] - 1
    ranks, weight = original, None if equal else weights
    places = np.arange(count)
    larger = np.zeros(count, dtype=np.int64)
    for shift in range((count - 1).bit_length() - 1, -1, -1):
        ones = (ranks >> shift) & 1
        group = (ranks >> (shift + 1)) << (shift + 1)
        left = _sum_before(ones, group)
        heavier = left if weight is None else _sum_before(ones * weight, group)
        larger = larger + np.where(ones, 0, heavier)
        target = np.where(ones, group + (1 << shift) + left, places - left)
        ranks, larger = _moved(ranks, target), _moved(larger, target)
        weight = None if weight is None else _moved(weight, target)
    return larger[original] * (weights[0] if equal else 1)


def _sum_before(values: Ints, group: Ints) -> Ints:
    """Return at each place the sum of the values from the start of its group up to, but not including, itself."""
    before = np.cumsum(values) - values
    return before - before[group]


def _moved(values: Ints, target: Ints) -> Ints:
    moved = np.empty_like(values)
    moved[target] = values
    return moved


# What an LRU cache would miss if requests were independent draws: Che's approximation.
#
# H. Che, Y. Tung, Z. Wang, "Hierarchical Web caching systems", IEEE JSAC 20(7), 2002; why it is so good: C. Fricker, P.
# Robert, J. Roberts, "A versatile and accurate approximation for LRU cache performance", ITC 24, 2012.
#
# An adapter stays for the characteristic time t after each use, counted in requests: the time in which others fill the
# cache. With popularity p it is then resident with probability 1 - exp(-p t), and t follows from what the cache holds:
# the sum of size * (1 - exp(-p t)) is its capacity. This describes the long run. It leaves out the first requests to an
# empty cache, which miss at any size.

Capacities = Sequence[int] | NDArray[np.int64]

_HALVINGS = 200


def che_miss_ratios(
    popularity: NDArray[np.float64], capacities: Capacities, sizes: NDArray[np.int64] | None = None
) -> NDArray[np.float64]:
    """Return the share of requests that miss at each capacity.

    :param popularity: (adapters,) share of requests, or counts.
    :param capacities: slots, or bytes where ``sizes`` are given.
    :param sizes: (adapters,) bytes of each adapter; None: a slot each. One larger than the cache is never kept.
    """
    return _miss_shares(popularity, capacities, sizes, None)


def che_byte_miss_ratios(
    popularity: NDArray[np.float64], capacities: Capacities, sizes: NDArray[np.int64]
) -> NDArray[np.float64]:
    """Return the share of requested bytes that miss at each capacity; parameters as for ``che_miss_ratios``."""
    return _miss_shares(popularity, capacities, sizes, sizes)


def characteristic_time(shares: NDArray[np.float64], weights: NDArray[np.float64], capacity: float) -> float:
    """Return the time, in requests, after which an unused adapter is evicted.

    :param shares: (adapters,) share of requests each, all positive.
    :param weights: (adapters,) what each takes of the capacity.
    :returns: infinity if all fit, 0 if none does.
    """
    if capacity >= weights.sum():
        return math.inf
    if capacity <= 0:
        return 0.0
    low, high = 0.0, 1.0
    while _held(shares, weights, high) < capacity:
        low, high = high, 2 * high
    for _ in range(_HALVINGS):
        middle = (low + high) / 2
        if middle in (low, high):  # no float between the two
            break
        low, high = (middle, high) if _held(shares, weights, middle) < capacity else (low, middle)
    return high


def _held(shares: NDArray[np.float64], weights: NDArray[np.float64], time: float) -> float:
    return float(-(weights * np.expm1(-shares * time)).sum())


def _miss_shares(
    popularity: NDArray[np.float64],
    capacities: Capacities,
    sizes: NDArray[np.int64] | None,
    counted: NDArray[np.int64] | None,
) -> NDArray[np.float64]:
    used = popularity > 0
    weights = None if sizes is None else sizes[used]
    shares = popularity[used] / popularity[used].sum()
    traffic = shares if counted is None else shares * counted[used]
    traffic = traffic / traffic.sum()
    return np.array([float(traffic @ che_misses(shares, capacity, weights)) for capacity in np.asarray(capacities)])


def che_misses(
    shares: NDArray[np.float64], capacity: float, sizes: NDArray[np.int64] | None = None
) -> NDArray[np.float64]:
    """Return the probability that a request for each adapter misses, (adapters,).

    :param shares: (adapters,) share of requests each, all positive.
    :param capacity: slots, or bytes where ``sizes`` are given.
    :param sizes: as for ``che_miss_ratios``.
    """
    weights = np.ones(len(shares)) if sizes is None else sizes.astype(np.float64)
    if (weights == weights[0]).all():
        capacity = math.floor(capacity / weights[0]) * weights[0]  # nothing fits into the rest
    fits = weights <= capacity
    time = characteristic_time(shares[fits], weights[fits], capacity)
    staying = np.exp(-shares * time) if math.isfinite(time) else np.zeros(len(shares))
    return np.where(fits, staying, 1.0)


# LRU's miss ratios in the order of a trace, in random orders, and of independent draws: what locality saves.

_SHUFFLED_REQUESTS, _MOST_SHUFFLES = 500_000, 5
"""Short traces are shuffled several times: one order of a few thousand requests varies by chance."""

MissRatios = tuple[NDArray[np.float64], NDArray[np.float64]]


@dataclass(frozen=True, slots=True)
class LruOrders:
    """Miss ratios of LRU at some capacities: in the real order, and in orders without locality.

    :ivar capacities: slots or bytes, ascending; all others have the same shape.
    :ivar real: the trace as it is; exact.
    :ivar shuffled: the same requests in random order, mean over some shuffles.
    :ivar independent: requests drawn independently with the trace's popularity: Che's approximation.
    """

    capacities: NDArray[np.int64]
    real: NDArray[np.float64]
    shuffled: NDArray[np.float64]
    independent: NDArray[np.float64]


def lru_orders(
    adapter: NDArray[np.int32], weights: NDArray[np.int64], grid: NDArray[np.int64], seed: int
) -> tuple[LruOrders, LruOrders, int]:
    """Return LRU's miss ratios of requests and of bytes, in real and shuffled orders, and the number of shuffles.

    :param weights: (adapters,) bytes, or 1 where ``grid`` counts slots; ``grid``: capacities, ascending.
    """
    real = _lru_ratios(adapter, weights, grid)
    shuffles = max(1, min(_MOST_SHUFFLES, _SHUFFLED_REQUESTS // len(adapter)))
    orders = [
        _lru_ratios(stream(seed, number, "shuffle").permutation(adapter), weights, grid) for number in range(shuffles)
    ]
    counts = np.bincount(adapter).astype(np.float64)
    draws = che_miss_ratios(counts, grid, weights), che_byte_miss_ratios(counts, grid, weights)
    objects, bytes_ = (
        LruOrders(grid, real[i], np.mean([order[i] for order in orders], axis=0), draws[i]) for i in (0, 1)
    )
    return objects, bytes_, shuffles


def _lru_ratios(adapter: NDArray[np.int32], weights: NDArray[np.int64], grid: NDArray[np.int64]) -> MissRatios:
    misses, missed_bytes = lru_byte_curve(adapter, weights, grid)
    requested = int(np.bincount(adapter, minlength=len(weights)) @ weights)
    return misses / len(adapter), missed_bytes / requested
