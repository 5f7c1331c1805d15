"""A way of serving adapters that loraplan doesn't have: the seam of ``AdapterMode`` must carry it as it is.

Adapters of low and of high rank have a cache and loaders of their own, so that the large ones never evict a small one.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
from strategies import build, fixed_time

from sim.policies.adapter_cache import ABSENT, AdapterCache, GpuCache
from sim.policies.admission import ReadyQueue
from sim.policies.eviction import EvictionContext
from sim.policies.eviction.ranked import Lru
from sim.policies.host_tier import HostTier
from sim.policies.scheduler import Scheduler
from sim.results.records import COMPLETED
from sim.spec.scenario import Scenario
from sim.traffic.request import Request
from sim.world.build import build_world
from sim.world.replica.modes.adapter_mode import AdapterMode, ModeParts
from sim.world.replica.modes.protected import LoadsAtArrival
from sim.world.replica.ports import LoadContext, Replica
from sim.world.replication import Replication, assemble
from sim.world.world import Pool, World


class RankClassCaches(AdapterCache):
    """Two caches side by side, each with the adapters of one class."""

    def __init__(self, caches: Sequence[GpuCache], class_of: Sequence[int]) -> None:
        self.caches, self.class_of = caches, class_of
        self.capacity = sum(cache.capacity for cache in caches)
        self.state, self.users, self.listener = [ABSENT] * len(class_of), [0] * len(class_of), None

    @property
    def evictions(self) -> int:  # type: ignore[override]
        return sum(cache.evictions for cache in self.caches)

    @property
    def in_use_peak(self) -> int:  # type: ignore[override]
        return sum(cache.in_use_peak for cache in self.caches)

    def of(self, adapter: int) -> GpuCache:
        return self.caches[self.class_of[adapter]]

    def serve_base_model(self) -> int:
        raise NotImplementedError

    def warm_up(self, adapters: Sequence[int]) -> None:
        for adapter in adapters:
            self.of(adapter).warm_up([adapter])

    def acquire(self, adapter: int) -> bool:
        return self.of(adapter).acquire(adapter)

    def release(self, adapter: int) -> bool:
        return self.of(adapter).release(adapter)

    def can_claim(self, adapter: int) -> bool:
        return self.of(adapter).can_claim(adapter)

    def holds(self, adapter: int) -> bool:
        return self.of(adapter).holds(adapter)

    def discard(self, adapter: int) -> None:
        self.of(adapter).discard(adapter)

    def check_integrity(self) -> None:
        for cache in self.caches:
            cache.check_integrity()


class RankClasses(AdapterMode):
    """Each class of ranks is served like ``loads-at-arrival``, from a cache of its own."""

    def __init__(self, parts: Sequence[ModeParts], class_of: Sequence[int]) -> None:
        self.classes = [LoadsAtArrival(each) for each in parts]
        cache = RankClassCaches([each.cache for each in parts], class_of)
        super().__init__(cache, HostTier(), ReadyQueue(), parts[0].context, loads_in_steps=False)
        self.class_of = class_of

    def attach(self, replica: Replica) -> None:
        for each in self.classes:
            each.attach(replica)

    def take_in(self, request: Request, may_join_now: bool) -> None:
        self.classes[self.class_of[request.adapter]].take_in(request, may_join_now)

    def room_appeared(self) -> None:
        for each in self.classes:
            each.room_appeared()

    def before_step(self, batch: Scheduler, now: float) -> float:
        return 0.0


SMALL, LARGE = 8, 64


def scenario_of(**cache: Any) -> Scenario:
    mix = [{"share": "50%", "rank": SMALL}, {"share": "50%", "rank": LARGE}]
    return build(
        workload={"requests": 600, "arrivals": {"process": "poisson", "rate": "30/s"}},
        adapters={"count": 40, "mix": mix},
        fleet={"kv_tokens": 65536, "max_num_seqs": 64},
        cache=cache or {"gpu": {"slots": 16}},
        storage={"load": fixed_time(0.02)},
        run={"warmup": 0},
    )


def run(world: World, class_of: list[int], slots: Sequence[int], patch: pytest.MonkeyPatch) -> tuple[Replication, Any]:
    """Simulate with caches of these sizes, one for each class of adapters."""

    def make_mode(pool: Pool, context: LoadContext, *others: object) -> AdapterMode:
        count = len(pool.population)
        caches = [GpuCache([1] * count, size, Lru(EvictionContext([1] * count, size))) for size in slots]
        return RankClasses([ModeParts(cache, HostTier(), (1, 1), context) for cache in caches], class_of)

    patch.setattr("sim.world.replication.make_mode", make_mode)
    replication = assemble(world, 0, 1)
    return replication, replication.fleet.run(world.traffic.chunks(0))


@pytest.mark.interpreted  # a compiled caller does not look the name up
def test_one_class_of_all_adapters_is_the_mode_that_it_is_made_of(monkeypatch: pytest.MonkeyPatch) -> None:
    world = build_world(scenario_of())
    ours = assemble(world, 0, 1).fleet.run(world.traffic.chunks(0))
    _, theirs = run(world, [0] * 40, [16], monkeypatch)
    assert {name: column.tolist() for name, column in ours.requests.items()} == {
        name: column.tolist() for name, column in theirs.requests.items()
    }
    assert ours.evictions == theirs.evictions > 0


@pytest.mark.interpreted
def test_large_adapters_evict_no_small_one(monkeypatch: pytest.MonkeyPatch) -> None:
    world = build_world(scenario_of())
    class_of = [int(rank == LARGE) for rank in world.pools[0].ranks]
    replication, recording = run(world, class_of, [class_of.count(0), 4], monkeypatch)
    assert np.all(recording.requests["status"] == COMPLETED)
    (server,) = replication.fleet.servers
    server.check_integrity()
    loaded = np.asarray(recording.loads["adapter"]).astype(int)
    small = [adapter for adapter in loaded.tolist() if class_of[adapter] == 0]
    assert len(small) == len(set(small)), "all small ones fit, so none is loaded twice"
    assert len(loaded) - len(small) > 4, "the large ones evict each other"
