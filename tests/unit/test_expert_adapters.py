"""Adapters on the experts of a mixture: what steps, loads and commands make of them, and folders that have them.

What slots take is compared with vLLM in ``tests/calibrate/test_gpu_memory_model.py``.
"""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from sim.errors import ScenarioError
from sim.policies.costs import StepCosts
from sim.policies.replica_memory import ExpertReads
from sim.spec.engine_flags.command_lines import engine_flags
from sim.spec.engine_flags.options import flag_tables
from sim.spec.profile import PCIE_4_BYTES_PER_S, StepCost, load_profile
from sim.spec.profile_choice import MIXTURES
from sim.spec.scenario_file import load_scenario
from sim.traffic.adapters import SHAPES
from sim.training.files.adapter_folder import CONFIG, WEIGHTS
from sim.training.files.census import kinds_of, take_census
from sim.world.build import build_world
from sim.world.times import tier_times
from sim.world.world import World

PROFILE = "h200/gpt-oss-120b-mxfp4/vllm-0.24.0"
MIXTURE = ("fleet.gpu=h200", "adapters.base_model=gpt-oss-120b", "cache.gpu.slots=8")
LORA = {"fixed_s": 1.0, "per_adapter_s": 2.0, "per_adapter_max_rank_s": 0.5, "per_adapter_rank_s": 0.25}


def world_of(targets: str, *more: str) -> World:
    return build_world(load_scenario("quickstart", [*MIXTURE, f"adapters.targets={targets}", *more]).scenario)


def test_experts_that_tokens_touch_are_those_that_are_drawn() -> None:
    """The closed form against draws: 20 tokens, each with 4 of 128 experts, of which 2 adapters share the tokens."""
    rng, tokens, runs = np.random.default_rng(7), 10, 4000
    touched = [len({int(e) for _ in range(tokens) for e in rng.choice(128, 4, replace=False)}) for _ in range(runs)]
    expected = ExpertReads(128.0, 4 / 128).per_adapter(2 * tokens, 2)
    assert expected == pytest.approx(np.mean(touched), abs=4 * np.std(touched) / runs**0.5)
    assert ExpertReads(128.0, 4 / 128).per_adapter(3, 3) == pytest.approx(4), "one token passes as many as it must"
    assert ExpertReads(128.0, 4 / 128).per_adapter(10_000, 1) == pytest.approx(128), "and a long prompt all"


def test_a_step_pays_twice_the_kernels_and_the_bytes_of_the_experts_it_reads() -> None:
    cost, reads = StepCost.model_validate({"fixed_s": 10.0, "lora": LORA}), ExpertReads(size=6.0, passed=0.5)
    plain, costs = StepCosts(cost, 4, 64, 8), StepCosts(cost, 4, 64, 8, reads)
    assert not plain.detailed
    assert costs.detailed
    # Two adapters with two tokens each touch three quarters of the experts: 4.5 times the bytes of their attention.
    ranks = 8 + 4
    bytes_s = 0.5 * 8 * 2 + 0.25 * ranks
    assert plain.step(4, 0, 2, ranks) == 10 + 1 + 2 * 2 + bytes_s
    details = (4, 0, 0.0, 0, 0)
    assert costs.step(4, 0, 2, ranks, details) == pytest.approx(10 + 2 * 1 + 2 * 2 * 2 + bytes_s * (1 + 4.5))
    steps = [costs.step(tokens, 0, 2, ranks, details) for tokens in range(2, 64)]
    assert steps == sorted(steps)
    both = costs.with_base_model()
    assert both.step(4, 0, 2, ranks, details) == costs.step(4, 0, 2, ranks, details)
    assert both.step(4, 0, 0, 0, details) == 10, "the base model alone reads no adapter"


def test_draws_spread_the_reads_by_a_factor_of_two() -> None:
    factors = np.log2([ExpertReads(1.0, 0.1).drawn(number, 200).size for number in range(200)])
    assert factors.mean() == pytest.approx(0, abs=1e-9)
    assert factors.std() == pytest.approx(1, abs=0.02)
    world = world_of("[q, k, v, o, experts]")
    reads = [world.with_draw(number).pools[0].experts for number in range(world.draws)]
    sizes = [each.size for each in reads if each is not None]
    assert len(set(sizes)) == world.draws == 8
    # By hand, with 2880 padded to 3072 and 2944 for Marlin: A of gate and up, A of down, B of both, B of down.
    pool = world.pools[0]
    assert pool.experts.size == pytest.approx(128 * (2 * 3072 + 3 * 2944) / (4 * 2880 + 2 * 4096 + 2 * 512))
    assert pool.experts.passed == 4 / 128
    assert min(sizes) < pool.experts.size / 2.5 < pool.experts.size * 2.5 < max(sizes)


def test_only_adapters_on_experts_are_assumed() -> None:
    assert any(note.startswith("what adapters on experts cost is assumed") for note in world_of("[q, experts]").notes)
    attention = world_of("[q, v]")
    assert attention.pools[0].experts is None
    assert not any("experts" in note for note in attention.notes)


def test_a_profile_without_costs_by_rank_is_refused(tmp_path: Path) -> None:
    profile, _ = load_profile(PROFILE)
    step = profile.step.model_copy(update={"lora": profile.step.lora.model_copy(update={"per_adapter_max_rank_s": 0})})
    path = tmp_path / "mine.json"
    path.write_text(profile.model_copy(update={"step": step}).model_dump_json())
    with pytest.raises(ScenarioError, match="no cost by an adapter's rank, from which that of experts could follow"):
        world_of("[q, experts]", "fleet.gpu=", f"fleet.profile={path}")


def test_a_shape_whose_tokens_pass_no_expert_is_refused(tmp_path: Path) -> None:
    profile, _ = load_profile(PROFILE)
    shape = {**asdict(SHAPES["gpt-oss-120b"]), "active_experts": 0}
    path = tmp_path / "mine.json"
    path.write_text(json.dumps({**profile.model_dump(mode="json"), "shape": shape}))
    with pytest.raises(ScenarioError, match="a token passes some experts, but no more than there are"):
        world_of("[q, experts]", "fleet.gpu=", f"fleet.profile={path}")


def test_a_copy_of_experts_takes_its_bytes_over_the_bus() -> None:
    world = world_of("[q, k, v, o, experts]", "cache.host.slots=200")
    pool = world.pools[0]
    size = int(pool.population.size_bytes[0])
    assert size == 36 * 16 * 2 * (4 * 2880 + 2 * 4096 + 2 * 512 + 128 * 5 * 2880)
    calls = pool.profile.load.host.open_s + 36 * (2 * 4 + 4) * pool.profile.load.host.per_tensor_s
    _, host = tier_times(pool.scenario, pool.profile, pool.population)
    assert size / PCIE_4_BYTES_PER_S > calls
    assert host.mean_s(0) == pytest.approx(size / PCIE_4_BYTES_PER_S)


@pytest.mark.parametrize(
    ("targets", "more", "wanted", "absent"),
    [
        ("[q, v]", (), "--lora-target-modules qkv_proj o_proj --", "experts"),
        ("[q, experts]", (), "--lora-target-modules qkv_proj o_proj experts --", "shared-loras"),
        ("[experts-shared-outer]", (), "o_proj experts --enable-moe-shared-loras --", "parallel"),
        ("[experts]", ("fleet.expert_parallel=true",), "--enable-expert-parallel ", "fully-sharded"),
        ("[q]", ("fleet.engine=vllm-0.16",), "--enable-lora --max-loras 8 ", "target-modules"),
    ],
)
def test_a_command_keeps_experts_out_of_slots_unless_adapters_change_them(
    targets: str, more: tuple[str, ...], wanted: str, absent: str
) -> None:
    scenario = load_scenario("quickstart", [*MIXTURE, f"adapters.targets={targets}", *more], check_points=False)
    command = engine_flags(scenario.scenario, None)["vLLM"]
    assert wanted in command
    assert absent not in command


@pytest.mark.parametrize(
    ("engine", "targets", "said"),
    [("vllm", "[q]", 0), ("vllm-0.16", "[q]", 1), ("vllm-0.16", "[experts]", 0), ("vllm-0.11", "[q]", 0)],
)
def test_slots_that_hold_experts_in_vllm_alone_are_said(engine: str, targets: str, said: int) -> None:
    notes = world_of(targets, f"fleet.engine={engine}").notes
    assert sum("leave experts out" in note for note in notes) == said


def test_experts_are_read_from_a_command_line() -> None:
    flag = flag_tables()["vLLM"].flags["--lora-target-modules"]
    assert flag.reads is not None
    words = ("qkv_proj", "experts")
    assert flag.reads(words, {}) == {"adapters.targets": ["q", "k", "v", "experts"]}
    shared = flag.reads(words, {"enable-moe-shared-loras": ()})
    assert shared == {"adapters.targets": ["q", "k", "v", "experts-shared-outer"]}


def test_the_mixtures_are_those_with_experts() -> None:
    assert set(MIXTURES) == {name for name, shape in SHAPES.items() if shape.experts}


# Folders, as PEFT and trainers of shared matrices write them: two experts of 8 by 6, rank 4.

LAYER = "base_model.model.model.layers.0"
ATTENTION = {f"{LAYER}.self_attn.q_proj": ((4, 8), (8, 4))}
EACH = {
    f"{LAYER}.mlp.experts.{expert}.{name}_proj": ((4, 6), (8, 4)) if name == "down" else ((4, 8), (6, 4))
    for expert in (0, 1)
    for name in ("gate", "up", "down")
}
STACKED = {f"{LAYER}.mlp.experts.base_layer": ((8, 8), (12, 8)), f"{LAYER}.mlp.experts": ((8, 6), (8, 8))}
SHARED = {
    **{f"{LAYER}.mlp.experts.{name}": ((1, 4, 8), (2, 6, 4)) for name in ("w1", "w3")},
    f"{LAYER}.mlp.experts.w2": ((2, 4, 6), (1, 8, 4)),
}


def write(folder: Path, modules: dict[str, Any], config: dict[str, Any]) -> None:
    header: dict[str, Any] = {}
    end = 0
    for module, sides in modules.items():
        for side, shape in zip("AB", sides, strict=True):
            start, end = end, end + 2 * int(np.prod(shape))
            header[f"{module}.lora_{side}.weight"] = {"dtype": "BF16", "shape": shape, "data_offsets": [start, end]}
    text = json.dumps(header).encode()
    folder.mkdir()
    (folder / WEIGHTS).write_bytes(len(text).to_bytes(8, "little") + text + bytes(end))
    (folder / CONFIG).write_text(json.dumps(config))


@pytest.mark.parametrize(
    ("experts", "modules"),
    [(EACH, "q,experts"), (STACKED, "q,experts"), (SHARED, "q,experts-shared-outer")],
    ids=["each", "stacked", "shared"],
)
def test_a_folder_with_experts(tmp_path: Path, experts: dict[str, Any], modules: str) -> None:
    write(tmp_path / "one", {**ATTENTION, **experts}, {"r": 4})
    (entry,) = take_census(tmp_path).entries
    (kind,) = kinds_of([entry])
    assert (entry.rank, entry.target_words, ",".join(kind.targets)) == (4, modules, modules)
    assert entry.lora_parameters == entry.parameters == kind.size // 2


def test_the_rank_of_stacked_experts_is_that_of_the_configuration(tmp_path: Path) -> None:
    write(tmp_path / "one", STACKED, {"r": 4})
    write(tmp_path / "two", STACKED, {})
    census = take_census(tmp_path)
    assert [entry.ranks for entry in census.entries] == [(4,)]
    (failure,) = census.failures
    assert "an adapter with stacked experts needs a rank here" in failure.problem


def test_ranks_of_shared_matrices_must_agree(tmp_path: Path) -> None:
    write(tmp_path / "one", {f"{LAYER}.mlp.experts.w1": ((1, 4, 8), (2, 6, 5))}, {"r": 4})
    (failure,) = take_census(tmp_path).failures
    assert "the ranks of a LoRA pair differ" in failure.problem
