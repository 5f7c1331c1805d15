"""Replicas over several GPUs in scenarios: which profile, what fits, what each GPU holds, what is said of it."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

import loraplan
from reports.text.setup_text import setup_line
from sim.errors import InputError
from sim.results.point import Point
from sim.spec.engine_flags.command_lines import engine_flags
from sim.spec.profile import load_profile
from sim.spec.profile_choice import profile_choice, siblings
from sim.spec.scenario_file import load_scenario
from sim.studies.evaluate import EvaluationOptions, evaluate_scenario
from sim.traffic.adapters import MODULES, SHAPES, GpuSplit, split_of
from sim.world.build import build_world
from sim.world.memory.gpu_memory import adapter_bytes, memory_use
from sim.world.times import AdapterTimes, tier_times
from sim.world.world import World

SCENARIO = "plan-70b-tensor-parallel"
H200 = "h200/llama-3.1-70b-tp{}/vllm-0.24.0"
SMALL = ("workload.requests=400", "run.replications=2")


def world_of(*overrides: str) -> World:
    return build_world(load_scenario(SCENARIO, overrides).scenario)


def kv_tokens(world: World) -> int:
    assert world.pools[0].kv_tokens is not None
    return world.pools[0].kv_tokens


def refusal(source: str, *overrides: str) -> str:
    with pytest.raises(InputError) as refused:
        build_world(load_scenario(source, overrides).scenario)
    return str(refused.value)


# Which profile


@pytest.mark.parametrize("gpus", [2, 4])
def test_the_number_of_gpus_picks_the_sibling_of_the_named_profile(gpus: int) -> None:
    for named in (2, 4):
        world = world_of(f"fleet.profile={H200.format(named)}", f"fleet.tensor_parallel={gpus}")
        assert (world.pools[0].profile.name, world.pools[0].profile.tensor_parallel) == (H200.format(gpus), gpus)
        assert world.profile_sha256 == load_profile(H200.format(gpus))[1]


def test_siblings_have_the_same_device_model_and_engine() -> None:
    assert siblings(H200.format(2)) == {2: H200.format(2), 4: H200.format(4)}
    assert siblings("h100-80gb/llama-3.1-8b/vllm-0.24.0") == {1: "h100-80gb/llama-3.1-8b/vllm-0.24.0"}
    assert siblings("./mine.json") == {}


def test_a_profile_of_ones_own_keeps_its_number_of_gpus(tmp_path: Path) -> None:
    path = tmp_path / "mine.json"
    path.write_text(load_profile(H200.format(4))[0].model_dump_json())
    scenario = load_scenario(SCENARIO, [f"fleet.profile={path}", "fleet.tensor_parallel=4"]).scenario
    assert profile_choice(scenario).name == str(path)
    assert refusal(SCENARIO, f"fleet.profile={path}", "fleet.tensor_parallel=2").startswith(
        "fleet.tensor_parallel: the profile that the scenario names is for another number of GPUs (got 2, allowed: 4 ("
    )


def test_a_rank_that_cannot_be_split_is_refused(tmp_path: Path) -> None:
    odd = tmp_path / "odd.json"
    odd.write_text(load_profile(H200.format(4))[0].model_copy(update={"tensor_parallel": 32}).model_dump_json())
    said = refusal(SCENARIO, "fleet.fully_sharded_loras=true", "fleet.tensor_parallel=32", f"fleet.profile={odd}")
    assert said.startswith(
        "fleet.fully_sharded_loras: vLLM splits A along its rank, so the rank of slots must be a multiple of the "
        "GPUs of a replica (got true with rank 16 over 32 GPUs"
    )


def test_a_profile_without_memory_is_refused(tmp_path: Path) -> None:
    data = load_profile(H200.format(4))[0].model_dump(mode="json")
    del data["memory"]
    path = tmp_path / "mine.json"
    path.write_text(json.dumps(data))
    said = refusal(SCENARIO, f"fleet.profile={path}", "fleet.tensor_parallel=4")
    assert said.startswith(f"{path}: fleet.profile: the profile's memory: Field required")


# What each GPU holds


def test_a_replica_over_more_gpus_has_more_kv_cache_and_smaller_slots() -> None:
    two, four = world_of("fleet.tensor_parallel=2"), world_of("fleet.tensor_parallel=4")
    sharded = world_of("fleet.tensor_parallel=4", "fleet.fully_sharded_loras=true")

    def on_gpu(world: World) -> float:
        split = split_of(world.scenario, world.pools[0].profile)
        whole = adapter_bytes(40, world.pools[0].profile, world.pools[0].population, split)
        return whole / world.pools[0].profile.tensor_parallel

    # One side of each adapter is whole on every GPU, so twice the GPUs don't halve a slot; fully sharded they do.
    assert on_gpu(two) / 2 < on_gpu(sharded) * 1.3 < on_gpu(four) * 1.3 < on_gpu(two) * 1.3
    memory = four.pools[0].profile.memory
    plain, fully = (
        adapter_bytes(40, four.pools[0].profile, four.pools[0].population, GpuSplit(4, each)) for each in (False, True)
    )
    freed = plain - fully
    assert kv_tokens(sharded) - kv_tokens(four) == pytest.approx(freed / memory.kv_bytes_per_token, abs=16)
    # Weights are there once, so the second pair of GPUs adds more than the first pair had left.
    assert kv_tokens(four) > 2.5 * kv_tokens(two)


def test_slots_of_other_engines_are_split_like_vllms() -> None:
    """Of rank 16, counted by hand: A of q, k, v, gate and up and B of o and down whole, a quarter of the rest."""
    world = world_of("fleet.tensor_parallel=4")
    exact = world.pools[0].profile.memory.model_copy(update={"slot_layout": "exact"})
    profile = world.pools[0].profile.model_copy(update={"memory": exact})
    whole, rest = 5 * 8192 + 2 * 8192, 8192 + 2 * 1024 + 2 * 28672 + 8192 + 28672
    population = world.pools[0].population
    assert adapter_bytes(10, profile, population, GpuSplit(4)) == 10 * 4 * 80 * 16 * 2 * (whole + rest // 4)
    assert adapter_bytes(10, profile, population, GpuSplit(4, fully_sharded=True)) == 10 * 80 * 16 * 2 * (whole + rest)


def test_the_share_of_memory_that_the_engine_may_use_is_of_all_gpus() -> None:
    most, less = (world_of("fleet.tensor_parallel=4", f"fleet.gpu_memory_utilization={share}") for share in (0.9, 0.8))
    memory = most.pools[0].profile.memory
    assert kv_tokens(most) - kv_tokens(less) == pytest.approx(
        0.1 * memory.total_bytes / memory.kv_bytes_per_token, abs=32
    )


@pytest.mark.parametrize("limit", [{"bandwidth_bytes_per_s": 1e9}, {"bus_bytes_per_s": 1e9}])
def test_a_load_reads_the_whole_file_and_copies_a_share_to_each_gpu(tmp_path: Path, limit: dict[str, float]) -> None:
    profile = load_profile(H200.format(4))[0]
    calls = {"open_s": 0, "per_tensor_s": 0, "bandwidth_bytes_per_s": 1e15}
    slow = profile.load.host.model_copy(update=calls | limit)
    load = profile.load.model_copy(update={"host": slow})
    path = tmp_path / "slow.json"
    path.write_text(profile.model_copy(update={"load": load}).model_dump_json())
    seconds = {}
    for fully in ("false", "true"):
        world = world_of(f"fleet.profile={path}", "fleet.tensor_parallel=4", f"fleet.fully_sharded_loras={fully}")
        storage, host = tier_times(world.scenario, world.pools[0].profile, world.pools[0].population)
        alone = AdapterTimes(load.storage, world.pools[0].population)
        first, half = np.array([0]), np.array([0.5])
        assert storage.seconds(first, half) == alone.seconds(first, half)
        seconds[fully] = float(host.seconds(first, half)[0]) / (int(world.pools[0].population.size_bytes[0]) / 1e9)
    residual = float(np.interp(0.5, np.linspace(0, 1, len(slow.residual)), slow.residual))
    assert seconds["true"] == pytest.approx(residual / 4)
    shape = SHAPES["llama-3.1-70b"]
    copies = 3 * (5 * 8192 + 2 * 8192) / sum(sum(shape.module(name)) for name in MODULES)
    assert seconds["false"] == pytest.approx(residual / 4 * (1 + copies)), "one side goes whole to every GPU"


# What is said of it


def simulated(*overrides: str) -> Point:
    return evaluate_scenario(
        load_scenario(SCENARIO, [*SMALL, *overrides]).scenario, EvaluationOptions(draws=False)
    ).point


def test_results_say_how_many_gpus_and_what_each_holds() -> None:
    point = simulated("fleet.tensor_parallel=4", "fleet.replicas=3")
    assert point.setup.share is not None
    share = point.setup.share
    assert (share.gpus, share.replicas, share.slots) == (4, 3, 40)
    # Of a whole adapter (12,943,360 parameters a rank x 16 x 2 bytes): a quarter, and copies.
    assert 414_187_520 / 4 < share.load_bytes < 414_187_520
    assert share.slot_bytes > share.load_bytes, "slots also hold LoRA of embedding and output head"
    assert Point.from_json(point.to_json()).setup == point.setup

    line = setup_line([point])
    assert "3 replicas of 4 GPUs = 12 GPUs; each GPU keeps 40 slots of " in line
    assert "; a load copies up to " in line


def test_a_replica_on_one_gpu_is_described_as_before() -> None:
    point = evaluate_scenario(load_scenario("quickstart", SMALL).scenario, EvaluationOptions(draws=False)).point
    assert point.setup.share is None
    assert "share" not in point.setup.to_json()
    assert "GPUs" not in setup_line([point])


def test_a_sweep_over_the_gpus_of_a_replica(tmp_path: Path) -> None:
    result = loraplan.sweep(
        SCENARIO,
        {"fleet.tensor_parallel": [2, 4]},
        {"workload.requests": 400, "run.replications": 2},
        out=tmp_path / "sweep",
        jobs=1,
    )
    shares = [point.setup.share.gpus for point in result.points if point.setup and point.setup.share]
    assert shares == [2, 4]
    assert "GPUs per replica" in result.answer.headline + " ".join(result.answer.details) + result.report().read_text()


def test_flags_say_how_a_replica_is_spread() -> None:
    plain = engine_flags(load_scenario(SCENARIO, ["fleet.tensor_parallel=4"]).scenario, None)["vLLM"]
    assert "--tensor-parallel-size 4" in plain
    assert "--fully-sharded-loras" not in plain
    sharded = load_scenario(SCENARIO, ["fleet.tensor_parallel=4", "fleet.fully_sharded_loras=true"]).scenario
    assert "--fully-sharded-loras " in engine_flags(sharded, None)["vLLM"]


def test_prices_are_per_gpu_and_a_replica_has_those_of_its_profile(tmp_path: Path) -> None:
    easy = {"slo.ttft_p99": None, "slo.tpot_mean": "2 s", "plan.range": [1, 2]}
    easy |= {"workload.requests": 400, "run.replications": 2}
    found = loraplan.plan(SCENARIO, easy, out=tmp_path / "plan", jobs=1)
    assert found.found == {"fleet": "TP 2", "fleet.replicas": 1, "price": 8.0, "gpus": 2}
    assert found.answer.headline.startswith("Use 1 replica (2 GPUs) of TP 2 for $8 an hour, the cheapest of 2 fleets: ")
    assert "TP 2 at $4 per GPU hour: 1 replica of 2 GPUs = 2 GPUs, $8 an hour." in found.answer.details
    assert "TP 4 at $4 per GPU hour: dearer with its first replica." in found.answer.details


# What a replica keeps in memory


@pytest.mark.parametrize("gpus", [2, 4])
def test_the_memory_of_a_replica_adds_up(gpus: int) -> None:
    pool = world_of(f"fleet.tensor_parallel={gpus}").pools[0]
    use = memory_use(pool)
    memory = pool.profile.memory
    block = pool.scenario.fleet.block_size * memory.kv_bytes_per_token
    utilization = pool.scenario.fleet.gpu_memory_utilization or memory.utilization
    spent = use.weights + use.engine + use.adapters + use.kv
    assert 0 <= memory.total_bytes * utilization - spent < 2 * block, "what is left is less than two blocks"
    assert use.copies == 40
    assert use.host == use.copies * gpus * int(pool.population.size_bytes.max()), "every GPU's process has its copies"


@pytest.mark.parametrize(
    ("host", "copies"),
    [("{slots: 7}", 7), ("{slots: 700}", 200), ("{size: 1 GB}", 11), ("", 0)],
)
def test_host_memory_has_room_for_these_copies(host: str, copies: int) -> None:
    idealised = ("fleet.engine=continuous", "cache.gpu.slots=8", f"cache.host={host}")
    use = memory_use(build_world(load_scenario("quickstart", idealised).scenario).pools[0])
    assert (use.copies, use.slots) == (copies, 8)
