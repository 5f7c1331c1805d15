"""LoRAX's waiting room: a queue for each adapter, of which only some are active at a time.

Read from LoRAX ``router/src/scheduler.rs``, ``update_adapters`` and ``get_oldest_active_adapter``. Nothing is loaded
for a request but for its adapter: adapters wait for a place in order of their first request (pending), are loaded when
they get one (active), and keep it while the batch uses them or their queue isn't empty, but no longer than the cycle
time if others wait for a place.
"""

from __future__ import annotations

from bisect import insort
from collections import deque
from collections.abc import Callable
from heapq import heappop, heappush
from math import inf

from sim.policies.adapter_cache import GpuCache
from sim.policies.admission import ReadyQueue, by_key
from sim.traffic.request import MISS, Request


class AdapterQueues(ReadyQueue):
    """Requests by adapter. ``line`` is where they come in; ``aside`` are the queues.

    :param ask: called with a request whose adapter must be loaded, or that joins its load; the world calls
        ``arrived`` when it is there.
    :param now: tells the time.
    :param cycle_s: an active adapter that has been so for longer gives its place to one that waits for a place, unless
        the batch uses it; its requests then wait for another turn. Not before it had a turn (LoRAX doesn't ask for
        that; where loads take longer than the cycle, adapters could come and go for ever without being used).
    """

    by_turns = True

    def __init__(
        self, cache: GpuCache, request_load: Callable[[Request], None], now: Callable[[], float], cycle_s: float
    ) -> None:
        super().__init__()
        self._cache = cache
        self._request_load = request_load
        self._now = now
        self._cycle_s = cycle_s
        self._active: dict[int, float] = {}  # until when each may stay, in the order of activation
        self._pending: deque[int] = deque()
        self._is_pending: set[int] = set()
        self._loading: set[int] = set()
        self._served: set[int] = set()  # had a request admitted since they became active
        self._weight = 0
        self._loads_requested = 0
        self._sorted_in = 0  # requests in the queues
        # Heaps of (key of a queue's first request, adapter), of those within their cycle time and of others. Entries
        # that aren't true any more, or stand in the wrong heap, are found when they come to the top.
        self._within: list[tuple[int, int]] = []
        self._beyond: list[tuple[int, int]] = []
        self._base_model: int | None = None
        self.take = self._claim

    def serve_base_model(self, number: int) -> None:
        """Let requests without an adapter, which stand under this number, have their turn at any time."""
        self._base_model = number
        self._active[number] = inf

    def begin(self) -> None:
        """Sort in those who came, and change the active adapters: what a scheduling pass begins with."""
        self._sort_in()
        if not self._pending:
            return
        now = self._now()
        for adapter in self._idle()[: len(self._pending)]:
            self._offload(adapter)
        front = self._outstayed(now)
        if front is not None:
            self._offload(front)
            if front in self.deferred:
                self._wait_for_place(front)
        while self._pending and self._weight + self._cache.weights[self._pending[0]] <= self._cache.capacity:
            self._activate(self._pending.popleft(), now)

    def first(self) -> Request | None:
        """Return the request that has waited longest of those whose adapters are active and loaded, or None.

        Adapters within their cycle time go before others.
        """
        self._sort_in()
        now, active, within, beyond = self._now(), self._active, self._within, self._beyond
        while within:
            key, adapter = within[0]
            if self._is_first(key, adapter):
                if now <= active[adapter]:
                    return self.deferred[adapter][0]
                heappush(beyond, (key, adapter))
            heappop(within)
        while beyond:
            key, adapter = beyond[0]
            if self._is_first(key, adapter) and now > active[adapter]:
                return self.deferred[adapter][0]
            heappop(beyond)
        return None

    def _is_first(self, key: int, adapter: int) -> bool:
        """Return whether the request of this key is the first of an active adapter's queue."""
        queue = self.deferred.get(adapter)
        return queue is not None and queue[0].key == key and adapter in self._active

    def arrived(self, request: Request) -> None:
        """Note that a request handed to ``ask`` has its adapter in GPU memory."""
        self._loads_requested -= 1
        self._loading.discard(request.adapter)
        self.push(request)

    def failed(self, request: Request) -> None:
        """Note that a request handed to ``ask`` has left: its adapter can't be loaded, and gives up its place."""
        self._loads_requested -= 1
        adapter = request.adapter
        if adapter in self._loading:
            self._loading.remove(adapter)
            del self._active[adapter]
            self._weight -= self._cache.weights[adapter]

    def discard(self, adapter: int) -> None:
        """Let an adapter go that nobody uses or waits for, if it is there: nobody will ask for it again."""
        if adapter in self._active and self._may_go(adapter) and adapter not in self.deferred:
            self._offload(adapter)

    def may_go_on(self) -> bool:
        """Return whether another pass at this instant may make room: one takes out no more adapters than wait."""
        return bool(self._pending) and (bool(self._idle()) or self._outstayed(self._now()) is not None)

    def next_change_s(self) -> float:
        """Return the time after which the next pass might decide otherwise though nobody came or left."""
        now = self._now()
        if self.may_go_on():
            return now
        times = [t for a, t in self._active.items() if t >= now and (a in self.deferred or self._pending)]
        return min(times, default=inf)

    def all_requests(self) -> list[Request]:
        return super().all_requests() + [request for group in self.deferred.values() for request in group]

    def size(self) -> int:
        return len(self.ready) + self._loads_requested + self._sorted_in

    def _claim(self) -> None:
        adapter = heappop(self._within or self._beyond)[1]  # first has just left it at the top
        queue = self.deferred[adapter]
        request = queue.pop(0)
        self._sorted_in -= 1
        if queue:
            heappush(self._within, (queue[0].key, adapter))
        else:
            del self.deferred[adapter]
        self._served.add(adapter)
        if not request.claimed:
            self._cache.acquire(adapter)

    def _sort_in(self) -> None:
        ready = self.ready
        while ready:
            request = heappop(ready)[1]
            adapter = request.adapter
            if adapter in self._loading:
                self._hand_over(request)
                continue
            queue = self.deferred.setdefault(adapter, [])
            insort(queue, request, key=by_key)
            self._sorted_in += 1
            if queue[0] is request:
                heappush(self._within, (request.key, adapter))
            if adapter not in self._active:
                self._wait_for_place(adapter)

    def _wait_for_place(self, adapter: int) -> None:
        if adapter not in self._is_pending:
            self._is_pending.add(adapter)
            self._pending.append(adapter)

    def _idle(self) -> list[int]:
        """Return the active adapters that nobody uses or waits for."""
        deferred, may_go = self.deferred, self._may_go
        return [adapter for adapter in self._active if adapter not in deferred and may_go(adapter)]

    def _outstayed(self, now: float) -> int | None:
        """Return the adapter that has been active longest, if it has been so for too long."""
        active = iter(self._active)
        front = next(active, None)
        if front is not None and front == self._base_model:  # came first, and stays
            front = next(active, None)
        if front is None or front not in self._served or not self._may_go(front) or now <= self._active[front]:
            return None
        return front

    def _may_go(self, adapter: int) -> bool:
        return self._cache.users[adapter] == 0 and adapter not in self._loading

    def _offload(self, adapter: int) -> None:
        del self._active[adapter]
        self._weight -= self._cache.weights[adapter]
        self._cache.evict(adapter)

    def _activate(self, adapter: int, now: float) -> None:
        self._is_pending.discard(adapter)
        self._active[adapter] = now + self._cycle_s
        self._weight += self._cache.weights[adapter]
        self._loading.add(adapter)
        self._served.discard(adapter)
        queue = self.deferred.pop(adapter)
        self._sorted_in -= len(queue)
        for request in queue:
            self._hand_over(request)

    def _hand_over(self, request: Request) -> None:
        """Let a request wait for a load; one that starts a second load stays the miss that it was."""
        missed = request.outcome == MISS
        request.load_queue_s = 0.0
        self._loads_requested += 1
        self._request_load(request)
        if missed:
            request.outcome = MISS
