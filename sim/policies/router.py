"""Which replica a request goes to. A policy is one class here and one line in ``ROUTERS``."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol


class Router(Protocol):
    """Choose a replica.

    ``choose`` gets the requests in each replica (waiting or running) and the adapter asked for, and
    returns the index of a replica.
    """

    def choose(self, loads: Sequence[int], adapter: int) -> int: ...


class RoundRobin:
    """Replicas in turn."""

    def __init__(self) -> None:
        self._next = 0

    def choose(self, loads: Sequence[int], adapter: int) -> int:
        chosen = self._next
        self._next = (chosen + 1) % len(loads)
        return chosen


class LeastLoaded:
    """The replica with the fewest requests in it; of several, the first."""

    def choose(self, loads: Sequence[int], adapter: int) -> int:
        return loads.index(min(loads))


ROUTERS: dict[str, type[Router]] = {"round-robin": RoundRobin, "least-loaded": LeastLoaded}
