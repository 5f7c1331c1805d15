"""``World``: a checked scenario with everything needed to simulate it. ``build.py`` makes it and runs it."""

from __future__ import annotations

from dataclasses import dataclass, field, replace

import numpy as np
from numpy.typing import NDArray

from sim.policies.base_weights import BaseWeights
from sim.spec.profile import Draw, Profile
from sim.spec.scenario import Scenario
from sim.spec.sections.faults import BaseModelAnswers
from sim.spec.sections.laws import MAX_TOKENS
from sim.traffic.adapters import Population
from sim.traffic.generate import Traffic
from sim.world.pools.full_model_layout import FullModelFleet
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
        Workers elsewhere may lack the file that these are read from. None where caches don't start full.
    :ivar population: every adapter that caches may hold: those of the traffic, then new versions with names of their
        own.
    :ivar notes: sentences for the user.
    :ivar rollout_plan: adapters and versions of all rollouts.
    :ivar full: the replicas of full models; None: there are none. In all other fields, full models are adapters without
        size or requests.
    :ivar warmed_up: adapters that a replica loads before it serves, if it starts during the run.
    :ivar base_weights: format of the base model's weights, if it differs from the profile's; ``profile`` already
        includes its effect.
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
    adapter_blocks: list[int] = field(default_factory=list)
    pinned: tuple[int, ...] = ()
    warm: tuple[int, ...] = ()
    shares: NDArray[np.float64] | None = None
    notes: tuple[str, ...] = field(default=())
    rollout_plan: RolloutPlan = NO_ROLLOUTS
    full: FullModelFleet | None = None
    warmed_up: tuple[int, ...] = ()
    base_weights: BaseWeights | None = None

    @property
    def batched_tokens(self) -> int:
        """Token budget of a step: the scenario's, or its share of the KV cache if that is more."""
        fleet = self.scenario.fleet
        share = int(fleet.budget_kv_share * (self.kv_tokens or 0))
        return max(fleet.max_num_batched_tokens, min(share, MAX_TOKENS))

    @property
    def replicas(self) -> int:
        """Number of replicas, those of full models included; with an autoscaler, of places for them."""
        return self.scenario.fleet.places + (0 if self.full is None else self.full.replicas)

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
        return by_fault or self.traffic.base_share > 0

    @property
    def prefix_cache(self) -> bool:
        """Whether replicas look for the beginnings of prompts in their KV caches, and may find any."""
        return self.scenario.fleet.prefix_caching and self.traffic.shares_text

    def with_costs(self, costs: Draw) -> World:
        """Return this world with other step and load costs, and the same traffic, memory and fleet.

        :param costs: for base weights in the profile's format.
        """
        assert self.profile is not None, "costs belong to a profile"
        own = costs if self.base_weights is None else self.base_weights.drawn(costs)
        profile = self.profile.model_copy(update={"step": own.step, "load": own.load, "draws": ()})
        return replace(self, profile=profile, full=None if self.full is None else self.full.with_costs(costs))
