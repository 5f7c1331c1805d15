"""Adapters in the memory of the KV cache."""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence

from sim.policies.adapter_cache import ABSENT, GpuCache
from sim.policies.eviction import Eviction


class UnifiedCache(GpuCache):
    """Adapters that take their memory from the KV cache, block by block, as in S-LoRA's unified paging.

    The capacity counts adapters, as in a cache of slots; in addition, blocks must be free.

    :param blocks: KV blocks that each adapter takes.
    :param room: returns the number of blocks that the batch leaves to adapters. A ``KvRule`` makes sure that the
        adapters of the batch fit; idle ones are evicted when room runs short.
    """

    def __init__(self, slots: int, eviction: Eviction, blocks: Sequence[int], room: Callable[[], int]) -> None:
        super().__init__([1] * len(blocks), slots, eviction)
        self.blocks = blocks
        self.blocks_used = 0
        self._room = room

    def serve_base_model(self) -> int:
        self.blocks = [*self.blocks, 0]
        return super().serve_base_model()

    def _fits(self, adapter: int) -> bool:
        return self.blocks_used + self.blocks[adapter] <= self._room() and super()._fits(adapter)

    def _make_room(self, adapter: int, spared: Collection[int] = ()) -> None:
        assert not spared, "loads that block steps are never made ahead of time"
        self.shrink(self.blocks[adapter])
        super()._make_room(adapter)

    def _place(self, adapter: int) -> None:
        self.blocks_used += self.blocks[adapter]
        super()._place(adapter)

    def shrink(self, needed: int = 0) -> None:
        """Evict idle adapters until the others and ``needed`` more blocks fit into the room."""
        while self.blocks_used + needed > self._room():
            self._evict_next()

    def _leave(self, victim: int) -> int:
        self.blocks_used -= self.blocks[victim]
        return super()._leave(victim)

    def abort(self, adapter: int) -> None:
        self.blocks_used -= self.blocks[adapter]
        super().abort(adapter)

    def check_integrity(self) -> None:
        super().check_integrity()
        placed = (blocks for blocks, state in zip(self.blocks, self.state, strict=True) if state != ABSENT)
        assert self.blocks_used == sum(placed) <= self._room()
