"""The queue of a replica that swaps whole models: who may join, and when another model may come.

First come, first served. A request whose model isn't there, while requests of others use every place, waits until one
has drained, and those behind it wait with it: so Ollama does (``server/sched.go``, ``processPending``: "we're queueing
up all incoming requests, even if they were for a different model that's loaded"). Under traffic for several models that
is a swap for nearly every request. So a model may have a turn: for some time after its load its requests pass older
ones that wait for another model, as adapters do in LoRAX (``adapter_cycle_time_s``). Unlike there, nobody passes once
it is over, so the batch drains: with m models in one place, a request waits for at most m - 1 turns, drains and loads
before its own model comes.
"""

from __future__ import annotations

from bisect import insort
from collections.abc import Callable
from heapq import heappop
from itertools import pairwise
from math import inf

from sim.policies.adapter_cache import RESIDENT, GpuCache
from sim.policies.admission import ReadyQueue, by_key
from sim.traffic.request import Request


class ModelTurns(ReadyQueue):
    """Requests by model. ``line`` is where they come in; ``aside`` are the queues, in which all others wait.

    :param now: tells the time.
    :param turn_s: seconds after its load in which a model's requests may pass older ones.
    """

    by_turns = True

    def __init__(self, cache: GpuCache, now: Callable[[], float], turn_s: float) -> None:
        super().__init__()
        self._cache = cache
        self._now = now
        self._turn_s = turn_s
        self._until: dict[int, float] = {}  # by model that was loaded here, the end of its turn
        self._chosen = -1
        self.take = self._claim

    def start_turn(self, model: int, end_s: float) -> None:
        """Note that the load of a model ends then: its turn begins."""
        self._until[model] = end_s + self._turn_s

    def first(self) -> Request | None:
        """Return the request that would be admitted next, or None."""
        self._sort_in()
        now, overtaking = self._now(), False
        for _, model in sorted((queue[0].key, model) for model, queue in self.deferred.items()):
            if self._may_join(model) and (not overtaking or now < self._until.get(model, -inf)):
                self._chosen = model
                self.over_limit = False
                return self.deferred[model][0]
            overtaking = True
        self.over_limit = bool(self.deferred)
        return None

    def _may_join(self, model: int) -> bool:
        """Return whether a model's first request finds it here, or would bring it in."""
        return self.deferred[model][0].claimed or self._cache.can_claim(model)

    def all_requests(self) -> list[Request]:
        return super().all_requests() + [request for queue in self.deferred.values() for request in queue]

    def size(self) -> int:
        return len(self.ready) + sum(map(len, self.deferred.values()))

    def _claim(self) -> None:
        queue = self.deferred[self._chosen]
        request = queue.pop(0)
        if not queue:
            del self.deferred[self._chosen]
        if not request.claimed:
            self._cache.acquire(request.adapter)

    def _sort_in(self) -> None:
        ready = self.ready
        while ready:
            request = heappop(ready)[1]
            insort(self.deferred.setdefault(request.adapter, []), request, key=by_key)

    def check_integrity(self) -> None:
        """Assert that every queue is in order and holds requests of its own model alone."""
        for model, queue in self.deferred.items():
            assert queue, "an empty queue is none"
            assert all(request.adapter == model for request in queue)
            assert all(one.key < other.key for one, other in pairwise(queue))
            assert self._cache.state[model] == RESIDENT or not queue[0].claimed, "who has claimed a model has it"
