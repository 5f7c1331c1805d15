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

from sim.spec.adapter_modes import check_modes
from sim.spec.base import Strict, located
from sim.spec.checks.placement_checks import check_controller
from sim.spec.checks.tenant_checks import (
    check_buckets,
    check_prices,
    check_scheduling,
    check_tenants,
    with_tenants_rate,
)
from sim.spec.engines import fill
from sim.spec.files.pool_scenarios import pool_scenarios
from sim.spec.full_model_checks import check_full_models
from sim.spec.policies import EVICTIONS, ROUTERS, EvictionEntry, Given, RouterEntry, given_in
from sim.spec.sections.arrival_processes import Arrivals, ClosedArrivals
from sim.spec.sections.autoscaling import check_autoscale
from sim.spec.sections.faults import FailingLoads, Fault, NamedPrefixes, check_faults
from sim.spec.sections.full_models import FullModels
from sim.spec.sections.plan_question import Plan
from sim.spec.sections.pools import check_pool_routing, check_pool_support
from sim.spec.sections.popularity_laws import GroupsPopularity, Popularity, WeightsPopularity
from sim.spec.sections.rollout_strategies import Rollout, check_rollouts
from sim.spec.sections.routing import Router
from sim.spec.sections.serving import (
    Cache,
    Fleet,
    GpuCache,
    HostCache,
    Pool,
    Storage,
)
from sim.spec.sections.tenants import Slo, Tenant
from sim.spec.sections.times_of_day import counted_from_start
from sim.spec.sections.workload import Adapters, Targets, Workload
from sim.spec.units import Share

__all__ = [
    "Adapters",
    "Arrivals",
    "Cache",
    "Fleet",
    "FullModels",
    "GpuCache",
    "HostCache",
    "Pool",
    "Popularity",
    "Router",
    "Run",
    "Scenario",
    "Slo",
    "Storage",
    "Targets",
    "Tenant",
    "Workload",
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

    @model_validator(mode="after")
    def _useful(self) -> Run:
        if self.half_width is not None and not self.half_width > 0:
            raise located("half_width", "a half-width must be above zero", got=self.half_width)
        return self


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
    def _with_pools(cls, data: Any, check: ModelWrapValidatorHandler[Scenario], info: ValidationInfo) -> Scenario:
        scenario = check(data)
        if scenario.fleet.pools and isinstance(data, dict):
            scenario._pools = pool_scenarios(cls, data, info.context)
            scenario._fits_pools()
        return scenario

    @model_validator(mode="before")
    @classmethod
    def _fill_in(cls, data: Any) -> Any:
        return with_tenants_rate(counted_from_start(fill(data)))

    @model_validator(mode="after")
    def _remember(self, info: ValidationInfo) -> Scenario:
        self._given = given_in(info.context)
        return self

    @property
    def given(self) -> Given:
        """Policies that the call which read this scenario brought along."""
        return self._given

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

    @model_validator(mode="after")
    def _whole(self) -> Scenario:
        named_by_file = isinstance(self.workload.popularity, WeightsPopularity) or self.workload.trace is not None
        popularity = self.workload.popularity
        if isinstance(popularity, GroupsPopularity) and self.workload.trace is None:
            grouped = sum(group.adapters for group in popularity.groups)
            if grouped != self.adapters.count:
                raise located(
                    "workload.popularity.groups",
                    "the groups don't add up to adapters.count",
                    got=f"{grouped} in groups, adapters.count {self.adapters.count}",
                )
            if not sum(group.adapters * group.weight for group in popularity.groups) > 0:
                raise located("workload.popularity.groups", "no weight above zero")
        if self.adapters.base_alone and self.rollouts:
            raise located("rollouts", "all requests are for the base model, so no adapter has a new version")
        if self.adapters.base_alone and self.slo.miss_ratio is not None:
            raise located("slo.miss_ratio", "all requests are for the base model, so none can miss", hint="remove it")
        if self.adapters.count is None and not named_by_file and not self.adapters.base_alone:
            raise located("adapters.count", "the number of adapters is missing", hint="give count: 1000")
        if self.run.half_width is not None and (self.workload.trace is not None or self.workload.requests is None):
            raise located(
                "run.half_width",
                "only a run of generated requests can be lengthened",
                hint="give workload.requests, or remove half_width",
            )
        check_pool_routing(self.fleet.pools, self.router)
        self.router.check_copies(self.fleet.total)
        if self.fleet.pools:
            return self  # the rest is checked for each pool
        self._fits_closed_loop()
        check_modes(self)
        check_autoscale(self)
        check_controller(self)
        check_scheduling(self)
        check_tenants(self.tenants, self.workload, self.adapters)
        check_buckets(self.tenants, self.eviction_policy)
        check_prices(self.tenants, self.fleet.engine)
        changes = {"rollouts": len(self.rollouts), "faults": len(self.faults)}
        eviction, router = self.eviction_policy, self.router_policy
        check_full_models(self.adapters, self.fleet, eviction, router, self.workload, changes)
        if self.adapters.base_quantization != "bf16" and self.fleet.engine == "fixed":
            raise located(
                "adapters.base_quantization",
                "engine fixed has no weights: its service time is given",
                got=self.adapters.base_quantization,
                allowed="bf16",
            )
        if self.rollouts or self.faults:
            self._fits_changes()
            self._replicas_fit_changes()
        return self

    def _fits_pools(self) -> None:
        """Refuse what a fleet of pools doesn't support."""
        check_pool_support(self._pools, self.router_policy, self.router, self.faults)
        if self.rollouts or self.faults:
            self._fits_changes()
            for pool in self.pools:
                pool._replicas_fit_changes()

    def _fits_closed_loop(self) -> None:
        """Refuse a policy that needs all requests to come, where a closed loop has no last one."""
        closed = isinstance(self.workload.arrivals, ClosedArrivals)
        if closed and self.workload.requests is None and self.eviction_policy.needs_future:
            raise located(
                "workload.duration",
                f"eviction {self.cache.eviction} needs to know all requests, and a closed loop has no last one",
                hint="give workload.requests instead, or choose another cache.eviction",
            )

    def _fits_changes(self) -> None:
        """Check rollouts and faults."""
        check_rollouts(self.rollouts)
        places = self.fleet.total if self.fleet.pools else self.fleet.places
        check_faults(self.faults, places, in_pools=bool(self.fleet.pools))
        end_s = self.workload.duration
        for key in ("rollouts", "faults"):
            for i, change in enumerate(getattr(self, key)):
                if end_s is not None and getattr(change, "at", 0.0) >= end_s:
                    raise located(
                        f"{key}.{i}.at",
                        "starts after the end of the run",
                        got=f"{change.at:g} s",
                        allowed=f"below workload.duration ({end_s:g} s)",
                    )
        if any(isinstance(fault, NamedPrefixes) for fault in self.faults) and all(
            rollout.strategy in ("new-name", "lazy-reread") for rollout in self.rollouts
        ):
            i = next(i for i, fault in enumerate(self.faults) if isinstance(fault, NamedPrefixes))
            raise located(
                f"faults.{i}", "no rollout swaps weights under the same name", hint="such as strategy: in-place"
            )

    def _replicas_fit_changes(self) -> None:
        """Check whether replicas of this kind go with rollouts and faults."""
        what = "rollouts" if self.rollouts else "faults"
        if self.eviction_policy.needs_future:
            raise located(
                what,
                f"eviction {self.cache.eviction} needs a fleet that doesn't change during the run",
                hint="choose another cache.eviction",
            )
        if self.fleet.front_end != "none":
            raise located(
                what,
                "this front end reproduces measured runs without such changes",
                got=self.fleet.front_end,
                hint="set fleet.front_end: none",
            )
        for i, fault in enumerate(self.faults):
            if isinstance(fault, FailingLoads):
                self._fits_failing_loads(f"faults.{i}")

    def _fits_failing_loads(self, key: str) -> None:
        """Refuse what this version does not support with failing loads."""
        if self.cache.eviction == "vllm-lru" and self.fleet.batching == "prefill-first":
            raise located(
                key,
                "failing loads with cache.eviction vllm-lru need steps that also decode",
                got=f"fleet.batching {self.fleet.batching}",
                allowed="mixed",
            )
        if self.cache.protects == "batch" and self.storage.mode == "overlap":
            raise located(
                key,
                "failing loads that overlap with steps are not supported with slots that protect a step",
                got=f"cache.protects {self.cache.protects}",
                allowed="running",
            )
        if self.cache.prefetch != "none":
            raise located(
                key,
                "a prefetched load has no waiting request that could fail",
                got=f"failing-loads with cache.prefetch {self.cache.prefetch}",
                allowed="cache.prefetch none",
            )
        for i, rollout in enumerate(self.rollouts):
            if rollout.strategy in ("in-place", "unload-then-load", "drain-then-swap"):
                raise located(
                    key,
                    "in-place swaps whose load fails are not supported",
                    got=f"failing-loads with rollouts.{i}.strategy {rollout.strategy}",
                    allowed="new-name, lazy-reread",
                )

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
