"""Who leaves a full cache. A policy is one class in here and one line in ``EVICTIONS``.

Names and rules are libCacheSim's where it has the policy. Adapters in use never leave; each class says what its queue
or hand does with them.
"""

from __future__ import annotations

from collections.abc import Callable

from sim.policies.eviction.chosen import Belady, Random, RefcountScore
from sim.policies.eviction.clock_sieve import ClockEviction, Sieve
from sim.policies.eviction.eviction_policy import Eviction, EvictionContext
from sim.policies.eviction.lru import Lru
from sim.policies.eviction.ranked import Fifo, Gdsf, Lfu, LfuHistory
from sim.policies.eviction.s3_fifo import S3Fifo

__all__ = ["EVICTIONS", "Eviction", "EvictionContext"]

EVICTIONS: dict[str, Callable[[EvictionContext], Eviction]] = {
    "lru": Lru, "fifo": Fifo, "clock": ClockEviction, "lfu": Lfu, "lfu-history": LfuHistory, "sieve": Sieve, "s3-fifo": S3Fifo,
    "gdsf": Gdsf, "random": Random, "belady": Belady, "refcount-score": RefcountScore,
    # These two empty the cache by rules of their own, in the world; where room is short beside that, LRU decides.
    "discard-when-idle": Lru, "cycle": Lru,
}  # fmt: skip
