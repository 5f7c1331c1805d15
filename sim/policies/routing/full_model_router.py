"""Which replica swaps in a full model."""

from __future__ import annotations

from collections.abc import Sequence

from sim.policies.routing.router_policy import View
from sim.rng import UniformDraws


class ToHolders:
    """A replica that holds the model; else one where requests already wait for it; else the one with the most room.

    Of several that hold or await it, the one with the fewest requests, the first of equal ones. Without the second
    rule, requests that come before the load begins would have the model loaded on all replicas. Room has the replica
    with the fewest requests, and of those the one that holds the fewest models; equal ones are drawn by the request's
    number: always taking the first would swap models there while other replicas are idle.

    :param pool: the replicas that swap full models; ``models``: all full models.
    """

    def __init__(self, view: View, pool: range, models: Sequence[int], key: int) -> None:
        self._view = view
        self._pool = pool
        self._models = models
        self._draws = UniformDraws(key)

    def choose(self, model: int, number: int) -> int:
        view, pool = self._view, self._pool
        if len(pool) == 1:
            return pool[0]
        mask, inside, loads = view.resident[model], view.inside, view.loads
        there = [r for r in pool if mask >> r & 1] or [r for r in pool if model in inside[r]]
        if there:
            return min(there, key=loads.__getitem__)
        room = [(loads[r], sum(view.resident[other] >> r & 1 for other in self._models)) for r in pool]
        most = min(room)
        candidates = [r for r, each in zip(pool, room, strict=True) if each == most]
        return candidates[int(self._draws.of(number) * len(candidates))]
