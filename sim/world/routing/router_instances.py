"""Which router process a request comes through, where there are several."""

from __future__ import annotations

from sim.rng import stream_key, uniform_draw
from sim.traffic.request import Request


class RouterInstances:
    """The router processes of a fleet: a session always comes to the same one, other requests to any.

    :param count: how many there are.
    """

    def __init__(self, count: int, seed: int, replication: int) -> None:
        self.count = count
        self._key = stream_key(seed, replication, "router-instance")

    def of(self, request: Request) -> int:
        """Return the number of the router that a request comes through."""
        if self.count == 1:
            return 0
        who = request.index if request.session is None else ~request.session
        return int(uniform_draw(self._key, who) * self.count)
