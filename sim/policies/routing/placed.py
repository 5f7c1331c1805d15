"""Routers that send a request where its adapter was placed, before the run or by a controller."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Collection, Sequence
from functools import partial
from heapq import heapify, heappop, heappush, nsmallest
from itertools import chain, islice
from typing import ClassVar

from sim.policies.routing.gateways import fullest_with_room
from sim.policies.routing.router_policy import RouterContext, is_up
from sim.rng import UniformDraws, uniform_draw
from sim.spec.policies import PLACEMENTS

# Where adapters are placed before anything runs, for routers with a service per adapter.

Homes = tuple[int, ...]
"""The replicas on which an adapter is placed, ascending."""


def least_adapters(context: RouterContext) -> list[Homes]:
    """Place every adapter on the replicas with the fewest so far, the first of equal ones.

    One adapter after the other, as AIBrix places them when they are created (``leastAdapters`` in
    ``pkg/controller/modeladapter/scheduling``). All replicas begin empty, so this goes round.
    """
    replicas, copies = context.replicas, context.copies
    turns = [tuple(sorted((first + i) % replicas for i in range(copies))) for first in range(replicas)]
    return [turns[adapter * copies % replicas] for adapter in range(context.adapters)]


def in_turn(context: RouterContext) -> list[Homes]:
    """Place one adapter after the other by the placement's ``rule_of``."""
    rule, counts = rule_of(context), [0] * context.replicas
    known: dict[Homes, Homes] = {}  # one tuple for all adapters that share their homes
    placed = []
    for _ in range(context.adapters):
        homes = rule(counts, context.copies, range(context.replicas))
        for replica in homes:
            counts[replica] += 1
        placed.append(known.setdefault(homes, homes))
    return placed


def by_popularity(context: RouterContext) -> list[Homes]:
    """Place the hottest adapters first, each on the replicas with the least expected traffic so far.

    An adapter with more than one replica's fair share of the traffic gets as many copies as shares, so that no replica
    must carry more than such a share for one adapter.
    """
    replicas = context.replicas
    weights = [1.0] * context.adapters if context.weights is None else context.weights
    total = math.fsum(weights) or 1.0
    heap = [(0.0, replica) for replica in range(replicas)]
    heapify(heap)
    known: dict[Homes, Homes] = {}
    placed: list[Homes] = [()] * context.adapters
    for adapter in sorted(range(context.adapters), key=lambda adapter: -weights[adapter]):
        shares = replicas * weights[adapter] / total
        copies = min(replicas, max(context.copies, math.ceil(shares - 1e-9)))  # rounding makes no second copy
        taken = [heappop(heap) for _ in range(copies)]
        for load, replica in taken:
            heappush(heap, (load + shares / copies, replica))
        homes = tuple(sorted(replica for _, replica in taken))
        placed[adapter] = known.setdefault(homes, homes)
    return placed


Rule = Callable[[Sequence[int], int, Collection[int]], Homes]
"""Given the adapters on every replica, choose so many of some replicas for one more; all where there are fewer."""


def rule_of(context: RouterContext) -> Rule:
    """Return where a placement puts one more adapter whose popularity is not known."""
    if context.placement == "bin-pack":
        return partial(with_room, context.view.slots)
    return fullest if context.placement == "aibrix-bin-pack" else fewest


def fewest(counts: Sequence[int], copies: int, among: Collection[int]) -> Homes:
    """Choose the replicas with the fewest adapters, the first of equal ones."""
    if copies == 1 and len(among) == len(counts):
        return (counts.index(min(counts)),)
    if copies == 1:
        return (min(among, key=counts.__getitem__),)
    return tuple(sorted(nsmallest(copies, among, key=counts.__getitem__)))


def with_room(slots: int, counts: Sequence[int], copies: int, among: Collection[int]) -> Homes:
    """Choose the first replicas with a free slot, and where there are too few those with the fewest adapters."""
    homes = tuple(islice((replica for replica in among if counts[replica] < slots), copies))
    if len(homes) < min(copies, len(among)):
        others = [replica for replica in among if replica not in homes]
        homes = tuple(sorted(homes + fewest(counts, copies - len(homes), others)))
    return homes


def fullest(counts: Sequence[int], copies: int, among: Collection[int]) -> Homes:
    """Choose as AIBrix's ``binPack``, which knows no slots; where it places nothing, those with the fewest adapters."""
    others = list(among)
    for _ in range(min(copies, len(others))):
        place = fullest_with_room([counts[replica] for replica in others])
        others.remove(others[place] if place >= 0 else fewest(counts, 1, others)[0])
    return tuple(replica for replica in among if replica not in others)


class ServicePerAdapter:
    """One of the adapter's own replicas, at random, whatever their load.

    AIBrix makes a Kubernetes service for every adapter and places adapters on pods itself. An adapter that was not
    there at the start is placed at its first request. One whose replicas are all down is placed once more among those
    that are up, and goes back when one of its own is up again. The service of the base model has all pods, so its
    requests go to any replica.
    """

    reads: ClassVar[frozenset[str]] = frozenset()

    def __init__(self, context: RouterContext) -> None:
        self._context = context
        self._view = context.view
        self._replicas = context.replicas
        self._draws = UniformDraws(context.key)
        self._rule = rule_of(context)
        self._homes: list[Homes] = PLACEMENTS[context.placement].load()(context)
        self._late: dict[int, Homes] = {}
        self._moved: dict[int, int] = {}  # adapters whose own replicas are all down, and where they are now
        placed = Counter(chain.from_iterable(self._homes))
        self._counts = [placed[replica] for replica in range(context.replicas)]

    def choose(self, adapter: int, number: int) -> int:
        up = self._view.up
        if adapter == self._context.base_model:
            return up[int(self._draws.of(number) * len(up))]
        homes = self.homes(adapter)
        if len(up) < self._replicas:
            homes = tuple(replica for replica in homes if is_up(replica, up))
            if not homes:
                return self._elsewhere(adapter, up)
        if self._moved:
            self._back(adapter)
        return homes[int(self._draws.of(number) * len(homes))] if len(homes) > 1 else homes[0]

    def homes(self, adapter: int) -> Homes:
        """Return the replicas on which an adapter is placed, up or down; one that is new is placed now."""
        if adapter < len(self._homes):
            return self._homes[adapter]
        homes = self._late.get(adapter)
        if homes is None:
            homes = self._late[adapter] = self._place(self._view.up)
        return homes

    def _place(self, up: list[int]) -> Homes:
        homes = self._rule(self._counts, self._context.copies, up)
        for replica in homes:
            self._counts[replica] += 1
        return homes

    def _elsewhere(self, adapter: int, up: list[int]) -> int:
        moved = self._moved.get(adapter)
        if moved is None or not is_up(moved, up):
            self._back(adapter)
            moved = self._moved[adapter] = self._rule(self._counts, 1, up)[0]
            self._counts[moved] += 1
        return moved

    def _back(self, adapter: int) -> None:
        moved = self._moved.pop(adapter, None)
        if moved is not None:
            self._counts[moved] -= 1


NOWHERE: tuple[int, ...] = ()


class Placed:
    """The least loaded of the replicas on which the adapter is placed and that are up; of equal ones one at random.

    An adapter that is placed nowhere, or whose replicas are all down, has one replica of its own by rendezvous hashing
    (Thaler and Ravishankar, IEEE/ACM ToN 1998), as Dynamo pins adapters without demand. A request to the base model
    goes to the least loaded replica.

    :ivar asked: by adapter, requests since the controller last read and emptied it.
    :ivar homes: by adapter, the replicas on which it is placed. The controller changes it.
    """

    reads: ClassVar[frozenset[str]] = frozenset({"loads"})

    def __init__(self, context: RouterContext) -> None:
        self._view = context.view
        self._replicas = context.replicas
        self._key = context.key
        self._draws = UniformDraws(context.key)
        self._base_model = context.base_model
        self._pins: dict[int, list[int]] = {}
        self.asked: dict[int, int] = {}
        self.homes: dict[int, tuple[int, ...]] = context.homes or {}

    def choose(self, adapter: int, number: int) -> int:
        up = self._view.up
        if adapter == self._base_model:
            return self._least_loaded(up, number)
        self.asked[adapter] = self.asked.get(adapter, 0) + 1
        homes = self.homes.get(adapter, NOWHERE)
        if len(homes) == 1 and len(up) == self._replicas:
            return homes[0]
        there = homes if len(up) == self._replicas else [replica for replica in homes if is_up(replica, up)]
        if there:
            return self._least_loaded(there, number)
        return next(replica for replica in self._order(adapter) if is_up(replica, up))

    def all_homes(self, adapter: int) -> tuple[int, ...]:
        """Return the replicas that get an adapter's requests while all are up."""
        return self.homes.get(adapter, NOWHERE) or (self._order(adapter)[0],)

    def _least_loaded(self, among: list[int] | tuple[int, ...], number: int) -> int:
        loads = self._view.loads
        least = min([loads[replica] for replica in among])
        equal = [replica for replica in among if loads[replica] == least]
        return equal[int(self._draws.of(number) * len(equal))] if len(equal) > 1 else equal[0]

    def _order(self, adapter: int) -> list[int]:
        """Return all replicas by their weight for an adapter."""
        order = self._pins.get(adapter)
        if order is None:
            weights = [uniform_draw(self._key, ~(adapter << 16 | replica)) for replica in range(self._replicas)]
            order = self._pins[adapter] = sorted(range(self._replicas), key=weights.__getitem__)
        return order
