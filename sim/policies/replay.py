"""Cache-only replay: a stream of requests goes through a cache, and nothing takes time.

No loads under way, nothing in use, no queues: what miss-ratio curves and libCacheSim count. The policies are those of
the simulator, so a replay says what they do; ``KERNELS`` (``replay_fast``) are faster ways to the same counts.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from math import inf

import numpy as np
from numpy.typing import NDArray

from sim.errors import InputError, did_you_mean
from sim.policies.eviction import EVICTIONS, Eviction, Setting
from sim.policies.replay_fast import KERNELS
from sim.rng import stream

Ints = NDArray[np.integer]

REPLAYABLE = tuple(name for name in EVICTIONS if name not in ("discard-when-idle", "cycle"))
"""Policies that need no batch to decide."""


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


def replay(policy: str, objects: Ints, sizes: Ints, capacity: int, seed: int = 1) -> Replayed:
    """Replay a stream through a cold cache.

    :param objects: (requests,) what each request asks for, from 0 to ``len(sizes) - 1``.
    :param sizes: (objects,) bytes of each, above 0; ones where the capacity counts slots. An object larger than the
        cache is a miss, evicts nobody and never stays.
    :param capacity: bytes or slots.
    :param seed: of ``random``, the only policy with luck.
    :raises InputError: for a policy that is unknown, or that decides by what runs in a batch.
    """
    _check(policy)
    kernel = KERNELS.get(policy)
    if kernel is None:
        return replay_stepwise(policy, objects, sizes, capacity, seed)
    misses, missed = kernel(objects, sizes.astype(np.int64), capacity)
    return Replayed(policy, capacity, len(objects), misses, missed, int(sizes[objects].sum(dtype=np.int64)))


def replay_stepwise(policy: str, objects: Ints, sizes: Ints, capacity: int, seed: int = 1) -> Replayed:
    """Replay through the simulator's own policy, one request after the other; parameters as ``replay``."""
    _check(policy)
    weights: list[int] = sizes.tolist()
    position = [0]
    next_use = _next_use(objects, position) if policy == "belady" else None
    setting = Setting(
        weights, capacity, stream(seed, 0, "eviction"), next_use or (lambda adapter: inf), lambda: float(position[0])
    )
    misses, missed = _steps(EVICTIONS[policy](setting), objects.tolist(), weights, capacity, position)
    return Replayed(policy, capacity, len(objects), misses, missed, int(sizes[objects].sum(dtype=np.int64)))


def _steps(
    eviction: Eviction, objects: Sequence[int], weights: Sequence[int], capacity: int, position: list[int]
) -> tuple[int, int]:
    """Return misses and their bytes; ``position[0]`` counts the requests."""
    busy, idle, touched, coming = eviction.busy, eviction.idle, eviction.touched, eviction.coming
    resident = bytearray(len(weights))
    free, misses, missed = capacity, 0, 0
    for index, adapter in enumerate(objects):
        position[0] = index
        if resident[adapter]:
            busy(adapter)
            if touched is not None:
                touched(adapter)
            idle(adapter)
            continue
        misses += 1
        weight = weights[adapter]
        missed += weight
        if weight > capacity:
            continue
        if coming is not None:
            coming(adapter)
        while free < weight:
            victim = eviction.victim()
            assert victim is not None, "nothing is in use, so a full cache has somebody to evict"
            resident[victim] = 0
            free += weights[victim]
        free -= weight
        resident[adapter] = 1
        eviction.loaded(adapter)
        idle(adapter)
    assert len(eviction) == sum(resident), "the eviction policy holds exactly the residents"
    return misses, missed


def _next_use(objects: Ints, position: list[int]) -> Callable[[int], float]:
    """Return what tells when the object of the request at hand is asked for again.

    That is the only one Belady asks about: for others the answer has stayed the same since.
    """
    after = next_uses(objects).tolist()
    return lambda adapter: after[position[0]]


def next_uses(objects: Ints) -> NDArray[np.float64]:
    """Return the index of the next request for the same object, shape (requests,); infinite: there is none."""
    order = np.argsort(objects, kind="stable")
    same = objects[order[1:]] == objects[order[:-1]]
    after = np.full(len(objects), inf)
    after[order[:-1][same]] = order[1:][same]
    return after


def _check(policy: str) -> None:
    if policy in REPLAYABLE:
        return
    batch = policy in ("discard-when-idle", "cycle", "vllm-lru")
    raise InputError(
        "this policy decides by what runs in a batch, and a replay has none" if batch else "unknown eviction policy",
        key="--policy", got=policy, allowed=", ".join(REPLAYABLE), hint=did_you_mean(policy, REPLAYABLE) or None,
    )  # fmt: skip
