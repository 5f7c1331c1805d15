"""The copies that demand asks for, with the fewest loads: a minimum-cost flow."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from sim.policies.placement.by_popularity import ByPopularity
from sim.policies.placement.placer import Demand, Placement, PlacementDraft, PlacerContext
from sim.rng import uniform_draw

Floats = NDArray[np.float64]

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
        flow = _solve(edges, self._costs(draft, edges), wanted, self._context.slots)
        return [edge for edge, used in zip(edges, flow.tolist(), strict=True) if used > 0.5]

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


def _solve(edges: list[Edge], costs: Floats, wanted: dict[int, int], slots: int) -> Floats:
    """Return the flow on each edge, 0 or 1.

    The simplex method ends at a corner, and corners of a flow with whole capacities are whole.
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
        np.append(costs, np.full(count, NOWHERE)),
        A_ub=comes,
        b_ub=np.full(len(replicas), float(slots)),
        A_eq=leaves,
        b_eq=copies,
        bounds=np.column_stack([np.zeros(columns), np.append(ones, copies)]),
        method="highs-ds",
    )
    assert found.status == 0, f"what finds no place goes nowhere, so there is always a flow: {found.message}"
    return np.asarray(found.x[: len(edges)], dtype=np.float64)
