"""Every eviction policy against its naive twin: adapters of all sizes, in use, pinned, spared, and replayed."""

from __future__ import annotations

import random
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from naive_eviction import NAIVE, Naive

from sim.errors import InputError
from sim.policies.cache import ABSENT, LOADING, RESIDENT, GpuCache
from sim.policies.eviction import EVICTIONS, Setting
from sim.policies.replay import KERNELS, REPLAYABLE, replay, replay_stepwise

POLICIES = sorted(EVICTIONS)
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

    def end(self, adapter: int) -> None:
        self.loading.remove(adapter)
        self.resident.add(adapter)
        self.policy.loaded(adapter)
        for _ in range(self.users[adapter] - 1):
            self.policy.touched(adapter)
        if self.users[adapter] == 0:
            self.policy.idle(adapter)


def both(data: st.DataObject, name: str) -> tuple[GpuCache, NaiveCache, list[int]]:
    """Return a cache, its twin, and a clock to be set: when each adapter is used next is drawn once for all."""
    count = data.draw(st.integers(2, 12))
    sizes = st.integers(1, 6) if data.draw(st.booleans()) else st.just(1)
    weights = data.draw(st.lists(sizes, min_size=count, max_size=count))
    pinned = data.draw(st.lists(st.integers(0, count - 1), max_size=2, unique=True))
    base = data.draw(st.booleans())
    least = sum(weights[a] for a in pinned) + max(weights)
    capacity = least + data.draw(st.sampled_from((0, 1, 2, 3, 5, 12, 20)))
    clock, seed = [0], data.draw(st.integers(0, 99_999))
    rng = random.Random(seed)
    arrivals = [(rng.randrange(count), rng.randrange(STEPS)) for _ in range(STEPS // 2)]

    def next_use(adapter: int) -> float:
        return min((float(t) for a, t in arrivals if a == adapter and t > clock[0]), default=np.inf)

    setting = Setting(weights, capacity, np.random.default_rng(seed), next_use, lambda: float(clock[0]))
    cache = GpuCache(weights, capacity, EVICTIONS[name](setting), base_model_slot=base, pinned=pinned)
    policy = NAIVE[name](weights, capacity, np.random.default_rng(seed).random, next_use, lambda: float(clock[0]))
    twin = NaiveCache(policy, pinned, base=base)
    return cache, twin, clock


@pytest.mark.parametrize("name", POLICIES)
@settings(max_examples=60)
@given(data=st.data())
def test_a_cache_evicts_whom_its_naive_twin_evicts(name: str, data: st.DataObject) -> None:
    cache, twin, clock = both(data, name)
    count = len(cache.weights)
    warm = data.draw(st.lists(st.integers(0, count - 1), max_size=4, unique=True))
    warm_up(cache, twin, [a for a in warm if a not in twin.pinned])
    rng = random.Random(data.draw(st.integers(0, 99_999)))
    kinds = data.draw(st.sampled_from(("use end drop", "use use use end end drop drop drop", "use end drop ahead")))
    hot = data.draw(st.integers(1, count))
    for _ in range(STEPS):
        kind, adapter = rng.choice(kinds.split()), rng.randrange(hot if rng.random() < 0.6 else count)
        spared = set(rng.sample(range(count), rng.randrange(count)))
        clock[0] += 1
        if kind == "use":
            assert cache.acquire(adapter) == (adapter in twin.resident)
            twin.users[adapter] += 1
            if adapter in twin.resident:
                twin.policy.touched(adapter)
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
        elif kind == "ahead" and cache.state[adapter] == ABSENT:
            assert cache.reserve_ahead(adapter, spared) == twin.reserve(adapter, spared)
        compare(cache, twin)


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
    compare(cache, twin)


def compare(cache: GpuCache, twin: NaiveCache) -> None:
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
    length = draw(st.sampled_from((300, 100, 1)))
    objects = [rng.randrange(hot if rng.random() < 0.6 else count) for _ in range(length)]
    sizes = draw(st.lists(st.integers(1, 9) if draw(st.booleans()) else st.just(1), min_size=count, max_size=count))
    capacity = draw(st.sampled_from((1, 2, 3, 5, 8, 11, 20, 40)))
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
@given(stream_=streams(), seed=st.integers(0, 9))
def test_replays_count_what_naive_ones_count(name: str, stream_: tuple[Any, Any, int], seed: int) -> None:
    from sim.rng import stream

    objects, sizes, capacity = stream_
    luck = stream(seed, 0, "eviction").random
    expected = replay_naively(name, objects.tolist(), sizes.tolist(), capacity, luck)
    for way in (replay_stepwise, replay):
        replayed = way(name, objects, sizes, capacity, seed)
        assert (replayed.misses, replayed.missed_bytes) == expected
        assert replayed.requests == len(objects)
        assert replayed.requested_bytes == sum(int(sizes[a]) for a in objects)


def test_replays_with_kernels_are_among_those_compared() -> None:
    assert set(KERNELS) <= set(REPLAYABLE)


@pytest.mark.parametrize("name", ["vllm-lru", "discard-when-idle", "cycle", "lruu"])
def test_policies_that_need_a_batch_are_refused(name: str) -> None:
    with pytest.raises(InputError) as refused:
        replay(name, np.array([0]), np.array([1]), 1)
    assert refused.value.key == "--policy"
    assert "sieve" in str(refused.value.allowed)
    assert ("batch" in refused.value.problem) == (name != "lruu")
