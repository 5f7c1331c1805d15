"""Which requests the pools of a fleet take, and whether every request and every pool is reached."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from sim.errors import ScenarioError
from sim.spec.scenario import Pool, Scenario
from sim.spec.sections.serving import ServedKinds
from sim.spec.sections.workload import AdapterKind, Adapters
from sim.traffic.adapters import ModelShape, Population, populate
from sim.world.world import ReplicaPool, World


def requests_taken(pool: Pool, adapters: Adapters, population: Population) -> NDArray[np.bool_]:
    """Return which requests a pool takes, (adapters + 1,): by adapter, and last those to the base model."""
    count, serves = len(population), pool.serves
    if isinstance(serves, ServedKinds):
        return np.append(np.isin(population.kind, _kinds(serves, adapters)), False)
    return np.append(np.full(count, serves != "base"), serves != "adapters")


def _kinds(serves: ServedKinds, adapters: Adapters) -> list[int]:
    """Return kinds of a mix as a population numbers them: without the share of the base model."""
    places = [i for i, kind in enumerate(adapters.mix) if kind.kind != "base"]
    return [number for number, place in enumerate(places) if place in serves.kinds]


def taken_alone(
    pool: Pool, scenario: Scenario, population: Population, shape: str | ModelShape
) -> tuple[Population, Scenario]:
    """Return the adapters as a pool's replicas know them, and its scenario with only the adapters that it takes.

    Slots are as large as those need. Replicas that serve the base model alone run without LoRA.

    :param shape: of the base model, or its name.
    :raises ScenarioError: if the pool names kinds that the mix doesn't have.
    """
    serves, adapters = pool.serves, scenario.adapters
    if serves == "base":
        mix: tuple[AdapterKind, ...] = (AdapterKind(share=1.0, kind="base"),)
        return population, scenario.model_copy(update={"adapters": adapters.model_copy(update={"mix": mix})})
    if not isinstance(serves, ServedKinds):
        return population, scenario
    wrong = [kind for kind in serves.kinds if kind >= len(adapters.mix) or adapters.mix[kind].kind != "lora"]
    if wrong:
        lora = [str(i) for i, kind in enumerate(adapters.mix) if kind.kind == "lora"]
        raise ScenarioError(
            "no such kind of adapters",
            key="fleet.serves.kinds",
            got=wrong[0],
            allowed=", ".join(lora) if lora else "nothing: adapters.mix has no kinds of adapters",
            hint="kinds are places in adapters.mix, counted from 0",
        )
    mix = tuple(adapters.mix[kind] for kind in sorted(serves.kinds))
    own = adapters.model_copy(update={"mix": mix})
    return (
        population.alone(_kinds(serves, adapters), populate(own, shape, 0).slot_bytes),
        scenario.model_copy(update={"adapters": own}),
    )


def check_same_model(first: ReplicaPool, name: str, world: World) -> None:
    """Refuse pools of different base models, whose adapters would not fit each other.

    :raises ScenarioError: key ``fleet``.
    """
    one, other = first.world.profile, world.profile
    if one is not None and other is not None and one.model != other.model:
        raise ScenarioError(
            "the pools of a fleet serve the same base model",
            key="fleet.profile",
            got=f"{one.model} in pool {first.name}, {other.model} in pool {name}",
            hint="set adapters.base_model and give each pool a gpu, or profiles of one model",
        )


def check_reachable(scenario: Scenario, pools: Sequence[ReplicaPool]) -> None:
    """Refuse a fleet in which a request has no pool, or a pool no request.

    :raises ScenarioError: with the key of the pool, or of all of them.
    """
    traffic, population = pools[0].world.traffic, pools[0].world.population
    wanted = np.zeros(len(population) + 1, dtype=np.bool_)
    wanted[-1] = traffic.base_share > 0
    if traffic.base_share < 1:
        wanted[: traffic.places] = traffic.shares() > 0
        wanted[traffic.places : -1] = True  # adapters and versions that arrive during the run
    taken = np.array([pool.world.takes for pool in pools])
    drawn = np.array([pool.weight > 0 or scenario.router.pools == "together" for pool in pools])
    lost = wanted & ~taken.any(axis=0)
    if lost[-1]:
        raise ScenarioError(
            "no pool takes requests to the base model",
            key="fleet.pools",
            got=f"{traffic.base_share:.3g} of the requests are for it",
            hint="give a pool serves: all or serves: base",
        )
    if lost.any():
        kinds = sorted({int(kind) for kind in population.kind[np.flatnonzero(lost)]})
        raise ScenarioError(
            "no pool takes requests for some adapters",
            key="fleet.pools",
            got=", ".join(population.kind_names[kind] for kind in kinds),
            hint="give a pool serves: all or serves: adapters, or these kinds",
        )
    if (wanted & ~(taken & drawn[:, None]).any(axis=0)).any():
        raise ScenarioError(
            "of the pools that take some requests, none has a weight above zero",
            key="fleet.pools",
            got=", ".join(pool.name for pool, is_drawn in zip(pools, drawn, strict=True) if not is_drawn),
            hint="give one of them a weight",
        )
    for pool, mask in zip(pools, taken, strict=True):
        if not (mask & wanted).any():
            place = next(i for i, spec in enumerate(scenario.fleet.pools) if spec.name == pool.name)
            raise ScenarioError(
                "no request is for this pool",
                key=f"fleet.pools.{place}.serves",
                got=pool.name,
                hint="the traffic has no such requests; remove the pool, or let it serve others",
            )


def pool_notes(pools: Sequence[ReplicaPool]) -> tuple[str, ...]:
    """Return the notes on all pools once, and those on some with the names of these."""
    holders: dict[str, list[str]] = {}
    for pool in pools:
        for note in dict.fromkeys(pool.world.notes):
            holders.setdefault(note, []).append(pool.name)
    return tuple(
        note if len(names) == len(pools) else f"{' and '.join(names)}: {note}" for note, names in holders.items()
    )
