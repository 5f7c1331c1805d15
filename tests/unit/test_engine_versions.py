"""Names of engines and their versions: whose rules each gets, and what is said of names that stand for none."""

from __future__ import annotations

from pathlib import Path

import pytest
from scenario_samples import base, refusal

from sim.spec.engines import ENGINES, VERSIONS, engine_words, preset_value, suggest_engine, versions_of
from sim.spec.profile import ANCHORED, Provenance, load_profile
from sim.spec.profile_choice import engine_notes, other_costs
from sim.spec.scenario_file import load_scenario

__all__ = ["base"]  # a fixture, used by its name


def test_versions_are_in_order_and_name_presets() -> None:
    for family, rows in VERSIONS.items():
        firsts = [row.first for row in rows]
        assert firsts == sorted(set(firsts))
        assert firsts[0] == (0,), "every version has a row"
        assert all(ENGINES[row.preset].name.startswith(family.lower()) for row in rows)
    newest = [row for row in VERSIONS["vLLM"] if row.simulated][-1]
    assert newest.preset == [name for name in ENGINES.names if name.startswith("vllm-")][-1]


@pytest.mark.parametrize("number", [*range(41), 99, 999_999])
def test_every_version_of_vllm_has_a_preset_or_hears_of_the_nearest(base: Path, number: int) -> None:
    name = f"vllm-0.{number}"
    row = [row for row in VERSIONS["vLLM"] if row.first <= (0, number)][-1]
    if row.simulated or name in ENGINES.names:
        scenario = load_scenario("base.yaml", [f"fleet.engine={name}", "cache.host.slots=8"]).scenario
        assert scenario.fleet.engine == name
        assert ENGINES[name].name == row.preset
        return
    assert refusal("base.yaml", f"fleet.engine={name}").startswith(
        f"--set: fleet.engine: unknown engine (got {name}, allowed: vllm, {', '.join(ENGINES.names)}); "
        f"the nearest preset is {row.preset}: vLLM {row.words} "
    )


@pytest.mark.parametrize(
    ("name", "preset", "words"),
    [
        ("vllm", "vllm-0.33", "vllm (rules of 0.33)"),
        ("vLLM", "vllm-0.33", "vLLM (rules of 0.33)"),
        ("vllm-0.32", "vllm-0.32", "vllm-0.32"),
        ("vllm-0.32.0", "vllm-0.32", "vllm-0.32.0 (rules of 0.31 and 0.32)"),
        ("vllm-0.8", "vllm-0.8", "vllm-0.8"),
        ("vllm==0.8", "vllm-0.8", "vllm==0.8 (rules of 0.8.3 to 0.9.1)"),
        ("vllm-0.8.5.post1", "vllm-0.8", "vllm-0.8.5.post1 (rules of 0.8.3 to 0.9.1)"),
        ("vllm-0.9.1", "vllm-0.8", "vllm-0.9.1 (rules of 0.8.3 to 0.9.1)"),
        ("vllm==0.9.2rc1", "vllm-0.9.2", "vllm==0.9.2rc1 (rules of 0.9.2 to 0.13)"),
        ("vllm-v0.12", "vllm-0.9.2", "vllm-v0.12 (rules of 0.9.2 to 0.13)"),
        ("vllm-0.18", "vllm-0.18", "vllm-0.18"),
        ("vllm-0.18.1", "vllm-0.18", "vllm-0.18.1 (rules of 0.18)"),
        ("vllm-0.22", "vllm-0.19", "vllm-0.22 (rules of 0.19 to 0.22)"),
        ("vllm_0.30", "vllm-0.23", "vllm_0.30 (rules of 0.23 to 0.30)"),
        ("vllm-0.9", "vllm-0.8", "vllm-0.9 (rules of 0.8.3 to 0.9.1)"),
        ("VLLM v0.16.0", "vllm-0.14", "VLLM v0.16.0 (rules of 0.14 to 0.17)"),
        ("vllm_0.31.2+cpu", "vllm-0.32", "vllm_0.31.2+cpu (rules of 0.31 and 0.32)"),
        ("sglang", "sglang", "sglang"),
        ("SGLang", "sglang", "SGLang (rules of 0.5.7 to 0.5.23)"),
        ("sglang-0.5.23", "sglang", "sglang-0.5.23 (rules of 0.5.7 to 0.5.23)"),
        ("sglang==0.5.7.post1", "sglang", "sglang==0.5.7.post1 (rules of 0.5.7 to 0.5.23)"),
    ],
)
def test_a_version_finds_the_preset_with_its_rules(name: str, preset: str, words: str) -> None:
    assert ENGINES[name].name == preset
    assert name in ENGINES
    assert ENGINES.check(name) == name
    assert engine_words(name) == words


@pytest.mark.parametrize(
    ("name", "hint"),
    [
        ("vllm-0.7", "the nearest preset is vllm-0.8: vLLM up to 0.7 runs the V0 engine, whose rules are different"),
        (
            "vllm-0.8.1",
            "the nearest preset is vllm-0.8: vLLM 0.8.0 to 0.8.2 differs in one rule: a request over the "
            "adapter limit holds up all behind it",
        ),
        ("vllm-0.99", "the nearest preset is vllm-0.33: vLLM from 0.34 on was not read; this is the newest preset"),
        ("vllm-1.0", "the nearest preset is vllm-0.33: vLLM from 0.34 on was not read; this is the newest preset"),
        ("vllm-0.16 nightly", "write vllm-0.16"),
        ("vllm-", "did you mean 'vllm'?"),
        ("vllmm", "did you mean 'vllm'?"),
        ("v0.12", "name the engine too, such as vllm-0.12"),
        ("0.8", "name the engine too, such as vllm-0.8"),
        (
            "sglang-0.5.3",
            "the nearest preset is sglang: SGLang up to 0.5.6 has another rule of admission (set "
            "fleet.admission: stop) and, up to 0.5.3, of eviction",
        ),
        (
            "sglang-0.5",
            "the nearest preset is sglang: SGLang up to 0.5.6 has another rule of admission (set "
            "fleet.admission: stop) and, up to 0.5.3, of eviction",
        ),
        ("sglang-0.6.1", "the nearest preset is sglang: SGLang from 0.5.24 on was not read; this is the newest preset"),
        ("sglan", "did you mean 'sglang'?"),
        ("slora", "did you mean 's-lora'?"),
        ("TensorRT_LLM", "did you mean 'tensorrt-llm'?"),
        ("lorax-0.12", "did you mean 'lorax'?"),
        ("continous", "did you mean 'continuous'?"),
        (
            "vllm-0." + "9" * 5000,
            "the nearest preset is vllm-0.33: vLLM from 0.34 on was not read; this is the newest preset",
        ),
        ("tgi", None),
        ("", None),
        ("v" * 100_000, None),
        ("٣", None),
    ],
)
def test_what_is_said_of_an_engine_without_a_preset(name: str, hint: str | None) -> None:
    assert name not in ENGINES
    assert versions_of(name) is None
    assert suggest_engine(name, ENGINES.all_names()) == hint


@pytest.mark.parametrize(
    ("engine", "made_for", "costs_of", "says"),
    [
        ("vllm-0.8", "vLLM 0.8.5, V1", "", []),
        ("vllm-0.8.4", "vLLM 0.8.5, V1", "", ["engine vllm-0.8.4 has the rules of 0.8.3 to 0.9.1 (preset vllm-0.8)"]),
        ("vllm-0.32", "vllm 0.32.0 (cpu)", "", []),
        ("vllm", "vllm 0.33.0 (cpu)", "", []),
        ("sglang", "SGLang 0.5.10", "", []),
        ("vllm", "vLLM 0.8.5, V1", "vLLM 0.8.5, not 0.33", []),
        ("vllm-0.16", None, "", ["engine vllm-0.16 has the rules of 0.14 to 0.17 (preset vllm-0.14)"]),
        ("sglang", "vLLM 0.8.5, V1", "vLLM 0.8.5, not sglang", []),
        ("s-lora", "S-LoRA, 2024", "", []),
        ("continuous", "vLLM 0.8.5, V1", "", []),
    ],
)
def test_a_run_says_whose_rules_and_whose_costs_it_has(
    engine: str, made_for: str | None, costs_of: str, says: list[str]
) -> None:
    profile, _ = load_profile("h100-64gb/llama-3.1-8b/vllm-0.8.5")
    conditions = profile.conditions and made_for and profile.conditions.model_copy(update={"engine": made_for})
    assert other_costs(engine, profile.model_copy(update={"conditions": conditions or None})) == costs_of
    assert engine_notes(engine) == says


def test_an_anchored_profile_has_the_costs_of_the_users_engine() -> None:
    profile, _ = load_profile("h100-64gb/llama-3.1-8b/vllm-0.8.5")
    assert other_costs("vllm", profile) == "vLLM 0.8.5, not 0.33"
    assert other_costs("sglang", profile) == "vLLM 0.8.5, not sglang"
    made = Provenance(command="", data={}, device={ANCHORED: profile.name})
    anchored = profile.model_copy(update={"provenance": made})
    assert other_costs("vllm", anchored) == ""


@pytest.mark.parametrize(
    ("versions", "kv_check", "passed_requests", "uncached_blocks"),
    [
        (("0.8.3", "0.8.5", "0.9.1", "0.14", "0.16", "0.17"), "first-chunk", "keep-order", "last"),
        (("0.9.2", "0.10.2", "0.11.2", "0.12", "0.13"), "first-chunk", "reversed", "last"),
        (("0.18",), "first-chunk", "own-queue", "last"),
        (("0.19", "0.20", "0.22"), "whole-prompt", "own-queue", "last"),
        (("0.23", "0.24", "0.28", "0.30"), "whole-prompt", "own-queue", "first"),
        (("0.31", "0.32"), "whole-prompt", "keep-order", "first"),
    ],
)
def test_the_rules_of_each_version_are_those_of_its_scheduler(
    versions: tuple[str, ...], kv_check: str, passed_requests: str, uncached_blocks: str
) -> None:
    for version in versions:
        assert [
            preset_value(f"vllm-{version}", f"fleet.{key}")
            for key in ("kv_check", "passed_requests", "uncached_blocks")
        ] == [kv_check, passed_requests, uncached_blocks]


def test_null_is_the_default_engine(base: Path) -> None:
    assert load_scenario("base.yaml", ["fleet.engine=null"]).scenario.fleet.engine == "vllm"
