"""Where adapters are placed before anything runs, for routers with a service per adapter."""

from __future__ import annotations

import math
from collections.abc import Collection, Sequence
from heapq import heapify, heappop, heappush, nsmallest
from itertools import islice

from sim.policies.routing.router_policy import RouterContext

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


def bin_pack(context: RouterContext) -> list[Homes]:
    """Fill the slots of a replica before those of the next one; beyond all slots, place on those with the fewest."""
    replicas, slots, copies = range(context.replicas), context.view.slots, context.copies
    counts = [0] * context.replicas
    free = slots * context.replicas
    known: dict[Homes, Homes] = {}  # one tuple for all adapters that share their homes
    placed = []
    for _ in range(context.adapters):
        homes = with_room(counts, slots, copies, replicas) if free > 0 else fewest(counts, copies, replicas)
        for replica in homes:
            free -= counts[replica] < slots
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


def fewest(counts: Sequence[int], copies: int, among: Collection[int]) -> Homes:
    """Return the replicas with the fewest adapters, the first of equal ones; all of them where copies are more."""
    if copies == 1 and len(among) == len(counts):
        return (counts.index(min(counts)),)
    if copies == 1:
        return (min(among, key=counts.__getitem__),)
    return tuple(sorted(nsmallest(copies, among, key=counts.__getitem__)))


def with_room(counts: Sequence[int], slots: int, copies: int, among: Collection[int]) -> Homes:
    """Return the first replicas of ``among`` with a free slot, and where there are too few those with the fewest."""
    homes = tuple(islice((replica for replica in among if counts[replica] < slots), copies))
    if len(homes) < min(copies, len(among)):
        others = [replica for replica in among if replica not in homes]
        homes = tuple(sorted(homes + fewest(counts, copies - len(homes), others)))
    return homes
