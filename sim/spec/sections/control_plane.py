"""What decides for the fleet during a run: the router, its placement controller, and the autoscaler."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, ClassVar, Literal

from pydantic import (
    AfterValidator,
    Field,
    NonNegativeFloat,
    NonNegativeInt,
    PositiveFloat,
    PositiveInt,
    ValidationInfo,
    field_validator,
    model_validator,
)

from sim.spec.base import Errors, Strict, checks, located
from sim.spec.policies import FILTERS, PLACEMENTS, PLACERS, ROUTERS, SCORERS, PluginEntry, RouterEntry, given_in
from sim.spec.registry import Registry
from sim.spec.sections.laws import TimeLaw
from sim.spec.units import Bytes, Moment, Seconds, Share, format_seconds

# How requests are assigned to replicas.

OWN_KEYS = ("bound", "placement", "copies", "controller", "settings", "scorers", "filters", "picker")
"""Keys that mean something to some policies only; ``RouterEntry.keys`` says to which."""
DEFAULT_SCORERS = (("queue", 2.0), ("kv-cache-utilization", 2.0), ("prefix-cache", 3.0))
"""Scorers and weights of llm-d's default profile."""
_SHORTEST_S = 0.001


class PlacementController(Strict):
    """Which adapters live on which replicas, and when they move (docs/routers.md). The router sends a request only to a
    replica on which its adapter is placed."""

    policy: Annotated[str, AfterValidator(PLACERS.check)] = Field(
        default="popularity", description=PLACERS.described("How adapters are placed.")
    )
    period: Seconds = Field(default=60.0, gt=0)
    """Time between two decisions."""
    history: Seconds = Field(default=300.0, gt=0)
    """How much of the past counts as demand, in whole periods."""
    copies: PositiveInt = Field(default=1, le=4096)
    """Replicas on which each adapter is placed, at least. A hot adapter gets more."""
    slots: PositiveInt | None = None
    """Adapters that are placed on one replica, at most; unset: as many as it can run at a time."""
    tolerance: Share = 0.1
    """``popularity`` and ``rank``: adapters move for balance while the busiest replica has more than the mean load plus
    this share of it."""
    move: Literal["lazy", "eager"] = "lazy"
    """How an adapter is loaded on its new replica. ``lazy``: by its first request there. ``eager``: by the controller,
    at once, one adapter after the other on each replica."""
    call: Seconds | None = None
    """``move: eager``: how long a call of the engine's load API takes before the load. Requests go to the new replica
    only after it; unset: from the decision on."""
    failures: Share = 0.0
    """With ``call``: share of the calls that fail. The next decision may try again."""
    unload_after: Seconds | None = Field(default=None, gt=0)
    """Time without a request after which an adapter loses its places and copies; unset: engines evict adapters when
    they need the room."""

    @model_validator(mode="before")
    @classmethod
    def _defaults_of_policy(cls, given: Any) -> Any:
        policy = given.get("policy") if isinstance(given, Mapping) else None
        entry = PLACERS.get(policy) if isinstance(policy, str) else None
        return {"period": entry.period, "history": entry.history, **given} if entry and entry.period else given

    @checks
    def _meaningful(self) -> Errors:
        if PLACERS[self.policy].moves and self.history < self.period:
            got, least = format_seconds(self.history), format_seconds(self.period)
            yield located("history", "shorter than the period", got=got, allowed=f"at least {least}")
        if self.call is not None and self.move != "eager":
            yield located("call", "the first request loads an adapter", got=format_seconds(self.call), allowed="unset")
        if self.failures and self.call is None:
            yield located("failures", "no call is made", got=self.failures, allowed="0", hint="give call")
        if self.unload_after is not None and self.unload_after < self.history:
            got, least = format_seconds(self.unload_after), format_seconds(self.history)
            yield located("unload_after", "still asked for in the history", got=got, allowed=f"at least {least}")


class _Plugin(Strict):
    """A scorer or filter of router ``scorers``, with parameters named as those of llm-d's plugin."""

    _registry: ClassVar[Registry[PluginEntry]]

    @checks
    def _known(self) -> Errors:
        name: str = getattr(self, "name", "")
        for key in sorted(self.model_fields_set - {"name", "weight", *self._registry[name].keys}):
            allowed = " or ".join(each.name for each in self._registry if key in each.keys)
            yield located(key, f"{name} has no {key}", got=getattr(self, key), allowed=f"only with {allowed}")


class Scorer(_Plugin):
    """A term of the sum by which router ``scorers`` chooses."""

    _registry = SCORERS
    name: Annotated[str, AfterValidator(SCORERS.check)] = Field(
        description=SCORERS.described("Which replicas get a high score.")
    )
    weight: float = Field(default=1.0, ge=0, le=1_000_000)
    """Factor on its scores, which go from 0 to 1; the sum is not divided by the sum of weights."""
    count: Literal["sum", "union"] = "sum"
    """``lora-affinity``: how many adapters a replica seems to have. ``sum``: those in its list of running and in its
    list of waiting adapters, as llm-d v0.10.0 counts. vLLM from 0.14 on lists each adapter in both, so a replica looks
    full at half of its slots. ``union``: each adapter once, as since pull request 2625."""
    match_length_weight: Share = 0.0
    """``prefix-cache``: the weight of a long match, as against a large share of the prompt."""
    idle_threshold: NonNegativeInt = 0
    """``active-request``: requests up to which a replica counts as idle."""
    max_busy_score: Share = 1.0
    """``active-request``: the highest score of a replica that is not idle."""
    queue_threshold_tokens: PositiveInt = 4_194_304
    """``token-load``: tokens from which the score is 0."""
    load_horizon: Seconds | None = Field(default=None, gt=0)
    """``lora-load-state``: score a load by its time, 0 from this time on, instead of by where the adapter is."""


class Filter(_Plugin):
    """Leaves out replicas before router ``scorers`` scores the others."""

    _registry = FILTERS
    name: Annotated[str, AfterValidator(FILTERS.check)] = Field(
        description=FILTERS.described("Which replicas are kept.")
    )
    queue_threshold: NonNegativeInt = 8
    """``lora-residency``: waiting requests above which a replica is saturated; 0: no limit."""
    kv_cache_threshold: Share = 0.8
    """``lora-residency``: share of the KV cache in use above which a replica is saturated; 0: no limit."""
    max_replicas: NonNegativeInt = 0
    """``lora-residency``: replicas that may hold one adapter; 0: any number."""
    affinity_threshold: Share = 0.8
    """``prefix-cache-affinity``: the share of the prompt that a replica must have got before."""
    max_ttft_penalty: Seconds = Field(default=18.0, ge=0)
    """``prefix-cache-affinity``: the longest time by which such a replica may be slower than others; 0: any."""
    peak_prefill_throughput: PositiveFloat = 15_928.0
    """``prefix-cache-affinity``: tokens that a replica prefills in a second, for this time."""


class Router(Strict):
    """How requests are assigned to replicas."""

    policy: str = Field(
        default="round-robin", description=ROUTERS.described("Where a request goes. Your own: docs/own-policy.md.")
    )
    staleness: Seconds | None = None
    """How often the router reads the state of the replicas; 0: it is always current. Unset: 0, and 50 ms with
    ``affinity-activity`` and ``scorers``."""
    bound: float | None = Field(default=None, gt=1, le=1_000_000)
    """``hash``, ``affinity-residency`` and ``affinity-prefix`` only: a replica is skipped if the request would give it
    more than this many times the mean number of requests per replica, rounded up. Unset: 1.25 with ``hash``, 1.5 with
    ``affinity-prefix``, none with ``affinity-residency``."""
    placement: Annotated[str, AfterValidator(PLACEMENTS.check)] = Field(
        default="least-adapters",
        description=PLACEMENTS.described(
            "``service-per-adapter`` only: on which replicas adapters are placed before the run."
        ),
    )
    copies: PositiveInt = Field(default=1, le=4096)
    """``service-per-adapter`` only: replicas on which each adapter is placed, at least."""
    scorers: tuple[Scorer, ...] = ()
    """``scorers`` only: the terms of the sum. None: llm-d's defaults, ``queue`` 2, ``kv-cache-utilization`` 2 and
    ``prefix-cache`` 3, without a scorer for adapters."""
    filters: tuple[Filter, ...] = ()
    """``scorers`` only: leave out replicas before any is scored, one filter after the other."""
    picker: Literal["max-score", "weighted-random", "random"] | None = None
    """``scorers`` only: how one is chosen. ``max-score``: the highest sum, equal ones at random. ``weighted-random``:
    in proportion to the sum. ``random``: any. Unset: ``max-score``."""
    controller: PlacementController | None = None
    """``placement`` and ``dynamo`` only: the controller that places adapters and moves them."""
    settings: dict[str, NonNegativeFloat] | None = None
    """Numbers of ``dynamo`` and ``sglang-cache-aware`` by name; unset ones have the release's values
    (docs/routers.md)."""
    pools: Literal["together", "weight"] = "together"
    """With ``fleet.pools``, how a pool is chosen. ``together``: ``policy`` chooses among the replicas of all pools that
    take a request. ``weight``: first a pool is drawn by its ``weight``, then ``policy`` chooses among its replicas."""
    spill: PositiveInt | Literal["full"] | None = None
    """With ``pools: weight``: when a pool passes requests on to the next one in the list. ``full``: once each of its
    replicas has ``max_num_seqs`` requests; a number: that many. If no pool has room, the request stays in the pool that
    was drawn. Unset: never."""
    instances: PositiveInt = Field(default=1, le=256)
    """Router processes. The requests of a session always go to the same one. Matters for changes that reach routers one
    by one, such as a rollout."""

    @model_validator(mode="before")
    @classmethod
    def _controller_of_policy(cls, given: Any) -> Any:
        if not isinstance(given, Mapping) or given.get("policy") != "dynamo":
            return given
        controller = given.get("controller") or {}
        return {**given, "controller": {"policy": "dynamo", **controller}} if isinstance(controller, Mapping) else given

    @field_validator("policy")
    @classmethod
    def _policy(cls, value: str, info: ValidationInfo) -> str:
        given = given_in(info.context)
        return value if given.any_name else ROUTERS.check(value, given.routers)

    @field_validator("staleness")
    @classmethod
    def _staleness(cls, value: float | None) -> float | None:
        if value is not None and 0 < value < _SHORTEST_S:
            raise located(
                "",
                "so frequent readings would cost more than the traffic",
                got=format_seconds(value),
                allowed="0 (always current), or 1 ms and more",
            )
        return value

    @field_validator("placement", mode="before")
    @classmethod
    def _is_a_name(cls, value: Any) -> Any:
        if isinstance(value, Mapping):
            raise located(
                "",
                "a name, for policy service-per-adapter",
                got=", ".join(map(str, value)),
                allowed=", ".join(PLACEMENTS.names),
                hint="the keys of policy placement belong in router.controller",
            )
        return value

    @checks
    def _meaningful(self) -> Errors:
        for key in OWN_KEYS:
            given = getattr(self, key)
            if key in self.model_fields_set and key not in self._facts.keys and given is not None:
                policies = " or ".join(entry.name for entry in ROUTERS if key in entry.keys)
                yield located(
                    key,
                    f"policy {self.policy} has no {key}",
                    got="a section" if isinstance(given, Strict) else given,
                    allowed=f"only with policy {policies}",
                    hint=f"remove it (--set router.{key}=null), or choose such a policy",
                )
        if not self.scorers and "scorers" in self.model_fields_set and self.policy == "scorers":
            yield located(
                "scorers",
                "a sum without terms can't choose",
                got="[]",
                allowed=f"one of {', '.join(SCORERS.names)}, or more",
                hint="remove it for llm-d's defaults (--set router.scorers=null), or choose policy random",
            )
        for name, value in (self.settings or {}).items():
            if self._facts.settings and name not in self._facts.settings:
                yield located(
                    f"settings.{name}",
                    f"policy {self.policy} has no such setting",
                    got=value,
                    allowed=", ".join(self._facts.settings),
                )

    @property
    def _facts(self) -> RouterEntry:
        """The facts of the policy; of one from outside, that every key means something to it."""
        return ROUTERS[self.policy] if self.policy in ROUTERS else RouterEntry(name=self.policy, keys=OWN_KEYS)

    @property
    def without_own_keys(self) -> dict[str, None]:
        """Values by dotted key that unset what means something to some policies only, so that any other can follow."""
        return {f"router.{key}": None for key in OWN_KEYS if key in self.model_fields_set}

    @property
    def placing(self) -> PlacementController | None:
        """The controller that places adapters, with the default resolved; None with other policies."""
        if "controller" not in self._facts.keys or self.policy not in ROUTERS:
            return None
        return self.controller or PlacementController()

    @property
    def scoring(self) -> tuple[Scorer, ...]:
        """The scorers, with the defaults resolved."""
        return self.scorers or tuple(Scorer(name=name, weight=weight) for name, weight in DEFAULT_SCORERS)

    @property
    def view_interval(self) -> float:
        """Seconds between two readings of the router's view, with the default resolved; 0: always current."""
        if self.staleness is not None:
            return self.staleness
        return self._facts.view_interval_s

    @property
    def load_bound(self) -> float | None:
        """The bound on a replica's requests over the mean, with the default resolved; None: no bound."""
        return self._facts.bound if self.bound is None else self.bound


# A fleet that grows and shrinks during a run (``fleet.autoscale``), and what a new replica waits for.

SHARE_METRICS = ("gpu_load", "kv_usage")
"""Metrics between 0 and 1 for each replica."""

_TARGETED = ("hpa", "keda", "predictive")
_OWN_KEYS = {
    **dict.fromkeys(("target", "tolerance", "stabilization_up", "stabilization_down", "period"), _TARGETED),
    **dict.fromkeys(("up_replicas", "up_share", "down_replicas", "down_share"), _TARGETED),
    "metric": (*_TARGETED, "step"),
    "cooldown": ("keda", "step"),
    "steps": ("step",),
    **dict.fromkeys(("schedule", "every"), ("schedule",)),
    "history": ("predictive",),
}
"""Keys that mean something to some policies only."""


class ColdStart(Strict):
    """What a new replica waits for before it serves, one after the other."""

    provision: TimeLaw | None = None
    """Time until there is a node with free GPUs; unset: none, because one is kept ready."""
    image: TimeLaw | None = None
    """Time to pull the container image; unset: none, because the node has it."""
    weights: TimeLaw | None = None
    """Time to load the base model; unset: its bytes over ``weights_per_s``."""
    weights_per_s: Bytes = 1_300_000_000
    """Bytes of the base model that a replica reads in a second; the default is from vLLM's issue 44881."""
    engine: TimeLaw | None = None
    """Time from loaded weights to a ready engine (compilation, CUDA graphs). Unset: 34 s, which vLLM's issue 20264
    measured with a compilation cache; 0 with engine ``fixed``."""
    warm: NonNegativeInt = 0
    """Number of most popular adapters that a new replica loads before it serves, as part of the cold start."""


class ScalingStep(Strict):
    """A threshold of policy ``step``, and what to do beyond it."""

    above: NonNegativeFloat | None = None
    """Threshold: the mean of the metric over replicas is above this ..."""
    below: PositiveFloat | None = None
    """... or below this:"""
    add: PositiveInt | None = Field(default=None, le=4096)
    """replicas to add, or"""
    remove: PositiveInt | None = Field(default=None, le=4096)
    """replicas to remove."""

    @checks
    def _one_each(self) -> Errors:
        if (self.above is None) == (self.below is None):
            yield located("above", "a step has one threshold", allowed="above or below")
        elif (self.add is None) == (self.remove is None):
            yield located("add", "a step adds or removes replicas", allowed="add or remove")
        elif (self.above is None) != (self.add is None):
            yield located(
                "remove" if self.add is None else "add",
                "such a fleet would run away from its load",
                allowed="add replicas above a threshold, remove some below",
            )


class ScheduledReplicas(Strict):
    """An entry of the timetable of policy ``schedule``."""

    at: Moment
    """From when on: a time since the start, or a time of day such as ``08:00`` with ``workload.start``."""
    replicas: NonNegativeInt = Field(le=4096)
    """How many replicas from then on."""


class Autoscale(Strict):
    """A controller that starts and stops replicas. ``fleet.replicas`` is how many there are at the start."""

    policy: Literal["hpa", "keda", "step", "schedule", "predictive"] = "hpa"
    """``hpa``: Kubernetes' HorizontalPodAutoscaler, ``ceil(replicas * mean / target)``. ``keda``: KEDA, ``ceil(total /
    target)``, down to zero replicas. ``step``: replicas to add or remove beyond thresholds. ``schedule``: replicas by
    the clock. ``predictive``: a linear forecast over one cold start (docs/autoscaling.md)."""
    metric: Literal["in_flight", "waiting", "gpu_load", "adapter_waiting", "kv_usage"] = "in_flight"
    """What is read of every ready replica. ``in_flight``: requests in it, waiting or running. ``waiting``: requests not
    in its batch. ``gpu_load``: share of the last interval in which a step ran. ``adapter_waiting``: waiting requests
    whose adapter is not in GPU memory. ``kv_usage``: share of its KV cache that running requests hold."""
    target: float | None = Field(default=None, gt=0)
    """``hpa``, ``keda``, ``predictive``: the metric for each replica to aim for."""
    min: NonNegativeInt = Field(default=1, le=4096)
    """Fewest replicas. 0 with ``keda`` and ``schedule`` only: requests that find no replica wait until one is ready."""
    max: PositiveInt = Field(le=4096)
    """Most replicas."""
    interval: Seconds = Field(default=15.0, gt=0)
    """Time between two decisions."""
    tolerance: Share = Field(default=0.1, lt=1)
    """How far the metric may be from its target, as a share of it, without a change."""
    stabilization_up: Seconds = Field(default=0.0, ge=0)
    """Grow to the smallest number asked for within this time."""
    stabilization_down: Seconds = Field(default=300.0, ge=0)
    """Shrink to the largest number asked for within this time."""
    up_replicas: PositiveInt | None = 4
    """Replicas that may be added within a ``period``; the larger of this and ``up_share`` counts."""
    up_share: float = Field(default=1.0, ge=0, le=100)
    """The same as a share of the replicas at its start: 1 doubles them."""
    down_replicas: PositiveInt | None = None
    """Replicas that may be removed within a ``period``; the larger of this and ``down_share`` counts."""
    down_share: Share = 1.0
    """The same as a share of the replicas at its start."""
    period: Seconds = Field(default=15.0, gt=0)
    """Time that these limits refer to."""
    cooldown: Seconds = Field(default=300.0, ge=0)
    """``keda`` with ``min: 0``: how long the total must be 0 before the last replica stops. ``step``: how long nothing
    changes after a change."""
    steps: tuple[ScalingStep, ...] = ()
    """``step``: the thresholds. The farthest one that is crossed counts."""
    schedule: tuple[ScheduledReplicas, ...] = ()
    """``schedule``: the timetable."""
    every: Seconds = Field(default=86400.0, gt=0)
    """``schedule``: when the timetable begins again."""
    history: Seconds = Field(default=300.0, gt=0)
    """``predictive``: how much of the past the forecast uses."""
    cold_start: ColdStart = ColdStart()
    """What a new replica waits for."""

    @checks
    def _consistent(self) -> Errors:
        if self.min > self.max:
            yield located("min", "min is above max", got=f"min {self.min}, max {self.max}", allowed=f"0 to {self.max}")
            return
        for key, policies in _OWN_KEYS.items():
            if key in self.model_fields_set and self.policy not in policies:
                yield located(
                    key,
                    f"policy {self.policy} has no {key}",
                    allowed=f"only with policy {' or '.join(policies)}",
                    hint=f"remove {key}, or choose such a policy",
                )
        if self.min == 0 and self.policy not in ("keda", "schedule"):
            yield located(
                "min",
                f"policy {self.policy} reads its metric from replicas, so without any it can't start one",
                got=0,
                allowed="1 or more; 0 with policy keda or schedule",
            )
        if self.policy in _TARGETED and self.target is None:
            yield located("target", f"policy {self.policy} needs a target", hint="such as target: 20")
        elif self.policy in _TARGETED and self.metric in SHARE_METRICS and (self.target or 0) > 1:
            yield located("target", f"{self.metric} is a share", got=self.target, allowed="above 0, at most 1")
        if self.policy == "step":
            yield from self._check_steps()
        if self.policy == "schedule":
            yield from self._check_schedule()

    def _check_steps(self) -> Errors:
        if not self.steps:
            yield located("steps", "policy step needs its thresholds", hint="such as [{above: 20, add: 1}]")
            return
        above = [step.above for step in self.steps if step.above is not None]
        below = [step.below for step in self.steps if step.below is not None]
        for thresholds in (above, below):
            if len(set(thresholds)) < len(thresholds):
                yield located("steps", "two steps have the same threshold", got=max(thresholds, key=thresholds.count))
        if above and below and max(below) > min(above):
            yield located(
                "steps",
                "a metric between them would be above one threshold and below the other",
                got=f"below {max(below):g}, above {min(above):g}",
                allowed="every below at most every above",
            )

    def _check_schedule(self) -> Errors:
        if not self.schedule:
            yield located("schedule", "policy schedule needs its timetable", hint="such as [{at: 0 s, replicas: 2}]")
            return
        times = [entry.at for entry in self.schedule]
        for i, entry in enumerate(self.schedule):
            key = f"schedule.{i}"
            if entry.at >= self.every:
                yield located(
                    f"{key}.at",
                    "the timetable has begun again by then",
                    got=format_seconds(entry.at),
                    allowed=f"below every ({format_seconds(self.every)})",
                )
            if entry.at in times[i + 1 :] and entry.at not in times[:i]:
                yield located(f"{key}.at", "two entries have the same time", got=format_seconds(entry.at))
            if not self.min <= entry.replicas <= self.max:
                yield located(
                    f"{key}.replicas",
                    "outside min and max",
                    got=entry.replicas,
                    allowed=f"{self.min} to {self.max}",
                )
        if not any(entry.replicas for entry in self.schedule):
            yield located("schedule", "no replica would ever serve", hint="give an entry replicas above 0")
