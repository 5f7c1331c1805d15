"""Full models: what is refused, where requests go, what memory is left, and what metrics, plans and reports say."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from strategies import build, write_file, write_profile

from reports.answers.limits import limits
from reports.tables.metric_tables import capacity_table
from reports.tables.slice_tables import replicas_table
from reports.text.limit_text import limit_sentence
from sim.errors import ScenarioError
from sim.policies.routing import View
from sim.policies.routing.pool_router import ToHolders
from sim.results.records import COMPLETED
from sim.spec.engine_flags.command_lines import beyond_flags, engine_flags
from sim.spec.scenario import Scenario
from sim.spec.scenario_file import load_scenario
from sim.studies.backends.pool import Local
from sim.studies.evaluate import EvaluationOptions, evaluate_scenario
from sim.studies.execution import Execution
from sim.studies.plan.screen import screen
from sim.studies.plan.study import make_plan
from sim.studies.plan.what_if import changes
from sim.studies.run.method import assumed, modelled
from sim.traffic.adapters import SHAPES, model_tensors, populate
from sim.world.build import build_world
from sim.world.replication import simulate
from sim.world.times import tier_times
from sim.world.world import Pool, World

WORKLOAD: dict[str, Any] = {"requests": 300, "arrivals": {"process": "poisson", "rate": "4/s"}}
FULL = {"share": 0.2, "kind": "full"}
MIX = [{"share": 0.8, "rank": 16}, FULL]


def scenario(**sections: Any) -> Scenario:
    fleet = {"full_models": {"serve": "dedicated"}, **sections.pop("fleet", {})}
    given = {"workload": WORKLOAD, "adapters": {"count": 10, "mix": MIX}, "cache": {"gpu": {"slots": 4}}}
    return build(**{**given, **sections}, fleet=fleet)


def full_model_pools(world: World) -> list[Pool]:
    """Return the pools of full models."""
    return [pool for pool in world.pools if pool.whole_models is not None]


def kv_tokens(world: World) -> list[int | None]:
    """Return the KV cache of each pool of full models."""
    return [served.kv_tokens for served in full_model_pools(world)]


SWAP = {"full_models": {"serve": "swap"}}


def test_sizes_from_a_trace_leave_open_which_are_full_models() -> None:
    rows = "timestamp_s,adapter_id,input_tokens,output_tokens,adapter_bytes\n0,a,10,10,1000\n1,b,10,10,2000\n"
    with pytest.raises(ScenarioError, match="doesn't tell which adapters are full models") as caught:
        build_world(scenario(workload={"trace": {"file": write_file(".csv", rows)}}, adapters={"mix": MIX}))
    assert caught.value.key == "adapters.mix.1.kind"


def test_memory_is_that_of_the_models_which_a_replica_holds() -> None:
    one, same = kv_tokens(build_world(scenario()))
    (two,) = kv_tokens(build_world(scenario(fleet={"full_models": {"serve": "swap", "resident": 2}})))
    assert one == same
    kv_bytes = 2 * 32 * 8 * 128 * 2
    assert (one - two) * kv_bytes == pytest.approx(16_060_522_496, abs=16 * kv_bytes)
    more = kv_tokens(build_world(scenario(fleet={"full_models": {"serve": "swap", "resident": 64}})))
    assert more == [two], "there are only two models to hold"


def test_full_models_change_no_slot_and_no_rank() -> None:
    plain = populate(
        Scenario.model_validate(
            scenario().model_dump(mode="json", exclude_unset=True, by_alias=True)
            | {"adapters": {"count": 10, "rank": 16}, "fleet": {}}
        ).adapters,
        "llama-3.1-8b",
        10,
    )
    world = build_world(scenario())
    assert world.pools[0].population.slot_bytes == plain.slot_bytes
    assert int(world.pools[0].population.rank.max()) == 16
    assert world.traffic.population.size_bytes.max() == 16_060_522_496
    assert world.pools[0].population.size_bytes.max() == plain.size_bytes.max()
    assert world.pools[0].weights == [1] * 10
    exact = build_world(scenario(cache={"gpu": {"size": "1 GB"}}))
    assert exact.pools[0].weights == [0 if full else 83_886_080 for full in world.traffic.population.full]
    assert not world.traffic.population.full[0]
    pinned = build_world(scenario(cache={"gpu": {"slots": 4}, "pinned": 3, "warm": 9}))
    (pool,) = pinned.own_pools
    assert not any(pinned.traffic.population.full[list(pool.pinned + pool.warm)])


def test_a_model_has_the_tensors_of_its_published_index() -> None:
    # model.safetensors.index.json of Llama-3.1-8B lists 291 tensors, that of Qwen2.5-7B 339.
    assert model_tensors(SHAPES["llama-3.1-8b"]) == 291
    assert model_tensors(SHAPES["qwen2.5-7b"]) == 339


def test_a_load_takes_the_size_over_the_bandwidth() -> None:
    (served,) = full_model_pools(build_world(scenario(fleet=SWAP)))
    model = served.traffic.population.full.tolist().index(True)
    uniform = np.array([0.0, 0.999])
    expected = 0.0466 + 291 * 1.48e-5 + 16_060_522_496 / 2.14e9
    from_storage, _ = tier_times(served.scenario, served.profile, served.population)
    assert from_storage.seconds(np.array([model, model]), uniform).tolist() == pytest.approx([expected, expected])


def test_requests_find_their_replica() -> None:
    view = View(up=[1, 2, 3], loads=[0, 9, 2, 3], resident=[0, 0, 0, 0b0110, 0], inside=[{}, {}, {}, {4: 1}])
    pool = ToHolders(view, [3, 4, 2], key=1)
    assert pool.choose(3, 0) == 2, "of two that hold it, the one with fewer requests"
    assert pool.choose(4, 0) == 3, "no replica has it, and there they wait for it"
    view.loads = [0, 5, 5, 5]
    assert pool.choose(2, 0) == 3, "of equally loaded ones, the one that holds the fewest"
    view.resident = [0] * 5
    assert {pool.choose(2, number) for number in range(40)} == {1, 2, 3}
    assert ToHolders(View(up=[2]), [2], key=1).choose(2, 0) == 2


def test_too_long_is_by_the_memory_of_the_replica_that_serves_it() -> None:
    small = {"share": 0.2, "kind": "full", "size": "52 GB"}
    tokens = {"prompt": {"law": "fixed", "value": 35000}, "output": {"law": "fixed", "value": 2}}
    world = build_world(
        scenario(
            workload={**WORKLOAD, "requests": 60, "tokens": tokens}, adapters={"count": 10, "mix": [MIX[0], small]}
        )
    )
    requests = simulate(world, 0, 1).requests
    full = world.traffic.population.full[np.asarray(requests["adapter"])]
    assert full.any()
    assert ((requests["status"] == 2) == full).all(), "52 GB of weights leave 34,313 tokens"
    long = {**tokens, "prompt": {"law": "fixed", "value": 9000}}
    none = simulate(
        build_world(scenario(workload={**WORKLOAD, "requests": 20, "tokens": long}, fleet={"max_model_len": 8192})),
        0,
        1,
    )
    assert (none.requests["status"] == 2).all()


@pytest.mark.parametrize("crashed", [0, 1])
def test_a_crash_concerns_the_requests_of_its_replica_alone(crashed: int) -> None:
    """Replica 0 serves the base model, 1 and 2 a full model each, and no other replica takes their requests."""
    crash = {"kind": "crash", "replica": crashed, "at": "20 s", "down": "10 s", "detected": "0 s"}
    world = build_world(scenario(faults=[crash], run={"warmup": 0}))
    assert [len(pool.indices) for pool in world.pools] == [1, 1, 1]
    requests = simulate(world, 0, 1).requests
    own = requests["replica"] == crashed
    during = (requests["arrival_s"] > 20) & (requests["arrival_s"] < 30)
    assert (requests["status"] == COMPLETED).all()
    assert (own & during).any()
    assert (requests["admitted_s"][own & during] >= 30).all()
    assert (requests["admitted_s"][~own & during] < 30).any()


def test_a_run_with_crashes_and_slow_storage_has_a_point() -> None:
    crash = {"kind": "crash", "replica": 1, "at": "20 s", "down": "10 s"}
    slow = {"kind": "slow-storage", "factor": 3, "at": "30 s", "lasts": "10 s"}
    fleet = {"full_models": {"serve": "swap", "replicas": 2}}
    point = evaluate_scenario(scenario(fleet=fleet, faults=[crash, slow], run={"replications": 2})).point
    assert [event["kind"] for event in point.events] == ["crash", "detected", "restart", "fault", "over"]
    assert point.metrics["e2e_p50_s"].value is not None


@pytest.fixture(scope="module")
def swapping() -> Any:
    fleet = {"replicas": 2, "full_models": {"serve": "swap"}}
    run = {"replications": 1, "warmup": 0}
    swapped = scenario(workload={**WORKLOAD, "requests": 2000}, fleet=fleet, run=run)
    return evaluate_scenario(swapped, EvaluationOptions(requests=True))


def test_metrics_keep_loads_of_whole_models_apart_from_loaders(swapping: Any) -> None:
    point, table = swapping.point, swapping.requests
    part = point.capacity.to_json()["full_models"]
    assert part["replicas"] == 1
    assert part["utilization"] > 0.5, "two models that swap for nearly every request"
    assert point.metrics["loader_utilization"].value < 0.5
    assert point.capacity.loader.loaders == 2
    rows = {group.name: group.row for group in point.groups}
    assert rows["full models, 16.1 GB"]["adapters"] == 2
    assert rows["full models, 16.1 GB"]["miss_ratio"] > rows["rank 16, all-linear"]["miss_ratio"]
    replicas = np.asarray(table["replica"])
    assert set(replicas.tolist()) == {0, 1, 2}
    assert [one.facts["pool"] for one in point.replicas] == ["", "", "full models"]
    assert point.metrics["replica_load_skew"].value < 1.2, "of the two that share the adapters"
    assert sum(point.breakdown.values()) == pytest.approx(point.metrics["e2e_mean_s"].value, rel=1e-6)


def test_waiting_for_a_place_is_no_lack_of_slots() -> None:
    workload, cache = {**WORKLOAD, "requests": 2000}, {"gpu": {"slots": 10}}
    waiting = scenario(workload=workload, cache=cache, fleet=SWAP, run={"replications": 1, "warmup": 0})
    point = evaluate_scenario(waiting).point
    assert point.capacity.slots.blocked_share == 0
    assert point.capacity.to_json()["full_models"]["utilization"] > 0.5


def test_a_report_says_what_swaps_cost(swapping: Any) -> None:
    point = swapping.point
    assert limits(point)[0].name == "swaps"
    assert "spend" in limit_sentence(limits(point)[0], point)
    table, where = replicas_table(point, ""), capacity_table(point)
    assert table.rows[2][0] == "2 (full models)"
    assert where.rows[-1][0] == "loads of whole models"
    assert where.rows[-1][-1] == "1 replica"
    notes = " ".join(point.warnings)
    assert (
        "1 replica serves full models (a pool that swaps 2 full models), in addition to 2 of the base model: 3 replicas"
        in notes
    )
    assert "an assumption, since loads that large were not measured" in notes
    data = {"scenario": {"fleet": {"full_models": {"serve": "swap"}}, "adapters": {"base_quantization": "nf4"}}}
    assert any("it is loaded whole" in line for line in modelled(data))
    assert any("kept in nf4" in line for line in assumed(data))
    data["scenario"]["fleet"]["full_models"]["serve"] = "dedicated"
    assert any("replicas of their own" in line for line in modelled(data))


def test_formulas_leave_full_models_out() -> None:
    world = build_world(scenario(adapters={"count": 10, "mix": [{"share": 0.8, "rank": 16}, {**FULL, "size": "1 GB"}]}))
    found = screen(world)
    shares = world.traffic.shares()
    own = float(shares[~world.traffic.population.full].sum())
    alone = screen(
        build_world(
            build(
                workload={**WORKLOAD, "arrivals": {"process": "poisson", "rate": f"{4 * own}/s"}},
                adapters={"count": 8, "rank": 16},
                cache={"gpu": {"slots": 4}},
            )
        )
    )
    assert found.loader_load == pytest.approx(alone.loader_load, rel=1e-6)
    assert found.miss_ratio == pytest.approx(alone.miss_ratio, rel=1e-6)


def test_what_ifs_leave_full_models_as_they_are() -> None:
    loaded = load_scenario("full-models-beside-adapters")
    found = {change.label: change for change in changes(build_world(loaded.scenario))}
    design = loaded.with_values(found["rank 32, all linear layers"].set).scenario
    assert [(kind.kind, kind.share) for kind in design.adapters.mix] == [("lora", 0.96), ("full", 0.04)]
    assert design.adapters.mix[0].rank == 32
    quantised = loaded.with_values(found["base weights in 4 bits"].set).scenario
    assert quantised.adapters.base_quantization == "nf4"
    world = build_world(quantised)
    assert kv_tokens(world) == kv_tokens(build_world(loaded.scenario)), "full models aren't quantised"


def test_command_lines_leave_full_models_out() -> None:
    adapters = {"count": 10, "mix": [{"share": 0.8, "rank": 8, "targets": ["q"]}, FULL], "base_quantization": "nf4"}
    mixed = scenario(adapters=adapters, fleet={"engine": "vllm-0.32"})
    assert "--max-lora-rank 8 " in engine_flags(mixed, None)["vLLM"]
    assert (
        "--lora-target-modules q_proj"
        in engine_flags(scenario(adapters=adapters, fleet={"engine": "sglang"}), None)["SGLang"]
    )
    beyond = " ".join(beyond_flags(mixed))
    assert "replicas of full models" in beyond
    assert "base weights in nf4" in beyond


def test_a_price_counts_the_replicas_of_full_models(tmp_path: Path) -> None:
    path = tmp_path / "priced.yaml"
    path.write_text(
        "schema_version: 1\nname: priced\nworkload:\n  requests: 300\n  arrivals: {process: poisson, rate: 4/s}\n"
        "  tokens: {prompt: {law: fixed, value: 50}, output: {law: fixed, value: 5}}\n"
        "adapters: {count: 10, mix: [{share: 80%, rank: 16}, {share: 20%, kind: full}]}\n"
        "fleet: {full_models: {serve: dedicated}}\nrun: {replications: 2}\nslo: {ttft_mean: 30 s}\n"
        "plan: {minimize: price, range: [1, 2], fleets: [{name: a, price: 3, gpus: 2}]}\n"
    )
    planned = make_plan(load_scenario(str(path)), tmp_path / "out", Execution(Local(1)))
    assert planned.record.answer == {"fleet": "a", "fleet.replicas": 1, "price": (1 + 2) * 2 * 3, "gpus": (1 + 2) * 2}
    assert planned.record.fleets[0].full_replicas == 2
    assert planned.record.full_replicas == 2


def test_draws_reach_full_models_too() -> None:
    world = build_world(scenario(fleet={"profile": "h100-64gb/llama-3.1-8b/vllm-0.8.5"}))
    draw = world.pools[0].profile.draws[0]
    for drawn in (world.with_costs(draw), world.with_draw(0)):
        for served in full_model_pools(drawn):
            assert served.profile.step.fixed_s == draw.step.fixed_s
            assert served.profile.step.lora.per_adapter_s == 0
            assert (
                served.profile.load.storage.model_copy(update={"residual": draw.load.storage.residual})
                == draw.load.storage
            ), "whole models take the same time each"


def test_costs_per_passed_request_are_those_of_lora() -> None:
    path = write_profile({"fixed_s": 0.01, "per_passed_s": 1.0})
    world = build_world(scenario(fleet={"profile": path, "kv_tokens": 65536}))
    assert [served.profile and served.profile.step.per_passed_s for served in full_model_pools(world)] == [0, 0]


def test_another_way_to_serve_replaces_what_belongs_to_the_first() -> None:
    loaded = load_scenario("full-models-beside-adapters", ["fleet.full_models={serve: swap, turn: 20 s}"])
    assert loaded.scenario.fleet.full_models.turn == 20
    for key, value in (("fleet.full_models", {"serve": "dedicated"}), ("fleet.full_models.serve", "dedicated")):
        back = loaded.with_values({key: value}).scenario.fleet.full_models
        assert back.turn is None
