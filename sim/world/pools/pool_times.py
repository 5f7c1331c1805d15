"""Load times and token limits of requests, where they depend on the pool that a request goes to."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from sim.results.records import REFUSED, Recorder
from sim.traffic.adapters import Population
from sim.traffic.generate import Chunk
from sim.traffic.request import BASE_MODEL, Request
from sim.world.fleet_ports import FleetHooks, OpenFleet
from sim.world.routing.in_flight import InFlight
from sim.world.times import RequestTimes, request_times
from sim.world.world import ReplicaPool, World

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class TokenLimits:
    """The longest requests that a pool serves.

    :ivar both: (adapters + 1,) most tokens of prompt and answer, by adapter and last for the base model.
    :ivar prompt: most tokens of the prompt alone.
    """

    both: Ints
    prompt: int


class PoolTimes:
    """The seconds that requests carry, by pool.

    Before a request is routed, it has those of the first pool that takes it.

    :ivar differ: whether any request may go to pools with different times or limits.
    """

    def __init__(self, pools: Sequence[ReplicaPool], limits: Sequence[TokenLimits]) -> None:
        self._limits = limits
        self._chunk: Chunk | None = None
        self._kinds: list[RequestTimes] = []
        self._known: list[tuple[tuple[object, ...], Population]] = []
        self._columns: list[tuple[list[float], ...]] = []
        self._kind_of = [self._kind(pool.world) for pool in pools]
        count = len(limits[0].both)
        takes = np.array([_takes(pool, count) for pool in pools])
        self._first: Ints = takes.argmax(axis=0)
        own = np.array(self._kind_of)[:, None]
        other_times = (takes & (own != own[self._first, 0])).any()
        both = np.array([limit.both for limit in limits])
        self.differ = bool(
            other_times
            or (takes & (both != both[self._first, np.arange(count)])).any()
            or len({limit.prompt for limit in limits}) > 1
        )
        self.limits = TokenLimits(np.where(takes, both, 0).max(axis=0), max(limit.prompt for limit in limits))

    def of_requests(self) -> RequestTimes:
        """Return the functions that turn the uniform draws of a chunk into seconds."""
        return RequestTimes(self._load, self._host_load, self._service)

    def fits(self, request: Request, pool: int) -> bool:
        """Return whether a pool can serve a request of this length."""
        limit = self._limits[pool]
        tokens = request.prompt_tokens + request.output_tokens
        return tokens <= int(limit.both[request.adapter]) and request.prompt_tokens <= limit.prompt

    def set_for(self, request: Request, pool: int) -> None:
        """Give a request of the last chunk the times of the pool that it goes to."""
        kind = self._kind_of[pool]
        if kind == self._kind_of[self._first[request.adapter]]:
            return
        assert self._chunk is not None, "requests come in chunks"
        if not self._columns:
            chunk = self._chunk
            for each in self._kinds:
                columns = (each.load(chunk), each.host_load(chunk), each.service(chunk))
                self._columns.append(tuple(column.tolist() for column in columns))
        place, (load, host, service) = request.index - self._chunk.first, self._columns[kind]
        request.load_s, request.host_load_s, request.service_s = load[place], host[place], service[place]

    def _kind(self, world: World) -> int:
        """Return the number of the times that a pool has, the same for pools with the same."""
        scenario, profile = world.scenario, world.profile
        known = (
            scenario.storage.load,
            scenario.storage.host_load,
            scenario.fleet.service,
            scenario.has_host_tier,
            scenario.fleet.fully_sharded_loras,
            None if profile is None else (profile.load, profile.tensor_parallel),
        )
        for number, (other, population) in enumerate(self._known):
            if other == known and _same_sizes(population, world.population):
                return number
        self._known.append((known, world.population))
        self._kinds.append(request_times(scenario, profile, world.population))
        return len(self._known) - 1

    def _load(self, chunk: Chunk) -> Floats:
        self._chunk, self._columns = chunk, []
        return self._chosen(chunk, [each.load for each in self._kinds])

    def _host_load(self, chunk: Chunk) -> Floats:
        return self._chosen(chunk, [each.host_load for each in self._kinds])

    def _service(self, chunk: Chunk) -> Floats:
        return self._chosen(chunk, [each.service for each in self._kinds])

    def _chosen(self, chunk: Chunk, of_kinds: Sequence[Callable[[Chunk], Floats]]) -> Floats:
        """Return the seconds of each request in the first pool that takes it."""
        if len(of_kinds) == 1:
            return of_kinds[0](chunk)
        adapter = np.where(chunk.adapter == BASE_MODEL, len(self._first) - 1, chunk.adapter)
        kind = np.asarray(self._kind_of)[self._first[adapter]]
        seconds = of_kinds[0](chunk)
        for number, each in enumerate(of_kinds[1:], 1):
            here = kind == number
            if here.any():
                seconds = np.where(here, each(chunk), seconds)
        return seconds


def _same_sizes(one: Population, other: Population) -> bool:
    return one is other or all(
        np.array_equal(getattr(one, name), getattr(other, name)) for name in ("size_bytes", "rank", "tensors")
    )


def _takes(pool: ReplicaPool, count: int) -> NDArray[np.bool_]:
    return np.ones(count, dtype=np.bool_) if pool.world.takes is None else pool.world.takes


class PoolHooks(FleetHooks):
    """Gives each request the times of the pool that it goes to, and refuses it there if it is too long."""

    direct = False

    def __init__(self, pools: Sequence[ReplicaPool], times: PoolTimes, recorder: Recorder, in_flight: InFlight) -> None:
        self._pool_of = [number for number, pool in enumerate(pools) for _ in pool.indices]
        self._times = times
        self._recorder = recorder
        self._in_flight = in_flight
        self._fleet: OpenFleet

    def start(self, fleet: OpenFleet) -> None:
        self._fleet = fleet

    def send(self, request: Request) -> None:
        fleet, times = self._fleet, self._times
        replica = fleet.choose(request.adapter, request)
        pool = self._pool_of[replica]
        if not times.fits(request, pool):
            self._recorder.record_unserved(request, -1, REFUSED)
            return
        times.set_for(request, pool)
        if self._in_flight.counting:
            self._in_flight.entered(replica, request)
        fleet.servers[replica].arrive(request)
