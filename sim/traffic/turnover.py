"""Changes of the popularity ranking over time: drift and churn."""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

from sim.rng import stream
from sim.spec.sections.popularity_laws import Churn, Drift

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]

_SPARE = 1.5
"""How much longer than expected a run may last before it runs out of new adapters."""


def newcomers(churn: Churn | None, count: int, expected_s: float) -> int:
    """Return how many new adapters to provide for, besides the ``count`` at the start, in a run of ``expected_s``."""
    if churn is None:
        return 0
    return math.ceil(churn.share * count * expected_s * _SPARE / churn.every) + 1


_TRADES = 1024
"""Trades that share a random stream."""


class Turnover:
    """The adapter at each place of the ranking, at any time.

    Churn replaces the adapters at random places with new ones, at equal intervals; the new adapters are ``count``,
    ``count + 1``, …. Drift lets adapters trade places.

    :param count: places in the ranking.
    :param new: new adapters available; after the last one, no more are replaced.
    """

    def __init__(
        self, drift: Drift | None, churn: Churn | None, count: int, new: int, seed: int, replication: int
    ) -> None:
        self._drift = drift
        self._count = count
        self._key = seed, replication
        self._seats = np.arange(count)
        self._epoch = 0
        self._rng: np.random.Generator
        self._churn = None if churn is None else _Replacements(churn, count, new, self._key)

    def adapters(self, places: Ints, times: Floats) -> Ints:
        """Return the adapters at these places and times, shape (n,); times never fall, also from call to call."""
        seats = places if self._drift is None else self._after_trades(places, times, self._drift)
        return seats if self._churn is None else self._churn.adapters(seats, times)

    def _after_trades(self, places: Ints, times: Floats, drift: Drift) -> Ints:
        epochs = np.maximum(times / drift.every, 0).astype(np.int64)
        seats = np.empty_like(places)
        start = 0
        while start < len(places):
            epoch = int(epochs[start])
            while self._epoch < epoch:
                self._trade(drift)
            stop = int(np.searchsorted(epochs, epoch, side="right"))
            seats[start:stop] = self._seats[places[start:stop]]
            start = stop
        return seats

    def _trade(self, drift: Drift) -> None:
        if self._epoch % _TRADES == 0:
            self._rng = stream(*self._key, "drift", self._epoch // _TRADES)
        self._epoch += 1
        moving = self._rng.choice(
            self._count, size=min(self._count, max(2, round(drift.share * self._count))), replace=False, shuffle=False
        )
        self._seats[moving] = self._seats[self._rng.permutation(moving)]


class _Replacements:
    """The adapter at each place after a number of replacements.

    :param new: how many there will be.
    """

    def __init__(self, churn: Churn, count: int, new: int, key: tuple[int, int]) -> None:
        self._every = churn.every / (churn.share * count)
        seats = stream(*key, "churn").integers(0, count, size=new)
        # Replacement j (from 1) happens at j × every. The latest at a place: the last (place, j) below.
        self._width = new + 2
        self._new = new
        self._order = np.sort(seats * self._width + np.arange(1, new + 1))
        self._count = count

    def adapters(self, seats: Ints, times: Floats) -> Ints:
        happened = np.clip(times / self._every, 0, self._new).astype(np.int64)
        place = np.searchsorted(self._order, seats * self._width + happened, side="right") - 1
        latest = self._order[np.maximum(place, 0)]
        replaced = (place >= 0) & (latest // self._width == seats)
        return np.where(replaced, self._count + latest % self._width - 1, seats)
