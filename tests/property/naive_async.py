"""The naive twin of vLLM's asynchronous scheduling: real blocks, one step at a time, and times by two equations.

Step N + 2 is scheduled when the output of step N has been processed. With ``ended`` and ``launched`` of each step:
``ended(N+1) = max(ended(N), launched(N+1)) + G(N+1)`` and ``launched(N+2) = max(ended(N), launched(N+1)) + H(N+2)``.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any

import naive_blocks as plain
from naive import BASE, COMPLETED, DELAYED_HIT, MISS, STORAGE, Job, Touching, TwinFleet

from sim.policies.costs import load_seconds


@dataclass(eq=False)
class Block:
    """A KV block; ``content`` is known once it is full of known tokens."""

    content: Any = None
    filled: int = 0
    users: int = 0


@dataclass(eq=False)
class State:
    """What the scheduler knows of a job: its tokens are the prompt, the known ones of the answer, and placeholders."""

    job: Job
    stops: bool
    rank: tuple[int, int]  # its place in the order of priorities
    shared: Any = ()
    text: int = -1
    known: int = 0
    placeholders: int = 0
    computed: int = 0
    blocks: list[Block] = field(default_factory=list)
    lives: int = 0
    decoding: bool = False
    gone: bool = False

    @property
    def tokens(self) -> int:
        return self.job.prompt + self.known


@dataclass(eq=False)
class Handed:
    """A step that was handed over: (state, its life, whether a token comes out) in the order of scheduling."""

    rows: list[tuple[State, int, bool]]
    ended_s: float


class AsyncEngine(Touching):
    def __init__(self, fleet: TwinFleet, index: int) -> None:
        super().__init__(fleet, index)
        spec, world = self.scenario.fleet, self.world
        self.states: dict[int, State] = {}
        self.waiting: list[State] = []
        self.skipped: list[State] = []  # the queue of their own, where passed ones have one
        self.active: list[State] = []  # running, in their order
        self.blocks = [Block() for _ in range(spec.kv_tokens // spec.block_size - spec.reserved_kv_blocks)]
        self.free = list(self.blocks)
        self.fills = 0
        self.outstanding: list[Handed] = []
        self.launched_s = self.before_s = 0.0
        self.draining = False
        self.since_prefill = math.inf  # steps that ran anything
        self.left_waiting = False
        host = world.profile.load.host
        law = self.scenario.storage.host_load
        self.copy_s = [law.mean()] * len(world.population) if law else load_seconds(host, world.population).tolist()

    # Arrivals ---------------------------------------------------------------------------------------------------------

    def arrive(self, job: Job, now: float) -> None:
        job.replica = self.index
        self.jobs.append(job)
        extra = self.fleet.extra[job.index]
        state = State(job, extra.stops, (extra.priority, job.index), extra.shared, extra.text)
        self.states[job.index] = state
        self.waiting.append(state)
        self.sort()
        job.place = "line"
        if self.boundary is None:
            self.boundary = now

    def sort(self) -> None:
        if self.by_priority():
            self.waiting.sort(key=lambda state: state.rank)

    def by_priority(self) -> bool:
        return self.scenario.fleet.scheduling == "priority"

    # The engine's loop ------------------------------------------------------------------------------------------------

    def at_boundary(self, now: float) -> None:
        if self.step_start_s >= 0:
            self.log_step(self.step_start_s, now)
        while self.outstanding and (len(self.outstanding) == 2 or self.draining or not self.has_requests()):
            if max(self.outstanding[0].ended_s, self.launched_s) > now:
                break
            self.draining = False
            self.process(self.outstanding.pop(0), now)
            if self.has_requests():
                break  # nothing else is processed before the next step is scheduled
        self.step_start_s, self.before_s = now, now
        if self.has_requests():
            self.hand_over(now)
            oldest = self.outstanding[0].ended_s if len(self.outstanding) == 2 else -1.0
            self.boundary = max(oldest, self.launched_s)
        elif self.outstanding:
            self.in_step, self.step_blocked, self.draining = [], 0, True  # it waits for this output, whoever comes
            self.boundary = self.outstanding[0].ended_s
        else:
            self.step_start_s, self.boundary = -1.0, None

    def has_requests(self) -> bool:
        return bool(self.active or self.waiting or self.skipped)

    def hand_over(self, now: float) -> None:
        rows, chunks, fresh = self.schedule(now)
        read_s, copied_s = self.load(fresh, now)
        cost = self.world.profile.step
        host_s = cost.host_s + cost.host_per_sequence_s * len(rows) + read_s
        gpu_s = copied_s + (self.gpu_seconds(rows, chunks) if rows else 0.0)
        self.launched_s = now + host_s
        before = self.outstanding[-1].ended_s if self.outstanding else 0.0
        self.outstanding.append(Handed(rows, max(before, self.launched_s) + gpu_s))
        self.in_step = [state.job for state in self.active]

    def gpu_seconds(self, rows: list[tuple[State, int, bool]], chunks: dict[State, tuple[int, int]]) -> float:
        self.running = [state.job for state, _, _ in rows]
        for state, _, _ in rows:
            start, count = chunks[state]
            state.job.decoding = state not in self.prompts
            state.job.generated = start + count - state.job.prompt  # of a decode, so that prompt + generated is its KV
        return self.step_seconds([(s.job, chunks[s][1], chunks[s][0]) for s, _, _ in rows if s in self.prompts])

    def process(self, step: Handed, now: float) -> None:
        for state, life, gives_token in step.rows:
            if not gives_token or state.gone:
                continue
            job = state.job
            state.known += 1
            if job.first_token_s < 0:
                job.first_token_s = now
            else:
                self.fleet.gaps.append((self.before_s, now - job.last_token_s))
            job.last_token_s = now
            if state.lives == life:
                state.placeholders -= 1
                self.know(state, state.computed - state.placeholders)
            if state.known == job.output:
                state.gone = True
                job.place, job.finished_s, job.status = "gone", now, COMPLETED
                for where in (self.active, self.waiting, self.skipped):
                    if state in where:
                        where.remove(state)
                self.give_back(state)

    # One step ---------------------------------------------------------------------------------------------------------

    def schedule(self, now: float) -> Any:
        spec = self.scenario.fleet
        budget, preempted, reached = spec.max_num_batched_tokens, False, True
        chunks: dict[State, tuple[int, int]] = {}
        self.prompts: set[State] = set()
        self.step_blocked = self.passed = 0
        decodes = any(s.decoding and (s.stops or s.known + s.placeholders < s.job.output) for s in self.active)
        waits = self.since_prefill < spec.prefill_schedule_interval - 1 and not self.left_waiting
        for state in list(self.active):
            if state not in self.active or not reached:
                continue
            if not state.stops and state.known + state.placeholders == state.job.output:
                continue
            if not state.decoding and decodes and waits:
                continue
            count = min(state.tokens + state.placeholders - state.computed, budget)
            while count and self.lacking(state, count) > len(self.free):
                victim = max(self.active, key=lambda s: s.rank) if self.by_priority() else self.active[-1]
                if victim in chunks:
                    budget += chunks.pop(victim)[1]
                self.preempt_state(victim)
                preempted = True
                if victim is state:
                    reached = self.by_priority() and spec.self_preemption == "goes-on"
                    break
            if state in self.active and count:
                self.take(state, count, chunks)
                budget -= count
        self.batch = self.still_in_batch(list(chunks))
        decodes = any(state.decoding for state in chunks)
        fresh = [] if preempted or (decodes and waits) else self.join(budget, chunks, now)
        if chunks:
            self.since_prefill += 1
        if self.prompts:
            self.since_prefill, self.left_waiting = 0, bool(self.waiting or self.skipped)
        if preempted:
            self.step_blocked = 2
        rows = []
        for state in self.active:
            if state in chunks:
                complete = state.computed == state.tokens + state.placeholders
                state.placeholders += complete
                state.decoding = state.decoding or complete
                rows.append((state, state.lives, complete))
        self.in_use_peak = max(self.in_use_peak, len({s.job.adapter for s in chunks} - {BASE}))
        return rows, chunks, fresh

    def still_in_batch(self, states: list[State]) -> list[int]:
        adapters = [state.job.adapter for state in states if state.job.adapter != BASE]
        stay = [adapter for adapter in self.batch if adapter in adapters]
        return stay + list(dict.fromkeys(adapter for adapter in adapters if adapter not in stay))

    def join(self, budget: int, chunks: dict[State, tuple[int, int]], now: float) -> list[Job]:
        spec, fresh, passed = self.scenario.fleet, [], []
        apart = spec.passed_requests == "own-queue" and not self.by_priority()
        waiting = self.skipped + self.waiting
        for state in waiting:
            if not budget:
                break
            if len(self.active) == spec.max_num_seqs:
                self.step_blocked = 1
                break
            counted = self.active if spec.adapter_limit == "running" else list(chunks)
            adapters = {other.job.adapter for other in counted} - {BASE}
            if state.job.adapter not in adapters | {BASE} and len(adapters) == self.world.capacity:
                passed.append(state)
                continue
            hit = self.find(state)
            cached = len(hit) * spec.block_size
            count = min(state.tokens - cached, budget)
            reach = state.tokens if spec.kv_check == "whole-prompt" else cached + count
            idle = sum(block.users == 0 for block in hit)
            if math.ceil(reach / spec.block_size) - len(hit) + idle > len(self.free):
                self.step_blocked = 2
                break
            (self.skipped if state in self.skipped else self.waiting).remove(state)
            self.active.append(state)
            for block in hit:
                if block.users == 0:
                    self.free.remove(block)
                block.users += 1
            state.blocks, state.computed = hit, cached
            job = state.job
            job.place = "running"
            if job.admitted_s < 0:
                job.admitted_s = now
                self.fleet.cached[job.index] = cached
            self.take(state, count, chunks)
            budget -= count
            fresh.append(job)
            if job.adapter not in [*self.batch, BASE]:
                self.batch.append(job.adapter)
        if self.step_blocked == 0 and passed:
            self.step_blocked = 3
        self.passed = len(passed)
        if apart:
            for state in passed:
                if state in self.waiting:
                    self.waiting.remove(state)
                    self.skipped.append(state)
        return fresh

    def preempt_state(self, state: State) -> None:
        self.active.remove(state)
        self.give_back(state)
        state.computed = state.placeholders = 0
        state.decoding = False
        state.lives += 1
        state.job.preemptions += 1
        state.job.place = "line"
        self.waiting.insert(0, state)
        self.sort()

    # Blocks -----------------------------------------------------------------------------------------------------------

    def lacking(self, state: State, count: int) -> int:
        return math.ceil((state.computed + count) / self.scenario.fleet.block_size) - len(state.blocks)

    def take(self, state: State, count: int, chunks: dict[State, tuple[int, int]]) -> None:
        for _ in range(self.lacking(state, count)):
            block = self.free.pop(0)
            block.content, block.users = None, 1
            state.blocks.append(block)
        chunks[state] = (state.computed, count)
        if not state.decoding:
            self.prompts.add(state)
        state.computed += count
        self.know(state, min(state.computed, state.tokens))

    def know(self, state: State, tokens: int) -> None:
        for number in range(tokens // self.scenario.fleet.block_size):
            if state.blocks[number].content is None:
                self.fills += 1
                state.blocks[number].content, state.blocks[number].filled = self.content(state, number), self.fills

    def content(self, state: State, number: int) -> Any:
        last = (number + 1) * self.scenario.fleet.block_size - 1
        run = next((key for end, key in state.shared if last < end), None)
        if run is None:
            run = state.text if state.text >= 0 else f"own {state.job.index}"
        return state.job.adapter, run, number

    def find(self, state: State) -> list[Block]:
        hit: list[Block] = []
        size = self.scenario.fleet.block_size
        while self.scenario.fleet.prefix_caching and (len(hit) + 1) * size < state.tokens:
            content = self.content(state, len(hit))
            known = [block for block in self.blocks if block.content == content]
            if not known:
                break
            hit.append(min(known, key=lambda block: block.filled))
        return hit

    def give_back(self, state: State) -> None:
        for block in reversed(state.blocks):
            block.users -= 1
            if block.users == 0:
                if block.content is None and self.scenario.fleet.uncached_blocks == "first":
                    self.free.insert(0, block)
                else:
                    self.free.append(block)
        state.blocks = []

    # Loads ------------------------------------------------------------------------------------------------------------

    def load(self, fresh: list[Job], now: float) -> tuple[float, float]:
        """Touch the batch; return the seconds for which the host reads, and those for which it copies."""
        missing = [job for job in fresh if job.adapter not in [*self.slots, BASE]]
        bringers = {job.adapter: job for job in reversed(missing)}
        time, tiers, read_s = now, {}, 0.0
        for adapter in self.order():
            tier = self.touch_host(adapter)
            if adapter in self.slots:
                self.slots.remove(adapter)
                self.slots.append(adapter)
                continue
            if len(self.slots) == self.world.capacity:
                self.slots.pop(0)
                self.evictions += 1
            self.slots.append(adapter)
            tiers[adapter] = tier
            if adapter in bringers:
                seconds = bringers[adapter].load_s if tier == STORAGE else bringers[adapter].host_load_s
            else:
                seconds = self.reload_s(adapter, tier)
            if tier == STORAGE:
                read_s += max(0.0, seconds - self.copy_s[adapter])
            self.fleet.loads.append((time, time + seconds, adapter, tier, time))
            time += seconds
        for job in missing:
            if job.preemptions == 0:
                job.outcome = MISS if job is bringers[job.adapter] else DELAYED_HIT
                job.tier, job.load_wait_s = tiers[job.adapter], time - now
        self.resident = set(self.slots)
        return read_s, time - now - read_s


@dataclass
class Extra:
    """What a job has beside its lengths."""

    stops: bool
    priority: int
    shared: Any
    text: int


class AsyncFleet(TwinFleet):
    def __init__(self, world: Any, replication: int = 0) -> None:
        self.extra: dict[int, Extra] = {}
        self.cached: dict[int, int] = {}
        tenants = world.scenario.tenants
        for chunk in world.traffic.chunks(replication):
            text = iter([]) if chunk.text is None else chunk.text.of_requests()
            for i in range(len(chunk)):
                shared, key = next(text, ((), -1))
                tenant = int(world.traffic.tenant_of[chunk.adapter[i]]) if tenants else 0
                priority = tenants[tenant].priority if tenants else 0
                self.extra[chunk.first + i] = Extra(bool(chunk.stops[i]), priority, shared, key)
        super().__init__(world, replication)

    def kind(self) -> type[AsyncEngine]:
        return AsyncEngine


class AheadBlocks(plain.NaiveEngine):
    """Steps of real blocks and tokens, scheduled ahead; ``max_loras`` counts all running requests.

    :param stops: indices of the requests that end by a stop token.
    """

    def __init__(self, rules: plain.Rules, stops: set[int]) -> None:
        super().__init__(rules)
        self.stops = stops
        self.placeholders: dict[int, int] = {}
        self.lives: dict[int, int] = {}
        self.done: set[int] = set()
        self.before: list[tuple[plain.Job, int]] = []  # of the step ahead: who gets a token, and in which life

    def step(self) -> plain.Stepped:
        rules, stepped = self.rules, plain.Stepped()
        budget = rules.max_tokens
        for job in list(self.running):
            coming = self.placeholders.get(job.index, 0)
            foreseen = job.index not in self.stops and job.generated + coming == len(job.answer)
            if job not in self.running or foreseen:
                continue
            tokens = min(len(job.tokens) + coming - job.computed, budget)
            while self._lacking(job, job.computed + tokens) > len(self.free):
                victim = self.running.pop()
                self._preempt(victim, stepped)
                if victim is job:
                    break
            if job in self.running and tokens:
                self._schedule(job, tokens, stepped)
                budget -= tokens
        if not stepped.preempted:
            self._admit(budget, stepped)
        before, self.before = self.before, []
        for job in self.running:
            coming = self.placeholders.get(job.index, 0)
            if job.index in stepped.scheduled and job.computed == len(job.tokens) + coming:
                self.placeholders[job.index] = coming + 1
                self.before.append((job, self.lives.get(job.index, 0)))
        for job, life in before:
            if job.index not in self.done:
                self._take_token(job, life, stepped)
        return stepped

    def _take_token(self, job: plain.Job, life: int, stepped: plain.Stepped) -> None:
        job.generated += 1
        if life == self.lives.get(job.index, 0):
            self.placeholders[job.index] -= 1
            self._make_known(job, job.computed - self.placeholders[job.index], stepped)
        if job.generated == len(job.answer):
            self.done.add(job.index)
            (self.running if job in self.running else self.waiting).remove(job)
            self._give_back(job)
            stepped.ended.append(job.index)

    def _schedule(self, job: plain.Job, tokens: int, done: plain.Stepped) -> None:
        for _ in range(self._lacking(job, job.computed + tokens)):
            block = self.free.pop(0)
            done.overwritten += block.content is not None
            block.content, block.users = None, 1
            job.blocks.append(block)
        job.computed += tokens
        self._make_known(job, min(job.computed, len(job.tokens)), done)
        done.scheduled[job.index] = tokens

    def _make_known(self, job: plain.Job, tokens: int, done: plain.Stepped) -> None:
        for number in range(tokens // self.rules.size):
            if job.blocks[number].content is None:
                self.filled += 1
                content = plain.LOST if job.stale else self._content(job, number)
                done.twins += any(block.content == content for block in self.blocks)
                job.blocks[number].content, job.blocks[number].filled = content, self.filled

    def _preempt(self, job: plain.Job, done: plain.Stepped) -> None:
        super()._preempt(job, done)
        self.placeholders[job.index] = 0
        self.lives[job.index] = self.lives.get(job.index, 0) + 1
