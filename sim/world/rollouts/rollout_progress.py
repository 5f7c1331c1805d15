"""How far the rollouts of one replication are, as far as each request must know.

Before a rollout begins and after it is complete, nothing need be done for a request: what version answers it follows
from its adapter and the time. Only in between is it looked at.
"""

from __future__ import annotations

from collections import Counter
from typing import Protocol

import numpy as np

from sim.results.records import Recorder, pack_mark
from sim.traffic.request import Request
from sim.world.clock import Clock
from sim.world.rollouts.rollout_plan import PlannedRollout


class ShiftingRollout(Protocol):
    """A rollout under a new name that decides, request by request, which version is asked for."""

    def moves(self, request: Request) -> bool:
        """Let a request ask for the new version, if its share has been reached; return whether."""

    def left(self, adapter: int) -> None:
        """Record that a request for the losing version has left."""


class RolloutProgress:
    """What the rollouts of one replication have in common.

    :ivar moved: by adapter, the new version that all requests for it ask for, where that has a name of its own.
    :ivar shifting: by adapter, the rollout that decides which version a request asks for.
    :ivar draining: by adapter, the rollout that waits for the last request for it to leave.
    :ivar watched: adapters of which some requests may be answered by one version and some by another.
    :ivar settled: by adapter as the traffic numbers it, the version that the last complete rollout brought: what ends
        from then on, with nothing else written down, was answered by it.
    :ivar pin_of: by adapter that a rollout has replaced, the new version, which has its pin if it had one.
    :ivar judging: gates that will look at their samples; these alone keep no simulation going.
    """

    def __init__(self, clock: Clock, recorder: Recorder) -> None:
        self._clock = clock
        self._recorder = recorder
        self.moved: dict[int, int] = {}
        self.shifting: dict[int, ShiftingRollout] = {}
        self.draining: dict[int, ShiftingRollout] = {}
        self.in_transition: set[int] = set()
        self.settled: dict[int, int] = {}
        self.pin_of: dict[int, int] = {}
        self.judging = 0
        self._under_way: Counter[int] = Counter()  # rollouts under way by adapter: one may outlast its plan
        self._instant = -1.0
        self._unmarked: list[tuple[int, int, int]] = []  # who ended at that instant: index, name, version

    def begins(self, planned: PlannedRollout) -> None:
        """Note that a rollout begins."""
        self.in_transition.update(planned.adapters, planned.new_adapters)
        self._under_way.update((*planned.adapters, *planned.new_adapters))

    def unmarked(self, now: float, index: int, name: int, version: int) -> None:
        """Note an answer by the version that is settled, so that nothing was written down of it.

        If the next version settles at this very instant, it must be: the answer ended before that.
        """
        if now != self._instant:
            self._instant = now
            self._unmarked.clear()
        self._unmarked.append((index, name, version))

    def ends(self, planned: PlannedRollout, *, complete: bool) -> None:
        """Note that a rollout is over.

        :param complete: every answer that ends from now on is by the new version; otherwise by the old one.
        """
        for adapter in (*planned.adapters, *planned.new_adapters):
            self._under_way[adapter] -= 1
            if self._under_way[adapter] == 0:
                self.in_transition.remove(adapter)
        if not complete:
            return
        settled = self.settled  # a later rollout may have been complete before this one
        newer = {n: v for n, v in zip(planned.names, planned.versions, strict=True) if v > settled.get(n, 1)}
        if not newer:
            return
        if self._instant == self._clock._now:
            for index, name, version in self._unmarked:
                if name in newer:
                    self._recorder.mark_rows += pack_mark(index, 0, version, version, 0, 0)
        settled.update(newer)
        self._recorder.settled.append((self._clock._now, np.array(list(newer)), np.array(list(newer.values()))))
