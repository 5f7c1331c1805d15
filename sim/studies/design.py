"""From a scenario to its worlds, and from a sweep to its points: what can be known before anything is simulated.

Nothing here imports what simulates or measures, so that ``loraplan check`` starts quickly.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from sim.errors import InputError, ScenarioError
from sim.results.model import Setup
from sim.spec.engines import schedulings_of
from sim.spec.profile import Profile
from sim.spec.profile_choice import other_costs, profile_choice
from sim.spec.scenario import Scenario
from sim.spec.scenario_file import LoadedScenario, value_text
from sim.spec.units import repeated
from sim.studies.vetting_gate import Vetting, release
from sim.timing import timed
from sim.world.build import build_world
from sim.world.memory.gpu_memory import gpu_share, memory_use
from sim.world.world import Pool as ReplicaPool
from sim.world.world import World

MIN_DRAWS = 2
MAX_DRAWS = 8
"""Draws of a profile to simulate, at most. With 8, Student's t is 18 % above the normal quantile."""
MAX_POINTS = 100_000


@dataclass(frozen=True, slots=True)
class Design:
    """A scenario with its worlds, built once; a process without the scenario's files can simulate it.

    :ivar world: the simulated world.
    :ivar counterfactual: the world in which rollouts that are held back go out; None where none is held back.
    :ivar baseline: the world without the rollouts and faults; None where there are none.
    :ivar held_back: the rollouts that are held back.
    """

    scenario: Scenario
    world: World
    counterfactual: World | None = None
    baseline: World | None = None
    held_back: tuple[Vetting, ...] = ()

    @property
    def replications(self) -> int:
        """Number of replications; always 1 for a trace."""
        return 1 if self.world.traffic.replayed else self.scenario.run.replications

    @property
    def draws(self) -> list[int]:
        """Which draws of the profile are simulated, spread evenly over all; none where there are too few."""
        total = self.world.draws
        count = min(total, MAX_DRAWS)
        return [place * total // count for place in range(count)] if total >= MIN_DRAWS else []


@timed("worlds")
def make_design(scenario: Scenario) -> Design:
    """Vet the rollouts of a scenario, and build its worlds.

    :raises InputError: with the key of the wrong value, also for rollouts that are held back.
    """
    released = release(scenario)
    counterfactual = None if released.otherwise is None else build_world(released.otherwise)
    happens = build_world(released.scenario)
    if released.notes:
        happens = replace(happens, notes=(*happens.notes, *released.notes))
    baseline = baseline_of(released.scenario)
    unchanged = None if baseline is None else build_world(baseline)
    return Design(scenario, happens, counterfactual, unchanged, released.held_back)


def build(scenario: Scenario) -> World:
    """Return the world without rollouts that are held back; raises as ``make_design`` does."""
    return make_design(scenario).world


def baseline_of(scenario: Scenario) -> Scenario | None:
    """Return the scenario without its rollouts and the faults that begin later; None where nothing changes.

    A fault that is there from the start is part of normal operation, unless nothing else changes: then its own
    effect is the question.
    """
    from_start = tuple(fault for fault in scenario.faults if getattr(fault, "at", 0.0) <= 0)
    changes = bool(scenario.rollouts) or len(from_start) < len(scenario.faults)
    if not changes and not scenario.faults:
        return None
    # Without a rollout, no prefix can come from an older version.
    kept = tuple(fault for fault in from_start if fault.kind != "named-prefixes") if changes else ()
    return scenario.model_copy(update={"rollouts": (), "faults": kept, "adapters": scenario.adapters_without_rollouts})


def design_of(point: LoadedScenario, set_: Mapping[str, Any]) -> Design:
    """Build the worlds of a point; an error says where it stands, and at which of several points."""
    try:
        return make_design(point.scenario)
    except InputError as error:
        if set_ and error.file is None:
            where = ", ".join(f"{key}={value_text(value)}" for key, value in set_.items())
            error.hint = "; ".join(filter(None, [error.hint, f"at the point {where}"]))
        raise point.locate(error) from None


def grid(loaded: LoadedScenario, over: Mapping[str, list[Any]] | None = None) -> list[dict[str, Any]]:
    """Return all combinations of the swept values, the last key fastest.

    :param over: values by key, instead of the scenario's ``sweep`` block.
    :raises ScenarioError: if there is nothing to sweep, or far too much.
    """
    axes = dict(over) if over else {key: list(values) for key, values in loaded.scenario.sweep.items()}
    if not axes:
        raise ScenarioError(
            "nothing to sweep",
            key="sweep",
            file=loaded.source,
            hint="give --over cache.gpu.slots=16,32,64, or a sweep: block in the scenario; extends inherits none",
        )
    total = 1
    for key, values in axes.items():
        if not values:
            raise ScenarioError("no values to sweep", key=key, hint="write --over key=v1,v2")
        if twice := repeated(values):
            place = None if over else loaded.origins.get(f"sweep.{key}")
            raise ScenarioError(
                "a value occurs twice",
                key=key if over else f"sweep.{key}",
                got=twice[0],
                file=None if place is None else place.place,
                line=None if place is None else place.line,
            )
        total *= len(values)
    if total > MAX_POINTS:
        raise ScenarioError("too many points", key="sweep", got=f"{total:,}", allowed=f"up to {MAX_POINTS:,}")
    return [dict(zip(axes, combination, strict=True)) for combination in itertools.product(*axes.values())]


def check_points(loaded: LoadedScenario) -> list[World]:
    """Check the scenario and every point of its ``sweep`` block.

    :return: that of the scenario itself, then those of the points.
    :raises InputError: saying what is wrong, and where.
    """
    sets = grid(loaded) if loaded.scenario.sweep else []
    worlds = [design_of(loaded, {}).world]
    return [*worlds, *(design_of(loaded.with_values(set_), set_).world for set_ in sets)]


def checked(loaded: LoadedScenario) -> tuple[list[str], list[str]]:
    """Check as ``check_points``; return notes, and on what it would be simulated, in sentences."""
    from reports.text.setup_text import memory_sentences, setup_words

    worlds = check_points(loaded)
    setups = [setup_of(world) for world in worlds]
    notes = dict.fromkeys(note for world in worlds for note in world.notes)
    return list(notes), [setup_words(setups), *memory_sentences(setups[0])]


def setup_of(world: World) -> Setup:
    """Return on what a world is simulated."""
    if not world.scenario.fleet.pools:
        return _setup_of(world.pools[0], world.replicas)
    pools = tuple(replace(_setup_of(pool, pool.replicas), pool=pool.name) for pool in world.own_pools)
    scenario = world.scenario
    alike = all(pool.serves == "all" and pool.role == "both" for pool in scenario.fleet.pools)
    by_load = "least-loaded" if alike and scenario.router_policy.evenly else None
    return replace(pools[0], share=None, pool="", pools=pools, by_load=by_load)


def _beyond(pool: ReplicaPool, profile: Profile) -> str:
    """Return what of a pool's adapters lies outside what its profile covers: ``rank 64``."""
    rank = 0 if pool.scenario.adapters.base_alone else pool.population.slot_rank
    return f"rank {rank}" if rank > profile.envelope.rank else ""


def serves_in_order(scenario: Scenario) -> bool:
    """Return whether tenants with and without an SLO are served in order, and priorities would change that."""
    fleet, with_slo = scenario.fleet, {bool(tenant.slo.terms()) for tenant in scenario.tenants}
    in_order = fleet.scheduling == "fcfs" and fleet.load_at != "arrival"
    return in_order and len(with_slo) == 2 and "priority" in schedulings_of(fleet.engine)


def _setup_of(pool: ReplicaPool, replicas: int) -> Setup:
    engine, profile = pool.scenario.fleet.engine, pool.profile
    if profile is None:
        return Setup(engine)
    choice = profile_choice(pool.scenario)
    return Setup(
        engine,
        profile.device,
        profile.model,
        profile.name,
        profile.status,
        choice.why,
        ", ".join(choice.assumed),
        other_costs(engine, profile),
        _beyond(pool, profile),
        profile.is_anchored,
        gpu_share(pool, replicas),
        memory_use(pool),
        serves_in_order(pool.scenario),
    )
