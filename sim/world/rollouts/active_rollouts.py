"""All rollouts of one replication: which version answers each request, and what that does to requests."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np

from sim.results.records import GATED, MIXED, REFUSED, STALE, Recorder, pack_mark
from sim.traffic.request import Request
from sim.world.clock import Clock
from sim.world.replica.server import Server
from sim.world.rollouts.duplicate_version_bytes import DuplicateVersionBytes
from sim.world.rollouts.in_place_update import Barriers, InPlaceUpdate
from sim.world.rollouts.rollout_plan import RolloutPlan
from sim.world.rollouts.rollout_progress import RolloutContext, RolloutProgress
from sim.world.rollouts.traffic_shift import TrafficShift
from sim.world.rollouts.versions import Versions
from sim.world.routing.router_instances import RouterInstances
from sim.world.times import Retarget, tier_times
from sim.world.world import World


@dataclass(frozen=True, slots=True)
class VersionState:
    """Versions of adapters on all replicas.

    :ivar versions: by replica; a restarted replica keeps its object, emptied.
    :ivar duplicate_bytes: bytes of old versions in GPU memory that also holds the new one.
    """

    versions: Sequence[Versions]
    barriers: Barriers
    duplicate_bytes: DuplicateVersionBytes


class Rollouts:
    """Rollouts of one replication.

    :ivar renames: whether a new version has a name of its own, so that requests must be steered; ``holds``: whether
        requests may have to wait for a new version.
    :ivar barriers: closed barriers of the replicas; while there are none, every request is accepted.
    :ivar on_weights_replaced: called with replica, adapter, and whether requests are in progress with it, when a new
        version replaces an older one of the same name; optional.
    """

    def __init__(
        self,
        rollout_plan: RolloutPlan,
        context: RolloutContext,
        shifts: Sequence[TrafficShift],
        updates: Sequence[InPlaceUpdate],
        state: VersionState,
        retarget: Callable[[Request, int], None],
    ) -> None:
        self._retarget = retarget
        self.renames = bool(shifts)
        self.holds = any(update.planned.rollout.strategy == "drain-then-swap" for update in updates)
        self.original: list[int] = rollout_plan.original.tolist()
        self._progress = context.progress
        self._shifts = shifts
        self._updates = updates
        self._parts: tuple[TrafficShift | InPlaceUpdate, ...] = (*shifts, *updates)
        self._parts_of: dict[int, list[TrafficShift | InPlaceUpdate]] = {}
        for part in self._parts:
            for name in part.planned.names:
                self._parts_of.setdefault(name, []).append(part)
        self.barriers = state.barriers
        self._versions = state.versions
        self._recorder = context.recorder
        self._duplicate_bytes = state.duplicate_bytes
        self.on_weights_replaced: Callable[[int, int, bool], None] | None = None
        self._servers: list[Server] = []
        self._gated = {
            copy: shift for shift in shifts if shift.planned.rollout.gate for copy in shift.planned.new_adapters
        }
        # By request whose version changed during its answer: (version, tokens out when that version was replaced).
        self._started: dict[int, list[tuple[int, int]]] = {}
        for replica, of_replica in enumerate(state.versions):
            of_replica.on_change = partial(self._changed, replica)

    def start(self, servers: list[Server]) -> None:
        """Put all stages on the clock.

        :param servers: the fleet's own list, in which a replica may be replaced.
        """
        self._servers = servers
        for part in self._parts:
            part.start(servers)

    def restore(self, request: Request) -> None:
        """Reset the adapter of a request that is sent again, whatever version it had before."""
        name = self.original[request.adapter]
        if name != request.adapter:
            self._retarget(request, name)

    def steer(self, request: Request) -> None:
        """Decide the version of a request, if versions have names of their own."""
        moved, shifting = self._progress.moved, self._progress.shifting
        while True:
            adapter = request.adapter
            copy = moved.get(adapter)
            if copy is not None:
                self._retarget(request, copy)
            elif not shifting or adapter not in shifting or not shifting[adapter].moves(request):
                return

    def pinned(self, adapters: Sequence[int]) -> tuple[int, ...]:
        """Return the versions that are pinned now, given the adapters pinned at the start."""
        pin_of, pinned = self._progress.pin_of, []
        for adapter in adapters:
            while adapter in pin_of:
                adapter = pin_of[adapter]
            pinned.append(adapter)
        return tuple(pinned)

    def refuse(self, request: Request, replica: int) -> None:
        """Refuse a request whose adapter is being updated."""
        self._recorder.record_unserved(request, replica, REFUSED)
        self._recorder.marked(request.index, GATED)

    def last_token_callback(self, replica: int) -> Callable[[Request, float], bool]:
        """Return ``ended`` for one replica, cheap for requests that no rollout concerns at that time."""
        progress, barriers, started = self._progress, self.barriers, self._started
        in_transition, draining = progress.in_transition, progress.draining

        def ends(request: Request, now: float) -> bool:
            if request.adapter in in_transition or started or draining or barriers.count:
                self.ended(replica, request, now)
            return False

        return ends

    def ended(self, replica: int, request: Request, now: float) -> None:
        """Record the versions that have answered a request."""
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
        """Note that a request will not be answered: its replica crashed, or its adapter could not be loaded."""
        if request.adapter in self._gated:
            self._gated[request.adapter].failed(request)

    def broken_off(self, replica: int, request: Request, *, whole: bool) -> None:
        """Record the versions behind the tokens of a request that ends incomplete.

        These tokens were streamed, so the answer may be mixed or stale like any other. Call it before the replica
        forgets the request.

        :param whole: whether it has all its tokens, and was found wrong.
        """
        if request.first_token_s >= 0 and request.adapter < len(self.original):  # otherwise the base model answers it
            first, last, tokens, marks = self._answered_by(replica, request, whole=whole)
            self._recorder.mark_rows += pack_mark(request.index, marks, first, last, tokens, 0)

    def _answered_by(self, replica: int, request: Request, *, whole: bool) -> tuple[int, int, int, int]:
        """Return the versions of the first and the last token, the tokens by versions before the last, and marks."""
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
        """Note that a request left a replica unserved."""
        self._started.pop(request.index, None)
        self._no_longer(replica, request.adapter)

    def _no_longer(self, replica: int, adapter: int) -> None:
        draining = self._progress.draining
        if draining and adapter in draining:
            draining[adapter].left(adapter)
        if self.barriers.count:
            self.barriers.left(replica, adapter)

    def replaced(self, replica: int) -> None:
        """Note that a replica restarts empty: what it loads from now on is current."""
        self.barriers.forget(replica)
        self._versions[replica].forget()
        self._duplicate_bytes.forget(replica)
        for update in self._updates:
            update.replaced(replica)

    def close(self) -> dict[str, float]:
        """Return facts of the run, such as the duration of all rollouts (nan: not complete)."""
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
            "extra_resident_bytes_peak": float(self._duplicate_bytes.peak),
        }

    def _changed(self, replica: int, adapter: int, old: int, new: int) -> None:
        """Note that a new version answers the requests in progress on a replica from now on."""
        under_way = self._servers[replica].under_way(adapter)
        if self.on_weights_replaced is not None:
            self.on_weights_replaced(replica, adapter, bool(under_way))
        for request, tokens in under_way:
            past = self._started.setdefault(request.index, [])
            if not past or past[-1][1] < tokens:  # otherwise the old version gave it no token
                past.append((old, tokens))

    def _due(self, name: int, time: float) -> int:
        """Return the version that all requests should get at a time: 1 before the first cutover."""
        return max([part.due(name, time) for part in self._parts_of.get(name, ())], default=1)


def make_rollouts(
    world: World, replication: int, clock: Clock, recorder: Recorder
) -> tuple[Rollouts, list[Versions], DuplicateVersionBytes]:
    """Return the rollouts of one replication, the versions of every replica, and the counter of duplicate bytes."""
    rollout_plan, scenario = world.rollout_plan, world.scenario
    assert rollout_plan is not None, "called only if there are rollouts"
    seed, replicas = scenario.run.seed, scenario.fleet.replicas
    costs = scenario, world.profile, world.population
    versions = [Versions(rollout_plan.initial_versions) for _ in range(replicas)]
    barriers = Barriers(replicas)
    from_storage, _ = tier_times(*costs)
    routers = RouterInstances(scenario.router.instances, seed, replication)
    context = RolloutContext(clock, recorder, RolloutProgress(clock, recorder), seed, replication)
    resized = any(rollout.rank is not None or rollout.size is not None for rollout in scenario.rollouts)
    retarget: Callable[[Request, int], None] = Retarget(*costs) if resized else _rename
    renaming = [planned for planned in rollout_plan.rollouts if planned.new_adapters]
    in_place = [planned for planned in rollout_plan.rollouts if not planned.new_adapters]
    shifts = [TrafficShift(planned, context, retarget, routers) for planned in renaming]
    updates = [InPlaceUpdate(planned, context, versions, barriers, from_storage) for planned in in_place]
    renamed = {name for planned in renaming for name in planned.names}
    sizes = world.population.size_bytes.tolist()
    duplicate_bytes = DuplicateVersionBytes(rollout_plan.original.tolist(), sizes, renamed)
    state = VersionState(versions, barriers, duplicate_bytes)
    return Rollouts(rollout_plan, context, shifts, updates, state, retarget), versions, duplicate_bytes


def _rename(request: Request, adapter: int) -> None:
    """Send a request to an adapter of the same size, whose loads take as long."""
    request.adapter = adapter
