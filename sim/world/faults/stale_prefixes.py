"""Prefix caches that know adapters by name: what an old version computed is found by requests of the new one."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Collection
from math import inf

from sim.rng import stream_key, uniform_draw
from sim.spec.sections.faults import NamedPrefixes
from sim.traffic.request import Request


class StalePrefixes:
    """The prefixes of old versions on all replicas.

    A request looks its prefix up when it joins the batch. A replica that had never answered with the old version has no
    prefix of it.

    :param faults: with their numbers in the scenario.
    :param concerned: adapters whose new versions keep the name.
    """

    def __init__(
        self, faults: list[tuple[int, NamedPrefixes]], concerned: Collection[int], seed: int, replication: int
    ) -> None:
        self._faults = [
            (spec.share, spec.lifetime, stream_key(seed, replication, f"named-prefixes-{number}"))
            for number, spec in faults
        ]
        self._concerned = concerned
        self._answered_s: dict[tuple[int, int], float] = {}  # by replica and adapter, the last answer there
        self._replacements: dict[
            tuple[int, int], list[tuple[float, float]]
        ] = {}  # when each came, and the last answer before it

    def replaced(self, replica: int, adapter: int, under_way: bool, now: float) -> None:
        """Note that a new version takes the place of an old one.

        :param under_way: whether somebody is being answered by the old one.
        """
        last_s = now if under_way else self._answered_s.get((replica, adapter))
        if last_s is not None:
            self._replacements.setdefault((replica, adapter), []).append((now, last_s))

    def found(self, replica: int, request: Request, now: float) -> bool:
        """Return whether a request that has been answered now had found the prefix of an older version.

        What an old version computed grows old from its last answer on that replica, not from the update: a copy may have
        left long before the new version is loaded there.
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
        """Note that a replica has lost everything."""
        self._answered_s = {where: time for where, time in self._answered_s.items() if where[0] != replica}
        self._replacements = {
            where: replacements for where, replacements in self._replacements.items() if where[0] != replica
        }
