"""Full models of a scenario: which replicas serve which, the KV memory left on those, and their costs."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from sim.errors import ScenarioError
from sim.policies.kv.kv_rules import kv_tokens_left
from sim.spec.profile import Draw, LoraCost, Profile
from sim.spec.scenario import Scenario
from sim.spec.sections.serving import MOST_REPLICAS, FullModels
from sim.spec.units import human_bytes
from sim.traffic.generate import Traffic


@dataclass(frozen=True, slots=True)
class FullModelPool:
    """Replicas that serve the same full models.

    :ivar spec: how they serve them.
    :ivar kv_tokens: KV cache of one replica in tokens.
    """

    spec: FullModels
    models: tuple[int, ...]
    replicas: int
    kv_tokens: int


def lay_out_full_models(scenario: Scenario, profile: Profile | None, traffic: Traffic) -> tuple[FullModelPool, ...]:
    """Return the pools of a scenario's full models: one for each model with replicas of its own, or one that swaps all.

    :param profile: as it was read. Quantised base weights do not apply to full models.
    :raises ScenarioError: if a full model does not fit, or there are too many replicas.
    """
    spec, population = scenario.fleet.full_models, traffic.population
    if spec is None:
        return ()
    assert profile is not None, "full models need an engine that batches, and that needs a profile"
    models, first = np.flatnonzero(population.full).tolist(), scenario.fleet.replicas
    groups = [(model,) for model in models] if spec.serve == "dedicated" else [tuple(models)]
    if first + len(groups) * spec.replicas > MOST_REPLICAS:
        each = f"{len(models):,} full models, {spec.replicas} replicas each"
        raise ScenarioError(
            "too many replicas",
            key="fleet.full_models.replicas",
            got=f"{each if spec.serve == 'dedicated' else f'{spec.replicas:,} in the pool'}, in addition to {first:,} "
            "of the base model",
            allowed=f"{MOST_REPLICAS:,} in all",
            hint="a lower share of full models, or serve: swap",
        )
    sizes = population.size_bytes.tolist()
    return tuple(
        FullModelPool(spec, group, spec.replicas, _kv_tokens(scenario, profile, spec, [sizes[each] for each in group]))
        for group in groups
    )


def full_model_notes(scenario: Scenario, pools: Sequence[FullModelPool]) -> list[str]:
    """Return notes for the user about the replicas of full models."""
    if not pools:
        return []
    spec, own = pools[0].spec, scenario.fleet.replicas
    replicas, models = sum(pool.replicas for pool in pools), sum(len(pool.models) for pool in pools)
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
    """Return the KV cache, in tokens, of a replica that holds one or several of these models."""
    fleet = scenario.fleet
    resident = min(spec.places, max(1, len(sizes)))
    reserved = fleet.reserved_kv_blocks * fleet.block_size
    if fleet.kv_tokens:
        return fleet.kv_tokens // fleet.block_size * fleet.block_size - reserved
    largest = max(sizes, default=0)
    memory = profile.memory.model_copy(update={"weights_bytes": max(1, largest * resident)})
    tokens = kv_tokens_left(memory, 0, fleet.gpu_memory_utilization)
    needed = max(fleet.max_num_batched_tokens, fleet.max_model_len or 0)
    if tokens < needed:
        share = memory.utilization if fleet.gpu_memory_utilization is None else fleet.gpu_memory_utilization
        most = memory.total_bytes * share - memory.overhead_bytes - needed * memory.kv_bytes_per_token
        raise ScenarioError(
            "full models leave too little GPU memory for a KV cache",
            key="fleet.full_models.resident" if resident > 1 else "adapters.mix",
            got=f"{resident} of {human_bytes(largest)}",
            allowed=f"up to {human_bytes(max(0, most))} on {profile.device}",
            hint=f"{max(0, tokens):,} KV tokens would be left; needed are {needed:,}, one step or one request",
        )
    return (tokens // fleet.block_size) * fleet.block_size - reserved


def without_lora(costs: Draw) -> Draw:
    """Return costs of replicas that serve whole models: without LoRA, and with loads that take the same time each."""
    step = costs.step.model_copy(update={"lora": LoraCost(), "per_passed_s": 0.0})
    storage = costs.load.storage.model_copy(update={"residual": (1.0,)})
    return Draw(step=step, load=costs.load.model_copy(update={"storage": storage}))


def profile_without_lora(profile: Profile) -> Profile:
    """Return the profile of replicas that serve whole models."""
    plain = without_lora(Draw(step=profile.step, load=profile.load))
    draws = tuple(without_lora(draw) for draw in profile.draws)
    return profile.model_copy(update={"step": plain.step, "load": plain.load, "draws": draws, "quantized": {}})
