"""What rollouts and faults need from the fleet, so that they don't import it."""

from __future__ import annotations

from typing import Protocol

from sim.traffic.request import Request
from sim.world.replica.server import Server


class OpenFleet(Protocol):
    """A fleet that takes requests.

    :ivar servers: replicas, by index.
    :ivar inside: requests inside each replica, as the router counts them.
    """

    servers: list[Server]
    inside: list[int]

    def submit(self, request: Request) -> None:
        """Route a request again that has come before."""

    def replace(self, replica: int) -> Server:
        """Put a new, empty replica in the place of a dead one; return the dead one."""


class Endings(Protocol):
    """What happens to requests that a replica does not serve to the end."""

    def fresh_copy(self, request: Request) -> Request:
        """Return a request as it arrived, to be sent again."""

    def broken_off(self, replica: int, request: Request) -> None:
        """Record what a request got that gets no more."""

    def lost(self, replica: int, request: Request) -> None:
        """Record that a request left a replica unserved; it may still be sent again."""

    def fail(self, replica: int, request: Request, marks: int) -> None:
        """End a request without a right answer."""

    def replaced(self, replica: int) -> None:
        """Record that an empty replica takes the place of a dead one."""
