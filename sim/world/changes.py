"""What changes while traffic flows, in one replication: rollouts and faults behind one face for the fleet.

A request that comes is steered (which adapter and version it reaches), routed, and let in or not; when its last token
is out, its end is judged. Each part looks only at what concerns it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from sim.results.records import FAILED, Recorder, pack_mark
from sim.traffic.request import Request
from sim.world.rollouts import Rollouts

if TYPE_CHECKING:
    from sim.world.fleet import Fleet
    from sim.world.server import Server


class Changes:
    """Rollouts and faults of one replication.

    :param inside: by replica, requests inside by adapter, where the router wants to know; None: nobody counts.
    :ivar rollouts: None where there are none.
    """

    def __init__(self, recorder: Recorder, rollouts: Rollouts | None, inside: list[dict[int, int]] | None) -> None:
        self._recorder = recorder
        self._inside = inside
        self.rollouts = rollouts

    def start(self, fleet: Fleet) -> None:
        """Put everything that will happen on the clock."""
        if self.rollouts is not None:
            self.rollouts.start(fleet.servers)

    def steer(self, request: Request) -> None:
        """Decide which adapter, of which version, a request reaches."""
        if self.rollouts is not None:
            self.rollouts.steer(request)

    def lets_in(self, request: Request, replica: int) -> bool:
        """Return whether a replica takes a request now; otherwise all that is to be done with it is done."""
        if self.rollouts is not None and not self.rollouts.lets_in(request, replica):
            return False
        if self._inside is not None:
            counts, adapter = self._inside[replica], request.adapter
            counts[adapter] = counts.get(adapter, 0) + 1
        return True

    def ends(self, replica: int, request: Request, now: float) -> bool:
        """Note that a request has its last token; return whether it is sent again, so that this wasn't its end."""
        if self.rollouts is not None:
            self.rollouts.ended(replica, request, now)
        if self._inside is not None:
            self._leaves(replica, request.adapter)
        return False

    def lost(self, replica: int, request: Request) -> None:
        """Note that a request has left a replica without being served to its end; what becomes of it is open."""
        if self.rollouts is not None:
            self.rollouts.left(replica, request)
        if self._inside is not None:
            self._leaves(replica, request.adapter)

    def _leaves(self, replica: int, adapter: int) -> None:
        assert self._inside is not None, "asked where somebody counts"
        counts = self._inside[replica]
        if counts[adapter] > 1:
            counts[adapter] -= 1
        else:
            del counts[adapter]

    def fail(self, replica: int, request: Request, marks: int) -> None:
        """End a request that was never answered, or not by the right adapter."""
        self._recorder.turned_away(request, replica, FAILED)
        self._recorder.mark_rows += pack_mark(request.index, marks, 0, 0, 0, 0)

    def replaced(self, replica: int, server: Server) -> None:
        """Note that a new, empty replica stands in the place of one that died."""
        if self.rollouts is not None:
            self.rollouts.replaced(replica)

    def close(self) -> dict[str, float]:
        """Return the facts of this replication."""
        return {} if self.rollouts is None else self.rollouts.close()
