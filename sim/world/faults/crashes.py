"""Crashes of replicas, and the requests that were inside or are still sent there.

After a crash, an empty server stands in that serves nothing; at the restart, a fresh one whose GPU holds only pinned
adapters takes over. Requests stuck at a crashed replica count as inside until the router notices: to the router, it
looks like a slow replica. With ``requests: lose`` they fail at once, and it looks like the fastest replica.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

from sim.results.recording.recorder import Recorder
from sim.results.records import LOST, REROUTED, UNFINISHED, Event
from sim.spec.scenario import Scenario
from sim.spec.sections.changes import Crash
from sim.traffic.request import Request
from sim.world.clock import Call, Clock
from sim.world.dispatcher import Dispatcher, Extension
from sim.world.routing.router_state import ReplicaViews


@dataclass(slots=True)
class CrashedReplica:
    """One crash and its consequences so far.

    :ivar number: its place among the scenario's faults.
    :ivar stuck: requests stuck at the replica, as fresh copies.
    :ivar detected: whether the router knows; ``over``: whether the replica is up again.
    """

    number: int
    crash: Crash
    stuck: list[Request] = field(default_factory=list)
    detected: bool = False
    over: bool = False


class Crashes(Extension):
    """All crashes of one replication.

    :param crashes: each with its place among the scenario's faults.
    :param views: those of the routers, in which replicas go down and come up.
    """

    def __init__(
        self, crashes: Sequence[tuple[int, Crash]], views: ReplicaViews, clock: Clock, recorder: Recorder
    ) -> None:
        super().__init__()
        self.reorders = True
        self._crashes = crashes
        self._views = views
        self._clock = clock
        self._recorder = recorder
        self._down: dict[int, CrashedReplica] = {}
        self._all_crashed: list[CrashedReplica] = []
        self._held: list[Request] = []

    def start(self, fleet: Dispatcher) -> None:
        super().start(fleet)
        for number, crash in self._crashes:
            self._clock.process(self._crash(number, crash))

    def receive(self, request: Request) -> bool:
        """Hold a request until a replica is up, if all that take it are down."""
        if not self._views.none_up(request):
            return True
        self._held.append(request)
        return False

    def accept(self, request: Request, replica: int) -> bool:
        crashed = self._down.get(replica)
        if crashed is None:
            return True
        if crashed.crash.requests == "lose":
            self._fleet.fail(request, replica, LOST)
        else:
            self._add_stuck(crashed, request)
        return False

    def pending(self) -> bool:
        return bool(self._held)

    def close(self) -> dict[str, float]:
        for crashed in self._down.values():
            if crashed.crash.down is not None:
                self._note(crashed, "end", f"the run ends before replica {crashed.crash.replica} is up again")
        for crashed in self._all_crashed:
            for request in crashed.stuck:
                self._recorder.record_unserved(request, crashed.crash.replica, UNFINISHED)
        for request in self._held:
            self._recorder.record_unserved(request, -1, UNFINISHED)
        return {}

    def _crash(self, number: int, crash: Crash) -> Iterator[Call]:
        yield self._clock.until(crash.at)
        fleet, now, replica = self._fleet, self._clock.now, crash.replica
        if not all(each.crashed(replica) for each in fleet.extensions):
            self._note(CrashedReplica(number, crash), "end", f"replica {replica} does not serve now, so nothing dies")
            return
        dead = fleet.servers[replica]
        inside = sorted(dead.die() + fleet.held(replica), key=lambda request: request.key)
        if crash.requests == "lose":
            for request in inside:
                fleet.broken_off(request, replica)
        if dead.mode.loads_in_steps:  # other replicas record loads at their end
            self._recorder.cut_loads(replica, now)
        fleet.replace(replica, standing_in=True)
        fleet.inside[replica] = 0
        crashed = self._down[replica] = CrashedReplica(number, crash)
        self._all_crashed.append(crashed)
        self._note(crashed, "crash", f"replica {replica} dies with {_requests(len(inside))} inside")
        for request in inside:
            fleet.lost(request, replica)
            if crash.requests == "lose":
                fleet.fail(request, replica, LOST)
            else:
                self._add_stuck(crashed, request)
        self._clock.process(self._detect(crashed))
        if crash.down is not None:
            self._clock.process(self._restart(crashed, crash.down))

    def _detect(self, crashed: CrashedReplica) -> Iterator[Call]:
        """Take the replica out of the router's view once that notices, and send its stuck requests elsewhere."""
        yield self._clock.until(self._clock.now + crashed.crash.detected)
        fleet, replica = self._fleet, crashed.crash.replica
        crashed.detected = True
        if not crashed.over:
            self._views.goes_down(replica)
        stuck, crashed.stuck = crashed.stuck, []
        gone = "" if crashed.over else f", gives replica {replica} no more"
        begun = f" and begins {_requests(len(stuck))} anew" if crashed.crash.requests == "reroute" else ""
        self._note(crashed, "detected", f"the router notices{gone}{begun}")
        for request in stuck:
            fleet.inside[replica] -= 1
            self.outside_area += self._clock.now
            self._recorder.mark_request(request.index, REROUTED)
        for request in stuck:
            fleet.submit(request)

    def _restart(self, crashed: CrashedReplica, down_s: float) -> Iterator[Call]:
        """Put a fresh replica in the place of the crashed one once that is up again."""
        yield self._clock.until(self._clock.now + down_s)
        replica = crashed.crash.replica
        crashed.over = True
        del self._down[replica]
        if not all(each.restarted(replica) for each in self._fleet.extensions):
            self._note(crashed, "restart", f"replica {replica} was being stopped, so it is not started again")
            return
        self._fleet.replace(replica, standing_in=False)
        self._note(crashed, "restart", f"replica {replica} is up again, with an empty cache")
        if crashed.detected:
            self._views.comes_up(replica)
            for each in self._fleet.extensions:
                each.came_up()
        held, self._held = self._held, []
        for request in held:
            self._fleet.submit(request)

    def _add_stuck(self, crashed: CrashedReplica, request: Request) -> None:
        self._fleet.inside[crashed.crash.replica] += 1
        self.outside_area -= self._clock.now
        crashed.stuck.append(self._fleet.fresh_copy(request))

    def _note(self, crashed: CrashedReplica, kind: str, text: str) -> None:
        self._recorder.events.append(Event(self._clock.now, kind, f"faults.{crashed.number}: {text}"))


def _requests(count: int) -> str:
    return f"{count} request{'s' if count != 1 else ''}"


def make_crashes(scenario: Scenario, views: ReplicaViews, clock: Clock, recorder: Recorder) -> Crashes | None:
    """Return the crashes of one replication, if there are any."""
    crashes = [(i, fault) for i, fault in enumerate(scenario.faults) if isinstance(fault, Crash)]
    return Crashes(crashes, views, clock, recorder) if crashes else None
