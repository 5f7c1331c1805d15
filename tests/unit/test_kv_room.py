"""A KV cache that a scenario gives, next to the memory that there is."""

from __future__ import annotations

import pytest

from sim.spec.scenario_file import load_scenario
from sim.world.build import build_world


@pytest.mark.parametrize(("tokens", "noted"), [(1_100_000, True), (100_000, False)])
def test_a_kv_cache_larger_than_the_gpu_is_noted(tokens: int, *, noted: bool) -> None:
    notes = build_world(load_scenario("quickstart", [f"fleet.kv_tokens={tokens}"]).scenario).notes
    assert any(f"fleet.kv_tokens ({tokens:,}) is more than NVIDIA H100" in note for note in notes) is noted
