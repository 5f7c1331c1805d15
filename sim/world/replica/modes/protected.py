"""Adapters in use stay resident: loads at arrival, at admission, or inside the steps that need them.

Further down are prefetching, turns of whole models, LoRAX's queues and S-LoRA's unified memory, which build on these.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from heapq import heappop, heappush

from sim.policies.adapter_cache import ABSENT, RESIDENT, UnifiedCache
from sim.policies.admission import ClaimingQueue, ReadyQueue, WaitingQueue
from sim.policies.queues.adapter_queues import AdapterQueues, ModelTurns
from sim.policies.scheduler import Scheduler
from sim.traffic.request import DELAYED_HIT, FROM_HOST, FROM_STORAGE, MISS, Request
from sim.world.replica.loader import Loader, LoadOwner, Tiers
from sim.world.replica.modes.adapter_mode import AdapterMode, ModeParts
from sim.world.replica.ports import ReplaceWeights, without_delay


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

    def renew(self, adapter: int, seconds: float, replace_weights: ReplaceWeights) -> None:
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


class OverlappedQueue(OverlappedLoads):
    """Loads that start when the queue says so, and overlap with steps."""

    def __init__(self, parts: ModeParts, waiting: ClaimingQueue | AdapterQueues, *, discards: bool = False) -> None:
        super().__init__(parts, waiting, discards=discards)
        self._loading = waiting

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
        super().__init__(parts, queue, discards=discards)


class LoadsInSteps(ProtectedMode):
    """The step that admits requests loads their missing adapters first, one after the other."""

    def __init__(self, parts: ModeParts, waiting: WaitingQueue, *, discards: bool = False) -> None:
        super().__init__(parts, waiting, loads_in_steps=True, discards=discards)
        self._tiers = Tiers(parts.host, parts.context.versions)

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

    def load_idle(self, adapter: int, seconds: tuple[float, float], start_s: float) -> float:
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


class Prefetching(LoadsAtAdmission):
    """``LoadsAtAdmission`` with prefetching (``cache.prefetch: queued``).

    At every change (a boundary, the end of a load, an arrival), idle loaders start to load the adapters of queued
    requests, in the order of the queue. They stop while a requested load waits, and at the first adapter that finds no
    room among those in use and those that other queued requests want.

    A pass takes time proportional to the number of wanted adapters, but only while a loader is idle.
    """

    def __init__(self, parts: ModeParts, *, stop: bool, discards: bool = False) -> None:
        super().__init__(parts, stop=stop, discards=discards)
        self.prepares_steps = True
        # By adapter, a heap of (key, request). The first request of each still waits for admission; those behind it may
        # have left. Requests whose load has started stay until admission. They are harmless: their adapters are in
        # use, so they cannot be evicted, and they are absent only while the load waits in a queue.
        self._wanted: dict[int, list[tuple[int, Request]]] = {}

    def take_in(self, request: Request, may_join_now: bool) -> None:
        super().take_in(request, may_join_now)
        heappush(self._wanted.setdefault(request.adapter, []), (request.key, request))
        self.after_load()

    def after_load(self) -> None:
        if not self.replica.boundary_due():  # it comes first, and may start loads of its own
            self._load_ahead()

    def before_step(self, batch: Scheduler, start_s: float) -> float:
        for request in batch.decided.prefills:
            group = self._wanted.get(request.adapter)
            if group is None:
                continue
            while group and group[0][1].admitted_s >= 0:
                heappop(group)
            if not group:
                del self._wanted[request.adapter]
        self._load_ahead()
        return super().before_step(batch, start_s)

    def nothing_runs(self) -> bool:
        self._load_ahead()
        return False

    def _load_ahead(self) -> None:
        """Start all loads that may start now."""
        loader, wanted, state = self.loader, self._wanted, self._gpu.state
        if not wanted or not loader.may_load_ahead():
            return
        absent = [group[0] for adapter, group in wanted.items() if state[adapter] == ABSENT]
        for _, request in sorted(absent):
            if not (loader.load_ahead(request, wanted) and loader.may_load_ahead()):
                return


class TurnsOfModels(LoadsInSteps):
    """Loads of whole models, whose turns begin when their loads end.

    :param turn_s: seconds after its load in which a model's requests may pass older ones.
    """

    def __init__(self, parts: ModeParts, turn_s: float) -> None:
        clock = parts.context.clock
        self._turns = ModelTurns(parts.cache, lambda: clock.now, turn_s)
        super().__init__(parts, self._turns)

    def _load(self, request: Request, start_s: float) -> tuple[int, float]:
        tier, seconds = super()._load(request, start_s)
        self._turns.start_turn(request.adapter, start_s + seconds)
        return tier, seconds

    def check_integrity(self) -> None:
        super().check_integrity()
        self._turns.check_integrity()


# LoRAX's way: every adapter has a queue, and as many queues are active as there is room.


class PerAdapterQueues(OverlappedQueue):
    """Loads begin when an adapter's queue becomes active.

    :param cycle_s: seconds after which an active adapter gives its place to one that waits for it.
    """

    def __init__(self, parts: ModeParts, cycle_s: float) -> None:
        clock = parts.context.clock
        self._queues = AdapterQueues(parts.cache, self.request_load, lambda: clock.now, cycle_s)
        super().__init__(parts, self._queues)

    def serve_base_model(self) -> int:
        number = super().serve_base_model()
        self._queues.admit_base_model(number)
        return number

    def nothing_runs(self) -> bool:
        return self._queues.may_go_on()  # each pass frees a few places, and no event would start another one

    def next_change_s(self) -> float:
        return self._queues.next_change_s()

    def discard(self, adapter: int) -> None:
        self._queues.discard(adapter)
        self.loader.room_appeared()


# S-LoRA's unified paging: adapters take their memory from the KV cache, and load inside the step that needs them.


class Unified(LoadsInSteps):
    """Idle adapters make room for admitted requests before others are loaded."""

    def __init__(self, parts: ModeParts, cache: UnifiedCache, waiting: WaitingQueue, *, discards: bool) -> None:
        super().__init__(parts, waiting, discards=discards)
        self._unified = cache

    def before_step(self, batch: Scheduler, start_s: float) -> float:
        if batch.decided.prefills:
            self._unified.shrink()
        return super().before_step(batch, start_s)
