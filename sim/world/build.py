"""Build a world from a checked scenario, its pools included, and refuse parts that do not fit together."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from math import inf

import numpy as np

from sim.errors import InputError, ScenarioError
from sim.policies.base_weights import base_weights
from sim.policies.costs import StepCosts
from sim.policies.eviction import check_eviction
from sim.policies.routing import check_router
from sim.spec.files.pool_scenarios import key_in_fleet
from sim.spec.profile import Profile
from sim.spec.profile_choice import base_model_of, gpus_per_replica, profile_of, profiles_digest
from sim.spec.scenario import Cache, Scenario, Storage
from sim.spec.scenario import GpuCache as GpuCacheSpec
from sim.spec.scenario import Pool as PoolSpec
from sim.spec.units import format_seconds, human_seconds
from sim.traffic.adapters import ModelShape, Population, base_shape
from sim.traffic.generate import Traffic, without_adapters
from sim.world.faults.misrouting import check_misrouting_faults
from sim.world.faults.stale_prefixes import check_stale_prefixes
from sim.world.memory.gpu_memory import check_gpus, check_sharding, usable_kv_tokens
from sim.world.memory.replica_caches import gpu_capacity, pinned_and_warm
from sim.world.pools.autoscaler import mean_cold_start_s
from sim.world.pools.full_model_layout import FullModelPool, lay_out_full_models, profile_without_lora
from sim.world.pools.pool_requests import check_reachable, check_same_model, requests_taken, taken_alone
from sim.world.rollouts.rollout_plan import NO_ROLLOUTS, RolloutPlan, plan_rollouts, with_new_versions
from sim.world.world import Pool, World
from sim.world.world_notes import notes_on


def build_world(scenario: Scenario) -> World:
    """Read the profile and the traffic, and check that they fit together.

    :raises ScenarioError, TraceError: with the key of the value that does not fit.
    """
    pools: list[Pool] = []
    notes: dict[str, list[str]] = {}  # with the pools that have them
    traffic: Traffic | None = None
    plan = NO_ROLLOUTS
    for place, own in enumerate(scenario.pools or (scenario,)):
        with _keys_of(scenario, place):
            profile, shape = _model_of(own)
            if traffic is None:
                traffic = Traffic(own, shape, 0 if profile is None else profile.memory.weights_bytes)
            if traffic.base_alone:  # by the mix, or in the trace
                own = without_adapters(own)
            if not pools:
                _check_times(own, traffic)
                check_misrouting_faults(own, traffic)
            check_stale_prefixes(own, prefix_cache=own.fleet.prefix_caching and traffic.shares_text)
            if not pools:
                plan = plan_rollouts(own, traffic)
            full = lay_out_full_models(own, profile, traffic)
            spec = scenario.fleet.open_pools[place] if scenario.pools else None
            pool = _pool_of(own, spec, profile, shape, traffic, plan)
            if pools:
                check_same_model(pools[0], pool)
                pool = replace(pool, first=pools[-1].indices.stop)
            pools.append(pool)
            for note in dict.fromkeys(notes_on(pool, full)):
                notes.setdefault(note, []).append(pool.name)
            _check_base_steps(pool)
            _check_cold_start(pool)
            _check_buckets(pool)
            if profile is not None:
                pools += _full_model_pools(pool, full, profile)
    assert traffic is not None, "a fleet has a pool"
    if scenario.pools:
        check_reachable(scenario, pools)
    return World(
        scenario=without_adapters(scenario) if traffic.base_alone else scenario,
        traffic=traffic,
        pools=tuple(pools),
        profile_sha256=profiles_digest(scenario),
        rollout_plan=plan,
        notes=_named(notes, max(1, len(scenario.pools))),
    )


@contextmanager
def _keys_of(scenario: Scenario, place: int) -> Iterator[None]:
    """Report what is wrong in a pool at the key that the user wrote.

    :param place: of the pool among ``fleet.open_pools``, if there are any.
    """
    try:
        yield
    except InputError as error:
        if scenario.pools and error.key:
            spec = scenario.fleet.open_pools[place]
            error.key = key_in_fleet(error.key, scenario.fleet.pools.index(spec), spec.model_dump())
        raise


def _named(notes: Mapping[str, Sequence[str]], pools: int) -> tuple[str, ...]:
    """Return the notes on all pools, and those on some with the names of these."""
    return tuple(note if len(names) == pools else f"{' and '.join(names)}: {note}" for note, names in notes.items())


def _model_of(scenario: Scenario) -> tuple[Profile | None, str | ModelShape]:
    """Return the profile as it is read, and the name or the shape of the base model."""
    _check_policies(scenario)
    check_gpus(scenario)
    profile, _ = profile_of(scenario)
    base_model = base_model_of(scenario, profile)
    return profile, base_model if profile is None or profile.shape is None else base_shape(profile)


def _pool_of(
    scenario: Scenario,
    spec: PoolSpec | None,
    profile: Profile | None,
    shape: str | ModelShape,
    traffic: Traffic,
    plan: RolloutPlan,
) -> Pool:
    """Return the replicas of one kind, which serve the base model and adapters.

    :param spec: the pool that they are; None: the whole fleet.
    :param profile: as it was read.
    """
    fixed = scenario.fleet.engine == "fixed"
    weights_kept = None if profile is None else base_weights(scenario.adapters, profile)
    if profile and weights_kept:
        profile = weights_kept.apply(profile)
    population, takes = traffic.population.without_full(), np.append(~traffic.population.full, True)
    population = with_new_versions(population, plan, scenario.adapters, shape)
    if spec is not None:
        takes = requests_taken(spec, scenario.adapters, traffic.population)
        population, scenario = taken_alone(spec, scenario, population, shape, plan.only(takes))
    takes = plan.extended(takes)
    weights, capacity = gpu_capacity(scenario.cache.gpu, population)
    pinned, warm = pinned_and_warm(scenario, traffic, weights, capacity, plan, takes)
    if profile is not None and not fixed:
        check_sharding(scenario, profile, population)
    return Pool(
        name=scenario.name if spec is None else spec.name,
        first=0,
        replicas=scenario.fleet.places,
        scenario=scenario,
        traffic=traffic,
        population=population,
        profile=profile,
        kv_tokens=None if fixed or profile is None else usable_kv_tokens(scenario, profile, population),
        weights=weights,
        capacity=capacity,
        ranks=population.rank.tolist(),
        takes=takes,
        adapter_blocks=_adapter_blocks(scenario, profile, population),
        pinned=pinned,
        warm=warm,
        shares=traffic.shares() if scenario.cache.starts_full else np.zeros(0),
        rollout_plan=plan,
        warmed_up=_warmed_up(scenario, traffic, len(pinned)),
        base_weights=weights_kept,
        weight=1.0 if spec is None else spec.weight,
        gpus=gpus_per_replica(scenario, profile),
        price=scenario.fleet.price,
    )


FULL_MODELS = "full models"
"""The name of pools of full models."""


def _full_model_pools(beside: Pool, layout: Sequence[FullModelPool], profile: Profile) -> Iterator[Pool]:
    """Yield replicas whose GPU cache has places for whole models instead of adapters, without LoRA.

    One with a model of its own holds it from the start. A pool that swaps begins empty, and its loads block the step
    that needs them.

    :param beside: the replicas of the base model, which they follow.
    :param profile: as it was read.
    """
    first, count = beside.indices.stop, len(beside.traffic.population)
    for each in layout:
        spec, swaps = each.spec, each.spec.serve == "swap"
        rules: dict[str, object] = {"admission": "skip", "load_at": "admission" if swaps else "arrival"}
        if swaps:
            rules["prefix_caching"] = False  # another model takes the memory
        takes = np.zeros(count + 1, dtype=np.bool_)
        takes[list(each.models)] = True
        sections = {
            "fleet": beside.scenario.fleet.model_copy(update=rules),
            "cache": Cache(gpu=GpuCacheSpec(slots=spec.places)),
            "storage": Storage(mode="blocking" if swaps else "overlap", load=spec.load),
        }
        yield replace(
            beside,
            name=FULL_MODELS,
            first=first,
            replicas=each.replicas,
            scenario=beside.scenario.model_copy(update=sections),
            population=beside.traffic.population,
            profile=profile_without_lora(profile),
            kv_tokens=each.kv_tokens,
            weights=[1] * count,
            capacity=spec.places,
            ranks=[0] * count,
            takes=takes,
            adapter_blocks=[],
            pinned=() if swaps else each.models,
            warm=(),
            base_weights=None,
            whole_models=spec,
        )
        first += each.replicas


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


def _check_base_steps(pool: Pool) -> None:
    """Refuse requests to the base model where a step without adapters would take no time, so that none would end."""
    profile = pool.profile
    if profile is None or pool.kv_tokens is None or not pool.serves_base_model:
        return
    if StepCosts(profile.step, 1, 1).with_base_model().least_s <= 0:
        raise ScenarioError(
            "a step without adapters takes no time in this profile",
            key="fleet.profile",
            got=pool.scenario.fleet.profile or profile.name,
            hint="requests to the base model need fixed_s or tokens above 0",
        )


def _warmed_up(scenario: Scenario, traffic: Traffic, pinned: int) -> tuple[int, ...]:
    """Return the adapters that a new replica loads before it serves, the most popular first.

    :param pinned: number of pinned adapters, which are in GPU memory anyway.
    """
    spec = scenario.fleet.autoscale
    count = 0 if spec is None else spec.cold_start.warm
    return tuple(traffic.hottest().tolist()[pinned : pinned + count]) if count else ()


def _check_cold_start(pool: Pool) -> None:
    """Refuse an autoscaler that would not start a replica, or not decide at all, before the run ends."""
    spec, end_s = pool.scenario.fleet.autoscale, pool.traffic.expected_s()
    if spec is None:
        return
    if spec.interval >= end_s:
        raise ScenarioError(
            "the run ends before the first decision",
            key="fleet.autoscale.interval",
            got=format_seconds(spec.interval),
            allowed=f"below {human_seconds(end_s)}",
        )
    seconds = mean_cold_start_s(spec.cold_start, pool)
    if spec.interval + seconds >= end_s:
        raise ScenarioError(
            "the run ends before a new replica is ready",
            key="fleet.autoscale.cold_start",
            got=f"{human_seconds(seconds)} on average",
            allowed=f"with the interval below {human_seconds(end_s)}",
            hint="simulate longer, or a shorter cold start",
        )


def _check_buckets(pool: Pool) -> None:
    """Refuse a token bucket that can never hold the tokens of a request that the fleet would take."""
    scenario = pool.scenario
    taken = min(scenario.fleet.max_model_len or inf, pool.kv_tokens or inf)
    for place, tenant in enumerate(scenario.tenants):
        if tenant.bucket is None:
            continue
        longest = min(pool.traffic.longest_request(place), taken)
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
