"""All rollouts of one replication: which version answers each request, and what that does to requests."""

from __future__ import annotations

from collections.abc import Callable, Container, Sequence
from functools import partial

import numpy as np

from sim.results.recording.recorder import Recorder
from sim.results.records import GATED, LOAD_FAILED, LOST, MIXED, REFUSED, STALE
from sim.traffic.request import Request
from sim.world.clock import Clock
from sim.world.dispatcher import Dispatcher, Extension
from sim.world.rollouts.in_place_update import Barriers, InPlaceUpdate
from sim.world.rollouts.rollout_progress import RolloutProgress
from sim.world.rollouts.traffic_shift import TrafficShift
from sim.world.rollouts.versions import DuplicateVersionBytes, HostLoadVersions, Versions
from sim.world.routing.router_state import RouterInstances
from sim.world.times import Retarget, TierTimes, tier_times
from sim.world.world import World

WeightsReplaced = Callable[[int, int, bool, float], bool]
"""Is called when a new version of an adapter replaces the old one on a replica, whether requests are in progress with
it, and when. Returns whether requests for the new version find cached prefixes of the old one."""


class Rollouts(Extension):
    """Rollouts of one replication.

    :param weights_replaced: called when a new version replaces an older one of the same name.
    :param misrouted: numbers of requests that reach a wrong adapter: no version of their own one answers them.
    :ivar barriers: closed barriers of the replicas; while there are none, every request is accepted.
    """

    def __init__(
        self,
        world: World,
        replication: int,
        clock: Clock,
        recorder: Recorder,
        weights_replaced: WeightsReplaced,
        misrouted: Container[int],
    ) -> None:
        super().__init__()
        plan, scenario, seed = world.rollout_plan, world.scenario, world.scenario.run.seed
        self.original: list[int] = plan.original.tolist()
        self._clock, self._recorder = clock, recorder
        self._progress = progress = RolloutProgress(clock, recorder)
        initial, replicas = plan.initial_versions, range(world.replicas)
        self._versions = [Versions(initial, partial(self._changed, replica)) for replica in replicas]
        self.barriers = Barriers(clock, len(self._versions))
        first = world.pools[0]
        costs = first.scenario, first.profile, first.population
        resized = any(rollout.rank or rollout.size for rollout in scenario.rollouts)
        self._retarget: Callable[[Request, int], None] = Retarget(*costs) if resized else _rename
        routers = RouterInstances(scenario.router.instances, seed, replication)
        self._shifts = [
            TrafficShift(planned, progress, seed, replication, self._retarget, routers)
            for planned in plan.rollouts
            if planned.new_adapters
        ]
        from_storage: list[TierTimes] = []  # by replica
        for pool in world.pools:
            from_storage += [tier_times(pool.scenario, pool.profile, pool.population)[0]] * pool.replicas
        self._updates = [
            InPlaceUpdate(planned, progress, seed, replication, self._versions, self.barriers, from_storage)
            for planned in plan.rollouts
            if not planned.new_adapters
        ]
        self._parts: tuple[TrafficShift | InPlaceUpdate, ...] = (*self._shifts, *self._updates)
        self._parts_of: dict[int, list[TrafficShift | InPlaceUpdate]] = {}
        for part in self._parts:
            for name in part.planned.names:
                self._parts_of.setdefault(name, []).append(part)
        self.reorders = any(update.planned.rollout.strategy == "drain-then-swap" for update in self._updates)
        # The engine isn't told that files were overwritten, so it keeps what it cached under the adapter's name.
        self._unannounced = {
            adapter
            for update in self._updates
            if update.planned.rollout.strategy == "lazy-reread"
            for adapter in update.planned.adapters
        }
        self._gated = {
            copy: shift for shift in self._shifts if shift.planned.rollout.gate for copy in shift.planned.new_adapters
        }
        renamed = {name for shift in self._shifts for name in shift.planned.names}
        sizes = np.max([pool.population.size_bytes for pool in world.pools], axis=0)
        self._duplicate_bytes = DuplicateVersionBytes(self.original, sizes.tolist(), renamed)
        self._weights_replaced = weights_replaced
        self._misrouted = misrouted
        # By request whose version changed during its answer: (version, tokens out when that version was replaced).
        self._started: dict[int, list[tuple[int, int]]] = {}

    def versions(self, replica: int) -> tuple[Versions, HostLoadVersions]:
        """Return the versions that loads on a replica read: to the GPU, and to host memory where those come first."""
        return self._versions[replica], HostLoadVersions(self._versions[replica])

    def cache_listeners(self) -> list[DuplicateVersionBytes]:
        """Return what must know which adapters come to, and leave, the caches of the replicas."""
        return [self._duplicate_bytes] if self._shifts else []

    def start(self, fleet: Dispatcher) -> None:
        super().start(fleet)
        for part in self._parts:
            part.start(fleet)

    def restore(self, request: Request) -> None:
        if request.adapter == len(self.original):
            return  # it is for the base model
        name = self.original[request.adapter]
        if name != request.adapter:
            self._retarget(request, name)

    def receive(self, request: Request) -> bool:
        """Decide the version of a request, if versions have names of their own."""
        moved, shifting = self._progress.moved, self._progress.shifting
        while True:
            adapter = request.adapter
            copy = moved.get(adapter)
            if copy is not None:
                self._retarget(request, copy)
            elif not shifting or adapter not in shifting or not shifting[adapter].moves(request):
                return True

    def pinned(self, adapters: Sequence[int]) -> tuple[int, ...]:
        """Return the versions that are pinned now, given the adapters pinned at the start."""
        pin_of, pinned = self._progress.pin_of, []
        for adapter in adapters:
            while adapter in pin_of:
                adapter = pin_of[adapter]
            pinned.append(adapter)
        return tuple(pinned)

    def accept(self, request: Request, replica: int) -> bool:
        """Refuse a request whose adapter is being updated, or let it wait outside until that is done."""
        barrier = self.barriers.closed(replica, request.adapter)
        if barrier is None:
            return True
        if barrier.refuses:
            self._recorder.record_unserved(request, replica, REFUSED)
            self._recorder.mark_request(request.index, GATED)
        else:
            self.barriers.hold(self._fleet, replica, request)
        return False

    def held(self, replica: int) -> list[Request]:
        return self.barriers.held[replica]

    def ended(self, request: Request, replica: int, now: float) -> bool:
        """Record the versions that have answered a request."""
        adapter = request.adapter
        if adapter not in self._progress.in_transition and request.index not in self._started:
            return False
        if request.index not in self._misrouted:
            first, last, tokens, marks = self._answered_by(replica, request, whole=True)
            name = self.original[adapter]
            if marks or last != self._progress.settled.get(name, 1):
                self._recorder.mark_request(request.index, marks, (first, last), tokens)
            else:
                self._progress.unmarked(now, request.index, name, last)
            if adapter in self._gated:
                self._gated[adapter].ended(request, now)
        return False

    def failed(self, request: Request, replica: int, marks: int) -> None:
        if not marks & LOST:  # lost requests were recorded before their replica lost its state
            self._cut_off(request, replica, whole=not marks)
        if marks & (LOST | LOAD_FAILED) and request.adapter in self._gated:
            self._gated[request.adapter].failed(request)

    def broken_off(self, request: Request, replica: int) -> None:
        self._cut_off(request, replica, whole=False)

    def _cut_off(self, request: Request, replica: int, *, whole: bool) -> None:
        """Record the versions behind the tokens of a request that ends incomplete.

        These tokens were streamed, so the answer may be mixed or stale like any other.

        :param whole: whether it has all its tokens, and was found wrong.
        """
        if request.first_token_s >= 0 and request.adapter < len(self.original):  # otherwise the base model answers it
            first, last, tokens, marks = self._answered_by(replica, request, whole=whole)
            self._recorder.mark_request(request.index, marks, (first, last), tokens)

    def _answered_by(self, replica: int, request: Request, *, whole: bool) -> tuple[int, int, int, int]:
        """Return the versions of the first and the last token, the tokens by versions before the last, and marks."""
        last, tokens = self._versions[replica].of(request.adapter), 0
        past = self._started.get(request.index)
        first = last
        if past is not None:
            (first, _), (_, tokens) = past[0], past[-1]
            if (
                not whole and self._fleet.servers[replica].tokens_out(request) == tokens
            ):  # none by the version that is there now
                last, tokens = past[-1][0], past[-2][1] if len(past) > 1 else 0
        marks = MIXED if first != last else 0
        if first < self._due(self.original[request.adapter], request.arrival_s):
            marks |= STALE
        return first, last, tokens, marks

    def left(self, request: Request, replica: int) -> None:
        adapter, draining = request.adapter, self._progress.draining
        if self._started:
            self._started.pop(request.index, None)
        if draining and adapter in draining:
            draining[adapter].left(adapter)
        if self.barriers.count:
            self.barriers.left(replica, adapter)

    def replaced(self, replica: int) -> None:
        self.barriers.forget(replica)
        self._versions[replica].forget()
        self._duplicate_bytes.forget(replica)
        for update in self._updates:
            update.replaced(replica)

    def close(self) -> dict[str, float]:
        parts = self._parts
        self.outside_area = self.barriers.held_area
        for part in parts:
            part.close()
        begins = [part.planned.rollout.at for part in parts]
        whole = [part.complete_s - part.planned.rollout.at for part in parts]
        ends = [part.planned.rollout.at + (part.planned.rollout.observe or float("inf")) for part in parts]
        return {
            "rollout_duration_s": float(np.max(whole)),
            "rolled_back": float(sum(shift.rolled_back for shift in self._shifts)),
            "rollout_standstill_s": self._progress.standstill_s,
            "during_from_s": min(begins),
            "during_to_s": max(ends),
            "extra_resident_bytes_peak": float(self._duplicate_bytes.peak),
        }

    def _changed(self, replica: int, adapter: int, old: int, new: int) -> None:
        """Note that a new version answers the requests in progress on a replica from now on."""
        server = self._fleet.servers[replica]
        in_progress = server.in_progress(adapter)
        keeps = self._weights_replaced(replica, adapter, bool(in_progress), self._clock.now)
        server.weights_replaced(adapter, keeps or adapter in self._unannounced)
        for request, tokens in in_progress:
            past = self._started.setdefault(request.index, [])
            if not past or past[-1][1] < tokens:  # otherwise the old version gave it no token
                past.append((old, tokens))

    def _due(self, name: int, time: float) -> int:
        """Return the version that all requests should get at a time: 1 before the first cutover."""
        return max([part.due(name, time) for part in self._parts_of.get(name, ())], default=1)


def _rename(request: Request, adapter: int) -> None:
    request.adapter = adapter
