"""One replica: requests come in, find or wait for their adapter, are served, and leave.

``Server`` holds what both kinds share; ``FixedServer`` (``fixed``) serves one request at a time, ``BatchServer``
(``batch``) batches continuously. Both leave the decisions to ``sim.policies``.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from typing import cast

from sim.policies.adapter_cache import ABSENT, AllInHost, GpuCache, HostCache
from sim.policies.vllm_lru import VllmLruCache
from sim.results.records import COMPLETED, REFUSED, Recorder, pack_host_fill, pack_load, pack_request
from sim.traffic.request import DELAYED_HIT, FROM_HOST, FROM_STORAGE, MISS, Request
from sim.world.clock import Clock
from sim.world.faults.storage_faults import StorageFaults
from sim.world.replica.host_cache_fill import HostCacheFill
from sim.world.replica.loader import Loader
from sim.world.replica.oracle import ReplicaOracle
from sim.world.rollouts.versions import Versions

Action = Callable[[float], float]
"""What is done between two steps: gets the time from which on it may block the engine, returns for how long it does."""


@dataclass(frozen=True, slots=True)
class ReplicaParts:
    """What a replica is made of.

    :ivar index: the replica's number.
    :ivar inside: requests inside each replica, waiting or running: shared with the router; this one keeps its own.
    :ivar host: host tier, or None; a ``VllmLruCache`` has its own.
    :ivar loaders: loaders from storage, and from host.
    :ivar reload_s: seconds of a load that no request begins: by adapter and tier.
    :ivar fetches: host memory that is filled when requests arrive, or None.
    :ivar foresight: what a clairvoyant eviction policy knows, or None.
    :ivar versions: which versions of adapters this replica has, or None where no rollout keeps a name.
    :ivar ends: asked when a request's last token is out, before that is recorded: True takes the request over, to send
        it again. None: nobody asks.
    :ivar lost: told of a request that leaves without having been served. None: nobody asks.
    :ivar storage: what is wrong with storage; None: nothing.
    :ivar fails: told of a request that has left since its adapter can't be loaded. None: loads don't fail.
    :ivar next_key: gives a request that was held its place in the queue, behind all that wait by then.
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


class Server(ABC):
    """What every replica has: a cache, loaders, a count of requests inside.

    :param ask_early: loads are asked for at arrival; otherwise at admission.
    :ivar blocking: whether loads happen inside steps.
    :ivar down: whether it is only there in the place of one that died: nothing is done here.
    :ivar held: requests inside that wait outside the queues, until ``let_in``.
    :ivar inside_area: request-seconds spent inside, once closed. Counted at arrivals and departures, apart from the
        requests' own records: Little's law compares the two. Until then, departure times less arrival times.
    """

    # Attributes of an object with more than 30 are read slowly otherwise (CPython 3.11 to 3.13).
    __slots__ = (
        "_host_fill", "_inside", "_next_key", "_on_last_token", "_on_load_failed", "_on_lost", "_oracle", "ask_early", "blocking", "cache",
        "clock", "down", "held", "host", "index", "inside_area", "loader", "recorder",
    )  # fmt: skip  # names in a paragraph, not one a line

    def __init__(self, parts: ReplicaParts, *, ask_early: bool) -> None:
        self.clock = parts.clock
        self.recorder = parts.recorder
        self.index = parts.index
        self.cache = parts.cache
        self.host = parts.host
        self.ask_early = ask_early
        self.blocking = False
        # A VllmLruCache loads in its own steps and never asks a loader.
        protected = cast(GpuCache, parts.cache)
        self.loader = Loader(
            parts.clock,
            protected,
            parts.host,
            parts.loaders,
            parts.recorder,
            self._loaded,
            parts.index,
            parts.versions,
            parts.storage,
        )
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
        """Take in a request; where loads are asked for at arrival, its adapter is in use from now on."""
        self._inside[self.index] += 1
        self.inside_area -= self.clock._now
        if self._oracle is not None:
            self._oracle.arrived(request)
        if self._host_fill is None or self._fetch(request, self._host_fill):
            self._take_in(request)

    def hold(self, request: Request) -> None:
        """Take in a request that must wait before anything is done for it."""
        self._inside[self.index] += 1
        self.inside_area -= self.clock._now
        self.held.append(request)

    def release_held(self, adapter: int) -> None:
        """Take in the held requests of an adapter, as if they had just come."""
        now, next_key = self.clock._now, self._next_key
        assert next_key is not None, "given where requests may be held"
        free = [request for request in self.held if request.adapter == adapter]
        self.held = [request for request in self.held if request.adapter != adapter]
        for request in free:
            self._inside[self.index] -= 1
            self.inside_area += now
            request.key = next_key()
            self.arrive(request)

    def _fetch(self, request: Request, host_fill: HostCacheFill) -> bool:
        """Return whether a request's adapter is in host memory; if not, it is fetched, or the request turned away."""
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
        if self.ask_early and not self.cache.acquire(request.adapter):
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
        """End requests whose adapter can't be loaded."""
        for request in requests:
            self._unclaim(request)
            self._fail(request)

    def _unclaim(self, request: Request) -> None:
        """Note that a request which has asked for a load uses its adapter no more."""
        if self.cache.release(request.adapter) and self.loader.short_of_room:
            self.loader.room_appeared()

    def _fail(self, request: Request) -> None:
        assert self._on_load_failed is not None, "told where loads can fail"
        self._inside[self.index] -= 1
        self.inside_area += self.clock._now
        self._on_load_failed(request)

    @abstractmethod
    def _enqueue(self, request: Request, in_time: bool = False) -> None:
        """Queue a request: its adapter is there, or will be asked for at admission.

        :param in_time: whether it may still join at a step boundary of this very instant.
        """

    def close(self) -> list[Request]:
        """Note what is under way when the simulation stops; return the requests still inside."""
        now = self.clock._now
        self.inside_area += self._inside[self.index] * now
        self.loader.close(now)
        if self._host_fill is not None:
            self._host_fill.close(now)
        return self.all_requests()

    def die(self) -> list[Request]:
        """Stop at once and for good: note what was under way until now; return the requests that were inside."""
        inside = self.close()
        self.clock.forget(
            [self, self.loader] if self._host_fill is None else [self, self.loader, self._host_fill.loader]
        )
        return inside

    def set_listener(self, on_last_token: Callable[[Request, float], bool], on_lost: Callable[[Request], None]) -> None:
        """From now on, ask and tell of requests that leave (``ReplicaParts.ends``, ``ReplicaParts.lost``); nobody did before."""
        assert (self._on_last_token, self._on_lost) == (None, None)
        self._on_last_token, self._on_lost = on_last_token, on_lost

    def all_requests(self) -> list[Request]:
        """Return the requests inside, in no order."""
        waiting = [request for load in self.loader.under_way.values() for request in load.waiting]
        if self._host_fill is not None:
            waiting += self._host_fill.waiting()
        return waiting + self.held + self._unserved()

    def state_in_words(self) -> str:
        """Return what there is inside, for a message about a fault of ours."""
        loads, cache = len(self.loader.under_way), self.cache
        return (
            f"replica {self.index} has {self._inside[self.index]} inside ({len(self._unserved())} queued or running, "
            f"{len(self.held)} held), {loads} loads under way, {cache.in_use} of {cache.capacity} in use"
        )

    @abstractmethod
    def at_boundary(self, action: Action) -> None:
        """Call ``action`` when no step is under way: at the next boundary, at once if nobody runs."""

    @abstractmethod
    def tokens_out(self, request: Request) -> int:
        """Return how many tokens a request inside has by now."""

    def renew(self, adapter: int, seconds: float, swap: Callable[[], None]) -> None:
        """Fetch an adapter from storage though it is there, then call ``swap`` between two steps.

        :param seconds: what the load takes. Where loads block steps, this one blocks the next step, too.
        """
        assert not self.down, "it has no copy that could be renewed"

        def ready(start_s: float) -> float:
            swap()
            return 0.0

        def blocking(start_s: float) -> float:
            faults, took_s = self.loader.faults, seconds
            if faults is not None:
                took_s = faults.seconds(start_s, seconds, adapter, faults.unrequested(adapter))
            self.recorder.load_rows += pack_load(
                start_s, start_s + took_s, self.clock._now, adapter, FROM_STORAGE, self.index
            )
            swap()
            return took_s

        if self.blocking:
            self.at_boundary(blocking)
            return
        loader = self.loader if self._host_fill is None else self._host_fill.loader
        loader.renew(adapter, seconds, lambda: self.at_boundary(ready))

    def drop(self, adapter: int) -> None:
        """Let the copies of an adapter go that nobody uses: nobody will ask for it again."""
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
        """Let the new version of an adapter have its pin, if it is pinned."""
        for cache in (self.cache, None if self._host_fill is None else self._host_fill.cache):
            if isinstance(cache, GpuCache):
                cache.pin_instead(old, new)

    def has_copy(self, adapter: int) -> bool:
        """Return whether an adapter lies here, or is on its way, in GPU or host memory."""
        if self.down:
            return False  # what it begins with when it is up again is read then
        if self.cache.state[adapter] != ABSENT:
            return True
        if isinstance(self.cache, VllmLruCache):
            return self.cache.holds(adapter)
        if self._host_fill is not None:
            return self._host_fill.cache.state[adapter] != ABSENT
        return self.host is not None and adapter in self.host

    def forget_copy(self, adapter: int) -> bool:
        """Drop the copy of an adapter in host memory if it lies only there and can go; return whether none is left."""
        load = self.loader.under_way.get(adapter)
        if load is not None and load.tier == FROM_HOST:
            return False  # it waits for a loader, and will read this copy
        if self.cache.state[adapter] == ABSENT:
            if isinstance(self.cache, VllmLruCache):
                self.cache.discard(adapter)
            elif isinstance(self.host, HostCache):
                self.host.discard(adapter)
        return not self.has_copy(adapter)

    @abstractmethod
    def under_way(self, adapter: int) -> list[tuple[Request, int]]:
        """Return the requests for which something has been computed with this adapter, each with its tokens so far.

        To be asked at a boundary.
        """

    @abstractmethod
    def _unserved(self) -> list[Request]:
        """Return the requests inside that wait for no load."""

    def check_integrity(self) -> None:
        """Assert that the caches agree with a count from scratch."""
        self.cache.check_integrity()
        if self.host is not None:
            self.host.check_integrity()
        if self._host_fill is not None:
            self._host_fill.cache.check_integrity()
