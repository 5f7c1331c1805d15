"""Requests of full models go to replicas of their own, all others to those of the base model."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Protocol

from sim.policies.routing.router_policy import Choosing, View
from sim.rng import uniform_draw


class FullModelRouter(Protocol):
    """Choose a replica for a full model; what it sees is always current."""

    def choose(self, model: int, number: int) -> int:
        """Return the index of one of the replicas that serve full models.

        :param number: the request's own number, which keys its random draw.
        """
        ...


class ToOwnReplicas:
    """Of a model's own replicas, the one with the fewest requests in it, the first of equal ones.

    :param homes: by model, its replicas.
    """

    def __init__(self, view: View, homes: Mapping[int, range]) -> None:
        self._view = view
        self._homes = homes

    def choose(self, model: int, number: int) -> int:
        homes = self._homes[model]
        return homes[0] if len(homes) == 1 else min(homes, key=self._view.loads.__getitem__)


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
        self._key = key

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
        return candidates[int(uniform_draw(self._key, number) * len(candidates))]


class Beside:
    """The router of a fleet that also serves full models.

    :param full: by adapter, whether it is a full model.
    :param others: chooses for all that isn't, among the replicas of the base model.
    """

    def __init__(self, full: Sequence[bool], models: FullModelRouter, others: Choosing) -> None:
        self._full = full
        self._choose = models.choose
        self._choose_other = others.choose

    def choose(self, adapter: int, number: int) -> int:
        return self._choose(adapter, number) if self._full[adapter] else self._choose_other(adapter, number)
