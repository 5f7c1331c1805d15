"""Requests that reach the wrong adapter, the detection of wrong answers, and retries.

A complete wrong answer is either served or detected. An incomplete one (its replica crashes, the run stops) is neither.
"""

from __future__ import annotations

from collections.abc import Sequence
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
from sim.world.dispatcher import Dispatcher, Extension
from sim.world.faults.misrouting_faults import MisroutingFault, make_misrouting_faults
from sim.world.faults.stale_prefixes import StalePrefixes
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


class MisroutedRequests(Extension):
    """Misrouting faults of one replication, and the requests that they concern.

    If several faults could misroute a request, the first one in the scenario does.

    :param prefixes: stale prefixes, which answer with an old version.
    :param base_model: number of the base model in replicas. A request to it names no adapter, so it is never misrouted.
    :ivar wrong: by index, misrouted requests inside.
    """

    def __init__(
        self,
        faults: Sequence[MisroutingFault],
        prefixes: StalePrefixes,
        clock: Clock,
        recorder: Recorder,
        retarget: Retarget,
        base_model: int,
    ) -> None:
        super().__init__()
        self.reorders = True
        self._faults = faults
        self._prefixes = prefixes
        self._clock = clock
        self._recorder = recorder
        self._retarget = retarget
        self._base_model = base_model
        self._active: list[MisroutingFault] = []
        self._until_s = -inf
        self.wrong: dict[int, OriginalTarget] = {}
        self._tries: dict[int, int] = {}  # by index, of requests that were sent again
        self._to_come: dict[int, Request] = {}
        self._fleet: Dispatcher

    def start(self, fleet: Dispatcher) -> None:
        self._fleet = fleet
        self._prefixes.start(fleet)

    def receive(self, request: Request) -> bool:
        """Misroute a request, if a fault decides so."""
        if request.adapter == self._base_model:
            return True
        now, tried = self._clock.now, self._tries.get(request.index, 0)
        if now >= self._until_s:
            self._update_active(now)
        for fault in self._active:
            reached = fault.reaches(request, tried, now)
            if reached != request.adapter:
                self._misroute(request, reached, fault)
                break
        return True

    def _update_active(self, now: float) -> None:
        """Update the faults that are active now, and the time at which that changes."""
        self._active = [fault for fault in self._faults if fault.begins_s <= now < fault.ends_s]
        edges = (time for fault in self._faults for time in (fault.begins_s, fault.ends_s))
        self._until_s = min((time for time in edges if time > now), default=inf)

    def _misroute(self, request: Request, reached: int, fault: MisroutingFault) -> None:
        self.wrong[request.index] = OriginalTarget(request.adapter, request.load_s, request.host_load_s, fault)
        self._recorder.mark_request(request.index, MISROUTED)
        if reached == self._base_model:
            request.adapter = reached
        else:
            self._retarget(request, reached)

    def routed_by(self, request: Request) -> int:
        """Return its own adapter for a request that its replica will answer with the base model."""
        if request.adapter != self._base_model or request.index not in self.wrong:
            return request.adapter
        return self.wrong[request.index].name

    def restore(self, request: Request) -> None:
        original = self.wrong.pop(request.index, None)
        if original is not None:
            original.restore(request)

    def ended(self, request: Request, replica: int, now: float) -> bool:
        """Check an answer; a wrong one may be detected, and its request sent again or failed."""
        original = self.wrong.pop(request.index, None)
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
            self._fleet.fail(request, replica, 0)
        return True

    def _resend(self, event: Call) -> None:
        self._fleet.submit(self._to_come.pop(event.subject))

    def pending(self) -> bool:
        return bool(self._to_come)

    def failed(self, request: Request, replica: int, marks: int) -> None:
        self.wrong.pop(request.index, None)
        self._tries.pop(request.index, None)

    def replaced(self, replica: int) -> None:
        self._prefixes.forget(replica)

    def close(self) -> dict[str, float]:
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
        return {}


def make_misrouting(
    world: World, replication: int, clock: Clock, recorder: Recorder, prefixes: StalePrefixes
) -> MisroutedRequests | None:
    """Return the misrouting faults of one replication, if there are any."""
    faults = make_misrouting_faults(world, replication)
    if not faults and not prefixes.active:
        return None
    retarget = Retarget(world.scenario, world.profile, world.population)
    return MisroutedRequests(faults, prefixes, clock, recorder, retarget, world.base_model)
