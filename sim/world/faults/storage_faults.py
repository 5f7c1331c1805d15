"""What is wrong with storage: how long loads from there take while it is slow, stalled, far away, or fails.

Windows are known before the run begins, so the end of a load is known when it starts.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from math import inf

import numpy as np

from sim.results.records import Event
from sim.rng import stream_key, uniform_draw
from sim.spec.scenario import Scenario
from sim.spec.sections.faults import FailingLoads, NetworkDelay, SlowStorage, StorageFault, StorageStall, never_happens
from sim.world.world import World

LONGEST_PAUSE_S = 300.0
"""From here on pauses between attempts don't double any more: Kubernetes' cap of ``CrashLoopBackOff``."""
Window = tuple[float, float, float]
"""When it begins and ends, and how many times as long loads take in it; infinite: they stand still."""


class StorageSpeed:
    """How fast storage works: at full speed, but slower in windows; where several overlap, their factors multiply.

    :param windows: in any order, all with an end; one that ends as it begins is none.
    """

    def __init__(self, windows: Sequence[Window]) -> None:
        windows = [window for window in windows if window[1] > window[0]]
        self._edges = sorted({time for begin_s, end_s, _ in windows for time in (begin_s, end_s)})
        self._speeds = [1.0]  # before the first edge, and from each on; the last is 1 again
        begins: dict[float, list[int]] = {}
        for i, (begin_s, _, _) in enumerate(windows):
            begins.setdefault(begin_s, []).append(i)
        there: list[int] = []
        for edge in self._edges:
            there = sorted([i for i in there if windows[i][1] > edge] + begins.get(edge, []))
            speed = 1.0
            for i in there:  # in the order of the scenario, so that the product is the same to the last bit
                speed /= windows[i][2]
            self._speeds.append(speed)

    def finish(self, start_s: float, work_s: float) -> float:
        """Return when a load ends that takes ``work_s`` at full speed."""
        return start_s + self.seconds(start_s, work_s)

    def seconds(self, start_s: float, work_s: float) -> float:
        """Return how long it takes; in a time of full speed that is exactly ``work_s``."""
        edges, speeds = self._edges, self._speeds
        piece, passed_s = bisect_right(edges, start_s), 0.0
        while piece < len(edges):
            edge, speed = edges[piece], speeds[piece]
            if speed and start_s + (passed_s + work_s / speed) <= edge:
                break  # the end as it will be computed: a load that ends with the edge is over
            work_s = max(0.0, work_s - (edge - start_s - passed_s) * speed)
            passed_s = edge - start_s
            piece += 1
        return passed_s + (work_s / speeds[piece] if work_s else 0.0)


@dataclass(frozen=True, slots=True)
class Delay:
    """A network between replicas and some of the adapters.

    :ivar begin_s, end_s: loads that start from the first time on and before the second take longer.
    :ivar ppf: the delay in seconds that belongs to a uniform number.
    :ivar share: of the adapters that are remote; ``adapter_key``: their luck, ``load_key``: that of loads.
    """

    begin_s: float
    end_s: float
    ppf: Callable[[float], float]
    share: float
    adapter_key: int
    load_key: int


@dataclass(frozen=True, slots=True)
class Failures:
    """Attempts that fail.

    :ivar begin_s, end_s: attempts that end from the first time on and before the second may fail.
    :ivar retries: attempts after the first; ``backoff_s``: pause before the first of them, doubled before each further,
        up to ``LONGEST_PAUSE_S``.
    :ivar keys: by attempt, of the luck of loads.
    """

    begin_s: float
    end_s: float
    probability: float
    retries: int
    backoff_s: float
    keys: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Attempts:
    """A load from storage as it will go.

    :ivar spans: when each attempt starts and ends.
    :ivar seconds: from the start of the first to the end of the last.
    :ivar succeeds: whether the last one does.
    """

    spans: tuple[tuple[float, float], ...]
    seconds: float
    succeeds: bool

    @property
    def end_s(self) -> float:
        """When the last one ends."""
        return self.spans[-1][1]


class StorageFaults:
    """What happens to the loads of one replica.

    A loader keeps its place in the pauses between attempts: LoRAX (``download_weights`` in its ``sources/hub.py``)
    and whoever else retries with a sleep in the thread that loads do so.

    :param original: by number in the caches, that of the adapter: its versions lie where it lies. None: the same.
    :param place: a number of this replica's own, so that loads that no request begins have their luck for themselves.
    """

    def __init__(
        self,
        speed: StorageSpeed,
        delays: Sequence[Delay],
        failures: Sequence[Failures],
        original: Sequence[int] | None = None,
        place: int = 0,
    ) -> None:
        self._speed = speed
        self._delays = delays
        self._failures = failures
        self._original = original
        self._place = place
        self._unrequested: dict[int, int] = {}  # by adapter, loads that no request began

    def attempts(self, start_s: float, seconds: float, adapter: int, number: int) -> Attempts:
        """Return how a load goes that starts now.

        :param seconds: what it takes where nothing is wrong.
        :param number: whose luck is the load's: the index of the request that began it, or ``unasked``.
        """
        work_s = self._work_s(start_s, seconds, adapter, number)
        took_s, began_s = self._speed.seconds(start_s, work_s), start_s
        spans: list[tuple[float, float]] = []
        while True:
            end_s = self._speed.finish(start_s, work_s)
            spans.append((start_s, end_s))
            failed = self._failed(len(spans) - 1, end_s, number)
            if failed is None or len(spans) > failed.retries:
                return Attempts(tuple(spans), took_s if len(spans) == 1 else end_s - began_s, failed is None)
            start_s = end_s + _pause_s(failed.backoff_s, len(spans) - 1)

    def unrequested(self, adapter: int) -> int:
        """Return a number below 0 for a load that no request begins: another one each time, here and elsewhere."""
        count = self._unrequested.get(adapter, 0)
        self._unrequested[adapter] = count + 1
        return ~((((self._place << 24) + adapter) << 20) + count)

    def seconds(self, start_s: float, seconds: float, adapter: int, number: int) -> float:
        """Return what a load takes that doesn't fail."""
        return self._speed.seconds(start_s, self._work_s(start_s, seconds, adapter, number))

    def _work_s(self, start_s: float, seconds: float, adapter: int, number: int) -> float:
        """Return what a load that starts now takes at full speed, beyond a network or not."""
        for delay in self._delays:
            if delay.begin_s <= start_s < delay.end_s and self._is_remote(delay, adapter):
                seconds += delay.ppf(uniform_draw(delay.load_key, number))
        return seconds

    def _is_remote(self, delay: Delay, adapter: int) -> bool:
        name = adapter if self._original is None else self._original[adapter]
        return uniform_draw(delay.adapter_key, name) < delay.share

    def _failed(self, attempt: int, end_s: float, number: int) -> Failures | None:
        """Return what makes an attempt fail, or None."""
        for failures in self._failures:
            holds = failures.begin_s <= end_s < failures.end_s
            if holds and uniform_draw(failures.keys[attempt], number) < failures.probability:
                return failures
        return None


def _pause_s(backoff_s: float, doubled: int) -> float:
    return min(backoff_s * 2.0**doubled, max(LONGEST_PAUSE_S, backoff_s))


def storage_faults(world: World) -> list[tuple[int, StorageFault]]:
    """Return the faults of a scenario that concern storage, each with its place there."""
    return [(i, fault) for i, fault in enumerate(world.scenario.faults) if isinstance(fault, StorageFault)]


def make_storage(world: World, replication: int, replica: int, place: int) -> StorageFaults | None:
    """Return what is wrong with the storage of one replica; None: nothing.

    :param place: a number of the replica's own, not that of one which stood in its place before.
    """
    seed = world.scenario.run.seed
    windows: list[Window] = []
    delays: list[Delay] = []
    failures: list[Failures] = []
    most = 1 + max((fault.retries for fault in world.scenario.faults if isinstance(fault, FailingLoads)), default=0)
    for i, fault in storage_faults(world):
        if fault.replica is not None and fault.replica != replica:
            continue
        end_s = inf if fault.lasts is None else fault.at + fault.lasts
        if isinstance(fault, NetworkDelay):
            keys = (stream_key(seed, replication, f"{name}-{i}") for name in ("remote", "network-delay"))
            delays.append(Delay(fault.at, end_s, _one(fault), fault.share, *keys))
        elif isinstance(fault, FailingLoads):
            lucky = tuple(stream_key(seed, replication, f"failing-load-{i}-{attempt}") for attempt in range(most))
            failures.append(Failures(fault.at, end_s, fault.probability, fault.retries, fault.backoff, lucky))
        else:
            windows.append((fault.at, end_s, fault.factor if isinstance(fault, SlowStorage) else inf))
    if not (windows or delays or failures):
        return None
    original = None if world.rollout_plan is None else world.rollout_plan.original.tolist()
    return StorageFaults(StorageSpeed(windows), delays, failures, original, place)


def _one(fault: NetworkDelay) -> Callable[[float], float]:
    return lambda drawn: float(fault.delay.ppf(np.array([drawn]))[0])


def storage_notes(scenario: Scenario) -> list[str]:
    """Return what a user should know of faults of storage in a scenario."""
    host = scenario.cache.host
    if host is None or host.fill != "start" or not any(isinstance(fault, StorageFault) for fault in scenario.faults):
        return []
    return [
        "all adapters are in host memory from the start: faults of storage concern only the new versions that a swap "
        "fetches; set cache.host.fill to load or arrival"
    ]


def note_storage(world: World, events: list[Event], stopped_s: float) -> None:
    """Add to the events of a replication that stopped then how storage was, and when.

    They need no event on the clock, which would prolong a run without an end.
    """
    for i, fault in storage_faults(world):
        if never_happens(fault):
            continue
        where = "all replicas" if fault.replica is None else f"replica {fault.replica}"
        began, over = _words(fault)
        events.append(Event(fault.at, "fault", f"faults.{i}: {began} ({where})"))
        if fault.lasts is not None:
            events.append(Event(fault.at + fault.lasts, "over", f"faults.{i}: {over} ({where})"))
    events[:] = sorted((event for event in events if event.time_s <= stopped_s), key=lambda event: event.time_s)


def _words(fault: StorageFault) -> tuple[str, str]:
    """Return what to say of a fault when it begins, and when it is over."""
    if isinstance(fault, SlowStorage):
        return f"loads from storage take {fault.factor:g} times as long", "storage is as fast as before"
    if isinstance(fault, StorageStall):
        return "nothing comes from storage", "storage goes on"
    if isinstance(fault, FailingLoads):
        return (
            f"{100 * fault.probability:.3g} % of the loads from storage fail",
            "loads from storage don't fail any more",
        )
    return (
        f"{100 * fault.share:.3g} % of the adapters lie behind a network, {fault.delay.mean():.3g} s away on average",
        "the network delays nothing any more",
    )
