"""From a checked scenario to a world that can run; says no where the parts don't fit together."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from sim.errors import ScenarioError
from sim.policies.cache import GpuCache, HostCache
from sim.policies.costs import StepCosts, beyond_envelope, load_seconds, mean_residual
from sim.policies.eviction import EVICTIONS
from sim.policies.memory import KvBlocks
from sim.policies.router import ROUTERS
from sim.policies.scheduler import Limits
from sim.policies.vllm_lru import TouchedCache, set_order
from sim.results.records import Recorder, Recording
from sim.rng import stream
from sim.spec.profile import Profile, load_profile
from sim.spec.scenario import DEFAULT_PROFILE, Scenario
from sim.spec.scenario import GpuCache as GpuCacheSpec
from sim.spec.units import human_bytes
from sim.traffic.adapters import Population
from sim.traffic.generate import Traffic
from sim.world.clock import Clock
from sim.world.fleet import Fleet, Plan
from sim.world.memory import usable_kv_tokens
from sim.world.server import BatchServer, FixedServer, Parts, Server
from sim.world.times import has_host_tier, reload_times, request_times

Floats = NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class World:
    """Everything a replication needs, read and checked once.

    :ivar kv_tokens: KV cache of one replica in tokens, rounded down to blocks; None for engine ``fixed``.
    :ivar weights: what each adapter takes of ``capacity`` (slots or bytes).
    :ivar notes: sentences for the user.
    """

    scenario: Scenario
    traffic: Traffic
    profile: Profile | None
    profile_sha256: str
    kv_tokens: int | None
    weights: list[int]
    capacity: int
    ranks: list[int]
    notes: tuple[str, ...] = field(default=())

    @property
    def population(self) -> Population:
        return self.traffic.population

    def mean_load_s(self) -> float:
        """Return the mean time of a load from storage over all adapters, each counted once."""
        law = self.scenario.storage.load
        if law is not None:
            return law.mean()
        assert self.profile is not None, "loads have a law or a profile"
        tier = self.profile.load.storage
        return float(load_seconds(tier, self.population).mean()) * mean_residual(tier)


def build_world(scenario: Scenario) -> World:
    """Read the profile and the traffic, and check that they fit together.

    :raises ScenarioError, TraceError: with the key of the value that doesn't fit.
    """
    fixed = scenario.fleet.engine == "fixed"
    profile, digest = (None, "") if fixed and _needs_no_profile(scenario) else load_profile(scenario.fleet.profile)
    base_model = _base_model(scenario, profile)
    traffic = Traffic(scenario, base_model)
    population = traffic.population
    weights, capacity = _gpu_capacity(scenario.cache.gpu, population)
    kv_tokens = None if fixed or profile is None else usable_kv_tokens(scenario, profile, population)
    notes = list(traffic.notes)
    if profile is not None and not fixed:
        slots = scenario.cache.gpu.slots or 0  # a cache by size has no fixed number
        notes += beyond_envelope(profile, slots, int(population.rank.max()), scenario.fleet.max_num_seqs)
    if profile is not None and scenario.storage.loaders > 1 and scenario.storage.load is None:
        notes.append("loads at the same time share no bandwidth in this version: several loaders look too good")
    if traffic.replayed and scenario.run.replications > 1 and "replications" in scenario.run.model_fields_set:
        notes.append("a trace is replayed once: run.replications does not apply")
    return World(
        scenario=scenario, traffic=traffic, profile=profile, profile_sha256=digest, kv_tokens=kv_tokens,
        weights=weights, capacity=capacity, ranks=population.rank.tolist(), notes=tuple(notes),
    )  # fmt: skip


def simulate(world: World, replication: int, sections: int) -> Recording:
    """Simulate one replication from an empty system to the end.

    :param sections: parts into which the measured requests are cut for intervals.
    """
    scenario = world.scenario
    clock, recorder = Clock(), Recorder(sections)
    costs = scenario, world.profile, world.population
    times = request_times(*costs)
    plan = Plan(world.traffic.total, world.traffic.end_s, scenario.run.warmup)
    fleet = Fleet(clock, recorder, ROUTERS[scenario.router.policy](), times, plan, _token_limit(world))
    loaders = scenario.storage.loaders, scenario.storage.host_loaders

    def make(index: int, inside: list[int]) -> Server:
        cache, host = _caches(world, replication, index)
        reload_s = reload_times(*costs, replication, index)
        return _server(world, Parts(clock, recorder, index, inside, cache, host, loaders, reload_s))

    for _ in range(scenario.fleet.replicas):
        fleet.add(make)
    return fleet.run(world.traffic.chunks(replication))


def _caches(world: World, replication: int, replica: int) -> tuple[GpuCache | TouchedCache, HostCache | None]:
    spec, count = world.scenario.cache, len(world.population)
    if spec.eviction == "vllm-lru":
        slots = world.capacity
        host_slots = slots if spec.host is None or spec.host.slots is None else spec.host.slots
        # A Python set is walked by hash, and vLLM's adapters are hashed by name, anew in every process.
        hashes = stream(world.scenario.run.seed, replication, "set-order", replica).integers(2**61 - 1, size=count)
        return TouchedCache(count, slots, host_slots, set_order(hashes.tolist())), None
    cache = GpuCache(world.weights, world.capacity, EVICTIONS[spec.eviction]())
    return cache, HostCache(*_capacity(spec.host, world.population)) if spec.host is not None else None


def _server(world: World, parts: Parts) -> Server:
    scenario = world.scenario
    fleet = scenario.fleet
    if fleet.engine == "fixed":
        return FixedServer(parts)
    assert world.profile is not None, "checked by build_world"
    assert world.kv_tokens is not None, "checked by build_world"
    return BatchServer(
        parts,
        limits=Limits(fleet.max_num_seqs, fleet.max_num_batched_tokens, fleet.kv_check == "whole-prompt"),
        kv=KvBlocks(world.kv_tokens // fleet.block_size, fleet.block_size),
        costs=StepCosts(
            world.profile.step, _slots(scenario, world.population), fleet.max_num_batched_tokens,
            int(world.population.rank.max()),
        ),
        ranks=world.ranks,
        ask_early=scenario.load_at == "arrival",
        blocking=scenario.storage.mode == "blocking",
        stop=fleet.admission == "stop",
    )  # fmt: skip


def _needs_no_profile(scenario: Scenario) -> bool:
    storage = scenario.storage
    return storage.load is not None and (not has_host_tier(scenario) or storage.host_load is not None)


def _base_model(scenario: Scenario, profile: Profile | None) -> str:
    given = scenario.adapters.base_model
    if profile is None:
        return given or "llama-3.1-8b"
    if given is not None and given != profile.model:
        raise ScenarioError(
            "the profile was made for another base model", key="adapters.base_model", got=given,
            allowed=f"{profile.model} (profile {profile.name})",
            hint="choose a profile of this model with fleet.profile"
            if scenario.fleet.profile != DEFAULT_PROFILE else "set fleet.profile to a profile of this model",
        )  # fmt: skip
    return profile.model


def _capacity(spec: GpuCacheSpec, population: Population) -> tuple[list[int], int]:
    if spec.slots is not None:
        return [1] * len(population), spec.slots
    assert spec.size is not None, "a cache has slots or a size"
    return population.size_bytes.tolist(), spec.size


def _gpu_capacity(spec: GpuCacheSpec, population: Population) -> tuple[list[int], int]:
    weights, capacity = _capacity(spec, population)
    largest = max(weights)
    if largest > capacity:
        raise ScenarioError(
            "an adapter is larger than the GPU cache", key="cache.gpu.size", got=human_bytes(capacity),
            allowed=f"at least {human_bytes(largest)}, the largest adapter",
        )  # fmt: skip
    return weights, capacity


def _slots(scenario: Scenario, population: Population) -> int:
    """Return the slots that step costs and memory refer to; a cache by size counts as many as fit of the mean size."""
    gpu = scenario.cache.gpu
    if gpu.slots is not None:
        return gpu.slots
    assert gpu.size is not None, "a cache has slots or a size"
    return max(1, int(gpu.size / float(population.size_bytes.mean())))


def _token_limit(world: World) -> int | None:
    """Return the most tokens a request may have; None: no limit."""
    longest = world.scenario.fleet.max_model_len
    limits = [limit for limit in (world.kv_tokens, longest) if limit is not None]
    return min(limits, default=None)
