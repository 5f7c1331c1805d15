"""Routers that send a request where its adapter is, by what is in GPU memory or what runs; or where its text was."""

from __future__ import annotations

from collections.abc import Sequence
from math import inf
from typing import ClassVar

from sim.policies.routing.router_policy import RouterContext, is_up, load_limit
from sim.rng import UniformDraws

_MOST_MASKS = 1 << 16


class _Masks:
    """Bit masks of replicas, and the replicas in them.

    :ivar known: the replicas in masks that were asked for before; look here first, it is quicker than a call.
    """

    def __init__(self, replicas: int) -> None:
        self.known: dict[int, tuple[int, ...]] = {}
        self._replicas = range(replicas)
        self._up: list[int] = []  # the last list that was asked for, and its mask
        self._up_mask = 0

    def replicas(self, mask: int) -> tuple[int, ...]:
        """Return the replicas in a mask, ascending."""
        if len(self.known) >= _MOST_MASKS:
            self.known.clear()
        found = self.known[mask] = tuple(r for r in self._replicas if mask >> r & 1)
        return found

    def of(self, up: list[int]) -> int:
        """Return the mask of some replicas."""
        if up != self._up:
            self._up = up.copy()
            self._up_mask = sum(1 << replica for replica in up)
        return self._up_mask


class ByResidency:
    """A replica that has the adapter in GPU memory, or is loading it; else the least loaded.

    Of several that have it, the one with the fewest requests, the first of equal ones; with a bound, only if it is not
    full. Where none has it, equally loaded replicas are drawn by the request's number. Always taking the first would
    send every new adapter to replica 0 as long as traffic is light, and thrash its cache while others are empty.
    Drawing gives all replicas the same rate of insertions, so that their caches together work as one of their
    total size. A request to the base model goes to the least loaded, as if no replica had its adapter.
    """

    reads: ClassVar[frozenset[str]] = frozenset({"loads", "resident"})

    def __init__(self, context: RouterContext) -> None:
        self._view = context.view
        self._replicas = context.replicas
        self._bound = context.bound
        self._draws = UniformDraws(context.key)
        self._base_model = context.base_model
        self._masks = _Masks(context.replicas)

    def choose(self, adapter: int, number: int) -> int:
        view = self._view
        loads, up = view.loads, view.up
        mask = 0 if adapter == self._base_model else view.resident[adapter]
        if len(up) < self._replicas:
            mask &= self._masks.of(up)
        if mask:
            if mask & (mask - 1):
                chosen = min(self._masks.known.get(mask) or self._masks.replicas(mask), key=loads.__getitem__)
            else:
                chosen = mask.bit_length() - 1
            if self._bound is None or loads[chosen] < load_limit(self._bound, loads, up):
                return chosen
        return _least_loaded(loads, up, self._draws, number)


def _least_loaded(loads: list[int], up: list[int], draws: UniformDraws, number: int) -> int:
    """Return one of the least loaded, at random."""
    if len(up) < len(loads):
        least = min(map(loads.__getitem__, up))
        candidates = [replica for replica in up if loads[replica] == least]
        return candidates[int(draws.of(number) * len(candidates))]
    least = min(loads)
    chosen, equal = loads.index(least), loads.count(least)
    if equal > 1:
        for _ in range(int(draws.of(number) * equal)):
            chosen = loads.index(least, chosen + 1)
    return chosen


class ByPrefix:
    """The replica that got the last request with the longest text in common; else the least loaded.

    The same text of two adapters counts as two, because engines share no cached blocks between adapters. With a bound,
    a replica that is full is skipped, and the one with the next shorter text is tried. The router remembers where it
    sent requests; it does not know what a replica still has in its cache.
    """

    reads: ClassVar[frozenset[str]] = frozenset({"loads", "texts"})

    def __init__(self, context: RouterContext) -> None:
        self._view = context.view
        self._bound = context.bound
        self._draws = UniformDraws(context.key)
        self._last: dict[tuple[int, int], int] = {}  # replica, by adapter and text

    def choose(self, adapter: int, number: int) -> int:
        view, last = self._view, self._last
        loads, up, texts = view.loads, view.up, view.texts
        limit = inf if self._bound is None else load_limit(self._bound, loads, up)
        chosen = -1
        for text in texts:
            replica = last.get((adapter, text), -1)
            if replica >= 0 and loads[replica] < limit and is_up(replica, up):
                chosen = replica
                break
        if chosen < 0:
            chosen = _least_loaded(loads, up, self._draws, number)
        for text in texts:
            last[adapter, text] = chosen
        return chosen


class ByActivity:
    """The replica with the highest score for the adapter; of several, one drawn by the request's number.

    The scores are those of the LoRA affinity scorer (llm-d/llm-d-router, ``pkg/epp/framework/plugins/scheduling/scorer/
    loraaffinity/lora_affinity.go``, since its pull request 2625; it came from the Gateway API Inference Extension): 1.0
    where the adapter runs; 0.8 where fewer adapters run or wait than the replica can run; 0.6 where the adapter waits;
    0.0 elsewhere. It sees requests, not residents: an idle resident counts for nothing. vLLM's metrics name adapters
    alone, so a request to the base model gets 0.8 where there is room, and 0.0 elsewhere.
    """

    reads: ClassVar[frozenset[str]] = frozenset({"running", "inside"})

    def __init__(self, context: RouterContext) -> None:
        self._view = context.view
        self._replicas = context.replicas
        self._draws = UniformDraws(context.key)
        self._base_model = context.base_model
        self._masks = _Masks(context.replicas)
        self._known = self._masks.known
        self._room: list[int] = []  # replicas with room at this reading
        self._reading = 0

    def choose(self, adapter: int, number: int) -> int:
        view = self._view
        base = adapter == self._base_model
        mask = 0 if base else view.running[adapter]
        if mask and len(view.up) < self._replicas:
            mask &= self._masks.of(view.up)
        best: Sequence[int]
        if mask:
            if not mask & (mask - 1):
                return mask.bit_length() - 1
            best = self._known.get(mask) or self._masks.replicas(mask)
        else:
            if view.reading != self._reading or not view.reading:
                self._reading = view.reading
                self._room = [replica for replica in view.up if len(view.inside[replica]) < view.slots]
            best = self._room or [r for r in view.up if adapter in view.inside[r] and not base] or view.up
        return best[int(self._draws.of(number) * len(best))]
