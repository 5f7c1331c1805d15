"""Adapters in use stay resident: loads at arrival, at admission, or inside the steps that need them."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Protocol

from sim.policies.adapter_cache import ABSENT, RESIDENT
from sim.policies.admission import ClaimingQueue, ReadyQueue, WaitingQueue
from sim.policies.scheduler import Scheduler
from sim.traffic.request import DELAYED_HIT, FROM_HOST, FROM_STORAGE, MISS, Request
from sim.world.replica.loader import Loader, LoadOwner, Tiers
from sim.world.replica.modes.adapter_mode import AdapterMode, ModeParts
from sim.world.replica.ports import without_delay


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

    def before_step(self, batch: Scheduler, start_s: float) -> float:
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

    def load_placed(self, adapter: int, seconds: tuple[float, float], then: Callable[[float], None]) -> None:
        self.loader.load_placed(adapter, seconds)
        then(self.context.clock.now)

    def close(self, now: float) -> None:
        self.loader.close(now)

    def event_owners(self) -> list[object]:
        return [self.loader]


class LoadsAtArrival(OverlappedLoads):
    """A request claims its adapter when it arrives, and joins the queue once the adapter is resident.

    :param waiting: a queue of requests that have their adapter; None: they are served in the order of their keys.
    """

    def __init__(self, parts: ModeParts, waiting: WaitingQueue | None = None, *, discards: bool = False) -> None:
        super().__init__(parts, ReadyQueue() if waiting is None else waiting, discards=discards)

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
        queue = ClaimingQueue(parts.cache, self.request_load, stop=stop)
        super().__init__(parts, queue, queue, discards=discards)


class LoadsInSteps(ProtectedMode):
    """The step that admits requests loads their missing adapters first, one after the other."""

    def __init__(self, parts: ModeParts, waiting: WaitingQueue, *, discards: bool = False) -> None:
        super().__init__(parts, waiting, loads_in_steps=True, discards=discards)
        self._tiers = Tiers(parts.host, parts.context.versions)

    def take_in(self, request: Request, may_join_now: bool) -> None:
        self.replica.enqueue(request, may_join_now)

    def before_step(self, batch: Scheduler, start_s: float) -> float:
        unloaded, self.waiting.unloaded = self.waiting.unloaded, []
        load_s = 0.0
        tiers: dict[int, int] = {}
        for request in unloaded:
            if request.adapter in tiers:
                request.outcome = DELAYED_HIT  # loaded for another request of this step
                continue
            request.outcome = MISS
            tiers[request.adapter], seconds = self._load(request, start_s + load_s)
            load_s += seconds
        for request in unloaded:  # none of them is computed before the last load has ended
            request.tier, request.load_wait_s = tiers[request.adapter], load_s
            if self._gpu.state[request.adapter] != RESIDENT:
                self.failed.append(request)
        return load_s

    def load_placed(self, adapter: int, seconds: tuple[float, float], then: Callable[[float], None]) -> None:
        def action(start_s: float) -> float:
            took_s = self._load_idle(adapter, seconds, start_s)
            then(start_s + took_s)
            return took_s

        self.replica.at_boundary(action)

    def _load_idle(self, adapter: int, seconds: tuple[float, float], start_s: float) -> float:
        """Load an adapter between two steps, if it is absent and an idle one can make room; return the seconds."""
        if self._gpu.state[adapter] != ABSENT or not self._gpu.reserve_ahead(adapter, ()):
            return 0.0
        from_host = self._tiers.host.touch(adapter)
        tier, own_s = (FROM_HOST, seconds[1]) if from_host else (FROM_STORAGE, seconds[0])
        self._tiers.load_started(adapter, tier)
        took_s, _ = self.load_in_step(adapter, tier, own_s, start_s, -1)
        self._gpu.loaded(adapter)
        self._tiers.load_ended(adapter, tier)
        return took_s

    def _load(self, request: Request, start_s: float) -> tuple[int, float]:
        """Load the adapter of a request; return the tier that it comes from, and the seconds that it takes."""
        adapter = request.adapter
        tier, seconds = self._tiers.source(request)
        fits = self._gpu.reserve(adapter)
        assert fits, "a claimed adapter always finds room"
        self._tiers.load_started(adapter, tier)
        seconds, succeeds = self.load_in_step(adapter, tier, seconds, start_s, request.index)
        if succeeds:
            self._gpu.loaded(adapter)
            self._tiers.load_ended(adapter, tier)
        else:
            self._gpu.abort(adapter)
        return tier, seconds
