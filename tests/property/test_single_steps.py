"""Leaps against the same simulator taking single steps: for combinations of rules that the naive twins don't know."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from examples import examples
from hypothesis import assume, given
from hypothesis import strategies as st
from strategies import scenarios
from test_leaping import tell

from sim.policies.scheduler import Scheduler
from sim.spec.scenario import Scenario
from sim.world.build import build_world
from sim.world.replication import simulate

pytestmark = pytest.mark.interpreted

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


@examples(250)
@given(rules_that_meet())
def test_leaps_equal_single_steps(scenario: Scenario) -> None:
    tell(scenario)
    world = build_world(scenario)
    leaping = simulate(world, 0, 1)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Scheduler, "_equal_steps", lambda self: 1)
        stepping = simulate(world, 0, 1)
    assert len(stepping.requests["index"]) == len(leaping.requests["index"])
    for name, column in leaping.requests.items():
        np.testing.assert_allclose(column, stepping.requests[name], rtol=1e-9, atol=1e-12, err_msg=name)
    for name, column in leaping.loads.items():
        np.testing.assert_allclose(column, stepping.loads[name], rtol=1e-9, atol=1e-12, err_msg=name)
