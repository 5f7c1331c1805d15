"""Build a world from a checked scenario, refuse parts that do not fit together, and simulate replications."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from functools import partial

import numpy as np
from numpy.typing import NDArray

from sim.errors import InputError, ScenarioError
from sim.policies.base_model import AdapterCounts
from sim.policies.base_weights import BaseWeights, base_weights
from sim.policies.costs import beyond_envelope
from sim.policies.eviction import check_eviction
from sim.policies.routing import Router, View, check_router
from sim.results.records import Recorder, Recording
from sim.rng import stream
from sim.spec.profile import Profile, load_profile
from sim.spec.scenario import DEFAULT_PROFILE, Scenario
from sim.spec.sections.faults import Crash, FailingLoads
from sim.spec.units import format_seconds, human_seconds
from sim.traffic.adapters import Population
from sim.traffic.generate import Traffic
from sim.world.changes import Changes
from sim.world.clock import Clock
from sim.world.faults.base_model_fallback import serve_base_model
from sim.world.faults.crashes import Crashes
from sim.world.faults.misrouting import answering_base_model, make_misrouting
from sim.world.faults.misrouting_faults import check_misrouting_faults
from sim.world.faults.storage_faults import make_storage, note_storage, storage_notes
from sim.world.fleet import Fleet, FleetHooks, Intake, RunWindow
from sim.world.gc_pause import collector_paused
from sim.world.gpu_memory import usable_kv_tokens
from sim.world.pools.full_model_layout import full_model_notes, lay_out_full_models
from sim.world.pools.full_model_replicas import FullModelReplicas
from sim.world.replica.assembly import ServerWrapper, kv_rule, make_server
from sim.world.replica.loader import LoadContext
from sim.world.replica.oracle import ArrivalOracle, ReplicaOracle
from sim.world.replica.replica_caches import (
    FleetCacheListener,
    attach_listeners,
    eviction_context,
    gpu_capacity,
    make_caches,
    make_host_fill,
    pinned_and_warm,
)
from sim.world.replica.server import ReplicaParts, Server
from sim.world.rollouts.active_rollouts import make_rollouts
from sim.world.rollouts.rollout_plan import plan_rollouts, with_new_versions
from sim.world.rollouts.versions import HostLoadListener, Versions
from sim.world.routing.in_flight import InFlight
from sim.world.routing.router_state import RouterState, make_router
from sim.world.routing.router_views import ViewRefresher
from sim.world.times import has_host_tier, reload_times, request_times
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


def simulate(
    world: World, replication: int, sections: int, wrap_server: ServerWrapper = lambda server: server
) -> Recording:
    """Simulate one replication from an empty system to the end.

    :param sections: number of sections into which the measured requests are cut, for confidence intervals.
    :param wrap_server: see ``ServerWrapper``.
    """
    with collector_paused():
        recording = Replication(world, replication, sections, wrap_server).fleet.run(world.traffic.chunks(replication))
    note_storage(world, recording.events, recording.stopped_s)
    return recording


class Replication:
    """One replication: clock, fleet, router, rollouts and faults, put together.

    :ivar fleet: ready to run.
    """

    def __init__(self, world: World, replication: int, sections: int, wrap_server: ServerWrapper) -> None:
        self._world = world
        self._replication = replication
        self._wrap_server = wrap_server
        scenario = world.scenario
        self._clock = Clock()
        self._recorder = Recorder(sections, world.replicas, scenario.fleet.replicas)
        self._costs = scenario, world.profile, world.population
        self._arrival_oracle = None
        if scenario.eviction_policy.needs_future:
            self._arrival_oracle = ArrivalOracle(world.traffic.arrivals(replication), len(world.population))
        view = View(up=list(range(scenario.fleet.replicas)), slots=_adapters_at_a_time(world))
        router = make_router(world, view, replication)
        self._full = None if world.full is None else FullModelReplicas(world, world.full, wrap_server)
        # With a single replica the router is never called.
        self._reads = router.reads if scenario.fleet.replicas > 1 or self._full is not None else frozenset[str]()
        self._router_state = RouterState(len(world.population), scenario.fleet.replicas, self._reads)
        self._base_model_answers = answering_base_model(scenario)
        if self._base_model_answers:
            counts = self._router_state.counts
            counts[:] = (AdapterCounts(len(world.population)) for _ in counts)
        self._inside = None
        if "inside" in self._reads or (self._full is not None and self._full.counted):
            self._inside = InFlight(self._router_state.counts + (self._full.counts if self._full is not None else []))
        self._versions: list[Versions] = []
        self._made = Counter[int]()  # incarnations by index: a restarted replica has other random draws
        self._cache_listeners: list[FleetCacheListener] = (
            [] if self._router_state.residency is None else [self._router_state.residency]
        )
        self._changes = self._make_changes(router, view)
        intake = Intake(
            RunWindow(world.traffic.total, world.traffic.end_s, scenario.run.warmup),
            request_times(*self._costs, world.full),
            _token_limits(world),
            None if scenario.fleet.chunked_prefill else scenario.fleet.max_num_batched_tokens,
        )
        self.fleet = Fleet(
            self._clock,
            self._recorder,
            router if self._full is None else self._full.router(router, replication),
            intake,
            FleetHooks(self._changes, self._inside),
        )
        self.fleet.open(scenario.fleet.replicas, self._make_server)
        sources = self._router_state.sources(self.fleet.inside, self.fleet.count_inside)
        if self._full is not None:
            self.fleet.open_more(self._full.fleet.replicas, self._make_full)
            self._full.observe(self.fleet.full_model_inside)
            if self._full.counted:
                self.fleet.count_inside()
        interval_s = scenario.router.view_interval
        self.fleet.refresh_view = ViewRefresher(
            self._clock, view, sources, self._reads, interval_s, self.fleet.next_s
        ).refresh

    def _make_changes(self, router: Router, view: View) -> Changes | None:
        world, replication = self._world, self._replication
        inside = self._inside
        rollouts = None
        if world.rollout_plan is not None:
            rollouts, self._versions, duplicate_bytes = make_rollouts(world, replication, self._clock, self._recorder)
            if rollouts.renames:
                self._cache_listeners.append(duplicate_bytes)
        misrouting = make_misrouting(world, replication, self._clock, self._recorder, rollouts)
        faults = world.scenario.faults
        planned_crashes = [(i, fault) for i, fault in enumerate(faults) if isinstance(fault, Crash)]
        crashes = Crashes(planned_crashes, view, self._clock, self._recorder) if planned_crashes else None
        failing = any(isinstance(fault, FailingLoads) for fault in faults)
        if rollouts is None and misrouting is None and crashes is None and not failing:
            return None
        return Changes(self._recorder, rollouts, inside, misrouting, crashes)

    def _make_server(self, index: int, inside: list[int]) -> Server:
        world, replication, clock, recorder = self._world, self._replication, self._clock, self._recorder
        scenario = world.scenario
        if index < len(self.fleet.servers):  # a replica restarts, with no warm adapters
            pinned = world.pinned
            if self._changes is not None and self._changes.rollouts is not None:
                pinned = self._changes.rollouts.pinned(pinned)
            world = replace(world, warm=(), pinned=pinned)
            for each in self._cache_listeners:
                each.forget(index)
        place = self._made[index] * scenario.fleet.replicas + index
        self._made[index] += 1
        rule = kv_rule(world)
        oracle = None if self._arrival_oracle is None else ReplicaOracle(self._arrival_oracle)
        context = eviction_context(world, clock, stream(scenario.run.seed, replication, "eviction", place), oracle)
        cache, host = make_caches(world, replication, place, rule, context)
        if self._cache_listeners:
            attach_listeners(cache, index, self._cache_listeners)
        versions = self._versions[index] if self._versions else None
        storage = make_storage(world, replication, index, place)
        fill_context = LoadContext(recorder, index, None if versions is None else HostLoadListener(versions), storage)
        changes = self._changes
        parts = ReplicaParts(
            clock,
            recorder,
            index,
            inside,
            cache,
            host,
            loaders=(scenario.storage.loaders, scenario.storage.host_loaders),
            reload_s=reload_times(*self._costs, replication, place),
            host_fill=make_host_fill(world, clock, cache, fill_context),
            oracle=oracle,
            versions=versions,
            on_last_token=None if changes is None else changes.last_token_callback(index),
            on_lost=None if changes is None else partial(changes.lost, index),
            storage=storage,
            on_load_failed=None if changes is None else partial(changes.load_failed, index),
            next_key=self.fleet.next_key,
        )
        server = make_server(world, parts, rule, self._wrap_server)
        if self._base_model_answers:
            serve_base_model(server, parts.host_fill)
        self._router_state.replica(index, server)
        return server

    def _make_full(self, index: int, inside: list[int]) -> Server:
        """Make a replica of full models, which rollouts and faults never concern."""
        assert self._full is not None, "called only if there are full models"
        return self._full.make(index, inside, self._clock, self._recorder)


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
