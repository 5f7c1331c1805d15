"""The queue of a replica that swaps whole models: which request may join, and when another model is loaded.

First come, first served. If a request's model is not resident and other models use every place, the request waits until
one of them has drained, and all requests behind it wait too, as in Ollama (``server/sched.go``, ``processPending``:
"we're queueing up all incoming requests, even if they were for a different model that's loaded"). With traffic for
several models, nearly every request then needs a swap. So a model may have a turn: for some time after its load, its
requests pass older ones that wait for another model, as adapters do in LoRAX (``adapter_cycle_time_s``). Unlike there,
no request passes after the turn, so the batch drains. With m models and one place, a request waits for at most m - 1
turns, drains and loads before its own model is loaded.
"""

from __future__ import annotations

from bisect import insort
from collections.abc import Callable
from itertools import pairwise
from math import inf

from sim.policies.adapter_cache import RESIDENT, GpuCache
from sim.policies.admission import WaitingQueue, by_key
from sim.traffic.request import Request


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
