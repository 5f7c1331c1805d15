"""The controller of adapter placement: counts demand, decides once a period, and moves adapters.

The decisions themselves are in ``sim.policies.placement``.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from itertools import count
from math import inf

import numpy as np

from sim.policies.costs import StepCosts
from sim.policies.placement import Demand, Placement, Placer, PlacerContext, make_placer
from sim.policies.routing import View
from sim.policies.routing.placed import Placed
from sim.results.recording.recorder import Recorder
from sim.rng import stream_key, uniform_draw
from sim.spec.policies import PLACERS
from sim.spec.sections.control_plane import PlacementController as ControllerSpec
from sim.world.clock import CONTROL, Call, Clock
from sim.world.replica.server import Server
from sim.world.times import tier_times
from sim.world.world import Pool

# What a placement controller starts from: its policy, and where adapters are placed at the start.

_BATCH = 32
"""Sequences of the decode step by which ranks are compared, each with an adapter of its own."""


def adapters_at_a_time(pool: Pool) -> int:
    """Return how many adapters of the mean size fit into the GPU cache, leaving out versions that come later."""
    present = len(pool.traffic.population)
    weights = [
        weight for weight, taken in zip(pool.weights[:present], pool.takes[:present].tolist(), strict=True) if taken
    ]
    return max(1, pool.capacity * len(weights) // max(1, sum(weights)))


def placer_of(spec: ControllerSpec, pool: Pool, replication: int) -> Placer:
    """Return the placement policy of a replication. Pinned adapters take slots of every replica."""
    slots = spec.slots or max(1, adapters_at_a_time(pool) - len(pool.pinned))
    key = stream_key(pool.scenario.run.seed, replication, "placement")
    costs = _costs_by_rank(pool)
    return make_placer(spec.policy, PlacerContext(slots, spec.copies, costs, pool.ranks, key, spec.tolerance))


def first_placement(pool: Pool, placer: Placer) -> Placement:
    """Return the placement of the start, by the popularity that the traffic then has, on the replicas that serve."""
    spec = pool.scenario.router.placing
    if spec is None or not PLACERS[spec.policy].foresees:
        return {}
    serving = tuple(range(pool.scenario.fleet.replicas))
    return placer.place(Demand(dict(enumerate(pool.traffic.shares().tolist())), serving), {})


def _costs_by_rank(pool: Pool) -> list[float]:
    """Return by adapter how long a decode step with adapters of its rank takes, over one with those of lowest rank.

    All are 1 where the profile has no costs by rank, and with engine ``fixed``.
    """
    profile, ranks = pool.profile, pool.ranks
    if profile is None or pool.scenario.fleet.engine == "fixed":
        return [1.0] * len(ranks)
    batch = min(_BATCH, pool.scenario.fleet.max_num_seqs)
    costs = StepCosts(profile.step, adapters_at_a_time(pool), batch)
    distinct = min(batch, adapters_at_a_time(pool))
    seconds = {
        rank: costs.step(batch, 0, distinct, rank * distinct, (batch, 0, 0.0, rank * batch, 0)) for rank in set(ranks)
    }
    least = min(seconds.values())
    return [seconds[rank] / least if least > 0 else 1.0 for rank in ranks]


class PlacementController:
    """Decides at every multiple of the period where adapters are placed, and tells the router.

    Until the history is full, the popularity of the start stands in for what is missing of it, unless the policy
    foresees nothing. After the last arrival it decides no more. Replicas that come or go are seen at the next decision.

    :param view: of the router, in which the replicas that serve are up.
    :param next_s: returns the time of the next arrival, infinite if there is none.
    """

    def __init__(
        self,
        pool: Pool,
        replication: int,
        router: Placed,
        view: View,
        servers: Sequence[Server],
        recorder: Recorder,
        clock: Clock,
        next_s: Callable[[], float],
    ) -> None:
        spec = pool.scenario.router.placing
        assert spec is not None, "the router follows a placement"
        self._period_s = spec.period
        self._clock, self._next_s = clock, next_s
        self._recorder = recorder
        self._router, self._view = router, view
        self._shares: list[float] = pool.traffic.shares().tolist()
        self._placer, self._foresees = placer_of(spec, pool, replication), PLACERS[spec.policy].foresees
        self._history = int(spec.history / spec.period + 1e-9)
        self._periods: deque[dict[int, int]] = deque(maxlen=self._history)
        self._moves = LazyMoves()
        if spec.call is not None:
            self._moves = RegisteredMoves(pool, replication, servers, clock, self._called)
        elif spec.move == "eager":
            self._moves = EagerMoves(pool, replication, servers, clock)
        self._registers, self._unload_after = spec.call is not None, spec.unload_after
        self._servers = servers
        self._calling: dict[tuple[int, int], Server] = {}  # by adapter and replica, calls that have not returned
        self._asked_s: dict[int, float] = {}  # by adapter, up to when it was asked for
        self._placed = first_placement(pool, self._placer)
        self._note(self._placed, {})
        if PLACERS[spec.policy].moves:
            self._clock.process(self._decisions())
            self._clock.periodic += 1

    def _decisions(self) -> Iterator[Call]:
        view, router = self._view, self._router
        for number in count(1):  # a product, not a running sum: the n-th decision is at exactly n periods
            yield self._clock.until(number * self._period_s)
            if self._next_s() == inf:
                return
            self._periods.append(router.asked)
            self._asked_s.update(dict.fromkeys(router.asked, self._clock.now))
            router.asked = {}
            if view.up:
                self._unload()
                demand = Demand(self._demand(), tuple(view.up), view.resident)
                self._placed = self._placer.place(demand, self._placed)
                self._show()

    def _show(self) -> None:
        """Tell the router of the last decision, and call for what comes."""
        router, placed, before = self._router, self._placed, self._router.homes
        if self._registers:
            kept = {a: tuple([r for r in before.get(a, ()) if r in homes]) for a, homes in placed.items()}
            router.homes = {adapter: homes for adapter, homes in kept.items() if homes}
            self._note(router.homes, before)
            coming: dict[int, list[int]] = {}
            for adapter, homes in placed.items():
                for replica in homes:
                    server = self._servers[replica]  # another one after a crash
                    if replica not in kept[adapter] and self._calling.get((adapter, replica)) is not server:
                        self._calling[adapter, replica] = server
                        coming.setdefault(replica, []).append(adapter)
        else:
            router.homes = placed
            coming = self._note(placed, before)
        for replica, adapters in coming.items():
            self._moves.come(replica, adapters)

    def _called(self, adapter: int, replica: int, succeeded: bool) -> None:
        """A call of the load API has returned."""
        self._calling.pop((adapter, replica), None)
        homes = self._placed.get(adapter, ())
        if replica not in homes:
            return
        if succeeded:
            router, before = self._router, self._router.homes
            router.homes = {**before, adapter: tuple(sorted((*before.get(adapter, ()), replica)))}
            self._note(router.homes, before)
        else:
            self._placed = {**self._placed, adapter: tuple(r for r in homes if r != replica)}

    def _unload(self) -> None:
        """Take away the places and copies of adapters that nobody has asked for lately."""
        if self._unload_after is None:
            return
        latest_s = self._clock.now - self._unload_after
        idle = {adapter for adapter in self._placed if self._asked_s.get(adapter, 0.0) <= latest_s}
        if idle:
            self._placed = {adapter: homes for adapter, homes in self._placed.items() if adapter not in idle}
        for adapter in sorted(idle):
            for server in self._servers:
                if server.copies.exist(adapter):
                    server.copies.drop(adapter)

    def _demand(self) -> dict[int, float]:
        found: dict[int, float] = {}
        for asked in self._periods:
            for adapter, requests in asked.items():
                found[adapter] = found.get(adapter, 0.0) + requests
        missing = self._history - len(self._periods)
        if missing and self._foresees:
            each = missing / len(self._periods) * sum(found.values())
            for adapter, share in enumerate(self._shares):
                if share > 0:
                    found[adapter] = found.get(adapter, 0.0) + each * share
        return found

    def _note(self, after: Placement, before: Placement) -> dict[int, list[int]]:
        """Record what comes and goes; return by replica the adapters that come."""
        now, rows = self._clock.now, self._recorder.moves
        coming: dict[int, list[int]] = {}
        for adapter in sorted(after.keys() | before.keys()):
            new, old = after.get(adapter, ()), before.get(adapter, ())
            if new is old or new == old:
                continue
            for replica in new:
                if replica not in old:
                    rows.append((now, adapter, replica, True))
                    coming.setdefault(replica, []).append(adapter)
            rows.extend((now, adapter, replica, False) for replica in old if replica not in new)
        return coming


class LazyMoves:
    """Leaves the load of an adapter that comes to a replica to its first request there."""

    def come(self, replica: int, adapters: list[int]) -> None:
        """Adapters have been placed on a replica."""


class EagerMoves(LazyMoves):
    """Loads adapters that come to a replica at once, without a request.

    Where loads block steps, the next one of a replica begins when the last one has ended, so that steps go on between
    them. Elsewhere they queue for a loader, with the loads of requests.
    """

    def __init__(self, pool: Pool, replication: int, servers: Sequence[Server], clock: Clock) -> None:
        self._servers = servers
        self._clock = clock
        self._storage, self._host = tier_times(pool.scenario, pool.profile, pool.population)
        self._has_host = pool.scenario.has_host_tier
        self._key = stream_key(pool.scenario.run.seed, replication, "placement-load")
        self._loads: dict[int, int] = {}  # by adapter, so far
        self._waiting: dict[Server, deque[int]] = {}  # by replica that loads, what comes next

    def come(self, replica: int, adapters: list[int]) -> None:
        server = self._servers[replica]
        if server in self._waiting:
            self._waiting[server].extend(adapters)
        else:
            self._waiting[server] = deque(adapters)
            self._clock.process(self._loads_of(server))

    def _loads_of(self, server: Server) -> Iterator[Call]:
        waiting = self._waiting[server]
        while waiting and self._servers[server.index] is server:  # after a crash, these loads mean nothing
            adapter, ended = waiting.popleft(), Call(lambda event: None)
            then = partial(self._clock.schedule, kind=CONTROL, event=ended)
            server.copies.load_placed(adapter, self._seconds(adapter), then)
            yield ended
        del self._waiting[server]

    def _seconds(self, adapter: int) -> tuple[float, float]:
        number = self._loads[adapter] = self._loads.get(adapter, 0) + 1
        name = np.array([adapter])
        drawn = np.array([uniform_draw(self._key, adapter << 20 | number)])
        host_s = float(self._host.seconds(name, drawn)[0]) if self._has_host else 0.0
        return float(self._storage.seconds(name, drawn)[0]), host_s


class RegisteredMoves(EagerMoves):
    """Loads adapters over the load API of the engine: each call takes time before the load, and may fail.

    :param called: is called when a call has returned, with whether it succeeded.
    """

    def __init__(
        self,
        pool: Pool,
        replication: int,
        servers: Sequence[Server],
        clock: Clock,
        called: Callable[[int, int, bool], None],
    ) -> None:
        super().__init__(pool, replication, servers, clock)
        spec = pool.scenario.router.placing
        assert spec is not None, "adapters are placed"
        self._call_s, self._failures, self._called = spec.call or 0.0, spec.failures, called
        self._luck = stream_key(pool.scenario.run.seed, replication, "placement-call")
        self._calls = 0

    def _loads_of(self, server: Server) -> Iterator[Call]:
        waiting, replica = self._waiting[server], server.index
        while waiting:
            adapter = waiting.popleft()
            self._calls += 1
            yield self._clock.until(self._clock.now + self._call_s)
            there = self._servers[replica] is server and not server.copies.standing_in
            if not there or uniform_draw(self._luck, self._calls) < self._failures:
                self._called(adapter, replica, False)
                continue
            ended = Call(lambda event: None)
            then = partial(self._clock.schedule, kind=CONTROL, event=ended)
            server.copies.load_placed(adapter, self._seconds(adapter), then)
            yield ended
            self._called(adapter, replica, True)
        del self._waiting[server]
