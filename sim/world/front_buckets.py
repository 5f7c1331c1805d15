"""Token buckets of tenants in front of the fleet, as gateways limit tokens per minute.

A request takes the tokens of its prompt and its answer when it is sent on, as if its ``max_tokens`` were exact. One for
which the bucket of its tenant lacks tokens waits in front of the fleet, behind the tenant's own, or is refused. What
happens behind, be it rollouts and faults, sees only the requests that were sent on; one that is sent again takes no
tokens.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field
from math import inf

from sim.policies.eviction import EvictionContext
from sim.policies.token_bucket import TokenBucket
from sim.results.recording.recorder import Recorder
from sim.results.records import LIMITED, REFUSED, UNFINISHED
from sim.spec.sections.tenants import Tenant
from sim.traffic.request import Request
from sim.world.clock import ARRIVAL, Call, Clock
from sim.world.fleet_ports import FleetHooks, OpenFleet
from sim.world.replica.ports import ReplicaListener
from sim.world.routing.in_flight import InFlight


@dataclass(slots=True)
class _Limited:
    """The bucket of a tenant, and the requests that wait for it."""

    bucket: TokenBucket
    refuses: bool
    held: deque[Request] = field(default_factory=deque)


class FrontBuckets(FleetHooks):
    """The buckets of one replication, in front of what its fleet does otherwise.

    :param limited: by tenant, the buckets of those that have one.
    :param behind: what happens to the requests that are sent on.
    :param in_flight: counts requests inside by adapter, if the router reads that.
    """

    direct = False

    def __init__(
        self, limited: dict[int, _Limited], recorder: Recorder, clock: Clock, behind: FleetHooks, in_flight: InFlight
    ) -> None:
        self._limited = limited
        self._recorder = recorder
        self._clock = clock
        self._behind = behind
        self._in_flight = in_flight
        self._reorders = any(not each.refuses for each in limited.values())
        self._sent: set[int] = set()  # requests that took their tokens; they may come again if something lies behind
        self._area = 0.0
        self._fleet: OpenFleet

    def start(self, fleet: OpenFleet) -> None:
        self._fleet = fleet
        self._behind.start(fleet)

    def send(self, request: Request) -> None:
        limited = self._limited.get(request.tenant)
        if limited is None or request.index in self._sent:
            self._send_on(request)
            return
        tokens, now = tokens_of(request), self._clock.now
        if not limited.held and limited.bucket.take(tokens, now):
            self._send_on(request)
        elif limited.refuses:
            self._recorder.record_unserved(request, -1, REFUSED)
            self._recorder.mark_request(request.index, LIMITED)
        else:
            limited.held.append(request)
            self._area -= now
            if len(limited.held) == 1:
                self._wait_for_tokens(limited)

    def _wait_for_tokens(self, limited: _Limited) -> None:
        ready_s = limited.bucket.ready_s(tokens_of(limited.held[0]), self._clock.now)
        self._clock.call_at(ready_s, ARRIVAL, self._release, limited)

    def _release(self, event: Call) -> None:
        """Send on the request that has waited longest; its tokens are there."""
        limited: _Limited = event.subject
        request, now = limited.held.popleft(), self._clock.now
        limited.bucket.take_due(tokens_of(request), now)
        self._area += now
        self._recorder.held.append((request.index, now))
        self._send_on(request)
        if limited.held:
            self._wait_for_tokens(limited)

    def _send_on(self, request: Request) -> None:
        if self._reorders:
            request.key = self._fleet.next_key()
        if not self._behind.direct:
            self._sent.add(request.index)
            self._behind.send(request)
            return
        replica = self._fleet.choose(request.adapter, request)
        if self._in_flight.counting:
            self._in_flight.entered(replica, request)
        self._fleet.servers[replica].arrive(request)

    def listener(self, replica: int) -> ReplicaListener:
        return self._behind.listener(replica)

    def foresee(self, context: EvictionContext, replica: int) -> EvictionContext:
        return self._behind.foresee(context, replica)

    def has_pending(self) -> bool:
        return any(limited.held for limited in self._limited.values()) or self._behind.has_pending()

    def any_down(self) -> bool:
        return self._behind.any_down()

    def give_up(self, replica: int) -> list[Request]:
        return self._behind.give_up(replica)

    def broken_off(self, replica: int, request: Request) -> None:
        self._behind.broken_off(replica, request)

    def outside_area(self) -> float:
        return self._area + self._behind.outside_area()

    def close(self) -> dict[str, float]:
        for limited in self._limited.values():
            for request in limited.held:
                self._area += self._clock.now
                self._recorder.held.append((request.index, inf))
                self._recorder.record_unserved(request, -1, UNFINISHED)
        return self._behind.close()


def tokens_of(request: Request) -> int:
    """Return the tokens that a request takes from a bucket."""
    return request.prompt_tokens + request.output_tokens


def with_buckets(
    tenants: tuple[Tenant, ...], recorder: Recorder, clock: Clock, behind: FleetHooks, in_flight: InFlight
) -> FleetHooks:
    """Return hooks with the tenants' buckets in front; where no tenant has one, the hooks as they are."""
    limited = {
        place: _Limited(TokenBucket(tenant.bucket.rate, tenant.bucket.burst), tenant.bucket.full == "refuse")
        for place, tenant in enumerate(tenants)
        if tenant.bucket is not None
    }
    return FrontBuckets(limited, recorder, clock, behind, in_flight) if limited else behind
