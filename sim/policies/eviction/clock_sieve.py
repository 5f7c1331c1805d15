"""Policies that look at residents one after the other: CLOCK and SIEVE."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Collection

from sim.policies.eviction.eviction_policy import EvictionContext


class _Marked:
    """Which adapters are idle, and which were used since the hand last passed."""

    coming: Callable[[int], None] | None = None

    def __init__(self, context: EvictionContext) -> None:
        self._used = bytearray(len(context.weights))
        self._idle: set[int] = set()
        self.idle: Callable[[int], None] = self._idle.add
        self.busy: Callable[[int], None] = self._idle.remove

    def touched(self, adapter: int) -> None:
        self._used[adapter] = 1

    def __len__(self) -> int:
        return len(self._idle)


class ClockEviction(_Marked):
    """First loaded leaves first, but one that was used since the hand last passed is passed once more.

    libCacheSim's Clock with one bit (FIFO with reinsertion). Who is in use is passed as well, and keeps its bit.
    """

    def __init__(self, context: EvictionContext) -> None:
        super().__init__(context)
        self._ring: OrderedDict[int, None] = OrderedDict()  # in the order in which the hand reaches them

    def loaded(self, adapter: int) -> None:
        self._used[adapter] = 0
        self._ring[adapter] = None

    def victim(self, spared: Collection[int] = ()) -> int | None:
        ring, idle, used = self._ring, self._idle, self._used
        if not _anyone(idle, spared):
            return None
        while True:
            adapter = next(iter(ring))
            if adapter not in idle or adapter in spared:
                ring.move_to_end(adapter)
            elif used[adapter]:
                used[adapter] = 0
                ring.move_to_end(adapter)
            else:
                self.remove(adapter)
                return adapter

    def remove(self, adapter: int) -> None:
        del self._ring[adapter]
        self._idle.remove(adapter)


class Sieve(_Marked):
    """A hand goes from the oldest to the newest and round again, and takes the first that wasn't used since it passed.

    libCacheSim's Sieve: unlike CLOCK, those passed keep their places, so new ones are looked at sooner. Who is in use
    is passed as well, and keeps its bit.
    """

    def __init__(self, context: EvictionContext) -> None:
        super().__init__(context)
        count = len(context.weights)
        # A ring from old to new; the entry behind the last adapter is where it begins and ends.
        self._end = count
        self._newer = [count] * (count + 1)
        self._older = [count] * (count + 1)
        self._hand = count

    def loaded(self, adapter: int) -> None:
        self._used[adapter] = 0
        newest = self._older[self._end]
        self._older[adapter], self._newer[adapter] = newest, self._end
        self._newer[newest] = self._older[self._end] = adapter

    def victim(self, spared: Collection[int] = ()) -> int | None:
        idle, used, newer, end = self._idle, self._used, self._newer, self._end
        if not _anyone(idle, spared):
            return None
        hand = self._hand
        while True:
            if hand == end:
                hand = newer[end]
            if hand not in idle or hand in spared:
                hand = newer[hand]
            elif used[hand]:
                used[hand] = 0
                hand = newer[hand]
            else:
                self._hand = hand
                self.remove(hand)
                return hand

    def remove(self, adapter: int) -> None:
        newer, older = self._newer, self._older
        if self._hand == adapter:
            self._hand = newer[adapter]
        newer[older[adapter]], older[newer[adapter]] = newer[adapter], older[adapter]
        self._idle.remove(adapter)


def _anyone(idle: set[int], spared: Collection[int]) -> bool:
    """Return whether any adapter may leave; otherwise the hand would go round forever."""
    return bool(idle) if not spared else any(adapter not in spared for adapter in idle)
