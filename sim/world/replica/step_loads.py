"""What happens to adapters when a step begins: its requests claim theirs, and a blocking engine loads what lacks."""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

from sim.policies.adapter_cache import RESIDENT, GpuCache, UnifiedCache
from sim.policies.scheduler import Scheduler
from sim.policies.vllm_lru import VllmLruCache
from sim.results.records import Recorder, pack_load
from sim.traffic.request import DELAYED_HIT, FROM_STORAGE, MISS, Request
from sim.world.faults.storage_faults import StorageFaults
from sim.world.replica.loader import Loader
from sim.world.rollouts.versions import LoadListener


class StepLoads(Protocol):
    """What a server asks before each step.

    :ivar failed: requests of the step whose adapter couldn't be loaded; the server takes them out of the batch, and of
        this list, when the step has ended.
    """

    failed: list[Request]

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
        self.failed: list[Request] = []
        self._cache = cache
        self._loader = loader
        self._recorder = recorder

    def before_step(self, prefills: list[Request], now: float) -> float:
        load_s = 0.0
        loaded = set()
        for request in prefills:
            if not request.claimed:
                request.claimed = True
                if self.failed and any(other.adapter == request.adapter for other in self.failed):
                    request.outcome, request.tier = DELAYED_HIT, FROM_STORAGE  # it waited in vain for the same load
                    self.failed.append(request)
                elif self._cache.state[request.adapter] != RESIDENT:
                    load_s += self._load(request, now + load_s)
                    loaded.add(request.adapter)
                elif request.adapter in loaded:
                    request.outcome = DELAYED_HIT
        return load_s

    def _load(self, request: Request, start: float) -> float:
        tier, seconds = self._loader.source(request)
        fits = self._cache.reserve(request.adapter)
        assert fits, "a claimed adapter always finds room"
        self._loader.begins(request.adapter, tier)
        succeeds = True
        if self._faults is not None and tier == FROM_STORAGE:
            attempts = self._faults.attempts(start, seconds, request.adapter, request.index)
            seconds, succeeds = attempts.seconds, attempts.succeeds
            self._recorder.load_attempts(attempts.spans, start, request.adapter, self._replica)
        else:
            self._recorder.load_rows += pack_load(start, start + seconds, start, request.adapter, tier, self._replica)
        if succeeds:
            self._cache.loaded(request.adapter)
            self._loader.kept(request.adapter, tier)
        else:
            self._cache.abort(request.adapter)
            self.failed.append(request)
        request.outcome, request.tier, request.load_wait_s = MISS, tier, seconds
        return seconds


class TurnLoads(ProtectedLoads):
    """The same for whole models that have turns, which begin when their loads end.

    :param came: told of a model, and when its load ends.
    """

    def __init__(
        self, cache: GpuCache, loader: Loader, recorder: Recorder, replica: int, on_loaded: Callable[[int, float], None]
    ) -> None:
        super().__init__(cache, loader, recorder, replica)
        self._on_loaded = on_loaded

    def _load(self, request: Request, start: float) -> float:
        seconds = super()._load(request, start)
        self._on_loaded(request.adapter, start + seconds)
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


class VllmLoads:
    """vLLM's: all of the batch's adapters are touched, and any may have to be loaded again.

    A request that is admitted while its adapter is absent waits for all loads of its step. If one of these fails for
    good, so do all requests of the batch that use this adapter, and nobody else.

    :param reload_s: seconds of a load that no request of this step begins: by adapter and tier.
    :param replica: whose loads these are; ``versions``: notes which version of an adapter came, or None; ``faults``:
        what is wrong with storage, or None.
    """

    def __init__(
        self,
        cache: VllmLruCache,
        scheduler: Scheduler,
        recorder: Recorder,
        reload_s: Callable[[int, int], float],
        replica: int,
        versions: LoadListener | None = None,
        faults: StorageFaults | None = None,
    ) -> None:
        self._replica = replica
        self._faults = faults
        self.failed: list[Request] = []
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
        lost: set[int] = set()
        for adapter, tier in self._cache.touch(list(scheduler.adapters)):
            request = first.get(adapter)
            if request is None:
                seconds = self._reload_s(adapter, tier)
            else:
                seconds = request.load_s if tier == FROM_STORAGE else request.host_load_s
            tiers[adapter] = tier
            if self._faults is not None and tier == FROM_STORAGE:
                number = self._faults.unrequested(adapter) if request is None else request.index
                attempts = self._faults.attempts(time, seconds, adapter, number)
                seconds = attempts.seconds
                self._recorder.load_attempts(attempts.spans, now, adapter, self._replica)
                if not attempts.succeeds:
                    lost.add(adapter)
            else:
                self._recorder.load_rows += pack_load(time, time + seconds, now, adapter, tier, self._replica)
            if self._versions is not None and adapter not in lost:
                self._versions.load_started(adapter, tier)
                self._versions.load_ended(adapter, tier)
            time += seconds
        for request in prefills:
            if request.adapter in first and request.preemptions == 0:
                request.tier, request.load_wait_s = tiers[request.adapter], time - now
        if lost:
            self.failed = [request for request in scheduler.running.values() if request.adapter in lost]
            for adapter in lost:
                self._cache.lose(adapter)
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
