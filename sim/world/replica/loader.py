"""Loads of adapters into GPU memory that overlap with steps: loaders, their queues, and the requests that wait."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Collection
from dataclasses import dataclass
from typing import Any

from sim.policies.adapter_cache import AllInHost, GpuCache, HostCache
from sim.policies.vllm_lru import VllmLruCache
from sim.results.records import Recorder, pack_load
from sim.traffic.request import FROM_HOST, FROM_STORAGE, Request
from sim.world.clock import LOAD_DONE, Call, Clock
from sim.world.faults.storage_faults import Attempts, StorageFaults
from sim.world.rollouts.versions import LoadListener


@dataclass(frozen=True, slots=True)
class LoadContext:
    """What every load on a replica needs to know.

    :ivar replica: index of the replica, for the records.
    :ivar versions: called when loads start and end; optional.
    :ivar faults: faults of storage; optional.
    """

    recorder: Recorder
    replica: int
    versions: LoadListener | None = None
    faults: StorageFaults | None = None


class Channel:
    """Loaders of one tier, first come first served.

    A load takes its slot, and evicts, when it starts. If the first load in the queue finds no room because all
    adapters are in use, all loads of the channel wait until an adapter is released.
    """

    def __init__(self, loaders: int) -> None:
        self.loaders = loaders
        self.busy = 0
        self.queue: deque[Load] = deque()


class Load(Call):
    """One load, which is also the event of its end; used again for later loads.

    :ivar seconds: load time without faults.
    :ivar asked_s: time of the request for it; ``started_s``: time at which it started, or -1.
    :ivar waiting: requests that wait for its adapter.
    :ivar on_renewed: for a new version of an adapter that may be resident: called at the end; otherwise None.
    :ivar attempts: how the load goes under faults of storage; None: it takes its seconds.
    """

    adapter: int
    channel: Channel
    tier: int
    seconds: float
    asked_s: float
    started_s: float
    waiting: list[Request]
    on_renewed: Callable[[], None] | None
    attempts: Attempts | None


class Loader:
    """All loads of one replica. There is one load per adapter at a time: later requests join it.

    :param host: host memory tier; optional.
    :param loaders: number of loaders from storage, and from host memory.
    :param on_loaded: called with the requests that waited for an adapter, and whether the load took any time: only then
        does its end come before a step boundary of the same instant.
    :ivar faults: faults of storage; optional.
    :ivar on_failed: like ``on_loaded``, for an adapter that could not be loaded.
    :ivar on_load_done: called after every load, once queued loads have started; optional, for prefetching.
    :ivar under_way: loads queued or running, by adapter.
    :ivar short_of_room: whether the first load of a queue waits because all adapters are in use.
    """

    def __init__(
        self,
        clock: Clock,
        cache: GpuCache | VllmLruCache,
        host: HostCache | AllInHost | None,
        loaders: tuple[int, int],
        context: LoadContext,
        on_loaded: Callable[[list[Request], bool], None],
    ) -> None:
        self.context = context
        self.faults = context.faults
        self.on_failed: Callable[[list[Request], bool], None]
        self._clock = clock
        self._cache: Any = cache  # a VllmLruCache loads inside steps and is never asked for room by a loader
        self._host = host
        self._recorder = context.recorder
        self._on_loaded = on_loaded
        self._replica = context.replica
        self._versions = context.versions
        self._storage = Channel(loaders[0])
        self._from_host = Channel(loaders[1])
        self.under_way: dict[int, Load] = {}
        self.short_of_room = False
        self.on_load_done: Callable[[], None] | None = None
        self._short_since = 0.0
        self._spent: list[Load] = []
        self._renewals: list[Load] = []

    def request_load(self, request: Request) -> bool:
        """Start or queue the load of a request's adapter, or join the one under way; return whether it joined."""
        request.asked_s = self._clock._now
        adapter = request.adapter
        load = self.under_way.get(adapter)
        if load is not None:
            load.waiting.append(request)
            request.tier = load.tier
            return True
        if self._host is None:
            tier, seconds, channel = FROM_STORAGE, request.load_s, self._storage
        else:
            tier, seconds = self.source(request)
            channel = self._storage if tier == FROM_STORAGE else self._from_host
        request.tier = tier
        load = self._new_load(adapter, channel, tier, seconds)
        load.waiting.append(request)
        if channel.queue or channel.busy == channel.loaders or not self._begin(load):
            channel.queue.append(load)
        return False

    def may_load_ahead(self) -> bool:
        """Return whether a loader is idle and no requested load waits."""
        storage, host = self._storage, self._from_host
        if storage.queue or host.queue:
            return False
        return storage.busy < storage.loaders or (self._host is not None and host.busy < host.loaders)

    def load_ahead(self, request: Request, spared: Collection[int]) -> bool:
        """Start a load before its request reaches admission, if a loader of the adapter's tier is idle.

        :param spared: adapters that may not be evicted for it.
        :returns: False if there is no room.
        """
        adapter, host = request.adapter, self._host
        there = host is not None and adapter in host
        channel = self._from_host if there else self._storage
        if channel.busy == channel.loaders:
            return True
        if not self._cache.reserve_ahead(adapter, spared):
            return False
        self._run(self._new_load(adapter, channel, *self.source(request)), request)
        return True

    def renew(self, adapter: int, seconds: float, then: Callable[[], None]) -> None:
        """Load a new version of an adapter from storage, into the room of the old one.

        The load queues for a loader; ``then`` is called at its end.
        """
        channel = self._storage
        load = self._spent.pop() if self._spent else Load(self._clock, self._done)
        self._describe(load, adapter, channel, FROM_STORAGE, seconds)
        load.on_renewed = then
        self._renewals.append(load)
        if channel.queue or channel.busy == channel.loaders:
            channel.queue.append(load)
        else:
            self._run(load)

    def _new_load(self, adapter: int, channel: Channel, tier: int, seconds: float) -> Load:
        self.under_way[adapter] = load = self._spent.pop() if self._spent else Load(self._clock, self._done)
        self._describe(load, adapter, channel, tier, seconds)
        return load

    def _describe(self, load: Load, adapter: int, channel: Channel, tier: int, seconds: float) -> None:
        load.adapter = adapter
        load.channel = channel
        load.tier = tier
        load.seconds = seconds
        load.asked_s = self._clock._now
        load.started_s = -1.0
        load.waiting = []
        load.on_renewed = None
        load.attempts = None

    def source(self, request: Request) -> tuple[int, float]:
        """Return the tier to load the request's adapter from, and the load time. Counts as a use of a host copy."""
        if self._host is not None and self._host.touch(request.adapter):
            return FROM_HOST, request.host_load_s
        return FROM_STORAGE, request.load_s

    def room_appeared(self) -> None:
        """Try again to start loads that found no room; those from host memory first."""
        self.short_of_room = False
        self._recorder.short_of_room(self._short_since, self._clock._now)
        self._start(self._from_host)
        self._start(self._storage)

    def close(self, now: float) -> None:
        """Record the loads still under way when the simulation stops."""
        if self.short_of_room:
            self._recorder.short_of_room(self._short_since, now)
        for load in (*self.under_way.values(), *self._renewals):
            if load.attempts is not None:
                self._recorder.load_attempts(load.attempts.spans, load.asked_s, load.adapter, self._replica, now)
            elif load.started_s >= 0:
                self._recorder.load_rows += pack_load(
                    load.started_s, now, load.asked_s, load.adapter, load.tier, self._replica
                )

    def begins(self, adapter: int, tier: int) -> None:
        """Tell the versions that a load from ``tier`` starts to read."""
        if self._versions is not None:
            self._versions.load_started(adapter, tier)

    def kept(self, adapter: int, tier: int) -> None:
        """Note the end of a load from ``tier``; a load from storage leaves a copy in host memory."""
        if self._host is not None and tier == FROM_STORAGE:
            self._host.insert(adapter)
        if self._versions is not None:
            self._versions.load_ended(adapter, tier)

    def _start(self, channel: Channel) -> None:
        queue = channel.queue
        while queue and channel.busy < channel.loaders and self._begin(queue[0]):
            queue.popleft()

    def _begin(self, load: Load) -> bool:
        """Start a load on a free loader, unless there is no room; return whether it started."""
        if load.on_renewed is None and not self._cache.reserve(load.adapter):
            if not self.short_of_room:
                self.short_of_room = True
                self._short_since = self._clock._now
            return False
        self._run(load)
        return True

    def _run(self, load: Load, begun_by: Request | None = None) -> None:
        """Put the end of a load that has its room on the clock.

        :param begun_by: for a load ahead of time, the request that will need it.
        """
        clock = self._clock
        now = clock._now
        load.channel.busy += 1
        load.started_s = now
        if self._versions is not None and load.on_renewed is None:
            self._versions.load_started(load.adapter, load.tier)
        load.callbacks = load.call
        end_s = now + load.seconds
        if self.faults is not None and load.tier == FROM_STORAGE:
            request = begun_by or (load.waiting[0] if load.waiting else None)
            number = self.faults.unrequested(load.adapter) if request is None else request.index
            load.attempts = self.faults.attempts(now, load.seconds, load.adapter, number)
            end_s = load.attempts.end_s
        clock.push((end_s, LOAD_DONE, clock.next_id(), load))

    def _done(self, load: Load) -> None:
        now = self._clock._now
        adapter, started, asked_s, channel = load.adapter, load.started_s, load.asked_s, load.channel
        channel.busy -= 1
        if load.attempts is None:
            self._recorder.load_rows += pack_load(started, now, asked_s, adapter, load.tier, self._replica)
        else:
            self._recorder.load_attempts(load.attempts.spans, asked_s, adapter, self._replica, now)
        if load.on_renewed is not None:
            self._renewed(load)
            return
        if load.attempts is not None and not load.attempts.succeeds:
            self._fail_load(load)
            return
        self._cache.loaded(adapter)
        if self._host is not None or self._versions is not None:
            self.kept(adapter, load.tier)
        del self.under_way[adapter]
        waiting = load.waiting
        for request in waiting:
            asked_s = request.asked_s
            request.load_wait_s = now - asked_s
            if started > asked_s:
                request.load_queue_s = started - asked_s
        self._on_loaded(waiting, started < now)
        self._spent.append(load)
        if self.short_of_room and not waiting:
            self.room_appeared()  # an adapter loaded ahead, not in use yet, may make room for a requested one
        elif channel.queue:
            self._start(channel)
        if self.on_load_done is not None:
            self.on_load_done()

    def _fail_load(self, load: Load) -> None:
        """End a load that has failed for good: free its room and release its requests."""
        del self.under_way[load.adapter]
        self._cache.abort(load.adapter)
        waiting, now = load.waiting, self._clock._now
        for request in waiting:
            request.load_wait_s = now - request.asked_s
            if load.started_s > request.asked_s:
                request.load_queue_s = load.started_s - request.asked_s
        self._spent.append(load)
        self.on_failed(waiting, load.started_s < now)
        if self.short_of_room:
            self.room_appeared()
        elif load.channel.queue:
            self._start(load.channel)

    def _renewed(self, load: Load) -> None:
        then, channel = load.on_renewed, load.channel
        assert then is not None, "called for renewals"
        self._renewals.remove(load)
        self._spent.append(load)
        if channel.queue:
            self._start(channel)
        then()
        if self.on_load_done is not None:
            self.on_load_done()
