"""The step scheduler of one replica: which requests run in the next step, and for how many equal steps.

Pure: it knows nothing of SimPy. The world calls ``compose`` at a step boundary, lets the time of the step (or of a
leap of equal steps) pass, and calls ``complete``. The rules are those of vLLM's V1 scheduler (docs/model.md);
``Limits`` and ``KvRule`` cover the rules of other engines. The scheduler does not know which adapters are resident: the
waiting queue decides which requests may join. Nor does it count KV blocks: the KV store does.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from typing import Final

from sim.policies.admission import WaitingQueue, by_key
from sim.policies.costs import NO_DETAILS, StepCosts, StepDetails
from sim.policies.decode_ends import DecodeEnds
from sim.policies.kv.kv_rules import KvRule
from sim.policies.kv.kv_store import KvStore, held_tokens
from sim.traffic.request import BY_ADAPTER_LIMIT, BY_BATCH_SLOTS, BY_KV, HOLDING, UNBLOCKED, Request

NO_BASE_MODEL: Final = -1
"""Number of the base model where no request is for it."""

LOWEST_KEY: Final = -(1 << 61)
"""A key below all others."""


@dataclass(frozen=True, slots=True)
class Limits:
    """The limits of a step and of admission, as an engine's flags set them.

    :ivar num_seqs: batch slots: the most sequences in the batch.
    :ivar batched_tokens: the most tokens in a step; at least ``num_seqs``, so that every decode gets its token.
    :ivar whole_prompt: a request joins when blocks for its whole prompt are free; otherwise when those of its first
        chunk are. Ignored if the scheduler has a ``KvRule``.
    :ivar prefill_first: prompts are computed in steps of their own while all decodes pause; otherwise prompts and
        decodes share steps.
    :ivar chunked: a prompt that is longer than the budget left is cut; otherwise it waits, and others behind it.
    :ivar interval: decode steps between an admission and the next attempt to admit; an empty batch admits at once.
    :ivar waiting_ratio: try earlier once waiting requests outnumber running ones by this factor; 0: never.
    :ivar prefill_interval: after a step with prefill that left no request waiting, the others up to this number compute
        no prompt while sequences decode.
    :ivar asynchronous: a step is decided before the tokens of the step ahead of it are known (vLLM's asynchronous
        scheduling).
    :ivar ends_scan: a request that preempts itself, which happens with priorities, leaves those behind it without a
        token in this step (vLLM up to 0.32).
    """

    num_seqs: int
    batched_tokens: int
    whole_prompt: bool = True
    prefill_first: bool = False
    chunked: bool = True
    interval: int = 1
    waiting_ratio: float = 0.0
    prefill_interval: int = 1
    asynchronous: bool = False
    ends_scan: bool = False


@dataclass(slots=True)
class Step:
    """The next step, or leap of equal steps. One object, filled again at every boundary.

    :ivar steps: how many equal steps may follow each other; 1 if a sequence prefills, 0 if the batch is empty.
    :ivar first_s: seconds of the first step; ``growth_s``: seconds that each further step adds to the one before.
    :ivar host_s: with asynchronous scheduling, seconds of the host for each step, which are then not in ``first_s``.
    :ivar tokens: tokens of the first step; ``decoding``: sequences that decode in each.
    :ivar prefills: sequences that prefill in this step, newly admitted ones included; each computes ``chunk`` tokens.
    """

    steps: int = 0
    tokens: int = 0
    decoding: int = 0
    first_s: float = 0.0
    growth_s: float = 0.0
    host_s: float = 0.0
    prefills: list[Request] = field(default_factory=list)


class Scheduler:
    """The batch of one replica: running sequences, and the rules by which waiting requests join.

    With asynchronous scheduling a step is decided when the tokens of the step ahead of it are still on their way. So
    ``complete`` says what follows from the step being decided, at once; but tokens come, and requests end, one step
    later. A request whose last token is on its way holds its place and its KV blocks without getting a token; one that
    ends by a stop token gets one token too many instead, since its end is not known yet.

    :param ranks: rank of every adapter.
    :param rule: KV memory that a request must find to join, if that is more than its prompt needs.
    :ivar decode_steps: decode steps so far: the counter that finish times refer to.
    :ivar decided: the step that ``compose`` decided last.
    :ivar distinct_adapters: how many adapters the batch has, without the base model.
    :ivar adapters_changed: whether an adapter joined or left the batch since the world last set this to False.
    :ivar toggled: optional list; the scheduler appends an adapter each time it joins or leaves the batch.
    :ivar blocked: why the last boundary left a request waiting.
    :ivar recompute_gaps: seconds between two tokens of a sequence that was preempted, or passed by, between them; the
        world records and empties the list.
    :ivar late: decoding sequences for whose next token that is so.
    :ivar holds: whether sequences may hold their places without getting tokens.
    :ivar preempted: preemptions so far.
    :ivar lost: requests preempted in the step just decided that lose their last token, and the time of the token before
        it; below 0: it came in the same leap.
    :ivar overrunning: requests that have ended, but take part in the step just decided, which cannot know it.
    :ivar paused: with ``prefill_first``, decoding sequences that wait for prefills: (time of their last token, how
        many).
    :ivar overran: sequences whose last token is dropped, since a stop token has ended them.
    :cvar charges: whether it has to know by ``charge_begun`` how far a leap is when a request comes.
    :cvar sets_apart: whether requests may wait that are in no queue.
    """

    # Without slots, objects with more than 30 attributes are slow to read (CPython 3.11 to 3.13).
    __slots__ = (
        "_asynchronous", "_base_model", "_blocked_key", "_caches", "_chooses", "_closed", "_costs", "_ended", "_ending",
        "_ends", "_first_tokens", "_in_flight", "_joined_step", "_left_waiting", "_partial", "_partial_waits",
        "_passed_by", "_prefill_step", "_rank_sum", "_rank_tokens", "_ranks", "_scanned", "_users", "adapters_changed",
        "blocked", "decided", "decode_steps", "distinct_adapters", "holds", "kv", "late", "limits", "lost", "overran",
        "overrunning", "paused", "preempted", "recompute_gaps", "rule", "running", "toggled", "waiting",
    )  # fmt: skip  # names in a paragraph, not one a line

    charges = False
    sets_apart = False

    def __init__(
        self,
        limits: Limits,
        kv: KvStore,
        waiting: WaitingQueue,
        ranks: list[int],
        costs: StepCosts,
        rule: KvRule | None = None,
    ) -> None:
        self.limits = limits
        self.kv = kv
        self.waiting = waiting
        self.rule = rule
        self.running = kv.running
        self.decode_steps = 0
        self.distinct_adapters = 0
        self.adapters_changed = False
        self.toggled: list[int] | None = None
        self.blocked = UNBLOCKED
        self.preempted = 0
        self.overrunning: list[Request] = []
        self.lost: list[tuple[Request, float]] = []
        self.paused: list[tuple[float, int]] = []
        self.recompute_gaps: list[float] = []
        self._chooses, self._caches = waiting.chooses, kv.caches
        self._costs = costs
        self._ranks = ranks
        self._users: list[int] = []  # requests in the batch by adapter, up to the highest number that has had any
        self._rank_sum = 0  # of the adapters of the batch; that of the base model is 0
        self._rank_tokens = 0  # ranks of decoding sequences, summed; only if step costs depend on it
        self._asynchronous = kv.lags = limits.asynchronous
        self.holds = limits.asynchronous or limits.ends_scan
        self._ends = DecodeEnds(overruns=limits.asynchronous)
        self.overran = 0
        self._ending: list[Request] = []  # running, with their last token on its way
        self._ended: list[Request] = []  # the same, but preempted
        self._passed_by: list[Request] = []  # running, but not reached by the scan of this step
        self._first_tokens: list[Request] = []  # prompts that are complete, with their token on its way
        self._in_flight: list[Request] = []  # preempted or passed by, with a token on its way
        self.late: list[Request] = []
        self._partial: Request | None = None  # the sequence whose prompt is computed in part, always the newest
        self._prefill_step = -limits.prefill_interval  # value of ``decode_steps`` after the last step with prefill
        self._left_waiting = False  # whether that step left requests waiting
        self._partial_waits = False  # whether the unfinished prompt gets no token in this step
        self._joined_step = 0  # value of ``decode_steps`` at the last admission
        self._closed = False  # whether the last boundary was too early to admit
        self._blocked_key = 0
        self._scanned: int | None = LOWEST_KEY  # the scan of the queue ended before this key; None: it saw all
        self._base_model = NO_BASE_MODEL
        self.decided = Step()

    def admit_base_model(self, number: int) -> None:
        """Let requests without an adapter join, under this adapter number. Call it before the first request."""
        self._base_model = number
        self._ranks = [*self._ranks, 0]
        self._costs = self._costs.with_base_model()

    # Decide the next step -------------------------------------------------------------------------------------------

    def compose(self, now: float) -> Step:
        """Decide the step that starts at ``now``: running sequences first, then the requests that may join.

        The scan for those may start loads of adapters, through the queue's ``pass_over``.
        """
        waiting, limits, step = self.waiting, self.limits, self.decided
        if step.prefills:
            step.prefills = []
        self.blocked, self._scanned, self._closed = UNBLOCKED, LOWEST_KEY, False

        if self.holds and self.late:
            self.late = [request for request in self.late if request.last_step >= 0]
        reaches_all = self.kv.reserve_decodes() or self._make_room(now)
        kv = self.kv
        prompt_tokens, preempted = 0, self.blocked == BY_KV
        if (
            waiting.ready or waiting.deferred or self._partial is not None or (self.sets_apart and self._any_waits())
        ) and not (limits.prefill_interval > 1 and self._holds_prefills()):
            budget = limits.batched_tokens - (0 if limits.prefill_first else kv.decoding + kv.drafted)
            if self._partial is not None and reaches_all:
                prompt_tokens = self._continue_prefill(self._partial, budget, now)
                preempted = self.blocked == BY_KV
            if not preempted and not (limits.interval > 1 and self._too_early_to_admit()):
                prompt_tokens += self._admit(budget - prompt_tokens, now)
            if limits.prefill_interval > 1:
                self._left_waiting = waiting.size() > 0

        if not self.running and not self._ended:
            step.steps = step.tokens = step.decoding = 0
            step.first_s = step.growth_s = step.host_s = 0.0
            return step
        if step.prefills and limits.prefill_first:
            return self._compose_prefills_only(prompt_tokens, now)
        if self.paused:
            self.paused = [group for group in self.paused if group[0] < now]
        costs = self._costs
        step.decoding = decoding = kv.decoding
        decoded = decoding + kv.drafted
        step.tokens = tokens = prompt_tokens + decoded
        details = self.details() if costs.detailed else NO_DETAILS
        step.first_s = costs.step(tokens, kv.tokens + decoded, self.distinct_adapters, self._rank_sum, details)
        step.growth_s = costs.per_kv_token_s * decoding
        if costs.has_host:
            step.host_s = costs.host_s(decoding + len(step.prefills))
            if not self._asynchronous:
                step.first_s += step.host_s
        if not tokens:
            step.first_s = 0.0  # all wait for their last token
        if step.prefills or self.paused or preempted or (self.holds and (self._ending or self.late)):
            step.steps = 1
        else:
            step.steps = self._equal_steps()
        return step

    def _any_waits(self) -> bool:
        """Return whether requests wait that are in no queue; asked only if it ``sets_apart``."""
        return False

    def _make_room(self, now: float) -> bool:
        """Preempt until every decode has a block for its next token; return whether the scan reaches all of them.

        With ``ends_scan`` it does not if a request preempts itself: those behind it get no token in this step.
        """
        reaches_all = True
        while not self.kv.reserve_decodes():
            lacking = self._first_that_lacks() if self.limits.ends_scan and self.waiting.by_priority else None
            order = list(self.running)
            if self._preempt(now) is lacking and lacking is not None:
                behind = order[order.index(lacking) + 1 :]
                self._pass_by([request for request in behind if request.last_step >= 0], now)
                reaches_all = False
        return reaches_all

    def _pass_by(self, requests: list[Request], now: float) -> None:
        """Let decoding sequences hold their blocks, without a token in the step that is being decided."""
        if not requests:
            return
        self._passed_by += requests
        for request in requests:
            request.generated = self._generated(request) - 1  # as if its prompt were computed again
            self._ends.remove(request)
            self._note_last_token(request, now)
        self._hold(requests)

    def _first_that_lacks(self) -> Request | None:
        """Return the first decoding sequence that finds no block for its next token."""
        free = self.kv.free_blocks()
        for request in self.running:
            if request.last_step >= 0 and not held_tokens(request, self.decode_steps) % self.kv.size:
                free -= 1
                if free < 0:
                    return request
        return None

    def tokens_so_far(self, request: Request) -> int:
        """Return how many tokens a running request had when the step under way was decided."""
        if request.last_step >= 0:
            return self._generated(request) - int(self._asynchronous)
        return request.output_tokens - 1 if request in self._ending else request.generated

    def _generated(self, request: Request) -> int:
        """Return the tokens of a decoding sequence, with the one that the step before this one gives it."""
        return request.output_tokens - (request.last_step - self.decode_steps)

    def _continue_prefill(self, request: Request, budget: int, now: float) -> int:
        """Compute the next chunk of an unfinished prompt; return its tokens.

        If blocks lack, preempt others of lower priority, or the request itself.
        """
        chunk = min(request.to_prefill, budget)
        while not self.kv.take(request, chunk, chunk):
            self._preempt(now)
            if self._partial is None:
                return 0
        if chunk:
            request.chunk = chunk
            request.context += chunk
            request.to_prefill -= chunk
            self.decided.prefills.append(request)
        return chunk

    def _holds_prefills(self) -> bool:
        """Return whether it is too early to compute prompts; an unfinished one then waits, outside the step."""
        early = self.decode_steps - self._prefill_step < self.limits.prefill_interval - 1
        holds = early and self.kv.decoding > 0 and not self._left_waiting
        partial = self._partial
        if partial is not None and holds != self._partial_waits:
            if holds:
                self._count_out([partial])
                self.waiting.pause(partial)
            else:
                self._partial_rejoins(partial)
            self._partial_waits = holds
        self._closed = holds
        return holds

    def _partial_rejoins(self, partial: Request) -> None:
        """Count an unfinished prompt among those of the step again."""
        self._partial_waits = False
        self._count_in([partial])
        self.waiting.resume(partial)

    def _too_early_to_admit(self) -> bool:
        """Return whether requests wait, and it is too early to admit them."""
        limits, waiting = self.limits, self.waiting.size()
        if not self.running or not waiting:
            return False
        steps = self.decode_steps - self._joined_step
        if steps and limits.waiting_ratio and waiting >= int(len(self.running) * limits.waiting_ratio):
            return False
        self._closed = steps < limits.interval
        return self._closed

    def _admit(self, budget: int, now: float) -> int:
        """Admit waiting requests while tokens, batch slots and KV blocks allow; return the tokens of their prompts."""
        waiting, running, kv, limits, rule = self.waiting, self.running, self.kv, self.limits, self.rule
        ready, deferred, prefills, users = waiting.ready, waiting.deferred, self.decided.prefills, self._users
        chooses, caches, whole = self._chooses, self._caches, limits.whole_prompt
        late, left, free_slots = waiting.late, budget, limits.num_seqs - len(running)
        if chooses:
            waiting.begin()
        if rule is not None:
            rule.begin(running, self.decode_steps)
        while left and (ready or deferred):
            if not free_slots:
                self.blocked = BY_BATCH_SLOTS
                break
            if chooses:
                candidate = waiting.next_candidate()
                if candidate is None:
                    self._scanned = None
                    break
                request = candidate
                self._scanned = request.key
                if not waiting.may_join(request):
                    if waiting.pass_over(request):
                        continue
                    break
            else:
                request = ready[0]

            # The step computes what of the prompt is not cached and fits into the budget.
            cached = kv.cached_tokens(request) if caches else 0
            prompt = request.to_prefill - cached
            chunk = prompt if prompt <= left else left
            if chunk < prompt and not limits.chunked:
                break
            if rule is None:
                fits = kv.take(request, chunk, prompt if whole else chunk, cached)
            else:
                fits = rule.fits(request) and kv.take(request, chunk, 0, cached)
            if not fits:
                self.blocked, self._blocked_key = BY_KV, request.key
                break

            if chooses:
                waiting.take(request)
            else:
                ready.popleft()  # the candidate was its first
                if late:
                    waiting.bring_forward()
            if rule is not None:
                rule.joined(request)
            running[request] = None
            adapter = request.adapter
            if adapter >= len(users):
                self._widen_users(adapter)
            users[adapter] = count = users[adapter] + 1
            if count == 1:
                self._count_adapter(adapter, 1)
            if request.admitted_s < 0:
                request.admitted_s = now
            request.chunk = chunk
            request.context = cached + chunk
            request.to_prefill = prompt - chunk
            prefills.append(request)
            left -= chunk + kv.padding
            free_slots -= 1
        if left < budget:
            self._joined_step = self.decode_steps
        if self.blocked == UNBLOCKED and (waiting.over_limit or (deferred and waiting.defers)):
            self.blocked = BY_ADAPTER_LIMIT
        return budget - left

    def _preempt(self, now: float) -> Request:
        """Take a request out of the batch, and return it: the newest, or with priorities the last in their order.

        A step that preempts admits no request.
        """
        self.kv = kv = self.kv.before_preemption()
        self._caches = kv.caches
        request = max(self.running, key=by_key) if self.waiting.by_priority else next(reversed(self.running))
        self.blocked, self._blocked_key = BY_KV, request.key
        request.preemptions += 1
        self.preempted += 1
        if request.last_step == HOLDING:
            self._ending.remove(request)
            self._leave([request], early=True)
            self._ended.append(request)
            return request
        if request.last_step >= 0:
            request.generated = self._generated(request)
            # The step that has just ended gave it a token. With prefill_first, too: a request joins only if each decode
            # keeps its next block, so only sequences whose prefill has just ended can lack theirs.
            assert not self.paused or request.last_token_s == now
            self._note_last_token(request, now)
        else:
            assert request is self._partial, "all older prompts are complete"
            if self._partial_waits:
                self._partial_rejoins(request)
            self._partial = None
        self._leave_early(request)
        if request.generated == request.output_tokens:  # a stop token is on its way
            self.waiting.pause(request)
            request.last_step = HOLDING
            self._ended.append(request)
            return request
        request.to_prefill = request.prompt_tokens + request.generated
        request.context = 0
        self.waiting.push_front(request)
        return request

    def _note_last_token(self, request: Request, now: float) -> None:
        """Note when a sequence got its last token that does not get one in this step."""
        if request in self.late:
            self.late.remove(request)  # it was passed by, and its last token came before
        elif self._asynchronous:
            self._in_flight.append(request)
        else:
            request.last_token_s = now

    def _compose_prefills_only(self, prompt_tokens: int, now: float) -> Step:
        """Decide a step of prefills only, for which all decodes wait; only the adapters of the prompts take part."""
        step = self.decided
        if not self.paused and self.kv.decoding:
            self.paused.append((now, self.kv.decoding))
        step.steps, step.tokens, step.decoding = 1, prompt_tokens, 0
        ranks = [self._ranks[adapter] for adapter in {request.adapter for request in step.prefills}]
        distinct = len(ranks) - ranks.count(0)  # the base model has no rank
        details = self.details() if self._costs.detailed else NO_DETAILS
        step.first_s, step.growth_s = self._costs.step(prompt_tokens, 0, distinct, sum(ranks), details), 0.0
        step.first_s += self._costs.host_s(len(step.prefills))
        return step

    def _equal_steps(self) -> int:
        """Return how many steps may follow until a sequence ends or lacks a KV block, or another request may join."""
        if self.blocked == BY_KV and self.rule is not None and self.rule.timed:
            return 1
        if (self.blocked == BY_KV or self.blocked == BY_ADAPTER_LIMIT) and self.waiting.may_reorder():
            return 1
        steps = self.kv.steps_that_fit(self._ends.next_step - self.decode_steps)
        if not self._closed:
            return steps
        if self.limits.prefill_interval > 1:
            return min(steps, max(1, self._prefill_step + self.limits.prefill_interval - 1 - self.decode_steps))
        since = self.decode_steps - self._joined_step
        return min(steps, 1 if since == 0 and self.limits.waiting_ratio else self.limits.interval - since)

    def may_change(self, key: int) -> bool:
        """Return whether a request with this key that becomes ready now may change the next boundary.

        It may join, or be the first to find no batch slot. If another request lacked KV blocks, only those ahead may
        join.
        """
        if self._closed:
            return self.limits.waiting_ratio > 0
        if self.blocked == UNBLOCKED or self.blocked == BY_ADAPTER_LIMIT or self.waiting.takes_turns:
            return True
        return self.blocked == BY_KV and key < self._blocked_key and len(self.running) < self.limits.num_seqs

    # End the step ---------------------------------------------------------------------------------------------------

    def complete(self, steps: int, now: float) -> list[Request]:
        """End ``steps`` steps at ``now``; return the finished requests, whose blocks are free again.

        Sets the time of first tokens. With asynchronous scheduling ``deliver`` does that, and what has finished by now
        are requests whose last token came from the step before.
        """
        step = self.decided
        if self.waiting.deferred:
            self.waiting.end_steps(steps)
        if not step.decoding:
            steps = 0  # decodes, if there are any, pause
        elif self.paused:
            self.paused = []
        self.decode_steps = ended_step = self.decode_steps + steps
        self.kv.grow(steps)
        ends = self._ends
        finished = ends.pop_next() if ends.next_step <= ended_step else []
        if step.prefills:
            self._prefill_step = ended_step
            self._complete_prefills(now, finished)
        if self.holds:
            if self.late:
                if self._asynchronous:
                    self._first_tokens += self.late
                else:
                    self._note_tokens(self.late, now)
                self.late = []
            self.overran = 0
            if self._ending or self._passed_by or (finished and self._asynchronous):
                finished = self._process_last_tokens(finished)
        if finished:
            self._leave(finished)
            if self.rule is not None:
                for request in finished:
                    self.rule.left(request)
        if self.holds and self._ended:
            finished += self._ended
            self._ended = []
        return finished

    def _process_last_tokens(self, done: list[Request]) -> list[Request]:
        """Let requests end whose last token came from the step before the last one; return them.

        :param done: those that the last step took out of the decodes.
        """
        stopped: list[Request] = []
        if self._passed_by:
            passed_by, self._passed_by = self._passed_by, []
            stopped = [request for request in passed_by if request.generated + 1 == request.output_tokens]
            going_on = [request for request in passed_by if request.generated + 1 < request.output_tokens]
            if going_on:
                self._resume(going_on)
            if not self._asynchronous:
                return done
        ended, before, self._ending = self._ending + stopped, self.decode_steps, []
        for request in done:
            (ended if request.last_step < before else self._ending).append(request)
        self.overran = len(done) - len(self._ending)
        if self._ending:
            self._hold(self._ending)
        return ended

    def deliver(self, now: float) -> None:
        """Note when tokens come that were on their way when the step under way was decided."""
        if self._first_tokens:
            self._note_tokens(self._first_tokens, now)
            self._first_tokens = []
        if self._in_flight:
            for request in self._in_flight:
                request.last_token_s = now
            self._in_flight = []

    def _note_tokens(self, requests: list[Request], now: float) -> None:
        """Note the tokens that follow from prompts being complete."""
        for request in requests:
            if request.first_token_s < 0:
                request.first_token_s = now
            else:
                self.recompute_gaps.append(now - request.last_token_s)

    def _complete_prefills(self, now: float, finished: list[Request]) -> None:
        """Give each sequence whose prompt is complete its token. It decodes from now on, unless that was its last."""
        complete = self.decided.prefills
        self._partial = None
        if complete[-1].to_prefill:
            self._partial, complete = complete[-1], complete[:-1]
        if self._asynchronous:
            self._first_tokens += complete
        else:
            self._note_tokens(complete, now)
        ended = self._ends.start(complete, self.decode_steps)
        finished += ended
        self.kv.start_decodes(complete)
        if self._costs.detailed:
            self._rank_tokens += sum([self._ranks[request.adapter] for request in complete])
        if self.limits.prefill_first:
            if len(complete) > len(ended):
                self.paused.append((now, len(complete) - len(ended)))
            for request in complete:
                request.last_token_s = now

    def charge_begun(self, steps: int) -> None:
        """Charge tenants for the steps of the leap under way that have begun: who comes now is lifted by that."""

    def expel(self, request: Request) -> None:
        """Take a request that cannot continue out of the batch; call it right after ``complete``."""
        if request is self._partial:
            if self._partial_waits:
                self._partial_rejoins(request)
            self._partial = None
        elif request.last_step == HOLDING:
            self._ending.remove(request)
        elif self.paused:
            # It got its first token in this step, like the others of the last group.
            since, count = self.paused.pop()
            if count > 1:
                self.paused.append((since, count - 1))
        self._leave_early(request)
        if self.rule is not None:
            self.rule.left(request)

    # The sums of the batch ------------------------------------------------------------------------------------------

    def _leave(self, requests: list[Request], *, early: bool = False) -> None:
        """Take requests out of the batch, and their blocks back."""
        running = self.running
        self.kv.give_back(requests, early=early)
        for request in requests:
            del running[request]
        self._count_out(requests)

    def _count_out(self, requests: list[Request]) -> None:
        """Count requests that get no more tokens out of the sums of the batch."""
        users = self._users
        for request in requests:
            if request.last_step != HOLDING:
                adapter = request.adapter
                users[adapter] = count = users[adapter] - 1
                if not count:
                    self._count_adapter(adapter, -1)
        if self._costs.detailed:
            self._rank_tokens -= sum([self._ranks[r.adapter] for r in requests if r.last_step >= 0])

    def _count_in(self, requests: list[Request]) -> None:
        """Count requests that get tokens, for the first time or again."""
        users = self._users
        for request in requests:
            adapter = request.adapter
            if adapter >= len(users):
                self._widen_users(adapter)
            users[adapter] = count = users[adapter] + 1
            if count == 1:
                self._count_adapter(adapter, 1)

    def _widen_users(self, adapter: int) -> None:
        """Make room for the count of an adapter; a replica that never sees one needs none."""
        users = self._users
        users.extend([0] * (min(max(adapter + 1, 2 * len(users)), len(self._ranks)) - len(users)))

    def uses(self, adapter: int) -> bool:
        """Return whether the batch has a request for an adapter that gets tokens."""
        return adapter < len(self._users) and self._users[adapter] > 0

    def _hold(self, requests: list[Request]) -> None:
        """Let decoding sequences hold their places and blocks, without getting tokens."""
        self._count_out(requests)
        self.kv.hold(requests)
        for request in requests:
            self.waiting.pause(request)

    def _resume(self, requests: list[Request]) -> None:
        """Let sequences decode again that the scan did not reach."""
        self._ends.start(requests, self.decode_steps)
        self.kv.resume(requests)
        self.late += requests
        self._count_in(requests)
        for request in requests:
            self.waiting.resume(request)
        if self._costs.detailed:
            self._rank_tokens += sum([self._ranks[request.adapter] for request in requests])

    def _count_adapter(self, adapter: int, change: int) -> None:
        """Count an adapter that joins the batch (1) or leaves it (-1)."""
        if adapter != self._base_model:
            self.distinct_adapters += change
            self._rank_sum += change * self._ranks[adapter]
        self.adapters_changed = True
        if self.toggled is not None:
            self.toggled.append(adapter)

    def _leave_early(self, request: Request) -> None:
        """Take a request out of the batch before its last token."""
        self._leave([request], early=True)
        if request.last_step >= 0:
            self._ends.remove(request)
            request.last_step = -1

    def details(self) -> StepDetails:
        """Return what detailed step costs need of the step just decided."""
        step = self.decided
        attended, rank_tokens = 0.0, self._rank_tokens if step.decoding else 0
        for request in step.prefills:
            chunk = request.chunk
            attended += chunk * (request.context - chunk + 0.5 * (chunk + 1))
            rank_tokens += chunk * self._ranks[request.adapter]
        passed = self.waiting.passed(self._scanned) if self.waiting.deferred and self._scanned != LOWEST_KEY else 0
        return step.decoding + len(step.prefills), step.tokens - step.decoding, attended, rank_tokens, passed

    def scheduled(self) -> dict[int, int]:
        """Return the tokens of each request in the step just decided, by request index."""
        step = self.decided
        decoding = self.running if step.decoding else ()
        tokens = {request.index: 1 for request in decoding if request.last_step >= 0}
        return tokens | {request.index: request.chunk for request in step.prefills}

    def check_integrity(self) -> None:
        """Assert that the running sums agree with a count over the running sequences."""
        kv, ranks = self.kv, self._ranks
        decoding = [r for r in self.running if r.last_step >= 0]
        contexts = [held_tokens(r, self.decode_steps) for r in decoding]
        assert contexts == [
            r.context + self.decode_steps - (r.last_step - r.output_tokens + r.generated + 1) for r in decoding
        ]
        holding = [r for r in self.running if r.last_step == HOLDING]
        assert kv.aside == sum(r.context for r in [*holding, *kv.apart])
        assert set(holding) == {*self._ending, *self._passed_by}
        assert (kv.decoding, kv.tokens) == (len(decoding), sum(contexts))
        kv.check_integrity()
        if self._costs.detailed:
            assert self._rank_tokens == sum(ranks[r.adapter] for r in decoding)
        assert len(self.running) <= self.limits.num_seqs
        out = self._partial if self._partial_waits else None
        adapters = Counter(r.adapter for r in self.running if r.last_step != HOLDING and r is not out)
        assert {adapter: count for adapter, count in enumerate(self._users) if count} == adapters
        assert self._rank_sum == sum(ranks[adapter] for adapter in adapters)
        assert self.distinct_adapters == len(adapters.keys() - {self._base_model})
