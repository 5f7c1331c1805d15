"""Who among the waiting may join the batch, and when adapters are asked for.

Two queues with one face. In ``ReadyQueue`` loads are asked for at arrival: whoever stands in it has its
adapter in GPU memory, in use. In ``ClaimingQueue`` they are asked for at admission, when the scheduler looks
at a request and its adapter fits beside those in use.
"""

from __future__ import annotations

from collections.abc import Callable
from heapq import heappop, heappush

from sim.policies.cache import RESIDENT, GpuCache
from sim.traffic.request import Request


class ReadyQueue:
    """Requests whose adapter is resident and in use, the lowest key first."""

    def __init__(self) -> None:
        self._ready: list[tuple[int, Request]] = []
        self._front = 0

    def push(self, request: Request) -> None:
        """Add a request by its key."""
        heappush(self._ready, (request.key, request))

    def push_front(self, request: Request) -> None:
        """Put a preempted request before all others."""
        self._front -= 1
        request.key = self._front
        heappush(self._ready, (request.key, request))

    def first(self) -> Request | None:
        """Return the request that would be admitted next, or None."""
        return self._ready[0][1] if self._ready else None

    def take(self, request: Request) -> None:
        """Remove the request that ``first`` has just returned."""
        heappop(self._ready)

    def everyone(self) -> list[Request]:
        """Return all who wait here, in no order."""
        return [request for _, request in self._ready]

    def __len__(self) -> int:
        return len(self._ready)


class ClaimingQueue(ReadyQueue):
    """Requests in order of arrival, whose adapters may be absent.

    A request over the adapter limit (it doesn't fit beside the adapters in use) is passed by later ones, or stops
    the queue, as ``stop`` says. Those passed wait by adapter in ``_cold`` and cost nothing until room appears.

    :param blocking: an absent adapter is loaded by the step that admits the request; otherwise ``ask``
        starts a load that overlaps with steps, and the request waits aside in the world's hands.
    :param ask: called with a request whose adapter must be loaded (overlap only), or that joins a load
        under way; the world pushes it back when the adapter is there.
    """

    def __init__(self, cache: GpuCache, ask: Callable[[Request], None], *, stop: bool, blocking: bool) -> None:
        super().__init__()
        self._cache = cache
        self._ask = ask
        self._stop = stop
        self._blocking = blocking
        self._cold: dict[int, list[Request]] = {}
        self._cold_heads: list[tuple[int, int]] = []
        self._cold_count = 0
        self._asked = 0

    def first(self) -> Request | None:
        """Return the request that would be admitted next, or None; asks for loads on the way."""
        if self._stop and self._asked:
            return None  # the head of the queue waits for its load
        while True:
            self._warm_cold_head()
            if not self._ready:
                return None
            request = self._ready[0][1]
            adapter = request.adapter
            if request.ready_s < 0 and adapter in self._cold and self._cache.can_claim(adapter):
                self._bring_back(adapter)  # older requests of the same adapter go first
            elif self._admissible(request):
                return request
            elif self._stop and not self._asked:
                return None  # over the adapter limit: everybody waits
            else:
                heappop(self._ready)
                if self._stop:
                    return None

    def take(self, request: Request) -> None:
        heappop(self._ready)
        if request.ready_s < 0:
            self._cache.acquire(request.adapter)

    def arrived(self, request: Request) -> None:
        """Note that a request handed to ``ask`` is pushed back, its adapter resident and in use."""
        self._asked -= 1
        self.push(request)

    def everyone(self) -> list[Request]:
        return super().everyone() + [request for group in self._cold.values() for request in group]

    def __len__(self) -> int:
        return len(self._ready) + self._cold_count

    def _admissible(self, request: Request) -> bool:
        adapter = request.adapter
        if request.ready_s >= 0:
            return True
        if self._cache.state[adapter] == RESIDENT and (not self._blocking or self._cache.can_claim(adapter)):
            return True  # a step that also loads needs room for all it claims; overlapping loads wait for it
        if not self._cache.can_claim(adapter):
            if not self._stop:
                self._set_aside(request)
            return False
        if self._blocking:
            return True
        self._cache.acquire(adapter)
        self._asked += 1
        self._ask(request)
        return False

    def _set_aside(self, request: Request) -> None:
        group = self._cold.get(request.adapter)
        if group is None:
            self._cold[request.adapter] = [request]
            heappush(self._cold_heads, (request.key, request.adapter))
        else:
            group.append(request)
        self._cold_count += 1

    def _warm_cold_head(self) -> None:
        """Bring back the requests of the oldest set-aside adapter, if it is due and may be claimed now."""
        heads = self._cold_heads
        while heads:
            key, adapter = heads[0]
            group = self._cold.get(adapter)
            if group is not None and group[0].key == key:
                break
            heappop(heads)  # that group was brought back by a younger request of its adapter
        if not heads or (self._ready and self._ready[0][0] < heads[0][0]):
            return
        if self._cache.can_claim(heads[0][1]):
            self._bring_back(heads[0][1])

    def _bring_back(self, adapter: int) -> None:
        for request in self._cold.pop(adapter):
            self.push(request)
            self._cold_count -= 1
