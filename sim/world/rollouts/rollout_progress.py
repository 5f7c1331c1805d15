"""Progress of the rollouts of one replication: of each one, and as far as it matters for each request.

Before a rollout begins and after it is complete, a request needs no extra work: the version that answers it follows
from its adapter and the time. Only in between is each request examined.
"""

from __future__ import annotations

import math
from collections import Counter
from typing import TYPE_CHECKING

import numpy as np

from sim.policies.changes import FailedTerm
from sim.results.recording.recorder import Recorder
from sim.results.records import Event
from sim.rng import stream
from sim.world.clock import CONTROL, Clock
from sim.world.rollouts.rollout_plan import PlannedRollout

if TYPE_CHECKING:
    from sim.world.rollouts.traffic_shift import TrafficShift

_ROUNDING_S = 1e-9
"""One load ends and the next begins at times that are sums of the same parts, added up in another order."""


class RolloutProgress:
    """State that the rollouts of one replication share.

    :ivar moved: by adapter, the new version under its own name to which all its requests go.
    :ivar shifting: by adapter, the rollout that decides the version of each of its requests.
    :ivar draining: by adapter that gets no more requests, the rollout that waits for the last one to leave.
    :ivar in_transition: adapters whose requests may be answered by different versions.
    :ivar settled: by adapter as numbered in the traffic, the version of its last complete rollout. It answered every
        request that ends from then on, unless a mark says otherwise.
    :ivar pin_of: by adapter that a rollout has replaced, the new version, which takes over its pin.
    :ivar standstill_s: the longest time for which loads between two steps kept a replica from computing.
    :ivar judging: number of gates that will evaluate their samples; these events alone do not keep a simulation going.
    """

    def __init__(self, clock: Clock, recorder: Recorder) -> None:
        self.clock = clock
        self.recorder = recorder
        self.moved: dict[int, int] = {}
        self.shifting: dict[int, TrafficShift] = {}
        self.draining: dict[int, TrafficShift] = {}
        self.in_transition: set[int] = set()
        self.settled: dict[int, int] = {}
        self.pin_of: dict[int, int] = {}
        self.standstill_s = 0.0
        self.judging = 0
        self._under_way: Counter[int] = Counter()  # rollouts under way by adapter; one may last longer than planned
        self._still: dict[int, tuple[float, float]] = {}  # by replica, from when to when such loads last
        self._instant = -1.0
        self._unmarked: list[tuple[int, int, int]] = []  # requests that ended at that instant: index, name, version

    def stands_still(self, replica: int, start_s: float, end_s: float) -> None:
        """Note that a load between two steps keeps a replica from computing; those without a step between are one."""
        began_s, until_s = self._still.get(replica, (-math.inf, -math.inf))
        began_s = began_s if start_s <= until_s + _ROUNDING_S else start_s
        self._still[replica] = (began_s, end_s)
        self.standstill_s = max(self.standstill_s, end_s - began_s)

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
        if self._instant == self.clock.now:
            for index, name, version in self._unmarked:
                if name in newer:
                    self.recorder.mark_request(index, 0, (version, version))
        settled.update(newer)
        self.recorder.settled.append((self.clock.now, np.array(list(newer)), np.array(list(newer.values()))))


class ActiveRollout:
    """One rollout in one replication.

    :ivar complete_s: time at which it was complete, and no load of it blocked a replica any more; nan before.
    :ivar rolled_back: whether a gate has sent its requests back to the old version.
    """

    def __init__(self, planned: PlannedRollout, progress: RolloutProgress, seed: int, replication: int) -> None:
        self.planned = planned
        self.complete_s = math.nan
        self._blocked_s = 0.0  # until then, a load of it blocks a replica
        self.rolled_back = False
        self._progress = progress
        self._clock = progress.clock
        self._rng = stream(seed, replication, "propagation", planned.number)
        count = len(planned.adapters)
        self._offsets = [planned.rollout.spread * i / count for i in range(count)]
        self._place_of_name = {name: i for i, name in enumerate(planned.names)}
        self._due_s = math.inf  # time at which all requests of the first adapter should go to its new version
        self._begun = 0  # stages

    def due(self, name: int, time: float) -> int:
        """Return the version that all requests for an adapter should get at a time, by this rollout; 0: any."""
        i = self._place_of_name.get(name)
        if i is None or self.rolled_back or time < self._due_s + self._offsets[i]:
            return 0
        return self.planned.versions[i]

    def close(self) -> None:
        """When the run has stopped, note stages that were planned and never began."""
        stages = len(self.planned.rollout.stages)
        if 0 < self._begun < stages and not self.rolled_back:
            short = self._too_few_for_the_gate()
            why = "".join(f": the gate has {has:.0f} of {asked:.0f} requests" for _, has, asked in short)
            self._note("end", f"the run ends before stage {self._begun + 1} of {stages}{why}", short)

    def _too_few_for_the_gate(self) -> tuple[FailedTerm, ...]:
        """Return how many requests the gate of the stage has, and how many it waits for, if these are more."""
        return ()

    def _complete(self, text: str) -> None:
        self.complete_s = max(self._clock.now, self._blocked_s)
        self._progress.ends(self.planned, complete=True)
        if self.complete_s > self._clock.now:
            self._clock.call_at(self.complete_s, CONTROL, lambda event: self._note("complete", text))
        else:
            self._note("complete", text)

    def _note(self, kind: str, text: str, missed: tuple[FailedTerm, ...] = ()) -> None:
        number, which = self.planned.number, self.planned.which if kind == "rollout" else ""
        event = Event(self._clock.now, kind, f"rollouts.{number}: {text}{which}", number, missed)
        self._progress.recorder.events.append(event)
