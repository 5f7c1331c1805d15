"""Requests inside each replica, counted by adapter, for routers that need it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable

from sim.traffic.request import Request


class InFlight:
    """Counts requests inside each replica by adapter.

    :param counts: by replica, an empty dict to keep current; it never holds a 0.
    """

    def __init__(self, counts: list[dict[int, int]]) -> None:
        self._counts = counts

    @property
    def counts(self) -> list[dict[int, int]]:
        """By replica, requests inside by adapter, always current."""
        return self._counts

    def begin(self, replica: int, requests: Iterable[Request]) -> None:
        """Count the requests that are already inside a replica."""
        self._counts[replica].update(Counter(request.adapter for request in requests))

    def entered(self, replica: int, request: Request) -> None:
        """Note that a request has entered a replica."""
        counts, adapter = self._counts[replica], request.adapter
        counts[adapter] = counts.get(adapter, 0) + 1

    def left(self, replica: int, request: Request) -> None:
        """Note that a request has left a replica."""
        counts, adapter = self._counts[replica], request.adapter
        if counts[adapter] > 1:
            counts[adapter] -= 1
        else:
            del counts[adapter]

    def last_token_callback(self, replica: int) -> Callable[[Request, float], bool]:
        """Return the callback of a replica for last tokens, without rollouts and faults."""
        counts = self._counts[replica]

        def ends(request: Request, now: float) -> bool:
            adapter = request.adapter
            if counts[adapter] > 1:
                counts[adapter] -= 1
            else:
                del counts[adapter]
            return False

        return ends
