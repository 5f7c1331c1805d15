"""Token buckets of tenants in front of the fleet, as gateways limit tokens or requests per minute.

A request takes the tokens of its prompt and its answer when it is sent on, as if its ``max_tokens`` were exact; where
the bucket counts requests, it takes one. If the bucket lacks them, the request is refused, or waits in front of the
fleet behind others of its tenant. A request that is sent again takes nothing.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass, field
from math import inf

from sim.policies.front_end import TokenBucket
from sim.results.recording.recorder import Recorder
from sim.results.records import LIMITED, REFUSED, UNFINISHED
from sim.spec.sections.tenants import Tenant
from sim.traffic.request import Request
from sim.world.clock import ARRIVAL, Call, Clock
from sim.world.dispatcher import Extension


@dataclass(slots=True)
class _Limited:
    """The bucket of a tenant, and the requests that wait for it."""

    bucket: TokenBucket
    counts_tokens: bool
    refuses: bool
    held: deque[Request] = field(default_factory=deque)

    def taken_by(self, request: Request) -> int:
        return request.prompt_tokens + request.output_tokens if self.counts_tokens else 1


class FrontBuckets(Extension):
    """The buckets of one replication.

    :param limited: by tenant, the buckets of those that have one.
    """

    def __init__(self, limited: dict[int, _Limited], recorder: Recorder, clock: Clock) -> None:
        super().__init__()
        self._limited = limited
        self._recorder = recorder
        self._clock = clock
        self.reorders = any(not each.refuses for each in limited.values())

    def arrive(self, request: Request) -> bool:
        limited = self._limited.get(request.tenant)
        if limited is None:
            return True
        taken, now = limited.taken_by(request), self._clock.now
        if not limited.held and limited.bucket.take(taken, now):
            return True
        if limited.refuses:
            self._recorder.record_unserved(request, -1, REFUSED)
            self._recorder.mark_request(request.index, LIMITED)
        else:
            limited.held.append(request)
            self.outside_area -= now
            if len(limited.held) == 1:
                self._clock.process(self._release(limited))
        return False

    def _release(self, limited: _Limited) -> Iterator[Call]:
        while limited.held:
            yield self._clock.until(limited.bucket.ready_s(limited.taken_by(limited.held[0]), self._clock.now), ARRIVAL)
            request, now = limited.held.popleft(), self._clock.now
            limited.bucket.take_due(limited.taken_by(request), now)
            self.outside_area += now
            self._recorder.held.append((request.index, now))
            self._fleet.send(request)

    def pending(self) -> bool:
        return any(limited.held for limited in self._limited.values())

    def close(self) -> dict[str, float]:
        for limited in self._limited.values():
            for request in limited.held:
                self.outside_area += self._clock.now
                self._recorder.held.append((request.index, inf))
                self._recorder.record_unserved(request, -1, UNFINISHED)
        return {}


def make_buckets(tenants: tuple[Tenant, ...], recorder: Recorder, clock: Clock) -> FrontBuckets | None:
    """Return the buckets of one replication, if any tenant has one."""
    limited = {
        place: _Limited(TokenBucket(spec.rate, spec.burst), spec.counts == "tokens", spec.full == "refuse")
        for place, tenant in enumerate(tenants)
        if (spec := tenant.bucket) is not None
    }
    return FrontBuckets(limited, recorder, clock) if limited else None
