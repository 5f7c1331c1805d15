"""Plan the rollouts of a scenario: the adapters that each one updates, their order, and the new versions."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from sim.cells import printable
from sim.errors import ScenarioError, did_you_mean
from sim.rng import stream_key, uniform_draw
from sim.spec.scenario import Adapters, Scenario
from sim.spec.sections.changes import Rollout, overlap, overlap_words
from sim.spec.units import format_share
from sim.traffic.adapters import ModelShape, Population, populate
from sim.traffic.generate import Traffic

_MOST_NAMES = 6


@dataclass(frozen=True, slots=True)
class PlannedRollout:
    """One rollout with its adapters.

    :ivar number: its place in the scenario.
    :ivar rollout: its section of the scenario.
    :ivar adapters: adapters to update, in the order in which they begin, as numbered in the caches. After an earlier
        rollout under a new name, that is the number of its new version.
    :ivar names: the same adapters as numbered in the traffic.
    :ivar new_adapters: numbers of new versions that have names of their own; otherwise empty.
    :ivar versions: version that each becomes; the first is 1.
    :ivar which: the hottest adapters, in words, where the rollout takes these.
    """

    number: int
    rollout: Rollout
    adapters: tuple[int, ...]
    names: tuple[int, ...]
    new_adapters: tuple[int, ...]
    versions: tuple[int, ...]
    which: str = ""


@dataclass(frozen=True, slots=True)
class RolloutPlan:
    """All rollouts of a scenario.

    :ivar rollouts: in order of time.
    :ivar original: (n,) by number in the caches, the number in the traffic; empty without rollouts, where they agree.
    :ivar initial_versions: by number in the caches, the version at the start, if it is not 1.
    """

    rollouts: tuple[PlannedRollout, ...]
    original: NDArray[np.int64]
    initial_versions: dict[int, int]

    def extended(self, mask: NDArray[np.bool_]) -> NDArray[np.bool_]:
        """Return a mask with an entry for every new version that has a name of its own: that of its adapter.

        :param mask: (adapters + 1,) by adapter as numbered in the traffic, and last for the base model.
        """
        return np.append(mask[self.original], mask[-1]) if self.rollouts else mask

    def only(self, taken: NDArray[np.bool_]) -> RolloutPlan:
        """Return the plan with only the rollouts that concern some of these adapters.

        :param taken: by adapter as numbered in the traffic.
        """
        return replace(self, rollouts=tuple(each for each in self.rollouts if taken[list(each.names)].any()))

    def slot_bytes(self, adapters: Adapters, base_model: str | ModelShape) -> int:
        """Return the bytes of a slot that is padded to the largest adapter, new versions included."""
        found = populate(adapters, base_model, 0).slot_bytes
        for rollout in (planned.rollout for planned in self.rollouts):
            if rollout.rank:
                found = max(found, populate(_of_rank(adapters, rollout.rank), base_model, 0).slot_bytes)
            found = max(found, rollout.size or 0)
        return found


NO_ROLLOUTS = RolloutPlan((), np.arange(0), {})
"""The plan of a scenario without rollouts."""


def plan_rollouts(scenario: Scenario, traffic: Traffic) -> RolloutPlan:
    """Decide which adapters each rollout updates.

    :raises ScenarioError: for an unknown adapter, or one with two rollouts at the same time.
    """
    if not scenario.rollouts:
        return NO_ROLLOUTS
    present = traffic.places  # adapters that arrive by churn have their final version
    chosen = _choose(scenario, traffic, present)
    _check_overlaps(scenario.rollouts, chosen, traffic.names)
    count = len(traffic.population)
    current = np.arange(count)
    version = np.ones(count, dtype=np.int64)
    gated: dict[int, int] = {}
    original, planned_rollouts = list(range(count)), []
    initial_versions: dict[int, int] = {}
    for number in sorted(range(len(chosen)), key=lambda i: (scenario.rollouts[i].at, i)):
        rollout, names = scenario.rollouts[number], chosen[number]
        again = next((name for name in names if name in gated), None)
        if again is not None:
            raise ScenarioError(
                "an earlier rollout of the same adapter has a gate, and may have been rolled back",
                key=f"rollouts.{number}",
                got=f"after rollouts.{gated[again]}",
                hint="remove its gate, or this rollout",
            )
        old = tuple(int(current[name]) for name in names)
        version[list(names)] += 1
        new_adapters: tuple[int, ...] = ()
        if rollout.strategy == "new-name":
            new_adapters = tuple(range(len(original), len(original) + len(names)))
            original.extend(names)
            current[list(names)] = new_adapters
            initial_versions.update((copy, int(version[name])) for copy, name in zip(new_adapters, names, strict=True))
        if rollout.gate:
            gated.update((name, number) for name in names)
        versions, which = tuple(version[list(names)].tolist()), _which(names, traffic.names) if rollout.hottest else ""
        planned_rollouts.append(PlannedRollout(number, rollout, old, names, new_adapters, versions, which))
    return RolloutPlan(tuple(planned_rollouts), np.array(original, dtype=np.int64), initial_versions)


def _which(adapters: tuple[int, ...], names: Sequence[str]) -> str:
    """Return which adapters a rollout takes, in brackets: the first of them by name, else by number."""
    some = [printable(names[adapter] if names else str(adapter), 40) for adapter in adapters[:_MOST_NAMES]]
    more = len(adapters) - len(some)
    return f" (adapter{'' if len(adapters) == 1 else 's'} {', '.join(some)}{f' and {more} more' if more else ''})"


def with_new_versions(
    population: Population, rollout_plan: RolloutPlan, adapters: Adapters, base_model: str | ModelShape
) -> Population:
    """Return the population with an entry for every new version that has a name of its own."""
    if not rollout_plan.rollouts:
        return population
    picked = rollout_plan.original
    sizes, ranks = population.size_bytes[picked], population.rank[picked]
    tensors, slot_bytes = population.tensors[picked], population.slot_bytes
    for planned in rollout_plan.rollouts:
        new_adapters, rollout = list(planned.new_adapters), planned.rollout
        if rollout.rank:
            repopulated = populate(_of_rank(adapters, rollout.rank), base_model, len(population))
            sizes[new_adapters], ranks[new_adapters] = repopulated.size_bytes[picked[new_adapters]], rollout.rank
            slot_bytes = max(slot_bytes, repopulated.slot_bytes)
        if rollout.size:
            sizes[new_adapters] = rollout.size
            slot_bytes = max(slot_bytes, rollout.size)
    return replace(
        population, size_bytes=sizes, rank=ranks, tensors=tensors, kind=population.kind[picked], slot_bytes=slot_bytes
    )


def _of_rank(adapters: Adapters, rank: int) -> Adapters:
    mix = tuple(kind.model_copy(update={"rank": rank}) for kind in adapters.mix)
    return adapters.model_copy(update={"rank": rank, "mix": mix})


def _choose(scenario: Scenario, traffic: Traffic, present: int) -> list[tuple[int, ...]]:
    ranked: list[int] = []
    if any(rollout.drawn for rollout in scenario.rollouts):
        key = stream_key(scenario.run.seed, 0, "rollout-share")
        ranked = sorted(range(present), key=lambda adapter: uniform_draw(key, adapter))
    low = 0.0
    chosen: list[tuple[int, ...]] = []
    for number, rollout in enumerate(scenario.rollouts):
        if rollout.adapter is not None:
            chosen.append((_find(rollout.adapter, traffic, present, number),))
        elif rollout.hottest is not None:
            if rollout.hottest > present:
                raise ScenarioError(
                    "there are fewer adapters",
                    key=f"rollouts.{number}.hottest",
                    got=rollout.hottest,
                    allowed=f"up to {present}",
                )
            chosen.append(tuple(sorted(traffic.hottest()[: rollout.hottest].tolist())))
        elif rollout.count is not None:
            names = sorted(ranked[round(low * present) :][: rollout.count])
            if len(names) < rollout.count:
                raise ScenarioError(
                    "there are fewer adapters that no other rollout takes",
                    key=f"rollouts.{number}.count",
                    got=rollout.count,
                    allowed=f"up to {len(names)}" if names else "none is left",
                )
            chosen.append(tuple(names))
            low += rollout.count / present
        elif rollout.share is not None:
            high = low + rollout.share
            left = present - round(low * present)
            if round(high * present) > present:
                raise ScenarioError(
                    "there are fewer adapters that no other rollout takes",
                    key=f"rollouts.{number}.share",
                    got=f"{format_share(rollout.share)} of {present}",
                    allowed=f"up to {format_share(left / present)}" if left else "none is left",
                )
            # In the order of their numbers, so that with a spread popular adapters begin among the others.
            names = sorted(ranked[round(low * present) : round(high * present)])
            if not names:
                raise ScenarioError(
                    "this share is less than one adapter",
                    key=f"rollouts.{number}.share",
                    got=f"{rollout.share:.3g} of {present}",
                    allowed=f"at least {1 / present:.2%}",
                )
            chosen.append(tuple(names))
            low = high
        else:
            chosen.append(tuple(range(present)))
    return chosen


def _find(adapter: int | str, traffic: Traffic, present: int, number: int) -> int:
    names, problem, allowed, hint = traffic.names, "there is no such adapter", f"0 to {present - 1}", None
    if isinstance(adapter, int):
        if adapter < present:
            return adapter
        allowed += "" if present == len(traffic.population) else ", those that are there at the start"
    elif adapter in names:
        return names.index(adapter)
    elif names:
        allowed = ", ".join(names[:_MOST_NAMES]) + (", …" if len(names) > _MOST_NAMES else "")
        hint = did_you_mean(adapter, names)
    else:
        problem = "adapters have no names here"
    raise ScenarioError(problem, key=f"rollouts.{number}.adapter", got=adapter, allowed=allowed, hint=hint)


def _check_overlaps(rollouts: tuple[Rollout, ...], chosen: list[tuple[int, ...]], names: Sequence[str]) -> None:
    sets = [frozenset(each) for each in chosen]
    for i, mine in enumerate(sets):
        for j in range(i):
            if overlap(rollouts[i], rollouts[j]) and not mine.isdisjoint(sets[j]):
                both = sorted(mine & sets[j])
                subject = f"adapter {names[both[0]] if both[0] < len(names) else both[0]}"
                subject += f" and {len(both) - 1} more" if len(both) > 1 else ""
                problem, got, hint = overlap_words(i, j, rollouts, subject)
                raise ScenarioError(problem, key=f"rollouts.{i}", got=got, hint=hint)
