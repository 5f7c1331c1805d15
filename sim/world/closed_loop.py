"""Closed loops: clients that each send their next request once the last one is answered.

A client with an answer thinks, then sends the next request of the run. So requests are numbered in the order in which
they are sent, and the k-th one has the same adapter, lengths and draws whatever the fleet does; only when it is sent
follows from the answers. An answer is there when the replica has recorded the request: with its last token, behind a
front end when the client sees that, and after all retries of wrong answers.

A client whose request was refused or failed also goes on to its next one, as load generators do, but not at once: a
fleet that refuses everything would otherwise be asked without end at one instant.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from math import inf
from struct import Struct

import numpy as np

from sim.policies.routing import Choosing
from sim.results.recording.recorder import Recorder
from sim.results.records import UNFINISHED, Recording
from sim.rng import stream_key, uniform_draw
from sim.spec.sections.benchmark_clients import ClosedLoop
from sim.spec.sections.laws import FixedTime
from sim.traffic.generate import Chunk
from sim.traffic.request import Request
from sim.world.clock import ARRIVAL, Call, Clock
from sim.world.dispatcher import Dispatcher
from sim.world.fleet import Arrivals, Fleet, nothing_arrives
from sim.world.world import World

PAUSE_S = 0.125
"""Least time from a refusal or failure to the client's next request."""

_PACK_TIME = Struct("=d").pack_into


class Clients:
    """The clients of one replication.

    Times to think are drawn by the number of the request that was answered, so that they don't depend on the fleet
    either; first ones by the number of the client.

    :param front_end_s: after which a request reaches the engine; one that is answered there is seen at once, since
        recordings have the whole time in the front end before admission.
    :param due_s: when each request of the run may be sent at the earliest, never falling: a client with an answer takes
        the next one and waits for its time. Empty: at once.
    """

    def __init__(
        self, law: ClosedLoop, seed: int, replication: int, clock: Clock, front_end_s: float, due_s: Sequence[float]
    ) -> None:
        self._law, self._front_end_s = law, front_end_s
        self._due_s, self._taken = due_s, 0
        self._clock = clock
        self._first_key = stream_key(seed, replication, "first-think")
        self._key = stream_key(seed, replication, "think")
        self._send: Callable[[], None] = lambda: None
        self._over = False

    def start(self, send: Callable[[], None]) -> None:
        """Let all clients think and send their first requests.

        :param send: sends the next request of the run.
        """
        self._send = send
        for client in range(self._law.concurrency):
            self._think(self._seconds(self._first_key, client))

    def stop(self) -> None:
        """Let clients do nothing more: there is no request left to send."""
        self._over = True
        self._clock.forget([self])

    def answered(self, request: Request, now: float) -> None:
        """Let the client of a request go on that is answered at ``now``, or from now on."""
        self._think(self._seconds(self._key, request.index), now)

    def gave_up(self, request: Request) -> None:
        """Let the client of a request go on that was refused or failed."""
        self._think(max(PAUSE_S, self._seconds(self._key, request.index)))

    def _think(self, seconds: float, since: float = -inf) -> None:
        if not self._over:
            self._clock.call_at(max(since, self._clock.now) + seconds, ARRIVAL, self._thought)

    def _thought(self, event: Call) -> None:
        if not self._due_s:
            self._send()
        elif self._taken < len(self._due_s):  # the others have taken all that is left, and wait for its time
            due_s = self._due_s[self._taken] + self._front_end_s
            self._taken += 1
            self._clock.call_at(max(due_s, self._clock.now), ARRIVAL, self._is_due)

    def _is_due(self, event: Call) -> None:
        self._send()

    def _seconds(self, key: int, number: int) -> float:
        think = self._law.think
        if isinstance(think, FixedTime):
            return think.value + self._front_end_s
        return float(think.ppf(np.array([uniform_draw(key, number)]))[0]) + self._front_end_s


class ClosedLoopRecorder(Recorder):
    """Takes rows like any recorder, and lets clients go on when the row of their request is there."""

    def __init__(self, clients: Clients, sections: int, replicas: int, own: int, *, prefix_cache: bool) -> None:
        super().__init__(sections, replicas, own, prefix_cache=prefix_cache)
        self.clients = clients

    def sent(self, index: int, now: float) -> None:
        """Note when a request is sent, which was not known when its chunk was made."""
        _PACK_TIME(self._columns["arrival_s"], 8 * index, now)

    def record_completed(self, requests: Sequence[Request], replica: int, now: float) -> None:
        super().record_completed(requests, replica, now)
        for request in requests:
            self.clients.answered(request, now)

    def record_unserved(self, r: Request, replica: int, status: int) -> None:
        super().record_unserved(r, replica, status)
        if status != UNFINISHED:  # that one stops with the run
            self.clients.gave_up(r)


class ClosedLoopFleet(Fleet):
    """A fleet whose requests are sent by the clients of a closed loop."""

    def __init__(
        self, clock: Clock, recorder: ClosedLoopRecorder, router: Choosing, arrivals: Arrivals, dispatcher: Dispatcher
    ) -> None:
        super().__init__(clock, recorder, router, arrivals, dispatcher)
        self._clients = recorder.clients
        self._note_sent = recorder.sent
        self._sent = 0

    def next_s(self) -> float:
        """Return a time no later than the next arrival, which only the answers decide; infinite if there is none."""
        clock = self.clock
        # The periodic event that asks is not on the queue; if only the others are, no answer comes any more.
        return clock.now if self._next_s < inf and clock.pending() >= max(1, clock.periodic) else inf

    def run(self, chunks: Iterator[Chunk]) -> Recording:
        recording = super().run(chunks)
        if not self._sent:
            raise nothing_arrives(self._window.end_s, "let clients think for less time")
        return recording

    def _begin(self) -> None:
        self._clients.start(self._send_next)

    def _send_next(self) -> None:
        assert self._next_s < inf, "clients stop when there is none"
        request, now = self._next, self.clock.now
        request.arrival_s = now
        self._note_sent(request.index, now)
        self._sent += 1
        while self._marks and self._marks[0] == request.index:
            self._marks.pop(0)
            self.recorder.mark(now)
        if self._sent == self._window.total:
            self.recorder.mark(now)
        self._send(request)
        following = self._requests.next()
        if following is not None:
            self._next = following
        elif not self._next_chunk():
            self._clients.stop()

    def _mark_sections(self, chunk: Chunk) -> None:
        """Sections are marked as their first requests are sent."""

    def _run_to_the_last(self) -> None:
        clock = self.clock
        while self._next_s < inf and clock.pending():
            clock.step()
        self._next_s = inf  # if all clients wait for replicas that never come up, the others are never sent
        super()._run_to_the_last()


def make_recorder(world: World, replication: int, sections: int, clock: Clock) -> Recorder:
    """Return the recorder of a replication; that of a closed loop has its clients."""
    law, first = world.traffic.closed_loop, world.pools[0]
    if law is None:
        return Recorder(sections, world.replicas, world.own_replicas, prefix_cache=first.prefix_cache)
    due_s = [] if world.traffic.due_s is None else world.traffic.due_s.tolist()
    clients = Clients(law, world.scenario.run.seed, replication, clock, first.front_end_s, due_s)
    return ClosedLoopRecorder(clients, sections, world.replicas, world.own_replicas, prefix_cache=first.prefix_cache)


def make_fleet(clock: Clock, recorder: Recorder, router: Choosing, arrivals: Arrivals, dispatcher: Dispatcher) -> Fleet:
    """Return the fleet of a replication, whose requests come by themselves or from the clients of a closed loop."""
    if isinstance(recorder, ClosedLoopRecorder):
        return ClosedLoopFleet(clock, recorder, router, arrivals, dispatcher)
    return Fleet(clock, recorder, router, arrivals, dispatcher)
