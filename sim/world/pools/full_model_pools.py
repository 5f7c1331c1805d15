"""Pools of full models: ordinary replicas whose GPU cache has places for whole models instead of adapters."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from sim.spec.profile import Profile
from sim.spec.profile_choice import gpus_per_replica
from sim.spec.scenario import Cache, Storage
from sim.spec.scenario import GpuCache as GpuCacheSpec
from sim.world.pools.full_model_layout import FullModelPool, profile_without_lora
from sim.world.world import ReplicaPool, World

FULL_MODELS = "full models"
"""The name of these pools."""


def with_full_models(world: World, layout: tuple[FullModelPool, ...], profile: Profile) -> World:
    """Return a world in which replicas of full models follow those of the base model.

    :param world: of the base model and its adapters.
    :param profile: as it was read.
    """
    first, price = world.scenario.fleet.replicas, world.scenario.fleet.price
    gpus = gpus_per_replica(world.scenario, profile)
    pools = [ReplicaPool("base model", world, 0, first, gpus=gpus, price=price)]
    for each in layout:
        served = _world_of(world, each, profile_without_lora(profile))
        pools.append(ReplicaPool(FULL_MODELS, served, first, each.replicas, gpus=gpus, price=price))
        first += each.replicas
    return replace(world, pools=tuple(pools))


def _world_of(world: World, pool: FullModelPool, profile: Profile) -> World:
    """Return the world of replicas of full models: slots for whole models, and no LoRA.

    A replica with a model of its own holds it from the start. A pool that swaps begins empty, and its loads block the
    step that needs them.

    :param profile: its costs.
    """
    scenario, spec = world.scenario, pool.spec
    swaps = spec.serve == "swap"
    rules: dict[str, object] = {"admission": "skip", "load_at": "admission" if swaps else "arrival"}
    if swaps:
        rules["prefix_caching"] = False  # another model takes the memory
    count = len(world.traffic.population)
    takes = np.zeros(count + 1, dtype=np.bool_)
    takes[list(pool.models)] = True
    return replace(
        world,
        scenario=scenario.model_copy(
            update={
                "fleet": scenario.fleet.model_copy(update=rules),
                "cache": Cache(gpu=GpuCacheSpec(slots=spec.places)),
                "storage": Storage(mode="blocking" if swaps else "overlap", load=spec.load),
            }
        ),
        profile=profile,
        population=world.traffic.population,
        kv_tokens=pool.kv_tokens,
        weights=[1] * count,
        capacity=spec.places,
        ranks=[0] * count,
        adapter_blocks=[],
        pinned=() if swaps else pool.models,
        warm=(),
        base_weights=None,
        takes=takes,
        whole_models=spec,
    )
