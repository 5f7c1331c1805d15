"""Replicas over several GPUs (tensor parallelism): what fits together, and what each GPU holds."""

from __future__ import annotations

from sim.errors import ScenarioError
from sim.results.model import GpuShare
from sim.spec.engines import ENGINES, engine_words
from sim.spec.profile import Profile, load_profile
from sim.spec.profile_choice import DEFAULT_MODEL, MOST_GPUS, is_model
from sim.spec.scenario import Scenario
from sim.traffic.adapters import SHAPES, GpuSplit, Population, base_shape
from sim.world.memory.gpu_memory import adapter_bytes, padded_rank
from sim.world.world import World


def check_gpus(scenario: Scenario) -> None:
    """Refuse a number of GPUs over which the scenario's base model can't be split.

    :raises ScenarioError: key ``fleet.tensor_parallel``.
    """
    gpus, named = scenario.fleet.tensor_parallel, scenario.fleet.profile
    if not gpus or gpus == 1:
        return
    if named is None:
        model, made_for = scenario.adapters.base_model or DEFAULT_MODEL, None
        shape = next((each for known, each in SHAPES.items() if is_model(model, known)), None)
    else:
        profile, _ = load_profile(named)
        model, made_for, shape = profile.model, profile.tensor_parallel, base_shape(profile)
    allowed = [number for number in range(1, MOST_GPUS + 1) if shape is None or shape.fits(number)]
    if shape is not None and not shape.fits(gpus):
        problem = (
            f"{model} can't be split over so many GPUs: it has {shape.heads} attention heads and {shape.kv_heads} KV "
            "heads"
        )
    elif gpus > MOST_GPUS and gpus != made_for:
        problem = f"there are no profiles for more than {MOST_GPUS} GPUs of a replica, and none can be built"
    else:
        return
    raise ScenarioError(
        problem, key="fleet.tensor_parallel", got=gpus, allowed=", ".join(str(number) for number in allowed)
    )


def check_sharding(scenario: Scenario, profile: Profile, population: Population) -> None:
    """Refuse ``fleet.fully_sharded_loras`` where there is nothing to split, or the engine doesn't split it.

    :raises ScenarioError: key ``fleet.fully_sharded_loras``.
    """
    fleet, gpus = scenario.fleet, profile.tensor_parallel
    if not fleet.fully_sharded_loras:
        return
    key, engine = "fleet.fully_sharded_loras", ENGINES[fleet.engine]
    if engine.preset and "vLLM" not in engine.flags:
        raise ScenarioError(
            f"{engine_words(fleet.engine)} has no such option; vLLM has",
            key=key,
            got="true",
            allowed="false",
            hint="remove it",
        )
    if gpus == 1:
        raise ScenarioError(
            "a replica on one GPU has nothing to split",
            key=key,
            got="true",
            allowed="false",
            hint="remove it, or spread a replica over several GPUs with fleet.tensor_parallel",
        )
    rank = padded_rank(profile, population)
    if rank % gpus:
        raise ScenarioError(
            "vLLM splits A along its rank, so the rank of slots must be a multiple of the GPUs of a replica",
            key=key,
            got=f"true with rank {rank} over {gpus} GPUs",
            allowed="false",
            hint="remove it, or give fewer GPUs per replica",
        )


def split_notes(scenario: Scenario, profile: Profile) -> list[str]:
    """Return notes on what is not known of a replica over several GPUs."""
    if profile.tensor_parallel == 1:
        return []
    notes = []
    if scenario.fleet.fully_sharded_loras:
        notes.append(
            "fleet.fully_sharded_loras changes slots and memory only: step costs are those without it, whose exchanges "
            "between GPUs are fewer"
        )
    if not scenario.cache.gpu.slots or scenario.cache.gpu.unified:
        notes.append(
            f"each adapter takes its exact size once over the {profile.tensor_parallel} GPUs of a replica; engines "
            "that keep a side of it whole on every GPU need more"
        )
    return notes


def gpus_of(world: World) -> int:
    """Return the GPUs of one replica."""
    return 1 if world.profile is None else world.profile.tensor_parallel


def gpu_share(world: World) -> GpuShare | None:
    """Return what each GPU holds of a replica over several; None: a replica runs on one."""
    profile, gpus, cache = world.profile, gpus_of(world), world.scenario.cache.gpu
    if profile is None or gpus == 1:
        return None
    sharded = world.scenario.fleet.fully_sharded_loras
    share = GpuSplit(gpus, sharded).share(base_shape(profile))
    slots = None if cache.unified else cache.slots
    bytes_of_all = adapter_bytes(slots or 0, profile, world.population, fully_sharded=sharded)
    return GpuShare(
        gpus=gpus,
        replicas=world.replicas,
        slots=slots,
        slot_bytes=round(bytes_of_all / slots / gpus) if slots else None,
        load_bytes=round(int(world.population.size_bytes.max()) * share),
    )
