"""What an eviction policy is made from, what it decides, and how one from outside is watched."""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from math import inf
from typing import Protocol

import numpy as np

from sim.spec.registry import Entry


def _no_future(adapter: int) -> float:
    return inf


@dataclass(frozen=True, slots=True)
class EvictionContext:
    """What an eviction policy may know about its cache; most use little of it.

    :ivar weights: what each adapter takes: bytes, or 1 where slots are counted. Adapters are numbers from 0 on.
    :ivar capacity: bytes or slots.
    :ivar rng: random numbers of the policy's own. There is one in every simulation and replay.
    :ivar now: the time in seconds; in a replay without times, the number of the request.
    :ivar next_use: ``belady`` only: index, in order of arrival, of the next request that uses an adapter; infinite if
        there is none. Call it only for adapters that are not in use. While an adapter stays idle, the answer changes
        only when that request goes elsewhere, and only to a higher index.
    :ivar come: ``belady`` only: how many requests have come. Requests below that number come next in any case.
    """

    weights: Sequence[int]
    capacity: int
    rng: np.random.Generator | None = None
    now: Callable[[], float] = lambda: 0.0
    next_use: Callable[[int], float] = _no_future
    come: Callable[[], float] = lambda: 0.0


class Eviction(Protocol):
    """Choose which idle adapter (resident, not in use) leaves a full cache; a scenario names it as ``cache.eviction``.

    To write one, make a class that takes an ``EvictionContext`` and has the members below. It needs no base class. Name
    it with ``evictions={"mine": Mine}`` in Python, or with an entry point of the group ``loraplan.evictions``;
    docs/own-policy.md has a complete example. The simulator makes one object for each cache of each replica and calls
    it in this order:

    - A request misses: ``coming(adapter)``, then ``victim()`` until there is room.
    - The load ends: ``loaded(adapter)``, then ``idle(adapter)`` if no request uses it.
    - An idle adapter is used: ``busy(adapter)``. Its last user ends: ``idle(adapter)``.
    - Any use but the one that caused the load: ``touched(adapter)``, after ``busy`` where that is called. After a warm
      start or a prefetch, the first use counts as the cause.
    - An idle adapter leaves for another reason than lack of room: ``remove(adapter)``.

    ``victim(spared)`` chooses an idle adapter that is not in ``spared``, forgets it and returns it, or returns None if
    there is none. All other methods only take note. ``remove`` forgets an adapter too, but it was not chosen: random
    numbers, the hands of a clock, ages and ghost lists stay as they are. ``len()`` is the number of idle adapters.

    ``touched`` and ``coming`` may be None, which saves a call for each request. ``touched`` may name adapters that
    never leave (pinned ones), for which ``loaded`` and ``idle`` are never called. A policy that draws takes its numbers
    from ``context.rng``, or a run could not be repeated.
    """

    @property
    def idle(self) -> Callable[[int], None]: ...

    @property
    def busy(self) -> Callable[[int], None]: ...

    @property
    def touched(self) -> Callable[[int], None] | None: ...

    @property
    def coming(self) -> Callable[[int], None] | None: ...

    def loaded(self, adapter: int) -> None: ...

    def victim(self, spared: Collection[int] = ()) -> int | None: ...

    def remove(self, adapter: int) -> None: ...

    def __len__(self) -> int: ...


class WatchedEviction:
    """An eviction policy from outside whose victims are checked: idle, not spared, and found where there is one."""

    def __init__(self, entry: Entry, policy: Eviction) -> None:
        self._entry = entry
        self._policy = policy
        self._idle: set[int] = set()
        self.touched = policy.touched
        self.coming = policy.coming
        self.loaded = policy.loaded

    def idle(self, adapter: int) -> None:
        self._idle.add(adapter)
        self._policy.idle(adapter)

    def busy(self, adapter: int) -> None:
        self._idle.remove(adapter)
        self._policy.busy(adapter)

    def remove(self, adapter: int) -> None:
        self._idle.remove(adapter)
        self._policy.remove(adapter)

    def victim(self, spared: Collection[int] = ()) -> int | None:
        victim = self._policy.victim(spared)
        allowed = self._idle.difference(spared)
        if (victim is None and allowed) or (victim is not None and victim not in allowed):
            some = ", ".join(map(str, sorted(allowed)[:8])) or "none, so None"
            raise self._entry.unusable(f"victim() returned {victim!r}, but the adapters that may leave are: {some}")
        if victim is not None:
            self._idle.remove(victim)
        return victim

    def __len__(self) -> int:
        return len(self._policy)
