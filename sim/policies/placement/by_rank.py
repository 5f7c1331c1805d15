"""Adapters of like rank together, with the same predicted load for each replica."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from math import ceil, floor

from sim.policies.placement.by_popularity import add_copy, spread
from sim.policies.placement.placer import Demand, Placement, PlacementDraft, PlacerContext


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
