"""One replica, made of a world: which server it is, and by which rules and costs it batches."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from sim.policies.costs import StepCosts
from sim.policies.front_end import FRONT_ENDS, FrontEnd
from sim.policies.kv.kv_memory import KvBlocks
from sim.policies.kv.kv_rules import KvRule, PeakOfAnswers, WholeAnswer
from sim.policies.scheduler import Limits
from sim.spec.scenario import Scenario
from sim.traffic.adapters import Population
from sim.world.gpu_memory import padded_rank
from sim.world.replica.continuous import BatchServer
from sim.world.replica.fixed import FixedServer
from sim.world.replica.front_end_server import FrontEndServer
from sim.world.replica.server import ReplicaParts, Server
from sim.world.world import World

ServerWrapper = Callable[[type[BatchServer]], Callable[..., BatchServer]]
"""From a class of batching servers to one that also watches: how calibration looks into a run."""


def kv_rule(world: World) -> KvRule | None:
    """Return how KV memory is set aside for answers; None where it isn't."""
    fleet, tokens = world.scenario.fleet, world.kv_tokens
    adapters = (*world.adapter_blocks, 0) if world.scenario.cache.gpu.unified else ()  # 0: of the base model
    if tokens is not None and fleet.kv_check == "peak":
        return PeakOfAnswers(tokens, adapters)
    if tokens is not None and fleet.kv_check == "whole-answer":
        return WholeAnswer(tokens // fleet.block_size, fleet.block_size, adapters)
    return None


def make_server(
    world: World, parts: ReplicaParts, rule: KvRule | None, wrap_server: ServerWrapper, turn_s: float | None = None
) -> Server:
    """Return a replica.

    :param turn_s: of one that swaps whole models, see ``BatchServer``.
    """
    scenario = world.scenario
    fleet = scenario.fleet
    if fleet.engine == "fixed":
        return FixedServer(parts)
    assert world.profile is not None, "checked by build_world"
    assert world.kv_tokens is not None, "checked by build_world"
    options: dict[str, Any] = {
        "limits": Limits(
            fleet.max_num_seqs,
            fleet.max_num_batched_tokens,
            fleet.kv_check != "first-chunk",
            fleet.batching == "prefill-first",
            fleet.chunked_prefill,
            fleet.admission_interval,
            fleet.waiting_ratio,
        ),
        "kv": KvBlocks(world.kv_tokens // fleet.block_size, fleet.block_size),
        "costs": StepCosts(
            world.profile.step,
            _slots(scenario, world.traffic.population),
            fleet.max_num_batched_tokens,
            padded_rank(world.profile, world.population),
        ),
        "ranks": world.ranks,
        "ask_early": scenario.load_at == "arrival",
        "blocking": scenario.storage.mode == "blocking",
        "stop": fleet.admission == "stop",
        "rule": rule,
        "cycle_s": scenario.cache.cycle if fleet.admission == "per-adapter" else None,
        "prefetch": scenario.cache.prefetch == "queued",
        "discards": scenario.cache.eviction == "discard-when-idle",
        "turn_s": turn_s,
    }
    if fleet.front_end == "none":
        return wrap_server(BatchServer)(parts, **options)
    costs = FRONT_ENDS[fleet.front_end]
    return wrap_server(FrontEndServer)(parts, front_end=FrontEnd(costs, len(world.population)), **options)


def _slots(scenario: Scenario, population: Population) -> int:
    """Return the slots that step costs and memory refer to; a cache by size counts as many as fit of the mean size.

    Unified memory has none that a step would have to pass through.
    """
    gpu = scenario.cache.gpu
    if gpu.unified:
        return 0
    if gpu.slots is not None:
        return gpu.slots
    assert gpu.size is not None, "a cache has slots or a size"
    sizes = population.size_bytes[~population.full] if population.full_kinds else population.size_bytes
    return max(1, int(gpu.size / float(sizes.mean()))) if len(sizes) else 1
