"""Leaps of every engine, against its naive twin or single steps, and the boundary at which a leap may be joined."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
from examples import examples
from hypothesis import assume, given
from hypothesis import strategies as st
from naive_engines import EngineFleet
from strategies import PRESETS, engine_scenarios, run, scenarios
from test_leaping import tell, tell_and_compare

from sim.policies.scheduler import Scheduler
from sim.spec.scenario import Scenario
from sim.world.build import build_world
from sim.world.replica.continuous import BatchServer


@pytest.mark.parametrize("engine", PRESETS)
@examples(200)
@given(data=st.data())
def test_leaps_equal_steps_of_engines(engine: str, data: st.DataObject) -> None:
    scenario = data.draw(engine_scenarios(engine=engine))
    tell_and_compare(scenario, EngineFleet)


@pytest.mark.slow
@examples(400)
@given(engine_scenarios(engine="continuous"))
def test_leaps_equal_steps_whatever_rules_meet(scenario: Scenario) -> None:
    tell_and_compare(scenario, EngineFleet)


# Combinations of rules that the naive twins don't know: against the same simulator taking single steps


PASSING = ("vllm-0.9.2", "vllm-0.18", "vllm-0.23")
"""Presets that don't keep the order of requests over the adapter limit."""


@st.composite
def rules_that_meet(draw: st.DrawFn) -> Scenario:
    """A scenario of vLLM with intervals between admissions or texts that requests share."""
    scenario = draw(scenarios(engine=draw(st.sampled_from(PASSING))))
    data: dict[str, Any] = scenario.model_dump(mode="json", by_alias=True, exclude_defaults=True)
    fleet, shares_text = data["fleet"], draw(st.booleans())
    if not shares_text or draw(st.booleans()):
        fleet["admission_interval"] = draw(st.sampled_from((2, 3, 5, 20)))
        fleet["waiting_ratio"] = draw(st.sampled_from((0.0, 0.5, 1.2)))
    if shares_text:
        assume(scenario.workload.trace is None)
        tokens = draw(st.sampled_from((4, 16, 30)))
        data["workload"]["prefix"] = {"tokens": {"law": "fixed", "value": tokens}, "texts": draw(st.integers(1, 3))}
        fleet["kv_tokens"] += -(-tokens // scenario.fleet.block_size) * scenario.fleet.block_size
    return Scenario.model_validate({"schema_version": 1, **data})


@pytest.mark.interpreted
@examples(250)
@given(rules_that_meet())
def test_leaps_equal_single_steps(scenario: Scenario) -> None:
    tell(scenario)
    world = build_world(scenario)
    leaping = run(world)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Scheduler, "_equal_steps", lambda self: 1)
        stepping = run(world)
    assert len(stepping.requests["index"]) == len(leaping.requests["index"])
    for name, column in leaping.requests.items():
        np.testing.assert_allclose(column, stepping.requests[name], rtol=1e-9, atol=1e-12, err_msg=name)
    for name, column in leaping.loads.items():
        np.testing.assert_allclose(column, stepping.loads[name], rtol=1e-9, atol=1e-12, err_msg=name)


# The boundary at which someone can join a leap: the first after now, or of this very instant if in time for it


def leap(started_s: float, load_s: float, first_s: float, growth_s: float) -> BatchServer:
    """Return a server of which nothing is there but the leap under way."""
    server = BatchServer.__new__(BatchServer)
    server._started_s, server._load_s, server._first_s, server._growth_s = started_s, load_s, first_s, growth_s
    server._ahead, server._head_s = 0, load_s
    return server


@examples(1000)
@given(
    st.floats(0.0, 1e5),
    st.floats(0.0, 2.0),
    st.floats(1e-4, 0.5),
    st.sampled_from((0.0, 1e-7, 1e-5, 3e-4)),
    st.integers(1, 3000),
)
def test_the_next_boundary_is_the_first_after_now_as_the_clock_has_it(
    started_s: float, load_s: float, first_s: float, growth_s: float, steps: int
) -> None:
    # Ends of steps are known as the clock computes them; all else is rounded, and started_s may be large.
    server = leap(started_s, load_s, first_s, growth_s)
    end_s = started_s + server._elapsed(steps)
    assert server._steps_until(end_s) == steps + 1, "who comes with a boundary joins at the next one"
    assert server._steps_until(end_s, may_join_now=True) == steps, "a load that ends with a boundary is there for it"
    assert server._steps_until(math.nextafter(end_s, 0.0)) == steps
    assert server._steps_until(math.nextafter(end_s, math.inf), may_join_now=True) == steps + 1
