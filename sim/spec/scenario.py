"""The scenario: traffic, adapters, fleet and the targets it must meet.

Sections come in the order of the user's questions; all but ``workload`` and ``adapters`` have
defaults. The docstring under a field is its description in the JSON Schema and in the reference.
"""

from __future__ import annotations

from typing import Any, Literal

from pydantic import (
    Field,
    ModelWrapValidatorHandler,
    NonNegativeInt,
    PositiveInt,
    PrivateAttr,
    ValidationInfo,
    model_validator,
)

from sim.spec.base import Strict
from sim.spec.engines import fill
from sim.spec.files.pool_scenarios import pool_scenarios
from sim.spec.policies import EVICTIONS, ROUTERS, EvictionEntry, Given, RouterEntry, given_in
from sim.spec.rules import check
from sim.spec.sections.faults import Fault
from sim.spec.sections.plan_question import Plan
from sim.spec.sections.rollout_strategies import Rollout
from sim.spec.sections.routing import Router
from sim.spec.sections.serving import (
    Cache,
    Fleet,
    GpuCache,
    HostCache,
    Pool,
    Storage,
)
from sim.spec.sections.tenants import Slo, Tenant, with_tenants_rate
from sim.spec.sections.workload import Adapters, Targets, Workload, counted_from_start
from sim.spec.units import Share

__all__ = [
    "Adapters",
    "Cache",
    "Fleet",
    "GpuCache",
    "HostCache",
    "Pool",
    "Run",
    "Scenario",
    "Slo",
    "Storage",
    "Targets",
]


_SHARED_BY_POOLS = ("workload", "adapters", "tenants", "slo", "run", "router", "rollouts", "faults")
"""Sections that all pools of a fleet have in common."""


class Run(Strict):
    """How long and how often to simulate."""

    seed: NonNegativeInt = Field(default=1, lt=2**63)
    """All randomness follows from it."""
    replications: PositiveInt = Field(default=5, le=10000)
    """Independent repetitions; more of them make intervals narrower."""
    warmup: Share = Field(default=0.05, lt=1)
    """Share of the requests (or of the duration) at the start that is simulated but not measured."""
    half_width: Share | None = Field(default=None, gt=0)
    """Double the requests until the 95 % half-width of p99 E2E is reliably below this share of its value."""
    max_requests: PositiveInt = 4_000_000
    """With ``half_width``: stop doubling at this many requests per replication."""


class Scenario(Strict):
    """A capacity question: traffic, adapters, fleet, and the objective it must meet."""

    schema_version: Literal[1]
    """Version of this file format."""
    name: str = Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,63}$")
    """Short name; the run directory is named after it."""
    description: str = ""
    """A sentence for the report."""
    workload: Workload
    """The traffic."""
    adapters: Adapters
    """The adapters."""
    fleet: Fleet = Fleet()
    """The replicas."""
    cache: Cache = Cache()
    """Where adapters are kept."""
    storage: Storage = Storage()
    """Where adapters are loaded from."""
    router: Router = Router()
    """How requests are assigned to replicas."""
    rollouts: tuple[Rollout, ...] = Field(default=(), max_length=1000)
    """New adapter versions that are rolled out during the run."""
    faults: tuple[Fault, ...] = Field(default=(), max_length=1000)
    """Failures during the run."""
    slo: Slo = Slo()
    """The service-level objective of the fleet."""
    tenants: tuple[Tenant, ...] = Field(default=(), max_length=1000)
    """Groups of requests with a share of the traffic, an objective, a priority and a token bucket of their own. Unset:
    there are none (docs/tenants.md)."""
    run: Run = Run()
    """How long and how often to simulate."""
    sweep: dict[str, tuple[Any, ...]] = Field(default_factory=dict)
    """For ``loraplan sweep``: values by key, such as ``cache.gpu.slots: [16, 32, 64]``; all combinations run."""

    plan: Plan | None = None
    """For ``loraplan plan``: the value to find."""
    _given: Given = PrivateAttr(default_factory=Given)
    _pools: tuple[Scenario, ...] = PrivateAttr(default=())

    @model_validator(mode="wrap")
    @classmethod
    def _whole(cls, data: Any, of_sections: ModelWrapValidatorHandler[Scenario], info: ValidationInfo) -> Scenario:
        scenario = of_sections(data)
        scenario._given = given_in(info.context)
        if scenario.fleet.pools and isinstance(data, dict):
            scenario._pools = pool_scenarios(cls, data, info.context)
        check(scenario)
        return scenario

    @model_validator(mode="before")
    @classmethod
    def _fill_in(cls, data: Any) -> Any:
        return with_tenants_rate(counted_from_start(fill(data)))

    @property
    def given(self) -> Given:
        """Policies that the call which read this scenario brought along."""
        return self._given

    @property
    def kinds(self) -> tuple[Scenario, ...]:
        """What ``fleet``, ``cache`` and ``storage`` are in each of ``fleet.pools``, as scenarios; () without pools."""
        return self._pools

    @property
    def pools(self) -> tuple[Scenario, ...]:
        """The scenario of each of ``fleet.open_pools``; () without pools.

        What is not of ``fleet``, ``cache`` and ``storage`` is as here.
        """
        shared = {name: getattr(self, name) for name in _SHARED_BY_POOLS}
        of_each = zip(self.fleet.pools, self._pools, strict=True) if self._pools else ()
        return tuple(own.model_copy(update=shared) for pool, own in of_each if pool.replicas)

    @property
    def eviction_policy(self) -> EvictionEntry:
        """The eviction policy, with its facts."""
        name = self.cache.eviction
        return EVICTIONS.get(name, self._given.evictions) or EvictionEntry(name=name, origin="another package")

    @property
    def router_policy(self) -> RouterEntry:
        """The router, with its facts."""
        name = self.router.policy
        return ROUTERS.get(name, self._given.routers) or RouterEntry(name=name, origin="another package")

    @property
    def changed_by(self) -> Literal["rollouts", "faults", ""]:
        """The section that changes the fleet during the run; empty: nothing does."""
        return "rollouts" if self.rollouts else "faults" if self.faults else ""

    @property
    def has_names(self) -> bool:
        """Whether a file names the adapters, or at least says how many there are."""
        return self.workload.popularity.law == "weights" or self.workload.trace is not None

    @property
    def has_host_tier(self) -> bool:
        """Whether adapters can come from host memory."""
        return self.cache.host is not None or self.cache.eviction == "vllm-lru"

    @property
    def load_at(self) -> Literal["arrival", "admission"]:
        """When loads start, with the default resolved."""
        if self.fleet.load_at is not None:
            return self.fleet.load_at
        waits = self.fleet.admission != "skip" or self.storage.mode == "blocking"
        return "admission" if waits and self.fleet.engine != "fixed" else "arrival"
