"""Asynchronous scheduling: the simulator, with leaps, against a naive twin of vLLM's loop, and laws of its time."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from examples import examples
from hypothesis import assume, given
from hypothesis import strategies as st
from naive_async import AsyncFleet
from strategies import GRID, ODD, build, run, scenarios, write_file, write_profile, write_trace
from test_leaping import tell_and_compare
from test_tenant_laws import with_tenants

from sim.spec.scenario import Scenario
from sim.world.build import build_world

pytestmark = pytest.mark.interpreted

PRESETS = ("vllm-0.8", "vllm-0.18", "vllm-0.23", "vllm-0.32")
"""Presets of all ways to treat KV blocks and passed requests; the other rules are drawn."""


@st.composite
def ahead(draw: st.DrawFn, *, shares_text: bool = False) -> Scenario:
    """A scenario of vLLM that schedules ahead: ends by stop tokens, host times, tight KV memory, few slots."""
    grid = draw(st.integers(0, 3)) == 0
    scenario = draw(scenarios(engine=draw(st.sampled_from(PRESETS)), grid=grid))
    data: dict[str, Any] = scenario.model_dump(mode="json", by_alias=True, exclude_defaults=True)
    fleet, workload = data["fleet"], data["workload"]
    fleet["async_scheduling"] = True
    fleet["prefill_schedule_interval"] = draw(st.sampled_from((1, 1, 2, 5)))
    fleet["reserved_kv_blocks"] = scenario.fleet.reserved_kv_blocks
    fleet["prefix_caching"] = shares_text or draw(st.booleans())
    fleet["adapter_limit"] = draw(st.sampled_from(("scheduled", "running")))
    fleet["self_preemption"] = draw(st.sampled_from(("ends-scan", "goes-on")))
    workload.setdefault("tokens", {})["stop"] = draw(st.sampled_from((0.0, 0.5, 1.0)))
    fleet["profile"] = with_host_times(
        fleet["profile"],
        draw(st.integers(0, 6)) * (GRID if grid else ODD * 1e-3),
        draw(st.integers(0, 3)) * (GRID if grid else ODD * 1e-4),
    )
    if shares_text:
        assume(scenario.workload.trace is None)
        tokens = draw(st.sampled_from((4, 16, 30)))
        workload["prefix"] = {"tokens": {"law": "fixed", "value": tokens}, "texts": draw(st.integers(1, 3))}
        fleet["kv_tokens"] += -(-tokens // scenario.fleet.block_size) * scenario.fleet.block_size
    return Scenario.model_validate({"schema_version": 1, **data})


def with_host_times(profile: str, host_s: float, per_sequence_s: float) -> str:
    """Write a profile with these host times as well, and return its path."""
    data = json.loads(Path(profile).read_text(encoding="utf-8"))
    data["step"] |= {"host_s": host_s, "host_per_sequence_s": per_sequence_s}
    return write_file(".json", json.dumps(data))


@examples(300)
@given(ahead())
def test_leaps_equal_steps_ahead(scenario: Scenario) -> None:
    tell_and_compare(scenario, AsyncFleet)


@examples(150)
@given(ahead(shares_text=True))
def test_leaps_equal_steps_ahead_with_prefix_caching(scenario: Scenario) -> None:
    tell_and_compare(scenario, AsyncFleet)
    world = build_world(scenario)
    twin = AsyncFleet(world)
    twin.run()
    requests = run(world).requests
    found = dict(zip(requests["index"].tolist(), requests["cached_tokens"].tolist(), strict=True))
    assert {index: found[index] for index in twin.cached} == twin.cached


@examples(150)
@given(data=st.data())
def test_leaps_equal_steps_ahead_with_priorities(data: st.DataObject) -> None:
    scenario = with_tenants(data, data.draw(ahead()), scheduling="priority", engine="vllm-0.32")
    tell_and_compare(scenario, AsyncFleet)


def times_of(stop: float, gpu: int, host: int, **fleet: Any) -> tuple[list[float], list[float]]:
    """Return when two requests of 3 tokens get their first and their last one, in ticks; one at a time is served."""
    scenario = build(
        workload={"trace": {"file": write_trace([(0.0, 0, 4, 3), (0.0, 0, 4, 3)])}, "tokens": {"stop": stop}},
        adapters={"count": 1, "size": "1 MiB"},
        cache={"gpu": {"slots": 1}, "warm": 1},
        fleet={
            "engine": "vllm-0.33",
            "async_scheduling": True,
            "max_num_seqs": 1,
            "kv_tokens": 160,
            "profile": with_host_times(write_profile({"fixed_s": gpu * GRID}), host * GRID, 0.0),
            **fleet,
        },
    )
    requests = run(scenario).requests
    return (requests["first_token_s"] / GRID).tolist(), (requests["finished_s"] / GRID).tolist()


def test_a_step_takes_the_longer_of_gpu_and_host_and_a_free_place_idles_for_one() -> None:
    # On an idle engine: 1 tick of the host, 4 of the GPU, then a token every 4. The place is free when the last token
    # is there; the next request is launched a tick later.
    assert times_of(stop=0.0, gpu=4, host=1) == ([5, 18], [13, 26])
    # A stop token is seen when the GPU has begun to compute one token too many: the next request comes after that.
    assert times_of(stop=1.0, gpu=4, host=1) == ([5, 21], [13, 29])
    # A slow host: 6 ticks for each launch, while the GPU waits. The empty step takes the host as long as any other.
    assert times_of(stop=0.0, gpu=4, host=6) == ([12, 36], [24, 48])


def test_without_it_a_step_takes_both_times() -> None:
    both = ([5, 20], [15, 30])
    assert times_of(stop=1.0, gpu=4, host=1, async_scheduling=False) == both
    other = {"engine": "continuous", "batching": "prefill-first"}
    assert times_of(stop=1.0, gpu=4, host=1, async_scheduling=False, **other) == both
    with pytest.raises(ValueError, match="this is a rule of vLLM's scheduler"):
        times_of(stop=1.0, gpu=4, host=1, **other)
