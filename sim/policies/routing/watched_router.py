"""A router from outside, watched while it decides."""

from __future__ import annotations

from sim.policies.routing.router_policy import Choosing, View
from sim.spec.registry import Entry


class WatchedRouter:
    """A router from outside whose choices are checked: a replica that is up."""

    def __init__(self, entry: Entry, router: Choosing, reads: frozenset[str], view: View) -> None:
        self._entry = entry
        self._router = router
        self._view = view
        self.reads = reads

    def choose(self, adapter: int, number: int) -> int:
        chosen = self._router.choose(adapter, number)
        if chosen not in self._view.up:
            up = ", ".join(map(str, self._view.up[:8]))
            raise self._entry.unusable(f"choose() returned {chosen!r}, but the replicas that are up are: {up}")
        return chosen
