"""Sources of requests: arrival times, adapters and sessions in order of time, block by block.

``blocks`` of a source gives the same each time: random numbers belong to the seed, the replication, the purpose and the
number of a block, and the iterator keeps the state between blocks. A longer run begins with the requests of a shorter
one.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray

from sim.arrays import Floats, Ints
from sim.rng import stream
from sim.spec.sections.traffic_laws import Churn, Drift, OpenArrivals
from sim.traffic.arrivals import gaps, intensity, is_memoryless, renewal
from sim.traffic.popularity import AdapterSampler, Turnover
from sim.traffic.request import BASE_MODEL

# Advances many independent streams of events together: arrivals of each adapter, requests of running sessions.

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
        if self.left is None:
            return which, last
        more = self.left[which] > 0
        return which[more], last[more]


SMALLEST, LARGEST = 256, 16384
"""Expected requests of a block: few at first, then more, so that a short run is cheap and begins with the same requests
as a long one."""

LEAST_SHARE = 1e-12
"""Adapters with a smaller share of the rate have no stream: they would get no request, and numbers would overflow."""


class RequestBlock(NamedTuple):
    """Consecutive requests, shape (n,) each.

    :ivar times: arrivals in seconds, never falling; -1 in a closed loop.
    :ivar adapters: adapters, or places in the ranking; ``BASE_MODEL`` where a request names none.
    :ivar sessions: number of the session of each, from 0; None where there are none.
    """

    times: Floats
    adapters: Ints
    sessions: Ints | None = None

    def part(self, start: int, stop: int) -> RequestBlock:
        """Return the requests from ``start`` to before ``stop``, as views."""
        sessions = None if self.sessions is None else self.sessions[start:stop]
        return RequestBlock(self.times[start:stop], self.adapters[start:stop], sessions)

    def then(self, other: RequestBlock) -> RequestBlock:
        """Return these requests and those of another block of the same source."""
        sessions = None
        if self.sessions is not None and other.sessions is not None:
            sessions = np.concatenate((self.sessions, other.sessions))
        return RequestBlock(
            np.concatenate((self.times, other.times)), np.concatenate((self.adapters, other.adapters)), sessions
        )


class RequestSource(Protocol):
    """A source of requests."""

    def blocks(self, replication: int, most: int | None) -> Iterator[RequestBlock]:
        """Yield blocks of requests from time 0 on, none of them empty, without end or at least ``most`` requests."""
        ...


class AggregateArrivals:
    """One stream of arrivals over all adapters; each arrival draws its adapter.

    The process is in equilibrium at the start, else bursty ones would begin with a burst.

    :param rate: mean arrivals per second, instead of the law's.
    :param sizes: arrivals of consecutive blocks. Part of the random streams' key.
    """

    def __init__(
        self, law: OpenArrivals, rate: float, chooser: AdapterSampler, seed: int, sizes: Iterable[int]
    ) -> None:
        self._law = law.model_copy(update={"rate": rate})
        self._chooser = chooser
        self._seed = seed
        self._sizes = sizes

    def blocks(self, replication: int, most: int | None) -> Iterator[RequestBlock]:
        changing = intensity(self._law, self._seed, replication)
        rate = self._law.rate if changing is None else 1.0  # otherwise gaps count expected arrivals
        first, clock = 0, 0.0
        for block, size in enumerate(self._sizes):
            if most is not None and first >= most:
                return
            count = size if most is None else min(size, most - first)
            times = gaps(self._law, stream(self._seed, replication, "arrivals", block), count, rate)
            if first == 0:
                times[0] = self._first(replication, times[0], rate)
            times[0] += clock
            times = np.cumsum(times)
            clock = float(times[-1])
            places = self._chooser.choose(stream(self._seed, replication, "popularity", block), first, count)
            yield RequestBlock(times if changing is None else changing.time_at(times), places)
            first += count

    def _first(self, replication: int, gap: float, rate: float) -> float:
        """Return the time of the first arrival: a whole gap only where gaps have no memory."""
        if is_memoryless(self._law):
            return gap
        rng = stream(self._seed, replication, "first-arrivals")
        return float(renewal(self._law, np.array([rate]), None).residual(rng, np.zeros(1, dtype=np.int64))[0])


class ClosedLoopSource:
    """The requests of a closed loop in the order in which they are sent; when that is, the simulation decides.

    Each draws its adapter like an arrival of ``AggregateArrivals``, from the same stream.

    :param size: requests per block; each block has a random stream of its own.
    """

    def __init__(self, chooser: AdapterSampler, seed: int, size: int) -> None:
        self._chooser = chooser
        self._seed = seed
        self._size = size

    def blocks(self, replication: int, most: int | None) -> Iterator[RequestBlock]:
        for block in itertools.count():
            first = block * self._size
            if most is not None and first >= most:
                return
            size = self._size if most is None else min(self._size, most - first)
            places = self._chooser.choose(stream(self._seed, replication, "popularity", block), first, size)
            yield RequestBlock(np.full(size, -1.0), places)


class ArrivalsPerAdapter:
    """Every adapter's arrivals are a renewal process of its own, in equilibrium at the start.

    :param shares: (adapters,) share of the rate of each.
    :param cvs: (adapters,) coefficients of variation instead of the law's; nan or None: the law's.
    :param sizes: arrivals that are expected of consecutive blocks.
    """

    def __init__(
        self, law: OpenArrivals, rate: float, shares: Floats, cvs: Floats | None, seed: int, sizes: Iterable[int]
    ) -> None:
        self._asked = np.flatnonzero(shares > LEAST_SHARE)
        self._rates = rate * shares[self._asked]
        self._gaps = renewal(law, self._rates, None if cvs is None else cvs[self._asked])
        self._seed = seed
        self._rate = rate
        self._sizes = sizes

    def blocks(self, replication: int, most: int | None) -> Iterator[RequestBlock]:
        everyone = np.arange(len(self._asked))
        rng = stream(self._seed, replication, "first-arrivals")
        streams = Streams(self._gaps.residual(rng, everyone), self._rates)
        done, end_s = 0, 0.0
        for block, size in enumerate(self._sizes):
            end_s += size / self._rate
            rng = stream(self._seed, replication, "arrivals", block)
            times, which = streams.until(end_s, self._gaps.draw, rng)
            order = np.argsort(times, kind="stable")
            if len(order):
                yield RequestBlock(times[order], self._asked[which[order]])
                done += len(order)
            if most is not None and done >= most:
                return


class GrowingSizes:
    """The sizes of consecutive blocks, from the smallest on, without end.

    :param requests: requests per arrival, on average.
    """

    def __init__(self, requests: float = 1.0) -> None:
        self._smallest, self._largest = (max(1, round(size / requests)) for size in (SMALLEST, LARGEST))

    def __iter__(self) -> Iterator[int]:
        size = self._smallest
        while True:
            yield size
            size = min(2 * size, self._largest)


class ConstantSizes:
    """The same size for all consecutive blocks, without end.

    Instead of ``itertools.repeat``, which can't be pickled from Python 3.14 on: worlds are sent to worker processes.
    """

    def __init__(self, size: int) -> None:
        self._size = size

    def __iter__(self) -> Iterator[int]:
        while True:
            yield self._size


class DriftingSource:
    """A source whose popularity ranking changes over time.

    :param count: places in the ranking; ``new``: new adapters that churn may bring.
    """

    def __init__(
        self, source: RequestSource, drift: Drift | None, churn: Churn | None, count: int, new: int, seed: int
    ) -> None:
        self._source = source
        self._turnover = drift, churn, count, new, seed

    def blocks(self, replication: int, most: int | None) -> Iterator[RequestBlock]:
        turnover = Turnover(*self._turnover, replication)
        for block in self._source.blocks(replication, most):
            yield block._replace(adapters=turnover.adapters(block.adapters, block.times))


class ReplayedTrace:
    """A trace's own times, adapters and sessions; ``chooser`` draws adapters where the trace names none.

    :param size: requests per block; each block has a random stream of its own.
    """

    def __init__(
        self,
        times: Floats,
        adapter: NDArray[np.integer] | None,
        session: NDArray[np.integer] | None,
        chooser: AdapterSampler | None,
        seed: int,
        size: int,
    ) -> None:
        self._times = times
        self._adapter = adapter
        self._session = session
        self._chooser = chooser
        self._seed = seed
        self._size = size

    def blocks(self, replication: int, most: int | None) -> Iterator[RequestBlock]:
        for block, first in enumerate(range(0, len(self._times), self._size)):
            span = slice(first, first + self._size)
            times = self._times[span]
            sessions = None if self._session is None else self._session[span].astype(np.int64)
            if self._adapter is not None:
                yield RequestBlock(times, self._adapter[span].astype(np.int64), sessions)
                continue
            assert self._chooser is not None, "made where the trace names no adapter"
            rng = stream(self._seed, replication, "popularity", block)
            yield RequestBlock(times, self._chooser.choose(rng, first, len(times)), sessions)


def cut(blocks: Iterable[RequestBlock], size: int, most: int | None, end_s: float | None) -> Iterator[RequestBlock]:
    """Yield a source's requests in blocks of ``size``, plus the rest: at most ``most``, and none from ``end_s`` on."""
    held: RequestBlock | None = None
    given, over = 0, False
    for block in blocks:
        held = block if held is None or len(held.times) == 0 else held.then(block)
        if end_s is not None and held.times[-1] >= end_s:
            held, over = held.part(0, int(np.searchsorted(held.times, end_s, side="left"))), True
        if most is not None and given + len(held.times) >= most:
            held, over = held.part(0, most - given), True
        if over:
            break
        count = len(held.times)
        whole = count - count % size
        yield from _in_parts(held, whole, size)
        given += whole
        held = held.part(whole, count)
    if held is not None:
        yield from _in_parts(held, len(held.times), size)


def _in_parts(block: RequestBlock, stop: int, size: int) -> Iterator[RequestBlock]:
    for start in range(0, stop, size):
        yield block.part(start, min(start + size, stop))


def with_base_requests(
    blocks: Iterable[RequestBlock], share: float, seed: int, replication: int, size: int
) -> Iterator[RequestBlock]:
    """Yield consecutive blocks of a replication, with ``BASE_MODEL`` for the adapters of a share of the requests.

    Each request draws by its index, and all requests of a session by its number, since a conversation is with one
    model. Arrivals, lengths and the adapters of all other requests stay as they are without such a share.

    :param share: of the requests (with sessions: of the sessions).
    :param size: draws that have a random stream of their own.
    """
    drawn: dict[int, NDArray[np.bool_]] = {}
    first = 0
    for block in blocks:
        count = len(block.times)
        numbers = np.arange(first, first + count) if block.sessions is None else block.sessions
        places, base = numbers // size, np.zeros(count, dtype=np.bool_)
        for place in np.unique(places).tolist():
            if place not in drawn:
                drawn[place] = stream(seed, replication, "base-requests", place).random(size) < share
            there = places == place
            base[there] = drawn[place][numbers[there] % size]
        first += count
        yield block._replace(adapters=np.where(base, BASE_MODEL, block.adapters))
