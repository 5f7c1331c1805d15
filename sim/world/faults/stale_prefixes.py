"""Prefix caches keyed by adapter name: requests of a new version find prefixes that the old one computed."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Collection
from math import inf

from sim.rng import stream_key, uniform_draw
from sim.spec.sections.faults import NamedPrefixes
from sim.traffic.request import Request
from sim.world.fleet_ports import WeightsListener
from sim.world.world import World


class StalePrefixes(WeightsListener):
    """Prefixes of old versions on all replicas.

    A request looks up its prefix when it joins the batch. A replica that never answered with the old version has no
    prefix of it.

    :param faults: each with its number in the scenario; there may be none.
    :param concerned: adapters whose new versions keep the name.
    :ivar active: whether there are such faults.
    """

    def __init__(
        self, faults: list[tuple[int, NamedPrefixes]], concerned: Collection[int], seed: int, replication: int
    ) -> None:
        self.active = bool(faults)
        self._faults = [
            (spec.share, spec.lifetime, stream_key(seed, replication, f"named-prefixes-{number}"))
            for number, spec in faults
        ]
        self._concerned = concerned
        self._answered_s: dict[tuple[int, int], float] = {}  # by replica and adapter, time of the last answer
        self._replacements: dict[
            tuple[int, int], list[tuple[float, float]]
        ] = {}  # when each came, and the last answer before it

    def replaced(self, replica: int, adapter: int, under_way: bool, now: float) -> None:
        last_s = now if under_way else self._answered_s.get((replica, adapter))
        if last_s is not None:
            self._replacements.setdefault((replica, adapter), []).append((now, last_s))

    def found(self, replica: int, request: Request, now: float) -> bool:
        """Return whether a request that finishes now used a prefix of an older version.

        A prefix ages from the old version's last answer on that replica, not from the update: the old copy may have
        been evicted long before the new version is loaded.
        """
        if request.adapter not in self._concerned:
            return False
        where = replica, request.adapter
        self._answered_s[where] = now
        replacements = self._replacements.get(where)
        if replacements is None:
            return False
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


def make_stale_prefixes(world: World, replication: int) -> StalePrefixes:
    """Return the stale prefixes of one replication."""
    named = [(number, spec) for number, spec in enumerate(world.scenario.faults) if isinstance(spec, NamedPrefixes)]
    updated: set[int] = set()
    if named:
        assert world.rollout_plan is not None, "checked by the scenario"
        for planned in world.rollout_plan.rollouts:
            if not planned.new_adapters:
                updated.update(planned.adapters)
    return StalePrefixes(named, updated, world.scenario.run.seed, replication)
