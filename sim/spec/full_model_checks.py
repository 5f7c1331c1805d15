"""Checks of scenarios with full fine-tunes: what they need, and what is not supported with them."""

from __future__ import annotations

from collections.abc import Iterator

from sim.spec.base import located
from sim.spec.policies import EvictionEntry, RouterEntry
from sim.spec.sections.serving import Fleet
from sim.spec.sections.workload import Adapters, Workload

Refusal = tuple[str, str, object, str]
"""A key, the problem, the value in the scenario, and what is allowed."""


def check_full_models(
    adapters: Adapters,
    fleet: Fleet,
    eviction: EvictionEntry,
    router: RouterEntry,
    workload: Workload,
    changes: dict[str, int],
) -> None:
    """Refuse full models without replicas to serve them, and combinations that are not supported.

    :param changes: how many rollouts and faults the scenario has, by key.
    :raises PydanticCustomError: with the key that is wrong.
    """
    kinds = [i for i, kind in enumerate(adapters.mix) if kind.kind == "full"]
    served = fleet.full_models is not None
    if not kinds:
        if served:
            raise located(
                "fleet.full_models",
                "the scenario has no full model",
                got=f"{len(adapters.mix)} kinds of adapters",
                hint="give adapters.mix a kind such as {share: 1%, kind: full}, or remove full_models",
            )
        return
    if not served:
        raise located(
            f"adapters.mix.{kinds[0]}.kind",
            "no replica serves full models",
            got="full",
            hint="give fleet.full_models: {serve: dedicated}, or {serve: swap, replicas: 2}",
        )
    for key, count in changes.items():
        if count:
            raise located(key, f"{key} are not supported with full models", got=f"{count} {key}", allowed="none")
    for key, problem, got, allowed in _unsupported(fleet, eviction, router, workload):
        raise located(key, problem, got=got, allowed=allowed)


def _unsupported(fleet: Fleet, eviction: EvictionEntry, router: RouterEntry, workload: Workload) -> Iterator[Refusal]:
    if fleet.engine == "fixed":
        problem = "engine fixed has no weights that a full model could replace"
        yield "fleet.engine", problem, "fixed", "an engine that batches"
    if fleet.front_end != "none":
        problem = "this front end reproduces measured runs without full models"
        yield "fleet.front_end", problem, fleet.front_end, "none"
    if eviction.needs_future:
        problem = f"eviction {eviction.name} does not support a second fleet"
        yield "cache.eviction", problem, eviction.name, "another eviction"
    if router.places_adapters:
        problem = f"{router.name} does not support full models"
        yield "router.policy", problem, router.name, "another policy"
    assert fleet.full_models is not None, "checked before"
    if fleet.full_models.serve == "dedicated" and workload.churn is not None:
        problem = "a full model that arrives during the run would need a new replica"
        yield "workload.churn", problem, "fleet.full_models.serve dedicated", "serve swap"
