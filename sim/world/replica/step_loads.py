"""Adapters at the start of a step: its requests claim theirs, and blocking engines load the missing ones."""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

from sim.policies.adapter_cache import RESIDENT, GpuCache, UnifiedCache
from sim.policies.scheduler import Scheduler
from sim.policies.vllm_lru import VllmLruCache
from sim.results.records import pack_load
from sim.traffic.request import DELAYED_HIT, FROM_STORAGE, MISS, Request
from sim.world.replica.loader import LoadContext, Loader


class StepLoads(Protocol):
    """Claims and loads of adapters at the start of each step.

    :ivar failed: requests of the step whose adapter could not be loaded. At the end of the step, the server empties the
        list and takes them out of the batch.
    """

    failed: list[Request]

    def before_step(self, prefills: list[Request], now: float) -> float:
        """Load what the step needs, record it, and return the seconds that it takes."""
        ...


class ProtectedLoads:
    """Loads for newly admitted requests; adapters in use stay resident.

    :param loader: knows the host tier, and for whom the loads are recorded.
    """

    def __init__(self, cache: GpuCache, loader: Loader) -> None:
        self._replica = loader.context.replica
        self._faults = loader.context.faults
        self._recorder = loader.context.recorder
        self.failed: list[Request] = []
        self._cache = cache
        self._loader = loader

    def before_step(self, prefills: list[Request], now: float) -> float:
        load_s = 0.0
        loaded = set()
        for request in prefills:
            if not request.claimed:
                request.claimed = True
                if self.failed and any(other.adapter == request.adapter for other in self.failed):
                    request.outcome, request.tier = DELAYED_HIT, FROM_STORAGE  # it waited for the same load
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
    """Loads of whole models, whose turns begin when their loads end.

    :param on_loaded: called with a model and the time at which its load ends.
    """

    def __init__(self, cache: GpuCache, loader: Loader, on_loaded: Callable[[int, float], None]) -> None:
        super().__init__(cache, loader)
        self._on_loaded = on_loaded

    def _load(self, request: Request, start: float) -> float:
        seconds = super()._load(request, start)
        self._on_loaded(request.adapter, start + seconds)
        return seconds


class UnifiedLoads(ProtectedLoads):
    """Loads of adapters that share the KV cache: idle ones first make room for the requests that were admitted."""

    def __init__(self, cache: UnifiedCache, loader: Loader) -> None:
        super().__init__(cache, loader)
        self._shared = cache

    def before_step(self, prefills: list[Request], now: float) -> float:
        if prefills:
            self._shared.shrink()
        return super().before_step(prefills, now)


class VllmLoads:
    """vLLM's loads: every adapter of the batch is touched, and any of them may have to be loaded again.

    A request that is admitted while its adapter is absent waits for all loads of its step. If a load fails for good,
    exactly the requests of the batch that use this adapter fail.

    :param reload_s: seconds of a load that no request of this step starts, by adapter and tier.
    """

    def __init__(
        self,
        cache: VllmLruCache,
        scheduler: Scheduler,
        reload_s: Callable[[int, int], float],
        context: LoadContext,
    ) -> None:
        self._replica = context.replica
        self._faults = context.faults
        self._versions = context.versions
        self._recorder = context.recorder
        self.failed: list[Request] = []
        self._cache = cache
        self._scheduler = scheduler
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
    """Return, by absent adapter, the request that loads it. Claims adapters and sets outcomes of first admissions."""
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
