"""Loads ahead of time: loaders that have nothing to do fetch the adapters of those who wait in the queue."""

from __future__ import annotations

from collections.abc import Iterable
from heapq import heappop, heappush

from sim.policies.adapter_cache import ABSENT, GpuCache
from sim.traffic.request import Request
from sim.world.replica.loader import Loader


class Prefetch:
    """Prefetching of one replica, where loads are asked for at admission and overlap with steps.

    Whenever something has changed (a boundary, the end of a load, an arrival), loaders that are idle begin to load what
    queued requests will ask for, in the order of the queue: while no load that somebody asked for waits, up to the
    first adapter that finds no room beside those in use and those that others in the queue want.

    A look costs time proportional to the adapters that are wanted, but only while a loader is idle.
    """

    def __init__(self, cache: GpuCache, loader: Loader) -> None:
        self._cache = cache
        self._loader = loader
        # By adapter, a heap of (key, request) of those who haven't been admitted; the first of each is still so, those
        # behind may have gone. Those who have asked for their loads stay until then and make no difference: they use
        # their adapters, which are neither victims nor, unless a load waits in a queue, absent.
        self._wanted: dict[int, list[tuple[int, Request]]] = {}

    def entered(self, request: Request) -> None:
        """Note that a request stands in the queue."""
        heappush(self._wanted.setdefault(request.adapter, []), (request.key, request))

    def left(self, requests: Iterable[Request]) -> None:
        """Note that requests have been admitted."""
        for request in requests:
            group = self._wanted.get(request.adapter)
            if group is None:
                continue
            while group and group[0][1].admitted_s >= 0:
                heappop(group)
            if not group:
                del self._wanted[request.adapter]

    def go_on(self) -> None:
        """Begin what may begin now."""
        loader, wanted, state = self._loader, self._wanted, self._cache.state
        if not wanted or not loader.may_load_ahead():
            return
        absent = [group[0] for adapter, group in wanted.items() if state[adapter] == ABSENT]
        for _, request in sorted(absent):
            if not (loader.load_ahead(request, wanted) and loader.may_load_ahead()):
                return
