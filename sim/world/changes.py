"""Rollouts and faults of one replication, behind one interface for the fleet.

A request is steered (the adapter and version that it reaches), routed, and accepted by a replica or not. After its last
token, its answer is checked. Rollouts, misrouting faults and crashes each handle their own part.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING

from sim.results.records import FAILED, LOAD_FAILED, LOST, Recorder
from sim.traffic.request import Request
from sim.world.faults.crashes import Crashes
from sim.world.faults.misrouting import MisroutedRequests
from sim.world.rollouts.active_rollouts import Rollouts
from sim.world.rollouts.in_place_update import Barriers
from sim.world.routing.in_flight import InFlight

if TYPE_CHECKING:
    from sim.world.ports import OpenFleet
    from sim.world.replica.server import Server


class Changes:
    """Rollouts and faults of one replication.

    :param inside: counts requests inside by adapter, if the router needs that; otherwise None.
    :ivar rollouts, misrouting, crashes: None if there are none.
    :ivar steering: whether ``steer`` may do anything.
    :ivar guarding: whether ``accepts`` may refuse a request for another reason than ``barriers``.
    :ivar resending: whether requests may be sent again, or held outside.
    :ivar reordering: whether some requests join queues later than they arrived.

    The fleet reads these flags for every request, to skip calls that would do nothing.
    """

    def __init__(
        self,
        recorder: Recorder,
        rollouts: Rollouts | None,
        inside: InFlight | None,
        misrouting: MisroutedRequests | None = None,
        crashes: Crashes | None = None,
    ) -> None:
        self._recorder = recorder
        self._inside = inside
        self._servers: list[Server] = []
        self.rollouts = rollouts
        self.misrouting = misrouting
        self.crashes = crashes
        self.barriers = Barriers(0) if rollouts is None else rollouts.barriers
        self.steering = misrouting is not None or (rollouts is not None and rollouts.renames)
        self.resending = misrouting is not None or crashes is not None
        self.reordering = self.resending or (rollouts is not None and rollouts.holds)
        self.guarding = crashes is not None

    def start(self, fleet: OpenFleet) -> None:
        """Put all events of rollouts and faults on the clock."""
        self._servers = fleet.servers
        if self.rollouts is not None:
            self.rollouts.start(fleet.servers)
        if self.misrouting is not None:
            self.misrouting.start(fleet, self.fail)
        if self.crashes is not None:
            self.crashes.start(fleet, self)

    def fresh_copy(self, request: Request) -> Request:
        """Return a copy of a request as it arrived, with its own adapter, to be sent again."""
        again = request.fresh_copy()
        if self.misrouting is not None:
            self.misrouting.restore(again)
        if self.rollouts is not None:
            self.rollouts.restore(again)
        return again

    def hold_if_all_down(self, request: Request) -> bool:
        """Hold a request until a replica is up, if all are down; return whether it is held."""
        return self.crashes is not None and self.crashes.hold_if_all_down(request)

    def has_pending(self) -> bool:
        """Return whether a request outside all replicas is still to be sent."""
        misrouting, crashes = self.misrouting, self.crashes
        return (misrouting is not None and misrouting.has_pending()) or (crashes is not None and crashes.has_pending())

    def any_down(self) -> bool:
        """Return whether any replica is down, so that requests may wait for ever."""
        return self.crashes is not None and self.crashes.any_down()

    def steer(self, request: Request) -> int:
        """Decide the adapter and version that a request reaches; return the adapter by which to route it."""
        if self.misrouting is not None:
            self.misrouting.steer(request)
        if self.rollouts is not None:
            self.rollouts.steer(request)
        return request.adapter if self.misrouting is None else self.misrouting.routed_by(request)

    def accepts(self, request: Request, replica: int) -> bool:
        """Return whether a replica takes a request now; if not, the request has been dealt with."""
        if self.crashes is not None and not self.crashes.accepts(request, replica):
            return False
        rollouts = self.rollouts
        barrier = self.barriers.closed(replica, request.adapter)
        if barrier is not None and barrier.refuses:
            assert rollouts is not None, "only rollouts close barriers"
            rollouts.refuse(request, replica)
            return False
        if barrier is not None:
            if self._inside is not None:
                self._inside.entered(replica, request)
            self._servers[replica].hold(request)
        return barrier is None

    def last_token_callback(self, replica: int) -> Callable[[Request, float], bool]:
        """Return a replica's callback for last tokens, which returns True to take the request over and resend it."""
        if self.misrouting is None and self._inside is None and self.rollouts is not None:
            return self.rollouts.last_token_callback(replica)
        return partial(self._ends, replica)

    def _ends(self, replica: int, request: Request, now: float) -> bool:
        is_misrouted = self.misrouting is not None and self.misrouting.is_misrouted(request)
        taken = self.misrouting is not None and self.misrouting.ends(replica, request, now)
        if self.rollouts is not None:
            if is_misrouted:  # no version of its own adapter answered it
                self.rollouts.left(replica, request)
            else:
                self.rollouts.ended(replica, request, now)
        if self._inside is not None:
            self._inside.left(replica, request)
        return taken

    def lost(self, replica: int, request: Request) -> None:
        """Note that a request has left a replica unserved; it may still be sent again."""
        if self.rollouts is not None:
            self.rollouts.left(replica, request)
        if self._inside is not None:
            self._inside.left(replica, request)

    def broken_off(self, replica: int, request: Request, *, whole: bool = False) -> None:
        """Record the tokens of a request that gets no more; ``whole``: its answer is complete, and was found wrong."""
        if self.rollouts is not None:
            self.rollouts.broken_off(replica, request, whole=whole)

    def fail(self, replica: int, request: Request, marks: int) -> None:
        """End a request whose answer is incomplete, or by the wrong adapter."""
        if not marks & LOST:  # lost requests were recorded before their replica lost its state
            self.broken_off(replica, request, whole=not marks)  # without marks, a complete answer was found wrong
        if self.misrouting is not None:
            self.misrouting.forget(request)
        if self.rollouts is not None and marks & (LOST | LOAD_FAILED):
            self.rollouts.failed(request)
        self._recorder.record_unserved(request, replica, FAILED)
        self._recorder.marked(request.index, marks)

    def load_failed(self, replica: int, request: Request) -> None:
        """End a request that has left a replica because its adapter could not be loaded."""
        self.fail(replica, request, LOAD_FAILED)
        self.lost(replica, request)

    def replaced(self, replica: int) -> None:
        """Note that a new, empty replica replaces a crashed one."""
        if self.rollouts is not None:
            self.rollouts.replaced(replica)
        if self.misrouting is not None:
            self.misrouting.replaced(replica)

    def close(self) -> dict[str, float]:
        """Return the facts of this replication."""
        if self.crashes is not None:
            self.crashes.close()
        if self.misrouting is not None:
            self.misrouting.close()
        return {} if self.rollouts is None else self.rollouts.close()
