"""What changes while traffic flows, in one replication: rollouts and faults behind one face for the fleet.

A request that comes is steered (which adapter and version it reaches), routed, and let in or not; when its last token
is out, its end is judged. Each part looks only at what concerns it.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING

from sim.results.records import FAILED, LOAD_FAILED, LOST, Recorder
from sim.traffic.request import Request
from sim.world.faults.crashes import Outages
from sim.world.faults.misrouting import Identity
from sim.world.rollouts.active_rollouts import Rollouts
from sim.world.rollouts.in_place_update import Gates
from sim.world.routing.in_flight import Inside

if TYPE_CHECKING:
    from sim.world.ports import OpenFleet
    from sim.world.replica.server import Server


class Changes:
    """Rollouts and faults of one replication.

    :param inside: counts requests inside by adapter, where the router wants to know; None: nobody does.
    :ivar rollouts, identity, outages: rollouts, faults by which requests reach the wrong adapter, and crashes; None
        where there are none.
    :ivar steering: whether ``steer`` may do anything; ``guarding``: whether ``lets_in`` may, beside what ``gates`` say;
        ``resending``: whether requests may come again, or wait outside; ``reordering``: whether some take their places
        in queues later than they came. Every request asks these first.
    """

    def __init__(
        self,
        recorder: Recorder,
        rollouts: Rollouts | None,
        inside: Inside | None,
        identity: Identity | None = None,
        outages: Outages | None = None,
    ) -> None:
        self._recorder = recorder
        self._inside = inside
        self._servers: list[Server] = []
        self.rollouts = rollouts
        self.identity = identity
        self.outages = outages
        self.gates = Gates(0) if rollouts is None else rollouts.gates
        self.steering = identity is not None or (rollouts is not None and rollouts.renames)
        self.resending = identity is not None or outages is not None
        self.reordering = self.resending or (rollouts is not None and rollouts.holds)
        self.guarding = outages is not None

    def start(self, fleet: OpenFleet) -> None:
        """Put everything that will happen on the clock."""
        self._servers = fleet.servers
        if self.rollouts is not None:
            self.rollouts.start(fleet.servers)
        if self.identity is not None:
            self.identity.start(fleet, self.fail)
        if self.outages is not None:
            self.outages.start(fleet, self)

    def anew(self, request: Request) -> Request:
        """Return a request as it came, asking for its own adapter, to be sent on its way again."""
        again = request.again()
        if self.identity is not None:
            self.identity.restore(again)
        if self.rollouts is not None:
            self.rollouts.restore(again)
        return again

    def parks(self, request: Request) -> bool:
        """Return whether a request waits outside, since no replica is up."""
        return self.outages is not None and self.outages.parks(request)

    def awaits(self) -> bool:
        """Return whether a request is still to come that is inside no replica."""
        identity, outages = self.identity, self.outages
        return (identity is not None and identity.awaits()) or (outages is not None and outages.awaits())

    def some_down(self) -> bool:
        """Return whether a replica is down, so that requests may wait for ever."""
        return self.outages is not None and self.outages.some_down()

    def steer(self, request: Request) -> int:
        """Decide which adapter, of which version, a request reaches; return the one by which it is routed."""
        if self.identity is not None:
            self.identity.steer(request)
        if self.rollouts is not None:
            self.rollouts.steer(request)
        return request.adapter if self.identity is None else self.identity.routed_by(request)

    def lets_in(self, request: Request, replica: int) -> bool:
        """Return whether a replica takes a request now; otherwise all that is to be done with it is done."""
        if self.outages is not None and not self.outages.takes(request, replica):
            return False
        rollouts = self.rollouts
        gate = self.gates.closed(replica, request.adapter)
        if gate is not None and gate.refuses:
            assert rollouts is not None, "they close gates"
            rollouts.refuse(request, replica)
            return False
        if gate is not None:
            if self._inside is not None:
                self._inside.entered(replica, request)
            self._servers[replica].hold(request)
        return gate is None

    def ends_on(self, replica: int) -> Callable[[Request, float], bool]:
        """Return what a replica asks when a request has its last token: whether it is taken over, to be sent again."""
        if self.identity is None and self._inside is None and self.rollouts is not None:
            return self.rollouts.ends_on(replica)
        return partial(self._ends, replica)

    def _ends(self, replica: int, request: Request, now: float) -> bool:
        astray = self.identity is not None and self.identity.astray(request)
        taken = self.identity is not None and self.identity.ends(replica, request, now)
        if self.rollouts is not None:
            if astray:  # it was answered by no version of its own adapter
                self.rollouts.left(replica, request)
            else:
                self.rollouts.ended(replica, request, now)
        if self._inside is not None:
            self._inside.left(replica, request)
        return taken

    def lost(self, replica: int, request: Request) -> None:
        """Note that a request has left a replica without being served to its end; what becomes of it is open."""
        if self.rollouts is not None:
            self.rollouts.left(replica, request)
        if self._inside is not None:
            self._inside.left(replica, request)

    def broken_off(self, replica: int, request: Request, *, whole: bool = False) -> None:
        """Note what a request got so far that gets no more; ``whole``: all its tokens, which somebody found wrong."""
        if self.rollouts is not None:
            self.rollouts.broken_off(replica, request, whole=whole)

    def fail(self, replica: int, request: Request, marks: int) -> None:
        """End a request that was never answered to its end, or not by the right adapter."""
        if not marks & LOST:  # those told already, before their replica had lost everything
            self.broken_off(replica, request, whole=not marks)  # nothing to say of it: its answer was wrong
        if self.identity is not None:
            self.identity.forget(request)
        if self.rollouts is not None and marks & (LOST | LOAD_FAILED):
            self.rollouts.failed(request)
        self._recorder.record_unserved(request, replica, FAILED)
        self._recorder.marked(request.index, marks)

    def load_failed(self, replica: int, request: Request) -> None:
        """End a request that has left a replica since its adapter can't be loaded."""
        self.fail(replica, request, LOAD_FAILED)
        self.lost(replica, request)

    def replaced(self, replica: int) -> None:
        """Note that a new, empty replica is to stand in the place of one that died."""
        if self.rollouts is not None:
            self.rollouts.replaced(replica)
        if self.identity is not None:
            self.identity.replaced(replica)

    def close(self) -> dict[str, float]:
        """Return the facts of this replication."""
        if self.outages is not None:
            self.outages.close()
        if self.identity is not None:
            self.identity.close()
        return {} if self.rollouts is None else self.rollouts.close()
