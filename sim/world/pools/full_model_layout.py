"""Full models of a scenario: which replicas serve which, the KV memory left on those, and their costs."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from sim.errors import ScenarioError
from sim.policies.kv.kv_rules import kv_tokens_left
from sim.spec.profile import Draw, Profile
from sim.spec.scenario import Cache, GpuCache, Scenario, Storage
from sim.spec.sections.serving import MOST_REPLICAS, FullModels
from sim.spec.units import human_bytes
from sim.world.memory.gpu_memory import used_share
from sim.world.world import Pool, without_lora

FULL_MODELS = "full models"
"""The name of their pools."""


def full_model_pools(beside: Pool, profile: Profile | None) -> list[Pool]:
    """Return the pools of a scenario's full models: one for each model with replicas of its own, or one that swaps all.

    GPU caches have places for whole models instead of adapters, and there is no LoRA. A replica with a model of its own
    holds it from the start. A pool that swaps begins empty, and its loads block the step that needs them.

    :param beside: the replicas of the base model, which they follow.
    :param profile: as it was read. Quantised base weights do not apply to full models.
    :raises ScenarioError: if a full model does not fit, or there are too many replicas.
    """
    scenario, population, first = beside.scenario, beside.traffic.population, beside.indices.stop
    spec = scenario.fleet.full_models
    if spec is None:
        return []
    assert profile is not None, "full models need an engine that batches, and that needs a profile"
    models, swaps, count = np.flatnonzero(population.full).tolist(), spec.serve == "swap", len(population)
    groups = [tuple(models)] if swaps else [(model,) for model in models]
    if first + len(groups) * spec.replicas > MOST_REPLICAS:
        each = f"{len(models):,} full models, {spec.replicas} replicas each"
        raise ScenarioError(
            "too many replicas",
            key="fleet.full_models.replicas",
            got=f"{f'{spec.replicas:,} in the pool' if swaps else each}, in addition to {first:,} of the base model",
            allowed=f"{MOST_REPLICAS:,} in all",
            hint="a lower share of full models, or serve: swap",
        )
    rules: dict[str, object] = {"admission": "skip", "load_at": "admission" if swaps else "arrival"}
    if swaps:
        rules["prefix_caching"] = False  # another model takes the memory
    sections = {
        "fleet": scenario.fleet.model_copy(update=rules),
        "cache": Cache(gpu=GpuCache(slots=spec.places)),
        "storage": Storage(mode="blocking" if swaps else "overlap", load=spec.load),
    }
    plain, draws = without_lora(Draw(step=profile.step, load=profile.load)), tuple(map(without_lora, profile.draws))
    changed = {"step": plain.step, "load": plain.load, "draws": draws, "quantized": {}}
    own, pools = profile.model_copy(update=changed), []
    for group in groups:
        takes = np.zeros(count + 1, dtype=np.bool_)
        takes[list(group)] = True
        pools.append(
            replace(
                beside,
                name=FULL_MODELS,
                first=first,
                replicas=spec.replicas,
                scenario=scenario.model_copy(update=sections),
                population=population,
                profile=own,
                kv_tokens=_kv_tokens(scenario, profile, spec, population.size_bytes[list(group)].tolist()),
                weights=[1] * count,
                capacity=spec.places,
                ranks=[0] * count,
                takes=takes,
                adapter_blocks=[],
                pinned=() if swaps else group,
                warm=(),
                base_weights=None,
                experts=None,
                whole_models=spec,
            )
        )
        first += spec.replicas
    return pools


def full_model_notes(scenario: Scenario, pools: Sequence[Pool]) -> list[str]:
    """Return notes for the user about the replicas of full models."""
    spec, own = scenario.fleet.full_models, scenario.fleet.replicas
    if spec is None or not pools:
        return []
    replicas, models = sum(pool.replicas for pool in pools), sum(int(pool.takes.sum()) for pool in pools)
    of = f"{models} full model{'s' * (models != 1)}"
    swaps = spec.serve == "swap" or not models
    how = f"a pool that swaps {of}" if swaps else f"{spec.replicas} for each of {of}"
    verb = "replicas serve" if replicas > 1 else "replica serves"
    notes = [
        f"{replicas} {verb} full models ({how}), in addition to {own} of the base model: "
        f"{replicas + own} replicas in all, each with GPUs of its own"
    ]
    if spec.serve == "swap" and spec.load is None:
        notes.append(
            "loads of whole models take their size over the bandwidth that the profile has for adapters from storage: "
            "an assumption, since loads that large were not measured; fleet.full_models.load gives another time"
        )
    return notes


def _kv_tokens(scenario: Scenario, profile: Profile, spec: FullModels, sizes: list[int]) -> int:
    fleet = scenario.fleet
    resident = min(spec.places, max(1, len(sizes)))
    reserved = fleet.reserved_kv_blocks * fleet.block_size
    if fleet.kv_tokens:
        return fleet.kv_tokens // fleet.block_size * fleet.block_size - reserved
    largest = max(sizes, default=0)
    memory = profile.memory.model_copy(update={"weights_bytes": max(1, largest * resident)})
    share = used_share(scenario, profile)
    tokens = kv_tokens_left(memory, 0, share)
    needed = max(fleet.max_num_batched_tokens, fleet.max_model_len or 0)
    if tokens < needed:
        usable = memory.total_bytes * (memory.utilization if share is None else share)
        most = usable - memory.overhead_bytes - needed * memory.kv_bytes_per_token
        raise ScenarioError(
            "full models leave too little GPU memory for a KV cache",
            key="fleet.full_models.resident" if resident > 1 else "adapters.mix",
            got=f"{resident} of {human_bytes(largest)}",
            allowed=f"up to {human_bytes(max(0, most))} on {profile.device}",
            hint=f"{max(0, tokens):,} KV tokens would be left; needed are {needed:,}, one step or one request",
        )
    return (tokens // fleet.block_size) * fleet.block_size - reserved
