"""Where requests come from: streams of (arrival time, adapter) in order of time, made block by block.

A source's ``blocks`` may be asked for again and gives the same each time; every block follows from the seed, the
replication and its own number.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import repeat
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from sim.rng import stream
from sim.spec.arrivals import Arrivals
from sim.spec.popularity import Churn, Drift, Sessions
from sim.traffic.arrivals import Gaps, gaps, renewal
from sim.traffic.intensity import Environment, Intensity, diurnal, piecewise
from sim.traffic.popularity import Chooser
from sim.traffic.turnover import Turnover

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]
Block = tuple[Floats, Ints]
"""Arrival times in seconds, never falling, and adapters (or places in the ranking), both (n,)."""

SMALLEST, LARGEST = 256, 16384
"""Sessions, or expected arrivals of all adapters' streams, that are made at a time: few at first, then more, so that a
short run doesn't pay for a long one and begins with the same requests."""
_MOST_AT_ONCE = 4096


class Source(Protocol):
    """What ``Traffic`` draws requests from."""

    def blocks(self, replication: int, begin_s: float, most: int | None) -> Iterator[Block]:
        """Yield blocks of requests from ``begin_s`` on, without end or up to ``most`` requests."""
        ...


class OneStream:
    """Arrivals over all adapters, each of which chooses an adapter.

    :param rate: mean arrivals per second, in place of the law's.
    :param size: arrivals a block, None: ever more. Part of the random streams' key.
    """

    def __init__(self, law: Arrivals, rate: float, chooser: Chooser, seed: int, size: int | None) -> None:
        self._law = law.model_copy(update={"rate": rate})
        self._chooser = chooser
        self._seed = seed
        self._size = size

    def blocks(self, replication: int, begin_s: float, most: int | None) -> Iterator[Block]:
        intensity = self._intensity(replication, begin_s)
        rate = self._law.rate if intensity is None else 1.0  # else gaps are counted in expected arrivals
        first, clock = 0, begin_s if intensity is None else begin_s * self._law.rate
        for block, size in enumerate(_growing() if self._size is None else repeat(self._size)):
            if most is not None and first >= most:
                return
            count = size if most is None else min(size, most - first)
            times = self._gaps(stream(self._seed, replication, "arrivals", block), count, rate)
            times[0] += clock
            times = np.cumsum(times)
            clock = float(times[-1])
            places = self._chooser.choose(stream(self._seed, replication, "popularity", block), first, count)
            yield times if intensity is None else intensity.time_at(times), places
            first += count

    def _gaps(self, rng: np.random.Generator, count: int, rate: float) -> Floats:
        if self._law.process == "mmpp":
            return rng.standard_exponential(count)
        return gaps(self._law, rng, count, rate)

    def _intensity(self, replication: int, begin_s: float) -> Intensity | None:
        if self._law.process == "piecewise":
            return piecewise(self._law)
        if self._law.process == "diurnal":
            return diurnal(self._law)
        if self._law.process == "mmpp":
            return Environment(self._law, self._seed, replication, begin_s)
        return None


class StreamPerAdapter:
    """Every adapter's arrivals are a renewal process of its own, in equilibrium at the start.

    :param shares: (adapters,) share of the rate of each.
    :param cvs: (adapters,) coefficients of variation in place of the law's, nan: the law's; None: none.
    """

    def __init__(self, law: Arrivals, rate: float, shares: Floats, cvs: Floats | None, seed: int) -> None:
        self._asked = np.flatnonzero(shares > 0)
        self._rates = rate * shares[self._asked]
        self._gaps = renewal(law, self._rates, None if cvs is None else cvs[self._asked])
        self._seed = seed
        self._rate = rate

    def blocks(self, replication: int, begin_s: float, most: int | None) -> Iterator[Block]:
        everyone = np.arange(len(self._asked))
        rng = stream(self._seed, replication, "first-arrivals")
        coming = begin_s + self._gaps.residual(rng, everyone)
        done, end_s = 0, begin_s
        for block, size in enumerate(_growing()):
            end_s += size / self._rate
            rng = stream(self._seed, replication, "arrivals", block)
            times, which = _until(end_s, coming, self._gaps, self._rates, rng)
            order = np.argsort(times, kind="stable")
            if len(order):
                yield times[order], self._asked[which[order]]
                done += len(order)
            if most is not None and done >= most:
                return


def _growing() -> Iterator[int]:
    """Give the sizes of consecutive blocks."""
    size = SMALLEST
    while True:
        yield size
        size = min(2 * size, LARGEST)


def _until(end_s: float, coming: Floats, gaps_of: Gaps, rates: Floats, rng: np.random.Generator) -> tuple[Floats, Ints]:
    """Return the arrivals before ``end_s`` and whose they are; put the first one after it into ``coming``."""
    which = np.flatnonzero(coming < end_s)
    last = coming[which]
    found_times, found = [last], [which]
    while len(which):
        # As many gaps as should do, for all who are still before the end at once.
        wanted = np.clip((end_s - last) * rates[which] * 1.1 + 2, 2, _MOST_AT_ONCE).astype(np.int64)
        starts = np.concatenate(([0], np.cumsum(wanted)[:-1]))
        whose = np.repeat(which, wanted)
        sums = np.cumsum(gaps_of.draw(rng, whose))
        before = np.concatenate(([0.0], sums[starts[1:] - 1]))
        times = sums - np.repeat(before - last, wanted)
        inside = times < end_s
        found_times.append(times[inside])
        found.append(whose[inside])
        count = np.add.reduceat(inside, starts, dtype=np.int64)
        over = count < wanted
        coming[which[over]] = times[(starts + count)[over]]
        last = times[starts + wanted - 1][~over]
        which = which[~over]
    return np.concatenate(found_times), np.concatenate(found)


class Turned:
    """A source whose places in the ranking are held by other adapters as time passes.

    :param count: places; ``new``: adapters that may come in, with churn.
    """

    def __init__(
        self, source: Source, drift: Drift | None, churn: Churn | None, count: int, new: int, seed: int
    ) -> None:
        self._source = source
        self._turnover = drift, churn, count, new, seed

    def blocks(self, replication: int, begin_s: float, most: int | None) -> Iterator[Block]:
        turnover = Turnover(*self._turnover, replication)
        for times, places in self._source.blocks(replication, begin_s, most):
            yield times, turnover.adapters(places, times)


class InSessions:
    """Every arrival of a source begins a session: further requests for the same adapter follow.

    Sessions that began before the start are there too, so that the rate is right from the first second on.

    :param starts: the beginnings of sessions, with their adapters.
    """

    def __init__(self, starts: Source, law: Sessions, seed: int) -> None:
        self._starts = starts
        self._law = law
        self._seed = seed

    def blocks(self, replication: int, begin_s: float, most: int | None) -> Iterator[Block]:
        begin = begin_s - self._before_s()
        done, waiting_times, waiting_adapters = 0, np.empty(0), np.empty(0, dtype=np.int64)
        for block, (starts, adapters) in enumerate(self._starts.blocks(replication, begin, None)):
            times, requested = self._expanded(starts, adapters, replication, block)
            times = np.concatenate((waiting_times, times))
            requested = np.concatenate((waiting_adapters, requested))
            order = np.argsort(times, kind="stable")
            times, requested = times[order], requested[order]
            # No later session begins before the last of this block did.
            ready = int(np.searchsorted(times, starts[-1], side="right"))
            waiting_times, waiting_adapters = times[ready:], requested[ready:]
            skip = int(np.searchsorted(times[:ready], begin_s, side="left"))
            if ready > skip:
                yield times[skip:ready], requested[skip:ready]
                done += ready - skip
            if most is not None and done >= most:
                return

    def _expanded(self, starts: Floats, adapters: Ints, replication: int, block: int) -> Block:
        """Return the times and adapters of all requests of these sessions, session by session."""
        law = self._law
        sizes = stream(self._seed, replication, "session-size", block).geometric(1 / law.requests, size=len(starts))
        scores = stream(self._seed, replication, "session-gap", block).standard_normal(int(sizes.sum()))
        lengths = np.minimum(law.gap_median * np.exp(law.gap_sigma * scores), law.gap_max)
        firsts = np.cumsum(sizes) - sizes
        lengths[firsts] = 0.0
        gone = np.cumsum(lengths)
        begun = np.repeat(starts, sizes)
        # The sums are long and rounded; no request comes before its session.
        return np.maximum(begun + (gone - np.repeat(gone[firsts], sizes)), begun), np.repeat(adapters, sizes)

    def _before_s(self) -> float:
        """Return how long before the start sessions must begin: ten times their mean length (1 in 20,000 is longer)."""
        law = self._law
        mean_gap = min(law.gap_median * float(np.exp(min(law.gap_sigma**2 / 2, 50.0))), law.gap_max)
        return 10 * (law.requests - 1) * mean_gap


class Recorded:
    """A trace's own times and adapters; ``chooser`` draws adapters where it names none.

    :param size: requests a block, of which each has a random stream of its own.
    """

    def __init__(
        self, times: Floats, adapter: NDArray[np.integer] | None, chooser: Chooser | None, seed: int, size: int
    ) -> None:
        self._times = times
        self._adapter = adapter
        self._chooser = chooser
        self._seed = seed
        self._size = size

    def blocks(self, replication: int, begin_s: float, most: int | None) -> Iterator[Block]:
        for block, first in enumerate(range(0, len(self._times), self._size)):
            times = self._times[first : first + self._size]
            if self._adapter is not None:
                yield times, self._adapter[first : first + self._size].astype(np.int64)
                continue
            assert self._chooser is not None, "made where the trace names no adapter"
            rng = stream(self._seed, replication, "popularity", block)
            yield times, self._chooser.choose(rng, first, len(times))
