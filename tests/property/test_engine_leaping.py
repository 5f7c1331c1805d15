"""The engines' rules, with leaps, against their naive twin, step by step."""

from __future__ import annotations

import pytest
from examples import examples
from hypothesis import given
from hypothesis import strategies as st
from naive_engines import EngineFleet
from strategies import PRESETS, engine_scenarios
from test_leaping import compare, tell

from sim.spec.scenario import Scenario


@pytest.mark.parametrize("engine", PRESETS)
@examples(200)
@given(data=st.data())
def test_leaps_equal_steps_of_engines(engine: str, data: st.DataObject) -> None:
    scenario = data.draw(engine_scenarios(engine=engine))
    tell(scenario)
    compare(scenario, EngineFleet)


@pytest.mark.slow
@examples(400)
@given(engine_scenarios(engine="continuous"))
def test_leaps_equal_steps_whatever_rules_meet(scenario: Scenario) -> None:
    tell(scenario)
    compare(scenario, EngineFleet)
