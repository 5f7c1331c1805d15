"""Policies that rank residents by a key which only grows while they stay: FIFO, LFU, GDSF."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Collection
from heapq import heapify, heappop, heappush, heapreplace

from sim.policies.eviction.eviction_policy import EvictionContext

# LRU: the default, so every request goes through it.


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


Key = tuple[float, int]
"""The adapter with the least leaves first; the second number tells any two apart."""


class Ranked:
    """The idle one of the least key leaves; those in use are passed over and keep their keys.

    A heap holds one entry for every idle adapter, and for some that are busy again. Its key may be out of date, but
    then it is too low, so the true least is found by putting right whatever comes up.
    """

    touched: Callable[[int], None] | None = None
    coming: Callable[[int], None] | None = None

    def __init__(self, context: EvictionContext) -> None:
        self._keys: list[Key] = [(0, 0)] * len(context.weights)
        self._idle: set[int] = set()
        self.busy: Callable[[int], None] = self._idle.remove
        self._heap: list[tuple[Key, int]] = []
        self._in_heap: set[int] = set()

    def idle(self, adapter: int) -> None:
        self._idle.add(adapter)
        if adapter not in self._in_heap:
            self._in_heap.add(adapter)
            heappush(self._heap, (self._keys[adapter], adapter))

    def victim(self, spared: Collection[int] = ()) -> int | None:
        heap, idle, keys = self._heap, self._idle, self._keys
        passed: list[tuple[Key, int]] = []
        found = None
        while heap and found is None:
            key, adapter = heap[0]
            if key != keys[adapter]:
                heapreplace(heap, (keys[adapter], adapter))
                continue
            heappop(heap)
            if adapter in spared and adapter in idle:
                passed.append((key, adapter))
                continue
            self._in_heap.remove(adapter)
            if adapter in idle:
                idle.remove(adapter)
                found = adapter
        for entry in passed:
            heappush(heap, entry)
        return found

    def remove(self, adapter: int) -> None:
        self._idle.remove(adapter)
        self._in_heap.remove(adapter)  # its key is forgotten, and after another load it may be lower
        self._heap = [entry for entry in self._heap if entry[1] != adapter]
        heapify(self._heap)

    def __len__(self) -> int:
        return len(self._idle)


class Fifo(Ranked):
    """First loaded leaves first, however often it was used."""

    def __init__(self, context: EvictionContext) -> None:
        super().__init__(context)
        self._loads = 0

    def loaded(self, adapter: int) -> None:
        self._loads += 1
        self._keys[adapter] = (self._loads, 0)


class Lfu(Ranked):
    """Fewest uses since it was loaded leaves first; of equal ones, the first to reach that count (libCacheSim's LFU).

    The load counts as the first use, and all are forgotten at eviction.
    """

    def __init__(self, context: EvictionContext) -> None:
        super().__init__(context)
        self.touched = self._touched
        self._count = 0

    def loaded(self, adapter: int) -> None:
        self._count += 1
        self._keys[adapter] = (1, self._count)

    def _touched(self, adapter: int) -> None:
        self._count += 1
        self._keys[adapter] = (self._keys[adapter][0] + 1, self._count)


class LfuHistory(Ranked):
    """Fewest uses ever leaves first, those before an eviction included; of as many, the first loaded."""

    def __init__(self, context: EvictionContext) -> None:
        super().__init__(context)
        self.touched = self._touched
        self._uses = [0] * len(context.weights)
        self._loads = 0

    def loaded(self, adapter: int) -> None:
        self._loads += 1
        self._uses[adapter] += 1
        self._keys[adapter] = (self._uses[adapter], self._loads)

    def _touched(self, adapter: int) -> None:
        self._uses[adapter] = uses = self._uses[adapter] + 1
        self._keys[adapter] = (uses, self._keys[adapter][1])


class Gdsf(Ranked):
    """Greedy dual size frequency: the least ``L + uses / weight`` leaves (libCacheSim's GDSF).

    ``L`` is the highest such value of any that left so far, taken at an adapter's last use: what isn't used any more
    falls behind. Of equals, the one used longest ago leaves. The load counts as the first use. libCacheSim puts the new
    one in first, with the ``L`` of before, and may take it out again at once; a server needs it.
    """

    def __init__(self, context: EvictionContext) -> None:
        super().__init__(context)
        self.touched = self._touched
        self._weights = context.weights
        self._uses = [0] * len(context.weights)
        self._count = 0
        self._highest = 0.0

    def loaded(self, adapter: int) -> None:
        self._uses[adapter] = 1
        self._count += 1
        self._keys[adapter] = (self._highest + 1 / self._weights[adapter], self._count)

    def _touched(self, adapter: int) -> None:
        self._uses[adapter] = uses = self._uses[adapter] + 1
        self._count += 1
        self._keys[adapter] = (self._highest + uses / self._weights[adapter], self._count)

    def victim(self, spared: Collection[int] = ()) -> int | None:
        victim = super().victim(spared)
        if victim is not None:
            self._highest = max(self._highest, self._keys[victim][0])
        return victim
