"""All rollouts of one replication: who is answered by which version, and what that does to requests."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial

import numpy as np

from sim.results.records import GATED, MIXED, REFUSED, STALE, Recorder, pack_mark
from sim.traffic.request import Request
from sim.world.clock import Clock
from sim.world.replica.server import Server
from sim.world.rollouts.duplicate_version_bytes import DuplicateVersionBytes
from sim.world.rollouts.in_place_update import Barriers, InPlaceUpdate
from sim.world.rollouts.rollout_plan import RolloutPlan
from sim.world.rollouts.rollout_progress import RolloutProgress
from sim.world.rollouts.traffic_shift import TrafficShift
from sim.world.rollouts.versions import Versions
from sim.world.routing.router_instances import RouterInstances
from sim.world.times import Retarget, tier_times
from sim.world.world import World


class Rollouts:
    """Rollouts of one replication.

    :param versions: by replica, which versions it has; those of a replica that takes the place of a dead one are the
        same object, emptied.
    :ivar renames: whether a new version has a name of its own, so that requests must be steered; ``holds``: whether
        requests may have to wait for a new version.
    :ivar gates: closed gates of the replicas; while there are none, every request is let in.
    :ivar extra: bytes of old versions beside new ones in GPU memory.
    :ivar swapped: told of every new version that takes the place of an older one of the same name: replica, adapter,
        and whether requests are under way that use it; None: nobody wants to know.
    """

    def __init__(
        self,
        rollout_plan: RolloutPlan,
        progress: RolloutProgress,
        shifts: Sequence[TrafficShift],
        updates: Sequence[InPlaceUpdate],
        barriers: Barriers,
        versions: Sequence[Versions],
        recorder: Recorder,
        duplicate_bytes: DuplicateVersionBytes,
        retarget: Callable[[Request, int], None],
    ) -> None:
        self._retarget = retarget
        self.renames = bool(shifts)
        self.holds = any(update.planned.rollout.strategy == "drain-then-swap" for update in updates)
        self.original: list[int] = rollout_plan.original.tolist()
        self._progress = progress
        self._shifts = shifts
        self._updates = updates
        self._parts: tuple[TrafficShift | InPlaceUpdate, ...] = (*shifts, *updates)
        self._parts_of: dict[int, list[TrafficShift | InPlaceUpdate]] = {}
        for part in self._parts:
            for name in part.planned.names:
                self._parts_of.setdefault(name, []).append(part)
        self.barriers = barriers
        self._versions = versions
        self._recorder = recorder
        self.duplicate_bytes = duplicate_bytes
        self.on_weights_replaced: Callable[[int, int, bool], None] | None = None
        self._servers: list[Server] = []
        self._gated = {
            copy: shift for shift in shifts if shift.planned.rollout.gate for copy in shift.planned.new_adapters
        }
        # By request across whose answer its version changed: which version computed it until how many tokens were out.
        self._started: dict[int, list[tuple[int, int]]] = {}
        for replica, of_replica in enumerate(versions):
            of_replica.on_change = partial(self._changed, replica)

    def start(self, servers: list[Server]) -> None:
        """Put all stages on the clock.

        :param servers: the fleet's own list, in which a replica may be replaced.
        """
        self._servers = servers
        for part in self._parts:
            part.start(servers)

    def restore(self, request: Request) -> None:
        """Let a request that comes again ask for its adapter, whatever version it was to get before."""
        name = self.original[request.adapter]
        if name != request.adapter:
            self._retarget(request, name)

    def steer(self, request: Request) -> None:
        """Decide which version a request asks for, where versions have names of their own."""
        moved, shifting = self._progress.moved, self._progress.shifting
        while True:
            adapter = request.adapter
            copy = moved.get(adapter)
            if copy is not None:
                self._retarget(request, copy)
            elif not shifting or adapter not in shifting or not shifting[adapter].moves(request):
                return

    def pinned(self, adapters: Sequence[int]) -> tuple[int, ...]:
        """Return which versions are pinned now of adapters that were pinned at the start."""
        pin_of, pinned = self._progress.pin_of, []
        for adapter in adapters:
            while adapter in pin_of:
                adapter = pin_of[adapter]
            pinned.append(adapter)
        return tuple(pinned)

    def refuse(self, request: Request, replica: int) -> None:
        """Refuse a request whose adapter is being replaced."""
        self._recorder.record_unserved(request, replica, REFUSED)
        self._recorder.marked(request.index, GATED)

    def last_token_callback(self, replica: int) -> Callable[[Request, float], bool]:
        """Return ``ended`` for one replica, made cheap for requests that no rollout concerns just then."""
        progress, barriers, started = self._progress, self.barriers, self._started
        in_transition, draining = progress.in_transition, progress.draining

        def ends(request: Request, now: float) -> bool:
            if request.adapter in in_transition or started or draining or barriers.count:
                self.ended(replica, request, now)
            return False

        return ends

    def ended(self, replica: int, request: Request, now: float) -> None:
        """Note which versions have answered a request."""
        adapter = request.adapter
        if adapter in self._progress.in_transition or request.index in self._started:
            first, last, tokens, marks = self._answered_by(replica, request, whole=True)
            self._started.pop(request.index, None)
            name = self.original[adapter]
            if marks or last != self._progress.settled.get(name, 1):
                self._recorder.mark_rows += pack_mark(request.index, marks, first, last, tokens, 0)
            else:
                self._progress.unmarked(now, request.index, name, last)
            if adapter in self._gated:
                self._gated[adapter].ended(request, now)
        self._no_longer(replica, adapter)

    def failed(self, request: Request) -> None:
        """Note that a request will never be answered: its replica died, or its adapter couldn't be loaded."""
        if request.adapter in self._gated:
            self._gated[request.adapter].failed(request)

    def broken_off(self, replica: int, request: Request, *, whole: bool) -> None:
        """Note which versions a request has tokens of that will get no more, though it has not completed.

        These tokens were streamed, so it may be mixed or stale like any other. Told before the replica forgets it.

        :param whole: whether it has all its tokens, and was found wrong.
        """
        if request.first_token_s >= 0 and request.adapter < len(self.original):  # else by the base model
            first, last, tokens, marks = self._answered_by(replica, request, whole=whole)
            self._recorder.mark_rows += pack_mark(request.index, marks, first, last, tokens, 0)

    def _answered_by(self, replica: int, request: Request, *, whole: bool) -> tuple[int, int, int, int]:
        """Return versions of the first and the last token, tokens by others than the last, and marks."""
        last, tokens = self._versions[replica].of(request.adapter), 0
        past = self._started.get(request.index)
        first = last
        if past is not None:
            (first, _), (_, tokens) = past[0], past[-1]
            if (
                not whole and self._servers[replica].tokens_out(request) == tokens
            ):  # none by the version that is there now
                last, tokens = past[-1][0], past[-2][1] if len(past) > 1 else 0
        marks = MIXED if first != last else 0
        if first < self._due(self.original[request.adapter], request.arrival_s):
            marks |= STALE
        return first, last, tokens, marks

    def left(self, replica: int, request: Request) -> None:
        """Note that a request left a replica without being answered."""
        self._started.pop(request.index, None)
        self._no_longer(replica, request.adapter)

    def _no_longer(self, replica: int, adapter: int) -> None:
        draining = self._progress.draining
        if draining and adapter in draining:
            draining[adapter].left(adapter)
        if self.barriers.count:
            self.barriers.left(replica, adapter)

    def replaced(self, replica: int) -> None:
        """Note that a replica begins anew, empty: what it loads from now on is what it should have."""
        self.barriers.forget(replica)
        self._versions[replica].forget()
        self.duplicate_bytes.forget(replica)
        for update in self._updates:
            update.replaced(replica)

    def close(self) -> dict[str, float]:
        """Return how long it took (nan: not complete), and the most bytes that old versions took beside new ones."""
        parts = self._parts
        for part in parts:
            part.close()
        begins = [part.planned.rollout.at for part in parts]
        whole = [part.complete_s - part.planned.rollout.at for part in parts]
        ends = [part.planned.rollout.at + (part.planned.rollout.observe or float("inf")) for part in parts]
        return {
            "rollout_duration_s": float(np.max(whole)),
            "rolled_back": float(sum(shift.rolled_back for shift in self._shifts)),
            "during_from_s": min(begins),
            "during_to_s": max(ends),
            "extra_resident_bytes_peak": float(self.duplicate_bytes.peak),
        }

    def _changed(self, replica: int, adapter: int, old: int, new: int) -> None:
        """Note that requests under way on a replica are answered by a new version from now on."""
        under_way = self._servers[replica].under_way(adapter)
        if self.on_weights_replaced is not None:
            self.on_weights_replaced(replica, adapter, bool(under_way))
        for request, tokens in under_way:
            past = self._started.setdefault(request.index, [])
            if not past or past[-1][1] < tokens:  # else it got no token by the version that goes
                past.append((old, tokens))

    def _due(self, name: int, time: float) -> int:
        """Return the version that everybody was to have at a time: 1 before the first cutover."""
        return max([part.due(name, time) for part in self._parts_of.get(name, ())], default=1)


def make_rollouts(
    world: World, replication: int, clock: Clock, recorder: Recorder
) -> tuple[Rollouts, list[Versions], DuplicateVersionBytes]:
    """Return the rollouts of one replication, the versions of every replica, and what counts the bytes of old ones."""
    rollout_plan, scenario = world.rollout_plan, world.scenario
    assert rollout_plan is not None, "made where there are rollouts"
    seed, replicas = scenario.run.seed, scenario.fleet.replicas
    costs = scenario, world.profile, world.population
    versions = [Versions(rollout_plan.initial_versions) for _ in range(replicas)]
    barriers = Barriers(replicas)
    from_storage, _ = tier_times(*costs)
    routers = RouterInstances(scenario.router.instances, seed, replication)
    progress = RolloutProgress(clock, recorder)
    resized = any(rollout.rank is not None or rollout.size is not None for rollout in scenario.rollouts)
    retarget: Callable[[Request, int], None] = Retarget(*costs) if resized else _rename
    shifts = [
        TrafficShift(planned, clock, recorder, progress, retarget, routers, seed, replication)
        for planned in rollout_plan.rollouts
        if planned.new_adapters
    ]
    updates = [
        InPlaceUpdate(planned, clock, recorder, progress, versions, barriers, from_storage, seed, replication)
        for planned in rollout_plan.rollouts
        if not planned.new_adapters
    ]
    named = {name for planned in rollout_plan.rollouts if planned.new_adapters for name in planned.names}
    duplicate_bytes = DuplicateVersionBytes(rollout_plan.original.tolist(), world.population.size_bytes.tolist(), named)
    rollouts = Rollouts(
        rollout_plan, progress, shifts, updates, barriers, versions, recorder, duplicate_bytes, retarget
    )
    return rollouts, versions, duplicate_bytes


def _rename(request: Request, adapter: int) -> None:
    """Let a request ask for an adapter whose loads take as long."""
    request.adapter = adapter
