"""The fleet: arrivals come in, a router sends each to a replica, and all of it is recorded."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from sim.policies.router import Router
from sim.results.records import REFUSED, UNFINISHED, Recorder, Recording
from sim.traffic.generate import Chunk
from sim.traffic.request import Request
from sim.world.clock import ARRIVAL, CONTROL, Call, Clock
from sim.world.server import BatchServer, Server

Floats = NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Times:
    """Turn the luck of a chunk's requests into seconds; each gives an array of the chunk's length."""

    load: Callable[[Chunk], Floats]
    host_load: Callable[[Chunk], Floats]
    service: Callable[[Chunk], Floats]


@dataclass(frozen=True, slots=True)
class Plan:
    """How long to run and what to measure.

    :ivar total: requests that will come, or None where only ``end_s`` is known.
    :ivar end_s: stop here, or None: run until the last request has left.
    :ivar warmup: share of requests (or of ``end_s``) before the first section.
    """

    total: int | None
    end_s: float | None
    warmup: float


class Fleet:
    """All replicas of one simulated world.

    :param token_limit: requests with more prompt and output tokens than this are refused; None: no limit.
    """

    def __init__(
        self,
        clock: Clock,
        recorder: Recorder,
        router: Router,
        times: Times,
        plan: Plan,
        token_limit: int | None,
    ) -> None:
        self.clock = clock
        self.recorder = recorder
        self.servers: list[Server] = []
        self.inside: list[int] = []
        self._router = router
        self._times = times
        self._plan = plan
        self._token_limit = token_limit
        self._chunks: Iterator[Chunk] = iter(())
        self._rows: Iterator[tuple[float, int, int, int, float, float, float]] = iter(())
        self._next: tuple[float, int, int, int, float, float, float] | None = None
        self._index = 0
        self._marks = self._section_starts()

    def add(self, make: Callable[[int, list[int]], Server]) -> None:
        """Add a replica; ``make`` gets its index and the list in which it counts the requests inside."""
        self.inside.append(0)
        self.servers.append(make(len(self.servers), self.inside))

    def run(self, chunks: Iterator[Chunk]) -> Recording:
        """Simulate all of it and return the recording."""
        self._chunks = chunks
        plan, clock = self._plan, self.clock
        if plan.total is None:
            assert plan.end_s is not None, "a run has a count or a duration"
            for mark in np.linspace(plan.warmup * plan.end_s, plan.end_s, self.recorder.sections + 1):
                self.recorder.mark(float(mark))
        if self._load_chunk():
            assert self._next is not None, "a chunk has a request"
            clock.call_at(self._next[0], ARRIVAL, self._arrivals)
        if plan.end_s is None:
            clock.run()
        else:
            clock.call_at(plan.end_s, CONTROL, lambda event: None)
            clock.run(until=plan.end_s)
        return self._close()

    def _section_starts(self) -> list[int]:
        """Return the index of the request that opens each section; empty where sections go by time."""
        total = self._plan.total
        if total is None:
            return []
        first = int(total * self._plan.warmup)
        return [first + (total - first) * i // self.recorder.sections for i in range(self.recorder.sections)]

    def _load_chunk(self) -> bool:
        chunk = next(self._chunks, None)
        if chunk is None:
            return False
        marks = self._marks
        while marks and marks[0] < chunk.first + len(chunk):
            self.recorder.mark(float(chunk.arrival_s[marks.pop(0) - chunk.first]))
        if self._plan.total is not None and chunk.first + len(chunk) == self._plan.total:
            end = self._plan.end_s
            self.recorder.mark(float(chunk.arrival_s[-1]) if end is None else end)
        self.recorder.flush()
        times = self._times
        self._rows = zip(
            chunk.arrival_s.tolist(), chunk.adapter.tolist(), chunk.prompt_tokens.tolist(),
            chunk.output_tokens.tolist(), times.load(chunk).tolist(), times.host_load(chunk).tolist(),
            times.service(chunk).tolist(), strict=True,
        )  # fmt: skip
        self._next = next(self._rows)
        return True

    def _arrivals(self, event: Call) -> None:
        """Let in all requests of this instant, and come again at the next."""
        now = self.clock._now
        row = self._next
        index, limit, servers, rows = self._index, self._token_limit, self.servers, self._rows
        only = servers[0] if len(servers) == 1 else None
        while row is not None and row[0] <= now:
            request = Request(index, *row)
            index += 1
            if limit is not None and request.prompt_tokens + request.output_tokens > limit:
                self.recorder.turned_away(request, -1, REFUSED)
            elif only is not None:
                only.arrive(request)
            else:
                servers[self._router.choose(self.inside, request.adapter)].arrive(request)
            row = next(rows, None)
            if row is None and self._load_chunk():
                row, rows = self._next, self._rows
        self._index, self._next = index, row
        if row is not None:
            self.clock.schedule_call(row[0], ARRIVAL, event)

    def _close(self) -> Recording:
        stopped = self.clock.now
        for server in self.servers:
            for request in server.close():
                self.recorder.turned_away(request, server.index, UNFINISHED)
        while len(self.recorder.bounds) <= self.recorder.sections:  # fewer requests came than sections
            self.recorder.mark(stopped)
        area = sum(server.inside_area for server in self.servers)
        recording = self.recorder.close(float(stopped), area)
        recording.evictions = sum(server.cache.evictions for server in self.servers)
        recording.in_use_peak = max(server.cache.in_use_peak for server in self.servers)
        batched = [server for server in self.servers if isinstance(server, BatchServer)]
        if batched:
            recording.kv_peak_share = max(_kv_peak_share(server) for server in batched)
        return recording


def _kv_peak_share(server: BatchServer) -> float:
    kv = server.scheduler.kv
    return kv.peak_tokens / (kv.total * kv.size)
