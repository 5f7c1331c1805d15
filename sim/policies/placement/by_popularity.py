"""Copies in proportion to demand, moved only where the load is uneven."""

from __future__ import annotations

from sim.policies.placement.placer import Demand, Placement, PlacementDraft, PlacerContext


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
