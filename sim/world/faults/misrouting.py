"""Identity faults: requests that reach the wrong adapter, who notices, and what is sent again.

A wrong answer that comes to its end is served or detected, one of the two; one that doesn't (its replica dies, the run
stops) is neither.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from math import inf

from sim.results.records import (
    MISROUTED,
    OLD_PREFIX,
    RETRIED,
    UNFINISHED,
    WRONG_DETECTED,
    WRONG_LOAD,
    WRONG_SERVED,
    Event,
    Recorder,
    pack_judged,
)  # fmt: skip
from sim.spec.scenario import Scenario
from sim.spec.sections.faults import BaseModelAnswers, NamedPrefixes
from sim.traffic.request import MISS, Request
from sim.world.clock import ARRIVAL, Call, Clock
from sim.world.faults.misrouting_faults import Mixup, make_mixups
from sim.world.faults.stale_prefixes import OldPrefixes
from sim.world.ports import OpenFleet
from sim.world.rollouts.active_rollouts import Rollouts
from sim.world.times import Readdress
from sim.world.world import World


@dataclass(frozen=True, slots=True)
class Asked:
    """What a request had asked for that was led to the wrong adapter.

    :ivar name: its adapter; ``load_s``, ``host_load_s``: how long its loads would have taken.
    :ivar mixup: what led it there.
    """

    name: int
    load_s: float
    host_load_s: float
    mixup: Mixup

    def restore(self, request: Request) -> None:
        request.adapter, request.load_s, request.host_load_s = self.name, self.load_s, self.host_load_s


class Identity:
    """Identity faults of one replication.

    Where several could lead a request astray, the first of the scenario does.

    :param base_model: the number of the base model in replicas; -1: it never answers.
    """

    def __init__(
        self,
        mixups: Sequence[Mixup],
        prefixes: OldPrefixes | None,
        clock: Clock,
        recorder: Recorder,
        readdress: Readdress,
        base_model: int,
    ) -> None:
        self._mixups = mixups
        self._prefixes = prefixes
        self._clock = clock
        self._recorder = recorder
        self._readdress = readdress
        self._base_model = base_model
        self._there: list[Mixup] = []
        self._until_s = -inf
        self._wrong: dict[int, Asked] = {}  # by index, of those inside that are at the wrong adapter
        self._tries: dict[int, int] = {}  # by index, of those that were sent again
        self._to_come: dict[int, Request] = {}
        self._submit: Callable[[Request], None]
        self._fail: Callable[[int, Request, int], None]

    def start(self, fleet: OpenFleet, fail: Callable[[int, Request, int], None]) -> None:
        """Take what is needed to send requests again, or to end them: ``fail`` with replica, request and marks."""
        self._submit, self._fail = fleet.submit, fail

    def steer(self, request: Request) -> None:
        """Lead a request to the wrong adapter, if a fault says so."""
        now, tried = self._clock._now, self._tries.get(request.index, 0)
        if now >= self._until_s:
            self._look_at_the_time(now)
        for mixup in self._there:
            reached = mixup.reaches(request, tried, now)
            if reached is not None:
                self._lead_astray(request, reached, mixup)
                return

    def _look_at_the_time(self, now: float) -> None:
        """Note which faults are there, and until when that stays so."""
        self._there = [mixup for mixup in self._mixups if mixup.begins_s <= now < mixup.ends_s]
        edges = (time for mixup in self._mixups for time in (mixup.begins_s, mixup.ends_s))
        self._until_s = min((time for time in edges if time > now), default=inf)

    def _lead_astray(self, request: Request, reached: int, mixup: Mixup) -> None:
        self._wrong[request.index] = Asked(request.adapter, request.load_s, request.host_load_s, mixup)
        self._recorder.marked(request.index, MISROUTED)
        if reached == self._base_model:
            request.adapter = reached
        else:
            self._readdress(request, reached)

    def routed_by(self, request: Request) -> int:
        """Return the adapter by which a router sends a request; the replica may leave it out nevertheless."""
        return self._wrong[request.index].name if request.adapter == self._base_model else request.adapter

    def astray(self, request: Request) -> bool:
        """Return whether a request inside is at the wrong adapter."""
        return request.index in self._wrong

    def restore(self, request: Request) -> None:
        """Let a request that was lost, and comes again, ask for its own adapter."""
        asked = self._wrong.pop(request.index, None)
        if asked is not None:
            asked.restore(request)

    def ends(self, replica: int, request: Request, now: float) -> bool:
        """Judge an answer; return whether that wasn't the request's end, or it has ended otherwise than completed."""
        asked = self._wrong.pop(request.index, None)
        if asked is None:
            if self._prefixes is not None and self._prefixes.found(replica, request, now):
                self._recorder.marked(request.index, OLD_PREFIX)
            if self._tries:
                self._tries.pop(request.index, None)
            return False
        index, tried = request.index, self._tries.pop(request.index, 0)
        marks = WRONG_LOAD if request.outcome == MISS else 0
        if not asked.mixup.noticed(request, tried):
            self._recorder.marked(index, marks | WRONG_SERVED)
            return False
        detector = asked.mixup.detector
        assert detector is not None, "somebody noticed"
        again = tried < detector.retries
        self._recorder.mark_rows += pack_judged(index, marks | WRONG_DETECTED | (RETRIED if again else 0), again, 1)
        if again:
            self._tries[index] = tried + 1
            anew = request.again()
            asked.restore(anew)
            self._to_come[index] = anew
            self._clock.call_at(now + detector.delay, ARRIVAL, self._comes_again, index)
        else:
            self._fail(replica, request, 0)
        return True

    def _comes_again(self, event: Call) -> None:
        self._submit(self._to_come.pop(event.subject))

    def awaits(self) -> bool:
        """Return whether a request is still to come again that is nowhere inside."""
        return bool(self._to_come)

    def forget(self, request: Request) -> None:
        """Note that a request has ended without an answer."""
        self._wrong.pop(request.index, None)
        self._tries.pop(request.index, None)

    def replaced(self, replica: int) -> None:
        """Note that a replica begins anew, empty."""
        if self._prefixes is not None:
            self._prefixes.forget(replica)

    def close(self) -> None:
        """End those that would have come again, and note when which fault was there."""
        for request in self._to_come.values():
            self._recorder.record_unserved(request, -1, UNFINISHED)
        stopped, events = self._clock.now, self._recorder.events
        for mixup in self._mixups:
            if mixup.never:
                continue
            key = f"faults.{mixup.number}"
            events.append(Event(mixup.begins_s, "fault", f"{key}: {mixup.words}"))
            events.append(Event(mixup.ends_s, "over", f"{key}: requests reach their own adapters again"))
        # They need no event on the clock, which would prolong a run without an end.
        events[:] = sorted((event for event in events if event.time_s <= stopped), key=lambda event: event.time_s)


def answering_base_model(scenario: Scenario) -> bool:
    """Return whether the base model will answer requests."""
    return any(isinstance(fault, BaseModelAnswers) for fault in scenario.faults)


def make_identity(
    world: World, replication: int, clock: Clock, recorder: Recorder, rollouts: Rollouts | None
) -> Identity | None:
    """Return the identity faults of one replication; None where the scenario has none."""
    scenario, lineage = world.scenario, world.lineage
    base_model = len(world.population) if answering_base_model(scenario) else -1
    mixups = make_mixups(world, base_model, replication)
    named = [(number, spec) for number, spec in enumerate(scenario.faults) if isinstance(spec, NamedPrefixes)]
    prefixes = None
    if named:
        assert lineage is not None, "checked by the scenario"
        assert rollouts is not None, "made where there is a lineage"
        swapped = {adapter for wave in lineage.waves if not wave.copies for adapter in wave.adapters}
        prefixes = OldPrefixes(named, swapped, scenario.run.seed, replication)
        told = prefixes.swapped
        rollouts.swapped = lambda replica, adapter, under_way: told(replica, adapter, under_way, clock.now)
    if not mixups and prefixes is None:
        return None
    readdress = Readdress(scenario, world.profile, world.population)
    return Identity(mixups, prefixes, clock, recorder, readdress, base_model)
