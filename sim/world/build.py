"""Build a world from a checked scenario, its pools included, and refuse parts that do not fit together."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from math import inf

import numpy as np
from numpy.typing import NDArray

from sim.errors import InputError, ScenarioError
from sim.policies.costs import StepCosts
from sim.policies.eviction import check_eviction
from sim.policies.replica_memory import base_weights
from sim.policies.routing import check_router
from sim.spec.files.pool_scenarios import key_in_fleet
from sim.spec.profile import Profile
from sim.spec.profile_choice import base_model_of, gpus_per_replica, profile_of, profiles_digest
from sim.spec.scenario import Cache, Pool, Scenario, Storage
from sim.spec.scenario import GpuCache as GpuCacheSpec
from sim.spec.sections.changes import Crash, StorageFault
from sim.spec.units import format_seconds, human_seconds
from sim.traffic.adapters import Population, base_shape
from sim.traffic.generate import Traffic, without_adapters
from sim.world.faults.misrouting import check_misrouting_faults
from sim.world.faults.stale_prefixes import check_stale_prefixes
from sim.world.memory.gpu_memory import check_gpus, check_sharding, usable_kv_tokens
from sim.world.memory.replica_caches import gpu_capacity, pinned_and_warm
from sim.world.pools.autoscaler import mean_cold_start_s
from sim.world.pools.full_model_layout import FullModelPool, lay_out_full_models, profile_without_lora
from sim.world.pools.pool_requests import check_reachable, check_same_model, pool_notes, requests_taken, taken_alone
from sim.world.pools.pool_times import PoolTimes, token_limits
from sim.world.rollouts.rollout_plan import plan_rollouts, with_new_versions
from sim.world.world import ReplicaPool, World
from sim.world.world_notes import notes_on


def check_changes(scenario: Scenario, pools: Sequence[ReplicaPool]) -> None:
    """Refuse what sends a request to another adapter, where pools would disagree on what that means.

    Such a request keeps its draws and gets the load times of the other adapter before it has a pool.

    :raises ScenarioError: with the rollout or fault.
    """
    steering = [f"faults.{i}" for i, fault in enumerate(scenario.faults) if not isinstance(fault, Crash | StorageFault)]
    steering += [f"rollouts.{i}" for i in range(len(scenario.rollouts))]
    if not steering:
        return
    what = "rollouts" if steering[0].startswith("rollouts") else "faults that concern adapters"
    choosy = next((pool.name for pool in pools if not pool.world.takes.all()), None)
    if choosy is not None:
        raise ScenarioError(
            f"{what} are not supported where pools take different requests",
            key=steering[0],
            got=f"pool {choosy} doesn't take all",
            allowed="serves: all in every pool",
            hint="simulate this pool alone",
        )
    if PoolTimes(pools, [token_limits(pool.world) for pool in pools]).differ:
        raise ScenarioError(
            f"{what} are not supported where pools have different load times or limits of tokens",
            key=steering[0],
            got=f"pools {', '.join(pool.name for pool in pools)}",
            hint="simulate each pool alone, or give all pools the same GPU, engine and storage",
        )


# Pools of full models: ordinary replicas whose GPU cache has places for whole models instead of adapters.

FULL_MODELS = "full models"
"""The name of these pools."""


def with_full_models(world: World, layout: tuple[FullModelPool, ...], profile: Profile) -> World:
    """Return a world in which replicas of full models follow those of the base model.

    :param world: of the base model and its adapters.
    :param profile: as it was read.
    """
    first, price = world.scenario.fleet.replicas, world.scenario.fleet.price
    gpus = gpus_per_replica(world.scenario, profile)
    pools = [ReplicaPool("base model", world, 0, first, gpus=gpus, price=price)]
    for each in layout:
        served = _world_of(world, each, profile_without_lora(profile))
        pools.append(ReplicaPool(FULL_MODELS, served, first, each.replicas, gpus=gpus, price=price))
        first += each.replicas
    return replace(world, pools=tuple(pools))


def _world_of(world: World, pool: FullModelPool, profile: Profile) -> World:
    """Return the world of replicas of full models: slots for whole models, and no LoRA.

    A replica with a model of its own holds it from the start. A pool that swaps begins empty, and its loads block the
    step that needs them.

    :param profile: its costs.
    """
    scenario, spec = world.scenario, pool.spec
    swaps = spec.serve == "swap"
    rules: dict[str, object] = {"admission": "skip", "load_at": "admission" if swaps else "arrival"}
    if swaps:
        rules["prefix_caching"] = False  # another model takes the memory
    count = len(world.traffic.population)
    takes = np.zeros(count + 1, dtype=np.bool_)
    takes[list(pool.models)] = True
    return replace(
        world,
        scenario=scenario.model_copy(
            update={
                "fleet": scenario.fleet.model_copy(update=rules),
                "cache": Cache(gpu=GpuCacheSpec(slots=spec.places)),
                "storage": Storage(mode="blocking" if swaps else "overlap", load=spec.load),
            }
        ),
        profile=profile,
        population=world.traffic.population,
        kv_tokens=pool.kv_tokens,
        weights=[1] * count,
        capacity=spec.places,
        ranks=[0] * count,
        adapter_blocks=[],
        pinned=() if swaps else pool.models,
        warm=(),
        base_weights=None,
        takes=takes,
        whole_models=spec,
    )


Floats = NDArray[np.float64]


def build_world(scenario: Scenario) -> World:
    """Read the profile and the traffic, and check that they fit together.

    :raises ScenarioError, TraceError: with the key of the value that does not fit.
    """
    return _build_pools(scenario) if scenario.pools else _build(scenario)


def _build_pools(scenario: Scenario) -> World:
    """Return the world of a fleet of pools, which share the traffic that the first one makes."""
    found: list[ReplicaPool] = []
    first = 0
    for spec, own in zip(scenario.fleet.open_pools, scenario.pools, strict=True):
        try:
            world = _build(own, found[0].world.traffic if found else None, spec)
            if found:
                check_same_model(found[0], spec.name, world)
        except InputError as error:
            error.key = error.key and key_in_fleet(error.key, scenario.fleet.pools.index(spec), spec.model_dump())
            raise
        gpus = gpus_per_replica(own, world.profile)
        found.append(ReplicaPool(spec.name, world, first, spec.replicas, spec.weight, gpus, own.fleet.price))
        first += spec.replicas
    lead = found[0].world
    check_reachable(scenario, found)
    check_changes(scenario, found)
    fleet = lead.scenario.fleet.model_copy(update={"replicas": first})
    return replace(
        lead,
        scenario=lead.scenario.model_copy(update={"fleet": fleet}),
        profile_sha256=profiles_digest(scenario),
        notes=pool_notes(found),
        takes=np.logical_or.reduce([pool.world.takes for pool in found]),
        pools=tuple(found),
    )


def _build(scenario: Scenario, traffic: Traffic | None = None, pool: Pool | None = None) -> World:
    """Return the world of replicas of one kind, and of full models besides them.

    :param traffic: of the fleet, if another pool has made it.
    :param pool: the pool that they are; None: the whole fleet.
    """
    _check_policies(scenario)
    fixed = scenario.fleet.engine == "fixed"
    check_gpus(scenario)
    profile, digest = profile_of(scenario)
    base_model = base_model_of(scenario, profile)
    shape = base_model if profile is None or profile.shape is None else base_shape(profile)
    if traffic is None:
        traffic = Traffic(scenario, shape, 0 if profile is None else profile.memory.weights_bytes)
    if traffic.base_alone:  # by the mix, or in the trace
        scenario = without_adapters(scenario)
    _check_times(scenario, traffic)
    check_misrouting_faults(scenario, traffic)
    check_stale_prefixes(scenario, prefix_cache=scenario.fleet.prefix_caching and traffic.shares_text)
    rollout_plan = plan_rollouts(scenario, traffic)
    full = lay_out_full_models(scenario, profile, traffic)
    as_read = profile
    weights_kept = None if profile is None else base_weights(scenario.adapters, profile)
    if profile and weights_kept:
        profile = weights_kept.apply(profile)
    population, takes = traffic.population.without_full(), np.append(~traffic.population.full, True)
    if pool is not None:
        takes = requests_taken(pool, scenario.adapters, traffic.population)
        population, scenario = taken_alone(pool, scenario, population, shape)
    takes = rollout_plan.extended(takes)
    population = with_new_versions(population, rollout_plan, scenario.adapters, shape)
    weights, capacity = gpu_capacity(scenario.cache.gpu, population)
    pinned, warm = pinned_and_warm(scenario, traffic, weights, capacity, rollout_plan, takes)
    if profile is not None and not fixed:
        check_sharding(scenario, profile, population)
    kv_tokens = None if fixed or profile is None else usable_kv_tokens(scenario, profile, population)
    world = World(
        scenario=scenario,
        traffic=traffic,
        population=population,
        rollout_plan=rollout_plan,
        profile=profile,
        profile_sha256=digest,
        kv_tokens=kv_tokens,
        weights=weights,
        capacity=capacity,
        ranks=population.rank.tolist(),
        takes=takes,
        adapter_blocks=_adapter_blocks(scenario, profile, population),
        pinned=pinned,
        warm=warm,
        shares=traffic.shares() if scenario.cache.starts_full else np.zeros(0),
        base_weights=weights_kept,
        warmed_up=_warmed_up(scenario, traffic, len(pinned)),
    )
    world = replace(world, notes=tuple(notes_on(world, full)))
    _check_base_steps(world)
    _check_cold_start(world)
    _check_buckets(world)
    return with_full_models(world, full, as_read) if as_read is not None and full else world


def _check_policies(scenario: Scenario) -> None:
    """Refuse policies from outside that can't be used."""
    try:
        check_eviction(scenario.eviction_policy)
    except InputError as error:
        error.key = "cache.eviction"
        raise
    try:
        check_router(scenario.router_policy)
    except InputError as error:
        error.key = "router.policy"
        raise


def _check_base_steps(world: World) -> None:
    """Refuse requests to the base model where a step without adapters would take no time, so that none would end."""
    profile = world.profile
    if profile is None or world.kv_tokens is None or not world.serves_base_model:
        return
    if StepCosts(profile.step, 1, 1).with_base_model().least_s <= 0:
        raise ScenarioError(
            "a step without adapters takes no time in this profile",
            key="fleet.profile",
            got=world.scenario.fleet.profile or profile.name,
            hint="requests to the base model need fixed_s or tokens above 0",
        )


def _warmed_up(scenario: Scenario, traffic: Traffic, pinned: int) -> tuple[int, ...]:
    """Return the adapters that a new replica loads before it serves, the most popular first.

    :param pinned: number of pinned adapters, which are in GPU memory anyway.
    """
    spec = scenario.fleet.autoscale
    count = 0 if spec is None else spec.cold_start.warm
    return tuple(traffic.hottest().tolist()[pinned : pinned + count]) if count else ()


def _check_cold_start(world: World) -> None:
    """Refuse an autoscaler that would not start a replica, or not decide at all, before the run ends."""
    spec, end_s = world.scenario.fleet.autoscale, world.traffic.expected_s()
    if spec is None:
        return
    if spec.interval >= end_s:
        raise ScenarioError(
            "the run ends before the first decision",
            key="fleet.autoscale.interval",
            got=format_seconds(spec.interval),
            allowed=f"below {human_seconds(end_s)}",
        )
    seconds = mean_cold_start_s(spec.cold_start, world)
    if spec.interval + seconds >= end_s:
        raise ScenarioError(
            "the run ends before a new replica is ready",
            key="fleet.autoscale.cold_start",
            got=f"{human_seconds(seconds)} on average",
            allowed=f"with the interval below {human_seconds(end_s)}",
            hint="simulate longer, or a shorter cold start",
        )


def _check_buckets(world: World) -> None:
    """Refuse a token bucket that can never hold the tokens of a request that the fleet would take."""
    scenario = world.scenario
    taken = min(scenario.fleet.max_model_len or inf, world.kv_tokens or inf)
    for place, tenant in enumerate(scenario.tenants):
        if tenant.bucket is None:
            continue
        longest = min(world.traffic.longest_request(place), taken)
        if tenant.bucket.burst < longest:
            raise ScenarioError(
                "the bucket never holds the tokens of the longest request, prompt and answer together",
                key=f"tenants.{place}.bucket.burst",
                got=f"{tenant.bucket.burst:,}",
                allowed=f"{longest:,.0f} or more",
                hint="or bound the requests: fleet.max_model_len, or max in workload.tokens",
            )


def _check_times(scenario: Scenario, traffic: Traffic) -> None:
    """Refuse rollouts and faults that would begin after the last request."""
    end_s = traffic.expected_s()
    for key in ("rollouts", "faults"):
        for i, change in enumerate(getattr(scenario, key)):
            begins_s = getattr(change, "at", 0.0)
            if begins_s >= end_s:
                raise ScenarioError(
                    "begins after the last request is expected",
                    key=f"{key}.{i}.at",
                    got=format_seconds(begins_s),
                    allowed=f"before {human_seconds(end_s)}",
                    hint="begin earlier, or simulate longer",
                )


def _adapter_blocks(scenario: Scenario, profile: Profile | None, population: Population) -> list[int]:
    if not scenario.cache.gpu.unified or profile is None:
        return []
    block_bytes = profile.memory.kv_bytes_per_token * scenario.fleet.block_size
    return [-(-int(size) // block_bytes) for size in population.size_bytes.tolist()]
