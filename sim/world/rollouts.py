"""All rollouts of one replication: who is answered by which version, and what that does to requests."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

import numpy as np

from sim.results.records import GATED, MIXED, REFUSED, STALE, Recorder, pack_mark
from sim.traffic.request import Request
from sim.world.clock import Clock
from sim.world.extra_bytes import ExtraBytes
from sim.world.lineage import Lineage
from sim.world.server import Server
from sim.world.shift import Shift
from sim.world.swap import Gates, Swap
from sim.world.times import Readdress, tier_times
from sim.world.versions import Versions
from sim.world.world import World


class Rollouts:
    """Rollouts of one replication.

    :param versions: by replica, which versions it has; those of a replica that takes the place of a dead one are the
        same object, emptied.
    :ivar extra: bytes of old versions beside new ones in GPU memory.
    """

    def __init__(
        self,
        lineage: Lineage,
        shifts: Sequence[Shift],
        swaps: Sequence[Swap],
        gates: Gates,
        versions: Sequence[Versions],
        recorder: Recorder,
        extra: ExtraBytes,
    ) -> None:
        self._original: list[int] = lineage.original.tolist()
        self._shifts = shifts
        self._swaps = swaps
        self._parts: tuple[Shift | Swap, ...] = (*shifts, *swaps)
        self._gates = gates
        self._versions = versions
        self._recorder = recorder
        self.extra = extra
        self._servers: list[Server] = []
        self._concerned = {a for wave in lineage.waves for a in (*wave.adapters, *wave.copies)}
        self._started: dict[int, tuple[int, int]] = {}
        for replica, of_replica in enumerate(versions):
            of_replica.changed = partial(self._changed, replica)

    def start(self, servers: list[Server]) -> None:
        """Put all stages on the clock.

        :param servers: the fleet's own list, in which a replica may be replaced.
        """
        self._servers = servers
        for part in self._parts:
            part.start(servers)

    def steer(self, request: Request) -> None:
        """Decide which version a request asks for, where versions have names of their own."""
        if request.adapter in self._concerned:
            for shift in self._shifts:
                shift.steer(request)

    def lets_in(self, request: Request, replica: int) -> bool:
        """Return whether a replica takes requests for this adapter now; those that wait are held there."""
        gate = self._gates.closed(replica, request.adapter)
        if gate is None:
            return True
        if gate.refuses:
            self._recorder.turned_away(request, replica, REFUSED)
            self._recorder.mark_rows += pack_mark(request.index, GATED, 0, 0, 0, 0)
            self._no_longer(request)
        else:
            self._servers[replica].hold(request)
        return False

    def ended(self, replica: int, request: Request, now: float) -> None:
        """Note which versions have answered a request."""
        adapter = request.adapter
        if adapter not in self._concerned:
            return
        last = self._versions[replica].of(adapter)
        first, tokens = self._started.pop(request.index, (last, 0))
        marks = MIXED if first != last else 0
        if first < self._due(self._original[adapter], request.arrival_s):
            marks |= STALE
        if marks or last > 1:
            self._recorder.mark_rows += pack_mark(request.index, marks, first, last, tokens, 0)
        for shift in self._shifts:
            shift.ended(request, now)
        self._gates.left(replica, adapter)

    def left(self, replica: int, request: Request) -> None:
        """Note that a request left a replica without being answered."""
        self._started.pop(request.index, None)
        if request.adapter in self._concerned:
            self._no_longer(request)
            self._gates.left(replica, request.adapter)

    def replaced(self, replica: int) -> None:
        """Note that a replica begins anew, empty: what it loads from now on is what it should have."""
        self._gates.forget(replica)
        self._versions[replica].forget()
        self.extra.forget(replica)
        for swap in self._swaps:
            swap.replaced(replica)

    def close(self) -> dict[str, float]:
        """Return how long it took (nan: not complete), and the most bytes that old versions took beside new ones."""
        parts = self._parts
        begins = [part.wave.rollout.at for part in parts]
        whole = [part.complete_s - part.wave.rollout.at for part in parts]
        ends = [part.wave.rollout.at + (part.wave.rollout.observe or float("inf")) for part in parts]
        return {
            "rollout_duration_s": float(np.max(whole)),
            "rolled_back": float(sum(shift.rolled_back for shift in self._shifts)),
            "during_from_s": min(begins),
            "during_to_s": max(ends),
            "extra_resident_bytes_peak": float(self.extra.peak),
        }

    def _no_longer(self, request: Request) -> None:
        for shift in self._shifts:
            shift.left(request)

    def _changed(self, replica: int, adapter: int, old: int, new: int) -> None:
        """Note that requests under way on a replica are answered by a new version from now on."""
        for request, tokens in self._servers[replica].under_way(adapter):
            first, _ = self._started.get(request.index, (old, 0))
            self._started[request.index] = first, tokens

    def _due(self, name: int, time: float) -> int:
        """Return the version that everybody was to have at a time: 1 before the first cutover."""
        due = 1
        for part in self._parts:
            due = max(due, part.due(name, time))
        return due


def make_rollouts(
    world: World, replication: int, clock: Clock, recorder: Recorder
) -> tuple[Rollouts, list[Versions], ExtraBytes]:
    """Return the rollouts of one replication, the versions of every replica, and what counts the bytes of old ones."""
    lineage, scenario = world.lineage, world.scenario
    assert lineage is not None, "made where there are rollouts"
    seed, replicas = scenario.run.seed, scenario.fleet.replicas
    costs = scenario, world.profile, world.population
    versions = [Versions(lineage.born) for _ in range(replicas)]
    gates = Gates(replicas)
    from_storage, _ = tier_times(*costs)
    shifts = [
        Shift(wave, clock, recorder, Readdress(*costs), scenario.router.instances, seed, replication)
        for wave in lineage.waves if wave.copies
    ]  # fmt: skip
    swaps = [
        Swap(wave, clock, recorder, versions, gates, from_storage, seed, replication)
        for wave in lineage.waves if not wave.copies
    ]  # fmt: skip
    named = {name for wave in lineage.waves if wave.copies for name in wave.names}
    extra = ExtraBytes(lineage.original.tolist(), world.population.size_bytes.tolist(), named)
    return Rollouts(lineage, shifts, swaps, gates, versions, recorder, extra), versions, extra
