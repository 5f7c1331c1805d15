"""Quantised base weights: bytes against published files, steps, draws, and what is refused."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from strategies import build, write_file

from sim.errors import ScenarioError
from sim.policies.replica_memory import ASSUMED_SLOWDOWN, base_weights, quantised_bytes
from sim.spec.profile import Profile, load_profile
from sim.spec.sections.workload import Adapters
from sim.studies.plan.what_if import changes
from sim.world.build import build_world
from sim.world.world import World

LLAMA = "h100-64gb/llama-3.1-8b/assumed"


def profile(name: str = LLAMA, **changed: Any) -> Profile:
    return load_profile(name)[0].model_copy(update=changed)


def with_weights(model: str, weights_bytes: int) -> Profile:
    known = profile(model=model)
    return known.model_copy(update={"memory": known.memory.model_copy(update={"weights_bytes": weights_bytes})})


def test_nf4_takes_what_published_checkpoints_take() -> None:
    # total_size in model.safetensors.index.json of fsaudm/Meta-Llama-3.1-8B-Instruct-NF4 (double quantisation).
    assert quantised_bytes(profile(), "nf4") == pytest.approx(5_702_577_951, rel=1e-4)
    # QLoRA's Llama-2-7B: 6,738,415,616 parameters, of which 6,476,005,376 in linear layers.
    seven = with_weights("llama-2-7b", 6_738_415_616 * 2)
    assert quantised_bytes(seven, "nf4") == pytest.approx(3.87e9, rel=2e-3)
    # Without double quantisation, 32 more bits a block of 64: 0.373 bits a weight (QLoRA, section 3).
    more = quantised_bytes(seven, "nf4", double=False) - quantised_bytes(seven, "nf4")
    assert more == pytest.approx(6_476_005_376 * 0.373 / 8, rel=1e-6)


def test_int8_halves_the_linear_layers_alone() -> None:
    rest = 16_060_522_496 - 2 * 6_979_321_856
    assert quantised_bytes(profile(), "int8") == pytest.approx(rest + 6_979_321_856 * 1.002, rel=1e-6)


def world(**adapters: Any) -> World:
    return build_world(
        build(
            workload={"requests": 100, "arrivals": {"process": "poisson", "rate": "4/s"}},
            cache={"gpu": {"slots": 8}},
            adapters={"count": 10, **adapters.pop("adapters", {})},
            fleet=adapters.pop("fleet", {}),
        )
    )


def test_the_memory_becomes_kv_cache_and_the_base_part_of_a_step_longer() -> None:
    plain, quantised = world(), world(adapters={"base_quantization": "nf4", "base_slowdown": 1.5})
    freed = plain.pools[0].profile.memory.weights_bytes - quantised.pools[0].profile.memory.weights_bytes
    per_token = plain.pools[0].profile.memory.kv_bytes_per_token
    assert (quantised.pools[0].kv_tokens - plain.pools[0].kv_tokens) * per_token == pytest.approx(
        freed, abs=17 * per_token
    )
    ours, theirs = quantised.pools[0].profile.step, plain.pools[0].profile.step
    assert ours.fixed_s == 1.5 * theirs.fixed_s
    assert ours.tokens[-1] == (theirs.tokens[-1][0], 1.5 * theirs.tokens[-1][1])
    assert (ours.lora, ours.per_kv_token_s) == (theirs.lora, theirs.per_kv_token_s)
    assert plain.notes == ()


@pytest.mark.parametrize("name", ["int8", "nf4"])
def test_what_nobody_measured_is_said_to_be_assumed(name: str) -> None:
    assumed = world(adapters={"base_quantization": name})
    assert f"takes {ASSUMED_SLOWDOWN[name]:g} times as long (assumed)" in assumed.notes[-1]
    given = world(adapters={"base_quantization": name, "base_slowdown": 1.0})
    assert "given by adapters.base_slowdown, not measured" in given.notes[-1]
    fixed = world(adapters={"base_quantization": name}, fleet={"kv_tokens": 65536})
    assert fixed.notes[-1].startswith("fleet.kv_tokens gives the KV cache (65,536 tokens)")
    assert fixed.pools[0].kv_tokens == 65536


def test_a_profile_may_have_measured_steps(tmp_path: Path) -> None:
    found = load_profile("h100-64gb/llama-3.1-8b/vllm-0.8.5")[0]
    assert found.draws
    data = found.model_dump(mode="json", exclude_unset=True)
    data["quantized"] = {"nf4": {"weights_bytes": 5_800_000_000, "step": {"fixed_s": 0.02}}, "int8": {}}
    path = write_file(".json", json.dumps(data))
    measured = world(adapters={"base_quantization": "nf4"}, fleet={"profile": path})
    assert measured.pools[0].profile.step.fixed_s == 0.02
    assert measured.pools[0].profile.memory.weights_bytes == 5_800_000_000
    assert measured.pools[0].profile.draws == ()
    assert not any("assumed" in note for note in measured.notes)
    with pytest.raises(ScenarioError, match="has steps with nf4 weights") as caught:
        world(adapters={"base_quantization": "nf4", "base_slowdown": 2}, fleet={"profile": path})
    assert caught.value.key == "adapters.base_slowdown"
    partly = world(adapters={"base_quantization": "int8"}, fleet={"profile": path})
    assert any("(assumed)" in note for note in partly.notes)


def test_draws_are_slowed_down_as_their_profile_is() -> None:
    quantised = world(adapters={"base_quantization": "nf4"}, fleet={"profile": "h100-64gb/llama-3.1-8b/vllm-0.8.5"})
    draw = quantised.pools[0].profile.draws[0]
    drawn = quantised.with_costs(draw).pools[0].profile
    assert drawn.step.fixed_s == pytest.approx(ASSUMED_SLOWDOWN["nf4"] * draw.step.fixed_s)


def test_a_profile_with_smaller_weights_is_refused() -> None:
    with pytest.raises(ScenarioError, match=r"smaller than the linear layers of llama-3\.1-8b in bf16") as caught:
        base_weights(Adapters(count=1, base_quantization="nf4"), with_weights("llama-3.1-8b", 6_000_000_000))
    assert caught.value.key == "adapters.base_quantization"


def test_what_ifs_go_to_every_other_format() -> None:
    def labels(found: World) -> dict[str, str]:
        return {each.label: each.note for each in changes(found) if each.group == "base model"}

    assert list(labels(world())) == ["base weights in 8 bits", "base weights in 4 bits"]
    assert "assumed" in labels(world())["base weights in 4 bits"]
    back = labels(world(adapters={"base_quantization": "nf4", "base_slowdown": 1.1}))
    assert back["base weights as in the profile"] == ""
    assert "base weights in 4 bits" not in back
    assert labels(world(fleet={"kv_tokens": 65536})) == {}
