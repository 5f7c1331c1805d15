"""Which adapters the requests inside each replica ask for: what routers by activity look at."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable

from sim.traffic.request import Request


class InFlight:
    """Requests inside each replica by adapter.

    :param counts: by replica, an empty dict that is kept current; 0 is never in it.
    """

    def __init__(self, counts: list[dict[int, int]]) -> None:
        self._counts = counts

    @property
    def counts(self) -> list[dict[int, int]]:
        """By replica, requests inside by adapter: kept current."""
        return self._counts

    def begin(self, replica: int, requests: Iterable[Request]) -> None:
        """Count those that are inside a replica already."""
        self._counts[replica].update(Counter(request.adapter for request in requests))

    def entered(self, replica: int, request: Request) -> None:
        """Note that a request has come into a replica."""
        counts, adapter = self._counts[replica], request.adapter
        counts[adapter] = counts.get(adapter, 0) + 1

    def left(self, replica: int, request: Request) -> None:
        """Note that a request has left it."""
        counts, adapter = self._counts[replica], request.adapter
        if counts[adapter] > 1:
            counts[adapter] -= 1
        else:
            del counts[adapter]

    def last_token_callback(self, replica: int) -> Callable[[Request, float], bool]:
        """Return what a replica asks at a request's last token, where nobody else wants to know."""
        counts = self._counts[replica]

        def ends(request: Request, now: float) -> bool:
            adapter = request.adapter
            if counts[adapter] > 1:
                counts[adapter] -= 1
            else:
                del counts[adapter]
            return False

        return ends
