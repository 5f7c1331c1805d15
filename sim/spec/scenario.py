"""The scenario: traffic, adapters, fleet and the targets it must meet.

Sections come in the order of the user's questions; all but ``workload`` and ``adapters`` have
defaults. The docstring under a field is its description in the JSON Schema and in the reference.
"""

from __future__ import annotations

import copy
import json
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

from sim.spec.base import Errors, Strict, checks
from sim.spec.engines import ENGINES, NAMES_SCHEMA, fill
from sim.spec.files.pool_scenarios import pool_scenarios
from sim.spec.needs import First, Rule, broken
from sim.spec.policies import (
    EVICTIONS,
    FILTERS,
    PLACEMENTS,
    PLACERS,
    ROUTERS,
    SCORERS,
    EvictionEntry,
    Given,
    RouterEntry,
    given_in,
)
from sim.spec.registry import Registry
from sim.spec.rules import check
from sim.spec.sections.changes import Fault, Rollout
from sim.spec.sections.control_plane import Router
from sim.spec.sections.serving import Cache, Fleet, GpuCache, HostCache, Pool, Storage
from sim.spec.sections.tenants import Slo, Tenant, with_tenants_rate
from sim.spec.sections.times_of_day import counted_from_start
from sim.spec.sections.trace_source import TRACE_FORMATS
from sim.spec.sections.workload import Adapters, Targets, Workload
from sim.spec.units import Price, Share

# The question of a plan: the smallest or largest value that meets the SLO, or the cheapest fleet.

PRICE = "price"
"""The value of ``minimize`` in a plan for the cheapest of several fleets."""
MOST_VARIABLES = 2
_NEVER = (
    "schema_version",
    "name",
    "description",
    *("slo", *Slo.model_fields),
    "run",
    "sweep",
    "plan",
    "workload.requests",
    "workload.duration",
)


class FleetChoice(Strict):
    """One kind of fleet to choose from."""

    name: str = Field(min_length=1, max_length=64)
    """Its name in the answer."""
    price: Price
    """What one of its GPUs costs for an hour, such as ``2.50 USD/h``, instead of ``fleet.price``."""
    gpus: PositiveInt | None = Field(default=None, le=1024)
    """GPUs of one replica; unset: those of the profile."""
    set: dict[str, Any] = Field(default_factory=dict)
    """What this fleet sets in the scenario, such as ``fleet.profile``."""


class Plan(Strict):
    """The question of ``loraplan plan``: which value is the smallest (or largest) that meets the ``slo``."""

    minimize: str | tuple[str, ...] | None = None
    """Dotted key to minimize, such as ``cache.gpu.slots``. Two keys: first the smallest value of the first with which
    any value of the second meets the SLO, then the smallest such value of the second. ``price``: the cheapest of
    ``fleets``."""
    maximize: str | tuple[str, ...] | None = None
    """Dotted key to maximize, such as ``workload.arrivals.rate``."""
    range: tuple[Any, Any] | None = None
    """First and last value to consider, with the key's unit. With two keys: ``[[1, 4], [16, 256]]``. With ``price``:
    replicas of each fleet."""
    step: Any = None
    """Distance between values, or a share such as 5% for steps that grow with the value. Unset: 1 for up to 128 whole
    numbers; else 5%."""
    values: tuple[Any, ...] | None = None
    """Instead of a range: the values to consider, the best first."""
    fleets: tuple[FleetChoice, ...] = Field(default=(), max_length=64)
    """With ``minimize: price``: the fleets to choose from."""
    confidence: Share = Field(default=0.95, ge=0.5, le=0.999)
    """Confidence at which the search stops; a closer call is marked as uncertain."""

    @checks
    def _one_question(self) -> Errors:
        yield from broken(self, _PLANS)

    @property
    def direction(self) -> str:
        """``minimize`` or ``maximize``."""
        return "minimize" if self.minimize is not None else "maximize"

    @property
    def keys(self) -> tuple[str, ...]:
        """The keys to find values for."""
        asked = self.minimize if self.minimize is not None else self.maximize
        return (asked,) if isinstance(asked, str) else tuple(asked or ())


def _is_pair(value: Any) -> bool:
    return isinstance(value, (list, tuple)) and len(value) == 2


_PLANS = (
    First(
        Rule(
            "minimize: a plan needs exactly one of minimize and maximize",
            lambda p: (p.minimize is None) == (p.maximize is None),
            hint="give either minimize or maximize",
        ),
        Rule("{s.direction}: no key", lambda p: not p.keys or not all(p.keys), hint="such as cache.gpu.slots"),
        Rule(
            "{s.direction}: not one or two different keys",
            lambda p: (len(set(p.keys)) < len(p.keys) or len(p.keys) > MOST_VARIABLES) and ", ".join(p.keys),
            allowed="one key, or two in a list",
        ),
        Rule(
            "{s.direction}: a plan can't vary the question or the length of the run",
            lambda p: next((key for key in p.keys if key in _NEVER or key.partition(".")[0] in _NEVER), False),
            allowed="hardware, configuration or traffic, such as cache.gpu.slots or workload.arrivals.rate",
        ),
    ),
    Rule(
        "{s.direction}: price can only be minimized, and on its own",
        lambda p: PRICE in p.keys and (len(p.keys) > 1 or p.maximize is not None) and ", ".join(p.keys),
    ),
    Rule(
        "fleets: minimize: price and fleets go together",
        lambda p: (PRICE in p.keys) != bool(p.fleets) and f"{len(p.fleets)} fleets",
        hint="give fleets: [{{name: a, price: 2.5, set: {{fleet.profile: …}}}}, …]",
    ),
    Rule(
        "fleets: two fleets have the same name",
        lambda p: len({fleet.name for fleet in p.fleets}) < len(p.fleets) and ", ".join(each.name for each in p.fleets),
    ),
    Rule(
        "values: give either values or a range",
        lambda p: p.values is not None and (p.range is not None or p.step is not None),
        hint="remove range and step, or values",
    ),
    Rule(
        "values: only one key can have a list of values",
        lambda p: p.values is not None and (len(p.keys) > 1 or bool(p.fleets)),
        hint="give range",
    ),
    Rule("values: no values", lambda p: p.values == ()),
    Rule("range: the range is missing", lambda p: p.values is None and p.range is None, hint="such as range: [8, 256]"),
    Rule(
        "range: two keys have a range each",
        lambda p: p.range and len(p.keys) > 1 and not all(map(_is_pair, p.range)) and p.range,
        allowed="such as [[1, 4], [16, 256]]",
    ),
    Rule(
        "step: two keys have a step each",
        lambda p: p.range and len(p.keys) > 1 and p.step is not None and not _is_pair(p.step) and {"got": p.step},
        allowed="such as [1, 16]",
    ),
)
"""What a plan must be."""


# The JSON Schema of a scenario file, for completion and red underlines in editors.

SCHEMA_DIALECT = "https://json-schema.org/draft/2020-12/schema"
# The models check these with better messages than an enum's, so the schema needs them here.
_NAMES: dict[tuple[str, str], Registry[Any]] = {
    ("Fleet", "engine"): ENGINES,
    ("Cache", "eviction"): EVICTIONS,
    ("Router", "policy"): ROUTERS,
    ("Router", "placement"): PLACEMENTS,
    ("PlacementController", "policy"): PLACERS,
    ("Scorer", "name"): SCORERS,
    ("Filter", "name"): FILTERS,
    ("Trace", "format"): TRACE_FORMATS,
}
_EXTENDS = {
    "type": "string",
    "description": "The scenario this one builds on: a bundled name, or a file relative to this one. "
    "Mappings are merged, lists replaced, and null removes a key.",
    "examples": ["thousand-adapters", "base.yaml"],
}


def scenario_schema() -> dict[str, Any]:
    """Return the JSON Schema (draft 2020-12) of a scenario file.

    A file that extends another may leave out anything and remove keys with null, so every model is included twice:
    whole, and as an overlay in which nothing is required.
    """
    scenario = Scenario.model_json_schema(by_alias=True)
    models: dict[str, Any] = scenario.pop("$defs")
    models["Scenario"] = scenario
    for (model, field), registry in _NAMES.items():
        models[model]["properties"][field]["enum"] = list(registry.all_names())
    engine = models["Fleet"]["properties"]["engine"]
    engine["anyOf"] = [{"enum": engine.pop("enum")}, NAMES_SCHEMA]
    models = {name: _without_discriminators(model) for name, model in models.items()}
    overlays = {f"{name}.overlay": _overlay(model) for name, model in models.items()}
    overlays["Scenario.overlay"]["properties"]["extends"] = _EXTENDS
    return {
        "$schema": SCHEMA_DIALECT,
        "title": "loraplan scenario",
        "description": scenario.get("description", ""),
        "type": "object",
        "if": {"required": ["extends"]},
        "then": {"$ref": "#/$defs/Scenario.overlay"},
        "else": {"$ref": "#/$defs/Scenario"},
        "$defs": {**models, **overlays},
    }


def schema_text() -> str:
    """Return the schema as the file that ``loraplan schema`` prints and ``scenarios/schema`` holds."""
    return json.dumps(scenario_schema(), indent=1, ensure_ascii=False) + "\n"


def _without_discriminators(schema: Any) -> Any:
    # OpenAPI's keyword, unknown to JSON Schema; each kind already fixes its tag.
    if isinstance(schema, dict):
        return {
            key: _without_discriminators(value)
            for key, value in schema.items()
            if not (key == "discriminator" and isinstance(value, dict) and "propertyName" in value)
        }
    if isinstance(schema, list):
        return [_without_discriminators(item) for item in schema]
    return schema


def _overlay(model: dict[str, Any]) -> dict[str, Any]:
    overlay: dict[str, Any] = _referring(copy.deepcopy(model))
    overlay.pop("required", None)
    for name, field in overlay.get("properties", {}).items():
        about = {key: field[key] for key in ("description", "title") if key in field}
        overlay["properties"][name] = {**about, "anyOf": [field, {"type": "null"}]}
    return overlay


def _referring(schema: Any) -> Any:
    """Point a model's references to the overlays, except in lists: a list replaces the base's as a whole."""
    if isinstance(schema, list):
        return [_referring(item) for item in schema]
    if not isinstance(schema, dict):
        return schema
    result = {}
    for key, value in schema.items():
        if key == "$ref":
            result[key] = f"{value}.overlay"
        elif key == "items":
            result[key] = value
        else:
            # A tag may be left to the base, and then several kinds fit what is given.
            result["anyOf" if key == "oneOf" else key] = _referring(value)
    return result


_SHARED_BY_POOLS = ("workload", "adapters", "tenants", "slo", "run", "router", "rollouts", "faults")
"""Sections that all pools of a fleet have in common."""


class Run(Strict):
    """How long and how often to simulate."""

    seed: NonNegativeInt = Field(default=1, lt=2**63)
    """All randomness follows from it."""
    replications: PositiveInt = Field(default=5, le=10000)
    """Independent repetitions; more of them make intervals narrower."""
    warmup: Share = Field(default=0.05, lt=1)
    """Share of the requests (or of the duration) at the start that is not measured."""
    half_width: Share | None = Field(default=None, gt=0)
    """Double the requests until the 95 % half-width of p99 E2E is below this share of its value."""
    max_requests: PositiveInt = 4_000_000
    """With ``half_width``: most requests per replication."""


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
    def slot_rank(self) -> int:
        """The rank that slots are made for: the largest of all adapters and new versions, or a given larger one."""
        ranks = [kind.rank for kind in self.adapters.mix if kind.kind == "lora"] or [self.adapters.rank]
        return max(*ranks, self.adapters.max_rank or 0, *(rollout.rank or 0 for rollout in self.rollouts))

    @property
    def adapters_without_rollouts(self) -> Adapters:
        """The adapters where rollouts are left out; slots are still made for new versions of a larger rank."""
        ranked = any(rollout.rank for rollout in self.rollouts)
        return self.adapters.model_copy(update={"max_rank": self.slot_rank}) if ranked else self.adapters

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
