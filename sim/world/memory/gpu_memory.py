"""Memory of one replica, over one GPU or several: bytes for adapters, and the KV cache that is left."""

from __future__ import annotations

from bisect import bisect_left
from math import ceil

from sim.errors import ScenarioError
from sim.policies.costs import StepCosts
from sim.policies.kv.kv_rules import kv_tokens_left
from sim.policies.replica_memory import slots_bytes
from sim.results.model import GpuShare, MemoryUse
from sim.spec.engine_flags.options import vllm_rank
from sim.spec.engines import ENGINES, EXPERTS_SINCE, TARGETS_SINCE, engine_words, is_vllm_since, sglang_share
from sim.spec.profile import Profile, load_profile
from sim.spec.profile_choice import DEFAULT_MODEL, MOST_GPUS, is_mixture, is_model
from sim.spec.scenario import Scenario
from sim.spec.units import human_bytes
from sim.traffic.adapters import SHAPES, GpuSplit, Population, base_shape, split_of
from sim.world.world import Pool


def padded_rank(profile: Profile, population: Population) -> int:
    """Return the rank that slots are padded to: what they are made for, which vLLM rounds up to one that it knows."""
    rank = population.slot_rank
    return rank if profile.memory.slot_layout == "exact" else vllm_rank(rank)


def adapter_bytes(slots: int, profile: Profile, population: Population, split: GpuSplit) -> int:
    """Return the GPU memory of ``slots`` padded slots, in bytes over all GPUs of the replica."""
    if profile.memory.slot_layout == "vllm-0.8":
        return split.gpus * slots_bytes(base_shape(profile), slots, padded_rank(profile, population), split)
    if split.gpus == 1:
        return slots * population.slot_bytes
    return split.gpus * slots * ceil(population.slot_bytes * split.share(base_shape(profile)))


def usable_kv_tokens(scenario: Scenario, profile: Profile, population: Population) -> int:
    """Return the KV cache of one replica in tokens: whole blocks, without those that the engine reserves.

    :raises ScenarioError: if too little memory is left.
    """
    fleet, gpu = scenario.fleet, scenario.cache.gpu
    if StepCosts(profile.step, 1, 1).least_s <= 0:
        raise ScenarioError(
            "a step of this profile takes no time", key="fleet.profile", got=fleet.profile or profile.name
        )
    if fleet.kv_tokens:
        least = fleet.block_size * (1 + fleet.reserved_kv_blocks)
        if fleet.kv_tokens < least:
            raise ScenarioError(
                "not one KV block fits", key="fleet.kv_tokens", got=fleet.kv_tokens, allowed=f"at least {least}"
            )
        tokens = fleet.kv_tokens
    else:
        tokens = _left(scenario, profile, population, gpu.slots, gpu.size)
    needed = 0 if fleet.kv_tokens else fleet.max_num_batched_tokens
    if max(needed, fleet.max_model_len or 0) > tokens:
        raise _too_little(scenario, profile, population, tokens)
    return (tokens // fleet.block_size - fleet.reserved_kv_blocks) * fleet.block_size


def kv_tokens_that_fit(scenario: Scenario, profile: Profile, population: Population) -> int:
    """Return the KV cache, in tokens, for which memory is left next to weights and adapters, whatever is given."""
    return max(_left(scenario, profile, population, scenario.cache.gpu.slots, scenario.cache.gpu.size), 0)


def _left(scenario: Scenario, profile: Profile, population: Population, slots: int | None, size: int | None) -> int:
    taken = adapter_bytes(slots, profile, population, split_of(scenario, profile)) if slots else size or 0
    if scenario.cache.gpu.unified:
        taken = 0  # adapters take KV blocks when they are loaded
    if scenario.adapters.base_alone:
        taken = 0  # LoRA is off
    return kv_tokens_left(profile.memory, taken, used_share(scenario, profile))


def used_share(scenario: Scenario, profile: Profile) -> float | None:
    """Return the share of the memory that the engine uses; None: the profile's, which is vLLM's default."""
    fleet = scenario.fleet
    if fleet.gpu_memory_utilization is not None or "SGLang" not in ENGINES[fleet.engine].flags:
        return fleet.gpu_memory_utilization
    return sglang_share(profile.memory, fleet.max_num_batched_tokens, fleet.max_num_seqs, profile.tensor_parallel)


def _too_little(scenario: Scenario, profile: Profile, population: Population, tokens: int) -> ScenarioError:
    fleet, gpu = scenario.fleet, scenario.cache.gpu
    longest = fleet.max_model_len or 0
    if fleet.kv_tokens:
        return ScenarioError(
            "the KV cache can't hold one request of full length",
            key="fleet.kv_tokens",
            got=fleet.kv_tokens,
            allowed=f"at least fleet.max_model_len ({longest})",
        )
    whole = _left(scenario, profile, population, None, 0)
    if longest > fleet.max_num_batched_tokens and whole < longest:
        return ScenarioError(
            "the KV cache can't hold one request of full length, even without adapters",
            key="fleet.max_model_len",
            got=longest,
            allowed=f"up to {max(whole, 0):,} tokens on {profile.device}",
        )
    if whole < fleet.max_num_batched_tokens and fleet.gpu_memory:
        return ScenarioError(
            f"this memory is too small for the weights of {profile.model} and a KV cache",
            key="fleet.gpu_memory",
            got=human_bytes(fleet.gpu_memory),
            hint=f"its weights take {human_bytes(profile.memory.weights_bytes)} on {profile.tensor_parallel} GPU"
            + "s" * (profile.tensor_parallel > 1),
        )
    share, is_own = used_share(scenario, profile), fleet.gpu_memory_utilization is not None
    if whole < fleet.max_num_batched_tokens and share is not None:
        return ScenarioError(
            f"this share of {profile.device} is too small for the weights of {profile.model} and a KV cache",
            key="fleet.gpu_memory_utilization",
            got=f"{share:.0%}" if is_own else f"SGLang's default, {share:.0%}",
            hint=None
            if is_own
            else "give a larger one (--mem-fraction-static), or a smaller fleet.max_num_batched_tokens",
        )
    slots = gpu.slots
    needed = (
        f"a KV cache of {longest:,} tokens, one request of fleet.max_model_len"
        if longest > fleet.max_num_batched_tokens
        else f"a KV cache of {fleet.max_num_batched_tokens:,} tokens, one step of fleet.max_num_batched_tokens"
    )
    hint = f"{max(tokens, 0):,} KV tokens would be left; needed is {needed}"
    if slots:
        taken = adapter_bytes(slots, profile, population, split_of(scenario, profile))
        hint += f"; each slot takes {human_bytes(taken // slots)}"
        if profile.tensor_parallel > 1:
            hint += f" over {profile.tensor_parallel} GPUs"
    for number, rollout in enumerate(scenario.rollouts if slots else ()):
        others = population.size_bytes[population.size_bytes != (rollout.size or 0)]
        if rollout.size and len(others) and rollout.size > int(others.max()):
            return ScenarioError(
                f"with {slots} slots (cache.gpu.slots) that hold it, too little GPU memory is left for a KV cache",
                key=f"rollouts.{number}.size",
                got=human_bytes(rollout.size),
                hint=hint,
            )
    return ScenarioError(
        "the adapter cache leaves too little GPU memory for a KV cache",
        key="cache.gpu.slots" if slots else "cache.gpu.size",
        got=slots or human_bytes(gpu.size or 0),
        allowed=_advice(scenario, profile, population),
        hint=hint,
    )


def _advice(scenario: Scenario, profile: Profile, population: Population) -> str:
    fleet, gpu = scenario.fleet, scenario.cache.gpu
    needed = max(fleet.max_num_batched_tokens, fleet.max_model_len or 0)
    free = _left(scenario, profile, population, None, 0) - needed
    if free < 0:
        return f"nothing: {profile.device} is full with the weights of {profile.model}"
    if not gpu.slots:
        return f"up to {human_bytes(free * profile.memory.kv_bytes_per_token)} on {profile.device}"
    fewer = range(1, gpu.slots)
    fitting = bisect_left(fewer, True, key=lambda slots: _left(scenario, profile, population, slots, None) < needed)
    if fitting == 0:
        return f"not even one slot of this size fits next to the weights on {profile.device}"
    return f"up to {fitting} slots on {profile.device}"


# Replicas over several GPUs (tensor parallelism): what fits together, and what each GPU holds.


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
    """Refuse ``fleet.fully_sharded_loras`` and ``fleet.expert_parallel`` where there is nothing to split, or the engine
    doesn't split it.

    :raises ScenarioError: with the key of the one that is set.
    """
    fleet, gpus = scenario.fleet, profile.tensor_parallel
    if not (fleet.fully_sharded_loras or fleet.expert_parallel):
        return
    key = f"fleet.{'expert_parallel' if fleet.expert_parallel else 'fully_sharded_loras'}"
    engine, rank = ENGINES[fleet.engine], padded_rank(profile, population)
    got, hint = "true", "remove it"
    if engine.preset and "vLLM" not in engine.flags:
        problem = f"{engine_words(fleet.engine)} has no such option; vLLM has"
    elif gpus == 1:
        problem = "a replica on one GPU has nothing to split"
        hint = "remove it, or spread a replica over several GPUs with fleet.tensor_parallel"
    elif fleet.expert_parallel and not base_shape(profile).experts:
        problem = f"{profile.model} has no experts"
    elif fleet.fully_sharded_loras and rank % gpus:
        problem = "vLLM splits A along its rank, so the rank of slots must be a multiple of the GPUs of a replica"
        got, hint = f"true with rank {rank} over {gpus} GPUs", "remove it, or give fewer GPUs per replica"
    else:
        return
    raise ScenarioError(problem, key=key, got=got, allowed="false", hint=hint)


def split_notes(scenario: Scenario, profile: Profile) -> list[str]:
    """Return notes on slots that an engine has in another way, and on what is not known of several GPUs."""
    notes, engine, absent = [], scenario.fleet.engine, is_mixture(profile) and not scenario.adapters.experts
    if absent and is_vllm_since(engine, EXPERTS_SINCE) and not is_vllm_since(engine, TARGETS_SINCE):
        notes.append(
            "the simulated slots leave experts out; vLLM before 0.17 gives every slot of this model room for them, so "
            "it has much less KV cache"
        )
    if profile.tensor_parallel == 1:
        return notes
    if scenario.fleet.expert_parallel:
        notes.append(
            "fleet.expert_parallel changes slots, memory and loads only: steps take what they do with a part of every "
            "expert on each GPU"
        )
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


def gpus_of(pool: Pool) -> int:
    """Return the GPUs of one replica."""
    return 1 if pool.profile is None else pool.profile.tensor_parallel


def gpu_share(pool: Pool, replicas: int) -> GpuShare | None:
    """Return what each GPU holds of a replica over several; None: a replica runs on one.

    :param replicas: how many there are.
    """
    profile, gpus, cache = pool.profile, gpus_of(pool), pool.scenario.cache.gpu
    if profile is None or gpus == 1:
        return None
    split = split_of(pool.scenario, profile)
    slots = None if cache.unified else cache.slots
    bytes_of_all = adapter_bytes(slots or 0, profile, pool.population, split)
    return GpuShare(
        gpus=gpus,
        replicas=replicas,
        slots=slots,
        slot_bytes=round(bytes_of_all / slots / gpus) if slots else None,
        load_bytes=round(int(pool.population.size_bytes.max()) * split.share(base_shape(profile))),
    )


def memory_use(pool: Pool) -> MemoryUse | None:
    """Return what a replica keeps in memory; None where no adapters and KV cache share a GPU."""
    profile, scenario = pool.profile, pool.scenario
    if profile is None or pool.kv_tokens is None or pool.whole_models is not None or scenario.adapters.base_alone:
        return None
    gpu = scenario.cache.gpu
    slots = None if gpu.unified else gpu.slots
    taken = 0 if gpu.unified else gpu.size or 0
    copies, copied_bytes = host_copies(pool)
    return MemoryUse(
        replicas=pool.replicas,
        weights=profile.memory.weights_bytes,
        engine=profile.memory.overhead_bytes,
        slots=slots,
        adapters=adapter_bytes(slots, profile, pool.population, split_of(scenario, profile)) if slots else taken,
        kv_tokens=pool.kv_tokens,
        kv=round(pool.kv_tokens * profile.memory.kv_bytes_per_token),
        copies=copies,
        host=copied_bytes,
        host_kv=host_kv_bytes(pool),
    )


def host_kv_bytes(pool: Pool) -> int:
    """Return the bytes of host memory that a replica has for KV.

    :raises ScenarioError: if copies of adapters leave no room for a block.
    """
    offload, profile = pool.scenario.fleet.kv_offload, pool.profile
    if offload is None or profile is None:
        return 0
    if offload.size is not None:
        least = profile.memory.kv_bytes_per_token * pool.scenario.fleet.block_size
        if offload.size < least:
            raise ScenarioError(
                "not one KV block fits",
                key="fleet.kv_offload.size",
                got=human_bytes(offload.size),
                allowed=f"at least {human_bytes(least)}",
            )
        return offload.size
    total, (_, copies) = offload.host_memory or 0, host_copies(pool)
    if total <= copies:
        raise ScenarioError(
            "copies of adapters leave no host memory for KV",
            key="fleet.kv_offload.host_memory",
            got=human_bytes(total),
            allowed=f"more than {human_bytes(copies)}, which the copies take",
            hint="or fewer of them: cache.host",
        )
    return total - copies


def host_copies(pool: Pool) -> tuple[int, int]:
    """Return of how many adapters a replica's host memory has room for copies, and their bytes, at the mean size."""
    host, slots = pool.scenario.cache.host, pool.scenario.cache.gpu.slots or 0
    sizes = pool.population.size_bytes[: len(pool.traffic.population)]
    own = sizes[sizes > 0]  # of those that these replicas take
    mean_bytes = float(own.mean()) if len(own) else 1.0
    if host is None:
        room = slots if pool.scenario.cache.eviction == "vllm-lru" else 0
    elif host.size:
        room = int(host.size / mean_bytes)
    else:
        room = host.slots or (slots if host.fill == "load" else len(own))
    copies = min(room, len(own))
    return copies, round(copies * mean_bytes) * gpus_of(pool)
