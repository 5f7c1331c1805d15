"""Kinds of adapters before and after a remedy, and how many of them fit into the same memory."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from pydantic import TypeAdapter

from sim.errors import InputError
from sim.spec.profile_choice import profile_of
from sim.spec.scenario import Targets
from sim.spec.sections.workload import AdapterKind, Adapters
from sim.traffic.adapters import GOLDEN, MODULES, ModelShape, Population, base_shape, modules_of, populate
from sim.training.vet_results import CurrentAdapter, Remedy, Vetted
from sim.world.memory.gpu_memory import adapter_bytes
from sim.world.rollouts.rollout_plan import with_new_versions
from sim.world.world import World


@dataclass(frozen=True, slots=True)
class Kinds:
    """The kinds of adapters in a scenario, and the places of those like the vetted adapter (``alike``)."""

    kinds: tuple[AdapterKind, ...]
    alike: tuple[int, ...]


def share_of(number: int, count: int) -> float:
    """Return the share that gives the first kind of a mix exactly so many adapters, the first one included.

    ``populate`` deals kinds by the golden-ratio sequence; the share ends between its ``number``-th value and the next.
    """
    dealt = np.sort((np.arange(count) * GOLDEN) % 1.0)
    return 1.0 if number >= count else float(dealt[number - 1] + dealt[number]) / 2


def adapters_with(adapters: Adapters, kinds: tuple[AdapterKind, ...]) -> Adapters:
    """Return the same adapters, of other kinds."""
    names = adapters.model_fields_set - {"rank", "targets", "size", "mix"}
    return Adapters(**{name: getattr(adapters, name) for name in names}, mix=kinds)


def slots_at_same_memory(world: World, population: Population) -> int:
    """Return how many slots of other adapters fit into the memory of the scenario's slots; perhaps 0."""
    slots, profile = world.scenario.cache.gpu.slots, world.profile
    assert slots is not None, "a cache counted in slots"

    def taken(number: int, of: Population) -> int:
        if profile is None:
            return number * of.slot_bytes
        return adapter_bytes(number, profile, of, fully_sharded=world.scenario.fleet.fully_sharded_loras)

    budget, low, high = taken(slots, world.population), 0, slots + 1
    while high - low > 1:
        middle = (low + high) // 2
        if taken(middle, population) <= budget:
            low = middle
        else:
            high = middle
    return low


def kinds_of(adapters: Adapters, vetted: Sequence[CurrentAdapter]) -> Kinds:
    """Return the kinds of a scenario and which are like the vetted adapters.

    :raises InputError: where the scenario or the vetting doesn't say.
    """
    if not adapters.mix:
        return Kinds((only_kind(adapters),), (0,))
    shapes = {
        (current.rank, _known(current.targets))
        for current in vetted
        if current.rank is not None and current.targets is not None
    }
    if not shapes:
        raise InputError("the scenario mixes kinds of adapters, and the kind of the vetted one is unknown")
    alike = [i for i, kind in enumerate(adapters.mix) if kind.kind == "lora" and shape_of(kind) in shapes]
    if not alike:
        words = " or ".join(f"rank {rank} on {', '.join(targets)}" for rank, targets in sorted(shapes))
        raise InputError(f"no kind of adapters.mix has {words}, as the vetted adapter has")
    return Kinds(adapters.mix, tuple(alike))


def mixed_in(new: AdapterKind, share: float, kinds: Sequence[AdapterKind]) -> tuple[AdapterKind, ...]:
    """Return a mix in which a share of the adapters is of a new kind, and the base model gets as many requests as
    before.

    :param share: of all adapters; each of the other kinds of adapters has to give up this share of its own.
    """
    base = sum(kind.share for kind in kinds if kind.kind == "base")
    others = (
        kind if kind.kind == "base" else kind.model_copy(update={"share": kind.share * (1 - share)}) for kind in kinds
    )
    return (new.model_copy(update={"share": share * (1 - base)}), *others)


def only_kind(adapters: Adapters) -> AdapterKind:
    """Return the one kind of adapters that have no mix."""
    return _kind(1.0, adapters.rank, adapters.targets, adapters.size)


def _kind(share: float, rank: int, targets: Targets, size: int | None) -> AdapterKind:
    """Return a kind of adapters, checked; a size is written with its unit."""
    return AdapterKind.model_validate(
        {"share": share, "rank": rank, "targets": targets, "size": None if size is None else f"{size} B"}
    )


def kind_after(remedy: Remedy, old: AdapterKind, wanted: Sequence[Vetted]) -> AdapterKind:
    """Return a kind of adapters after the remedy: never a lower rank or fewer targets.

    :raises InputError: if its size is unknown.
    """
    rank, targets = max(old.rank, remedy.rank or 0), _union(old.targets, remedy.targets)
    size = old.size
    if size is not None:
        grown = _times(remedy, wanted)
        if grown is None:
            raise InputError("the scenario gives adapters a size, and how much larger the new adapter gets is unknown")
        size = round(size * max(1.0, grown))
    return _kind(old.share, rank, targets, size)


def _times(remedy: Remedy, wanted: Sequence[Vetted]) -> float | None:
    """Return the size after the remedy over the size before; None where unknown."""
    for each in wanted:
        if each.current is not None and each.current.parameters and remedy.parameters:
            return remedy.parameters / each.current.parameters
        if each.current is not None and each.current.adapter_bytes and remedy.adapter_bytes:
            return remedy.adapter_bytes / each.current.adapter_bytes
    return None


def plain_kind(kind: AdapterKind) -> dict[str, Any]:
    """Return a kind as a scenario file has it."""
    values = kind.model_dump(
        mode="json", exclude_none=True, exclude=set() if kind.kind == "lora" else {"rank", "targets"}
    )
    if kind.kind == "lora":
        del values["kind"]
    return values if kind.size is None else {**values, "size": f"{kind.size} B"}


def population_of(adapters: Adapters, world: World) -> Population:
    """Return other adapters in place of those of a world, with the new versions that its rollouts bring."""
    model = _model(world)
    population = populate_as(adapters, world, len(world.traffic.population))
    return with_new_versions(population, world.rollout_plan, adapters, model)


def bytes_of(kind: AdapterKind, adapters: Adapters, world: World) -> int:
    """Return the bytes of one adapter of a kind."""
    one = adapters_with(adapters, (kind.model_copy(update={"share": 1.0}),))
    return int(populate_as(one, world, 1).size_bytes[0])


def populate_as(adapters: Adapters, world: World, count: int) -> Population:
    """Return other adapters of a world's model; full models have the bytes of the profile's weights."""
    weights = 0
    if world.profile is not None:  # as on disk: full models keep the bits that a quantised base gave up
        profile, _ = profile_of(world.scenario)
        assert profile is not None, "the world has one"
        weights = profile.memory.weights_bytes
    return populate(adapters, _model(world), count, weights)


def mean_bytes(population: Population) -> float:
    """Return the mean size of adapters, without full models."""
    return float(population.size_bytes[~population.full].mean())


def _model(world: World) -> str | ModelShape:
    if world.profile is not None:
        return world.profile.model if world.profile.shape is None else base_shape(world.profile)
    return world.scenario.adapters.base_model or "llama-3.1-8b"


def _union(one: Targets, other: Targets | None) -> Targets:
    if other is None:
        return one
    if set(modules_of(other)) <= set(modules_of(one)):
        return one
    both = {*modules_of(one), *modules_of(other)}
    return (
        "all-linear" if both == set(MODULES) else TypeAdapter(Targets).validate_python(sorted(both, key=MODULES.index))
    )


def same_shape(one: AdapterKind, other: AdapterKind) -> bool:
    """Return whether two kinds differ in their shares at most."""
    return (one.size, shape_of(one)) == (other.size, shape_of(other))


def shape_of(one: CurrentAdapter | AdapterKind) -> tuple[int | None, tuple[str, ...]]:
    """Return rank and target modules, these in the order of a layer."""
    return one.rank, () if one.targets is None else _known(one.targets)


def _known(targets: Targets) -> tuple[str, ...]:
    return tuple(name for name in MODULES if name in modules_of(targets))


def kind_words(kind: AdapterKind) -> str:
    """Return a kind in words: ``rank 4 on attention only``."""
    return f"rank {kind.rank} on {target_words(kind.targets)}"


def target_words(targets: Targets) -> str:
    """Return target modules in words."""
    if targets == "all-linear" or set(targets) == set(MODULES):
        return "all linear layers"
    return "attention only" if set(targets) == set(MODULES[:4]) else ", ".join(targets)
