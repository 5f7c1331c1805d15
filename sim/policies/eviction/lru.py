"""LRU: the default, so every request goes through it."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Collection

from sim.policies.eviction.eviction_policy import EvictionContext


class Lru:
    """Least recently used leaves first; an adapter counts as used until its last request ends."""

    touched: Callable[[int], None] | None = None
    coming: Callable[[int], None] | None = None

    def __init__(self, context: EvictionContext) -> None:
        self._order: OrderedDict[int, None] = OrderedDict()
        # The two that every request calls are the dictionary's own C methods.
        self.idle: Callable[[int], None] = self._order.setdefault
        self.busy: Callable[[int], None] = self._order.pop
        self.remove: Callable[[int], None] = self.busy

    def loaded(self, adapter: int) -> None:
        """Loads make no difference to the order of use."""

    def victim(self, spared: Collection[int] = ()) -> int | None:
        if not spared:
            return self._order.popitem(False)[0] if self._order else None
        victim = next((adapter for adapter in self._order if adapter not in spared), None)
        if victim is not None:
            del self._order[victim]
        return victim

    def __len__(self) -> int:
        return len(self._order)
