"""Build a world from a checked scenario, refuse parts that do not fit together, and simulate replications."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, replace
from functools import partial

import numpy as np
from numpy.typing import NDArray

from sim.errors import InputError, ScenarioError
from sim.policies.base_model import AdapterCounts
from sim.policies.base_weights import BaseWeights, base_weights
from sim.policies.costs import beyond_envelope
from sim.policies.eviction import check_eviction
from sim.policies.routing import View, check_router
from sim.results.records import Recorder, Recording
from sim.spec.profile import Profile, load_profile
from sim.spec.scenario import DEFAULT_PROFILE, Scenario
from sim.spec.sections.faults import FailingLoads
from sim.spec.units import format_seconds, human_seconds
from sim.traffic.adapters import Population
from sim.traffic.generate import Traffic
from sim.world.changes import Changes
from sim.world.clock import Clock
from sim.world.faults.crashes import make_crashes
from sim.world.faults.misrouting import answering_base_model, make_misrouting
from sim.world.faults.misrouting_faults import check_misrouting_faults
from sim.world.faults.stale_prefixes import make_stale_prefixes
from sim.world.faults.storage_faults import make_load_timing, note_storage, storage_notes
from sim.world.fleet import Arrivals, Fleet, RunWindow
from sim.world.gc_pause import collector_paused
from sim.world.gpu_memory import usable_kv_tokens
from sim.world.pools.full_model_layout import full_model_notes, lay_out_full_models
from sim.world.pools.full_model_replicas import FullModelReplicas
from sim.world.ports import FleetHooks
from sim.world.replica.loader import LoadContext
from sim.world.replica.oracle import ArrivalOracle, ReplicaOracle
from sim.world.replica.server import ReplicaParts, Server
from sim.world.replica_assembly import ServerWrapper, kv_rule, make_intake, make_mode, make_server, unwrapped
from sim.world.replica_caches import (
    FleetCacheListener,
    attach_listeners,
    eviction_context,
    gpu_capacity,
    pinned_and_warm,
)
from sim.world.replica_draws import ReplicaDraws
from sim.world.rollouts.active_rollouts import NoRollouts, make_rollouts
from sim.world.rollouts.rollout_plan import plan_rollouts, with_new_versions
from sim.world.routing.in_flight import InFlight
from sim.world.routing.router_state import RouterState, make_router
from sim.world.routing.router_views import ViewRefresher
from sim.world.times import has_host_tier, request_times
from sim.world.world import World

Floats = NDArray[np.float64]


def build_world(scenario: Scenario) -> World:
    """Read the profile and the traffic, and check that they fit together.

    :raises ScenarioError, TraceError: with the key of the value that does not fit.
    """
    _check_policies(scenario)
    fixed = scenario.fleet.engine == "fixed"
    profile, digest = (None, "") if fixed and _needs_no_profile(scenario) else load_profile(scenario.fleet.profile)
    base_model = _base_model(scenario, profile)
    traffic = Traffic(scenario, base_model, 0 if profile is None else profile.memory.weights_bytes)
    _check_times(scenario, traffic)
    check_misrouting_faults(scenario, traffic)
    rollout_plan = plan_rollouts(scenario, traffic) if scenario.rollouts else None
    full = lay_out_full_models(scenario, profile, traffic)
    weights_kept = None if profile is None else base_weights(scenario.adapters, profile)
    if profile is not None and weights_kept is not None:
        profile = weights_kept.apply(profile)
    population = traffic.population.without_full()
    if rollout_plan is not None:
        population = with_new_versions(population, rollout_plan, scenario.adapters, base_model)
    weights, capacity = gpu_capacity(scenario.cache.gpu, population)
    pinned, warm = pinned_and_warm(scenario, traffic, weights, capacity, rollout_plan)
    kv_tokens = None if fixed or profile is None else usable_kv_tokens(scenario, profile, population)
    notes = list(traffic.notes)
    if profile is not None and not fixed:
        slots = scenario.cache.gpu.slots or 0  # a cache by size has no fixed number
        notes += _disturbed(profile)
        notes += beyond_envelope(profile, slots, int(population.rank.max()), scenario.fleet.max_num_seqs)
    notes += storage_notes(scenario) + full_model_notes(full, scenario.fleet.replicas)
    notes += _base_notes(scenario, weights_kept)
    if profile is not None and scenario.storage.loaders > 1 and scenario.storage.load is None:
        notes.append("loads at the same time share no bandwidth in this version: several loaders look too good")
    served = int(np.count_nonzero(~population.full)) if population.full_kinds else len(population)
    if scenario.cache.eviction == "vllm-lru" and scenario.cache.host is None and capacity < served:
        notes.append(
            f"host memory holds as many adapters as there are slots (vLLM's max_cpu_loras): with {capacity} "
            f"of {served} most loads come from storage, inside the step; cache.host.slots={served} "
            "keeps all"
        )
    if scenario.cache.pinned and (scenario.workload.churn or scenario.workload.drift):
        notes.append(
            "pinned adapters are those that are popular at the start; they keep their places as popularity moves on"
        )
    notes += _begins_unseen(scenario, traffic)
    if traffic.replayed and scenario.run.replications > 1 and "replications" in scenario.run.model_fields_set:
        notes.append("a trace is replayed once: run.replications does not apply")
    return World(
        scenario=scenario,
        traffic=traffic,
        population=population,
        rollout_plan=rollout_plan,
        profile=profile,
        profile_sha256=digest,
        kv_tokens=kv_tokens,
        weights=weights,
        capacity=capacity,
        ranks=population.rank.tolist(),
        adapter_blocks=_adapter_blocks(scenario, profile, population),
        pinned=pinned,
        warm=warm,
        notes=tuple(notes),
        full=full,
        base_weights=weights_kept,
    )


def simulate(world: World, replication: int, sections: int, wrap_server: ServerWrapper = unwrapped) -> Recording:
    """Simulate one replication from an empty system to the end.

    :param sections: number of sections into which the measured requests are cut, for confidence intervals.
    :param wrap_server: see ``ServerWrapper``.
    """
    with collector_paused():
        fleet = assemble(world, replication, sections, wrap_server).fleet
        recording = fleet.run(world.traffic.chunks(replication))
    note_storage(world, recording.events, recording.stopped_s)
    return recording


@dataclass(frozen=True, slots=True)
class Replication:
    """One replication, put together and ready to run.

    :ivar router_state: what the router reads of the replicas.
    """

    fleet: Fleet
    router_state: RouterState
    rollouts: NoRollouts


def assemble(world: World, replication: int, sections: int, wrap_server: ServerWrapper = unwrapped) -> Replication:
    """Put one replication together: clock, router, rollouts and faults, replicas, and the router's view of them.

    The order matters. Rollouts and faults must be there before the first replica, which listens to them; the view is
    taken last, of replicas that exist.
    """
    scenario = world.scenario
    replicas = scenario.fleet.replicas
    clock = Clock()
    recorder = Recorder(sections, world.replicas, replicas)

    view = View(up=list(range(replicas)), slots=_adapters_at_a_time(world))
    router = make_router(world, view, replication)
    full = None if world.full is None else FullModelReplicas(world, world.full, wrap_server)
    # With a single replica the router is never called.
    reads = router.reads if replicas > 1 or full is not None else frozenset[str]()
    router_state = RouterState(len(world.population), replicas, reads)
    in_flight = _in_flight(world, router_state, full, reads)

    prefixes = make_stale_prefixes(world, replication)
    rollouts = make_rollouts(world, replication, clock, recorder, prefixes)
    misrouting = make_misrouting(world, replication, clock, recorder, prefixes)
    crashes = make_crashes(scenario, view, clock, recorder)
    hooks = FleetHooks()
    if rollouts.active or misrouting.active or crashes.active or _loads_fail(scenario):
        in_flight.counting = "inside" in reads
        hooks = Changes(recorder, rollouts, misrouting, crashes, in_flight)

    fleet = Fleet(
        clock,
        recorder,
        router if full is None else full.router(router, replication),
        Arrivals(
            RunWindow(world.traffic.total, world.traffic.end_s, scenario.run.warmup),
            request_times(scenario, world.profile, world.population, world.full),
            _token_limits(world),
            None if scenario.fleet.chunked_prefill else scenario.fleet.max_num_batched_tokens,
        ),
        hooks,
        in_flight,
    )
    maker = ReplicaMaker(world, replication, clock, recorder, router_state, rollouts, hooks, wrap_server)
    fleet.open(replicas, maker)
    sources = router_state.sources(fleet.inside, fleet.count_inside)
    if full is not None:
        fleet.open_more(full.fleet.replicas, partial(full.make, clock=clock, recorder=recorder))
        full.observe(fleet.full_model_inside)
        if full.counted:
            fleet.count_inside()
    fleet.show_to(ViewRefresher(clock, view, sources, reads, scenario.router.view_interval, fleet.next_s))
    return Replication(fleet, router_state, rollouts)


def _in_flight(world: World, state: RouterState, full: FullModelReplicas | None, reads: frozenset[str]) -> InFlight:
    """Return the counts of requests inside by adapter; they stay empty unless a router reads them."""
    if answering_base_model(world.scenario):
        state.counts[:] = (AdapterCounts(len(world.population)) for _ in state.counts)
    return InFlight(state.counts + (full.counts if full is not None else []))


def _loads_fail(scenario: Scenario) -> bool:
    return any(isinstance(fault, FailingLoads) for fault in scenario.faults)


class ReplicaMaker:
    """Makes the replicas of one replication, at the start and after crashes."""

    def __init__(
        self,
        world: World,
        replication: int,
        clock: Clock,
        recorder: Recorder,
        router_state: RouterState,
        rollouts: NoRollouts,
        hooks: FleetHooks,
        wrap_server: ServerWrapper,
    ) -> None:
        self._world = world
        self._replication = replication
        self._clock = clock
        self._recorder = recorder
        self._router_state = router_state
        self._rollouts = rollouts
        self._hooks = hooks
        self._wrap_server = wrap_server
        self._made = Counter[int]()  # incarnations by index: a restarted replica has other random draws
        self._arrival_oracle: ArrivalOracle | None = None
        if world.scenario.eviction_policy.needs_future:
            self._arrival_oracle = ArrivalOracle(world.traffic.arrivals(replication), len(world.population))
        self._cache_listeners: list[FleetCacheListener] = [*rollouts.cache_listeners()]
        if router_state.residency is not None:
            self._cache_listeners.insert(0, router_state.residency)

    def __call__(self, index: int, inside: list[int], *, restarted: bool, standing_in: bool) -> Server:
        """Return an empty replica; see ``MakeReplica``."""
        world, clock, recorder, scenario = self._world, self._clock, self._recorder, self._world.scenario
        if restarted:
            world = replace(world, warm=(), pinned=self._rollouts.pinned(world.pinned))
            for each in self._cache_listeners:
                each.forget(index)
        place = self._made[index] * scenario.fleet.replicas + index
        self._made[index] += 1
        draws = ReplicaDraws(scenario.run.seed, self._replication, place)

        timing = make_load_timing(world, index, draws)
        context = LoadContext(clock, recorder, index, self._rollouts.versions(index), timing)
        fetches = LoadContext(clock, recorder, index, self._rollouts.host_versions(index), timing)
        listener = self._hooks.listener(index)
        oracle = None
        if self._arrival_oracle is not None:  # without rollouts and faults, so that nothing else listens
            listener = oracle = ReplicaOracle(self._arrival_oracle)
        rule = kv_rule(world)
        mode = make_mode(world, context, rule, eviction_context(world, clock, draws, oracle), draws)
        attach_listeners(mode.cache, index, self._cache_listeners)
        intake = make_intake(world, mode, fetches)
        parts = ReplicaParts(clock, recorder, index, inside, intake, listener, standing_in)
        server = make_server(world, parts, mode, rule, self._wrap_server)
        if answering_base_model(scenario):
            server.serve_base_model()
        self._router_state.replica(server)
        return server


def _adapters_at_a_time(world: World) -> int:
    """Return how many adapters of the mean size fit into the GPU cache, leaving out versions that come later."""
    weights = world.weights[: len(world.traffic.population)]
    if world.full is not None:
        weights = [weight for weight, full in zip(weights, world.full.full, strict=True) if not full]
    return max(1, world.capacity * len(weights) // max(1, sum(weights)))


def _check_policies(scenario: Scenario) -> None:
    """Refuse policies from outside that can't be used."""
    try:
        check_eviction(scenario.eviction_policy)
    except InputError as error:
        error.key = "cache.eviction"
        raise
    try:
        check_router(scenario.router_policy)
    except InputError as error:
        error.key = "router.policy"
        raise


def _check_times(scenario: Scenario, traffic: Traffic) -> None:
    """Refuse rollouts and faults that would begin after the last request."""
    end_s = traffic.expected_s()
    for key in ("rollouts", "faults"):
        for i, change in enumerate(getattr(scenario, key)):
            begins_s = getattr(change, "at", 0.0)
            if begins_s >= end_s:
                raise ScenarioError(
                    "begins after the last request is expected",
                    key=f"{key}.{i}.at",
                    got=format_seconds(begins_s),
                    allowed=f"before {human_seconds(end_s)}",
                    hint="begin earlier, or simulate longer",
                )


def _begins_unseen(scenario: Scenario, traffic: Traffic) -> list[str]:
    """Return a note on rollouts and faults that begin in the warm-up, where nothing is measured."""
    measured_s = scenario.run.warmup * traffic.expected_s()
    early = [
        f"{key}.{i}"
        for key in ("rollouts", "faults")
        for i, change in enumerate(getattr(scenario, key))
        if getattr(change, "at", 0.0) < measured_s and (key == "rollouts" or getattr(change, "at", 0.0) > 0)
    ]
    if not early:
        return []
    return [
        f"{' and '.join(early)} begin{'s' if len(early) == 1 else ''} in the warm-up, so what follows at once isn't "
        f"measured, and there is no time before to compare with; begin after {human_seconds(measured_s)}, or lower "
        "run.warmup"
    ]


def _disturbed(profile: Profile) -> list[str]:
    """Return a note on what disturbed the measurements of a profile."""
    flags = profile.provenance.device.get("flags", "none") if profile.provenance else "none"
    return [] if flags == "none" else [f"the profile {profile.name} was measured on a disturbed device: {flags}"]


def _base_notes(scenario: Scenario, kept: BaseWeights | None) -> list[str]:
    """Return notes on assumptions about quantised base weights, and on memory that they do not change."""
    tokens = scenario.fleet.kv_tokens
    if kept is None or tokens is None:
        return [] if kept is None else list(kept.notes)
    given = f"fleet.kv_tokens gives the KV cache ({tokens:,} tokens): quantised base weights don't enlarge it"
    return [*kept.notes, given]


def _needs_no_profile(scenario: Scenario) -> bool:
    storage = scenario.storage
    return storage.load is not None and (not has_host_tier(scenario) or storage.host_load is not None)


def _base_model(scenario: Scenario, profile: Profile | None) -> str:
    given = scenario.adapters.base_model
    if profile is None:
        return given or "llama-3.1-8b"
    if given is not None and given != profile.model:
        raise ScenarioError(
            "the profile was made for another base model",
            key="adapters.base_model",
            got=given,
            allowed=f"{profile.model} (profile {profile.name})",
            hint="choose a profile of this model with fleet.profile"
            if scenario.fleet.profile != DEFAULT_PROFILE
            else "set fleet.profile to a profile of this model",
        )
    return profile.model


def _adapter_blocks(scenario: Scenario, profile: Profile | None, population: Population) -> list[int]:
    if not scenario.cache.gpu.unified or profile is None:
        return []
    block_bytes = profile.memory.kv_bytes_per_token * scenario.fleet.block_size
    return [-(-int(size) // block_bytes) for size in population.size_bytes.tolist()]


def _token_limits(world: World) -> int | NDArray[np.int64] | None:
    """Return the most tokens of a request, by adapter if full models have other limits; None: no limit."""
    longest = world.scenario.fleet.max_model_len
    limit = _token_limit(world)
    if world.full is None:
        return limit
    limits = world.full.token_limits(limit)
    return limits if longest is None else np.minimum(limits, longest)


def _token_limit(world: World) -> int | None:
    """Return the most tokens of a request for an adapter; None: no limit."""
    fleet, tokens = world.scenario.fleet, world.kv_tokens
    if tokens is not None:
        tokens -= fleet.block_size * max(world.adapter_blocks, default=0)
        tokens -= fleet.kv_check == "peak"  # the peak must stay below
    limits = [limit for limit in (tokens, fleet.max_model_len) if limit is not None]
    return min(limits, default=None)
