"""Scheduling between tenants, with leaps, against a naive twin that takes every step."""

from __future__ import annotations

import itertools
from typing import Any

import pytest
from examples import examples
from hypothesis import assume, given
from hypothesis import strategies as st
from naive_tenants import CodeFleet, TenantFleet
from strategies import VLLM, engine_scenarios, scenarios
from test_leaping import compare, tell

from sim.spec.scenario import Scenario
from sim.world.build import build_world

PRIORITY_ENGINES = ("continuous", *(engine for engine in VLLM if engine != "vllm-0.8"))


def with_tenants(data: st.DataObject, scenario: Scenario, **fleet: Any) -> Scenario:
    """Return a scenario whose adapters are divided among one to three tenants."""
    world = build_world(scenario)
    names, count = world.traffic.names, world.traffic.places
    cuts = sorted(data.draw(st.sets(st.integers(1, count - 1), max_size=2))) if count > 1 else []
    edges = [0, *cuts, count]
    tenants = []
    for place, (first, last) in enumerate(itertools.pairwise(edges)):
        own = {"match": list(names[first:last]) or ["no such adapter"]} if names else {"adapters": last - first}
        priority, weight = data.draw(st.integers(-1, 2)), data.draw(st.sampled_from((1.0, 2.0, 4.0)))
        tenants.append({"name": f"t{place}", "priority": priority, "weight": weight, **own})
    if world.traffic.base_share > 0:
        tenants[0]["base_model"] = True
    plain = scenario.model_dump(mode="json", by_alias=True, exclude_unset=True)
    plain["fleet"] = {**plain["fleet"], **fleet}
    return Scenario.model_validate({**plain, "tenants": tenants})


@pytest.mark.parametrize("engine", PRIORITY_ENGINES)
@examples(200)
@given(data=st.data())
def test_leaps_equal_steps_with_priorities(engine: str, data: st.DataObject) -> None:
    scenario = data.draw(scenarios(engine=engine, prefetch=False))
    assume(scenario.fleet.admission == "skip" and scenario.cache.prefetch == "none")
    # Where a request that preempts itself ends the scan, gaps and ends rarely differ by a step: not understood yet.
    # Those rules are held by the records of vLLM alone.
    scenario = with_tenants(data, scenario, scheduling="priority", self_preemption="goes-on")
    tell(scenario)
    compare(scenario, TenantFleet)


@pytest.mark.parametrize("scheduling", ["vtc", "lcf"])
@examples(200)
@given(data=st.data())
def test_leaps_equal_steps_with_the_virtual_token_counter(scheduling: str, data: st.DataObject) -> None:
    scenario = data.draw(scenarios(engine="continuous", prefetch=False))
    assume(scenario.load_at == "arrival")
    scenario = with_tenants(data, scenario, scheduling=scheduling)
    tell(scenario)
    compare(scenario, TenantFleet)


@pytest.mark.parametrize("scheduling", ["vtc", "lcf"])
@examples(100)
@given(data=st.data())
def test_leaps_equal_steps_with_the_counters_of_the_papers_code(scheduling: str, data: st.DataObject) -> None:
    scenario = data.draw(engine_scenarios(engine="s-lora"))
    scenario = with_tenants(data, scenario, scheduling=scheduling)
    assume(len(scenario.tenants) > 1)
    tell(scenario)
    compare(scenario, CodeFleet)
