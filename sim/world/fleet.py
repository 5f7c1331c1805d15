"""The fleet: requests arrive, a router sends each to a replica, and the run is recorded."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from math import inf
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sim.errors import LoraplanError, ScenarioError
from sim.policies.routing import Choosing
from sim.results.recording.recorder import Recorder
from sim.results.records import REFUSED, UNFINISHED, Recording
from sim.spec.units import format_seconds
from sim.traffic.generate import Chunk
from sim.traffic.request import BASE_MODEL, ArrivingRequests, Request
from sim.world.clock import ARRIVAL, Call, Clock
from sim.world.dispatcher import Dispatcher
from sim.world.replica.copies import OffloadServer
from sim.world.replica.prefill_decode import DecodeServer
from sim.world.replica.server import Server
from sim.world.times import RequestTimes

NO_LIMIT = int(np.iinfo(np.int64).max)
"""Tokens of a request of any length."""


@dataclass(frozen=True, slots=True)
class RunWindow:
    """Length of a run, and the part of it that is measured.

    :ivar total: number of requests; None if only ``end_s`` is known.
    :ivar end_s: time at which the run stops; infinite: it goes on until the last request has left.
    :ivar warmup: share of requests (or of ``end_s``) before the first section.
    """

    total: int | None
    end_s: float
    warmup: float

    def first_requests(self, sections: int) -> list[int]:
        """Return the index of the request that opens each section; empty where sections go by time."""
        if self.total is None:
            return []
        first = int(self.total * self.warmup)
        return [first + (self.total - first) * i // sections for i in range(sections)]

    def bounds_s(self, sections: int) -> list[float]:
        """Return the times at which sections begin, and the end of the last; empty where they go by requests."""
        if self.total is None:
            assert self.end_s < inf, "a run has a count or a duration"
            return [float(bound) for bound in np.linspace(self.warmup * self.end_s, self.end_s, sections + 1)]
        return []


@dataclass(frozen=True, slots=True)
class Arrivals:
    """How a run's traffic becomes requests.

    :ivar times: turn the uniform draws of a request into seconds.
    :ivar token_limits: (adapters + 1,) most tokens of prompt and output together, last of a request to the base model;
        a longer request is refused.
    :ivar base_model: the number by which replicas know the base model.
    :ivar prompt_limit: the most tokens of the prompt alone, for all adapters.
    :ivar max_tokens: the limit of requests with shorter answers.
    :ivar with_text: whether requests carry what they share, for a prefix cache or a router; ``with_stops``: whether
        they carry how they end, for schedulers that learn it late.
    :ivar tenant_of: (adapters + 1,) the tenant of each adapter, and last of the base model; None without tenants.
    """

    window: RunWindow
    times: RequestTimes
    token_limits: NDArray[np.int64]
    base_model: int
    prompt_limit: int = NO_LIMIT
    with_text: bool = False
    with_stops: bool = False
    max_tokens: int = 0
    tenant_of: NDArray[np.int64] | None = None


class Fleet:
    """All replicas of one replication, and the requests that arrive there.

    :ivar servers: replicas, by index; ``inside``: number of requests inside each.
    """

    def __init__(
        self, clock: Clock, recorder: Recorder, router: Choosing, arrivals: Arrivals, dispatcher: Dispatcher
    ) -> None:
        self.clock = clock
        self.recorder = recorder
        self.dispatcher = dispatcher
        self.servers, self.inside = dispatcher.servers, dispatcher.inside
        self._router = router
        self._arrivals, self._window = arrivals, arrivals.window
        self._chunks: Iterator[Chunk] = iter(())
        self._requests = ArrivingRequests(0, b"", b"", (b"", b""), (b"", b"", b""))
        self._next: Request
        self._next_s = inf  # its arrival; infinite after the last request
        self._too_long: set[int] = set()
        self._only: Server | None = None  # the one replica to which all requests of this chunk go, without questions
        self._straight = False  # whether those of this chunk need only the router's choice
        self._marks = arrivals.window.first_requests(recorder.sections)
        self._sessions: list[int] = []  # of the requests of this chunk
        self._chunk_first = 0

    def count_inside(self) -> list[dict[int, int]]:
        """Return, by replica, requests inside by adapter; the counts stay current from the first call on.

        Few fleets need them, and counting takes 5 % of the time of a request.
        """
        self._straight = False
        return self.dispatcher.count_inside()

    def next_s(self) -> float:
        """Return the time of the next arrival; infinite if there is none."""
        return self._next_s

    def run(self, chunks: Iterator[Chunk]) -> Recording:
        """Simulate the run and return its recording."""
        self._chunks = chunks
        window, clock = self._window, self.clock
        for bound_s in window.bounds_s(self.recorder.sections):
            self.recorder.mark(bound_s)
        if not self._next_chunk():
            raise nothing_arrives(window.end_s)
        self._begin()
        for each in reversed(self.dispatcher.extensions):
            each.start(self.dispatcher)
        if window.end_s < inf:
            clock.until(window.end_s)
            clock.run(window.end_s)
        else:
            self._run_to_the_last()
            self._check_that_all_left()
        return self._close()

    def _begin(self) -> None:
        self.clock.schedule(self._next_s, ARRIVAL, NextArrival(self))

    def _run_to_the_last(self) -> None:
        """Run until the last request has left. Later control events are dropped; loads under way end."""
        clock, extensions = self.clock, self.dispatcher.extensions
        if self._next_s < inf:
            clock.run_to_pause()
        while clock.pending() and (
            any(self.inside) or any(each.pending() for each in extensions) or clock.peek() == clock.now
        ):
            clock.step()
        clock.forget_control_events()
        clock.run()

    def _check_that_all_left(self) -> None:
        """Check that no request is stuck inside a replica that is up.

        :raises LoraplanError: if one is, which is a bug of the simulator.
        """
        stuck = [server for server in self.servers if self.inside[server.index] and not server.copies.standing_in]
        if stuck:
            states = "; ".join(server.state_in_words() for server in stuck)
            raise LoraplanError(
                f"internal error: the simulation stands still at {self.clock.now:.6g} s with requests inside: {states}"
            )

    def _next_chunk(self) -> bool:
        """Go on to the first request of the next chunk; return False after the last."""
        for chunk in self._chunks:
            self._load(chunk)
            request = self._requests.next()
            if request is not None:
                self._next, self._next_s = request, request.arrival_s
                return True
        self._next_s = inf
        self.clock.pause()  # no request is left, so the run goes on only until those inside have left
        return False

    def _load(self, chunk: Chunk) -> None:
        self._mark_sections(chunk)
        self.recorder.flush()
        self.recorder.to_come(chunk)
        given = self._arrivals
        too_long = chunk.prompt_tokens + chunk.output_tokens > given.token_limits[chunk.adapter]
        too_long |= chunk.prompt_tokens > given.prompt_limit
        self._too_long = set((np.flatnonzero(too_long) + chunk.first).tolist())
        simple = not self.dispatcher.extensions and not self._too_long
        self._only = self.servers[0] if simple and len(self.servers) == 1 else None
        self._straight = simple and not self.dispatcher.view.of_request
        if chunk.session is not None:
            self._sessions, self._chunk_first = chunk.session.tolist(), chunk.first
        times = given.times
        adapter = np.where(chunk.adapter == BASE_MODEL, given.base_model, chunk.adapter)
        text = chunk.text if given.with_text else None
        self._requests = ArrivingRequests(
            chunk.first,
            _packed(chunk.arrival_s, "<f8"),
            _packed(adapter, "<i8"),
            (_packed(chunk.prompt_tokens, "<i8"), _packed(chunk.output_tokens, "<i8")),
            (
                _packed(times.load(chunk), "<f8"),
                _packed(times.host_load(chunk), "<f8"),
                _packed(times.service(chunk), "<f8"),
            ),
            b"" if given.tenant_of is None else _packed(given.tenant_of[chunk.adapter], "<i8"),
            None if text is None else text.of_requests(),
            _packed(chunk.stops, "<i8") if given.with_stops else b"",
            given.max_tokens,
        )

    def _mark_sections(self, chunk: Chunk) -> None:
        marks = self._marks
        while marks and marks[0] < chunk.first + len(chunk):
            self.recorder.mark(float(chunk.arrival_s[marks.pop(0) - chunk.first]))
        if chunk.first + len(chunk) == self._window.total:
            end_s = self._window.end_s
            self.recorder.mark(end_s if end_s < inf else float(chunk.arrival_s[-1]))

    def take_arrivals(self, event: Call) -> None:
        """Process arrivals until another event is due, then reschedule after it."""
        clock = self.clock
        now, queue, requests, only = clock.now, clock.queue, self._requests, self._only
        request = self._next
        while True:
            if request.arrival_s > now:
                if queue and queue[0][0] <= request.arrival_s:
                    self._next, self._next_s = request, request.arrival_s
                    clock.schedule(request.arrival_s, ARRIVAL, event)
                    return
                clock.now = now = request.arrival_s  # no event comes first, so scheduling one would be wasted
            if only is not None:
                only.arrive(request)
            elif self._straight:
                self.servers[self._router.choose(request.adapter, request.index)].arrive(request)
            else:
                self._send(request)
            following = requests.next()
            if following is not None:
                request = following
            elif self._next_chunk():
                request, requests, only = self._next, self._requests, self._only
            else:
                return

    def _send(self, request: Request) -> None:
        if self._too_long and request.index in self._too_long:
            self.recorder.record_unserved(request, -1, REFUSED)
            return
        if self.dispatcher.extensions or self.dispatcher.view.of_request:
            request.session = self._sessions[request.index - self._chunk_first] if self._sessions else None
        self.dispatcher.take(request)

    def _close(self) -> Recording:
        stopped, dispatcher, recorder = self.clock.now, self.dispatcher, self.recorder
        for server in self.servers:
            for request in server.close() + dispatcher.held(server.index):
                dispatcher.broken_off(request, server.index)
                recorder.record_unserved(request, server.index, UNFINISHED)
        facts: dict[str, float] = {}
        for each in dispatcher.extensions:
            facts |= each.close()
        while len(recorder.bounds) <= recorder.sections:  # fewer requests than sections
            recorder.mark(stopped)
        outside = sum((each.outside_area for each in reversed(dispatcher.extensions)), 0.0)
        totals = dispatcher.dead
        for server in self.servers:
            totals.add(server.totals())
        recording = recorder.close(float(stopped), totals.inside_area + outside)
        recording.facts |= facts
        if totals.merged_gaps:
            recording.facts["merged_gaps"] = totals.merged_gaps
        if any(isinstance(server, OffloadServer) for server in self.servers):
            recording.facts |= {
                "kv_loaded_tokens": float(totals.kv_loaded),
                "kv_stored_tokens": float(totals.kv_stored),
                "kv_host_share": totals.kv_host_share,
            }
        if totals.drafted:
            recording.facts |= {
                "drafts_verified": float(totals.verified),
                "drafted_tokens": float(totals.drafted),
                "accepted_tokens": float(totals.accepted),
            }
        links = [s.link_s() for s in self.servers if isinstance(s, OffloadServer | DecodeServer)]
        if links:
            recording.facts["kv_link_busy"] = min(1.0, sum(links) / (len(links) * max(float(stopped), 1e-12)))
        recording.evictions = totals.evictions
        recording.in_use_peak = totals.in_use_peak
        recording.kv_peak_share = totals.kv_peak_share
        if recorder.prefix_cache:
            recording.prefix_blocks_evicted = totals.prefix_blocks_evicted
        return recording


class NextArrival(Call):
    """The next arrival at a fleet."""

    def __init__(self, fleet: Fleet) -> None:
        super().__init__(fleet.take_arrivals)
        self._fleet = fleet

    def happen(self) -> None:
        self._fleet.take_arrivals(self)


def _packed(column: NDArray[Any], kind: str) -> bytes:
    return column.astype(kind, copy=False).tobytes()


def nothing_arrives(duration_s: float, remedy: str = "raise the rate") -> ScenarioError:
    """Return the error of a run in which no request arrives."""
    return ScenarioError(
        "no request arrives in this duration",
        key="workload.duration",
        got=format_seconds(duration_s),
        hint=f"simulate longer, or {remedy}",
    )
