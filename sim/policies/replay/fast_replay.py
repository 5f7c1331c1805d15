"""Cache-only replay of whole request streams, for the policies whose hits change little: millions of requests a second.

Equal in every miss to the classes of ``sim.policies.eviction`` replayed one request at a time, and to libCacheSim 0.3.5
(``cacheAlgo/LRU.c, FIFO.c, Clock.c, Sieve.c``): a cache starts empty; adapters leave until the new one fits; one larger
than the cache is a miss that evicts nothing and is never kept.

They are fast because a hit that changes nothing runs no Python code: ``filterfalse(settled.__getitem__, chunk)``
checks a bytearray, in C, for whether the next request would change anything, and yields only those that would. Each
request is checked after the one before was processed, so every answer is current.
"""

from __future__ import annotations

from collections import OrderedDict, deque
from collections.abc import Callable, Iterator
from itertools import filterfalse

import numpy as np
from numpy.typing import NDArray

Kernel = Callable[[NDArray[np.integer], NDArray[np.int64], int], tuple[int, int]]
"""``kernel(objects, sizes, capacity)`` replays one stream.

:param objects: (requests,) adapter of each request, from 0 to ``len(sizes) - 1``.
:param sizes: (adapters,) bytes of each adapter; ones where the capacity counts slots.
:param capacity: bytes that the cache holds.
:returns: misses, and the bytes of those misses.
"""

CHUNK = 1 << 16
"""Requests converted to Python numbers at a time: 10 million at once would take 400 MB."""


def lru(objects: NDArray[np.integer], sizes: NDArray[np.int64], capacity: int) -> tuple[int, int]:
    """Replay least recently used: the least recently requested leaves first."""
    refused, refused_bytes, requests = _fitting(objects, sizes, capacity)
    size, free = sizes.tolist(), capacity
    order: OrderedDict[int, None] = OrderedDict()
    touch, evict = order.move_to_end, order.popitem
    misses = missed_bytes = 0
    for chunk in requests:
        for adapter in chunk:
            if adapter in order:
                touch(adapter)
                continue
            misses += 1
            need = size[adapter]
            missed_bytes += need
            while free < need:
                free += size[evict(False)[0]]
            free -= need
            order[adapter] = None
    return misses + refused, missed_bytes + refused_bytes


def fifo(objects: NDArray[np.integer], sizes: NDArray[np.int64], capacity: int) -> tuple[int, int]:
    """Replay first in, first out: hits change nothing."""
    refused, refused_bytes, requests = _fitting(objects, sizes, capacity)
    size, free = sizes.tolist(), capacity
    resident = bytearray(len(size))
    queue: deque[int] = deque()
    enter, leave = queue.append, queue.popleft
    misses = missed_bytes = 0
    for chunk in requests:
        for adapter in filterfalse(resident.__getitem__, chunk):
            misses += 1
            need = size[adapter]
            missed_bytes += need
            while free < need:
                victim = leave()
                resident[victim] = 0
                free += size[victim]
            free -= need
            resident[adapter] = 1
            enter(adapter)
    return misses + refused, missed_bytes + refused_bytes


def clock(objects: NDArray[np.integer], sizes: NDArray[np.int64], capacity: int) -> tuple[int, int]:
    """Replay CLOCK with one bit: FIFO, but an adapter that was hit since its last check moves to the back once more."""
    refused, refused_bytes, requests = _fitting(objects, sizes, capacity)
    size, free = sizes.tolist(), capacity
    resident = [False] * len(size)
    visited = bytearray(len(size))  # only residents are; hits of visited ones change nothing
    queue: deque[int] = deque()
    enter, leave = queue.append, queue.popleft
    misses = missed_bytes = 0
    for chunk in requests:
        for adapter in filterfalse(visited.__getitem__, chunk):
            if resident[adapter]:
                visited[adapter] = 1
                continue
            misses += 1
            need = size[adapter]
            missed_bytes += need
            while free < need:
                candidate = leave()
                if visited[candidate]:
                    visited[candidate] = 0
                    enter(candidate)
                else:
                    resident[candidate] = False
                    free += size[candidate]
            free -= need
            resident[adapter] = True
            enter(adapter)
    return misses + refused, missed_bytes + refused_bytes


def sieve(objects: NDArray[np.integer], sizes: NDArray[np.int64], capacity: int) -> tuple[int, int]:
    """Replay SIEVE (Zhang et al., NSDI 2024): a hand moves from old to new and spares visited adapters once.

    Adapters keep their places.

    The queue is a list of the next newer adapter, closed to a ring by ``end``. The hand is between ``behind`` and the
    next newer one, which is enough to remove an adapter without a second list.
    """
    refused, refused_bytes, requests = _fitting(objects, sizes, capacity)
    size, free = sizes.tolist(), capacity
    resident = [False] * len(size)
    visited = bytearray(len(size))
    end = newest = behind = len(size)
    newer = [end] * (end + 1)
    misses = missed_bytes = 0
    for chunk in requests:
        for adapter in filterfalse(visited.__getitem__, chunk):
            if resident[adapter]:
                visited[adapter] = 1
                continue
            misses += 1
            need = size[adapter]
            missed_bytes += need
            while free < need:
                victim = newer[behind]
                while visited[victim]:
                    visited[victim] = 0
                    behind, victim = victim, newer[victim]
                    if victim == end:
                        behind, victim = end, newer[end]
                resident[victim] = False
                free += size[victim]
                newer[behind] = newer[victim]
                if newer[victim] == end:
                    # The hand removed the newest: it restarts at the oldest, not at the next one to enter.
                    newest, behind = behind, end
            free -= need
            resident[adapter] = True
            newer[newest] = adapter
            newer[adapter] = end
            newest = adapter
    return misses + refused, missed_bytes + refused_bytes


KERNELS: dict[str, Kernel] = {"lru": lru, "fifo": fifo, "clock": clock, "sieve": sieve}
"""Kernel of each policy that has one."""


def _fitting(
    objects: NDArray[np.integer], sizes: NDArray[np.int64], capacity: int
) -> tuple[int, int, Iterator[list[int]]]:
    """Return the misses and missed bytes of adapters larger than the cache, and the other requests in chunks."""
    large = sizes > capacity
    if not large.any():
        return 0, 0, (objects[start : start + CHUNK].tolist() for start in range(0, len(objects), CHUNK))
    counts = np.bincount(objects, minlength=len(sizes)) * large
    chunks = (objects[start : start + CHUNK] for start in range(0, len(objects), CHUNK))
    return int(counts.sum()), int(counts @ sizes), (chunk[~large[chunk]].tolist() for chunk in chunks)
