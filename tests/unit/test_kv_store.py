"""The KV store that counts, against a walk over all sequences."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from sim.policies.admission import ReadyQueue
from sim.policies.costs import StepCosts
from sim.policies.kv.kv_store import CountingStore, KvStore, held_tokens
from sim.policies.scheduler import Limits, Scheduler
from sim.spec.profile import StepCost
from sim.traffic.request import Request


def scheduler_with(kv: KvStore, budget: int = 64) -> Scheduler:
    costs = StepCosts(StepCost(), 4, budget)
    return Scheduler(Limits(8, budget), kv, ReadyQueue(), [8] * 4, costs)


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
