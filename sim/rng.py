"""Named random streams: one for each (seed, replication, purpose, block).

A stream is addressed by its purpose, never by the order of its use. Changing the cache size, the router or the number
of replicas leaves every arrival, adapter and length unchanged, so designs are compared on the same traffic (common
random numbers).
"""

from __future__ import annotations

import hashlib

import numpy as np
from numpy.typing import NDArray


def stream(seed: int, replication: int, purpose: str, block: int = 0) -> np.random.Generator:
    """Return the generator of one purpose.

    :param purpose: such as ``"arrivals"``. Its hash is part of the key, so a renamed purpose changes results.
    :param block: index of a block of consecutive requests or adapters, so that long runs are generated in pieces.
    """
    digest = hashlib.blake2b(purpose.encode(), digest_size=8).digest()
    key = (seed, replication, int.from_bytes(digest, "little"), block)
    return np.random.Generator(np.random.PCG64(np.random.SeedSequence(key)))


_MASK = (1 << 64) - 1
_GOLDEN = 0x9E3779B97F4A7C15


def stream_key(seed: int, replication: int, purpose: str) -> int:
    """Return the 64-bit key of one purpose for ``uniform_draw``."""
    digest = hashlib.blake2b(f"{seed}/{replication}/{purpose}".encode(), digest_size=8).digest()
    return int.from_bytes(digest, "little")


def uniform_draw(key: int, number: int) -> float:
    """Return the uniform number in [0, 1) of a key and a number, such as the index of a request.

    For decisions that few requests need, or that occur as often as the design makes them (a retry, a version): each has
    a draw of its own that no other decision can shift. The mix is SplitMix64 (Steele, Lea and Flood, "Fast splittable
    pseudorandom number generators", OOPSLA 2014).
    """
    mixed = (key + number * _GOLDEN) & _MASK
    mixed = ((mixed ^ (mixed >> 30)) * 0xBF58476D1CE4E5B9) & _MASK
    mixed = ((mixed ^ (mixed >> 27)) * 0x94D049BB133111EB) & _MASK
    return ((mixed ^ (mixed >> 31)) >> 11) * 2.0**-53


def uniform_draws(key: int, numbers: NDArray[np.int64]) -> NDArray[np.float64]:
    """Return ``uniform_draw`` of many numbers at once, same shape."""
    with np.errstate(over="ignore"):
        mixed = np.uint64(key) + numbers.astype(np.uint64) * np.uint64(_GOLDEN)
        mixed = (mixed ^ (mixed >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        mixed = (mixed ^ (mixed >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        return np.asarray(((mixed ^ (mixed >> np.uint64(31))) >> np.uint64(11)) * 2.0**-53, dtype=np.float64)


_BLOCK = 1024


class UniformDraws:
    """``uniform_draw`` of one key for numbers that mostly follow each other, such as those of requests.

    A block of them is drawn at once, which costs a tenth of as many single draws.
    """

    def __init__(self, key: int) -> None:
        self._key = key
        self._first = 0
        self._block: list[float] = []

    def of(self, number: int) -> float:
        """Return the draw of a number."""
        place = number - self._first
        if place < 0:  # before the block, such as a request sent again
            return uniform_draw(self._key, number)
        if place >= len(self._block):
            self._first, place = number, 0
            self._block = uniform_draws(self._key, np.arange(number, number + _BLOCK)).tolist()
        return self._block[place]
