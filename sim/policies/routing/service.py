"""A service for each adapter: requests go to the replicas on which it was placed."""

from __future__ import annotations

from collections import Counter
from itertools import chain
from typing import ClassVar

from sim.policies.routing.placement import Homes, fewest, with_room
from sim.policies.routing.router_policy import RouterContext, is_up
from sim.rng import UniformDraws
from sim.spec.policies import PLACEMENTS


class ServicePerAdapter:
    """One of the adapter's own replicas, at random, whatever their load.

    AIBrix makes a Kubernetes service for every adapter and places adapters on pods itself. An adapter that was not
    there at the start is placed at its first request. One whose replicas are all down moves to the one that is up and
    has the fewest adapters, and goes back when one of its own is up again. The service of the base model has all pods,
    so its requests go to any replica.
    """

    reads: ClassVar[frozenset[str]] = frozenset()

    def __init__(self, context: RouterContext) -> None:
        self._context = context
        self._view = context.view
        self._replicas = context.replicas
        self._draws = UniformDraws(context.key)
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
        """Place one more adapter; its popularity is unknown."""
        context, counts = self._context, self._counts
        if context.placement == "bin-pack":
            homes = with_room(counts, self._view.slots, context.copies, up)
        else:
            homes = fewest(counts, context.copies, up)
        for replica in homes:
            counts[replica] += 1
        return homes

    def _elsewhere(self, adapter: int, up: list[int]) -> int:
        moved = self._moved.get(adapter)
        if moved is None or not is_up(moved, up):
            self._back(adapter)
            moved = self._moved[adapter] = fewest(self._counts, 1, up)[0]
            self._counts[moved] += 1
        return moved

    def _back(self, adapter: int) -> None:
        moved = self._moved.pop(adapter, None)
        if moved is not None:
            self._counts[moved] -= 1
