"""What an LRU cache would miss if requests were independent draws: Che's approximation.

H. Che, Y. Tung, Z. Wang, "Hierarchical Web caching systems", IEEE JSAC 20(7), 2002; why it is so good: C. Fricker,
P. Robert, J. Roberts, "A versatile and accurate approximation for LRU cache performance", ITC 24, 2012.

An adapter stays for the characteristic time t after each use, counted in requests: the time in which others fill the
cache. With popularity p it is then resident with probability 1 - exp(-p t), and t follows from what the cache holds:
the sum of size * (1 - exp(-p t)) is its capacity. This describes the long run. It leaves out the first requests to an
empty cache, which miss at any size.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

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
