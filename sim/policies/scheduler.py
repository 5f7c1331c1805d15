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
from sim.traffic.request import Request

UNBLOCKED: Final = 0
BY_BATCH_SLOTS: Final = 1
BY_KV: Final = 2
BY_ADAPTER_LIMIT: Final = 3
"""Why a request was not admitted at the last boundary: no batch slot, no KV blocks, or (where loads start at admission)
no room for its adapter among those in use."""

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
    """

    num_seqs: int
    batched_tokens: int
    whole_prompt: bool = True
    prefill_first: bool = False
    chunked: bool = True
    interval: int = 1
    waiting_ratio: float = 0.0


@dataclass(slots=True)
class Step:
    """The next step, or leap of equal steps. One object, filled again at every boundary.

    :ivar steps: how many equal steps may follow each other; 1 if a sequence prefills, 0 if the batch is empty.
    :ivar first_s: seconds of the first step; ``growth_s``: seconds that each further step adds to the one before.
    :ivar tokens: tokens of the first step; ``decoding``: sequences that decode in each.
    :ivar prefills: sequences that prefill in this step, newly admitted ones included; each computes ``chunk`` tokens.
    """

    steps: int = 0
    tokens: int = 0
    decoding: int = 0
    first_s: float = 0.0
    growth_s: float = 0.0
    prefills: list[Request] = field(default_factory=list)


class Scheduler:
    """The batch of one replica: running sequences, and the rules by which waiting requests join.

    :param ranks: rank of every adapter.
    :param rule: KV memory that a request must find to join, if that is more than its prompt needs.
    :ivar decode_steps: decode steps so far: the counter that finish times refer to.
    :ivar decided: the step that ``compose`` decided last.
    :ivar users: requests in the batch by adapter; those for the base model under its number.
    :ivar distinct_adapters: how many adapters the batch has, without the base model.
    :ivar adapters_changed: whether an adapter joined or left the batch since the world last set this to False.
    :ivar toggled: optional list; the scheduler appends an adapter each time it joins or leaves the batch.
    :ivar blocked: why the last boundary left a request waiting.
    :ivar recompute_gaps: seconds between two tokens of a sequence that was preempted between them; the world
        records and empties the list.
    :ivar preempted: preemptions so far.
    :ivar lost: requests preempted in the step just decided that lose their last token, and the time of the token before
        it; below 0: it came in the same leap.
    :ivar overrunning: requests that have ended, but take part in the step just decided, which cannot know it.
    :ivar paused: with ``prefill_first``, decoding sequences that wait for prefills: (time of their last token, how
        many).
    """

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
        self.users = [0] * len(ranks)
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
        self._rank_sum = 0  # of the adapters of the batch; that of the base model is 0
        self._rank_tokens = 0  # ranks of decoding sequences, summed; only if step costs depend on it
        self._ends = DecodeEnds()
        self._partial: Request | None = None  # the sequence whose prompt is computed in part, always the newest
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
        self.users.append(0)
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

        while not self.kv.reserve_decodes():
            self._preempt(now)
        kv = self.kv
        prompt_tokens, preempted = 0, self.blocked == BY_KV
        if waiting.ready or waiting.deferred or self._partial is not None:
            budget = limits.batched_tokens - (0 if limits.prefill_first else kv.decoding)
            if self._partial is not None:
                prompt_tokens = self._continue_prefill(self._partial, budget, now)
                preempted = self.blocked == BY_KV
            if not preempted and not (limits.interval > 1 and self._too_early_to_admit()):
                prompt_tokens += self._admit(budget - prompt_tokens, now)

        if not self.running:
            step.steps = 0
            return step
        if step.prefills and limits.prefill_first:
            return self._compose_prefills_only(prompt_tokens, now)
        if self.paused:
            self.paused = [group for group in self.paused if group[0] < now]
        costs = self._costs
        step.decoding = decoding = kv.decoding
        step.tokens = tokens = prompt_tokens + decoding
        details = self.details() if costs.detailed else NO_DETAILS
        step.first_s = costs.step(tokens, kv.tokens + decoding, self.distinct_adapters, self._rank_sum, details)
        step.growth_s = costs.per_kv_token_s * decoding
        step.steps = 1 if step.prefills or self.paused or preempted else self._equal_steps()
        return step

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
        ready, deferred, prefills, users = waiting.ready, waiting.deferred, self.decided.prefills, self.users
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
            users[adapter] += 1
            if users[adapter] == 1:
                self._count_adapter(adapter, 1)
            if request.admitted_s < 0:
                request.admitted_s = now
            request.chunk = chunk
            request.context = cached + chunk
            request.to_prefill = prompt - chunk
            prefills.append(request)
            left -= chunk
            free_slots -= 1
        if left < budget:
            self._joined_step = self.decode_steps
        if self.blocked == UNBLOCKED and (waiting.over_limit or (deferred and waiting.defers)):
            self.blocked = BY_ADAPTER_LIMIT
        return budget - left

    def _preempt(self, now: float) -> None:
        """Take a request out of the batch: the newest, or with priorities the last in their order.

        A step that preempts admits no request.
        """
        self.kv = kv = self.kv.before_preemption()
        self._caches = kv.caches
        request = max(self.running, key=by_key) if self.waiting.by_priority else next(reversed(self.running))
        if request.last_step >= 0:
            request.generated = request.output_tokens - (request.last_step - self.decode_steps)
            # The step that has just ended gave it a token. With prefill_first, too: a request joins only if each decode
            # keeps its next block, so only sequences whose prefill has just ended can lack theirs.
            assert not self.paused or request.last_token_s == now
            request.last_token_s = now
        else:
            assert request is self._partial, "all older prompts are complete"
            self._partial = None
        self._leave_early(request)
        request.to_prefill = request.prompt_tokens + request.generated
        request.context = 0
        request.preemptions += 1
        self.preempted += 1
        self.waiting.push_front(request)
        self.blocked, self._blocked_key = BY_KV, request.key

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

        Sets the time of first tokens.
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
            self._complete_prefills(now, finished)
        if finished:
            self._leave(finished)
            if self.rule is not None:
                for request in finished:
                    self.rule.left(request)
        return finished

    def _complete_prefills(self, now: float, finished: list[Request]) -> None:
        """Give each sequence whose prompt is complete its token. It decodes from now on, unless that was its last."""
        complete = self.decided.prefills
        self._partial = None
        if complete[-1].to_prefill:
            self._partial, complete = complete[-1], complete[:-1]
        for request in complete:
            if request.first_token_s < 0:
                request.first_token_s = now
            else:
                self.recompute_gaps.append(now - request.last_token_s)
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

    def expel(self, request: Request) -> None:
        """Take a request that cannot continue out of the batch; call it right after ``complete``."""
        if request is self._partial:
            self._partial = None
        elif self.paused:
            # It got its first token in this step, like the others of the last group.
            since, count = self.paused.pop()
            if count > 1:
                self.paused.append((since, count - 1))
        self._leave_early(request)
        if self.rule is not None:
            self.rule.left(request)

    # The sums of the batch ------------------------------------------------------------------------------------------

    def _leave(self, requests: list[Request]) -> None:
        """Take requests out of the batch, and their blocks back."""
        running, users = self.running, self.users
        self.kv.give_back(requests)
        for request in requests:
            del running[request]
            adapter = request.adapter
            users[adapter] -= 1
            if users[adapter] == 0:
                self._count_adapter(adapter, -1)
        if self._costs.detailed:
            self._rank_tokens -= sum([self._ranks[r.adapter] for r in requests if r.last_step >= 0])

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
        self._leave([request])
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
        assert (kv.decoding, kv.tokens) == (len(decoding), sum(contexts))
        kv.check_integrity()
        if self._costs.detailed:
            assert self._rank_tokens == sum(ranks[r.adapter] for r in decoding)
        assert len(self.running) <= self.limits.num_seqs
        adapters = Counter(request.adapter for request in self.running)
        assert self.users == [adapters[adapter] for adapter in range(len(ranks))]
        assert self._rank_sum == sum(ranks[adapter] for adapter in adapters)
        assert self.distinct_adapters == len(adapters.keys() - {self._base_model})
