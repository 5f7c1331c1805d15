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
class CrashedReplica:
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


class Crashes:
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
        self._down: dict[int, CrashedReplica] = {}
        self._all_crashed: list[CrashedReplica] = []
        self._held: list[Request] = []
        self.hanging_area = 0.0
        self._fleet: OpenFleet
        self._endings: Endings

    def start(self, fleet: OpenFleet, endings: Endings) -> None:
        """Put the crashes on the clock."""
        self._fleet, self._endings = fleet, endings
        for number, crash in self._crashes:
            self._clock.call_at(crash.at, CONTROL, self._crash, (number, crash))

    def hold_if_all_down(self, request: Request) -> bool:
        """Return whether no replica is up, so that a request waits outside until one is."""
        if self._view.up:
            return False
        self._held.append(request)
        return True

    def accepts(self, request: Request, replica: int) -> bool:
        """Return whether a replica is there to take a request; otherwise it hangs, or is lost."""
        crashed = self._down.get(replica)
        if crashed is None:
            return True
        if crashed.crash.requests == "lose":
            self._endings.fail(replica, request, LOST)
        else:
            self._hang(crashed, request)
        return False

    def has_pending(self) -> bool:
        """Return whether a request waits outside."""
        return bool(self._held)

    def any_down(self) -> bool:
        """Return whether a replica is down."""
        return bool(self._down)

    def close(self) -> None:
        """End those for whom no replica was up, or who hung at one, when the simulation stopped."""
        for crashed in self._down.values():
            if crashed.crash.down is not None:
                self._note(crashed, "end", f"the run ends before replica {crashed.crash.replica} is up again")
        for crashed in self._all_crashed:
            for request in crashed.stuck:
                self._recorder.record_unserved(request, crashed.crash.replica, UNFINISHED)
        for request in self._held:
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
        crashed = self._down[replica] = CrashedReplica(number, crash)
        self._all_crashed.append(crashed)
        self._note(crashed, "crash", f"replica {replica} dies with {_requests(len(inside))} inside")
        for request in inside:
            endings.lost(replica, request)
            if crash.requests == "lose":
                endings.fail(replica, request, LOST)
            else:
                self._hang(crashed, request)
        self._clock.call_at(now + crash.detected, CONTROL, self._detect, crashed)
        if crash.down is not None:
            self._clock.call_at(now + crash.down, CONTROL, self._restart, crashed)

    def _detect(self, event: Call) -> None:
        """Let the router leave the replica out, and send what hangs there elsewhere."""
        crashed: CrashedReplica = event.subject
        fleet, replica = self._fleet, crashed.crash.replica
        crashed.detected = True
        if not crashed.over:
            self._view.goes_down(replica)
        stuck, crashed.stuck = crashed.stuck, []
        gone = "" if crashed.over else f", gives replica {replica} no more"
        begun = f" and begins {_requests(len(stuck))} anew" if crashed.crash.requests == "reroute" else ""
        self._note(crashed, "detected", f"the router notices{gone}{begun}")
        for request in stuck:
            fleet.inside[replica] -= 1
            self.hanging_area += self._clock._now
            self._recorder.marked(request.index, REROUTED)
        for request in stuck:
            fleet.submit(request)

    def _restart(self, event: Call) -> None:
        """Let a fresh replica take requests."""
        crashed: CrashedReplica = event.subject
        replica = crashed.crash.replica
        crashed.over = True
        del self._down[replica]
        self._replace(replica)
        self._note(crashed, "restart", f"replica {replica} is up again, with an empty cache")
        if crashed.detected:
            self._view.comes_up(replica)
        held, self._held = self._held, []
        for request in held:
            self._fleet.submit(request)

    def _replace(self, replica: int) -> None:
        self._endings.replaced(replica)
        self._fleet.replace(replica)

    def _hang(self, crashed: CrashedReplica, request: Request) -> None:
        self._fleet.inside[crashed.crash.replica] += 1
        self.hanging_area -= self._clock._now
        crashed.stuck.append(self._endings.fresh_copy(request))

    def _note(self, crashed: CrashedReplica, kind: str, text: str) -> None:
        self._recorder.events.append(Event(self._clock._now, kind, f"faults.{crashed.number}: {text}"))


def _requests(count: int) -> str:
    return f"{count} request{'s' if count != 1 else ''}"
