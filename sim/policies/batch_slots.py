"""SGLang's adapter slots, which protect the adapters of the batch about to run, and no others.

Source: SGLang 0.5.23 ``lora/mem_pool.py``, ``prepare_lora_batch``, and ``lora/eviction_policy.py``. Before a batch
runs, its adapters are touched in the order of their ids. Then each missing one takes an empty slot, or that of the
adapter touched least recently (FIFO: loaded first) that is not in this batch. So a prefill may evict adapters of
requests that decode, and their next step loads them again.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Collection, Sequence

from sim.policies.adapter_cache import ABSENT, LOADING, RESIDENT, AdapterCache, CacheListener

NO_NUMBER = -1


class BatchSlots(AdapterCache):
    """Slots in GPU memory, of which the base model takes one as an adapter would.

    It is in a slot at the start, and leaves it when nothing else can go. Requests to it need it in a slot.

    :param order: place of each adapter in the order in which a batch is touched.
    :param pinned: adapters that are never evicted. Slots are kept for them, whether they are resident or not.
    :ivar base_model: the number that stands for the base model.
    :ivar users: by adapter, requests in the batch.
    :ivar in_use: distinct adapters in the batch, the base model among them.
    :ivar victims: optional list, to which evicted adapters are appended; the base model as its number.
    """

    def __init__(self, slots: int, order: Sequence[int], *, fifo: bool = False, pinned: Sequence[int] = ()) -> None:
        adapters = len(order)
        self.capacity = slots
        self.state = [ABSENT] * adapters
        self.users = [0] * adapters
        self.in_use = 0
        self.in_use_peak = 0
        self.evictions = 0
        self.victims: list[int] | None = None
        self.listener: CacheListener | None = None
        self._order = [*order, NO_NUMBER]  # the base model goes first
        self._fifo = fifo
        self._pinned = set(pinned)
        self.base_model = adapters
        self._base_in_slot = True
        self._filled = 1  # slots
        self._touched: OrderedDict[int, None] = OrderedDict()  # residents, least recently touched first
        self._used: set[int] = set()
        self._pins_in_use = 0
        self._loading: set[int] = set()

    def serve_base_model(self) -> int:
        self.state.append(RESIDENT)
        self.users.append(0)
        return self.base_model

    def warm_up(self, adapters: Sequence[int]) -> None:
        for adapter in reversed(adapters[: self.capacity - self._filled]):
            self._place(adapter)
            self._touched[adapter] = None

    def acquire(self, adapter: int) -> bool:
        users = self.users
        users[adapter] += 1
        if users[adapter] == 1:
            self._used.add(adapter)
            self.in_use += 1
            self.in_use_peak = max(self.in_use_peak, self.in_use)
            self._pins_in_use += adapter in self._pinned
        return self.state[adapter] == RESIDENT

    def release(self, adapter: int) -> bool:
        users = self.users
        users[adapter] -= 1
        if users[adapter]:
            return False
        self._used.remove(adapter)
        self.in_use -= 1
        self._pins_in_use -= adapter in self._pinned
        return True

    def can_claim(self, adapter: int) -> bool:
        """Return whether the batch may hold ``adapter``; those not pinned leave the slots of the pinned ones free."""
        if self.users[adapter]:
            return True
        others = self.in_use - self._pins_in_use + (adapter not in self._pinned)
        return self.in_use < self.capacity and others <= self.capacity - len(self._pinned)

    def in_order(self, batch: Collection[int]) -> list[int]:
        """Return adapters in the order in which a batch of them is touched."""
        return sorted(batch, key=self._order.__getitem__)

    def fetch(self, batch: Collection[int]) -> list[int]:
        """Make the adapters of the batch about to run resident; return those that must be loaded, in their order.

        The base model may be among them: it takes a slot, and its load no time.
        """
        touched, ordered = self._touched, self.in_order(batch)
        missing = [adapter for adapter in ordered if self.state[adapter] == ABSENT]
        for adapter in ordered:
            if adapter in touched and not self._fifo:
                touched.move_to_end(adapter)
            elif adapter != self.base_model:
                touched[adapter] = None
        for adapter in missing:
            if self._filled == self.capacity:
                self._evict_for(batch)
            self._place(adapter)
        return missing

    def fetch_ahead(self, adapter: int) -> bool:
        """Take a slot for an adapter that loads while steps go on, until ``arrived``; return whether there is one.

        All running and loading adapters keep theirs.
        """
        wanted = self._used | self._loading | {adapter}
        others = len(wanted - self._pinned)
        if len(wanted) > self.capacity or others > self.capacity - len(self._pinned):
            return False
        self.fetch(wanted)
        self.state[adapter] = LOADING
        self._loading.add(adapter)
        return True

    def arrived(self, adapter: int) -> None:
        """Note that the load of ``fetch_ahead`` has ended."""
        self._loading.remove(adapter)
        self.state[adapter] = RESIDENT

    def load_idle(self, adapter: int) -> bool:
        """Load an adapter between two steps, unless only adapters with users could make room; return whether it is."""
        if self.state[adapter] != ABSENT:
            return False
        in_use = self._used | self._pinned | self._loading
        if self._filled == self.capacity:
            if len(in_use) >= self.capacity:
                return False
            self._evict_for(in_use)
        self._place(adapter)
        self._touched[adapter] = None
        return True

    def _evict_for(self, batch: Collection[int]) -> None:
        for victim in self._touched:
            if victim not in batch and victim not in self._pinned and self.state[victim] == RESIDENT:
                self._leave(victim)
                return
        assert self._base_in_slot, "at most as many adapters as slots join a batch"
        assert self.base_model not in batch, "at most as many adapters as slots join a batch"
        self._base_in_slot = False
        self._filled -= 1
        if self.base_model < len(self.state):
            self.state[self.base_model] = ABSENT
        if self.victims is not None:
            self.victims.append(self.base_model)

    def _place(self, adapter: int) -> None:
        self.state[adapter] = RESIDENT
        self._filled += 1
        if adapter == self.base_model:
            self._base_in_slot = True
        elif self.listener is not None:
            self.listener.placed(adapter)

    def _leave(self, victim: int) -> None:
        self.evictions += 1
        if self.victims is not None:
            self.victims.append(victim)
        self.lose(victim)

    def lose(self, adapter: int) -> None:
        """Take an adapter out of its slot, such as one whose load has failed."""
        del self._touched[adapter]
        self.state[adapter] = ABSENT
        self._filled -= 1
        if self.listener is not None:
            self.listener.left(adapter)

    def holds(self, adapter: int) -> bool:
        return self.state[adapter] != ABSENT

    def discard(self, adapter: int) -> None:
        if self.state[adapter] == RESIDENT and not self.users[adapter]:
            self._leave(adapter)

    def pin_instead(self, old: int, new: int) -> None:
        if old in self._pinned:
            self._pinned.remove(old)
            self._pinned.add(new)
            self._pins_in_use += (self.users[new] > 0) - (self.users[old] > 0)

    def check_integrity(self) -> None:
        residents = {a for a, state in enumerate(self.state) if state != ABSENT} - {self.base_model}
        assert residents == self._touched.keys()
        assert len(residents) + self._base_in_slot == self._filled <= self.capacity
        in_use = [adapter for adapter, users in enumerate(self.users) if users]
        assert self._used == set(in_use)
        assert (self.in_use, self._pins_in_use) == (len(in_use), len(self._pinned.intersection(in_use)))
        assert self.base_model == len(self.state) or (self.state[self.base_model] != ABSENT) == self._base_in_slot
