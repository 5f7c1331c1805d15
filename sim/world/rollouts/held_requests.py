"""Requests that wait outside a replica until it has the new version of their adapter."""

from __future__ import annotations

from sim.traffic.request import Request
from sim.world.clock import Clock
from sim.world.dispatcher import Dispatcher


class HeldRequests:
    """Requests held back, by replica. To the router they are inside it.

    :ivar area: request-seconds spent held back: times of release minus times of arrival. A replica that closes counts
        those it still holds like any that are inside.
    """

    def __init__(self, clock: Clock, replicas: int) -> None:
        self._clock = clock
        self._held: list[list[Request]] = [[] for _ in range(replicas)]
        self.area = 0.0

    def hold(self, fleet: Dispatcher, replica: int, request: Request) -> None:
        """Hold back a request that arrives now."""
        fleet.inside[replica] += 1
        self.area -= self._clock.now
        self._held[replica].append(request)

    def of(self, replica: int) -> list[Request]:
        """Return the requests that a replica holds back."""
        return self._held[replica]

    def release(self, fleet: Dispatcher, replica: int, adapter: int) -> None:
        """Let the requests for an adapter arrive, behind all that wait."""
        held = self._held[replica]
        self._held[replica] = [request for request in held if request.adapter != adapter]
        for request in held:
            if request.adapter == adapter:
                fleet.inside[replica] -= 1
                self.area += self._clock.now
                request.key = fleet.next_key()
                fleet.servers[replica].arrive(request)

    def give_up(self, replica: int) -> list[Request]:
        """Return the requests that a replica holds back, and forget them."""
        given_up, self._held[replica] = self._held[replica], []
        return given_up
