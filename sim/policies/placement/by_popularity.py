"""Copies in proportion to demand, moved only where the load is uneven."""

from __future__ import annotations

from sim.policies.placement.placer import (
    Demand,
    Placement,
    PlacerContext,
    Rooms,
    loads_of,
    still_there,
    wanted_copies,
)


class ByPopularity:
    """Keep adapters where they are, add and drop copies by demand, then even out the load.

    A copy that is missing goes to the least loaded replica with a free slot; a copy too many leaves the most loaded
    one. Then adapters move from the most to the least loaded replica, one at a time, until no replica has more than the
    mean load and the tolerance.
    """

    def __init__(self, context: PlacerContext) -> None:
        self._context = context

    def place(self, demand: Demand, current: Placement) -> Placement:
        context, current = self._context, still_there(current, demand.replicas)
        loads = loads_of(demand, context)
        if not loads:
            return current
        wanted = wanted_copies(loads, len(demand.replicas), context, current)
        rooms = Rooms(demand.replicas, context.slots, loads, wanted)
        spread(rooms, wanted, current, context.tolerance)
        rooms.keep_without_demand(current)
        return rooms.placement()


def spread(rooms: Rooms, wanted: dict[int, int], current: Placement, tolerance: float) -> None:
    """Place copies of adapters on the replicas of ``rooms.among``, as evenly as the tolerance asks for.

    :param wanted: copies of each of them, the hottest first.
    """
    for adapter in wanted:
        for replica in current.get(adapter, ()):
            if replica in rooms.among and rooms.has_room(replica):
                rooms.add(adapter, replica)
    for adapter, copies in wanted.items():
        for _ in range(rooms.copies(adapter) - copies):
            homes = [replica for replica in rooms.among if adapter in rooms.on[replica]]
            rooms.remove(adapter, max(homes, key=lambda replica: (rooms.load[replica], replica)))
    for adapter, copies in wanted.items():
        for _ in range(copies - rooms.copies(adapter)):
            add_copy(rooms, adapter)
    _even_out(rooms, wanted, (1 + tolerance) * sum(rooms.load[replica] for replica in rooms.among) / len(rooms.among))


def add_copy(rooms: Rooms, adapter: int) -> None:
    """Place one more copy, if there is a slot for it; where the only free slots are on replicas that have the adapter,
    another one makes room."""
    others = [replica for replica in rooms.among if adapter not in rooms.on[replica]]
    free = [replica for replica in others if rooms.has_room(replica)]
    if free:
        rooms.add(adapter, rooms.least_loaded(free))
        return
    for replica in sorted(others, key=lambda replica: (rooms.load[replica], replica)):
        for empty in rooms.among:
            movable = sorted(rooms.on[replica] - rooms.on[empty], key=lambda a: (rooms.each[a], a))
            if rooms.has_room(empty) and movable:
                rooms.remove(movable[0], replica)
                rooms.add(movable[0], empty)
                rooms.add(adapter, replica)
                return


def _even_out(rooms: Rooms, own: dict[int, int], enough: float) -> None:
    """Move adapters, or exchange two, from the most to the least loaded replica as long as that helps.

    :param own: adapters that may move.
    :param enough: load up to which no replica loses adapters.
    """
    for _ in range(sum(len(rooms.on[replica]) for replica in rooms.among)):
        busiest = max(rooms.among, key=lambda replica: (rooms.load[replica], -replica))
        idlest = rooms.least_loaded(rooms.among)
        if rooms.load[busiest] <= enough:
            return
        moved = _best_move(rooms, own, busiest, idlest)
        if moved is None:
            return
        there, back = moved
        rooms.remove(there, busiest)
        if back is not None:
            rooms.remove(back, idlest)
            rooms.add(back, busiest)
        rooms.add(there, idlest)


def _best_move(rooms: Rooms, own: dict[int, int], busiest: int, idlest: int) -> tuple[int, int | None] | None:
    """Return the adapter to move, and the one that comes back where no slot is free; None: nothing helps.

    The best halves the gap between the two.
    """
    gap = rooms.load[busiest] - rooms.load[idlest]
    back: int | None = None
    if not rooms.has_room(idlest):
        backs = (rooms.on[idlest] - rooms.on[busiest]) & own.keys()
        if not backs:
            return None
        back = min(backs, key=lambda adapter: (rooms.each[adapter], adapter))
    lost = 0.0 if back is None else rooms.each[back]
    movable = (rooms.on[busiest] - rooms.on[idlest]) & own.keys()
    helping = [adapter for adapter in movable if 0 < rooms.each[adapter] - lost < gap * (1 - 1e-9)]
    if not helping:
        return None
    return min(helping, key=lambda adapter: (abs(rooms.each[adapter] - lost - gap / 2), adapter)), back
