"""Replicas that die, and what becomes of the requests that were there or are sent there.

A dead replica's place is taken by an empty one that does nothing until it is up again; then by a fresh one, whose GPU
holds nothing but pinned adapters. Requests that hang at a dead replica count as inside it until the router notices:
from outside, it looks like one that answers slowly. With ``lose`` they fail at once, and it looks like the fastest.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from sim.policies.routing import View
from sim.results.records import LOST, REROUTED, UNFINISHED, Event, Recorder
from sim.spec.sections.faults import Crash
from sim.traffic.request import Request
from sim.world.clock import CONTROL, Call, Clock
from sim.world.ports import Endings, OpenFleet


@dataclass(slots=True)
class Outage:
    """One crash and what followed so far.

    :ivar number: its place among the scenario's faults.
    :ivar stuck: these requests, as they came.
    :ivar detected: whether the router knows; ``over``: whether the replica is up again.
    """

    number: int
    crash: Crash
    stuck: list[Request] = field(default_factory=list)
    detected: bool = False
    over: bool = False


class Outages:
    """All crashes of one replication.

    :param crashes: each with its place among the scenario's faults.
    :param view: what the router knows; here, which replicas are up.
    :ivar hanging_area: request-seconds spent hanging at dead replicas, as ``Server.inside_area``.
    """

    def __init__(self, crashes: Sequence[tuple[int, Crash]], view: View, clock: Clock, recorder: Recorder) -> None:
        self._crashes = crashes
        self._view = view
        self._clock = clock
        self._recorder = recorder
        self._down: dict[int, Outage] = {}
        self._outages: list[Outage] = []
        self._parked: list[Request] = []
        self.hanging_area = 0.0
        self._fleet: OpenFleet
        self._endings: Endings

    def start(self, fleet: OpenFleet, endings: Endings) -> None:
        """Put the crashes on the clock."""
        self._fleet, self._endings = fleet, endings
        for number, crash in self._crashes:
            self._clock.call_at(crash.at, CONTROL, self._crash, (number, crash))

    def parks(self, request: Request) -> bool:
        """Return whether no replica is up, so that a request waits outside until one is."""
        if self._view.up:
            return False
        self._parked.append(request)
        return True

    def takes(self, request: Request, replica: int) -> bool:
        """Return whether a replica is there to take a request; otherwise it hangs, or is lost."""
        outage = self._down.get(replica)
        if outage is None:
            return True
        if outage.crash.requests == "lose":
            self._endings.fail(replica, request, LOST)
        else:
            self._hang(outage, request)
        return False

    def awaits(self) -> bool:
        """Return whether a request waits outside."""
        return bool(self._parked)

    def some_down(self) -> bool:
        """Return whether a replica is down."""
        return bool(self._down)

    def close(self) -> None:
        """End those for whom no replica was up, or who hung at one, when the simulation stopped."""
        for outage in self._down.values():
            if outage.crash.down is not None:
                self._note(outage, "end", f"the run ends before replica {outage.crash.replica} is up again")
        for outage in self._outages:
            for request in outage.stuck:
                self._recorder.record_unserved(request, outage.crash.replica, UNFINISHED)
        for request in self._parked:
            self._recorder.record_unserved(request, -1, UNFINISHED)

    def _crash(self, event: Call) -> None:
        number, crash = event.subject
        fleet, endings, now, replica = self._fleet, self._endings, self._clock._now, crash.replica
        inside = sorted(fleet.servers[replica].die(), key=lambda request: request.key)
        if crash.requests == "lose":
            for request in inside:
                endings.broken_off(replica, request)
        if fleet.servers[replica].blocking:  # others note loads when they are over
            self._recorder.cut_loads(replica, now)
        self._replace(replica)
        fleet.inside[replica] = 0
        fleet.servers[replica].down = True
        outage = self._down[replica] = Outage(number, crash)
        self._outages.append(outage)
        self._note(outage, "crash", f"replica {replica} dies with {_requests(len(inside))} inside")
        for request in inside:
            endings.lost(replica, request)
            if crash.requests == "lose":
                endings.fail(replica, request, LOST)
            else:
                self._hang(outage, request)
        self._clock.call_at(now + crash.detected, CONTROL, self._detect, outage)
        if crash.down is not None:
            self._clock.call_at(now + crash.down, CONTROL, self._restart, outage)

    def _detect(self, event: Call) -> None:
        """Let the router leave the replica out, and send what hangs there elsewhere."""
        outage: Outage = event.subject
        fleet, replica = self._fleet, outage.crash.replica
        outage.detected = True
        if not outage.over:
            self._view.goes_down(replica)
        stuck, outage.stuck = outage.stuck, []
        gone = "" if outage.over else f", gives replica {replica} no more"
        begun = f" and begins {_requests(len(stuck))} anew" if outage.crash.requests == "reroute" else ""
        self._note(outage, "detected", f"the router notices{gone}{begun}")
        for request in stuck:
            fleet.inside[replica] -= 1
            self.hanging_area += self._clock._now
            self._recorder.marked(request.index, REROUTED)
        for request in stuck:
            fleet.submit(request)

    def _restart(self, event: Call) -> None:
        """Let a fresh replica take requests."""
        outage: Outage = event.subject
        replica = outage.crash.replica
        outage.over = True
        del self._down[replica]
        self._replace(replica)
        self._note(outage, "restart", f"replica {replica} is up again, with an empty cache")
        if outage.detected:
            self._view.comes_up(replica)
        parked, self._parked = self._parked, []
        for request in parked:
            self._fleet.submit(request)

    def _replace(self, replica: int) -> None:
        self._endings.replaced(replica)
        self._fleet.replace(replica)

    def _hang(self, outage: Outage, request: Request) -> None:
        self._fleet.inside[outage.crash.replica] += 1
        self.hanging_area -= self._clock._now
        outage.stuck.append(self._endings.anew(request))

    def _note(self, outage: Outage, kind: str, text: str) -> None:
        self._recorder.events.append(Event(self._clock._now, kind, f"faults.{outage.number}: {text}"))


def _requests(count: int) -> str:
    return f"{count} request{'s' if count != 1 else ''}"
