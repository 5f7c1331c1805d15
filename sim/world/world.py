"""``World``: a checked scenario with everything needed to simulate it. ``build.py`` makes it.

A fleet is a tuple of pools, replicas of one kind each. Most fleets have one.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace

import numpy as np
from numpy.typing import NDArray

from sim.policies.replica_memory import BaseWeights, ExpertReads
from sim.policies.speculation import accept_length
from sim.spec.profile import Draw, LoraCost, Profile
from sim.spec.profile_choice import front_end_s
from sim.spec.scenario import Scenario
from sim.spec.sections.changes import BaseModelAnswers
from sim.spec.sections.laws import MAX_TOKENS
from sim.spec.sections.serving import FullModels
from sim.traffic.adapters import Population
from sim.traffic.generate import Traffic
from sim.world.rollouts.rollout_plan import NO_ROLLOUTS, RolloutPlan


@dataclass(frozen=True, slots=True)
class Pool:
    """The replicas of one kind in a fleet. Their indices follow those of the pools before them.

    :ivar name: as ``fleet.pools`` gives it; that of full models is "full models".
    :ivar first: index of the first replica; ``replicas``: how many there are at most, with an autoscaler.
    :ivar scenario: what ``fleet``, ``cache``, ``storage`` and ``adapters`` are for these replicas; the rest is as in
        the fleet.
    :ivar traffic: of the fleet.
    :ivar population: every adapter that caches may hold: those of the traffic, then new versions with names of their
        own.
    :ivar profile: includes the effect of ``base_weights``.
    :ivar kv_tokens: KV cache of one replica in tokens, rounded down to blocks; None for engine ``fixed``.
    :ivar weights: slots or bytes that each adapter takes of ``capacity``.
    :ivar takes: (adapters + 1,) whether these replicas take requests, by adapter and last for the base model; adapters
        that they don't take have no size here.
    :ivar adapter_blocks: KV blocks that each adapter takes, if adapters share memory with the KV cache.
    :ivar pinned: adapters that are resident from the start and never leave, the most popular first.
    :ivar warm: adapters that are resident at the start, as far as there is room, the last used first. Where caches
        start full, each replica gets its own (``SteadyStart``), from ``shares``: those of the requests by adapter.
        Workers elsewhere may lack the file that these are read from. Empty where caches don't start full.
    :ivar warmed_up: adapters that a replica loads before it serves, if it starts during the run.
    :ivar base_weights: format of the base model's weights, if it differs from the profile's.
    :ivar experts: what steps read of adapters on experts; None: there are none.
    :ivar whole_models: how these replicas serve full models, which are all that they serve; None: they serve adapters.
    :ivar weight: share of the requests, relative to others, where a pool is drawn by weight.
    :ivar role: ``both``, ``prefill`` or ``decode``.
    :ivar gpus: of one replica; ``price``: of one GPU, in US dollars per hour.
    """

    name: str
    first: int
    replicas: int
    scenario: Scenario
    traffic: Traffic
    population: Population
    profile: Profile | None
    kv_tokens: int | None
    weights: list[int]
    capacity: int
    ranks: list[int]
    takes: NDArray[np.bool_]
    adapter_blocks: list[int] = field(default_factory=list)
    pinned: tuple[int, ...] = ()
    warm: tuple[int, ...] = ()
    shares: NDArray[np.float64] = field(default_factory=lambda: np.zeros(0))
    rollout_plan: RolloutPlan = NO_ROLLOUTS
    warmed_up: tuple[int, ...] = ()
    base_weights: BaseWeights | None = None
    experts: ExpertReads | None = None
    whole_models: FullModels | None = None
    weight: float = 1.0
    gpus: int = 1
    price: float | None = None
    role: str = "both"

    @property
    def indices(self) -> range:
        """The indices of its replicas."""
        return range(self.first, self.first + self.replicas)

    @property
    def serving(self) -> range:
        """The indices of the replicas that serve at the start; an autoscaler may fill the other places."""
        return self.indices if self.whole_models is not None else self.indices[: self.scenario.fleet.replicas]

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
    def acceptances(self) -> list[tuple[float, ...]]:
        """Of drafts for each adapter, the last for the base model: by position of the drafted token."""
        spec, adapters = self.scenario.fleet.speculation, self.scenario.adapters
        if spec is None:
            return []
        by_kind = [kind.acceptance or spec.acceptance for kind in adapters.of_adapters or (adapters,)]
        return [*(by_kind[kind] for kind in self.population.kind.tolist()), spec.acceptance]

    @property
    def accept_length(self) -> float:
        """Tokens that a sequence is expected to get in a step, mean over all steps; 1 without speculation."""
        spec, base = self.scenario.fleet.speculation, self.traffic.base_share
        if spec is None:
            return 1.0
        shares = self.traffic.shares() * (1 - base)
        lengths = np.array([accept_length(each, spec.tokens) for each in self.acceptances])
        asked = np.append(shares * self.takes[: len(shares)], base * self.takes[-1])
        if not asked.any():  # all requests are for full models: as the base model's would be
            return float(lengths[-1])
        return float(asked.sum() / (asked / np.append(lengths[: len(shares)], lengths[-1])).sum())

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
        return self.whole_models is None and (by_fault or (bool(self.takes[-1]) and self.traffic.base_share > 0))

    @property
    def prefix_cache(self) -> bool:
        """Whether replicas look for the beginnings of prompts in their KV caches, and may find any."""
        return self.scenario.fleet.prefix_caching and self.traffic.shares_text

    @property
    def front_end_s(self) -> float:
        """Seconds of a request between client and engine, at these replicas."""
        return front_end_s(self.scenario.fleet, self.profile)

    @property
    def draws(self) -> tuple[Draw, ...]:
        """The draws of its profile, if it has a profile."""
        return () if self.profile is None else self.profile.draws

    def with_costs(self, costs: Draw) -> Pool:
        """Return this pool with other step and load costs.

        :param costs: for base weights in the profile's format.
        """
        assert self.profile is not None, "costs belong to a profile"
        own = costs if self.base_weights is None else self.base_weights.drawn(costs)
        if self.whole_models is not None:
            own = without_lora(costs)
        profile = self.profile.model_copy(update={"step": own.step, "load": own.load, "draws": ()})
        return replace(self, profile=profile)


def without_lora(costs: Draw) -> Draw:
    """Return costs of replicas that serve whole models: without LoRA, and with loads that take the same time each."""
    step = costs.step.model_copy(update={"lora": LoraCost(), "per_passed_s": 0.0})
    storage = costs.load.storage.model_copy(update={"residual": (1.0,)})
    return Draw(step=step, load=costs.load.model_copy(update={"storage": storage}))


@dataclass(frozen=True, slots=True)
class World:
    """Everything a replication needs, read and checked once.

    :ivar scenario: without adapters where a trace has none.
    :ivar rollout_plan: adapters and versions of all rollouts.
    :ivar pools: those of ``fleet.pools``, or else one; then those of full models.
    :ivar profile_sha256: of the profiles of all pools.
    :ivar notes: sentences for the user.
    """

    scenario: Scenario
    traffic: Traffic
    pools: tuple[Pool, ...]
    profile_sha256: str
    rollout_plan: RolloutPlan = NO_ROLLOUTS
    notes: tuple[str, ...] = ()

    @property
    def own_pools(self) -> tuple[Pool, ...]:
        """The pools of the base model and its adapters."""
        return tuple(pool for pool in self.pools if pool.whole_models is None)

    @property
    def replicas(self) -> int:
        """Number of replicas, those of full models included; with an autoscaler, of places for them."""
        return self.pools[-1].indices.stop

    @property
    def own_replicas(self) -> int:
        """The same of the base model and its adapters."""
        return self.own_pools[-1].indices.stop

    @property
    def gpus(self) -> int:
        """GPUs of all replicas."""
        return sum(pool.replicas * pool.gpus for pool in self.pools)

    @property
    def base_model(self) -> int:
        """The number that stands for an adapter in replicas where a request is for the base model."""
        return self.pools[0].base_model

    @property
    def front_ends_s(self) -> NDArray[np.float64]:
        """(replicas,) seconds of a request between client and engine."""
        return np.concatenate([np.full(pool.replicas, pool.front_end_s) for pool in self.pools])

    @property
    def draws(self) -> int:
        """Number of draws of the profile; of several profiles that have some, the smallest number."""
        return min(filter(None, (len(pool.draws) for pool in self.own_pools)), default=0)

    def with_draw(self, number: int) -> World:
        """Return this world with the costs of one draw of its profile; each pool takes that draw of its own.

        :param number: below ``draws``.
        """

        def drawn(pool: Pool) -> Pool:
            experts = pool.experts and pool.experts.drawn(number, len(pool.draws))
            return replace(pool.with_costs(pool.draws[number]), experts=experts)

        return self._with_pools(lambda pool: drawn(pool) if pool.draws else pool)

    def with_costs(self, costs: Draw) -> World:
        """Return this world with other step and load costs, and the same traffic, memory and fleet."""
        return self._with_pools(lambda pool: pool.with_costs(costs))

    def behind(self, front_end_s: float) -> World:
        """Return this world with other seconds between client and engine."""

        def moved(pool: Pool) -> Pool:
            fleet = pool.scenario.fleet.model_copy(update={"front_end_time": front_end_s})
            return replace(pool, scenario=pool.scenario.model_copy(update={"fleet": fleet}))

        return self._with_pools(moved)

    def _with_pools(self, changed: Callable[[Pool], Pool]) -> World:
        return replace(self, pools=tuple(map(changed, self.pools)))
