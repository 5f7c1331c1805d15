"""Progress of the rollouts of one replication, as far as it matters for each request.

Before a rollout begins and after it is complete, a request needs no extra work: the version that answers it follows
from its adapter and the time. Only in between is each request examined.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from sim.results.recording.recorder import Recorder
from sim.results.records import Event
from sim.traffic.request import Request
from sim.world.clock import Clock
from sim.world.rollouts.rollout_plan import PlannedRollout


class ShiftingRollout(Protocol):
    """A rollout under a new name, which decides the version of each request."""

    def moves(self, request: Request) -> bool:
        """Send a request to the new version if it belongs to the share that moves; return whether it does."""

    def left(self, adapter: int) -> None:
        """Record that a request for the losing version has left."""


class RolloutProgress:
    """State that the rollouts of one replication share.

    :ivar moved: by adapter, the new version under its own name to which all its requests go.
    :ivar shifting: by adapter, the rollout that decides the version of each of its requests.
    :ivar draining: by adapter that gets no more requests, the rollout that waits for the last one to leave.
    :ivar in_transition: adapters whose requests may be answered by different versions.
    :ivar settled: by adapter as numbered in the traffic, the version of its last complete rollout. It answered every
        request that ends from then on, unless a mark says otherwise.
    :ivar pin_of: by adapter that a rollout has replaced, the new version, which takes over its pin.
    :ivar judging: number of gates that will evaluate their samples; these events alone do not keep a simulation going.
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
        self._under_way: Counter[int] = Counter()  # rollouts under way by adapter; one may last longer than planned
        self._instant = -1.0
        self._unmarked: list[tuple[int, int, int]] = []  # requests that ended at that instant: index, name, version

    def begins(self, planned: PlannedRollout) -> None:
        """Note that a rollout begins."""
        self.in_transition.update(planned.adapters, planned.new_adapters)
        self._under_way.update((*planned.adapters, *planned.new_adapters))

    def unmarked(self, now: float, index: int, name: int, version: int) -> None:
        """Note an answer by the settled version, which needs no mark.

        If the next version settles at this very instant, a mark is added after all: the answer ended before that.
        """
        if now != self._instant:
            self._instant = now
            self._unmarked.clear()
        self._unmarked.append((index, name, version))

    def ends(self, planned: PlannedRollout, *, complete: bool) -> None:
        """Note that a rollout is over.

        :param complete: answers that end from now on are by the new version; otherwise by the old one.
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
        if self._instant == self._clock.now:
            for index, name, version in self._unmarked:
                if name in newer:
                    self._recorder.mark_request(index, 0, (version, version))
        settled.update(newer)
        self._recorder.settled.append((self._clock.now, np.array(list(newer)), np.array(list(newer.values()))))


@dataclass(frozen=True, slots=True)
class RolloutContext:
    """What every rollout of one replication works with."""

    clock: Clock
    recorder: Recorder
    progress: RolloutProgress
    seed: int
    replication: int

    def note(self, planned: PlannedRollout, kind: str, text: str) -> None:
        """Add an event of a rollout to the timeline."""
        number = planned.number
        self.recorder.events.append(Event(self.clock.now, kind, f"rollouts.{number}: {text}", number))
