"""Adapters in GPU memory: in slots or bytes set aside for them, or in the memory of the KV cache."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Collection, Sequence
from typing import Final, Protocol

from mypy_extensions import mypyc_attr

from sim.policies.eviction import Eviction

ABSENT: Final = 0
LOADING: Final = 1
RESIDENT: Final = 2


class CacheListener(Protocol):
    """Is called when adapters enter or leave a cache."""

    def placed(self, adapter: int) -> None:
        """An adapter has taken its room, and its load starts."""
        ...

    def left(self, adapter: int) -> None:
        """An adapter has left."""
        ...


@mypyc_attr(allow_interpreted_subclasses=True)
class AdapterCache(ABC):
    """Adapters in GPU memory, as a replica and its observers see them.

    :ivar state: by adapter, ``ABSENT``, ``LOADING`` (its room is taken) or ``RESIDENT``.
    :ivar users: by adapter, requests that use it.
    :ivar capacity: bytes or slots; ``in_use``: those of adapters with users, and ``in_use_peak`` the most so far.
    :ivar evictions: evictions so far.
    :ivar listener: called when an adapter takes or gives up its room; optional.
    """

    state: list[int]
    users: list[int]
    capacity: int
    in_use: int
    in_use_peak: int
    evictions: int
    listener: CacheListener | None

    @abstractmethod
    def serve_base_model(self) -> int:
        """Add an entry for requests without an adapter, always resident and of no weight, and return its number."""

    @abstractmethod
    def warm_up(self, adapters: Sequence[int]) -> None:
        """Make adapters resident before the run, as far as there is room; the first counts as used last."""

    @abstractmethod
    def acquire(self, adapter: int) -> bool:
        """Add a user; return whether the adapter is resident."""

    @abstractmethod
    def release(self, adapter: int) -> bool:
        """Remove a user; return whether that may make room for a load."""

    def pause(self, adapter: int) -> None:
        """Note that a user gets no token in the next step; here that changes nothing: its adapter stays in use."""

    def resume(self, adapter: int) -> None:
        """Note that a user after ``pause`` gets tokens again."""

    def release_paused(self, adapter: int) -> bool:
        """Remove a user after ``pause``; return whether that may make room for a load."""
        return self.release(adapter)

    @abstractmethod
    def can_claim(self, adapter: int) -> bool:
        """Return whether ``adapter`` fits among all adapters with users."""

    @abstractmethod
    def holds(self, adapter: int) -> bool:
        """Return whether there is a copy, or one is being loaded; tiers that belong to this cache count."""

    @abstractmethod
    def discard(self, adapter: int) -> None:
        """Drop an adapter that will not be requested again, if it is idle."""

    def pin_instead(self, old: int, new: int) -> None:
        """Move the pin of ``old``, if it has one, to ``new``; here nothing is ever pinned."""

    def set_listener(self, listener: CacheListener) -> None:
        """Call a listener from now on when an adapter takes or gives up its room."""
        self.listener = listener

    @abstractmethod
    def check_integrity(self) -> None:
        """Assert that the running sums agree with a fresh count."""


class GpuCache(AdapterCache):
    """Adapters in GPU memory, with counted users, under an eviction policy that never evicts an adapter in use.

    :param weights: bytes of each adapter, or 1 if slots are counted.
    :param capacity: bytes or slots.
    :param base_model_slot: the base model fills a slot until all others are in use and one more is needed.
    :param pinned: adapters that are resident from the start and never leave. They count as in use; ``pin_instead``
        moves a pin to another adapter.
    :ivar users: by adapter, requests that use it, from the request for the adapter until they end.
    :ivar used: weight of residents and loads under way; ``idle_weight``: of residents not in use.
    :ivar in_use: weight of adapters with users, resident or not.
    """

    def __init__(
        self,
        weights: list[int],
        capacity: int,
        eviction: Eviction,
        *,
        base_model_slot: bool = False,
        pinned: Sequence[int] = (),
    ) -> None:
        self.weights = weights
        self.capacity = capacity
        self.state = [ABSENT] * len(weights)  # a list is read faster than a bytearray
        self.users = [0] * len(weights)
        self._base = int(base_model_slot)
        self.used = self._base
        self.idle_weight = self._base
        self.in_use = 0
        self.in_use_peak = 0
        self.evictions = 0
        self.listener: CacheListener | None = None
        self._eviction = eviction
        self._idle, self._busy = eviction.idle, eviction.busy  # every request calls them
        self._touched = eviction.touched
        self._coming = eviction.coming
        self._unused: set[int] = set()  # resident and not used yet; kept only for policies that count uses
        self._pinned = set(pinned)
        self._unannounced = set(pinned)  # resident from the start, and unknown to the eviction policy
        for adapter in pinned:  # a permanent user, so that no other code needs to treat pins specially
            self.users[adapter] = 1
            self.state[adapter] = RESIDENT
            self.used += weights[adapter]
            self.in_use += weights[adapter]
        self.in_use_peak = self.in_use

    def serve_base_model(self) -> int:
        """Add an entry for requests without an adapter, and return its number.

        It is always resident and in use, and weighs nothing. The listener and the eviction policy never hear of it.
        """
        number, touched = len(self.weights), self._touched
        self.weights = [*self.weights, 0]
        self.state.append(RESIDENT)
        self.users.append(1)
        if touched is not None:
            self._touched = lambda adapter: None if adapter == number else touched(adapter)
        return number

    def warm_up(self, adapters: Sequence[int]) -> None:
        """Make adapters resident before the run, in this order, up to the first that finds no room.

        The first one counts as loaded and used last.
        """
        fitting = []
        for adapter in adapters:
            if not self._fits(adapter):
                break
            self._place(adapter)
            fitting.append(adapter)
        for adapter in reversed(fitting):
            self.loaded(adapter)

    def _fits(self, adapter: int) -> bool:
        """Return whether there is room for ``adapter`` without an eviction."""
        return self.used + self.weights[adapter] <= self.capacity

    def _place(self, adapter: int) -> None:
        """Give an adapter its room; its load starts."""
        self.state[adapter] = LOADING
        self.used += self.weights[adapter]
        if self.listener is not None:
            self.listener.placed(adapter)

    def acquire(self, adapter: int) -> bool:
        """Add a user, which protects the adapter from eviction; return whether the adapter is resident."""
        resident = self.state[adapter] == RESIDENT
        users = self.users
        count = users[adapter]
        users[adapter] = count + 1
        if count == 0:
            weight = self.weights[adapter]
            self.in_use = in_use = self.in_use + weight
            if in_use > self.in_use_peak:
                self.in_use_peak = in_use
            if resident:
                self.idle_weight -= weight
                self._busy(adapter)
        if resident and self._touched is not None:
            if self._unused and adapter in self._unused:
                self._unused.remove(adapter)  # its load already counted as this use
            else:
                self._touched(adapter)
        return resident

    def release(self, adapter: int) -> bool:
        """Remove a user; return whether it was the last, so that the adapter may be evicted from now on."""
        users = self.users
        users[adapter] = count = users[adapter] - 1
        if count:
            return False
        weight = self.weights[adapter]
        self.in_use -= weight
        if self.state[adapter] == RESIDENT:
            self.idle_weight += weight
            self._idle(adapter)
        return True

    def can_claim(self, adapter: int) -> bool:
        """Return whether ``adapter`` fits among all adapters with users."""
        return self.users[adapter] > 0 or self.in_use + self.weights[adapter] <= self.capacity

    def reserve(self, adapter: int) -> bool:
        """Take room for a load that starts now, evicting idle adapters; return False if those do not suffice.

        Nothing is evicted unless the load can start.
        """
        weight = self.weights[adapter]
        needed = self.used + weight - self.capacity
        if needed > 0 and needed > self.idle_weight:
            return False
        if self._coming is not None:
            self._coming(adapter)
        self._make_room(adapter)
        return True

    def reserve_ahead(self, adapter: int, spared: Collection[int]) -> bool:
        """Take room for a load ahead of time, evicting idle adapters except ``spared``; return whether it can start.

        The base model keeps its slot. Nothing is evicted unless the load can start.
        """
        needed = self.used + self.weights[adapter] - self.capacity
        if needed > 0:
            kept = sum(self.weights[a] for a in spared if self.state[a] == RESIDENT and self.users[a] == 0)
            if needed > self.idle_weight - self._base - kept:
                return False
        if self._coming is not None:
            self._coming(adapter)
        self._make_room(adapter, spared)
        return True

    def _make_room(self, adapter: int, spared: Collection[int] = ()) -> None:
        needed = self.used + self.weights[adapter] - self.capacity
        while needed > 0:
            needed -= self._evict_next(spared)
        self._place(adapter)

    def _evict_next(self, spared: Collection[int] = ()) -> int:
        """Evict the idle adapter that the policy chooses; return its weight."""
        victim = self._eviction.victim(spared)
        if victim is None:
            assert self._base, "idle adapters of enough weight were counted"
            self._base = 0
            self.used -= 1
            self.idle_weight -= 1
            return 1
        return self._leave(victim)

    def _leave(self, victim: int) -> int:
        weight = self.weights[victim]
        self.state[victim] = ABSENT
        self.used -= weight
        self.idle_weight -= weight
        self.evictions += 1
        self._unused.discard(victim)
        if self.listener is not None:
            self.listener.left(victim)
        return weight

    def pin_instead(self, old: int, new: int) -> None:
        """Move the pin of ``old``, if it has one, to ``new``, which may have to be loaded first."""
        if old in self._pinned:
            self._pinned.remove(old)
            self._pinned.add(new)
            if old in self._unannounced:
                self._unannounced.remove(old)
                self._eviction.loaded(old)
            self.release(old)
            self.acquire(new)

    def evict(self, adapter: int) -> None:
        """Evict this idle adapter, whatever the policy would choose."""
        self._eviction.remove(adapter)
        self._leave(adapter)

    def holds(self, adapter: int) -> bool:
        return self.state[adapter] != ABSENT

    def discard(self, adapter: int) -> None:
        """Evict an adapter that will not be requested again, if it is resident and idle."""
        if self.state[adapter] == RESIDENT and self.users[adapter] == 0:
            self.evict(adapter)

    def evict_idle(self) -> None:
        """Evict all idle adapters."""
        while len(self._eviction):
            self._evict_next()

    def loaded(self, adapter: int) -> None:
        """Note that a load has ended. Each request that joined it counts as another use."""
        self.state[adapter] = RESIDENT
        self._eviction.loaded(adapter)
        users = self.users[adapter]
        if users == 0:
            self.idle_weight += self.weights[adapter]
            self._idle(adapter)
            if self._touched is not None:
                self._unused.add(adapter)
        elif self._touched is not None:
            for _ in range(users - 1):
                self._touched(adapter)

    def abort(self, adapter: int) -> None:
        """Free the room of a failed load. Requests that waited for it stay users until ``release``."""
        assert self.state[adapter] == LOADING, "only a load under way can fail"
        self.state[adapter] = ABSENT
        self.used -= self.weights[adapter]
        if self.listener is not None:
            self.listener.left(adapter)

    def _base_in_use(self) -> int:
        """Return the slots that the base model holds for requests of its own; here they need none."""
        return 0

    def check_integrity(self) -> None:
        """Assert that the running sums agree with a fresh count, and that the cache is not overfull."""
        adapters = range(len(self.weights))
        placed = [a for a in adapters if self.state[a] != ABSENT]
        idle = [a for a in adapters if self.state[a] == RESIDENT and self.users[a] == 0]
        base = self._base_in_use()
        assert self.used == self._base + base + sum(self.weights[a] for a in placed) <= self.capacity
        assert self.idle_weight == self._base + sum(self.weights[a] for a in idle)
        assert self.in_use == base + sum(self.weights[a] for a in adapters if self.users[a] > 0)
        assert len(self._eviction) == len(idle), "the eviction policy holds exactly the idle residents"
        assert all(count >= 0 for count in self.users)
        assert self._unused <= set(idle), "unused adapters are idle"
        assert all(self.users[a] > 0 for a in self._pinned)


class SlotForBaseModel(GpuCache):
    """Slots of which the base model takes one as an adapter would, for engines whose kernels need a slot of zeros for
    it.

    It starts in a slot, from which it is evicted when no adapter is left that could go. A request to the base model
    must find room for it among the adapters in use, and puts it into a slot again, in place of an idle adapter if need
    be; that takes no time.
    """

    def __init__(self, weights: list[int], capacity: int, eviction: Eviction, *, pinned: Sequence[int] = ()) -> None:
        super().__init__(weights, capacity, eviction, base_model_slot=True, pinned=pinned)
        self._number = -1
        self._base_users = 0

    def serve_base_model(self) -> int:
        self._number = super().serve_base_model()
        return self._number

    def acquire(self, adapter: int) -> bool:
        if adapter != self._number:
            return super().acquire(adapter)
        self._base_users += 1
        if self._base_users == 1:
            self.in_use += 1
            self.in_use_peak = max(self.in_use_peak, self.in_use)
            if self._base:
                self._base = 0  # of the idle ones
                self.idle_weight -= 1
            else:
                while self.used >= self.capacity:
                    self._evict_next()
                self.used += 1
        return True

    def release(self, adapter: int) -> bool:
        if adapter != self._number:
            return super().release(adapter)
        self._base_users -= 1
        if self._base_users:
            return False
        self.in_use -= 1
        self._base = 1
        self.idle_weight += 1
        return True

    def can_claim(self, adapter: int) -> bool:
        if adapter == self._number:
            return self._base_users > 0 or self.in_use < self.capacity
        return super().can_claim(adapter)

    def _base_in_use(self) -> int:
        return int(self._base_users > 0)


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
