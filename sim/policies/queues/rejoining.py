"""SGLang's waiting queues: a retracted request joins behind all others.

Source: SGLang 0.5.23 ``managers/scheduler.py``, ``schedule_policy.py``, and ``lora/lora_drainer.py``.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence
from typing import Final

from sim.policies.adapter_cache import LOADING, RESIDENT
from sim.policies.admission import ClaimingQueue
from sim.policies.batch_slots import BatchSlots
from sim.traffic.request import Request

DRAIN_TOLERANCE: Final = 1.2
"""A draining adapter takes requests whose limit is at most so many times the tokens that it still has to give."""


class RejoiningQueue(ClaimingQueue):
    """Requests in the order in which they joined the queue, which a retracted request does once more.

    :cvar may_change: whether another request may come next although none has come or left.
    :ivar may_be_known: whether a request has come of whose tokens some may be in the tree of known prefixes.
    """

    may_change = False
    may_be_known = False
    _last_key = 0

    def push(self, request: Request) -> None:
        if request.key == request.index:
            request.key <<= 20  # retracted requests get the keys in between
        if request.shared or request.text_key >= 0 or request.admitted_s >= 0:
            self.may_be_known = True
        self._last_key = max(self._last_key, request.key)
        super().push(request)

    def push_back(self, request: Request, now: float) -> None:
        """Put a retracted request behind all others."""
        self._cache.release(request.adapter)
        request.claimed = False
        request.key = self._last_key + 1
        self.push(request)

    def hold(self, request: Request) -> None:
        """Keep the place of a request's adapter beyond its end; ``let_go`` gives it up."""
        self._cache.acquire(request.adapter)

    def let_go(self, request: Request) -> None:
        self._cache.release(request.adapter)

    def look_at_running(self, running: Sequence[tuple[int, int]], now: float) -> None:
        """Begin a scan, given adapter and tokens to come of each running request; here nothing follows from them."""


class ScannedQueue(RejoiningQueue):
    """Every scan looks at each request: for orders that change, and for drains.

    An adapter that waits for longer than ``drain_wait_s`` while the batch has as many adapters as there are slots gets
    one of them to drain for it: that with the fewest tokens to come.

    :param drain_wait_s: 0: adapters are never drained.
    """

    may_change = True

    def __init__(self, cache: BatchSlots, drain_wait_s: float = 0.0) -> None:
        super().__init__(cache, None, stop=False, gives_up=True)
        self._slots = cache
        self._drain_wait_s = drain_wait_s
        self._place = 0
        self._since: dict[int, float] = {}  # when retracted requests joined the queue again, by index
        self._drains: dict[int, int] = {}  # draining adapters, and for which other one
        self._to_come: dict[int, int] = {}

    def begin(self) -> None:
        self._place, self.over_limit = 0, False

    def next_candidate(self) -> Request | None:
        return self.ready[self._place] if self._place < len(self.ready) else None

    def may_join(self, candidate: Request) -> bool:
        adapter = candidate.adapter
        if adapter in self._drains and candidate.max_tokens > self._to_come[adapter] * DRAIN_TOLERANCE:
            return False
        return self._has_adapter(candidate)

    def pass_over(self, candidate: Request) -> bool:
        self._place += 1
        return True

    def _has_adapter(self, candidate: Request) -> bool:
        if self._slots.can_claim(candidate.adapter):
            return True
        self.over_limit = True
        return False

    def take(self, candidate: Request) -> None:
        del self.ready[self._place]
        self._since.pop(candidate.index, None)
        self._claim(candidate, self._slots)

    def push_back(self, request: Request, now: float) -> None:
        self._since[request.index] = now
        super().push_back(request, now)

    def sort(self, requests: Sequence[Request]) -> None:
        """Put the waiting requests, all of them, into another order."""
        keys = sorted([request.key for request in requests])
        for key, request in zip(keys, requests, strict=True):
            request.key = key
        self.ready = deque(requests)

    def look_at_running(self, running: Sequence[tuple[int, int]], now: float) -> None:
        if not self._drain_wait_s:
            return
        waits: dict[int, float] = {}
        for request in self.ready:
            waited = now - self._since.get(request.index, request.arrival_s)
            waits[request.adapter] = max(waits.get(request.adapter, 0.0), waited)
        to_come = dict.fromkeys(waits, 0)
        members: set[int] = set()
        for adapter, left in running:
            members.add(adapter)
            to_come[adapter] = max(to_come.get(adapter, 0), left)
        self._to_come = to_come
        if len(members) >= self._slots.capacity:
            taken = set(self._drains.values())
            starving = [a for a, wait in waits.items() if wait > self._drain_wait_s and a not in taken]
            for adapter in sorted(starving, key=lambda each: -waits[each]):
                others = [other for other in self._slots.in_order(members) if other not in self._drains]
                if adapter == self._slots.base_model or not others:
                    continue  # SGLang never drains for the base model
                self._drains[min(others, key=to_come.__getitem__)] = adapter
        self._drains = {adapter: other for adapter, other in self._drains.items() if adapter in members}


class LoadingAheadQueue(ScannedQueue):
    """Loads overlap with steps: a request whose adapter is absent starts its load, and is passed until it is there.

    Source: ``lora/lora_overlap_loader.py``. An adapter that is there keeps its slot only once a request has joined.

    :param start_load: called with a request whose adapter has taken a slot; returns whether it is resident at once.
    :param waits: called with a request whose adapter another one loads.
    """

    def __init__(
        self,
        cache: BatchSlots,
        start_load: Callable[[Request], bool],
        waits: Callable[[Request], None],
        drain_wait_s: float = 0.0,
    ) -> None:
        super().__init__(cache, drain_wait_s)
        self._start = start_load
        self._waits = waits

    def _has_adapter(self, candidate: Request) -> bool:
        slots, adapter = self._slots, candidate.adapter
        if slots.users[adapter] or slots.state[adapter] == RESIDENT:
            return True
        if slots.state[adapter] == LOADING:
            self._waits(candidate)
            return False
        if slots.fetch_ahead(adapter):
            return self._start(candidate)
        self.over_limit = True
        return False
