"""Adapters that come to host memory when requests for them arrive, before anything is loaded to the GPU.

SGLang (an adapter that ``max_loaded_loras`` drove out), LoRAX (download at the first request) and TensorRT-LLM (host
cache) do so. The host tier is then a protected cache of its own: an adapter with requests inside keeps its place.
"""

from __future__ import annotations

from collections.abc import Callable

from sim.policies.adapter_cache import GpuCache
from sim.results.records import Recorder
from sim.traffic.request import DELAYED_HIT, FROM_GPU, FROM_STORAGE, MISS, Request
from sim.world.clock import Clock
from sim.world.faults.storage_faults import StorageFaults
from sim.world.replica.loader import Loader
from sim.world.rollouts.versions import HostLoadListener


class HostCacheFill:
    """Host memory of one replica, filled at arrival.

    :param cache: adapters in host memory.
    :param loaders: fetches at a time.
    :param reject: a request that would have to wait for a place is turned away.
    :param replica: its number; ``versions``: notes which version of an adapter was fetched, or None; ``faults``: what
        is wrong with storage, or None.
    """

    def __init__(
        self,
        clock: Clock,
        cache: GpuCache,
        loaders: int,
        recorder: Recorder,
        *,
        reject: bool,
        replica: int,
        versions: HostLoadListener | None = None,
        faults: StorageFaults | None = None,
    ) -> None:
        self.cache = cache
        self.loader = Loader(clock, cache, None, (loaders, 1), recorder, self._fetched, replica, versions, faults)
        self.loader.on_failed = self._failed
        self.on_fetched: Callable[[Request, bool], None]
        """What the server does with a request whose adapter is in host memory, told whether that took any time."""
        self.on_fetch_failed: Callable[[Request], None]
        """What the server does with a request whose adapter can't be fetched."""
        self._reject = reject
        self._waits: dict[int, tuple[int, float, float]] = {}

    def rejects(self, request: Request) -> bool:
        """Return whether there is no place for the request's adapter."""
        return self._reject and not self.cache.can_claim(request.adapter)

    def fetch(self, request: Request) -> bool:
        """Take a place for the request's adapter; return whether it is there, otherwise ``on_fetched`` is called later."""
        if self.cache.acquire(request.adapter):
            return True
        joined = self.loader.request_load(request)
        request.tier = FROM_GPU  # until it leaves: what happens at the GPU comes between
        self._waits[request.index] = (DELAYED_HIT if joined else MISS, 0.0, 0.0)
        return False

    def leave(self, request: Request) -> float:
        """Note that a request ends, and add what it waited for host memory to what it waited for the GPU.

        :return: the seconds that it waited for host memory: all of them before its admission.
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
        """Note what is under way when the simulation stops."""
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
