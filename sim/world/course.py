"""How far the rollouts of one replication are, as far as each request must know.

Before a rollout begins and after it is complete, nothing need be done for a request: what version answers it follows
from its adapter and the time. Only in between is it looked at.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from sim.results.records import Recorder
from sim.world.clock import Clock
from sim.world.lineage import Wave

if TYPE_CHECKING:
    from sim.world.shift import Shift


class Course:
    """What the rollouts of one replication have in common.

    :ivar moved: by adapter, the new version that all requests for it ask for, where that has a name of its own.
    :ivar shifting: by adapter, the rollout that decides which version a request asks for.
    :ivar draining: by adapter, the rollout that waits for the last request for it to leave.
    :ivar watched: adapters of which some requests may be answered by one version and some by another.
    :ivar settled: by adapter as the traffic numbers it, the version that the last complete rollout brought: what ends
        from then on, with nothing else written down, was answered by it.
    """

    def __init__(self, clock: Clock, recorder: Recorder) -> None:
        self._clock = clock
        self._recorder = recorder
        self.moved: dict[int, int] = {}
        self.shifting: dict[int, Shift] = {}
        self.draining: dict[int, Shift] = {}
        self.watched: set[int] = set()
        self.settled: dict[int, int] = {}

    def begins(self, wave: Wave) -> None:
        """Note that a rollout begins."""
        self.watched.update(wave.adapters, wave.copies)

    def ends(self, wave: Wave, *, complete: bool) -> None:
        """Note that a rollout is over.

        :param complete: every answer that ends from now on is by the new version; otherwise by the old one.
        """
        self.watched.difference_update(wave.adapters, wave.copies)
        if complete:
            self.settled.update(zip(wave.names, wave.versions, strict=True))
            self._recorder.settled.append((self._clock._now, np.array(wave.names), np.array(wave.versions)))
