"""One replica: requests arrive, find or wait for their adapter, are served, and leave.

``Server`` holds what both kinds share; ``FixedServer`` (``fixed.py``) serves one request at a time, ``BatchServer``
(``continuous.py``) batches continuously. Both leave decisions to ``sim.policies``.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass

from sim.policies.adapter_cache import ABSENT, AllInHost, GpuCache, HostCache
from sim.policies.vllm_lru import VllmLruCache
from sim.results.records import COMPLETED, REFUSED, Recorder, pack_host_fill, pack_load, pack_request
from sim.traffic.request import DELAYED_HIT, FROM_HOST, FROM_STORAGE, MISS, Request
from sim.world.clock import Clock
from sim.world.faults.storage_faults import StorageFaults
from sim.world.replica.host_cache_fill import HostCacheFill
from sim.world.replica.loader import LoadContext, Loader
from sim.world.replica.oracle import ReplicaOracle
from sim.world.rollouts.versions import Versions

Action = Callable[[float], float]
"""Work between two steps: takes the time at which it starts, returns the seconds for which it blocks the engine."""


@dataclass(frozen=True, slots=True)
class ReplicaParts:
    """What a replica is made of. Optional parts are None.

    :ivar index: the replica's number.
    :ivar inside: requests inside each replica, waiting or running; shared with the router, each replica keeps its own
        entry.
    :ivar host: host memory tier; a ``VllmLruCache`` has its own.
    :ivar loaders: number of loaders from storage, and from host memory.
    :ivar reload_s: seconds of a load that no request starts, by adapter and tier.
    :ivar host_fill: host memory that is filled when requests arrive.
    :ivar oracle: what a clairvoyant eviction policy knows.
    :ivar versions: versions of the adapters on this replica, for rollouts that keep the name.
    :ivar on_last_token: called with a request and the time after its last token, before the request is recorded; True
        takes the request over, to send it again.
    :ivar on_lost: called when a request leaves unserved.
    :ivar storage: faults of storage.
    :ivar on_load_failed: called when a request has left because its adapter could not be loaded.
    :ivar next_key: returns a place in the queue behind all that wait, for a request that was held.
    """

    clock: Clock
    recorder: Recorder
    index: int
    inside: list[int]
    cache: GpuCache | VllmLruCache
    host: HostCache | AllInHost | None
    loaders: tuple[int, int]
    reload_s: Callable[[int, int], float]
    host_fill: HostCacheFill | None = None
    oracle: ReplicaOracle | None = None
    versions: Versions | None = None
    on_last_token: Callable[[Request, float], bool] | None = None
    on_lost: Callable[[Request], None] | None = None
    storage: StorageFaults | None = None
    on_load_failed: Callable[[Request], None] | None = None
    next_key: Callable[[], int] | None = None

    @property
    def load_context(self) -> LoadContext:
        """What every load on this replica needs to know."""
        return LoadContext(self.recorder, self.index, self.versions, self.storage)


class Server(ABC):
    """What every replica has: an adapter cache, loaders, and a count of the requests inside.

    :param loads_at_arrival: loads start at arrival; otherwise at admission.
    :ivar blocking: whether loads happen inside steps.
    :ivar down: whether this replica only stands in for a crashed one and serves nothing.
    :ivar held: requests inside that wait outside the queues, until ``release_held``.
    :ivar inside_area: request-seconds spent inside, once closed; before that, departure times minus arrival times.
        Counted at arrivals and departures, independently of the requests' own records, so that tests can compare the
        two by Little's law.
    """

    # Without slots, objects with more than 30 attributes are slow to read (CPython 3.11 to 3.13).
    __slots__ = (
        "_host_fill", "_inside", "_next_key", "_on_last_token", "_on_load_failed", "_on_lost", "_oracle", "blocking",
        "cache", "clock", "down", "held", "host", "index", "inside_area", "loader", "loads_at_arrival", "recorder",
    )  # fmt: skip  # names in a paragraph, not one a line

    def __init__(self, parts: ReplicaParts, *, loads_at_arrival: bool) -> None:
        self.clock = parts.clock
        self.recorder = parts.recorder
        self.index = parts.index
        self.cache = parts.cache
        self.host = parts.host
        self.loads_at_arrival = loads_at_arrival
        self.blocking = False
        self.loader = Loader(parts.clock, parts.cache, parts.host, parts.loaders, parts.load_context, self._loaded)
        self.loader.on_failed = self._not_loaded
        self.down = False
        self._host_fill = parts.host_fill
        self._on_last_token = parts.on_last_token
        self._on_lost = parts.on_lost
        self._on_load_failed = parts.on_load_failed
        self._next_key = parts.next_key
        self.held: list[Request] = []
        self._oracle = parts.oracle
        if self._host_fill is not None:
            self._host_fill.on_fetched = self._take_in
            self._host_fill.on_fetch_failed = self._fail
        self.inside_area = 0.0
        self._inside = parts.inside

    def arrive(self, request: Request) -> None:
        """Take in a request. If loads start at arrival, its adapter is in use from now on."""
        self._inside[self.index] += 1
        self.inside_area -= self.clock._now
        if self._oracle is not None:
            self._oracle.arrived(request)
        if self._host_fill is None or self._fetch(request, self._host_fill):
            self._take_in(request)

    def hold(self, request: Request) -> None:
        """Take in a request that must wait until ``release_held``."""
        self._inside[self.index] += 1
        self.inside_area -= self.clock._now
        self.held.append(request)

    def release_held(self, adapter: int) -> None:
        """Take in the held requests of an adapter as if they had just arrived."""
        now, next_key = self.clock._now, self._next_key
        assert next_key is not None, "set if requests may be held"
        free = [request for request in self.held if request.adapter == adapter]
        self.held = [request for request in self.held if request.adapter != adapter]
        for request in free:
            self._inside[self.index] -= 1
            self.inside_area += now
            request.key = next_key()
            self.arrive(request)

    def _fetch(self, request: Request, host_fill: HostCacheFill) -> bool:
        """Return whether a request's adapter is in host memory; if not, fetch it or refuse the request."""
        if host_fill.rejects(request):
            self._inside[self.index] -= 1
            self.inside_area += self.clock._now
            if self._oracle is not None:
                self._oracle.rejected(request)
            if self._on_lost is not None:
                self._on_lost(request)
            self.recorder.record_unserved(request, self.index, REFUSED)
            return False
        return host_fill.fetch(request)

    def _take_in(self, request: Request, in_time: bool = False) -> None:
        if self.loads_at_arrival and not self.cache.acquire(request.adapter):
            request.outcome = DELAYED_HIT if self.loader.request_load(request) else MISS
        else:
            self._enqueue(request, in_time)

    def _leave(self, request: Request, now: float) -> None:
        index = self.index
        self._inside[index] -= 1
        self.inside_area += now
        if self.cache.release(request.adapter) and self.loader.short_of_room:
            self.loader.room_appeared()
        fill_s = 0.0 if self._host_fill is None else self._host_fill.leave(request)
        if self._on_last_token is None or not self._on_last_token(request, now):
            self._record(request, now)
            if fill_s:
                self.recorder.host_fill_rows += pack_host_fill(request.index, fill_s)

    def _record(self, r: Request, now: float) -> None:
        self.recorder.request_rows += pack_request(
            r.load_queue_s,
            r.load_wait_s,
            r.admitted_s,
            r.first_token_s,
            now,
            r.index,
            r.preemptions,
            r.outcome,
            r.tier,
            self.index,
            COMPLETED,
        )

    def _loaded(self, requests: list[Request], in_time: bool) -> None:
        for request in requests:
            self._enqueue(request, in_time)

    def _not_loaded(self, requests: list[Request], in_time: bool) -> None:
        """End requests whose adapter could not be loaded."""
        for request in requests:
            self._unclaim(request)
            self._fail(request)

    def _unclaim(self, request: Request) -> None:
        """Release the adapter of a request that waited for its load."""
        if self.cache.release(request.adapter) and self.loader.short_of_room:
            self.loader.room_appeared()

    def _fail(self, request: Request) -> None:
        assert self._on_load_failed is not None, "set if loads can fail"
        self._inside[self.index] -= 1
        self.inside_area += self.clock._now
        self._on_load_failed(request)

    @abstractmethod
    def _enqueue(self, request: Request, in_time: bool = False) -> None:
        """Queue a request whose adapter is resident, or will be loaded at admission.

        :param in_time: whether the request may still join at a step boundary of this very instant.
        """

    def close(self) -> list[Request]:
        """Record what is under way when the simulation stops; return the requests still inside."""
        now = self.clock._now
        self.inside_area += self._inside[self.index] * now
        self.loader.close(now)
        if self._host_fill is not None:
            self._host_fill.close(now)
        return self.all_requests()

    def die(self) -> list[Request]:
        """Crash: record what was under way, cancel all events, and return the requests that were inside."""
        inside = self.close()
        self.clock.forget(
            [self, self.loader] if self._host_fill is None else [self, self.loader, self._host_fill.loader]
        )
        return inside

    def set_listener(self, on_last_token: Callable[[Request, float], bool], on_lost: Callable[[Request], None]) -> None:
        """Set the callbacks for requests that leave, as in ``ReplicaParts``; there must be none yet."""
        assert (self._on_last_token, self._on_lost) == (None, None)
        self._on_last_token, self._on_lost = on_last_token, on_lost

    def all_requests(self) -> list[Request]:
        """Return all requests inside, in no particular order."""
        waiting = [request for load in self.loader.under_way.values() for request in load.waiting]
        if self._host_fill is not None:
            waiting += self._host_fill.waiting()
        return waiting + self.held + self._unserved()

    def state_in_words(self) -> str:
        """Describe this replica, for the message of an internal error."""
        loads, cache = len(self.loader.under_way), self.cache
        return (
            f"replica {self.index} has {self._inside[self.index]} inside ({len(self._unserved())} queued or running, "
            f"{len(self.held)} held), {loads} loads under way, {cache.in_use} of {cache.capacity} in use"
        )

    @abstractmethod
    def at_boundary(self, action: Action) -> None:
        """Call ``action`` when no step is under way: at the next boundary, or at once if the replica is idle."""

    @abstractmethod
    def tokens_out(self, request: Request) -> int:
        """Return how many tokens a request inside has received so far."""

    def renew(self, adapter: int, seconds: float, replace_weights: Callable[[], None]) -> None:
        """Load an adapter from storage again, then call ``replace_weights`` between two steps.

        :param seconds: load time. If loads block steps, this one blocks the next step.
        """
        assert not self.down, "a crashed replica has no copy to renew"

        def ready(start_s: float) -> float:
            replace_weights()
            return 0.0

        def blocking(start_s: float) -> float:
            faults, took_s = self.loader.faults, seconds
            if faults is not None:
                took_s = faults.seconds(start_s, seconds, adapter, faults.unrequested(adapter))
            self.recorder.load_rows += pack_load(
                start_s, start_s + took_s, self.clock._now, adapter, FROM_STORAGE, self.index
            )
            replace_weights()
            return took_s

        if self.blocking:
            self.at_boundary(blocking)
            return
        loader = self.loader if self._host_fill is None else self._host_fill.loader
        loader.renew(adapter, seconds, lambda: self.at_boundary(ready))

    def drop(self, adapter: int) -> None:
        """Drop all copies of an adapter that is not in use and will not be requested again."""
        self._drop_from_gpu(adapter)
        if isinstance(self.host, HostCache):
            self.host.discard(adapter)
        loaders = [self.loader]
        if self._host_fill is not None:
            self._host_fill.cache.discard(adapter)
            loaders.append(self._host_fill.loader)
        for loader in loaders:
            if loader.short_of_room:
                loader.room_appeared()

    def _drop_from_gpu(self, adapter: int) -> None:
        self.cache.discard(adapter)

    def pin_instead(self, old: int, new: int) -> None:
        """Move the pin of an adapter, if it has one, to its new version."""
        for cache in (self.cache, None if self._host_fill is None else self._host_fill.cache):
            if isinstance(cache, GpuCache):
                cache.pin_instead(old, new)

    def has_copy(self, adapter: int) -> bool:
        """Return whether GPU or host memory has a copy of an adapter, or is loading one."""
        if self.down:
            return False  # it reads its first copies when it is up again
        if self.cache.state[adapter] != ABSENT:
            return True
        if isinstance(self.cache, VllmLruCache):
            return self.cache.holds(adapter)
        if self._host_fill is not None:
            return self._host_fill.cache.state[adapter] != ABSENT
        return self.host is not None and adapter in self.host

    def forget_copy(self, adapter: int) -> bool:
        """Drop the copy in host memory if it is the only one and may go; return whether no copy is left."""
        load = self.loader.under_way.get(adapter)
        if load is not None and load.tier == FROM_HOST:
            return False  # that load waits for a loader and will read this copy
        if self.cache.state[adapter] == ABSENT:
            if isinstance(self.cache, VllmLruCache):
                self.cache.discard(adapter)
            elif isinstance(self.host, HostCache):
                self.host.discard(adapter)
        return not self.has_copy(adapter)

    @abstractmethod
    def under_way(self, adapter: int) -> list[tuple[Request, int]]:
        """Return the requests for which this adapter has computed something, each with its tokens so far.

        Call it at a step boundary only.
        """

    @abstractmethod
    def _unserved(self) -> list[Request]:
        """Return the requests inside that do not wait for a load."""

    def check_integrity(self) -> None:
        """Assert that the caches agree with a count from scratch."""
        self.cache.check_integrity()
        if self.host is not None:
            self.host.check_integrity()
        if self._host_fill is not None:
            self._host_fill.cache.check_integrity()
