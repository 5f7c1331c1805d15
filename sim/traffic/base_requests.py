"""Requests to the base model, which name no adapter, among generated ones."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

import numpy as np
from numpy.typing import NDArray

from sim.rng import stream
from sim.traffic.request import BASE_MODEL
from sim.traffic.sources import RequestBlock


class BaseRequests:
    """Makes a share of the requests requests to the base model.

    Each request draws by its index, and all requests of a session by its number, since a conversation is with one
    model. Arrivals, lengths and the adapters of all other requests stay as they are without such a share.

    :param share: of the requests (with sessions: of the sessions).
    :param size: draws that have a random stream of their own.
    """

    def __init__(self, share: float, seed: int, size: int) -> None:
        self._share = share
        self._seed = seed
        self._size = size

    def among(self, blocks: Iterable[RequestBlock], replication: int) -> Iterator[RequestBlock]:
        """Yield consecutive blocks of a replication, with ``BASE_MODEL`` for the adapters of some requests."""
        if self._share == 0:
            yield from blocks
            return
        drawn: dict[int, NDArray[np.bool_]] = {}
        first = 0
        for block in blocks:
            count = len(block.times)
            numbers = np.arange(first, first + count) if block.sessions is None else block.sessions
            places, base = numbers // self._size, np.zeros(count, dtype=np.bool_)
            for place in np.unique(places).tolist():
                if place not in drawn:
                    rng = stream(self._seed, replication, "base-requests", place)
                    drawn[place] = rng.random(self._size) < self._share
                there = places == place
                base[there] = drawn[place][numbers[there] % self._size]
            first += count
            yield block._replace(adapters=np.where(base, BASE_MODEL, block.adapters))
