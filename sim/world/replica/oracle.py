"""When each adapter is asked for next: what only a clairvoyant reference (eviction ``belady``) may know.

The future is told in positions, the indices of requests: they order arrivals as times do, and those of one instant as
well. A request asks for its adapter until it has used it, so one that waits in a queue comes next, whatever the time.
"""

from __future__ import annotations

from array import array
from bisect import bisect_left
from collections import deque
from collections.abc import Iterable
from math import inf

import numpy as np
from numpy.typing import NDArray

from sim.traffic.request import Request


class ArrivalOracle:
    """All requests of one replication by adapter, for all replicas.

    :param arrivals: their times and adapters in pieces, in order; read once, to the end.
    :param adapters: how many there are.
    :ivar come: how many requests have been handed over, to whatever replica: those from this index on are to come.
    """

    def __init__(self, arrivals: Iterable[tuple[NDArray[np.float64], NDArray[np.int64]]], adapters: int) -> None:
        pieces = [piece.astype(np.int32) for _, piece in arrivals]  # copies: they may be views of something larger
        adapter = np.concatenate(pieces or [np.empty(0, dtype=np.int32)])
        # Read one at a time, an array is faster than numpy's.
        self._positions = array("q", np.argsort(adapter, kind="stable").astype(np.int64).tobytes())
        ends = np.cumsum(np.bincount(adapter, minlength=adapters))
        self._next: list[int] = [0, *ends[:-1].tolist()]  # by adapter, where its next request stands in _positions
        self._ends: list[int] = ends.tolist()
        self.come = 0

    def to_come(self, adapter: int) -> float:
        """Return the index of the next request for an adapter that nobody was handed yet; infinite: there is none."""
        positions, end = self._positions, self._ends[adapter]
        self._next[adapter] = place = bisect_left(positions, self.come, self._next[adapter], end)
        return positions[place] if place < end else inf


class ReplicaOracle:
    """The future as one replica sees it: its own waiting requests, and those that nobody was handed yet."""

    def __init__(self, arrivals: ArrivalOracle) -> None:
        self._arrivals = arrivals
        self._waiting: dict[int, deque[Request]] = {}

    def arrived(self, request: Request) -> None:
        """Note that the replica was handed a request."""
        self._arrivals.come = request.index + 1
        self._waiting.setdefault(request.adapter, deque()).append(request)

    def rejected(self, request: Request) -> None:
        """Note that a request that arrived will not be served."""
        self._waiting[request.adapter].remove(request)

    def next_use(self, adapter: int) -> float:
        """Return the index of the next request that uses an adapter which is not in use now; infinite: never again.

        Of those who used it before, all have been admitted, in whatever order, and have left.
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
        """Return how many requests have come, anywhere."""
        return self._arrivals.come
