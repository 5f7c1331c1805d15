"""The rules of older versions of vLLM, against records of each, step for step."""

from __future__ import annotations

from pathlib import Path

import pytest

from sim.studies.fidelity.step_record import read_record
from sim.studies.fidelity.step_replay import replay

PRESETS = {
    "v0.11.2_kv_tight": "vllm-0.9.2",
    "v0.11.2_slots4_zipf": "vllm-0.9.2",
    "v0.16.0_kv_tight": "vllm-0.8",
    "v0.16.0_prefix_kv": "vllm-0.8",
    "v0.19.0_kv_tight": "vllm-0.19",
    "v0.28.0_prefix_kv": "vllm-0.23",
}
SUFFIX = ".json.gz"


def test_no_record_of_a_version_is_left_out(shared: Path) -> None:
    files = (shared / "vllm_steps_2").glob(f"v*{SUFFIX}")
    assert {file.name.removesuffix(SUFFIX) for file in files} == PRESETS.keys()


@pytest.mark.parametrize(("name", "preset"), PRESETS.items())
def test_a_record_is_met_step_for_step_by_the_rules_of_its_version(shared: Path, name: str, preset: str) -> None:
    record = read_record(shared / "vllm_steps_2" / f"{name}{SUFFIX}")
    assert record.preset == preset
    result = replay(record)
    assert result.first_difference is None  # of tokens, preemptions, loads and evictions, in their order
    assert result.equal_steps == result.steps > 0
    assert result.equal_loads == result.predicted_loads == result.loads > 0


@pytest.mark.parametrize(("name", "preset"), PRESETS.items())
def test_only_the_rules_of_its_version_meet_a_record(shared: Path, name: str, preset: str) -> None:
    record = read_record(shared / "vllm_steps_2" / f"{name}{SUFFIX}")
    for other in {"vllm-0.8", "vllm-0.9.2", "vllm-0.18", "vllm-0.19", "vllm-0.32"} - {preset}:
        changed = record.model_copy(update={"engine": other.replace("-", " ")})
        assert changed.preset == other
        assert replay(changed).equal_steps < len(record.steps)
