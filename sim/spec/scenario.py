"""The scenario: traffic, adapters, fleet and the targets it must meet.

Sections come in the order of the user's questions; all but ``workload`` and ``adapters`` have
defaults. The docstring under a field is its description in the JSON Schema and in the reference.
"""

from __future__ import annotations

from typing import Any, Literal

from pydantic import Field, NonNegativeInt, PositiveInt, PrivateAttr, ValidationInfo, model_validator

from sim.spec.base import Strict, located
from sim.spec.engines import fill
from sim.spec.full_model_checks import check_full_models
from sim.spec.policies import EVICTIONS, ROUTERS, EvictionEntry, Given, RouterEntry, given_in
from sim.spec.sections.arrival_processes import Arrivals
from sim.spec.sections.faults import FailingLoads, Fault, NamedPrefixes, check_faults
from sim.spec.sections.full_models import FullModels
from sim.spec.sections.plan_question import Plan
from sim.spec.sections.popularity_laws import GroupsPopularity, Popularity, WeightsPopularity
from sim.spec.sections.rollout_strategies import Rollout, check_rollouts
from sim.spec.sections.routing import Router
from sim.spec.sections.serving import (
    DEFAULT_PROFILE,
    Cache,
    Fleet,
    GpuCache,
    HostCache,
    Storage,
)
from sim.spec.sections.workload import Adapters, Targets, Workload
from sim.spec.units import Seconds, Share

__all__ = [
    "DEFAULT_PROFILE",
    "Adapters",
    "Arrivals",
    "Cache",
    "Fleet",
    "FullModels",
    "GpuCache",
    "HostCache",
    "Popularity",
    "Router",
    "Run",
    "Scenario",
    "Slo",
    "Storage",
    "Targets",
    "Workload",
]


class Slo(Strict):
    """The service-level objective; every term must hold."""

    ttft_mean: Seconds | None = None
    """Mean time to first token."""
    ttft_p50: Seconds | None = None
    """Median time to first token."""
    ttft_p99: Seconds | None = None
    """99 % of first tokens arrive within this time."""
    tpot_mean: Seconds | None = None
    """Mean time per output token after the first."""
    itl_mean: Seconds | None = None
    """Mean gap between tokens."""
    itl_p99: Seconds | None = None
    """99 % of gaps between tokens are shorter."""
    e2e_mean: Seconds | None = None
    """Mean time from arrival to last token."""
    e2e_p50: Seconds | None = None
    """Median time from arrival to last token."""
    e2e_p99: Seconds | None = None
    """99 % of requests end within this time."""
    queue_mean: Seconds | None = None
    """Mean time a request waits before it is admitted."""
    queue_p99: Seconds | None = None
    """99 % of requests are admitted within this time."""
    miss_ratio: Share | None = None
    """Share of admitted requests that had to start a load."""

    def terms(self) -> dict[str, float]:
        """Return the given terms by metric name: ``{"ttft_p99_s": 1.0, "miss_ratio": 0.2}``."""
        given = ((name, getattr(self, name)) for name in type(self).model_fields)
        return {name if name == "miss_ratio" else f"{name}_s": value for name, value in given if value is not None}


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
    run: Run = Run()
    """How long and how often to simulate."""
    sweep: dict[str, tuple[Any, ...]] = Field(default_factory=dict)
    """For ``loraplan sweep``: values by key, such as ``cache.gpu.slots: [16, 32, 64]``; all combinations run."""

    plan: Plan | None = None
    """For ``loraplan plan``: the value to find."""
    _given: Given = PrivateAttr(default_factory=Given)

    @model_validator(mode="before")
    @classmethod
    def _fill_in_preset(cls, data: Any) -> Any:
        return fill(data)

    @model_validator(mode="after")
    def _remember(self, info: ValidationInfo) -> Scenario:
        self._given = given_in(info.context)
        return self

    @property
    def given(self) -> Given:
        """Policies that the call which read this scenario brought along."""
        return self._given

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
        if self.adapters.count is None and not named_by_file:
            raise located("adapters.count", "the number of adapters is missing", hint="give count: 1000")
        if self.run.half_width is not None and (self.workload.trace is not None or self.workload.requests is None):
            raise located(
                "run.half_width",
                "only a run of generated requests can be lengthened",
                hint="give workload.requests, or remove half_width",
            )
        if self.storage.mode == "blocking":
            if self.fleet.engine == "fixed":
                raise located("storage.mode", "engine fixed has no steps that a load could block", got="blocking")
            if self.storage.loaders > 1:
                raise located(
                    "storage.loaders", "blocking loads run one after the other", got=self.storage.loaders, allowed="1"
                )
            if self.fleet.load_at == "arrival":
                raise located("fleet.load_at", "blocking loads start at admission", got="arrival")
        if self.cache.eviction == "vllm-lru":
            self._fits_vllm_lru()
        self._fits_engine()
        self._fits_start()
        if self.cache.prefetch != "none":
            self._fits_prefetch()
        self.router.check_copies(self.fleet.replicas)
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
        return self

    def _fits_changes(self) -> None:
        """Check rollouts and faults."""
        what = "rollouts" if self.rollouts else "faults"
        check_rollouts(self.rollouts)
        check_faults(self.faults, self.fleet.replicas)
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
        if any(isinstance(fault, NamedPrefixes) for fault in self.faults) and all(
            rollout.strategy in ("new-name", "lazy-reread") for rollout in self.rollouts
        ):
            i = next(i for i, fault in enumerate(self.faults) if isinstance(fault, NamedPrefixes))
            raise located(
                f"faults.{i}", "no rollout swaps weights under the same name", hint="such as strategy: in-place"
            )

    def _fits_failing_loads(self, key: str) -> None:
        """Refuse what this version does not support with failing loads."""
        if self.cache.eviction == "vllm-lru" and self.fleet.batching == "prefill-first":
            raise located(
                key,
                "failing loads with cache.eviction vllm-lru need steps that also decode",
                got=f"fleet.batching {self.fleet.batching}",
                allowed="mixed",
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

    def _fits_engine(self) -> None:
        fleet, cache = self.fleet, self.cache
        queues, cycle = fleet.admission == "per-adapter", cache.eviction == "cycle"
        if fleet.engine == "fixed" and cache.eviction in ("discard-when-idle", "cycle"):
            raise located(
                "cache.eviction", "engine fixed has no steps, at which this policy evicts", got=cache.eviction
            )
        if queues != cycle:
            raise located(
                "cache.eviction" if queues else "fleet.admission",
                "admission per-adapter and eviction cycle go together",
                got=f"fleet.admission {fleet.admission}, cache.eviction {cache.eviction}",
                allowed="fleet.admission per-adapter with cache.eviction cycle",
            )
        if queues and self.storage.mode == "blocking":
            raise located(
                "storage.mode",
                "admission per-adapter loads at an adapter's turn, not in a step",
                got="blocking",
                allowed="overlap",
            )
        if cache.host is not None and cache.host.fill == "arrival" and fleet.engine == "fixed":
            raise located(
                "cache.host.fill", "engine fixed loads at arrival anyway", got="arrival", allowed="load, start"
            )
        if fleet.front_end != "none" and cache.eviction != "vllm-lru":
            raise located(
                "fleet.front_end",
                "this front end is vLLM's",
                got=f"{fleet.front_end} with {cache.eviction}",
                allowed="engines vllm-0.8 and vllm-0.32",
            )
        if cache.gpu.unified:
            self._fits_unified()

    def _fits_unified(self) -> None:
        fleet, eviction = self.fleet, self.cache.eviction
        if fleet.engine == "fixed":
            raise located("cache.gpu.unified", "engine fixed has no KV cache to share", got=True)
        if eviction in ("vllm-lru", "cycle"):
            raise located(
                "cache.eviction",
                "unified memory has no slots, which this policy needs",
                got=eviction,
                allowed=", ".join(name for name in EVICTIONS.names if name not in ("vllm-lru", "cycle")),
            )
        if fleet.kv_check not in ("whole-answer", "peak") or self.storage.mode != "blocking":
            raise located(
                "cache.gpu.unified",
                "unified memory needs an admission check that reserves KV blocks for whole answers",
                got=f"fleet.kv_check {fleet.kv_check}, storage.mode {self.storage.mode}",
                allowed="fleet.kv_check whole-answer or peak, storage.mode blocking",
            )

    def _fits_start(self) -> None:
        """Check the adapters that are pinned or loaded at the start."""
        cache = self.cache
        if cache.pinned and cache.eviction == "vllm-lru":
            raise located(
                "cache.pinned",
                "vLLM admits as many distinct adapters as it has slots, pinned or not, and then lacks "
                "slots for those that aren't",
                got=cache.pinned,
                allowed="0",
                hint="cache.warm loads before the start",
            )
        if cache.pinned and cache.gpu.unified:
            raise located(
                "cache.pinned",
                "with unified memory only adapters of running requests can be kept",
                got=cache.pinned,
                allowed="0",
                hint="cache.warm loads before the start",
            )
        for key, value in (("pinned", cache.pinned), ("warm", cache.warm)):
            if value and cache.eviction == "cycle":
                raise located(f"cache.{key}", "with eviction cycle adapters load at their turn", got=value, allowed="0")

    def _fits_prefetch(self) -> None:
        fleet, mode = self.fleet, self.storage.mode
        if fleet.engine == "fixed" or fleet.admission == "per-adapter":
            what = "engine fixed" if fleet.engine == "fixed" else "admission per-adapter"
            raise located("cache.prefetch", f"{what} loads ahead anyway", got=self.cache.prefetch, allowed="none")
        if mode != "overlap" or self.load_at != "admission":
            raise located(
                "cache.prefetch",
                "only loads that start at admission and overlap with steps can be prefetched",
                got=f"storage.mode {mode}, fleet.load_at {self.load_at}",
                allowed="storage.mode overlap, fleet.load_at admission",
            )

    def _fits_vllm_lru(self) -> None:
        gpu, host = self.cache.gpu, self.cache.host
        if self.fleet.engine == "fixed":
            raise located("cache.eviction", "engine fixed has no steps that touch adapters", got="vllm-lru")
        if self.storage.mode != "blocking" or self.fleet.admission != "skip":
            raise located(
                "cache.eviction",
                "vllm-lru loads inside the step and passes requests over the adapter limit",
                got=f"storage.mode {self.storage.mode}, fleet.admission {self.fleet.admission}",
                allowed="storage.mode blocking, fleet.admission skip",
            )
        if gpu.unified or gpu.base_model_slot:
            key = "unified" if gpu.unified else "base_model_slot"
            raise located(f"cache.gpu.{key}", "vllm-lru has slots for adapters alone", got=True)
        if gpu.slots is None:
            raise located("cache.gpu.size", "vllm-lru counts slots", hint="give cache.gpu.slots")
        if host is None:
            return
        if host.fill != "load":
            raise located("cache.host.fill", "vllm-lru reads storage within its steps", got=host.fill, allowed="load")
        if host.slots is None:
            raise located("cache.host.size", "vllm-lru counts slots in host memory too", hint="give cache.host.slots")
        if host.slots < gpu.slots:
            raise located(
                "cache.host.slots",
                "every adapter in a slot has a copy in host memory",
                got=host.slots,
                allowed=f"at least cache.gpu.slots ({gpu.slots})",
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
