"""One replication: clock, router, rollouts, faults and replicas, put together and simulated."""

from __future__ import annotations

import gc
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from math import inf

import numpy as np
from numpy.typing import NDArray

from sim.policies.routing import View
from sim.policies.routing.placed import Placed
from sim.results.records import Recording
from sim.spec.sections.changes import Crash, StorageFault
from sim.spec.sections.serving import KvTransfer
from sim.timing import stage
from sim.world.clock import Clock
from sim.world.closed_loop import make_fleet, make_recorder
from sim.world.dispatcher import Dispatcher, Extension, Followed
from sim.world.faults.crashes import make_crashes
from sim.world.faults.misrouting import make_misrouting, make_stale_prefixes
from sim.world.faults.storage_faults import make_load_timing, note_storage
from sim.world.fleet import Arrivals, Fleet, RunWindow
from sim.world.foresight import ArrivalOracle, Foresight
from sim.world.front_buckets import make_buckets
from sim.world.memory.replica_caches import FleetCacheListener, attach_listeners, eviction_context
from sim.world.pools.autoscaler import make_autoscaler
from sim.world.pools.hand_over import HandOver
from sim.world.pools.pool_routing import Routing
from sim.world.pools.pool_times import PoolLimits, PoolTimes
from sim.world.replica.ports import LoadContext, WeightVersions
from sim.world.replica.server import ReplicaParts, Server
from sim.world.replica_assembly import ServerWrapper, kv_rule, make_mode, make_server, unwrapped, with_host_fill
from sim.world.rollouts.active_rollouts import Rollouts
from sim.world.routing.placement_controller import PlacementController, adapters_at_a_time
from sim.world.routing.router_state import ReplicaViews, RouterState
from sim.world.routing.router_views import ViewRefresher
from sim.world.times import ReplicaDraws, tier_times
from sim.world.world import Pool, World

# Which adapters each replica used last before the start, for caches that start full (``cache.warm: steady``).


class SteadyStart:
    """The recent past of a fleet: independent requests, drawn by popularity.

    A router that splits adapters is asked where it would send each of them in an idle fleet; one that follows a
    placement, where each is placed.

    :param pool: whose replicas are asked for; ``world``: with all pools that the router may choose.
    """

    def __init__(self, pool: Pool, world: World, replication: int) -> None:
        self._shares = np.where(pool.takes[: pool.traffic.places], pool.shares, 0.0)
        self._shares[list(pool.pinned)] = 0.0
        self._sent_to = _adapters_sent(world, replication)

    def last_used(self, replica: int, draws: ReplicaDraws) -> tuple[int, ...]:
        """Return the adapters of a replica, the last used first; those that are never requested are left out.

        Going back in time, independent requests meet adapters in the order of exponential times at the rates of their
        shares, and so the first of them are what an LRU cache holds.
        """
        used = np.flatnonzero((self._shares > 0) & self._sent_to(replica))
        ages = draws.stream("steady-start").exponential(size=len(self._shares))[used] / self._shares[used]
        return tuple(used[np.argsort(ages, kind="stable")].tolist())


def _adapters_sent(world: World, replication: int) -> Callable[[int], NDArray[np.bool_]]:
    """Return a function from a replica to the mask of adapters whose requests the router may send there."""
    if not world.scenario.router_policy.splits_adapters or world.replicas == 1:
        all_adapters = np.ones(world.traffic.places, dtype=np.bool_)
        return lambda replica: all_adapters
    replicas, adapters = world.replicas, range(world.traffic.places)

    def idle(up: list[int]) -> View:
        inside: list[dict[int, int]] = [{} for _ in range(replicas)]
        nowhere = [0] * world.base_model
        return View(loads=[0] * replicas, up=up, resident=nowhere, running=nowhere, inside=inside)

    router = Routing(world, replication, idle).router
    if world.scenario.router.placing is not None:
        assert isinstance(router, Placed), "it follows a placement"
        all_homes = [router.all_homes(adapter) for adapter in adapters]
        return lambda replica: np.array([replica in homes for homes in all_homes])
    owners = np.array([router.choose(adapter, adapter) for adapter in adapters])
    return lambda replica: owners == replica


@contextmanager
def collector_paused() -> Iterator[None]:
    """Pause the cycle collector.

    With 20,000 waiting requests, it scanned all of them again and again, for a tenth to a quarter of the CPU time. It
    would free nothing: objects in reference cycles (replicas, loads under way) live to the end of the simulation, and
    their number does not grow with its length. Reference counts free everything else.

    At the end only what the replication left is looked through. Otherwise Python would do so with all objects, those of
    the imported libraries included, which takes a tenth of a compiled replication of 20,000 requests.
    """
    if not gc.isenabled():
        yield
        return
    freezes = gc.get_freeze_count() == 0  # otherwise whoever has frozen objects wants them to stay so
    gc.disable()
    if freezes:
        gc.freeze()
    try:
        yield
    finally:
        try:
            gc.collect(0)
        finally:  # a signal that stops the simulation may come while it collects
            gc.enable()
            if freezes:
                gc.unfreeze()


Simulate = Callable[[World, int, int], Recording]
"""``simulate``, or a function of the same arguments that remembers what it has simulated."""


def simulate(world: World, replication: int, sections: int, wrap_server: ServerWrapper = unwrapped) -> Recording:
    """Simulate one replication from an empty system to the end.

    :param sections: number of sections into which the measured requests are cut, for confidence intervals.
    :param wrap_server: see ``ServerWrapper``.
    """
    with stage("simulation"), collector_paused():
        recording = behind_front_end(_run(world, replication, sections, wrap_server), world)
    note_storage(world.scenario, recording.events, recording.stopped_s)
    return recording


def _run(world: World, replication: int, sections: int, wrap_server: ServerWrapper) -> Recording:
    """Simulate one replication; nothing outside refers to its fleet, so that the collector can free it at the end."""
    return assemble(world, replication, sections, wrap_server).fleet.run(world.traffic.chunks(replication))


def behind_front_end(recording: Recording, world: World) -> Recording:
    """Return a recording as clients see it: all that happens to a request happens later by its time in the front end.

    Requests arrive at the engine later by as much as their clients see everything later, so nothing in between changes.
    """
    seconds = world.front_ends_s
    if not seconds.any():
        return recording
    later = seconds[np.maximum(recording.requests["replica"], 0)]
    stamps = {}
    for name in ("admitted_s", "first_token_s", "finished_s"):
        times = np.asarray(recording.requests[name], dtype=np.float64)
        stamps[name] = np.where(times < 0, times, times + later)
    return replace(recording, requests={**recording.requests, **stamps})


@dataclass(frozen=True, slots=True)
class Replication:
    """One replication, put together and ready to run: what the replicas of all pools are connected to.

    :ivar router_state: what the router reads of the replicas.
    :ivar rollouts: the rollouts, if there are any; ``foresight``: the future, if an eviction policy knows it.
    """

    fleet: Fleet
    router_state: RouterState
    rollouts: Rollouts | None
    foresight: Foresight | None


def assemble(world: World, replication: int, sections: int, wrap_server: ServerWrapper = unwrapped) -> Replication:
    """Put one replication together: clock, router, rollouts and faults, replicas, and the router's view of them.

    The order matters. Rollouts and faults must be there before the first replica, which listens to them; the view is
    taken last, of replicas that exist.
    """
    scenario, replicas = world.scenario, world.replicas
    pools = world.pools
    clock = Clock()
    recorder = make_recorder(world, replication, sections, clock)

    # With a single replica the router is never called.
    at_a_time = min(map(adapters_at_a_time, world.own_pools)) if replicas > 1 else 1
    routing = Routing(world, replication, lambda up: View(up=up, slots=at_a_time))
    reads = routing.reads if replicas > 1 else frozenset[str]()
    router_state = RouterState(world.base_model, replicas, reads | routing.current_reads)
    steered = bool(world.rollout_plan.rollouts) or not all(
        isinstance(fault, Crash | StorageFault) for fault in scenario.faults
    )
    times = PoolTimes(pools, steered=steered)

    prefixes = make_stale_prefixes(world, replication)
    misrouting = make_misrouting(world, replication, clock, recorder, prefixes)
    rollouts: Rollouts | None = None
    if world.rollout_plan.rollouts:
        misrouted = () if misrouting is None else misrouting.wrong
        rollouts = Rollouts(world, replication, clock, recorder, prefixes.replaced, misrouted)
    views = ReplicaViews([*routing.views, *routing.current], routing.of_request)
    crashes = make_crashes(scenario, views, clock, recorder)
    times.keeps = times.differ and (steered or crashes is not None or routing.hand_over is not None)
    foresight: Foresight | None = None
    if any(pool.scenario.eviction_policy.needs_future for pool in pools):
        foresight = Foresight(ArrivalOracle(world.traffic.arrivals(replication), world.base_model), replicas)
    link = scenario.fleet.kv_transfer or KvTransfer()
    extensions: list[Extension | None] = [  # in the order in which requests pass them
        make_buckets(scenario.tenants, recorder, clock),
        make_autoscaler(pools[0], replication, routing.views[0], clock, recorder),
        PoolLimits(pools, times, recorder) if times.differ and routing.hand_over is None else None,
        None if routing.hand_over is None else HandOver(pools, link, routing.hand_over, times, recorder),
        crashes,
        misrouting,
        rollouts,
        foresight,
        Followed(routing.following) if routing.following and replicas > 1 else None,
    ]
    there = [each for each in extensions if each is not None]
    dispatcher = Dispatcher(routing.router, there, recorder, router_state.counts, world.base_model)
    fleet = make_fleet(
        clock,
        recorder,
        routing.router,
        Arrivals(
            RunWindow(world.traffic.total, world.traffic.end_s or inf, scenario.run.warmup),
            times.of_requests(),
            times.limits.both,
            world.base_model,
            times.limits.prompt,
            max_tokens=world.scenario.workload.tokens.max_tokens or 0,
            with_stops=any(pool.asynchronous for pool in pools),
            with_text=any(pool.prefix_cache for pool in pools) or not reads.isdisjoint(("texts", "request")),
            tenant_of=world.traffic.tenant_of,
        ),
        dispatcher,
    )
    around = Replication(fleet, router_state, rollouts, foresight)
    makers: list[ReplicaMaker] = []
    for pool in pools:
        makers += [ReplicaMaker(pool, world, replication, around, wrap_server)] * pool.replicas
    dispatcher.open(makers, [index in pool.serving for pool in pools for index in pool.indices])
    if there and (router_state.reads("inside") or router_state.reads("listed")):
        fleet.count_inside()  # from the start: some may be kept outside their replica later
    view = _show_replicas(routing, fleet, router_state, reads, scenario.router.view_interval)
    if isinstance(routing.router, Placed) and replicas > 1:
        servers, next_s = fleet.servers, fleet.next_s
        PlacementController(pools[0], replication, routing.router, view, servers, recorder, clock, next_s)
    return around


def _show_replicas(
    routing: Routing, fleet: Fleet, router_state: RouterState, reads: frozenset[str], interval: float
) -> View:
    """Let the router see the replicas, now that they exist; return the view of the first pool."""
    sources = router_state.sources(fleet.inside, fleet.count_inside, fleet.servers)
    view, *others = routing.views
    refresher = ViewRefresher(fleet.clock, view, sources, reads, interval, fleet.next_s)
    if others:
        refresher.keep_current(others)
    if routing.current:
        current = ViewRefresher(fleet.clock, View(), sources, routing.current_reads, 0.0, fleet.next_s)
        current.keep_current(routing.current)
    fleet.dispatcher.view = refresher
    return view


class ReplicaMaker:
    """Makes the replicas of one pool in one replication, at the start and after crashes."""

    def __init__(
        self,
        pool: Pool,
        world: World,
        replication: int,
        around: Replication,
        wrap_server: ServerWrapper,
    ) -> None:
        self._pool = pool
        self._link = world.scenario.fleet.kv_transfer or KvTransfer()
        self._replicas = world.replicas
        self._replication = replication
        self._around = around
        self._wrap_server = wrap_server
        self._steady: SteadyStart | None = None
        if pool.scenario.cache.starts_full:
            drawn = world.scenario.router.pools == "weight"
            self._steady = SteadyStart(pool, replace(world, pools=(pool,)) if drawn else world, replication)
        self._tiers = tier_times(pool.scenario, pool.profile, pool.population)
        self._made = Counter[int]()  # incarnations by index: a restarted replica has other random draws
        self._cache_listeners: list[FleetCacheListener] = [
            *around.router_state.cache_listeners(),
            *(around.rollouts.cache_listeners() if around.rollouts is not None else ()),
        ]

    def __call__(self, index: int, inside: list[int], *, restarted: bool, standing_in: bool) -> Server:
        """Return an empty replica; see ``MakeReplica``."""
        pool, scenario, around = self._pool, self._pool.scenario, self._around
        fleet, clock, recorder, rollouts = around.fleet, around.fleet.clock, around.fleet.recorder, around.rollouts
        if restarted:
            pinned = pool.pinned if rollouts is None else rollouts.pinned(pool.pinned)
            pool = replace(pool, warm=() if standing_in else pool.warmed_up, pinned=pinned)
            for each in self._cache_listeners:
                each.forget(index)
        place = self._made[index] * self._replicas + index
        self._made[index] += 1
        draws = ReplicaDraws(scenario.run.seed, self._replication, place)
        if self._steady is not None and not restarted:
            pool = replace(pool, warm=self._steady.last_used(index, draws))

        timing = make_load_timing(pool, index, draws)
        loaded: tuple[WeightVersions, WeightVersions]
        loaded = (WeightVersions(), WeightVersions()) if rollouts is None else rollouts.versions(index)
        context, fetches = (LoadContext(clock, recorder, index, versions, timing) for versions in loaded)
        eviction = eviction_context(pool, clock, draws)
        if around.foresight is not None:
            eviction = around.foresight.of(eviction, index)
        rule = kv_rule(pool)
        mode = make_mode(pool, context, rule, eviction, draws, self._tiers)
        attach_listeners(mode.cache, index, self._cache_listeners)
        parts = ReplicaParts(clock, recorder, index, inside, mode, fleet.dispatcher, standing_in)
        parts = with_host_fill(pool, parts, mode, fetches)
        server = make_server(pool, parts, mode, rule, self._wrap_server, self._link, draws)
        if pool.serves_base_model:
            server.serve_base_model()
        around.router_state.replica(server)
        return server
