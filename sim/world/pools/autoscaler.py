"""An autoscaler: wakes at intervals, reads its replicas, and starts and stops some.

The fleet has a place for each replica that there can be. In an empty place an empty server stands in, as after a crash.
A place is filled in the order of its number; a replica stops as Kubernetes deletes pods: first one that still starts,
then the one that has been ready for the shortest time. It drains: the router no longer sees it, and it is gone when its
last request has left.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import count
from math import inf

from sim.errors import ScenarioError
from sim.policies.autoscaling import Reading, make_policy
from sim.policies.routing import View
from sim.results.recording.recorder import Recorder
from sim.results.records import UNFINISHED
from sim.spec.sections.autoscaling import Autoscale
from sim.spec.units import format_seconds
from sim.traffic.request import Request
from sim.world.clock import CONTROL, Call, Clock
from sim.world.dispatcher import Dispatcher, Extension
from sim.world.pools.cold_starts import ColdStarts, mean_cold_start_s
from sim.world.pools.replica_readings import make_reader
from sim.world.world import World

EMPTY, STARTING, READY, DRAINING = range(4)
"""States of a place."""
PATIENCE_ROUNDS = 20
"""After so many rounds of its timetable without a ready replica, an autoscaler that holds requests gives up."""


@dataclass(slots=True)
class Place:
    """A place for a replica, and the life of the one in it.

    :ivar down: whether that one has crashed and is not up again.
    :ivar began_s, ready_s, drained_s: when its cold start began, when it was ready and when it began to drain.
    :ivar due: the event that ends its cold start.
    """

    index: int
    state: int = EMPTY
    down: bool = False
    began_s: float = 0.0
    ready_s: float = inf
    drained_s: float = inf
    due: Call | None = None


class Autoscaler(Extension):
    """The autoscaler of the replicas of a fleet.

    :param spec: how it decides; ``view``: the router's view, in which replicas come up and go down.
    """

    def __init__(
        self, spec: Autoscale, world: World, replication: int, view: View, clock: Clock, recorder: Recorder
    ) -> None:
        super().__init__()
        fleet = world.scenario.fleet
        self._interval_s = spec.interval
        self.reorders = spec.min == 0  # requests may find no replica at all, and are held
        self._starts = ColdStarts(spec.cold_start, world, replication)
        self._policy = make_policy(spec, mean_cold_start_s(spec.cold_start, world))
        self._view = view
        self._clock = clock
        self._recorder = recorder
        self._read = make_reader(spec.metric, world, clock, recorder)
        self._places = [Place(index) for index in range(fleet.places)]
        for place in self._places[: fleet.replicas]:
            place.state, place.ready_s = READY, 0.0
        self._wanted = fleet.replicas
        self._held: list[Request] = []
        self._held_s = inf  # since when requests are held
        self._patience_s = PATIENCE_ROUNDS * (spec.every + spec.interval)
        self._fleet: Dispatcher

    def start(self, fleet: Dispatcher) -> None:
        self._fleet = fleet
        self._clock.process(self._rounds())

    def receive(self, request: Request) -> bool:
        if self._view.up:
            return True
        if not self._held:
            self._held_s = self._clock.now
        self._held.append(request)
        return False

    def left(self, request: Request, replica: int) -> None:
        place = self._places[replica]
        if place.state == DRAINING and not place.down:
            self._one_left(place)

    def pending(self) -> bool:
        return bool(self._held)

    def close(self) -> dict[str, float]:
        for place in self._places:
            if place.state != EMPTY:
                self._note_life(place, inf)
        for request in self._held:
            self._recorder.record_unserved(request, -1, UNFINISHED)
        return {}

    def crashed(self, replica: int) -> bool:
        place = self._places[replica]
        place.down = place.state in (READY, DRAINING)
        return place.down

    def restarted(self, replica: int) -> bool:
        place = self._places[replica]
        place.down = False
        if place.state != DRAINING:
            return True
        self._retire_if_empty(place)
        return False

    def came_up(self) -> None:
        held, self._held = self._held, []
        for request in held:
            self._fleet.submit(request)

    # Decisions

    def _rounds(self) -> Iterator[Call]:
        for number in count(1):  # a product, not a running sum: the n-th decision is at exactly n intervals
            yield self._clock.until(number * self._interval_s)
            for place in self._places:
                if place.state == DRAINING:
                    self._retire_if_empty(place)
            self._decide()
            if self._held and self._clock.now - self._held_s > self._patience_s:
                self._give_up()

    def _give_up(self) -> None:
        """End a run in which replicas are stopped before they are ready, so that it would go on forever."""
        if any(place.state in (STARTING, READY) for place in self._places):
            return
        raise ScenarioError(
            "requests wait for a replica, and none gets ready",
            key="fleet.autoscale",
            got=f"{len(self._held):,} requests held for up to {format_seconds(self._clock.now - self._held_s)}",
            hint="ask for replicas for longer than a cold start takes, or raise min",
        )

    def _decide(self) -> None:
        ready = [place.index for place in self._places if place.state == READY and not place.down]
        values = self._read(self._fleet.servers, ready)
        reading = Reading(self._clock.now, self._wanted, values, len(self._held))
        self._wanted = self._policy.desired(reading)
        self._fill_or_stop()

    def _fill_or_stop(self) -> None:
        """Start or stop replicas until there are as many as wanted, as far as places are free."""
        alive = [place for place in self._places if place.state in (STARTING, READY)]
        for place in self._places:
            if len(alive) >= self._wanted:
                break
            if place.state == EMPTY:
                self._clock.process(self._start(place))
                alive.append(place)
        for _ in range(len(alive) - self._wanted):
            stoppable = [place for place in alive if not place.down]
            if not stoppable:
                break  # a replica that is down stops once it is up again
            last = max(
                stoppable, key=lambda place: (place.state == STARTING, place.ready_s, place.began_s, place.index)
            )
            alive.remove(last)
            self._stop(last)

    def _start(self, place: Place) -> Iterator[Call]:
        now = self._clock.now
        place.state, place.began_s, place.ready_s, place.drained_s = STARTING, now, inf, inf
        seconds = self._starts.next_s()
        if seconds > 0:
            place.due = due = self._clock.until(now + seconds)
            yield due
            if place.due is not due:
                return  # its start was called off
        place.state, place.ready_s, place.due = READY, self._clock.now, None
        self._fleet.replace(place.index, standing_in=False)
        self._view.comes_up(place.index)
        self.came_up()

    def _stop(self, place: Place) -> None:
        if place.state == STARTING:
            place.due = None
            self._empty(place)
            return
        place.state, place.drained_s = DRAINING, self._clock.now
        self._view.goes_down(place.index)
        self._one_left(place)

    def _one_left(self, place: Place) -> None:
        """Let a replica that drains go if it is empty, but not in the middle of a step's end or of a decision."""
        if self._fleet.inside[place.index] == 0:
            self._clock.call_at(self._clock.now, CONTROL, lambda event: self._retire_if_empty(place))

    def _retire_if_empty(self, place: Place) -> None:
        if place.state != DRAINING or place.down or self._fleet.inside[place.index]:
            return
        left = self._fleet.servers[place.index].die()
        assert not left, "nothing is lost in a drain"
        self._fleet.replace(place.index, standing_in=True)
        self._empty(place)
        self._fill_or_stop()  # one may have waited for this place

    def _empty(self, place: Place) -> None:
        self._note_life(place, self._clock.now)
        place.state = EMPTY

    def _note_life(self, place: Place, gone_s: float) -> None:
        self._recorder.lives.append((place.index, place.began_s, place.ready_s, place.drained_s, gone_s))


def make_autoscaler(world: World, replication: int, view: View, clock: Clock, recorder: Recorder) -> Autoscaler | None:
    """Return the autoscaler of one replication, if there is one."""
    spec = world.scenario.fleet.autoscale
    return None if spec is None else Autoscaler(spec, world, replication, view, clock, recorder)
