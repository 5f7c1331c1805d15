"""Who leaves a full cache. A policy is one class here and one line in ``EVICTIONS``."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable
from heapq import heappop, heappush
from typing import Protocol


class Eviction(Protocol):
    """Keep the idle residents (resident and not in use) in an order of leaving.

    ``loaded`` is called at the end of every load, before ``idle`` if nobody uses the adapter. ``idle`` is called when
    an adapter becomes resident unused or loses its last user, ``busy`` when an idle one is used again, ``victim`` to
    take the next one out. In-use adapters are never offered.
    """

    @property
    def idle(self) -> Callable[[int], None]: ...

    @property
    def busy(self) -> Callable[[int], None]: ...

    def loaded(self, adapter: int) -> None: ...

    def victim(self) -> int | None: ...

    def __len__(self) -> int: ...


class Lru:
    """Least recently used leaves first; an adapter counts as used until its last request ends."""

    def __init__(self) -> None:
        self._order: OrderedDict[int, None] = OrderedDict()
        # The two that every request calls are the dictionary's own C methods.
        self.idle: Callable[[int], None] = self._order.setdefault
        self.busy: Callable[[int], None] = self._order.__delitem__

    def loaded(self, adapter: int) -> None:
        """Loads make no difference to the order of use."""

    def victim(self) -> int | None:
        return self._order.popitem(False)[0] if self._order else None

    def __len__(self) -> int:
        return len(self._order)


class Fifo:
    """First loaded leaves first, however often it was used."""

    def __init__(self) -> None:
        self._idle: set[int] = set()
        self.busy: Callable[[int], None] = self._idle.remove
        self._loads = 0
        self._loaded: dict[int, int] = {}
        self._heap: list[tuple[int, int]] = []  # of load and adapter: all idle ones, and some that are busy again
        self._in_heap: set[int] = set()

    def loaded(self, adapter: int) -> None:
        self._loads += 1
        self._loaded[adapter] = self._loads

    def idle(self, adapter: int) -> None:
        self._idle.add(adapter)
        if adapter not in self._in_heap:
            self._in_heap.add(adapter)
            heappush(self._heap, (self._loaded[adapter], adapter))

    def victim(self) -> int | None:
        while self._heap:
            adapter = heappop(self._heap)[1]
            self._in_heap.remove(adapter)
            if adapter in self._idle:
                self._idle.remove(adapter)
                return adapter
        return None

    def __len__(self) -> int:
        return len(self._idle)


EVICTIONS: dict[str, type[Eviction]] = {
    "lru": Lru, "fifo": Fifo,
    # These two empty the cache by rules of their own, in the world; where room is short beside that, LRU decides.
    "discard-when-idle": Lru, "cycle": Lru,
}  # fmt: skip
