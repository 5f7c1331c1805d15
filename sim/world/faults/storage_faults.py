"""Faults of storage: load times while it is slow, stalled, behind a network, or failing.

All windows are known before the run begins, so the end of a load is known when it starts.
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
from sim.spec.sections.changes import (
    FailingLoads,
    NetworkDelay,
    SlowStorage,
    StorageFault,
    StorageStall,
    ends_s,
    never_happens,
)
from sim.world.replica.ports import Attempts, LoadTiming
from sim.world.times import ReplicaDraws
from sim.world.world import Pool

LONGEST_PAUSE_S = 300.0
"""Pauses between attempts double up to this, Kubernetes' cap of ``CrashLoopBackOff``."""
Window = tuple[float, float, float]
"""Start, end, and the factor on load times in between; infinite: loads make no progress."""


class StorageSpeed:
    """The speed of storage over time: full speed, but slower in windows. Factors of overlapping windows multiply.

    :param windows: in any order; empty ones are ignored.
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
        """Return the end time of a load that takes ``work_s`` at full speed."""
        return start_s + self.seconds(start_s, work_s)

    def seconds(self, start_s: float, work_s: float) -> float:
        """Return the seconds of such a load; at full speed exactly ``work_s``."""
        edges, speeds = self._edges, self._speeds
        piece, passed_s = bisect_right(edges, start_s), 0.0
        while piece < len(edges):
            edge, speed = edges[piece], speeds[piece]
            if speed and start_s + (passed_s + work_s / speed) <= edge:
                break  # compares the end as it will be computed: a load that ends at the edge is over
            work_s = max(0.0, work_s - (edge - start_s - passed_s) * speed)
            passed_s = edge - start_s
            piece += 1
        return passed_s + (work_s / speeds[piece] if work_s else 0.0)


@dataclass(frozen=True, slots=True)
class Delay:
    """A network between replicas and some of the adapters.

    :ivar begin_s, end_s: loads that start from ``begin_s`` on and before ``end_s`` take longer.
    :ivar ppf: the delay in seconds for a uniform number.
    :ivar share: share of the adapters that are remote.
    :ivar adapter_key, load_key: keys of the uniform draws that choose remote adapters, and delays of loads.
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

    :ivar begin_s, end_s: attempts that end from ``begin_s`` on and before ``end_s`` may fail.
    :ivar retries: attempts after the first; ``backoff_s``: pause before the first retry, doubled before each further
        one, up to ``LONGEST_PAUSE_S``.
    :ivar keys: by attempt, the key of the uniform draws that decide whether it fails.
    """

    begin_s: float
    end_s: float
    probability: float
    retries: int
    backoff_s: float
    keys: tuple[int, ...]


class StorageFaults(LoadTiming):
    """Faults of storage as the loads of one replica meet them.

    A loader stays busy in the pauses between attempts, as in LoRAX (``download_weights`` in its ``sources/hub.py``) and
    in any engine that retries with a sleep in its loading thread.

    :param original: by number in the caches, the number in the traffic, since all versions of an adapter are stored in
        one place; empty: the same.
    :param place: number of this incarnation of the replica, so that loads without a request have draws of their own.
    """

    disturbs = True

    def __init__(
        self,
        speed: StorageSpeed,
        delays: Sequence[Delay],
        failures: Sequence[Failures],
        original: Sequence[int] = (),
        place: int = 0,
    ) -> None:
        self._speed = speed
        self._delays = delays
        self._failures = failures
        self._original = original
        self._place = place
        self._unrequested: dict[int, int] = {}  # by adapter, number of loads without a request

    def attempts(self, start_s: float, seconds: float, adapter: int, index: int) -> Attempts:
        number = index if index >= 0 else self._unrequested_number(adapter)
        work_s = self._work_s(start_s, seconds, adapter, number)
        took_s, began_s = self._speed.seconds(start_s, work_s), start_s
        spans: list[tuple[float, float]] = []
        while True:
            end_s = self._speed.finish(start_s, work_s)
            spans.append((start_s, end_s))
            failed = self._failed(len(spans) - 1, end_s, number)
            if failed is None or len(spans) > failed.retries:
                return Attempts(tuple(spans), took_s if len(spans) == 1 else end_s - began_s, failed is None)
            pause_s = failed.backoff_s * 2.0 ** (len(spans) - 1)
            start_s = end_s + min(pause_s, max(LONGEST_PAUSE_S, failed.backoff_s))

    def _unrequested_number(self, adapter: int) -> int:
        """Return a number below 0 for the draws of a load without a request; it is unique over all replicas."""
        count = self._unrequested.get(adapter, 0)
        self._unrequested[adapter] = count + 1
        return ~((((self._place << 24) + adapter) << 20) + count)

    def seconds(self, start_s: float, seconds: float, adapter: int) -> float:
        number = self._unrequested_number(adapter)
        return self._speed.seconds(start_s, self._work_s(start_s, seconds, adapter, number))

    def _work_s(self, start_s: float, seconds: float, adapter: int, number: int) -> float:
        """Return the seconds of a load that starts now at full speed, with the delay of a network."""
        name = self._original[adapter] if self._original else adapter
        for delay in self._delays:
            if delay.begin_s <= start_s < delay.end_s and uniform_draw(delay.adapter_key, name) < delay.share:
                seconds += delay.ppf(uniform_draw(delay.load_key, number))
        return seconds

    def _failed(self, attempt: int, end_s: float, number: int) -> Failures | None:
        for failures in self._failures:
            holds = failures.begin_s <= end_s < failures.end_s
            if holds and uniform_draw(failures.keys[attempt], number) < failures.probability:
                return failures
        return None


def storage_faults(scenario: Scenario) -> list[tuple[int, StorageFault]]:
    """Return the storage faults of a scenario, each with its place there."""
    return [(i, fault) for i, fault in enumerate(scenario.faults) if isinstance(fault, StorageFault)]


def make_load_timing(pool: Pool, replica: int, draws: ReplicaDraws) -> LoadTiming:
    """Return how long loads from storage take on one replica, with the faults that concern it."""
    replication = draws.replication
    seed = pool.scenario.run.seed
    windows: list[Window] = []
    delays: list[Delay] = []
    failures: list[Failures] = []
    most = 1 + max((fault.retries for fault in pool.scenario.faults if isinstance(fault, FailingLoads)), default=0)
    for i, fault in storage_faults(pool.scenario):
        if fault.replica is not None and fault.replica != replica:
            continue
        end_s = ends_s(fault)
        if isinstance(fault, NetworkDelay):
            keys = (stream_key(seed, replication, f"{name}-{i}") for name in ("remote", "network-delay"))
            delays.append(Delay(fault.at, end_s, _one(fault), fault.share, *keys))
        elif isinstance(fault, FailingLoads):
            attempt_keys = tuple(
                stream_key(seed, replication, f"failing-load-{i}-{attempt}") for attempt in range(most)
            )
            failures.append(Failures(fault.at, end_s, fault.probability, fault.retries, fault.backoff, attempt_keys))
        else:
            windows.append((fault.at, end_s, fault.factor if isinstance(fault, SlowStorage) else inf))
    if not (windows or delays or failures):
        return LoadTiming()
    original = pool.rollout_plan.original.tolist()
    return StorageFaults(StorageSpeed(windows), delays, failures, original, draws.place)


def _one(fault: NetworkDelay) -> Callable[[float], float]:
    return lambda drawn: float(fault.delay.ppf(np.array([drawn]))[0])


def storage_notes(scenario: Scenario) -> list[str]:
    """Return notes for the user about storage faults that have little effect."""
    host = scenario.cache.host
    if host is None or host.fill != "start" or not any(isinstance(fault, StorageFault) for fault in scenario.faults):
        return []
    return [
        "all adapters are in host memory from the start, so storage faults affect only new versions that a swap "
        "fetches; set cache.host.fill to load or arrival"
    ]


def note_storage(scenario: Scenario, events: list[Event], stopped_s: float) -> None:
    """Add the storage faults to the timeline of a replication that stopped at ``stopped_s``.

    Events on the clock would make a run of all requests longer.
    """
    for i, fault in storage_faults(scenario):
        if never_happens(fault):
            continue
        where = "all replicas" if fault.replica is None else f"replica {fault.replica}"
        began, over = _words(fault)
        events.append(Event(fault.at, "fault", f"faults.{i}: {began} ({where})"))
        if ends_s(fault) < inf:
            events.append(Event(ends_s(fault), "over", f"faults.{i}: {over} ({where})"))
    events[:] = sorted((event for event in events if event.time_s <= stopped_s), key=lambda event: event.time_s)


def _words(fault: StorageFault) -> tuple[str, str]:
    if isinstance(fault, SlowStorage):
        return f"loads from storage take {fault.factor:g} times as long", "storage is as fast as before"
    if isinstance(fault, StorageStall):
        return "storage stalls", "storage works again"
    if isinstance(fault, FailingLoads):
        return (
            f"{100 * fault.probability:.3g} % of the loads from storage fail",
            "loads from storage no longer fail",
        )
    return (
        f"{100 * fault.share:.3g} % of the adapters come over a network, with a mean delay of "
        f"{fault.delay.mean():.3g} s",
        "the network no longer delays loads",
    )
