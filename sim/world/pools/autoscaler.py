"""An autoscaler: wakes at intervals, reads its replicas, and starts and stops some.

The fleet has a place for each replica that there can be. In an empty place an empty server stands in, as after a crash.
A place is filled in the order of its number; a replica stops as Kubernetes deletes pods: first one that still starts,
then the one that has been ready for the shortest time. It drains: the router no longer sees it, and it is gone when its
last request has left.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import count
from math import inf

import numpy as np

from sim.errors import ScenarioError
from sim.policies.adapter_cache import RESIDENT
from sim.policies.autoscaling import Reading, make_policy
from sim.policies.routing import View
from sim.results.recording.recorder import Recorder
from sim.results.records import UNFINISHED
from sim.rng import stream
from sim.spec.sections.control_plane import Autoscale, ColdStart
from sim.spec.sections.laws import FixedTime, TimeLaw
from sim.spec.units import format_seconds
from sim.traffic.request import Request
from sim.world.clock import CONTROL, Call, Clock
from sim.world.dispatcher import Dispatcher, Extension
from sim.world.replica.server import Server
from sim.world.times import tier_times
from sim.world.world import Pool

# What an autoscaler reads of one replica: the gauges that engines export, from the simulated server itself.

Gauge = Callable[[Server], float]
Reader = Callable[[Sequence[Server], Sequence[int]], list[float]]
"""Returns the metric of the servers with some indices."""


def in_flight(server: Server) -> float:
    """Return the requests inside: ``vllm:num_requests_running`` and ``vllm:num_requests_waiting`` together."""
    return float(len(server.all_requests()))


def waiting(server: Server) -> float:
    """Return the requests that are not in the batch: ``vllm:num_requests_waiting``."""
    return float(len(server.all_requests()) - len(server.running()))


def adapter_waiting(server: Server) -> float:
    """Return the waiting requests whose adapter is not in GPU memory."""
    state = server.cache.state
    running = {request.index for request in server.running()}

    def lacks(request: Request) -> bool:
        base = request.adapter >= len(state)
        return not base and request.index not in running and state[request.adapter] != RESIDENT

    return float(sum(map(lacks, server.all_requests())))


def kv_usage(kv_tokens: int) -> Gauge:
    """Return a gauge of the share of the KV cache that running requests hold; shared blocks count for each of them.

    :param kv_tokens: of one replica.
    """

    def gauge(server: Server) -> float:
        tokens = 0
        for request in server.running():
            decoding = request.last_step >= 0
            tokens += request.prompt_tokens + server.tokens_out(request) if decoding else request.context
        return min(1.0, tokens / kv_tokens)

    return gauge


class GpuLoad:
    """The share of the time since the last reading in which steps ran. Read it of all replicas at the same times."""

    def __init__(self, clock: Clock, recorder: Recorder, replicas: int) -> None:
        self._clock = clock
        self._recorder = recorder
        self._read_s = 0.0
        self._busy_s = [0.0] * replicas  # up to the last reading

    def read(self, servers: Sequence[Server], indices: Sequence[int]) -> list[float]:
        """Return the load of the replicas with these indices.

        One that was ready only for a part of the time has the load of that part, spread over all of it.
        """
        now, ended = self._clock.now, self._recorder.busy_so_far()
        busy_s = [float(ended[server.index]) + server.busy_s() for server in servers[: len(self._busy_s)]]
        span_s = now - self._read_s
        loads = [min(1.0, (busy_s[index] - self._busy_s[index]) / span_s) for index in indices]
        self._read_s, self._busy_s = now, busy_s
        return loads


_GAUGES: dict[str, Gauge] = {"in_flight": in_flight, "waiting": waiting, "adapter_waiting": adapter_waiting}


def make_reader(metric: str, pool: Pool, clock: Clock, recorder: Recorder) -> Reader:
    """Return the reader of the metric that the autoscaler of a pool goes by."""
    if metric == "gpu_load":
        return GpuLoad(clock, recorder, pool.replicas).read
    gauge = kv_usage(pool.kv_tokens or 1) if metric == "kv_usage" else _GAUGES[metric]
    return lambda servers, indices: [gauge(servers[index]) for index in indices]


ENGINE_START_S = 34.0
"""From loaded weights to a ready engine, where the scenario gives no law: vLLM's issue 20264."""


class ColdStarts:
    """The cold starts of one replication. The n-th replica that starts has the same draws in every design."""

    def __init__(self, spec: ColdStart, pool: Pool, replication: int) -> None:
        self._laws = cold_start_laws(spec, pool)
        self._warm_up = _WarmUp(pool)
        self._seed, self._replication = pool.scenario.run.seed, replication
        self._count = 0

    def next_s(self) -> float:
        """Return the seconds of the next cold start."""
        rng = stream(self._seed, self._replication, "cold-start", self._count)
        self._count += 1
        uniform = rng.random(len(self._laws))
        seconds = sum(float(law.ppf(uniform[i : i + 1])[0]) for i, law in enumerate(self._laws))
        return seconds + self._warm_up.seconds(rng)


def mean_cold_start_s(spec: ColdStart, pool: Pool) -> float:
    """Return the mean seconds of a cold start, the loads of the adapters on the warm-up list included."""
    return sum(law.mean() for law in cold_start_laws(spec, pool)) + _WarmUp(pool).seconds(None)


def cold_start_laws(spec: ColdStart, pool: Pool) -> list[TimeLaw]:
    """Return the laws of the parts of a cold start: provisioning, image, weights, engine."""
    profile, fixed = pool.profile, pool.scenario.fleet.engine == "fixed"
    read_s = 0.0 if fixed or profile is None else profile.memory.weights_bytes / spec.weights_per_s
    return [
        spec.provision or _always(0.0),
        spec.image or _always(0.0),
        spec.weights or _always(read_s),
        spec.engine or _always(0.0 if fixed else ENGINE_START_S),
    ]


def _always(seconds: float) -> TimeLaw:
    return FixedTime.model_construct(law="fixed", value=seconds)


class _WarmUp:
    """The loads of pinned adapters and of the warm-up list, before a new replica serves."""

    def __init__(self, pool: Pool) -> None:
        scenario, host = pool.scenario, pool.scenario.cache.host
        tiers = tier_times(scenario, pool.profile, pool.population)
        in_host = host is not None and host.fill == "start"
        self._times = tiers[1] if in_host else tiers[0]
        self._loaders = scenario.storage.host_loaders if in_host else scenario.storage.loaders
        self._adapters = np.array([*pool.pinned, *pool.warmed_up], dtype=np.int64)

    def seconds(self, rng: np.random.Generator | None) -> float:
        """Return how long they take; without a generator, about their mean."""
        count = len(self._adapters)
        if count == 0:
            return 0.0
        uniform = np.full(count, 0.5) if rng is None else rng.random(count)
        return float(self._times.seconds(self._adapters, uniform).sum()) / min(self._loaders, count)


EMPTY, STARTING, READY, DRAINING = range(4)
"""States of a place."""
PATIENCE_ROUNDS = 20
"""After so many rounds of its timetable without a ready replica, an autoscaler that holds requests gives up."""


@dataclass(slots=True)
class Place:
    """A place for a replica, and the life of the one in it.

    :ivar down: whether that one has crashed and is not up again.
    :ivar began_s, ready_s, drained_s: when its cold start began, when it was ready and when it began to drain.
    :ivar starts: cold starts that began or were called off.
    """

    index: int
    state: int = EMPTY
    down: bool = False
    began_s: float = 0.0
    ready_s: float = inf
    drained_s: float = inf
    starts: int = 0


class Autoscaler(Extension):
    """The autoscaler of the replicas of a fleet.

    :param spec: how it decides; ``view``: the router's view, in which replicas come up and go down.
    """

    def __init__(
        self, spec: Autoscale, pool: Pool, replication: int, view: View, clock: Clock, recorder: Recorder
    ) -> None:
        super().__init__()
        self._interval_s = spec.interval
        self.reorders = spec.min == 0  # requests may find no replica at all, and are held
        self._starts = ColdStarts(spec.cold_start, pool, replication)
        self._policy = make_policy(spec, mean_cold_start_s(spec.cold_start, pool))
        self._view = view
        self._clock = clock
        self._recorder = recorder
        self._read = make_reader(spec.metric, pool, clock, recorder)
        self._places = [Place(index) for index in pool.indices]
        for place in self._places[: len(pool.serving)]:
            place.state, place.ready_s = READY, 0.0
        self._wanted = len(pool.serving)
        self._held: list[Request] = []
        self._held_s = inf  # since when requests are held
        self._patience_s = PATIENCE_ROUNDS * (spec.every + spec.interval)

    def start(self, fleet: Dispatcher) -> None:
        super().start(fleet)
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
            ready = [place.index for place in self._places if place.state == READY and not place.down]
            values = self._read(self._fleet.servers, ready)
            reading = Reading(self._clock.now, self._wanted, values, len(self._held))
            self._wanted = self._policy.desired(reading)
            self._fill_or_stop()
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

    def _fill_or_stop(self) -> None:
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
            place.starts += 1
            own = place.starts
            yield self._clock.until(now + seconds)
            if place.starts != own:
                return  # its start was called off
        place.state, place.ready_s = READY, self._clock.now
        self._fleet.replace(place.index, standing_in=False)
        self._view.comes_up(place.index)
        self.came_up()

    def _stop(self, place: Place) -> None:
        if place.state == STARTING:
            place.starts += 1
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


def make_autoscaler(pool: Pool, replication: int, view: View, clock: Clock, recorder: Recorder) -> Autoscaler | None:
    """Return the autoscaler of one replication, if there is one."""
    spec = pool.scenario.fleet.autoscale
    return None if spec is None else Autoscaler(spec, pool, replication, view, clock, recorder)
