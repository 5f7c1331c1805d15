"""Notes for the user on what a world assumes, leaves out or ignores; texts that no fleet could serve are refused."""

from __future__ import annotations

from collections.abc import Sequence
from math import inf

import numpy as np

from sim.errors import ScenarioError
from sim.policies.costs import beyond_envelope
from sim.spec.engines import preset_value
from sim.spec.policies import PLACERS
from sim.spec.profile import Profile
from sim.spec.profile_choice import choice_notes, disturbance_notes, engine_notes, fitness_notes, profile_choice
from sim.spec.scenario import Scenario
from sim.spec.sections.traffic_laws import ClosedArrivals
from sim.spec.units import human_bytes, human_seconds
from sim.traffic.adapters import CONTEXTS
from sim.traffic.generate import Traffic
from sim.traffic.lengths import TokenLengths
from sim.world.faults.storage_faults import storage_notes
from sim.world.memory.gpu_memory import host_kv_bytes, kv_tokens_that_fit, split_notes
from sim.world.pools.full_model_layout import full_model_notes
from sim.world.world import Pool

_MEASURED_MORE = 0.1
"""A KV cache that was measured is up to this share larger than the one that the profile's numbers leave room for."""
SHARING = "workload.prefix, workload.sessions.history, or a trace with prefix_id or hash_ids"


def notes_on(pool: Pool, full: Sequence[Pool]) -> list[str]:
    """Return all notes on a pool.

    :param full: its full models, if it has any.
    :raises ScenarioError: far outside what the profile was measured for, or for shared text that can't be served.
    """
    scenario, traffic = pool.scenario, pool.traffic
    notes = list(traffic.notes) + shared_text_notes(scenario, traffic, pool.kv_tokens) + _profile_notes(pool)
    notes += storage_notes(scenario) + full_model_notes(scenario, full)
    if kept := pool.base_weights:
        notes += kept.notes
        if tokens := scenario.fleet.kv_tokens:
            given = f"fleet.kv_tokens gives the KV cache ({tokens:,} tokens)"
            notes.append(f"{given}: quantised base weights don't enlarge it")
    notes += _cache_notes(pool) + _context_notes(pool)
    notes += _begins_unseen(scenario, traffic) + _client_notes(traffic) + _scheduling_notes(scenario)
    limits = [key for key in ("max_tokens", "ignore_eos") if getattr(scenario.workload.tokens, key)]
    if limits and scenario.fleet.kv_check != "ratio":
        only = "only SGLang's scheduler (fleet.kv_check ratio) reads it"
        notes.append(f"workload.tokens.{limits[0]} has no effect here: {only}")
    notes += _offload_notes(pool) + _speculation_notes(pool)
    notes += _placement_notes(scenario, traffic)
    if traffic.replayed and scenario.run.replications > 1 and "replications" in scenario.run.model_fields_set:
        notes.append(f"a {scenario.workload.recorded} is replayed once: run.replications does not apply")
    return notes


def _profile_notes(pool: Pool) -> list[str]:
    scenario, profile = pool.scenario, pool.profile
    if profile is None or scenario.fleet.engine == "fixed":
        return []
    slots = scenario.cache.gpu.slots or 0  # a cache by size has no fixed number
    experts = (
        "what adapters on experts cost is assumed, since no server with them was measured: a step reads matrices of "
        "the experts that its tokens choose, evenly, within a factor of 2 (one standard deviation, in the calibration "
        "interval); copies to a GPU reach 25 GB/s"
    )
    return [
        *([] if pool.experts is None else [experts]),
        *choice_notes(profile_choice(scenario), scenario, profile),
        *engine_notes(scenario.fleet.engine),
        *fitness_notes(profile),
        *disturbance_notes(profile),
        *split_notes(scenario, profile),
        *beyond_envelope(profile, slots, pool.population.slot_rank),
        *_batch_notes(pool, profile),
    ]


def _batch_notes(pool: Pool, profile: Profile) -> list[str]:
    limit, sequences = pool.scenario.fleet.max_num_seqs, profile.envelope.sequences
    # A running request holds at least half of its tokens, on average over its time; more than fit don't run at once.
    room = 2 * (pool.kv_tokens or 0) // sequences
    if limit <= sequences or pool.traffic.share_above(room) > 0.5:
        return []
    return [
        f"fleet.max_num_seqs {limit} lets batches grow beyond the profile's envelope (up to {sequences} sequences): "
        "the cost of larger ones is extrapolated"
    ]


def _context_notes(pool: Pool) -> list[str]:
    profile, limit = pool.profile, pool.scenario.fleet.max_model_len
    if profile is None or pool.kv_tokens is None:
        return []
    context = limit or CONTEXTS.get(profile.model)
    sessions = pool.scenario.workload.sessions
    if context is None:
        return []
    what = "fleet.max_model_len" if limit else f"the context of {profile.model}"
    why = (
        "they are refused"
        if limit
        else f"a server refuses them, and this run doesn't; set fleet.max_model_len={context}"
    )
    if share := pool.traffic.share_above(context):
        return [f"about {share:.1%} of requests have more than {context:,} tokens, {what}: {why}"]
    if sessions is not None and sessions.history and sessions.max_context > context:
        return [f"workload.sessions.max_context ({sessions.max_context:,}) is above {what} ({context:,}): {why}"]
    return []


def _cache_notes(pool: Pool) -> list[str]:
    scenario, population = pool.scenario, pool.population
    notes: list[str] = []
    given, profile = scenario.fleet.kv_tokens, pool.profile
    if given and profile and scenario.fleet.engine != "fixed":
        fits = kv_tokens_that_fit(scenario, profile, population)
        if given > (1 + _MEASURED_MORE) * fits:
            notes.append(
                f"fleet.kv_tokens ({given:,}) is more than {profile.device} has memory for: about {fits:,} tokens next "
                "to the weights and the adapters"
            )
    if scenario.adapters.base_alone and scenario.fleet.engine != "fixed":
        notes.append("no request is for an adapter, so LoRA is off: slots take no memory, and steps have no LoRA costs")
    if pool.profile and scenario.storage.loaders > 1 and not scenario.storage.load:
        notes.append(
            "concurrent loads do not share bandwidth in this version, "
            "so results with several loaders are too optimistic"
        )
    served = int(np.count_nonzero(~population.full)) if population.full_kinds else len(population)
    slots = scenario.cache.gpu.slots
    if slots is not None and slots > served and pool.profile is not None and scenario.fleet.engine != "fixed":
        notes.append(
            f"{slots - served} of {slots} GPU slots will stay empty, for there {'is' if served == 1 else 'are'} "
            f"{served} adapter{'' if served == 1 else 's'}; empty slots take memory of the KV cache"
        )
    if scenario.cache.eviction == "vllm-lru" and scenario.cache.host is None and pool.capacity < served:
        notes.append(
            f"host memory holds as many adapters as there are slots (vLLM's max_cpu_loras): with {pool.capacity} "
            f"of {served} most loads come from storage, inside the step; cache.host.slots={served} "
            "keeps all"
        )
    if scenario.cache.pinned and (scenario.workload.churn or scenario.workload.drift):
        notes.append(
            "pinned adapters are those that are popular at the start; they stay pinned when popularity changes"
        )
    return notes


def shared_text_notes(scenario: Scenario, traffic: Traffic, kv_tokens: int | None) -> list[str]:
    """Return notes on shared text that nothing makes use of, and on lengths under which little is shared.

    :param kv_tokens: of one replica; None for an engine without a KV cache.
    :raises ScenarioError: for a router that goes by shared text, where there is none; and where every prompt begins
        with a text that is too long to be served.
    """
    fleet = scenario.fleet
    if scenario.router_policy.reads_text and fleet.replicas > 1 and not traffic.shares_text:
        raise ScenarioError(
            "this router routes by shared text, but these requests share none",
            key="router.policy",
            got=scenario.router.policy,
            hint=f"give {SHARING}",
        )
    notes = _length_notes(scenario, traffic, kv_tokens)
    if traffic.shares_text and not fleet.prefix_caching and fleet.engine != "fixed":
        notes.append("requests share text, but fleet.prefix_caching is off: every prompt is computed as a whole")
    # Whether the scenario itself turns prefix caching on, or compares both, rather than its engine's preset.
    by_itself = not preset_value(fleet.engine, "fleet.prefix_caching") or "fleet.prefix_caching" in scenario.sweep
    if not traffic.shares_text and fleet.prefix_caching and by_itself:
        notes.append(
            "fleet.prefix_caching changes nothing here, except for preempted requests: no two requests share text; "
            f"give {SHARING}"
        )
    if scenario.adapters.invocation_tokens and not (traffic.shares_text and fleet.prefix_caching):
        missing = "no two requests share text" if fleet.prefix_caching else "fleet.prefix_caching is off"
        notes.append(f"adapters.invocation_tokens changes nothing here: {missing}")
    return notes


def _length_notes(scenario: Scenario, traffic: Traffic, kv_tokens: int | None) -> list[str]:
    workload, fleet = scenario.workload, scenario.fleet
    notes: list[str] = []
    begin = 0
    if workload.prefix is not None and not traffic.replayed:
        law = TokenLengths(workload.prefix.tokens)
        shortest, begin = (int(tokens) for tokens in law.at(np.array([-8.0, 0.0])))
        most = fleet.max_model_len or kv_tokens or 0
        what = "fleet.max_model_len" if fleet.max_model_len else "the KV cache of a replica, in tokens"
        if most and shortest >= most:
            raise ScenarioError(
                "every prompt would begin with a text that is too long to be served",
                key="workload.prefix.tokens",
                got=f"at least {shortest:,} tokens",
                allowed=f"less than {what} ({most:,})",
            )
        if most and law.longest >= most:
            notes.append(
                f"workload.prefix.tokens goes up to {law.longest:,.0f}, and {what} is {most:,}: requests that begin "
                "with such a text are refused"
            )
    sessions = workload.sessions
    if sessions is not None and sessions.history and not traffic.replayed:
        middle = np.array([0.0])
        turn = sum(int(TokenLengths(law).at(middle)[0]) for law in (workload.tokens.prompt, workload.tokens.output))
        if begin + 2 * turn > sessions.max_context:
            beginning = "a system prompt and two turns" if begin else "two turns"
            notes.append(
                f"workload.sessions.max_context ({sessions.max_context:,}) is below {beginning} of median length "
                f"({begin + 2 * turn:,} tokens): most conversations start over with their second turn, without history"
            )
    return notes


def _begins_unseen(scenario: Scenario, traffic: Traffic) -> list[str]:
    """Return a note on rollouts and faults that begin in the warm-up, where nothing is measured."""
    measured_s = scenario.run.warmup * traffic.expected_s()
    if measured_s == inf:  # in a closed loop, which nobody knows before
        return []
    early = [
        f"{key}.{i}"
        for key in ("rollouts", "faults")
        for i, change in enumerate(getattr(scenario, key))
        if getattr(change, "at", 0.0) < measured_s and (key == "rollouts" or getattr(change, "at", 0.0) > 0)
    ]
    if not early:
        return []
    return [
        f"{' and '.join(early)} begin{'s' if len(early) == 1 else ''} in the warm-up, so the first effects are not "
        f"measured and there is no baseline; begin after {human_seconds(measured_s)}, or lower run.warmup"
    ]


def _client_notes(traffic: Traffic) -> list[str]:
    loop, total = traffic.closed_loop, traffic.total
    if not isinstance(loop, ClosedArrivals) or total is None or total >= loop.concurrency:
        return []
    return [
        f"workload.requests ({total:,}) is below workload.arrivals.concurrency ({loop.concurrency:,}), so "
        f"{loop.concurrency - total:,} clients send no request; benchmarks send about ten for each client"
    ]


def _scheduling_notes(scenario: Scenario) -> list[str]:
    policy, tenants = scenario.fleet.scheduling, scenario.tenants
    if policy in ("vtc", "lcf") and len(tenants) < 2:
        return [f"fleet.scheduling {policy} shares out service among tenants: with fewer than two, it is fcfs"]
    if policy == "priority" and len({tenant.priority for tenant in tenants}) < 2:
        return ["fleet.scheduling priority: all requests have the same priority, so the first to arrive goes first"]
    unread = [key for key, readers in _READ_BY.items() if policy not in readers]
    given = [key for key in unread if any(key in tenant.model_fields_set for tenant in tenants)]
    return [f"tenants[].{key} has no effect: fleet.scheduling is {policy}" for key in given]


_READ_BY = {"priority": ("priority",), "weight": ("vtc", "lcf")}
"""Which scheduling reads a tenant's key."""


def _offload_notes(pool: Pool) -> list[str]:
    if pool.scenario.fleet.kv_offload is None or pool.profile is None or pool.kv_tokens is None:
        return []
    own, host = pool.kv_tokens * pool.profile.memory.kv_bytes_per_token, host_kv_bytes(pool)
    if host >= own:
        return []
    return [
        f"host memory for KV ({human_bytes(host)}) is smaller than the GPU's KV cache ({human_bytes(own)}); it "
        "mostly holds what the GPU still has"
    ]


def _speculation_notes(pool: Pool) -> list[str]:
    spec, adapters = pool.scenario.fleet.speculation, pool.scenario.adapters
    if spec is None and (adapters.acceptance or any(kind.acceptance for kind in adapters.mix)):
        return ["adapters: an acceptance has no effect without fleet.speculation"]
    if spec is None or not spec.tokens:
        return []
    return [
        f"speculation: a sequence is expected to get {pool.accept_length:.3g} tokens in each step (accept length) by "
        "the acceptance in the scenario; this and the time of drafting are assumed, and memory for the draft is not "
        "counted (fleet.gpu_memory_utilization can leave it room)"
    ]


def _placement_notes(scenario: Scenario, traffic: Traffic) -> list[str]:
    spec, notes = scenario.router.placing, []
    if spec is None or scenario.fleet.places == 1:
        return []
    end_s = traffic.expected_s()
    if PLACERS[spec.policy].moves and spec.period >= end_s:
        notes.append(
            f"router.controller.period ({human_seconds(spec.period)}) is longer than the run ({human_seconds(end_s)}): "
            "no adapter moves"
        )
    if traffic.replayed:
        notes.append(
            "the placement of the start goes by the popularity in the whole trace, which an operator would not know"
        )
    return notes
