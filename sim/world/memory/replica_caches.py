"""The caches of one replica as a scenario describes them, with the adapters that are in them from the start."""

from __future__ import annotations

from array import array
from collections.abc import Sequence
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from sim.errors import ScenarioError
from sim.policies.adapter_cache import ABSENT, RESIDENT, AdapterCache, GpuCache, SlotForBaseModel, UnifiedCache
from sim.policies.batch_slots import BatchSlots
from sim.policies.eviction import EvictionContext, make_eviction
from sim.policies.eviction.ranked import Lru
from sim.policies.host_tier import AllInHost, HostCache, HostTier
from sim.policies.kv.kv_rules import KvRule
from sim.policies.vllm_lru import SetOrder, VllmLruCache
from sim.spec.scenario import GpuCache as GpuCacheSpec
from sim.spec.scenario import HostCache as HostCacheSpec
from sim.spec.scenario import Scenario
from sim.spec.units import human_bytes
from sim.traffic.adapters import Population
from sim.traffic.generate import Traffic
from sim.world.clock import Clock
from sim.world.rollouts.rollout_plan import RolloutPlan
from sim.world.times import ReplicaDraws
from sim.world.world import Pool


class ReplicaCacheListener:
    """Passes on what happens in one replica's cache to the listeners of the whole fleet."""

    def __init__(self, replica: int, listeners: Sequence[FleetCacheListener]) -> None:
        self._replica = replica
        self._cache_listeners = listeners

    def placed(self, adapter: int) -> None:
        for each in self._cache_listeners:
            each.placed(adapter, self._replica)

    def left(self, adapter: int) -> None:
        for each in self._cache_listeners:
            each.left(adapter, self._replica)


class FleetCacheListener(Protocol):
    """Is called when adapters come to, or leave, the cache of any replica."""

    def placed(self, adapter: int, replica: int) -> None: ...

    def left(self, adapter: int, replica: int) -> None: ...

    def forget(self, replica: int) -> None: ...


def attach_listeners(cache: AdapterCache, replica: int, listeners: Sequence[FleetCacheListener]) -> None:
    """Tell listeners what a cache holds, and from now on every change."""
    if not listeners:
        return
    listener = ReplicaCacheListener(replica, listeners)
    for adapter, state in enumerate(cache.state):
        if state != ABSENT:
            listener.placed(adapter)
    cache.set_listener(listener)


def eviction_context(pool: Pool, clock: Clock, draws: ReplicaDraws) -> EvictionContext:
    """Return what eviction policies may know; adapters that share the KV cache are counted in blocks."""
    weights, capacity = pool.weights, pool.capacity
    if pool.adapter_blocks:
        assert pool.kv_tokens is not None, "they share the KV cache"
        weights, capacity = pool.adapter_blocks, pool.kv_tokens // pool.scenario.fleet.block_size
    return EvictionContext(weights, capacity, draws.stream("eviction"), now=lambda: clock.now)


def vllm_cache(pool: Pool, draws: ReplicaDraws) -> VllmLruCache:
    """Return vLLM's slots and host memory, with the warm adapters."""
    host, slots, adapters = pool.scenario.cache.host, pool.capacity, len(pool.population)
    host_slots = (host.slots if host else None) or slots
    # A Python set is walked by hash, and vLLM's adapters are hashed by name, differently in every process.
    hashes = draws.stream("set-order").integers(2**61 - 1, size=adapters)
    counts_running = pool.scenario.fleet.adapter_limit == "running"
    order = SetOrder(array("q", hashes.tobytes()))
    cache = VllmLruCache(adapters, slots, host_slots, order, counts_running=counts_running)
    cache.warm_up(pool.warm)
    if pool.warm_in_host:
        cache.copy_to_host(pool.warm[slots:])
    return cache


def batch_slots_cache(pool: Pool) -> BatchSlots:
    """Return SGLang's slots, with the pinned and the warm adapters.

    SGLang touches adapters in the order of their ids, which are hashes; here that is the order of their numbers.
    """
    fifo = pool.scenario.cache.eviction == "fifo"
    cache = BatchSlots(pool.capacity, range(len(pool.population)), fifo=fifo, pinned=pool.pinned)
    cache.warm_up(pool.pinned + pool.warm)
    return cache


def gpu_cache(pool: Pool, context: EvictionContext) -> GpuCache:
    """Return slots or bytes that protect adapters in use, with the pinned and the warm adapters."""
    scenario = pool.scenario
    base = scenario.cache.gpu.base_model_slot
    eviction = make_eviction(scenario.eviction_policy, context)
    if base and pool.serves_base_model and scenario.storage.mode == "blocking":
        cache: GpuCache = SlotForBaseModel(pool.weights, pool.capacity, eviction, pinned=pool.pinned)
    else:
        cache = GpuCache(pool.weights, pool.capacity, eviction, base_model_slot=base, pinned=pool.pinned)
    if scenario.cache.eviction != "cycle":  # there, adapters come at their turn
        cache.warm_up(pool.warm)
    return cache


def unified_cache(pool: Pool, context: EvictionContext, rule: KvRule) -> UnifiedCache:
    """Return a cache that takes its blocks from the KV cache, with the warm adapters."""
    eviction = make_eviction(pool.scenario.eviction_policy, context)
    cache = UnifiedCache(pool.capacity, eviction, pool.adapter_blocks, lambda: rule.total - rule.need)
    cache.warm_up(pool.warm)
    return cache


def host_tier(pool: Pool, cache: AdapterCache) -> HostTier:
    """Return host memory as loads to the GPU see it, with copies of what is in ``cache`` from the start."""
    host, count = pool.scenario.cache.host, len(pool.population)
    if host is None:
        return HostTier()
    if host.fill == "arrival":
        return AllInHost()  # requests reach the GPU once their adapter has been fetched
    if host.fill == "start":
        later = set(range(len(pool.traffic.population), count)) - set(pool.pinned)
        return AllInHost(later)  # new versions with names of their own
    copies = HostCache(*_capacity(host, pool.population))
    for adapter in reversed(pool.pinned + _copied(pool, cache)):
        copies.insert(adapter)  # they were loaded through host memory
    return copies


def fetched_copies(pool: Pool, cache: AdapterCache) -> GpuCache:
    """Return host memory that fills at arrival, with copies of what is warm in ``cache``.

    :raises ScenarioError: if an adapter does not fit.
    """
    host = pool.scenario.cache.host
    assert host is not None, "the scenario has host memory"
    unlimited = not (host.slots or host.size)
    count = len(pool.population)
    weights, capacity = ([1] * count, count) if unlimited else _capacity(host, pool.population)
    if max(weights) > capacity:
        raise ScenarioError(
            "an adapter is larger than host memory, through which all must come",
            key="cache.host.size",
            got=human_bytes(capacity),
            allowed=f"at least {human_bytes(max(weights))}, the largest adapter",
        )
    _check_pinned(_heaviest(pool.pinned, weights, pool.rollout_plan), weights, capacity, "cache.host")
    fetched = GpuCache(weights, capacity, Lru(EvictionContext(weights, capacity)), pinned=pool.pinned)
    fetched.warm_up(_copied(pool, cache))
    return fetched


def gpu_capacity(spec: GpuCacheSpec, population: Population) -> tuple[list[int], int]:
    """Return what each adapter takes, and the capacity, in slots or bytes.

    :raises ScenarioError: if the largest adapter does not fit.
    """
    if spec.unified:
        return [1] * len(population), spec.slots or len(population)
    weights, capacity = _capacity(spec, population)
    largest = max(weights)
    if largest > capacity:
        raise ScenarioError(
            "an adapter is larger than the GPU cache",
            key="cache.gpu.size",
            got=human_bytes(capacity),
            allowed=f"at least {human_bytes(largest)}, the largest adapter",
        )
    return weights, capacity


def pinned_and_warm(
    scenario: Scenario,
    traffic: Traffic,
    weights: Sequence[int],
    capacity: int,
    rollout_plan: RolloutPlan,
    takes: NDArray[np.bool_],
) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Return the pinned and the warm adapters, the most popular first.

    :param weights: what each adapter takes of ``capacity``.
    :param rollout_plan: versions that adapters will have.
    :param takes: by adapter, whether these replicas take its requests.
    :raises ScenarioError: if there are fewer adapters than pins, or pinned ones leave no room for another adapter.
    """
    cache = scenario.cache
    number = 0 if cache.warm == "steady" else cache.warm  # the steady state differs between replicas
    if not (cache.pinned or number):
        return (), ()
    hottest: list[int] = [adapter for adapter in traffic.hottest().tolist() if takes[adapter]]
    if cache.pinned > len(hottest):
        raise ScenarioError(
            "there are fewer adapters", key="cache.pinned", got=cache.pinned, allowed=f"at most {len(hottest)}"
        )
    pinned = tuple(hottest[: cache.pinned])
    _check_pinned(_heaviest(pinned, weights, rollout_plan), weights, capacity, "cache.gpu")
    return pinned, tuple(hottest[cache.pinned : cache.pinned + number])


def _copied(pool: Pool, cache: AdapterCache) -> tuple[int, ...]:
    """Return the adapters of which host memory has copies at the start, as far as there is room: the last used first.

    In the steady state that includes adapters that have left ``cache`` again.
    """
    if pool.warm_in_host:
        return pool.warm
    return tuple(adapter for adapter in pool.warm if cache.state[adapter] == RESIDENT)


def _capacity(spec: GpuCacheSpec | HostCacheSpec, population: Population) -> tuple[list[int], int]:
    if spec.slots:
        return [1] * len(population), spec.slots
    return population.size_bytes.tolist(), spec.size or 0


def _heaviest(pinned: Sequence[int], weights: Sequence[int], rollout_plan: RolloutPlan) -> list[int]:
    """Return the largest version of each pinned adapter: each version has the pin in turn."""
    heaviest = {adapter: adapter for adapter in pinned}
    for adapter, name in enumerate(rollout_plan.original.tolist()):
        if name in heaviest and weights[adapter] > weights[heaviest[name]]:
            heaviest[name] = adapter
    return list(heaviest.values())


def _check_pinned(pinned: Sequence[int], weights: Sequence[int], capacity: int, where: str) -> None:
    taken = sum(weights[adapter] for adapter in pinned)
    kept = set(pinned)
    largest = max((weight for adapter, weight in enumerate(weights) if adapter not in kept), default=0)
    if taken + largest > capacity:
        raise ScenarioError(
            f"pinned adapters leave no room for another one in {where}",
            key="cache.pinned",
            got=len(pinned),
            allowed=f"up to {capacity - largest:,} of {capacity:,}: they take {taken:,}, another one up to {largest:,}",
            hint=f"pin fewer, or enlarge {where}",
        )
