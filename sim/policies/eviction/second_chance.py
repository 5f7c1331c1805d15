"""Queues in which an adapter that was used gets a second chance: CLOCK, SIEVE and S3-FIFO."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Collection

from sim.policies.eviction.eviction_policy import EvictionContext

# Policies that look at residents one after the other: CLOCK and SIEVE.


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

    libCacheSim's Clock with one bit (FIFO with reinsertion). Adapters in use are passed too, and keep their bits.
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

    libCacheSim's Sieve: unlike CLOCK, those passed keep their places, so new ones are looked at sooner. Adapters in use
    are passed as well, and keep their bits.
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


# S3-FIFO: three queues, so that what is used only once leaves soon.

SMALL_SHARE = 0.1
GHOST_SHARE = 0.9
MAIN_AT = 2
"""Uses in the small queue after its load that lead to the main one."""
MOST = 3
"""Uses in the main queue that count: each lets an adapter pass once more."""


class S3Fifo:
    """New adapters enter a small queue; two uses there, or a recent eviction, lead to the main queue.

    As libCacheSim 0.3.5's S3FIFO (Yang et al., SOSP 2023, with its values 10 %, 90 %, 2): until the first eviction, new
    ones enter the main queue once the small one is full. The main queue is FIFO with reinsertion. Unlike there, the
    small queue takes at least one adapter, whatever its weight: a server can't refuse the adapter of a request.

    An adapter in use at the front of the small queue stays there and the next is looked at; in the main queue it is put
    back to the end, as if it had been used, and keeps its count.
    """

    def __init__(self, context: EvictionContext) -> None:
        self._weights = context.weights
        self._small_most = max(1, int(context.capacity * SMALL_SHARE))
        self._main_most = context.capacity - int(context.capacity * SMALL_SHARE)
        self._ghost_most = int(context.capacity * GHOST_SHARE)
        self._small: OrderedDict[int, None] = OrderedDict()
        self._main: OrderedDict[int, None] = OrderedDict()
        self._ghost: OrderedDict[int, None] = OrderedDict()
        self._small_weight = self._main_weight = self._ghost_weight = 0
        self._uses = [0] * len(context.weights)
        self._returning: set[int] = set()  # was a ghost when its load began
        self._has_evicted = False
        self._idle: set[int] = set()
        self.idle: Callable[[int], None] = self._idle.add
        self.busy: Callable[[int], None] = self._idle.remove

    def touched(self, adapter: int) -> None:
        self._uses[adapter] += 1

    def coming(self, adapter: int) -> None:
        if adapter in self._ghost:
            del self._ghost[adapter]
            self._ghost_weight -= self._weights[adapter]
            self._returning.add(adapter)

    def loaded(self, adapter: int) -> None:
        self._uses[adapter] = 0
        returning = adapter in self._returning
        self._returning.discard(adapter)
        full = self._small_weight >= self._small_most
        if returning or (full and not self._has_evicted):
            self._enter_main(adapter)
        else:
            self._small[adapter] = None
            self._small_weight += self._weights[adapter]

    def victim(self, spared: Collection[int] = ()) -> int | None:
        ready = {adapter for adapter in self._idle if adapter not in spared} if spared else self._idle
        if not ready:
            return None
        self._has_evicted = True
        while True:
            # Skip a queue from which no adapter may leave.
            small_may = any(adapter in ready for adapter in self._small)
            main_first = self._main_weight > self._main_most or not small_may
            if main_first and any(adapter in ready for adapter in self._main):
                return self._from_main(ready)
            victim = self._from_small(ready)
            if victim is not None:
                return victim

    def remove(self, adapter: int) -> None:
        self._idle.remove(adapter)
        if adapter in self._small:
            self._leave_small(adapter)
        else:
            del self._main[adapter]
            self._main_weight -= self._weights[adapter]

    def _from_small(self, ready: Collection[int]) -> int | None:
        """Take the first that wasn't used twice, and move those before it to the main queue; None: there is none."""
        promoted: list[int] = []
        victim = None
        for adapter in self._small:
            if adapter not in ready:
                continue
            if self._uses[adapter] < MAIN_AT:
                victim = adapter
                break
            promoted.append(adapter)
        for adapter in promoted:
            self._leave_small(adapter)
            self._uses[adapter] = 0
            self._enter_main(adapter)
        if victim is not None:
            self._leave_small(victim)
            self._remember(victim)
            self._idle.remove(victim)
        return victim

    def _from_main(self, ready: Collection[int]) -> int:
        main, uses = self._main, self._uses
        while True:
            adapter = next(iter(main))
            if adapter not in ready:
                main.move_to_end(adapter)
            elif uses[adapter]:
                uses[adapter] = min(uses[adapter], MOST) - 1
                main.move_to_end(adapter)
            else:
                del main[adapter]
                self._main_weight -= self._weights[adapter]
                self._idle.remove(adapter)
                return adapter

    def _enter_main(self, adapter: int) -> None:
        self._main[adapter] = None
        self._main_weight += self._weights[adapter]

    def _leave_small(self, adapter: int) -> None:
        del self._small[adapter]
        self._small_weight -= self._weights[adapter]

    def _remember(self, adapter: int) -> None:
        """Add a ghost; older ones are forgotten where there are too many."""
        weight = self._weights[adapter]
        if weight > self._ghost_most:
            return
        while self._ghost_weight + weight > self._ghost_most:
            oldest = self._ghost.popitem(last=False)[0]
            self._ghost_weight -= self._weights[oldest]
        self._ghost[adapter] = None
        self._ghost_weight += weight

    def __len__(self) -> int:
        return len(self._idle)
