"""Keep a router's view current, by live lists or by copies at intervals, and track resident adapters for it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from math import inf
from typing import Protocol

from sim.policies.routing import View
from sim.policies.scheduler import Scheduler
from sim.traffic.request import Request
from sim.world.clock import CONTROL, Call, Clock
from sim.world.replica.server import Server


class Activity(Protocol):
    """The adapters in the batches of the fleet."""

    def read(self) -> Sequence[int]:
        """Return, by adapter, a bit mask of the replicas that run it; valid until the next call."""
        ...


class BatchActivity:
    """Activity of replicas with batches, updated by the adapters that joined or left since the last reading.

    Few adapters change between two readings while a batch holds many. Reading whole batches would cost more than the
    rest of a router.
    """

    def __init__(self, adapters: int, replicas: int) -> None:
        self._masks = [0] * (adapters + 1)  # the base model is last
        self._toggled: list[list[int]] = [[] for _ in range(replicas)]
        self._schedulers: dict[int, Scheduler] = {}

    def replica(self, index: int, scheduler: Scheduler) -> None:
        """Follow a new scheduler, still without requests, at an index; the one before it has stopped."""
        if index in self._schedulers:
            dead = self._schedulers[index]
            dead.toggled = None
            self._toggled[index].extend(_adapters_of(dead))
        scheduler.toggled = self._toggled[index]
        self._schedulers[index] = scheduler

    def read(self) -> Sequence[int]:
        masks, bit = self._masks, 1
        for toggled in self._toggled:
            if toggled:
                for adapter in toggled:
                    masks[adapter] ^= bit
                toggled.clear()
            bit += bit
        return masks

    def check_integrity(self) -> None:
        """Assert that the masks agree with the batches."""
        masks = self.read()
        for index in range(len(self._toggled)):
            noted = {adapter for adapter, mask in enumerate(masks) if mask >> index & 1}
            there = _adapters_of(self._schedulers[index]) if index in self._schedulers else set()
            assert noted == there, f"replica {index}: {sorted(noted)} noted, {sorted(there)} there"


def _adapters_of(scheduler: Scheduler) -> set[int]:
    return {request.adapter for request in scheduler.running}


class InFlightActivity:
    """Activity of replicas without batches: all requests inside count as running.

    :param counts: by replica, requests inside by adapter.
    """

    def __init__(self, adapters: int, counts: list[dict[int, int]]) -> None:
        self._adapters = adapters
        self._counts = counts

    def read(self) -> Sequence[int]:
        masks = [0] * (self._adapters + 1)
        for replica, adapters in enumerate(self._counts):
            for adapter in adapters:
                masks[adapter] |= 1 << replica
        return masks


class RunningNow:
    """The replicas that run an adapter at this moment, by adapter."""

    def __init__(self, activity: Activity) -> None:
        self._activity = activity

    def __getitem__(self, adapter: int) -> int:
        """Return a bit mask of the replicas."""
        return self._activity.read()[adapter]


_ROOM: dict[int, int] = {}
"""In a copy, stands for the requests inside any replica that has room."""


class Residency:
    """The replicas that hold an adapter in GPU memory, or are loading it.

    :ivar masks: by adapter, a bit mask of these replicas; last the base model, which counts as nowhere.
    :ivar held: by replica, how many adapters it has.
    """

    def __init__(self, adapters: int, replicas: int) -> None:
        self.masks = [0] * (adapters + 1)
        self.held = [0] * replicas
        self._bits = [1 << replica for replica in range(replicas)]
        self._changed: set[int] = set()  # since the last copy

    def placed(self, adapter: int, replica: int) -> None:
        """Note that a load has started on a replica; repeated calls are harmless."""
        if not self.masks[adapter] & self._bits[replica]:
            self.masks[adapter] |= self._bits[replica]
            self.held[replica] += 1
            self._changed.add(adapter)

    def left(self, adapter: int, replica: int) -> None:
        """Note that an adapter has left a replica, or was never there."""
        if self.masks[adapter] & self._bits[replica]:
            self.masks[adapter] &= ~self._bits[replica]
            self.held[replica] -= 1
            self._changed.add(adapter)

    def forget(self, replica: int) -> None:
        """Forget all adapters of a replica that has crashed."""
        bit = self._bits[replica]
        for adapter, mask in enumerate(self.masks):
            if mask & bit:
                self.left(adapter, replica)

    def copy_to(self, masks: list[int]) -> None:
        """Update a copy, empty at first. Only one can be kept, since each change is noted once."""
        if masks:
            for adapter in self._changed:
                masks[adapter] = self.masks[adapter]
        else:
            masks[:] = self.masks
        self._changed.clear()

    def check_integrity(self, states: Sequence[Sequence[int]]) -> None:
        """Assert that the masks agree with the caches.

        :param states: by replica and adapter, 0 where it is absent (``GpuCache.state``).
        """
        for adapter, mask in enumerate(self.masks[:-1]):
            there = sum(bit for bit, state in zip(self._bits, states, strict=True) if state[adapter])
            assert mask == there, f"adapter {adapter}: {mask:b} noted, {there:b} there"
        assert self.held == [sum(mask >> replica & 1 for mask in self.masks) for replica in range(len(self.held))]


class CopiesNow:
    """The replicas that have a copy of an adapter at this moment, by adapter."""

    def __init__(self, servers: Sequence[Server], residency: Residency) -> None:
        self._servers = servers
        self._masks = residency.masks
        self._only_on_gpu = all(server.copies.only_on_gpu for server in servers)

    def __getitem__(self, adapter: int) -> int:
        """Return a bit mask of the replicas."""
        if self._only_on_gpu:
            return self._masks[adapter]
        mask, bit = 0, 1
        for server in self._servers:
            if server.copies.exist(adapter):
                mask |= bit
            bit += bit
        return mask


@dataclass(frozen=True, slots=True)
class Sources:
    """The live state of the fleet, from which views are read: the same lists that the servers update.

    :ivar loads: by replica, number of requests inside.
    :ivar residency: adapters on each replica; ``activity``: adapters in batches.
    :ivar inside: returns, by replica, requests inside by adapter, always current from then on.
    :ivar servers: the replicas themselves, for what their metrics show.
    """

    loads: list[int]
    residency: Residency = field(default_factory=lambda: Residency(0, 0))
    activity: Activity = field(default_factory=lambda: InFlightActivity(0, []))
    inside: Callable[[], list[dict[int, int]]] = list
    servers: Sequence[Server] = ()


class FreshView:
    """A router's view that needs no catching up.

    :ivar of_request: whether it shows something of each request that is sent, so that ``show`` must be called.
    """

    of_request = False

    def show(self, request: Request) -> None:
        """Show the request that is about to be sent."""

    def refresh(self) -> None:
        """Do the last due reading if it was skipped, for a request that is not sent at an arrival."""


class ViewRefresher(FreshView):
    """Keeps the view of a router current: shared with the fleet, or copied at intervals.

    A reading is a control event, the first of its instant: arrivals of this instant see it, and it sees nothing that
    happens then. Readings that no arrival would see are skipped, and the last arrival ends them. Before a request is
    sent at another time (a retry, a restart), ``refresh`` catches up on a skipped reading. ``View.up`` and
    ``View.slots`` are not changed here.

    Create it once all replicas exist and before anything has happened.

    :param reads: fields that the router reads (``Router.reads``); no others are shared or copied.
    :param interval_s: seconds between readings; 0: the view is always current.
    :param next_s: returns the time of the next arrival, infinite if there is none.
    """

    def __init__(
        self,
        clock: Clock,
        view: View,
        sources: Sources,
        reads: frozenset[str],
        interval_s: float,
        next_s: Callable[[], float],
    ) -> None:
        self._clock = clock
        self._view = view
        self._others: Sequence[View] = ()
        self._sources = sources
        self._reads = reads
        self._gauged = not reads.isdisjoint(("waiting", "batch", "kv"))
        self.of_request = not reads.isdisjoint(("texts", "request")) or (self._gauged and interval_s == 0)
        self._interval_s = interval_s
        self._next_s = next_s
        self._reading = 1
        self._done = 0  # number of the last reading that was done
        self._all_room = [_ROOM] * len(sources.loads)
        if "in_flight" in reads:
            view.in_flight = sources.loads
        if "copies" in reads:
            view.copies = CopiesNow(sources.servers, sources.residency)
        if "cached" in reads:
            view.cached = lambda replica, request: sources.servers[replica].cached_tokens(request)
        if interval_s == 0:
            self._share()
        elif reads:
            self._read()
            clock.call_at(interval_s, CONTROL, self._again)
            clock.periodic += 1

    def keep_current(self, views: Sequence[View]) -> None:
        """Show the same in the views of other routers of this fleet, but for the replicas that are up."""
        self._others = views
        self._copy_to_others()

    def show(self, request: Request) -> None:
        view = self._view
        view.request = request
        if "texts" in self._reads:
            texts = [key for _, key in reversed(request.shared)]
            view.texts = texts if request.text_key < 0 else [request.text_key, *texts]
        if self._gauged and self._interval_s == 0:
            self._read_gauges()
        for other in self._others:
            other.texts, other.request = view.texts, request
            other.waiting, other.batch, other.kv = view.waiting, view.batch, view.kv

    def refresh(self) -> None:
        if self._interval_s > 0 and self._reads:
            last = self._last(self._clock.now)
            if last > self._done:
                self._done = last
                self._read()

    def _share(self) -> None:
        view, sources = self._view, self._sources
        if "loads" in self._reads:
            view.loads = sources.loads
        if "resident" in self._reads:
            view.resident = sources.residency.masks
        if "running" in self._reads:
            view.running = RunningNow(sources.activity)
        if "inside" in self._reads:
            view.inside = sources.inside()
        if "listed" in self._reads:
            view.listed = sources.inside()
        if "held" in self._reads:
            view.held = sources.residency.held
        if self._gauged:
            self._read_gauges()

    def _copy_to_others(self) -> None:
        view = self._view
        for other in self._others:
            other.loads, other.resident, other.running = view.loads, view.resident, view.running
            other.inside, other.reading = view.inside, view.reading
            other.waiting, other.batch, other.kv = view.waiting, view.batch, view.kv
            other.listed, other.held = view.listed, view.held
            other.copies, other.in_flight, other.cached = view.copies, view.in_flight, view.cached

    def _again(self, event: Call) -> None:
        if self._reading > self._done:
            self._done = self._reading
            self._read()
        next_s = self._next_s()
        if next_s == inf:
            return
        self._reading += 1
        if (self._reading + 1) * self._interval_s <= next_s:
            self._reading = self._last(next_s)
        self._clock.schedule(self._reading * self._interval_s, CONTROL, event)

    def _last(self, time_s: float) -> int:
        """Return the number of the last reading due by a time."""
        # A product, not a running sum: the n-th reading is at exactly n intervals.
        interval_s = self._interval_s
        last = int(time_s / interval_s)
        while last * interval_s > time_s:
            last -= 1
        while (last + 1) * interval_s <= time_s:
            last += 1
        return last

    def _read(self) -> None:
        view, sources, reads = self._view, self._sources, self._reads
        view.reading += 1
        if "loads" in reads:
            view.loads = sources.loads.copy()
        if "resident" in reads:
            sources.residency.copy_to(view.resident)
        if "running" in reads:
            view.running = sources.activity.read()
        if "inside" in reads:
            self._read_inside()
        if "listed" in reads:
            view.listed = [adapters.copy() for adapters in sources.inside()]
        if "held" in reads:
            view.held = sources.residency.held.copy()
        if self._gauged:
            self._read_gauges()
        if self._others:
            self._copy_to_others()

    def _read_gauges(self) -> None:
        view, loads, servers = self._view, self._sources.loads, self._sources.servers
        view.batch = [server.batch_size() for server in servers]
        view.waiting = [max(0, inside - running) for inside, running in zip(loads, view.batch, strict=True)]
        if "kv" in self._reads:
            view.kv = [server.kv_usage() for server in servers]

    def _read_inside(self) -> None:
        view, sources = self._view, self._sources
        slots = view.slots
        if max(sources.loads) < slots:  # all have room, and no more is read
            view.inside = self._all_room
        else:
            view.inside = [adapters.copy() if len(adapters) >= slots else _ROOM for adapters in sources.inside()]
