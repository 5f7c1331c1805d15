"""Checks of tenants against the rest of a scenario: whose requests are whose, and what is not supported with them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from pydantic import BaseModel
from pydantic_core import PydanticCustomError

from sim.spec.adapter_modes import AT_ADMISSION, AT_ARRIVAL, BATCH_SLOTS, IN_STEPS, UNIFIED, VLLM_LRU, mode_of
from sim.spec.base import located
from sim.spec.engines import ENGINES, schedulings_of, with_scheduling
from sim.spec.needs import value_of, words_of
from sim.spec.policies import EvictionEntry
from sim.spec.sections.arrival_processes import ClosedArrivals
from sim.spec.sections.popularity_laws import WeightsPopularity
from sim.spec.sections.tenants import Tenant, shares_of
from sim.spec.sections.workload import Adapters, Workload
from sim.spec.units import format_rate, parse_rate

Refusal = tuple[str, str, object, str]
"""A key, the problem, the value in the scenario, and a hint."""


def with_tenants_rate(data: Any) -> Any:
    """Return a scenario's plain data with the sum of the tenants' rates as that of the arrivals, if these have none.

    Data that is no valid scenario comes back as it is, or with any rate: checking it is another's work.
    """
    if not isinstance(data, dict) or not isinstance(data.get("tenants"), (list, tuple)):
        return data
    given = [each["rate"] for each in data["tenants"] if isinstance(each, dict) and each.get("rate") is not None]
    workload = data.get("workload")
    if not given or not isinstance(workload, dict):
        return data
    arrivals = workload.get("arrivals")
    if not isinstance(arrivals, dict) or arrivals.get("rate") is not None or arrivals.get("process") == "closed":
        return data
    rate = format_rate(sum(map(_rate, given)) or 1.0)
    return {**data, "workload": {**workload, "arrivals": {**arrivals, "rate": rate}}}


def _rate(value: object) -> float:
    """Return a rate; 0 for what is none."""
    try:
        return parse_rate(value)
    except PydanticCustomError:
        return 0.0


def check_scheduling(scenario: BaseModel) -> None:
    """Refuse a scheduling policy that the engine lacks, or whose rules are not known with the scenario's other keys.

    :raises PydanticCustomError: with the key that is wrong.
    """
    engine, policy = value_of(scenario, "fleet.engine"), value_of(scenario, "fleet.scheduling")
    if policy == "fcfs":
        return
    if engine in ENGINES and policy not in schedulings_of(engine):
        raise located(
            "fleet.scheduling",
            f"engine {engine} has no scheduling policy {policy}, or its rules are not known here",
            got=policy,
            allowed=", ".join(schedulings_of(engine)),
            hint=f"{policy} is simulated for {', '.join(with_scheduling(policy))}",
        )
    mode, stops = mode_of(scenario), value_of(scenario, "fleet.admission") == "stop"
    known = {
        "priority": mode in (AT_ARRIVAL, AT_ADMISSION, IN_STEPS, VLLM_LRU) and not stops,
        "vtc": mode == AT_ARRIVAL or (mode == UNIFIED and stops),
        "lpm": mode == BATCH_SLOTS,  # it needs kv_check ratio, which needs these slots
    }
    if not known[policy]:
        raise located(
            "fleet.scheduling",
            "the rules of this scheduling policy are not known for this way of serving adapters",
            got=f"{policy}, with adapter mode {mode} and fleet.admission {value_of(scenario, 'fleet.admission')}",
            allowed="with fleet.admission skip"
            if policy == "priority"
            else "with fleet.load_at arrival, or with cache.gpu.unified and fleet.admission stop",
        )
    needed: dict[str, object] = {"fleet.front_end": "none"}
    needed |= {"fleet.batching": "mixed"} if policy == "priority" else {"fleet.async_scheduling": False}
    for key, value in needed.items():
        if value_of(scenario, key) != value:
            raise located(
                "fleet.scheduling",
                f"{policy} needs {key} {words_of(value)}",
                got=f"{policy}, {key} {words_of(value_of(scenario, key))}",
            )


def check_tenants(tenants: Sequence[Tenant], workload: Workload, adapters: Adapters) -> None:
    """Refuse tenants that don't divide the requests.

    :raises PydanticCustomError: with the key that is wrong.
    """
    if not tenants:
        return
    names = [tenant.name for tenant in tenants]
    for place, name in enumerate(names):
        if name in names[:place]:
            raise located(f"tenants.{place}.name", "two tenants have this name", got=name)
    _check_base_model(tenants, workload, adapters)
    _check_adapters(tenants, workload, adapters)
    _check_shares(tenants)
    _check_rates(tenants, workload, adapters)
    for key, problem, got, hint in _unsupported(tenants, workload):
        raise located(key, problem, got=got, hint=hint)


def check_buckets(tenants: Sequence[Tenant], eviction: EvictionEntry) -> None:
    """Refuse token buckets with an eviction policy that knows the order in which requests reach the replicas."""
    for place, tenant in enumerate(tenants):
        if tenant.bucket is not None and eviction.needs_future:
            raise located(
                f"tenants.{place}.bucket",
                f"eviction {eviction.name} needs to know which requests reach the replicas, and when",
                hint="choose another cache.eviction",
            )


def check_prices(tenants: Sequence[Tenant], engine: str) -> None:
    """Refuse prices of tokens where the engine has none."""
    for place, tenant in enumerate(tenants):
        if tenant.price is not None and engine == "fixed" and (tenant.price.input or tenant.price.output):
            raise located(
                f"tenants.{place}.price",
                "engine fixed has no tokens",
                hint="give a price per request, such as 0.002 USD/request",
            )


def _check_base_model(tenants: Sequence[Tenant], workload: Workload, adapters: Adapters) -> None:
    """Check that requests to the base model, where the mix has some, are of one tenant."""
    owners = [place for place, tenant in enumerate(tenants) if tenant.base_model]
    if len(owners) > 1:
        raise located(f"tenants.{owners[1]}.base_model", "requests to the base model have one tenant", got="true twice")
    if adapters.base_share > 0 and not owners:
        raise located("tenants", "no tenant has the requests to the base model", hint="set base_model: true for one")
    if owners and not adapters.base_share and workload.trace is None:
        raise located(
            f"tenants.{owners[0]}.base_model",
            "no request is for the base model",
            got="true",
            hint="give adapters.mix a kind such as {share: 10%, kind: base}, or remove base_model",
        )


def _check_adapters(tenants: Sequence[Tenant], workload: Workload, adapters: Adapters) -> None:
    """Check that tenants with numbers of adapters have all adapters, and that patterns have names to match."""
    named = workload.trace is not None or isinstance(workload.popularity, WeightsPopularity)
    counted = [place for place, tenant in enumerate(tenants) if tenant.adapters is not None]
    matched = [place for place, tenant in enumerate(tenants) if tenant.match]
    if counted and matched:
        raise located(f"tenants.{matched[0]}.match", "give all tenants either adapters or match")
    if matched and not named:
        raise located(
            f"tenants.{matched[0]}.match",
            "adapters have no names",
            got=", ".join(tenants[matched[0]].match),
            hint="give adapters, or a trace or weights file that names them",
        )
    total = sum(tenants[place].adapters or 0 for place in counted)
    if counted and not adapters.base_alone and (adapters.count is not None or not named) and total != adapters.count:
        raise located(
            "tenants",
            "the tenants' adapters don't add up to adapters.count",
            got=f"{total} of tenants, adapters.count {adapters.count}",
        )


def _check_shares(tenants: Sequence[Tenant]) -> None:
    """Check that either no tenant has a share, or all with adapters have, adding up to 100%, unless they have rates."""
    if any(tenant.rate is not None for tenant in tenants):
        return
    shares = {place: tenant.share for place, tenant in enumerate(tenants) if tenant.adapters is not None}
    given = {place: share for place, share in shares.items() if share is not None}
    if not given:
        for place, tenant in enumerate(tenants):
            if tenant.has_arrivals:
                raise located(
                    f"tenants.{place}.share",
                    "a tenant with arrivals of its own needs its share of the requests",
                    hint="give every tenant a share, such as share: 30%",
                )
        return
    lacking = [place for place in shares if place not in given]
    if lacking:
        raise located(
            f"tenants.{lacking[0]}.share", "other tenants have a share", hint="give every tenant one, or none"
        )
    total = sum(given.values())
    if abs(total - 1) > 1e-6:
        raise located("tenants", "the shares of the tenants must add up to 100%", got=f"{total:.2%}")


def _check_rates(tenants: Sequence[Tenant], workload: Workload, adapters: Adapters) -> None:
    """Check that all tenants with adapters have a rate, where one has, and that they add up to that of the traffic."""
    rates = {place: tenant.rate for place, tenant in enumerate(tenants) if tenant.rate is not None}
    if not rates:
        return
    first = f"tenants.{min(rates)}.rate"
    for place, tenant in enumerate(tenants):
        if tenant.share is not None:
            raise located(f"tenants.{place}.share", "give all tenants either a share or a rate", got=tenant.share)
        if tenant.adapters is not None and tenant.rate is None:
            raise located(f"tenants.{place}.rate", "other tenants have a rate", hint="give every tenant one, or none")
    if workload.trace is not None:
        raise located(first, "the trace says whose requests come when", hint="remove rate")
    if isinstance(workload.arrivals, ClosedArrivals):
        raise located(first, "in a closed loop, rates follow from the answers", hint="give shares")
    if adapters.base_share:
        raise located(
            first,
            "with requests to the base model in adapters.mix, tenants have shares of the others",
            hint="give shares, and workload.arrivals.rate",
        )
    total = sum(rates.values())
    assert workload.arrivals is not None, "there is no trace"
    if abs(total - workload.arrivals.rate) > 1e-6 * total:
        raise located(
            "workload.arrivals.rate",
            "the rates of the tenants add up to another one",
            got=format_rate(workload.arrivals.rate),
            allowed=format_rate(total),
            hint="remove it, or give the tenants shares, which divide any rate",
        )


def _unsupported(tenants: Sequence[Tenant], workload: Workload) -> Iterator[Refusal]:
    shared = bool(shares_of(tenants))
    own = next((place for place, tenant in enumerate(tenants) if tenant.has_arrivals), None)
    if workload.trace is not None and shared:
        place = next(i for i, tenant in enumerate(tenants) if tenant.share is not None)
        yield f"tenants.{place}.share", "the trace says whose requests come when", tenants[place].share, "remove share"
    for key in ("drift", "churn"):
        if getattr(workload, key) is not None:
            problem = f"{key} would move requests from one tenant to another"
            yield f"workload.{key}", problem, None, f"remove {key}, or the tenants"
    if shared and workload.popularity.in_turn:
        problem = "adapters that are asked for in turn leave no shares for tenants"
        yield (
            "workload.popularity",
            problem,
            workload.popularity.law,
            "remove the shares or rates, or choose another law",
        )
    if shared and getattr(workload.arrivals, "per", "") == "adapter" and own is not None:
        problem = "with arrivals per adapter, tenants have none of their own"
        yield "workload.arrivals.per", problem, "adapter", "set per: aggregate, or remove steps and cv"
    if own is not None and isinstance(workload.arrivals, ClosedArrivals):
        key = f"tenants.{own}.{'steps' if tenants[own].steps else 'cv'}"
        yield key, "in a closed loop, times follow from the answers", None, "remove it, or give another process"
    if own is not None and workload.sessions is not None:
        key = f"tenants.{own}.{'steps' if tenants[own].steps else 'cv'}"
        yield key, "with workload.sessions, tenants have no arrivals of their own", None, "remove one of the two"
