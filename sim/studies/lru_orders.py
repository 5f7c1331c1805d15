"""LRU's miss ratios in the order of a trace, in random orders, and of independent draws: what locality saves."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from sim.policies.replay.lru_curve import che_byte_miss_ratios, che_miss_ratios, lru_byte_curve
from sim.rng import stream

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
