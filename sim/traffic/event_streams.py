"""Advances many independent streams of events together: arrivals of each adapter, requests of running sessions."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]
DrawGaps = Callable[[np.random.Generator, Ints], Floats]
"""From a generator and the numbers of streams, shape (n,): a gap in seconds of each, shape (n,)."""

_MOST_AT_ONCE = 4096


@dataclass(slots=True)
class Streams:
    """Streams by number.

    :ivar coming: (streams,) time of each stream's next event.
    :ivar rates: (streams,) approximate events per second; sets how many gaps are drawn at a time.
    :ivar left: (streams,) events left, including the next one; None: streams never end.
    """

    coming: Floats
    rates: Floats
    left: Ints | None = None

    def until(self, end_s: float, draw: DrawGaps, rng: np.random.Generator) -> tuple[Floats, Ints]:
        """Return the times of the events before ``end_s`` and their streams, stream by stream."""
        which = np.flatnonzero(self.coming < end_s)
        last = self.coming[which]
        found_times, found = [last], [which]
        self._passed(which, 1)
        which, last = self._continuing(which, last)
        while len(which):
            # About as many gaps as needed, for all streams that are still before the end.
            wanted = np.clip((end_s - last) * self.rates[which] * 1.1 + 2, 2, _MOST_AT_ONCE).astype(np.int64)
            if self.left is not None:
                wanted = np.minimum(wanted, self.left[which])
            starts = np.concatenate(([0], np.cumsum(wanted)[:-1]))
            whose = np.repeat(which, wanted)
            sums = np.cumsum(draw(rng, whose))
            before = np.concatenate(([0.0], sums[starts[1:] - 1]))
            # The sums are long and rounded; no event comes before the one it follows.
            times = np.maximum(sums - np.repeat(before - last, wanted), np.repeat(last, wanted))
            inside = times < end_s
            found_times.append(times[inside])
            found.append(whose[inside])
            count = np.add.reduceat(inside, starts, dtype=np.int64)
            self._passed(which, count)
            over = count < wanted
            self.coming[which[over]] = times[(starts + count)[over]]
            which, last = self._continuing(which[~over], times[starts + wanted - 1][~over])
        return np.concatenate(found_times), np.concatenate(found)

    def _passed(self, which: Ints, count: Ints | int) -> None:
        if self.left is not None:
            self.left[which] -= count

    def _continuing(self, which: Ints, last: Floats) -> tuple[Ints, Floats]:
        """Return those that have further events."""
        if self.left is None:
            return which, last
        more = self.left[which] > 0
        return which[more], last[more]
