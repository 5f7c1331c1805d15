"""The step scheduler of one replica: who runs in the next step, and for how many equal steps.

Pure: it knows nothing of SimPy. The world calls ``compose`` at a step boundary, lets the time of the step (or of a
leap of equal steps) pass, and calls ``complete``. The rules are those of vLLM's V1 scheduler (docs/model.md) over
adapters that never leave while in use.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from heapq import heappop, heappush

from sim.policies.admission import ReadyQueue
from sim.policies.costs import Batch
from sim.policies.memory import KvBlocks
from sim.traffic.request import Request

UNBLOCKED, BY_SEATS, BY_KV, BY_SLOTS = 0, 1, 2, 3
"""Why a request was not admitted at the last boundary: no seat, no KV blocks, or (where loads are asked for at
admission) no room for its adapter beside those in use."""


@dataclass(frozen=True, slots=True)
class Limits:
    """What bounds a step.

    :ivar num_seqs: sequences in the batch.
    :ivar batched_tokens: tokens in a step; at least ``num_seqs``, so that every decode gets its token.
    """

    num_seqs: int
    batched_tokens: int


@dataclass(slots=True)
class Step:
    """The next step; one object, filled anew at every boundary.

    :ivar steps: how many equal steps may follow each other; 1 when somebody prefills. 0: nobody runs.
    :ivar prefills: sequences that prefill in this step.
    :ivar admitted: those of them that were waiting until now.
    :ivar preempted: sequences that lost their KV blocks and wait again.
    """

    steps: int = 0
    batch: Batch = field(default_factory=Batch)
    prefills: list[Request] = field(default_factory=list)
    admitted: list[Request] = field(default_factory=list)
    preempted: list[Request] = field(default_factory=list)


class Scheduler:
    """Running sequences, their KV blocks, and the rules by which waiting ones join.

    :param ranks: rank of every adapter.
    :ivar step: decode steps so far: the counter that finish times and KV phases refer to.
    :ivar blocked: why the last boundary left an admissible request waiting.
    :ivar recompute_gaps: seconds between two tokens of a sequence that was preempted between them; the world
        takes them out.
    """

    def __init__(self, limits: Limits, kv: KvBlocks, waiting: ReadyQueue, ranks: list[int]) -> None:
        self.limits = limits
        self.kv = kv
        self.waiting = waiting
        self.running: dict[int, Request] = {}
        self.step = 0
        self.blocked = UNBLOCKED
        self.recompute_gaps: list[float] = []
        self._blocked_key = 0
        self._ranks = ranks
        self._rank_tokens = 0
        self._rank_sum = 0
        self._adapters: dict[int, int] = {}
        self._ends: list[tuple[int, int, Request]] = []
        self._partial: Request | None = None
        self._prefills: list[Request] = []
        self._next = Step()

    def complete(self, steps: int, now: float) -> list[Request]:
        """Note that ``steps`` steps ended at ``now``; return the requests whose last token came.

        First tokens are stamped here. The finished have left the batch and their blocks are free.
        """
        kv, ends = self.kv, self._ends
        kv.tokens = tokens = kv.tokens + steps * kv.decoding
        if tokens > kv.peak_tokens:
            kv.peak_tokens = tokens
        self.step = step = self.step + steps
        finished: list[Request] = []
        while ends and ends[0][0] <= step:
            request = heappop(ends)[2]
            if request.last_step == step:  # else it was preempted since
                # As _stop_decode with its last token out; here once per request.
                tokens = request.prompt_tokens + request.output_tokens - 1
                kv.phases[(tokens - 1 - step) % kv.size] -= 1
                kv.decoding -= 1
                kv.tokens -= tokens
                self._rank_tokens -= self._ranks[request.adapter]
                finished.append(request)
        if self._prefills:
            self._complete_prefills(now, finished)
        if finished:
            self._leave_batch(finished)
        return finished

    def compose(self, now: float) -> Step:
        """Decide the step that starts at ``now``."""
        step, kv, waiting = self._next, self.kv, self.waiting
        batch = step.batch
        batch.prefill_tokens = batch.rank_tokens = 0
        batch.attended = 0.0
        if self._prefills or step.preempted:
            step.prefills, step.admitted, step.preempted = [], [], []
        self.blocked = UNBLOCKED
        decoding = kv.decoding
        spare = kv.total - kv.prefill - decoding - kv.tokens // kv.size  # as kv.spare_at_least(1)
        budget = self.limits.batched_tokens - decoding
        if spare < 0 or self._partial is not None:
            budget, spare = self._continue_running(budget, spare, step, now)
            decoding = kv.decoding
        if step.preempted:
            self.blocked, self._blocked_key = BY_KV, step.preempted[-1].key
        elif waiting.line or waiting.aside:
            self._admit(budget, spare, step, now)
            if waiting.aside and self.blocked == UNBLOCKED:
                self.blocked = BY_SLOTS
        self._prefills = step.prefills
        if not self.running:
            step.steps = 0
            return step
        batch.decoding = decoding
        batch.prefilling = len(step.prefills)
        batch.kv_tokens = kv.tokens + decoding
        batch.distinct = len(self._adapters)
        batch.rank_sum = self._rank_sum
        batch.rank_tokens += self._rank_tokens
        step.steps = 1 if step.prefills or step.preempted else self._equal_steps()
        return step

    def _equal_steps(self) -> int:
        """Return how many steps may follow until a sequence ends or lacks a KV block."""
        ends, kv = self._ends, self.kv
        while ends[0][2].last_step != ends[0][0]:
            heappop(ends)  # preempted since it was pushed
        steps = ends[0][0] - self.step
        if (kv.tokens + kv.decoding * (steps + kv.size - 1)) // kv.size <= kv.total - kv.prefill:
            return steps  # as kv.steps_that_fit finds as well
        return kv.steps_that_fit(self.step, steps)

    def may_change(self, key: int) -> bool:
        """Return whether a request of this key that becomes ready now changes the next boundary.

        It may join, or be the first to find no seat. Where one lacked KV blocks, only those before it may join.
        """
        if self.blocked in (UNBLOCKED, BY_SLOTS):
            return True
        return self.blocked == BY_KV and key < self._blocked_key and len(self.running) < self.limits.num_seqs

    def _continue_running(self, budget: int, spare: int, step: Step, now: float) -> tuple[int, int]:
        """Preempt until every decode finds its block, then schedule the unfinished prefill; return what is left."""
        if spare < 0:
            while (spare := self.kv.spare(self.step, 1)) < 0:
                self._preempt_newest(step, now)
            budget = self.limits.batched_tokens - self.kv.decoding
        if self._partial is not None:
            return self._continue_prefill(self._partial, budget, spare, step, now)
        return budget, spare

    def _preempt_newest(self, step: Step, now: float) -> None:
        _, request = self.running.popitem()
        if request is self._partial:
            self._partial = None
            self.kv.prefill -= self.kv.blocks(request.context)
        else:
            self._stop_decode(request)
            request.generated = request.output_tokens - (request.last_step - self.step)
            request.last_token_s = now  # the step that has just ended gave it a token
            request.last_step = -1
        self._drop_adapter(request.adapter)
        request.to_prefill = request.prompt_tokens + request.generated
        request.context = 0
        request.preemptions += 1
        self.waiting.push_front(request)
        step.preempted.append(request)

    def _continue_prefill(self, request: Request, budget: int, spare: int, step: Step, now: float) -> tuple[int, int]:
        """Schedule the next chunk of the one unfinished prefill, the newest in the batch; return what is left."""
        chunk = min(request.to_prefill, budget)
        need = self.kv.blocks(request.context + chunk) - self.kv.blocks(request.context)
        if need > spare:
            spare = self.kv.spare(self.step, 1)
        if need > spare:
            self._preempt_newest(step, now)
        elif chunk:
            self._schedule_chunk(request, chunk, need, step)
            return budget - chunk, spare - need
        return budget, spare

    def _admit(self, budget: int, spare: int, step: Step, now: float) -> None:
        """Let waiting requests join while tokens, seats and KV blocks allow."""
        waiting, running, kv, adapters, ranks = self.waiting, self.running, self.kv, self._adapters, self._ranks
        line, aside, batch, size = waiting.line, waiting.aside, step.batch, kv.size
        seats = self.limits.num_seqs - len(running)
        while budget > 0 and (line or aside):
            if seats == 0:
                self.blocked = BY_SEATS
                return
            request = waiting.first()
            if request is None:
                return
            prefill = request.to_prefill
            need = -(-prefill // size)  # the whole prompt must fit, even if only a chunk of it starts
            if need > spare:
                spare = kv.spare(self.step, 1)
                if need > spare:
                    self.blocked = BY_KV
                    self._blocked_key = request.key
                    return
            waiting.take()
            running[request.index] = request
            adapter = request.adapter
            if adapter in adapters:
                adapters[adapter] += 1
            else:
                adapters[adapter] = 1
                self._rank_sum += ranks[adapter]
            if request.admitted_s < 0:
                request.admitted_s = now
            if prefill > budget:
                prefill = budget
                need = -(-prefill // size)
            seats -= 1
            spare -= need
            budget -= prefill
            # As _schedule_chunk for a request that holds nothing yet; here once per request.
            batch.attended += prefill * (0.5 * (prefill + 1))
            batch.prefill_tokens += prefill
            batch.rank_tokens += prefill * ranks[adapter]
            kv.prefill += need
            request.to_prefill -= prefill
            request.context = prefill
            step.prefills.append(request)
            step.admitted.append(request)

    def _schedule_chunk(self, request: Request, chunk: int, blocks: int, step: Step) -> None:
        batch = step.batch
        batch.attended += chunk * (request.context + 0.5 * (chunk + 1))
        batch.prefill_tokens += chunk
        batch.rank_tokens += chunk * self._ranks[request.adapter]
        self.kv.prefill += blocks
        request.to_prefill -= chunk
        request.context += chunk
        step.prefills.append(request)

    def _complete_prefills(self, now: float, finished: list[Request]) -> None:
        step, kv = self.step, self.kv
        self._partial = None
        kv.prefill = 0
        for request in self._prefills:
            if request.to_prefill:
                self._partial = request
                kv.prefill = kv.blocks(request.context)
                continue
            request.generated = generated = request.generated + 1
            if request.first_token_s < 0:
                request.first_token_s = now
            else:
                self.recompute_gaps.append(now - request.last_token_s)
            left = request.output_tokens - generated
            if left == 0:
                finished.append(request)
                continue
            request.last_step = end = step + left
            context = request.context
            kv.phases[(context - 1 - step) % kv.size] += 1
            kv.decoding += 1
            kv.tokens += context
            self._rank_tokens += self._ranks[request.adapter]
            heappush(self._ends, (end, request.index, request))

    def _stop_decode(self, request: Request) -> None:
        """Count out a sequence that decodes; its blocks are free."""
        kv = self.kv
        tokens = self._kv_tokens(request)
        kv.phases[(tokens - 1 - self.step) % kv.size] -= 1
        kv.decoding -= 1
        kv.tokens -= tokens
        self._rank_tokens -= self._ranks[request.adapter]

    def _kv_tokens(self, request: Request) -> int:
        """Return the KV tokens of a decoding sequence: all of its tokens but the last, less those to come."""
        return request.prompt_tokens + request.output_tokens - 1 - (request.last_step - self.step)

    def _leave_batch(self, finished: list[Request]) -> None:
        running, adapters = self.running, self._adapters
        for request in finished:
            del running[request.index]
            request.last_step = -1
            adapter = request.adapter
            count = adapters[adapter]
            if count > 1:
                adapters[adapter] = count - 1
            else:
                self._drop_adapter(adapter)

    def _drop_adapter(self, adapter: int) -> None:
        adapters = self._adapters
        count = adapters[adapter]
        if count > 1:
            adapters[adapter] = count - 1
        else:
            del adapters[adapter]
            self._rank_sum -= self._ranks[adapter]

    def check_integrity(self) -> None:
        """Assert that the running sums agree with a count over the running sequences."""
        kv, step = self.kv, self.step
        decoding = [r for r in self.running.values() if r.last_step >= 0]
        contexts = [self._kv_tokens(r) for r in decoding]
        assert contexts == [r.context + step - (r.last_step - (r.output_tokens - r.generated)) for r in decoding]
        prefill = sum(kv.blocks(r.context) for r in self.running.values() if r.last_step < 0)
        assert (kv.decoding, kv.tokens, kv.prefill) == (len(decoding), sum(contexts), prefill)
        assert kv.spare(step, 0) == kv.total - prefill - sum(map(kv.blocks, contexts)) >= 0
        assert kv.spare_at_least(0) <= kv.spare(step, 0)
        assert self._rank_tokens == sum(self._ranks[r.adapter] for r in decoding)
        assert sum(self._adapters.values()) == len(self.running) <= self.limits.num_seqs
        assert self._rank_sum == sum(self._ranks[a] for a in self._adapters)
