"""An eviction policy from outside, watched while it decides."""

from __future__ import annotations

from collections.abc import Collection

from sim.policies.eviction.eviction_policy import Eviction
from sim.spec.registry import Entry


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
