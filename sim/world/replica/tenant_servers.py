"""Replicas that distinguish tenants: by priority, or by what each was served."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from sim.policies.queues.fair_queue import FairScheduler
from sim.policies.scheduler import Scheduler
from sim.traffic.request import Request
from sim.world.replica.continuous import BatchServer
from sim.world.replica.modes.adapter_mode import AdapterMode
from sim.world.replica.server import ReplicaParts

_BAND: Final = 1 << 44
"""Places in the queue for requests of one priority: more than a run has requests."""


class PriorityServer(BatchServer):
    """Continuous batching with priorities: a request's place in the queue begins with that of its tenant's priority.

    :ivar bands: by tenant, how many priorities go before its own; set before the first request.
    """

    __slots__ = ("bands",)

    def __init__(self, parts: ReplicaParts, scheduler: Scheduler, mode: AdapterMode) -> None:
        super().__init__(parts, scheduler, mode)
        self.bands: Sequence[int] = (0,)

    def arrive(self, request: Request) -> None:
        request.key = request.key % _BAND + self.bands[request.tenant] * _BAND
        super().arrive(request)


class FairServer(BatchServer):
    """Continuous batching in which the tenant that was served least goes first; with a ``FairScheduler``."""

    __slots__ = ()

    def enqueue(self, request: Request, may_join_now: bool) -> None:
        if self._steps > 1:
            scheduler = self.scheduler
            assert isinstance(scheduler, FairScheduler), "made together"
            scheduler.charge_up_to(self._steps_until(self.clock.now, may_join_now) - 1)
        super().enqueue(request, may_join_now)


def bands_of(priorities: Sequence[int]) -> list[int]:
    """Return how many lower values there are than each; lower values go first."""
    order = sorted(set(priorities))
    return [order.index(priority) for priority in priorities]
