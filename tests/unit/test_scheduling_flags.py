"""The option by which vLLM gets its scheduling policy: written, read, and refused where no command line has it."""

from __future__ import annotations

import pytest
from strategies import build

from sim.spec.engine_flags.command_lines import beyond_flags, engine_flags, read_command, why_no_flags
from sim.spec.scenario import Scenario
from sim.spec.scenario_file import load_scenario

TENANTS = [
    {"name": "chat", "adapters": 8, "priority": -1},
    {"name": "batch", "adapters": 8, "priority": 3, "bucket": {"rate": "900/s", "burst": 40_000}},
]


def scenario(**fleet: object) -> Scenario:
    return build(
        workload={"requests": 10, "arrivals": {"process": "poisson", "rate": "1/s"}},
        adapters={"count": 16, "base_model": "llama-3.1-8b"},
        cache={"gpu": {"slots": 8}},
        fleet={"gpu": "h100-80gb", "engine": "vllm", "prefix_caching": True, **fleet},
        tenants=TENANTS,
    )


def test_vllm_gets_its_policy_only_where_it_is_not_the_default() -> None:
    written = engine_flags(scenario(scheduling="priority", async_scheduling=True), None)["vLLM"]
    assert written.endswith("--scheduling-policy priority")
    assert "--scheduling-policy" not in engine_flags(scenario(), None)["vLLM"]
    assert "priorities of the tenants: each request must carry its own (priority: chat -1, batch 3)" in beyond_flags(
        scenario(scheduling="priority")
    )
    assert any("token buckets of batch" in part for part in beyond_flags(scenario()))
    routed = load_scenario("quickstart", ["fleet.replicas=2", "router.policy=affinity-residency"]).scenario
    assert beyond_flags(routed)[-1] == "2 replicas behind an affinity-residency router"


@pytest.mark.parametrize("policy", ["priority", "fcfs"])
def test_a_command_line_with_a_policy_is_read(policy: str) -> None:
    found = read_command(f"vllm serve m --enable-lora --max-loras 4 --scheduling-policy {policy}")
    assert [setting.value for setting in found.settings if setting.key == "fleet.scheduling"] == [policy]
    assert not found.untranslated


def test_a_policy_that_vllm_does_not_have_is_not_translated() -> None:
    found = read_command("vllm serve m --enable-lora --scheduling-policy shortest")
    assert [said for said, _ in found.untranslated] == ["--scheduling-policy shortest"]


def test_an_idealised_engine_has_no_command_line() -> None:
    assert "continuous is idealised" in why_no_flags(scenario(engine="continuous", scheduling="vtc"))


def test_vllm_is_told_to_check_first_chunks_alone() -> None:
    alone = scenario(kv_check="first-chunk")
    assert why_no_flags(alone) == ""
    command = engine_flags(alone, None)["vLLM"]
    assert "--no-scheduler-reserve-full-isl" in command
    assert {"fleet.kv_check": "first-chunk"}.items() <= {
        each.key: each.value for each in read_command(command).settings
    }.items()
    assert "full-isl" not in engine_flags(scenario(), None)["vLLM"]
    assert "full-isl" not in engine_flags(scenario(engine="vllm-0.12"), None)["vLLM"], "its rule, without the option"
    assert why_no_flags(scenario(engine="vllm-0.12", kv_check="whole-prompt")).endswith(
        "fleet.kv_check to whole-prompt."
    )


@pytest.mark.parametrize(
    ("engine", "ahead", "written"),
    [
        ("vllm", True, ""),
        ("vllm-0.14", False, "--no-async-scheduling"),
        ("vllm-0.12", False, ""),
        ("vllm-0.12", True, "--async-scheduling"),
    ],
)
def test_vllm_gets_its_way_of_scheduling_where_it_is_not_the_versions_default(
    engine: str, ahead: bool, written: str
) -> None:
    words = engine_flags(scenario(engine=engine, async_scheduling=ahead), None)["vLLM"].split()
    assert [word for word in words if "async" in word] == written.split()


@pytest.mark.parametrize(
    ("engine", "method", "ahead"),
    [
        ("vllm", "eagle3", True),
        ("vllm-0.23", "eagle3", True),
        ("vllm", "draft_model", True),
        ("vllm-0.28", "draft_model", True),
        ("vllm-0.27.1", "draft_model", False),
        ("vllm", "ngram", False),
    ],
)
def test_drafts_are_scheduled_ahead_where_this_version_does_so_by_itself(engine: str, method: str, ahead: bool) -> None:
    speculation = {"tokens": 3, "acceptance": 0.7, "draft": 0.1, "method": method}
    unset = scenario(engine=engine, speculation=speculation, async_scheduling=None)
    assert unset.fleet.async_scheduling == ahead
    assert "async" not in engine_flags(unset, None)["vLLM"]
    none = scenario(engine=engine, speculation={**speculation, "tokens": 0}, async_scheduling=None)
    assert none.fleet.async_scheduling
    assert "async" not in engine_flags(none, None)["vLLM"]


def test_vllm_gets_its_interval_of_prefills_from_0_33_on() -> None:
    written = engine_flags(scenario(engine="vllm-0.33", prefill_schedule_interval=3), None)["vLLM"]
    assert "--prefill-schedule-interval 3" in written
    assert "--prefill-schedule-interval" not in engine_flags(scenario(engine="vllm-0.33"), None)["vLLM"]
    refused = why_no_flags(scenario(engine="vllm-0.32", prefill_schedule_interval=3))
    assert refused.endswith("no option of vLLM sets fleet.prefill_schedule_interval to 3.")
