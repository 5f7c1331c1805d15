"""What the sections of a scenario must be together: a row for each rule. Checks of one section stand beside its class.

All rows are looked at, so that a user sees every problem at once; of several with the same key, the first one stands.
"""

from __future__ import annotations

from math import inf
from typing import TYPE_CHECKING, Any

from sim.spec.adapter_modes import MODES, OTHER_CHOICES
from sim.spec.base import refuse
from sim.spec.engines import keeps_experts
from sim.spec.needs import UNSET, First, Need, Row, Rule, When, broken, only
from sim.spec.policies import PLACERS
from sim.spec.sections.changes import already_down, clash, exceeding_shares
from sim.spec.sections.workload import EXPERTS
from sim.spec.tenant_rules import SCHEDULING, TENANTS

if TYPE_CHECKING:
    from sim.spec.scenario import Scenario

_STAYING = ("crash", "slow-storage", "storage-stall", "network-delay")
"""Faults that leave adapters where they are placed."""


def check(scenario: Scenario) -> None:
    """Refuse a scenario whose sections don't fit together; those of pools have each been checked by themselves.

    :raises ValidationError: with every rule that it breaks.
    """
    if not scenario.fleet.pools:
        found = broken(scenario, (*SHARED, *ONE_KIND))
    else:
        changed = scenario.pools if scenario.changed_by else ()
        found = broken(scenario, (*SHARED, *POOLS))
        found += [error for pool in changed for error in CHANGED_REPLICAS.errors(pool)]
    refuse(type(scenario), found)


def _grouped(s: Scenario) -> Any:
    """Return the groups of adapters that popularity gives; () where a trace or another law gives it."""
    return getattr(s.workload.popularity, "groups", ()) if s.workload.trace is None else ()


def _has_full(s: Scenario) -> bool:
    return any(kind.kind == "full" for kind in s.adapters.mix)


def _has_weight(s: Scenario) -> bool:
    """Return whether any pool can be drawn by weight."""
    return any(pool.weight > 0 and pool.replicas for pool in s.fleet.pools)


def _no_such_replica(s: Scenario, fault: Any) -> dict[str, object] | None:
    """Return the replica that a fault names and the last one that there is, where it names none of them."""
    replica, replicas = getattr(fault, "replica", None), s.fleet.total if s.fleet.pools else s.fleet.places
    if replica is None or replica < replicas or s.fleet.full_models is not None:  # how many there are follows later
        return None
    counted = "the replicas of pools are counted in order" if s.fleet.pools else ""
    return {"got": replica, "last": replicas - 1, "counted": counted}


def _metric(s: Any, name: str) -> str:
    """Return the metric that an autoscaler goes by if it is this one; else empty."""
    return name if s.fleet.autoscale.metric == name else ""


def _swaps(s: Scenario) -> str:
    """Return the strategy of the first rollout that swaps weights under the same name, at its key; empty: none does."""
    swaps = (
        (i, each.strategy) for i, each in enumerate(s.rollouts) if each.strategy not in ("new-name", "lazy-reread")
    )
    return next((f"rollouts.{i}.strategy {strategy}" for i, strategy in swaps), "")


def _not_for_roles(s: Scenario) -> str:
    """Return what does not go with replicas for prefill and for decode; empty: all does."""
    for kind in s.kinds:
        if kind.cache.eviction != "vllm-lru":
            return f"engine {kind.fleet.engine}"
        if kind.fleet.scheduling != "fcfs":
            return f"scheduling {kind.fleet.scheduling}"
        for key in ("kv_offload", "speculation"):
            if getattr(kind.fleet, key) is not None:
                return key
    sizes = {kind.fleet.block_size for kind in s.kinds}
    if len(sizes) > 1:
        return f"block_size {' and '.join(map(str, sorted(sizes)))}"
    buckets = (f"tenant {tenant.name} with a bucket" for tenant in s.tenants if tenant.bucket)
    return s.changed_by or next(buckets, "")


def _not_with_speculation(s: Scenario) -> str:
    """Return what does not go with speculation; empty: all does."""
    fleet = s.fleet
    for key, value in (("scheduling", "fcfs"), ("front_end", "none")):
        if getattr(fleet, key) != value:
            return f"fleet.{key} {getattr(fleet, key)}"
    if fleet.kv_offload is not None:
        return "fleet.kv_offload"
    return "" if s.adapters.invocation_tokens is None else "adapters.invocation_tokens"


SHARED: tuple[Row, ...] = (
    Rule(
        "adapters.targets: the slots of this engine for adapters on experts are not known",
        lambda s: (
            s.adapters.experts
            and next((k.fleet.engine for k in s.kinds or (s,) if not keeps_experts(k.fleet.engine)), "")
        ),
        allowed="engine vllm from 0.12 on, continuous or fixed",
        hint="remove experts from the targets, or choose another engine",
    ),
    Rule(
        "adapters.mix: all adapters on experts of a vLLM server have matrices for each expert, or all share some",
        lambda s: len({name for kind in s.adapters.mix for name in kind.targets if name in EXPERTS}) > 1,
        allowed=f"either {' or '.join(EXPERTS)}",
    ),
    Rule(
        "fleet.expert_parallel: vLLM does not support it with fully sharded adapters",
        lambda s: (
            any(k.fleet.expert_parallel and k.fleet.fully_sharded_loras for k in s.kinds or (s,))
            and "true, with fleet.fully_sharded_loras true"
        ),
        hint="remove one of them",
    ),
    Rule(
        "fleet.kv_transfer: no pool has role prefill or decode",
        lambda s: s.fleet.kv_transfer is not None and not s.fleet.disaggregated,
        hint="give roles to fleet.pools, or remove it",
    ),
    Rule(
        "workload.popularity.groups: the groups don't add up to adapters.count",
        lambda s: (
            (n := sum(group.adapters for group in _grouped(s))) not in (0, s.adapters.count)
            and f"{n} in groups, adapters.count {s.adapters.count}"
        ),
    ),
    Rule(
        "workload.popularity.groups: no weight above zero",
        lambda s: _grouped(s) != () and not any(group.weight for group in _grouped(s)),
    ),
    Rule(
        "rollouts: all requests are for the base model, so no adapter has a new version",
        lambda s: s.adapters.base_alone and s.rollouts != (),
    ),
    Rule(
        "adapters.max_rank: smaller than the rank of an adapter or of a new version",
        lambda s: s.slot_rank > (s.adapters.max_rank or inf) and s.adapters.max_rank,
        allowed="{s.slot_rank} or more",
    ),
    Rule(
        "slo.miss_ratio: all requests are for the base model, so none can miss",
        lambda s: s.adapters.base_alone and s.slo.miss_ratio is not None,
        hint="remove it",
    ),
    Rule(
        "adapters.count: the number of adapters is missing",
        lambda s: s.adapters.count is None and not (s.has_names or _grouped(s) or s.adapters.base_alone),
        hint="give count: 1000",
    ),
    Rule(
        "adapters.mix: a client sends all requests to adapters, or all to the base model",
        lambda s: s.workload.client and 0 < s.adapters.base_share < 1 and f"{s.adapters.base_share:.0%} base",
        allowed="0% or 100% base",
    ),
    Rule(
        "run.half_width: only a run of generated requests can be lengthened",
        lambda s: s.run.half_width is not None and (s.workload.recorded != "" or s.workload.requests is None),
        hint="give workload.requests, or remove half_width",
    ),
    Rule(
        "router.pools: the fleet has no pools",
        lambda s: not s.fleet.pools and s.router.pools != "together" and s.router.pools,
        hint="give fleet.pools",
    ),
    Rule(
        "router.spill: the fleet has no pools", lambda s: not s.fleet.pools and s.router.spill, hint="give fleet.pools"
    ),
    Rule(
        "router.spill: with router.pools: together, all replicas are candidates anyway",
        lambda s: s.router.pools == "together" and s.router.spill,
        allowed="only with router.pools: weight",
        hint="remove it, or set router.pools: weight",
    ),
    Rule(
        "fleet.pools: no pool has a weight above zero",
        lambda s: s.fleet.pools != () and s.router.pools == "weight" and not _has_weight(s),
        hint="give one of them a weight, such as 1",
    ),
    Rule(
        "fleet.pools.{i}.weight: no request reaches this pool",
        lambda s, it, i: (
            (s.router.pools == "weight" and _has_weight(s) and it.weight == 0 and s.router.spill is None)
            and f"0, and no router.spill (pool {it.name})"
        ),
        hint="give it a weight, or set router.spill: full",
    ),
    Rule(
        "fleet.pools.{i}.weight: with router.pools: together, no pool is drawn by weight",
        lambda s, it, i: s.router.pools == "together" and "weight" in it.model_fields_set and {"got": it.weight},
        allowed="only with router.pools: weight",
        hint="remove it, or set router.pools: weight",
    ),
    Rule(
        "router.copies: there are fewer replicas",
        lambda s: s.router.copies > s.fleet.total and s.router.copies,
        allowed="at most {s.fleet.total}",
        hint="raise fleet.replicas, or place fewer copies",
    ),
)
"""Rules of every scenario."""

AUTOSCALER = When(
    lambda s: s.fleet.autoscale,
    Rule(
        "fleet.replicas: the fleet starts outside the bounds of fleet.autoscale",
        lambda s: (
            not (a := s.fleet.autoscale).min <= s.fleet.replicas <= a.max
            and {"got": s.fleet.replicas, "least": max(1, a.min)}
        ),
        allowed="{least} to {s.fleet.autoscale.max} (autoscale.min to autoscale.max)",
        hint="fleet.replicas is how many there are at the start",
    ),
    Need({"fleet.full_models": UNSET}, "full models are not supported with an autoscaler"),
    Need({"fleet.front_end": only("none")}, "this front end reproduces measured runs of a fixed fleet"),
    Rule(
        "cache.eviction: eviction {s.cache.eviction} needs a fleet that doesn't change during the run",
        lambda s: s.eviction_policy.needs_future,
        hint="choose another cache.eviction, or remove fleet.autoscale",
    ),
    Rule(
        "router.policy: {got} places adapters on replicas before the run, so it can't follow an autoscaler",
        lambda s: s.router_policy.places_adapters and not s.router.placing and s.router.policy,
        allowed="another policy",
    ),
    Rule(
        "fleet.autoscale.metric: engine fixed has no KV cache",
        lambda s: s.fleet.engine == "fixed" and s.fleet.autoscale.policy != "schedule" and _metric(s, "kv_usage"),
        allowed="in_flight, waiting, gpu_load",
    ),
    *(
        Rule(
            f"fleet.autoscale.metric: no request waits for an adapter: {why}",
            lambda s, never=never: never(s) and _metric(s, "adapter_waiting"),
            allowed="in_flight, waiting, gpu_load, kv_usage",
        )
        for why, never in (
            ("every adapter keeps its slot", lambda s: (s.adapters.count or inf) <= (s.cache.gpu.slots or 0)),
            ("all requests are for the base model", lambda s: s.adapters.base_alone),
        )
    ),
    Rule(
        "rollouts.{i}.strategy: updates in place of replicas that come and go are not supported",
        lambda s, it, i: it.strategy != "new-name" and it.strategy,
        allowed="new-name",
        hint="or remove fleet.autoscale",
    ),
    Rule(
        "faults.{i}.down: an autoscaler counts on a crashed replica to come back in its place",
        lambda s, it, i: it.kind == "crash" and it.down is None and "unset",
        hint="give it, such as down: 90 s",
    ),
)
"""What a controller that starts and stops replicas needs."""

CONTROLLER = When(
    lambda s: s.router.placing,
    Rule(
        "router.controller.copies: there are fewer replicas",
        lambda s: s.router.placing.copies > s.fleet.places and s.router.placing.copies,
        allowed="at most {s.fleet.places}",
        hint="raise fleet.replicas, or place fewer copies",
    ),
    Rule(
        "router.controller.slots: a replica has fewer slots",
        lambda s: (s.router.placing.slots or 0) > (s.cache.gpu.slots or inf) and s.router.placing.slots,
        allowed="at most cache.gpu.slots ({s.cache.gpu.slots})",
    ),
    Rule(
        "router.controller.policy: adapters that never move can't follow an autoscaler: no adapter would be placed on "
        "a new replica",
        lambda s: s.fleet.autoscale and not PLACERS[s.router.placing.policy].moves and s.router.placing.policy,
        allowed=", ".join(entry.name for entry in PLACERS if entry.moves),
    ),
    Rule(
        "rollouts: rollouts are not supported with router.policy {s.router.policy}",
        lambda s: s.rollouts != (),
        hint="choose another router",
    ),
    Rule(
        "faults.{i}.kind: this fault is not supported with router.policy {s.router.policy}",
        lambda s, it, i: it.kind not in _STAYING and it.kind,
        allowed=", ".join(_STAYING),
        hint="or choose another router",
    ),
)
"""What a placement controller (``router.policy: placement`` or ``dynamo``) needs."""

FULL_MODELS: tuple[Row, ...] = (
    Rule(
        "fleet.full_models: the scenario has no full model",
        lambda s: s.fleet.full_models and not _has_full(s) and f"{len(s.adapters.mix)} kinds of adapters",
        hint="give adapters.mix a kind such as {{share: 1%, kind: full}}, or remove full_models",
    ),
    Rule(
        "adapters.mix.{i}.kind: no replica serves full models",
        lambda s, it, i: s.fleet.full_models is None and it.kind == "full" and it.kind,
        hint="give fleet.full_models: {{serve: dedicated}}, or {{serve: swap, replicas: 2}}",
    ),
    When(
        lambda s: s.fleet.full_models and _has_full(s),
        Rule(
            "rollouts: rollouts are not supported with full models",
            lambda s: s.rollouts and f"{len(s.rollouts)} rollouts",
            allowed="none",
        ),
        Rule(
            "faults.{i}.kind: this fault is not supported with full models",
            lambda s, it, i: it.kind not in _STAYING and it.kind,
            allowed=", ".join(_STAYING),
        ),
        Rule(
            "fleet.engine: engine fixed has no weights that a full model could replace",
            lambda s: s.fleet.engine == "fixed" and s.fleet.engine,
            allowed="an engine that batches",
        ),
        Need({"fleet.front_end": only("none")}, "this front end reproduces measured runs without full models"),
        Rule(
            "cache.eviction: eviction {got} does not support a second fleet",
            lambda s: s.eviction_policy.needs_future and s.cache.eviction,
            allowed="another eviction",
        ),
        Rule(
            "router.policy: {got} does not support full models",
            lambda s: s.router_policy.places_adapters and s.router.policy,
            allowed="another policy",
        ),
        Rule(
            "workload.churn: a full model that arrives during the run would need a new replica",
            lambda s: (
                s.workload.churn and s.fleet.full_models.serve == "dedicated" and "fleet.full_models.serve dedicated"
            ),
            allowed="serve swap",
        ),
    ),
)
"""What full fine-tunes need, and what is not supported with them."""

CHANGES = (
    Rule(
        "rollouts.{i}.share: the shares of all rollouts exceed 100 %",
        lambda s, it, i: exceeding_shares(s.rollouts, i),
        allowed="up to 100% together",
    ),
    Rule("rollouts.{i}: {problem}", lambda s, it, i: clash(s.rollouts, i), hint="{hint}"),
    Rule(
        "faults.{i}.replica: no such replica",
        lambda s, it, i: _no_such_replica(s, it),
        allowed="0 to {last}",
        hint="{counted}",
    ),
    Rule(
        "faults.{i}.at: replica {it.replica} is already down (faults.{j})",
        lambda s, it, i: (j := already_down(s.faults, i)) is not None and {"got": f"{it.at:g} s", "j": j},
    ),
    *(
        Rule(
            key + ".{i}.at: starts after the end of the run",
            lambda s, it, i: getattr(it, "at", 0.0) >= (s.workload.duration or inf) and f"{it.at:g} s",
            allowed="below workload.duration ({s.workload.duration:g} s)",
        )
        for key in ("rollouts", "faults")
    ),
    Rule(
        "faults.{i}: no rollout swaps weights under the same name",
        lambda s, it, i: it.kind == "named-prefixes" and not _swaps(s),
        hint="such as strategy: in-place",
    ),
)
"""What rollouts and faults must be."""

CHANGED_REPLICAS = When(
    lambda s: s.changed_by,
    Rule(
        "rollouts.{i}.strategy: with KV offload or speculation, new versions need names of their own",
        lambda s, it, i: it.strategy != "new-name" and (s.fleet.kv_offload or s.fleet.speculation) and it.strategy,
        allowed="new-name",
        hint="set it, or remove fleet.kv_offload and fleet.speculation",
    ),
    Rule(
        "{s.changed_by}: eviction {s.cache.eviction} needs a fleet that doesn't change during the run",
        lambda s: s.eviction_policy.needs_future,
        hint="choose another cache.eviction",
    ),
    Rule(
        "{s.changed_by}: this front end reproduces measured runs without such changes",
        lambda s: s.fleet.front_end != "none" and s.fleet.front_end,
        hint="set fleet.front_end: none",
    ),
    Rule(
        "faults.{i}: failing loads with cache.eviction vllm-lru need steps that also decode",
        lambda s, it, i: (
            it.kind == "failing-loads"
            and s.cache.eviction == "vllm-lru"
            and s.fleet.batching != "mixed"
            and f"fleet.batching {s.fleet.batching}"
        ),
        allowed="mixed",
    ),
    Rule(
        "faults.{i}: failing loads that overlap with steps are not supported with slots that protect a step",
        lambda s, it, i: (
            it.kind == "failing-loads"
            and s.cache.protects == "batch"
            and s.storage.mode == "overlap"
            and "cache.protects batch"
        ),
        allowed="running",
    ),
    Rule(
        "faults.{i}: a prefetched load has no waiting request that could fail",
        lambda s, it, i: (
            it.kind == "failing-loads"
            and s.cache.prefetch != "none"
            and f"failing-loads with cache.prefetch {s.cache.prefetch}"
        ),
        allowed="cache.prefetch none",
    ),
    Rule(
        "faults.{i}: in-place swaps whose load fails are not supported",
        lambda s, it, i: it.kind == "failing-loads" and _swaps(s) and f"failing-loads with {_swaps(s)}",
        allowed="new-name, lazy-reread",
    ),
)
"""Whether replicas of one kind go with rollouts and faults."""

POOLS = (
    Rule(
        "faults.{i}: where pools are drawn by weight, the rules for a pool whose replicas are all down are not known",
        lambda s, it, i: it.kind == "crash" and s.router.pools == "weight" and "a crash, and router.pools weight",
        allowed="router.pools together",
    ),
    Rule(
        "faults.{i}: where pools take different requests, misrouting and crashes are not supported together",
        lambda s, it, i: (
            it.kind in ("misrouting", "stale-map")
            and any(fault.kind == "crash" for fault in s.faults)
            and any(pool.serves != "all" for pool in s.fleet.open_pools)
            and it.kind
        ),
        allowed="serves: all in every pool",
        hint="or simulate one of the faults",
    ),
    Rule(
        "fleet.pools: prefill and decode need a pool each, all of whose replicas serve everything",
        lambda s: (
            s.fleet.disaggregated
            and not (
                {pool.role for pool in s.fleet.open_pools} == {"prefill", "decode"}
                and all(pool.serves == "all" for pool in s.fleet.open_pools)
                and s.router.pools == "together"
            )
            and ", ".join(f"{pool.name}: {pool.role}, serves {pool.serves}" for pool in s.fleet.open_pools)
        ),
        allowed="roles prefill and decode, serves all, router.pools together",
    ),
    Rule(
        "fleet.pools: prefill and decode are simulated with the rules of vLLM, in a fleet that doesn't change",
        lambda s: s.fleet.disaggregated and _not_for_roles(s),
        allowed="engine vllm, scheduling fcfs, one block_size, no kv_offload, speculation, rollouts, faults or buckets",
    ),
    Rule(
        "router.policy: {got} places adapters on equal replicas, not on pools",
        lambda s: s.router_policy.places_adapters and s.router.policy,
        allowed="another policy",
    ),
    Rule(
        "fleet.pools.{i}.price: other pools have a price, and costs need that of every GPU",
        lambda s, it, i: s.kinds[i].fleet.price is None and any(kind.fleet.price is not None for kind in s.kinds),
        hint="give this pool a price, or a fleet.price for all that have none",
    ),
    Rule(
        "fleet.pools.{i}: fleet.engine {got} is not supported in this fleet of pools",
        lambda s, it, i: (
            (s.kinds[i].fleet.engine == "fixed") != (s.kinds[0].fleet.engine == "fixed") and s.kinds[i].fleet.engine
        ),
        allowed="engine fixed in all pools, or in none",
    ),
    Rule(
        "fleet.front_end: fleet.front_end {got} is not supported in this fleet of pools",
        lambda s: next((kind.fleet.front_end for kind in s.kinds if kind.fleet.front_end != "none"), False),
        allowed="none",
    ),
    *CHANGES,
)
"""Rules of a fleet of pools."""

ONE_KIND: tuple[Row, ...] = (
    Rule(
        "workload.duration: eviction {s.cache.eviction} needs to know all requests, and a closed loop has no last one",
        lambda s: s.workload.is_closed and s.workload.requests is None and s.eviction_policy.needs_future,
        hint="give workload.requests instead, or choose another cache.eviction",
    ),
    First(*OTHER_CHOICES, *MODES),
    Rule(
        "fleet.speculation: this does not combine with speculation yet",
        lambda s: s.fleet.speculation is not None and _not_with_speculation(s),
        allowed="scheduling fcfs, front_end none, no kv_offload, no invocation_tokens",
    ),
    Rule(
        "fleet.async_scheduling: vLLM refuses it with drafts of method ngram, which need the tokens of the step ahead",
        lambda s: (
            s.fleet.async_scheduling
            and s.fleet.speculation
            and s.fleet.speculation.tokens
            and s.fleet.speculation.method == "ngram"
            and "true"
        ),
        allowed="false",
        hint="remove it, or choose another fleet.speculation.method",
    ),
    AUTOSCALER,
    CONTROLLER,
    *SCHEDULING,
    TENANTS,
    *FULL_MODELS,
    *CHANGES,
    CHANGED_REPLICAS,
)
"""Rules of a fleet whose replicas are of one kind, and of each pool."""
