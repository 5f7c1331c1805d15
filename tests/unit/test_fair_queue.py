"""The queue of the virtual token counter, by hand."""

from __future__ import annotations

from sim.policies.queues.fair_queue import INPUT_WEIGHT, OUTPUT_WEIGHT, FairQueue
from sim.traffic.request import Request


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
