"""The KV stores: counting against a walk over all sequences, and a store that knows blocks by their content."""

from __future__ import annotations

import math
from collections.abc import Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sim.policies.admission import ReadyQueue
from sim.policies.costs import StepCosts
from sim.policies.kv.kv_store import CountingStore, KvStore, held_tokens
from sim.policies.scheduler import Limits, Scheduler, Step
from sim.spec.profile import StepCost
from sim.traffic.request import BY_KV, UNBLOCKED, Request

SIZE = 4


class PrefixStore(KvStore):
    """A small store of blocks known by content; all prompts of an adapter begin alike, and answers are not shared."""

    caches = True

    def __init__(self, total: int, size: int) -> None:
        super().__init__(total, size)
        self.free: dict[int, None] = dict.fromkeys(range(total))  # blocks without a user, the next victim first
        self.users = [0] * total
        self.content: list[tuple[int, int] | None] = [None] * total  # (adapter, place in the prompt)
        self.tables: dict[int, list[int]] = {}
        self.peak = 0

    def _hit(self, request: Request, tokens: int) -> list[int]:
        wanted = [(request.adapter, place) for place in range(tokens // self.size)]
        known = {content: block for block, content in enumerate(self.content)}
        return [known[content] for content in wanted[: next((i for i, c in enumerate(wanted) if c not in known), None)]]

    def _add_block(self, request: Request, content: tuple[int, int] | None) -> None:
        block = next(iter(self.free))
        self._use(request, block)
        self.content[block] = content

    def _use(self, request: Request, block: int) -> None:
        self.free.pop(block, None)
        self.users[block] += 1
        self.tables[request.index].append(block)

    def _missing(self, request: Request, tokens: int) -> int:
        return math.ceil(tokens / self.size) - len(self.tables.get(request.index, ()))

    def _held(self) -> dict[Request, int]:
        return {r: held_tokens(r, self.step) for r in self.running if r.last_step >= 0}

    step = 0

    def _missing_after(self, steps: int) -> int:
        held = self._held()
        return sum(self._missing(request, tokens + steps) for request, tokens in held.items())

    def reserve_decodes(self) -> bool:
        return self._missing_after(1) <= len(self.free)

    def cached_tokens(self, request: Request) -> int:
        return len(self._hit(request, request.to_prefill - 1)) * self.size

    def take(self, request: Request, tokens: int, room_for: int, cached: int = 0) -> bool:
        shared = self._hit(request, cached)
        asked = self._missing(request, request.context + cached + room_for) - len(shared)
        if room_for and asked + sum(block in self.free for block in shared) + self._missing_after(1) > len(self.free):
            return False
        table = self.tables.setdefault(request.index, [])
        for block in shared:
            self._use(request, block)
        end = request.context + cached + tokens
        for _ in range(self._missing(request, end)):
            place = len(table)
            self._add_block(request, (request.adapter, place) if (place + 1) * self.size <= end else None)
        return True

    def start_decodes(self, requests: Sequence[Request]) -> None:
        self.decoding += len(requests)
        self.tokens += sum(request.context for request in requests)

    def grow(self, steps: int) -> None:
        for request, tokens in self._held().items():
            for _ in range(self._missing(request, tokens + steps)):
                self._add_block(request, None)
        self.step += steps
        self.tokens += steps * self.decoding
        self.peak = max(self.peak, self.tokens)

    def steps_that_fit(self, steps: int) -> int:
        return max(k for k in range(steps + 1) if self._missing_after(k) <= len(self.free))

    def free_blocks(self) -> int:
        return len(self.free)

    def give_back(self, requests: Sequence[Request], *, early: bool = False) -> None:
        for request in requests:
            if request.last_step >= 0:
                self.decoding -= 1
                self.tokens -= held_tokens(request, self.step)
            for block in reversed(self.tables.pop(request.index)):
                self.users[block] -= 1
                if not self.users[block]:
                    self.free[block] = None

    def note_peak(self, steps: int) -> None:
        pass

    def peak_share(self) -> float:
        return self.peak / (self.total * self.size)

    def check_integrity(self) -> None:
        assert len(self.free) == self.users.count(0)
        assert sum(self.users) == sum(map(len, self.tables.values()))


def scheduler_with(kv: KvStore, budget: int = 64) -> Scheduler:
    costs = StepCosts(StepCost(), 4, budget)
    return Scheduler(Limits(8, budget), kv, ReadyQueue(), [8] * 4, costs)


def run_step(scheduler: Scheduler, now: float) -> list[Request]:
    step = scheduler.compose(now)
    scheduler.check_integrity()
    return scheduler.complete(step.steps, now + 1.0) if step.steps else []


def chunks(step: Step) -> list[int]:
    return [request.chunk for request in step.prefills]


@pytest.mark.interpreted
def test_a_store_that_knows_blocks_by_content_can_be_plugged_in() -> None:
    scheduler = scheduler_with(PrefixStore(32, SIZE))
    for index in range(2):
        scheduler.waiting.push(Request(index, 0.0, 1, 11, 5))
    step = scheduler.compose(0.0)
    assert chunks(step) == [11, 3], "the second finds two full blocks of four tokens"
    assert step.tokens == 14
    assert scheduler.scheduled() == {0: 11, 1: 3}
    assert [request.context for request in step.prefills] == [11, 11]
    scheduler.check_integrity()
    scheduler.complete(1, 1.0)
    assert (scheduler.kv.decoding, scheduler.kv.tokens) == (2, 22)
    finished: list[Request] = []
    while scheduler.running:
        finished += run_step(scheduler, 2.0)
    assert [request.index for request in finished] == [0, 1]
    scheduler.waiting.push(Request(2, 3.0, 1, 12, 1))
    assert chunks(scheduler.compose(3.0)) == [4], "a prompt of three full blocks computes the last one again"


@pytest.mark.interpreted
def test_cached_blocks_leave_when_others_need_room() -> None:
    scheduler = scheduler_with(PrefixStore(6, SIZE))
    scheduler.waiting.push(Request(0, 0.0, 1, 16, 1))
    scheduler.waiting.push(Request(1, 0.0, 2, 20, 1))
    assert chunks(scheduler.compose(0.0)) == [16]
    assert scheduler.blocked == BY_KV
    scheduler.complete(1, 1.0)
    assert chunks(scheduler.compose(1.0)) == [20]
    assert scheduler.blocked == UNBLOCKED
    scheduler.complete(1, 2.0)
    scheduler.waiting.push(Request(2, 2.0, 1, 16, 1))
    assert chunks(scheduler.compose(2.0)) == [12], "its first block is left, since the last ones were freed first"


def test_a_preempted_request_finds_its_own_blocks_again() -> None:
    scheduler = scheduler_with(PrefixStore(6, SIZE))
    for index in range(2):
        scheduler.waiting.push(Request(index, 0.0, 1 + index, 11, 12))
    while not scheduler.preempted:
        run_step(scheduler, 0.0)
    request = scheduler.waiting.all_requests()[0]
    assert (request.index, request.context) == (1, 0)
    assert scheduler.kv.cached_tokens(request) >= SIZE


@given(st.data())
def test_counting_agrees_with_a_walk_over_all_sequences(data: st.DataObject) -> None:
    """Whatever joins, is cut, grows, is preempted and ends: ``check_integrity`` counts again after each step."""
    size, total = data.draw(st.integers(1, 7)), data.draw(st.integers(12, 60))
    kv = CountingStore(total, size)
    scheduler = scheduler_with(kv, budget=data.draw(st.integers(8, 64)))
    most = total * size // 2
    for index in range(data.draw(st.integers(1, 12))):
        prompt = data.draw(st.integers(1, most))
        scheduler.waiting.push(Request(index, 0.0, index % 4, prompt, data.draw(st.integers(1, most))))
    now, left = 0.0, scheduler.waiting.size()
    while left:
        step = scheduler.compose(now)
        scheduler.check_integrity()
        held = [held_tokens(r, scheduler.decode_steps) for r in scheduler.running if r.last_step >= 0]
        prefill = sum(-(-r.context // size) for r in scheduler.running if r.last_step < 0)
        used = [prefill + sum(-(-(tokens + k) // size) for tokens in held) for k in (step.steps, step.steps + 1)]
        assert used[0] <= total
        ends = [r.last_step - scheduler.decode_steps for r in scheduler.running if r.last_step >= 0]
        if not step.prefills and not scheduler.paused and scheduler.preempted == 0 and step.steps < min(ends):
            assert used[1] > total, "a leap ends early only where the next step would lack a block"
        left -= len(scheduler.complete(step.steps, now := now + 1.0))
        scheduler.check_integrity()
    assert (kv.decoding, kv.tokens) == (0, 0)
    assert 0 <= kv.peak_share() <= 1
