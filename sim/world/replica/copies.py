"""The copies of adapters on one replica, for rollouts that replace weights while traffic flows."""

from __future__ import annotations

from collections.abc import Callable

from sim.policies.adapter_cache import ABSENT
from sim.world.replica.intake import Intake
from sim.world.replica.modes.adapter_mode import AdapterMode


class AdapterCopies:
    """Copies in GPU and host memory: are there any, drop them, load them again.

    :ivar standing_in: whether the replica only stands in for a crashed one: it reads its first copies when it is up
        again.
    """

    def __init__(self, mode: AdapterMode, intake: Intake, *, standing_in: bool) -> None:
        self._mode = mode
        self.intake = intake
        self.standing_in = standing_in

    def exist(self, adapter: int) -> bool:
        """Return whether GPU or host memory has a copy of an adapter, or is loading one."""
        if self.standing_in:
            return False
        return self._mode.cache.holds(adapter) or self.intake.host.holds(adapter)

    def drop(self, adapter: int) -> None:
        """Drop all copies of an adapter that is not in use and will not be requested again."""
        self._mode.discard(adapter)
        self.intake.host.discard(adapter)

    def drop_unless_read(self, adapter: int) -> bool:
        """Drop the copy in host memory if it is the only one and no load will read it; return whether none is left."""
        if self._mode.reads_host_copy(adapter):
            return False
        if self._mode.cache.state[adapter] == ABSENT:
            self._mode.cache.discard(adapter)  # a cache may have a host tier of its own
            self._mode.host.discard(adapter)
        return not self.exist(adapter)

    def pin_instead(self, old: int, new: int) -> None:
        """Move the pin of an adapter, if it has one, to its new version."""
        self._mode.cache.pin_instead(old, new)
        self.intake.host.pin_instead(old, new)

    def load_placed(self, adapter: int, seconds: tuple[float, float], then: Callable[[float], None]) -> None:
        """Load an adapter that no request waits for, because it has been placed here.

        Nothing happens if it is there or on its way, or if the replica only stands in for a crashed one.

        :param seconds: load time from a healthy storage, and from host memory.
        :param then: is called with the time at which the next one may be loaded.
        """
        if not self.standing_in:
            self.intake.load_placed(adapter, seconds, then)

    def renew(self, adapter: int, seconds: float, replace_weights: Callable[[], None]) -> None:
        """Load an adapter from storage again, then call ``replace_weights`` between two steps.

        :param seconds: load time of a healthy storage. If loads block steps, this one blocks the next step.
        """
        assert not self.standing_in, "a crashed replica has no copy to renew"
        self.intake.renew(adapter, seconds, replace_weights)
