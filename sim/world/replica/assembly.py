"""Make one replica from a world: choose its kind of server, and the rules and costs by which it batches."""

from __future__ import annotations

from collections.abc import Callable

from sim.policies.costs import StepCosts
from sim.policies.front_end import FRONT_ENDS, FrontEnd
from sim.policies.kv.counting_store import CountingStore
from sim.policies.kv.kv_rules import KvRule, PeakOfAnswers, WholeAnswer
from sim.policies.scheduler import Limits
from sim.spec.scenario import Scenario
from sim.traffic.adapters import Population
from sim.world.gpu_memory import padded_rank
from sim.world.replica.continuous import BatchRules, BatchServer
from sim.world.replica.fixed import FixedServer
from sim.world.replica.front_end_server import FrontEndServer
from sim.world.replica.server import ReplicaParts, Server
from sim.world.world import World

ServerWrapper = Callable[[type[BatchServer]], Callable[..., BatchServer]]
"""Returns a subclass of a class of batching servers that also observes it; calibration looks into runs this way."""


def kv_rule(world: World) -> KvRule | None:
    """Return the rule by which KV memory is reserved for answers; None: there is none."""
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
    """Return a replica that is ready for requests.

    :param turn_s: for a replica that swaps whole models: seconds of a model's turn; None: it serves adapters.
    """
    scenario = world.scenario
    fleet = scenario.fleet
    if fleet.engine == "fixed":
        return FixedServer(parts)
    assert world.profile is not None, "checked by build_world"
    assert world.kv_tokens is not None, "checked by build_world"
    kv = CountingStore(world.kv_tokens // fleet.block_size, fleet.block_size)
    rules = BatchRules(
        limits=Limits(
            num_seqs=fleet.max_num_seqs,
            batched_tokens=fleet.max_num_batched_tokens,
            whole_prompt=fleet.kv_check != "first-chunk",
            prefill_first=fleet.batching == "prefill-first",
            chunked=fleet.chunked_prefill,
            interval=fleet.admission_interval,
            waiting_ratio=fleet.waiting_ratio,
        ),
        costs=StepCosts(
            world.profile.step,
            _slots(scenario, world.traffic.population),
            fleet.max_num_batched_tokens,
            padded_rank(world.profile, world.population),
        ),
        ranks=world.ranks,
        loads_at_arrival=scenario.load_at == "arrival",
        blocking=scenario.storage.mode == "blocking",
        stop=fleet.admission == "stop",
        cycle_s=scenario.cache.cycle if fleet.admission == "per-adapter" else None,
        discards=scenario.cache.eviction == "discard-when-idle",
        prefetch=scenario.cache.prefetch == "queued",
    )
    if fleet.front_end == "none":
        return wrap_server(BatchServer)(parts, kv, rules, rule, turn_s)
    front_end = FrontEnd(FRONT_ENDS[fleet.front_end], len(world.population))
    return wrap_server(FrontEndServer)(parts, kv, rules, rule, turn_s, front_end=front_end)


def _slots(scenario: Scenario, population: Population) -> int:
    """Return the slots for step costs; a cache by size counts as many adapters of the mean size as fit.

    Unified memory has no slots that a step would have to pass through.
    """
    gpu = scenario.cache.gpu
    if gpu.unified:
        return 0
    if gpu.slots is not None:
        return gpu.slots
    assert gpu.size is not None, "a cache has slots or a size"
    sizes = population.size_bytes[~population.full] if population.full_kinds else population.size_bytes
    return max(1, int(gpu.size / float(sizes.mean()))) if len(sizes) else 1
