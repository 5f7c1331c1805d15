"""Prefetching: idle loaders load the adapters of requests that wait in the queue."""

from __future__ import annotations

from collections.abc import Iterable
from heapq import heappop, heappush

from sim.policies.adapter_cache import ABSENT, GpuCache
from sim.traffic.request import Request
from sim.world.replica.loader import Loader


class Prefetch:
    """Prefetching of one replica, for loads that start at admission and overlap with steps.

    At every change (a boundary, the end of a load, an arrival), idle loaders start to load the adapters of queued
    requests, in the order of the queue. They stop while a requested load waits, and at the first adapter that finds no
    room among those in use and those that other queued requests want.

    A pass takes time proportional to the number of wanted adapters, but only while a loader is idle.
    """

    def __init__(self, cache: GpuCache, loader: Loader) -> None:
        self._cache = cache
        self._loader = loader
        # By adapter, a heap of (key, request). The first request of each still waits for admission; those behind it may
        # have left. Requests whose load has started stay until admission. They are harmless: their adapters are in
        # use, so they cannot be evicted, and they are absent only while the load waits in a queue.
        self._wanted: dict[int, list[tuple[int, Request]]] = {}

    def entered(self, request: Request) -> None:
        """Note that a request has joined the queue."""
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
        """Start all loads that may start now."""
        loader, wanted, state = self._loader, self._wanted, self._cache.state
        if not wanted or not loader.may_load_ahead():
            return
        absent = [group[0] for adapter, group in wanted.items() if state[adapter] == ABSENT]
        for _, request in sorted(absent):
            if not (loader.load_ahead(request, wanted) and loader.may_load_ahead()):
                return
