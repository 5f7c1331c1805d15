"""The step scheduler of one replica: which requests run in the next step, and for how many equal steps.

Pure: it knows nothing of SimPy. The world calls ``compose`` at a step boundary, lets the time of the step (or of a
leap of equal steps) pass, and calls ``complete``. The rules are those of vLLM's V1 scheduler (docs/model.md);
``Limits`` and ``KvRule`` cover the rules of other engines. The scheduler does not know which adapters are resident: the
waiting queue decides which requests may join.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from heapq import heappop, heappush

from sim.policies.admission import ReadyQueue
from sim.policies.base_model import AdapterCounts
from sim.policies.costs import StepCosts
from sim.policies.kv.kv_memory import KvBlocks
from sim.policies.kv.kv_rules import KvRule
from sim.traffic.request import Request

UNBLOCKED, BY_BATCH_SLOTS, BY_KV, BY_SLOTS = 0, 1, 2, 3
"""Why a request was not admitted at the last boundary: no batch slot, no KV blocks, or (where loads start at admission)
no room for its adapter among those in use."""

LOWEST_KEY = -(1 << 62)
"""A key below all others."""

INDEX_BITS = 40
INDEX_MASK = (1 << INDEX_BITS) - 1


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
    :ivar prefills: sequences that prefill in this step, newly admitted ones included.
    """

    steps: int = 0
    tokens: int = 0
    decoding: int = 0
    first_s: float = 0.0
    growth_s: float = 0.0
    prefills: list[Request] = field(default_factory=list)


class Scheduler:
    """The batch of one replica: running sequences, their KV blocks, and the rules by which waiting requests join.

    :param ranks: rank of every adapter.
    :ivar step: decode steps so far: the counter that finish times and KV phases refer to.
    :ivar adapters: requests in the batch by adapter, in the order in which the adapters joined it.
    :ivar adapters_changed: whether an adapter joined or left the batch since the world last set this to False.
    :ivar toggled: optional list; the scheduler appends an adapter each time it joins or leaves the batch.
    :ivar blocked: why the last boundary left a request waiting.
    :ivar recompute_gaps: seconds between two tokens of a sequence that was preempted between them; the world
        records and empties the list.
    :ivar preempted: preemptions so far.
    :ivar paused: with ``prefill_first``, decoding sequences that wait for prefills: (time of their last token, how
        many).
    """

    def __init__(
        self,
        limits: Limits,
        kv: KvBlocks,
        waiting: ReadyQueue,
        ranks: list[int],
        costs: StepCosts,
        rule: KvRule | None = None,
    ) -> None:
        self.limits = limits
        self.rule = rule
        self.paused: list[tuple[float, int]] = []
        self._gated = limits.interval > 1
        self._alone = limits.prefill_first
        self._plain = not (self._gated or self._alone or rule is not None)
        self._closed = False  # whether the last boundary was too early to admit
        self._joined_step = 0
        self.kv = kv
        self.waiting = waiting
        self.running: dict[int, Request] = {}
        self.step = 0
        self.blocked = UNBLOCKED
        self.recompute_gaps: list[float] = []
        self._blocked_key = 0
        self._scanned: int | None = LOWEST_KEY  # the scan of the queue ended before this key; None: it saw all
        self._costs = costs
        self._ranks = ranks
        self._rank_tokens = 0  # of decoding sequences; counted only if step costs depend on it
        self._rank_sum = 0
        self.adapters: dict[int, int] = {}
        self.adapters_changed = False
        self.toggled: list[int] | None = None
        self._ends: list[int] = []  # heap of (last step, index), packed into one number: faster to compare than tuples
        self.preempted = 0
        self._partial: Request | None = None
        self._chunk = 0  # tokens of the partial prefill in this step
        self._next = Step()

    def serve_base_model(self, number: int) -> None:
        """Let requests without an adapter join, under this adapter number. Call it before the first request."""
        self.adapters = AdapterCounts(number)
        self._ranks = [*self._ranks, 0]

    def complete(self, steps: int, now: float) -> list[Request]:
        """End ``steps`` steps at ``now``; return the finished requests, whose blocks are free again.

        Sets the time of first tokens.
        """
        if not (self._plain or self._next.decoding):  # nothing decodes, or decodes wait for prefills
            steps = 0
        kv, ends, running = self.kv, self._ends, self.running
        kv.tokens = held = kv.tokens + steps * kv.decoding
        if held > kv.peak_tokens:
            kv.peak_tokens = held
        self.step = step = self.step + steps
        finished: list[Request] = []
        while ends and ends[0] >> INDEX_BITS <= step:
            request = running.get(heappop(ends) & INDEX_MASK)
            if request is not None and request.last_step == step:  # otherwise it was preempted since
                self._stop_decode(request, request.prompt_tokens + request.output_tokens - 1)
                finished.append(request)
        if self._next.prefills:
            self._complete_prefills(now, finished)
        adapters = self.adapters
        for request in finished:
            del running[request.index]
            adapter = request.adapter
            count = adapters[adapter]
            if count > 1:
                adapters[adapter] = count - 1
            else:
                self._drop_adapter(adapter)
        if not self._plain:
            self._account(finished)
        return finished

    def _account(self, finished: list[Request]) -> None:
        """At the end of a step, give back reserved KV memory and forget pauses that have ended."""
        if self.rule is not None:
            for request in finished:
                self.rule.left(request)
        if self._next.decoding:
            self.paused = []

    def compose(self, now: float) -> Step:
        """Decide the step that starts at ``now``."""
        step, kv, waiting = self._next, self.kv, self.waiting
        if step.prefills:
            step.prefills = []
        self.blocked = UNBLOCKED
        self._scanned = LOWEST_KEY
        self._closed = preempted = False
        tokens = decoding = kv.decoding
        spare = kv.total - kv.prefill - decoding - kv.tokens // kv.size  # as kv.spare_at_least(1)
        if self._alone:
            tokens = 0
        if spare < 0 or self._partial is not None:
            tokens, spare = self._continue_running(spare, now)
            decoding = kv.decoding
            preempted = self.blocked != UNBLOCKED
        if (waiting.ready or waiting.deferred) and not preempted and not (self._gated and self._gate_closed()):
            tokens = self._admit(tokens, spare, now)
            if self.blocked == UNBLOCKED and (waiting.deferred or waiting.over_limit):
                self.blocked = BY_SLOTS
        if not self.running:
            step.steps = 0
            return step
        costs = self._costs
        if self._alone:
            if step.prefills:
                return self._compose_prefill(tokens, now)
            tokens = decoding
            if self.paused:
                self.paused = [group for group in self.paused if group[0] < now]
        step.decoding = decoding
        step.tokens = tokens
        step.growth_s = costs.per_kv_token_s * decoding
        kv_tokens = kv.tokens + decoding
        if costs.detailed:
            step.first_s = costs.step(tokens, kv_tokens, len(self.adapters), self._rank_sum, *self.details())
        else:
            step.first_s = costs.step(tokens, kv_tokens, len(self.adapters), self._rank_sum)
        if step.prefills or preempted or self.paused:
            step.steps = 1
        else:
            step.steps = self._equal_steps() if self._plain else self._steps_to_look()
        return step

    def _steps_to_look(self) -> int:
        """Return how many equal steps may follow before the next attempt to admit."""
        if self._closed:
            return min(self._equal_steps(), self._steps_closed())
        timed = self.blocked == BY_KV and self.rule is not None and self.rule.timed
        return 1 if timed else self._equal_steps()

    def _compose_prefill(self, tokens: int, now: float) -> Step:
        """Decide a step of prefills only, for which all decodes wait."""
        step, costs = self._next, self._costs
        if not self.paused and self.kv.decoding:
            self.paused.append((now, self.kv.decoding))
        step.steps, step.tokens, step.decoding, step.growth_s = 1, tokens, 0, 0.0
        ranks = [self._ranks[adapter] for adapter in {request.adapter for request in step.prefills}]
        distinct = len(ranks) - ranks.count(0)  # the base model has no rank
        if costs.detailed:
            step.first_s = costs.step(tokens, 0, distinct, sum(ranks), *self.details())
        else:
            step.first_s = costs.step(tokens, 0, distinct, sum(ranks))
        return step

    def _gate_closed(self) -> bool:
        """Return whether it is too early to admit waiting requests."""
        limits = self.limits
        steps = self.step - self._joined_step
        self._closed = bool(self.running) and steps < limits.interval
        if self._closed and steps and limits.waiting_ratio:
            self._closed = self.waiting.size() < int(len(self.running) * limits.waiting_ratio)
        return self._closed

    def _steps_closed(self) -> int:
        """Return the number of steps until waiting requests may be admitted, or are counted, again."""
        steps = self.step - self._joined_step
        return 1 if steps == 0 and self.limits.waiting_ratio else self.limits.interval - steps

    @property
    def decided(self) -> Step:
        """The step that ``compose`` decided last."""
        return self._next

    def details(self) -> tuple[int, int, float, int, int]:
        """Return what detailed step costs need.

        :returns: sequences, prompt tokens, pairs of a prompt token and a token it attends to, the sum of ranks over all
            tokens, and the waiting requests that the scan passed over.
        """
        decoding = self._next.decoding
        prefills, attended, rank_tokens = self._next.prefills, 0.0, self._rank_tokens if decoding else 0
        for request in prefills:
            chunk = self._chunk if request is self._partial else request.context
            attended += chunk * (request.context - chunk + 0.5 * (chunk + 1))
            rank_tokens += chunk * self._ranks[request.adapter]
        passed = self.waiting.passed(self._scanned) if self.waiting.deferred and self._scanned != LOWEST_KEY else 0
        return decoding + len(prefills), self._next.tokens - decoding, attended, rank_tokens, passed

    def _equal_steps(self) -> int:
        """Return how many steps may follow until a sequence ends or lacks a KV block."""
        ends, kv, running = self._ends, self.kv, self.running
        while True:
            end = ends[0] >> INDEX_BITS
            request = running.get(ends[0] & INDEX_MASK)
            if request is not None and request.last_step == end:
                break
            heappop(ends)  # it was preempted since it was pushed
        steps = end - self.step
        if (kv.tokens + kv.decoding * (steps + kv.size - 1)) // kv.size <= kv.total - kv.prefill:
            return steps  # the quick bound of kv.steps_that_fit, without a call
        self._count_phases()
        return kv.steps_that_fit(self.step, steps)

    def may_change(self, key: int) -> bool:
        """Return whether a request with this key that becomes ready now may change the next boundary.

        It may join, or be the first to find no batch slot. If another request lacked KV blocks, only those ahead may
        join.
        """
        if self._closed:
            return self.limits.waiting_ratio > 0
        if self.blocked == UNBLOCKED or self.blocked == BY_SLOTS or self.waiting.by_turns:
            return True
        return self.blocked == BY_KV and key < self._blocked_key and len(self.running) < self.limits.num_seqs

    def _count_phases(self) -> None:
        if not self.kv.phases:
            decoding = (self._held(request) for request in self.running.values() if request.last_step >= 0)
            self.kv.count_phases(self.step, decoding)

    def _continue_running(self, spare: int, now: float) -> tuple[int, int]:
        """Preempt until every decode has its next block, then continue the unfinished prefill.

        :returns: scheduled tokens and blocks left.
        """
        kv, alone = self.kv, self._alone
        if spare < 0:
            self._count_phases()
            while (spare := kv.spare(self.step, 1)) < 0:
                self._preempt_newest(now)
        request = self._partial
        if request is None:
            return 0 if alone else kv.decoding, spare
        decoding = 0 if alone else kv.decoding
        self._chunk = chunk = min(request.to_prefill, self.limits.batched_tokens - decoding)
        need = kv.blocks(request.context + chunk) - kv.blocks(request.context)
        if need > spare:
            self._count_phases()
            spare = kv.spare(self.step, 1)
        if need > spare:
            self._preempt_newest(now)
        elif chunk:
            kv.prefill += need
            request.to_prefill -= chunk
            request.context += chunk
            self._next.prefills.append(request)
            return decoding + chunk, spare - need
        return 0 if alone else kv.decoding, spare

    def _preempt_newest(self, now: float) -> None:
        """Take the newest request out of the batch. A step that preempts admits no request."""
        _, request = self.running.popitem()
        if request is self._partial:
            self._partial = None
            self.kv.prefill -= self.kv.blocks(request.context)
        else:
            request.generated = request.output_tokens - (request.last_step - self.step)
            # The step that has just ended gave it a token. With prefill_first, too: a request joins only if each decode
            # keeps its next block, so only sequences whose prefill has just ended can lack theirs.
            assert not self.paused or request.last_token_s == now
            request.last_token_s = now
            self._stop_decode(request, self._held(request))
        self._drop_adapter(request.adapter)
        request.to_prefill = request.prompt_tokens + request.generated
        request.context = 0
        request.preemptions += 1
        self.preempted += 1
        self.waiting.push_front(request)
        self.blocked, self._blocked_key = BY_KV, request.key

    def _admit(self, tokens: int, spare: int, now: float) -> int:
        """Admit waiting requests while tokens, batch slots and KV blocks allow; return the tokens scheduled by then."""
        waiting, running, kv, adapters, limits = self.waiting, self.running, self.kv, self.adapters, self.limits
        ready, deferred, size, prefills = waiting.ready, waiting.deferred, kv.size, self._next.prefills
        whole, rule = limits.whole_prompt, self.rule
        budget, before = limits.batched_tokens - tokens, len(running)
        if waiting.by_turns:
            waiting.begin()
        if rule is not None:
            rule.begin(running.values(), adapters, self.step)
        while budget > 0 and (ready or deferred):
            if len(running) == limits.num_seqs:
                self.blocked = BY_BATCH_SLOTS
                break
            request = waiting.first()
            self._scanned = None if request is None else request.key
            if request is None:
                break
            prefill = request.to_prefill
            if prefill > budget and not limits.chunked:
                break
            need = -(-(prefill if whole or prefill < budget else budget) // size)
            if rule is not None:
                if not rule.fits(request):
                    self.blocked, self._blocked_key = BY_KV, request.key
                    break
                rule.joined(request)
            elif need > spare:
                self._count_phases()
                spare = kv.spare(self.step, 1)
                if need > spare:
                    self.blocked, self._blocked_key = BY_KV, request.key
                    break
            waiting.take()
            running[request.index] = request
            adapter = request.adapter
            if adapter in adapters:
                adapters[adapter] += 1
            else:
                adapters[adapter] = 1
                self.adapters_changed = True
                if self.toggled is not None:
                    self.toggled.append(adapter)
                self._rank_sum += self._ranks[adapter]
            if request.admitted_s < 0:
                request.admitted_s = now
            if prefill > budget:
                prefill = budget
                need = -(-prefill // size)
            request.to_prefill -= prefill
            request.context = prefill
            prefills.append(request)
            kv.prefill += need
            spare -= need
            budget -= prefill
        if self._gated and len(running) > before:
            self._joined_step = self.step
        return limits.batched_tokens - budget

    def _complete_prefills(self, now: float, finished: list[Request]) -> None:
        step, kv = self.step, self.kv
        self._partial = None
        kv.prefill = 0
        alone, started = self._alone, kv.decoding
        for request in self._next.prefills:
            context = request.context
            if request.to_prefill:
                self._partial = request
                kv.prefill = kv.blocks(context)
                continue
            if request.first_token_s < 0:
                request.first_token_s = now
            else:
                self.recompute_gaps.append(now - request.last_token_s)
            left = request.output_tokens - request.generated - 1
            if left == 0:
                finished.append(request)
                continue
            if alone:
                request.last_token_s = now
            request.last_step = last = step + left
            heappush(self._ends, last << INDEX_BITS | request.index)
            kv.decoding += 1
            kv.tokens += context
            if kv.phases:
                kv.phases[(context - 1 - step) % kv.size] += 1
            if self._costs.detailed:
                self._rank_tokens += self._ranks[request.adapter]
        if alone and kv.decoding > started:
            self.paused.append((now, kv.decoding - started))

    def _stop_decode(self, request: Request, held: int) -> None:
        """Remove a decoding sequence that holds ``held`` KV tokens from the running sums."""
        kv = self.kv
        request.last_step = -1
        kv.decoding -= 1
        kv.tokens -= held
        if kv.phases:
            kv.phases[(held - 1 - self.step) % kv.size] -= 1
        if self._costs.detailed:
            self._rank_tokens -= self._ranks[request.adapter]

    def expel(self, request: Request) -> None:
        """Take a request that cannot continue out of the batch; call it right after ``complete``."""
        del self.running[request.index]
        if request is self._partial:
            self._partial = None
            self.kv.prefill -= self.kv.blocks(request.context)
        else:
            if self.paused:  # it got its first token in this step, like the others of the last group
                since, count = self.paused.pop()
                if count > 1:
                    self.paused.append((since, count - 1))
            self._stop_decode(request, self._held(request))
        self._drop_adapter(request.adapter)
        if self.rule is not None:
            self.rule.left(request)

    def _held(self, request: Request) -> int:
        """Return the KV tokens of a decoding sequence: all its tokens except the last, minus those to come."""
        return request.prompt_tokens + request.output_tokens - 1 - (request.last_step - self.step)

    def _drop_adapter(self, adapter: int) -> None:
        adapters = self.adapters
        count = adapters[adapter]
        if count > 1:
            adapters[adapter] = count - 1
        else:
            del adapters[adapter]
            self.adapters_changed = True
            if self.toggled is not None:
                self.toggled.append(adapter)
            self._rank_sum -= self._ranks[adapter]

    def scheduled(self) -> dict[int, int]:
        """Return the tokens of each request in the step just decided, by request index."""
        decoding = self.running.values() if self._next.decoding else ()
        tokens = {request.index: 1 for request in decoding if request.last_step >= 0}
        for request in self._next.prefills:
            tokens[request.index] = self._chunk if request is self._partial else request.context
        return tokens

    def check_integrity(self) -> None:
        """Assert that the running sums agree with a count over the running sequences."""
        kv, step = self.kv, self.step
        decoding = [r for r in self.running.values() if r.last_step >= 0]
        contexts = [self._held(r) for r in decoding]
        assert contexts == [r.context + step - (r.last_step - r.output_tokens + r.generated + 1) for r in decoding]
        prefill = sum(kv.blocks(r.context) for r in self.running.values() if r.last_step < 0)
        assert (kv.decoding, kv.tokens, kv.prefill) == (len(decoding), sum(contexts), prefill)
        spare = kv.total - prefill - sum(map(kv.blocks, contexts))
        assert spare >= 0
        assert kv.spare_at_least(0) <= spare
        assert not kv.phases or kv.spare(step, 0) == spare
        if self._costs.detailed:
            assert self._rank_tokens == sum(self._ranks[r.adapter] for r in decoding)
        assert sum(self.adapters.values()) == len(self.running) <= self.limits.num_seqs
        assert self._rank_sum == sum(self._ranks[a] for a in self.adapters)
