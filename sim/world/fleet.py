"""The fleet: arrivals come in, a router sends each to a replica, and all of it is recorded."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from itertools import count
from math import inf

import numpy as np
from numpy.typing import NDArray

from sim.errors import LoraplanError, ScenarioError
from sim.policies.routing import Choosing
from sim.results.records import REFUSED, UNFINISHED, Recorder, Recording
from sim.spec.units import format_seconds
from sim.traffic.generate import Chunk
from sim.traffic.request import Request
from sim.world.changes import Changes
from sim.world.clock import ARRIVAL, CONTROL, Call, Clock
from sim.world.replica.continuous import BatchServer
from sim.world.replica.front_end_server import FrontedServer
from sim.world.replica.server import Server
from sim.world.routing.in_flight import Inside
from sim.world.times import Times

Floats = NDArray[np.float64]


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


@dataclass(slots=True)
class Gone:
    """What is left of replicas that died: what a recording sums up over all."""

    inside_area: float = 0.0
    evictions: int = 0
    in_use_peak: int = 0
    kv_peak_share: float = 0.0

    def add(self, dead: Server) -> None:
        self.inside_area += dead.inside_area
        self.evictions += dead.cache.evictions
        self.in_use_peak = max(self.in_use_peak, dead.cache.in_use_peak)
        if isinstance(dead, BatchServer):
            self.kv_peak_share = max(self.kv_peak_share, _kv_peak_share(dead))


class Fleet:
    """All replicas of one simulated world.

    :param limits: tokens of prompt and output together (one number, or one for each adapter), and of the prompt, with
        more of which a request is refused; None: no limit.
    :ivar beside: like ``inside``, of the replicas that stand behind those the router's view tells of (full models).
    :ivar look: makes up for a reading of the router's view that was left out.
    :ivar next_key: gives a request the last place in the queues, where some may come again or were held.
    :param changes: rollouts and faults, through which every request then goes; None: nothing changes.
    :param inside: counts requests inside by adapter, where the router wants to know; None: nobody does.
    """

    def __init__(
        self,
        clock: Clock,
        recorder: Recorder,
        router: Choosing,
        times: Times,
        plan: Plan,
        limits: tuple[int | NDArray[np.int64] | None, int | None],
        changes: Changes | None = None,
        inside: Inside | None = None,
    ) -> None:
        self.clock = clock
        self.recorder = recorder
        self.servers: list[Server] = []
        self.inside: list[int] = []
        self.beside: list[int] = []
        self._only: Server | None = None  # the one replica, where there is no choice
        self._router = router
        self._times = times
        self._plan = plan
        self._token_limit, self._prompt_limit = limits
        self._chunks: Iterator[Chunk] = iter(())
        self._requests: Iterator[Request] = iter(())
        self._next: Request | None = None
        self._too_long: set[int] = set()
        self._marks = self._section_starts()
        self._changes = changes
        self._inside_by_adapter = inside
        self._by_adapter = None if changes is None else inside
        self._counts: list[dict[int, int]] | None = None  # where requests go straight to a replica
        self._sessions: list[int] = []  # of the requests of this chunk
        self._chunk_first = 0
        self._make: Callable[[int, list[int]], Server] | None = None
        self._gone = Gone()
        self.next_key: Callable[[], int] = count().__next__
        self.look: Callable[[], None] = lambda: None

    def open(self, replicas: int, make: Callable[[int, list[int]], Server]) -> None:
        """Let the replicas begin; ``make`` gets an index and the list in which a replica counts the requests inside."""
        self._make = make
        self.inside.extend([0] * replicas)
        for index in range(replicas):
            self.servers.append(make(index, self.inside))
        self._only = self.servers[0] if replicas == 1 and self._changes is None else None

    def open_more(self, replicas: int, make: Callable[[int, list[int]], Server]) -> None:
        """Let more replicas begin behind the others, which count their requests in a list of their own."""
        first = len(self.servers)
        self.beside.extend([0] * (first + replicas))
        self.servers += [make(first + place, self.beside) for place in range(replicas)]
        self._only = None

    def replace(self, replica: int) -> Server:
        """Put a new, empty replica in the place of one that died; return the dead one."""
        assert self._make is not None, "the fleet is open"
        dead = self.servers[replica]
        self._gone.add(dead)
        self.servers[replica] = self._make(replica, self.inside)
        return dead

    def count_inside(self) -> list[dict[int, int]]:
        """Return, by replica, requests inside by adapter, kept current from the first call on.

        Few fleets come to need it, and counting takes a twentieth of the time of a request.
        """
        counted = self._inside_by_adapter
        assert counted is not None, "the router reads who is inside"
        if self._by_adapter is None:
            self._by_adapter, self._counts = counted, counted.counts
            for server in self.servers:
                counted.begin(server.index, server.everyone())
                server.tell(counted.ends_on(server.index), partial(counted.left, server.index))
        return counted.counts

    def next_s(self) -> float:
        """Return when the next request arrives; infinite: none does."""
        return inf if self._next is None else self._next.arrival_s

    def submit(self, request: Request) -> None:
        """Send a request on its way again, that came before."""
        self.look()
        self._send(request)

    def _send(self, request: Request) -> None:
        """Send a request on its way where things change: which adapter it reaches, on which replica, and whether."""
        changes = self._changes
        assert changes is not None, "otherwise requests go straight to a replica"
        name = request.adapter
        if changes.resending and changes.parks(request):
            return
        if changes.reordering:
            request.key = self.next_key()
        if changes.steering:
            name = changes.steer(request)
        servers = self.servers
        replica = self._router.choose(name, request.index) if len(servers) > 1 else 0
        if not (changes.guarding or changes.gates.count) or changes.lets_in(request, replica):
            if self._by_adapter is not None:
                self._by_adapter.entered(replica, request)
            servers[replica].arrive(request)

    def run(self, chunks: Iterator[Chunk]) -> Recording:
        """Simulate all of it and return the recording."""
        self._chunks = chunks
        plan, clock = self._plan, self.clock
        if plan.total is None:
            assert plan.end_s is not None, "a run has a count or a duration"
            for mark in np.linspace(plan.warmup * plan.end_s, plan.end_s, self.recorder.sections + 1):
                self.recorder.mark(float(mark))
        if not self._load_chunk():
            raise ScenarioError(
                "no request arrives in this duration", key="workload.duration", got=format_seconds(plan.end_s or 0.0),
                hint="simulate longer, or raise the rate",
            )  # fmt: skip
        assert self._next is not None, "a chunk has a request"
        clock.call_at(self._next.arrival_s, ARRIVAL, self._arrivals)
        if self._changes is not None:
            self._changes.start(self)
        if plan.end_s is None:
            self._run_to_the_last()
            self._check_that_all_left()
        else:
            clock.call_at(plan.end_s, CONTROL, lambda event: None)
            clock.run(until=plan.end_s)
        return self._close()

    def _run_to_the_last(self) -> None:
        """Run until the last request has left; what is planned for later concerns nobody, loads under way end."""
        clock, changes = self.clock, self._changes
        while self._next is not None:
            clock.step()
        while clock.pending() and (
            self._anybody() or (changes is not None and changes.awaits()) or clock.peek() == clock._now
        ):
            clock.step()
        clock.forget_plans()
        clock.run()

    def _anybody(self) -> bool:
        """Return whether a request is inside."""
        return any(self.inside) or any(self.beside)

    def _check_that_all_left(self) -> None:
        """Raise where requests are inside and nothing will ever happen, though all replicas are up.

        :raises LoraplanError: it is a fault of the simulator, and the numbers would be worth nothing.
        """
        if self._anybody() and not (self._changes is not None and self._changes.some_down()):
            inside = self.inside + self.beside[len(self.inside) :]
            states = "; ".join(server.state_in_words() for server in self.servers if inside[server.index])
            raise LoraplanError(
                f"internal error: the simulation stands still at {self.clock.now:.6g} s with requests inside: {states}"
            )

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
        self.recorder.to_come(chunk)
        if self._token_limit is not None:
            limit = self._token_limit if isinstance(self._token_limit, int) else self._token_limit[chunk.adapter]
            too_long = chunk.prompt_tokens + chunk.output_tokens > limit
            if self._prompt_limit is not None:
                too_long |= chunk.prompt_tokens > self._prompt_limit
            self._too_long = set((np.flatnonzero(too_long) + chunk.first).tolist())
        if chunk.session is not None:
            self._sessions, self._chunk_first = chunk.session.tolist(), chunk.first
        times = self._times
        self._requests = map(  # makes them one by one, without a tuple of arguments for each
            Request, range(chunk.first, chunk.first + len(chunk)), chunk.arrival_s.tolist(), chunk.adapter.tolist(),
            chunk.prompt_tokens.tolist(), chunk.output_tokens.tolist(), times.load(chunk).tolist(),
            times.host_load(chunk).tolist(), times.service(chunk).tolist(),
        )  # fmt: skip
        self._next = next(self._requests)
        return True

    def _arrivals(self, event: Call) -> None:
        """Let in all requests until something else happens, and come again after it."""
        clock = self.clock
        now, queue = clock._now, clock.queue
        request = self._next
        while request is not None:
            if request.arrival_s > now:
                if queue and queue[0][0] <= request.arrival_s:
                    self._next = request
                    event.callbacks = event.call
                    clock.push((request.arrival_s, ARRIVAL, clock.next_id(), event))
                    return
                clock._now = now = request.arrival_s  # nothing comes before it: an event would only be put on and off
            if self._too_long and request.index in self._too_long:
                self.recorder.turned_away(request, -1, REFUSED)
            elif self._only is not None:
                self._only.arrive(request)
            elif self._changes is None:
                replica = self._router.choose(request.adapter, request.index)
                if self._counts is not None:  # as Inside.entered, without a call
                    counts, adapter = self._counts[replica], request.adapter
                    counts[adapter] = counts.get(adapter, 0) + 1
                self.servers[replica].arrive(request)
            else:
                request.session = self._sessions[request.index - self._chunk_first] if self._sessions else None
                self._send(request)
            request = next(self._requests, None)
            if request is None:
                self._next = None
                if self._load_chunk():
                    request = self._next

    def _close(self) -> Recording:
        stopped = self.clock.now
        for server in self.servers:
            for request in server.close():
                if self._changes is not None:
                    self._changes.broken_off(server.index, request)
                self.recorder.turned_away(request, server.index, UNFINISHED)
        facts = {} if self._changes is None else self._changes.close()
        servers, gone = self.servers, self._gone
        while len(self.recorder.bounds) <= self.recorder.sections:  # fewer requests came than sections
            self.recorder.mark(stopped)
        area = sum(server.inside_area for server in servers) + gone.inside_area
        if self._changes is not None and self._changes.outages is not None:
            area += self._changes.outages.hanging_area
        recording = self.recorder.close(float(stopped), area)
        recording.facts |= facts
        recording.evictions = sum(server.cache.evictions for server in servers) + gone.evictions
        recording.in_use_peak = max(gone.in_use_peak, *(server.cache.in_use_peak for server in servers))
        batched = [server for server in servers if isinstance(server, BatchServer)]
        fronted = [server for server in servers if isinstance(server, FrontedServer)]
        if fronted:
            recording.facts["merged_gaps"] = sum(server.merged_gaps for server in fronted)
        if batched:
            recording.kv_peak_share = max(gone.kv_peak_share, *(_kv_peak_share(server) for server in batched))
        return recording


def _kv_peak_share(server: BatchServer) -> float:
    kv = server.scheduler.kv
    return kv.peak_tokens / (kv.total * kv.size)
