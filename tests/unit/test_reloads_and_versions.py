"""Loads that no request started, and memory that several versions of one adapter take, by hand."""

from __future__ import annotations

from strategies import build, fixed_time

from sim.traffic.request import FROM_HOST, FROM_STORAGE
from sim.world.build import build_world
from sim.world.rollouts.versions import DuplicateVersionBytes
from sim.world.times import ReplicaDraws, reload_times, tier_times


def test_a_reload_takes_the_time_of_its_tier() -> None:
    scenario = build(
        workload={"requests": 10, "arrivals": {"process": "poisson", "rate": "1/s"}},
        adapters={"count": 8, "rank": 8},
        cache={"eviction": "vllm-lru", "gpu": {"slots": 4}, "host": {"slots": 6}},
        storage={"mode": "blocking", "load": fixed_time(0.125), "host_load": fixed_time(0.005)},
        fleet={"engine": "vllm-0.32"},
        run={"seed": 1},
    )
    world = build_world(scenario)
    seconds = reload_times(
        tier_times(scenario, world.pools[0].profile, world.pools[0].population), ReplicaDraws(1, 0, 0)
    )
    assert [seconds(adapter, tier) for adapter in (0, 7) for tier in (FROM_STORAGE, FROM_HOST)] == [0.125, 0.005] * 2


def test_the_newest_version_is_the_one_that_counts_as_needed() -> None:
    """Adapter 0 of 10 bytes is replaced by version 2 of 30 bytes, which has number 2 in the caches."""
    extra = DuplicateVersionBytes(original=[0, 1, 0], size_bytes=[10, 500, 30], concerned={0})
    for adapter in (0, 1, 2):
        extra.placed(adapter, replica=0)
    assert extra.peak == 10
    extra.left(0, replica=0)
    extra.placed(0, replica=1)
    assert extra.peak == 10, "one version on each replica"
