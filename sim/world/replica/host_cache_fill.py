"""Host memory that is filled when requests arrive, before anything is loaded to the GPU.

SGLang (an adapter that ``max_loaded_loras`` drove out), LoRAX (download at the first request) and TensorRT-LLM (host
cache) work this way. The host tier is then a protected cache of its own: an adapter with requests inside keeps its
place.
"""

from __future__ import annotations

from collections.abc import Callable

from sim.policies.adapter_cache import GpuCache
from sim.traffic.request import DELAYED_HIT, FROM_GPU, FROM_STORAGE, MISS, Request
from sim.world.clock import Clock
from sim.world.replica.loader import LoadContext, Loader


class HostCacheFill:
    """Host memory of one replica, filled at arrival.

    :param cache: adapters in host memory.
    :param loaders: fetches at a time.
    :param reject: refuse a request that would have to wait for a place.
    :ivar on_fetched: called with a request whose adapter has come to host memory, and whether that took any time; set
        by the server.
    :ivar on_fetch_failed: called with a request whose adapter could not be fetched; set by the server.
    """

    def __init__(
        self,
        clock: Clock,
        cache: GpuCache,
        loaders: int,
        context: LoadContext,
        *,
        reject: bool,
    ) -> None:
        self.cache = cache
        self.loader = Loader(clock, cache, None, (loaders, 1), context, self._fetched)
        self.loader.on_failed = self._failed
        self.on_fetched: Callable[[Request, bool], None]
        self.on_fetch_failed: Callable[[Request], None]
        self._reject = reject
        self._waits: dict[int, tuple[int, float, float]] = {}

    def rejects(self, request: Request) -> bool:
        """Return whether to refuse a request because its adapter finds no place."""
        return self._reject and not self.cache.can_claim(request.adapter)

    def fetch(self, request: Request) -> bool:
        """Reserve a place for the request's adapter; return whether it is there. If not, ``on_fetched`` follows."""
        if self.cache.acquire(request.adapter):
            return True
        joined = self.loader.request_load(request)
        request.tier = FROM_GPU  # until it leaves: what happens at the GPU comes between
        self._waits[request.index] = (DELAYED_HIT if joined else MISS, 0.0, 0.0)
        return False

    def leave(self, request: Request) -> float:
        """Release a request's adapter, and add its wait for host memory to its wait for the GPU.

        :returns: seconds that it waited for host memory, all of them before its admission.
        """
        wait_s = 0.0
        waited = self._waits.pop(request.index, None)
        if waited is not None:
            outcome, queue_s, wait_s = waited
            request.tier = FROM_STORAGE
            request.load_queue_s += queue_s
            request.load_wait_s += wait_s
            request.outcome = max(request.outcome, outcome)  # a miss counts before a delayed hit
        self._release(request.adapter)
        return wait_s

    def _release(self, adapter: int) -> None:
        if self.cache.release(adapter) and self.loader.short_of_room:
            self.loader.room_appeared()

    def close(self, now: float) -> None:
        """Record the fetches still under way when the simulation stops."""
        self.loader.close(now)

    def waiting(self) -> list[Request]:
        """Return the requests that wait for a fetch."""
        return [request for load in self.loader.under_way.values() for request in load.waiting]

    def _fetched(self, requests: list[Request], in_time: bool) -> None:
        for request in requests:
            outcome, _, _ = self._waits[request.index]
            self._waits[request.index] = (outcome, request.load_queue_s, request.load_wait_s)
            request.load_queue_s = request.load_wait_s = 0.0
            self.on_fetched(request, in_time)

    def _failed(self, requests: list[Request], in_time: bool) -> None:
        for request in requests:
            request.outcome, _, _ = self._waits.pop(request.index)
            request.tier = FROM_STORAGE
            self._release(request.adapter)
            self.on_fetch_failed(request)
