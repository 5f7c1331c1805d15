"""Interfaces through which rollouts and faults use the fleet without importing it."""

from __future__ import annotations

from typing import Protocol

from sim.traffic.request import Request
from sim.world.replica.server import Server


class OpenFleet(Protocol):
    """A fleet that takes requests.

    :ivar servers: replicas, by index.
    :ivar inside: number of requests inside each replica, as the router counts them.
    """

    servers: list[Server]
    inside: list[int]

    def submit(self, request: Request) -> None:
        """Route a request again."""

    def replace(self, replica: int) -> Server:
        """Put a new, empty replica in the place of a crashed one; return the crashed one."""


class Endings(Protocol):
    """Ends of requests that a replica does not serve completely."""

    def fresh_copy(self, request: Request) -> Request:
        """Return a copy of a request as it arrived, to be sent again."""

    def broken_off(self, replica: int, request: Request) -> None:
        """Record the tokens of a request that gets no more."""

    def lost(self, replica: int, request: Request) -> None:
        """Record that a request left a replica unserved; it may still be sent again."""

    def fail(self, replica: int, request: Request, marks: int) -> None:
        """End a request without a correct answer."""

    def replaced(self, replica: int) -> None:
        """Record that an empty replica replaces a crashed one."""
