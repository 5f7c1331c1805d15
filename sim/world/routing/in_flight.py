"""Requests inside each replica, counted by adapter, for routers that need it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

from sim.traffic.request import Request
from sim.world.replica.ports import ReplicaListener
from sim.world.replica.server import Server


class InFlight:
    """Counts requests inside each replica by adapter.

    :param counts: by replica, an empty dict to keep current; it never holds a 0.
    :param base_model: number that stands for an adapter in requests to the base model, which are not counted.
    :ivar counting: whether it has begun to count.
    """

    def __init__(self, counts: list[dict[int, int]], base_model: int = -1, *, counting: bool = False) -> None:
        self.counts = counts
        self.counting = counting
        self._base_model = base_model

    def begin(self, servers: Sequence[Server]) -> None:
        """Count the requests that are inside these replicas, and follow those that come and leave."""
        self.counting = True
        for server in servers:
            counts = self.counts[server.index]
            counts.update(Counter(request.adapter for request in server.all_requests()))
            counts.pop(self._base_model, None)
            listener = DepartureCounter(counts, self._base_model)
            listener.pass_on_to(server.set_listener(listener))

    def entered(self, replica: int, request: Request) -> None:
        """Note that a request has entered a replica."""
        counts, adapter = self.counts[replica], request.adapter
        if adapter != self._base_model:
            counts[adapter] = counts.get(adapter, 0) + 1

    def left(self, replica: int, request: Request) -> None:
        """Note that a request has left a replica."""
        if request.adapter != self._base_model:
            count_departure(self.counts[replica], request.adapter)


def count_departure(counts: dict[int, int], adapter: int) -> None:
    """Count one request less for an adapter."""
    if counts[adapter] > 1:
        counts[adapter] -= 1
    else:
        del counts[adapter]


class DepartureCounter(ReplicaListener):
    """Counts the requests that leave one replica, in a fleet without rollouts and faults."""

    hears_ends = True

    def __init__(self, counts: dict[int, int], base_model: int) -> None:
        self._counts = counts
        self._base_model = base_model
        self._next = ReplicaListener()

    def pass_on_to(self, listener: ReplicaListener) -> None:
        """Pass on all calls to the listener that was there before."""
        self._next = listener

    def finished(self, request: Request, now: float) -> bool:
        self._count(request)
        return self._next.finished(request, now)

    def lost(self, request: Request) -> None:
        self._count(request)
        self._next.lost(request)

    def _count(self, request: Request) -> None:
        if request.adapter != self._base_model:
            count_departure(self._counts, request.adapter)
