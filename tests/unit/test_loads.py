"""Loads that block steps, at instants that can be computed by hand, and loads that no request started."""

from __future__ import annotations

from typing import Any

import pytest
from strategies import GRID, build, fixed_time, write_profile, write_trace

from sim.results.records import Recording
from sim.spec.scenario import Scenario
from sim.studies.evaluate import EvaluationOptions, evaluate_scenario
from sim.traffic.request import DELAYED_HIT, FROM_GPU, FROM_HOST, FROM_STORAGE, HIT, MISS
from sim.world.build import build_world
from sim.world.replication import simulate
from sim.world.rollouts.versions import DuplicateVersionBytes
from sim.world.times import ReplicaDraws, reload_times, tier_times

D = GRID
"""Seconds of every step, whatever it does. A load takes three of them."""


def scenario_of(rows: list[tuple[float, int, int, int]], **sections: Any) -> Scenario:
    """One replica with two adapters; rows give arrivals in steps, adapters, prompt and output tokens."""
    scenario: Scenario = build(
        workload={"trace": {"file": write_trace([(at * D, *rest) for at, *rest in rows])}},
        adapters={"count": 2, "size": "1 MiB"},
        fleet={
            "profile": write_profile({"fixed_s": D, "tokens": [[0, 0.0], [64, 0.0]]}),
            "max_num_seqs": 8,
            "max_num_batched_tokens": 64,
            "block_size": 16,
            "kv_tokens": 16384,
            **sections.pop("fleet", {}),
        },
        storage={"load": fixed_time(3 * D), **sections.pop("storage", {})},
        **sections,
    )
    return scenario


def run(rows: list[tuple[float, int, int, int]], **sections: Any) -> Recording:
    return simulate(build_world(scenario_of(rows, **sections)), 0, 1)


@pytest.mark.parametrize("eviction", ["lru", "vllm-lru"])
def test_requests_without_their_adapter_wait_for_all_loads_of_their_step(eviction: str) -> None:
    # Two requests for adapter 0 and one for adapter 1 join at once; one for adapter 0 joins later and finds it.
    rows = [(0.0, 0, 8, 20), (0.0, 0, 8, 20), (0.0, 1, 8, 20), (12.5, 0, 8, 1)]
    cache = {"gpu": {"slots": 2}, "eviction": eviction}
    recording = run(rows, storage={"mode": "blocking"}, cache=cache, fleet={"load_at": "admission"})
    requests = recording.requests
    assert requests["outcome"].tolist() == [MISS, DELAYED_HIT, MISS, HIT]
    assert requests["tier"].tolist() == [FROM_STORAGE] * 3 + [FROM_GPU]
    assert (requests["load_wait_s"] / D).tolist() == [6, 6, 6, 0]
    assert (requests["load_queue_s"] / D).tolist() == [0, 0, 0, 0]
    assert (requests["first_token_s"] / D).tolist() == [7, 7, 7, 14]


@pytest.mark.parametrize(("storage", "seconds"), [({"mode": "blocking"}, 3 + 3 + 5 * 2), ({"mode": "overlap"}, 3 + 3)])
def test_copies_from_host_memory_count_as_loading_where_they_block_steps(storage: dict[str, Any], seconds: int) -> None:
    """Adapters take turns in one slot: two loads from storage, then copies of two steps each, one every ten steps."""
    scenario = scenario_of(
        [(10.0 * place, place % 2, 8, 1) for place in range(8)],
        storage={"host_load": fixed_time(2 * D), **storage},
        cache={"gpu": {"slots": 1}, "host": {"slots": 2}},
        fleet={"load_at": "admission"},
    )
    point = evaluate_scenario(scenario, EvaluationOptions()).point
    assert point.metrics["loader_utilization"].value == pytest.approx(seconds / 70)  # up to the last arrival
    assert point.capacity.loader.storage == pytest.approx(6 / 70), "only this would more host memory save"
    assert point.capacity.loader.offered_load == pytest.approx(seconds / 70, rel=0.3), "the last load begins later"


def test_where_host_memory_fills_ahead_the_busier_of_loaders_and_steps_counts() -> None:
    rows = [(10.0 * place, place % 2, 8, 1) for place in range(8)]
    sections: dict[str, Any] = {
        "cache": {"gpu": {"slots": 1}, "host": {"slots": 2, "fill": "arrival"}},
        "fleet": {"load_at": "admission"},
    }
    for host_load, seconds in ((2, 7 * 2), (0.5, 2 * 3)):
        storage = {"mode": "blocking", "host_load": fixed_time(host_load * D)}
        point = evaluate_scenario(scenario_of(rows, storage=storage, **sections), EvaluationOptions()).point
        assert point.metrics["loader_utilization"].value == pytest.approx(seconds / 70)


# Loads that no request started, and the memory of several versions of one adapter


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
