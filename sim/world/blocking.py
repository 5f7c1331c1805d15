"""What happens to adapters when a step begins: its requests claim theirs, and a blocking engine loads what lacks."""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

from sim.policies.cache import RESIDENT, GpuCache, UnifiedCache
from sim.policies.scheduler import Scheduler
from sim.policies.vllm_lru import TouchedCache
from sim.results.records import Recorder, pack_load
from sim.traffic.request import DELAYED_HIT, FROM_STORAGE, MISS, Request
from sim.world.loader import Loader
from sim.world.storage import StorageFaults
from sim.world.versions import Noted


class StepLoads(Protocol):
    """What a server asks before each step."""

    def before_step(self, prefills: list[Request], now: float) -> float:
        """Load what the step needs, note it in requests and records; return the seconds that takes."""
        ...


class ProtectedLoads:
    """Loads of newly admitted requests, where they block; adapters in use stay.

    :param loader: knows the host tier; ``replica``: whose loads these are.
    """

    def __init__(self, cache: GpuCache, loader: Loader, recorder: Recorder, replica: int) -> None:
        self._replica = replica
        self._faults = loader.faults
        self._cache = cache
        self._loader = loader
        self._recorder = recorder

    def before_step(self, prefills: list[Request], now: float) -> float:
        load_s = 0.0
        loaded = set()
        for request in prefills:
            if not request.claimed:
                request.claimed = True
                if self._cache.state[request.adapter] != RESIDENT:
                    load_s += self._load(request, now + load_s)
                    loaded.add(request.adapter)
                elif request.adapter in loaded:
                    request.outcome = DELAYED_HIT
        return load_s

    def _load(self, request: Request, start: float) -> float:
        tier, seconds = self._loader.source(request)
        if self._faults is not None and tier == FROM_STORAGE:
            seconds = self._faults.seconds(start, seconds, request.adapter, request.index)
        fits = self._cache.reserve(request.adapter)
        assert fits, "a claimed adapter always finds room"
        self._loader.begins(request.adapter, tier)
        self._cache.loaded(request.adapter)
        self._loader.kept(request.adapter, tier)
        self._recorder.load_rows += pack_load(start, start + seconds, start, request.adapter, tier, self._replica)
        request.outcome, request.tier, request.load_wait_s = MISS, tier, seconds
        return seconds


class UnifiedLoads(ProtectedLoads):
    """The same where adapters share the KV cache: first, idle ones leave to those who were admitted what they need."""

    def __init__(self, cache: UnifiedCache, loader: Loader, recorder: Recorder, replica: int) -> None:
        super().__init__(cache, loader, recorder, replica)
        self._shared = cache

    def before_step(self, prefills: list[Request], now: float) -> float:
        if prefills:
            self._shared.shrink()
        return super().before_step(prefills, now)


class TouchedLoads:
    """vLLM's: all of the batch's adapters are touched, and any may have to be loaded again.

    A request that is admitted while its adapter is absent waits for all loads of its step.

    :param reload_s: seconds of a load that no request of this step begins: by adapter and tier.
    :param replica: whose loads these are; ``versions``: notes which version of an adapter came, or None; ``faults``:
        what is wrong with storage, or None.
    """

    def __init__(
        self,
        cache: TouchedCache,
        scheduler: Scheduler,
        recorder: Recorder,
        reload_s: Callable[[int, int], float],
        replica: int,
        versions: Noted | None = None,
        faults: StorageFaults | None = None,
    ) -> None:
        self._replica = replica
        self._faults = faults
        self._versions = versions
        self._cache = cache
        self._scheduler = scheduler
        self._recorder = recorder
        self._reload_s = reload_s

    def before_step(self, prefills: list[Request], now: float) -> float:
        scheduler = self._scheduler
        first = _first_of_missing(prefills, self._cache.state)
        if not scheduler.adapters_changed:
            return 0.0
        scheduler.adapters_changed = False
        time = now
        tiers: dict[int, int] = {}
        for adapter, tier in self._cache.touch(list(scheduler.adapters)):
            request = first.get(adapter)
            if request is None:
                seconds = self._reload_s(adapter, tier)
            else:
                seconds = request.load_s if tier == FROM_STORAGE else request.host_load_s
            if self._faults is not None and tier == FROM_STORAGE:
                number = ~adapter if request is None else request.index
                seconds = self._faults.seconds(time, seconds, adapter, number)
            tiers[adapter] = tier
            if self._versions is not None:
                self._versions.reads(adapter, tier)
                self._versions.came(adapter, tier)
            self._recorder.load_rows += pack_load(time, time + seconds, now, adapter, tier, self._replica)
            time += seconds
        for request in prefills:
            if request.adapter in first and request.preemptions == 0:
                request.tier, request.load_wait_s = tiers[request.adapter], time - now
        return time - now


def _first_of_missing(prefills: list[Request], state: list[int]) -> dict[int, Request]:
    """Return, by adapter that isn't there, the request that brings it in; note outcomes of first admissions."""
    first: dict[int, Request] = {}
    for request in prefills:
        if request.claimed:
            continue
        request.claimed = True
        adapter = request.adapter
        if state[adapter] == RESIDENT:
            continue
        if adapter not in first:
            first[adapter] = request
        if request.preemptions == 0:
            request.outcome = MISS if first[adapter] is request else DELAYED_HIT
    return first
