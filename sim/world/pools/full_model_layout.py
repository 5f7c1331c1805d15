"""Full models of a scenario: the models, the replicas that serve them, and the KV memory left on those."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from sim.errors import ScenarioError
from sim.policies.costs import load_seconds
from sim.policies.kv.kv_memory import kv_tokens_left
from sim.spec.profile import Draw, LoraCost, Profile, StepCost
from sim.spec.scenario import Scenario
from sim.spec.sections.full_models import FullModels
from sim.spec.units import human_bytes
from sim.traffic.adapters import Population
from sim.traffic.generate import Traffic

MOST_REPLICAS = 4096
"""Replicas of a fleet, those of full models among them."""

Floats = NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class FullModelFleet:
    """The replicas of full models. They follow those of the base model; their indices begin with ``first``.

    :ivar profile: costs of steps and loads, without LoRA.
    :ivar population: sizes of all adapters; ``full``: whether each is a full model.
    :ivar homes: by model, its own replicas; empty if a pool serves all.
    :ivar kv_tokens: by replica, counted from ``first``, KV cache in tokens.
    """

    spec: FullModels
    profile: Profile
    population: Population
    full: list[bool]
    first: int
    replicas: int
    homes: dict[int, range]
    kv_tokens: tuple[int, ...]

    @property
    def model_of(self) -> list[int]:
        """By replica, counted from ``first``, the model it holds; empty if a pool serves all."""
        return [model for model, own in self.homes.items() for _ in own]

    def with_costs(self, costs: Draw) -> FullModelFleet:
        """Return the same replicas with other step and load costs."""
        return replace(self, profile=_without_lora(self.profile, costs.step).model_copy(update={"load": costs.load}))

    def load_seconds(self, uniform: Floats, adapter: NDArray[np.int64]) -> Floats:
        """Return the seconds of whole loads, same shape."""
        if self.spec.load is not None:
            return np.asarray(self.spec.load.ppf(uniform))
        return load_seconds(self.profile.load.storage, self.population)[adapter]

    def limit_tokens(self, limits: NDArray[np.int64]) -> None:
        """Set the most tokens of requests for full models, which the KV cache of their replicas limits.

        :param limits: (adapters,) by adapter, changed in place.
        """
        for model in np.flatnonzero(self.full).tolist():
            place = self.homes[model][0] - self.first if model in self.homes else 0
            limits[model] = self.kv_tokens[place]


def lay_out_full_models(scenario: Scenario, profile: Profile | None, traffic: Traffic) -> FullModelFleet | None:
    """Return the replicas of a scenario's full models; None if it has none.

    :param profile: as it was read. Quantised base weights do not apply to full models.
    :raises ScenarioError: if a full model does not fit, or there are too many replicas.
    """
    spec, population = scenario.fleet.full_models, traffic.population
    if spec is None:
        return None
    assert profile is not None, "full models need an engine that batches, and that needs a profile"
    models = np.flatnonzero(population.full).tolist()
    first, homes, replicas = scenario.fleet.replicas, dict[int, range](), spec.replicas
    if spec.serve == "dedicated":
        places = range(first, first + len(models) * replicas, replicas)
        homes = {model: range(place, place + replicas) for model, place in zip(models, places, strict=True)}
        replicas *= len(models)
    if first + replicas > MOST_REPLICAS:
        each = f"{len(models):,} full models, {spec.replicas} replicas each" if homes else f"{replicas:,} in the pool"
        raise ScenarioError(
            "too many replicas",
            key="fleet.full_models.replicas",
            got=f"{each}, in addition to {first:,} of the base model",
            allowed=f"{MOST_REPLICAS:,} in all",
            hint="a lower share of full models, or serve: swap",
        )
    sizes = [[model] for model in homes for _ in range(spec.replicas)] if homes else [models] * replicas
    kv = tuple(_kv_tokens(scenario, profile, [int(population.size_bytes[m]) for m in each]) for each in sizes)
    without = _without_lora(profile, profile.step)
    return FullModelFleet(spec, without, population, population.full.tolist(), first, replicas, homes, kv)


def full_model_notes(found: FullModelFleet | None, base_replicas: int) -> list[str]:
    """Return notes for the user about the replicas of full models.

    :param base_replicas: number of replicas of the base model.
    """
    if found is None or not found.replicas:
        return []
    models, spec = sum(found.full), found.spec
    of = f"{models} full model{'s' * (models != 1)}"
    how = f"a pool that swaps {of}" if not found.homes else f"{spec.replicas} for each of {of}"
    verb = "replicas serve" if found.replicas > 1 else "replica serves"
    notes = [
        f"{found.replicas} {verb} full models ({how}), in addition to {base_replicas} of the base model: "
        f"{found.replicas + base_replicas} replicas in all, each with GPUs of its own"
    ]
    if spec.serve == "swap" and spec.load is None:
        notes.append(
            "loads of whole models take their size over the bandwidth that the profile has for adapters from storage: "
            "an assumption, since loads that large were not measured; fleet.full_models.load gives another time"
        )
    return notes


def _kv_tokens(scenario: Scenario, profile: Profile, sizes: list[int]) -> int:
    """Return the KV cache, in tokens, of a replica that holds one or several of these models."""
    fleet = scenario.fleet
    assert fleet.full_models is not None, "called only if there are full models"
    resident = min(fleet.full_models.places, max(1, len(sizes)))
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


def _without_lora(profile: Profile, step: StepCost) -> Profile:
    """Return a profile without costs of LoRA."""
    plain = step.model_copy(update={"lora": LoraCost(), "per_passed_s": 0.0})
    return profile.model_copy(update={"step": plain, "draws": (), "quantized": {}})
