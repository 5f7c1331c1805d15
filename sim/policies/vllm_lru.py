"""vLLM's adapter cache: two LRU tiers, touched by every step, that do not protect adapters in use.

Source: vLLM 0.8.5 ``lora/worker_manager.py`` and ``lora/models.py`` (0.32: ``lora/model_manager.py``). Checked load by
load against records of vLLM 0.32 (tests/property/test_records.py).

Before a step, ``LRUCacheWorkerLoRAManager._apply_adapters`` walks the set of the batch's adapters and activates each:
an adapter without a slot takes a free one, or that of the adapter touched least recently, *even if that one is in this
batch* and must be loaded again a moment later. The walk follows the order of a Python set of objects hashed by name,
which is arbitrary, but the same from step to step. So one adapter that enters full slots starts a cascade of about
slots / 6 + 1 loads.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections import OrderedDict
from collections.abc import Sequence
from itertools import islice

from sim.policies.adapter_cache import ABSENT, RESIDENT, AdapterCache, CacheListener
from sim.traffic.request import FROM_GPU, FROM_HOST, FROM_STORAGE


class TouchOrder(ABC):
    """The adapters of a batch, and the order in which they are touched.

    :param keys: what stands for each adapter; no two are equal.
    """

    def __init__(self, keys: Sequence[int]) -> None:
        self._all_keys = keys
        # Of adapters that were ever in the batch. Objects, because compiled code would make new numbers all the time.
        self._keys: dict[int, object] = {}
        self._batch: dict[object, int] = {}  # adapters by key, in the order in which they joined

    def join(self, adapter: int) -> None:
        """Add an adapter to the batch, which does not hold it."""
        key = self._keys.get(adapter)
        if key is None:
            fresh: object = self._all_keys[adapter]  # one object: compiled code makes one for each use of a number
            assert fresh not in self._batch, "two adapters have the same key"
            self._keys[adapter] = key = fresh
        self._batch[key] = adapter

    def leave(self, adapter: int) -> None:
        """Take an adapter out of the batch, if it is there."""
        self._batch.pop(self._keys.get(adapter), None)

    def batch(self) -> list[int]:
        """Return the adapters of the batch in the order in which they joined."""
        return list(self._batch.values())

    @abstractmethod
    def touched(self) -> list[int]:
        """Return the adapters of the batch in the order in which they are touched."""

    def subset(self, some: list[int]) -> list[int]:
        """Return some adapters of the batch in the order in which they are touched."""
        return [adapter for adapter in self.touched() if adapter in some]


class SetOrder(TouchOrder):
    """The iteration order of a Python set of the batch's keys, built as vLLM builds it.

    :param keys: hash of each adapter. vLLM hashes names, so its hashes differ from process to process.
    """

    def __init__(self, keys: Sequence[int]) -> None:
        super().__init__(keys)
        self._set: set[object] | None = None  # of the batch's keys; None: not built since the batch changed

    def join(self, adapter: int) -> None:
        super().join(adapter)
        self._set = None

    def leave(self, adapter: int) -> None:
        super().leave(adapter)
        self._set = None

    def touched(self) -> list[int]:
        batch = self._batch
        return [batch[key] for key in self._built()]

    def subset(self, some: list[int]) -> list[int]:
        if len(some) < 2:
            return some
        if len(some) == 2:
            first, second = self._keys[some[0]], self._keys[some[1]]
            for key in self._built():
                if key is first:
                    return some
                if key is second:
                    break
            return [some[1], some[0]]
        left = {self._keys[adapter]: adapter for adapter in some}
        ordered: list[int] = []
        for key in self._built():
            if key in left:
                ordered.append(left.pop(key))
                if len(left) == 1:
                    break  # where the last one stands does not matter
        return ordered + list(left.values())

    def _built(self) -> set[object]:
        """Return the set. Its keys are added one by one, because a set of a whole dict or set has another order."""
        if self._set is None:
            self._set = set(self._batch.keys())
        return self._set


class VllmLruCache(AdapterCache):
    """Slots in GPU memory and copies in host memory, both LRU by the last step that used them.

    An adapter in a slot always has a copy in host memory: when the host evicts an adapter, its slot is emptied as well.

    :param adapters: number of adapters.
    :param host_slots: adapters that host memory holds; at least ``slots``, as vLLM requires.
    :param order: the order in which the adapters of a batch are touched; it holds those of the last step.
    :param counts_running: the limit counts the adapters of all running requests (vLLM from 0.33 on); otherwise of those
        that get a token in the step.
    :ivar state: by adapter, ``ABSENT`` or ``RESIDENT``.
    :ivar users: by adapter, requests in the batch.
    :ivar in_use: distinct adapters in the batch.
    :ivar victims: optional list, to which evicted adapters are appended.
    """

    def __init__(
        self, adapters: int, slots: int, host_slots: int, order: TouchOrder, *, counts_running: bool = False
    ) -> None:
        assert host_slots >= slots, "a slot's adapter has a copy in host memory"
        self.capacity = slots
        self._adapters = adapters
        self.host_slots = min(host_slots, adapters)
        self.state = [ABSENT] * adapters
        self.users = [0] * adapters
        self.in_use = 0
        self.in_use_peak = 0
        self.evictions = 0
        self.victims: list[int] | None = None
        self.listener: CacheListener | None = None
        self._order = order
        self._counts_running = counts_running
        self._paused: dict[int, int] = {}  # requests that run without getting tokens, by adapter, if they count
        self._in_batch: set[int] = set()
        self._toggled: list[int] = []  # joined or left the batch since it was last touched
        # Adapters outside the batch, least recently touched first; those in the batch were touched by its last step.
        self._idle: OrderedDict[int, None] = OrderedDict()
        self._host_idle: OrderedDict[int, None] = OrderedDict()
        self._in_host: set[int] = set()

    def warm_up(self, adapters: Sequence[int]) -> None:
        """Fill slots and host memory before the run; the first adapter counts as touched last."""
        for adapter in reversed(adapters[: self.capacity]):
            self.state[adapter] = RESIDENT
            self._in_host.add(adapter)
            self._idle[adapter] = self._host_idle[adapter] = None

    def copy_to_host(self, adapters: Sequence[int]) -> None:
        """Fill the rest of host memory before the run; all adapters count as touched before those in slots."""
        for adapter in adapters[: self.host_slots - len(self._in_host)]:
            self._in_host.add(adapter)
            self._host_idle[adapter] = None
            self._host_idle.move_to_end(adapter, last=False)

    def serve_base_model(self) -> int:
        """Add an entry for requests without an adapter, always resident in a slot of its own; return its number.

        It never counts as joining or leaving the batch.
        """
        self.state.append(RESIDENT)
        self.users.append(1)
        return self._adapters

    def acquire(self, adapter: int) -> bool:
        """Add a request to the batch; return whether its adapter is resident."""
        users = self.users
        users[adapter] += 1
        if users[adapter] == 1:
            self._toggled.append(adapter)
            self.in_use += 1
            if self.in_use > self.in_use_peak:
                self.in_use_peak = self.in_use
        return self.state[adapter] == RESIDENT

    def release(self, adapter: int) -> bool:
        """Remove a request from the batch; return False, since no load ever waits for room."""
        users = self.users
        users[adapter] -= 1
        if users[adapter] == 0:
            self._toggled.append(adapter)
            self.in_use -= 1
        return False

    def pause(self, adapter: int) -> None:
        """Take a request out of the batch that goes on running; a step touches the adapters of the others only."""
        self.release(adapter)
        if self._counts_running:
            self._paused[adapter] = self._paused.get(adapter, 0) + 1

    def resume(self, adapter: int) -> None:
        self.release_paused(adapter)
        peak = self.in_use_peak  # this is no more than before, although requests that have ended may still count
        self.acquire(adapter)
        self.in_use_peak = peak

    def release_paused(self, adapter: int) -> bool:
        if self._counts_running:
            self._paused[adapter] -= 1
            if not self._paused[adapter]:
                del self._paused[adapter]
        return False

    def can_claim(self, adapter: int) -> bool:
        """Return whether the batch may hold ``adapter``: it has at most as many distinct adapters as slots."""
        users = self.users
        if self._paused:
            paused = [other for other in self._paused if not users[other]]
            return users[adapter] > 0 or adapter in paused or self.in_use + len(paused) < self.capacity
        return users[adapter] > 0 or self.in_use < self.capacity

    def touch(self) -> list[tuple[int, int]]:
        """Make the batch's adapters resident; return the loads as (adapter, tier), in their order.

        Call it whenever the set of adapters in the batch has changed; a step with the same set changes nothing.
        """
        order, last_batch = self._order, len(self._in_batch)
        toggled, self._toggled = self._toggled, []
        arrived, gone = self._arrived_and_gone(toggled)
        entering = [adapter for adapter in arrived if self.state[adapter] != RESIDENT]
        if entering and not self._idle_suffice(entering, last_batch):
            before = order.touched()
            self._change_order(toggled)
            return self._walk(before)
        leaving = order.subset(gone)
        self._change_order(toggled)
        loads = self._fill(order.subset(entering), last_batch) if entering else []
        idle, host_idle = self._idle, self._host_idle
        for adapter in arrived:
            idle.pop(adapter, None)
            host_idle.pop(adapter, None)
        for adapter in leaving:
            idle[adapter] = host_idle[adapter] = None
        return loads

    def _arrived_and_gone(self, toggled: list[int]) -> tuple[list[int], list[int]]:
        """Return which adapters are in the batch that were not in the last one, and the other way round."""
        in_batch, users = self._in_batch, self.users
        arrived: list[int] = []
        gone: list[int] = []
        for adapter in toggled:
            there = users[adapter] > 0
            if there == (adapter in in_batch):
                continue  # it has joined and left since then
            if there:
                in_batch.add(adapter)
                arrived.append(adapter)
            else:
                in_batch.remove(adapter)
                gone.append(adapter)
        return arrived, gone

    def _change_order(self, toggled: list[int]) -> None:
        """Let adapters join and leave in the order; one that left and came back is now the last that joined."""
        order, users = self._order, self.users
        for adapter in toggled:
            order.leave(adapter)
            if users[adapter]:
                order.join(adapter)

    def load_idle(self, adapter: int) -> int:
        """Load an adapter that the batch doesn't use, between two steps; it counts as touched after all such others.

        :returns: the tier that it comes from; ``FROM_GPU`` if it is resident, or if only adapters of the last batch
            could make room.
        """
        idle, host_idle, fresh = self._idle, self._host_idle, adapter not in self._in_host
        host_full = fresh and len(self._in_host) == self.host_slots
        occupied = len(idle) + len(self._in_batch)
        no_room = (occupied == self.capacity and not idle) or (host_full and not host_idle)
        if self.state[adapter] == RESIDENT or no_room:
            return FROM_GPU
        if host_full:
            occupied -= self._evict_from_host()
        if occupied == self.capacity:
            self._evict(idle.popitem(last=False)[0])
        tier = self._tier(adapter)
        self._settle(adapter)
        idle[adapter] = host_idle[adapter] = None
        host_idle.move_to_end(adapter)
        return tier

    def _idle_suffice(self, entering: list[int], last_batch: int) -> bool:
        """Return whether free places and those of adapters outside both batches suffice, in slots and in host memory.

        That is the common, quick case: adapters outside the last batch were touched before all adapters in it.
        """
        fresh = sum(adapter not in self._in_host for adapter in entering)
        return self._may_leave(self._host_idle, len(self._in_host) + fresh - self.host_slots) and self._may_leave(
            self._idle, len(self._idle) + last_batch + len(entering) - self.capacity
        )

    def _may_leave(self, idle: OrderedDict[int, None], lacking: int) -> bool:
        """Return whether enough adapters are idle, and the new batch has none of those idle for longest."""
        return lacking <= 0 or (lacking <= len(idle) and not any(a in self._in_batch for a in islice(idle, lacking)))

    def _fill(self, entering: list[int], last_batch: int) -> list[tuple[int, int]]:
        """Load adapters into free slots, or into those of adapters idle for longest."""
        loads = []
        idle, occupied = self._idle, len(self._idle) + last_batch
        for adapter in entering:
            if len(self._in_host) == self.host_slots and adapter not in self._in_host:
                occupied -= self._evict_from_host()
            if occupied >= self.capacity:
                self._evict(idle.popitem(last=False)[0])
            else:
                occupied += 1
            loads.append((adapter, self._tier(adapter)))
            self._settle(adapter)
        return loads

    def _evict_from_host(self) -> bool:
        """Evict the adapter touched longest ago from host memory; return whether that emptied a slot as well."""
        victim = self._host_idle.popitem(last=False)[0]
        self._in_host.remove(victim)
        if victim not in self._idle:
            return False
        del self._idle[victim]
        self._evict(victim)
        return True

    def _walk(self, before: list[int]) -> list[tuple[int, int]]:
        """Touch every adapter of the batch in turn, as vLLM does.

        :param before: the last batch in the order in which it was touched.
        """
        gpu, host, state = self._idle, self._host_idle, self.state
        for adapter in before:  # with the last batch appended, both hold all residents in LRU order
            gpu[adapter] = host[adapter] = None
        loads = []
        batch = self._order.touched()
        for adapter in batch:
            if adapter in self._in_host:
                host.move_to_end(adapter)
            elif len(self._in_host) == self.host_slots:
                self._evict_from_host()
            if state[adapter] == RESIDENT:
                gpu.move_to_end(adapter)
                continue
            if len(gpu) == self.capacity:
                self._evict(gpu.popitem(last=False)[0])
            loads.append((adapter, self._tier(adapter)))
            self._settle(adapter)
            gpu[adapter] = host[adapter] = None
        for adapter in batch:
            del gpu[adapter], host[adapter]
        return loads

    def _tier(self, adapter: int) -> int:
        """Return the tier of a load; a load from storage leaves a copy in host memory."""
        if adapter in self._in_host:
            return FROM_HOST
        self._in_host.add(adapter)
        return FROM_STORAGE

    def holds(self, adapter: int) -> bool:
        """Return whether there is a copy in a slot or in host memory."""
        return adapter in self._in_host

    def discard(self, adapter: int) -> None:
        """Drop an adapter that will not be requested again from slot and host memory, unless the batch uses it.

        The last touched batch may still hold it.
        """
        if self.users[adapter] or adapter not in self._in_host:
            return
        self._in_host.remove(adapter)
        if adapter in self._in_batch:
            self._leave_batch(adapter)
        else:
            del self._host_idle[adapter]
            self._idle.pop(adapter, None)
        if self.state[adapter] == RESIDENT:
            self._evict(adapter)

    def lose(self, adapter: int) -> None:
        """Note that the load of an adapter of the batch has failed; its requests leave before the next step."""
        self._leave_batch(adapter)
        self._in_host.remove(adapter)
        self.state[adapter] = ABSENT
        if self.listener is not None:
            self.listener.left(adapter)

    def _leave_batch(self, adapter: int) -> None:
        self._order.leave(adapter)
        self._in_batch.discard(adapter)

    def _settle(self, adapter: int) -> None:
        self.state[adapter] = RESIDENT
        if self.listener is not None:
            self.listener.placed(adapter)

    def _evict(self, victim: int) -> None:
        self.state[victim] = ABSENT
        self.evictions += 1
        if self.listener is not None:
            self.listener.left(victim)
        if self.victims is not None:
            self.victims.append(victim)

    def check_integrity(self) -> None:
        """Assert that the two tiers agree with each other and with their counts."""
        adapters = self._adapters
        residents = {adapter for adapter, state in enumerate(self.state[:adapters]) if state == RESIDENT}
        copies, batch = self._in_host, self._in_batch
        assert batch == set(self._order.batch())
        assert residents == self._idle.keys() | batch
        assert copies == self._host_idle.keys() | batch
        assert residents <= copies
        assert len(residents) <= self.capacity
        assert len(copies) <= self.host_slots
        assert self.in_use == sum(count > 0 for count in self.users[:adapters]) <= self.capacity
