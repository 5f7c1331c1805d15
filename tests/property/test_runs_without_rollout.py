"""Runs with rollouts compared with the same runs without them: the same traffic, and nothing else changes."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from recordings import run, tables
from strategies import STRATEGIES, rollout_designs, rollout_scenarios, with_
from test_rollout_laws import EXAMPLES, without

from sim.spec.scenario import Scenario
from sim.traffic.request import Request
from sim.world.build import build_world
from sim.world.replica.server import Server


@settings(max_examples=EXAMPLES)
@given(rollout_scenarios())
def test_traffic_and_luck_are_those_of_a_run_without_rollouts(scenario: Scenario) -> None:
    assume(not any(rollout.rank for rollout in scenario.rollouts))
    lucky: list[dict[int, tuple[float, float, float]]] = []
    arrive = Server.arrive

    def arrived(server: Any, request: Request) -> None:
        lucky[-1][request.index] = (request.load_s, request.host_load_s, request.service_s)
        arrive(server, request)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Server, "arrive", arrived)
        recordings = []
        for design in (scenario, without(scenario)):
            lucky.append({})
            recordings.append(run(design))
    ours, other = (recording.requests for recording in recordings)
    for name in ("index", "arrival_s", "adapter", "prompt_tokens", "output_tokens", "session"):
        assert name not in ours or ours[name].tobytes() == other[name].tobytes(), name
    both = lucky[0].keys() & lucky[1].keys()
    assert {index: lucky[0][index] for index in both} == {index: lucky[1][index] for index in both}


@settings(max_examples=2 * EXAMPLES)
@given(rollout_scenarios())
def test_before_the_first_rollout_all_is_as_without_it(scenario: Scenario) -> None:
    assume(not any(rollout.rank for rollout in scenario.rollouts))
    begins_s = min(rollout.at for rollout in scenario.rollouts)
    ours, other = run(scenario), run(without(scenario))
    early = [(r.requests["finished_s"] >= 0) & (r.requests["finished_s"] < begins_s) for r in (ours, other)]
    assert early[0].tolist() == early[1].tolist()
    for name, column in ours.requests.items():
        assert column[early[0]].tobytes() == other.requests[name][early[1]].tobytes(), name
    over = [r.loads["ended_s"] < begins_s for r in (ours, other)]
    for name, column in ours.loads.items():
        assert column[over[0]].tobytes() == other.loads[name][over[1]].tobytes(), name


@settings(max_examples=EXAMPLES)
@given(rollout_designs(), st.sampled_from(STRATEGIES), st.integers(0, 90))
def test_a_rollout_of_an_adapter_that_nobody_asks_for_changes_nothing(
    scenario: Scenario, strategy: str, percent: int
) -> None:
    world = build_world(scenario)
    asked = {int(adapter) for chunk in world.traffic.chunks(0) for adapter in chunk.adapter}
    idle = set(range(world.traffic.places)) - asked - set(world.pools[0].pinned) - set(world.pools[0].warm)
    assume(idle)
    assume(
        strategy in ("new-name", "lazy-reread") or scenario.cache.host is None or scenario.cache.host.fill != "start"
    )
    at = f"{world.traffic.expected_s() * percent / 100!r} s"
    changed = with_(scenario, rollouts=[{"strategy": strategy, "at": at, "adapter": min(idle)}])
    assert tables(run(changed)) == tables(run(scenario))


@settings(max_examples=EXAMPLES)
@given(rollout_scenarios())
def test_a_seed_repeats_byte_for_byte(scenario: Scenario) -> None:
    ours, other = run(scenario), run(scenario)
    assert tables(ours) == tables(other)
    assert ours.events == other.events
    assert {**ours.facts, "rollout_duration_s": 0} == {**other.facts, "rollout_duration_s": 0}
