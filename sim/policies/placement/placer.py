"""What every placement policy is made from, what it decides, and what several of them share."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Protocol

Placement = dict[int, tuple[int, ...]]
"""By adapter, the replicas on which it is placed, ascending. An adapter that is placed nowhere is not in it."""

KEEP_WEIGHT = 2.0
"""How many times as popular as it is a placed adapter counts when places are short, so that noise moves none."""
DROP_BELOW = 0.8
"""A copy goes only when the demand is below this share of what would ask for it."""


@dataclass(frozen=True, slots=True)
class PlacerContext:
    """What a placement policy is made from.

    :ivar slots: adapters that are placed on one replica, at most.
    :ivar copies: replicas on which an adapter is placed, at least, as far as there is room.
    :ivar costs: by adapter, what one of its requests costs a replica, in any unit.
    :ivar ranks: by adapter.
    :ivar key: of its random numbers.
    :ivar tolerance: share by which the load of a replica may exceed the mean before adapters move for balance.
    """

    slots: int
    copies: int
    costs: Sequence[float]
    ranks: Sequence[int]
    key: int = 0
    tolerance: float = 0.1


@dataclass(frozen=True, slots=True)
class Demand:
    """What a decision is made from.

    :ivar requests: by adapter with any, its requests in the history; of another scale at the start.
    :ivar replicas: those that serve, ascending. At least one.
    """

    requests: dict[int, float]
    replicas: tuple[int, ...]


class Placer(Protocol):
    """Decide where adapters are placed."""

    def place(self, demand: Demand, current: Placement) -> Placement:
        """Return the next placement: on ``demand.replicas`` alone, and within the slots of each.

        :param current: what was decided last; empty at the start.
        """
        ...


def still_there(current: Placement, replicas: Sequence[int]) -> Placement:
    """Return a placement without the replicas that don't serve."""
    serving = set(replicas)
    kept = {a: tuple(r for r in homes if r in serving) for a, homes in current.items()}
    return {adapter: homes for adapter, homes in kept.items() if homes}


def loads_of(demand: Demand, context: PlacerContext) -> dict[int, float]:
    """Return by adapter with demand what its requests cost, the most first; of equal ones the lowest number first."""
    loads = {a: count * context.costs[a] for a, count in demand.requests.items() if count > 0}
    return dict(sorted(loads.items(), key=lambda item: (-item[1], item[0])))


def wanted_copies(loads: dict[int, float], replicas: int, context: PlacerContext, current: Placement) -> dict[int, int]:
    """Return by adapter on how many replicas it should be, within the slots of the fleet.

    An adapter whose load is more than a replica's fair share of the whole gets a copy for every such share. If slots
    are short, every adapter gets its first copy before any gets a second one, the hottest first.

    :param loads: by adapter, the most first.
    """
    fair = sum(loads.values()) / replicas
    wanted = {}
    for adapter, load in loads.items():
        here = len(current.get(adapter, ()))
        asked, kept = int(-(-load // fair)), int(-(-load // (DROP_BELOW * fair)))
        copies = asked if asked >= here else min(here, kept)
        wanted[adapter] = min(replicas, max(context.copies, copies))
    free = replicas * context.slots
    if sum(wanted.values()) <= free:
        return wanted
    found = dict.fromkeys(loads, 0)
    first = sorted(loads, key=lambda adapter: (-loads[adapter] * (KEEP_WEIGHT if adapter in current else 1.0), adapter))
    for number in range(replicas):
        for adapter in first:
            if free and wanted[adapter] > number:
                found[adapter] += 1
                free -= 1
    return {adapter: copies for adapter, copies in found.items() if copies}


class PlacementDraft:
    """A placement in the making: what it should become, the adapters on each replica so far, and their load.

    :param last: what was decided last; empty at the start.
    :ivar current: the last placement, without the replicas that don't serve.
    :ivar loads: by adapter with demand, what its requests cost, the most first; ``wanted``: its copies.
    :ivar among: the replicas that are being filled; see ``restrict``.
    :ivar on: by replica, its adapters; ``each``: by adapter, the load of a copy.
    :ivar load: by replica that is being filled, its load.
    """

    def __init__(self, demand: Demand, last: Placement, context: PlacerContext) -> None:
        self._replicas = demand.replicas
        self._slots = context.slots
        self.current = still_there(last, demand.replicas)
        self.loads = loads_of(demand, context)
        self.wanted = wanted_copies(self.loads, len(demand.replicas), context, self.current)
        self.on: dict[int, set[int]] = {replica: set() for replica in demand.replicas}
        self.each = {adapter: self.loads[adapter] / copies for adapter, copies in self.wanted.items()}
        self.among = demand.replicas
        self.load = dict.fromkeys(demand.replicas, 0.0)

    def restrict(self, share: dict[int, float]) -> None:
        """Fill these replicas from now on, which have this load by others; empty: all, with the load that is there."""
        self.among = tuple(share) or self._replicas
        self.load = share or {r: sum(self.each[adapter] for adapter in sorted(self.on[r])) for r in self._replicas}

    def copies(self, adapter: int) -> int:
        """Return on how many replicas an adapter is."""
        return sum(adapter in on for on in self.on.values())

    def has_free_slot(self, replica: int) -> bool:
        """Return whether a replica has a free slot."""
        return len(self.on[replica]) < self._slots

    def add(self, adapter: int, replica: int) -> None:
        """Place an adapter."""
        self.on[replica].add(adapter)
        self.load[replica] += self.each[adapter]

    def remove(self, adapter: int, replica: int) -> None:
        """Take an adapter away."""
        self.on[replica].remove(adapter)
        self.load[replica] -= self.each[adapter]

    def least_loaded(self, among: Iterable[int]) -> int:
        """Return the replica with the least load, of equal ones that with the fewest adapters, then the first."""
        return min(among, key=lambda replica: (self.load[replica], len(self.on[replica]), replica))

    def finished(self) -> Placement:
        """Return the placement. Adapters without demand stay where slots are free: that costs nothing."""
        for adapter, homes in self.current.items():
            if adapter not in self.each:
                for replica in homes:
                    if self.has_free_slot(replica):
                        self.on[replica].add(adapter)
        found: dict[int, list[int]] = {}
        for replica in self._replicas:
            for adapter in self.on[replica]:
                found.setdefault(adapter, []).append(replica)
        return {adapter: tuple(found[adapter]) for adapter in sorted(found)}
