"""Several kinds of replica in one fleet: which requests each takes, and what pools must agree on."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import Any, Protocol

from pydantic import Field, NonNegativeInt

from sim.spec.base import Strict, located
from sim.spec.policies import RouterEntry
from sim.spec.sections.faults import Crash, Fault
from sim.spec.sections.routing import Router

MOST_REPLICAS = 4096
"""Replicas of a fleet, those of all pools and of full models among them."""


_TAKEN = ("cache", "storage", "serves")
"""Names that a pool can't have, because keys such as ``fleet.pools.cache.gpu`` could then be read in two ways."""


class ServedKinds(Strict):
    """The adapters that a pool takes requests for."""

    kinds: tuple[NonNegativeInt, ...] = Field(min_length=1)
    """Places of kinds in ``adapters.mix``, counted from 0."""


class NamedPool(Protocol):
    """What ``check_pools`` reads of a pool."""

    @property
    def name(self) -> str: ...

    @property
    def replicas(self) -> int: ...

    @property
    def weight(self) -> float: ...

    @property
    def model_fields_set(self) -> set[str]: ...


def check_pools(pools: Sequence[NamedPool], given: Collection[str]) -> None:
    """Refuse two pools of one name, keys that a fleet of pools can't have, and too many replicas.

    :param given: keys of ``fleet`` that the scenario gives.
    :raises PydanticCustomError: with a key relative to ``fleet``.
    """
    if "replicas" in given:
        raise located(
            "replicas",
            "a fleet of pools has the replicas of its pools",
            hint="remove fleet.replicas, and give each pool its replicas",
        )
    if "full_models" in given:
        raise located(
            "full_models",
            "full models are not supported in a fleet of pools",
            hint="remove fleet.full_models, or describe one kind of replica without pools",
        )
    if "autoscale" in given:
        raise located(
            "autoscale",
            "an autoscaler is not supported in a fleet of pools",
            hint="remove fleet.autoscale, or describe one kind of replica without pools",
        )
    seen: set[str] = set()
    for i, pool in enumerate(pools):
        if pool.name in seen:
            raise located(f"pools.{i}.name", "two pools have the same name", got=pool.name)
        seen.add(pool.name)
        if pool.name in _TAKEN:
            raise located(f"pools.{i}.name", "a key of pools has this name", got=pool.name, hint="choose another name")
    total = sum(pool.replicas for pool in pools)
    if not 0 < total <= MOST_REPLICAS:
        problem = "too many replicas" if total else "no pool has a replica"
        raise located("pools", problem, got=f"{total:,} in all", allowed=f"1 to {MOST_REPLICAS:,}")


def check_pool_routing(pools: Sequence[NamedPool], router: Router) -> None:
    """Refuse keys of the router and weights of pools that mean nothing together.

    :raises PydanticCustomError: with the key that is wrong.
    """
    if not pools:
        for key in ("pools", "spill"):
            if key in router.model_fields_set and getattr(router, key) not in (None, "together"):
                raise located(
                    f"router.{key}", "the fleet has no pools", got=getattr(router, key), hint="give fleet.pools"
                )
        return
    if router.pools == "weight":
        if not any(pool.weight > 0 and pool.replicas for pool in pools):
            raise located("fleet.pools", "no pool has a weight above zero", hint="give one of them a weight, such as 1")
        for i, pool in enumerate(pools):
            if pool.weight == 0 and router.spill is None:
                raise located(
                    f"fleet.pools.{i}.weight",
                    "no request reaches this pool",
                    got=f"0, and no router.spill (pool {pool.name})",
                    hint="give it a weight, or set router.spill: full",
                )
        return
    if router.spill is not None:
        raise located(
            "router.spill",
            "with router.pools: together, all replicas are candidates anyway",
            got=router.spill,
            allowed="only with router.pools: weight",
            hint="remove it, or set router.pools: weight",
        )
    for i, pool in enumerate(pools):
        if "weight" in pool.model_fields_set:
            raise located(
                f"fleet.pools.{i}.weight",
                "with router.pools: together, no pool is drawn by weight",
                got=pool.weight,
                allowed="only with router.pools: weight",
                hint="remove it, or set router.pools: weight",
            )


def check_pool_support(scenarios: Sequence[Any], policy: RouterEntry, router: Router, faults: Sequence[Fault]) -> None:
    """Refuse what a fleet of pools doesn't support.

    :param scenarios: of the pools, in order.
    :raises PydanticCustomError: with the key that is wrong.
    """
    for i, fault in enumerate(faults):
        if isinstance(fault, Crash) and router.pools == "weight":
            raise located(
                f"faults.{i}",
                "where pools are drawn by weight, the rules for a pool whose replicas are all down are not known",
                got="a crash, and router.pools weight",
                allowed="router.pools together",
            )
    if policy.places_adapters:
        raise located(
            "router.policy",
            f"{policy.name} places adapters on equal replicas, not on pools",
            got=policy.name,
            allowed="another policy",
        )
    priced = [each.fleet.price is not None for each in scenarios]
    if any(priced) and not all(priced):
        raise located(
            f"fleet.pools.{priced.index(False)}.price",
            "other pools have a price, and costs need that of every GPU",
            hint="give this pool a price, or a fleet.price for all that have none",
        )
    fixed = [each.fleet.engine == "fixed" for each in scenarios]
    for i, each in enumerate(scenarios):
        problem = {
            "fleet.engine": (fixed[i] != fixed[0], each.fleet.engine, "engine fixed in all pools, or in none"),
            "cache.eviction": (each.eviction_policy.needs_future, each.cache.eviction, "another eviction"),
            "fleet.front_end": (each.fleet.front_end != "none", each.fleet.front_end, "none"),
        }
        for key, (wrong, got, allowed) in problem.items():
            if wrong:
                where = f"fleet.pools.{i}" if key == "fleet.engine" else key
                raise located(where, f"{key} {got} is not supported in this fleet of pools", got=got, allowed=allowed)
