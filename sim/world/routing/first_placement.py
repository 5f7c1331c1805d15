"""What a placement controller starts from: its policy, and where adapters are placed at the start."""

from __future__ import annotations

from sim.policies.costs import StepCosts
from sim.policies.placement import Demand, Placement, Placer, PlacerContext, make_placer
from sim.rng import stream_key
from sim.spec.sections.routing import PlacementController as ControllerSpec
from sim.world.world import World

_BATCH = 32
"""Sequences of the decode step by which ranks are compared, each with an adapter of its own."""


def adapters_at_a_time(world: World) -> int:
    """Return how many adapters of the mean size fit into the GPU cache, leaving out versions that come later."""
    present = len(world.traffic.population)
    weights = [
        weight for weight, taken in zip(world.weights[:present], world.takes[:present].tolist(), strict=True) if taken
    ]
    return max(1, world.capacity * len(weights) // max(1, sum(weights)))


def placer_of(spec: ControllerSpec, world: World, replication: int) -> Placer:
    """Return the placement policy of a replication. Pinned adapters take slots of every replica."""
    slots = spec.slots or max(1, adapters_at_a_time(world) - len(world.pinned))
    key = stream_key(world.scenario.run.seed, replication, "placement")
    costs = _costs_by_rank(world)
    return make_placer(spec.policy, PlacerContext(slots, spec.copies, costs, world.ranks, key, spec.tolerance))


def first_placement(world: World, placer: Placer) -> Placement:
    """Return the placement of the start, by the popularity that the traffic then has, on the replicas that serve."""
    serving = tuple(range(world.scenario.fleet.replicas))
    return placer.place(Demand(dict(enumerate(world.traffic.shares().tolist())), serving), {})


def _costs_by_rank(world: World) -> list[float]:
    """Return by adapter how long a decode step with adapters of its rank takes, over one with those of lowest rank.

    All are 1 where the profile has no costs by rank, and with engine ``fixed``.
    """
    profile, ranks = world.profile, world.ranks
    if profile is None or world.scenario.fleet.engine == "fixed":
        return [1.0] * len(ranks)
    batch = min(_BATCH, world.scenario.fleet.max_num_seqs)
    costs = StepCosts(profile.step, adapters_at_a_time(world), batch)
    distinct = min(batch, adapters_at_a_time(world))
    seconds = {
        rank: costs.step(batch, 0, distinct, rank * distinct, (batch, 0, 0.0, rank * batch, 0)) for rank in set(ranks)
    }
    least = min(seconds.values())
    return [seconds[rank] / least if least > 0 else 1.0 for rank in ranks]
