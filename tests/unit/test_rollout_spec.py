"""What a scenario may say of rollouts, whom they replace, and what is refused with its line."""

from __future__ import annotations

from pathlib import Path

import pytest
import strategies as parts
from hypothesis import given
from hypothesis import strategies as st
from scenario_samples import BASE, base, write

from sim.errors import ScenarioError
from sim.spec.scenario import Scenario
from sim.spec.scenario_file import load_scenario
from sim.world.build import build_world
from sim.world.rollouts.rollout_plan import RolloutPlan

__all__ = ["base"]  # a fixture, used by its name


# Whom they replace


def laid_out(*rollouts: dict[str, object], count: int = 40) -> RolloutPlan:
    scenario: Scenario = parts.build(
        workload={"requests": 1000, "arrivals": {"process": "poisson", "rate": "1/s"}},
        adapters={"count": count},
        rollouts=[{"strategy": "in-place", **rollout} for rollout in rollouts],
    )
    return build_world(scenario).rollout_plan


@given(st.lists(st.integers(1, 30), min_size=1, max_size=3), st.integers(4, 200))
def test_shares_take_different_adapters_and_as_many_as_they_say(percents: list[int], count: int) -> None:
    if min(percents) * count < 100:  # less than one adapter
        count = 100
    planned_rollouts = laid_out(*({"at": "1 s", "share": f"{percent}%"} for percent in percents), count=count).rollouts
    chosen = [name for planned in planned_rollouts for name in planned.names]
    assert len(chosen) == len(set(chosen))
    for planned, percent in zip(planned_rollouts, percents, strict=True):
        assert abs(len(planned.names) - percent * count / 100) <= 1
        assert list(planned.names) == sorted(planned.names)
    assert all(0 <= name < count for name in chosen)


def test_the_hottest_are_those_asked_for_most_often() -> None:
    (planned,) = laid_out({"at": "1 s", "hottest": 3}).rollouts
    assert planned.names == (0, 1, 2)
    assert planned.which == " (adapters 0, 1, 2)"
    assert laid_out({"at": "1 s", "hottest": 9}).rollouts[0].which == " (adapters 0, 1, 2, 3, 4, 5 and 3 more)"
    own: Scenario = parts.build(
        workload={
            "requests": 1000,
            "arrivals": {"process": "poisson", "rate": "1/s"},
            "popularity": {"law": "uniform"},
        },
        adapters={"count": 40},
        tenants=[{"name": "few", "adapters": 38, "share": 0.1}, {"name": "many", "adapters": 2, "share": 0.9}],
        rollouts=[{"strategy": "in-place", "hottest": 2, "at": "1 s"}],
    )
    (planned,) = build_world(own).rollout_plan.rollouts
    assert planned.names == (38, 39)


def test_all_together_take_everybody() -> None:
    planned_rollouts = laid_out(
        {"at": "1 s", "share": "50%"}, {"at": "2 s", "share": "30%"}, {"at": "3 s", "share": "20%"}
    ).rollouts
    assert sorted(name for planned in planned_rollouts for name in planned.names) == list(range(40))


def test_versions_follow_in_order_of_time_and_new_names_get_new_numbers() -> None:
    rollout_plan = laid_out(
        {"at": "30 s", "adapter": 7},
        {"at": "10 s", "adapter": 7, "strategy": "new-name"},
        {"at": "20 s", "strategy": "new-name"},
        count=10,
    )
    first, second, third = rollout_plan.rollouts
    assert [planned.number for planned in rollout_plan.rollouts] == [1, 2, 0]
    assert (first.adapters, first.new_adapters, first.versions) == ((7,), (10,), (2,))
    assert second.adapters == (0, 1, 2, 3, 4, 5, 6, 10, 8, 9)
    assert second.new_adapters == tuple(range(11, 21))
    assert second.versions == (2, 2, 2, 2, 2, 2, 2, 3, 2, 2)
    assert (third.adapters, third.names, third.new_adapters, third.versions) == ((18,), (7,), (), (4,))
    assert rollout_plan.original.tolist() == [*range(10), 7, *range(10)]
    assert rollout_plan.initial_versions == {10: 2, **{11 + i: second.versions[i] for i in range(10)}}


def test_an_adapter_of_a_trace_goes_by_its_name() -> None:
    trace = parts.write_trace([(0.0, 3, 8, 8), (1.0, 5, 8, 8), (2.0, 5, 8, 8)])
    scenario = {"workload": {"trace": {"file": trace}}, "adapters": {}}
    at = {"strategy": "in-place", "at": "500 ms"}
    world = build_world(parts.build(**scenario, rollouts=[at | {"adapter": "a5"}]))
    assert [world.traffic.names[name] for name in world.rollout_plan.rollouts[0].names] == ["a5"]
    with pytest.raises(ScenarioError, match=r"there is no such adapter.*did you mean 'a5'") as caught:
        build_world(parts.build(**scenario, rollouts=[at | {"adapter": "a55"}]))
    assert caught.value.key == "rollouts.0.adapter"


def test_what_a_user_should_know_of_rollouts_is_noted(base: Path) -> None:
    def notes(rollout: str) -> str:
        text = BASE + f"rollouts:\n  - {rollout}\n"
        scenario = load_scenario(str(write(base.parent / "noted.yaml", text))).scenario
        return " ".join(build_world(scenario).notes)

    assert "begins in the warm-up" not in notes("{strategy: in-place, at: 40 s}")
    assert "rollouts.0 begins in the warm-up" in notes("{strategy: in-place, at: 1 s}")
