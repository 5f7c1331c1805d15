"""Rollouts whose every instant can be computed by hand, and where luck decides, the shares that it must give."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from naive_rollouts import Seen
from recordings import marked
from strategies import GRID, build, fixed_time, rollout_scenarios, run, seconds, with_, write_profile, write_trace
from test_rollout_laws import EXAMPLES

from sim.results.records import COMPLETED, GATED, MIXED, REFUSED, STALE, Recording
from sim.spec.scenario import Scenario
from sim.world.build import build_world

D = GRID
"""Seconds of every step, whatever it does. A load takes three of them."""


def by_hand(
    rows: list[tuple[float, int, int, int]], rollouts: list[dict[str, Any]] | dict[str, Any], **sections: Any
) -> Scenario:
    """Return one replica with two adapters, both in its GPU from the start; rows give arrivals in steps."""
    storage = {"load": fixed_time(3 * D), **sections.pop("storage", {})}
    return build(
        workload={"trace": {"file": write_trace([(at * D, *rest) for at, *rest in rows])}},
        adapters={"count": 2, "size": "1 MiB", **sections.pop("adapters", {})},
        fleet={
            "profile": write_profile({"fixed_s": D, "tokens": [[0, 0.0], [64, 0.0]]}),
            "max_num_seqs": 8,
            "max_num_batched_tokens": 64,
            "block_size": 16,
            "kv_tokens": 16384,
            **sections.pop("fleet", {}),
        },
        cache={"gpu": {"slots": 4}, "warm": 2, **sections.pop("cache", {})},
        storage=storage,
        rollouts=[rollouts] if isinstance(rollouts, dict) else rollouts,
        **sections,
    )


def versions(recording: Recording) -> list[tuple[int, int, int]]:
    names = ("version", "last_version", "tokens_before")
    return list(zip(*(recording.requests[name].tolist() for name in names), strict=True))


def steps(recording: Recording, name: str) -> list[float]:
    return [time / D for time in recording.requests[name].tolist()]


ROWS = [(0.0, 0, 8, 40), (0.0, 0, 8, 14), (0.0, 1, 8, 40), (13.5, 0, 8, 40), (20.0, 0, 8, 5)]
"""An answer gets its k-th token after k steps. Two of 14 and 40 tokens from the start on, one of the other adapter;
one that comes in the fourteenth step and is admitted after it; one that comes as a step has just begun."""


def test_in_place_swaps_between_two_steps() -> None:
    # Begun at 10.25, loaded at 13.25, swapped at the next boundary, 14: the second request has just ended, the fourth
    # is about to begin.
    recording = run(by_hand(ROWS, {"strategy": "in-place", "at": seconds(10.25 * D), "adapter": 0}))
    assert versions(recording) == [(1, 2, 14), (1, 1, 0), (1, 1, 0), (2, 2, 0), (2, 2, 0)]
    assert marked(recording, MIXED).tolist() == [True, False, False, False, False]
    assert not np.any(marked(recording, STALE)[:3])
    assert steps(recording, "finished_s") == [40, 14, 40, 54, 26], "nobody waits"
    assert [event.time_s / D for event in recording.events] == [10.25, 14]
    assert recording.facts["rollout_duration_s"] == (14 - 10.25) * D
    assert not recording.facts["rollout_standstill_s"], "it loads beside the steps"
    loads = recording.loads
    assert (loads["asked_s"] / D).tolist() == (loads["started_s"] / D).tolist() == [10.25]
    assert (loads["ended_s"] / D).tolist() == [13.25]


def test_in_place_blocks_the_next_step_where_loads_do() -> None:
    # Begun at 10.25, done at the next boundary, 11; the step after it takes 3 + 1.
    case = by_hand(ROWS, {"strategy": "in-place", "at": seconds(10.25 * D), "adapter": 0}, storage={"mode": "blocking"})
    recording = run(case)
    assert versions(recording) == [(1, 2, 11), (1, 2, 11), (1, 1, 0), (2, 2, 0), (2, 2, 0)]
    assert steps(recording, "finished_s") == [43, 17, 43, 55, 26]
    assert recording.facts["rollout_standstill_s"] == pytest.approx(3 * D)
    assert recording.facts["rollout_duration_s"] == pytest.approx((14 - 10.25) * D), "until the load has ended"


def test_loads_that_follow_each_other_between_two_steps_are_one_standstill() -> None:
    # Both adapters at the boundary at 11, until 17; with a spread, the second at 25, until 28.
    for spread, still, ends in (("0 s", 6, 17), (seconds(28 * D), 3, 28)):
        update = {"strategy": "in-place", "at": seconds(10.25 * D), "spread": spread}
        recording = run(by_hand(ROWS, update, storage={"mode": "blocking"}))
        assert recording.facts["rollout_standstill_s"] == pytest.approx(still * D)
        assert recording.facts["rollout_duration_s"] == pytest.approx((ends - 10.25) * D)
        assert recording.events[-1].time_s == pytest.approx(ends * D)
    both = [{"strategy": "in-place", "at": seconds(10.25 * D), "adapter": adapter} for adapter in (0, 1)]
    recording = run(by_hand(ROWS, both, storage={"mode": "blocking"}))
    assert recording.facts["rollout_standstill_s"] == pytest.approx(6 * D), "also of two rollouts"


def test_in_place_on_an_idle_replica_delays_the_next_step() -> None:
    # Begun at 10.25 and loaded at 13.25; a request that comes in between is admitted at once and waits for that.
    rows = [(0.0, 0, 8, 2), (11.0, 0, 8, 1), (20.0, 0, 8, 1)]
    case = by_hand(rows, {"strategy": "in-place", "at": seconds(10.25 * D), "adapter": 0}, storage={"mode": "blocking"})
    recording = run(case)
    assert steps(recording, "admitted_s") == [0, 11, 20]
    assert steps(recording, "finished_s") == [2, 14.25, 21]


def test_loads_of_a_step_begin_after_an_update_in_place() -> None:
    # At the boundary at 11, first the update of adapter 0 until 14, then the load of adapter 1 until 17, then a step.
    rows = [(0.0, 0, 8, 40), (10.5, 1, 8, 5)]
    update = {"strategy": "in-place", "at": seconds(10.25 * D), "adapter": 0}
    recording = run(by_hand(rows, update, storage={"mode": "blocking"}, cache={"warm": 1}))
    assert [time / D for time in recording.loads["started_s"].tolist()] == [11, 14]
    assert [time / D for time in recording.loads["ended_s"].tolist()] == [14, 17]
    assert steps(recording, "load_wait_s") == [0, 3]
    assert steps(recording, "first_token_s") == [1, 18]


@pytest.mark.parametrize("strategy", ["in-place", "drain-then-swap"])
def test_a_second_token_of_staleness_takes_a_step_that_began_before_the_swap(strategy: str) -> None:
    # Came at 10.5, after the cutover, and was admitted at 11, before the swap at 14; whoever drains lets it wait.
    recording = run(
        by_hand([(0.0, 0, 8, 40), (10.5, 0, 8, 20)], {"strategy": strategy, "at": seconds(10.25 * D), "adapter": 0})
    )
    in_place = strategy == "in-place"
    assert versions(recording) == ([(1, 2, 14), (1, 2, 3)] if in_place else [(1, 1, 0), (2, 2, 0)])
    assert marked(recording, STALE).tolist() == [False, in_place]


def test_drain_then_swap_lets_new_requests_wait_for_the_last_old_one() -> None:
    # The last old token comes after 40 steps, the weights 3 later.
    recording = run(by_hand(ROWS, {"strategy": "drain-then-swap", "at": seconds(10.25 * D), "adapter": 0}))
    assert versions(recording) == [(1, 1, 0), (1, 1, 0), (1, 1, 0), (2, 2, 0), (2, 2, 0)]
    assert steps(recording, "admitted_s") == [0, 0, 0, 43, 43]
    assert steps(recording, "finished_s") == [40, 14, 40, 83, 48]
    assert recording.facts["rollout_duration_s"] == (43 - 10.25) * D
    assert not np.any(marked(recording, MIXED | STALE | GATED))


def test_unload_then_load_refuses_meanwhile() -> None:
    rows = [*ROWS[:3], (10.0, 0, 8, 5), (10.5, 1, 8, 5), (20.0, 0, 8, 5), (42.5, 0, 8, 5), (43.0, 0, 8, 5)]
    recording = run(by_hand(rows, {"strategy": "unload-then-load", "at": seconds(10.25 * D), "adapter": 0}))
    assert marked(recording, GATED).tolist() == [False] * 5 + [True, True, False]
    assert recording.requests["status"].tolist() == [COMPLETED] * 5 + [REFUSED] * 2 + [COMPLETED]
    assert versions(recording)[3:] == [(1, 1, 0), (1, 1, 0), (0, 0, 0), (0, 0, 0), (2, 2, 0)]
    assert steps(recording, "admitted_s")[-1] == 43


def test_a_rollout_that_finds_the_adapter_closed_waits_for_its_turn() -> None:
    # The first one's weights are there at 43; who waited is served with them, and drained by the second: 43 + 40 + 3.
    recording = run(
        by_hand(
            [*ROWS, (30.0, 0, 8, 2), (50.0, 0, 8, 2)],
            [
                {"strategy": "drain-then-swap", "at": seconds(10.25 * D), "adapter": 0},
                {"strategy": "drain-then-swap", "at": seconds(25 * D), "adapter": 0},
            ],
        )
    )
    assert versions(recording)[3:] == [(2, 2, 0), (2, 2, 0), (2, 2, 0), (3, 3, 0)]
    assert marked(recording, STALE).tolist() == [False] * 5 + [True, False], "came after the second cutover"
    assert steps(recording, "admitted_s")[3:] == [43, 43, 43, 86]
    assert [event.time_s / D for event in recording.events if event.kind == "complete"] == [43, 86]


@pytest.mark.interpreted
def test_a_load_from_host_memory_that_waits_for_a_loader_does_not_bring_the_old_version_back() -> None:
    # One slot, one loader of 30 steps from host memory, where both adapters are from 7 on. At 40 adapter 0 is loaded,
    # and adapter 1 waits until 70 for the loader: the new weights, which come at 44, must go where it will be read.
    case = by_hand(
        [(0.0, 0, 8, 1), (0.0, 1, 8, 1), (40.0, 0, 8, 1), (40.0, 1, 8, 1), (50.0, 1, 8, 1)],
        {"strategy": "in-place", "at": seconds(41 * D), "adapter": 1},
        cache={"gpu": {"slots": 1}, "warm": 0, "host": {"slots": 2}},
        storage={"host_load": fixed_time(30 * D), "loaders": 2, "host_loaders": 1},
    )
    seen = Seen(build_world(case))
    assert [event.time_s / D for event in seen.recording.events] == [41, 44]
    assert steps(seen.recording, "admitted_s") == [3, 7, 70, 101, 101]
    assert [seen.answer(i).version for i in range(5)] == [1, 1, 1, 2, 2]
    assert versions(seen.recording) == [seen.answer(i) for i in range(5)]


def test_engine_fixed_answers_with_the_weights_that_were_there_when_it_began() -> None:
    # Served one after the other, ten steps each. Begun at 12, loaded at 15, swapped when the second ends at 20.
    case = by_hand(
        [(0.0, 0, 8, 1), (0.0, 0, 8, 1), (0.0, 0, 8, 1), (13.0, 1, 8, 1)],
        {"strategy": "in-place", "at": seconds(12 * D), "adapter": 0},
        fleet={"engine": "fixed", "service": fixed_time(10 * D), "max_num_seqs": 1, "max_num_batched_tokens": 512},
    )
    recording = run(case)
    assert steps(recording, "finished_s") == [10, 20, 30, 40]
    assert versions(recording) == [(1, 1, 0), (1, 1, 0), (2, 2, 0), (1, 1, 0)]


def test_extra_bytes_are_those_of_both_old_versions_while_their_last_requests_run() -> None:
    # Both adapters of 1 MiB, their new versions of 3; the first new load begins at 20, the second at 30, and the old
    # ones leave at 40.
    case = by_hand(
        [(0.0, 0, 8, 40), (0.0, 1, 8, 40), (20.0, 0, 8, 5), (30.0, 1, 8, 5)],
        {"strategy": "new-name", "at": seconds(10.25 * D), "size": "3 MiB"},
    )
    recording = run(case)
    assert recording.facts["extra_resident_bytes_peak"] == 2 * 2**20
    assert recording.facts["rollout_duration_s"] == (40 - 10.25) * D
    assert versions(recording) == [(1, 1, 0), (1, 1, 0), (2, 2, 0), (2, 2, 0)]
    assert recording.evictions == 2, "dropped with their last request"
    apart = run(
        by_hand(
            [(0.0, 0, 8, 40), (0.0, 1, 8, 25), (20.0, 0, 8, 5), (30.0, 1, 8, 5)],
            {"strategy": "new-name", "at": seconds(10.25 * D), "size": "3 MiB"},
        )
    )
    assert apart.facts["extra_resident_bytes_peak"] == 2**20


def test_new_versions_to_come_change_no_cost_before_they_are_there() -> None:
    """Where a cache is given by size, steps cost as many slots as adapters of the mean size fit."""
    profile = write_profile({"fixed_s": D, "tokens": [[0, 0.0], [64, 0.0]], "lora": {"per_slot_s": D}})
    ends = []
    for adapter in (0, 1):
        case = build(
            workload={"trace": {"file": write_trace([(0.0, 0, 8, 5), (0.0, 1, 8, 5), (9.0, 1, 8, 5)])}},
            adapters={"count": 2, "mix": [{"share": 0.5, "size": "1 MiB"}, {"share": 0.5, "size": "4 MiB"}]},
            fleet={"profile": profile, "kv_tokens": 16384},
            cache={"gpu": {"size": "9 MiB"}, "warm": 2},
            rollouts=[{"strategy": "new-name", "at": "8 s", "adapter": adapter}],
        )
        ends.append(run(case).requests["finished_s"][:2].tolist())
    assert ends[0] == ends[1]


def crowd(rollout: dict[str, Any], requests: int = 4000, sessions: bool = False, **sections: Any) -> Scenario:
    """Return one adapter, asked for 100 times a second, of which a new version goes out from 1 s on."""
    workload: dict[str, Any] = {
        "requests": requests,
        "arrivals": {"process": "poisson", "rate": "100/s"},
        "tokens": {"prompt": {"law": "fixed", "value": 8}, "output": {"law": "fixed", "value": 1}},
    }
    if sessions:
        workload["sessions"] = {"requests": 4, "gap_median": "2 s", "gap_sigma": 1}
    return build(
        workload=workload,
        adapters={"count": 1, "size": "1 MiB"},
        cache={"gpu": {"slots": 4}},
        fleet={"engine": "fixed", "service": fixed_time(0.001)},
        storage={"load": fixed_time(0.001)},
        rollouts=[{"strategy": "new-name", "at": "1 s", **rollout}],
        **sections,
    )


@pytest.mark.parametrize("sessions", [False, True])
def test_a_stage_of_30_percent_moves_30_percent(sessions: bool) -> None:
    recording = run(crowd({"stages": ["30%", "100%"], "dwell": "1000 s"}, sessions=sessions))
    requests = recording.requests
    later = requests["arrival_s"] >= 1.0
    moved = requests["version"][later] == 2
    if sessions:  # a session draws once
        _, first = np.unique(requests["session"][later], return_index=True)
        moved = moved[first]
    deviation = math.sqrt(0.3 * 0.7 / len(moved))
    assert abs(moved.mean() - 0.3) < 4 * deviation
    assert not np.any(requests["version"][~later] == 2)


def backwards(scenario: Scenario, seen: Seen) -> list[int]:
    """Return the sessions of which a request was sent to an older version of its adapter than one before it."""
    rollout_plan = build_world(scenario).rollout_plan
    requests = seen.recording.requests
    newest: dict[tuple[int, int], int] = {}
    back = []
    for index, (session, name) in enumerate(zip(requests["session"], requests["adapter"], strict=True)):
        if index in seen.asked:
            version = rollout_plan.initial_versions.get(seen.asked[index], 1)
            if version < newest.get((session, name), 1):
                back.append(int(session))
            newest[session, name] = max(version, newest.get((session, name), 1))
    return back


@pytest.mark.interpreted
@settings(max_examples=EXAMPLES)
@given(rollout_scenarios(strategies=("new-name",), gates=False, sessions=True))
def test_sticky_sessions_never_go_back(scenario: Scenario) -> None:
    parts = [part.model_dump(mode="json", exclude_unset=True) | {"sticky": True} for part in scenario.rollouts]
    scenario = with_(scenario, rollouts=parts)
    assert backwards(scenario, Seen(build_world(scenario))) == []


@pytest.mark.interpreted
@pytest.mark.parametrize("sticky", [True, False])
@pytest.mark.parametrize("instances", [1, 3])
def test_only_sessions_that_are_not_sticky_go_back(sticky: bool, instances: int) -> None:
    scenario = crowd(
        {
            "stages": ["50%", "100%"],
            "dwell": "20 s",
            "sticky": sticky,
            "propagation": {"law": "uniform", "low": "0 s", "high": "5 s"},
        },
        sessions=True,
        router={"instances": instances},
    )
    assert bool(backwards(scenario, Seen(build_world(scenario)))) is not sticky


def test_routers_hear_of_a_stage_one_by_one() -> None:
    """With delays of 2 s to 6 s, nobody moves before 3 s and everybody after 7 s; in between, some do."""
    scenario = crowd(
        {"propagation": {"law": "uniform", "low": "2 s", "high": "6 s"}}, requests=1000, router={"instances": 8}
    )
    requests = run(scenario).requests
    arrival, moved = requests["arrival_s"], requests["version"] == 2
    assert not np.any(moved[arrival < 3])
    assert np.all(moved[arrival >= 7])
    shares = [moved[(arrival >= low) & (arrival < low + 1)].mean() for low in (3, 4, 5, 6)]
    assert shares == sorted(shares)
    assert 0 < shares[1] < 1
