"""Turns a remedy into changes of a scenario, at the same GPU memory for adapters.

Higher ranks and more targets make adapters larger, so the same memory holds fewer slots. They are counted as the
engine lays them out: where it pads them to the largest rank, one larger adapter enlarges every slot.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

from sim.errors import InputError
from sim.spec.scenario_file import LoadedScenario
from sim.spec.sections.workload import AdapterKind, Adapters
from sim.spec.units import human_bytes
from sim.studies.planning.what_if_changes import Change
from sim.studies.training.remedy_kinds import (
    adapters_with,
    bytes_of,
    kind_after,
    kind_words,
    kinds_of,
    mean_bytes,
    mixed_in,
    only_kind,
    plain_kind,
    populate_as,
    population_of,
    same_shape,
    shape_of,
    share_of,
    slots_at_same_memory,
    target_words,
)
from sim.training.vet_results import Remedy, Vetted
from sim.world.world import World

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
        found = kinds_of(adapters, [each.current for each in wanted if each.current is not None])
        old = found.kinds[found.alike[0]]
        new = kind_after(remedy, old, wanted)
    except InputError as error:
        who = _who(number, count)
        yield RemedyChange(remedy, title, who, ONE, number, Change("remedy", f"{title}: {who}", refused=error.problem))
        return
    if same_shape(old, new):
        said = f"the scenario's adapters have {kind_words(old)}: nothing changes"
        change = Change("remedy", f"{title}: all adapters", note=said)
        yield RemedyChange(remedy, title, "all adapters", ALL, count, change)
        return
    share = share_of(number, count)
    alone = adapters_with(adapters, mixed_in(new, share, found.kinds))
    kinds = tuple(kind_after(remedy, kind, wanted) if i in found.alike else kind for i, kind in enumerate(found.kinds))
    of_adapters = [kind.share for kind in found.kinds if kind.kind != "base"]
    alike = round(count * sum(found.kinds[i].share for i in found.alike) / sum(of_adapters))
    which = "all adapters" if len(found.alike) == len(of_adapters) else "all of its kind"
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
    if gpu.slots is None:
        what = "adapters take KV memory when they load" if gpu.unified else f"{human_bytes(gpu.size or 0)} stay"
        return Change("remedy", label, set_, what)
    if gpu.unified:
        return Change("remedy", label, set_, "adapters take KV memory when they load")
    slots = slots_at_same_memory(world, population_of(after, world))
    if slots == 0:
        return Change("remedy", label, refused=f"the memory of {gpu.slots} slots can't hold one such adapter")
    return Change("remedy", label, set_ if slots == gpu.slots else {**set_, "cache.gpu.slots": slots})


def _host_slots(change: Change, after: Adapters, loaded: LoadedScenario, world: World) -> int | None:
    """Return how many copies the same host memory holds; None where it holds as many as before."""
    host, population = loaded.scenario.cache.host, world.traffic.population
    if host is None or host.slots is None:
        return None
    held = min(host.slots, len(population))
    before, mean = (mean_bytes(each) for each in (population, populate_as(after, world, len(population))))
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
