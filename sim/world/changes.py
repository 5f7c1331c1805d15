"""Rollouts, faults and the autoscaler of one replication, behind the hooks of the fleet.

A request is steered (the adapter and version that it reaches), routed, and accepted by a replica or not. After its last
token, its answer is checked. Rollouts, misrouting faults and crashes each handle their own part; those that a scenario
doesn't have do nothing.
"""

from __future__ import annotations

from sim.results.recording.recorder import Recorder
from sim.results.records import FAILED, LOAD_FAILED, LOST
from sim.traffic.request import Request
from sim.world.faults.crashes import NoCrashes
from sim.world.faults.misrouting import NoMisrouting
from sim.world.fleet_ports import FleetHooks, OpenFleet, ReplicaEntry
from sim.world.pools.autoscaler import NoAutoscaler
from sim.world.replica.ports import ReplicaListener
from sim.world.rollouts.active_rollouts import NoRollouts
from sim.world.routing.in_flight import InFlight


class Changes(FleetHooks):
    """Rollouts and faults of one replication.

    :param in_flight: counts requests inside by adapter, if the router reads that.
    :param entry: what replicas of different kinds ask of a request.
    """

    direct = False

    def __init__(
        self,
        recorder: Recorder,
        rollouts: NoRollouts,
        misrouting: NoMisrouting,
        crashes: NoCrashes,
        scaling: NoAutoscaler,
        in_flight: InFlight,
        entry: ReplicaEntry,
    ) -> None:
        self._entry = entry
        self._recorder = recorder
        self._in_flight = in_flight
        self._rollouts = rollouts
        self._misrouting = misrouting
        self._crashes = crashes
        self._scaling = scaling
        self._barriers = rollouts.barriers
        self._fleet: OpenFleet
        # Whether requests may be steered, and whether some join a queue later than they arrived. Where not, no request
        # pays for calls that do nothing.
        self._steering = misrouting.active or rollouts.renames
        self._reordering = misrouting.active or crashes.active or rollouts.holds or scaling.holds
        self._answers_vary = misrouting.active or in_flight.counting or not rollouts.active

    def start(self, fleet: OpenFleet) -> None:
        self._fleet = fleet
        self._rollouts.start(fleet)
        self._misrouting.start(fleet, self.fail)
        self._crashes.start(fleet, self, self._scaling)
        self._scaling.start(fleet, self)

    def send(self, request: Request) -> None:
        """Send a request through rollouts and faults, which may change its adapter or keep it from its replica."""
        fleet, name = self._fleet, request.adapter
        if self._scaling.hold_if_none_ready(request) or self._crashes.hold_if_all_down(request):
            return
        if self._reordering:
            request.key = fleet.next_key()
        if self._steering:
            name = self.steer(request)
        replica = fleet.choose(name, request)
        if self._entry.admits(request, replica) and self.accepts(request, replica):
            if self._in_flight.counting:
                self._in_flight.entered(replica, request)
            fleet.servers[replica].arrive(request)

    def steer(self, request: Request) -> int:
        """Decide the adapter and version that a request reaches; return the adapter by which to route it."""
        self._misrouting.steer(request)
        self._rollouts.steer(request)
        return self._misrouting.routed_by(request)

    def accepts(self, request: Request, replica: int) -> bool:
        """Return whether a replica takes a request now; if not, the request has been dealt with."""
        if not self._crashes.accepts(request, replica):
            return False
        if not self._barriers.count:
            return True
        barrier = self._barriers.closed(replica, request.adapter)
        if barrier is None:
            return True
        if barrier.refuses:
            self._rollouts.refuse(request, replica)
            return False
        if self._in_flight.counting:
            self._in_flight.entered(replica, request)
        self._rollouts.hold(request, replica)
        return False

    def fresh_copy(self, request: Request) -> Request:
        """Return a copy of a request as it arrived, with its own adapter, to be sent again."""
        again = request.fresh_copy()
        self._misrouting.restore(again)
        self._rollouts.restore(again)
        return again

    def has_pending(self) -> bool:
        return self._misrouting.has_pending() or self._crashes.has_pending() or self._scaling.has_pending()

    def any_down(self) -> bool:
        return self._crashes.any_down()

    def listener(self, replica: int) -> ReplicaListener:
        return ChangesListener(self, replica) if self._answers_vary else RolloutListener(self, self._rollouts, replica)

    def ended(self, replica: int, request: Request, now: float) -> bool:
        """Check an answer after its last token; return whether the request is sent again or fails after all."""
        is_misrouted = self._misrouting.is_misrouted(request)
        taken = self._misrouting.ends(replica, request, now)
        if is_misrouted:  # no version of its own adapter answered it
            self._rollouts.left(replica, request)
        else:
            self._rollouts.ended(replica, request, now)
        if self._in_flight.counting:
            self._in_flight.left(replica, request)
        return taken

    def lost(self, replica: int, request: Request) -> None:
        """Note that a request has left a replica unserved; it may still be sent again."""
        self._rollouts.left(replica, request)
        if self._in_flight.counting:
            self._in_flight.left(replica, request)

    def broken_off(self, replica: int, request: Request) -> None:
        """Record the tokens of a request that gets no more."""
        self._rollouts.broken_off(replica, request, whole=False)

    def give_up(self, replica: int) -> list[Request]:
        return self._rollouts.give_up(replica)

    def fail(self, replica: int, request: Request, marks: int) -> None:
        """End a request whose answer is incomplete, or by the wrong adapter."""
        if not marks & LOST:  # lost requests were recorded before their replica lost its state
            # Without marks, a complete answer was found wrong.
            self._rollouts.broken_off(replica, request, whole=not marks)
        self._misrouting.forget(request)
        if marks & (LOST | LOAD_FAILED):
            self._rollouts.failed(request)
        self._recorder.record_unserved(request, replica, FAILED)
        self._recorder.mark_request(request.index, marks)

    def replaced(self, replica: int) -> None:
        """Note that a new, empty replica replaces a crashed one."""
        self._rollouts.replaced(replica)
        self._misrouting.replaced(replica)

    def outside_area(self) -> float:
        return self._crashes.stuck_area + self._rollouts.held_area()

    def close(self) -> dict[str, float]:
        self._crashes.close()
        self._scaling.close()
        self._misrouting.close()
        return self._rollouts.close()


class ChangesListener(ReplicaListener):
    """Passes on what happens to the requests of one replica."""

    hears_ends = True

    def __init__(self, changes: Changes, replica: int) -> None:
        self._changes = changes
        self._replica = replica

    def finished(self, request: Request, now: float) -> bool:
        return self._changes.ended(self._replica, request, now)

    def lost(self, request: Request) -> None:
        self._changes.lost(self._replica, request)

    def load_failed(self, request: Request) -> None:
        self._changes.fail(self._replica, request, LOAD_FAILED)
        self._changes.lost(self._replica, request)


class RolloutListener(ChangesListener):
    """The same where only rollouts concern answers: cheap for requests that none concerns at that time."""

    def __init__(self, changes: Changes, rollouts: NoRollouts, replica: int) -> None:
        super().__init__(changes, replica)
        self._rollouts = rollouts

    def finished(self, request: Request, now: float) -> bool:
        if self._rollouts.concern(request):
            self._rollouts.ended(self._replica, request, now)
        return False
