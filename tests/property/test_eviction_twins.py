"""Every eviction policy against its naive twin: adapters of all sizes, in use, pinned, spared, and replayed."""

from __future__ import annotations

import random
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from naive import TwinFleet
from naive_eviction import NAIVE, Naive
from strategies import GRID, build, fixed_time, run, write_profile, write_trace
from test_leaping import compare

from sim.policies.adapter_cache import ABSENT, LOADING, RESIDENT, GpuCache
from sim.policies.eviction import EvictionContext, make_eviction
from sim.policies.replay.cache_replay import KERNELS, replay, replay_stepwise
from sim.rng import stream
from sim.spec.policies import EVICTIONS
from sim.spec.scenario import Scenario
from sim.traffic.request import HIT, MISS, Request
from sim.world.foresight import ArrivalOracle, ReplicaOracle

pytestmark = pytest.mark.twice

POLICIES = sorted(set(EVICTIONS.names) - {"vllm-lru"})
REPLAYABLE = [entry.name for entry in EVICTIONS if not entry.needs_batch]
STEPS = 250
"""Steps of one example: hypothesis draws what they are like, and the seed that they come from."""


class NaiveCache:
    """A cache by the book; ``users`` counts requests, pinned adapters are never ready to leave."""

    def __init__(self, policy: Naive, pinned: list[int], *, base: bool) -> None:
        self.policy = policy
        self.pinned = pinned
        self.base = base
        self.users = dict.fromkeys(range(len(policy.weights)), 0)
        self.resident = set(pinned)
        self.loading: set[int] = set()
        self.evictions = 0
        self.uses: dict[int, int] = {}  # since the load; the first is what the load was for

    def ready(self) -> set[int]:
        return {a for a in self.resident if self.users[a] == 0 and a not in self.pinned}

    def used(self) -> int:
        return sum(self.policy.weights[a] for a in self.resident | self.loading) + self.base

    def reserve(self, adapter: int, spared: set[int] | None) -> bool:
        may_leave = self.ready() - (spared or set())
        base_goes = self.base and spared is None
        at_most = sum(self.policy.weights[a] for a in may_leave) + base_goes
        weight = self.policy.weights[adapter]
        if self.used() - at_most + weight > self.policy.capacity:
            return False
        self.policy.coming(adapter)
        while self.used() + weight > self.policy.capacity:
            if may_leave:
                victim = self.policy.choose(set(may_leave))
                may_leave.remove(victim)
                self.resident.remove(victim)
                self.evictions += 1
            else:
                self.base = False
        self.loading.add(adapter)
        return True

    def use(self, adapter: int) -> None:
        self.uses[adapter] = self.uses.get(adapter, 0) + 1
        if self.uses[adapter] > 1:
            self.policy.touched(adapter)

    def end(self, adapter: int) -> None:
        self.loading.remove(adapter)
        self.resident.add(adapter)
        self.policy.loaded(adapter)
        self.uses[adapter] = self.users[adapter]
        for _ in range(self.users[adapter] - 1):
            self.policy.touched(adapter)
        if self.users[adapter] == 0:
            self.policy.idle(adapter)


def both(data: st.DataObject, name: str) -> tuple[GpuCache, NaiveCache, list[int], dict[int, int]]:
    """Return a cache, its twin, a clock to be set, and where to note when each adapter was used last.

    Who arrives when is drawn once for all. Those who come here wait until their adapter is used.
    """
    count = data.draw(st.integers(2, 12))
    sizes = st.integers(1, 6) if data.draw(st.booleans()) else st.just(1)
    weights = data.draw(st.lists(sizes, min_size=count, max_size=count))
    pinned = data.draw(st.lists(st.integers(0, count - 1), max_size=2, unique=True))
    base = data.draw(st.booleans())
    least = sum(weights[a] for a in pinned) + max(weights)
    capacity = least + data.draw(st.sampled_from((0, 1, 2, 3, 5, 12, 20)))
    clock, seed = [0], data.draw(st.integers(0, 99_999))
    rng = random.Random(seed)
    arrivals = [rng.randrange(count) for _ in range(STEPS)]  # one each tick
    here = [rng.random() < 0.5 for _ in range(STEPS)]  # the others go to another cache

    def next_use(adapter: int) -> float:
        of_it = [tick for tick, other in enumerate(arrivals) if other == adapter]
        waiting = [tick for tick in of_it if used_at.get(adapter, -1) < tick < clock[0] and here[tick]]
        return min(waiting + [tick for tick in of_it if tick >= clock[0]], default=np.inf)

    used_at: dict[int, int] = {}
    luck, now = np.random.default_rng(seed), lambda: float(clock[0])
    context = EvictionContext(weights, capacity, luck, now, next_use, now)
    cache = GpuCache(weights, capacity, make_eviction(name, context), base_model_slot=base, pinned=pinned)
    policy = NAIVE[name](weights, capacity, np.random.default_rng(seed).random, next_use, lambda: float(clock[0]))
    twin = NaiveCache(policy, pinned, base=base)
    return cache, twin, clock, used_at


@pytest.mark.parametrize("name", POLICIES)
@settings(max_examples=60)
@given(data=st.data())
def test_a_cache_evicts_whom_its_naive_twin_evicts(name: str, data: st.DataObject) -> None:
    cache, twin, clock, used_at = both(data, name)
    count = len(cache.weights)
    warm = data.draw(st.lists(st.integers(0, count - 1), max_size=4, unique=True))
    warm_up(cache, twin, [a for a in warm if a not in twin.pinned])
    rng = random.Random(data.draw(st.integers(0, 99_999)))
    kinds = data.draw(
        st.sampled_from(
            ("use end drop", "use use use end end drop drop drop", "use end drop ahead", "use end drop discard")
        )
    )
    hot = data.draw(st.integers(1, count))
    for _ in range(STEPS):
        kind, adapter = rng.choice(kinds.split()), rng.randrange(hot if rng.random() < 0.6 else count)
        spared = set(rng.sample(range(count), rng.randrange(count)))
        clock[0] += 1
        if kind == "use":
            used_at[adapter] = clock[0]
            assert cache.acquire(adapter) == (adapter in twin.resident)
            twin.users[adapter] += 1
            if adapter in twin.resident:
                twin.use(adapter)
            elif adapter not in twin.loading:
                begins = cache.reserve(adapter)
                assert begins == twin.reserve(adapter, None)
                if not begins:  # it finds no room and goes away
                    twin.users[adapter] -= 1
                    cache.release(adapter)
        elif kind == "drop" and (in_use := [a for a in twin.resident if twin.users[a]]):
            adapter = rng.choice(sorted(in_use))
            twin.users[adapter] -= 1
            assert cache.release(adapter) == (twin.users[adapter] == 0 and adapter not in twin.pinned)
            if twin.users[adapter] == 0:
                twin.policy.idle(adapter)
        elif kind == "end" and twin.loading:
            ended = sorted(twin.loading)[adapter % len(twin.loading)]
            cache.loaded(ended)
            twin.end(ended)
        elif kind == "discard":
            if adapter in twin.ready():
                twin.policy.removed(adapter)
                twin.resident.remove(adapter)
                twin.evictions += 1
            cache.discard(adapter)
        elif kind == "ahead" and cache.state[adapter] == ABSENT:
            assert cache.reserve_ahead(adapter, spared) == twin.reserve(adapter, spared)
        compare_caches(cache, twin)


def warm_up(cache: GpuCache, twin: NaiveCache, adapters: list[int]) -> None:
    cache.warm_up(adapters)
    fitting: list[int] = []
    for adapter in adapters:
        taken = sum(cache.weights[a] for a in fitting)
        if twin.used() + taken + cache.weights[adapter] > cache.capacity:
            break
        fitting.append(adapter)
    for adapter in reversed(fitting):
        twin.loading.add(adapter)
        twin.end(adapter)
    compare_caches(cache, twin)


def compare_caches(cache: GpuCache, twin: NaiveCache) -> None:
    cache.check_integrity()
    assert {a for a, state in enumerate(cache.state) if state == RESIDENT} == twin.resident
    assert {a for a, state in enumerate(cache.state) if state == LOADING} == twin.loading
    assert cache.evictions == twin.evictions
    assert all(cache.state[a] == RESIDENT for a in twin.pinned)


@st.composite
def streams(draw: st.DrawFn) -> tuple[Any, Any, int]:
    count = draw(st.integers(1, 15))
    rng = random.Random(draw(st.integers(0, 99_999)))
    hot = draw(st.integers(1, count))
    length = draw(st.sampled_from((300, 100, 1, 0)))
    objects = [rng.randrange(hot if rng.random() < 0.6 else count) for _ in range(length)]
    sizes = draw(st.lists(st.integers(1, 9) if draw(st.booleans()) else st.just(1), min_size=count, max_size=count))
    capacity = draw(st.sampled_from((1, 2, 3, 5, 8, 11, 20, 40, 0)))
    return np.array(objects, dtype=draw(st.sampled_from((np.int64, np.uint16)))), np.array(sizes), capacity


def replay_naively(name: str, objects: list[int], sizes: list[int], capacity: int, luck: Any) -> tuple[int, int]:
    position = 0

    def next_use(adapter: int) -> float:
        return min((float(i) for i in range(position + 1, len(objects)) if objects[i] == adapter), default=np.inf)

    policy = NAIVE[name](sizes, capacity, luck, next_use, lambda: float(position))
    resident: set[int] = set()
    misses = missed = 0
    for position, adapter in enumerate(objects):  # noqa: B007 (next_use reads it)
        if adapter in resident:
            policy.touched(adapter)
            policy.idle(adapter)
            continue
        misses, missed = misses + 1, missed + sizes[adapter]
        if sizes[adapter] > capacity:
            continue
        policy.coming(adapter)
        while sum(sizes[a] for a in resident) + sizes[adapter] > capacity:
            resident.remove(policy.choose(set(resident)))
        resident.add(adapter)
        policy.loaded(adapter)
        policy.idle(adapter)
    return misses, missed


@pytest.mark.parametrize("name", REPLAYABLE)
@settings(max_examples=60)
@given(stream_=streams(), seed=st.integers(0, 9), chunk=st.sampled_from((1 << 16, 7, 1)))
def test_replays_count_what_naive_ones_count(name: str, stream_: tuple[Any, Any, int], seed: int, chunk: int) -> None:
    """In chunks of any length; kernels too, which ``replay`` takes where there is one."""
    objects, sizes, capacity = stream_
    luck = stream(seed, 0, "eviction").random
    expected = replay_naively(name, objects.tolist(), sizes.tolist(), capacity, luck)
    for way in (replay_stepwise, replay):
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr("sim.policies.replay.cache_replay.CHUNK", chunk)
            replayed = way(name, objects, sizes, capacity, seed)
        assert (replayed.misses, replayed.missed_bytes) == expected
        assert replayed.requests == len(objects)
        assert replayed.requested_bytes == sum(int(sizes[a]) for a in objects)


def test_s3_fifo_looks_through_its_small_queue_to_the_end_even_if_that_fills_the_main_one() -> None:
    for seed in range(200):  # sizes and popularities at which some do
        rng = random.Random(seed)
        capacity = rng.choice((10, 20, 30))
        count = rng.randrange(capacity, 3 * capacity)
        popularity = [1 / (place + 1) ** rng.choice((0.3, 0.8, 1.2)) for place in range(count)]
        objects = rng.choices(range(count), popularity, k=400)
        replayed = replay("s3-fifo", np.array(objects), np.ones(count, dtype=np.int64), capacity)
        assert replayed.misses == replay_naively("s3-fifo", objects, [1] * count, capacity, None)[0]


def test_replays_with_kernels_are_among_those_compared() -> None:
    assert set(KERNELS) <= set(REPLAYABLE)


# What belady knows of the requests to come, where many arrive at one instant or wait in a queue


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
        outcome = run(scenario).requests["outcome"]
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
