"""vLLM's scheduler with prefix caching and real blocks, one step at a time, to hold the fast one against.

Every block is an object with the tokens in it and all tokens before them; the free queue is a list; what is known is
searched for among all blocks, whenever it is asked.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from math import ceil

BASE = "base model"
LOST: tuple[list[object], list[int]] = (["forgotten"], [])
"""The content of blocks that nobody finds any more."""


@dataclass(eq=False)
class Job:
    """A request: its tokens, those of its answer included, which it produces in this order."""

    index: int
    adapter: object
    prompt: list[int]
    answer: list[int]
    generated: int = 0
    computed: int = 0
    blocks: list[Block] = field(default_factory=list)
    stale: bool = False

    @property
    def tokens(self) -> list[int]:
        return self.prompt + self.answer[: self.generated]


@dataclass(eq=False)
class Block:
    """A block; ``content`` is the adapters of all blocks up to it, and all tokens up to its end, if it is full."""

    content: tuple[list[object], list[int]] | None = None
    filled: int = 0  # the how manieth block that was ever filled
    users: int = 0


@dataclass
class Rules:
    blocks: int
    size: int
    max_seqs: int
    max_tokens: int
    max_loras: int
    whole_prompt: bool
    uncached_last: bool
    invocation_tokens: int | None = None


@dataclass
class Stepped:
    """What a step did.

    :ivar scheduled: tokens by request; ``cached``: tokens found cached, by request that joins.
    :ivar preempted, ended: requests, in this order.
    :ivar overwritten: cached blocks handed out; ``twins``: blocks filled while an equal one was known.
    """

    scheduled: dict[int, int] = field(default_factory=dict)
    cached: dict[int, int] = field(default_factory=dict)
    preempted: list[int] = field(default_factory=list)
    overwritten: int = 0
    twins: int = 0
    ended: list[int] = field(default_factory=list)


class NaiveEngine:
    def __init__(self, rules: Rules) -> None:
        self.rules = rules
        self.blocks = [Block() for _ in range(rules.blocks)]
        self.free = list(self.blocks)
        self.waiting: list[Job] = []
        self.running: list[Job] = []
        self.filled = 0

    def step(self) -> Stepped:
        rules, done = self.rules, Stepped()
        budget = rules.max_tokens
        for job in list(self.running):
            if job not in self.running:
                continue  # preempted by one before it
            tokens = min(len(job.tokens) - job.computed, budget)
            while self._lacking(job, job.computed + tokens) > len(self.free):
                victim = self.running.pop()
                self._preempt(victim, done)
                if victim is job:
                    break
            if job in self.running and tokens:
                self._schedule(job, tokens, done)
                budget -= tokens
        if not done.preempted:
            self._admit(budget, done)
        for job in list(self.running):
            job.computed += done.scheduled.get(job.index, 0)
            if job.computed == len(job.tokens):
                job.generated += 1
                if job.generated == len(job.answer):
                    self.running.remove(job)
                    self._give_back(job)
                    done.ended.append(job.index)
        return done

    def _admit(self, budget: int, done: Stepped) -> None:
        rules = self.rules
        for job in list(self.waiting):
            if budget == 0 or len(self.running) == rules.max_seqs:
                return
            loras = {other.adapter for other in self.running} - {BASE}
            if job.adapter != BASE and job.adapter not in loras and len(loras) == rules.max_loras:
                continue
            hit = self._find(job)
            start = len(hit) * rules.size
            tokens = min(len(job.tokens) - start, budget)
            reach = len(job.tokens) if rules.whole_prompt else start + tokens
            needed = ceil(reach / rules.size) - len(hit) + sum(block.users == 0 for block in hit)
            if needed > len(self.free):
                return
            self.waiting.remove(job)
            self.running.append(job)
            for block in hit:
                if block.users == 0:
                    self.free.remove(block)
                block.users += 1
            job.blocks, job.computed = hit, start
            done.cached[job.index] = start
            self._schedule(job, tokens, done)
            budget -= tokens

    def _content(self, job: Job, number: int) -> tuple[list[object], list[int]]:
        size, invocation = self.rules.size, self.rules.invocation_tokens
        base_tokens = 0 if invocation is None else len(job.prompt) - invocation
        ends = [(before + 1) * size for before in range(number + 1)]
        return [BASE if end <= base_tokens else job.adapter for end in ends], job.tokens[: ends[-1]]

    def _find(self, job: Job) -> list[Block]:
        hit: list[Block] = []
        while (len(hit) + 1) * self.rules.size < len(job.tokens):
            content = self._content(job, len(hit))
            known = [block for block in self.blocks if block.content == content]
            if not known:
                break
            hit.append(min(known, key=lambda block: block.filled))
        return hit

    def _lacking(self, job: Job, tokens: int) -> int:
        return ceil(tokens / self.rules.size) - len(job.blocks)

    def _schedule(self, job: Job, tokens: int, done: Stepped) -> None:
        end = job.computed + tokens
        for _ in range(self._lacking(job, end)):
            block = self.free.pop(0)
            assert block.users == 0
            done.overwritten += block.content is not None
            block.content, block.users = None, 1
            job.blocks.append(block)
        for number in range(end // self.rules.size):
            if job.blocks[number].content is None:
                self.filled += 1
                content = LOST if job.stale else self._content(job, number)
                done.twins += any(block.content == content for block in self.blocks)
                job.blocks[number].content = content
                job.blocks[number].filled = self.filled
        done.scheduled[job.index] = tokens

    def _preempt(self, job: Job, done: Stepped) -> None:
        self._give_back(job)
        job.computed = 0
        self.waiting.insert(0, job)
        done.preempted.append(job.index)

    def _give_back(self, job: Job) -> None:
        for block in reversed(job.blocks):
            block.users -= 1
            if block.users == 0:
                if block.content is None and not self.rules.uncached_last:
                    self.free.insert(0, block)
                else:
                    self.free.append(block)
        job.blocks, job.stale = [], False

    def forget(self, adapter: object) -> None:
        """Let nobody find what is cached of an adapter, nor what requests compute from now on that hold some of it."""
        gone = [block for block in self.blocks if block.content is not None and block.content[0][-1] == adapter]
        for job in self.running:
            job.stale = job.stale or job.adapter == adapter or any(block in gone for block in job.blocks)
        for block in gone:
            block.content = LOST
