"""Waiting queues with one for each adapter (LoRAX), or one for each whole model that is swapped in."""

from __future__ import annotations

from bisect import insort
from collections import deque
from collections.abc import Callable
from heapq import heappop, heappush
from itertools import pairwise
from math import inf

from sim.policies.adapter_cache import RESIDENT, GpuCache
from sim.policies.admission import WaitingQueue, by_key
from sim.traffic.request import MISS, Request

# LoRAX's waiting queues: one for each adapter, of which only some are active at a time.
#
# Source: LoRAX ``router/src/scheduler.rs``, ``update_adapters`` and ``get_oldest_active_adapter``. Adapters wait for a
# place in order of their first request (pending) and are loaded when they get one (active). They keep it while the
# batch uses them or their queue is not empty, but no longer than the cycle time if other adapters wait for a place.


class AdapterQueues(WaitingQueue):
    """Waiting requests by adapter. Every scan begins by setting new requests aside, so ``deferred`` holds the queues.

    :param request_load: called with a request whose adapter must be loaded, or that joins its load; the world calls
        ``arrived`` when the adapter is resident.
    :param now: returns the time in seconds.
    :param cycle_s: an adapter that has been active for longer gives its place to a pending one, unless the batch uses
        it; its requests then wait for another turn. It keeps its place until one of its requests was admitted. LoRAX
        has no such rule; without it, adapters whose loads outlast the cycle could come and go without being used.
    """

    takes_turns = True

    def __init__(
        self, cache: GpuCache, request_load: Callable[[Request], None], now: Callable[[], float], cycle_s: float
    ) -> None:
        super().__init__()
        self._cache = cache
        self._request_load = request_load
        self._now = now
        self._cycle_s = cycle_s
        self._scan_s = 0.0  # time of the scan under way
        self._active: dict[int, float] = {}  # end of each one's cycle time, in the order of activation
        self._pending: deque[int] = deque()
        adapters = len(cache.weights) + 1  # the base model is last
        self._is_pending = [False] * adapters
        self._loading = [False] * adapters
        self._served = [False] * adapters  # whether a request was admitted since it became active
        self._weight = 0
        self._loads_requested = 0
        self._sorted_in = 0  # requests in the queues
        # Heaps of (key of a queue's first request, adapter): adapters within their cycle time, and others. Stale and
        # misplaced entries are removed when they reach the top.
        self._within: list[tuple[int, int]] = []
        self._beyond: list[tuple[int, int]] = []
        self._base_model: int | None = None

    def admit_base_model(self, number: int) -> None:
        """Admit requests without an adapter, under this adapter number, at any time."""
        self._base_model = number
        self._active[number] = inf

    def begin(self) -> None:
        """Begin a scheduling pass: sort new requests into their queues and change the active adapters."""
        self._sort_in()
        self._scan_s = now = self._now()
        if not self._pending:
            return
        for adapter in self._idle(len(self._pending)):
            self._offload(adapter)
        front = self._outstayed(now)
        if front is not None:
            self._offload(front)
            if front in self.deferred:
                self._wait_for_place(front)
        while self._pending and self._weight + self._cache.weights[self._pending[0]] <= self._cache.capacity:
            self._activate(self._pending.popleft(), now)

    def next_candidate(self) -> Request | None:
        """Return the longest-waiting request whose adapter is active and loaded, or None.

        Adapters within their cycle time go first.
        """
        now, active, within, beyond = self._scan_s, self._active, self._within, self._beyond
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
        """Return whether the request with this key is the first in an active adapter's queue."""
        queue = self.deferred.get(adapter)
        return queue is not None and queue[0].key == key and adapter in self._active

    def push(self, request: Request) -> None:
        self.ready.append(request)  # the next scan sorts

    def arrived(self, request: Request) -> None:
        """Take back a request given to ``request_load``: its adapter is resident."""
        self._loads_requested -= 1
        self._loading[request.adapter] = False
        self.push(request)

    def failed(self, request: Request) -> None:
        """Forget a request given to ``request_load``: its load failed, and its adapter loses its place."""
        self._loads_requested -= 1
        adapter = request.adapter
        if self._loading[adapter]:
            self._loading[adapter] = False
            del self._active[adapter]
            self._weight -= self._cache.weights[adapter]

    def discard(self, adapter: int) -> None:
        """Evict an adapter that will not be requested again, unless it is in use or requests wait for it."""
        if adapter in self._active and self._may_go(adapter) and adapter not in self.deferred:
            self._offload(adapter)

    def may_go_on(self) -> bool:
        """Return whether another pass at this instant may free a place; one removes at most as many as are pending."""
        return bool(self._pending) and (bool(self._idle(1)) or self._outstayed(self._now()) is not None)

    def next_change_s(self) -> float:
        """Return the time after which a pass may decide differently although no request has arrived or left."""
        now = self._now()
        if self.may_go_on():
            return now
        times = [t for a, t in self._active.items() if t >= now and (a in self.deferred or self._pending)]
        return min(times, default=inf)

    def size(self) -> int:
        return len(self.ready) + self._loads_requested + self._sorted_in

    def take(self, candidate: Request) -> None:
        adapter = heappop(self._within or self._beyond)[1]  # ``next_candidate`` has just found it at the top
        queue = self.deferred[adapter]
        del queue[0]
        self._sorted_in -= 1
        if queue:
            heappush(self._within, (queue[0].key, adapter))
        else:
            del self.deferred[adapter]
        self._served[adapter] = True
        self._claim(candidate, self._cache)

    def _sort_in(self) -> None:
        if not self.ready:
            return
        new = sorted(self.ready, key=by_key)
        self.ready.clear()
        for request in new:
            adapter = request.adapter
            if self._loading[adapter]:
                self._hand_over(request)
                continue
            queue = self.deferred.get(adapter)
            self._sorted_in += 1
            if queue is None:
                self.deferred[adapter] = queue = [request]
                if adapter not in self._active:
                    self._wait_for_place(adapter)
            elif queue[-1].key < request.key:
                queue.append(request)
                continue
            else:
                insort(queue, request, key=by_key)
            if queue[0] is request:
                heappush(self._within, (request.key, adapter))

    def _wait_for_place(self, adapter: int) -> None:
        if not self._is_pending[adapter]:
            self._is_pending[adapter] = True
            self._pending.append(adapter)

    def _idle(self, most: int) -> list[int]:
        """Return the active adapters that are not in use and have no waiting request, up to ``most`` of them."""
        users, loading, deferred = self._cache.users, self._loading, self.deferred
        found: list[int] = []
        for adapter in self._active:
            if users[adapter] == 0 and not loading[adapter] and adapter not in deferred:
                found.append(adapter)
                if len(found) == most:
                    break
        return found

    def _outstayed(self, now: float) -> int | None:
        """Return the adapter that has been active longest, if its cycle time is over and it may leave."""
        active = iter(self._active)
        front = next(active, None)
        if front is not None and front == self._base_model:  # it was first to become active, and stays
            front = next(active, None)
        if front is None or not self._served[front] or not self._may_go(front) or now <= self._active[front]:
            return None
        return front

    def _may_go(self, adapter: int) -> bool:
        return self._cache.users[adapter] == 0 and not self._loading[adapter]

    def _offload(self, adapter: int) -> None:
        del self._active[adapter]
        self._weight -= self._cache.weights[adapter]
        self._cache.evict(adapter)

    def _activate(self, adapter: int, now: float) -> None:
        self._is_pending[adapter] = False
        self._active[adapter] = now + self._cycle_s
        self._weight += self._cache.weights[adapter]
        self._loading[adapter] = True
        self._served[adapter] = False
        queue = self.deferred.pop(adapter)
        self._sorted_in -= len(queue)
        for request in queue:
            self._hand_over(request)

    def _hand_over(self, request: Request) -> None:
        """Let a request wait for its adapter's load. A request that was a miss stays one if it joins a second load."""
        missed = request.outcome == MISS
        request.load_queue_s = 0.0
        self._loads_requested += 1
        self._request_load(request)
        if missed:
            request.outcome = MISS


# The queue of a replica that swaps whole models: which request may join, and when another model is loaded.
#
# First come, first served. If a request's model is not resident and other models use every place, the request waits
# until one of them has drained, and all requests behind it wait too, as in Ollama (``server/sched.go``,
# ``processPending``: "we're queueing up all incoming requests, even if they were for a different model that's loaded").
# With traffic for several models, nearly every request then needs a swap. So a model may have a turn: for some time
# after its load, its requests pass older ones that wait for another model, as adapters do in LoRAX
# (``adapter_cycle_time_s``). Unlike there, no request passes after the turn, so the batch drains. With m models and one
# place, a request waits for at most m - 1 turns, drains and loads before its own model is loaded.


class ModelTurns(WaitingQueue):
    """Waiting requests by model. Every scan begins by setting new requests aside, so ``deferred`` holds the queues.

    :param now: returns the time in seconds.
    :param turn_s: seconds after its load in which a model's requests may pass older ones.
    """

    takes_turns = True

    def __init__(self, cache: GpuCache, now: Callable[[], float], turn_s: float) -> None:
        super().__init__()
        self._cache = cache
        self._now = now
        self._turn_s = turn_s
        self._until: dict[int, float] = {}  # by model that has been loaded, the end of its turn

    def start_turn(self, model: int, end_s: float) -> None:
        """Start the turn of a model whose load ends at ``end_s``."""
        self._until[model] = end_s + self._turn_s

    def begin(self) -> None:
        """Begin a scan of the queue: sort new requests into the queues of their models."""
        while self.ready:
            request = self.ready.popleft()
            insort(self.deferred.setdefault(request.adapter, []), request, key=by_key)

    def next_candidate(self) -> Request | None:
        now, overtaking = self._now(), False
        for _, model in sorted((queue[0].key, model) for model, queue in self.deferred.items()):
            first = self.deferred[model][0]
            may_claim = first.claimed or self._cache.can_claim(model)
            if may_claim and (not overtaking or now < self._until.get(model, -inf)):
                return first
            overtaking = True
        return None

    def size(self) -> int:
        return len(self.ready) + sum(map(len, self.deferred.values()))

    def take(self, candidate: Request) -> None:
        queue = self.deferred[candidate.adapter]
        del queue[0]
        if not queue:
            del self.deferred[candidate.adapter]
        self._claim(candidate, self._cache)

    def check_integrity(self) -> None:
        """Assert that every queue is in order and holds only requests of its own model."""
        for model, queue in self.deferred.items():
            assert queue, "empty queues are removed"
            assert all(request.adapter == model for request in queue)
            assert all(one.key < other.key for one, other in pairwise(queue))
            assert self._cache.state[model] == RESIDENT or not queue[0].claimed, "a claimed model is resident"
