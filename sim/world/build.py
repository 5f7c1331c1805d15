"""Build a world from a checked scenario, its pools included, and refuse parts that do not fit together."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from math import inf

import numpy as np
from numpy.typing import NDArray

from sim.errors import InputError, ScenarioError
from sim.policies.costs import StepCosts
from sim.policies.eviction import check_eviction
from sim.policies.replica_memory import base_weights, expert_reads
from sim.policies.routing import check_router
from sim.spec.files.pool_scenarios import key_in_fleet
from sim.spec.profile import Profile
from sim.spec.profile_choice import base_model_of, gpus_per_replica, profile_of, profiles_digest
from sim.spec.scenario import Pool as PoolSpec
from sim.spec.scenario import Scenario
from sim.spec.sections.serving import Served
from sim.spec.sections.workload import AdapterKind
from sim.spec.units import format_seconds, human_seconds
from sim.traffic.adapters import ModelShape, Population, base_shape
from sim.traffic.generate import Traffic, without_adapters
from sim.world.faults.misrouting import check_misrouting_faults, check_stale_prefixes
from sim.world.memory.gpu_memory import check_gpus, check_sharding, usable_kv_tokens
from sim.world.memory.replica_caches import gpu_capacity, pinned_and_warm
from sim.world.pools.autoscaler import mean_cold_start_s
from sim.world.pools.full_model_layout import full_model_pools
from sim.world.rollouts.rollout_plan import NO_ROLLOUTS, RolloutPlan, plan_rollouts, with_new_versions
from sim.world.world import Pool, World
from sim.world.world_notes import notes_on

# Which requests the pools of a fleet take, and whether every request and every pool is reached.


def requests_taken(pool: PoolSpec, scenario: Scenario, traffic: Traffic) -> NDArray[np.bool_]:
    """Return which requests a pool takes, (adapters + 1,): by adapter, and last those to the base model.

    :raises ScenarioError: if the pool names kinds that the mix doesn't have, or tenants that there are not.
    """
    serves, population = pool.serves, traffic.population
    if not isinstance(serves, Served):
        return np.append(np.full(len(population), serves != "base"), serves != "adapters")
    _check_served(serves, scenario)
    of_mix = [place for place, kind in enumerate(scenario.adapters.mix) if kind.kind != "base"]
    kinds = [number for number, place in enumerate(of_mix) if place in serves.kinds]
    taken = np.append(np.isin(population.kind, kinds), False) if serves.kinds else np.ones(len(population) + 1, bool)
    if serves.tenants:
        assert traffic.tenant_of is not None, "there are tenants"
        places = [place for place, tenant in enumerate(scenario.tenants) if tenant.name in serves.tenants]
        taken &= np.isin(traffic.tenant_of, places)
    return taken


def _check_served(serves: Served, scenario: Scenario) -> None:
    tenants = [tenant.name for tenant in scenario.tenants]
    lora = [i for i, kind in enumerate(scenario.adapters.mix) if kind.kind == "lora"]
    if wrong := [kind for kind in serves.kinds if kind not in lora]:
        raise ScenarioError(
            "no such kind of adapters",
            key="fleet.serves.kinds",
            got=wrong[0],
            allowed=", ".join(map(str, lora)) or "nothing: adapters.mix has no kinds of adapters",
            hint="kinds are places in adapters.mix, counted from 0",
        )
    if unknown := [name for name in serves.tenants if name not in tenants]:
        allowed = ", ".join(tenants) or "nothing: the scenario has no tenants"
        raise ScenarioError("no such tenant", key="fleet.serves.tenants", got=unknown[0], allowed=allowed)


def taken_alone(
    pool: PoolSpec,
    scenario: Scenario,
    population: Population,
    takes: NDArray[np.bool_],
    shape: str | ModelShape,
    plan: RolloutPlan,
) -> tuple[Population, Scenario]:
    """Return the adapters as a pool's replicas know them, and its scenario with only the adapters that it takes.

    Slots are as large as those need. Replicas that serve the base model alone run without LoRA.

    :param population: of the fleet, with new versions; ``takes``: requests of the pool, without them.
    :param shape: of the base model, or its name.
    """
    adapters = scenario.adapters
    if not takes[:-1].any():
        alone = (AdapterKind(share=1.0, kind="base"),)
        return population, scenario.model_copy(update={"adapters": adapters.model_copy(update={"mix": alone})})
    if not isinstance(pool.serves, Served):
        return population, scenario
    of_mix = [kind for kind in adapters.mix if kind.kind != "base"]
    kinds = np.unique(population.kind[: len(takes) - 1][takes[:-1]]).tolist() if of_mix else []
    base = [kind for kind in adapters.mix if kind.kind == "base" and takes[-1]]
    own = adapters.model_copy(update={"mix": tuple([of_mix[number] for number in kinds] + base)})
    slot_bytes = plan.only(takes).slot_bytes(own, shape)
    return (
        population.alone(plan.extended(takes)[:-1], slot_bytes),
        scenario.model_copy(update={"adapters": own}),
    )


def check_same_model(first: Pool, other: Pool) -> None:
    """Refuse pools of different base models, whose adapters would not fit each other.

    :raises ScenarioError: key ``fleet``.
    """
    one, own = first.profile, other.profile
    if one is not None and own is not None and one.model != own.model:
        raise ScenarioError(
            "the pools of a fleet serve the same base model",
            key="fleet.profile",
            got=f"{one.model} in pool {first.name}, {own.model} in pool {other.name}",
            hint="set adapters.base_model and give each pool a gpu, or profiles of one model",
        )


def check_reachable(scenario: Scenario, pools: Sequence[Pool]) -> None:
    """Refuse a fleet in which a request has no pool, or a pool no request.

    :raises ScenarioError: with the key of the pool, or of all of them.
    """
    traffic, population = pools[0].traffic, pools[0].population
    wanted = np.zeros(len(population) + 1, dtype=np.bool_)
    wanted[-1] = traffic.base_share > 0
    if traffic.base_share < 1:
        wanted[: traffic.places] = traffic.shares() > 0
        wanted[traffic.places : -1] = True  # adapters and versions that arrive during the run
    taken = np.array([pool.takes for pool in pools])
    drawn = np.array([pool.weight > 0 or scenario.router.pools == "together" for pool in pools])
    lost = wanted & ~taken.any(axis=0)
    if lost[-1]:
        raise ScenarioError(
            "no pool takes requests to the base model",
            key="fleet.pools",
            got=f"{traffic.base_share:.3g} of the requests are for it",
            hint="give a pool serves: all or serves: base",
        )
    if lost.any():
        kinds = sorted({int(kind) for kind in population.kind[np.flatnonzero(lost)]})
        got, what = ", ".join(population.kind_names[kind] for kind in kinds), "these kinds"
        if traffic.tenant_of is not None:
            owners = sorted({int(place) for place in traffic.tenant_of[: traffic.places][lost[: traffic.places]]})
            got, what = f"those of {', '.join(scenario.tenants[i].name for i in owners)}", "these tenants"
        raise ScenarioError(
            "no pool takes requests for some adapters",
            key="fleet.pools",
            got=got,
            hint=f"give a pool serves: all or serves: adapters, or {what}",
        )
    if (wanted & ~(taken & drawn[:, None]).any(axis=0)).any():
        raise ScenarioError(
            "of the pools that take some requests, none has a weight above zero",
            key="fleet.pools",
            got=", ".join(pool.name for pool, is_drawn in zip(pools, drawn, strict=True) if not is_drawn),
            hint="give one of them a weight",
        )
    for pool, mask in zip(pools, taken, strict=True):
        if not (mask & wanted).any():
            place = next(i for i, spec in enumerate(scenario.fleet.pools) if spec.name == pool.name)
            raise ScenarioError(
                "no request is for this pool",
                key=f"fleet.pools.{place}.serves",
                got=pool.name,
                hint="the traffic has no such requests; remove the pool, or let it serve others",
            )


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
            _check_policies(own)
            check_gpus(own)
            profile, _ = profile_of(own)
            base_model = base_model_of(own, profile)
            shape = base_model if profile is None or profile.shape is None else base_shape(profile)
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
            spec = scenario.fleet.open_pools[place] if scenario.pools else None
            pool = _pool_of(own, spec, profile, shape, traffic, plan)
            if pools:
                check_same_model(pools[0], pool)
                pool = replace(pool, first=pools[-1].indices.stop)
            pools.append(pool)
            full = full_model_pools(pool, profile)
            for note in dict.fromkeys(notes_on(pool, full)):
                notes.setdefault(note, []).append(pool.name)
            _check_base_steps(pool)
            _check_cold_start(pool)
            _check_buckets(pool)
            pools += full
    assert traffic is not None, "a fleet has a pool"
    if scenario.pools:
        check_reachable(scenario, pools)
    _check_replicas(scenario, pools[-1].indices.stop)
    return World(
        scenario=without_adapters(scenario) if traffic.base_alone else scenario,
        traffic=traffic,
        pools=tuple(pools),
        profile_sha256=profiles_digest(scenario),
        rollout_plan=plan,
        notes=tuple(
            note if len(names) == max(1, len(scenario.pools)) else f"{' and '.join(names)}: {note}"
            for note, names in notes.items()
        ),
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
        takes = requests_taken(spec, scenario, traffic)
        population, scenario = taken_alone(spec, scenario, population, takes, shape, plan)
    takes = plan.extended(takes)
    weights, capacity = gpu_capacity(scenario.cache.gpu, population)
    pinned, warm = pinned_and_warm(scenario, traffic, weights, capacity, plan, takes)
    autoscale, adapter_blocks = scenario.fleet.autoscale, []
    warmed = 0 if autoscale is None else autoscale.cold_start.warm  # after the pinned ones, which come anyway
    if profile is not None and not fixed:
        check_sharding(scenario, profile, population)
    if profile is not None and scenario.cache.gpu.unified:
        block_bytes = profile.memory.kv_bytes_per_token * scenario.fleet.block_size
        adapter_blocks = [-(-int(size) // block_bytes) for size in population.size_bytes.tolist()]
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
        adapter_blocks=adapter_blocks,
        pinned=pinned,
        warm=warm,
        shares=traffic.shares() if scenario.cache.starts_full else np.zeros(0),
        rollout_plan=plan,
        warmed_up=tuple(traffic.hottest().tolist()[len(pinned) :][:warmed]) if warmed else (),
        base_weights=weights_kept,
        experts=None if fixed or profile is None else expert_reads(scenario, profile),
        weight=1.0 if spec is None else spec.weight,
        gpus=gpus_per_replica(scenario, profile),
        price=scenario.fleet.price,
        role="both" if spec is None else spec.role,
    )


def _check_policies(scenario: Scenario) -> None:
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


def _check_cold_start(pool: Pool) -> None:
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
    scenario = pool.scenario
    taken = min(scenario.fleet.max_model_len or inf, pool.kv_tokens or inf)
    for place, tenant in enumerate(scenario.tenants):
        if tenant.bucket is None or tenant.bucket.counts == "requests":
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


def _check_replicas(scenario: Scenario, replicas: int) -> None:
    for i, fault in enumerate(scenario.faults):
        replica = getattr(fault, "replica", None)
        if replica is not None and replica >= replicas:
            raise ScenarioError(
                "no such replica",
                key=f"faults.{i}.replica",
                got=replica,
                allowed=f"0 to {replicas - 1}",
                hint="those of full models follow the others",
            )


def _check_times(scenario: Scenario, traffic: Traffic) -> None:
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
