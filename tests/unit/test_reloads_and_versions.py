"""Loads that no request started, and memory that several versions of one adapter take, by hand."""

from __future__ import annotations

import pytest
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


def test_a_slower_disk_takes_longer_for_every_byte() -> None:
    sections = {
        "workload": {"requests": 10, "arrivals": {"process": "poisson", "rate": "1/s"}},
        "adapters": {"count": 2, "size": "100 MB"},
        "fleet": {"profile": "h100-64gb/llama-3.1-8b/vllm-0.8.5"},
    }
    slow, slower = (build(**sections, storage={"bandwidth": rate}) for rate in ("200 MB/s", "100 MB/s"))
    pools = [build_world(scenario).pools[0] for scenario in (slow, slower)]
    storage, host = zip(*(tier_times(pool.scenario, pool.profile, pool.population) for pool in pools), strict=True)
    assert storage[1].mean_s(0) - storage[0].mean_s(0) == pytest.approx(0.5)
    assert host[0].mean_s(0) == host[1].mean_s(0)
    profile = pools[0].profile
    assert profile is not None
    assert {draw.load.storage.bandwidth_bytes_per_s for draw in profile.draws} == {200e6}


def test_the_newest_version_is_the_one_that_counts_as_needed() -> None:
    """Adapter 0 of 10 bytes is replaced by version 2 of 30 bytes, which has number 2 in the caches."""
    extra = DuplicateVersionBytes(original=[0, 1, 0], size_bytes=[10, 500, 30], concerned={0})
    for adapter in (0, 1, 2):
        extra.placed(adapter, replica=0)
    assert extra.peak == 10
    extra.left(0, replica=0)
    extra.placed(0, replica=1)
    assert extra.peak == 10, "one version on each replica"
