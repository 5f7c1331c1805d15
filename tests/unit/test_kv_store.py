"""The KV store that counts, against a walk over all sequences, and what requests wait for."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sim.policies.admission import ReadyQueue
from sim.policies.costs import StepCosts
from sim.policies.kv.kv_store import CountingStore, held_tokens
from sim.policies.scheduler import Limits, Scheduler
from sim.spec.profile import StepCost
from sim.spec.scenario_file import load_scenario
from sim.studies.evaluate import EvaluationOptions, evaluate_scenario
from sim.traffic.request import Request
from sim.world.build import build_world


@given(st.data())
def test_counting_agrees_with_a_walk_over_all_sequences(data: st.DataObject) -> None:
    """Whatever joins, is cut, grows, is preempted and ends: ``check_integrity`` counts again after each step."""
    size, total = data.draw(st.integers(1, 7)), data.draw(st.integers(12, 60))
    kv = CountingStore(total, size)
    budget = data.draw(st.integers(8, 64))
    scheduler = Scheduler(Limits(8, budget), kv, ReadyQueue(), [8] * 4, StepCosts(StepCost(), 4, budget))
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


# What requests wait for: a KV cache next to the memory that there is, batches, slots


@pytest.mark.parametrize(("tokens", "noted"), [(1_100_000, True), (100_000, False)])
def test_a_kv_cache_larger_than_the_gpu_is_noted(tokens: int, *, noted: bool) -> None:
    notes = build_world(load_scenario("quickstart", [f"fleet.kv_tokens={tokens}"]).scenario).notes
    assert any(f"fleet.kv_tokens ({tokens:,}) is more than NVIDIA H100" in note for note in notes) is noted


@pytest.mark.parametrize(("prompt", "noted"), [(100, True), (3000, False)])
def test_batches_larger_than_the_profile_covers_are_noted_where_the_kv_cache_has_room_for_them(
    prompt: int, *, noted: bool
) -> None:
    values = ["fleet.engine=sglang", "cache.gpu.slots=8", f"workload.tokens={{prompt: {prompt}, output: 100}}"]
    notes = build_world(load_scenario("quickstart", values).scenario).notes
    assert any("max_num_seqs 2048 lets batches grow beyond" in note for note in notes) is noted


def test_a_wait_for_the_next_chunk_is_none_for_a_slot() -> None:
    engine = ["fleet.engine=sglang", "fleet.gpu=l40s", "cache.gpu.slots=8", "cache.host.slots=8", "adapters.count=4"]
    values = [*engine, "workload.requests=500", "workload.arrivals.rate=30/s", "sweep=null"]
    point = evaluate_scenario(load_scenario("quickstart", values).scenario, EvaluationOptions(replications=1)).point
    assert point.breakdown["queue_s"] > 0.01
    assert point.capacity.slots.blocked_share == 0, "four adapters never want a fifth slot"
