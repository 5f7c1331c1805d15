"""The rules of older versions of vLLM, against records of each, step for step."""

from __future__ import annotations

from pathlib import Path

import pytest

from sim.studies.fidelity.step_record import read_record
from sim.studies.fidelity.step_replay import EngineReplay

PRESETS = {
    "v0.11.2_kv_tight": "vllm-0.9.2",
    "v0.11.2_slots4_zipf": "vllm-0.9.2",
    "v0.16.0_kv_tight": "vllm-0.14",
    "v0.16.0_prefix_kv": "vllm-0.14",
    "v0.19.0_kv_tight": "vllm-0.19",
    "v0.28.0_prefix_kv": "vllm-0.23",
    "v0.33.0_base_kv_host8": "vllm-0.33",
    "v0.33.0_prefix_chunked_kv": "vllm-0.33",
    "v0.33.0_prefix_kv": "vllm-0.33",
    "v0.33.0_prefix_sessions": "vllm-0.33",
}
ALIKE = {"vllm-0.8": "vllm-0.14", "vllm-0.32": "vllm-0.33"}
"""Presets whose steps are equal without asynchronous scheduling, as all these records are."""
BY_KIND = {
    "v0.32.0": ("equal_outputs", "kv_tight", "prefix_kv", "prefix_sessions", "priority_kv", "priority_self",
                "short_outputs", "slots4_zipf", "slots8_uniform"),
    "v0.33.0": ("equal_outputs", "kv_tight", "prefix_kv", "prefix_sessions", "priority_kv", "short_outputs",
                "slots4_zipf", "slots8_uniform", "stops_sessions", "stops_slots4"),
}  # fmt: skip  # names in a paragraph, not one a line
AHEAD = tuple(f"{version}_{kind}" for version, kinds in BY_KIND.items() for kind in kinds)
PARTNERS = ("v0.33.0_sync_kv_tight", "v0.33.0_sync_slots4_zipf")
SUFFIX = ".json.gz"


def test_no_record_of_a_version_is_left_out(shared: Path) -> None:
    files = (shared / "vllm_steps_2").glob(f"v*{SUFFIX}")
    assert {file.name.removesuffix(SUFFIX) for file in files} == PRESETS.keys()


@pytest.mark.parametrize(("name", "preset"), PRESETS.items())
def test_a_record_is_met_step_for_step_by_the_rules_of_its_version(shared: Path, name: str, preset: str) -> None:
    record = read_record(shared / "vllm_steps_2" / f"{name}{SUFFIX}")
    assert record.preset == preset
    result = EngineReplay(record).run()
    assert result.first_difference is None  # of tokens, preemptions, loads and evictions, in their order
    assert result.equal_steps == result.steps > 0
    assert result.equal_loads == result.predicted_loads == result.loads > 0


@pytest.mark.parametrize(("name", "preset"), PRESETS.items())
def test_only_the_rules_of_its_version_meet_a_record(shared: Path, name: str, preset: str) -> None:
    record = read_record(shared / "vllm_steps_2" / f"{name}{SUFFIX}")
    for other in {"vllm-0.8", "vllm-0.9.2", "vllm-0.18", "vllm-0.19", "vllm-0.32"} - {preset}:
        if ALIKE.get(other) == preset:
            continue
        changed = record.model_copy(update={"engine": other.replace("-", " ")})
        assert changed.preset == other
        assert EngineReplay(changed).run().equal_steps < len(record.steps)


def test_no_record_with_asynchronous_scheduling_is_left_out(shared: Path) -> None:
    files = (shared / "vllm_steps_async").glob(f"*{SUFFIX}")
    assert {file.name.removesuffix(SUFFIX) for file in files} == {*AHEAD, *PARTNERS}


@pytest.mark.parametrize("name", [*AHEAD, *PARTNERS])
def test_a_record_with_asynchronous_scheduling_is_met_step_for_step(shared: Path, name: str) -> None:
    record = read_record(shared / "vllm_steps_async" / f"{name}{SUFFIX}")
    assert record.asynchronous == (name in AHEAD)
    assert record.preset == f"vllm-{name[1:5]}"
    result = EngineReplay(record).run()
    assert result.first_difference is None  # as above, and of running requests, ends, tokens out and cached tokens
    assert result.equal_steps == result.steps > 0
    assert result.equal_loads == result.predicted_loads == result.loads > 0
    assert result.predicted_cached_tokens == result.cached_tokens
    assert set(result.late_steps.values()) <= {0, 1}  # an end is processed with the next step


@pytest.mark.parametrize("name", ["v0.33.0_kv_tight", "v0.33.0_slots4_zipf", "v0.32.0_priority_self"])
def test_only_its_own_rules_meet_a_record_with_asynchronous_scheduling(shared: Path, name: str) -> None:
    record = read_record(shared / "vllm_steps_async" / f"{name}{SUFFIX}")
    other = "vllm 0.32.0" if "0.33" in record.engine else "vllm 0.33.0"
    assert EngineReplay(record.model_copy(update={"engine": other})).run().equal_steps < len(record.steps)
    assert EngineReplay(record.model_copy(update={"asynchronous": False})).run().equal_steps < len(record.steps)
    stops = record.config.model_copy(update={"ends": "stop"})
    assert EngineReplay(record.model_copy(update={"config": stops})).run().equal_steps < len(record.steps)
