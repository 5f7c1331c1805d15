"""Caches that start as in the steady state (``cache.warm: steady``): full, with the adapters that were used last."""

from __future__ import annotations

from collections import Counter
from typing import Any

import pytest
from strategies import build, fixed_time, poisson, run, write_profile, write_trace

from sim.policies.adapter_cache import ABSENT
from sim.spec.scenario import Scenario
from sim.world.build import build_world
from sim.world.replication import SteadyStart, assemble
from sim.world.times import ReplicaDraws

SKEWED = {"law": "zipf", "exponent": 1.0}
SLOTS, COPIES, ADAPTERS = 4, 9, 20


def steady(cache: dict[str, Any] | None = None, fleet: dict[str, Any] | None = None, **sections: Any) -> Scenario:
    profile = write_profile({"fixed_s": 0.001})
    return build(
        workload=poisson(200, "5/s", 4, 4, popularity=SKEWED) | sections.pop("workload", {}),
        adapters={"count": ADAPTERS, "size": "1 MiB"} | sections.pop("adapters", {}),
        cache={"gpu": {"slots": SLOTS}, "warm": "steady"} | (cache or {}),
        storage={"load": fixed_time(0.01), "host_load": fixed_time(0.005)} | sections.pop("storage", {}),
        fleet={"profile": profile, "kv_tokens": 2**14} | (fleet or {}),
        **sections,
    )


def resident(scenario: Scenario, replica: int = 0, replication: int = 0) -> list[int]:
    server = assemble(build_world(scenario), replication, 1).fleet.servers[replica]
    return [adapter for adapter, state in enumerate(server.cache.state[:ADAPTERS]) if state != ABSENT]


def copies(scenario: Scenario) -> list[int]:
    """Return the adapters that a replica needs not read from storage."""
    server = assemble(build_world(scenario), 0, 1).fleet.servers[0]
    tiers = [server.cache, server.intake.host]
    return [adapter for adapter in range(ADAPTERS) if any(tier.holds(adapter) for tier in tiers)]


@pytest.mark.parametrize(
    ("fleet", "cache", "there"),
    [
        ({"engine": "continuous", "load_at": "admission"}, {"host": {"slots": COPIES}}, SLOTS),
        ({"engine": "continuous", "load_at": "arrival"}, {"host": {"slots": COPIES}}, SLOTS),
        ({"engine": "continuous", "load_at": "admission"}, {"prefetch": "queued", "host": {"slots": COPIES}}, SLOTS),
        ({"engine": "continuous"}, {"gpu": {"size": "4 MiB"}, "host": {"size": "9 MiB"}}, SLOTS),
        ({"engine": "continuous"}, {"host": {"slots": COPIES, "fill": "arrival"}}, SLOTS),
        ({"engine": "vllm"}, {"host": {"slots": COPIES}}, SLOTS),
        ({"engine": "sglang"}, {"host": {"slots": COPIES}}, SLOTS - 1),  # the base model has one of its own
        ({"engine": "lorax"}, {"gpu": {"slots": SLOTS}, "host": {"slots": COPIES}}, 0),  # adapters come at their turn
    ],
)
def test_gpu_and_host_memory_start_full(fleet: dict[str, Any], cache: dict[str, Any], there: int) -> None:
    scenario = steady(cache, fleet)
    assert len(resident(scenario)) == there
    assert len(copies(scenario)) == COPIES
    assert set(resident(scenario)) <= set(copies(scenario))
    recording = run(scenario)
    assert len(recording.requests["outcome"]) == 200


def test_without_host_memory_the_slots_alone_start_full() -> None:
    assert len(resident(steady(fleet={"engine": "continuous"}))) == SLOTS


def test_pinned_adapters_keep_their_places() -> None:
    there = resident(steady({"pinned": 2}, {"engine": "continuous"}))
    assert {0, 1} < set(there)
    assert len(there) == SLOTS


def test_the_last_used_adapter_is_one_that_a_request_would_ask_for() -> None:
    """With Zipf's law over three adapters, the shares are 6, 3 and 2 of 11."""
    world = build_world(steady(adapters={"count": 3}))
    start = SteadyStart(world.pools[0], world, 0)
    orders = [start.last_used(0, ReplicaDraws(1, replication, 0)) for replication in range(2000)]
    first = Counter(order[0] for order in orders)
    second = Counter(order[1] for order in orders if order[0] == 0)
    assert first[0] / 2000 == pytest.approx(6 / 11, abs=0.034)  # three standard errors
    assert first[1] / 2000 == pytest.approx(3 / 11, abs=0.030)
    assert second[1] / second.total() == pytest.approx(3 / 5, abs=0.045)


def test_all_designs_and_costs_share_the_past_and_replications_differ() -> None:
    few, more = steady(), steady({"gpu": {"slots": 8}})
    assert set(resident(few)) < set(resident(more))
    assert len({tuple(resident(few, replication=number)) for number in range(8)}) > 1


@pytest.mark.parametrize("router", ["hash", "affinity-residency", "service-per-adapter"])
def test_a_router_that_splits_adapters_finds_each_of_them_on_one_replica(router: str) -> None:
    scenario = steady({"gpu": {"slots": ADAPTERS}}, {"engine": "continuous", "replicas": 3}, router={"policy": router})
    there = [adapter for replica in range(3) for adapter in resident(scenario, replica)]
    assert sorted(there) == list(range(ADAPTERS))
    if router == "service-per-adapter":  # which sends requests home whatever the load
        assert len(run(scenario).loads["adapter"]) == 0


def test_a_trace_warms_only_adapters_that_it_asks_for() -> None:
    rows = [(float(i), i % 3, 4, 4) for i in range(60)]
    scenario = build(
        workload={"trace": {"file": write_trace(rows)}},
        adapters={"count": ADAPTERS, "size": "1 MiB"},
        cache={"gpu": {"slots": SLOTS}, "warm": "steady"},
        storage={"load": fixed_time(0.01)},
        fleet={"engine": "continuous", "profile": write_profile({"fixed_s": 0.001}), "kv_tokens": 4096},
    )
    assert resident(scenario) == [0, 1, 2]
    assert len(run(scenario).loads["adapter"]) == 0


def test_a_short_run_has_the_miss_ratio_of_a_long_one() -> None:
    """The first hundred requests, against the rest of a long run; a cold start misses more."""

    def misses(warm: Any) -> tuple[float, float]:
        scenario = steady(
            {"gpu": {"slots": 60}, "warm": warm},
            {"engine": "continuous", "load_at": "arrival"},
            adapters={"count": 400},
            workload={"requests": 4000},
        )
        found = run(scenario).requests["outcome"] == 2
        return float(found[:200].mean()), float(found[1000:].mean())

    early, late = misses("steady")
    cold, _ = misses(0)
    assert early == pytest.approx(late, abs=0.1)  # three standard errors of 200 requests
    assert cold > late + 0.1
