"""vLLM's waiting queues: where requests go that a step passes because their adapter would be one too many.

Source: ``v1/core/sched/scheduler.py``. A step collects such requests and puts them back afterwards. Newer and older
versions keep their order, as ``ClaimingQueue`` does; here are the other two ways. Replays of recorded steps meet all
three (tests/property/test_records.py).
"""

from __future__ import annotations

from collections import deque
from typing import Literal

from sim.policies.admission import ClaimingQueue, WaitingQueue
from sim.policies.vllm_lru import VllmLruCache
from sim.traffic.request import Request

PassedRequests = Literal["keep-order", "reversed", "own-queue"]


def vllm_queue(cache: VllmLruCache, passed_requests: PassedRequests) -> WaitingQueue:
    """Return an empty queue by the rule of ``fleet.passed_requests``."""
    if passed_requests == "reversed":
        return ReversingQueue(cache)
    if passed_requests == "own-queue":
        return OwnQueue(cache, None, stop=False, gives_up=True)
    return ClaimingQueue(cache, None, stop=False, gives_up=True)


class OwnQueue(ClaimingQueue):
    """Passed requests have a queue of their own, which goes first (vLLM 0.18 to 0.30, ``skipped_waiting``).

    They keep the order in which they were first passed. A preempted request comes behind them, ahead of the requests
    that were never passed.
    """

    _last_key = -(1 << 60)  # of a request in the queue of its own; those of all other requests are higher

    def _defer(self, request: Request) -> None:
        if request.key > self._last_key:
            self._last_key += 1
            request.key = self._last_key
        super()._defer(request)


class ReversingQueue(WaitingQueue):
    """Passed requests return to the head of the queue in reverse order (vLLM 0.9.2 to 0.13).

    Those behind them, which the scan did not reach, stay. So the order of waiting requests flips with every step, and a
    leap of an even number of equal steps leaves it as it was.

    The order is that of three parts: ``_first``, then ``_block``, then ``ready``, whose requests were never passed. As
    long as no request in ``_block`` may join, a scan passes it as a whole, and only its direction changes.
    """

    def __init__(self, cache: VllmLruCache) -> None:
        super().__init__()
        self._cache = cache
        self._first: deque[Request] = deque()
        self._block: deque[Request] = deque()
        self._backwards = False  # whether the first request of the block is the last in ``_block``
        self._shared: set[int] = set()  # adapters of waiting requests that others brought into the batch
        # By the scan of the step under way:
        self._passed: list[Request] = []  # ahead of the block, or of its rest
        self._block_passed = False
        self._passed_later: list[Request] = []  # behind it

    def next_candidate(self) -> Request | None:
        """Return the first waiting request that is within the adapter limit; pass those ahead of it."""
        users, any_fits = self._cache.users, self._cache.in_use < self._cache.capacity
        first, passed = self._first, self._passed
        while first:
            if any_fits or users[first[0].adapter]:
                return first[0]
            passed.append(first.popleft())
        block = self._block
        if block and not self._block_passed:
            self._block_passed = not any_fits and not self._some_are_shared()
            while block and not self._block_passed:
                request = block[-1] if self._backwards else block[0]
                if any_fits or users[request.adapter]:
                    return request
                self._remove_from_block()
                passed.append(request)
        if self._block_passed:
            passed = self._passed_later
        ready = self.ready
        while ready:
            request = ready[0]
            if any_fits or users[request.adapter]:
                return request
            ready.popleft()
            passed.append(request)
            self._count_in(request)
        return None

    def take(self, candidate: Request) -> None:
        if self._first:
            self._count_out(self._first.popleft())
        elif self._block and not self._block_passed:
            self._remove_from_block()
            self._count_out(candidate)
        else:
            self.ready.popleft()
        self._claim(candidate, self._cache)
        if candidate.adapter in self.deferred:
            self._shared.add(candidate.adapter)

    def push_front(self, request: Request) -> None:
        self._cache.release(request.adapter)
        request.claimed = False
        self._front -= 1
        request.key = self._front
        self._first.appendleft(request)
        self._count_in(request)

    def pause(self, request: Request) -> None:
        self._cache.pause(request.adapter)

    def resume(self, request: Request) -> None:
        self._cache.resume(request.adapter)

    def end_steps(self, steps: int) -> None:
        passed, later, block = self._passed, self._passed_later, self._block
        flips = steps % 2 == 1
        if self._first or (block and not self._block_passed):  # the scan ended ahead of the block's end
            self._first.extendleft(passed if flips else reversed(passed))
        else:
            if self._backwards:
                block.extend(reversed(passed))
                block.extendleft(later)
            else:
                block.extendleft(reversed(passed))
                block.extend(later)
            self._backwards ^= flips
        self._passed, self._block_passed, self._passed_later = [], False, []

    def passed(self, before: int | None) -> int:
        """Return how many requests the scan of the step under way has passed over."""
        return len(self._passed) + len(self._passed_later) + (len(self._block) if self._block_passed else 0)

    def size(self) -> int:
        return len(self.ready) + sum(map(len, self.deferred.values()))

    def _some_are_shared(self) -> bool:
        """Return whether an adapter of a waiting request may be in the batch; if not, it is not."""
        users, deferred = self._cache.users, self.deferred
        self._shared = {adapter for adapter in self._shared if users[adapter] and adapter in deferred}
        return bool(self._shared)

    def _remove_from_block(self) -> None:
        if self._backwards:
            self._block.pop()
        else:
            self._block.popleft()

    def _count_in(self, request: Request) -> None:
        """Count a request among those that wait outside ``ready``."""
        self.deferred.setdefault(request.adapter, []).append(request)

    def _count_out(self, request: Request) -> None:
        group = self.deferred[request.adapter]
        group.remove(request)
        if not group:
            del self.deferred[request.adapter]
