"""A replica that batches continuously: lets time pass between the decisions of the step scheduler."""

from __future__ import annotations

import math
from dataclasses import dataclass
from heapq import heappush
from typing import cast

from sim.policies.adapter_cache import GpuCache, UnifiedCache
from sim.policies.adapter_queues import AdapterQueues
from sim.policies.admission import ClaimingQueue, ReadyQueue
from sim.policies.costs import StepCosts
from sim.policies.kv.kv_rules import KvRule
from sim.policies.kv.kv_store import KvStore
from sim.policies.model_turns import ModelTurns
from sim.policies.scheduler import Limits, Scheduler
from sim.policies.vllm_lru import VllmLruCache
from sim.results.records import pack_pause, pack_step
from sim.traffic.request import DELAYED_HIT, MISS, Request
from sim.world.clock import BOUNDARY, Call
from sim.world.replica.prefetch import Prefetch
from sim.world.replica.server import Action, ReplicaParts, Server
from sim.world.replica.step_loads import ProtectedLoads, StepLoads, TurnLoads, UnifiedLoads, VllmLoads


@dataclass(frozen=True, slots=True)
class BatchRules:
    """How a replica batches, and when it loads adapters.

    :ivar ranks: rank of every adapter.
    :ivar loads_at_arrival: loads start at arrival; otherwise at admission.
    :ivar blocking: loads happen inside the step that admits their request; otherwise they overlap with steps.
    :ivar stop: a request over the adapter limit stops the queue; otherwise later ones pass it.
    :ivar cycle_s: requests wait in queues by adapter with this cycle time; None: in one queue.
    :ivar discards: adapters that are not in use leave at the end of a decode step in which a request ended.
    :ivar prefetch: idle loaders load for waiting requests.
    """

    limits: Limits
    costs: StepCosts
    ranks: list[int]
    loads_at_arrival: bool
    blocking: bool
    stop: bool
    cycle_s: float | None = None
    discards: bool = False
    prefetch: bool = False


class BatchServer(Server):
    """Continuous batching with leaps: one event for every change of the batch.

    Between changes, all steps have the same batch and a cost that is linear in the growing KV cache. So a leap of k
    steps takes ``k d + s k (k - 1) / 2`` seconds, where d is the first step and s the growth per step. An arrival that
    may be admitted cuts the leap at the next boundary.

    :param rule: KV memory that a request must find, if that is more than its prompt needs.
    :param turn_s: for a replica that swaps whole models: seconds of a model's turn; None: it serves adapters.
    :ivar waiting: the waiting queue; ``claiming``: the same queue if loads start at admission, otherwise None.
    """

    __slots__ = (
        "_actions", "_cycling", "_discards", "_event", "_first", "_growth", "_load_s", "_loads", "_prefetch", "_spare",
        "_started", "_step", "_steps", "claiming", "scheduler", "waiting",
    )  # fmt: skip  # names in a paragraph, not one a line

    def __init__(
        self,
        parts: ReplicaParts,
        kv: KvStore,
        rules: BatchRules,
        rule: KvRule | None = None,
        turn_s: float | None = None,
    ) -> None:
        super().__init__(parts, loads_at_arrival=rules.loads_at_arrival)
        self.blocking = rules.blocking
        cache, touched = parts.cache, isinstance(parts.cache, VllmLruCache)
        self.claiming: ClaimingQueue | AdapterQueues | None = None
        self._cycling: AdapterQueues | None = None
        if rules.cycle_s is not None:
            self._cycling = AdapterQueues(
                cast(GpuCache, cache), self._request_load, lambda: self.clock._now, rules.cycle_s
            )
            self.claiming = self._cycling
        elif turn_s is None and not rules.loads_at_arrival:
            self.claiming = ClaimingQueue(
                cache, self._request_load, stop=rules.stop, blocking=rules.blocking, gives_up=touched
            )
        turns = None if turn_s is None else ModelTurns(cast(GpuCache, cache), lambda: self.clock._now, turn_s)
        self.waiting = turns or self.claiming or ReadyQueue()
        self.scheduler = Scheduler(rules.limits, kv, self.waiting, rules.ranks, rules.costs, rule)
        self._step = self.scheduler.decided
        self._discards = cast(GpuCache, cache).evict_idle if rules.discards else None
        self._loads: StepLoads | None = None
        if isinstance(cache, VllmLruCache):
            self._loads = VllmLoads(cache, self.scheduler, parts.reload_s, self.loader.context)
        elif isinstance(cache, UnifiedCache):
            self._loads = UnifiedLoads(cache, self.loader)
        elif turns is not None:
            self._loads = TurnLoads(cache, self.loader, turns.start_turn)
        elif self.claiming is not None:
            self._loads = ProtectedLoads(cache, self.loader)
        self._prefetch: Prefetch | None = None
        if rules.prefetch:
            self._prefetch = Prefetch(cast(GpuCache, cache), self.loader)
            self.loader.on_load_done = self._load_ahead
        self._event: Call | None = None  # the next boundary; None while idle
        self._spare: Call | None = None  # a spent event to use again
        self._started = 0.0
        self._steps = 0
        self._first = 0.0
        self._growth = 0.0
        self._load_s = 0.0
        self._actions: list[Action] = []

    def _request_load(self, request: Request) -> None:
        request.outcome = DELAYED_HIT if self.loader.request_load(request) else MISS

    def _loaded(self, requests: list[Request], in_time: bool) -> None:
        if self.claiming is None:
            for request in requests:
                self._enqueue(request, in_time)
            return
        for request in requests:
            self.claiming.arrived(request)
        if requests:
            self._wake(min(request.key for request in requests), in_time)
        # A load ahead that no request joined needs no earlier boundary. A request that wants the adapter is in the
        # queue and called _wake when it came, so the boundary that can admit it is already scheduled.

    def _not_loaded(self, requests: list[Request], in_time: bool) -> None:
        super()._not_loaded(requests, in_time)
        if self.claiming is not None and requests:  # others may have waited for their room
            self._wake(min(request.key for request in requests), in_time)

    def _unclaim(self, request: Request) -> None:
        if self.claiming is None:
            super()._unclaim(request)
        else:
            self.claiming.failed(request)

    def _enqueue(self, request: Request, in_time: bool = False) -> None:
        key = request.key
        heappush(self.waiting.ready, (key, request))
        if self._steps != 1:  # the end of a single step is the next boundary anyway
            self._wake(key, in_time)
        if self._prefetch is not None:
            self._prefetch.entered(request)
            self._load_ahead()

    def _load_ahead(self) -> None:
        """Start prefetches, unless a boundary of this very instant comes first and may start loads of its own."""
        assert self._prefetch is not None, "called only with prefetching"
        if self._event is not None:
            end = self._started + self._elapsed(self._steps) if self._steps else self.clock._now
            if end == self.clock._now:
                return
        self._prefetch.go_on()

    def _wake(self, key: int, in_time: bool) -> None:
        """Bring the next boundary forward for a request with this key, if it may join."""
        steps, now = self._steps, self.clock._now
        if self._event is None:
            self._schedule(now)
        elif steps > 1 and self._started + self._elapsed(steps - 1) >= now and self.scheduler.may_change(key):
            cut = self._steps_until(now, in_time)
            if cut < steps:
                self._steps = cut
                self._schedule(self._started + self._elapsed(cut))

    def _schedule(self, time: float) -> None:
        event, self._spare = self._spare or Call(self.clock, self._boundary), None
        self._event = event
        self.clock.schedule_call(time, BOUNDARY, event)

    def _elapsed(self, steps: int) -> float:
        return self._load_s + steps * self._first + self._growth * (steps * (steps - 1) / 2)

    def _steps_until(self, now: float, in_time: bool = False) -> int:
        """Return the fewest steps that end after ``now``, or with ``in_time`` at it: the next boundary to join."""
        started, first, growth = self._started, self._first, self._growth
        gone = now - started - self._load_s
        steps = max(1, int(gone / first) + 1)  # an upper bound, since steps only get longer
        if steps > 50 and growth > 0:
            half = first / growth - 0.5
            steps = int(math.sqrt(half * half + 2 * gone / growth) - half) + 1
        # The estimate is rounded; the boundary is the first one whose time, as computed, lies after now.
        while steps > 1 and started + self._elapsed(steps - 1) > now:
            steps -= 1
        while started + self._elapsed(steps) <= now:
            steps += 1
        if in_time and steps > 1 and started + self._elapsed(steps - 1) == now:
            steps -= 1
        return steps

    def _boundary(self, event: Call) -> None:
        if event is not self._event:
            self._spare = event
            return  # the old end of a leap that was cut
        clock = self.clock
        end = self._next_leap(clock._now)
        if end < 0:
            self._event, self._spare = None, event
            return
        event.callbacks = event.call
        clock.push((end, BOUNDARY, clock.next_id(), event))

    def _next_leap(self, now: float) -> float:
        """Complete the leap that ends now and begin the next; return its end, or -1 if the batch is empty."""
        scheduler, steps = self.scheduler, self._steps
        if steps:
            decoding = self._step.decoding
            if scheduler.paused:
                decoding -= self._log_pauses()
            self.recorder.step_rows += pack_step(
                self._started,
                self._first,
                self._growth,
                self._load_s,
                steps,
                decoding,
                len(scheduler.running),
                scheduler.blocked,
                self.index,
            )
            finished = scheduler.complete(steps, now)
            if self._loads is not None and self._loads.failed:
                finished = self._end_failed(self._loads, finished)
            for request in finished:
                self._leave(request, now)
            if self._discards is not None and finished and self._step.decoding:
                self._discards()
            if scheduler.recompute_gaps:
                self.recorder.gaps(scheduler.recompute_gaps, self._started)
                scheduler.recompute_gaps = []
        blocked_s = self._act(now) if self._actions else 0.0
        step = scheduler.compose(now)
        if self._prefetch is not None:
            self._prefetch.left(step.prefills)
            self._prefetch.go_on()
        self._started = now
        self._steps = steps = step.steps
        if steps == 0:
            if self._cycling is not None and self._cycling.may_go_on():
                return self._next_leap(now)  # each pass frees a few places, and no event would start another one
            return -1.0
        if self._loads is not None:
            self._load_s = self._loads.before_step(step.prefills, now) + blocked_s
            if self._loads.failed:
                self._steps = steps = 1
        self._first = first = step.first_s
        self._growth = growth = step.growth_s
        if self._cycling is not None and steps > 1:
            self._steps = steps = min(steps, self._steps_before_cycle(self._cycling))
        return now + (self._load_s + steps * first + growth * (steps * (steps - 1) / 2))  # as _elapsed(steps)

    def _end_failed(self, loads: StepLoads, finished: list[Request]) -> list[Request]:
        """End the requests whose adapter could not be loaded by the step that ends now; return the other finished ones.

        That step computed them nevertheless: a batch is decided before its loads.
        """
        failed, loads.failed = loads.failed, []
        over = {request.index for request in finished}
        for request in failed:
            if request.index not in over:
                self.scheduler.expel(request)
            self.cache.release(request.adapter)
            if self._host_fill is not None:
                self._host_fill.leave(request)
            self._fail(request)
        left = {request.index for request in failed}
        return [request for request in finished if request.index not in left]

    def _log_pauses(self) -> int:
        """Record the gaps between tokens that end with this step and span paused time; return how many there are."""
        if not self._step.decoding:
            return 0
        for since, count in self.scheduler.paused:
            gap_s = self._started - since + self._load_s + self._first
            self.recorder.pause_rows += pack_pause(self._started, gap_s, count)
        return int(sum(count for _, count in self.scheduler.paused))

    def _steps_before_cycle(self, waiting: AdapterQueues) -> int:
        time = waiting.next_change_s()
        return self._steps if time == math.inf else self._steps_until(time)

    def at_boundary(self, action: Action) -> None:
        self._actions.append(action)
        steps, now = self._steps, self.clock._now
        if self._event is None:
            self._schedule(now)
        elif steps > 1 and self._started + self._elapsed(steps - 1) >= now:
            cut = self._steps_until(now, in_time=True)
            if cut < steps:
                self._steps = cut
                self._schedule(self._started + self._elapsed(cut))

    def _act(self, now: float) -> float:
        """Run the actions that waited for a boundary; return the seconds for which they block the next step."""
        blocked_s = 0.0
        while self._actions:
            actions, self._actions = self._actions, []
            for action in actions:
                blocked_s += action(now + blocked_s)
        return blocked_s

    def _drop_from_gpu(self, adapter: int) -> None:
        if self._cycling is None:
            super()._drop_from_gpu(adapter)
        else:
            self._cycling.discard(adapter)

    def under_way(self, adapter: int) -> list[tuple[Request, int]]:
        scheduler, now = self.scheduler, self.clock._now
        found = []
        for request in scheduler.running.values() if adapter in scheduler.adapters else ():
            # A request that joined at this very boundary has computed nothing yet, unless it was preempted before.
            if request.adapter == adapter and (request.admitted_s < now or request.generated):
                decoding = request.last_step >= 0
                left = request.last_step - scheduler.step if decoding else 0
                found.append((request, request.output_tokens - left if decoding else request.generated))
        if scheduler.preempted:
            waiting = self.waiting.all_requests()
            found += [(r, r.generated) for r in waiting if r.adapter == adapter and r.generated]
        return found

    def tokens_out(self, request: Request) -> int:
        if request.last_step < 0:
            return request.generated
        left = request.last_step - self.scheduler.step
        return request.output_tokens - left + (self._steps_done() if self._step.decoding else 0)

    def _steps_done(self) -> int:
        """Return how many steps of the leap under way have ended."""
        now = self.clock._now
        if not self._steps or self._started + self._elapsed(1) > now:
            return 0
        return min(self._steps, self._steps_until(now) - 1)

    def close(self) -> list[Request]:
        """Record the steps that have ended and the one under way; return the requests still inside."""
        now, done, scheduler = self.clock._now, self._steps_done(), self.scheduler
        running, blocked = len(scheduler.running), scheduler.blocked
        if done:
            scheduler.kv.grow(done)
            decoding = self._step.decoding - (self._log_pauses() if scheduler.paused else 0)
            self.recorder.step_rows += pack_step(
                self._started, self._first, self._growth, self._load_s, done, decoding, running, blocked, self.index
            )
        began = self._started + self._elapsed(done) if done else self._started
        if self._steps and began < now:  # this step kept the GPU busy without a token
            self.recorder.step_rows += pack_step(began, now - began, 0.0, 0.0, 1, 0, running, blocked, self.index)
        return super().close()

    def _unserved(self) -> list[Request]:
        return list(self.scheduler.running.values()) + self.waiting.all_requests()

    def check_integrity(self) -> None:
        super().check_integrity()
        self.scheduler.check_integrity()
        if isinstance(self.waiting, ModelTurns):
            self.waiting.check_integrity()
