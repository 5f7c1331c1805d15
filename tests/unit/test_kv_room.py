"""What requests wait for: a KV cache next to the memory that there is, batches, slots."""

from __future__ import annotations

import pytest

from sim.spec.scenario_file import load_scenario
from sim.studies.evaluate import EvaluationOptions, evaluate_scenario
from sim.world.build import build_world


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
