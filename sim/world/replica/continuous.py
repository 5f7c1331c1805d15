"""A replica that batches continuously: lets time pass between the decisions of the step scheduler."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Final

from mypy_extensions import mypyc_attr

from sim.policies.front_end import FrontEnd
from sim.policies.scheduler import Scheduler, Step
from sim.policies.speculation import SpeculativeScheduler
from sim.results.records import REFUSED
from sim.traffic.request import Request
from sim.world.clock import ARRIVAL, BOUNDARY, Call
from sim.world.replica.modes.adapter_mode import AdapterMode
from sim.world.replica.ports import Action
from sim.world.replica.server import ReplicaParts, ReplicaTotals, Server


@mypyc_attr(allow_interpreted_subclasses=True)
class BatchServer(Server):
    """Continuous batching with leaps: one event for every change of the batch.

    Between changes, all steps have the same batch and a cost that is linear in the growing KV cache. So a leap of k
    steps takes ``k d + s k (k - 1) / 2`` seconds, where d is the first step and s the growth per step. An arrival that
    may be admitted cuts the leap at the next boundary.

    With asynchronous scheduling a boundary is where the host decides a step and launches it, while the GPU computes the
    one ahead. The next boundary comes when it has launched it and the one ahead has ended: after ``max(G, H)``, with G
    of the step ahead, and H of this step. So the first interval of a leap ends with the tokens of the step ahead of it.

    :param scheduler: admits from the queue of ``mode``.
    """

    __slots__ = (
        "_actions", "_ahead", "_asynchronous", "_copy_s", "_due", "_event", "_first_s", "_free_s", "_gpu_s",
        "_growth_s", "_head_s", "_load_s", "_spare", "_started_s", "_steps", "copies_kv", "scheduler",
    )  # fmt: skip  # names in a paragraph, not one a line

    def __init__(self, parts: ReplicaParts, scheduler: Scheduler, mode: AdapterMode) -> None:
        super().__init__(parts, mode)
        self.scheduler = scheduler
        self.copies_kv = False  # whether KV is copied beside the steps
        self._event: Call | None = None  # the next boundary; None while idle
        self._spare: Call | None = None  # a spent event to use again
        self._started_s = 0.0
        self._steps = 0
        self._first_s = 0.0
        self._growth_s = 0.0
        self._load_s = 0.0
        self._head_s = 0.0  # from the start of a leap to the first of its steps that are equal
        self._asynchronous = scheduler.limits.asynchronous
        self._ahead = int(self._asynchronous)  # steps of the leap that end with that time
        self._gpu_s = 0.0  # with asynchronous scheduling: of the GPU, for the step launched last
        self._copy_s = 0.0  # of these, for adapters copied to the GPU
        self._due = 0  # sequences that get a token from that step
        self._actions: list[Action] = []
        self._free_s = 0.0  # until then, actions block the engine

    def serve_base_model(self) -> int:
        number = super().serve_base_model()
        self.scheduler.admit_base_model(number)
        return number

    def totals(self) -> ReplicaTotals:
        totals = super().totals()
        totals.kv_peak_share = self.scheduler.kv.peak_share()
        totals.prefix_blocks_evicted = self.scheduler.kv.evicted_blocks
        return totals

    def cached_tokens(self, request: Request) -> int:
        return self.scheduler.kv.known_tokens(request)

    def weights_replaced(self, adapter: int, keep_prefixes: bool) -> None:
        kv = self.scheduler.kv
        if keep_prefixes:
            kv.outdate(adapter)
        else:
            kv.forget(adapter)

    def found_outdated_prefix(self, request: Request) -> bool:
        return self.scheduler.kv.found_outdated(request.index)

    def follow_batch(self, follow: Callable[[int, Scheduler], None]) -> bool:
        follow(self.index, self.scheduler)
        return True

    def enqueue(self, request: Request, may_join_now: bool) -> None:
        if self.scheduler.charges and self._steps:
            begun = self._steps_until(self.clock.now, may_join_now) if self._steps > 1 else 1
            self.scheduler.charge_begun(begun)
        self.mode.waiting.push(request)
        if self._steps != 1:  # the end of a single step is the next boundary anyway
            self.wake(request.key, may_join_now)

    def wake(self, key: int, may_join_now: bool) -> None:
        if self._event is None:
            self._schedule(self.clock.now)
        elif self._steps > 1 and self.scheduler.may_change(key):
            self._cut_leap(may_join_now)

    def boundary_due(self) -> bool:
        if self._event is None:
            return False
        end = self._started_s + self._elapsed(self._steps) if self._steps else self.clock.now
        return end == self.clock.now

    def at_boundary(self, action: Action) -> None:
        self._actions.append(action)
        if self._event is None:
            self._schedule(self.clock.now)
        elif self._steps > 1:
            self._cut_leap(may_join_now=True)

    def _cut_leap(self, may_join_now: bool, further: int = 0) -> None:
        """End the leap under way at the next boundary, or with ``may_join_now`` at one of this very instant.

        :param further: end it so many steps later.
        """
        steps = self._steps_until(self.clock.now, may_join_now) + further
        if steps < self._steps:
            self._steps = steps
            self._schedule(self._started_s + self._elapsed(steps))

    def _schedule(self, time: float) -> None:
        event, self._spare = self._spare or StepBoundary(self), None
        self._event = event
        self.clock.schedule(time, BOUNDARY, event)

    def _elapsed(self, steps: int) -> float:
        """Return the seconds from the start of the leap under way to the end of its first ``steps`` steps."""
        equal = steps - self._ahead
        return self._head_s + equal * self._first_s + self._growth_s * (0.5 * (equal * (equal - 1)))

    def _steps_until(self, now: float, may_join_now: bool = False) -> int:
        """Return the fewest steps that end after ``now``, or with ``may_join_now`` at it: the next boundary to join."""
        started_s, first_s, growth_s = self._started_s, self._first_s, self._growth_s
        gone_s = now - started_s - self._head_s
        steps = max(1, int(gone_s / first_s) + 1)  # an upper bound, since steps only get longer
        if steps > 50 and growth_s > 0:
            half = first_s / growth_s - 0.5
            steps = int(math.sqrt(half * half + 2 * gone_s / growth_s) - half) + 1
        steps += self._ahead
        # The estimate is rounded; the boundary is the first one whose time, as computed, lies after now.
        while steps > 1 and started_s + self._elapsed(steps - 1) > now:
            steps -= 1
        while started_s + self._elapsed(steps) <= now:
            steps += 1
        if may_join_now and steps > 1 and started_s + self._elapsed(steps - 1) == now:
            steps -= 1
        return steps

    def boundary(self, event: Call) -> None:
        """Complete the leap that ends now and begin the next, for as long as nothing happens between two boundaries."""
        if event is not self._event:
            self._spare = event
            return  # the old end of a leap that was cut
        clock = self.clock
        while (end := self._next_leap(clock.now)) >= 0:
            if not clock.reach(end, BOUNDARY, event):
                return
        self._event, self._spare = None, event

    def _next_leap(self, now: float) -> float:
        """Complete the leap that ends now and begin the next; return its end, or -1 if the batch is empty."""
        scheduler, mode = self.scheduler, self.mode
        if self._steps:
            self._end_leap(scheduler.decided.decoding, now)
        blocked_s = self._act(now) if self._actions or self._free_s > now else 0.0
        if self.copies_kv:
            self._take_reports()
        step = scheduler.compose(now)
        if self.copies_kv:
            blocked_s += self._start_copies(now)
        if scheduler.lost:
            self._take_back_gaps(now)
        self._started_s = now
        self._steps = steps = step.steps
        if not steps:
            if mode.nothing_runs() or (self.copies_kv and self._tries_again()):
                return self._next_leap(now)
            if self._gpu_s <= 0.0:
                return -1.0
            self._steps = steps = 1  # the engine waits for the last step, whose tokens are dropped
        load_s = mode.before_step(scheduler, now + blocked_s) if mode.prepares_steps else 0.0
        self._first_s = step.first_s
        self._growth_s = step.growth_s
        if self._asynchronous:
            self._steps = steps = self._launch(step, blocked_s, load_s)
        else:
            self._head_s = self._load_s = blocked_s + load_s
        if mode.failed or (self.copies_kv and self._awaits_report()):
            self._steps = 1
        elif steps > 1 and mode.waiting.takes_turns:
            change_s = mode.next_change_s()
            if change_s < math.inf:
                self._steps = min(steps, self._steps_until(change_s))
        steps = self._steps
        if steps == 1:
            return now + (self._head_s if self._ahead else self._head_s + step.first_s)
        return now + self._elapsed(steps)

    def _take_reports(self) -> None:
        """Learn which copies of KV have ended."""

    def _start_copies(self, now: float) -> float:
        """Start the copies of the step just decided; return for how long it waits for copies."""
        return 0.0

    def _tries_again(self) -> bool:
        """Return whether the step after one in which nothing runs may be another one."""
        return False

    def _awaits_report(self) -> bool:
        """Return whether the host learns of a copy that has ended after the next step."""
        return False

    def _launch(self, step: Step, blocked_s: float, load_s: float) -> int:
        """Launch steps ahead of the tokens of the step before; return how many follow each other.

        The host reads adapters from storage before it launches; copies to the GPU wait there for the step ahead.
        """
        steps = self._steps
        host_s = head_s = step.host_s
        if load_s:
            read_s = self.mode.read_s
            self.mode.read_s = 0.0
            head_s += read_s
            load_s -= read_s
            steps = 1
        self._copy_s = load_s
        head_s += blocked_s
        if head_s < self._gpu_s:
            head_s = self._gpu_s
        self._head_s = head_s
        self.scheduler.deliver(self._started_s + head_s)
        if steps > 1 and step.first_s < host_s:  # the GPU waits for the host, until the KV cache has grown
            self._first_s, self._growth_s = host_s, 0.0
            if step.growth_s > 0:
                steps = min(steps, int((host_s - step.first_s) / step.growth_s) + 2)
        return steps

    def _end_leap(self, decoding: int, now: float) -> None:
        scheduler, mode, steps = self.scheduler, self.mode, self._steps
        if scheduler.paused:
            decoding -= self._log_pauses()
        if scheduler.holds:
            decoding -= len(scheduler.late)  # their gaps are recorded one by one
        if self._ahead:
            self._record_steps(steps, decoding)
        else:
            running, blocked, start_s = len(scheduler.running), scheduler.blocked, self._started_s
            self.recorder.record_leap(
                start_s, self._first_s, self._growth_s, self._load_s, steps, decoding, running, blocked, self.index
            )
        finished = scheduler.complete(steps, now)
        if self._asynchronous:
            step = scheduler.decided
            self._gpu_s = step.first_s + step.growth_s * (steps - 1) + self._copy_s
            self._due = decoding - scheduler.overran
        if mode.failed:
            finished = self._end_failed(finished)
        if finished:
            self._leave(finished, now)
            if mode.discards:
                mode.batch_shrank(scheduler.decided.decoding)
        if scheduler.recompute_gaps:
            self._record_gaps()

    def _record_gaps(self) -> None:
        self.recorder.gaps(self.scheduler.recompute_gaps, self._started_s)
        self.scheduler.recompute_gaps = []

    def _record_steps(self, steps: int, decoding: int) -> None:
        """Record the first ``steps`` steps of the leap under way; each gives ``decoding`` sequences a token."""
        scheduler, started_s = self.scheduler, self._started_s
        running, blocked = len(scheduler.running), scheduler.blocked
        if self._ahead:
            self.recorder.record_leap(started_s, self._head_s, 0.0, 0.0, 1, self._due, running, blocked, self.index)
            started_s += self._head_s
            steps -= 1
        if steps:
            self.recorder.record_leap(
                started_s, self._first_s, self._growth_s, self._load_s, steps, decoding, running, blocked, self.index
            )

    def _take_back_gaps(self, now: float) -> None:
        """Remove the gaps before tokens of the last step that are lost, and computed again later."""
        for request, before_s in self.scheduler.lost:
            gap_s = now - before_s if before_s >= 0 else self._first_s + self._growth_s * (self._steps - 1)
            request.last_token_s = now - gap_s
            step_s = self._started_s + (self._elapsed(self._steps - 1) if self._steps > 1 else 0.0)
            self.recorder.record_pause(step_s, gap_s, -1)

    def _end_failed(self, finished: list[Request]) -> list[Request]:
        """End the requests whose adapter could not be loaded by the step that ends now; return the other finished ones.

        That step computed them nevertheless: a batch is decided before its loads.
        """
        failed, self.mode.failed = self.mode.failed, []
        over = {request.index for request in finished}
        for request in failed:
            if request.index not in over:
                self.scheduler.expel(request)
            if self.cache.release(request.adapter):
                self.mode.room_appeared()
            self.fail(request)
        left = {request.index for request in failed}
        return [request for request in finished if request.index not in left]

    def _log_pauses(self) -> int:
        """Record the gaps between tokens that end with this step and span paused time; return how many there are."""
        if not self.scheduler.decided.decoding:
            return 0
        for since, count in self.scheduler.paused:
            gap_s = self._started_s - since + self._load_s + self._first_s
            self.recorder.record_pause(self._started_s, gap_s, count)
        return int(sum(count for _, count in self.scheduler.paused))

    def _act(self, now: float) -> float:
        """Run the actions that waited for a boundary; return the seconds for which they block the next step."""
        blocked_s = max(0.0, self._free_s - now)
        while self._actions:
            actions, self._actions = self._actions, []
            for action in actions:
                blocked_s += action(now + blocked_s)
        self._free_s = now + blocked_s
        self.mode.read_s = 0.0  # of their loads, which block the engine as a whole
        return blocked_s

    def in_progress(self, adapter: int) -> list[tuple[Request, int]]:
        scheduler, now = self.scheduler, self.clock.now
        # A request that joined at this very boundary has computed nothing yet, unless it was preempted before.
        found = [
            (request, scheduler.tokens_so_far(request))
            for request in (scheduler.running if scheduler.uses(adapter) or self._asynchronous else ())
            if request.adapter == adapter and (request.admitted_s < now or request.generated)
        ]
        if scheduler.preempted:
            waiting = self.mode.waiting.all_requests()
            found += [(r, r.generated) for r in waiting if r.adapter == adapter and r.generated]
        return found

    def tokens_out(self, request: Request) -> int:
        tokens = self.scheduler.tokens_so_far(request)
        if self._asynchronous:
            return min(tokens + self._steps_done(), request.output_tokens) if request.last_step != -1 else tokens
        return tokens + (self._steps_done() if request.last_step >= 0 and self.scheduler.decided.decoding else 0)

    def _steps_done(self) -> int:
        """Return how many steps of the leap under way have ended."""
        now = self.clock.now
        if not self._steps or self._started_s + self._elapsed(1) > now:
            return 0
        if self._steps == 1:
            return 1
        return min(self._steps, self._steps_until(now) - 1)

    def close(self) -> list[Request]:
        """Record the steps that have ended and the one under way; return the requests still inside."""
        now, done, scheduler = self.clock.now, self._steps_done(), self.scheduler
        running, blocked = len(scheduler.running), scheduler.blocked
        if done:
            scheduler.kv.note_peak(done)
            self._record_steps(done, scheduler.decided.decoding - (self._log_pauses() if scheduler.paused else 0))
            self._record_gaps()
        began = self._started_s + self._elapsed(done) if done else self._started_s
        if self._steps and began < now:  # this step kept the GPU busy without a token
            self.recorder.record_leap(began, now - began, 0.0, 0.0, 1, 0, running, blocked, self.index)
        for request in self._queued_or_running() if self._asynchronous else ():
            if request.first_token_s > now:
                request.first_token_s = -1.0  # it was on its way
        return super().close()

    def running(self) -> list[Request]:
        return list(self.scheduler.running)

    def batch_size(self) -> int:
        return len(self.scheduler.running)

    def kv_usage(self) -> float:
        kv = self.scheduler.kv
        used = kv.total - kv.free_blocks() + 0.0
        if self._steps:  # a leap is booked when it ends
            gone = (self.clock.now - self._started_s) / self._elapsed(self._steps)
            used += max(0.0, gone) * self._steps * kv.decoding / kv.size
        return min(1.0, used / kv.total)

    def busy_s(self) -> float:
        return self.clock.now - self._started_s if self._steps else 0.0

    def _queued_or_running(self) -> list[Request]:
        return list(self.scheduler.running) + self.mode.waiting.all_requests()

    def check_integrity(self) -> None:
        super().check_integrity()
        self.scheduler.check_integrity()


class StepBoundary(Call):
    """The next boundary of a replica's steps."""

    def __init__(self, server: BatchServer) -> None:
        super().__init__(server.boundary)
        self._server = server

    def happen(self) -> None:
        self._server.boundary(self)


# Replicas that distinguish tenants by priority.

_BAND: Final = 1 << 44
"""Places in the queue for requests of one priority: more than a run has requests."""


class PriorityServer(BatchServer):
    """Continuous batching with priorities: a request's place in the queue begins with that of its tenant's priority.

    :param bands: by tenant, how many priorities go before its own.
    """

    __slots__ = ("_bands",)

    def __init__(self, parts: ReplicaParts, scheduler: Scheduler, mode: AdapterMode, bands: Sequence[int]) -> None:
        super().__init__(parts, scheduler, mode)
        self._bands = bands

    def arrive(self, request: Request) -> None:
        request.key = request.key % _BAND + self._bands[request.tenant] * _BAND
        super().arrive(request)


def bands_of(priorities: Sequence[int]) -> list[int]:
    """Return how many lower values there are than each; lower values go first."""
    order = sorted(set(priorities))
    return [order.index(priority) for priority in priorities]


@mypyc_attr(allow_interpreted_subclasses=True)
class SpeculativeServer(BatchServer):
    """Continuous batching with drafts, which are counted."""

    def __init__(self, parts: ReplicaParts, scheduler: SpeculativeScheduler, mode: AdapterMode) -> None:
        super().__init__(parts, scheduler, mode)
        self._drafting = scheduler

    def totals(self) -> ReplicaTotals:
        totals, scheduler = super().totals(), self._drafting
        totals.verified, totals.drafted, totals.accepted = scheduler.verified, scheduler.drafted, scheduler.accepted
        return totals


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
