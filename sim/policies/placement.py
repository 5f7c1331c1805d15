"""Which adapters live on which replicas: pure decisions from demand and what is placed now.

A policy is a class in here and a row in ``sim/spec/policies.toml``. What counts the demand, and moves
adapters, is in ``sim.world.routing.placement_controller``.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from math import ceil, floor
from typing import Protocol

import numpy as np

from sim.arrays import Floats
from sim.rng import uniform_draw
from sim.spec.policies import PLACERS

# What every placement policy is made from, what it decides, and what several of them share.

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
    :ivar loaded: by adapter, a bit mask of the replicas that have it in GPU memory; empty where it is not known.
    """

    requests: dict[int, float]
    replicas: tuple[int, ...]
    loaded: Sequence[int] = ()


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


class ByPopularity:
    """Keep adapters where they are, add and drop copies by demand, then even out the load.

    A copy that is missing goes to the least loaded replica with a free slot; a copy too many leaves the most loaded
    one. Then adapters move from the most to the least loaded replica, one at a time, until no replica has more than the
    mean load and the tolerance.
    """

    def __init__(self, context: PlacerContext) -> None:
        self._context = context

    def place(self, demand: Demand, current: Placement) -> Placement:
        draft = PlacementDraft(demand, current, self._context)
        spread(draft, draft.wanted, self._context.tolerance)
        return draft.finished()


def spread(draft: PlacementDraft, wanted: dict[int, int], tolerance: float) -> None:
    """Place copies of adapters on the replicas of ``draft.among``, as evenly as the tolerance asks for.

    :param wanted: copies of each of them, the hottest first.
    """
    for adapter in wanted:
        for replica in draft.current.get(adapter, ()):
            if replica in draft.among and draft.has_free_slot(replica):
                draft.add(adapter, replica)
    for adapter, copies in wanted.items():
        for _ in range(draft.copies(adapter) - copies):
            homes = [replica for replica in draft.among if adapter in draft.on[replica]]
            draft.remove(adapter, max(homes, key=lambda replica: (draft.load[replica], replica)))
    for adapter, copies in wanted.items():
        for _ in range(copies - draft.copies(adapter)):
            add_copy(draft, adapter)
    _even_out(draft, wanted, (1 + tolerance) * sum(draft.load[replica] for replica in draft.among) / len(draft.among))


def add_copy(draft: PlacementDraft, adapter: int) -> None:
    """Place one more copy, if there is a slot for it; where the only free slots are on replicas that have the adapter,
    another one makes room."""
    others = [replica for replica in draft.among if adapter not in draft.on[replica]]
    free = [replica for replica in others if draft.has_free_slot(replica)]
    if free:
        draft.add(adapter, draft.least_loaded(free))
        return
    for replica in sorted(others, key=lambda replica: (draft.load[replica], replica)):
        for empty in draft.among:
            movable = sorted(draft.on[replica] - draft.on[empty], key=lambda a: (draft.each[a], a))
            if draft.has_free_slot(empty) and movable:
                draft.remove(movable[0], replica)
                draft.add(movable[0], empty)
                draft.add(adapter, replica)
                return


def _even_out(draft: PlacementDraft, own: dict[int, int], enough: float) -> None:
    """Move adapters, or exchange two, from the most to the least loaded replica as long as that helps.

    :param own: adapters that may move.
    :param enough: load up to which no replica loses adapters.
    """
    for _ in range(sum(len(draft.on[replica]) for replica in draft.among)):
        busiest = max(draft.among, key=lambda replica: (draft.load[replica], -replica))
        idlest = draft.least_loaded(draft.among)
        if draft.load[busiest] <= enough:
            return
        moved = _best_move(draft, own, busiest, idlest)
        if moved is None:
            return
        there, back = moved
        draft.remove(there, busiest)
        if back is not None:
            draft.remove(back, idlest)
            draft.add(back, busiest)
        draft.add(there, idlest)


def _best_move(draft: PlacementDraft, own: dict[int, int], busiest: int, idlest: int) -> tuple[int, int | None] | None:
    """Return the adapter to move, and the one that comes back where no slot is free; None: nothing helps.

    The best halves the gap between the two.
    """
    gap = draft.load[busiest] - draft.load[idlest]
    back: int | None = None
    if not draft.has_free_slot(idlest):
        backs = (draft.on[idlest] - draft.on[busiest]) & own.keys()
        if not backs:
            return None
        back = min(backs, key=lambda adapter: (draft.each[adapter], adapter))
    lost = 0.0 if back is None else draft.each[back]
    movable = (draft.on[busiest] - draft.on[idlest]) & own.keys()
    helping = [adapter for adapter in movable if 0 < draft.each[adapter] - lost < gap * (1 - 1e-9)]
    if not helping:
        return None
    return min(helping, key=lambda adapter: (abs(draft.each[adapter] - lost - gap / 2), adapter)), back


class ByRank:
    """Give each rank replicas in proportion to the load of its adapters, and place these there as ``popularity`` does.

    After LoRAServe (Jaiswal et al., "Serving Heterogeneous LoRA Adapters in Distributed LLM Inference Systems",
    arXiv:2511.22880). The load of an adapter is its demand times what a request of its rank costs. Ranks come in
    order, the highest first, so two neighbours share at most one replica. Where a rank has more adapters than slots on
    its replicas, the rest goes to others.
    """

    def __init__(self, context: PlacerContext) -> None:
        self._context = context

    def place(self, demand: Demand, current: Placement) -> Placement:
        draft = PlacementDraft(demand, current, self._context)
        for own, share in self._shares(draft, demand.replicas):
            draft.restrict(share)
            spread(draft, own, self._context.tolerance)
        draft.restrict({})
        for adapter, copies in draft.wanted.items():
            for _ in range(copies - draft.copies(adapter)):
                add_copy(draft, adapter)
        return draft.finished()

    def _shares(
        self, draft: PlacementDraft, replicas: Sequence[int]
    ) -> Iterator[tuple[dict[int, int], dict[int, float]]]:
        """Yield by rank the wanted copies, and the replicas of the rank with the load that others have there."""
        ranks, wanted, loads = self._context.ranks, draft.wanted, draft.loads
        fair = sum(loads[adapter] for adapter in wanted) / len(replicas)
        begin = 0.0  # in replicas
        for rank in sorted({ranks[adapter] for adapter in wanted}, reverse=True):
            own = {adapter: copies for adapter, copies in wanted.items() if ranks[adapter] == rank}
            end = min(float(len(replicas)), begin + sum(loads[adapter] for adapter in own) / fair)
            first = min(floor(begin + 1e-9), len(replicas) - 1)
            last = max(first + 1, ceil(end - 1e-9))
            share = {}
            for place in range(first, last):
                share[replicas[place]] = fair * (1.0 - max(0.0, min(end, place + 1.0) - max(begin, float(place))))
            yield own, share
            begin = end


# The copies that demand asks for, with the fewest loads: a minimum-cost flow.

NOWHERE = 1000.0
"""Cost of a copy that is not placed, in loads."""
CANDIDATES = 16
"""Replicas that an adapter may newly come to, besides those that have it; as in Dynamo (``candidate_m``)."""

Edge = tuple[int, int]
"""An adapter, and a replica on which it may be placed."""


class MinCostFlow:
    """Send the wanted copies of each adapter to replicas: staying is free, coming costs a load, slots bound a replica.

    After the placement solver of NVIDIA Dynamo (``lib/llm/src/lora/routing/mcf_allocator.rs``). No other placement of
    these copies needs fewer loads. Among those with as few, hot adapters come to replicas with less load; nothing moves
    for that alone. The first placement is that of ``popularity``, since there is nothing to keep.
    """

    def __init__(self, context: PlacerContext) -> None:
        self._context = context
        self._first = ByPopularity(context)

    def place(self, demand: Demand, current: Placement) -> Placement:
        draft = PlacementDraft(demand, current, self._context)
        if not draft.current:
            return self._first.place(demand, current)
        edges = self._flow(draft, CANDIDATES)
        if len(edges) < sum(draft.wanted.values()) and len(demand.replicas) > CANDIDATES:
            edges = self._flow(draft, len(demand.replicas))
        for adapter, replica in edges:
            draft.add(adapter, replica)
        return draft.finished()

    def _flow(self, draft: PlacementDraft, candidates: int) -> list[Edge]:
        """Return the adapters and replicas with a flow between them.

        :param candidates: replicas to which an adapter may come, at most.
        """
        wanted = draft.wanted
        edges: list[Edge] = []
        for adapter in wanted:
            here = draft.current.get(adapter, ())
            others = [replica for replica in draft.among if replica not in here]
            if len(others) > candidates:
                others = sorted(others, key=lambda replica: self._preference(adapter, replica))[:candidates]
            edges += [(adapter, replica) for replica in sorted((*here, *others))]
        if not edges:
            return []
        room = dict.fromkeys(draft.among, self._context.slots)
        return cheapest_flow(edges, self._costs(draft, edges), wanted, room, NOWHERE)

    def _preference(self, adapter: int, replica: int) -> float:
        return uniform_draw(self._context.key, adapter << 16 | replica)

    def _costs(self, draft: PlacementDraft, edges: list[Edge]) -> Floats:
        """Return the cost of each edge in loads. What is no load adds up to less than one over all copies."""
        current, wanted = draft.current, draft.wanted
        load = dict.fromkeys(draft.among, 0.0)
        for adapter, replica in edges:
            if replica in current.get(adapter, ()):
                load[replica] += draft.each[adapter]
        most = max(load.values()) or 1.0
        total, copies = sum(draft.each[a] * number for a, number in wanted.items()), sum(wanted.values())
        found = np.zeros(len(edges))
        for i, (adapter, replica) in enumerate(edges):
            comes = replica not in current.get(adapter, ())
            uneven = 0.5 * draft.each[adapter] / total * load[replica] / most
            found[i] = comes + uneven + 0.4 / copies * self._preference(adapter, replica)
        return found


def cheapest_flow(
    edges: list[Edge], costs: Floats, wanted: Mapping[int, int], room: Mapping[int, int], nowhere: float
) -> list[Edge]:
    """Return the edges that are used by the cheapest flow, which sends the wanted copies of adapters to replicas.

    The simplex method ends at a corner, and corners of a flow with whole capacities are whole.

    :param room: by replica, how many adapters it takes; ``nowhere``: cost of a copy that is not placed.
    """
    from scipy.optimize import linprog
    from scipy.sparse import csr_array

    row = {adapter: i for i, adapter in enumerate(wanted)}
    replicas = {replica: i for i, replica in enumerate(sorted({replica for _, replica in edges}))}
    count, columns = len(row), len(edges) + len(row)  # the last columns: copies that go nowhere
    of_edge, ones = np.arange(len(edges)), np.ones(len(edges))
    adapters = [*(row[adapter] for adapter, _ in edges), *range(count)]
    leaves = csr_array((np.ones(columns), (adapters, np.arange(columns))), shape=(count, columns))
    comes = csr_array((ones, ([replicas[replica] for _, replica in edges], of_edge)), shape=(len(replicas), columns))
    copies = np.array(list(wanted.values()), dtype=np.float64)
    found = linprog(  # type: ignore[call-overload]  # its stubs know no sparse matrices
        np.append(costs, np.full(count, nowhere)),
        A_ub=comes,
        b_ub=np.array([float(room[replica]) for replica in replicas]),
        A_eq=leaves,
        b_eq=copies,
        bounds=np.column_stack([np.zeros(columns), np.append(ones, copies)]),
        method="highs-ds",
    )
    assert found.status == 0, f"what finds no place goes nowhere, so there is always a flow: {found.message}"
    return [edge for edge, used in zip(edges, found.x[: len(edges)].tolist(), strict=True) if used > 0.5]


def make_placer(policy: str, context: PlacerContext) -> Placer:
    """Return a policy of the placement controller, by its name in ``PLACERS``."""
    placer: Placer = PLACERS[policy].load()(context)
    return placer


__all__ = ["Demand", "Placement", "Placer", "PlacerContext", "make_placer"]
