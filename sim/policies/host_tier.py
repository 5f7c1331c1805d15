"""Copies of adapters in host memory."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterable, Sequence


class HostTier:
    """Copies of adapters in host memory. This one does not exist: every load reads storage.

    :cvar present: whether loads can come from host memory.
    """

    present = False

    def holds(self, adapter: int) -> bool:
        """Return whether there is a copy, or one is being loaded."""
        return False

    def touch(self, adapter: int) -> bool:
        """Return whether there is a copy; if so, count a use."""
        return False

    def insert(self, adapter: int) -> None:
        """Keep a copy of an adapter that came from storage."""

    def discard(self, adapter: int) -> None:
        """Drop the copy of an adapter that will not be requested again, if there is one and it may go."""

    def pin_instead(self, old: int, new: int) -> None:
        """Move the pin of ``old``, if it has one, to ``new``."""

    def check_integrity(self) -> None:
        """Assert that the running sums agree with a fresh count."""


class AllInHost(HostTier):
    """Host memory that holds every adapter from the start, and drops none.

    :param absent: exceptions, which stay once they have been loaded from storage.
    """

    present = True

    def __init__(self, absent: Iterable[int] = ()) -> None:
        self._absent = set(absent)

    def holds(self, adapter: int) -> bool:
        return adapter not in self._absent

    def touch(self, adapter: int) -> bool:
        return adapter not in self._absent

    def insert(self, adapter: int) -> None:
        self._absent.discard(adapter)


class HostCache(HostTier):
    """Copies of adapters in host memory: LRU, filled by every load from storage.

    :param weights: bytes, or 1 if slots are counted. An adapter larger than the capacity is never kept.
    """

    present = True

    def __init__(self, weights: Sequence[int], capacity: int) -> None:
        self.weights = weights
        self.capacity = capacity
        self.used = 0
        self._order: OrderedDict[int, None] = OrderedDict()

    def holds(self, adapter: int) -> bool:
        return adapter in self._order

    def touch(self, adapter: int) -> bool:
        if adapter not in self._order:
            return False
        self._order.move_to_end(adapter)
        return True

    def discard(self, adapter: int) -> None:
        if adapter in self._order:
            del self._order[adapter]
            self.used -= self.weights[adapter]

    def insert(self, adapter: int) -> None:
        """Keep a copy, dropping the least recently used ones to make room."""
        weight = self.weights[adapter]
        if adapter in self._order or weight > self.capacity:
            return
        while self.used + weight > self.capacity:
            self.used -= self.weights[self._order.popitem(last=False)[0]]
        self._order[adapter] = None
        self.used += weight

    def check_integrity(self) -> None:
        """Assert that the sum of weights is right and within the capacity."""
        assert self.used == sum(self.weights[adapter] for adapter in self._order) <= self.capacity
