"""The next use of each adapter, which only the clairvoyant reference (eviction ``belady``) may know.

Times are given as indices of requests: they order arrivals as times do, also those of one instant. A waiting request
has not used its adapter yet, so its use is the next one, whatever the time.
"""

from __future__ import annotations

from array import array
from bisect import bisect_left
from collections import deque
from collections.abc import Iterable
from dataclasses import replace
from math import inf

import numpy as np
from numpy.typing import NDArray

from sim.policies.eviction import EvictionContext
from sim.traffic.request import BASE_MODEL, Request
from sim.world.dispatcher import Extension


class ArrivalOracle:
    """All requests of one replication by adapter, for all replicas.

    :param arrivals: times and adapters of the requests, in pieces, in order; read once, to the end.
    :param adapters: number of adapters.
    :ivar base_model: number of the base model in replicas.
    :ivar come: number of requests that have reached a replica; those from this index on are still to come.
    """

    def __init__(self, arrivals: Iterable[tuple[NDArray[np.float64], NDArray[np.int64]]], adapters: int) -> None:
        pieces = [piece.astype(np.int32) for _, piece in arrivals]  # copies, since they may be views of a larger array
        adapter = np.concatenate(pieces or [np.empty(0, dtype=np.int32)])
        # Reading single elements is faster from array than from numpy.
        self._positions = array("q", np.argsort(adapter, kind="stable").astype(np.int64).tobytes())
        ends = np.cumsum(np.bincount(adapter - BASE_MODEL, minlength=adapters + 1))  # first the base model
        self._next: list[int] = ends[:-1].tolist()  # by adapter, where its next request is in _positions
        self._ends: list[int] = ends[1:].tolist()
        self.base_model = adapters
        self.come = 0

    def to_come(self, adapter: int) -> float:
        """Return the index of the next request for an adapter that is still to come; infinite if there is none."""
        positions, end = self._positions, self._ends[adapter]
        self._next[adapter] = place = bisect_left(positions, self.come, self._next[adapter], end)
        return positions[place] if place < end else inf


class ReplicaOracle:
    """The next uses as one replica knows them: by its own waiting requests, and by those still to come."""

    def __init__(self, arrivals: ArrivalOracle) -> None:
        self._arrivals = arrivals
        self._waiting: dict[int, deque[Request]] = {}

    def arrived(self, request: Request) -> None:
        """Note that a request has reached this replica."""
        self._arrivals.come = request.index + 1
        if request.adapter == self._arrivals.base_model:
            return
        self._waiting.setdefault(request.adapter, deque()).append(request)

    def lost(self, request: Request) -> None:
        """Forget a request that arrived and will not be served."""
        if request.adapter == self._arrivals.base_model:
            return
        self._waiting[request.adapter].remove(request)

    def next_use(self, adapter: int) -> float:
        """Return the index of the next request for an adapter that is not in use; infinite if there is none.

        All earlier requests for it have been admitted, in whatever order, and have left.
        """
        waiting = self._waiting.get(adapter)
        if waiting:
            while waiting and waiting[0].admitted_s >= 0:
                waiting.popleft()
            if waiting:
                return waiting[0].index
            del self._waiting[adapter]
        return self._arrivals.to_come(adapter)

    def come(self) -> float:
        """Return how many requests have reached any replica."""
        return self._arrivals.come


class Foresight(Extension):
    """Keeps the oracles of all replicas current, in a run without rollouts and faults."""

    def __init__(self, arrivals: ArrivalOracle, replicas: int) -> None:
        super().__init__()
        self._oracles = [ReplicaOracle(arrivals) for _ in range(replicas)]

    def of(self, context: EvictionContext, replica: int) -> EvictionContext:
        """Return what the eviction policy of a replica may know, with the future."""
        oracle = self._oracles[replica]
        return replace(context, next_use=oracle.next_use, come=oracle.come)

    def entered(self, request: Request, replica: int) -> None:
        self._oracles[replica].arrived(request)

    def left(self, request: Request, replica: int) -> None:
        if request.admitted_s < 0:
            self._oracles[replica].lost(request)
