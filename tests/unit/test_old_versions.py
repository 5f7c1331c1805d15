"""Old and new versions in every cache, if new ones have their own names."""

from __future__ import annotations

from typing import Any

import pytest
from strategies import build, fixed_time, poisson

from sim.policies.adapter_cache import ABSENT, RESIDENT
from sim.results.records import COMPLETED, Recording
from sim.spec.scenario import Scenario
from sim.traffic.request import FROM_HOST, FROM_STORAGE
from sim.world.build import build_world
from sim.world.fleet import Fleet
from sim.world.replication import assemble

COUNT = 20


def new_names(rollout: dict[str, Any] | None = None, **sections: Any) -> Scenario:
    workload = poisson(1500, "20/s", 100, 20, popularity={"law": "uniform"})
    return build(
        workload=workload,
        adapters={"count": COUNT, "size": "1 MB"},
        cache=sections.pop("cache", {}),
        storage={"load": fixed_time(0.02), "host_load": fixed_time(0.002)},
        rollouts=[{"strategy": "new-name", "at": "30 s", **(rollout or {})}],
        **sections,
    )


def run(scenario: Scenario) -> tuple[Fleet, Recording]:
    world = build_world(scenario)
    fleet = assemble(world, 0, 1).fleet
    recording = fleet.run(world.traffic.chunks(0))
    assert all(recording.requests["status"] == COMPLETED)
    for server in fleet.servers:
        server.check_integrity()
    return fleet, recording


CACHES: dict[str, dict[str, Any]] = {
    "continuous": {"gpu": {"slots": 64}},
    "vllm-0.32": {"gpu": {"slots": 64}, "host": {"slots": 64}},
    "sglang": {"host": {"fill": "arrival"}},
    "tensorrt-llm": {},
    "lorax": {},
}


@pytest.mark.parametrize("engine", CACHES)
def test_old_versions_leave_every_cache(engine: str) -> None:
    fleet, recording = run(new_names(cache=CACHES[engine], fleet={"engine": engine}))
    assert "complete" in [event.kind for event in recording.events]
    for server in fleet.servers:
        old = range(COUNT)
        assert all(server.cache.state[adapter] == ABSENT for adapter in old)
        assert not any(server.copies.exist(adapter) for adapter in old)


@pytest.mark.parametrize("engine", ["sglang", "s-lora"])
def test_a_new_name_comes_from_storage_at_first_though_all_are_in_host_memory_from_the_start(engine: str) -> None:
    cache = {"host": {"fill": "start"}} if engine == "sglang" else {}
    _, recording = run(new_names(cache=cache, fleet={"engine": engine}))
    loads = recording.loads
    for adapter in range(COUNT):
        assert set(loads["tier"][loads["adapter"] == adapter].tolist()) <= {FROM_HOST}
    for copy in range(COUNT, 2 * COUNT):
        tiers = loads["tier"][loads["adapter"] == copy].tolist()
        assert tiers[0] == FROM_STORAGE
        assert set(tiers[1:]) <= {FROM_HOST}


@pytest.mark.parametrize("keep_old", [False, True])
@pytest.mark.parametrize("fill", ["", "load", "arrival"])
def test_a_pin_goes_over_to_the_new_version(fill: str, keep_old: bool) -> None:
    cache: dict[str, Any] = {"gpu": {"slots": 8}, "pinned": 4}
    if fill:
        cache["host"] = {"fill": fill}
    if fill == "load":
        cache["host"]["slots"] = 30
    fleet, recording = run(new_names({"keep_old": keep_old}, cache=cache))
    complete_s = next(event.time_s for event in recording.events if event.kind == "complete")
    pinned = [adapter for adapter in range(COUNT) if adapter not in recording.loads["adapter"].tolist()]
    assert len(pinned) == 4, "these were never loaded"
    (server,) = fleet.servers
    for adapter in pinned:
        new = adapter + COUNT
        assert (server.cache.state[adapter] == RESIDENT) <= keep_old
        assert (server.cache.state[new], server.cache.users[new]) == (RESIDENT, 1)
        started_s = recording.loads["started_s"][recording.loads["adapter"] == new]
        assert sum(started_s > complete_s) <= 1 + (fill == "arrival"), "once loaded, it stays"


@pytest.mark.parametrize("eviction", ["fifo", "clock", "lfu", "sieve", "s3-fifo", "gdsf", "random", "refcount-score"])
@pytest.mark.parametrize("keep_old", [False, True])
def test_every_eviction_policy_takes_in_who_was_pinned(eviction: str, keep_old: bool) -> None:
    second = {"strategy": "new-name", "at": "50 s", "keep_old": keep_old}
    scenario = new_names({"keep_old": keep_old}, cache={"gpu": {"slots": 8}, "pinned": 4, "eviction": eviction})
    dumped = scenario.model_dump(mode="json", by_alias=True, exclude_unset=True)
    fleet, _ = run(Scenario.model_validate(dumped | {"rollouts": [*dumped["rollouts"], second]}))
    newest = [adapter for adapter in range(2 * COUNT, 3 * COUNT) if fleet.servers[0].cache.users[adapter]]
    assert len(newest) == 4


def test_a_fresh_replica_begins_with_the_pinned_new_versions() -> None:
    crash = {"kind": "crash", "replica": 0, "at": "50 s", "down": "1 s"}
    fleet, recording = run(new_names(cache={"gpu": {"slots": 8}, "pinned": 4}, fleet={"replicas": 2}, faults=[crash]))
    pinned = [adapter for adapter in range(COUNT) if adapter not in recording.loads["adapter"].tolist()]
    late = recording.loads["started_s"] > 51
    here = recording.loads["adapter"][late & (recording.loads["replica"] == 0)].tolist()
    assert not set(here) & {adapter + COUNT for adapter in pinned}
    assert all(fleet.servers[0].cache.state[adapter + COUNT] == RESIDENT for adapter in pinned)
