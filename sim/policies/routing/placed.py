"""Only the replicas on which a controller has placed the adapter."""

from __future__ import annotations

from typing import ClassVar

from sim.policies.routing.router_policy import RouterContext, is_up
from sim.rng import UniformDraws, uniform_draw

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
