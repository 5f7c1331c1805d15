"""Whose requests are whose, what is not supported with tenants, and which requests go first: a row for each rule."""

from __future__ import annotations

from typing import TYPE_CHECKING

from sim.spec.adapter_modes import AT_ADMISSION, AT_ARRIVAL, BATCH_SLOTS, IN_STEPS, UNIFIED, VLLM_LRU, mode_of
from sim.spec.engines import ENGINES, schedulings_of
from sim.spec.needs import Rule, When
from sim.spec.sections.traffic_laws import ClosedArrivals
from sim.spec.units import format_rate

if TYPE_CHECKING:
    from sim.spec.scenario import Scenario


def _other_scheduling(s: Scenario) -> dict[str, str] | None:
    """Return a scheduling policy that the engine lacks, those it knows, and the engines that have this one."""
    policy = s.fleet.scheduling
    if policy == "fcfs" or policy in (known := schedulings_of(s.fleet.engine)):
        return None
    having = [name for name in ENGINES.all_names() if policy in schedulings_of(name)]
    return {"got": policy, "known": ", ".join(known), "having": ", ".join(having)}


def _rules_known(s: Scenario) -> bool:
    """Return whether the rules of a scheduling policy are known for this way of serving adapters."""
    policy, mode, stops = s.fleet.scheduling, mode_of(s), s.fleet.admission == "stop"
    if policy == "priority":
        return mode in (AT_ARRIVAL, AT_ADMISSION, IN_STEPS, VLLM_LRU) and not stops
    if policy in ("vtc", "lcf"):
        return mode == AT_ARRIVAL or (mode == UNIFIED and stops)
    return policy == "fcfs" or mode == BATCH_SLOTS  # lpm needs kv_check ratio, which needs these slots


SCHEDULING = (
    Rule(
        "fleet.scheduling: engine {s.fleet.engine} has no scheduling policy {got}, or its rules are not known here",
        _other_scheduling,
        allowed="{known}",
        hint="{got} is simulated for {having}",
    ),
    *(
        Rule(
            "fleet.scheduling: the rules of this scheduling policy are not known for this way of serving adapters",
            lambda s, policies=policies: (
                s.fleet.scheduling in policies
                and not _rules_known(s)
                and f"{s.fleet.scheduling}, with adapter mode {mode_of(s)} and fleet.admission {s.fleet.admission}"
            ),
            allowed=allowed,
        )
        for policies, allowed in (
            (("priority",), "with fleet.admission skip"),
            (("vtc", "lcf", "lpm"), "with fleet.load_at arrival, or with cache.gpu.unified and fleet.admission stop"),
        )
    ),
    Rule(
        "fleet.scheduling: {s.fleet.scheduling} needs fleet.front_end none",
        lambda s: (
            s.fleet.scheduling in ("priority", "lpm")
            and s.fleet.front_end != "none"
            and f"{s.fleet.scheduling}, fleet.front_end {s.fleet.front_end}"
        ),
    ),
    Rule(
        "fleet.scheduling: priority needs fleet.batching mixed",
        lambda s: (
            s.fleet.scheduling == "priority"
            and s.fleet.batching != "mixed"
            and f"priority, fleet.batching {s.fleet.batching}"
        ),
    ),
    Rule(
        "fleet.scheduling: {got} needs fleet.async_scheduling false",
        lambda s: (
            s.fleet.async_scheduling
            and s.fleet.scheduling in ("vtc", "lcf")
            and not _other_scheduling(s)
            and s.fleet.scheduling
        ),
    ),
)
"""Which scheduling policies an engine has, and which keys their rules are known with."""


def _other_count(s: Scenario) -> str:
    """Return how many adapters tenants and scenario have, where these are not the same; else empty."""
    total, count = sum(tenant.adapters or 0 for tenant in s.tenants), s.adapters.count
    alike = count in (None, total) or s.adapters.base_alone or any(tenant.match for tenant in s.tenants)
    return "" if alike or not total else f"{total} of tenants, adapters.count {count}"


def _all_have(s: Scenario, key: str) -> bool:
    """Return whether all tenants with a number of adapters have a key."""
    return all(getattr(tenant, key) is not None for tenant in s.tenants if tenant.adapters is not None)


def _some_have(s: Scenario, key: str) -> bool:
    return any(getattr(tenant, key) is not None for tenant in s.tenants)


def _other_sum(s: Scenario) -> str:
    """Return what the tenants' shares add up to, where this is not 100 %; else empty."""
    total = sum(tenant.share or 0.0 for tenant in s.tenants)
    given = _some_have(s, "share") and _all_have(s, "share") and not _some_have(s, "rate")
    return f"{total:.2%}" if given and abs(total - 1) > 1e-6 else ""


def _other_rate(s: Scenario) -> dict[str, str] | None:
    """Return the rate of the arrivals, and the sum of the tenants' rates where this is another one."""
    total = sum(tenant.rate or 0.0 for tenant in s.tenants)
    given = _some_have(s, "rate") and _all_have(s, "rate") and not _some_have(s, "share") and not s.adapters.base_share
    if not given or s.workload.arrivals is None or isinstance(s.workload.arrivals, ClosedArrivals):
        return None
    rate = s.workload.arrivals.rate
    return {"got": format_rate(rate), "sum": format_rate(total)} if abs(total - rate) > 1e-6 * total else None


def _divided(s: Scenario) -> bool:
    """Return whether tenants have shares of the requests, by shares or rates."""
    return _some_have(s, "share") or _some_have(s, "rate")


TENANTS = When(
    lambda s: s.tenants,
    Rule(
        "tenants.{i}.name: two tenants have this name",
        lambda s, it, i: it.name in [other.name for other in s.tenants[:i]] and it.name,
    ),
    Rule(
        "tenants.{i}.base_model: requests to the base model have one tenant",
        lambda s, it, i: it.base_model and any(other.base_model for other in s.tenants[:i]) and "true twice",
    ),
    Rule(
        "tenants: no tenant has the requests to the base model",
        lambda s: s.adapters.base_share > 0 and not any(tenant.base_model for tenant in s.tenants),
        hint="set base_model: true for one",
    ),
    Rule(
        "tenants.{i}.base_model: no request is for the base model",
        lambda s, it, i: it.base_model and not s.adapters.base_share and s.workload.trace is None and "true",
        hint="give adapters.mix a kind such as {{share: 10%, kind: base}}, or remove base_model",
    ),
    Rule(
        "tenants.{i}.match: give all tenants either adapters or match",
        lambda s, it, i: it.match != () and _some_have(s, "adapters"),
    ),
    Rule(
        "tenants.{i}.match: adapters have no names",
        lambda s, it, i: not s.has_names and ", ".join(it.match),
        hint="give adapters, or a trace or weights file that names them",
    ),
    Rule("tenants: the tenants' adapters don't add up to adapters.count", _other_count),
    Rule(
        "tenants.{i}.share: a tenant with arrivals of its own needs its share of the requests",
        lambda s, it, i: it.arrivals_key != "" and not _divided(s),
        hint="give every tenant a share, such as share: 30%",
    ),
    Rule(
        "tenants.{i}.share: other tenants have a share",
        lambda s, it, i: it.adapters and it.share is None and _some_have(s, "share") and not _some_have(s, "rate"),
        hint="give every tenant one, or none",
    ),
    Rule("tenants: the shares of the tenants must add up to 100%", _other_sum),
    Rule(
        "tenants.{i}.share: give all tenants either a share or a rate",
        lambda s, it, i: _some_have(s, "rate") and it.share,
    ),
    Rule(
        "tenants.{i}.rate: other tenants have a rate",
        lambda s, it, i: it.adapters and it.rate is None and it.share is None and _some_have(s, "rate"),
        hint="give every tenant one, or none",
    ),
    Rule(
        "tenants.{i}.rate: the {s.workload.recorded} says whose requests come when",
        lambda s, it, i: it.rate is not None and s.workload.recorded != "",
        hint="remove rate",
    ),
    Rule(
        "tenants.{i}.rate: in a closed loop, rates follow from the answers",
        lambda s, it, i: it.rate is not None and s.workload.is_closed,
        hint="give shares",
    ),
    Rule(
        "tenants.{i}.rate: with requests to the base model in adapters.mix, tenants have shares of the others",
        lambda s, it, i: it.rate is not None and s.adapters.base_share > 0,
        hint="give shares, and workload.arrivals.rate",
    ),
    Rule(
        "workload.arrivals.rate: the rates of the tenants add up to another one",
        _other_rate,
        allowed="{sum}",
        hint="remove it, or give the tenants shares, which divide any rate",
    ),
    Rule(
        "tenants.{i}.share: the {s.workload.recorded} says whose requests come when",
        lambda s, it, i: s.workload.recorded and it.share,
        hint="remove share",
    ),
    *(
        Rule(
            f"workload.{key}: {key} would move requests from one tenant to another",
            lambda s, key=key: getattr(s.workload, key) is not None,
            hint=f"remove {key}, or the tenants",
        )
        for key in ("drift", "churn")
    ),
    Rule(
        "workload.popularity: adapters that are asked for in turn leave no shares for tenants",
        lambda s: _divided(s) and s.workload.popularity.in_turn and s.workload.popularity.law,
        hint="remove the shares or rates, or choose another law",
    ),
    Rule(
        "workload.arrivals.per: with arrivals per adapter, tenants have none of their own",
        lambda s: (
            getattr(s.workload.arrivals, "per", "") == "adapter"
            and _divided(s)
            and any(tenant.arrivals_key for tenant in s.tenants)
            and "adapter"
        ),
        hint="set per: aggregate, or remove steps and cv",
    ),
    Rule(
        "tenants.{i}.{it.arrivals_key}: in a closed loop, times follow from the answers",
        lambda s, it, i: it.arrivals_key != "" and s.workload.is_closed,
        hint="remove it, or give another process",
    ),
    Rule(
        "tenants.{i}.{it.arrivals_key}: with workload.sessions, tenants have no arrivals of their own",
        lambda s, it, i: it.arrivals_key != "" and s.workload.sessions is not None,
        hint="remove one of the two",
    ),
    Rule(
        "tenants.{i}.bucket: eviction {s.cache.eviction} needs to know which requests reach the replicas, and when",
        lambda s, it, i: it.bucket is not None and s.eviction_policy.needs_future,
        hint="choose another cache.eviction",
    ),
    Rule(
        "tenants.{i}.price: engine fixed has no tokens",
        lambda s, it, i: s.fleet.engine == "fixed" and it.price is not None and it.price.input + it.price.output > 0,
        hint="give a price per request, such as 0.002 USD/request",
    ),
)
"""How tenants divide the requests, and what is not supported with them."""
