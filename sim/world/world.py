"""``World``: a checked scenario with everything needed to simulate it. ``build.py`` makes it and runs it."""

from __future__ import annotations

from dataclasses import dataclass, field, replace

import numpy as np
from numpy.typing import NDArray

from sim.policies.replica_memory import BaseWeights
from sim.spec.profile import Draw, Profile
from sim.spec.profile_choice import front_end_s
from sim.spec.scenario import Scenario
from sim.spec.sections.changes import BaseModelAnswers
from sim.spec.sections.laws import MAX_TOKENS
from sim.spec.sections.serving import FullModels
from sim.traffic.adapters import Population
from sim.traffic.generate import Traffic
from sim.world.pools.full_model_layout import without_lora
from sim.world.rollouts.rollout_plan import NO_ROLLOUTS, RolloutPlan


@dataclass(frozen=True, slots=True)
class World:
    """Everything a replication needs, read and checked once.

    :ivar kv_tokens: KV cache of one replica in tokens, rounded down to blocks; None for engine ``fixed``.
    :ivar weights: slots or bytes that each adapter takes of ``capacity``.
    :ivar adapter_blocks: KV blocks that each adapter takes, if adapters share memory with the KV cache.
    :ivar pinned: adapters that are resident from the start and never leave, the most popular first.
    :ivar warm: adapters that are resident at the start, as far as there is room, the last used first. Where caches
        start full, each replica gets its own (``steady_start``), from ``shares``: those of the requests by adapter.
        Workers elsewhere may lack the file that these are read from. Empty where caches don't start full.
    :ivar population: every adapter that caches may hold: those of the traffic, then new versions with names of their
        own.
    :ivar notes: sentences for the user.
    :ivar rollout_plan: adapters and versions of all rollouts.
    :ivar warmed_up: adapters that a replica loads before it serves, if it starts during the run.
    :ivar base_weights: format of the base model's weights, if it differs from the profile's; ``profile`` already
        includes its effect.
    :ivar takes: (adapters + 1,) whether these replicas take requests, by adapter and last for the base model; adapters
        that they don't take have no size here.
    :ivar whole_models: how these replicas serve full models, which are all that they serve; None: they serve adapters.
    :ivar pools: where a fleet has several kinds of replica, all of them, with a world each. The other fields are then
        those of the first pool, but ``scenario.fleet.replicas``, which counts the replicas of all pools without those
        of full models.
    """

    scenario: Scenario
    traffic: Traffic
    population: Population
    profile: Profile | None
    profile_sha256: str
    kv_tokens: int | None
    weights: list[int]
    capacity: int
    ranks: list[int]
    takes: NDArray[np.bool_]
    adapter_blocks: list[int] = field(default_factory=list)
    pinned: tuple[int, ...] = ()
    warm: tuple[int, ...] = ()
    shares: NDArray[np.float64] = field(default_factory=lambda: np.zeros(0))
    notes: tuple[str, ...] = field(default=())
    rollout_plan: RolloutPlan = NO_ROLLOUTS
    warmed_up: tuple[int, ...] = ()
    base_weights: BaseWeights | None = None
    whole_models: FullModels | None = None
    pools: tuple[ReplicaPool, ...] = ()

    @property
    def batched_tokens(self) -> int:
        """Token budget of a step: the scenario's, or its share of the KV cache if that is more."""
        fleet = self.scenario.fleet
        share = int(fleet.budget_kv_share * (self.kv_tokens or 0))
        return max(fleet.max_num_batched_tokens, min(share, MAX_TOKENS))

    @property
    def asynchronous(self) -> bool:
        """Whether replicas decide a step while the GPU computes the one before."""
        return self.scenario.fleet.async_scheduling and self.profile is not None and not self.profile.is_cpu

    @property
    def replicas(self) -> int:
        """Number of replicas, those of full models included; with an autoscaler, of places for them."""
        return self.pools[-1].indices.stop if self.pools else self.scenario.fleet.places

    @property
    def warm_in_host(self) -> bool:
        """Whether warm adapters that find no room on the GPU are in host memory at the start: in the steady state, and
        where a replica has loaded them all before it serves."""
        return self.scenario.cache.starts_full or (bool(self.warmed_up) and self.warm == self.warmed_up)

    @property
    def base_model(self) -> int:
        """The number that stands for an adapter in replicas where a request is for the base model."""
        return len(self.population)

    @property
    def serves_base_model(self) -> bool:
        """Whether replicas serve requests without an adapter: the traffic has some, or a fault makes some."""
        by_fault = any(isinstance(fault, BaseModelAnswers) for fault in self.scenario.faults)
        return bool(self.takes[-1]) and (by_fault or self.traffic.base_share > 0)

    @property
    def serves_full_models(self) -> bool:
        """Whether these replicas serve full models; otherwise they serve the base model, adapters or both."""
        return self.whole_models is not None

    @property
    def prefix_cache(self) -> bool:
        """Whether replicas look for the beginnings of prompts in their KV caches, and may find any."""
        return self.scenario.fleet.prefix_caching and self.traffic.shares_text

    @property
    def front_end_s(self) -> float:
        """Seconds of a request between client and engine, at these replicas."""
        return front_end_s(self.scenario.fleet, self.profile)

    @property
    def front_ends_s(self) -> NDArray[np.float64]:
        """(replicas,) the same of every replica."""
        if not self.pools:
            return np.full(self.replicas, self.front_end_s)
        return np.concatenate([np.full(pool.replicas, pool.world.front_end_s) for pool in self.pools])

    def behind(self, front_end_s: float) -> World:
        """Return this world with other seconds between client and engine."""
        fleet = self.scenario.fleet.model_copy(update={"front_end_time": front_end_s})
        found = replace(self, scenario=self.scenario.model_copy(update={"fleet": fleet}))
        return replace(found, pools=tuple(pool.with_world(pool.world.behind(front_end_s)) for pool in self.pools))

    @property
    def own_pools(self) -> tuple[ReplicaPool, ...]:
        """The pools of ``fleet.pools``; () in a fleet without, whether it has replicas of full models or not."""
        return () if any(pool.world.serves_full_models for pool in self.pools) else self.pools

    @property
    def draws(self) -> int:
        """Number of draws of the profile; of several profiles that have some, the smallest number."""
        worlds = [pool.world for pool in self.pools if not pool.world.serves_full_models] or [self]
        counts = [len(world.profile.draws) for world in worlds if world.profile]
        return min(filter(None, counts), default=0)

    def with_draw(self, number: int) -> World:
        """Return this world with the costs of one draw of its profile; each pool takes that draw of its own.

        :param number: below ``draws``.
        """
        found = self
        if self.profile is not None and self.profile.draws:
            found = self._with_own_costs(self.profile.draws[number])
        return replace(found, pools=tuple(pool.with_world(pool.world.with_draw(number)) for pool in self.pools))

    def with_costs(self, costs: Draw) -> World:
        """Return this world with other step and load costs, and the same traffic, memory and fleet.

        :param costs: for base weights in the profile's format.
        """
        found = self._with_own_costs(costs)
        return replace(found, pools=tuple(pool.with_world(pool.world.with_costs(costs)) for pool in self.pools))

    def _with_own_costs(self, costs: Draw) -> World:
        assert self.profile is not None, "costs belong to a profile"
        own = costs if self.base_weights is None else self.base_weights.drawn(costs)
        if self.serves_full_models:
            own = without_lora(costs)
        profile = self.profile.model_copy(update={"step": own.step, "load": own.load, "draws": ()})
        return replace(self, profile=profile)


@dataclass(frozen=True, slots=True)
class ReplicaPool:
    """The replicas of one kind in a fleet. Their indices follow those of the pools before them.

    :ivar name: as ``fleet.pools`` gives it; that of full models is "full models".
    :ivar world: as these replicas see it: with costs, memory and caches of their own, and the traffic of the fleet.
    :ivar first: index of the first replica.
    :ivar weight: share of the requests, relative to others, where a pool is drawn by weight.
    :ivar gpus: of one replica; ``price``: of one GPU, in US dollars per hour.
    """

    name: str
    world: World
    first: int
    replicas: int
    weight: float = 1.0
    gpus: int = 1
    price: float | None = None

    @property
    def indices(self) -> range:
        """The indices of its replicas."""
        return range(self.first, self.first + self.replicas)

    def takes(self, adapter: int) -> bool:
        """Return whether it takes requests for an adapter; -1: for the base model."""
        return bool(self.world.takes[adapter])

    def with_world(self, world: World) -> ReplicaPool:
        """Return the same replicas in another world."""
        return replace(self, world=world)
