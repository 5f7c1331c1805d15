"""Cache-only replay: a stream of requests goes through a cache, and nothing takes time.

No loads under way, nothing in use, no queues: what miss-ratio curves and libCacheSim count. The policies are those of
the simulator, so a replay says what they do; ``KERNELS`` are faster ways to the same counts.
"""

from __future__ import annotations

from collections import OrderedDict, deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import filterfalse
from math import inf

import numpy as np
from numpy.typing import NDArray

from sim.errors import InputError, did_you_mean
from sim.policies.eviction import Eviction, EvictionContext, check_eviction, make_eviction
from sim.rng import stream
from sim.spec.policies import EVICTIONS, EvictionEntry

LIMIT = 2**63
"""Sums of bytes from here on would overflow silently: numpy's integers have 64 bits."""


def check_byte_sums(requests: int, sizes: NDArray[np.integer]) -> None:
    """Refuse sizes for which the bytes of all requests might overflow.

    :raises InputError: if requests times the largest size is not below 2**63.
    """
    largest = int(sizes.max()) if len(sizes) else 0
    if requests * largest >= LIMIT:
        raise InputError(
            "the bytes of all requests are too many to be counted",
            key="adapter_bytes",
            got=largest,
            allowed=f"at most {(LIMIT - 1) // requests:,} for {requests:,} requests",
            hint="sizes are in bytes: is the column in another unit?",
        )


Ints = NDArray[np.integer]


@dataclass(frozen=True, slots=True)
class Replayed:
    """What a replay counted.

    :ivar capacity: bytes, or slots where every size is 1.
    """

    policy: str
    capacity: int
    requests: int
    misses: int
    missed_bytes: int
    requested_bytes: int

    @property
    def miss_ratio(self) -> float:
        """Misses over requests."""
        return self.misses / self.requests if self.requests else 0.0

    @property
    def byte_miss_ratio(self) -> float:
        """Bytes of misses over bytes of requests."""
        return self.missed_bytes / self.requested_bytes if self.requested_bytes else 0.0


def replay(policy: str | EvictionEntry, objects: Ints, sizes: Ints, capacity: int, seed: int = 1) -> Replayed:
    """Replay a stream through a cold cache.

    :param policy: a name, or an entry that a call gives.
    :param objects: (requests,) the object of each request, from 0 to ``len(sizes) - 1``.
    :param sizes: (objects,) bytes of each, above 0; ones where the capacity counts slots. An object larger than the
        cache is a miss, evicts nothing and never stays.
    :param capacity: bytes or slots.
    :param seed: of ``random``, the only policy that draws.
    :raises InputError: for a policy that is unknown, or that decides by what runs in a batch; for sizes whose sum over
        all requests is too large to be counted.
    """
    entry = replayable(policy)
    check_byte_sums(len(objects), sizes)
    kernel = None if entry.origin else KERNELS.get(entry.name)
    if kernel is None:
        return replay_stepwise(entry, objects, sizes, capacity, seed)
    misses, missed = kernel(objects, sizes.astype(np.int64), capacity)
    return Replayed(entry.name, capacity, len(objects), misses, missed, int(sizes[objects].sum(dtype=np.int64)))


def replay_stepwise(policy: str | EvictionEntry, objects: Ints, sizes: Ints, capacity: int, seed: int = 1) -> Replayed:
    """Replay through the simulator's own policy, one request after the other; parameters and errors as ``replay``."""
    entry = replayable(policy)
    check_byte_sums(len(objects), sizes)
    weights: list[int] = sizes.tolist()
    # Belady looks up only the object of the request at hand: for others the answer has stayed the same since.
    at_hand = [-1.0, inf]
    context = EvictionContext(
        weights,
        capacity,
        stream(seed, 0, "eviction"),
        lambda: at_hand[0],
        lambda adapter: at_hand[1],
        lambda: at_hand[0],
    )
    stepper = _Stepper(make_eviction(entry, context), weights, capacity)
    after = next_uses(objects) if entry.needs_future else None
    for start in range(0, len(objects), CHUNK):
        chunk: list[int] = objects[start : start + CHUNK].tolist()
        stepper.go_on(chunk, at_hand, None if after is None else after[start : start + CHUNK].tolist())
    return Replayed(
        entry.name, capacity, len(objects), stepper.misses, stepper.missed, int(sizes[objects].sum(dtype=np.int64))
    )


class _Stepper:
    """A cache without times, which requests go through one by one.

    :ivar misses: so far; ``missed``: their bytes.
    """

    def __init__(self, eviction: Eviction, weights: Sequence[int], capacity: int) -> None:
        self.misses = self.missed = 0
        self._eviction = eviction
        self._weights = weights
        self._capacity = self._free = capacity
        self._resident = bytearray(len(weights))

    def go_on(self, objects: Sequence[int], at_hand: list[float], after: Sequence[float] | None) -> None:
        """Let more requests in.

        :param at_hand: called with the index of each, over all, and that of the next for the same object.
        :param after: the latter; None: not needed.
        """
        eviction, resident = self._eviction, self._resident
        busy, idle, touched = eviction.busy, eviction.idle, eviction.touched
        for index, adapter in enumerate(objects):
            at_hand[0] += 1
            if after is not None:
                at_hand[1] = after[index]
            if resident[adapter]:
                busy(adapter)
                if touched is not None:
                    touched(adapter)
                idle(adapter)
            else:
                self._miss(adapter)
        assert len(eviction) == sum(resident), "the eviction policy holds exactly the residents"

    def _miss(self, adapter: int) -> None:
        eviction, weights, weight = self._eviction, self._weights, self._weights[adapter]
        self.misses += 1
        self.missed += weight
        if weight > self._capacity:
            return
        if eviction.coming is not None:
            eviction.coming(adapter)
        while self._free < weight:
            victim = eviction.victim()
            assert victim is not None, "nothing is in use, so a full cache has a victim"
            self._resident[victim] = 0
            self._free += weights[victim]
        self._free -= weight
        self._resident[adapter] = 1
        eviction.loaded(adapter)
        eviction.idle(adapter)


def next_uses(objects: Ints) -> NDArray[np.float64]:
    """Return the index of the next request for the same object, shape (requests,); infinite: there is none."""
    order = np.argsort(objects, kind="stable")
    same = objects[order[1:]] == objects[order[:-1]]
    after = np.full(len(objects), inf)
    after[order[:-1][same]] = order[1:][same]
    return after


def replayable(policy: str | EvictionEntry) -> EvictionEntry:
    """Return the entry of a policy that can be replayed.

    :raises InputError: for others, with those that can.
    """
    entry = policy if isinstance(policy, EvictionEntry) else EVICTIONS.get(policy)
    if entry is not None and not entry.needs_batch:
        check_eviction(entry)
        return entry
    known = [other.name for other in EVICTIONS.all() if not other.needs_batch]
    batch = "this policy decides by what runs in a batch, and a replay has none"
    raise InputError(
        "unknown eviction policy" if entry is None else batch,
        key="--policy",
        got=policy,
        allowed=", ".join(known),
        hint=None if isinstance(policy, EvictionEntry) else did_you_mean(policy, known),
    )


# Cache-only replay of whole request streams, for the policies whose hits change little: millions of requests a second.
#
# Equal in every miss to the classes of ``sim.policies.eviction`` replayed one request at a time, and to libCacheSim
# 0.3.5 (``cacheAlgo/LRU.c, FIFO.c, Clock.c, Sieve.c``): a cache starts empty; adapters leave until the new one fits;
# one larger than the cache is a miss that evicts nothing and is never kept.
#
# They are fast because a hit that changes nothing runs no Python code: ``filterfalse(settled.__getitem__, chunk)``
# checks a bytearray, in C, for whether the next request would change anything, and yields only those that would. Each
# request is checked after the one before was processed, so every answer is current.

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
