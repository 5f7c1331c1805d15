"""Requests that reach the wrong adapter, the detection of wrong answers, and retries.

A complete wrong answer is either served or detected. An incomplete one (its replica crashes, the run stops) is neither.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from math import inf

from sim.results.recording.recorder import Recorder
from sim.results.records import (
    MISROUTED,
    OLD_PREFIX,
    RETRIED,
    UNFINISHED,
    WRONG_DETECTED,
    WRONG_LOAD,
    WRONG_SERVED,
    Event,
)
from sim.traffic.request import MISS, Request
from sim.world.clock import ARRIVAL, Call, Clock
from sim.world.faults.misrouting_faults import MisroutingFault, make_misrouting_faults
from sim.world.faults.stale_prefixes import StalePrefixes
from sim.world.fleet_ports import OpenFleet
from sim.world.times import Retarget
from sim.world.world import World


@dataclass(frozen=True, slots=True)
class OriginalTarget:
    """The adapter that a misrouted request was for.

    :ivar name: its adapter; ``load_s``, ``host_load_s``: load times of that adapter.
    :ivar fault: the fault that misrouted it.
    """

    name: int
    load_s: float
    host_load_s: float
    fault: MisroutingFault

    def restore(self, request: Request) -> None:
        request.adapter, request.load_s, request.host_load_s = self.name, self.load_s, self.host_load_s


class NoMisrouting:
    """The misrouting faults of a replication without any.

    :cvar active: whether there are such faults.
    """

    active = False

    def start(self, fleet: OpenFleet, fail: Callable[[int, Request, int], None]) -> None:
        """Connect to the fleet.

        :param fail: ends a request, given its replica and marks.
        """

    def steer(self, request: Request) -> None:
        """Misroute a request, if a fault decides so."""

    def routed_by(self, request: Request) -> int:
        """Return the adapter by which the router sends a request; the replica may ignore it and use the base model."""
        return request.adapter

    def is_misrouted(self, request: Request) -> bool:
        """Return whether a request inside is misrouted."""
        return False

    def restore(self, request: Request) -> None:
        """Reset the adapter of a lost request that is sent again."""

    def ends(self, replica: int, request: Request, now: float) -> bool:
        """Check a complete answer; return whether the request is retried or has failed instead of completing."""
        return False

    def has_pending(self) -> bool:
        """Return whether a retry is still to come."""
        return False

    def forget(self, request: Request) -> None:
        """Forget a request that has ended without an answer."""

    def replaced(self, replica: int) -> None:
        """Note that a replica restarts empty."""

    def close(self) -> None:
        """End requests whose retry is still to come, and add the faults to the timeline."""


class MisroutedRequests(NoMisrouting):
    """Misrouting faults of one replication, and the requests that they concern.

    If several faults could misroute a request, the first one in the scenario does.

    :param prefixes: stale prefixes, which answer with an old version.
    :param base_model: number of the base model in replicas. A request to it names no adapter, so it is never misrouted.
    """

    active = True

    def __init__(
        self,
        faults: Sequence[MisroutingFault],
        prefixes: StalePrefixes,
        clock: Clock,
        recorder: Recorder,
        retarget: Retarget,
        base_model: int,
    ) -> None:
        self._faults = faults
        self._prefixes = prefixes
        self._clock = clock
        self._recorder = recorder
        self._retarget = retarget
        self._base_model = base_model
        self._active: list[MisroutingFault] = []
        self._until_s = -inf
        self._wrong: dict[int, OriginalTarget] = {}  # by index, of misrouted requests inside
        self._tries: dict[int, int] = {}  # by index, of requests that were sent again
        self._to_come: dict[int, Request] = {}
        self._submit: Callable[[Request], None]
        self._fail: Callable[[int, Request, int], None]

    def start(self, fleet: OpenFleet, fail: Callable[[int, Request, int], None]) -> None:
        self._submit, self._fail = fleet.submit, fail
        self._prefixes.start(fleet)

    def steer(self, request: Request) -> None:
        if request.adapter == self._base_model:
            return
        now, tried = self._clock.now, self._tries.get(request.index, 0)
        if now >= self._until_s:
            self._update_active(now)
        for fault in self._active:
            reached = fault.reaches(request, tried, now)
            if reached != request.adapter:
                self._misroute(request, reached, fault)
                return

    def _update_active(self, now: float) -> None:
        """Update the faults that are active now, and the time at which that changes."""
        self._active = [fault for fault in self._faults if fault.begins_s <= now < fault.ends_s]
        edges = (time for fault in self._faults for time in (fault.begins_s, fault.ends_s))
        self._until_s = min((time for time in edges if time > now), default=inf)

    def _misroute(self, request: Request, reached: int, fault: MisroutingFault) -> None:
        self._wrong[request.index] = OriginalTarget(request.adapter, request.load_s, request.host_load_s, fault)
        self._recorder.mark_request(request.index, MISROUTED)
        if reached == self._base_model:
            request.adapter = reached
        else:
            self._retarget(request, reached)

    def routed_by(self, request: Request) -> int:
        if request.adapter != self._base_model or request.index not in self._wrong:
            return request.adapter
        return self._wrong[request.index].name

    def is_misrouted(self, request: Request) -> bool:
        return request.index in self._wrong

    def restore(self, request: Request) -> None:
        original = self._wrong.pop(request.index, None)
        if original is not None:
            original.restore(request)

    def ends(self, replica: int, request: Request, now: float) -> bool:
        original = self._wrong.pop(request.index, None)
        if original is None:
            if self._prefixes.found(replica, request, now):
                self._recorder.mark_request(request.index, OLD_PREFIX)
            if self._tries:
                self._tries.pop(request.index, None)
            return False
        index, tried = request.index, self._tries.pop(request.index, 0)
        marks = WRONG_LOAD if request.outcome == MISS else 0
        detector = original.fault.detected_by(request, tried)
        if detector is None:
            self._recorder.mark_request(index, marks | WRONG_SERVED)
            return False
        again = tried < detector.retries
        marks |= WRONG_DETECTED | (RETRIED if again else 0)
        self._recorder.mark_request(index, marks, tries=int(again), detected=1)
        if again:
            self._tries[index] = tried + 1
            fresh = request.fresh_copy()
            original.restore(fresh)
            self._to_come[index] = fresh
            self._clock.call_at(now + detector.delay, ARRIVAL, self._resend, index)
        else:
            self._fail(replica, request, 0)
        return True

    def _resend(self, event: Call) -> None:
        self._submit(self._to_come.pop(event.subject))

    def has_pending(self) -> bool:
        return bool(self._to_come)

    def forget(self, request: Request) -> None:
        self._wrong.pop(request.index, None)
        self._tries.pop(request.index, None)

    def replaced(self, replica: int) -> None:
        self._prefixes.forget(replica)

    def close(self) -> None:
        for request in self._to_come.values():
            self._recorder.record_unserved(request, -1, UNFINISHED)
        stopped, events = self._clock.now, self._recorder.events
        for fault in self._faults:
            if fault.never:
                continue
            key = f"faults.{fault.number}"
            events.append(Event(fault.begins_s, "fault", f"{key}: {fault.words}"))
            events.append(Event(fault.ends_s, "over", f"{key}: requests reach their own adapters again"))
        # Events on the clock would make a run of all requests longer.
        events[:] = sorted((event for event in events if event.time_s <= stopped), key=lambda event: event.time_s)


def make_misrouting(
    world: World, replication: int, clock: Clock, recorder: Recorder, prefixes: StalePrefixes
) -> NoMisrouting:
    """Return the misrouting faults of one replication."""
    faults = make_misrouting_faults(world, replication)
    if not faults and not prefixes.active:
        return NoMisrouting()
    retarget = Retarget(world.scenario, world.profile, world.population)
    return MisroutedRequests(faults, prefixes, clock, recorder, retarget, world.base_model)
