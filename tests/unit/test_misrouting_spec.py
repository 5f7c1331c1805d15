"""Misrouting faults: what a scenario may set, which requests go where, and what one costs, by hand."""

from __future__ import annotations

from collections import Counter
from typing import Any

import numpy as np
import pytest
import strategies as parts
from hypothesis import given
from hypothesis import strategies as st
from scenario_samples import base
from strategies import run

from sim.policies.changes import PopularityChoice, UniformChoice, exchanged
from sim.results.change_metrics import sessions_of_both
from sim.results.records import (
    COMPLETED,
    FAILED,
    MISROUTED,
    MIXED,
    OLD_PREFIX,
    REROUTED,
    RETRIED,
    WRONG_DETECTED,
    WRONG_LOAD,
    WRONG_SERVED,
    Recording,
)
from sim.spec.scenario import Scenario
from sim.traffic.request import Request
from sim.world.build import build_world
from sim.world.replication import assemble
from sim.world.routing.router_state import RouterInstances

__all__ = ["base"]  # a fixture, used by its name

GRID = parts.GRID


# Whom they lead where


@given(st.lists(st.integers(0, 20), min_size=2, max_size=9), st.data())
def test_another_one_is_drawn_by_popularity(weights: list[int], data: st.DataObject) -> None:
    asked = data.draw(st.integers(0, len(weights) + 1))  # beyond the last: one that came later
    own = weights[asked] if asked < len(weights) else 0
    others, draws = sum(weights) - own, 5040
    popular = PopularityChoice([weight / max(sum(weights), 1) for weight in weights])
    reached = Counter(popular.choose(asked, (k + 0.5) / draws) for k in range(draws))
    assert asked not in reached
    if others:
        expected = {a: draws * w / others for a, w in enumerate(weights) if a != asked and w}
    else:
        expected = {a: draws / (len(weights) - (asked < len(weights))) for a in range(len(weights)) if a != asked}
    assert reached.keys() == expected.keys()
    assert all(abs(reached[a] - count) <= 1 for a, count in expected.items())


@given(st.integers(2, 9), st.integers(0, 12))
def test_any_other_one_is_as_likely(count: int, asked: int) -> None:
    among = count - (asked < count)
    reached = Counter(UniformChoice(count).choose(asked, (k + 0.5) / (among * 30)) for k in range(among * 30))
    assert reached == {adapter: 30 for adapter in range(count) if adapter != asked}


@given(st.integers(1, 60), st.floats(0, 1), st.integers(0, 2**63))
def test_who_changes_places_gets_another_one_of_those(count: int, share: float, key: int) -> None:
    reached = exchanged(count, share, key)
    chosen = round(share * count)
    assert len(reached) == (chosen if chosen > 1 else 0)
    assert set(reached.values()) == set(reached)
    assert all(adapter != other for adapter, other in reached.items())


def test_who_changes_places_is_as_likely_anyone() -> None:
    chosen = Counter(adapter for key in range(2000) for adapter in exchanged(10, 0.3, key * 7919))
    sigma = (2000 * 0.3 * 0.7) ** 0.5
    assert all(abs(chosen[adapter] - 600) < 4 * sigma for adapter in range(10))


# What one costs, by hand

STEP = {"fixed_s": GRID, "tokens": [[0, 0.0], [64, 0.0]], "lora": {"per_adapter_s": GRID}}


def replayed(rows: list[tuple[float, int, int, int]], **sections: Any) -> Scenario:
    """A few requests on one replica whose steps take a grid's width, and one more for each adapter."""
    fleet = {"profile": parts.write_profile(STEP), "kv_tokens": 4096, **sections.pop("fleet", {})}
    given = {"adapters": {"count": 4, "size": "1 MiB"}, "storage": {"load": parts.fixed_time(GRID)}, **sections}
    scenario: Scenario = parts.build(workload={"trace": {"file": parts.write_trace(rows)}}, fleet=fleet, **given)
    return scenario


def quick(requests: int, rate: str, *, workload: dict[str, Any] | None = None, **sections: Any) -> Scenario:
    """Many requests for nine adapters, which take 10 ms each."""
    traffic = {"requests": requests, "arrivals": {"process": "poisson", "rate": rate}, **(workload or {})}
    fleet = {"engine": "fixed", "service": parts.fixed_time(0.01), **sections.pop("fleet", {})}
    given = {"adapters": {"count": 9}, "storage": {"load": parts.fixed_time(0.01)}, **sections}
    scenario: Scenario = parts.build(workload=traffic, fleet=fleet, **given)
    return scenario


def requests_of(scenario: Scenario) -> dict[str, np.ndarray]:
    return run(scenario).requests


def small(
    rows: list[tuple[float, int, int, int]], faults: list[dict[str, Any]], **fleet: Any
) -> tuple[Recording, dict[str, Any]]:
    """Run a few requests, one at a time unless ``fleet`` says otherwise; loads take four steps."""
    given = {"cache": {"gpu": {"slots": 2}}, "storage": {"load": parts.fixed_time(4 * GRID)}, "faults": faults}
    recording = run(replayed(rows, fleet={"max_num_seqs": 1, **fleet}, **given))
    return recording, {name: column.tolist() for name, column in recording.requests.items()}


WRONG_ONCE = {"kind": "misrouting", "probability": 1.0, "to": "any", "lasts": parts.seconds(GRID / 2)}
"""The first requests go wrong; later and repeated ones do not."""


def test_a_retry_is_served_anew_behind_those_who_wait() -> None:
    rows = [(0.0, 0, 1, 2), (GRID, 1, 1, 2), (2 * GRID, 1, 1, 2), (20.0, 3, 1, 1)]
    fault = WRONG_ONCE | {"detector": {"checks": 1.0, "retries": 1}}
    recording, table = small(rows, [fault])
    # A load of 4, two steps of 2: noticed at 8, while two wait, whose adapter has come. They take 4 each; the retry has
    # loaded its own adapter meanwhile.
    assert [time / GRID for time in table["finished_s"][:3]] == [20, 12, 16]
    assert table["arrival_s"][0] == 0
    assert table["admitted_s"][0] == 16 * GRID
    assert table["marks"][:3] == [MISROUTED | WRONG_LOAD | WRONG_DETECTED | RETRIED, 0, 0]
    assert (table["tries"][0], table["detected"][0], table["status"][0]) == (1, 1, COMPLETED)
    assert recording.running_area == pytest.approx((4 * 4 + 2) * GRID)
    assert recording.loads["adapter"][1:3].tolist() == [1, 0], "the second try asks for its own adapter"


def test_a_pause_before_a_retry_is_spent_outside() -> None:
    fault = WRONG_ONCE | {"detector": {"checks": 1.0, "retries": 1, "delay": parts.seconds(10 * GRID)}}
    recording, table = small([(0.0, 0, 1, 2), (1000.0, 0, 1, 1)], [fault])
    assert table["finished_s"][0] / GRID == 8 + 10 + 8
    assert recording.inside_area == pytest.approx((8 + 8 + 2) * GRID)


def test_the_last_try_that_goes_wrong_is_a_failure() -> None:
    fault = {"kind": "misrouting", "probability": 1.0, "detector": {"checks": 1.0, "retries": 2}}
    _, table = small([(0.0, 0, 1, 2), (1.0, 1, 1, 1)], [fault])
    assert table["status"] == [FAILED, FAILED]
    assert (table["tries"], table["detected"]) == ([2, 2], [3, 3])
    assert table["finished_s"] == [-1.0, -1.0]


def test_a_retry_that_had_not_come_again_is_unfinished() -> None:
    fault = {"kind": "misrouting", "probability": 1.0, "detector": {"checks": 1.0, "delay": "1 h"}}
    scenario = parts.build(
        workload={"duration": "10 s", "arrivals": {"process": "poisson", "rate": "2/s"}},
        adapters={"count": 4},
        fleet={"engine": "fixed", "service": parts.fixed_time(0.01)},
        storage={"load": parts.fixed_time(0.01)},
        faults=[fault],
    )
    requests = run(scenario).requests
    assert len(requests["index"])
    assert set(requests["status"].tolist()) == {1}
    assert requests["detected"][:-1].min() == 1


@pytest.mark.parametrize("batching", ["mixed", "prefill-first"])
def test_the_base_model_makes_no_step_dearer(batching: str) -> None:
    kv = {"batching": batching, "max_num_seqs": 8}
    rows = [(0.0, 0, 1, 3), (1.0, 1, 1, 1)]
    _, with_adapter = small(rows, [], **kv)
    _, alone = small(rows, [{"kind": "base-model", "probability": 1.0}], **kv)
    assert with_adapter["finished_s"][0] / GRID == 4 + 3 * 2
    assert alone["finished_s"][0] / GRID == 3
    assert alone["marks"][0] == MISROUTED | WRONG_SERVED


def test_routers_do_not_know_that_the_adapter_is_left_out() -> None:
    fleet = {"replicas": 4, "service": parts.fixed_time(0.1)}
    ours, theirs = (
        requests_of(
            quick(200, "5/s", adapters={"count": 40}, fleet=fleet, router={"policy": "service-per-adapter"}, **faults)
        )
        for faults in ({}, {"faults": [{"kind": "base-model", "probability": 1.0}]})
    )
    assert ours["replica"].tolist() == theirs["replica"].tolist()


def test_a_wrong_answer_that_was_noticed_leaves_no_version_behind() -> None:
    """Number 0 runs at a wrong adapter while that is swapped; its second try sees one version, the new one."""
    window = WRONG_ONCE | {"detector": {"checks": 1.0, "retries": 1}}
    rows, rollouts = [(0.0, 0, 1, 60), (1000.0, 0, 1, 2)], [{"strategy": "in-place", "at": "500 ms"}]
    served, retried = (requests_of(replayed(rows, rollouts=rollouts, faults=[each])) for each in (WRONG_ONCE, window))
    names = ("version", "last_version", "tokens_before")
    assert served["first_token_s"][0] < 0.5 < served["finished_s"][0] - GRID, "it did run through the swap"
    assert [int(served[name][0]) for name in names] == [0, 0, 0], "no version of its own adapter answered"
    assert not served["marks"][0] & MIXED
    assert [int(retried[name][0]) for name in names] == [2, 2, 0]
    assert retried["marks"][0] == MISROUTED | WRONG_LOAD | WRONG_DETECTED | RETRIED


def test_each_try_has_its_own_luck() -> None:
    fault = {"kind": "misrouting", "probability": 0.5, "detector": {"checks": 1.0, "retries": 40}}
    requests = requests_of(quick(2000, "1/s", faults=[fault]))
    assert set(requests["status"].tolist()) == {COMPLETED}
    tries = Counter(requests["tries"].tolist())
    for again in range(5):  # geometric
        expected = 2000 * 0.5 ** (again + 1)
        assert abs(tries[again] - expected) < 4 * (expected * (1 - expected / 2000)) ** 0.5


def test_each_router_follows_the_old_map_until_it_hears_of_the_new_one() -> None:
    fault = {
        "kind": "stale-map",
        "share": 1.0,
        "at": "10 s",
        "propagation": {"law": "uniform", "low": "5 s", "high": "60 s"},
    }
    scenario = quick(2000, "20/s", router={"instances": 4}, faults=[fault])
    recording = run(scenario)
    requests = recording.requests
    routers = RouterInstances(4, scenario.run.seed, 0)
    plain = [Request(index, 0.0, 0, 1, 1) for index in range(2000)]
    for request in plain:
        request.session = None
    through = np.array([routers.of(request) for request in plain])
    wrong, arrival_s = (requests["marks"] & MISROUTED) > 0, requests["arrival_s"]
    heard = []
    for router in range(4):
        times = arrival_s[(through == router) & wrong]
        right = arrival_s[(through == router) & ~wrong]
        assert not np.any((right >= 10) & (right <= times.max())), "one time, from which on all is right"
        heard.append(float(right[right > 10].min()))
        assert times.min() >= 10
        assert right[right > 10].min() >= 15
    assert max(heard) - min(heard) > 5, "each in its own time; a router's next request comes after 0.2 s"
    (over,) = (event.time_s for event in recording.events if event.kind == "over")
    assert arrival_s[wrong].max() < over <= min(70, max(heard))


def test_a_request_that_hung_at_a_dead_replica_asks_for_its_own_adapter_again() -> None:
    crash = {"kind": "crash", "replica": 0, "at": parts.seconds(GRID), "down": "2 s", "detected": "1 s"}
    wrong = WRONG_ONCE | {"at": parts.seconds(2 * GRID)}
    recording, table = small([(0.0, 0, 1, 1), (2 * GRID, 1, 1, 2), (1000.0, 2, 1, 1)], [crash, wrong])
    assert table["marks"] == [REROUTED, REROUTED | MISROUTED, 0]
    assert table["status"] == [COMPLETED] * 3
    assert recording.loads["adapter"].tolist() == [0, 0, 1, 2], "never that to which it was led"


@pytest.mark.parametrize("strategy", ["new-name", "in-place"])
def test_a_request_that_was_lost_asks_for_its_own_adapter_again(strategy: str) -> None:
    scenario = parts.build(
        workload={"requests": 50, "arrivals": {"process": "poisson", "rate": "1/s"}},
        adapters={"count": 9},
        fleet={"profile": parts.write_profile(STEP), "kv_tokens": 8192},
        rollouts=[{"strategy": strategy, "at": "0 s"}],
        faults=[{"kind": "base-model", "probability": 0.5}, {"kind": "misrouting", "probability": 0.5}],
    )
    fleet = assemble(build_world(scenario), 0, 1).fleet
    dispatcher = fleet.dispatcher
    for each in dispatcher.extensions:
        each.start(dispatcher)
    reached = Counter[bool]()
    for index in range(50):
        request = Request(index, 0.0, index % 9, 1, 1, 0.25, 0.125)
        request.session = None
        for each in dispatcher.extensions:
            assert each.receive(request)
        reached[request.adapter == index % 9] += 1
        fresh = dispatcher.fresh_copy(request)
        assert (fresh.adapter, fresh.load_s, fresh.host_load_s) == (index % 9, 0.25, 0.125)
    assert reached[False] > 20


SWAP_AND_PREFIXES: dict[str, Any] = {
    "rollouts": [{"strategy": "in-place", "at": "5.5 s"}],
    "faults": [{"kind": "named-prefixes", "share": 1.0, "lifetime": "3 s"}],
}


def test_old_prefixes_last_as_long_as_they_are_kept() -> None:
    """One request a second; the swap is at 5.5 s, and prefixes are kept for three seconds."""
    rows = [(float(second), 0 if second != 7 else 1, 1, 2) for second in range(12)]
    requests = requests_of(replayed(rows, **SWAP_AND_PREFIXES))
    found = np.flatnonzero(requests["marks"] & OLD_PREFIX).tolist()
    assert found == [6, 8], "number 7 asks for an adapter that had never answered here"


def test_sessions_see_no_versions_of_adapters_that_they_never_asked_for() -> None:
    """Half the answers come from another adapter, one of which gets a new version."""
    scenario = quick(
        1000,
        "10/s",
        workload={"sessions": {"requests": 4, "gap_median": "5 s", "gap_sigma": 1.0}},
        adapters={"count": 5},
        cache={"gpu": {"slots": 10}},
        fleet={"service": parts.fixed_time(0.02)},
        rollouts=[{"strategy": "in-place", "at": "50 s", "adapter": 0}],
        faults=[{"kind": "misrouting", "probability": 0.5}],
    )
    requests = requests_of(scenario)
    wrong = (requests["marks"] & WRONG_SERVED) > 0
    assert 400 < wrong.sum() < 600
    assert (requests["version"] == 0).tolist() == wrong.tolist() == (requests["last_version"] == 0).tolist()
    others = requests["adapter"] != 0
    assert set(requests["version"][others & ~wrong].tolist()) == {1}
    assert sessions_of_both({name: column[others] for name, column in requests.items()}) == (0, 0)
    assert sessions_of_both(requests)[0] > 0


def test_old_prefixes_grow_old_from_the_last_answer_of_the_old_version() -> None:
    """Adapter 0 answers until 2 s and is evicted for adapter 1; its new version is first loaded at 8 s."""
    asked = {0: 0, 1: 0, 2: 0, 3: 1, 4: 1, 8: 0, 9: 0}
    rows = [(float(s), a, 1, 2) for s, a in asked.items()]
    scenario = replayed(rows, adapters={"count": 2, "size": "1 MiB"}, cache={"gpu": {"slots": 1}}, **SWAP_AND_PREFIXES)
    requests = requests_of(scenario)
    assert requests["version"].tolist() == [1, 1, 1, 1, 1, 2, 2]
    assert not np.any(requests["marks"] & OLD_PREFIX)
    longer = scenario.model_copy(update={"faults": (scenario.faults[0].model_copy(update={"lifetime": 6.5}),)})
    found = requests_of(longer)["marks"] & OLD_PREFIX
    assert np.flatnonzero(found).tolist() == [5], "8 s is within 6.5 s of the answer at 2 s, and 9 s isn't"


@pytest.mark.parametrize(
    "fault",
    [
        {"kind": "misrouting", "probability": 0.0},
        {"kind": "base-model", "probability": 0.5, "lasts": "0 s"},
        {"kind": "storage-stall", "at": "2 s", "lasts": "0 s"},
        {"kind": "failing-loads", "probability": 0.0},
        {"kind": "slow-storage", "at": "2 s", "lasts": "0 s", "factor": 9.0},
    ],
)
def test_a_fault_that_never_happens_changes_nothing(fault: dict[str, object]) -> None:
    rows = [(float(second), second % 3, 1, 2) for second in range(12)]
    given = {"adapters": {"count": 3, "size": "1 MiB"}, "cache": {"gpu": {"slots": 1}}}
    healthy, broken = (run(replayed(rows, **given, faults=faults)) for faults in ([], [fault]))
    assert broken.events == []
    for name in ("finished_s", "load_wait_s", "marks", "status"):
        assert broken.requests[name].tolist() == healthy.requests[name].tolist()
