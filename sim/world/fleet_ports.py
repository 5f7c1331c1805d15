"""What the fleet, and the rollouts and faults that work on it, know of each other.

The fleet imports neither: it calls ``FleetHooks``, which do nothing here. ``Changes`` implements them for a run with
rollouts or faults.
"""

from __future__ import annotations

from typing import Protocol

from sim.policies.eviction import EvictionContext
from sim.traffic.request import Request
from sim.world.replica.ports import ReplicaListener
from sim.world.replica.server import Server


class OpenFleet(Protocol):
    """A fleet that takes requests.

    :ivar servers: replicas, by index.
    :ivar inside: number of requests inside each replica, as the router counts them.
    """

    servers: list[Server]
    inside: list[int]

    def next_key(self) -> int:
        """Return the last place in the queues, for a request that joins later than it arrived."""

    def submit(self, request: Request) -> None:
        """Route a request again."""

    def choose(self, adapter: int, request: Request) -> int:
        """Return the replica to which the router sends a request.

        :param adapter: the one by which to route it.
        """

    def replace(self, replica: int, *, standing_in: bool) -> None:
        """Put a new, empty replica in the place of one.

        :param standing_in: whether it serves nothing, until it is replaced in turn.
        """


class FleetHooks:
    """What happens to requests between the fleet and its replicas. Here: nothing.

    :cvar direct: whether requests go straight from the router to their replica, so that ``send`` is never called.
    """

    direct = True

    def start(self, fleet: OpenFleet) -> None:
        """Put all events on the clock."""

    def listener(self, replica: int) -> ReplicaListener:
        """Return the listener of a replica."""
        return ReplicaListener()

    def foresee(self, context: EvictionContext, replica: int) -> EvictionContext:
        """Return what the eviction policy of a replica may know, with the future if this run knows it."""
        return context

    def send(self, request: Request) -> None:
        """Send a request to a replica, or deal with it in another way."""
        raise AssertionError("requests go straight to their replica")

    def has_pending(self) -> bool:
        """Return whether a request outside all replicas is still to be sent."""
        return False

    def any_down(self) -> bool:
        """Return whether any replica is down, so that requests may wait for ever."""
        return False

    def give_up(self, replica: int) -> list[Request]:
        """Return the requests held back for a replica, which now never get there."""
        return []

    def broken_off(self, replica: int, request: Request) -> None:
        """Record the tokens of a request that gets no more."""

    def outside_area(self) -> float:
        """Return the request-seconds that requests spent at a replica but outside its server."""
        return 0.0

    def close(self) -> dict[str, float]:
        """Return the facts of this replication."""
        return {}


class ReplicaEntry:
    """What a replica asks of a request that is sent there. Here: nothing."""

    def admits(self, request: Request, replica: int) -> bool:
        """Return whether a replica takes a request of this size, now with its times; if not, it has been refused."""
        return True


class Places:
    """Which replicas there are at a time, for crashes. Here: all, always."""

    def serves(self, replica: int) -> bool:
        """Return whether a replica serves, so that it can crash."""
        return True

    def crashed(self, replica: int) -> None:
        """A replica has crashed."""

    def restarted(self, replica: int) -> bool:
        """A replica could be up again after a crash; return whether it still belongs to the fleet."""
        return True

    def came_up(self) -> None:
        """A replica is up again, and in the router's view."""


class WeightsListener:
    """Is called when a new version of an adapter replaces the old one on a replica. Here nothing follows from that.

    :ivar keeps_prefixes: whether requests for the new version find cached prefixes of the old one.
    """

    keeps_prefixes = False

    def replaced(self, replica: int, adapter: int, under_way: bool, now: float) -> None:
        """New weights answer from now on.

        :param under_way: whether requests are in progress with the adapter.
        """


class Endings(Protocol):
    """Ends of requests that a replica does not serve completely."""

    def fresh_copy(self, request: Request) -> Request:
        """Return a copy of a request as it arrived, to be sent again."""

    def broken_off(self, replica: int, request: Request) -> None:
        """Record the tokens of a request that gets no more."""

    def give_up(self, replica: int) -> list[Request]:
        """Return the requests held back for a replica, which now never get there."""

    def lost(self, replica: int, request: Request) -> None:
        """Record that a request left a replica unserved; it may still be sent again."""

    def fail(self, replica: int, request: Request, marks: int) -> None:
        """End a request without a correct answer."""

    def replaced(self, replica: int) -> None:
        """Record that an empty replica replaces a crashed one."""
