"""SGLang's scheduler: prefills first, KV memory by a ratio of what answers may still need, and retractions.

Source: SGLang 0.5.23 ``managers/scheduler.py``, ``schedule_policy.py`` (PrefillAdder), ``schedule_batch.py``
(retract_decode) and ``scheduler_components/new_token_ratio_tracker.py``. Checked step by step against records of a real
server (tests/property/test_sglang_records.py).

With the overlapped schedule, a step is planned before the result of the one before is known: a request that has ended
by its limit is left out of it, one that has ended by the end token takes part, and what both hold is given back after
the plan.
"""

from __future__ import annotations

from heapq import nsmallest
from typing import Final

from sim.policies.admission import by_key
from sim.policies.costs import NO_DETAILS, StepCosts
from sim.policies.kv.radix_memory import RadixMemory, key_at, path_of
from sim.policies.queues.rejoining import RejoiningQueue, ScannedQueue
from sim.policies.scheduler import LOWEST_KEY, Limits, Scheduler, Step
from sim.traffic.request import BY_ADAPTER_LIMIT, BY_BATCH_SLOTS, BY_KV, UNBLOCKED, Request

CLIP: Final = 4096
"""Most tokens of an answer to come that are counted."""
FIRST_RATIO: Final = 0.7
LEAST_SHARE: Final = 0.14
DECAY_STEPS: Final = 600
RETRACT_STEPS: Final = 20
REFRESH_SCANS: Final = 32
REFRESHED: Final = 128
"""Of the waiting requests, so many are touched in the tree in every so many-th scan."""

SHORT_PREFIX: Final = 32
"""With the longest prefix first, requests that have no more known tokens, but as many in common, wait for the first."""

GOES_ON: Final = 0
NO_MEMORY: Final = 1
NO_BUDGET: Final = 2
"""Whether the scan of the queue goes on after a request."""


class SglangScheduler(Scheduler):
    """The batch of one replica under SGLang's rules.

    :param conservativeness: factor on the ratio, ``schedule_conservativeness``.
    :param overlapped: steps are planned before the result of the one before is known.
    :param ignores_end: all requests run to their limit and say so (``ignore_eos``).
    :param longest_prefix_first: with a ``ScannedQueue``: schedule_policy ``lpm``.
    :ivar tries: plans so far.
    :ivar ratio: share of what answers may still need that is reserved for running requests.
    """

    def __init__(
        self,
        limits: Limits,
        memory: RadixMemory,
        waiting: RejoiningQueue,
        ranks: list[int],
        costs: StepCosts,
        *,
        conservativeness: float = 1.0,
        overlapped: bool = False,
        ignores_end: bool = False,
        longest_prefix_first: bool = False,
    ) -> None:
        super().__init__(limits, memory, waiting, ranks, costs)
        self.tries = 0
        self.ratio = self._first = min(FIRST_RATIO * conservativeness, 1.0)
        self._least = self._first * LEAST_SHARE
        self._decay = (self._first - self._least) / DECAY_STEPS
        self._memory = memory
        self._queue = waiting
        self._overlapped = overlapped
        self._ignores_end = ignores_end
        self._by_prefix = longest_prefix_first and memory.tree
        self._full = False
        self._full_reason = UNBLOCKED
        self._scans = 0
        self._scanned_queue = False  # whether the last plan looked at the queue, and each equal step does again
        self._again = False  # whether a plan without a batch may be followed by another one at once
        self._decodes = False  # whether the step just decided decodes
        self._decays = 0  # 1: its first step lets the ratio fall
        self._decoded_s = self._before_s = 0.0  # when the last steps with decodes ended, and the ones before
        self._steps = 0  # that ended last
        self._previous_s: dict[int, float] = {}  # last tokens before their prefill, of those prefilled again
        # Of the step that ended last, in its order: requests whose prompt is complete or that have ended.
        self._results: list[Request] = []
        self._gone: set[int] = set()
        self._fresh: set[int] = set()  # with ``overlapped``: those that it prefilled
        self._late = False  # with ``overlapped``: whether all decoding sequences took part in it
        # Of the scan under way:
        self._left = 0
        self._taken = 0.0
        self._taken_now = 0
        self._states: list[tuple[int, int]] = []

    # Plan -----------------------------------------------------------------------------------------------------------

    def compose(self, now: float) -> Step:
        step = self.plan(now)
        while not step.steps and self._again:
            step = self.plan(now)
        return step

    def plan(self, now: float) -> Step:
        """Decide the next step; it has none if nothing runs, or if only results of the last one were taken in."""
        step, memory = self.decided, self._memory
        self.tries += 1
        step.prefills, step.steps, step.decoding = [], 0, 0
        self.blocked, self._scanned, self.overrunning = UNBLOCKED, LOWEST_KEY, []
        self._decodes, self._decays, self._scanned_queue = False, 0, False
        preempted = self.preempted
        if self._partial is not None:
            memory.know(self._partial, self._partial.context)
        prompt_tokens = self._prefill(now)
        if step.prefills:
            if not self.limits.prefill_first and self._leave_out_ending() and memory.reserve_decodes():
                self._decodes = True
        elif self._leave_out_ending():
            self._decodes = self._decode(now)
        taken_in = self._overlapped and self._take_in()
        self._again = taken_in and not step.prefills and not self._decodes
        if not step.prefills and not self._decodes:
            if not (taken_in or self.running or self._waits()):
                self.ratio = self._first
            return step
        if self.blocked == UNBLOCKED and self._waits():
            queue = self._queue
            if self._full:
                self.blocked = self._full_reason
            elif queue.over_limit or (queue.deferred and queue.defers):  # else it waits for the next chunk
                self.blocked = BY_ADAPTER_LIMIT
        if step.prefills and not self._decodes:
            return self._compose_prefills_only(prompt_tokens, now)
        if self.paused:
            self.paused = [group for group in self.paused if group[0] < now]
        costs, computing = self._costs, memory.decoding + len(self.overrunning)
        step.decoding = memory.decoding
        step.tokens = prompt_tokens + computing
        details = self.details() if costs.detailed else NO_DETAILS
        step.first_s = costs.step(
            step.tokens, memory.tokens + computing, self.distinct_adapters, self._rank_sum, details
        )
        step.growth_s = costs.per_kv_token_s * step.decoding
        if self._full:
            self._scanned_queue = False
        changes = step.prefills or self.paused or taken_in or self.preempted > preempted
        step.steps = 1 if changes else self._steps_without_change()
        return step

    def _steps_without_change(self) -> int:
        if self._scanned_queue and self._queue.may_change:
            return 1
        steps = self._memory.steps_that_fit(self._ends.next_step - self.decode_steps)
        if self._scanned_queue and self._memory.tree and self._queue.may_be_known:
            steps = min(steps, -self._scans % REFRESH_SCANS + 1)  # up to the next scan that touches what waits
        return steps

    def _waits(self) -> bool:
        return bool(self._queue.ready or self._queue.deferred)

    def may_change(self, key: int) -> bool:
        return not self._full and len(self.running) < self.limits.num_seqs

    def _given(self, request: Request) -> int:
        """Return how many tokens of a decoding request are known to the scheduler."""
        given = request.output_tokens - (request.last_step - self.decode_steps)
        return given - (self._overlapped and (self._late or request.index in self._fresh))

    # Prefill --------------------------------------------------------------------------------------------------------

    def _prefill(self, now: float) -> int:
        """Choose what the next step prefills, if anything; return the tokens."""
        partial, running = self._partial, len(self.running)
        if partial is not None:
            running -= 1
        if not running:
            self._full = False
        if partial is None:
            if self._full or not self._waits():
                return 0
            if running >= self.limits.num_seqs:
                self._is_full(BY_BATCH_SLOTS)
                return 0
        self._scanned_queue = self._waits()
        if self._scanned_queue and self._memory.tree:
            self._refresh()
        self._begin_scan(running)
        chosen = self.decided.prefills
        cached: list[int] = []
        if partial is not None:
            room = int(self._memory.free + self._memory.evictable - self._taken)
            most = min(self._left, room)
            chunk = min(partial.to_prefill, most if most > 0 else self._left)
            whole = chunk == partial.to_prefill
            self._choose(partial, chunk, min(partial.max_tokens, CLIP) if whole else 0)
            cached.append(0)
        self._scan(running, now, cached)
        if not chosen:
            return 0
        memory, tokens = self._memory, sum([request.chunk for request in chosen])
        memory.make_room(tokens + (memory.size * len(chosen) if memory.size > 1 else 0))
        for request, known in zip(chosen, cached, strict=True):
            memory.take(request, request.chunk, 0, known)
            request.context += known + request.chunk
            request.to_prefill -= known + request.chunk
        return tokens

    def _is_full(self, reason: int) -> None:
        self._full, self._full_reason = True, reason
        self.blocked = reason

    def _refresh(self) -> None:
        """Touch the prefixes of waiting requests in every so many-th scan, or sort by them."""
        if self._by_prefix and self._queue.size() <= REFRESHED:
            self._sort_by_prefix()
            return
        if self._scans % REFRESH_SCANS == 0 and self._queue.may_be_known:
            for request in reversed(nsmallest(REFRESHED, self._queue.all_requests(), key=by_key)):
                self._memory.touch(request)
        self._scans += 1

    def _sort_by_prefix(self) -> None:
        """Put requests with the longest known prefix first, and those last that share an unknown one with another."""
        queue = self._queue
        assert isinstance(queue, ScannedQueue), "made together"
        known: dict[int, int] = {}
        seen: set[tuple[int, int]] = set()
        for request in queue.ready:
            tokens = request.prompt_tokens + request.generated
            found = self._memory.touch(request)
            known[request.index] = -min(found, tokens - 1)
            if found <= SHORT_PREFIX <= tokens:
                beginning = request.adapter, key_at(path_of(request), SHORT_PREFIX - 1)
                if beginning in seen:
                    known[request.index] = 1
                seen.add(beginning)
        queue.sort(sorted(queue.ready, key=lambda request: known[request.index]))

    def _begin_scan(self, running: int) -> None:
        decodes = 0 if self.limits.prefill_first else running
        self._left = self.limits.batched_tokens - decodes
        self._taken_now = decodes
        ratio, taken = 1.0 if self._ignores_end else self.ratio, 0.0
        step, late, fresh = self.decode_steps, self._overlapped and self._late, self._fresh
        for request in self.running:
            if request.last_step >= 0:  # as _given; half of the time of a saturated fleet goes by here
                left = request.max_tokens - request.output_tokens + request.last_step - step
                if late or request.index in fresh:
                    left += 1
                taken += (left if left < CLIP else CLIP) * ratio
        self._taken = decodes + taken
        self._states = []

    def _choose(self, request: Request, chunk: int, answer: int) -> None:
        """Let a request prefill in this step, and reserve memory for its answer."""
        tokens, page = self._memory.pages(chunk), self._memory.size
        request.chunk = chunk
        self.decided.prefills.append(request)
        self._taken += tokens + page + answer
        self._taken_now += tokens + page
        self._left -= tokens

    def _state(self) -> int:
        room = self._memory.free + self._memory.evictable
        if room - self._taken <= 0 or room - self._taken_now <= 0:
            return NO_MEMORY
        return NO_BUDGET if self._left <= 0 else GOES_ON

    def _scan(self, running: int, now: float, cached: list[int]) -> None:
        """Choose requests of the queue, until one finds no room."""
        waiting, chosen = self._queue, self.decided.prefills
        waiting.begin()
        if waiting.may_change:
            alive = [request for request in self.running if request.last_step >= 0]
            waiting.look_at_running([(r.adapter, r.max_tokens - self._given(r)) for r in alive], now)
        while self._state() != NO_BUDGET:
            request = waiting.next_candidate()
            if request is None:
                self._scanned = None
                return
            self._scanned = request.key
            if not waiting.may_join(request):
                if waiting.pass_over(request):
                    continue
                return
            if len(chosen) >= self.limits.num_seqs - running:
                self._is_full(BY_BATCH_SLOTS)
            if self._full:
                return
            known = self._memory.cached_tokens(request)
            before = len(chosen)
            result = self._add(request, known)
            if len(chosen) > before:
                cached.append(known)
                self._queue.take(request)
                self.running[request] = None
                self._count_in([request])
                if request.admitted_s < 0:
                    request.admitted_s = now
            if result == NO_MEMORY and (chosen or running):
                self._is_full(BY_KV)
            if result != GOES_ON:
                return

    def _add(self, request: Request, known: int) -> int:
        """Choose a request if it finds room; return whether the scan goes on."""
        memory, left = self._memory, self._left
        todo, page = request.to_prefill - known, memory.size
        whole = memory.pages(todo) <= left
        if self._ignores_end and not memory.tree:
            if not self._fits_to_its_limit(request, memory.pages(todo) + page):
                return NO_MEMORY
            page, whole = 1, todo <= left  # this test cuts prompts anywhere
        else:
            # SGLang cuts limits so that each request fits alone.
            most = memory.total * page - page - 1 - known - todo
            answer = min(max(request.max_tokens - request.generated, 0), CLIP, most)
            if todo + answer + page >= memory.room_beside_found() - self._taken:
                return NO_MEMORY
        chunk = todo
        if not whole:
            if self.limits.chunked:
                chunk = (known + left // page * page) // page * page - known
                if chunk <= 0:
                    return NO_BUDGET
            elif self.decided.prefills:
                return NO_BUDGET
        memory.keep_found(request)
        self._choose(request, chunk, min(request.max_tokens, CLIP) if chunk == todo else 0)
        return self._state()

    def _fits_to_its_limit(self, request: Request, tokens: int) -> bool:
        """Return whether all requests fit until each has reached its limit."""
        now = self._memory.free - self._taken_now
        if tokens > min(now, self._memory.free - self._taken):
            return False
        states = self._states
        own = request.max_tokens - request.generated, request.prompt_tokens + request.generated
        if not states:
            running = [r for r in self.running if r.last_step >= 0]
            states = [(r.max_tokens - self._given(r), r.prompt_tokens + self._given(r)) for r in running]
            chosen = self.decided.prefills
            states = [own, *states, *[(r.max_tokens - r.generated, r.prompt_tokens + r.generated) for r in chosen]]
            self._states = states = sorted(states, key=_left_of)
        else:
            place = next((i for i, state in enumerate(states) if own[0] <= state[0]), len(states) - 1)
            states.insert(place, own)  # before the last if none has more left, as in SGLang
        freed, alive = 0, len(states)
        for left, occupied in states:
            if now - tokens + freed - left * alive <= alive:
                return False
            freed += occupied
            alive -= 1
        return True

    # Decode ---------------------------------------------------------------------------------------------------------

    def _leave_out_ending(self) -> bool:
        """Leave out those that have ended by their limit, whose result is to come; return whether others decode."""
        for request in self._results if self._overlapped else ():
            if request.index in self._gone and request.max_tokens == request.output_tokens:
                self._memory.stop_decoding(request)
                self._full = False
        if not self._memory.decoding:
            self._full = False
        return self._memory.decoding > 0

    def _decode(self, now: float) -> bool:
        """Make room for a token of each decoding request; return whether they decode."""
        memory = self._memory
        if memory.reserve_decodes():
            self._decays = 1
            return True
        if any(r.index in self._gone and r.max_tokens == r.output_tokens for r in self._results):
            self._full = False  # their memory comes free with their result
            return False
        order = [r for r in self.running if r.index not in self._gone]
        given = {r.index: self._given(r) for r in order}
        if not order:
            return False  # all have ended, and none knows it yet
        order.sort(key=lambda r: (given[r.index], -r.prompt_tokens), reverse=True)
        while len(order) > 1:
            self._retract(order[-1], given[order[-1].index], now)
            order.pop()
            memory.make_room(RETRACT_STEPS * len(order))
            if memory.reserve_decodes():
                break
        assert memory.reserve_decodes(), "one request always fits"
        order += [r for r in self.running if r.index in self._gone and r.max_tokens > r.output_tokens]
        self.running.clear()
        self.running.update(dict.fromkeys(order))
        self._full = False
        tokens = sum([self._given(r) for r in order]) + RETRACT_STEPS * len(order)
        self.ratio = min(1.0, tokens / (sum([r.max_tokens for r in order]) + 1))
        return True

    def _retract(self, request: Request, given: int, now: float) -> None:
        """Take a request out of the batch, to the end of the queue. A token whose result is to come is lost."""
        last_s = max(request.last_token_s, self._decoded_s)
        for place, (since, count) in enumerate(self.paused):
            if since == last_s:
                self.paused[place] = since, count - 1
        if self._overlapped and self._late:
            before_s = max(request.last_token_s, self._before_s)
            self.lost.append((request, before_s if self._steps == 1 else -1.0))
        elif request.index in self._fresh:
            last_s = self._previous_s.get(request.index, -1.0)
            if last_s >= 0:
                self.lost.append((request, last_s))
            else:
                request.first_token_s = -1.0
        request.generated = given
        request.last_token_s = last_s
        self._memory.drop_answer(request)
        self._leave_early(request)
        request.to_prefill = request.prompt_tokens + given
        request.context = 0
        request.preemptions += 1
        self.preempted += 1
        self._queue.push_back(request, now)
        self.blocked = BY_KV

    # Results --------------------------------------------------------------------------------------------------------

    def _take_in(self) -> bool:
        """Make known what the last step computed, and let go those that it ended; return whether there were any."""
        results, self._results = self._results, []
        for request in results:
            if request.index in self._gone:
                if self._overlapped:
                    self._queue.let_go(request)
                    if self._decodes and request.max_tokens > request.output_tokens:
                        self._memory.stop_decoding(request, overrun=1)
                        self.overrunning.append(request)
                self._leave([request])
                self._full = False
            elif request in self.running:
                self._memory.know(request, request.prompt_tokens + request.generated)
        self._gone.clear()
        self._fresh.clear()
        self._late = False
        return bool(results)

    def complete(self, steps: int, now: float) -> list[Request]:
        step, memory = self.decided, self._memory
        self.lost, self._steps = [], steps
        if self._queue.deferred:
            self._queue.end_steps(steps)
        if self._scanned_queue and memory.tree:
            self._scans += steps - 1
        finished: list[Request] = []
        if self._decodes:
            self.paused = []
            self._before_s, self._decoded_s = self._decoded_s, now
            self.decode_steps += steps
            memory.grow(steps)
            if not step.prefills:
                self._let_fall(steps - 1 + self._decays)
            if self._ends.next_step <= self.decode_steps:
                finished = self._ends.pop_next()
                if len(finished) > 1:
                    ended = set(finished)
                    finished = [request for request in self.running if request in ended]
        prefills = step.prefills
        results = finished.copy()
        if prefills:
            partial = prefills[-1].to_prefill > 0
            if partial or self._decodes or not memory.decoding:
                self._full = False
            complete = prefills[:-1] if partial else prefills
            self._previous_s = {request.index: request.last_token_s for request in complete if request.generated}
            self._complete_prefills(now, finished)
            for request in complete:
                request.last_token_s = now
            results = complete + results
            if self._decodes:  # after a mixed step, the others follow those that it prefilled
                last = prefills[-1:] if partial else []
                others = [request for request in self.running if request not in prefills]
                self.running.clear()
                self.running.update(dict.fromkeys([*complete, *others, *last]))
        self._results, self._late, self._fresh = results, self._decodes, set()
        if self._overlapped:
            self._fresh = {request.index for request in prefills}
        self._gone = {request.index for request in finished}
        if self._overlapped:
            for request in finished:
                self._queue.hold(request)
        else:
            self._take_in()
        return finished

    def _let_fall(self, steps: int) -> None:
        for _ in range(steps):
            if self.ratio <= self._least:
                return
            self.ratio = max(self.ratio - self._decay, self._least)

    def expel(self, request: Request) -> None:
        if request in self._results:
            self._results.remove(request)
        super().expel(request)


def _left_of(state: tuple[int, int]) -> int:
    return state[0]
