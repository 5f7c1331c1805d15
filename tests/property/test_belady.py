"""Eviction ``belady``: what it knows of the requests to come, where many arrive at one instant or wait in a queue."""

from __future__ import annotations

import random
from typing import Any

import numpy as np
import pytest
from naive import TwinFleet
from strategies import GRID, build, fixed_time, write_profile, write_trace
from test_leaping import compare

from sim.spec.scenario import Scenario
from sim.traffic.request import HIT, MISS, Request
from sim.world.build import build_world
from sim.world.foresight import ArrivalOracle, ReplicaOracle
from sim.world.replication import simulate


def bursts(seed: int, eviction: str, *, load_at: str | None, seats: int, count: int = 40) -> Scenario:
    """20 requests at one instant, 40 ticks apart, for 40 adapters of which 8 fit; ``load_at`` None: loads block."""
    rng = random.Random(seed)
    popularity = [1 / place for place in range(1, 41)]
    rows = [
        (burst * 40 * GRID, adapter, 1, rng.choice((1, 2, 5, 20)))
        for burst in range(count)
        for adapter in rng.choices(range(40), popularity, k=20)
    ]
    fleet: dict[str, Any] = {"profile": write_profile({"fixed_s": GRID}), "kv_tokens": 40960, "max_num_seqs": seats}
    storage: dict[str, Any] = {"load": fixed_time(GRID)}
    if load_at is None:
        storage["mode"] = "blocking"
    else:
        fleet["load_at"] = load_at
    return build(
        workload={"trace": {"file": write_trace(rows)}},
        adapters={"count": 40, "size": "1 MiB"},
        fleet=fleet,
        cache={"gpu": {"slots": 8}, "eviction": eviction},
        storage=storage,
    )


@pytest.mark.parametrize("load_at", ["arrival", "admission", None])
@pytest.mark.parametrize("seed", range(4))
def test_nobody_misses_less_on_bursts(seed: int, load_at: str | None) -> None:
    def missed(eviction: str) -> tuple[int, int]:
        scenario = bursts(seed, eviction, load_at=load_at, seats=4)
        outcome = simulate(build_world(scenario), 0, 1).requests["outcome"]
        return int((outcome == MISS).sum()), int((outcome != HIT).sum())

    misses, others = missed("belady"), [missed(eviction) for eviction in ("lru", "fifo", "lfu", "sieve")]
    assert misses[0] < min(other[0] for other in others)
    assert misses[1] < min(other[1] for other in others)


@pytest.mark.parametrize(("load_at", "seats"), [("arrival", 4), ("admission", 4), ("admission", 32), (None, 4)])
def test_bursts_go_as_they_go_step_by_step(load_at: str | None, seats: int) -> None:
    compare(bursts(7, "belady", load_at=load_at, seats=seats, count=6), TwinFleet)


def requests_of(adapters: list[int]) -> list[Request]:
    return [Request(index, 0.0, adapter, 1, 1) for index, adapter in enumerate(adapters)]


def foresight_of(adapters: list[int], replicas: int = 1) -> list[ReplicaOracle]:
    future = ArrivalOracle([(np.zeros(len(adapters)), np.array(adapters, dtype=np.int64))], max(adapters) + 2)
    return [ReplicaOracle(future) for _ in range(replicas)]


def test_a_request_comes_next_until_it_was_admitted() -> None:
    (seen,), (first, second) = foresight_of([0, 1, 0, 0]), requests_of([0, 1])
    assert [seen.next_use(adapter) for adapter in (0, 1, 2)] == [0, 1, np.inf]
    seen.arrived(first)
    seen.arrived(second)
    assert (seen.next_use(0), seen.come()) == (0, 2), "it waits, though others have come since"
    first.admitted_s = 0.0
    assert seen.next_use(0) == 2
    assert seen.next_use(1) == 1


def test_of_several_that_wait_any_may_be_admitted_first() -> None:
    (seen,), waiting = foresight_of([0, 0, 0, 0]), requests_of([0, 0, 0])
    for request in waiting:
        seen.arrived(request)
    waiting[1].admitted_s = 0.0
    assert seen.next_use(0) == 0
    waiting[0].admitted_s = 0.0
    assert seen.next_use(0) == 2
    seen.lost(waiting[2])
    assert seen.next_use(0) == 3


def test_a_request_that_went_elsewhere_is_no_use_here() -> None:
    (here, there), (first, _) = foresight_of([0, 0], replicas=2), requests_of([0, 0])
    there.arrived(first)
    assert here.next_use(0) == 1
    assert there.next_use(0) == 0
    assert here.come() == 1
