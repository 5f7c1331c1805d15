"""Turns a remedy into changes of a scenario, at the same GPU memory for adapters.

Higher ranks and more targets make adapters larger, so the same memory holds fewer slots. They are counted as the
engine lays them out: where it pads them to the largest rank, one larger adapter enlarges every slot.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from pydantic import TypeAdapter

from sim.errors import InputError
from sim.spec.profile_choice import profile_of
from sim.spec.scenario import Targets
from sim.spec.scenario_file import LoadedScenario
from sim.spec.sections.workload import AdapterKind, Adapters
from sim.spec.units import human_bytes
from sim.studies.plan.what_if import Change
from sim.traffic.adapters import (
    GOLDEN,
    MODULES,
    TARGETS,
    ModelShape,
    Population,
    base_shape,
    modules_of,
    populate,
    split_of,
)
from sim.training.logs.training_facts import TrainingFacts
from sim.training.vet_results import Remedy, Vetted
from sim.world.memory.gpu_memory import adapter_bytes
from sim.world.rollouts.rollout_plan import with_new_versions
from sim.world.world import World

# Kinds of adapters before and after a remedy, and how many of them fit into the same memory.


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
    slots, profile = world.scenario.cache.gpu.slots, world.pools[0].profile
    assert slots is not None, "a cache counted in slots"

    def taken(number: int, of: Population) -> int:
        if profile is None:
            return number * of.slot_bytes
        return adapter_bytes(number, profile, of, split_of(world.scenario, profile))

    budget = taken(slots, world.pools[0].population)
    return bisect_right(range(1, slots + 1), budget, key=lambda number: taken(number, population))


def kinds_of(adapters: Adapters, vetted: Sequence[TrainingFacts]) -> tuple[tuple[AdapterKind, ...], tuple[int, ...]]:
    """Return the kinds of adapters in a scenario, and the places of those like the vetted adapters.

    :raises InputError: where the scenario or the vetting doesn't say.
    """
    if not adapters.mix:
        return (only_kind(adapters),), (0,)
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
    return adapters.mix, tuple(alike)


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


def bytes_of(kind: AdapterKind, adapters: Adapters, world: World) -> int:
    """Return the bytes of one adapter of a kind."""
    one = adapters_with(adapters, (kind.model_copy(update={"share": 1.0}),))
    return int(populate_as(one, world, 1).size_bytes[0])


def populate_as(adapters: Adapters, world: World, count: int) -> Population:
    """Return other adapters of a world's model; full models have the bytes of the profile's weights."""
    weights = 0
    if world.pools[0].profile is not None:  # as on disk: full models keep the bits that a quantised base gave up
        profile, _ = profile_of(world.scenario)
        assert profile is not None, "the world has one"
        weights = profile.memory.weights_bytes
    return populate(adapters, _model(world), count, weights)


def _model(world: World) -> str | ModelShape:
    profile = world.pools[0].profile
    if profile is not None:
        return profile.model if profile.shape is None else base_shape(profile)
    return world.scenario.adapters.base_model or "llama-3.1-8b"


def _union(one: Targets, other: Targets | None) -> Targets:
    if other is None:
        return one
    if set(modules_of(other)) <= set(modules_of(one)):
        return one
    both = {*modules_of(one), *modules_of(other)}
    return (
        "all-linear" if both == set(MODULES) else TypeAdapter(Targets).validate_python(sorted(both, key=TARGETS.index))
    )


def shape_of(one: TrainingFacts | AdapterKind) -> tuple[int | None, tuple[str, ...]]:
    """Return rank and target modules, these in the order of a layer."""
    return one.rank, () if one.targets is None else _known(one.targets)


def _known(targets: Targets) -> tuple[str, ...]:
    return tuple(name for name in TARGETS if name in modules_of(targets))


def kind_words(kind: AdapterKind) -> str:
    """Return a kind in words: ``rank 4 on attention only``."""
    return f"rank {kind.rank} on {target_words(kind.targets)}"


def target_words(targets: Targets) -> str:
    """Return target modules in words."""
    if targets == "all-linear" or set(targets) == set(MODULES):
        return "all linear layers"
    return "attention only" if set(targets) == set(MODULES[:4]) else ", ".join(targets)


ONE, ALL, ALL_SAME_HOST = "one", "all", "all, same host memory"
"""Which adapters get the remedy: the vetted ones, or all like them, with host memory for all or as before."""
OWN, POOL = "own replicas", "swapping pool"
"""How full models are served, where they are the remedy."""

_PRECISION = ("nf4", "int8", "bf16")
"""Formats of the base model's weights, from few bits to many."""
BITS_WORDS = {"nf4": "4 bits", "int8": "8 bits", "bf16": "16 bits"}


@dataclass(frozen=True, slots=True)
class RemedyChange:
    """A remedy as a change of a scenario.

    :ivar title: the remedy in words.
    :ivar who: the adapters that get it, in words (files call them so).
    :ivar scope: one of the constants above; ``adapters``: how many.
    :ivar bytes_before, bytes_after: of one such adapter; None where the remedy doesn't change its size.
    """

    remedy: Remedy
    title: str
    who: str
    scope: str
    adapters: int
    change: Change
    bytes_before: int | None = None
    bytes_after: int | None = None


def remedies_of(vetted: Sequence[Vetted]) -> list[tuple[Remedy, list[Vetted]]]:
    """Return every remedy that changes the cost of serving, each with the adapters it was found for."""
    wanted: dict[tuple[object, ...], tuple[Remedy, list[Vetted]]] = {}
    for each in vetted:
        for finding in each.findings:
            for remedy in finding.remedies:
                if remedy.changes_serving:
                    key = (remedy.rank, remedy.targets, remedy.base_quantization, remedy.full_model)
                    found = wanted.setdefault(key, (remedy, []))[1]
                    if each not in found:
                        found.append(each)
    return list(wanted.values())


def changes_of(remedy: Remedy, wanted: Sequence[Vetted], loaded: LoadedScenario, world: World) -> list[RemedyChange]:
    """Return the changes that price a remedy; the change for the vetted adapters alone comes first.

    :param wanted: the adapters that the remedy was found for.
    :param world: of the scenario as it is.
    """
    if remedy.full_model:
        return list(_of_full(remedy, wanted, loaded, world))
    if remedy.base_quantization is not None:
        return [_of_base(remedy, loaded, world)]
    return list(_of_shape(remedy, wanted, loaded, world))


def _of_base(remedy: Remedy, loaded: LoadedScenario, world: World) -> RemedyChange:
    """Return the change to a base with more bits: its weights take memory from the KV cache, slots stay."""
    wanted, has = remedy.base_quantization, loaded.scenario.adapters.base_quantization
    assert wanted is not None, "a remedy of the base"
    title, count = f"base model in {BITS_WORDS[wanted]}", len(world.traffic.population)
    label = f"{title}: the fleet"
    if _PRECISION.index(has) >= _PRECISION.index(wanted):
        change = Change("remedy", label, note=f"the fleet serves its base model in {BITS_WORDS[has]} already")
        return RemedyChange(remedy, title, "the fleet", ALL, count, change)
    # Settings of the old format don't apply to the new one.
    own = {f"adapters.{key}": None for key in ("base_slowdown", "base_double_quantization")}
    change = Change(
        "remedy",
        label,
        {**own, "adapters.base_quantization": wanted},
        "the weights take their memory from the KV cache",
    )
    return RemedyChange(remedy, title, "the fleet", ALL, count, change)


def _of_full(remedy: Remedy, wanted: Sequence[Vetted], loaded: LoadedScenario, world: World) -> Iterator[RemedyChange]:
    """Yield the changes to full fine-tunes: replicas of their own, or a pool that swaps them."""
    adapters, count = loaded.scenario.adapters, len(world.traffic.population)
    number, title = min(len(wanted), count), "full fine-tune"
    share = share_of(number, count)
    kinds = adapters.mix or (only_kind(adapters),)
    full = AdapterKind(share=share, kind="full")
    mix = [plain_kind(kind) for kind in mixed_in(full, share, kinds) if kind.share > 0]
    first = next(kind for kind in kinds if kind.kind != "base")
    sizes = bytes_of(first, adapters, world), bytes_of(full, adapters, world)
    served = loaded.scenario.fleet.full_models
    ways: dict[str, tuple[str, str | None]] = {"as now": (ONE, None)}
    if served is None:
        ways = {"replicas of their own": (OWN, "dedicated"), "a pool that swaps": (POOL, "swap")}
    for how, (scope, serve) in ways.items():
        who = f"{_who(number, count)}, {how if number > 1 else how.replace('their', 'its')}"
        set_ = {"adapters.mix": mix, **({} if serve is None else {"fleet.full_models.serve": serve})}
        yield RemedyChange(remedy, title, who, scope, number, Change("remedy", f"{title}: {who}", set_), *sizes)


def _of_shape(remedy: Remedy, wanted: Sequence[Vetted], loaded: LoadedScenario, world: World) -> Iterator[RemedyChange]:
    """Yield the changes to larger adapters, for the vetted ones and for all like them."""
    adapters, count = loaded.scenario.adapters, len(world.traffic.population)
    number, title = min(len(wanted), count), shape_words(remedy)
    try:
        found, like = kinds_of(adapters, [each.current for each in wanted if each.current is not None])
        old = found[like[0]]
        new = kind_after(remedy, old, wanted)
    except InputError as error:
        who = _who(number, count)
        yield RemedyChange(remedy, title, who, ONE, number, Change("remedy", f"{title}: {who}", refused=error.problem))
        return
    if (old.size, shape_of(old)) == (new.size, shape_of(new)):
        said = f"the scenario's adapters have {kind_words(old)}: nothing changes"
        change = Change("remedy", f"{title}: all adapters", note=said)
        yield RemedyChange(remedy, title, "all adapters", ALL, count, change)
        return
    share = share_of(number, count)
    alone = adapters_with(adapters, mixed_in(new, share, found))
    kinds = tuple(kind_after(remedy, kind, wanted) if i in like else kind for i, kind in enumerate(found))
    of_adapters = [kind.share for kind in found if kind.kind != "base"]
    alike = round(count * sum(found[i].share for i in like) / sum(of_adapters))
    which = "all adapters" if len(like) == len(of_adapters) else "all of its kind"
    sizes = bytes_of(old, adapters, world), bytes_of(new, adapters, world)
    scopes = [(ONE, number, _who(number, count), alone), (ALL, alike, which, adapters_with(adapters, kinds))]
    for scope, changed, who, after in scopes[number >= count :]:
        change = _at_same_memory(f"{title}: {who}", adapters, after, loaded, world)
        if not change.refused:
            notes = _notes(wanted, old, loaded, alone=scope == ONE, fewer="cache.gpu.slots" in change.set)
            change = replace(change, note="; ".join(filter(None, [change.note, *notes])))
        yield RemedyChange(remedy, title, who, scope, changed, change, *sizes)
        host = None if scope == ONE or change.refused else _host_slots(change, after, loaded, world)
        if host is not None:
            who = f"{who}, host memory as before"
            bound = Change("remedy", f"{title}: {who}", {**change.set, "cache.host.slots": host})
            yield RemedyChange(remedy, title, who, ALL_SAME_HOST, changed, bound, *sizes)


def shape_words(remedy: Remedy) -> str:
    """Return rank and targets of a remedy in words: ``rank 16, all linear layers``."""
    said = [f"rank {remedy.rank}"] if remedy.rank is not None else []
    said.append("same layers" if remedy.targets is None else target_words(remedy.targets))
    return ", ".join(said)


def _at_same_memory(label: str, before: Adapters, after: Adapters, loaded: LoadedScenario, world: World) -> Change:
    """Return the change to other adapters that keeps the GPU memory for adapters."""
    values = [plain_kind(kind) for kind in after.mix]
    whole = len(values) == 1 and not before.mix
    own = {f"adapters.{key}": value for key, value in values[0].items() if key != "share"} if whole else {}
    set_ = own or {"adapters.mix": values}
    gpu = loaded.scenario.cache.gpu
    if gpu.unified:
        return Change("remedy", label, set_, "adapters take KV memory when they load")
    if gpu.slots is None:
        return Change("remedy", label, set_, f"{human_bytes(gpu.size or 0)} stay")
    population = populate_as(after, world, len(world.traffic.population))
    slots = slots_at_same_memory(world, with_new_versions(population, world.rollout_plan, after, _model(world)))
    if slots == 0:
        return Change("remedy", label, refused=f"the memory of {gpu.slots} slots can't hold one such adapter")
    return Change("remedy", label, set_ if slots == gpu.slots else {**set_, "cache.gpu.slots": slots})


def _host_slots(change: Change, after: Adapters, loaded: LoadedScenario, world: World) -> int | None:
    """Return how many copies the same host memory holds; None where it holds as many as before."""
    host, population = loaded.scenario.cache.host, world.traffic.population
    if host is None or host.slots is None:
        return None
    held = min(host.slots, len(population))
    others = populate_as(after, world, len(population))
    before, mean = (float(each.adapter_bytes.mean()) for each in (population, others))
    left = max(int(held * before / mean), 1)
    if loaded.scenario.cache.eviction == "vllm-lru":  # each adapter in a slot has a copy
        left = max(left, int(change.set.get("cache.gpu.slots", loaded.scenario.cache.gpu.slots or 0)))
    return left if left < held else None


def _notes(
    wanted: Sequence[Vetted], old: AdapterKind, loaded: LoadedScenario, *, alone: bool, fewer: bool
) -> Iterator[str]:
    """Yield notes on a price.

    :param alone: whether only the vetted adapters change; ``fewer``: whether fewer slots are left.
    """
    storage = loaded.scenario.storage
    if alone:
        if fewer:
            yield "slots are padded to the largest rank, so one larger adapter enlarges every slot"
        current = next((each.current for each in wanted if each.current is not None), None)
        if (
            current is not None
            and current.targets is not None
            and old.size is None
            and shape_of(current) != shape_of(old)
        ):
            vetted = f"rank {current.rank} on {target_words(current.targets)}"
            yield f"the vetted adapter has {vetted}, the scenario's have {kind_words(old)}"
    if storage.load is not None:
        yield "storage.load gives the load time, so larger adapters load no slower here"


def _who(number: int, count: int) -> str:
    if number >= count:
        return "all adapters"
    return "one adapter" if number == 1 else f"{number:,} adapters"
