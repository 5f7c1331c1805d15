"""A batching replica behind a front end that delays requests and tokens (``fleet.front_end``)."""

from __future__ import annotations

from mypy_extensions import mypyc_attr

from sim.policies.front_end import FrontEnd
from sim.policies.scheduler import Scheduler
from sim.results.records import REFUSED
from sim.traffic.request import Request
from sim.world.clock import ARRIVAL, Call
from sim.world.replica.continuous import BatchServer
from sim.world.replica.modes.adapter_mode import AdapterMode
from sim.world.replica.server import ReplicaParts, ReplicaTotals


@mypyc_attr(allow_interpreted_subclasses=True)
class FrontEndServer(BatchServer):
    """A ``BatchServer`` whose requests and tokens pass through a ``FrontEnd``.

    :ivar merged_gaps: gaps between tokens that clients did not see: tokens of a stall are sent together.
    """

    def __init__(self, parts: ReplicaParts, scheduler: Scheduler, mode: AdapterMode, front_end: FrontEnd) -> None:
        super().__init__(parts, scheduler, mode)
        self.front_end = front_end
        self.merged_gaps = 0.0
        self._last_stall = 0
        self._changed_s = -1.0  # time since which no step has counted a change of the waiting set

    def totals(self) -> ReplicaTotals:
        totals = super().totals()
        totals.merged_gaps = self.merged_gaps
        return totals

    def arrive(self, request: Request) -> None:
        now = self.clock.now
        if self._inside[self.index] >= self.front_end.max_in_flight:
            self._listener.lost(request, self.index)
            self.recorder.record_unserved(request, self.index, REFUSED)
            return
        self._inside[self.index] += 1
        self.inside_area -= now
        self.clock.call_at(self.front_end.enter(now, request.adapter), ARRIVAL, self._reach_engine, request)

    def _reach_engine(self, event: Call) -> None:
        request: Request = event.subject
        now = self.clock.now
        if self._steps and self._changed_s >= 0:
            steps = self._steps_until(max(self._changed_s, self._started_s))
            if self._started_s + self._elapsed(steps) <= now:
                self.front_end.step_ended(now)
        self.front_end.waits(request.adapter)
        self._changed_s = now
        self.intake.take_in(request, False)

    def _next_leap(self, now: float) -> float:
        if self._steps:
            self.front_end.step_ended(now)
            self._count_merged(now)
        end = super()._next_leap(now)
        self._changed_s = -1.0
        for request in self.scheduler.decided.prefills:
            if request.admitted_s == now and request.preemptions == 0:
                self.front_end.runs(request.adapter)
        return end

    def _count_merged(self, now: float) -> None:
        stalled_s, last = self.front_end.stalled_between(self._started_s, now)
        if stalled_s > 0:
            inside = stalled_s / (now - self._started_s) * self._steps
            apart = last - self._last_stall  # clients see the first token of each stall, if late
            self.merged_gaps += max(0.0, inside - apart) * self.scheduler.kv.decoding
            self._last_stall = last

    def _leave(self, requests: list[Request], now: float) -> None:
        for request in requests:
            self.front_end.ends(request.adapter)
        super()._leave(requests, now)

    def _record(self, requests: list[Request], now: float) -> None:
        seen = self.front_end.seen(now)
        for request in requests:
            request.first_token_s = self.front_end.seen(request.first_token_s)
            self.inside_area += seen - now
        super()._record(requests, seen)
