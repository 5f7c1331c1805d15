"""Loads at admission, and idle loaders that load ahead for requests further back in the queue."""

from __future__ import annotations

from sim.policies.scheduler import Scheduler
from sim.traffic.request import Request
from sim.world.replica.modes.adapter_mode import ModeParts
from sim.world.replica.modes.protected import LoadsAtAdmission
from sim.world.replica.prefetch import Prefetch


class Prefetching(LoadsAtAdmission):
    """``LoadsAtAdmission`` with prefetching (``cache.prefetch: queued``)."""

    def __init__(self, parts: ModeParts, *, stop: bool, discards: bool = False) -> None:
        super().__init__(parts, stop=stop, discards=discards)
        self.prepares_steps = True
        self._prefetch = Prefetch(parts.cache, self.loader)

    def take_in(self, request: Request, may_join_now: bool) -> None:
        super().take_in(request, may_join_now)
        self._prefetch.entered(request)
        self.after_load()

    def after_load(self) -> None:
        if not self.replica.boundary_due():  # it comes first, and may start loads of its own
            self._prefetch.go_on()

    def before_step(self, batch: Scheduler, start_s: float) -> float:
        self._prefetch.left(batch.decided.prefills)
        self._prefetch.go_on()
        return super().before_step(batch, start_s)

    def nothing_runs(self) -> bool:
        self._prefetch.go_on()
        return False
