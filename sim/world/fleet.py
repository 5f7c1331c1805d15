"""The fleet: requests arrive, a router sends each to a replica, and the run is recorded."""

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
from sim.world.replica.front_end_server import FrontEndServer
from sim.world.replica.server import Server
from sim.world.routing.in_flight import InFlight
from sim.world.times import RequestTimes

Floats = NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class RunWindow:
    """Length of a run, and the part of it that is measured.

    :ivar total: number of requests; None if only ``end_s`` is known.
    :ivar end_s: time at which the run stops; None: run until the last request has left.
    :ivar warmup: share of requests (or of ``end_s``) before the first section.
    """

    total: int | None
    end_s: float | None
    warmup: float


@dataclass(slots=True)
class DeadReplicaTotals:
    """Totals of crashed replicas, which a recording adds to those of the running ones."""

    inside_area: float = 0.0
    evictions: int = 0
    in_use_peak: int = 0
    kv_peak_share: float = 0.0

    def add(self, dead: Server) -> None:
        self.inside_area += dead.inside_area
        self.evictions += dead.cache.evictions
        self.in_use_peak = max(self.in_use_peak, dead.cache.in_use_peak)
        if isinstance(dead, BatchServer):
            self.kv_peak_share = max(self.kv_peak_share, dead.scheduler.kv.peak_share())


@dataclass(frozen=True, slots=True)
class Intake:
    """How a run's traffic becomes requests.

    :ivar times: turn the uniform draws of a request into seconds.
    :ivar token_limit: most tokens of prompt and output together (one number, or one for each adapter); a longer request
        is refused. None: no limit.
    :ivar prompt_limit: the same for the prompt alone.
    """

    window: RunWindow
    times: RequestTimes
    token_limit: int | NDArray[np.int64] | None = None
    prompt_limit: int | None = None


@dataclass(frozen=True, slots=True)
class FleetHooks:
    """Optional parts that change or count requests.

    :ivar changes: rollouts and faults, which every request then passes through.
    :ivar in_flight: counts requests inside by adapter, if the router needs that.
    """

    changes: Changes | None = None
    in_flight: InFlight | None = None


class Fleet:
    """All replicas of one replication.

    :ivar inside: number of requests inside each replica that the router's view covers.
    :ivar full_model_inside: the same for replicas of full models, which follow the others in ``servers``.
    :ivar refresh_view: catches up on a reading of the router's view that was skipped.
    :ivar next_key: returns the last place in the queues, for requests that are sent again or were held.
    """

    def __init__(
        self,
        clock: Clock,
        recorder: Recorder,
        router: Choosing,
        intake: Intake,
        hooks: FleetHooks,
    ) -> None:
        self.clock = clock
        self.recorder = recorder
        self.servers: list[Server] = []
        self.inside: list[int] = []
        self.full_model_inside: list[int] = []
        self._only: Server | None = None  # the one replica, where there is no choice
        self._router = router
        self._window = intake.window
        self._times = intake.times
        self._token_limit, self._prompt_limit = intake.token_limit, intake.prompt_limit
        self._chunks: Iterator[Chunk] = iter(())
        self._requests: Iterator[Request] = iter(())
        self._next: Request | None = None
        self._too_long: set[int] = set()
        self._marks = self._section_starts()
        self._changes = hooks.changes
        self._in_flight = hooks.in_flight
        self._by_adapter = None if hooks.changes is None else hooks.in_flight
        self._counts: list[dict[int, int]] | None = None  # where requests go straight to a replica
        self._sessions: list[int] = []  # of the requests of this chunk
        self._chunk_first = 0
        self._make: Callable[[int, list[int]], Server] | None = None
        self._dead_totals = DeadReplicaTotals()
        self.next_key: Callable[[], int] = count().__next__
        self.refresh_view: Callable[[], None] = lambda: None

    def open(self, replicas: int, make: Callable[[int, list[int]], Server]) -> None:
        """Start the replicas; ``make`` gets an index and the list in which a replica counts the requests inside."""
        self._make = make
        self.inside.extend([0] * replicas)
        for index in range(replicas):
            self.servers.append(make(index, self.inside))
        self._only = self.servers[0] if replicas == 1 and self._changes is None else None

    def open_more(self, replicas: int, make: Callable[[int, list[int]], Server]) -> None:
        """Start replicas of full models after the others; they count their requests in a separate list."""
        first = len(self.servers)
        self.full_model_inside.extend([0] * (first + replicas))
        self.servers += [make(first + place, self.full_model_inside) for place in range(replicas)]
        self._only = None

    def replace(self, replica: int) -> Server:
        """Put a new, empty replica in the place of a crashed one; return the crashed one."""
        assert self._make is not None, "the fleet is open"
        dead = self.servers[replica]
        self._dead_totals.add(dead)
        self.servers[replica] = self._make(replica, self.inside)
        return dead

    def count_inside(self) -> list[dict[int, int]]:
        """Return, by replica, requests inside by adapter; the counts stay current from the first call on.

        Few fleets need them, and counting takes 5 % of the time of a request.
        """
        counted = self._in_flight
        assert counted is not None, "the router reads requests inside by adapter"
        if self._by_adapter is None:
            self._by_adapter, self._counts = counted, counted.counts
            for server in self.servers:
                counted.begin(server.index, server.all_requests())
                server.set_listener(counted.last_token_callback(server.index), partial(counted.left, server.index))
        return counted.counts

    def next_s(self) -> float:
        """Return the time of the next arrival; infinite if there is none."""
        return inf if self._next is None else self._next.arrival_s

    def submit(self, request: Request) -> None:
        """Route a request again."""
        self.refresh_view()
        self._send(request)

    def _send(self, request: Request) -> None:
        """Send a request through rollouts and faults, which may change its adapter or keep it from its replica."""
        changes = self._changes
        assert changes is not None, "otherwise requests go straight to a replica"
        name = request.adapter
        if changes.resending and changes.hold_if_all_down(request):
            return
        if changes.reordering:
            request.key = self.next_key()
        if changes.steering:
            name = changes.steer(request)
        servers = self.servers
        replica = self._router.choose(name, request.index) if len(servers) > 1 else 0
        if not (changes.guarding or changes.barriers.count) or changes.accepts(request, replica):
            if self._by_adapter is not None:
                self._by_adapter.entered(replica, request)
            servers[replica].arrive(request)

    def run(self, chunks: Iterator[Chunk]) -> Recording:
        """Simulate the run and return its recording."""
        self._chunks = chunks
        window, clock = self._window, self.clock
        if window.total is None:
            assert window.end_s is not None, "a run has a count or a duration"
            for mark in np.linspace(window.warmup * window.end_s, window.end_s, self.recorder.sections + 1):
                self.recorder.mark(float(mark))
        if not self._load_chunk():
            raise ScenarioError(
                "no request arrives in this duration",
                key="workload.duration",
                got=format_seconds(window.end_s or 0.0),
                hint="simulate longer, or raise the rate",
            )
        assert self._next is not None, "a chunk has a request"
        clock.call_at(self._next.arrival_s, ARRIVAL, self._arrivals)
        if self._changes is not None:
            self._changes.start(self)
        if window.end_s is None:
            self._run_to_the_last()
            self._check_that_all_left()
        else:
            clock.call_at(window.end_s, CONTROL, lambda event: None)
            clock.run(until=window.end_s)
        return self._close()

    def _run_to_the_last(self) -> None:
        """Run until the last request has left. Later control events are dropped; loads under way end."""
        clock, changes = self.clock, self._changes
        while self._next is not None:
            clock.step()
        while clock.pending() and (
            self._any_inside() or (changes is not None and changes.has_pending()) or clock.peek() == clock._now
        ):
            clock.step()
        clock.forget_control_events()
        clock.run()

    def _any_inside(self) -> bool:
        """Return whether any request is inside."""
        return any(self.inside) or any(self.full_model_inside)

    def _check_that_all_left(self) -> None:
        """Check that no request is stuck inside while all replicas are up.

        :raises LoraplanError: if one is, which is a bug of the simulator.
        """
        if self._any_inside() and not (self._changes is not None and self._changes.any_down()):
            inside = self.inside + self.full_model_inside[len(self.inside) :]
            states = "; ".join(server.state_in_words() for server in self.servers if inside[server.index])
            raise LoraplanError(
                f"internal error: the simulation stands still at {self.clock.now:.6g} s with requests inside: {states}"
            )

    def _section_starts(self) -> list[int]:
        """Return the index of the request that opens each section; empty where sections go by time."""
        total = self._window.total
        if total is None:
            return []
        first = int(total * self._window.warmup)
        return [first + (total - first) * i // self.recorder.sections for i in range(self.recorder.sections)]

    def _load_chunk(self) -> bool:
        chunk = next(self._chunks, None)
        if chunk is None:
            return False
        marks = self._marks
        while marks and marks[0] < chunk.first + len(chunk):
            self.recorder.mark(float(chunk.arrival_s[marks.pop(0) - chunk.first]))
        if self._window.total is not None and chunk.first + len(chunk) == self._window.total:
            end = self._window.end_s
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
        self._requests = map(  # creates requests one by one, without a tuple of arguments for each
            Request,
            range(chunk.first, chunk.first + len(chunk)),
            chunk.arrival_s.tolist(),
            chunk.adapter.tolist(),
            chunk.prompt_tokens.tolist(),
            chunk.output_tokens.tolist(),
            times.load(chunk).tolist(),
            times.host_load(chunk).tolist(),
            times.service(chunk).tolist(),
        )
        self._next = next(self._requests)
        return True

    def _arrivals(self, event: Call) -> None:
        """Process arrivals until another event is due, then reschedule after it."""
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
                clock._now = now = request.arrival_s  # no event comes first, so scheduling one would be wasted
            if self._too_long and request.index in self._too_long:
                self.recorder.record_unserved(request, -1, REFUSED)
            elif self._only is not None:
                self._only.arrive(request)
            elif self._changes is None:
                replica = self._router.choose(request.adapter, request.index)
                if self._counts is not None:  # InFlight.entered, without a call
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
                self.recorder.record_unserved(request, server.index, UNFINISHED)
        facts = {} if self._changes is None else self._changes.close()
        servers, dead_totals = self.servers, self._dead_totals
        while len(self.recorder.bounds) <= self.recorder.sections:  # fewer requests than sections
            self.recorder.mark(stopped)
        area = sum(server.inside_area for server in servers) + dead_totals.inside_area
        if self._changes is not None and self._changes.crashes is not None:
            area += self._changes.crashes.stuck_area
        recording = self.recorder.close(float(stopped), area)
        recording.facts |= facts
        recording.evictions = sum(server.cache.evictions for server in servers) + dead_totals.evictions
        recording.in_use_peak = max(dead_totals.in_use_peak, *(server.cache.in_use_peak for server in servers))
        batched = [server for server in servers if isinstance(server, BatchServer)]
        fronted = [server for server in servers if isinstance(server, FrontEndServer)]
        if fronted:
            recording.facts["merged_gaps"] = sum(server.merged_gaps for server in fronted)
        if batched:
            recording.kv_peak_share = max(
                dead_totals.kv_peak_share, *(server.scheduler.kv.peak_share() for server in batched)
            )
        return recording
