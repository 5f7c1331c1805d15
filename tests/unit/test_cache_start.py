"""Pinned adapters, warm starts and loads ahead of time: which adapter is where and when, and what is refused."""

from __future__ import annotations

import gc
import tracemalloc
from typing import Any

import numpy as np
import pytest
from strategies import GRID, build, fixed_time, run, write_profile, write_trace

from sim.errors import ScenarioError
from sim.policies.adapter_cache import ABSENT, RESIDENT, GpuCache
from sim.policies.eviction import EvictionContext, make_eviction
from sim.results.records import Recording
from sim.spec.policies import EVICTIONS
from sim.spec.scenario import Scenario
from sim.traffic.request import DELAYED_HIT, FROM_HOST, HIT, MISS
from sim.world.build import build_world
from sim.world.replication import assemble

POLICIES = [name for name in EVICTIONS.names if name != "vllm-lru"]  # which is a whole cache


def ticking(rows: list[tuple[int, int, int]], cache: dict[str, Any], slots: int = 2, **more: Any) -> Scenario:
    """Rows of tick, adapter, output tokens; steps of one tick, one sequence at a time, loads of six ticks."""
    trace = write_trace([(ticks * GRID, adapter, 1, output) for ticks, adapter, output in rows])
    fleet = {"profile": write_profile({"fixed_s": GRID}), "kv_tokens": 4096, "max_num_seqs": 1, "load_at": "admission"}
    return build(
        workload={"trace": {"file": trace}},
        adapters={"count": more.pop("count", 4), "size": "1 MiB"},
        cache={"gpu": {"slots": slots}} | cache,
        storage={"load": fixed_time(6 * GRID)} | more.pop("storage", {}),
        fleet=fleet | more,
    )


def outcomes(recording: Recording) -> list[int]:
    return recording.requests["outcome"].tolist()


def ticks(seconds: Any) -> list[float]:
    return (seconds / GRID).tolist()


ROWS = [(0, 0, 25), (7, 1, 2), (8, 2, 2)]
"""Request 0 loads until 6 and runs until 31; 1 and 2 wait for the one batch slot, each with its own adapter."""


def test_without_prefetch_each_request_loads_when_its_turn_comes() -> None:
    recording = run(ticking(ROWS, {}, slots=3))
    assert outcomes(recording) == [MISS, MISS, MISS]
    assert ticks(recording.loads["started_s"]) == [0, 31, 37]


def test_a_prefetched_adapter_is_a_hit() -> None:
    recording = run(ticking(ROWS, {"prefetch": "queued"}, slots=3))
    assert outcomes(recording) == [MISS, HIT, HIT]
    assert ticks(recording.loads["started_s"]) == [0, 7, 13], "one after the other, since there is one loader"
    assert ticks(recording.requests["admitted_s"]) == [6, 31, 33]


def test_a_request_whose_turn_comes_during_the_prefetch_is_a_delayed_hit() -> None:
    recording = run(ticking([(0, 0, 25), (28, 1, 2)], {"prefetch": "queued"}))
    assert outcomes(recording) == [MISS, DELAYED_HIT]
    assert ticks(recording.requests["admitted_s"]) == [6, 34]
    assert ticks(recording.requests["load_wait_s"]) == [6, 3]


def test_prefetch_leaves_alone_what_others_in_the_queue_wait_for() -> None:
    # Two slots: 0 is in use, and 1 takes the free one. 2 comes when 0 has ended, not in the place of 1.
    recording = run(ticking(ROWS, {"prefetch": "queued"}, slots=2))
    assert outcomes(recording) == [MISS, HIT, DELAYED_HIT]
    assert ticks(recording.loads["started_s"]) == [0, 7, 31]


def test_what_was_loaded_ahead_and_nobody_uses_gives_its_place_to_a_load_that_waits_for_room() -> None:
    # 0 and 1 come to host memory and are driven out of the three slots; 4 is in use from 86 to 166, and one of its two
    # batch slots is free from 105 on. 1 is loaded ahead from host memory (20 ticks) from 87 on; 0 finds that loader
    # busy; 5 is loaded ahead from storage from 103 to 109. At 105 the requests for 1 and 0 are considered and ask, and
    # that for 5 is over the limit. At 107 nothing may leave for 0, at 109 5 may.
    rows = [
        (0, 0, 1),
        (20, 1, 1),
        (40, 2, 1),
        (60, 3, 1),
        (80, 4, 80),
        (80, 4, 19),
        (87, 1, 60),
        (88, 0, 1),
        (103, 5, 1),
    ]
    cache = {"prefetch": "queued", "host": {"slots": 6}}
    slow = {"host_load": fixed_time(20 * GRID)}
    recording = run(ticking(rows, cache, slots=3, count=6, max_num_seqs=2, storage=slow))
    loads = sorted(zip(ticks(recording.loads["started_s"]), recording.loads["adapter"].tolist(), strict=True))
    assert loads[5:8] == [(87, 1), (103, 5), (109, 0)]
    assert recording.loads["tier"].tolist().count(FROM_HOST) >= 2


def test_the_first_use_after_a_warm_start_counts_with_the_load() -> None:
    # 0 is there from the start, and used once; 1 is loaded, and used once. LFU: of as many uses, the first leaves.
    recording = run(ticking([(0, 0, 1), (20, 1, 1), (40, 2, 1), (60, 0, 1)], {"warm": 1, "eviction": "lfu"}))
    assert outcomes(recording) == [HIT, MISS, MISS, MISS]


def test_the_first_use_after_a_prefetch_counts_with_the_load() -> None:
    # 0 is used twice, and 1, loaded ahead from 8 on, once. LFU: 2 drives out 1.
    rows = [(0, 0, 25), (7, 0, 1), (8, 1, 1), (60, 2, 1), (80, 0, 1)]
    recording = run(ticking(rows, {"prefetch": "queued", "eviction": "lfu"}))
    assert ticks(recording.loads["started_s"]) == [0, 8, 60]
    assert outcomes(recording) == [MISS, HIT, HIT, MISS, HIT]


def test_pinned_adapters_never_leave_and_are_no_loads() -> None:
    # The trace asks for 1 most often. One slot is left for the others.
    rows = [(tick * 20, adapter, 1) for tick, adapter in enumerate((0, 1, 1, 2, 1, 3, 1, 0))]
    recording = run(ticking(rows, {"pinned": 1}))
    assert outcomes(recording) == [MISS, HIT, HIT, MISS, HIT, MISS, HIT, MISS]
    assert 1 not in recording.loads["adapter"].tolist()
    assert recording.evictions == 3


@pytest.mark.parametrize("eviction", [name for name in POLICIES if name not in ("cycle", "discard-when-idle")])
def test_a_warm_start_spares_first_misses(eviction: str) -> None:
    rows = [(tick * 20, adapter, 1) for tick, adapter in enumerate((0, 0, 0, 1, 1, 2))]
    recording = run(ticking(rows, {"warm": 2, "eviction": eviction}))
    assert outcomes(recording) == [HIT, HIT, HIT, HIT, HIT, MISS]
    assert recording.loads["adapter"].tolist() == [2]


@pytest.mark.parametrize("eviction", ["lru", "fifo", "clock", "lfu", "lfu-history", "sieve", "s3-fifo", "gdsf"])
def test_of_a_warm_start_the_most_popular_leaves_last(eviction: str) -> None:
    rows = [(tick * 20, adapter, 1) for tick, adapter in enumerate((0, 1, 1, 1, 2, 2))]
    recording = run(ticking(rows, {"warm": 2, "eviction": eviction}))  # 1 and 2; 0 drives out 2
    assert outcomes(recording) == [MISS, HIT, HIT, HIT, MISS, HIT]


def test_warm_adapters_come_up_to_the_first_that_finds_no_room() -> None:
    recording = run(ticking([(0, 0, 1), (20, 1, 1), (40, 2, 1), (60, 3, 1)], {"warm": 4}, slots=2))
    assert outcomes(recording) == [HIT, HIT, MISS, MISS]


def test_pinned_adapters_must_leave_room_in_host_memory_too() -> None:
    with pytest.raises(ScenarioError, match=r"no room for another one in cache\.host"):
        run(ticking(ROWS, {"pinned": 2, "gpu": {"slots": 4}, "host": {"fill": "arrival", "slots": 2}}))


def test_all_adapters_may_be_pinned_where_they_fit() -> None:
    assert outcomes(run(ticking(ROWS, {"pinned": 4}, slots=4))) == [HIT, HIT, HIT]


def test_every_policy_lets_an_adapter_be_taken_out_by_name() -> None:
    for name in POLICIES:
        cache = GpuCache([1, 1], 2, make_eviction(name, EvictionContext([1, 1], 2, rng=np.random.default_rng(1))))
        cache.warm_up([0, 1])
        cache.evict(0)
        assert cache.state == [ABSENT, RESIDENT]
        cache.check_integrity()


def replica_bytes(replicas: int, adapters: int) -> int:
    """Memory that the replicas of a vLLM fleet take before the first request."""
    scenario = build(
        workload={"requests": 10, "arrivals": {"process": "poisson", "rate": "1/s"}},
        adapters={"count": adapters, "base_model": "llama-3.1-8b"},
        cache={"gpu": {"slots": 8}, "host": {"slots": 16}},
        fleet={"gpu": "h100-64gb", "engine": "vllm", "replicas": replicas},
        router={"policy": "least-loaded"},
    )
    world = build_world(scenario)
    gc.collect()
    tracemalloc.start()
    try:
        replication = assemble(world, 0, 1)
        assert len(replication.fleet.servers) == replicas
        return tracemalloc.get_traced_memory()[0]
    finally:
        tracemalloc.stop()


def test_a_replica_takes_few_bytes_for_an_adapter_that_it_never_sees() -> None:
    """What grows with replicas and adapters together: 256 replicas of 200,000 adapters must fit into a laptop."""
    replicas, adapters = 4, 4000
    grows = [replica_bytes(r, a) for r in (replicas, 2 * replicas) for a in (adapters, 2 * adapters)]
    assert (grows[3] - grows[2] - grows[1] + grows[0]) / (replicas * adapters) < 28
