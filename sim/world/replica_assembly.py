"""Make one replica from a world: choose its adapter mode, its kind of server, and the rules by which it batches."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

from sim.policies.adapter_cache import AdapterCache
from sim.policies.admission import ClaimingQueue
from sim.policies.costs import StepCosts
from sim.policies.eviction import EvictionContext
from sim.policies.front_end import FRONT_ENDS, FrontEnd
from sim.policies.kv.block_store import BlockStore
from sim.policies.kv.drafting_store import DraftingStore
from sim.policies.kv.host_pool import HostPool
from sim.policies.kv.kv_rules import KvRule, PeakOfAnswers, WholeAnswer
from sim.policies.kv.kv_store import CountingStore, KvStore
from sim.policies.kv.prefix_store import CountUntilPreemption, PrefixStore
from sim.policies.kv.radix_memory import RadixMemory
from sim.policies.queues.fair_queue import FairQueue, FairScheduler
from sim.policies.queues.passed_requests import vllm_queue
from sim.policies.queues.rejoining import RejoiningQueue, ScannedQueue
from sim.policies.scheduler import Limits, Scheduler
from sim.policies.sglang_scheduler import SglangScheduler
from sim.policies.speculation import Drafts, SpeculativeScheduler
from sim.policies.transfer_scheduler import PromptReads, TransferScheduler
from sim.spec import adapter_modes as modes
from sim.spec.scenario import Scenario
from sim.spec.sections.serving import KvTransfer
from sim.traffic.adapters import Population
from sim.world.memory.gpu_memory import host_kv_bytes, padded_rank
from sim.world.memory.replica_caches import (
    batch_slots_cache,
    fetched_copies,
    gpu_cache,
    host_tier,
    unified_cache,
    vllm_cache,
)
from sim.world.replica.continuous import BatchServer, FrontEndServer, PriorityServer, SpeculativeServer, bands_of
from sim.world.replica.copies import OffloadServer
from sim.world.replica.host_fill import FetchListener, HostFill
from sim.world.replica.modes.adapter_mode import AdapterMode, ModeParts
from sim.world.replica.modes.batch_slots_mode import BatchSlotsMode
from sim.world.replica.modes.protected import (
    LoadsAtAdmission,
    LoadsAtArrival,
    LoadsInSteps,
    PerAdapterQueues,
    Prefetching,
    TurnsOfModels,
    Unified,
)
from sim.world.replica.modes.vllm_lru_mode import VllmLru
from sim.world.replica.ports import LoadContext
from sim.world.replica.prefill_decode import DecodeServer, PrefillServer
from sim.world.replica.server import FixedServer, ReplicaParts, Server
from sim.world.times import ReplicaDraws, TierTimes, reload_times, tier_times
from sim.world.world import Pool

ServerWrapper = Callable[[type[BatchServer]], Callable[..., BatchServer]]
"""Returns a subclass of a class of batching servers that also observes it; calibration looks into runs this way."""


def unwrapped(server: type[BatchServer]) -> Callable[..., BatchServer]:
    """Return a class of servers as it is, without observing it."""
    return server


def kv_rule(pool: Pool) -> KvRule | None:
    """Return the rule by which KV memory is reserved for answers; None: there is none."""
    fleet, tokens = pool.scenario.fleet, pool.kv_tokens
    adapters = (*pool.adapter_blocks, 0) if pool.scenario.cache.gpu.unified else ()  # 0: of the base model
    if tokens is not None and fleet.kv_check == "peak":
        return PeakOfAnswers(tokens, adapters)
    if tokens is not None and fleet.kv_check == "whole-answer":
        return WholeAnswer(tokens // fleet.block_size, fleet.block_size, adapters)
    return None


def make_mode(
    pool: Pool,
    context: LoadContext,
    rule: KvRule | None,
    eviction: EvictionContext,
    draws: ReplicaDraws,
    tiers: tuple[TierTimes, TierTimes],
) -> AdapterMode:
    """Return the way in which a replica serves adapters, with the adapters that are there from the start.

    :param tiers: load times from storage and from host memory; replicas share them.
    """
    scenario = pool.scenario
    mode, stop = modes.mode_of(scenario), scenario.fleet.admission == "stop"
    if mode == modes.VLLM_LRU:
        reload_s = reload_times(tiers, draws)
        slots = vllm_cache(pool, draws)
        # With priorities, passed requests go back to their places (vLLM's request_queue.py, prepend_requests).
        passed = "keep-order" if scenario.fleet.scheduling == "priority" else scenario.fleet.passed_requests
        return VllmLru(slots, vllm_queue(slots, passed), reload_s, context)
    if mode == modes.BATCH_SLOTS:
        batch_slots = batch_slots_cache(pool)
        fleet = scenario.fleet
        passing: ClaimingQueue | None = None
        if scenario.storage.mode == "overlap":
            pass  # the mode makes its own
        elif fleet.scheduling == "lpm" or fleet.drain_wait:
            passing = ScannedQueue(batch_slots, fleet.drain_wait)
        else:
            make_queue = RejoiningQueue if fleet.kv_check == "ratio" else ClaimingQueue
            passing = make_queue(batch_slots, None, stop=False, gives_up=True)
        reload_s = reload_times(tiers, draws)
        return BatchSlotsMode(batch_slots, host_tier(pool, batch_slots), passing, reload_s, context, fleet.drain_wait)
    discards = scenario.cache.eviction == "discard-when-idle"
    loaders = scenario.storage.loaders, scenario.storage.host_loaders
    if mode == modes.UNIFIED:
        assert rule is not None, "checked by the scenario"
        shared = unified_cache(pool, eviction, rule)
        parts = ModeParts(shared, host_tier(pool, shared), loaders, context)
        fair = _fair_queue(pool, shared) if _is_fair(scenario) else None
        queue = fair or ClaimingQueue(shared, None, stop=stop)
        return Unified(parts, shared, queue, discards=discards)
    cache = gpu_cache(pool, eviction)
    parts = ModeParts(cache, host_tier(pool, cache), loaders, context)
    if mode == modes.PER_ADAPTER:
        return PerAdapterQueues(parts, scenario.cache.cycle)
    if pool.whole_models is not None and pool.whole_models.serve == "swap":
        return TurnsOfModels(parts, pool.whole_models.turn or 0.0)
    if mode == modes.IN_STEPS:
        return LoadsInSteps(parts, ClaimingQueue(parts.cache, None, stop=stop), discards=discards)
    if mode == modes.AT_ARRIVAL:
        waiting = _fair_queue(pool, None) if _is_fair(scenario) else None
        return LoadsAtArrival(parts, waiting, discards=discards)
    at_admission = Prefetching if mode == modes.PREFETCHING else LoadsAtAdmission
    return at_admission(parts, stop=stop, discards=discards)


def _is_fair(scenario: Scenario) -> bool:
    """Return whether tenants share service by counters; a single one has nothing to share."""
    return scenario.fleet.scheduling in ("vtc", "lcf") and len(scenario.tenants) > 1


def _fair_queue(pool: Pool, shared: AdapterCache | None) -> FairQueue:
    """Return the queue of tenants with counters; with unified memory, as the paper's code in S-LoRA has it."""
    weights = [tenant.weight for tenant in pool.scenario.tenants]
    lifts = pool.scenario.fleet.scheduling == "vtc"
    return FairQueue(weights, shared, lifts=lifts, as_in_code=shared is not None)


def with_host_fill(pool: Pool, parts: ReplicaParts, mode: AdapterMode, context: LoadContext) -> ReplicaParts:
    """Return ``parts`` with the host memory that requests must pass before they reach ``mode``, if there is any.

    :param context: for loads from storage to host memory.
    """
    host = pool.scenario.cache.host
    if host is None or host.fill != "arrival":
        return parts
    copies = fetched_copies(pool, mode.cache)
    fill = HostFill(mode, copies, pool.scenario.storage.loaders, context, reject=host.full == "reject")
    return replace(parts, intake=fill, listener=FetchListener(fill, parts.recorder, parts.listener))


def make_server(
    pool: Pool,
    parts: ReplicaParts,
    mode: AdapterMode,
    rule: KvRule | None,
    wrap_server: ServerWrapper,
    link: KvTransfer,
    draws: ReplicaDraws,
) -> Server:
    """Return a replica that is ready for requests.

    :param link: by which KV is read, where prompts and answers are computed by different replicas.
    :param draws: of which all replicas share those of failing reads and of drafts.
    """
    scenario = pool.scenario
    fleet = scenario.fleet
    if fleet.engine == "fixed":
        return FixedServer(parts, mode)
    assert pool.profile is not None, "checked by build_world"
    assert pool.kv_tokens is not None, "checked by build_world"
    limits = Limits(
        num_seqs=fleet.max_num_seqs,
        batched_tokens=pool.batched_tokens,
        whole_prompt=fleet.kv_check != "first-chunk",
        prefill_first=fleet.batching == "prefill-first",
        chunked=fleet.chunked_prefill,
        interval=fleet.admission_interval,
        waiting_ratio=fleet.waiting_ratio,
        prefill_interval=fleet.prefill_schedule_interval,
        asynchronous=pool.asynchronous,
        ends_scan=fleet.self_preemption == "ends-scan",
    )
    costs = StepCosts(
        pool.profile.step,
        _slots(scenario, pool.traffic.population),
        pool.batched_tokens,
        padded_rank(pool.profile, pool.population),
        pool.experts,
    )
    # Replicas for whole models have other queues, and plain rules.
    if fleet.kv_check == "ratio" and isinstance(mode.waiting, RejoiningQueue):
        return wrap_server(BatchServer)(parts, _sglang(pool, mode.waiting, limits, costs), mode)
    if pool.asynchronous:
        mode.copy_s = tier_times(scenario, pool.profile, pool.population)[1].mean_s
    if fleet.speculation is not None and fleet.speculation.tokens:
        return wrap_server(SpeculativeServer)(parts, _speculative(pool, mode, limits, costs, draws), mode)
    if fleet.kv_offload is not None:
        return _offload_server(pool, parts, mode, limits, costs, wrap_server)
    if pool.role == "prefill":
        store = _kv_store(pool, pool.kv_tokens)
        keeps = TransferScheduler(limits, store, mode.waiting, pool.ranks, costs, hands_over=True)
        return wrap_server(PrefillServer)(parts, keeps, mode)
    if pool.role == "decode":
        store, reads, memory = _kv_store(pool, pool.kv_tokens), PromptReads(), pool.profile.memory
        reading = TransferScheduler(limits, store, mode.waiting, pool.ranks, costs, reads)
        block_bytes = memory.kv_bytes_per_token * fleet.block_size / pool.profile.tensor_parallel
        return wrap_server(DecodeServer)(parts, reading, mode, reads, link, block_bytes, draws.shared_key("kv-reads"))
    make_scheduler = FairScheduler if _is_fair(scenario) else Scheduler
    scheduler = make_scheduler(limits, _kv_store(pool, pool.kv_tokens), mode.waiting, pool.ranks, costs, rule)
    if fleet.scheduling == "priority":
        mode.waiting.by_priority = True
        bands = bands_of([tenant.priority for tenant in scenario.tenants] or [0])
        return wrap_server(PriorityServer)(parts, scheduler, mode, bands)
    if fleet.front_end == "none":
        return wrap_server(BatchServer)(parts, scheduler, mode)
    front_end = FrontEnd(FRONT_ENDS[fleet.front_end], len(pool.population))
    return wrap_server(FrontEndServer)(parts, scheduler, mode, front_end)


def _sglang(pool: Pool, waiting: RejoiningQueue, limits: Limits, costs: StepCosts) -> SglangScheduler:
    """Return SGLang's scheduler with its radix tree."""
    scenario = pool.scenario
    fleet, workload = scenario.fleet, scenario.workload
    assert pool.kv_tokens is not None, "checked by build_world"
    return SglangScheduler(
        limits,
        RadixMemory(pool.kv_tokens // fleet.block_size, fleet.block_size, caches=fleet.prefix_caching),
        waiting,
        pool.ranks,
        costs,
        conservativeness=fleet.schedule_conservativeness,
        overlapped=fleet.overlap_schedule,
        ignores_end=workload.tokens.ignore_eos or workload.client is not None,
        longest_prefix_first=fleet.scheduling == "lpm",
    )


def _speculative(
    pool: Pool, mode: AdapterMode, limits: Limits, costs: StepCosts, draws: ReplicaDraws
) -> SpeculativeScheduler:
    """Return a scheduler whose steps verify drafts, with its KV cache."""
    fleet = pool.scenario.fleet
    spec = fleet.speculation
    assert spec is not None, "checked by the caller"
    assert pool.kv_tokens is not None, "checked by build_world"
    blocks = pool.kv_tokens // fleet.block_size
    store = DraftingStore(
        blocks,
        fleet.block_size,
        spec.tokens,
        0 if spec.method == "ngram" else spec.tokens,
        min(fleet.max_model_len or blocks * fleet.block_size, blocks * fleet.block_size),
        limits.batched_tokens,
        finds=fleet.prefix_caching,
    )
    key = draws.shared_key("speculation")
    drafts = Drafts(spec.tokens, pool.acceptances, spec.draft, costs.without_adapters(), key)
    return SpeculativeScheduler(limits, store, mode.waiting, pool.ranks, costs, drafts)


def _offload_server(
    pool: Pool, parts: ReplicaParts, mode: AdapterMode, limits: Limits, costs: StepCosts, wrap_server: ServerWrapper
) -> Server:
    """Return a replica that keeps the KV of prompts in host memory."""
    fleet, profile = pool.scenario.fleet, pool.profile
    offload = fleet.kv_offload
    assert offload is not None, "checked by the caller"
    assert profile is not None, "checked by build_world"
    assert pool.kv_tokens is not None, "checked by build_world"
    block_bytes = profile.memory.kv_bytes_per_token * fleet.block_size
    store = BlockStore(pool.kv_tokens // fleet.block_size, fleet.block_size)
    host = HostPool(
        store,
        host_kv_bytes(pool) // block_bytes,
        arc=offload.policy == "arc",
        answers=offload.answers,
        store_from=offload.store_from,
        by_request=fleet.adapter_limit == "running",
    )
    scheduler = TransferScheduler(limits, store, mode.waiting, pool.ranks, costs, host)
    gpus = profile.tensor_parallel
    make = wrap_server(OffloadServer)
    server = make(parts, scheduler, mode, host, block_bytes / gpus, float(offload.bandwidth))
    assert isinstance(server, OffloadServer), "a wrapper returns a subclass"
    sizes = [size / gpus for size in pool.population.size_bytes.tolist()]
    mode.shares_bus = lambda adapter, now: server.to_gpu.copy_adapter(sizes[adapter], now)
    return server


def _kv_store(pool: Pool, kv_tokens: int) -> KvStore:
    """Return an empty KV cache. Only where requests can share text, it has to know what all its blocks contain."""
    fleet = pool.scenario.fleet
    blocks, uncached_last = kv_tokens // fleet.block_size, fleet.uncached_blocks == "last"
    if pool.prefix_cache:
        return PrefixStore(
            blocks,
            fleet.block_size,
            uncached_last=uncached_last,
            invocation_tokens=pool.scenario.adapters.invocation_tokens or 0,
            base_model=pool.base_model,
        )
    if fleet.prefix_caching:
        return CountUntilPreemption(blocks, fleet.block_size, uncached_last=uncached_last)
    return CountingStore(blocks, fleet.block_size)


def _slots(scenario: Scenario, population: Population) -> int:
    """Return the slots for step costs; a cache by size counts as many adapters of the mean size as fit.

    Unified memory has no slots that a step would have to pass through.
    """
    gpu = scenario.cache.gpu
    if gpu.unified:
        return 0
    if gpu.slots:
        return gpu.slots
    sizes = population.adapter_bytes if population.full_kinds else population.size_bytes
    return max(1, int((gpu.size or 0) / float(sizes.mean()))) if len(sizes) else 1
