"""Load times and token limits of requests, where they depend on the pool that a request goes to."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np

from sim.arrays import Floats, Ints
from sim.results.recording.recorder import Recorder
from sim.results.records import REFUSED
from sim.traffic.adapters import Population, split_of
from sim.traffic.generate import Chunk
from sim.traffic.request import BASE_MODEL, Request
from sim.world.dispatcher import Extension
from sim.world.fleet import NO_LIMIT
from sim.world.times import RequestTimes, request_times
from sim.world.world import Pool


@dataclass(frozen=True, slots=True)
class TokenLimits:
    """The longest requests that a pool serves.

    :ivar both: (adapters + 1,) most tokens of prompt and answer, by adapter and last for the base model.
    :ivar prompt: most tokens of the prompt alone.
    """

    both: Ints
    prompt: int


def token_limits(pool: Pool) -> TokenLimits:
    """Return the most tokens of a request that replicas serve."""
    fleet, tokens = pool.scenario.fleet, pool.kv_tokens
    longest = fleet.max_model_len or NO_LIMIT
    limits = np.full(len(pool.population) + 1, NO_LIMIT)
    if tokens is not None:
        limits[:-1] = tokens - fleet.block_size * max(pool.adapter_blocks, default=0)
        limits[-1] = tokens
        limits -= fleet.kv_check == "peak"  # the peak must stay below
    np.minimum(limits, longest, out=limits)
    return TokenLimits(limits, NO_LIMIT if fleet.chunked_prefill else pool.batched_tokens)


class PoolTimes:
    """The seconds that requests carry, by pool.

    Before a request is routed, it has those of the first pool that takes it.

    :param steered: whether rollouts or faults send requests to other adapters than those that they arrive for.
    :ivar differ: whether any request may go to pools with different times or limits.
    :ivar keeps: whether requests may be sent again long after they arrived, or to another adapter, so that all chunks
        are kept.
    """

    def __init__(self, pools: Sequence[Pool], *, steered: bool = False) -> None:
        limits = [token_limits(pool) for pool in pools]
        self._limits = [(limit.both.tolist(), limit.prompt) for limit in limits]
        self.keeps = False
        self._chunks: list[Chunk] = []  # that of the last requests comes last
        self._kinds: list[RequestTimes] = []
        self._known: list[tuple[tuple[object, ...], Population]] = []
        self._columns: list[list[tuple[list[float], ...]]] = []  # by chunk and kind of times
        self._kind_of = [self._kind(pool) for pool in pools]
        count = len(limits[0].both)
        takes = np.array([pool.takes for pool in pools])
        self._first: Ints = takes.argmax(axis=0)
        own = np.array(self._kind_of)[:, None]
        other_times = (takes & (own != own[self._first, 0])).any()
        both = np.array([limit.both for limit in limits])
        self.differ = bool(
            other_times
            or (takes & (both != both[self._first, np.arange(count)])).any()
            or len({limit.prompt for limit in limits}) > 1
            or (steered and (len(self._kinds) > 1 or (both != both[0]).any()))
        )
        self.limits = TokenLimits(np.where(takes, both, 0).max(axis=0), max(limit.prompt for limit in limits))

    def of_requests(self) -> RequestTimes:
        """Return the functions that turn the uniform draws of a chunk into seconds."""
        return RequestTimes(self._load, self._host_load, self._service)

    def fits(self, request: Request, pool: int, output_tokens: int) -> bool:
        """Return whether a pool can serve a request of this length."""
        both, prompt = self._limits[pool]
        return request.prompt_tokens + output_tokens <= both[request.adapter] and request.prompt_tokens <= prompt

    def set_for(self, request: Request, pool: int) -> None:
        """Give a request the times of the pool that it goes to, by its own draws; without ``keeps``, one of the last
        chunk that is for the adapter it arrived for."""
        kind = self._kind_of[pool]
        if kind == self._kind_of[self._first[request.adapter]] and not self.keeps:
            return
        at = -1  # mostly the last chunk
        if request.index < self._chunks[at].first:
            at = bisect_right(self._chunks, request.index, key=lambda chunk: chunk.first) - 1
        chunk, known = self._chunks[at], self._columns[at]
        place, base_model = request.index - chunk.first, len(self._first) - 1
        if request.adapter not in (base_model, int(chunk.adapter[place])):
            times, drawn = self._kinds[kind], _sent_to(request.adapter, chunk, place)
            request.load_s, request.host_load_s = float(times.load(drawn)[0]), float(times.host_load(drawn)[0])
            request.service_s = float(times.service(drawn)[0])
            return
        if not known:
            for each in self._kinds:
                columns = (each.load(chunk), each.host_load(chunk), each.service(chunk))
                known.append(tuple(column.tolist() for column in columns))
        load, host, service = known[kind]
        request.load_s, request.host_load_s, request.service_s = load[place], host[place], service[place]

    def _kind(self, pool: Pool) -> int:
        """Return the number of the times that a pool has, the same for pools with the same."""
        scenario, profile = pool.scenario, pool.profile
        known = (
            scenario.storage.load,
            scenario.storage.host_load,
            scenario.fleet.service,
            scenario.has_host_tier,
            None if profile is None else (profile.load, split_of(scenario, profile)),
        )
        for number, (other, population) in enumerate(self._known):
            if other == known and _same_sizes(population, pool.population):
                return number
        self._known.append((known, pool.population))
        self._kinds.append(request_times(scenario, profile, pool.population))
        return len(self._known) - 1

    def _load(self, chunk: Chunk) -> Floats:
        if not self.keeps:
            self._chunks, self._columns = [], []
        self._chunks.append(chunk)
        self._columns.append([])
        return self._chosen(chunk, [each.load for each in self._kinds])

    def _host_load(self, chunk: Chunk) -> Floats:
        return self._chosen(chunk, [each.host_load for each in self._kinds])

    def _service(self, chunk: Chunk) -> Floats:
        return self._chosen(chunk, [each.service for each in self._kinds])

    def _chosen(self, chunk: Chunk, of_kinds: Sequence[Callable[[Chunk], Floats]]) -> Floats:
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


def _sent_to(adapter: int, chunk: Chunk, place: int) -> Chunk:
    """Return one request of a chunk, with its draws, as if it had arrived for this adapter."""
    one = slice(place, place + 1)
    return replace(
        chunk,
        first=chunk.first + place,
        arrival_s=chunk.arrival_s[one],
        adapter=np.array([adapter]),
        load_uniform=chunk.load_uniform[one],
        host_load_uniform=chunk.host_load_uniform[one],
        service_uniform=chunk.service_uniform[one],
    )


def _same_sizes(one: Population, other: Population) -> bool:
    return one is other or all(
        np.array_equal(getattr(one, name), getattr(other, name)) for name in ("size_bytes", "rank", "tensors")
    )


class PoolLimits(Extension):
    """Gives each request the times of the pool that it goes to, and refuses it there if it is too long."""

    def __init__(self, pools: Sequence[Pool], times: PoolTimes, recorder: Recorder) -> None:
        super().__init__()
        self._pool_of = [number for number, pool in enumerate(pools) for _ in pool.indices]
        self._times = times
        self._recorder = recorder

    def accept(self, request: Request, replica: int) -> bool:
        pool = self._pool_of[replica]
        if not self._times.fits(request, pool, request.output_tokens):
            self._recorder.record_unserved(request, -1, REFUSED)
            return False
        self._times.set_for(request, pool)
        return True
