"""Adapters in use stay resident: loads at arrival, at admission, or inside the steps that need them."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Protocol

from sim.policies.adapter_cache import RESIDENT
from sim.policies.admission import ClaimingQueue, ReadyQueue, WaitingQueue
from sim.policies.scheduler import Scheduler
from sim.results.records import pack_load
from sim.traffic.request import DELAYED_HIT, FROM_HOST, FROM_STORAGE, MISS, Request
from sim.world.replica.loader import Loader, LoadOwner, Tiers
from sim.world.replica.modes.adapter_mode import AdapterMode, ModeParts
from sim.world.replica.ports import UNDISTURBED, without_delay


class ProtectedMode(AdapterMode):
    """What these modes share: a cache that never evicts an adapter in use.

    :param discards: adapters that are not in use leave at the end of a decode step in which a request ended.
    """

    def __init__(
        self, parts: ModeParts, waiting: WaitingQueue, *, loads_in_steps: bool, discards: bool = False
    ) -> None:
        super().__init__(parts.cache, parts.host, waiting, parts.context, loads_in_steps=loads_in_steps)
        self._gpu = parts.cache
        self.discards = discards

    def batch_shrank(self, decoding: int) -> None:
        if decoding:
            self._gpu.evict_idle()


class OverlappedLoads(ProtectedMode, LoadOwner):
    """Loads by loaders of their own, while steps go on.

    :ivar loader: the loaders.
    """

    def __init__(self, parts: ModeParts, waiting: WaitingQueue, *, discards: bool = False) -> None:
        super().__init__(parts, waiting, loads_in_steps=False, discards=discards)
        self.prepares_steps = False  # requests that may join have their adapter
        self.loader = Loader(parts.context, parts.cache, parts.host, parts.loaders, self)

    def room_appeared(self) -> None:
        if self.loader.short_of_room:
            self.loader.room_appeared()

    def discard(self, adapter: int) -> None:
        self._gpu.discard(adapter)
        self.loader.room_appeared()

    def before_step(self, batch: Scheduler, now: float) -> float:
        return 0.0

    def after_load(self) -> None:
        """Nothing is loaded ahead."""

    def waiting_for_loads(self) -> list[Request]:
        return self.loader.waiting()

    def reads_host_copy(self, adapter: int) -> bool:
        load = self.loader.loads.get(adapter)
        return load is not None and load.tier == FROM_HOST

    def renew(self, adapter: int, seconds: float, replace_weights: Callable[[], None]) -> None:
        self.loader.renew(adapter, seconds, partial(self.replica.at_boundary, without_delay(replace_weights)))

    def close(self, now: float) -> None:
        self.loader.close(now)

    def event_owners(self) -> list[object]:
        return [self.loader]


class LoadsAtArrival(OverlappedLoads):
    """A request claims its adapter when it arrives, and joins the queue once the adapter is resident."""

    def __init__(self, parts: ModeParts, *, discards: bool = False) -> None:
        super().__init__(parts, ReadyQueue(), discards=discards)

    def take_in(self, request: Request, may_join_now: bool) -> None:
        if self._gpu.acquire(request.adapter):
            self.replica.enqueue(request, may_join_now)
        else:
            request.outcome = DELAYED_HIT if self.loader.request_load(request) else MISS

    def loaded(self, requests: list[Request], may_join_now: bool) -> None:
        for request in requests:
            self.replica.enqueue(request, may_join_now)

    def load_failed(self, requests: list[Request], may_join_now: bool) -> None:
        for request in requests:
            if self._gpu.release(request.adapter):
                self.room_appeared()
            self.replica.fail(request)


class LoadingQueue(Protocol):
    """A queue that hands out requests whose adapter must be loaded, and takes them back."""

    def arrived(self, request: Request) -> None:
        """Take back a request: its adapter is resident."""

    def failed(self, request: Request) -> None:
        """Forget a request: its adapter could not be loaded."""


class OverlappedQueue(OverlappedLoads):
    """Loads that start when the queue says so, and overlap with steps."""

    def __init__(
        self, parts: ModeParts, waiting: WaitingQueue, loading: LoadingQueue, *, discards: bool = False
    ) -> None:
        super().__init__(parts, waiting, discards=discards)
        self._loading = loading

    def take_in(self, request: Request, may_join_now: bool) -> None:
        self.replica.enqueue(request, may_join_now)

    def request_load(self, request: Request) -> None:
        """Start or join the load of a request that the queue has handed out."""
        request.outcome = DELAYED_HIT if self.loader.request_load(request) else MISS

    def loaded(self, requests: list[Request], may_join_now: bool) -> None:
        for request in requests:
            self._loading.arrived(request)
        if requests:
            self.replica.wake(min(request.key for request in requests), may_join_now)
        # A load ahead that no request joined needs no earlier boundary. A request that wants the adapter is in the
        # queue and called ``wake`` when it came, so the boundary that can admit it is already scheduled.

    def load_failed(self, requests: list[Request], may_join_now: bool) -> None:
        for request in requests:
            self._loading.failed(request)
            self.replica.fail(request)
        if requests:  # others may have waited for their room
            self.replica.wake(min(request.key for request in requests), may_join_now)


class LoadsAtAdmission(OverlappedQueue):
    """A request claims its adapter when the scheduler reaches it; if it must be loaded, the request waits aside.

    :param stop: a request over the adapter limit stops the queue; otherwise later ones pass it.
    """

    def __init__(self, parts: ModeParts, *, stop: bool, discards: bool = False) -> None:
        queue = ClaimingQueue(parts.cache, self.request_load, stop=stop, blocking=False)
        super().__init__(parts, queue, queue, discards=discards)


class LoadsInSteps(ProtectedMode):
    """The step that admits requests loads their missing adapters first, one after the other."""

    def __init__(self, parts: ModeParts, waiting: WaitingQueue, *, discards: bool = False) -> None:
        super().__init__(parts, waiting, loads_in_steps=True, discards=discards)
        self._tiers = Tiers(parts.host, parts.context.versions)

    def take_in(self, request: Request, may_join_now: bool) -> None:
        self.replica.enqueue(request, may_join_now)

    def before_step(self, batch: Scheduler, now: float) -> float:
        load_s, waiting = 0.0, self.waiting
        if waiting.unloaded:
            unloaded, waiting.unloaded = waiting.unloaded, []
            for request in unloaded:
                if self._gpu.state[request.adapter] == RESIDENT:
                    request.outcome = DELAYED_HIT  # loaded for another request of this step
                elif self.failed and any(other.adapter == request.adapter for other in self.failed):
                    request.outcome, request.tier = DELAYED_HIT, FROM_STORAGE  # it waited for the same load
                    self.failed.append(request)
                else:
                    load_s += self._load(request, now + load_s)
        return load_s

    def _load(self, request: Request, start_s: float) -> float:
        """Load the adapter of a request; return the seconds that it takes."""
        context, adapter = self.context, request.adapter
        tier, seconds = self._tiers.source(request)
        fits = self._gpu.reserve(adapter)
        assert fits, "a claimed adapter always finds room"
        self._tiers.load_started(adapter, tier)
        course = UNDISTURBED
        if tier == FROM_STORAGE:
            course = context.timing.attempts(start_s, seconds, adapter, request.index)
        if course.spans:
            seconds = course.seconds
            context.recorder.load_attempts(course.spans, start_s, adapter, context.replica)
        else:
            context.recorder.load_rows += pack_load(start_s, start_s + seconds, start_s, adapter, tier, context.replica)
        if course.succeeds:
            self._gpu.loaded(adapter)
            self._tiers.load_ended(adapter, tier)
        else:
            self._gpu.abort(adapter)
            self.failed.append(request)
        request.outcome, request.tier, request.load_wait_s = MISS, tier, seconds
        return seconds


def claiming_in_steps(parts: ModeParts, *, stop: bool) -> ClaimingQueue:
    """Return the queue of a mode that loads in steps.

    :param stop: a request over the adapter limit stops the queue; otherwise later ones pass it.
    """
    return ClaimingQueue(parts.cache, no_load, stop=stop, blocking=True)


def no_load(request: Request) -> None:
    """Stand in for loads that overlap with steps, where loads happen inside them."""
    raise AssertionError("the step that admits a request loads its adapter")
