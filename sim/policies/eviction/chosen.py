"""Policies that look at all idle residents when one has to leave, or into the future: random, Belady, Chameleon's."""

from __future__ import annotations

from bisect import bisect_left, insort
from collections.abc import Callable, Collection, Iterator
from heapq import heapify, heappop, heappush
from math import inf

import numpy as np

from sim.policies.eviction.eviction_policy import EvictionContext

FREQUENCY, RECENCY, SIZE = 0.45, 0.10, 0.45
"""Weights of Chameleon's score (Iliakopoulou et al., MICRO 2025)."""

_BLOCK = 1024


class Random:
    """Any idle one leaves, each as likely; every eviction uses one number of the stream."""

    touched: Callable[[int], None] | None = None
    coming: Callable[[int], None] | None = None

    def __init__(self, context: EvictionContext) -> None:
        self._idle: list[int] = []  # sorted, so that what leaves doesn't depend on how they came
        assert context.rng is not None, "it draws its victims"
        self._uniform_draws = _numbers(context.rng)

    def idle(self, adapter: int) -> None:
        insort(self._idle, adapter)

    def busy(self, adapter: int) -> None:
        del self._idle[bisect_left(self._idle, adapter)]

    def loaded(self, adapter: int) -> None:
        """A load makes no difference."""

    def victim(self, spared: Collection[int] = ()) -> int | None:
        ready = [adapter for adapter in self._idle if adapter not in spared] if spared else self._idle
        if not ready:
            return None
        adapter = ready[int(next(self._uniform_draws) * len(ready))]
        self.busy(adapter)
        return adapter

    def remove(self, adapter: int) -> None:
        self.busy(adapter)

    def __len__(self) -> int:
        return len(self._idle)


def _numbers(rng: np.random.Generator) -> Iterator[float]:
    while True:
        yield from rng.random(_BLOCK).tolist()


class Belady:
    """Evict the adapter whose next use is furthest away; of those never used again, the one of lowest number.

    Weights make no difference to the order (libCacheSim's Belady), so with adapters of several sizes it isn't the best
    there could be. Nor is it where loads take time: a request that waits for one keeps its adapter meanwhile.
    """

    touched: Callable[[int], None] | None = None
    coming: Callable[[int], None] | None = None

    def __init__(self, context: EvictionContext) -> None:
        self._next_use = context.next_use
        self._come = context.come
        self._next: dict[int, float] = {}  # of those idle
        self._far: list[tuple[float, int]] = []  # heaps of -next and adapter, and of next and adapter: all in _next,
        self._near: list[tuple[float, int]] = []  # and some that are out of date; none in _near whose request waits
        self.busy: Callable[[int], None] = self._next.__delitem__
        self.remove: Callable[[int], None] = self.busy

    def idle(self, adapter: int) -> None:
        self._note(adapter, self._next_use(adapter))

    def loaded(self, adapter: int) -> None:
        """A load makes no difference."""

    def victim(self, spared: Collection[int] = ()) -> int | None:
        self._go_on()
        passed: list[tuple[float, int]] = []
        found = None
        while self._far and found is None:
            minus, adapter = heappop(self._far)
            if self._next.get(adapter) != -minus:
                continue
            if adapter in spared:
                passed.append((minus, adapter))
            else:
                del self._next[adapter]
                found = adapter
        for entry in passed:
            heappush(self._far, entry)
        return found

    def _note(self, adapter: int, next_use: float) -> None:
        self._next[adapter] = next_use
        heappush(self._far, (-next_use, adapter))
        if next_use < inf:
            heappush(self._near, (next_use, adapter))
        if len(self._far) > 64 + 4 * len(self._next):
            self._far = [(-next_use, adapter) for adapter, next_use in self._next.items()]
            self._near = [(next_use, adapter) for adapter, next_use in self._next.items() if next_use < inf]
            heapify(self._far)
            heapify(self._near)

    def _go_on(self) -> None:
        """Look once more at those whose request has come: it waits, which it then does until the adapter is in use, or
        it is elsewhere."""
        come = self._come()
        while self._near and self._near[0][0] < come:
            due, adapter = heappop(self._near)
            if self._next.get(adapter) == due:
                next_use = self._next_use(adapter)
                if next_use != due:
                    assert next_use > due, "what comes next moves on, or this would never end"
                    self._note(adapter, next_use)

    def __len__(self) -> int:
        return len(self._next)


class RefcountScore:
    """Chameleon's: of those without users, the lowest score leaves; of equals, the one of the lowest number.

    ``.45 frequency + .10 recency + .45 size``: large adapters cost more to load again, so they stay. The three terms
    and their weights come from second-hand accounts of the paper; this was compared with neither its code nor its
    numbers. How each term is brought to 0 to 1 is ours: uses since the load (that one included) over the most of any
    idle one; when the last use ended, between the longest ago (0) and the latest (1) of the idle; weight over the
    largest of all adapters.
    """

    coming: Callable[[int], None] | None = None

    def __init__(self, context: EvictionContext) -> None:
        largest = max(context.weights, default=1)
        self._size = [SIZE * weight / largest for weight in context.weights]
        self._uses = [0] * len(context.weights)
        self._last = [0.0] * len(context.weights)
        self._now = context.now
        self._idle: set[int] = set()
        self.busy: Callable[[int], None] = self._idle.remove
        self.remove: Callable[[int], None] = self.busy

    def idle(self, adapter: int) -> None:
        self._idle.add(adapter)
        self._last[adapter] = self._now()

    def touched(self, adapter: int) -> None:
        self._uses[adapter] += 1

    def loaded(self, adapter: int) -> None:
        self._uses[adapter] = 1

    def victim(self, spared: Collection[int] = ()) -> int | None:
        ready = {adapter for adapter in self._idle if adapter not in spared} if spared else self._idle
        if not ready:
            return None
        uses, last, size = self._uses, self._last, self._size
        most = max(uses[adapter] for adapter in ready)
        times = [last[adapter] for adapter in ready]
        oldest = min(times)
        span = max(times) - oldest or 1.0
        _, adapter = min((FREQUENCY * uses[a] / most + RECENCY * (last[a] - oldest) / span + size[a], a) for a in ready)
        self._idle.remove(adapter)
        return adapter

    def __len__(self) -> int:
        return len(self._idle)
