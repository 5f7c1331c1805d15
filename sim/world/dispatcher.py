"""The way of requests to the replicas of a fleet and back, and what else happens to them there.

A rollout, a fault, an autoscaler or a bucket of tokens is an ``Extension``. A fleet without any sends requests straight
from the router to their replica.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from itertools import count
from typing import Protocol

from sim.policies.routing import Choosing
from sim.policies.routing.router_policy import Following
from sim.results.recording.recorder import Recorder
from sim.results.records import FAILED, LOAD_FAILED
from sim.traffic.request import Request
from sim.world.replica.ports import ReplicaListener
from sim.world.replica.server import ReplicaTotals, Server
from sim.world.routing.router_views import FreshView


class MakeReplica(Protocol):
    """Makes a replica of the fleet."""

    def __call__(self, index: int, inside: list[int], *, restarted: bool, standing_in: bool) -> Server:
        """Return an empty replica.

        :param inside: the list in which it counts the requests inside.
        :param restarted: whether it replaces another one, so that no adapter is warm.
        :param standing_in: whether it only stands in for a crashed replica.
        """
        ...


class Extension:
    """Something that happens to requests between the clients of a fleet and its replicas.

    Override what concerns you: what runs for every request is only called where it is overridden.

    :ivar reorders: whether requests may join a queue later than they arrived.
    :ivar outside_area: request-seconds that requests spent in front of the fleet, or at a replica outside its server.
    """

    def __init__(self) -> None:
        self.reorders = False
        self.outside_area = 0.0
        self._fleet: Dispatcher

    def start(self, fleet: Dispatcher) -> None:
        """Begin with the run of a fleet: put all events on the clock."""
        self._fleet = fleet

    def arrive(self, request: Request) -> bool:
        """Return whether a request that arrives is sent on; if not, it is kept or has been refused."""
        return True

    def receive(self, request: Request) -> bool:
        """Return whether a request is routed, for the first time or again; if not, it is kept or has been refused."""
        return True

    def routed_by(self, request: Request) -> int:
        """Return the adapter by which to route a request."""
        return request.adapter

    def accept(self, request: Request, replica: int) -> bool:
        """Return whether a request enters the replica that the router chose; if not, it has been dealt with."""
        return True

    def entered(self, request: Request, replica: int) -> None:
        """A request is inside a replica, as its router sees it."""

    def ended(self, request: Request, replica: int, now: float) -> bool:
        """A request has its last token and is about to be recorded. Return True to take it over, to send it again."""
        return False

    def left(self, request: Request, replica: int) -> None:
        """A request has left a replica, with its last token or unserved."""

    def broken_off(self, request: Request, replica: int) -> None:
        """A request that has left, or will, gets no more tokens there."""

    def failed(self, request: Request, replica: int, marks: int) -> None:
        """A request is about to be recorded as failed.

        :param marks: why; 0: its answer is complete, and was found wrong.
        """

    def restore(self, request: Request) -> None:
        """Give a request that is sent again its own adapter, as when it arrived."""

    def held(self, replica: int) -> list[Request]:
        """Return the requests that are kept at a replica outside its server; to the router, they are inside."""
        return []

    def crashed(self, replica: int) -> bool:
        """Return whether there is a replica that can crash, as it now does."""
        return True

    def restarted(self, replica: int) -> bool:
        """A replica could be up again after a crash; return whether it still belongs to the fleet."""
        return True

    def came_up(self) -> None:
        """A replica is up again, and in the router's view."""

    def replaced(self, replica: int) -> None:
        """A new, empty replica takes the place of one."""

    def pending(self) -> bool:
        """Return whether a request outside all replicas is still to be sent."""
        return False

    def close(self) -> dict[str, float]:
        """When the simulation has stopped, record what is left; return facts of the run."""
        return {}


class Dispatcher(ReplicaListener):
    """Sends requests to the replicas of a fleet, and is called when they leave.

    Requests pass the extensions in order, and answers the other way round.

    :param counts: by replica, an empty dict for the requests inside by adapter, if the router reads that.
    :ivar servers: replicas, by index.
    :ivar inside: number of requests inside each replica, as the router counts them.
    :ivar dead: what the replicas counted that have been replaced.
    :ivar next_key: returns the last place in the queues, for requests that join later than they arrived.
    :ivar view: keeps what the router sees current.
    """

    def __init__(
        self,
        router: Choosing,
        extensions: Sequence[Extension],
        recorder: Recorder,
        counts: list[dict[int, int]],
        base_model: int,
    ) -> None:
        self.extensions = list(extensions)
        self.servers: list[Server] = []
        self.inside: list[int] = []
        self.dead = ReplicaTotals()
        self.next_key: Callable[[], int] = count().__next__
        self.view: FreshView = FreshView()
        self._router = router
        self._recorder = recorder
        self._in_flight = InFlight(counts, base_model)
        self._makers: Sequence[MakeReplica] = ()
        self._find_hooks()

    def _find_hooks(self) -> None:

        def having(hook: str) -> list[Extension]:
            return [each for each in self.extensions if getattr(type(each), hook) is not getattr(Extension, hook)]

        self._arriving, self._receiving, self._naming = having("arrive"), having("receive"), having("routed_by")
        self._accepting, self._counting = having("accept"), having("entered")
        self._ending, self._leaving = having("ended")[::-1], having("left")[::-1]
        self.hears_ends = bool(self._ending or self._leaving)
        self._reorders = any(each.reorders for each in self.extensions)

    def open(self, makers: Sequence[MakeReplica], serving: Sequence[bool]) -> None:
        """Start the replicas.

        :param makers: one for each.
        :param serving: which there are at the start; the others are places that an autoscaler may fill.
        """
        self._makers = makers
        self.inside.extend([0] * len(makers))
        for index, make in enumerate(makers):
            empty = not serving[index]
            self.servers.append(make(index, self.inside, restarted=empty, standing_in=empty))

    def replace(self, replica: int, *, standing_in: bool) -> None:
        """Put a new, empty replica in the place of one.

        :param standing_in: whether it serves nothing, until it is replaced in turn.
        """
        for each in self.extensions:
            each.replaced(replica)
        self.dead.add(self.servers[replica].totals())
        self.servers[replica] = self._makers[replica](replica, self.inside, restarted=True, standing_in=standing_in)

    def count_inside(self) -> list[dict[int, int]]:
        """Return, by replica, requests inside by adapter; the counts stay current from the first call on."""
        in_flight = self._in_flight
        if in_flight not in self.extensions:
            in_flight.begin(self.servers)
            self.extensions.append(in_flight)
            self._find_hooks()
        return in_flight.counts

    # To the replicas

    def take(self, request: Request) -> None:
        """Take in a request that has arrived."""
        for each in self._arriving:
            if not each.arrive(request):
                return
        self.send(request)

    def submit(self, request: Request) -> None:
        """Route a request again, or one that was held back."""
        self.view.refresh()
        self.send(request)

    def send(self, request: Request) -> None:
        """Send a request to a replica, unless an extension keeps it."""
        for each in self._receiving:
            if not each.receive(request):
                return
        if self._reorders:
            request.key = self.next_key()
        name = request.adapter
        for each in self._naming:
            name = each.routed_by(request)
        replica = 0
        if len(self.servers) > 1:
            if self.view.of_request:
                self.view.show(request)
            replica = self._router.choose(name, request.index)
        for each in self._accepting:
            if not each.accept(request, replica):
                return
        self.entered(request, replica)
        self.servers[replica].arrive(request)

    def entered(self, request: Request, replica: int) -> None:
        """Note that a request is inside a replica, as its router sees it."""
        for each in self._counting:
            each.entered(request, replica)

    # And back

    def finished(self, request: Request, replica: int, now: float) -> bool:
        taken = False
        for each in self._ending:
            if each.ended(request, replica, now):
                taken = True
        self.lost(request, replica)
        return taken

    def lost(self, request: Request, replica: int) -> None:
        for each in self._leaving:
            each.left(request, replica)

    def load_failed(self, request: Request, replica: int) -> None:
        self.fail(request, replica, LOAD_FAILED)
        self.lost(request, replica)

    def fail(self, request: Request, replica: int, marks: int) -> None:
        """End a request without a correct answer."""
        for each in self.extensions:
            each.failed(request, replica, marks)
        self._recorder.record_unserved(request, replica, FAILED)
        self._recorder.mark_request(request.index, marks)

    def broken_off(self, request: Request, replica: int) -> None:
        """Note that a request gets no more tokens."""
        for each in self.extensions:
            each.broken_off(request, replica)

    def fresh_copy(self, request: Request) -> Request:
        """Return a copy of a request as it arrived, to be sent again."""
        again = request.fresh_copy()
        for each in self.extensions:
            each.restore(again)
        return again

    def held(self, replica: int) -> list[Request]:
        """Return the requests that are kept at a replica outside its server."""
        return [request for each in self.extensions for request in each.held(replica)]


class Followed(Extension):
    """Tells routers what becomes of requests."""

    def __init__(self, routers: Sequence[Following]) -> None:
        super().__init__()
        self._routers = routers

    def entered(self, request: Request, replica: int) -> None:
        for router in self._routers:
            router.entered(request, replica)

    def ended(self, request: Request, replica: int, now: float) -> bool:
        for router in self._routers:
            router.ended(request, replica, now)
        return False

    def left(self, request: Request, replica: int) -> None:
        for router in self._routers:
            router.left(request, replica)


class InFlight(Extension):
    """Counts requests inside each replica by adapter, for routers that read it.

    :param counts: by replica, an empty dict to keep current; it never holds a 0.
    :param base_model: number that stands for an adapter in requests to the base model, which are not counted.
    """

    def __init__(self, counts: list[dict[int, int]], base_model: int) -> None:
        super().__init__()
        self.counts = counts
        self._base_model = base_model

    def begin(self, servers: Sequence[Server]) -> None:
        """Count the requests that are inside."""
        for server in servers:
            counts = self.counts[server.index]
            counts.update(Counter(request.adapter for request in server.all_requests()))
            counts.pop(self._base_model, None)

    def entered(self, request: Request, replica: int) -> None:
        counts, adapter = self.counts[replica], request.adapter
        if adapter != self._base_model:
            counts[adapter] = counts.get(adapter, 0) + 1

    def left(self, request: Request, replica: int) -> None:
        counts, adapter = self.counts[replica], request.adapter
        if adapter == self._base_model:
            return
        if counts[adapter] > 1:
            counts[adapter] -= 1
        else:
            del counts[adapter]
