"""Queues: requests over the adapter limit, those whose adapter is there, fair shares, and sequences that end."""

from __future__ import annotations

import random
from random import Random

import pytest
from examples import examples
from hypothesis import given
from hypothesis import strategies as st

from sim.policies.admission import ReadyQueue, WaitingQueue
from sim.policies.decode_ends import NEVER, DecodeEnds
from sim.policies.queues.fair_queue import INPUT_WEIGHT, OUTPUT_WEIGHT, FairQueue
from sim.policies.queues.passed_requests import PassedRequests, vllm_queue
from sim.policies.vllm_lru import SetOrder, VllmLruCache
from sim.traffic.request import Request

SLOTS = 2


class Lists:
    """The waiting requests as vLLM keeps them; ``skipped`` is the queue of their own."""

    def __init__(self, rule: PassedRequests) -> None:
        self.rule = rule
        self.main: list[Request] = []
        self.skipped: list[Request] = []

    def scan(self, in_use: set[int], most: int, full: int | None) -> tuple[list[Request], int]:
        """Return the requests that join, and how many the scan passes.

        :param most: how many may join; ``full``: a request that lacks memory, and ends the scan.
        """
        step_skipped: list[Request] = []
        joined: list[Request] = []
        in_use = set(in_use)
        while (self.main or self.skipped) and len(joined) < most:
            queue = self.skipped or self.main
            adapter = queue[0].adapter
            if adapter not in in_use and len(in_use) == SLOTS:
                step_skipped.insert(0, queue.pop(0))
                continue
            if queue[0].index == full:
                break
            in_use.add(adapter)
            joined.append(queue.pop(0))
        if self.rule == "reversed":
            self.main = step_skipped + self.main
        elif self.rule == "own-queue":
            self.skipped = step_skipped[::-1] + self.skipped
        else:
            self.main = step_skipped[::-1] + self.main
        return joined, len(step_skipped)


def scan(queue: WaitingQueue, most: int, full: int | None) -> tuple[list[Request], int]:
    """Scan a queue as the scheduler does; return the requests that join, and how many were passed."""
    joined: list[Request] = []
    seen: int | None = -(1 << 62)
    queue.begin()
    while len(joined) < most and (queue.ready or queue.deferred):
        request = queue.next_candidate()
        if request is None:
            seen = None
            break
        seen = request.key
        if not queue.may_join(request):
            assert queue.pass_over(request)
            continue
        if request.index == full:
            break
        queue.take(request)
        joined.append(request)
    return joined, queue.passed(seen) if queue.deferred and seen != -(1 << 62) else 0


@pytest.mark.parametrize("rule", ["keep-order", "reversed", "own-queue"])
@examples(400)
@given(random=st.randoms(use_true_random=False), adapters=st.integers(1, 9))
def test_a_queue_equals_the_lists_of_the_scheduler(rule: PassedRequests, random: Random, adapters: int) -> None:
    cache = VllmLruCache(adapters, SLOTS, max(adapters, SLOTS), SetOrder(list(range(adapters))))
    queue, lists = vllm_queue(cache, rule), Lists(rule)
    running: list[Request] = []
    arrived = 0
    for _ in range(random.choice((3, 10, 30))):
        for _ in range(random.choice((0, 0, 1, 2, 5))):
            request = Request(arrived, 0.0, random.randrange(adapters), 1, 1)
            request.key = arrived
            arrived += 1
            queue.push(request)
            lists.main.append(request)
        while running and random.random() < 0.4:
            preempted = running.pop()
            queue.push_front(preempted)
            lists.main.insert(0, preempted)
        waiting = [request.index for request in lists.skipped + lists.main]
        most, full = random.choice((0, 1, 2, 9)), random.choice((None, *waiting))
        in_use = {request.adapter for request in running}
        joined, passed = scan(queue, most, full)
        assert (joined, passed) == lists.scan(in_use, most, full)
        running += joined
        # A leap only while nothing changes: the same scan, as often as there are further steps.
        leap = 1 if joined else random.choice((1, 2, 3, 4))
        for _ in range(leap - 1):
            assert lists.scan({request.adapter for request in running}, most, full) == ([], passed)
        if queue.deferred:
            queue.end_steps(leap)
        assert queue.size() == len(queue.all_requests()) == len(lists.main) + len(lists.skipped)
        for request in [request for request in running if random.random() < 0.3]:
            running.remove(request)
            cache.release(request.adapter)
    for request in running:
        cache.release(request.adapter)
    while queue.size():  # with all slots free, the first request joins alone
        joined, _ = scan(queue, 1, None)
        assert (joined, 0) == lists.scan(set(), 1, None)
        cache.release(joined[0].adapter)
    assert not lists.main + lists.skipped


@pytest.mark.parametrize(
    ("rule", "orders"),
    [
        ("keep-order", ([9, 1, 2, 3], [9, 1, 2, 3])),
        ("reversed", ([9, 3, 2, 1], [9, 1, 2, 3])),
        ("own-queue", ([1, 2, 3, 9], [1, 2, 3, 9])),
    ],
)
def test_the_order_after_one_step_and_after_two(rule: PassedRequests, orders: tuple[list[int], list[int]]) -> None:
    """Adapter 0 and 8 run; 1 to 3 are passed, and a request of adapter 9 is preempted after the step."""
    for steps, order in zip((1, 2), orders, strict=True):
        cache = VllmLruCache(10, SLOTS, 10, SetOrder(list(range(10))))
        queue = vllm_queue(cache, rule)
        for place, adapter in enumerate((0, 9, 1, 2, 3)):
            request = Request(place, 0.0, adapter, 1, 1)
            request.key = place
            queue.push(request)
        (first, last), _ = scan(queue, 2, None)
        queue.end_steps(1) if queue.deferred else None
        assert scan(queue, 9, None) == ([], 3)
        queue.end_steps(steps)
        queue.push_front(last)
        cache.release(first.adapter)
        left = []
        while queue.ready or queue.deferred:
            (one,), _ = scan(queue, 1, None)
            left.append(one.adapter)
            cache.release(one.adapter)
            if queue.deferred:
                queue.end_steps(2)
        assert left == order


# Requests whose adapter is there: whatever the order in which they come, the lowest key goes first


def test_the_lowest_key_goes_first_whenever_requests_come() -> None:
    for seed in range(200):
        rng = random.Random(seed)
        queue, waiting = ReadyQueue(), list[Request]()
        to_come = [Request(index, 0.0, 0, 1, 1) for index in range(60)]
        while to_come or waiting:
            if to_come and rng.random() < 0.6:
                # Mostly the next one, but some come late, as after a load.
                request = to_come.pop(0 if rng.random() < 0.5 else rng.randrange(len(to_come)))
                waiting.append(request)
                queue.push(request)
            elif waiting:
                first = min(waiting, key=lambda one: one.key)
                assert queue.ready[0] is queue.next_candidate() is first, f"seed {seed}"
                waiting.remove(first)
                queue.take(first)
                if rng.random() < 0.2:  # preempted: it goes before all others
                    queue.push_front(first)
                    waiting.append(first)
            assert queue.size() == len(queue.all_requests()) == len(waiting), f"seed {seed}"
            assert bool(queue.ready) == bool(waiting), f"seed {seed}"


# The virtual token counter, by hand


def request(number: int, tenant: int, prompt: int = 100) -> Request:
    made = Request(number, 0.0, 0, prompt, 10, 0.0, 0.0, 0.0)
    made.tenant = tenant
    return made


def test_a_pause_earns_no_credit() -> None:
    queue = FairQueue([1.0, 1.0], None)
    for number in range(6):
        queue.push(request(number, 0))
    for _ in range(5):
        candidate = queue.next_candidate()
        assert candidate is not None
        queue.take(candidate)
    served = 5 * 100 * INPUT_WEIGHT
    assert queue.counters == [served, 0]
    queue.push(request(6, 1))
    assert queue.counters == [served, served], "it starts where the others are"


def test_answers_count_over_the_weight() -> None:
    queue = FairQueue([1.0, 4.0], None)
    queue.push(request(0, 0))
    queue.push(request(1, 1))
    queue.charge(0, 8)
    queue.charge(1, 8)
    assert queue.counters == [8 * OUTPUT_WEIGHT, 2 * OUTPUT_WEIGHT]
    assert queue.next_candidate() is queue.deferred[1][0]


# Sequences end at their last step, in the order of their index


LENGTHS = st.sampled_from([1, 2, 3, 4, 256, 257, 258, 259, 600, 5000])
PAUSES = st.sampled_from([0, 0, 0, 1, 2, 255, 300])


@given(st.lists(st.tuples(LENGTHS, PAUSES, st.booleans()), min_size=10, max_size=40))
def test_sequences_end_as_in_a_sorted_list(arrivals: list[tuple[int, int, bool]]) -> None:
    ends, decoding, step = DecodeEnds(), list[Request](), 0
    for number, (tokens, pause, preempted) in enumerate(arrivals):
        request = Request(number ^ 3, 0.0, 0, 1, tokens)  # those that start later often have the lower index
        ended = ends.start([request], step)
        assert request.last_step == step + tokens - 1
        assert ended == ([request] if tokens == 1 else [])
        decoding += [request] if tokens > 1 else []
        if preempted and decoding:
            ends.remove(decoding.pop(len(decoding) // 2))
        until = step + pause
        while (due := min((r.last_step for r in decoding), default=NEVER)) <= until:
            assert ends.next_step == due
            expected = sorted((r for r in decoding if r.last_step == due), key=lambda r: r.index)
            assert ends.pop_next() == expected
            decoding = [r for r in decoding if r.last_step != due]
        step = until
    assert ends.next_step == min((r.last_step for r in decoding), default=NEVER)
