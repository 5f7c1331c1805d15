"""Every eviction policy once more, in the most obvious way: plain lists, searched from end to end whenever asked.

``choose`` gets the adapters that may leave, and forgets the one it returns. Nothing here knows who is in use but by
that.
"""

from __future__ import annotations

from collections.abc import Callable


class Naive:
    """What all of them note: how often and when each adapter was loaded, used, and became idle."""

    def __init__(
        self,
        weights: list[int],
        capacity: int,
        luck: Callable[[], float],
        next_use: Callable[[int], float],
        now: Callable[[], float],
    ) -> None:
        self.weights = weights
        self.capacity = capacity
        self.luck = luck
        self.next_use = next_use
        self.now = now
        self.idle_s = dict.fromkeys(range(len(weights)), 0.0)
        self.time = 0
        self.loaded_at = dict.fromkeys(range(len(weights)), 0)
        self.used_at = dict.fromkeys(range(len(weights)), 0)
        self.idle_at = dict.fromkeys(range(len(weights)), 0)
        self.uses = dict.fromkeys(range(len(weights)), 0)
        self.uses_ever = dict.fromkeys(range(len(weights)), 0)

    def tick(self) -> int:
        self.time += 1
        return self.time

    def coming(self, adapter: int) -> None:
        """Its load begins, and victims will be asked for."""

    def loaded(self, adapter: int) -> None:
        self.loaded_at[adapter] = self.used_at[adapter] = self.tick()
        self.uses[adapter] = 1
        self.uses_ever[adapter] += 1

    def touched(self, adapter: int) -> None:
        self.used_at[adapter] = self.tick()
        self.uses[adapter] += 1
        self.uses_ever[adapter] += 1

    def idle(self, adapter: int) -> None:
        self.idle_at[adapter] = self.tick()
        self.idle_s[adapter] = self.now()

    def choose(self, ready: set[int]) -> int:
        raise NotImplementedError

    def removed(self, adapter: int) -> None:
        """It has left for another reason."""


class Lru(Naive):
    def choose(self, ready: set[int]) -> int:
        return min(ready, key=lambda a: self.idle_at[a])


class Fifo(Naive):
    def choose(self, ready: set[int]) -> int:
        return min(ready, key=lambda a: self.loaded_at[a])


class Lfu(Naive):
    def choose(self, ready: set[int]) -> int:
        return min(ready, key=lambda a: (self.uses[a], self.used_at[a]))


class LfuHistory(Naive):
    def choose(self, ready: set[int]) -> int:
        return min(ready, key=lambda a: (self.uses_ever[a], self.loaded_at[a]))


class Random(Naive):
    def choose(self, ready: set[int]) -> int:
        return sorted(ready)[int(self.luck() * len(ready))]


class Belady(Naive):
    def choose(self, ready: set[int]) -> int:
        return min(ready, key=lambda a: (-self.next_use(a), a))


class RefcountScore(Naive):
    def choose(self, ready: set[int]) -> int:
        most = max(self.uses[a] for a in ready)
        first, last = min(self.idle_s[a] for a in ready), max(self.idle_s[a] for a in ready)

        def score(a: int) -> float:
            recency = 0.0 if first == last else (self.idle_s[a] - first) / (last - first)
            return 0.45 * self.uses[a] / most + 0.10 * recency + 0.45 * self.weights[a] / max(self.weights)

        return min(ready, key=lambda a: (score(a), a))


class Gdsf(Naive):
    def __init__(self, *setting: object) -> None:
        super().__init__(*setting)  # type: ignore[arg-type]
        self.last = 0.0
        self.value: dict[int, float] = {}

    def loaded(self, adapter: int) -> None:
        super().loaded(adapter)
        self.value[adapter] = self.last + 1 / self.weights[adapter]

    def touched(self, adapter: int) -> None:
        super().touched(adapter)
        self.value[adapter] = self.last + self.uses[adapter] / self.weights[adapter]

    def choose(self, ready: set[int]) -> int:
        victim = min(ready, key=lambda a: (self.value[a], self.used_at[a]))
        self.last = max(self.last, self.value[victim])
        return victim


class Clock(Naive):
    def __init__(self, *setting: object) -> None:
        super().__init__(*setting)  # type: ignore[arg-type]
        self.ring: list[int] = []
        self.marked: set[int] = set()

    def loaded(self, adapter: int) -> None:
        self.ring.append(adapter)
        self.marked.discard(adapter)

    def touched(self, adapter: int) -> None:
        self.marked.add(adapter)

    def choose(self, ready: set[int]) -> int:
        while True:
            adapter = self.ring.pop(0)
            if adapter in ready and adapter not in self.marked:
                return adapter
            if adapter in ready:
                self.marked.remove(adapter)
            self.ring.append(adapter)

    def removed(self, adapter: int) -> None:
        self.ring.remove(adapter)


class Sieve(Clock):
    """``ring`` is from old to new and stays so; ``hand`` is whom to look at next, None: the oldest."""

    hand: int | None = None

    def choose(self, ready: set[int]) -> int:
        while True:
            adapter = self.ring[0] if self.hand is None else self.hand
            place = self.ring.index(adapter)
            self.hand = self.ring[place + 1] if place + 1 < len(self.ring) else None
            if adapter in ready and adapter not in self.marked:
                self.ring.remove(adapter)
                return adapter
            if adapter in ready:
                self.marked.remove(adapter)

    def removed(self, adapter: int) -> None:
        if self.hand == adapter:
            place = self.ring.index(adapter)
            self.hand = self.ring[place + 1] if place + 1 < len(self.ring) else None
        super().removed(adapter)


class S3Fifo(Naive):
    def __init__(self, *setting: object) -> None:
        super().__init__(*setting)  # type: ignore[arg-type]
        self.small: list[int] = []
        self.main: list[int] = []
        self.ghost: list[int] = []
        self.was_ghost: set[int] = set()
        self.counted = dict.fromkeys(range(len(self.weights)), 0)
        self.evicted = False

    def removed(self, adapter: int) -> None:
        (self.small if adapter in self.small else self.main).remove(adapter)

    def weigh(self, queue: list[int]) -> int:
        return sum(self.weights[a] for a in queue)

    def coming(self, adapter: int) -> None:
        if adapter in self.ghost:
            self.ghost.remove(adapter)
            self.was_ghost.add(adapter)

    def loaded(self, adapter: int) -> None:
        self.counted[adapter] = 0
        full = self.weigh(self.small) >= max(1, int(0.1 * self.capacity))
        to_main = adapter in self.was_ghost or (full and not self.evicted)
        self.was_ghost.discard(adapter)
        (self.main if to_main else self.small).append(adapter)

    def touched(self, adapter: int) -> None:
        self.counted[adapter] += 1

    def choose(self, ready: set[int]) -> int:
        self.evicted = True
        while True:
            young = [a for a in self.small if a in ready]
            main_is_full = self.weigh(self.main) > self.capacity - int(0.1 * self.capacity)
            if young and not (main_is_full and any(a in ready for a in self.main)):
                for adapter in young:  # to the end, even if that fills the main queue
                    self.small.remove(adapter)
                    if self.counted[adapter] < 2:
                        self.remember(adapter)
                        return adapter
                    self.counted[adapter] = 0
                    self.main.append(adapter)
                continue
            adapter = self.main.pop(0)
            if adapter in ready and self.counted[adapter] == 0:
                return adapter
            if adapter in ready:
                self.counted[adapter] = min(3, self.counted[adapter]) - 1
            self.main.append(adapter)

    def remember(self, adapter: int) -> None:
        most = int(0.9 * self.capacity)
        if self.weights[adapter] > most:
            return
        self.ghost.append(adapter)
        while self.weigh(self.ghost) > most:
            self.ghost.pop(0)


NAIVE: dict[str, type[Naive]] = {
    "lru": Lru,
    "fifo": Fifo,
    "clock": Clock,
    "lfu": Lfu,
    "lfu-history": LfuHistory,
    "sieve": Sieve,
    "s3-fifo": S3Fifo,
    "gdsf": Gdsf,
    "random": Random,
    "belady": Belady,
    "refcount-score": RefcountScore,
    "discard-when-idle": Lru,
    "cycle": Lru,
    "vllm-lru": Lru,
}
