"""When each adapter is asked for next: what only a clairvoyant reference (eviction ``belady``) may know."""

from __future__ import annotations

from array import array
from bisect import bisect_right
from collections.abc import Callable, Iterable
from math import inf

import numpy as np

from sim.traffic.generate import Chunk


class Future:
    """All arrivals of one replication by adapter.

    :param chunks: its requests; read once, to the end.
    :param adapters: how many there are.
    """

    def __init__(self, chunks: Iterable[Chunk], adapters: int) -> None:
        # Copies: a chunk's arrays may be views of something larger.
        pieces = [(chunk.adapter.astype(np.int32), chunk.arrival_s.copy()) for chunk in chunks]
        adapter = np.concatenate([piece[0] for piece in pieces] or [np.empty(0, dtype=np.int32)])
        times = np.concatenate([piece[1] for piece in pieces] or [np.empty(0)])
        self._times = array("d", times[np.argsort(adapter, kind="stable")].tobytes())  # bisected faster than numpy's
        ends = np.cumsum(np.bincount(adapter, minlength=adapters))
        self._starts: list[int] = [0, *ends.tolist()]

    def next_use(self, adapter: int, now: float) -> float:
        """Return when the next request for an adapter arrives after ``now``, at whatever replica; infinite: never."""
        end = self._starts[adapter + 1]
        place = bisect_right(self._times, now, self._starts[adapter], end)
        return self._times[place] if place < end else inf

    def seen_at(self, now: Callable[[], float]) -> Callable[[int], float]:
        """Return ``next_use`` as seen at the time that ``now`` tells."""
        return lambda adapter: self.next_use(adapter, now())
