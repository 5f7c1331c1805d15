"""Loads of adapters into GPU memory: queues, loaders, and who waits for what."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable

from sim.policies.cache import GpuCache, HostCache
from sim.results.records import Recorder, pack_load
from sim.traffic.request import FROM_HOST, FROM_STORAGE, Request
from sim.world.clock import LOAD_DONE, Call, Clock


class Channel:
    """Loaders of one tier, first come first served.

    A load takes its slot, and evicts, when it starts. If the first in the queue finds no room because
    everything is in use, the channel stands still until a user leaves.
    """

    def __init__(self, loaders: int) -> None:
        self.loaders = loaders
        self.busy = 0
        self.queue: deque[Load] = deque()


class Load:
    """One load: asked for at ``asked_s``, under way from ``started_s``; ``waiting`` want its adapter."""

    __slots__ = ("adapter", "asked_s", "channel", "seconds", "started_s", "tier", "waiting")

    def __init__(self, request: Request, channel: Channel, tier: int, seconds: float, asked_s: float) -> None:
        self.adapter = request.adapter
        self.channel = channel
        self.tier = tier
        self.seconds = seconds
        self.asked_s = asked_s
        self.started_s = -1.0
        self.waiting = [request]


class Loader:
    """All loads of one replica. One load per adapter at a time: later requests join it.

    :param loaders: loaders from storage, and from host.
    :param on_loaded: called with the requests that waited for an adapter, when it is there, and with whether the
        load took any time: only then does its end come before a step boundary of the same instant.
    :ivar under_way: loads queued or running, by adapter.
    :ivar short_of_room: whether the first load of a queue waits because everything is in use.
    """

    def __init__(
        self,
        clock: Clock,
        cache: GpuCache,
        host: HostCache | None,
        loaders: tuple[int, int],
        recorder: Recorder,
        on_loaded: Callable[[list[Request], bool], None],
    ) -> None:
        self._clock = clock
        self._cache = cache
        self._host = host
        self._recorder = recorder
        self._on_loaded = on_loaded
        self._storage = Channel(loaders[0])
        self._from_host = Channel(loaders[1])
        self.under_way: dict[int, Load] = {}
        self.short_of_room = False
        self._short_since = 0.0
        self._spent: list[Call] = []

    def ask(self, request: Request) -> bool:
        """Start or queue the load of a request's adapter, or join the one under way; return whether it joined."""
        now = request.asked_s = self._clock._now
        load = self.under_way.get(request.adapter)
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
        self.under_way[request.adapter] = load = Load(request, channel, tier, seconds, now)
        channel.queue.append(load)
        if channel.busy < channel.loaders:
            self._start(channel)
        return False

    def source(self, request: Request) -> tuple[int, float]:
        """Return the tier that holds the request's adapter, and the seconds of a load from there."""
        if self._host is not None and self._host.touch(request.adapter):
            return FROM_HOST, request.host_load_s
        return FROM_STORAGE, request.load_s

    def room_appeared(self) -> None:
        """Try again to start the loads that found no room."""
        self.short_of_room = False
        self._recorder.short_of_room(self._short_since, self._clock._now)
        self._start(self._from_host)
        self._start(self._storage)

    def close(self, now: float) -> None:
        """Note what is still under way when the simulation stops."""
        if self.short_of_room:
            self._recorder.short_of_room(self._short_since, now)
        for load in self.under_way.values():
            if load.started_s >= 0:
                self._recorder.load_rows += pack_load(load.started_s, now, load.asked_s, load.adapter, load.tier)

    def kept(self, adapter: int, tier: int) -> None:
        """Note that an adapter has come from ``tier``; what comes from storage leaves a copy in host memory."""
        if self._host is not None and tier == FROM_STORAGE:
            self._host.insert(adapter)

    def _start(self, channel: Channel) -> None:
        clock, queue = self._clock, channel.queue
        while queue and channel.busy < channel.loaders:
            load = queue[0]
            now = clock._now
            if not self._cache.reserve(load.adapter):
                if not self.short_of_room:
                    self.short_of_room = True
                    self._short_since = now
                return
            queue.popleft()
            channel.busy += 1
            load.started_s = now
            event = self._spent.pop() if self._spent else Call(clock, self._done)
            event.subject = load
            event.callbacks = event.call
            clock.push((now + load.seconds, LOAD_DONE, clock.next_id(), event))

    def _done(self, event: Call) -> None:
        now = self._clock._now
        load: Load = event.subject
        adapter, tier, started, channel = load.adapter, load.tier, load.started_s, load.channel
        self._cache.loaded(adapter)
        if self._host is not None:
            self.kept(adapter, tier)
        del self.under_way[adapter]
        channel.busy -= 1
        self._recorder.load_rows += pack_load(started, now, load.asked_s, adapter, tier)
        for request in load.waiting:
            asked = request.asked_s
            request.load_wait_s = now - asked
            if started > asked:
                request.load_queue_s = started - asked
        self._on_loaded(load.waiting, started < now)
        self._spent.append(event)
        if channel.queue:
            self._start(channel)
