"""What a scenario may say of rollouts, whom they replace, and what is refused with its line."""

from __future__ import annotations

from pathlib import Path

import pytest
import strategies as parts
from hypothesis import given
from hypothesis import strategies as st
from scenario_samples import BASE, base, write

from sim.errors import InputError, ScenarioError
from sim.spec.scenario import Scenario
from sim.spec.scenario_file import load_scenario
from sim.world.build import build_world
from sim.world.rollouts.rollout_plan import RolloutPlan

__all__ = ["base"]  # a fixture, used by its name

LINE = BASE.count("\n") + 2
"""Of the first rollout, below its section's name."""


def checked(base: Path, *rollouts: str, also: str = "") -> str:
    """Return what ``loraplan check`` would say of a scenario with these rollouts."""
    path = write(base.parent / "rollouts.yaml", BASE + "rollouts:\n" + "".join(f"  - {r}\n" for r in rollouts) + also)
    with pytest.raises(InputError) as caught:
        check(path)
    return str(caught.value)


def check(path: Path) -> None:
    """Load a scenario and build its world, as every command does."""
    loaded = load_scenario(str(path))
    try:
        build_world(loaded.scenario)
    except ScenarioError as error:
        raise loaded.locate(error) from error


@pytest.mark.parametrize(
    ("rollout", "message"),
    [
        ("{strategy: blue-green, at: 1 s}", "rollouts.0.strategy: not one of the known values (got blue-green, "),
        ("{strategy: in-place}", "rollouts.0.at: "),
        ("{strategy: in-place, at: -1 s}", "rollouts.0.at: "),
        ("{strategy: in-place, at: 5}", "rollouts.0.at: "),
        (
            "{strategy: in-place, at: 1 s, adapter: 3, share: 10%}",
            "rollouts.0.share: give one adapter, a share of all, or a count (got adapter 3 and share 10%)",
        ),
        ("{strategy: in-place, at: 1 s, share: 0%}", "rollouts.0.share: out of range (got 0%"),
        ("{strategy: in-place, at: 1 s, share: 120%}", "rollouts.0.share: "),
        ("{strategy: new-name, at: 1 s, stages: []}", "rollouts.0.stages: "),
        (
            "{strategy: new-name, at: 1 s, stages: [0%, 100%]}",
            "rollouts.0.stages: stages rise from above 0 % to 100 % (got 0%, 100%)",
        ),
        (
            "{strategy: new-name, at: 1 s, stages: [50%, 20%, 100%]}",
            "rollouts.0.stages: stages rise from above 0 % to 100 % (got 50%, 20%, 100%)",
        ),
        ("{strategy: new-name, at: 1 s, stages: [50%, 50%, 100%]}", "rollouts.0.stages: stages rise"),
        (
            "{strategy: new-name, at: 1 s, stages: [5%, 50%]}",
            "rollouts.0.stages: the last stage must reach 100 % (got 5%, 50%); end with 100%",
        ),
        ("{strategy: new-name, at: 1 s, stages: [5%, 100%], dwell: 0 s}", "rollouts.0.dwell: out of range (got 0 s"),
        (
            "{strategy: lazy-reread, at: 1 s, stages: [5%, 100%]}",
            "rollouts.0.stages: lazy-reread overwrites files for all replicas at once (got 5%, 100%, allowed: 100%)",
        ),
        (
            "{strategy: in-place, at: 1 s, stages: [5%, 100%], gate: {e2e_p99: 1 s}}",
            "rollouts.0.gate: only a new-name rollout has a gate (got strategy in-place)",
        ),
        ("{strategy: drain-then-swap, at: 1 s, rank: 8}", "rollouts.0.rank: only a new-name rollout has a rank"),
        ("{strategy: in-place, at: 1 s, size: 80 MB}", "rollouts.0.size: only a new-name rollout has a size"),
        (
            "{strategy: new-name, at: 1 s, gate: {e2e_p99: 1 s}}",
            "rollouts.0.gate: a gate stands between two stages; such as stages: [5%, 100%]",
        ),
        (
            "{strategy: new-name, at: 1 s, stages: [5%, 100%], gate: {}}",
            "rollouts.0.gate: a gate needs at least one metric; such as {e2e_p99: 12 s}",
        ),
        (
            "{strategy: new-name, at: 1 s, stages: [5%, 100%], gate: {min_requests: 9}}",
            "rollouts.0.gate: a gate needs at least one metric",
        ),
        ("{strategy: new-name, at: 1 s, stages: [5%, 100%], gate: {miss_ratio: 120%}}", "rollouts.0.gate.miss_ratio: "),
        (
            "{strategy: new-name, at: 1 s, stages: [5%, 100%], gate: {e2e_p98: 1 s}}",
            "rollouts.0.gate.e2e_p98: unknown key",
        ),
        (
            "{strategy: new-name, at: 1 s, stages: [5%, 100%], spread: 1 s, gate: {e2e_p99: 1 s}}",
            "rollouts.0.gate: a gate judges all adapters of a rollout together (got spread 1 s)",
        ),
        ("{strategy: new-name, at: 1 s, spread: -1 s}", "rollouts.0.spread: "),
        ("{strategy: in-place, at: 1 s, propagation: {law: uniform, low: 2 s, high: 1 s}}", "rollouts.0.propagation"),
        ("{strategy: in-place, at: 1 s, observe: 0 s}", "rollouts.0.observe: out of range (got 0 s"),
        (
            "{strategy: in-place, at: 1 s, adapter: 100}",
            "rollouts.0.adapter: there is no such adapter (got 100, allowed: 0 to 99)",
        ),
        ("{strategy: in-place, at: 1 s, adapter: -1}", "rollouts.0.adapter: "),
        (
            "{strategy: in-place, at: 1 s, adapter: mine}",
            "rollouts.0.adapter: adapters have no names here (got mine, allowed: 0 to 99)",
        ),
        *(
            (
                f"{{strategy: in-place, at: 1 s, adapter: {given}}}",
                f"rollouts.0.adapter: must be an adapter's number or name (got {told}, allowed: 0 and more",
            )
            for given, told in (("[1]", "[1]"), ("-1", "-1"), ("1.5", "1.5"), ("{a: 1}", "{'a': 1}"), ("true", "True"))
        ),
        (
            "{strategy: in-place, at: 1 s, sticky: false}",
            "rollouts.0.sticky: only a new-name rollout has sticky (got strategy in-place)",
        ),
        ("{strategy: lazy-reread, at: 1 s, keep_old: true}", "rollouts.0.keep_old: only a new-name rollout has "),
        ("{at: 1 s}", "rollouts.0.strategy: is missing (allowed: new-name, in-place, unload-then-load, "),
        (
            "{strategy: in-place, at: 1 s, share: 0.4%}",
            "rollouts.0.share: this share is less than one adapter (got 0.004 of 100, allowed: at least 1.00%)",
        ),
        (
            "{strategy: in-place, at: 90 s}",
            "rollouts.0.at: begins after the last request is expected (got 90 s, allowed: before 83.3 s)",
        ),
    ],
)
def test_what_makes_no_sense_is_refused_with_its_line(base: Path, rollout: str, message: str) -> None:
    assert f"rollouts.yaml:{LINE}: {message}" in checked(base, rollout)


@pytest.mark.parametrize(
    ("first", "second", "message"),
    [
        # All, and one or some of them, at the same time.
        (
            "at: 1 s, stages: [50%, 100%], dwell: 10 s",
            "at: 11 s, adapter: 4",
            "got rollouts.0 from 1 s to 11 s; rollouts.1 at 11 s); begin it after the other has ended",
        ),
        ("at: 20 s, share: 10%", "at: 1 s, spread: 30 s", "rollouts.0 at 20 s; rollouts.1 from 1 s to 31 s"),
        ("at: 1 s, adapter: 4, spread: 5 s", "at: 2 s, adapter: 4", "rolls out adapter 4 while another rollout does ("),
        # A share that turns out to hold that adapter.
        (
            "at: 1 s, share: 100%",
            "at: 1 s, adapter: 4",
            "rolls out adapter 4 while another rollout does (a share or a count is drawn by run.seed) (got ",
        ),
        # Not everybody has heard of the first one when the second begins.
        (
            "at: 30 s, propagation: {law: fixed, value: 30 s}",
            "at: 40 s",
            "rolls out all adapters while another rollout does (got rollouts.0 from 30 s to 60 s, propagation "
            "included; rollouts.1 at 40 s)",
        ),
        ("at: 30 s, propagation: {law: exponential, mean: 10 s}", "at: 95 s", "rollouts.0 from 30 s to 99.0"),
    ],
)
def test_two_rollouts_of_an_adapter_at_a_time_are_refused(base: Path, first: str, second: str, message: str) -> None:
    told = checked(base, f"{{strategy: new-name, {first}}}", f"{{strategy: new-name, {second}}}")
    assert f"rollouts.yaml:{LINE + 1}: rollouts.1: rolls out " in told
    assert message in told


def test_shares_of_more_than_everybody_are_refused(base: Path) -> None:
    told = checked(base, *(f"{{strategy: in-place, at: {i} s, share: 40%}}" for i in (1, 2, 3)))
    assert (
        f"rollouts.yaml:{LINE + 2}: rollouts.2.share: the shares of all rollouts exceed 100 % "
        "(got 40%, 40%, 40%, allowed: up to 100% together)" in told
    )


def test_a_rollout_after_one_that_may_have_gone_back_is_refused(base: Path) -> None:
    gated = "{strategy: new-name, at: 1 s, stages: [5%, 100%], dwell: 5 s, gate: {e2e_p99: 1 s}}"
    told = checked(base, gated, "{strategy: in-place, at: 30 s, adapter: 4}")
    assert f"rollouts.yaml:{LINE + 1}: rollouts.1: an earlier rollout of the same adapter has a gate" in told


@pytest.mark.parametrize(
    ("also", "message"),
    [
        ("", ""),
        ("belady", "eviction belady needs a fleet that doesn't change during the run"),
        ("front_end", "this front end reproduces measured runs without such changes (got "),
        (
            "duration",
            "rollouts.0.at: starts after the end of the run (got 60 s, allowed: below workload.duration (60 s)",
        ),
    ],
)
def test_what_does_not_go_with_rollouts_is_refused(base: Path, also: str, message: str) -> None:
    text = BASE + "rollouts:\n  - {strategy: in-place, at: 60 s}\n"
    if also == "belady":
        text = text.replace("gpu: {slots: 8}", "gpu: {slots: 8}\n  eviction: belady")
    elif also == "front_end":
        text += "fleet: {engine: vllm-0.8, front_end: vllm-0.8-scraped}\n"
    elif also == "duration":
        text = text.replace("requests: 1000", "duration: 60 s")
    path = write(base.parent / "with.yaml", text)
    if not also:
        assert build_world(load_scenario(str(path)).scenario).rollout_plan.rollouts
        return
    with pytest.raises(InputError) as caught:
        load_scenario(str(path))
    line = next(i for i, row in enumerate(text.splitlines(), 1) if row.startswith(("rollouts:", "  - {strategy")))
    assert f"with.yaml:{line + (also == 'duration')}: " in str(caught.value)
    assert message in str(caught.value)


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


def test_a_new_version_that_needs_too_much_memory_is_blamed_on_its_rollout(base: Path) -> None:
    by_size = "fleet: {profile: h100-64gb/llama-3.1-8b/assumed}\n"  # its slots have no layout by rank
    told = checked(base, "{strategy: new-name, at: 1 s, size: 40 GB}", also=by_size)
    assert f"rollouts.yaml:{LINE}: rollouts.0.size: with 8 slots (cache.gpu.slots) that hold it, too little " in told
    assert "got 40 GB" in told
