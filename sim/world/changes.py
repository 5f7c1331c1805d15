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
        """Put everything that will happen on the clock."""
        self._servers = fleet.servers
        if self.rollouts is not None:
            self.rollouts.start(fleet.servers)
        if self.misrouting is not None:
            self.misrouting.start(fleet, self.fail)
        if self.crashes is not None:
            self.crashes.start(fleet, self)

    def fresh_copy(self, request: Request) -> Request:
        """Return a request as it came, asking for its own adapter, to be sent on its way again."""
        again = request.fresh_copy()
        if self.misrouting is not None:
            self.misrouting.restore(again)
        if self.rollouts is not None:
            self.rollouts.restore(again)
        return again

    def hold_if_all_down(self, request: Request) -> bool:
        """Return whether a request waits outside, since no replica is up."""
        return self.crashes is not None and self.crashes.hold_if_all_down(request)

    def has_pending(self) -> bool:
        """Return whether a request is still to come that is inside no replica."""
        misrouting, crashes = self.misrouting, self.crashes
        return (misrouting is not None and misrouting.has_pending()) or (crashes is not None and crashes.has_pending())

    def any_down(self) -> bool:
        """Return whether a replica is down, so that requests may wait for ever."""
        return self.crashes is not None and self.crashes.any_down()

    def steer(self, request: Request) -> int:
        """Decide which adapter, of which version, a request reaches; return the one by which it is routed."""
        if self.misrouting is not None:
            self.misrouting.steer(request)
        if self.rollouts is not None:
            self.rollouts.steer(request)
        return request.adapter if self.misrouting is None else self.misrouting.routed_by(request)

    def accepts(self, request: Request, replica: int) -> bool:
        """Return whether a replica takes a request now; otherwise all that is to be done with it is done."""
        if self.crashes is not None and not self.crashes.accepts(request, replica):
            return False
        rollouts = self.rollouts
        barrier = self.barriers.closed(replica, request.adapter)
        if barrier is not None and barrier.refuses:
            assert rollouts is not None, "they close gates"
            rollouts.refuse(request, replica)
            return False
        if barrier is not None:
            if self._inside is not None:
                self._inside.entered(replica, request)
            self._servers[replica].hold(request)
        return barrier is None

    def last_token_callback(self, replica: int) -> Callable[[Request, float], bool]:
        """Return what a replica asks when a request has its last token: whether it is taken over, to be sent again."""
        if self.misrouting is None and self._inside is None and self.rollouts is not None:
            return self.rollouts.last_token_callback(replica)
        return partial(self._ends, replica)

    def _ends(self, replica: int, request: Request, now: float) -> bool:
        is_misrouted = self.misrouting is not None and self.misrouting.is_misrouted(request)
        taken = self.misrouting is not None and self.misrouting.ends(replica, request, now)
        if self.rollouts is not None:
            if is_misrouted:  # it was answered by no version of its own adapter
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
        if self.misrouting is not None:
            self.misrouting.forget(request)
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
        if self.misrouting is not None:
            self.misrouting.replaced(replica)

    def close(self) -> dict[str, float]:
        """Return the facts of this replication."""
        if self.crashes is not None:
            self.crashes.close()
        if self.misrouting is not None:
            self.misrouting.close()
        return {} if self.rollouts is None else self.rollouts.close()
