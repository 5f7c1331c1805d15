"""Sessions: users who stay with one adapter for a while."""

from __future__ import annotations

import math
from collections.abc import Iterator

import numpy as np

from sim.arrays import Floats, Ints
from sim.rng import stream
from sim.spec.sections.traffic_laws import Sessions
from sim.traffic.popularity import AdapterSampler
from sim.traffic.sources import RequestBlock, RequestSource, Streams


class SessionSource:
    """Every arrival of another source begins a session: further requests for the same adapter follow.

    The run starts in equilibrium, with as many sessions running as in the long run, so that the rate is right from the
    first second. With Poisson arrivals their number is Poisson. The gap each is in is drawn in proportion to its
    length. Since sizes are geometric, as many requests follow as in a new session.

    Sessions running at the start are numbered first (some have no request before the run ends), then the others in
    order of their beginnings. Draws and numbers don't depend on how many requests are made.

    :param starts: the beginnings of sessions, with their adapters; ``rate``: how many per second.
    :param chooser: draws the adapters of the sessions running at the start.
    """

    def __init__(self, starts: RequestSource, rate: float, law: Sessions, chooser: AdapterSampler, seed: int) -> None:
        self._starts = starts
        self._rate = rate
        self._law = law
        self._chooser = chooser
        self._seed = seed
        self._mean_gap = mean_gap(law)

    def blocks(self, replication: int, most: int | None) -> Iterator[RequestBlock]:
        done = 0
        streams, adapters = self._running_at_start(replication)
        numbers = np.arange(len(adapters))
        begun = len(adapters)
        for block, (starts, asked, _) in enumerate(self._starts.blocks(replication, None)):
            sizes = stream(self._seed, replication, "session-size", block).geometric(
                1 / self._law.requests, len(starts)
            )
            assert streams.left is not None, "sessions end"
            going = streams.left > 0
            streams = self._streams(
                np.concatenate((streams.coming[going], starts)), np.concatenate((streams.left[going], sizes))
            )
            adapters = np.concatenate((adapters[going], asked))
            numbers = np.concatenate((numbers[going], np.arange(begun, begun + len(starts))))
            begun += len(starts)
            # No later session begins before the last of this block did.
            rng = stream(self._seed, replication, "session-gap", block)
            times, which = streams.until(float(starts[-1]), self._gaps, rng)
            order = np.argsort(times, kind="stable")
            if len(order):
                which = which[order]
                yield RequestBlock(times[order], adapters[which], numbers[which])
                done += len(order)
            if most is not None and done >= most:
                return

    def turns_before(self, replication: int) -> Ints:
        """Return how many requests each session that is under way at the start had before, by its number.

        Since sizes are geometric, as many as in a session, like those that still come.
        """
        count = self._count_at_start(stream(self._seed, replication, "sessions-under-way"))
        return stream(self._seed, replication, "session-turns").geometric(1 / self._law.requests, size=count)

    def _count_at_start(self, rng: np.random.Generator) -> int:
        return int(rng.poisson(self._rate * (self._law.requests - 1) * self._mean_gap))

    def _running_at_start(self, replication: int) -> tuple[Streams, Ints]:
        law, rng = self._law, stream(self._seed, replication, "sessions-under-way")
        count = self._count_at_start(rng)
        coming = rng.random(count) * self._long_gaps(rng, count)
        left = rng.geometric(1 / law.requests, size=count)
        adapters = self._chooser.choose(stream(self._seed, replication, "sessions-adapter"), 0, count)
        return self._streams(coming, left), adapters

    def _streams(self, coming: Floats, left: Ints) -> Streams:
        return Streams(coming, np.full(len(coming), 1 / self._mean_gap), left)

    def _gaps(self, rng: np.random.Generator, which: Ints) -> Floats:
        law, scores = self._law, rng.standard_normal(len(which))
        return np.minimum(law.gap_median * np.exp(law.gap_sigma * scores), law.gap_max)

    def _long_gaps(self, rng: np.random.Generator, count: int) -> Floats:
        """Draw gaps with a probability in proportion to their length: log-normal with an exp(sigma²) times longer
        median, or gaps cut at the maximum."""
        from scipy.special import ndtri

        law = self._law
        if law.gap_sigma == 0:
            return np.full(count, self._mean_gap)
        below, cut = _parts(law)
        shares = rng.random(count) * (below + cut)
        highest = _normal((math.log(law.gap_max / law.gap_median) - law.gap_sigma**2) / law.gap_sigma)
        scores = ndtri(np.minimum(shares / below, 1.0) * highest) if below > 0 else np.zeros(count)
        long = law.gap_median * np.exp(law.gap_sigma**2 + law.gap_sigma * scores)
        return np.where(shares < below, np.minimum(long, law.gap_max), law.gap_max)


def mean_gap(law: Sessions) -> float:
    """Return the mean of the log-normal gaps, cut at ``gap_max``, in seconds."""
    if law.gap_sigma == 0:
        return min(law.gap_median, law.gap_max)
    return sum(_parts(law))


def _parts(law: Sessions) -> tuple[float, float]:
    """Return the contributions of uncut and of cut gaps to the mean."""
    sigma = law.gap_sigma
    cut = math.log(law.gap_max / law.gap_median) / sigma
    below = law.gap_median * math.exp(sigma**2 / 2) * _normal(cut - sigma)
    return below, law.gap_max * _normal(-cut)


def _normal(score: float) -> float:
    return math.erfc(-score / math.sqrt(2)) / 2
