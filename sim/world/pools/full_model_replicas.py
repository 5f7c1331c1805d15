"""Replicas of full models: ordinary replicas whose GPU cache has places for whole models instead of adapters."""

from __future__ import annotations

from dataclasses import replace

from sim.policies.adapter_cache import GpuCache, HostTier
from sim.policies.eviction import EvictionContext
from sim.policies.eviction.lru import Lru
from sim.policies.routing import Choosing, View
from sim.policies.routing.full_model_router import Beside, FullModelRouter, ToHolders, ToOwnReplicas
from sim.results.records import Recorder
from sim.rng import stream_key
from sim.spec.scenario import Cache, Storage
from sim.spec.scenario import GpuCache as GpuCacheSpec
from sim.world.clock import Clock
from sim.world.fleet import Fleet
from sim.world.memory.replica_caches import attach_listeners
from sim.world.pools.full_model_layout import FullModelFleet
from sim.world.replica.loader import LoadContext
from sim.world.replica.modes.adapter_mode import AdapterMode, ModeParts
from sim.world.replica.modes.model_turns_mode import TurnsOfModels
from sim.world.replica.modes.protected import LoadsAtArrival
from sim.world.replica.server import ReplicaParts, Server
from sim.world.replica_assembly import ServerWrapper, kv_rule, make_server
from sim.world.routing.router_views import Residency
from sim.world.world import World


class NoFullModels:
    """The replicas of full models in a replication without any.

    :ivar replicas: number of replicas.
    :ivar counts: by replica of a pool, requests inside by model; updated by ``InFlight``.
    """

    def __init__(self, replicas: int = 0) -> None:
        self.replicas = replicas
        self.counts: list[dict[int, int]] = [{} for _ in range(replicas)]

    def router(self, others: Choosing, replication: int) -> Choosing:
        """Return the router of the whole fleet.

        :param others: the router of the base model's replicas.
        """
        return others

    def observe(self, fleet: Fleet) -> None:
        """Connect the router's view to the replicas, once all exist."""

    def make(self, index: int, inside: list[int], clock: Clock, recorder: Recorder) -> Server:
        """Return a new replica, which rollouts and faults never concern."""
        raise AssertionError("there are no full models")


class FullModelReplicas(NoFullModels):
    """The replicas of full models in one replication, and the router that sends requests to them."""

    def __init__(self, world: World, fleet: FullModelFleet, wrap_server: ServerWrapper) -> None:
        super().__init__(fleet.replicas)
        self._fleet = fleet
        self._world = world
        self._wrap_server = wrap_server
        self._swaps = not fleet.homes and fleet.spec.serve == "swap"
        self._view = View()
        self._residency = Residency(len(fleet.full), fleet.first + fleet.replicas)

    def router(self, others: Choosing, replication: int) -> Choosing:
        fleet = self._fleet
        models: FullModelRouter = ToOwnReplicas(self._view, fleet.homes)
        if self._swaps:
            pool = range(fleet.first, fleet.first + fleet.replicas)
            key = stream_key(self._world.scenario.run.seed, replication, "full-model-router")
            models = ToHolders(self._view, pool, [model for model, full in enumerate(fleet.full) if full], key)
        return Beside([*fleet.full, False], models, others)  # last the base model

    def observe(self, fleet: Fleet) -> None:
        self._view.loads = fleet.full_model_inside
        self._view.resident = self._residency.masks
        self._view.inside = [{}] * self._fleet.first + self.counts
        if self._swaps and self.replicas > 1:  # only then the router reads requests inside by model
            fleet.count_inside()

    def make(self, index: int, inside: list[int], clock: Clock, recorder: Recorder) -> Server:
        world = world_of(self._world, self._fleet, index - self._fleet.first)
        context = EvictionContext(world.weights, world.capacity, now=lambda: clock.now)
        cache = GpuCache(world.weights, world.capacity, Lru(context), pinned=world.pinned)
        loads = LoadContext(clock, recorder, index)
        parts = ModeParts(cache, HostTier(), (1, 1), loads)
        mode: AdapterMode = LoadsAtArrival(parts)
        if self._swaps:
            mode = TurnsOfModels(parts, self._fleet.spec.turn or 0.0)
            attach_listeners(cache, index, [self._residency])
        replica = ReplicaParts(clock, recorder, index, inside, mode)
        return make_server(world, replica, mode, kv_rule(world), self._wrap_server)


def world_of(world: World, fleet: FullModelFleet, place: int) -> World:
    """Return the world of a replica of full models: slots for whole models, and no LoRA.

    A dedicated replica holds its model from the start. A pool begins empty, and its loads block the step that needs
    them.

    :param place: the replica's number, counted from ``fleet.first``.
    """
    scenario, swaps = world.scenario, fleet.spec.serve == "swap"
    resident = fleet.spec.places
    rules: dict[str, object] = {"admission": "skip", "load_at": "admission" if swaps else "arrival"}
    if swaps:
        rules["prefix_caching"] = False  # another model takes the memory
    derived = scenario.model_copy(
        update={
            "fleet": scenario.fleet.model_copy(update=rules),
            "cache": Cache(gpu=GpuCacheSpec(slots=resident)),
            "storage": Storage(mode="blocking" if swaps else "overlap"),
        }
    )
    models = len(fleet.full)
    return replace(
        world,
        scenario=derived,
        profile=fleet.profile,
        kv_tokens=fleet.kv_tokens[place],
        weights=[1] * models,
        capacity=resident,
        ranks=[0] * models,
        adapter_blocks=[],
        pinned=() if swaps else (fleet.model_of[place],),
        warm=(),
        full=None,
        base_weights=None,
    )


def make_full_models(world: World, wrap_server: ServerWrapper) -> NoFullModels:
    """Return the replicas of full models in one replication."""
    return NoFullModels() if world.full is None else FullModelReplicas(world, world.full, wrap_server)
