"""The router process that each request comes through, in fleets with several."""

from __future__ import annotations

from sim.rng import stream_key, uniform_draw
from sim.traffic.request import Request


class RouterInstances:
    """The router processes of a fleet. A session always uses the same one, other requests a random one.

    :param count: number of routers.
    """

    def __init__(self, count: int, seed: int, replication: int) -> None:
        self.count = count
        self._key = stream_key(seed, replication, "router-instance")

    def of(self, request: Request) -> int:
        """Return the number of the router for a request."""
        if self.count == 1:
            return 0
        number = request.index if request.session is None else ~request.session
        return int(uniform_draw(self._key, number) * self.count)
