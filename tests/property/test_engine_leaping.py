"""The engines' rules, with leaps, against their naive twin, step by step."""

from __future__ import annotations

import pytest
from engine_scenarios import ENGINES, engine_scenarios
from hypothesis import given, settings
from hypothesis import strategies as st
from naive_engines import EngineFleet
from test_leaping import assert_near, compare_loads, compare_requests, tell

from sim.spec.scenario import Scenario
from sim.world.build import build_world, simulate


def compare(scenario: Scenario) -> None:
    world = build_world(scenario)
    recording, twin = simulate(world, 0, 1), EngineFleet(world).run()
    compare_requests(recording, twin.jobs)
    compare_loads(recording, twin.loads)
    assert recording.evictions == twin.evictions
    assert recording.in_use_peak == twin.in_use_peak
    assert int(recording.gap_counts.sum()) == twin.gap_count
    low, high = recording.bounds.tolist()
    busy_s = sum(min(end, high) - start for start, end, _ in twin.steps if low <= start < high)
    for name, ours, twins in (
        ("stopped_s", recording.stopped_s, twin.stopped_s),
        ("running_area", recording.running_area, twin.running_area),
        ("inside_area", recording.inside_area, twin.inside_area),
        ("gap_sum_s", float(recording.gap_sum_s.sum()), twin.gap_sum_s),
        ("busy_s", float(recording.busy_s.sum()), busy_s),
    ):
        assert_near(name, ours, twins)


@pytest.mark.parametrize("engine", ENGINES)
@settings(max_examples=200)
@given(data=st.data())
def test_leaps_equal_steps_of_engines(engine: str, data: st.DataObject) -> None:
    scenario = data.draw(engine_scenarios(engine=engine))
    tell(scenario)
    compare(scenario)


@settings(max_examples=400)
@given(engine_scenarios(engine="continuous"))
def test_leaps_equal_steps_whatever_rules_meet(scenario: Scenario) -> None:
    tell(scenario)
    compare(scenario)
