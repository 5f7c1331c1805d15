"""Waiting queues: which request may join the batch next, and when its adapter load starts.

``WaitingQueue`` is their interface; more are in ``queues``. With ``ReadyQueue``, loads start at arrival: every request
in the queue has its adapter resident and in use. With ``ClaimingQueue``, loads start at admission, when the scheduler
reaches a request and its adapter fits among those in use.

The scheduler scans a queue like this. ``next_candidate`` finds a request; it changes nothing but the order within the
queue. If the request ``may_join`` and finds KV blocks, ``take`` removes it. If it may not join, ``pass_over`` starts
its load or defers it, and the scan goes on. Loads start at once, in the order of the scan: each evicts an adapter, and
so decides what the next candidates find.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from bisect import bisect_left, insort
from collections import deque
from collections.abc import Callable
from heapq import heappop, heappush
from operator import attrgetter

from sim.policies.adapter_cache import RESIDENT, AdapterCache
from sim.traffic.request import Request

by_key = attrgetter("key")
"""Sort key: a request's place in a queue."""


class WaitingQueue(ABC):
    """Waiting requests, each of them in one of two places.

    :ivar ready: requests that no scan has set aside, in the order of their keys.
    :ivar deferred: by adapter, requests that a scan has set aside, in the order of their keys. The scheduler reads both
        directly, without a call: no request waits if both are empty.
    :ivar late: a heap of the keys of requests that ``bring_forward`` puts into ``ready`` when their turn comes.
    :ivar over_limit: whether the last scan ended at a request over the adapter limit.
    :ivar unloaded: requests that joined the batch although their adapter is absent. The step that they joined loads it
        first; whoever does that empties the list.
    :cvar chooses: whether the queue has rules of its own for which request comes next and may join. Otherwise the first
        of ``ready`` may always join, and the scheduler takes it without a call.
    :cvar takes_turns: whether adapters or tenants take turns, so that any boundary may change which request comes next.
    :cvar defers: whether requests in ``deferred`` are over the adapter limit.
    :ivar by_priority: whether a preempted request keeps its key, which says its priority first; otherwise it goes to
        the front.
    """

    takes_turns = False
    chooses = True
    defers = True

    def __init__(self) -> None:
        self.ready: deque[Request] = deque()
        self.deferred: dict[int, list[Request]] = {}
        self.late: list[int] = []
        self.over_limit = False
        self.unloaded: list[Request] = []
        self.by_priority = False
        self._front = 0

    def begin(self) -> None:
        """Begin a scan of the queue."""

    @abstractmethod
    def next_candidate(self) -> Request | None:
        """Return the waiting request that the scheduler should consider next, or None if no other may join now."""

    def may_join(self, candidate: Request) -> bool:
        """Return whether the candidate has its adapter, or may claim it in the step that it joins."""
        return True

    def pass_over(self, candidate: Request) -> bool:
        """Put a candidate that may not join aside; return whether the scan may go on to requests behind it."""
        raise NotImplementedError("every candidate of this queue may join")

    @abstractmethod
    def take(self, candidate: Request) -> None:
        """Remove a candidate that joins the batch; it claims its adapter."""

    def bring_forward(self) -> None:
        """Put the first of ``late`` before ``ready`` if it has the lower key; whoever takes one from there calls it."""

    def _claim(self, request: Request, cache: AdapterCache) -> None:
        """Count a request that joins as a user of its adapter, unless it is one."""
        if not request.claimed:
            request.claimed = True
            if not cache.acquire(request.adapter):
                self.unloaded.append(request)

    def claim(self, request: Request) -> None:
        """Note that a request joins the batch that ``put_aside`` has removed before; it claims its adapter."""

    def put_aside(self, candidate: Request) -> None:
        """Remove a candidate that does not join the batch now."""
        self.ready.popleft()

    def remove(self, request: Request) -> None:
        """Remove a request whose client has gone."""
        self.ready.remove(request)

    def put_first(self, request: Request) -> None:
        """Put a request after ``put_aside`` before all others, or with priorities in its place among them."""
        WaitingQueue.push_front(self, request)

    def pause(self, request: Request) -> None:
        """Note that a running request gets no token in the next step."""

    def resume(self, request: Request) -> None:
        """Note that a request after ``pause`` gets tokens again."""

    def end_steps(self, steps: int) -> None:
        """Note that ``steps`` equal steps have ended, each with a scan like the last; here nothing follows from it.

        The scheduler calls it only while requests are in ``deferred``.
        """

    def push(self, request: Request) -> None:
        """Add a request by its key."""
        ready = self.ready
        if not ready or ready[-1].key < request.key:
            ready.append(request)
        else:  # after a load, or an attempt elsewhere; mostly near one of the ends, where a deque inserts quickly
            insort(ready, request, key=by_key)

    def push_front(self, request: Request) -> None:
        """Put a preempted request before all others, or with priorities in its place among them."""
        if not self.by_priority:
            self._front -= 1
            request.key = self._front
        self.push(request)

    def may_reorder(self) -> bool:
        """Return whether another request may come next after any step, although none has come or left."""
        return False

    def all_requests(self) -> list[Request]:
        """Return all waiting requests, in no particular order."""
        return list(self.ready) + [r for group in self.deferred.values() for r in group]

    @abstractmethod
    def size(self) -> int:
        """Return the number of waiting requests."""

    def passed(self, before: int | None) -> int:
        """Return how many requests a scan passes over because of the adapter limit; here none."""
        return 0


class ReadyQueue(WaitingQueue):
    """Requests whose adapter is resident and in use, the lowest key first.

    ``late`` has requests that belong between the first and the last of ``ready``: in a long queue, many whose load has
    ended do. A heap takes them in a shorter time than the middle of a deque.
    """

    chooses = False

    def __init__(self) -> None:
        super().__init__()
        self._late_requests: dict[int, Request] = {}  # by key

    def push(self, request: Request) -> None:
        ready = self.ready
        if not ready or ready[-1].key < request.key:
            ready.append(request)
        elif request.key < ready[0].key:
            ready.appendleft(request)
        else:
            heappush(self.late, request.key)
            self._late_requests[request.key] = request

    def next_candidate(self) -> Request | None:
        return self.ready[0] if self.ready else None

    def take(self, candidate: Request) -> None:
        self.ready.popleft()
        if self.late:
            self.bring_forward()

    def bring_forward(self) -> None:
        if self.late[0] < self.ready[0].key:
            self.ready.appendleft(self._late_requests.pop(heappop(self.late)))

    def all_requests(self) -> list[Request]:
        return super().all_requests() + list(self._late_requests.values())

    def size(self) -> int:
        return len(self.ready) + len(self.late)


class ClaimingQueue(WaitingQueue):
    """Requests in order of arrival, whose adapters may be absent.

    A request is over the adapter limit if its adapter does not fit among those in use. Such a request stops the queue
    (``stop``), or is deferred: later requests pass it, and it waits in ``deferred`` at no cost until room appears.

    :param request_load: called with a request whose adapter must be loaded, or that joins a load under way. The request
        then waits outside this queue until ``arrived`` or ``failed``. None: loads do not overlap with steps; the step
        that admits a request loads its absent adapter.
    :param stop: a request over the adapter limit stops the queue (older vLLM, S-LoRA); otherwise it is deferred (vLLM
        0.8.3 and later, SGLang).
    :param gives_up: a preempted request releases its adapter, as in vLLM; otherwise the adapter stays in use until the
        request ends.
    """

    def __init__(
        self,
        cache: AdapterCache,
        request_load: Callable[[Request], None] | None,
        *,
        stop: bool,
        gives_up: bool = False,
    ) -> None:
        super().__init__()
        self._cache = cache
        self._request_load = request_load
        self._stop = stop
        self._gives_up = gives_up
        self._deferred_heads: list[tuple[int, int]] = []
        self._deferred_count = 0
        self._loads_requested = 0
        self._chosen: dict[int, Request] = {}  # with ``stop``, by index: ready requests whose load has ended

    def next_candidate(self) -> Request | None:
        self.over_limit = False
        if self._stop and self._loads_requested:
            return None  # the head of the queue waits for its load
        self._restore_oldest_deferred()
        while self.ready:
            request = self.ready[0]
            adapter = request.adapter
            if request.claimed or adapter not in self.deferred or not self._cache.can_claim(adapter):
                return request
            self._restore_deferred(adapter)  # older requests of the same adapter go first
            self._restore_oldest_deferred()
        return None

    def may_join(self, candidate: Request) -> bool:
        if candidate.claimed:
            return True
        if self._request_load is None:  # a step that loads needs room for all that it claims
            return self._cache.can_claim(candidate.adapter)
        return self._cache.state[candidate.adapter] == RESIDENT  # an adapter to be loaded later can wait for this one

    def pass_over(self, candidate: Request) -> bool:
        """Start the load of the candidate's adapter. If it does not fit, defer the candidate, or stop the queue."""
        if self._cache.can_claim(candidate.adapter):
            self._start_load(candidate)
            return not self._stop
        if not self._stop:
            self._defer(candidate)
            return True
        if self._chosen:
            self._move_to_front(min(self._chosen.values(), key=by_key))  # others may wait for the adapter it holds
            return True
        self.over_limit = True
        return False

    def take(self, candidate: Request) -> None:
        self.ready.popleft()
        if self._chosen:
            self._chosen.pop(candidate.index, None)
        self._claim(candidate, self._cache)

    def remove(self, request: Request) -> None:
        group = self.deferred.get(request.adapter)
        if group is None or request not in group:
            super().remove(request)
            return
        group.remove(request)
        self._deferred_count -= 1
        if not group:
            del self.deferred[request.adapter]
        elif group[0].key > request.key:
            heappush(self._deferred_heads, (group[0].key, request.adapter))

    def claim(self, request: Request) -> None:
        self._claim(request, self._cache)
        if request.adapter in self.deferred:
            self._restore_deferred(request.adapter)

    def push_front(self, request: Request) -> None:
        if self._gives_up:
            self._cache.release(request.adapter)
            request.claimed = False
        super().push_front(request)

    def pause(self, request: Request) -> None:
        self._cache.pause(request.adapter)

    def resume(self, request: Request) -> None:
        self._cache.resume(request.adapter)

    def passed(self, before: int | None) -> int:
        """Return how many deferred requests a scan passes over: those with keys below ``before``; None: all."""
        if before is None:
            return self._deferred_count
        return sum(bisect_left(group, before, key=by_key) for group in self.deferred.values())

    def arrived(self, request: Request) -> None:
        """Take back a request given to ``request_load``: its adapter is resident and in use."""
        self._loads_requested -= 1
        request.claimed = True
        self.push(request)
        if self._stop:
            self._chosen[request.index] = request

    def failed(self, request: Request) -> None:
        """Forget a request given to ``request_load``: it has left because its adapter could not be loaded."""
        self._loads_requested -= 1
        self._cache.release(request.adapter)

    def size(self) -> int:
        return len(self.ready) + self._deferred_count

    def _move_to_front(self, request: Request) -> None:
        """Move a request that has its adapter ahead of all others."""
        del self._chosen[request.index]
        self.ready.remove(request)
        super().push_front(request)

    def _start_load(self, request: Request) -> None:
        """Claim the adapter for a request that leaves this queue until its load has ended."""
        self.ready.popleft()
        self._cache.acquire(request.adapter)
        self._loads_requested += 1
        assert self._request_load is not None, "a request that fits joins the step that loads its adapter"
        self._request_load(request)

    def _defer(self, request: Request) -> None:
        self.ready.popleft()
        self._deferred_count += 1
        group = self.deferred.setdefault(request.adapter, [])
        if group and group[-1].key < request.key:
            group.append(request)
            return
        insort(group, request, key=by_key)  # a preempted request may precede those deferred earlier
        if group[0] is request:
            heappush(self._deferred_heads, (request.key, request.adapter))

    def _restore_oldest_deferred(self) -> None:
        """Make the requests of the oldest deferred adapter ready if they come first and it may be claimed."""
        heads = self._deferred_heads
        while heads:
            key, adapter = heads[0]
            group = self.deferred.get(adapter)
            if group is not None and group[0].key == key:
                break
            heappop(heads)  # stale: a younger request restored that group, or it has an older request now
        if not heads or (self.ready and self.ready[0].key < heads[0][0]):
            return
        if self._cache.can_claim(heads[0][1]):
            self._restore_deferred(heads[0][1])

    def _restore_deferred(self, adapter: int) -> None:
        group = self.deferred.pop(adapter)
        self._deferred_count -= len(group)
        for request in group:
            self.push(request)
