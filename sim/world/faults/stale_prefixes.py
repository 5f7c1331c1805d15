"""Prefix caches keyed by adapter name: requests of a new version find prefixes that the old one computed."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Collection
from math import inf

from sim.errors import ScenarioError
from sim.rng import stream_key, uniform_draw
from sim.spec.scenario import Scenario
from sim.spec.sections.changes import NamedPrefixes
from sim.traffic.request import Request
from sim.world.dispatcher import Dispatcher
from sim.world.replica.server import Server
from sim.world.world import World


class StalePrefixes:
    """Prefixes of old versions on all replicas.

    Where replicas have a prefix cache, it says which requests found such a prefix. Elsewhere a request is taken to look
    up its prefix when it joins the batch; a replica that never answered with the old version has no prefix of it.

    :param faults: each with its number in the scenario; there may be none.
    :param concerned: adapters whose new versions keep the name.
    :ivar active: whether there are such faults.
    """

    def __init__(
        self, faults: list[tuple[int, NamedPrefixes]], concerned: Collection[int], seed: int, replication: int
    ) -> None:
        self.active = bool(faults)
        self._servers: list[Server] = []  # with a prefix cache
        self._faults = [
            (spec.share, spec.lifetime, stream_key(seed, replication, f"named-prefixes-{number}"))
            for number, spec in faults
            if spec.share is not None and spec.lifetime is not None
        ]
        self._concerned = concerned
        self._answered_s: dict[tuple[int, int], float] = {}  # by replica and adapter, time of the last answer
        self._replacements: dict[
            tuple[int, int], list[tuple[float, float]]
        ] = {}  # when each came, and the last answer before it

    def start(self, fleet: Dispatcher) -> None:
        """Begin with the run of a fleet."""
        if self.active and not self._faults:
            self._servers = fleet.servers

    def replaced(self, replica: int, adapter: int, under_way: bool, now: float) -> bool:
        """Note that new weights answer from now on; return whether requests for them find cached prefixes of old ones.

        :param under_way: whether requests are in progress with the adapter.
        """
        last_s = now if under_way else self._answered_s.get((replica, adapter))
        if last_s is not None:
            self._replacements.setdefault((replica, adapter), []).append((now, last_s))
        return self.active

    def found(self, replica: int, request: Request, now: float) -> bool:
        """Return whether a request that finishes now used a prefix of an older version.

        A prefix ages from the old version's last answer on that replica, not from the update: the old copy may have
        been evicted long before the new version is loaded.
        """
        if request.adapter not in self._concerned:
            return False
        if self._servers:
            return self._servers[replica].found_outdated_prefix(request)
        where = replica, request.adapter
        self._answered_s[where] = now
        replacements = self._replacements.get(where, [])
        last = bisect_right(replacements, (request.admitted_s, inf)) - 1
        if last < 0:
            return False
        age_s = request.admitted_s - replacements[last][1]
        return any(
            age_s < lifetime and uniform_draw(key, request.index) < share for share, lifetime, key in self._faults
        )

    def forget(self, replica: int) -> None:
        """Forget the prefixes of a replica that has crashed."""
        self._answered_s = {where: time for where, time in self._answered_s.items() if where[0] != replica}
        self._replacements = {
            where: replacements for where, replacements in self._replacements.items() if where[0] != replica
        }


def check_stale_prefixes(scenario: Scenario, *, prefix_cache: bool) -> None:
    """Refuse faults that say what the prefix cache of the replicas knows better, or do not say what is not known.

    :raises ScenarioError: with the key.
    """
    for number, fault in enumerate(scenario.faults):
        if not isinstance(fault, NamedPrefixes):
            continue
        for key in ("share", "lifetime"):
            given = getattr(fault, key)
            if prefix_cache and given is not None:
                raise ScenarioError(
                    "the replicas have a prefix cache, which says which requests find old prefixes",
                    key=f"faults.{number}.{key}",
                    got=f"{given:g}",
                    hint=f"remove {key}",
                )
            if not prefix_cache and given is None:
                raise ScenarioError(
                    "the scenario must say how many requests find old prefixes, since no prefix cache is simulated",
                    key=f"faults.{number}.{key}",
                    hint="such as {share: 40%, lifetime: 2 min}; or give fleet.prefix_caching and workload.prefix",
                )


def make_stale_prefixes(world: World, replication: int) -> StalePrefixes:
    """Return the stale prefixes of one replication."""
    named = [(number, spec) for number, spec in enumerate(world.scenario.faults) if isinstance(spec, NamedPrefixes)]
    updated: set[int] = set()
    if named:
        for planned in world.rollout_plan.rollouts:
            if not planned.new_adapters:
                updated.update(planned.adapters)
    return StalePrefixes(named, updated, world.scenario.run.seed, replication)
