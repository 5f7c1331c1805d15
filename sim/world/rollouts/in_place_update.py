"""A rollout that keeps the name: replicas replace the weights of an adapter, by one of several strategies."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial

import numpy as np

from sim.rng import stream_key, uniform_draw
from sim.traffic.request import Request
from sim.world.clock import CONTROL, Call, Clock
from sim.world.dispatcher import Dispatcher
from sim.world.rollouts.rollout_plan import PlannedRollout
from sim.world.rollouts.rollout_progress import ActiveRollout, RolloutProgress
from sim.world.rollouts.versions import Versions
from sim.world.times import TierTimes


@dataclass(slots=True)
class Barrier:
    """Keeps new requests from an adapter on one replica while its weights are replaced.

    :ivar refuses: new requests are refused; otherwise they wait.
    :ivar left: requests still inside that came before it closed.
    :ivar on_drained: called when the last of them has left.
    :ivar on_open: called when it is open again; for rollouts that found it closed.
    """

    refuses: bool
    left: int
    on_drained: Callable[[], None]
    on_open: list[Callable[[], None]] = field(default_factory=list)


class Barriers:
    """Closed barriers of all replicas, by adapter, and the requests that they hold: to the router, these are inside.

    :ivar count: number of closed barriers.
    :ivar held: by replica, requests that wait outside until it has the new version of their adapter.
    :ivar held_area: request-seconds spent held back: times of release minus times of arrival. A replica that closes
        counts those it still holds like any that are inside.
    """

    def __init__(self, clock: Clock, replicas: int) -> None:
        self._clock = clock
        self._barriers: list[dict[int, Barrier]] = [{} for _ in range(replicas)]
        self.count = 0
        self.held: list[list[Request]] = [[] for _ in range(replicas)]
        self.held_area = 0.0

    def closed(self, replica: int, adapter: int) -> Barrier | None:
        """Return the closed barrier of an adapter, or None."""
        return self._barriers[replica].get(adapter) if self.count else None

    def close(self, replica: int, adapter: int, barrier: Barrier) -> None:
        """Close a barrier; ``on_drained`` is called at once if no request is inside."""
        self._barriers[replica][adapter] = barrier
        self.count += 1
        if barrier.left == 0:
            barrier.on_drained()

    def hold(self, fleet: Dispatcher, replica: int, request: Request) -> None:
        """Hold back a request that arrives now."""
        fleet.inside[replica] += 1
        fleet.entered(request, replica)
        self.held_area -= self._clock.now
        self.held[replica].append(request)

    def left(self, replica: int, adapter: int) -> None:
        """Note that a request for an adapter has left a replica."""
        barrier = self.closed(replica, adapter)
        if barrier is not None and barrier.left:
            barrier.left -= 1
            if barrier.left == 0:
                barrier.on_drained()

    def open(self, replica: int, adapter: int) -> Barrier:
        """Open a barrier again and return it."""
        self.count -= 1
        return self._barriers[replica].pop(adapter)

    def release(self, fleet: Dispatcher, replica: int, adapter: int) -> None:
        """Let the requests for an adapter arrive, behind all that wait."""
        held = self.held[replica]
        self.held[replica] = [request for request in held if request.adapter != adapter]
        for request in held:
            if request.adapter == adapter:
                fleet.inside[replica] -= 1
                self.held_area += self._clock.now
                request.key = fleet.next_key()
                fleet.servers[replica].arrive(request)

    def forget(self, replica: int) -> None:
        """Open all barriers of a replica that has crashed, with no request inside."""
        self.count -= len(self._barriers[replica])
        self._barriers[replica] = {}
        self.held[replica] = []


class InPlaceUpdate(ActiveRollout):
    """One rollout of any strategy except ``new-name``.

    It is complete when the last replica has the new version of the last adapter.

    :param versions: of each replica.
    :param from_storage: load times from storage, by replica.
    """

    def __init__(
        self,
        planned: PlannedRollout,
        progress: RolloutProgress,
        seed: int,
        replication: int,
        versions: Sequence[Versions],
        barriers: Barriers,
        from_storage: Sequence[TierTimes],
    ) -> None:
        super().__init__(planned, progress, seed, replication)
        rollout, count, replicas = planned.rollout, len(planned.adapters), len(versions)
        self._due_s = rollout.at + (len(rollout.stages) - 1) * rollout.dwell
        self._versions = versions
        self._barriers = barriers
        self._from_storage = from_storage
        self._key = stream_key(seed, replication, f"renewal-{planned.number}")
        self._over = [bytearray(count) for _ in range(replicas)]  # by replica, 1 for adapters that have been updated
        self._left = [count] * replicas
        self._updating: list[set[int]] = [set() for _ in range(replicas)]
        self._replicas_left = replicas
        self._fleet: Dispatcher

    def start(self, fleet: Dispatcher) -> None:
        """Put the start on every replica on the clock."""
        self._fleet = fleet
        rollout, replicas = self.planned.rollout, len(self._versions)
        delays = rollout.delays(self._rng.random(replicas)).tolist()
        first = 0
        for number, share in enumerate(rollout.stages):
            began_s, last = rollout.at + number * rollout.dwell, max(math.ceil(share * replicas - 1e-9), first)
            self._clock.call_at(began_s, CONTROL, self._note_stage, (number, last - first))
            at: dict[float, list[int]] = {}
            for replica in range(first, last):
                at.setdefault(began_s + delays[replica], []).append(replica)
            for there_s, together in at.items():
                self._clock.process(self._reach(together, there_s))
            first = last

    def _reach(self, replicas: Sequence[int], there_s: float) -> Iterator[Call]:
        """Update replicas that learn of it at the same time: all adapters at once, or one by one."""
        count = len(self._offsets)
        for i in range(count if self.planned.rollout.spread else 1):
            yield self._clock.until(there_s + self._offsets[i])
            for replica in replicas:
                self._begin(replica, (i,) if self.planned.rollout.spread else range(count))

    def replaced(self, replica: int) -> None:
        """Note that a replica has restarted empty: all updates that had begun there are done."""
        for i in list(self._updating[replica]):
            self._done(replica, i)

    def _note_stage(self, event: Call) -> None:
        number, replicas = event.subject
        self._begun = number + 1
        if number == 0:
            self._progress.begins(self.planned)
        elif replicas == 0:
            return  # the stage before reached as many replicas: shares are rounded up
        text = f"{self.planned.rollout.strategy} on {replicas} replica{'s' if replicas != 1 else ''}"
        self._note("rollout" if number == 0 else "stage", text)

    def _begin(self, replica: int, chosen: Sequence[int]) -> None:
        planned, server, versions = self.planned, self._fleet.servers[replica], self._versions[replica]
        self._updating[replica].update(chosen)
        strategy, inside = planned.rollout.strategy, Counter[int]()
        drains = strategy in ("unload-then-load", "drain-then-swap")
        if drains:
            inside.update(request.adapter for request in server.all_requests())
        for i in chosen:
            adapter = planned.adapters[i]
            # A replica may learn of a later rollout first; files only become newer.
            versions.files[adapter] = max(planned.versions[i], versions.on_storage(adapter))
            if strategy == "lazy-reread":
                if server.copies.exist(adapter):
                    versions.awaits(adapter, partial(self._done, replica, i))
                else:
                    self._done(replica, i)
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
        seconds = float(self._from_storage[replica].seconds(np.array([adapter]), np.array([drawn]))[0])

        def replace_weights(start_s: float, end_s: float) -> None:
            self._progress.stands_still(replica, start_s, end_s)
            self._blocked_s = max(self._blocked_s, end_s)
            versions.in_host[adapter] = max(version, versions.in_host.get(adapter, 0))
            versions.put(adapter, version)
            then()

        copies.renew(adapter, seconds, replace_weights)

    def _reopen(self, replica: int, i: int) -> None:
        adapter = self.planned.adapters[i]
        barrier = self._barriers.open(replica, adapter)
        self._done(replica, i)
        self._barriers.release(self._fleet, replica, adapter)
        for begin in barrier.on_open:
            begin()

    def _done(self, replica: int, i: int) -> None:
        over = self._over[replica]
        if over[i]:
            return
        over[i] = 1
        self._left[replica] -= 1
        self._updating[replica].discard(i)
        if not self._left[replica]:
            self._replicas_left -= 1
            if self._replicas_left == 0:
                self._complete("every replica has the new version")
