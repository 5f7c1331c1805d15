"""Adapters of like rank together, with the same predicted load for each replica."""

from __future__ import annotations

from collections import Counter

import numpy as np

from sim.policies.placement.placer import STAYS, Demand, Placement, PlacerContext, Rooms, loads_of, still_there
from sim.rng import uniform_draw


class ByRank:
    """Put adapters in a row by rank, and cut the row into equal loads, one for each replica.

    After LoRAServe (Jaiswal et al., "Serving Heterogeneous LoRA Adapters in Distributed LLM Inference Systems",
    arXiv:2511.22880). An adapter that a cut goes through is placed on both sides. Parts of the row then go to the
    replicas that already have most of them. Adapters of one rank are in random order, so that hot and cold ones mix,
    and stay in their part: cuts, and not whole parts, move with the demand.
    """

    def __init__(self, context: PlacerContext) -> None:
        self._context = context
        self._row: dict[int, int] = {}  # by replica, its part of the last row

    def place(self, demand: Demand, current: Placement) -> Placement:
        current = still_there(current, demand.replicas)
        loads = loads_of(demand, self._context)
        if not loads:
            return current
        parts = self._cut(self._in_a_row(loads, len(demand.replicas), current), loads, len(demand.replicas))
        self._row = _matched(parts, demand.replicas, current)
        copies = Counter(adapter for part in parts for adapter in part)
        rooms = Rooms(demand.replicas, self._context.slots, loads, copies)
        for replica, part in self._row.items():
            for adapter in parts[part]:
                rooms.add(adapter, replica)
        rooms.keep_without_demand(current)
        return rooms.placement()

    def _in_a_row(self, loads: dict[int, float], replicas: int, current: Placement) -> list[int]:
        """Return the adapters to place, the highest rank first; a place for each cut stays free."""
        room = max(1, replicas * self._context.slots - (replicas - 1))
        hot = sorted(loads, key=lambda a: (-loads[a] * (STAYS if a in current else 1.0), a))[:room]
        row = {a: min(self._row.get(r, replicas) for r in current.get(a, (-1,))) for a in hot}
        context = self._context
        return sorted(hot, key=lambda a: (-context.ranks[a], row[a], uniform_draw(context.key, a)))

    def _cut(self, row: list[int], loads: dict[int, float], replicas: int) -> list[list[int]]:
        """Return the adapters of each part."""
        slots, copies = self._context.slots, min(self._context.copies, replicas)
        fair = sum(loads[adapter] for adapter in row) / replicas
        parts: list[list[int]] = [[] for _ in range(replicas)]
        part, full, left = 0, 0.0, len(row)
        for adapter in row:
            rest = loads[adapter]
            while True:
                most_behind = slots * (replicas - part - 1)  # adapters that the parts behind this one can take
                if len(parts[part]) == slots or (full >= fair * (1 - 1e-9) and left <= most_behind):
                    part, full = min(part + 1, replicas - 1), 0.0
                    continue
                break
            left -= 1
            parts[part].append(adapter)
            while full + rest > fair * (1 + 1e-9) and part + 1 < replicas and left <= slots * (replicas - part - 1) - 1:
                rest -= fair - full
                part, full = part + 1, 0.0
                parts[part].append(adapter)
            full += rest
        for adapter in sorted(row, key=lambda adapter: (-loads[adapter], adapter)) if copies > 1 else ():
            lacking = copies - sum(adapter in part for part in parts)
            for each in sorted((p for p in parts if adapter not in p and len(p) < slots), key=len)[: max(0, lacking)]:
                each.append(adapter)
        return parts


def _matched(parts: list[list[int]], replicas: tuple[int, ...], current: Placement) -> dict[int, int]:
    """Return the part of each replica, such that as many adapters as possible stay where they are."""
    from scipy.optimize import linear_sum_assignment

    index = {replica: i for i, replica in enumerate(replicas)}
    stay = np.zeros((len(parts), len(replicas)))
    for i, part in enumerate(parts):
        for adapter in part:
            for replica in current.get(adapter, ()):
                stay[i, index[replica]] += 1
    rows, columns = linear_sum_assignment(-stay)
    return {replicas[int(column)]: int(row) for row, column in zip(rows, columns, strict=True)}
