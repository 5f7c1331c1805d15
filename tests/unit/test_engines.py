"""The rules of each preset on schedules that can be worked out on paper.

Every step takes one tick, a load from host memory two, one from storage six. Requests are (arrival, adapter, prompt,
output); times are in ticks. Each expected schedule is another one when the rule in the test's name is turned off, which
the test shows too.
"""

from __future__ import annotations

from typing import Any

import pytest
from strategies import GRID, build, fixed_time, write_file, write_profile, write_trace

from sim.results.point_summary import summarise
from sim.results.records import REFUSED, Recording
from sim.spec.scenario import Scenario
from sim.spec.sections.workload import Tokens
from sim.studies.evaluate import facts_of
from sim.traffic.request import HIT, MISS
from sim.world.build import build_world
from sim.world.replication import simulate

PRESETS = ("sglang", "s-lora", "lorax", "tensorrt-llm")


def scenario(engine: str, rows: list[tuple[int, int, int, int]], size: str = "1 MiB", **fields: Any) -> Scenario:
    """Return a scenario of small caches; ``fields`` are dotted keys with two underscores for the dot."""
    sections: dict[str, Any] = {"fleet": {}, "cache": {}, "storage": {}}
    for key, value in fields.items():
        section, _, name = key.partition("__")
        sections[section][name] = value
    trace = write_trace([(ticks * GRID, adapter, prompt, output) for ticks, adapter, prompt, output in rows])
    fleet = {"engine": engine, "profile": write_profile({"fixed_s": GRID}), "kv_tokens": 4096, **sections["fleet"]}
    return build(
        workload={"trace": {"file": trace}},
        adapters={"count": 3, "size": size},
        fleet=fleet,
        cache=sections["cache"],
        storage={"load": fixed_time(6 * GRID), "host_load": fixed_time(2 * GRID), **sections["storage"]},
    )


def run(*args: Any, **fields: Any) -> Recording:
    return simulate(build_world(scenario(*args, **fields)), 0, 1)


def ticks(recording: Recording, column: str) -> list[float]:
    return [time / GRID for time in recording.requests[column].tolist()]


def outcomes(recording: Recording) -> list[int]:
    return recording.requests["outcome"].tolist()


def test_sglang_prefills_alone_while_decodes_pause() -> None:
    # Load 0 to 2, prefill to 3, tokens at 4 and 5; then the other's prefill to 6; the last two tokens at 7 and 8.
    rows = [(0, 0, 4, 5), (4, 0, 4, 2)]
    assert ticks(run("sglang", rows), "finished_s") == [8, 7]
    assert ticks(run("sglang", rows, fleet__batching="mixed"), "finished_s") == [7, 7]


def test_a_pause_is_one_long_gap_between_tokens() -> None:
    recording = run("sglang", [(0, 0, 4, 5), (4, 0, 4, 2)])
    assert int(recording.gap_counts.sum()) == 5
    assert float(recording.gap_sum_s.sum()) == 6 * GRID, "gaps of 1, 1, 2, 1 and 1 ticks"


def test_sglangs_base_model_holds_a_slot_until_a_batch_needs_them_all() -> None:
    apart = [(0, 0, 2, 1), (20, 1, 2, 1), (40, 0, 2, 1)]
    gpu = {"slots": 2}
    assert outcomes(run("sglang", apart, cache__gpu=gpu)) == [MISS, MISS, MISS]
    assert outcomes(run("sglang", apart, cache__gpu={**gpu, "base_model_slot": False})) == [MISS, MISS, HIT]
    together = [(0, 0, 2, 9), (1, 1, 2, 9), (40, 0, 2, 1), (60, 1, 2, 1)]
    assert outcomes(run("sglang", together, cache__gpu=gpu)) == [MISS, MISS, HIT, HIT]


def test_a_prefill_of_sglang_may_evict_the_adapter_of_a_request_that_decodes() -> None:
    # The second request's prefill, from 5 to 8 with its load, takes the slot of the first one's adapter, although the
    # base model has a slot as well. The next step loads it again, from 8 to 10, now in place of the base model.
    rows = [(0, 0, 4, 5), (4, 1, 4, 2)]
    recording = run("sglang", rows, cache__gpu={"slots": 2})
    assert ticks(recording, "finished_s") == [12, 11]
    assert recording.loads["adapter"].tolist() == [0, 1, 0]
    recording = run("sglang", rows, cache__gpu={"slots": 2}, cache__protects="running")
    assert ticks(recording, "finished_s") == [10, 9]
    assert recording.loads["adapter"].tolist() == [0, 1]


def test_sglang_keeps_room_for_limits_that_answers_do_not_reach() -> None:
    # Both are loaded by 2 and prefilled by 3, and have ten tokens at 12. With a limit of 80 tokens, the second finds no
    # room: 10 + 80 + 1 of the 9 that the first leaves. It is prefilled one step after the first one's end token.
    rows = [(0, 0, 10, 10), (0, 0, 10, 10)]
    exact = scenario("sglang", rows, fleet__kv_tokens=100)
    assert ticks(simulate(build_world(exact), 0, 1), "finished_s") == [12, 12]
    workload = exact.workload.model_copy(update={"tokens": Tokens(max_tokens=80)})
    limited = exact.model_copy(update={"workload": workload})
    assert ticks(simulate(build_world(limited), 0, 1), "finished_s") == [12, 23]


def test_the_longest_known_prefix_goes_first_with_lpm_of_sglang() -> None:
    # The first of three requests runs alone from 2 to 7; the last begins with the same 8 tokens, the second does not.
    rows = ["0,a0,10,5,text,8", f"{3 * GRID!r},a0,10,2,,", f"{4 * GRID!r},a0,10,2,text,8"]
    header = "timestamp_s,adapter_id,input_tokens,output_tokens,prefix_id,prefix_tokens"
    trace = write_file(".csv", "\n".join([header, *rows]) + "\n")
    ends = []
    for policy in ("fcfs", "lpm"):
        exact = scenario("sglang", [], fleet__scheduling=policy, fleet__max_num_seqs=1, fleet__prefix_caching=True)
        fields = exact.model_dump(exclude_unset=True)
        fields["workload"]["trace"]["file"] = trace
        ends.append(ticks(simulate(build_world(Scenario.model_validate(fields)), 0, 1), "finished_s"))
    assert ends == [[7, 9, 11], [7, 11, 9]]


def test_vllm_schedules_ahead_and_counts_as_vllm_only_with_its_own_rules() -> None:
    for cache, fleet, expected in (
        ({}, {}, (True, "running")),
        ({"eviction": "lru"}, {}, (True, "scheduled")),
        ({}, {"batching": "prefill-first"}, (False, "running")),
    ):
        data = {"fleet": {"engine": "vllm-0.33", **fleet}, "cache": {"gpu": {"slots": 4}, **cache}}
        filled = Scenario.model_validate(
            {
                "schema_version": 1,
                "name": "test",
                "workload": {"requests": 9, "arrivals": {"process": "poisson", "rate": "1/s"}},
                "adapters": {"count": 3},
                **data,
            }
        ).fleet
        assert (filled.async_scheduling, filled.adapter_limit) == expected


def test_limits_of_answers_that_an_engine_does_not_read_are_said() -> None:
    for engine, said in (("sglang", 0), ("vllm", 1), ("lorax", 1)):
        for tokens in (Tokens(max_tokens=80), Tokens(ignore_eos=True)):
            exact = scenario(engine, [(0, 0, 4, 5)])
            limited = exact.model_copy(update={"workload": exact.workload.model_copy(update={"tokens": tokens})})
            assert sum("has no effect" in note for note in build_world(limited).notes) == said


def test_overlapped_loads_of_sglang_take_the_place_of_nothing_that_runs() -> None:
    # The first load from 0 to 2, tokens from 3 to 7. The second load from 5 to 7, in place of the base model, so that
    # its request is prefilled from 7 to 8.
    rows = [(0, 0, 4, 5), (4, 1, 4, 2)]
    recording = run("sglang", rows, cache__gpu={"slots": 2}, storage__mode="overlap", fleet__load_at="admission")
    assert ticks(recording, "finished_s") == [7, 9]
    assert recording.loads["adapter"].tolist() == [0, 1]
    assert (recording.loads["ended_s"] / GRID).tolist() == [2, 7]
    assert outcomes(recording) == [MISS, MISS]
    # With one slot, the second one waits for the end of the first.
    recording = run("sglang", rows, cache__gpu={"slots": 1}, storage__mode="overlap", fleet__load_at="admission")
    assert (recording.loads["started_s"] / GRID).tolist()[1] >= 7


def test_fifo_evicts_the_first_loaded_where_lru_keeps_the_last_used() -> None:
    rows = [(0, 0, 2, 1), (20, 1, 2, 1), (40, 0, 2, 1), (60, 2, 2, 1), (80, 0, 2, 1)]
    gpu = {"slots": 2, "base_model_slot": False}
    assert outcomes(run("sglang", rows, cache__gpu=gpu, cache__eviction="fifo")) == [MISS, MISS, HIT, MISS, MISS]
    assert outcomes(run("sglang", rows, cache__gpu=gpu)) == [MISS, MISS, HIT, MISS, HIT]


def test_s_lora_looks_at_its_queue_ten_decode_steps_after_an_admission() -> None:
    # First token at 3, ten more by 13, then the prefill of the other.
    rows = [(0, 0, 2, 30), (4, 0, 2, 2)]
    assert ticks(run("s-lora", rows), "first_token_s") == [3, 14]
    assert ticks(run("s-lora", rows, fleet__admission_interval=1), "first_token_s") == [3, 6]


def test_s_lora_discards_what_is_idle() -> None:
    rows = [(0, 0, 2, 3), (20, 0, 2, 3)]
    assert outcomes(run("s-lora", rows)) == [MISS, MISS]
    assert outcomes(run("s-lora", rows, cache__eviction="lru")) == [MISS, HIT]


def test_s_lora_admits_by_the_peak_of_the_batch() -> None:
    # At the look after ten decode steps the first holds 21 tokens with 48 to come, the second would hold 11 with 19 to
    # come: the peak is 19 x 2 + 32 = 70, of 100 less 8 for the adapter. Both whole answers would take 100.
    rows = [(0, 0, 10, 60), (4, 0, 10, 20)]
    assert ticks(run("s-lora", rows, fleet__kv_tokens=100), "admitted_s") == [0, 13]
    whole = run("s-lora", rows, fleet__kv_tokens=100, fleet__kv_check="whole-answer")
    assert ticks(whole, "admitted_s") == [0, 3 + 59]


def test_s_loras_adapters_take_kv_memory() -> None:
    # Each adapter takes 32 tokens, and both answers hold some 60 at their peak: 128 suffice, 100 don't.
    rows = [(0, 0, 10, 30), (4, 1, 10, 20)]
    shared = {"size": "4 MiB", "fleet__admission_interval": 1}
    assert ticks(run("s-lora", rows, fleet__kv_tokens=128, **shared), "admitted_s") == [0, 5]
    assert ticks(run("s-lora", rows, fleet__kv_tokens=100, **shared), "admitted_s") == [0, 32]
    apart = run("s-lora", rows, fleet__kv_tokens=100, cache__gpu={"unified": False, "slots": 2}, **shared)
    assert ticks(apart, "admitted_s") == [0, 5]


def test_s_loras_token_budget_is_a_sixth_of_its_pool_if_that_is_more_than_a_request() -> None:
    # batch_max_tokens = max(max_total_token_num / 6, max_req_total_len), unless it is given.
    rows = [(0, 0, 64, 2)]
    for pool, budget in ((82_528, 13_754), (18_432, 3_072), (4_096, 3_072)):
        assert build_world(scenario("s-lora", rows, fleet__kv_tokens=pool)).pools[0].batched_tokens == budget
    given = scenario("s-lora", rows, fleet__kv_tokens=82_528, fleet__max_num_batched_tokens=4_096)
    assert build_world(given).pools[0].batched_tokens == 4_096
    # Two prompts of 2,000 tokens share the first step in a pool of 24,000, but not with a budget of 3,072.
    rows = [(0, 0, 2000, 2), (0, 0, 2000, 2)]
    assert ticks(run("s-lora", rows, fleet__kv_tokens=24_000), "admitted_s") == [0, 0]
    apart = run("s-lora", rows, fleet__kv_tokens=24_000, fleet__budget_kv_share=0.0)
    assert ticks(apart, "admitted_s") == [0, 4], "the first ends after its load, its prefill and one decode"


def test_prompts_that_no_step_can_hold_are_refused() -> None:
    rows = [(0, 0, 65, 2), (0, 0, 64, 2)]
    limits = {"fleet__max_num_batched_tokens": 64, "fleet__max_num_seqs": 8}
    assert run("s-lora", rows, **limits).requests["status"].tolist() == [REFUSED, 0]
    assert run("sglang", rows, **limits).requests["status"].tolist() == [0, 0]


def test_lorax_gives_an_adapters_place_to_another_after_the_cycle_time() -> None:
    rows = [(0, 0, 2, 9), (1, 1, 2, 2), (2, 0, 2, 2), (3, 0, 2, 2)]
    one = {"cache__gpu": {"slots": 1}, "fleet__max_num_seqs": 1}
    cycled = ticks(run("lorax", rows, cache__cycle="50 ms", **one), "admitted_s")
    assert sorted(range(4), key=cycled.__getitem__) == [0, 1, 2, 3]
    stays = ticks(run("lorax", rows, cache__cycle="1 h", **one), "admitted_s")
    assert sorted(range(4), key=stays.__getitem__) == [0, 2, 3, 1]


def test_lorax_lets_requests_of_active_adapters_pass_and_no_adapter_in_use_go() -> None:
    # Fetch 0 to 6, load to 8, prefill to 9, then 39 tokens and a pause for the third: to 49. Only then can the other
    # adapter be loaded, for two ticks.
    rows = [(0, 0, 2, 40), (1, 1, 2, 2), (10, 0, 2, 2)]
    recording = run("lorax", rows, cache__gpu={"slots": 1}, cache__cycle="1 ms", fleet__admission_interval=2)
    assert ticks(recording, "admitted_s") == [8, 51, 11]
    assert outcomes(recording) == [MISS, MISS, HIT]


def test_lorax_waits_for_a_batch_that_is_worth_a_prefill() -> None:
    # One runs; 1.2 times as many is one: the next look is after one decode step. Three run, and two wait 20 steps.
    rows = [(0, 0, 2, 60), (20, 0, 2, 60), (20, 0, 2, 60), (30, 0, 2, 60), (30, 0, 2, 60)]
    recording = run("lorax", rows)
    assert ticks(recording, "admitted_s") == [8, 21, 21, 42, 42]
    assert ticks(run("lorax", rows, fleet__waiting_ratio=0.5), "admitted_s") == [8, 21, 21, 31, 31]


def test_tensorrt_llm_reads_and_copies_within_the_step() -> None:
    # The first: read to 6, tokens at 7, 8, ... 14. The step that admits the other reads from 14 to 20 and takes one
    # tick: at 21 the first has its ninth token and the other its first. The third finds its adapter.
    rows = [(0, 0, 2, 12), (13, 1, 2, 2), (40, 0, 2, 1)]
    recording = run("tensorrt-llm", rows)
    assert ticks(recording, "first_token_s") == [7, 21, 41]
    assert ticks(recording, "finished_s") == [24, 22, 41]
    assert recording.host_fills["wait_s"].tolist() == []


FETCHING = {"slots": 1, "fill": "arrival", "full": "reject"}
"""As its C++ executor has it."""


def test_an_executor_that_fetches_at_arrival_rejects_when_host_memory_is_in_use() -> None:
    rows = [(0, 0, 2, 30), (4, 1, 2, 2), (60, 1, 2, 2)]
    recording = run("tensorrt-llm", rows, cache__host=FETCHING)
    assert recording.requests["status"].tolist() == [0, REFUSED, 0]
    waits = run("tensorrt-llm", rows, cache__host={"slots": 1, "fill": "arrival", "full": "wait"})
    assert ticks(waits, "first_token_s") == [9, 38 + 6 + 2 + 1, 61]


def test_it_reads_storage_beside_the_steps_and_copies_within_them() -> None:
    # The first: fetch to 6, copy to 8, tokens at 9, 10, ... The other is fetched from 10 to 16 meanwhile; the step that
    # admits it takes two ticks for the copy and one for itself, which the first waits for.
    rows = [(0, 0, 2, 12), (10, 1, 2, 2)]
    recording = run("tensorrt-llm", rows, cache__host={"slots": 2, "fill": "arrival"})
    assert ticks(recording, "first_token_s") == [9, 19]
    assert ticks(recording, "finished_s") == [22, 20]
    assert ticks(recording, "load_wait_s") == [8, 8]
    in_step = run("tensorrt-llm", rows)
    # First token at 7, the fifth at 11, the sixth after six ticks of reading at 18.
    assert ticks(in_step, "finished_s") == [24, 19], "the read, too, stops the first"


def test_fetches_wait_before_admission_and_copies_after_it() -> None:
    # Both wait 6 ticks for host memory, and 2 for the copy inside the step that admits them, which itself takes one.
    world = build_world(scenario("tensorrt-llm", [(0, 0, 2, 12), (10, 1, 2, 2)], cache__host=FETCHING | {"slots": 2}))
    recording = simulate(world, 0, 1)
    assert recording.host_fills["wait_s"].tolist() == [6 * GRID, 6 * GRID]
    breakdown = summarise([recording], facts_of(world), {}, []).breakdown
    # Admitted at 6 and 16, first tokens at 9 and 19, last ones at 22 and 20.
    stages = {"loader_queue_s": 0, "load_s": 8 * GRID, "queue_s": 0, "prefill_s": 1 * GRID, "decode_s": 7 * GRID}
    assert breakdown == pytest.approx(stages)


def test_tensorrt_llm_keeps_blocks_for_whole_answers() -> None:
    # Two blocks of 32: one for 30 tokens; the other request needs two, though its prompt would fit in one.
    rows = [(0, 0, 10, 20), (12, 0, 20, 20)]
    assert ticks(run("tensorrt-llm", rows, fleet__kv_tokens=64), "admitted_s") == [0, 26]
    chunked = {"fleet__kv_check": "whole-prompt", "fleet__chunked_prefill": True}
    assert ticks(run("tensorrt-llm", rows, fleet__kv_tokens=64, **chunked), "admitted_s") == [0, 13]


@pytest.mark.parametrize("engine", PRESETS)
def test_any_field_of_a_preset_can_be_set(engine: str) -> None:
    preset = scenario(engine, [(0, 0, 2, 2)])
    assert preset.fleet.block_size == {"sglang": 1, "s-lora": 1, "lorax": 16, "tensorrt-llm": 32}[engine]
    ours = scenario(engine, [(0, 0, 2, 2)], cache__gpu={"slots": 3}, fleet__max_num_batched_tokens=512)
    assert (ours.cache.gpu.slots, ours.cache.gpu.size) == (3, None)
    assert (ours.cache.gpu.unified, ours.cache.gpu.base_model_slot) == (engine == "s-lora", engine == "sglang")
    assert ours.fleet.max_num_batched_tokens == 512
