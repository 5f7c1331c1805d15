"""Loads of adapters into GPU memory that overlap with steps: loaders, their queues, and the requests that wait."""

from __future__ import annotations

from abc import abstractmethod
from collections import deque
from collections.abc import Callable, Collection

from mypy_extensions import trait

from sim.policies.adapter_cache import ABSENT, GpuCache
from sim.policies.host_tier import HostTier
from sim.traffic.request import FROM_HOST, FROM_STORAGE, Request
from sim.world.clock import LOAD_DONE, Call
from sim.world.replica.ports import UNDISTURBED, Attempts, LoadContext, WeightVersions


class Tiers:
    """Where loads to the GPU read from, and the copies that they leave in host memory.

    :ivar follows_loads: whether starts and ends of loads matter here; otherwise the loader saves the calls.
    """

    def __init__(self, host: HostTier, versions: WeightVersions) -> None:
        self.host = host
        self._has_host = host.present
        self._versions = versions
        self._hears_loads = versions.hears_loads
        self.follows_loads = host.present or versions.hears_loads

    def source(self, request: Request) -> tuple[int, float]:
        """Return the tier to load the request's adapter from, and the load time. Counts as a use of a host copy."""
        if self._has_host and self.host.touch(request.adapter):
            return FROM_HOST, request.host_load_s
        return FROM_STORAGE, request.load_s

    def load_started(self, adapter: int, tier: int) -> None:
        """Note that a load starts to read."""
        if self._hears_loads:
            self._versions.load_started(adapter, tier)

    def load_ended(self, adapter: int, tier: int) -> None:
        """Note the end of a load; one from storage leaves a copy in host memory."""
        if tier == FROM_STORAGE and self._has_host:
            self.host.insert(adapter)
        if self._hears_loads:
            self._versions.load_ended(adapter, tier)


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
    :ivar attempts: its course, if it reads storage.
    """

    adapter: int
    channel: Channel
    tier: int
    seconds: float
    asked_s: float
    started_s: float
    waiting: list[Request]
    on_renewed: Callable[[], None] | None
    attempts: Attempts


@trait
class LoadOwner:
    """Is called when loads end."""

    @abstractmethod
    def loaded(self, requests: list[Request], may_join_now: bool) -> None:
        """An adapter is resident.

        :param requests: those that waited for it.
        :param may_join_now: whether the load took any time: only then does its end come before a step boundary of the
            same instant.
        """

    @abstractmethod
    def load_failed(self, requests: list[Request], may_join_now: bool) -> None:
        """An adapter could not be loaded."""

    @abstractmethod
    def after_load(self) -> None:
        """A load has succeeded, and queued loads have started where a loader was free.

        Not called for loads that fail: where those may, scenarios are not allowed to load ahead.
        """


class Loader:
    """All loads of one replica. There is one load per adapter at a time: later requests join it.

    :param loaders: number of loaders from storage, and from host memory.
    :ivar loads: loads queued or running, by adapter.
    :ivar short_of_room: whether the first load of a queue waits because all adapters are in use.
    """

    def __init__(
        self, context: LoadContext, cache: GpuCache, host: HostTier, loaders: tuple[int, int], owner: LoadOwner
    ) -> None:
        self._clock = context.clock
        self._cache = cache
        self._owner = owner
        self._recorder = context.recorder
        self._replica = context.replica
        self._tiers = Tiers(host, context.versions)
        self._timing, self._disturbs = context.timing, context.timing.disturbs
        self._storage = Channel(loaders[0])
        self._from_host = Channel(loaders[1])
        self.loads: dict[int, Load] = {}
        self.short_of_room = False
        self._short_since = 0.0
        self._spent: list[Load] = []
        self._renewals: list[Load] = []

    def request_load(self, request: Request) -> bool:
        """Start or queue the load of a request's adapter, or join the one under way; return whether it joined."""
        request.asked_s = self._clock.now
        adapter = request.adapter
        load = self.loads.get(adapter)
        if load is not None:
            load.waiting.append(request)
            request.tier = load.tier
            return True
        tier, seconds = self._tiers.source(request)
        channel = self._storage if tier == FROM_STORAGE else self._from_host
        request.tier = tier
        self.loads[adapter] = load = self._new_load(adapter, channel, tier, seconds)
        load.waiting.append(request)
        if channel.queue or channel.busy == channel.loaders or not self._begin(load):
            channel.queue.append(load)
        return False

    def may_load_ahead(self) -> bool:
        """Return whether a loader is idle and no requested load waits."""
        storage, host = self._storage, self._from_host
        if storage.queue or host.queue:
            return False
        return storage.busy < storage.loaders or (self._tiers.host.present and host.busy < host.loaders)

    def load_ahead(self, request: Request, spared: Collection[int]) -> bool:
        """Start a load before its request reaches admission, if a loader of the adapter's tier is idle.

        :param spared: adapters that may not be evicted for it.
        :returns: False if there is no room.
        """
        adapter = request.adapter
        channel = self._from_host if self._tiers.host.holds(adapter) else self._storage
        if channel.busy == channel.loaders:
            return True
        if not self._cache.reserve_ahead(adapter, spared):
            return False
        tier, seconds = self._tiers.source(request)
        self.loads[adapter] = load = self._new_load(adapter, channel, tier, seconds)
        self._run(load, request.index)
        return True

    def load_placed(self, adapter: int, seconds: tuple[float, float]) -> None:
        """Start or queue the load of an adapter for which no request waits so far, unless there is one.

        :param seconds: from storage, and from host memory.
        """
        if adapter in self.loads or self._cache.state[adapter] != ABSENT:
            return
        from_host = self._tiers.host.touch(adapter)
        channel, tier = (self._from_host, FROM_HOST) if from_host else (self._storage, FROM_STORAGE)
        self.loads[adapter] = load = self._new_load(adapter, channel, tier, seconds[1] if from_host else seconds[0])
        channel.queue.append(load)
        if len(channel.queue) == 1:
            self._start(channel)

    def renew(self, adapter: int, seconds: float, then: Callable[[], None]) -> None:
        """Load a new version of an adapter from storage, into the room of the old one.

        The load queues for a loader; ``then`` is called at its end.
        """
        channel = self._storage
        load = self._new_load(adapter, channel, FROM_STORAGE, seconds)
        load.on_renewed = then
        self._renewals.append(load)
        if channel.queue or channel.busy == channel.loaders:
            channel.queue.append(load)
        else:
            self._run(load, -1)

    def _new_load(self, adapter: int, channel: Channel, tier: int, seconds: float) -> Load:
        load = self._spent.pop() if self._spent else Load(self._done)
        load.adapter = adapter
        load.channel = channel
        load.tier = tier
        load.seconds = seconds
        load.asked_s = self._clock.now
        load.started_s = -1.0
        load.waiting = []
        load.on_renewed = None
        load.attempts = UNDISTURBED
        return load

    def room_appeared(self) -> None:
        """If loads wait because there was no room, try again to start them; those from host memory first."""
        if not self.short_of_room:
            return
        self.short_of_room = False
        self._recorder.short_of_room(self._short_since, self._clock.now)
        self._start(self._from_host)
        self._start(self._storage)

    def waiting(self) -> list[Request]:
        """Return the requests that wait for a load."""
        return [request for load in self.loads.values() for request in load.waiting]

    def close(self, now: float) -> None:
        """Record the loads still under way when the simulation stops."""
        if self.short_of_room:
            self._recorder.short_of_room(self._short_since, now)
        for load in (*self.loads.values(), *self._renewals):
            if load.started_s >= 0:
                self._record(load, now)

    def _record(self, load: Load, now: float) -> None:
        if load.attempts.spans:
            self._recorder.load_attempts(load.attempts.spans, load.asked_s, load.adapter, self._replica, now)
        else:
            self._recorder.record_load(load.started_s, now, load.asked_s, load.adapter, load.tier, self._replica)

    def _start(self, channel: Channel) -> None:
        queue = channel.queue
        while queue and channel.busy < channel.loaders and self._begin(queue[0]):
            queue.popleft()

    def _begin(self, load: Load) -> bool:
        """Start a load on a free loader, unless there is no room; return whether it started."""
        if load.on_renewed is None and not self._cache.reserve(load.adapter):
            if not self.short_of_room:
                self.short_of_room = True
                self._short_since = self._clock.now
            return False
        self._run(load, load.waiting[0].index if load.waiting else -1)
        return True

    def _run(self, load: Load, index: int) -> None:
        """Put the end of a load that has its room on the clock.

        :param index: of the request that it is for; -1: none.
        """
        clock = self._clock
        now = clock.now
        load.channel.busy += 1
        load.started_s = now
        seconds = load.seconds
        if self._tiers.follows_loads and load.on_renewed is None:
            self._tiers.load_started(load.adapter, load.tier)
        end_s = now + seconds
        if self._disturbs and load.tier == FROM_STORAGE:
            load.attempts = attempts = self._timing.attempts(now, seconds, load.adapter, index)
            if attempts.spans:
                end_s = attempts.spans[-1][1]
        clock.schedule(end_s, LOAD_DONE, load)

    def _done(self, load: Load) -> None:
        now = self._clock.now
        adapter, channel = load.adapter, load.channel
        channel.busy -= 1
        self._record(load, now)
        renewed = load.on_renewed
        if renewed is not None:
            self._renewals.remove(load)
            self._spent.append(load)
            if channel.queue:
                self._start(channel)
            renewed()
            self._owner.after_load()
            return
        del self.loads[adapter]
        waiting, may_join_now = load.waiting, load.started_s < now
        for request in waiting:
            asked_s = request.asked_s
            request.load_wait_s = now - asked_s
            if load.started_s > asked_s:
                request.load_queue_s = load.started_s - asked_s
        if not load.attempts.succeeds:
            self._cache.abort(adapter)
            self._spent.append(load)
            self._owner.load_failed(waiting, may_join_now)
            if self.short_of_room:
                self.room_appeared()
            else:
                self._start(channel)
            return
        self._cache.loaded(adapter)
        if self._tiers.follows_loads:
            self._tiers.load_ended(adapter, load.tier)
        self._owner.loaded(waiting, may_join_now)
        self._spent.append(load)
        if self.short_of_room and not waiting:
            self.room_appeared()  # an adapter loaded ahead, not in use yet, may make room for a requested one
        elif channel.queue:
            self._start(channel)
        self._owner.after_load()
