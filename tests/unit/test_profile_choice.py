"""Which profile a scenario gets for its GPU, base model and engine, and what it says where there is none."""

from __future__ import annotations

from pathlib import Path

import pytest
from scenario_samples import BASE, write

from reports.text.setup_text import setup_line
from sim.errors import InputError
from sim.results.model import Setup, from_plain
from sim.spec import profile_choice as choices
from sim.spec.engines import version_distance
from sim.spec.gpus import GPUS, gpu_named
from sim.spec.profile import bundled_profiles, load_profile
from sim.spec.profile_choice import BASE_MODELS, ProfileChoice, profile_choice, shelved
from sim.spec.scenario import Scenario
from sim.spec.scenario_file import load_scenario
from sim.studies.design import setup_of
from sim.studies.evaluate import evaluate_scenario
from sim.traffic.adapters import SHAPES
from sim.world.build import build_world


def scenario(**keys: str) -> Scenario:
    """Return the quickstart, without its GPU, with keys of ``fleet`` and a base model set."""
    keys = {"gpu": "", **keys}
    sets = [f"{'adapters' if key == 'base_model' else 'fleet'}.{key}={value}" for key, value in keys.items()]
    return load_scenario("quickstart", sets).scenario


def chosen(**keys: str) -> ProfileChoice:
    return profile_choice(scenario(**keys))


def test_names_of_bundled_profiles_say_what_is_in_them() -> None:
    """A choice is made by names alone."""
    for name in bundled_profiles():
        said, (profile, _) = shelved(name), load_profile(name)
        assert profile.name == name
        assert (said.model, said.gpus) == (profile.model, profile.tensor_parallel), name
        assert said.weights == ("" if profile.dtype in ("bf16", "fp16") else profile.dtype), name
        assert said.gpu == (choices.gpu_of(profile) or ""), name
        engine = profile.conditions.engine if profile.conditions else ""
        assert bool(said.engine) == bool(engine), name
        if engine:
            assert choices.is_same_engine(said.engine, engine), name
        assert (profile.status == "assumed") == (said.engine == ""), name


@pytest.mark.parametrize(
    ("written", "gpu"),
    [
        ("h100", "h100-80gb"),
        ("H100", "h100-80gb"),
        ("H100-SXM5-80GB", "h100-80gb"),
        ("NVIDIA H100 80GB HBM3", "h100-80gb"),
        ("4 x NVIDIA B200", "b200"),
        ("a100_80gb", "a100-80gb"),
        ("NVIDIA A100-SXM4-80GB", "a100-80gb"),
        ("L40S-48GB", "l40s"),
        ("h100_sxm", "h100-80gb"),
        ("h100-64gb", "h100-64gb"),
        ("h100-pcie", "h100-pcie"),
        ("NVIDIA GeForce RTX 4090", "rtx-4090"),
        ("AMD Instinct MI300X", "mi300x"),
        ("h100-nvl2", None),
        ("a100-40gb", "a100-40gb"),
        ("l40", None),
        ("", None),
    ],
)
def test_gpus_have_the_names_that_people_use(written: str, gpu: str | None) -> None:
    found = gpu_named(written)
    assert (None if found is None else found.name) == gpu


def test_the_gpus_that_have_no_bundled_profile() -> None:
    by_data_sheet = {"a10", "a10g", "a40", "h100-nvl", "h100-pcie", "h20", "l4", "mi300x", "rtx-4090"}
    assert set(GPUS) - {shelved(name).gpu for name in bundled_profiles()} == {"a100-40gb"} | by_data_sheet


@pytest.mark.parametrize(
    ("keys", "name", "why", "assumed"),
    [
        (
            {"gpu": "h100", "base_model": "qwen2.5-14b"},
            "h100-80gb/qwen2.5-14b/vllm-0.24.0",
            "nearest version of the engine",
            (),
        ),
        (
            {"gpu": "h100", "base_model": "Qwen/Qwen2.5-14B-Instruct", "engine": "vllm-0.24"},
            "h100-80gb/qwen2.5-14b/vllm-0.24.0",
            "same version of the engine",
            (),
        ),
        ({}, "h100-80gb/llama-3.1-8b/vllm-0.24.0", "", ("GPU", "base model")),
        ({"gpu": "h100-64gb", "base_model": "llama-3.1-8b"}, "h100-64gb/llama-3.1-8b/vllm-0.8.5", "", ()),
        ({"gpu": "a100", "engine": "vllm-0.14"}, "a100-80gb/llama-3.1-8b/vllm-0.14.0", "same version", ("base model",)),
        ({"base_model": "mistral-7b"}, "h100-80gb/mistral-7b/vllm-0.24.0", "nearest version", ("GPU",)),
        ({"gpu": "h200", "base_model": "gpt-oss-120b"}, "h200/gpt-oss-120b-mxfp4/vllm-0.24.0", "nearest version", ()),
        (
            {"gpu": "l40s", "engine": "sglang"},
            "l40s/llama-3.1-8b/vllm-0.24.0",
            "made with vllm, as there is none made with sglang",
            ("base model",),
        ),
    ],
)
def test_gpu_model_and_engine_pick_the_profile(
    keys: dict[str, str], name: str, why: str, assumed: tuple[str, ...]
) -> None:
    found = chosen(**keys)
    assert found.name == name
    assert found.why.startswith(why)
    assert found.assumed == assumed


def test_exact_before_near_and_measured_before_derived(monkeypatch: pytest.MonkeyPatch) -> None:
    """Same version, then status, then distance, as ``Which profile?`` says."""
    statuses = {"vllm-0.12.0": "derived", "vllm-0.30.0": "derived", "vllm-0.20.0": "measured", "sglang-0.5": "measured"}
    names = [f"l40s/llama-3.1-8b/{made}" for made in (*statuses, "assumed")]
    known, _ = load_profile("l40s/llama-3.1-8b/vllm-0.24.0")

    def load(name: str) -> tuple[object, str]:
        return known.model_copy(update={"status": statuses.get(name.rpartition("/")[2], "assumed")}), ""

    monkeypatch.setattr("sim.spec.profile_choice.bundled_profiles", lambda: names)
    monkeypatch.setattr(choices, "load_profile", load)
    choices._chosen.cache_clear()
    try:
        order = {
            engine: [found.name.rpartition("/")[2], *(name.rpartition("/")[2] for name in found.others)]
            for engine in ("vllm-0.12", "vllm-0.32", "sglang", "s-lora")
            for found in [chosen(gpu="l40s", engine=engine)]
        }
    finally:
        choices._chosen.cache_clear()
    assert order["vllm-0.12"] == ["vllm-0.12.0", "vllm-0.20.0", "vllm-0.30.0", "sglang-0.5"]
    assert order["vllm-0.32"] == ["vllm-0.20.0", "vllm-0.30.0", "vllm-0.12.0", "sglang-0.5"]
    assert order["sglang"] == ["sglang-0.5", "vllm-0.20.0", "vllm-0.12.0", "vllm-0.30.0"]
    assert order["s-lora"] == ["sglang-0.5", "vllm-0.20.0", "vllm-0.12.0", "vllm-0.30.0"]
    assert version_distance("vllm", "vllm-0.24.0") == 9
    assert version_distance("vllm-0.12", "vllm 0.24.0") == 12
    assert version_distance("sglang", "sglang-0.5.10") == float("inf"), "no version of SGLang is known by its name"


def test_the_result_says_which_profile_and_why() -> None:
    world = build_world(scenario(gpu="h100-64gb", engine="vllm-0.8.5"))
    assert setup_of(world).profile == "h100-64gb/llama-3.1-8b/vllm-0.8.5"
    assert setup_of(world).chosen == "same version of the engine"
    assert not any("is the profile for" in note for note in world.notes), "there was no other"
    other = build_world(scenario(gpu="l40s", engine="sglang", base_model="qwen3-8b"))
    assert any(
        note.startswith(
            "l40s/qwen3-8b/vllm-0.24.0 is the profile for qwen3-8b on l40s under sglang: derived, made with "
        )
        and note.endswith("to build one: loraplan profiles build --gpu l40s --model qwen3-8b --engine sglang")
        for note in other.notes
    )
    assert setup_of(other).costs_of == "vLLM 0.24.0, not sglang"


def test_the_second_line_names_what_was_assumed() -> None:
    small = load_scenario("quickstart", ["fleet.gpu=h200", "workload.requests=200", "run.replications=1"]).scenario
    point = evaluate_scenario(small).point
    assert setup_line([point]) == (
        "NVIDIA H200 · llama-3.1-8b · vllm (rules of 0.33) · profile h200/llama-3.1-8b/vllm-0.24.0 "
        "(derived; nearest version of the engine) · base model assumed (set adapters.base_model)"
    )
    assert from_plain(Setup, point.setup.to_json()) == point.setup


def test_models_that_are_built_by_name_have_shapes() -> None:
    assert sorted(BASE_MODELS) == sorted(SHAPES.keys() - {"tiny"})


def test_a_later_choice_of_gpu_or_profile_replaces_the_earlier_one(tmp_path: Path) -> None:
    """``--set fleet.gpu=…`` works on a scenario that names a profile; two choices at once must agree."""
    named = "fleet: {profile: h100-64gb/llama-3.1-8b/vllm-0.8.5}\n"
    file = str(write(tmp_path / "s.yaml", BASE + named))
    assert profile_choice(load_scenario(file, ["fleet.gpu=l40s"]).scenario).name == "l40s/llama-3.1-8b/vllm-0.24.0"
    write(tmp_path / "t.yaml", "extends: s.yaml\nfleet: {gpu: b200}\n")
    loaded = load_scenario(str(tmp_path / "t.yaml"))
    assert profile_choice(loaded.scenario).name == "b200/llama-3.1-8b/vllm-0.24.0"
    point = loaded.with_values({"fleet.profile": "h100-64gb/llama-3.1-8b/vllm-0.8.5"})
    assert (point.scenario.fleet.gpu, point.scenario.fleet.profile) == (None, "h100-64gb/llama-3.1-8b/vllm-0.8.5")
    both = ["fleet.gpu=l40s", "fleet.profile=h100-64gb/llama-3.1-8b/vllm-0.8.5"]
    for order in (both, both[::-1]):
        with pytest.raises(InputError, match="the profile is of another GPU"):
            profile_choice(load_scenario(file, order).scenario)
    agreeing = ["fleet.gpu=h100-64gb", "fleet.profile=h100-64gb/llama-3.1-8b/assumed"]
    assert profile_choice(load_scenario(file, agreeing).scenario) == ProfileChoice("h100-64gb/llama-3.1-8b/assumed")
