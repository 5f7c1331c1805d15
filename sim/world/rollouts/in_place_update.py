"""A rollout that keeps the name: replicas replace the weights of an adapter, by one of several strategies."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Sequence
from functools import partial

import numpy as np

from sim.rng import stream, stream_key, uniform_draw
from sim.world.clock import CONTROL, Call
from sim.world.dispatcher import Dispatcher
from sim.world.rollouts.barriers import Barrier
from sim.world.rollouts.rollout_plan import PlannedRollout, note_missing_stages
from sim.world.rollouts.rollout_progress import RolloutContext
from sim.world.rollouts.version_state import VersionState
from sim.world.times import TierTimes


class InPlaceUpdate:
    """One rollout of any strategy except ``new-name``.

    :param state: of all replicas.
    :param from_storage: load times from storage.
    :ivar complete_s: time at which the last replica had the new version of the last adapter; nan before.
    """

    def __init__(
        self,
        planned: PlannedRollout,
        context: RolloutContext,
        state: VersionState,
        from_storage: TierTimes,
    ) -> None:
        seed, replication = context.seed, context.replication
        self.planned = planned
        self.complete_s = math.nan
        self._context = context
        self._clock = context.clock
        self._progress = context.progress
        self._versions = state.versions
        self._barriers = state.barriers
        self._held = state.held
        self._from_storage = from_storage
        self._rng = stream(seed, replication, "propagation", planned.number)
        self._key = stream_key(seed, replication, f"renewal-{planned.number}")
        count, replicas = len(planned.adapters), len(state.versions)
        self._place_of_name = {name: i for i, name in enumerate(planned.names)}
        self._offsets = [planned.rollout.spread * i / count for i in range(count)]
        self._over = [bytearray(count) for _ in range(replicas)]  # by replica, 1 for adapters that have been updated
        self._left = [count] * replicas
        self._begun: list[set[int]] = [set() for _ in range(replicas)]
        self._replicas_left = replicas
        self._stages_begun = 0
        self._fleet: Dispatcher

    def start(self, fleet: Dispatcher) -> None:
        """Put the start on every replica on the clock: for all adapters at once, or one by one."""
        self._fleet = fleet
        rollout, replicas = self.planned.rollout, len(self._versions)
        delays = rollout.delays(self._rng.random(replicas)).tolist()
        all_adapters = tuple(range(len(self._offsets)))
        first = 0
        for number, share in enumerate(rollout.stages):
            began_s, last = rollout.at + number * rollout.dwell, max(math.ceil(share * replicas - 1e-9), first)
            self._clock.call_at(began_s, CONTROL, self._note_stage, (number, last - first))
            at: dict[float, list[int]] = {}
            for replica in range(first, last):
                at.setdefault(began_s + delays[replica], []).append(replica)
            for there_s, together in at.items():
                if rollout.spread == 0:
                    self._clock.call_at(there_s, CONTROL, self._begin_all, (together, all_adapters))
                else:
                    self._clock.call_at(there_s, CONTROL, self._begin_next, (there_s, together, 0))
            first = last

    def due(self, name: int, time: float) -> int:
        """Return the version that all requests for an adapter should get at a time, by this rollout; 0: any."""
        i = self._place_of_name.get(name)
        rollout = self.planned.rollout
        if i is None or time < rollout.at + (len(rollout.stages) - 1) * rollout.dwell + self._offsets[i]:
            return 0
        return self.planned.versions[i]

    def replaced(self, replica: int) -> None:
        """Note that a replica has restarted empty: all updates that had begun there are done."""
        for i in list(self._begun[replica]):
            self._done(replica, i)

    def close(self) -> None:
        """When the run has stopped, note stages that were planned and never began."""
        if self._stages_begun:
            note_missing_stages(self.planned, self._stages_begun, self._note)

    def _note_stage(self, event: Call) -> None:
        number, replicas = event.subject
        self._stages_begun = number + 1
        if number == 0:
            self._progress.begins(self.planned)
        elif replicas == 0:
            return  # the stage before reached as many replicas: shares are rounded up
        text = f"{self.planned.rollout.strategy} on {replicas} replica{'s' if replicas != 1 else ''}"
        self._note("rollout" if number == 0 else "stage", text)

    def _begin_all(self, event: Call) -> None:
        replicas, chosen = event.subject
        for replica in replicas:
            self._begin(replica, chosen)

    def _begin_next(self, event: Call) -> None:
        """Begin with the next adapter on replicas that learn of it at the same time, and schedule the one after."""
        there_s, replicas, i = event.subject
        if i + 1 < len(self._offsets):
            event.subject = (there_s, replicas, i + 1)
            self._clock.schedule(there_s + self._offsets[i + 1], CONTROL, event)
        for replica in replicas:
            self._begin(replica, (i,))

    def _begin(self, replica: int, chosen: Sequence[int]) -> None:
        """Begin to update adapters on one replica."""
        planned, server, versions = self.planned, self._fleet.servers[replica], self._versions[replica]
        self._begun[replica].update(chosen)
        strategy, inside = planned.rollout.strategy, Counter[int]()
        drains = strategy in ("unload-then-load", "drain-then-swap")
        if drains:
            inside.update(request.adapter for request in server.all_requests())
        for i in chosen:
            adapter = planned.adapters[i]
            # A replica may learn of a later rollout first; files only become newer.
            versions.files[adapter] = max(planned.versions[i], versions.on_storage(adapter))
            if strategy == "lazy-reread":
                self._await_reading(replica, i)
            elif not drains:
                self._renew(replica, i, partial(self._done, replica, i))
            elif (closed := self._barriers.closed(replica, adapter)) is not None:
                closed.on_open.append(partial(self._begin, replica, (i,)))
            else:
                then = partial(self._renew, replica, i, partial(self._reopen, replica, i))
                self._barriers.close(replica, adapter, Barrier(strategy == "unload-then-load", inside[adapter], then))

    def _renew(self, replica: int, i: int, then: Callable[[], None]) -> None:
        """Load the new weights if the replica has a copy of the old ones; otherwise the next load reads them anyway."""
        copies, versions = self._fleet.servers[replica].copies, self._versions[replica]
        adapter, version = self.planned.adapters[i], self.planned.versions[i]
        if copies.drop_unless_read(adapter):
            versions.no_copy(adapter)
            then()
            return
        drawn = uniform_draw(self._key, replica * len(self._offsets) + i)
        seconds = float(self._from_storage.seconds(np.array([adapter]), np.array([drawn]))[0])

        def replace_weights() -> None:
            versions.in_host[adapter] = max(version, versions.in_host.get(adapter, 0))
            versions.put(adapter, version)
            then()

        copies.renew(adapter, seconds, replace_weights)

    def _reopen(self, replica: int, i: int) -> None:
        adapter = self.planned.adapters[i]
        barrier = self._barriers.open(replica, adapter)
        self._done(replica, i)
        self._held.release(self._fleet, replica, adapter)
        for begin in barrier.on_open:
            begin()

    def _await_reading(self, replica: int, i: int) -> None:
        adapter = self.planned.adapters[i]
        if self._fleet.servers[replica].copies.exist(adapter):
            self._versions[replica].awaits(adapter, partial(self._done, replica, i))
        else:
            self._done(replica, i)

    def _done(self, replica: int, i: int) -> None:
        over = self._over[replica]
        if over[i]:
            return
        over[i] = 1
        self._left[replica] -= 1
        self._begun[replica].discard(i)
        if not self._left[replica]:
            self._replicas_left -= 1
            if self._replicas_left == 0:
                self.complete_s = self._clock.now
                self._progress.ends(self.planned, complete=True)
                self._note("complete", "every replica has the new version")

    def _note(self, kind: str, text: str) -> None:
        self._context.note(self.planned, kind, text)
