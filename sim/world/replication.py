"""One replication: clock, router, rollouts, faults and replicas, put together and simulated."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, replace
from functools import partial

import numpy as np
from numpy.typing import NDArray

from sim.policies.routing import View
from sim.results.records import Recorder, Recording
from sim.spec.scenario import Scenario
from sim.spec.sections.faults import FailingLoads
from sim.world.changes import Changes
from sim.world.clock import Clock
from sim.world.closed_loop import make_fleet, make_recorder
from sim.world.faults.crashes import make_crashes
from sim.world.faults.misrouting import make_misrouting
from sim.world.faults.stale_prefixes import make_stale_prefixes
from sim.world.faults.storage_faults import make_load_timing, note_storage
from sim.world.fleet import NO_LIMIT, Arrivals, Fleet, RunWindow
from sim.world.fleet_ports import FleetHooks
from sim.world.foresight import ArrivalOracle, Foresight
from sim.world.front_buckets import with_buckets
from sim.world.gc_pause import collector_paused
from sim.world.memory.replica_caches import (
    FleetCacheListener,
    attach_listeners,
    eviction_context,
)
from sim.world.pools.full_model_replicas import NoFullModels, make_full_models
from sim.world.replica.loader import LoadContext
from sim.world.replica.server import ReplicaParts, Server
from sim.world.replica_assembly import ServerWrapper, kv_rule, make_mode, make_server, unwrapped, with_host_fill
from sim.world.replica_draws import ReplicaDraws
from sim.world.rollouts.active_rollouts import NoRollouts, make_rollouts
from sim.world.routing.in_flight import InFlight
from sim.world.routing.router_state import RouterState, make_router
from sim.world.routing.router_views import ViewRefresher
from sim.world.steady_start import SteadyStart
from sim.world.times import request_times
from sim.world.world import World


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
    :ivar rollouts: the rollouts, or what stands for none.
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
    recorder = make_recorder(world, replication, sections, clock)

    view = View(up=list(range(replicas)), slots=_adapters_at_a_time(world))
    router = make_router(world, view, replication)
    full = make_full_models(world, wrap_server)
    # With a single replica the router is never called.
    reads = router.reads if world.replicas > 1 else frozenset[str]()
    router_state = RouterState(len(world.population), replicas, reads)
    in_flight = _in_flight(world, router_state, full)

    prefixes = make_stale_prefixes(world, replication)
    rollouts = make_rollouts(world, replication, clock, recorder, prefixes)
    misrouting = make_misrouting(world, replication, clock, recorder, prefixes)
    crashes = make_crashes(scenario, view, clock, recorder)
    hooks = FleetHooks()
    if rollouts.active or misrouting.active or crashes.active or _loads_fail(scenario):
        in_flight.counting = router_state.reads("inside")
        hooks = Changes(recorder, rollouts, misrouting, crashes, in_flight)
    elif scenario.eviction_policy.needs_future:
        oracle = ArrivalOracle(world.traffic.arrivals(replication), len(world.population))
        hooks = Foresight(oracle, replicas, in_flight)

    hooks = with_buckets(scenario.tenants, recorder, clock, hooks, in_flight)
    fleet = make_fleet(
        clock,
        recorder,
        full.router(router, replication),
        Arrivals(
            RunWindow(world.traffic.total, world.traffic.end_s, scenario.run.warmup),
            request_times(scenario, world.profile, world.population, world.full),
            _token_limits(world),
            world.base_model,
            NO_LIMIT if scenario.fleet.chunked_prefill else world.batched_tokens,
            with_text=world.prefix_cache or "texts" in reads,
            tenant_of=world.traffic.tenant_of,
        ),
        hooks,
        in_flight,
    )
    maker = ReplicaMaker(world, replication, clock, recorder, router_state, rollouts, hooks, wrap_server)
    fleet.open(replicas, maker)
    sources = router_state.sources(fleet.inside, fleet.count_inside)
    fleet.open_more(full.replicas, partial(full.make, clock=clock, recorder=recorder))
    full.observe(fleet)
    fleet.show_to(ViewRefresher(clock, view, sources, reads, scenario.router.view_interval, fleet.next_s))
    return Replication(fleet, router_state, rollouts)


def _in_flight(world: World, state: RouterState, full: NoFullModels) -> InFlight:
    """Return the counts of requests inside by adapter; they stay empty unless a router reads them."""
    return InFlight(state.counts + full.counts, world.base_model)


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
        self._steady = SteadyStart(world, replication) if world.scenario.cache.starts_full else None
        self._made = Counter[int]()  # incarnations by index: a restarted replica has other random draws
        self._cache_listeners: list[FleetCacheListener] = [*router_state.cache_listeners(), *rollouts.cache_listeners()]

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
        if self._steady is not None and not restarted:
            world = replace(world, warm=self._steady.last_used(index, draws))

        timing = make_load_timing(world, index, draws)
        context = LoadContext(clock, recorder, index, self._rollouts.versions(index), timing)
        fetches = LoadContext(clock, recorder, index, self._rollouts.host_versions(index), timing)
        eviction = self._hooks.foresee(eviction_context(world, clock, draws), index)
        rule = kv_rule(world)
        mode = make_mode(world, context, rule, eviction, draws)
        attach_listeners(mode.cache, index, self._cache_listeners)
        parts = ReplicaParts(clock, recorder, index, inside, mode, self._hooks.listener(index), standing_in)
        parts = with_host_fill(world, parts, mode, fetches)
        server = make_server(world, parts, mode, rule, self._wrap_server)
        if world.serves_base_model:
            server.serve_base_model()
        self._router_state.replica(server)
        return server


def _adapters_at_a_time(world: World) -> int:
    """Return how many adapters of the mean size fit into the GPU cache, leaving out versions that come later."""
    weights = world.weights[: len(world.traffic.population)]
    if world.full is not None:
        weights = [weight for weight, full in zip(weights, world.full.full, strict=True) if not full]
    return max(1, world.capacity * len(weights) // max(1, sum(weights)))


def _token_limits(world: World) -> NDArray[np.int64]:
    """Return the most tokens of a request, by adapter, and last for the base model."""
    fleet, tokens = world.scenario.fleet, world.kv_tokens
    longest = fleet.max_model_len or NO_LIMIT
    limits = np.full(len(world.population) + 1, NO_LIMIT)
    if tokens is not None:
        limits[:-1] = tokens - fleet.block_size * max(world.adapter_blocks, default=0)
        limits[-1] = tokens
        limits -= fleet.kv_check == "peak"  # the peak must stay below
    if world.full is not None:
        world.full.limit_tokens(limits)
    np.minimum(limits, longest, out=limits)
    return limits
